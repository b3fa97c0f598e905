"""Ranges and positions of an axis: Slice, Split, Compress, and Gather with constant indices.

    [x_1 | x_2][a:b]  =  [the positions of x_1 in a:b | those of x_2]

A range of a Cat keeps the parts that it covers, and no node is written. Bounds on a dynamic axis count from its ends;
where a short axis may not have the whole range, only a run tells how long the result is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mari_onnx.engine.axes.align import single
from mari_onnx.engine.axes.select import cut, take
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.forms import has_cheaper_form
from mari_onnx.engine.ir.value import Axis, Body, Cat, Decline, Group, Leaf, Value, is_const
from mari_onnx.engine.rule import Context, normal, rule
from mari_onnx.engine.rules.structure import regroup
from mari_onnx.model.dims import Dim, Size, divide, product

HUGE = 10**9
"""A bound of a Slice from here on means "to the end": exporters write INT_MAX, INT64_MAX, or (tf2onnx) 10^9."""


@rule("Slice")
def slice_(ctx: Context) -> list[Value]:
    """Positions start, start + step, .. of an axis. Refuses bounds computed from data."""
    x = ctx.input(0)
    axes: list[int] | None
    steps: list[int] | None
    if ctx.opset < 10:
        starts, ends = list(ctx.attr("starts")), list(ctx.attr("ends"))
        axes, steps = list(ctx.attr("axes", range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = ctx.sizes(1), ctx.sizes(2)
        axes = ctx.ints(3) if ctx.has(3) else list(range(len(starts)))
        steps = ctx.ints(4) if ctx.has(4) else [1] * len(starts)
        if axes is None or steps is None:
            raise Decline("its axes or steps are computed at run time")
    value = x
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if start is None or end is None:
            raise Decline("a bound is computed from data")
        value = _slice(ctx, value, normal(axis, x.rank), start, end, step)
    return [value]


def _slice(ctx: Context, x: Value, at: int, start: Size, end: Size, step: int) -> Value:
    """Positions start, start + step, .. up to ``end`` of dimension ``at``; the bounds are as the node has them.

    Refuses bounds that are not known, and ranges of a dynamic dimension other than those that `range_of` takes.
    """
    size = x.shape[at]
    if isinstance(size, int):
        if step < 0 and ((isinstance(start, int) and start < -size) or (isinstance(end, int) and end > HUGE)):
            raise Decline("a bound lies before the first element, and runtimes disagree on that")
        bounds = [ctx.b.literal(start), ctx.b.literal(end)]
        for k, bound in enumerate(bounds):
            if isinstance(bound, Dim):
                raise Decline(f"the bound {bound} is not known")
            bounds[k] = bound
        places = list(range(size))[slice(int(bounds[0]), _end(int(bounds[1]), step), step)]  # type: ignore[arg-type]
        if places == list(range(size)):
            return x
        return positions(ctx, x, at, places)
    if step == 1 and start == 0 and (end == size or (isinstance(end, int) and end >= HUGE)):
        return x
    if step != 1 or isinstance(start, Dim) or (isinstance(end, Dim) and end != size):
        raise Decline(f"it takes a range of the dynamic dimension {size}")
    stop = HUGE if end == size else int(end)  # type: ignore[arg-type]
    return range_of(ctx, x, at, int(start), stop)


def _end(end: int, step: int) -> int | None:
    """A Slice's end as numpy counts it: below -size with a negative step it means through the first element."""
    return None if step < 0 and end < -HUGE else end


def range_of(ctx: Context, x: Value, at: int, start: int, stop: int, inside: bool = False) -> Value:
    """A range of a dynamic axis whose length follows from the bounds. inside: the source fails unless the axis has it
    all.

    Refuses bounds that a short axis would cut.
    """
    size = x.shape[at]
    if start >= 0 and stop >= HUGE:
        length: Size = size - start
    elif start < 0 and stop >= HUGE:
        length = -start
    elif start >= 0 and stop < 0:
        length = size + (stop - start)
    elif start < 0 and stop < 0:
        length = stop - start
    elif start >= 0 and 0 <= stop < HUGE:
        length = stop - start
        if length != 1:
            raise Decline("the dynamic dimension may be shorter than the range that is taken")
    else:
        raise Decline("it takes a range of a dynamic dimension")
    if not inside and not _inside(ctx, size, start, stop):
        return _short(ctx, x, at, start, stop)
    x, axis = single(ctx.b, x, at)
    assert axis is not None
    new = Axis(length) if length != 1 else None
    body = cut(ctx.b, x.body, axis, start, min(stop, (1 << 62)), new, length)
    return ctx.value([*x.known[:at], (new,) if new else (), *x.known[at + 1 :]], body, x.dtype)


def _inside(ctx: Context, size: Size, start: int, stop: int) -> bool:
    """Whether a dimension has the whole range even if it is as short as it can be."""
    low = ctx.b.least(size)
    if low is None or ((start < 0) == (stop < 0) and stop <= start):
        return False
    if start >= 0 and stop < 0:
        return low >= start - stop
    return low >= max(start, -start, stop if stop < HUGE else 0)


