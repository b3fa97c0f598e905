"""Normalizations over a Cat or a broadcast: statistics by parts, and a form that later products open.

Chan's parallel formula: with n_p, m_p and M_p the length, mean and sum of squared deviations of part p,

    m = sum n_p m_p / n         M = sum M_p + n_p (m_p - m)^2         s = sqrt(M / n + eps)

    LayerNorm [u|x] = ([u|x] - m) / s * g + c,      so     LayerNorm([u|x]) W = (u G_u + x G_x - m 1G) / s + c W

with G = diag(g) W: the user's product and statistics once a request. RMSNorm is the same without m; L2 normalization
is a sum of squares by parts. The tensor itself, where something else asks for it, is the plain operator.

Softmax over a row of blocks [a_1 | a_2]: blocks of constant -inf take no part (their weights are exactly 0). Otherwise

    P_p = exp(a_p - m_p),  l_p = sum P_p,  m = max m_p,  g_p = exp(m_p - m) / sum_q l_q exp(m_q - m)

and the weights of block p are g_p P_p: where a_p is the user's alone, P_p and its product with the values are too.
"""

from __future__ import annotations

import numpy as np

from mari_onnx.engine import emit
from mari_onnx.engine.algebra import add, binary, multiply, reduce_sum, thin
from mari_onnx.engine.blocks import Decline, as_block, as_leaf, neat, opened, rename, take, with_form, zip_bodies
from mari_onnx.engine.builder import Builder
from mari_onnx.engine.context import Context, normal, rule
from mari_onnx.engine.rules.mapped import MAPPED, run
from mari_onnx.engine.rules.reduce import extreme, mean, unary
from mari_onnx.engine.value import Axis, Body, Cat, Leaf, Part, Prod, Sum, Value, axes_of, is_const
from mari_onnx.engine.weigh import volume
from mari_onnx.model.dims import product


@rule("LayerNormalization", "RMSNormalization")
def layer_norm(ctx: Context) -> list[Value | None]:
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


def _form(
    ctx: Context, x: Value, k: frozenset[Axis], axis: int, scale: np.ndarray, bias: np.ndarray | None
) -> Body | None:
    b = ctx.b
    body = x.body
    tidy = neat(b, body, x.axes) if isinstance(body, Cat) else body
    if not isinstance(tidy, Cat) or len({axes_of(p.body) - {p.sub} for p in tidy.parts}) < 2:
        return None
    epsilon = ctx.attr("epsilon", 1e-5)
    order = [a for a in x.axes if a not in k]
    if ctx.node.op_type == "RMSNormalization":
        square = zip_bodies(b, [tidy], lambda ls: binary(b, "Mul", ls[0], ls[0]))
        spread = mean(b, square, k, order)
        centred: Body = tidy
    else:
        m = mean(b, tidy, k, order)
        spread = variance(b, tidy, m, k, order)
        centred = Sum((tidy, zip_bodies(b, [m], lambda ls: _minus(b, ls[0]))))
    inverse = as_leaf(b, inverse_root(b, spread, epsilon), order)
    weight = Leaf(b.const(scale, x.dtype), tuple(a for g in x.known[axis:] for a in g))
    if any(len(g) != 1 for g in x.known[axis:]) or scale.ndim != x.rank - axis:
        return None
    form: Body = Prod((inverse, thin(b, weight), centred))
    if bias is not None:
        form = Sum((form, thin(b, Leaf(b.const(bias, x.dtype), weight.axes))))
    return form


def _minus(b: Builder, leaf: Leaf) -> Leaf:
    return Leaf(emit.unary(b, "Neg", leaf.tensor), leaf.axes)


def variance(b: Builder, body: Body, m: Body, k: frozenset[Axis], order: list[Axis]) -> Body:
    """The population variance over ``k``, by parts (Chan); ``m`` is the mean of the whole."""
    size = product(a.size for a in k)
    if not isinstance(size, int):
        raise Decline("a normalization over a dynamic dimension")
    total = _deviations(b, body, m, k, order)
    (leaf,) = [as_leaf(b, total, order)]
    return multiply(b, total, Leaf(b.const(1.0 / size, leaf.tensor.dtype), ()), order)


