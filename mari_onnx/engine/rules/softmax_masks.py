"""Which blocks of a softmax's scores have weights of exactly 0, because of a mask.

In: a row of scores as a Cat of blocks. Out: for each block whether its weights are 0, and the rows
for which that holds.

A block of -inf has no weight. Nor has a block of a large finite constant c (-1e9), if its row provably has another
score above c by more than the range of exp. `analysis.magnitude.bound` says how large scores can be at most,
`analysis.intervals.span` what the constants of a mask leave of each element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mari_onnx.engine.analysis.finite import masked
from mari_onnx.engine.analysis.intervals import span
from mari_onnx.engine.analysis.magnitude import EXP_RANGE
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Cat, Leaf, Part, Tensor, axes_of, is_const

MASKED_ROWS = (
    "its mask is a finite number, so a row that is masked throughout attends to all columns alike, and nothing shows"
    " that there is no such row"
)
MAX_GRID = 1 << 20
"""Rows of scores that are looked at one by one, at most."""
MAX_PATTERNS = 4
"""A softmax is split into at most this many sets of rows."""
Pattern = tuple[tuple[bool, ...], list[int]]
"""For each part whether its weights are 0, and the rows for which that holds (none listed: all rows)."""


def weightless(b: Builder, cat: Cat, floor: float) -> tuple[Axis | None, list[Pattern]]:
    """Which parts of a row have weights of exactly 0, for which rows.

    cat: scores as a Cat along the softmax's own axis. floor: what the largest score of each row is at least. Returns
    the axis of the rows and a `Pattern` per set of rows; the axis is None where one pattern holds for all rows. Adds
    the note `MASKED_ROWS` where a finite mask may cover a whole row.
    """
    highs: list[tuple[np.ndarray, tuple[Axis | None, ...]]] = []
    lows: list[tuple[np.ndarray, tuple[Axis | None, ...]]] = []
    for part in cat.parts:
        if not isinstance(part.body, Leaf):
            highs.append((np.asarray(np.inf), ()))
            lows.append((np.asarray(-np.inf), ()))
            continue
        low, high = span(part.body.tensor)
        highs.append(_of_rows(high, part))
        lows.append(_of_rows(low, part))
    sizes = {a: n for array, axes in [*highs, *lows] for a, n in zip(axes, array.shape, strict=True) if n > 1 and a}
    # -inf has no weight whatever else is in the row: a row that is all -inf is NaN either way
    # (unless it is added to one that may be NaN itself)
    seen = [not isinstance(p.body, Leaf) or masked(b, p.body.tensor) for p in cat.parts]
    if math.prod(sizes.values()) > MAX_GRID:
        sure = tuple(bool(np.all(np.isneginf(high))) and not s for (high, _), s in zip(highs, seen, strict=True))
        return None, [(sure, [])]
    grid = list(sizes)
    low_of, high_of = ([_onto(array, axes, grid) for array, axes in side] for side in (lows, highs))
    best = np.maximum(np.max(np.broadcast_arrays(*low_of), axis=0), floor)
    with np.errstate(invalid="ignore"):
        low = best - EXP_RANGE
        dead = [(np.isneginf(high) | (high < low)) & (not s) for high, s in zip(high_of, seen, strict=True)]
        if any(np.any((high < -EXP_RANGE) & ~off) for high, off in zip(high_of, dead, strict=True)):
            b.notes.append(MASKED_ROWS)
    axis, dead = _by_one(dead, grid)
    if axis is None or not isinstance(axis.size, int):
        return None, [(tuple(bool(d.all()) for d in dead), [])]
    table = np.stack([np.broadcast_to(d, (axis.size,)) for d in dead])
    kinds = [axes_of(p.body) - {p.axis} for p in cat.parts]
    for i, kind in enumerate(kinds):
        if not is_const(cat.parts[i].body) and not any(other < kind for other in kinds if other):
            table[i] = table[i].all()  # leaving it out of some rows only would save nothing
    patterns: dict[tuple[bool, ...], list[int]] = {}
    for row in range(axis.size):
        patterns.setdefault(tuple(bool(x) for x in table[:, row]), []).append(row)
    if len(patterns) == 1 or len(patterns) > MAX_PATTERNS:
        return None, [(tuple(bool(row.all()) for row in table), [])]
    return axis, list(patterns.items())


def _of_rows(array: np.ndarray, part: Part) -> tuple[np.ndarray, tuple[Axis | None, ...]]:
    """The largest bound within each row of a part, and its axes; dimensions with equal bounds become 1."""
    assert isinstance(part.body, Leaf)
    axes = part.body.axes
    if part.axis is not None and part.axis in axes:
        array = array.max(axis=axes.index(part.axis), keepdims=True)
    for i in range(array.ndim):
        first = array.take([0], axis=i)
        if np.array_equal(np.broadcast_to(first, array.shape), array):
            array = first
    return array, axes


def _onto(array: np.ndarray, axes: tuple[Axis | None, ...], grid: Sequence[Axis]) -> np.ndarray:
    """Bounds with a dimension for each axis of the grid; of size 1 where they do not vary along it."""
    mine = [a for a, n in zip(axes, array.shape, strict=True) if n > 1]
    flat = array.reshape([n for n in array.shape if n > 1])
    flat = flat.transpose([mine.index(a) for a in grid if a in mine])
    sizes = iter(flat.shape)
    return flat.reshape([next(sizes) if a in mine else 1 for a in grid])


def _by_one(dead: Sequence[np.ndarray], grid: Sequence[Axis]) -> tuple[Axis | None, list[np.ndarray]]:
    """What is dead at every position of all axes but one (a bias may differ by head and row), the one along which most
    is; and that axis.
    """
    found: tuple[Axis | None, list[np.ndarray]] = None, [np.all(d).reshape(1) for d in dead]
    most = -1.0
    for i, axis in enumerate(grid):
        others = tuple(j for j in range(len(grid)) if j != i)
        table = [np.all(d, axis=others) for d in dead]
        share = sum(float(d.mean()) for d in table)
        if share > most:
            found, most = (axis, table), share
    return found


def has_mask(tensor: Tensor) -> bool:
    """Whether a mask of large negative constants was put on the scores shortly before."""
    stack, seen = [(tensor, 4)], 0
    while stack and seen < 40:
        top, depth = stack.pop()
        seen += 1
        if top.const:
            array = top.array
            if array.dtype.kind == "f" and array.size and array.min() < -EXP_RANGE:
                return True
        elif top.node is not None and depth:
            stack += [(t, depth - 1) for t in top.node.inputs if t is not None]
    return False
