"""Rows picked by a mask (NonZero, `x[mask]`), and TopK over rows that are all equal.

    x[m] for a constant mask        = the positions of m, for each position of the axes along which m is repeated
    x[m] for one bit m of the user  = all rows of x, or none: x with as many rows as m has ones (N or 0)
    TopK(c), c equal along the axis = c, and 0, 1, 2, ..

"Users whose history is not empty" is a mask of one bit where all rows are one user's (DIEN's packed sequences). What
does not depend on the candidate stays one row; how many rows it counts as is known only at run time, like other
dimensions.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from mari_onnx.engine.axes.align import single
from mari_onnx.engine.axes.materialize import as_leaf
from mari_onnx.engine.batching import MAPPED, run
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.value import (
    Axis,
    Body,
    Cat,
    Decline,
    Leaf,
    Places,
    Tensor,
    Value,
    axes_of,
    is_const,
    rename,
)
from mari_onnx.engine.rule import Context, constant, from_tensor, normal, rule
from mari_onnx.engine.rules.slices import positions
from mari_onnx.engine.rules.structure import regroup
from mari_onnx.model.dims import Dim, Size, product
from mari_onnx.model.tensors import INDICES


@rule("NonZero")
def non_zero(ctx: Context) -> list[Value]:
    """The coordinates of a mask that is constant, except for repeated leading axes (the candidates), or that is one
    bit.

    Refuses any other mask that is computed from data.
    """
    x = ctx.input(0)
    bit = isinstance(x.body, Leaf) and not axes_of(x.body) and not is_const(x.body)
    if bit and x.rank and isinstance(x.shape[0], Dim):
        assert isinstance(x.body, Leaf)
        return [_all_or_none(ctx, x, x.body)]
    flattened = x.rank == 1 and len(x.known[0]) > 1
    if flattened:
        x = ctx.value([(a,) for a in x.known[0]], x.body, x.dtype)
    free = next((i for i, s in enumerate(x.shape) if isinstance(s, int)), x.rank)
    inner = x.shape[free:]
    repeated = {a for group in x.known[:free] for a in group}
    if not is_const(x.body) or not all(isinstance(s, int) for s in inner) or repeated & axes_of(x.body):
        raise Decline("the mask is computed from data")
    block = Value(x.known[free:], x.body, x.dtype)
    array = constant(ctx.b, block)
    if array is None or array.size > 1 << 20:
        raise Decline("the mask has too many elements to be a constant")
    flat = tuple(int(i) for i in np.flatnonzero(array))
    if not flat:
        raise Decline("the mask has no elements")
    (value,) = [v for v in ctx.write_out() if v is not None]
    count = Axis(product([*x.shape[:free], len(flat)]))
    assert isinstance(value.body, Leaf)
    if count.size != value.shape[1]:
        body = rename(value.body, {value.known[1][0]: count}) if value.known[1] else value.body
        value = ctx.value([value.known[0], (count,)], body, value.dtype)
    value.places = Places(x.shape, free, flat, across=True, merged=flattened)
    return [value]


def _all_or_none(ctx: Context, x: Value, bit: Leaf) -> Value:
    """The coordinates of all elements of a mask, or of none."""
    b = ctx.b
    repeated = b.emit("Expand", [emit.reshape(b, bit.tensor, (1,)), b.sizes([x.shape[0]])], (x.shape[0],))
    picked = b.emit("NonZero", [repeated], (1, 1), TensorProto.INT64)
    rows = b.fresh(picked, 1)
    picked.shape = (1, rows)
    value, count = from_tensor(picked), product([rows, *x.shape[1:]])
    if x.rank > 1:
        (out,) = ctx.write_out()
        assert out is not None
        assert isinstance(out.body, Leaf)
        out.body.tensor.shape = (x.rank, count)
        value = from_tensor(out.body.tensor)
    truth = emit.reshape(b, bit.tensor, ())
    if truth.dtype != TensorProto.BOOL:
        truth = b.emit("Cast", [truth], (), TensorProto.BOOL, {"to": TensorProto.BOOL})
    value.places = Places(x.shape, 0, (), across=True, rows=rows, bit=truth)
    return value


def masked(ctx: Context, x: Value, places: Places) -> Value:
    """``x[mask]``: the mask's positions, for each position of the axes along which it is repeated.

    Refuses a mask of another shape than the data's.
    """
    depth = len(places.shape)
    if not all(ctx.b.same(a, c) for a, c in zip(x.shape[:depth], places.shape, strict=True)):
        raise Decline("the mask does not have the data's shape")
    if places.rows is not None:
        return merged(ctx, _chosen_rows(ctx, x, places.rows, places.bit), 0, depth)
    value = positions(ctx, merged(ctx, x, places.free, depth), places.free, places.flat)
    return merged(ctx, value, 0, places.free + 1)


def flat_masked(ctx: Context, x: Value, at: int, places: Places) -> Value:
    """``x[mask]`` where mask and data were flattened before: the same positions, for each of the repeated axes.

    Refuses a mask of another length than the data's.
    """
    outer, inner = (product(sizes) for sizes in (places.shape[: places.free], places.shape[places.free :]))
    if not ctx.b.same(x.shape[at], outer * inner):
        raise Decline("the mask does not have the data's length")
    value = regroup(ctx, x, [*x.shape[:at], outer, inner, *x.shape[at + 1 :]])
    return merged(ctx, positions(ctx, value, at + 1, places.flat), at, at + 2)


def _chosen_rows(ctx: Context, x: Value, rows: Size, bit: Tensor | None) -> Value:
    """As many rows of x as the bit picks. What does not vary along them stays one row.

    That row exists even if none is picked. Its integers are 0 then, because as ids they may be what the mask is to keep
    away from a table (-1, or the table's length).
    """
    x, axis = single(ctx.b, x, 0)
    if axis is None or ctx.opset < 10:
        raise Decline("the masked tensor has a single row, or the opset is below 10")
    b, new = ctx.b, Axis(rows)

    def cut(body: Body) -> Body:
        if isinstance(body, Cat) and body.axis is not axis:
            return Cat(body.axis, tuple(p.with_body(cut(p.body)) for p in body.parts), body.keep_split)
        if axis not in axes_of(body):
            if not isinstance(body, Leaf) or bit is None or x.dtype not in INDICES or is_const(body):
                return body
            zero = b.const(0, x.dtype)
            return Leaf(b.emit("Where", [bit, body.tensor, zero], body.tensor.shape, x.dtype), body.axes)
        body = as_leaf(b, body)
        place = body.axes.index(axis)
        return Leaf(_first(ctx, body.tensor, place, rows), tuple(new if a is axis else a for a in body.axes))

    return ctx.value([(new,), *x.known[1:]], cut(x.body), x.dtype)


def _first(ctx: Context, tensor: Tensor, place: int, rows: Size) -> Tensor:
    b = ctx.b
    shape = (*tensor.known[:place], rows, *tensor.known[place + 1 :])
    return b.emit("Slice", [tensor, b.ints([0]), b.sizes([rows]), b.ints([place])], shape)


def merged(ctx: Context, x: Value, start: int, stop: int) -> Value:
    """The value with logical axes start to stop merged into one."""
    group = tuple(a for g in x.known[start:stop] for a in g)
    return ctx.value([*x.known[:start], group, *x.known[stop:]], x.body, x.dtype)


@rule("TopK")
def topk(ctx: Context) -> list[Value | None]:
    """Rows that are equal along the ranked axis are in order already; others are ranked whole, over the mapped axes."""
    x = ctx.input(0)
    at = normal(ctx.attr("axis", -1), x.rank)
    alike = bool(x.known[at]) and not set(x.known[at]) & axes_of(x.body) and ctx.attr("sorted", 1)
    count = ctx.sizes(1)[0] if alike and ctx.opset >= 10 else None
    if count is None or not ctx.b.same(count, x.shape[at]):
        if isinstance(x.body, Cat) and x.body.axis in x.known[at]:
            ctx.b.notes.append("it ranks user and item positions together")
        return run(ctx, MAPPED["", "TopK"](ctx))
    x, axis = single(ctx.b, x, at)
    assert axis is not None
    bounds = [emit.reshape(ctx.b, ctx.b.size(s), ()) for s in (0, axis.size, 1)]
    order = ctx.b.emit("Range", bounds, (axis.size,), TensorProto.INT64)
    return [x, ctx.value(x.known, Leaf(order, (axis,)), TensorProto.INT64)]
