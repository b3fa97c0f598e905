"""Normalizations over a Cat or a broadcast: statistics part by part, and a form that later products use.

By Chan's parallel formula, with n_p, m_p and M_p the length, mean and sum of squared deviations of part p,

    m = sum n_p m_p / n         M = sum M_p + n_p (m_p - m)^2         s = sqrt(M / n + eps)

    LayerNorm [u|x] = ([u|x] - m) / s * g + c,      so     LayerNorm([u|x]) W = (u G_u + x G_x - m 1G) / s + c W

with G = diag(g) W: the user's product and statistics are computed once per request. RMSNorm is the same without m; L2
normalization is a sum of squares by parts. Where something else reads the normalized tensor, the plain operator is
written.

    GroupNorm(x) = InstanceNorm of x [N, G, C / G, ..] * scale + bias

Groups that each lie on one side are computed separately, like the channels of an InstanceNormalization.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from mari_onnx.engine.algebra.reduce import reduce_sum
from mari_onnx.engine.algebra.sums import add, binary, drop_uniform_axes, multiply
from mari_onnx.engine.axes.align import align
from mari_onnx.engine.axes.blockwise import zip_bodies
from mari_onnx.engine.axes.materialize import as_leaf
from mari_onnx.engine.axes.select import coalesce
from mari_onnx.engine.batching import MAPPED, run
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import with_form
from mari_onnx.engine.ir.value import Axis, Body, Cat, Decline, Leaf, Part, Prod, Sum, Value, axes_of, offline, rename
from mari_onnx.engine.rule import Context, from_array, normal, rule
from mari_onnx.engine.rules.reduce import mean
from mari_onnx.engine.rules.structure import regroup
from mari_onnx.model.dims import product
from mari_onnx.model.tensors import FROM_32_BITS


@rule("LayerNormalization", "RMSNormalization", splits=True)
def layer_norm(ctx: Context) -> list[Value | None]:
    """The plain operator on rows that differ, with the module's formula kept beside it for products that follow.

    The formula applies to a Cat along a normalized axis with constant scale and bias, statistics in float32 and no
    second output in use; otherwise there is the plain operator alone.
    """
    x = ctx.input(0)
    axis = normal(ctx.attr("axis", -1), x.rank)
    k = frozenset(a for g in x.known[axis:] for a in g)
    out = run(ctx, MAPPED["", ctx.node.op_type](ctx))
    body = x.body
    if not (isinstance(body, Cat) and body.axis in k) or len([o for o in ctx.node.output if o]) > 1:
        return out
    whole = out[0]
    if whole is None or not isinstance(whole.body, Leaf) or ctx.attr("stash_type", 1) != 1:
        return out
    scale, bias = ctx.array(1), ctx.array(2) if ctx.has(2) else None
    if scale is None or (ctx.has(2) and bias is None):
        return out
    form = _form(ctx, x, k, axis, scale, bias)
    if form is None:
        return out
    # the rule of mapped axes gave the output axes of its own where the operator normalizes
    renamed = dict(zip(x.axes, whole.axes, strict=True))
    with_form(whole.body, rename(form, {a: n for a, n in renamed.items() if a is not n}))
    return out


@rule("GroupNormalization", splits=True)
def group_norm(ctx: Context) -> list[Value | None]:
    """Group by group where each group's channels are of one side; else whole, over the batch.

    Before opset 21 scale and bias have an element per group, from then on per channel.
    """
    x = ctx.input(0)
    exact = x.dtype == ctx.attr("stash_type", TensorProto.FLOAT if ctx.opset >= 21 else x.dtype)
    found = _by_groups(ctx, x) if exact and x.dtype in FROM_32_BITS else None
    return [found] if found is not None else run(ctx, MAPPED["", "GroupNormalization"](ctx))


def _by_groups(ctx: Context, x: Value) -> Value | None:
    """The InstanceNormalization of the groups, scaled and shifted; None where groups have channels of both sides."""
    b, number = ctx.b, int(ctx.attr("num_groups"))
    channels = x.shape[1] if x.rank > 1 else 0
    if not isinstance(channels, int) or channels % number:
        return None
    body = coalesce(b, x.body) if isinstance(x.body, Cat) else x.body
    x = Value(x.groups, body, x.dtype)
    try:
        grouped = regroup(ctx, x, [x.shape[0], number, channels // number, *x.shape[2:]])
    except Decline:
        return None
    if not isinstance(grouped.body, Cat) or grouped.body.axis not in grouped.known[1]:
        return None
    own = ctx.opset >= 21  # a scale for each channel
    ones = from_array(b, np.ones(number), x.dtype), from_array(b, np.zeros(number), x.dtype)
    scale, bias = ones if own else (ctx.input(1), ctx.input(2))
    node = helper.make_node("InstanceNormalization", ["x", "s", "b"], ["y"], epsilon=ctx.attr("epsilon", 1e-5))
    inner = ctx.on(node, [grouped, scale, bias])
    (value,) = run(inner, MAPPED["", node.op_type](inner))
    assert value is not None
    first, group, within, *rest = value.known
    value = Value((first, (*group, *within), *rest), value.body, value.dtype)
    for op, i in (("Mul", 1), ("Add", 2)) if own else ():
        other = ctx.input(i)
        other = Value((other.known[0], *[()] * len(rest)), other.body, other.dtype)
        value = _combined(ctx, op, value, other)
    return value


def _combined(ctx: Context, op: str, x: Value, y: Value) -> Value:
    bodies, groups = align(ctx.b, [x, y])
    order = [a for g in groups for a in g]
    body = zip_bodies(ctx.b, bodies, lambda ls: binary(ctx.b, op, ls[0], ls[1], order), order=order)
    return ctx.value(groups, body, x.dtype)


def _form(
    ctx: Context, x: Value, k: frozenset[Axis], axis: int, scale: np.ndarray, bias: np.ndarray | None
) -> Body | None:
    """The module's formula as a form of the normalized tensor; None where its parts all vary along the same axes.

    k: the normalized axes, which begin at logical ``axis``. scale, bias: constants over these axes.
    """
    b = ctx.b
    body = x.body
    joined = coalesce(b, body, x.axes) if isinstance(body, Cat) else body
    if not isinstance(joined, Cat) or len({axes_of(p.body) - {p.axis} for p in joined.parts}) < 2:
        return None
    epsilon = ctx.attr("epsilon", 1e-5)
    order = [a for a in x.axes if a not in k]
    if ctx.node.op_type != "LayerNormalization":
        square = zip_bodies(b, [joined], lambda ls: binary(b, "Mul", ls[0], ls[0]))
        spread = mean(b, square, k, order)
        centred: Body = joined
    else:
        apart = any(offline(b.time, p.body) for p in joined.parts)
        if not apart:
            joined = _shifted(b, joined, k, order)
        m = mean(b, joined, k, order)
        spread = variance(b, joined, m, k, order)
        if apart:
            centred = _each_shifted(b, joined, m, k, order)
        else:
            centred = Sum((joined, zip_bodies(b, [m], lambda ls: _minus(b, ls[0]))))
    inverse = as_leaf(b, inverse_root(b, spread, epsilon), order)
    weight = Leaf(b.const(scale, x.dtype), tuple(a for g in x.known[axis:] for a in g))
    if any(len(g) != 1 for g in x.known[axis:]) or scale.ndim != x.rank - axis:
        return None
    form: Body = Prod((inverse, drop_uniform_axes(b, weight), centred))
    if bias is not None:
        form = Sum((form, drop_uniform_axes(b, Leaf(b.const(bias, x.dtype), weight.axes))))
    return form


def _shifted(b: Builder, joined: Cat, k: frozenset[Axis], order: list[Axis]) -> Cat:
    """The Cat minus the mean of the user's part: it has the same normalization, and no common offset cancels in the
    product.
    """
    own = min(joined.parts, key=lambda p: len(axes_of(p.body)))
    inner = k - {joined.axis} | (frozenset({own.axis}) if own.axis is not None else frozenset())
    offset = mean(b, own.body, inner, order)
    parts = []
    for p in joined.parts:
        body = zip_bodies(b, [p.body, offset], lambda ls: binary(b, "Sub", ls[0], ls[1], order))
        parts.append(p.with_body(body))
    return Cat(joined.axis, tuple(parts), True)


def _each_shifted(b: Builder, joined: Cat, m: Body, k: frozenset[Axis], order: list[Axis]) -> Body:
    """The Cat minus ``m``, each part as its deviations from its own mean, plus that mean minus m: no common offset
    cancels in the product, and what is the items' own does not depend on the user.
    """
    own: list[Part] = []
    between: list[Part] = []
    for p in joined.parts:
        inner = k - {joined.axis} | (frozenset({p.axis}) if p.axis is not None else frozenset())
        offset = mean(b, p.body, inner, order)
        for parts, pair in ((own, [p.body, offset]), (between, [offset, m])):
            parts.append(p.with_body(zip_bodies(b, pair, lambda ls: binary(b, "Sub", ls[0], ls[1], order))))
    return Sum((Cat(joined.axis, tuple(own), True), Cat(joined.axis, tuple(between), True)))


def _minus(b: Builder, leaf: Leaf) -> Leaf:
    return Leaf(emit.unary(b, "Neg", leaf.tensor), leaf.axes)


def variance(b: Builder, body: Body, m: Body, k: frozenset[Axis], order: list[Axis]) -> Body:
    """The population variance over ``k``, part by part (Chan); ``m`` is the mean over all parts.

    Refuses a dynamic dimension.
    """
    size = product(a.size for a in k)
    if not isinstance(size, int):
        raise Decline("it normalizes over a dynamic dimension")
    total = _deviations(b, body, m, k, order)
    (leaf,) = [as_leaf(b, total, order)]
    return multiply(b, total, Leaf(b.const(1.0 / size, leaf.tensor.dtype), ()), order)


def _deviations(b: Builder, body: Body, m: Body, k: frozenset[Axis], order: list[Axis]) -> Body:
    """The sum over ``k`` of squared deviations from the mean ``m``, part by part: ``M_p + n_p (m_p - m)^2`` for
    each.
    """
    if isinstance(body, Cat) and body.axis in k:
        sums = []
        for p in body.parts:
            inner = k - {body.axis} | ({p.axis} if p.axis else frozenset())
            sums.append(_deviations(b, p.body, m, inner, order))
        return add(b, sums, order)
    own = mean(b, body, k, order)
    n = product(a.size for a in k)
    assert isinstance(n, int)

    def square(ls: list[Leaf]) -> Leaf:
        d = binary(b, "Sub", ls[0], ls[1], order)
        return binary(b, "Mul", d, d, order)

    inside = reduce_sum(b, zip_bodies(b, [body, own], square), k, order)
    between = zip_bodies(b, [own, m], square, order=order)
    scaled = multiply(b, between, Leaf(b.const(float(n), _leaf(between).tensor.dtype), ()), order)
    return add(b, [inside, scaled], order)


def _leaf(body: Body) -> Leaf:
    while isinstance(body, Cat):
        body = body.parts[0].body
    assert isinstance(body, Leaf)
    return body


def inverse_root(b: Builder, body: Body, epsilon: float) -> Body:
    """1 / sqrt(body + epsilon)."""
    def visit(ls: list[Leaf]) -> Leaf:
        t = ls[0].tensor
        shifted = emit.binary(b, "Add", t, b.const(epsilon, t.dtype))
        return Leaf(emit.unary(b, "Reciprocal", emit.unary(b, "Sqrt", shifted)), ls[0].axes)

    return zip_bodies(b, [body], visit)
