"""What elements of several inputs have to be together, dealt to requests.

A request has one user, so what is the user's of one such thing is given to the request, and its candidates get all
others that agree with that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.parity.domains.leaves import inside
from mari_onnx.parity.domains.trace import folded
from mari_onnx.parity.requests.elements import place_of

if TYPE_CHECKING:
    from mari_onnx.parity.domains.texts import Joint
    from mari_onnx.parity.layout import Layout

# Of the rows of a request that is there for other things too so many get what several elements have to be together.
_JOINED = 0.8
# Bounds of a user are no narrower, relative to where they lie.
_NARROW = 2.0**-16


class Joints:
    """Deals joints.

    Args:
        joints: at least one.
    """

    def __init__(self, joints: Sequence[Joint], layout: Layout):
        self._layout = layout
        self._shapes = {i.name: folded(layout, i.name) for i in layout.signature.inputs}
        elements = dict.fromkeys(part[:2] for joint in joints for part in joint.parts)
        self._elements = {each: at for at, each in enumerate(elements)}
        self._user = np.array([layout.is_user_at(*each) for each in elements])
        shape = len(joints), len(elements)
        self._values, self._given = np.zeros(shape, object), np.zeros(shape, bool)
        self._low, self._high = np.full(shape, -np.inf), np.full(shape, np.inf)
        for number, joint in enumerate(joints):
            for part, (low, high) in zip(joint.parts, joint.bounds or [(0.0, 0.0)] * len(joint.parts), strict=True):
                at = number, self._elements[part[:2]]
                self._values[at], self._given[at], self._low[at], self._high[at] = part[2], True, low, high
        self._open = np.ones(len(joints), bool)

    @property
    def left(self) -> bool:
        """Whether some were not dealt yet."""
        return bool(self._open.any())

    def some(self, arrays: Mapping[str, np.ndarray], rng: np.random.Generator) -> None:
        """Puts some into most rows of a request.

        Args:
            arrays: inputs of the request, changed in place.
        """
        first = int(rng.integers(0, len(self._open)))
        self._to_user(arrays, first)
        fitting = np.flatnonzero(self._agree(arrays))
        fitting = np.concatenate([[first], fitting[fitting > first], fitting[fitting < first]]).astype(int)
        self._to_rows(arrays, fitting, rng)

    def deal(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Puts as many that were not dealt yet into the rows of a request as agree with the first of them."""
        first = int(np.argmax(self._open))
        self._to_user(arrays, first)
        self._to_many(arrays, first)
        fitting = np.flatnonzero(self._agree(arrays) & self._open)
        fitting = np.concatenate([[first], fitting[fitting != first]]).astype(int)
        self._open[fitting[: max(self._to_rows(arrays, fitting), 1)]] = False

    def _to_user(self, arrays: Mapping[str, np.ndarray], number: int) -> None:
        for (name, place), at in self._elements.items():
            if self._user[at] and self._given[number, at] and name in arrays:
                arrays[name][place_of(self._shapes[name], place)] = self._values[number, at]

    def _to_many(self, arrays: Mapping[str, np.ndarray], first: int) -> None:
        """Moves the user's elements within the bounds of one, to where they agree with as many further ones as can be
        found one after the other."""
        mine = np.flatnonzero(self._user)
        if not mine.size or (self._given[:, mine] & ~(self._low < self._high)[:, mine]).any():
            return  # other numbers will not do
        low, high = self._low[first, mine], self._high[first, mine]
        left = np.flatnonzero(self._open)
        while left.size:
            lows, highs = np.maximum(low, self._low[left][:, mine]), np.minimum(high, self._high[left][:, mine])
            with np.errstate(invalid="ignore"):
                wide = (highs - lows > _NARROW * (1 + np.abs(lows))) | np.isinf(highs) | np.isinf(lows)
            fits = wide.all(axis=1)
            left, lows, highs = left[fits], lows[fits], highs[fits]
            if left.size:
                left, low, high = left[1:], lows[0], highs[0]
        for at, one, other in zip(mine.tolist(), low.tolist(), high.tolist(), strict=True):
            name, place = next(each for each, number in self._elements.items() if number == at)
            if name in arrays and (np.isfinite(one) or np.isfinite(other)):
                arrays[name][place_of(self._shapes[name], place)] = inside(one, other)

    @property
    def of_user(self) -> bool:
        """Whether some have elements of the user."""
        return bool(self._user.any())

    def _agree(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which of them the user's elements are as they have to be."""
        found = np.ones(len(self._open), bool)
        for (name, place), at in self._elements.items():
            if not self._user[at] or name not in arrays:
                continue
            own = np.asarray(arrays[name][place_of(self._shapes[name], place)]).reshape(-1)[:1]
            if not own.size:
                continue
            given = self._given[:, at]
            same = self._values[:, at] == own[0]
            if own.dtype.kind != "O":
                same = same | ((self._low[:, at] < own[0]) & (own[0] < self._high[:, at]))
            found &= ~given | same.astype(bool)
        return found

    def _to_rows(
        self, arrays: Mapping[str, np.ndarray], fitting: np.ndarray, rng: np.random.Generator | None = None
    ) -> int:
        """Puts one into each row, or into most by chance; the first into some row for sure. How many there was room
        for."""
        rows: dict[int, np.ndarray] = {}
        for (name, place), at in self._elements.items():
            if self._user[at] or name not in arrays:
                continue
            where, axis = place_of(self._shapes[name], place), self._layout.axis_of(name) or 0
            part = arrays[name][where]
            if not np.size(part) or not np.ndim(part):
                continue
            whole = sum(isinstance(each, slice) for each in where[:axis])
            part = np.moveaxis(part, min(whole, part.ndim - 1), 0)
            count = part.shape[0]
            if count not in rows:  # the same row for all that stand there together
                rows[count] = np.resize(fitting, count)
                if rng is not None:
                    rows[count][(rng.random(count) >= _JOINED) & (np.arange(count) > 0)] = -1
            taken = np.flatnonzero((rows[count] >= 0) & self._given[rows[count], at])
            values = self._values[rows[count][taken], at].astype(part.dtype)
            part[taken] = values.reshape(-1, *[1] * (part.ndim - 1))
        return min(rows, default=0)