def _deviations(b: Builder, body: Body, m: Body, k: frozenset[Axis], order: list[Axis]) -> Body:
    if isinstance(body, Cat) and body.axis in k:
        sums = []
        for p in body.parts:
            inner = k - {body.axis} | ({p.sub} if p.sub else frozenset())
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
    def visit(ls: list[Leaf]) -> Leaf:
        t = ls[0].tensor
        shifted = emit.binary(b, "Add", t, b.const(epsilon, t.dtype))
        return Leaf(emit.unary(b, "Reciprocal", emit.unary(b, "Sqrt", shifted)), ls[0].axes)

    return zip_bodies(b, [body], visit)


# ---- softmax -------------------------------------------------------------------------------------------------------


@rule("Softmax")
def softmax(ctx: Context) -> list[Value | None]:
    x = ctx.input(0)
    if ctx.opset < 13:
        axis = normal(ctx.attr("axis", 1), x.rank)
        if axis != x.rank - 1:
            return run(ctx, MAPPED["", "Softmax"](ctx))
    axis = normal(ctx.attr("axis", -1), x.rank)
    if len(x.known[axis]) != 1:
        return run(ctx, MAPPED["", "Softmax"](ctx))
    (k,) = x.known[axis]
    order = list(x.axes)
    body = _rows(ctx.b, x.body, k, order)
    return [ctx.value(x.known, body, x.dtype)]


def _rows(b: Builder, body: Body, k: Axis, order: list[Axis]) -> Body:
    """Softmax along ``k``: row blocks apart, then the blocks within a row."""
    if isinstance(body, Cat):
        tidy = neat(b, body, order)
        if not isinstance(tidy, Cat):
            return _rows(b, tidy, k, order)
        if len(tidy.parts) == 1 and tidy.axis is k and tidy.parts[0].sub is not None:
            (p,) = tidy.parts
            inner = [p.sub if a is k else a for a in order if a is not None]
            return Cat(k, (Part(p.at, p.sub, _rows(b, p.body, p.sub, inner)),), True)  # type: ignore[arg-type]
        if tidy.axis is not k:
            parts = []
            for p in tidy.parts:
                inner = [a for a in (p.sub if a is tidy.axis else a for a in order) if a is not None]
                parts.append(Part(p.at, p.sub, _rows(b, p.body, k, inner)))
            return Cat(tidy.axis, tuple(parts), True)
        return _row(b, tidy, order)
    assert isinstance(body, Leaf)
    return _plain(b, body, k)


def _plain(b: Builder, leaf: Leaf, k: Axis) -> Leaf:
    """Softmax of one tensor, in the layout it has."""
    if k not in leaf.axes:
        if not isinstance(k.size, int):
            raise Decline("softmax along a dynamic axis on which nothing varies")
        return Leaf(b.const(1.0 / k.size, leaf.tensor.dtype), ())
    at = leaf.axes.index(k)
    tensor, axes = leaf.tensor, leaf.axes
    if at != len(axes) - 1:
        perm = [i for i in range(len(axes)) if i != at] + [at]
        tensor = emit.transpose(b, tensor, perm)
        axes = tuple(axes[i] for i in perm)
    return Leaf(b.emit("Softmax", [tensor], tensor.shape, attrs={"axis": len(axes) - 1}), axes)


