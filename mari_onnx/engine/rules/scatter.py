"""ScatterND and ScatterElements as a Cat: the updates, and what they leave of the data.

    x[:, a:b] = y        is        [x[:, :a] | y | x[:, b:]]

PyTorch writes an assignment to a slice as coordinates of every element: a Range per axis, each expanded to the others'
shape, concatenated. Constant coordinates come from other assignments (tf.tensor_scatter_nd_update). One position
(`select_scatter`, `x[:, i] = y`) is a ScatterElements whose index is a constant that is expanded to the updates' shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mari_onnx.engine.axes.align import align, single
from mari_onnx.engine.axes.materialize import flatten_nested, write
from mari_onnx.engine.batching import MAPPED, Through, run
from mari_onnx.engine.ir.value import Axis, Cat, Decline, Group, Leaf, Part, Value, axes_of, fresh, is_const
from mari_onnx.engine.rule import Context, normal, rule
from mari_onnx.engine.rules.index import flat_positions
from mari_onnx.engine.rules.mask_index import merged
from mari_onnx.engine.rules.slices import positions
from mari_onnx.engine.rules.structure import regroup
from mari_onnx.model.dims import Dim, Size, static

BY_ELEMENT = "ScatterElements writes to another position for each element"
IN_PART = "ScatterElements writes only a part of the other axes, or it is not known that it writes all of them"
Span = Sequence[int] | None
"""Positions along an axis; None: all of them, in order."""


@rule("ScatterND")
def scatter_nd(ctx: Context) -> Sequence[Value | None]:
    """A Cat of the updates and the rest of the data, for distinct coordinates that are constant or a range per axis.

    For coordinates that only the run knows, positions that are written twice and reductions the operator itself, on
    rows that differ, and a note with the reason: each position of the axes behind the coordinates is written by itself.
    """
    try:
        return [_assigned(ctx)]
    except Decline as why:
        depth, lead = ctx.input(1).shape[-1], ctx.input(1).rank - 1
        rank = ctx.input(0).rank
        if not isinstance(depth, int) or depth == rank:
            raise
        ctx.b.notes.append(str(why))
        return run(ctx, [Through((d, None, lead + d - depth), (d,)) for d in range(depth, rank)])


def _assigned(ctx: Context) -> Value:
    """Refuses coordinates computed from data, positions that are written twice, and reductions."""
    if ctx.attr("reduction", "none") != "none":
        raise Decline("the ScatterND combines updates with the data (reduction)")
    x, updates = ctx.input(0), fresh(ctx.input(2))
    index = ctx.array(1)
    if index is None:
        return _slab(ctx, x, fresh(ctx.input(1)), updates)
    depth = index.shape[-1]
    if not all(isinstance(s, int) for s in x.shape[:depth]):
        raise Decline("ScatterND writes along a dynamic axis")
    sizes = [int(s) for s in x.shape[:depth] if isinstance(s, int)]
    flat = flat_positions(index, sizes)
    if len(set(flat)) != len(flat):
        raise Decline("ScatterND writes a position twice")
    value = _put(ctx, merged(ctx, x, 0, depth), merged(ctx, updates, 0, index.ndim - 1), 0, [flat])
    return regroup(ctx, value, [*sizes, *value.shape[1:]]) if depth > 1 else value


@rule("ScatterElements")
def scatter_elements(ctx: Context) -> Sequence[Value | None]:
    """A Cat of the updates and the rest of the data, where the index is a constant that is the same at all positions
    of the other axes, and these are written in full. For other indices the operator itself, on rows that differ, and a
    note with the reason.
    """
    try:
        return [_written(ctx)]
    except Decline as why:
        ctx.b.notes.append(str(why))
        return run(ctx, MAPPED["", "ScatterElements"](ctx))


def _written(ctx: Context) -> Value:
    """Refuses an index computed from data, positions that are written twice, updates that are shorter than the data
    along another axis, and reductions.
    """
    if ctx.attr("reduction", "none") != "none":
        raise Decline("the ScatterElements combines updates with the data (reduction)")
    x, index, updates = ctx.input(0), ctx.input(1), fresh(ctx.input(2))
    at = normal(ctx.attr("axis", 0), x.rank)
    places = _along(ctx, index, at)
    size = x.shape[at]
    if not isinstance(size, int):
        raise Decline(f"ScatterElements writes along the dynamic axis {size}")
    if any(not -size <= place < size for place in places):
        raise Decline("ScatterElements writes outside of the axis")
    places = [place % size for place in places]
    if len(set(places)) != len(places):
        raise Decline("ScatterElements writes a position twice")
    for d in range(x.rank):
        if d != at and not (ctx.b.same(x.shape[d], index.shape[d]) and ctx.b.same(x.shape[d], updates.shape[d])):
            raise Decline(IN_PART)
    if updates.shape[at] != len(places):
        raise Decline(IN_PART)
    return _put(ctx, x, updates, at, [None] * at + [places])


def _along(ctx: Context, index: Value, at: int) -> list[int]:
    """The positions along an axis that an index names, the same ones at all positions of the other axes."""
    if not is_const(index.body):
        raise Decline("ScatterElements has an index that is computed from data")
    count = index.shape[at]
    if not isinstance(count, int) or not count:
        raise Decline("ScatterElements writes an unknown number of positions")
    others = [d for d in range(index.rank) if d != at and axes_of(index.body) & set(index.known[d])]
    if any(not isinstance(index.shape[d], int) for d in others):
        raise Decline(BY_ELEMENT)
    own = [index.known[d] if d == at or d in others else () for d in range(index.rank)]
    array = write(ctx.b, index.body, own, frozenset(index.known[at])).array
    rows = np.moveaxis(array, at, -1).reshape(-1, count)
    if np.any(rows != rows[:1]):
        raise Decline(BY_ELEMENT)
    return [int(place) for place in rows[0]]


def _slab(ctx: Context, x: Value, index: Value, updates: Value) -> Value:
    """The result for coordinates that are a range per axis, each expanded to the others' shape."""
    lead, depth = index.rank - 1, index.shape[-1]
    if not isinstance(depth, int):
        raise Decline("ScatterND has an unknown number of coordinates")
    spans: list[Span] = []
    groups: list[Group] = []
    used: list[int] = []
    for d in range(depth):
        column = positions(ctx, index, lead, [d], drop=True)
        own = [i for i, group in enumerate(column.known) if set(group) & axes_of(column.body)]
        if not isinstance(column.body, Leaf) or len(own) > 1 or len(axes_of(column.body)) > 1:
            raise Decline("ScatterND has coordinates that are computed from data")
        spans.append(_span(ctx, column.body, x.shape[d]))
        groups.append(column.known[own[0]] if own else ())
        if own:
            used += own
            # the coordinate of the whole axis: it varies along all of its atoms
            if len(column.known[own[0]]) != 1:
                raise Decline("ScatterND has coordinates that are computed from data")
    if used != sorted(set(used)) or any(g and i not in used for i, g in enumerate(index.known[:-1])):
        raise Decline("ScatterND writes a position twice, or in another order")
    places = iter(used)
    new = [updates.known[next(places)] if g else () for g in groups]
    return _put(ctx, x, ctx.value([*new, *updates.known[lead:]], updates.body, x.dtype), 0, spans)


