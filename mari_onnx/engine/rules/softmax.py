"""Softmax over a row of blocks, and masks.

A row [a_1 | a_2]: blocks of constant -inf take no part (their weights are exactly 0). Otherwise

    P_p = exp(a_p - m_p),  l_p = sum P_p,  m = max m_p,  g_p = exp(m_p - m) / sum_q l_q exp(m_q - m)

and the weights of block p are g_p P_p: where a_p is the user's alone, P_p and its product with the values are too.

A block of a large finite constant c (-1e9) has weights of exactly 0 too where its row provably has another score above
c by more than the range of exp: `bounds` says how large scores can be, the constant mask of the block beside it which
of a row's scores count. A row without such a score (all of it masked: its weights are all equal) is left as it is,
unless it is a padded one that no output reads (`lookahead.masked_rows`).
"""

from __future__ import annotations

import math

import numpy as np
from ml_dtypes import finfo
from onnx import helper

from mari_onnx.engine.algebra.contract import reduce_sum
from mari_onnx.engine.algebra.sums import add, binary, multiply
from mari_onnx.engine.analysis.finite import masked
from mari_onnx.engine.analysis.intervals import span
from mari_onnx.engine.analysis.magnitude import EXP_RANGE, bound
from mari_onnx.engine.axes.blockwise import zip_bodies
from mari_onnx.engine.axes.materialize import as_block, as_leaf, flatten_nested
from mari_onnx.engine.axes.select import coalesce, take
from mari_onnx.engine.batching import MAPPED, run
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import with_form
from mari_onnx.engine.ir.value import (
    Axis,
    Body,
    Cat,
    Decline,
    Leaf,
    Part,
    Prod,
    Tensor,
    Value,
    axes_of,
    is_const,
    leaves,
    rename,
    within,
)
from mari_onnx.engine.rule import Context, normal, rule
from mari_onnx.engine.rules.reduce import extreme, unary

WIDTH = 16
"""The head width that is assumed where a softmax has to be weighed before its product with the values."""
MASKED_ROWS = (
    "a row whose columns are all masked by a finite number reads all of them, and nothing shows that no row is so"
)
ROWS = 5
"""Nodes that a softmax of all rows at once, and the product after it, save."""
MAX_PATTERNS = 4
"""Sets of rows that one softmax is taken apart into."""


def _finite(b: Builder, leaf: Leaf) -> Leaf:
    dtype = leaf.tensor.dtype
    lowest = b.const(float(finfo(helper.tensor_dtype_to_np_dtype(dtype)).min), dtype)
    return Leaf(emit.binary(b, "Max", leaf.tensor, lowest), leaf.axes)


@rule("Softmax")
def softmax(ctx: Context) -> list[Value | None]:
    """The row of blocks of the module; a row of several axes is mapped whole."""
    x = ctx.input(0)
    k = _row_axis(ctx, x)
    if k is None:
        return run(ctx, MAPPED["", "Softmax"](ctx))
    order = list(x.axes)
    before = len(ctx.b.notes)
    body = _softmax_body(ctx.b, x.body, k, order)
    if MASKED_ROWS in ctx.b.notes[before:]:
        floor = ctx.session.masked.floors.get(ctx.node.output[0], -math.inf)
        if floor > -math.inf:
            del ctx.b.notes[before:]
            body = _softmax_body(ctx.b, x.body, k, order, floor)
    return [ctx.value(x.known, body, x.dtype)]


def _row_axis(ctx: Context, x: Value) -> Axis | None:
    """The axis of a row, where that is one: before opset 13 a row goes over all axes from the given one on."""
    axis = normal(ctx.attr("axis", 1 if ctx.opset < 13 else -1), x.rank)
    row = [a for g in x.known[axis : None if ctx.opset < 13 else axis + 1] for a in g]
    return row[0] if len(row) == 1 else None


def _softmax_body(b: Builder, body: Body, k: Axis, order: list[Axis], floor: float = -math.inf) -> Body:
    """Softmax along ``k``: row blocks apart, then the blocks within a row.

    floor: what the largest score of each row is at least.
    """
    if isinstance(body, Cat):
        joined = coalesce(b, body, order)
        if not isinstance(joined, Cat):
            return _softmax_body(b, joined, k, order, floor)
        p = joined.parts[0]
        if len(joined.parts) == 1 and joined.axis is k and p.axis is not None:
            return Cat(k, (p.with_body(_softmax_body(b, p.body, p.axis, within(order, k, p.axis), floor)),), True)
        if joined.axis is not k:
            whole = _whole_grid(b, joined, k, order, floor)
            if whole is not None:
                return whole
            parts = []
            for p in joined.parts:
                parts.append(p.with_body(_softmax_body(b, p.body, k, within(order, joined.axis, p.axis), floor)))
            return Cat(joined.axis, tuple(parts), True)
        return _row(b, joined, order, floor)
    assert isinstance(body, Leaf)
    return _plain(b, body, k)


