"""Columns of an output that differ in scale, like seconds watched beside a probability.

They are judged as if they were outputs of their own: relative to the largest magnitude of the whole tensor a fault of
the small column would not show. Columns of a similar scale are judged together, as rounding does not stop at columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Columns are judged together with the largest where they are at most so many times smaller.
SPREAD = 16.0
# Of fewer values, or fewer requests, the scale of a column is chance.
_VALUES, _REQUESTS = 64, 4


@dataclass(frozen=True)
class Columns:
    """Groups of columns of one output.

    Attributes:
        axis: of the columns; None where there is one group.
        groups: places along it, the largest columns first.
    """

    axis: int | None
    groups: tuple[np.ndarray, ...]

    def take(self, array: np.ndarray, group: int) -> np.ndarray:
        """The columns of one group."""
        return array if self.axis is None else array.take(self.groups[group], self.axis)

    def spread(self, values: Sequence[float], ndim: int) -> np.ndarray:
        """One number a group, as an array that broadcasts to the output."""
        if self.axis is None:
            return np.asarray(values[0])
        found = np.empty(sum(map(len, self.groups)))
        for places, value in zip(self.groups, values, strict=True):
            found[places] = value
        return found.reshape([-1 if i == self.axis else 1 for i in range(ndim)])


def columns(arrays: Sequence[np.ndarray], counts: Sequence[int], candidate_axis: int) -> Columns:
    """Groups by scale.

    Args:
        arrays: the output on each request.
        counts: N of each.
    """
    whole = Columns(None, (np.zeros(0, int),))
    axis = _axis(arrays, counts, candidate_axis)
    if axis is None:
        return whole
    size = arrays[0].shape[axis]
    if len(arrays) < _REQUESTS or sum(a.size for a in arrays) < _VALUES * size:
        return whole
    scales = np.zeros(size)
    for array in arrays:
        finite = np.where(np.isfinite(array), np.abs(array), 0.0)
        scales = np.maximum(scales, np.moveaxis(finite, axis, 0).reshape(size, -1).max(axis=1, initial=0))
    order = np.argsort(-scales, kind="stable")
    groups: list[list[int]] = []
    for place in order[scales[order] > 0]:
        if not groups or scales[place] * SPREAD < scales[groups[-1][0]]:
            groups.append([])
        groups[-1].append(int(place))
    if len(groups) < 2:
        return whole
    groups[0] += np.flatnonzero(scales == 0).tolist()  # they have no scale of their own
    return Columns(axis, tuple(np.array(sorted(g)) for g in groups))


def _axis(arrays: Sequence[np.ndarray], counts: Sequence[int], candidate_axis: int) -> int | None:
    """The last axis that is no list of candidates and has one length in all requests."""
    shapes = [a.shape for a in arrays]
    if len({len(s) for s in shapes}) != 1:
        return None
    for axis in reversed(range(len(shapes[0]))):
        sizes = {s[axis] for s in shapes}
        if axis == candidate_axis and all(s[axis] == n for s, n in zip(shapes, counts, strict=True)):
            continue
        if len(sizes) == 1 and max(sizes) > 1:
            return axis
    return None