def _row(b: Builder, cat: Cat, order: list[Axis]) -> Body:
    """Softmax along the Cat's own axis."""
    dead = [p for p in cat.parts if isinstance(p.body, Leaf) and _minus_infinity(b, p.body)]
    live = [p for p in cat.parts if p not in dead]
    zero = None
    if dead and live:
        zero = Leaf(b.const(0, _leaf(live[0].body).tensor.dtype), ())
        if len(live) == 1:
            part = live[0]
            if part.sub is None:
                return Cat(cat.axis, (Part(part.at, None, Leaf(b.const(1, zero.tensor.dtype), ())), *_zeros(dead, zero)))
            inner = [a for a in (part.sub if a is cat.axis else a for a in order)]
            return Cat(cat.axis, (Part(part.at, part.sub, _rows(b, part.body, part.sub, inner)), *_zeros(dead, zero)))
        size = sum(len(p.at) for p in live)
        sub = Axis(size)
        places = sorted(q for p in live for q in p.at)
        index = {q: i for i, q in enumerate(places)}
        rest = Cat(sub, tuple(Part(tuple(index[q] for q in p.at), p.sub, p.body) for p in live))
        inner = [sub if a is cat.axis else a for a in order]
        return Cat(cat.axis, (Part(tuple(places), sub, _row(b, rest, inner)), *_zeros(dead, zero)))
    if any(isinstance(p.body, Cat) for p in cat.parts):
        other = next(p.body.axis for p in cat.parts if isinstance(p.body, Cat))
        if all(p.sub is not other for p in cat.parts):
            return _turned(b, cat, other, order)
    block = as_block(b, cat, order)
    (part,) = block.parts
    assert isinstance(part.body, Leaf) and part.sub is not None
    whole = _plain(b, part.body, part.sub)
    full = axes_of(whole) - {part.sub}
    if any(axes_of(p.body) - {p.sub} != full for p in cat.parts):
        places = [p.at for p in cat.parts]
        starts = [sum(len(at) for at in places[:i]) for i in range(len(places))]
        laid = [
            Part(tuple(range(i, i + len(p.at))), p.sub, p.body) for i, p in zip(starts, cat.parts, strict=True)
        ]
        form = _blocks(b, Cat(part.sub, tuple(laid), True), [part.sub if a is cat.axis else a for a in order])
        if form is not None:
            whole = with_form(whole, form)
    if part.at == tuple(range(len(part.at))):
        return rename(whole, {part.sub: cat.axis})
    return Cat(cat.axis, (Part(part.at, part.sub, whole),), True)


def _zeros(dead: list[Part], zero: Leaf) -> list[Part]:
    return [Part(p.at, p.sub, zero) for p in dead]


def _minus_infinity(b: Builder, leaf: Leaf) -> bool:
    if not leaf.tensor.const:
        return False
    leaf = thin(b, leaf)
    return not axes_of(leaf) and leaf.tensor.scalar is not None and bool(leaf.tensor.scalar == -np.inf)


def _turned(b: Builder, cat: Cat, other: Axis, order: list[Axis]) -> Body:
    """The grid with its rows outside: a row's softmax must see all of its columns."""
    cells: dict[tuple[int, ...], list[int]] = {}
    owners: dict[int, list[int]] = {}
    for p in cat.parts:
        if isinstance(p.body, Cat) and p.body.axis is other:
            for i, q in enumerate(p.body.parts):
                for place in q.at:
                    owners.setdefault(place, []).append(i)
    for place, key in sorted(owners.items()):
        cells.setdefault(tuple(key), []).append(place)
    parts = []
    for at in cells.values():
        sub = Axis(len(at)) if len(at) > 1 else None
        row = take(b, cat, other, at, sub)
        inner = [a for a in (sub if a is other else a for a in order) if a is not None]
        row = opened(row) if isinstance(row, Cat) else row
        parts.append(Part(tuple(at), sub, _rows(b, row, cat.axis, inner)))
    return Cat(other, tuple(parts))


def _blocks(b: Builder, cat: Cat, order: list[Axis]) -> Body | None:
    """The weights block by block, as factors; None where no block saves anything."""
    parts = [p for p in cat.parts if p.sub is not None]
    if len(parts) != len(cat.parts) and any(not isinstance(p.body, Leaf) for p in cat.parts):
        return None
    if any(is_const(p.body) for p in cat.parts):
        return None
    outside = [a for a in order if a is not cat.axis]
    tops, sums, weights = [], [], []
    for p in cat.parts:
        inner = frozenset({p.sub} if p.sub is not None and p.sub in axes_of(p.body) else ())
        top = extreme(b, "Max", p.body, inner)
        shifted = zip_bodies(b, [p.body, top], lambda ls: binary(b, "Sub", ls[0], ls[1], order), order=order)
        weight = unary(b, "Exp", shifted)
        tops.append(top)
        weights.append(weight)
        count = frozenset({p.sub}) if p.sub is not None else frozenset()
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
        out.append(Part(p.at, p.sub, Prod((as_leaf(b, share, outside), as_leaf(b, weight, order)))))
    return Cat(cat.axis, tuple(out))


__all__ = ["volume"]
