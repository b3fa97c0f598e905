"""Zeros of constant operands: what a product need not read because a weight or a mask is exactly 0 there.

In: the two operands of a contraction. Out: groups of output rows that read the same parts, or operands without the
positions that are multiplied by 0. An operand that may hold NaN or infinity is left whole, because 0 * NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mari_onnx.engine.analysis.finite import given
from mari_onnx.engine.axes.align import flatten
from mari_onnx.engine.axes.select import coalesce, take
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Body, Cat, Leaf, axes_of, is_const, rename

MAX_READ = 1 << 22
"""Only constants of up to this many elements are searched for zeros."""
MAX_GROUPS = 4
"""Groups of rows that one product is split into."""


def rows_by_use(b: Builder, x: Body, y: Body, k: frozenset[Axis]) -> tuple[Axis, list[list[int]]] | None:
    """Output rows grouped by the parts of ``x`` that they read, as ``(axis of the rows, positions of each group)``.

    x: a Cat along an axis of k. y: a constant with one axis beside k. A row of y that is 0 at all positions of the
    candidates' part depends on the user alone. None where y has no such zeros, where x may hold NaN, where there would
    be more than `MAX_GROUPS` groups, or where all groups vary along the same axes.
    """
    if not (isinstance(x, Cat) and x.axis in k and isinstance(y, Leaf) and y.tensor.const and x.axis in y.axes):
        return None
    free = [a for a in y.axes if a is not None and a not in k]
    array = y.tensor.array
    if len(free) != 1 or array.dtype == object or array.size > MAX_READ or array.all() or given(b, x):
        return None
    joined = coalesce(b, x)
    if not isinstance(joined, Cat) or joined.axis is not x.axis:
        return None
    rows = np.moveaxis(array != 0, [y.axes.index(free[0]), y.axes.index(x.axis)], [0, 1]).reshape(
        array.shape[y.axes.index(free[0])], array.shape[y.axes.index(x.axis)], -1
    )
    reads = [rows[:, list(p.positions)].any(axis=(1, 2)) for p in joined.parts]
    cells: dict[tuple[bool, ...], list[int]] = {}
    for place, key in enumerate(zip(*reads, strict=True)):
        cells.setdefault(tuple(bool(r) for r in key), []).append(place)
    if len(cells) < 2 or len(cells) > MAX_GROUPS:
        return None
    kinds = [axes_of(p.body) - {p.axis} for p in joined.parts]
    outs = [frozenset().union(*(kind for kind, on in zip(kinds, key, strict=True) if on)) for key in cells]
    return (free[0], list(cells.values())) if any(out != outs[0] for out in outs) else None


def without_zeros(b: Builder, x: Leaf, y: Leaf, k: frozenset[Axis]) -> tuple[Leaf, Leaf, frozenset[Axis]]:
    """``x``, ``y`` and ``k`` without the positions along k at which a constant operand is 0 for every output.

    Pairs of fields that a mask leaves out are such positions. All three are returned unchanged where no operand is
    constant, where the other one may hold NaN, or where taking the positions costs more than the products they save.
    """
    if is_const(y) == is_const(x) or given(b, x) or given(b, y):
        return x, y, k
    w, other = (y, x) if is_const(y) else (x, y)
    array = w.tensor.array
    along = tuple(a for a in other.axes if a in k and a in w.axes and a is not None)
    if not along or array.dtype.kind != "f" or array.size > MAX_READ or not all(isinstance(a.size, int) for a in along):
        return x, y, k
    rest = tuple(i for i, a in enumerate(w.axes) if a not in along)
    read = np.any(array != 0, axis=rest).transpose(np.argsort(np.argsort([w.axes.index(a) for a in along])))
    at = np.flatnonzero(read).tolist()
    each = b.time.volume(axes_of(other) - set(along))
    columns = b.time.volume(axes_of(w) - set(along) - axes_of(other))
    if not at or (read.size - len(at)) * columns < b.time.copy * len(at) + b.time.node / each:
        return x, y, k
    whole, new = Axis(read.size), Axis(len(at)) if len(at) > 1 else None
    w, other = (_taken(b, leaf, along, whole, at, new) for leaf in (w, other))
    k = k - set(along) | ({new} if new is not None else frozenset())
    return (other, w, k) if is_const(y) else (w, other, k)


def _taken(
    b: Builder, leaf: Leaf, along: tuple[Axis, ...], whole: Axis, at: Sequence[int], new: Axis | None
) -> Leaf:
    """A leaf at positions ``at`` of the merged axes ``along``; ``new`` is the axis of the result."""
    merged = flatten(b, leaf, along, whole) if len(along) > 1 else rename(leaf, {along[0]: whole})
    found = take(b, merged, whole, at, new)
    assert isinstance(found, Leaf)
    return found


def is_zero(body: Body) -> bool:
    """Whether a body is a constant that is 0 everywhere."""
    return isinstance(body, Leaf) and body.tensor.const and not np.any(body.tensor.array)
