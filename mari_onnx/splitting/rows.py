"""What is handed from part to part: a user's state, and rows of items.

Both are arrays with the hash of the model that made them, so that they never meet another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mari_onnx.errors import BadFeatures

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class UserState:
    """What score.onnx reads of one user. arrays: as the manifest's `state` says. key: `Manifest.state_key`."""

    arrays: Arrays
    key: str


@dataclass(frozen=True)
class ItemRows:
    """What score.onnx reads of some items, one row per item.

    arrays: as the manifest's `rows` says. axes: name -> the axis of the rows, None where a tensor has none.
    count: how many items. key: `Manifest.rows_key`.
    """

    arrays: Arrays
    axes: Mapping[str, int | None]
    count: int
    key: str

    def take(self, places: Sequence[int] | np.ndarray, out: ItemRows | None = None) -> ItemRows:
        """The rows of some items, in that order; a place may come several times.

        Args:
            out: an earlier answer for as many places, which is no longer needed: its memory is filled anew. For large
                rows that is faster, since memory that is freed and taken again has to be mapped again.

        Raises:
            BadFeatures: a place that is not there; `out` has another shape.
        """
        at = np.asarray(places, np.int64)
        # Where score.onnx reads nothing of the item, there are no rows, and any place will do.
        if self.arrays and at.size and not (at.min() >= 0 and at.max() < self.count):
            wrong = int(at.min() if at.min() < 0 else at.max())
            raise BadFeatures(f"there are rows of {self.count} items, not of item {wrong}", "count from 0")
        into: Arrays = out.arrays if out is not None else {}
        found = {}
        for name, array in self.arrays.items():
            axis, room = self.axes[name], into.get(name)
            if axis is None:
                found[name] = array
                continue
            try:
                # Places are in range, so "clip" changes none; with "raise" numpy would fill a copy of `out` first.
                found[name] = np.take(array, at, axis=axis, out=room, mode="clip")
            except (TypeError, ValueError) as error:
                raise BadFeatures(f"out: {name} is no room for the rows of {len(at)} items: {error}") from error
        return ItemRows(found, self.axes, len(at), self.key)

    def between(self, start: int, stop: int) -> ItemRows:
        """The rows from `start` to `stop`, which share the memory of these."""
        found = {
            name: array if (axis := self.axes[name]) is None else array[(*[slice(None)] * axis, slice(start, stop))]
            for name, array in self.arrays.items()
        }
        return ItemRows(found, self.axes, stop - start, self.key)

    @staticmethod
    def joined(several: Sequence[ItemRows]) -> ItemRows:
        """The rows of several, of one model, one behind the other. Tensors without rows are those of the first."""
        first = several[0]
        if len(several) == 1:
            return first
        found = {
            name: array
            if (axis := first.axes[name]) is None
            else np.concatenate([r.arrays[name] for r in several], axis)
            for name, array in first.arrays.items()
        }
        return ItemRows(found, first.axes, sum(r.count for r in several), first.key)


def of_zeros(array: np.ndarray, axis: int | None, count: int) -> np.ndarray:
    """`count` rows of zeros, or of empty texts, that look like those of `array`; itself where it has no rows."""
    if axis is None:
        return array
    shape = (*array.shape[:axis], count, *array.shape[axis + 1 :])
    return np.full(shape, "" if array.dtype.kind in "OUS" else 0, array.dtype)
