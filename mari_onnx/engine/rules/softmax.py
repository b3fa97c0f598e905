"""Softmax over a row of blocks, such as the scores of one query for the user's keys and for the candidate's.

In: scores as a Value, whose row may be a Cat [a_1 | a_2]. Out: the weights.

- Blocks whose weights are exactly 0, because of a mask, are left out (`softmax_masks.py`). Rows in which other blocks
  are masked become softmaxes of their own.
- What is left is written as one tensor. If some blocks are the user's alone, the weights block by block
  (`softmax_blocks.py`) are kept beside it as another way to compute it; the product with the values takes the cheaper.
- A row that a finite mask (-1e9) may cover entirely has equal weights everywhere. It is left as it is, unless it is a
  padded row that no output reads (`lookahead/masked_rows.py`).
"""

from __future__ import annotations

import math

from mari_onnx.engine.analysis.magnitude import bound
from mari_onnx.engine.axes.materialize import as_block, as_leaf, flatten_nested
from mari_onnx.engine.axes.select import coalesce, take
from mari_onnx.engine.batching import MAPPED, run
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import with_form
from mari_onnx.engine.ir.value import Axis, Body, Cat, Decline, Leaf, Part, Value, axes_of, leaves, rename, within
from mari_onnx.engine.rule import Context, normal, rule
from mari_onnx.engine.rules.softmax_blocks import by_blocks
from mari_onnx.engine.rules.softmax_masks import MASKED_ROWS, has_mask, weightless

WIDTH = 16
"""The head width assumed for the product with the values, which is not known yet when a softmax is written."""
ROWS = 5
"""Nodes saved by one softmax of all rows, and by one product after it."""


@rule("Softmax")
def softmax(ctx: Context) -> list[Value | None]:
    """Softmax as the module describes it. A row of several axes (before opset 13) is computed as a whole."""
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
    """Softmax along ``k``: first each block of rows by itself, then the blocks within a row.

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
    """Scores in blocks of rows and columns, none of which saves anything, as one softmax; None where one may save."""
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
    """Whether a row's blocks save anything: weights of 0, a row of user-only scores, or many user-only columns."""
    axis, patterns = weightless(b, row, floor)
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
    each = b.time.masked if any(has_mask(leaf.tensor) for leaf in leaves(row)) else b.time.element_of("Softmax")
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
    """1 / size, the weights of a row whose scores are all equal; NaN where the score is not finite."""
    share = b.const(1.0 / size, leaf.tensor.dtype)
    if math.isfinite(bound(leaf.tensor)):
        return Leaf(share, ())
    one = emit.unary(b, "Exp", emit.binary(b, "Sub", leaf.tensor, leaf.tensor))
    return Leaf(one if size == 1 else emit.binary(b, "Mul", one, share), leaf.axes)


def _alone(b: Builder, body: Body) -> Body:
    """The weights of rows of one score each: 1, or NaN where the score is not finite."""
    if isinstance(body, Cat):
        return Cat(body.axis, tuple(p.with_body(_alone(b, p.body)) for p in body.parts), body.keep_split)
    return _share(b, next(leaves(body)), 1)


def _row(b: Builder, cat: Cat, order: list[Axis], floor: float) -> Body:
    """Softmax along the Cat's own axis; rows in which other blocks are masked become softmaxes of their own."""
    cat = flatten_nested(cat)
    axis, patterns = weightless(b, cat, floor)
    if axis is None:
        return _live(b, cat, patterns[0][0], order, floor)
    parts = []
    for dead, at in patterns:
        sub = Axis(len(at)) if len(at) > 1 else None
        row = take(b, cat, axis, at, sub)
        assert isinstance(row, Cat)
        parts.append(Part(tuple(at), sub, _live(b, row, dead, within(order, axis, sub), floor)))
    return Cat(axis, tuple(parts), True)




def _live(b: Builder, cat: Cat, dead_parts: tuple[bool, ...], order: list[Axis], floor: float) -> Body:
    """Softmax along the Cat's own axis over the parts that are not dead; the weights of dead parts are 0."""
    dead = [p for p, off in zip(cat.parts, dead_parts, strict=True) if off]
    live = [p for p, off in zip(cat.parts, dead_parts, strict=True) if not off]
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
        form = by_blocks(b, Cat(part.axis, tuple(laid), True), [part.axis if a is cat.axis else a for a in order])
        if form is not None:
            masked = any(has_mask(leaf.tensor) for leaf in leaves(cat))
            whole = with_form(whole, form, b.time.masked if masked else None)
    if part.positions == tuple(range(len(part.positions))):
        return rename(whole, {part.axis: cat.axis})
    return Cat(cat.axis, (part.with_body(whole),), True)


def _zeros(dead: list[Part], zero: Leaf) -> list[Part]:
    """The dead parts, of zeros."""
    return [p.with_body(zero) for p in dead]


def _interchanged(b: Builder, cat: Cat, other: Axis, order: list[Axis], floor: float) -> Body:
    """Softmax of a Cat of Cats, made a Cat of rows first: the softmax of a row must see all of its columns."""
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
            row = as_leaf(b, row, inner)  # blocks within a block
        parts.append(Part(tuple(at), sub, _softmax_body(b, row, cat.axis, inner, floor)))
    return Cat(other, tuple(parts))
