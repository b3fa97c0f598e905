"""Rows of items in Redis, shared by many servers.

A store is loaded under a generation of its own (`load`), then the name points to it: one key, so a switch is atomic.
Each look-up asks for a key of the generation as well, which tells a server that lost its rows from items without rows.
A row is the bytes of its tensors, one after the other.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from mari_onnx.errors import ModelError, ModelNotFound, StoreUnavailable, UsageError
from mari_onnx.serving.row_format import Column, RowFormat
from mari_onnx.serving.store import ArrowStore, Compute, ItemStore
from mari_onnx.splitting.rows import ItemRows

PREFIX = "mari-onnx"
NAME = "items"
PER_CALL = 1000
"""Rows that are written or removed by one call."""
LEASE = 60
"""Seconds after which a load that says nothing counts as killed."""


class RedisStore(ItemStore):
    """The store that a name points to when this object is made. Safe for several threads.

    Args:
        url: as redis-py takes it, such as redis://localhost:6379/0. name: of the store.
        seconds: for an answer of the server; a call is tried three times.
        default, compute: see `ItemStore`.

    Raises:
        ModelNotFound: there is no such store. StoreUnavailable: the server does not answer.
    """

    def __init__(
        self,
        url: str,
        name: str = NAME,
        seconds: float = 0.5,
        default: ItemRows | None = None,
        compute: Compute | None = None,
    ):
        self._client, self._url = _client(url, seconds), url
        with _answering(url):
            said = self._client.get(f"{PREFIX}:{name}")
        if said is None:
            raise ModelNotFound(f"{shown(url)} has no store {name!r}", "mari-onnx precompute ... --redis URL loads one")
        try:
            meta = json.loads(said)
            columns = tuple(Column(**{**c, "shape": tuple(c["shape"])}) for c in meta["columns"])
            super().__init__(RowFormat(meta["key"], columns), int(meta["count"]), default, compute)
            self.generation: str = meta["generation"]
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{shown(url)} has something else under {PREFIX}:{name}: {error}") from error
        self._row = _row_type(self.format)

    def find(self, ids: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """See `ItemStore.find`."""
        keys = [_whole(self.generation), *(_key(self.generation, x) for x in ids.tolist())]
        with _answering(self._url):
            whole, *found = self._client.mget(keys)
        if whole is None:
            raise StoreUnavailable(
                f"the server at {shown(self._url)} no longer has the rows of this store: it was started without them, "
                "or newer stores were loaded",
                "load the store again (mari-onnx precompute .. --redis), and let services switch to it",
            )
        here = np.array([x is not None and len(x) == self._row.itemsize for x in found], bool)
        nothing = bytes(self._row.itemsize)
        rows = np.frombuffer(
            b"".join(x if ok else nothing for x, ok in zip(found, here, strict=True)), self._row, len(ids)
        )
        arrays = {
            c.name: rows[str(at)].view(c.element).reshape(len(ids), *c.shape).copy()
            for at, c in enumerate(self.format.columns)
        }
        return arrays, here

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()


def check(url: str, format: RowFormat, seconds: float = 10.0) -> None:
    """Whether rows can be loaded, before they are made. Raises UsageError and StoreUnavailable: see `load`."""
    texts = [c.name for c in format.columns if c.dtype == "string"]
    if texts:
        raise UsageError(f"{texts[0]} is a tensor of texts, which Redis cannot keep here", "use the file as the store")
    with contextlib.closing(_client(url, seconds)) as client, _answering(url):
        client.ping()


def load(store: ArrowStore, url: str, name: str = NAME, seconds: float = 10.0) -> int:
    """Writes all rows of a file to Redis, then lets `name` point to them. The rows that it pointed to until now stay
    until the next load; older ones, and those of loads that were killed, are removed.

    Returns:
        How many rows were written.

    Raises:
        UsageError: a tensor of texts, which has no fixed size; or another load of this name is running.
        StoreUnavailable: the server does not answer.
    """
    check(url, store.format, seconds)
    client, row = _client(url, seconds), _row_type(store.format)
    # Not a number that the server counts: if it lost its data it would begin with 1 again, and a service that still
    # reads its earlier generation 1 would take the rows of another model for its own.
    generation = secrets.token_hex(8)
    with contextlib.closing(client), _answering(url), _alone(client, name) as hold:
        client.sadd(f"{PREFIX}:{name}:generations", generation)
        for ids, arrays in store.blocks():
            packed = np.zeros(len(ids), row)
            for at, c in enumerate(store.format.columns):
                packed[str(at)] = np.ascontiguousarray(arrays[c.name]).reshape(-1, c.size).view(c.stored)
            keys = [_key(generation, x) for x in ids.tolist()]
            for start in range(0, len(ids), PER_CALL):
                some = slice(start, start + PER_CALL)
                client.mset({key: one.tobytes() for key, one in zip(keys[some], packed[some], strict=True)})
                hold()
        client.set(_whole(generation), store.count or 0)
        meta: dict[str, Any] = {"key": store.key, "count": store.count, "generation": generation}
        meta |= {"columns": [asdict(c) for c in store.format.columns]}
        said = client.get(f"{PREFIX}:{name}")
        client.set(f"{PREFIX}:{name}", json.dumps(meta))
        # Servers may still read the store before this one; older ones, and loads that were killed, nobody does.
        kept = {generation, json.loads(said)["generation"] if said else generation}
        for old in client.smembers(f"{PREFIX}:{name}:generations"):
            if old.decode() not in kept:
                remove(client, old.decode())
                client.srem(f"{PREFIX}:{name}:generations", old)
    return store.count or 0


@contextlib.contextmanager
def _alone(client: Any, name: str) -> Iterator[Callable[[], None]]:
    """Within it no other load of this name runs, as it would take this one's rows for those of one that was killed.

    Yields:
        What is to be called every few seconds; a load that was killed holds the name for `LEASE` seconds.
    """
    lock = client.lock(f"{PREFIX}:{name}:loading", timeout=LEASE)
    if not lock.acquire(blocking=False):
        raise UsageError(
            f"another load of the store {name!r} is running",
            f"wait for it; one that was killed counts as running for another {LEASE} seconds",
        )
    try:
        yield lock.reacquire
    finally:
        with contextlib.suppress(redis.exceptions.LockError):  # removing old rows took longer than that
            lock.release()


def remove(client: Any, generation: str) -> None:
    """Removes all rows of a generation, so that who still reads it is told at once."""
    client.delete(_whole(generation))
    some: list[bytes] = []
    for key in client.scan_iter(f"{PREFIX}:{generation}:*", count=PER_CALL):
        some.append(key)
        if len(some) == PER_CALL:
            client.unlink(*some)
            some = []
    if some:
        client.unlink(*some)


def shown(url: str) -> str:
    """A URL for a message: without user, password and options."""
    return re.sub(r"//.*@", "//", url).partition("?")[0]


def _client(url: str, seconds: float) -> Any:
    try:
        return redis.Redis.from_url(
            url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=Retry(ExponentialBackoff(0.1, 0.01), 2),
            retry_on_error=[redis.ConnectionError, redis.TimeoutError],
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(f"{shown(url)} is no URL of Redis: {error}") from error


@contextlib.contextmanager
def _answering(url: str) -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        where = shown(url)
        raise StoreUnavailable(f"the store at {where} does not answer: {error}", "is the server running?") from error


def _key(generation: str, item: int | bytes) -> bytes:
    return f"{PREFIX}:{generation}:".encode() + (item if isinstance(item, bytes) else str(item).encode())


def _whole(generation: str) -> str:
    """The key that is there as long as all rows of a generation are."""
    return f"{PREFIX}:whole:{generation}"


def _row_type(format: RowFormat) -> np.dtype[Any]:
    return np.dtype([(str(at), c.stored, (c.size,)) for at, c in enumerate(format.columns)])