def _short(ctx: Context, x: Value, at: int, start: int, stop: int) -> Value:
    """A range that a short dimension may not have in full (the last three of two clicks): only the run tells its
    length.
    """
    x, axis = single(ctx.b, x, at)
    body = x.body
    if axis is None or not isinstance(body, Leaf) or axis not in body.axes:
        raise Decline("the dynamic dimension may be shorter than the range that is taken")
    i = body.axes.index(axis)
    bounds = [ctx.b.ints([v]) for v in (start, stop, i)]
    out = ctx.b.emit("Slice", [body.tensor, *bounds], None)
    if out.shape is None:
        out.shape = (*body.tensor.known[:i], ctx.b.fresh(out, i), *body.tensor.known[i + 1 :])
    new = Axis(out.shape[i])
    leaf = Leaf(out, (*body.axes[:i], new, *body.axes[i + 1 :]))
    return ctx.value([*x.known[:at], (new,), *x.known[at + 1 :]], leaf, x.dtype)


def positions(ctx: Context, x: Value, at: int, places: Sequence[int], drop: bool = False) -> Value:
    """Positions along logical axis ``at``. drop: there is one, and the result lacks the dimension."""
    if not places:
        # no element: any scalar, broadcast along an axis of length 0
        empty = Leaf(ctx.b.const(0, x.dtype), ())
        return ctx.value([*x.known[:at], (Axis(0),), *x.known[at + 1 :]], empty, x.dtype)
    x, axis = single(ctx.b, x, at)
    new = Axis(len(places)) if len(places) > 1 else None
    body: Body = x.body
    if axis is not None:
        body = take(ctx.b, body, axis, list(places), new)
    middle: list[Group] = [] if drop else [(new,) if new else ()]
    return ctx.value([*x.known[:at], *middle, *x.known[at + 1 :]], body, x.dtype)


@rule("Compress")
def compress(ctx: Context) -> list[Value]:
    """The positions where a constant condition is true: Compress(x, c) = Gather(x, [i for i if c[i]]).

    Without an axis x is flattened first. The condition may be shorter than the axis: the rest is left out. Refuses a
    condition that is computed, and a dynamic dimension: a condition that is longer is cut short by some runtimes.
    """
    x, condition = ctx.input(0), ctx.array(1)
    if condition is None:
        raise Decline("the condition is computed at run time")
    at = ctx.attr("axis")
    if at is None:
        x, at = regroup(ctx, x, [product(x.shape)]), 0
    at = normal(at, x.rank)
    size = x.shape[at]
    if not isinstance(size, int):
        raise Decline(f"it takes positions of the dynamic dimension {size}")
    places = [int(i) for i in np.flatnonzero(condition)]
    if places and places[-1] >= size:
        raise Decline(f"the condition selects position {places[-1]}, but the dimension has only {size}")
    return [positions(ctx, x, at, places)]


@rule("Split")
def split_op(ctx: Context) -> list[Value]:
    """Ranges of an axis, each of which keeps the parts that it covers.

    A dynamic dimension is split into equal shares: `[h * N]` is [h, N], and each share is a row. Refuses other ranges
    of one. Lengths that the run computes are accepted if they are those of parts that were concatenated before.
    """
    x = ctx.input(0)
    at = normal(ctx.attr("axis", 0), x.rank)
    size = x.shape[at]
    n = len(ctx.node.output)
    if not isinstance(size, int):
        share = divide(size, n)
        given = ctx.attr("split") or (ctx.sizes(1) if ctx.has(1) else [share] * n)
        if share is None or not all(length is not None and ctx.b.same(length, share) for length in given):
            raise Decline(f"it splits the dynamic dimension {size}")
        rows = regroup(ctx, x, [*x.shape[:at], n, share, *x.shape[at + 1 :]])
        return [positions(ctx, rows, at, [i], drop=True) for i in range(n)]
    sizes = ctx.axes_arg(1, "split")
    if sizes is None:
        each = -(-size // n)
        sizes = [min(each, size - i * each) for i in range(n)]
    starts = np.cumsum([0, *sizes])
    apart = _apart(ctx, x, at, sizes)
    if apart is not None:
        return apart
    return [
        positions(ctx, x, at, range(int(start), int(start) + n))
        for start, n in zip(starts, sizes, strict=False)
    ]


def _apart(ctx: Context, x: Value, at: int, sizes: Sequence[int]) -> list[Value] | None:
    """Every range of a tensor by one Split, where the value is a single tensor along the axis; else None."""
    group = x.known[at]
    if len(group) != 1 or not all(sizes) or sum(sizes) != group[0].size or is_const(x.body):
        return None
    news = [Axis(n) if n > 1 else None for n in sizes]

    def split_leaf(body: Body) -> list[Body] | None:
        if isinstance(body, Cat):
            if body.axis is group[0]:
                return None
            columns = [split_leaf(p.body) for p in body.parts]
            if any(column is None for column in columns):
                return None
            return [
                Cat(body.axis, tuple(p.with_body(c[i]) for p, c in zip(body.parts, columns, strict=True) if c),
                    body.keep_split)
                for i in range(len(sizes))
            ]  # fmt: skip
        if not isinstance(body, Leaf) or group[0] not in body.axes or has_cheaper_form(body):
            return None
        i = body.axes.index(group[0])
        tensors = emit.split(ctx.b, body.tensor, i, list(sizes))
        return [Leaf(t, (*body.axes[:i], new, *body.axes[i + 1 :])) for t, new in zip(tensors, news, strict=True)]

    bodies = split_leaf(x.body)
    if bodies is None:
        return None
    groups = [(*x.known[:at], (new,) if new is not None else (), *x.known[at + 1 :]) for new in news]
    return [ctx.value(g, body, x.dtype) for g, body in zip(groups, bodies, strict=True)]
