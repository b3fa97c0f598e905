"""What is measured of a tensor: which rows, outcomes, sides, keys and branches the requests reached.

A goal looks at tensors of one node in one run and keeps what it has seen; it answers how much of that was new.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

# What `Coverage` counts together, in the order in which it is printed.
KINDS = {
    "rows": "table rows",
    "keys": "categories",
    "outcomes": "comparison outcomes",
    "bounds": "sides of bounds",
    "units": "hidden units on and off",
    "splits": "tree splits",
    "picks": "places picked",
    "branches": "branches",
    "trips": "trips of loops",
}


# By so much a distance has to shrink to count as closer.
_CLOSER = 0.9


class Goal(ABC):
    """Things to meet at one node.

    Args:
        kind: one of `KINDS`.
        node: its name, or that of its first output.
        op: its operator.
        tensors: what `look` is given, in this order.
        size: how many things there are to meet.

    Attributes:
        met: `[size]` booleans, in an order of the goal's own; `left` of them are false.
        closer: whether the last run came closer than all before it to something that is not met.
        same: goals of two nodes, or of two models, with an equal `same` count once.
    """

    same: tuple[object, ...]

    def __init__(self, kind: str, node: str, op: str, tensors: Sequence[str], size: int):
        self.kind, self.node, self.op, self.tensors = kind, node, op, tuple(tensors)
        self.met = np.zeros(size, bool)
        self.left = size
        self.closer = False
        self._nearest: np.ndarray | None = None
        self.same = (kind, op, self.tensors, size)

    @property
    def done(self) -> bool:
        return not self.left

    def look(self, values: Sequence[np.ndarray]) -> int:
        """How many things one run met for the first time."""
        self.closer = False
        if self.done:
            return 0
        found = self._found(values)
        at = np.flatnonzero(found) if found.dtype == bool else found
        fresh = np.unique(at[~self.met[at]])
        self.met[fresh] = True
        self.left -= fresh.size
        distances = self._distances(values)
        if distances is not None:
            if self._nearest is None:
                self._nearest = distances
            self.closer = bool((~self.met & (distances < _CLOSER * self._nearest)).any())
            self._nearest = np.minimum(self._nearest, distances)
        return int(fresh.size)

    @abstractmethod
    def _found(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Which of its things a run reached: `[size]` booleans, or their places where there may be millions."""

    def _distances(self, values: Sequence[np.ndarray]) -> np.ndarray | None:
        """How far a run was from each thing; None where that is not known."""
        return None

    def margins(self, values: Sequence[np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray] | None:
        """How far what is compared lies above the number at which the outcome turns, and how large both are; None where
        that is not a matter of floats.

        Returns:
            Both [turn, candidate or 1, element], NaN where a turn is not asked for.
        """
        return None

    @abstractmethod
    def text(self, at: int) -> str:
        """One of its things, for people."""


class Rows(Goal):
    """Rows that indices (whole numbers, negative ones from the end) read; lookups in one table count together.

    Args:
        sizes: of the axes that one index picks from; of several, the last dimension of the indices has one number each.
    """

    def __init__(self, node: str, op: str, table: str, indices: str, sizes: Sequence[int]):
        rows = int(np.prod(sizes))
        super().__init__("rows", node, op, [indices], rows)
        self.same = ("rows", table, rows)
        self._sizes = np.array(sizes, np.int64)

    def _found(self, values: Sequence[np.ndarray]) -> np.ndarray:
        at = values[0].astype(np.int64).reshape(-1, self._sizes.size)
        at = np.where(at < 0, at + self._sizes, at)
        at = at[((at >= 0) & (at < self._sizes)).all(axis=1)]
        return np.asarray(np.ravel_multi_index(tuple(at.T), tuple(self._sizes)))

    def text(self, at: int) -> str:
        return f"row {at}"


class Keys(Goal):
    """Categories that an operator of `ai.onnx.ml` tells apart, and one that is none of them."""

    def __init__(self, node: str, op: str, tensor: str, keys: Sequence[object]):
        super().__init__("keys", node, op, [tensor], len(keys) + 1)
        self._keys = np.array(list(keys), object)

    def _found(self, values: Sequence[np.ndarray]) -> np.ndarray:
        given = {x.decode() if isinstance(x, bytes) else x for x in np.asarray(values[0]).reshape(-1).tolist()}
        known = [key in given or (key != key and any(x != x for x in given)) for key in self._keys.tolist()]
        return np.array([*known, bool(given - set(self._keys.tolist()))])

    def text(self, at: int) -> str:
        return "a category that is none of them" if at == len(self._keys) else repr(self._keys[at])


class Trips(Goal):
    """How often the body of a Loop ran: never, once, more than once."""

    def __init__(self, node: str, tensor: str):
        super().__init__("trips", node, "Loop", [tensor], 3)

    def _found(self, values: Sequence[np.ndarray]) -> np.ndarray:
        found = np.zeros(3, bool)
        found[min(len(values[0]), 2)] = True
        return found

    def text(self, at: int) -> str:
        return ("no trip", "one trip", "several trips")[at]