def _whole_grid(b: Builder, grid: Cat, k: Axis, order: list[Axis], floor: float) -> Body | None:
    """A grid of scores of which no block saves anything, as one tensor with its blocks in order; None for any other."""
    rows = []
    places: tuple[int, ...] | None = None
    for p in grid.parts:
        row = flatten_nested(p.body) if isinstance(p.body, Cat) else p.body
        if isinstance(row, Cat):
            if row.axis is not k or any(not isinstance(q.body, Leaf) for q in row.parts) or _pays(b, row, floor):
                return None
            row = as_block(b, row, within(order, grid.axis, p.axis))
            (q,) = row.parts
            if places is not None and q.positions != places:
                return None
            places = q.positions
        elif not isinstance(row, Leaf) or row.tensor.const:
            return None
        rows.append((p, row))
    kinds = {axes_of(row) - {p.axis} for p, row in rows}
    if len(kinds) != 1 or len(rows) < 2 or (places is not None and any(isinstance(row, Leaf) for _, row in rows)):
        return None
    # the product with V is one batched MatMul then, not one for each kind of rows
    calls = b.time.call * b.time.volume(axes_of(grid) - {grid.axis, k}) * (len(rows) - 1)
    if places is None or b.time.copy * b.time.volume(axes_of(grid)) > ROWS * b.time.node + calls:
        return None
    inner = Axis(len(places))
    parts = []
    for p, row in rows:
        assert isinstance(row, Cat)
        (q,) = row.parts
        assert q.axis is not None
        parts.append(p.with_body(rename(q.body, {q.axis: inner})))
    block = as_block(b, Cat(grid.axis, tuple(parts), True), [inner if a is k else a for a in order])
    (part,) = block.parts
    assert isinstance(part.body, Leaf)
    weights = Part(places, inner, _plain(b, part.body, inner))
    return Cat(grid.axis, (part.with_body(Cat(k, (weights,), True)),), True)


def _pays(b: Builder, row: Cat, floor: float) -> bool:
    """Whether a row's blocks save anything: weights that are 0, a row of the user's alone, or a long user block."""
    axis, patterns = _weightless(b, row, floor)
    if axis is not None or any(patterns[0][0]):
        return True
    kinds = [axes_of(p.body) - {p.axis} for p in row.parts]
    full = frozenset().union(*kinds)
    own = sum(len(p.positions) for p, kind in zip(row.parts, kinds, strict=True) if kind != full)
    rest = sum(len(p.positions) for p in row.parts) - own
    if not own:
        return False
    if not rest:
        return True
    each = b.time.masked if any(_masked(leaf.tensor) for leaf in leaves(row)) else b.time.element_of("Softmax")
    return b.time.spread * (2 * WIDTH + rest) < (each + b.time.element / 2) * (own + rest)


def _plain(b: Builder, leaf: Leaf, k: Axis) -> Leaf:
    """Softmax of one tensor, in the layout it has."""
    if k not in leaf.axes:
        if not isinstance(k.size, int):
            raise Decline("the Softmax runs along a dynamic axis on which all elements are equal")
        return _share(b, leaf, k.size)
    at = leaf.axes.index(k)
    tensor, axes = leaf.tensor, leaf.axes
    if at != len(axes) - 1:
        perm = [i for i in range(len(axes)) if i != at] + [at]
        tensor = emit.transpose(b, tensor, perm)
        axes = tuple(axes[i] for i in perm)
    return Leaf(b.emit("Softmax", [tensor], tensor.shape, attrs={"axis": len(axes) - 1}), axes)


def _share(b: Builder, leaf: Leaf, size: int) -> Leaf:
    """1 / size: the weights of a row whose scores are all one number, and NaN where that is not finite."""
    share = b.const(1.0 / size, leaf.tensor.dtype)
    if math.isfinite(bound(leaf.tensor)):
        return Leaf(share, ())
    one = emit.unary(b, "Exp", emit.binary(b, "Sub", leaf.tensor, leaf.tensor))
    return Leaf(one if size == 1 else emit.binary(b, "Mul", one, share), leaf.axes)


def _alone(b: Builder, body: Body) -> Body:
    """Weights of rows of a single score, block by block: 1 each, and NaN where the score is not finite."""
    if isinstance(body, Cat):
        return Cat(body.axis, tuple(p.with_body(_alone(b, p.body)) for p in body.parts), body.keep_split)
    return _share(b, next(leaves(body)), 1)