def _span(ctx: Context, leaf: Leaf, size: Size) -> Span:
    """The positions that a vector of coordinates names along an axis of this size."""
    t = leaf.tensor
    if t.const:
        array = np.asarray(t.array).reshape(-1)
        literal = ctx.b.literal(size)
        if isinstance(literal, Dim):
            raise Decline("ScatterND writes along a dynamic axis")
        at = [int(i) % literal for i in array]
        if at == list(range(literal)):
            return None
        if not at or isinstance(size, Dim) or len(set(at)) != len(at):
            raise Decline("ScatterND writes along a dynamic axis, or a position twice")
        return at
    node = t.node
    if node is None or node.proto.op_type != "Range" or not ctx.b.same(t.known[0], size):
        raise Decline("ScatterND has coordinates that are computed from data")
    first, step = node.inputs[0], node.inputs[2]
    if first is None or step is None or first.scalar != 0 or step.scalar != 1:
        raise Decline("ScatterND writes a range that does not start at 0")
    return None


def _put(ctx: Context, x: Value, new: Value, d: int, spans: Sequence[Span]) -> Value:
    """x with ``new`` at these positions of the axes from d on."""
    while d < len(spans) and spans[d] is None:
        d += 1
    if d == len(spans):
        return new
    at = list(spans[d] or ())
    size = static(x.shape[d])
    inner = new if all(s is None for s in spans[d + 1 :]) else _put(ctx, positions(ctx, x, d, at), new, d + 1, spans)
    if at == list(range(size)):  # of one position, which is no axis, for one
        return inner
    rest = sorted(set(range(size)) - set(at))
    pieces = [(at, inner)] + ([(rest, positions(ctx, x, d, rest))] if rest else [])
    slim, subs = [], []
    for places, value in pieces:
        value, sub = single(ctx.b, value, d)
        if (sub.size if sub is not None else 1) != len(places):
            raise Decline("ScatterND writes an unknown number of positions")
        subs.append(sub)
        slim.append(Value((*value.known[:d], *value.known[d + 1 :]), value.body, value.dtype))
    bodies, groups = align(ctx.b, slim)
    parts = [Part(tuple(p), sub, body) for (p, _), sub, body in zip(pieces, subs, bodies, strict=True)]
    axis = Axis(size)
    return ctx.value([*groups[:d], (axis,), *groups[d:]], flatten_nested(Cat(axis, tuple(parts))), x.dtype)
