"""A choice by a constant condition of few regions, as a concatenation of what is chosen in each.

    where([1 0], [x_1 x_2], y) = [x_1 | y_2]      [1 0] * [x_1 x_2] = [x_1 | 0], x finite

So a mask that takes the items' columns off the user's tokens leaves tokens that are computed once per request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mari_onnx.engine.analysis.finite import given
from mari_onnx.engine.axes.select import take
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Body, Cat, Leaf, Part, axes_of

MOST = 4
"""Groups of positions along an axis at which a condition is the same."""
LARGEST = 1 << 16
"""Only conditions of up to this many elements are looked at."""


@dataclass(frozen=True)
class _Split:
    """Positions along an axis by what is chosen there: one of two, or by a split along another axis."""

    axis: Axis
    cells: list[tuple[list[int], _Split | bool]]

    def pieces(self, choice: bool) -> int:
        """How often something of one choice is left."""
        return sum(c.pieces(choice) if isinstance(c, _Split) else c is choice for _, c in self.cells)


def by_regions(b: Builder, condition: Leaf, x: Leaf, y: Leaf) -> Body | None:
    """``Where(condition, x, y)`` as a Cat; None where the condition is no constant of few regions, where both choices
    vary along the same dynamic axes, or where the pieces cost more than one Where.
    """
    if not condition.tensor.const or condition.tensor.array.size > LARGEST or _dynamic(x) == _dynamic(y):
        return None
    return _pieces(b, condition.tensor.array.astype(bool), condition.axes, x, y)


def times_mask(b: Builder, x: Leaf, y: Leaf) -> Body | None:
    """``x * y`` where one is a constant of 0 and 1 in few regions, as a Cat; None where it is not, where the other may
    hold NaN or infinity, or where the pieces cost more than one Mul.
    """
    for this, mask in ((x, y), (y, x)):
        if mask.tensor.const and _dynamic(this) and 1 < mask.tensor.array.size <= LARGEST and not given(b, this):
            array = mask.tensor.array
            if array.dtype.kind == "f" and np.all((array == 0) | (array == 1)):
                zero = Leaf(b.const(0, mask.tensor.dtype), ())
                return _pieces(b, array != 0, mask.axes, this, zero)
    return None


def _pieces(b: Builder, array: np.ndarray, axes: tuple[Axis | None, ...], x: Leaf, y: Leaf) -> Body | None:
    split = _split(array, axes)
    if not isinstance(split, _Split):
        return None
    whole = axes_of(x) | axes_of(y) | {axis for axis in axes if axis is not None}
    most = _dynamic(x) | _dynamic(y)
    cost = 0.0
    for choice, leaf in ((True, x), (False, y)):
        if _dynamic(leaf) == most:
            share = float(np.mean(array == choice))
            cost += b.time.node * split.pieces(choice) + b.time.copy * b.time.volume(whole) * share
    if cost > b.time.element * b.time.volume(whole):
        return None
    return _chosen(b, split, x, y)


def _split(array: np.ndarray, axes: tuple[Axis | None, ...]) -> _Split | bool | None:
    """None: there are too many regions."""
    if array.all() or not array.any():
        return bool(array.all())
    ways = []
    for i, axis in enumerate(axes):
        if axis is not None:
            groups: dict[bytes, list[int]] = {}
            for place, row in enumerate(np.moveaxis(array, i, 0)):
                groups.setdefault(row.tobytes(), []).append(place)
            ways.append((len(groups), i, axis, list(groups.values())))
    ways = [way for way in ways if 1 < way[0] <= MOST]
    if not ways:
        return None
    _, i, axis, places = min(ways, key=lambda way: way[:2])
    rest, cells = (*axes[:i], *axes[i + 1 :]), []
    for at in places:
        inner = _split(array.take(at[0], i), rest)
        if inner is None:
            return None
        cells.append((at, inner))
    return _Split(axis, cells)


def _chosen(b: Builder, split: _Split | bool, x: Body, y: Body) -> Body:
    if not isinstance(split, _Split):
        return x if split else y
    parts = []
    for at, inner in split.cells:
        sub = Axis(len(at)) if len(at) > 1 else None
        body = _chosen(b, inner, *(take(b, each, split.axis, at, sub) for each in (x, y)))
        parts.append(Part(tuple(at), sub, body))
    return Cat(split.axis, tuple(parts), True)


def _dynamic(leaf: Leaf) -> frozenset[Axis]:
    return frozenset(a for a in axes_of(leaf) if not isinstance(a.size, int))
