"""Reductions: along a Cat's axis the parts' results are combined; along other axes each part is reduced by itself.

    sum [x_1 | x_2] = sum x_1 + sum x_2         max [x_1 | x_2] = max(max x_1, max x_2)
    mean x = sum x / n      l2 x = sqrt(sum x^2)      sumsquare x = sum x^2      l1 x = sum |x|
    logsumexp x = m + log sum exp(x - m), m = max x   logsum x = log sum x       prod likewise
    over an axis on which x does not vary: sum = n x, mean = max = min = x
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from mari_onnx.engine.algebra.reduce import reduce_sum, weighted_sum
from mari_onnx.engine.algebra.sums import binary, cast_size, multiply
from mari_onnx.engine.analysis.finite import given
from mari_onnx.engine.analysis.magnitude import bound
from mari_onnx.engine.axes.blockwise import zip_bodies
from mari_onnx.engine.axes.select import coalesce
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Body, Cat, Decline, Group, Leaf, Value, axes_of, in_order, within
from mari_onnx.engine.rule import Context, normal, rule
from mari_onnx.model.dims import product
from mari_onnx.model.tensors import FLOATS, INDICES


def reduced(ctx: Context, x: Value) -> tuple[frozenset[Axis], list[Group], bool]:
    """The axes that are reduced, the groups of the result, and whether anything is reduced at all."""
    axes = ctx.axes_arg(1)
    if not axes:
        if ctx.attr("noop_with_empty_axes", 0):
            return frozenset(), list(x.known), False
        axes = list(range(x.rank))
    gone = {normal(a, x.rank) for a in axes}
    keep = bool(ctx.attr("keepdims", 1))
    groups: list[Group] = [() if i in gone else g for i, g in enumerate(x.known) if keep or i not in gone]
    return frozenset(a for i in gone for a in x.known[i]), groups, True


@rule(
    "ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", splits=True
)
def sums(ctx: Context) -> list[Value]:
    """Every reduction that is computed from a sum: mean, L1, L2, square, log and logsumexp (see the module).

    Refuses integers, except sums of int32 and int64, and a reduction over no axis.
    """
    x = ctx.input(0)
    op = ctx.node.op_type
    if x.dtype not in FLOATS and not (op == "ReduceSum" and x.dtype in INDICES):
        raise Decline("it reduces integers")
    k, groups, any_ = reduced(ctx, x)
    if not any_:
        raise Decline("it reduces along no axis")
    b = ctx.b
    order = [a for a in x.axes if a not in k]
    body: Body = x.body
    if op == "ReduceMean":
        _filled(b, body, k)
        return [ctx.value(groups, mean(b, body, k, order), x.dtype)]
    if op in ("ReduceSumSquare", "ReduceL2"):
        body = zip_bodies(b, [body], lambda ls: binary(b, "Mul", ls[0], ls[0]))
    elif op == "ReduceL1":
        body = unary(b, "Abs", body)
    elif op == "ReduceLogSumExp":
        top = zip_bodies(b, [extreme(b, "Max", body, k)], lambda ls: _finite(b, ls[0]))
        shifted = zip_bodies(b, [body, top], lambda ls: binary(b, "Sub", ls[0], ls[1], x.axes), order=x.axes)
        total = unary(b, "Log", reduce_sum(b, unary(b, "Exp", shifted), k, order))
        body = zip_bodies(b, [total, top], lambda ls: binary(b, "Add", ls[0], ls[1]), order=order)
        return [ctx.value(groups, body, x.dtype)]
    body = reduce_sum(b, body, k, order)
    if op == "ReduceL2":
        body = unary(b, "Sqrt", body)
    elif op == "ReduceLogSum":
        body = unary(b, "Log", body)
    return [ctx.value(groups, body, x.dtype)]


def _finite(b: Builder, leaf: Leaf) -> Leaf:
    """0 in place of an infinite maximum: of a row that is -inf throughout the logarithm of the sum is -inf."""
    t = leaf.tensor
    if bound(t) < math.inf:
        return leaf
    itself = emit.binary(b, "Equal", emit.binary(b, "Sub", t, t), b.const(0, t.dtype))
    out = b.emit("Where", [itself, t, b.const(0, t.dtype)], t.shape, t.dtype)
    return Leaf(out, leaf.axes)


def unary(b: Builder, op: str, body: Body) -> Body:
    """The operator on each part."""
    return zip_bodies(b, [body], lambda ls: Leaf(emit.unary(b, op, ls[0].tensor), ls[0].axes))


def mean(b: Builder, body: Body, k: frozenset[Axis], order: list[Axis]) -> Body:
    """The mean over axes; an axis on which nothing varies has no effect. Refuses a mean of no elements."""
    if isinstance(body, Cat):
        body = coalesce(b, body, order)
    varies = k & axes_of(body)
    if not varies:
        return body
    if isinstance(body, Cat) and body.axis not in varies:
        parts = (p.with_body(mean(b, p.body, k, within(order, body.axis, p.axis))) for p in body.parts)
        return Cat(body.axis, tuple(parts), True)
    if isinstance(body, Leaf) and weighted_sum(b, body, varies, order) is None:
        at = [i for i, a in enumerate(body.axes) if a in varies]
        t = emit.reduce(b, "ReduceMean", body.tensor, at)
        return Leaf(t, tuple(None if i in at else a for i, a in enumerate(body.axes)))
    size = product(a.size for a in varies)
    if size == 0:
        raise Decline("it takes the mean of no elements")
    total = reduce_sum(b, body, varies, order)
    first = total
    while isinstance(first, Cat):
        first = first.parts[0].body
    assert isinstance(first, Leaf)
    dtype = first.tensor.dtype
    if isinstance(size, int):
        share: Body = Leaf(b.const(1.0 / size, dtype), ())
    else:
        count = [cast_size(b, a, dtype) for a in in_order(varies)]
        tensor = count[0]
        for other in count[1:]:
            tensor = emit.binary(b, "Mul", tensor, other)
        if not b.filled(size):
            tensor = b.emit("Max", [tensor, b.const(1, dtype)], (), dtype)  # of no positions onnxruntime's mean is 0
        share = Leaf(emit.unary(b, "Reciprocal", tensor), ())
    return multiply(b, total, share, order)


@rule("ReduceMax", "ReduceMin", "ReduceProd", splits=True)
def extremes(ctx: Context) -> list[Value]:
    """The max, min or product of the parts' results. Refuses booleans, and a reduction over no axis."""
    x = ctx.input(0)
    k, groups, any_ = reduced(ctx, x)
    op = ctx.node.op_type.removeprefix("Reduce")
    if not any_:
        raise Decline("it reduces along no axis")
    if x.dtype == 9:
        raise Decline("it reduces booleans")
    if x.dtype not in FLOATS and ctx.opset < 12 and op != "Prod":
        raise Decline("this opset has no Max and Min of integers")
    _filled(ctx.b, x.body, k)
    if op != "Prod":
        _whole_row(ctx.b, x.body, k)
    return [ctx.value(groups, extreme(ctx.b, op, x.body, k), x.dtype)]


