"""Splits of tree ensembles, as goals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mari_onnx.parity.coverage.goals import Goal

# Trees of more inner nodes times rows are not asked how far a row is from each split.
_MARGINS = 2**18
# Of more nodes times features it is not asked which ways contradict each other.
_BOUNDS = 2**23
_HOLDS = {
    "BRANCH_LEQ": np.less_equal, "BRANCH_LT": np.less, "BRANCH_GTE": np.greater_equal, "BRANCH_GT": np.greater,
    "BRANCH_EQ": np.equal, "BRANCH_NEQ": np.not_equal,
}  # fmt: skip


class Splits(Goal):
    """Both ways out of each inner node of a tree ensemble, walked as onnx defines it.

    Args:
        attributes: of a TreeEnsembleRegressor or TreeEnsembleClassifier, by name.
        most: of more inner nodes the rest is not counted.
    """

    def __init__(self, node: str, op: str, tensor: str, attributes: dict[str, Any], most: int = 20_000):
        trees = [int(t) for t in attributes["nodes_treeids"]]
        ids = [int(i) for i in attributes["nodes_nodeids"]]
        place = {key: at for at, key in enumerate(zip(trees, ids, strict=True))}

        def to(name: str) -> np.ndarray:
            return np.array([place.get((t, int(i)), 0) for t, i in zip(trees, attributes[name], strict=True)])

        self._yes, self._no = to("nodes_truenodeids"), to("nodes_falsenodeids")
        self._feature = np.array(attributes["nodes_featureids"], np.int64)
        self._value = np.array(attributes["nodes_values"], np.float64)
        self._mode = np.array([m.decode() if isinstance(m, bytes) else str(m) for m in attributes["nodes_modes"]])
        self._members: dict[int, list[float]] = attributes.get("nodes_members", {})
        missing = attributes.get("nodes_missing_value_tracks_true") or [0] * len(trees)
        self._missing = np.array(missing, bool)
        targets = set(self._yes[self._mode != "LEAF"]) | set(self._no[self._mode != "LEAF"])
        self._roots = [at for at in range(len(trees)) if at not in targets]
        self._inside = self._mode != "LEAF"
        self._inner = np.flatnonzero(self._inside)[:most]
        self._modes = [m for m in np.unique(self._mode).tolist() if m in _HOLDS]
        self._possible = np.flatnonzero(self._ways()[:, self._inner])
        super().__init__("splits", node, op, [tensor], self._possible.size)

    def _ways(self) -> np.ndarray:
        """[false or true, node]: whether some row goes that way, by what was asked of its features before."""
        found, single = np.zeros((2, self._mode.size), bool), len(self._modes) == 1
        at = np.array(self._roots, np.int64)
        features = int(self._feature.max(initial=0)) + 1
        if self._missing.any() or features * self._mode.size > _BOUNDS:
            return ~found
        low, high = np.full((at.size, features), -np.inf), np.full((at.size, features), np.inf)
        for _ in range(self._mode.size):
            inner = self._inside[at]
            at, low, high = at[inner], low[inner], high[inner]
            if not at.size:
                break
            every, feature, value = np.arange(at.size), self._feature[at], self._value[at]
            below = np.isin(self._mode[at], ("BRANCH_LEQ", "BRANCH_LT"))
            ordered = below | np.isin(self._mode[at], ("BRANCH_GTE", "BRANCH_GT"))
            further = []
            for way, goes_below in ((0, ~below), (1, below)):
                one, other = low.copy(), high.copy()
                mine = (every, feature)
                other[mine] = np.where(ordered & goes_below, np.minimum(other[mine], value), other[mine])
                one[mine] = np.where(ordered & ~goes_below, np.maximum(one[mine], value), one[mine])
                some = one[mine] < other[mine] if single else one[mine] <= other[mine]
                found[way, at] = some
                further.append(((self._yes if way else self._no)[at][some], one[some], other[some]))
            at, low, high = (np.concatenate(parts) for parts in zip(*further, strict=True))
        return found

    def _found(self, values: Sequence[np.ndarray]) -> np.ndarray:
        seen = np.zeros((2, self._mode.size), bool)
        for at, _, _, true in self._walk(values[0]):
            seen[1, at[true]], seen[0, at[~true]] = True, True
        return seen[:, self._inner].reshape(-1)[self._possible]

    def margins(self, values: Sequence[np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray] | None:
        rows = values[0].reshape(-1, values[0].shape[-1])
        if len(rows) not in (1, n) or rows.dtype.kind != "f" or self._inner.size * len(rows) > _MARGINS:
            return None
        over = np.full((self._mode.size, len(rows)), np.nan)
        for at, every, given, _ in self._walk(values[0]):
            over[at, every] = np.where(self._mode[at] == "BRANCH_MEMBER", np.nan, given - self._value[at])
        over = over[self._inner, :, None]
        size = np.abs(self._value[self._inner])[:, None, None]
        return over, np.maximum(np.abs(over + self._value[self._inner][:, None, None]), size)

    def _walk(self, given: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Steps of all rows through the trees: inner nodes, rows, what is compared there, and whether it holds."""
        rows = given.reshape(-1, given.shape[-1]).astype(np.float64)
        at = np.repeat(np.array(self._roots, np.int64), len(rows))  # all trees at once
        every = np.tile(np.arange(len(rows)), len(self._roots))
        for _ in range(self._mode.size):
            inner = self._inside[at]
            at, every = at[inner], every[inner]
            if not at.size:
                break
            value = rows[every, self._feature[at]]
            true = self._true(value, at) | (np.isnan(value) & self._missing[at])
            yield at, every, value, true
            at = np.where(true, self._yes[at], self._no[at])

    def _true(self, given: np.ndarray, at: np.ndarray) -> np.ndarray:
        if len(self._modes) == 1 and not self._members:
            return np.asarray(_HOLDS[self._modes[0]](given, self._value[at]))
        mode, value = self._mode[at], self._value[at]
        found = np.zeros(at.size, bool)
        for name in self._modes:
            found |= (mode == name) & _HOLDS[name](given, value)
        for place, several in self._members.items():
            found |= (at == place) & np.isin(given, several)
        return found

    def text(self, at: int) -> str:
        at = int(self._possible[at])
        inner = int(self._inner[at % self._inner.size])
        way = ("false", "true")[at // self._inner.size]
        return f"{way} at node {inner}: feature {self._feature[inner]} {self._mode[inner]} {self._value[inner]:g}"
