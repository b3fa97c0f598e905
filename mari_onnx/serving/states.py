"""Users' states, kept between requests.

In: a user's key, the hash of the model, and what makes the state. Out: the state. It is made once, however many
requests of the user wait for it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from cachetools import TTLCache

from mari_onnx.splitting.rows import Arrays, UserState


@dataclass
class Counts:
    """How often a state was there (`hits`), had to be made (`misses`), or was just being made (`joined`)."""

    hits: int = 0
    misses: int = 0
    joined: int = 0


@dataclass(frozen=True)
class _Kept:
    """number: of the call that made the state; a later call has a larger one."""

    state: UserState
    features: str | None
    number: int


class StateCache:
    """States by user and model. Safe for several threads.

    Args:
        max_bytes: of all states that are kept; those that were used least recently go first.
        seconds: a state older than this is made anew.
        timer: what tells the time, in seconds.
    """

    def __init__(self, max_bytes: int = 256 << 20, seconds: float = 600.0, timer: Callable[[], float] = time.monotonic):
        self._kept: TTLCache[tuple[str, str], _Kept] = TTLCache(max_bytes, seconds, timer, getsizeof=_size)
        self._making: dict[tuple[str, str, str | None], Future[UserState]] = {}
        self._number = 0
        self._lock = threading.Lock()
        self.counts = Counts()

    def get(
        self, user_key: str, model_key: str, make: Callable[[], UserState], features: str | None = None
    ) -> tuple[UserState, bool]:
        """The user's state, and whether it was there.

        Args:
            model_key: `Manifest.state_key`; a state of another model is never answered.
            make: makes the state; what it raises is raised to all who wait for it, and nothing is kept.
            features: `fingerprint` of the user's features, where the caller has them: a state of other features is
                made anew. None: whatever state of the user there is.
        """
        key = (user_key, model_key)
        making = (*key, features)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and features in (None, kept.features):
                self.counts.hits += 1
                return kept.state, True
            future = self._making.get(making)
            mine = future is None
            if future is None:
                future = self._making[making] = Future()
                self._number += 1
                number = self._number
                self.counts.misses += 1
            else:
                self.counts.joined += 1
        if not mine:
            return future.result(), True
        try:
            state = make()
        except BaseException as error:
            with self._lock:
                self._made(making, future)
            future.set_exception(error)
            raise
        with self._lock:
            if self._made(making, future):
                self._keep(key, _Kept(state, features, number))
        future.set_result(state)
        return state, False

    def _made(self, making: tuple[str, str, str | None], future: Future[UserState]) -> bool:
        """Nobody waits for a state any more; False where the user was dropped meanwhile."""
        if self._making.get(making) is not future:
            return False
        del self._making[making]
        return True

    def _keep(self, key: tuple[str, str], made: _Kept) -> None:
        """Keeps a state, unless a later call has made one of newer features meanwhile."""
        before = self._kept.get(key)
        if before is not None and before.number > made.number:
            return
        self._kept.pop(key, None)  # of older features, also where this one has no room
        if _size(made) <= self._kept.maxsize:
            self._kept[key] = made

    def drop(self, user_key: str) -> None:
        """Forgets a user's states, of all models; those that are just being made are not kept."""
        with self._lock:
            for key in [k for k in self._kept if k[0] == user_key]:
                self._kept.pop(key, None)  # it may just have grown too old
            for making in [k for k in self._making if k[0] == user_key]:
                del self._making[making]

    @property
    def bytes(self) -> int:
        """What all states take that are kept."""
        with self._lock:
            return int(self._kept.currsize)


def fingerprint(features: Arrays) -> str:
    """A hash of arrays, their names, types and shapes."""
    made = hashlib.blake2b(digest_size=16)
    for name in sorted(features):
        array = np.asarray(features[name])
        made.update(f"{name}\0{array.dtype}{array.shape}\0".encode())
        if array.dtype.kind in "OU":
            for text in array.reshape(-1).tolist():
                data = str(text).encode("utf-8", "surrogatepass")
                made.update(len(data).to_bytes(8, "little") + data)
        else:
            made.update(np.ascontiguousarray(array).tobytes())
    return made.hexdigest()


def _size(kept: _Kept) -> int:
    total = 256  # keys and objects
    for array in kept.state.arrays.values():
        total += array.nbytes
        if array.dtype == object:
            total += sum(len(str(x)) for x in array.reshape(-1))
    return total