def _whole_row(b: Builder, body: Body, k: frozenset[Axis]) -> None:
    """Raises `Decline` where a maximum over values that may be NaN would be split: onnxruntime's depends on the
    NaN's place.
    """
    while isinstance(body, Cat) and body.axis not in k:
        body = max((p.body for p in body.parts), key=lambda part: isinstance(part, Cat))
    if isinstance(body, Cat) and given(b, body):
        raise Decline("a row may have NaN, and onnxruntime's maximum then depends on where in the row it is")


@rule("GlobalAveragePool", "GlobalMaxPool", splits=True)
def global_pool(ctx: Context) -> list[Value]:
    """The mean or the maximum over all axes except the first two, which become 1: what tf2onnx makes of a mean.

    Refuses integers, and tensors without such axes.
    """
    x = ctx.input(0)
    if x.dtype not in FLOATS or x.rank < 3:
        raise Decline("it pools along no axis, or pools integers")
    k = frozenset(a for g in x.known[2:] for a in g)
    if ctx.node.op_type == "GlobalMaxPool":
        _whole_row(ctx.b, x.body, k)
        body = extreme(ctx.b, "Max", x.body, k)
    else:
        body = mean(ctx.b, x.body, k, [a for a in x.axes if a not in k])
    return [ctx.value([*x.known[:2], *[()] * (x.rank - 2)], body, x.dtype)]


def _filled(b: Builder, body: Body, k: frozenset[Axis]) -> None:
    """Raises `Decline` where an axis on which nothing varies may have no position at all."""
    if not all(b.filled(a.size) for leaf, here in _cells(body, k) for a in here - axes_of(leaf)):
        raise Decline("it takes a mean or maximum along an axis that may be empty")


def extreme(b: Builder, op: str, body: Body, k: frozenset[Axis]) -> Body:
    """Max, Min or Prod over axes, by parts. Refuses a product over repeated elements."""
    if isinstance(body, Cat):
        body = coalesce(b, body)
    if op == "Prod" and any(k_ - axes_of(leaf) for leaf, k_ in _cells(body, k)):
        raise Decline("it multiplies repeated elements")
    k = k & axes_of(body)
    if not k:
        return body
    if isinstance(body, Cat):
        cat = body
        if cat.axis not in k:
            return zip_bodies(b, [cat], lambda ls: _reduce(b, op, ls[0], k), mapped=frozenset({cat.axis}))
        join = "Mul" if op == "Prod" else op
        results = []
        for p in cat.parts:
            inner = k - {cat.axis} | ({p.axis} if p.axis and p.axis in axes_of(p.body) else frozenset())
            results.append(extreme(b, op, p.body, inner))
        total = results[0]
        for other in results[1:]:
            total = zip_bodies(b, [total, other], _joiner(b, join))
        return total
    assert isinstance(body, Leaf)
    return _reduce(b, op, body, k)


def _cells(body: Body, k: frozenset[Axis]) -> Iterator[tuple[Leaf, frozenset[Axis]]]:
    """Every leaf of a body, with the reduced axes that it has inside its part."""
    if isinstance(body, Cat):
        for p in body.parts:
            inner = k - {body.axis} | ({p.axis} if p.axis is not None and body.axis in k else frozenset())
            yield from _cells(p.body, inner)
    elif isinstance(body, Leaf):
        yield body, k


def _joiner(b: Builder, op: str) -> Callable[[list[Leaf]], Body]:
    return lambda ls: binary(b, op, ls[0], ls[1])


def _reduce(b: Builder, op: str, leaf: Leaf, k: frozenset[Axis]) -> Leaf:
    at = [i for i, a in enumerate(leaf.axes) if a in k]
    if not at:
        return leaf
    t = emit.reduce(b, f"Reduce{op}", leaf.tensor, at)
    return Leaf(t, tuple(None if i in at else a for i, a in enumerate(leaf.axes)))