def _row(b: Builder, cat: Cat, order: list[Axis], floor: float) -> Body:
    """Softmax along the Cat's own axis: blocks without weight apart, rows apart in which they differ."""
    cat = flatten_nested(cat)
    axis, patterns = _weightless(b, cat, floor)
    if axis is None:
        return _live(b, cat, patterns[0][0], order, floor)
    parts = []
    for dead, at in patterns:
        sub = Axis(len(at)) if len(at) > 1 else None
        row = take(b, cat, axis, at, sub)
        assert isinstance(row, Cat)
        parts.append(Part(tuple(at), sub, _live(b, row, dead, within(order, axis, sub), floor)))
    return Cat(axis, tuple(parts), True)


Pattern = tuple[tuple[bool, ...], list[int]]


def _weightless(b: Builder, cat: Cat, floor: float) -> tuple[Axis | None, list[Pattern]]:
    """Which parts have weights of exactly 0, and the rows (positions along an axis) for which that holds."""
    highs: list[tuple[np.ndarray, tuple[Axis | None, ...]]] = []
    lows: list[tuple[np.ndarray, tuple[Axis | None, ...]]] = []
    for part in cat.parts:
        if not isinstance(part.body, Leaf):
            highs.append((np.asarray(np.inf), ()))
            lows.append((np.asarray(-np.inf), ()))
            continue
        low, high = span(part.body.tensor)
        highs.append(_over(high, part))
        lows.append(_over(low, part))
    rows = {a for array, axes in [*highs, *lows] for a, size in zip(axes, array.shape, strict=True) if size > 1}
    # -inf has no weight whatever else is in the row: a row that is all -inf is NaN either way
    # (unless it is added to one that may be NaN itself)
    seen = [not isinstance(p.body, Leaf) or masked(b, p.body.tensor) for p in cat.parts]
    sure = tuple(bool(np.all(np.isneginf(high))) and not s for (high, _), s in zip(highs, seen, strict=True))
    if len(rows) > 1:
        return None, [(sure, [])]
    axis = rows.pop() if rows else None
    flat = [[_along(array, axes, axis) for array, axes in side] for side in (highs, lows)]
    best = np.maximum(np.max(np.broadcast_arrays(*flat[1]), axis=0), floor)
    with np.errstate(invalid="ignore"):
        low = best - EXP_RANGE
        dead = [(np.isneginf(high) | (high < low)) & (not s) for high, s in zip(flat[0], seen, strict=True)]
        if any(np.any((high < -EXP_RANGE) & ~off) for high, off in zip(flat[0], dead, strict=True)):
            b.notes.append(MASKED_ROWS)
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


def _over(array: np.ndarray, part: Part) -> tuple[np.ndarray, tuple[Axis | None, ...]]:
    """The largest bound of each row of a part; dimensions along which it does not differ are 1."""
    assert isinstance(part.body, Leaf)
    axes = part.body.axes
    if part.axis is not None and part.axis in axes:
        array = array.max(axis=axes.index(part.axis), keepdims=True)
    for i in range(array.ndim):
        first = array.take([0], axis=i)
        if np.array_equal(np.broadcast_to(first, array.shape), array):
            array = first
    return array, axes


def _along(array: np.ndarray, axes: tuple[Axis | None, ...], axis: Axis | None) -> np.ndarray:
    """Bounds as a vector along the axis of the rows, or a single one."""
    return array.reshape(-1) if axis is not None and axis in axes else array.reshape(-1)[:1]


def _live(b: Builder, cat: Cat, weightless: tuple[bool, ...], order: list[Axis], floor: float) -> Body:
    """Softmax along the Cat's own axis; parts without weight are 0 and take no part."""
    dead = [p for p, off in zip(cat.parts, weightless, strict=True) if off]
    live = [p for p, off in zip(cat.parts, weightless, strict=True) if not off]
    if dead and live:
        zero = Leaf(b.const(0, next(leaves(live[0].body)).tensor.dtype), ())
        if len(live) == 1:
            part = live[0]
            if part.axis is None:
                body = _alone(b, part.body)
            else:
                body = _softmax_body(b, part.body, part.axis, within(order, cat.axis, part.axis), floor)
            return Cat(cat.axis, (part.with_body(body), *_zeros(dead, zero)))
        sub = Axis(sum(len(p.positions) for p in live))
        places = sorted(q for p in live for q in p.positions)
        index = {q: i for i, q in enumerate(places)}
        rest = Cat(sub, tuple(Part(tuple(index[q] for q in p.positions), p.axis, p.body) for p in live))
        inner = within(order, cat.axis, sub)
        body = _live(b, rest, (False,) * len(live), inner, floor)
        return Cat(cat.axis, (Part(tuple(places), sub, body), *_zeros(dead, zero)))
    if any(isinstance(p.body, Cat) for p in cat.parts):
        other = next(p.body.axis for p in cat.parts if isinstance(p.body, Cat))
        if all(p.axis is not other for p in cat.parts):
            return _interchanged(b, cat, other, order, floor)
    block = as_block(b, cat, order)
    (part,) = block.parts
    assert isinstance(part.body, Leaf)
    assert part.axis is not None
    whole = _plain(b, part.body, part.axis)
    full = axes_of(whole) - {part.axis}
    if any(axes_of(p.body) - {p.axis} != full for p in cat.parts):
        starts = [sum(len(p.positions) for p in cat.parts[:i]) for i in range(len(cat.parts))]
        laid = [
            Part(tuple(range(i, i + len(p.positions))), p.axis, p.body) for i, p in zip(starts, cat.parts, strict=True)
        ]
        form = _blocks(b, Cat(part.axis, tuple(laid), True), [part.axis if a is cat.axis else a for a in order])
        if form is not None:
            masked = any(_masked(leaf.tensor) for leaf in leaves(cat))
            whole = with_form(whole, form, b.time.masked if masked else None)
    if part.positions == tuple(range(len(part.positions))):
        return rename(whole, {part.axis: cat.axis})
    return Cat(cat.axis, (part.with_body(whole),), True)


def _masked(tensor: Tensor) -> bool:
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


def _zeros(dead: list[Part], zero: Leaf) -> list[Part]:
    return [p.with_body(zero) for p in dead]


def _interchanged(b: Builder, cat: Cat, other: Axis, order: list[Axis], floor: float) -> Body:
    """The grid with its rows outside: a row's softmax must see all of its columns."""
    cells: dict[tuple[int, ...], list[int]] = {}
    owners: dict[int, list[int]] = {}
    for p in cat.parts:
        if isinstance(p.body, Cat) and p.body.axis is other:
            for i, q in enumerate(p.body.parts):
                for place in q.positions:
                    owners.setdefault(place, []).append(i)
    for place, key in sorted(owners.items()):
        cells.setdefault(tuple(key), []).append(place)
    parts = []
    for at in cells.values():
        sub = Axis(len(at)) if len(at) > 1 else None
        row = take(b, cat, other, at, sub)
        inner = [a for a in (sub if a is other else a for a in order) if a is not None]
        row = flatten_nested(row) if isinstance(row, Cat) else row
        if isinstance(row, Cat) and any(isinstance(p.body, Cat) for p in row.parts):
            row = as_leaf(b, row, inner)  # a grid within the grid
        parts.append(Part(tuple(at), sub, _softmax_body(b, row, cat.axis, inner, floor)))
    return Cat(other, tuple(parts))


def _blocks(b: Builder, cat: Cat, order: list[Axis]) -> Body | None:
    """The weights block by block, as factors; None where no block saves anything."""
    parts = [p for p in cat.parts if p.axis is not None]
    if len(parts) != len(cat.parts) and any(not isinstance(p.body, Leaf) for p in cat.parts):
        return None
    if any(is_const(p.body) for p in cat.parts):
        return None
    outside = [a for a in order if a is not cat.axis]
    tops, sums, weights = [], [], []
    for p in cat.parts:
        inner = frozenset({p.axis} if p.axis is not None and p.axis in axes_of(p.body) else ())
        # a block that is masked throughout must weigh nothing, not be -inf minus -inf
        top = zip_bodies(b, [extreme(b, "Max", p.body, inner)], lambda ls: _finite(b, ls[0]))
        shifted = zip_bodies(b, [p.body, top], lambda ls: binary(b, "Sub", ls[0], ls[1], order), order=order)
        weight = unary(b, "Exp", shifted)
        tops.append(top)
        weights.append(weight)
        count = frozenset({p.axis}) if p.axis is not None else frozenset()
        sums.append(reduce_sum(b, weight, count, outside))
    top = tops[0]
    for other in tops[1:]:
        top = zip_bodies(b, [top, other], lambda ls: binary(b, "Max", ls[0], ls[1], outside), order=outside)
    gains = []
    for t in tops:
        shifted = zip_bodies(b, [t, top], lambda ls: binary(b, "Sub", ls[0], ls[1], outside), order=outside)
        gains.append(unary(b, "Exp", shifted))
    total = add(b, [multiply(b, s, g, outside) for s, g in zip(sums, gains, strict=True)], outside)
    out = []
    for p, weight, gain in zip(cat.parts, weights, gains, strict=True):
        share = zip_bodies(b, [gain, total], lambda ls: binary(b, "Div", ls[0], ls[1], outside), order=outside)
        out.append(p.with_body(Prod((as_leaf(b, share, outside), as_leaf(b, weight, order)))))
    return Cat(cat.axis, tuple(out))

