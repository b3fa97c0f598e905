"""MatMul, Gemm, Einsum and Convs of width 1: all are contractions of two operands over named axes.

    MatMul    sum_k A[.., m, k] B[.., k, n]
    Gemm      alpha * A' B' + beta * C, with A' and B' transposed or not
    Einsum    sum over the letters that the output lacks
    Conv 1x1  sum_c W[f, c] X[n, c, ..]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mari_onnx.engine.algebra.contract import contract
from mari_onnx.engine.algebra.reduce import reduce_sum
from mari_onnx.engine.algebra.sums import add, multiply, scaled
from mari_onnx.engine.axes.align import align
from mari_onnx.engine.axes.blockwise import zip_bodies
from mari_onnx.engine.batching import Through, run
from mari_onnx.engine.ir.value import Axis, Body, Decline, Group, Value, axes_of, fresh
from mari_onnx.engine.rule import Context, from_array, rule
from mari_onnx.engine.rules.dequantized import on_integers
from mari_onnx.engine.rules.slices import positions
from mari_onnx.model.tensors import FLOATS


@rule("MatMul", splits=True)
def matmul(ctx: Context) -> Sequence[Value | None]:
    """The sum over k of A[.., m, k] B[.., k, n], block by block of k; the batch axes broadcast.

    Refuses integers, which wrap around or saturate, and scalars, which MatMul does not take.
    """
    return on_integers(ctx, _matmul)


def _matmul(ctx: Context) -> list[Value]:
    x, y = ctx.input(0), fresh(ctx.input(1))
    if x.dtype not in FLOATS:
        raise Decline("it multiplies integers")
    if x.rank == 0 or y.rank == 0:
        raise Decline("an operand is a scalar")
    m: Group = x.known[-2] if x.rank > 1 else ()
    n: Group = y.known[-1] if y.rank > 1 else ()
    kx, ky = x.known[-1], y.known[-2] if y.rank > 1 else y.known[-1]
    left = Value((*x.known[:-2], kx), x.body, x.dtype)
    right = Value((*y.known[:-2], ky), y.body, y.dtype)
    (bx, by), groups = align(ctx.b, [left, right])
    batch, k = groups[:-1], frozenset(groups[-1])
    out = [*batch, *([m] if x.rank > 1 else []), *([n] if y.rank > 1 else [])]
    return [contracted(ctx, bx, by, k, out, x.dtype)]


def contracted(ctx: Context, x: Body, y: Body, k: frozenset[Axis], groups: list[Group], dtype: int) -> Value:
    """The contraction over ``k`` as a Value; axes of k that neither operand has multiply the result by their length."""
    order = [a for g in groups for a in g]
    has = axes_of(x) | axes_of(y)
    lost = k - has
    if lost:
        x = reduce_sum(ctx.b, x, lost)
    if not k & has:
        return ctx.value(groups, multiply(ctx.b, x, y, order), dtype)
    return ctx.value(groups, contract(ctx.b, x, y, k & has, order), dtype)


@rule("Gemm", splits=True)
def gemm(ctx: Context) -> Sequence[Value | None]:
    """``(alpha A') B' + (beta C)``, where C is added to the terms that vary along the fewest axes. Refuses integers."""
    return on_integers(ctx, _gemm)


def _gemm(ctx: Context) -> list[Value]:
    x, y = ctx.input(0), fresh(ctx.input(1))
    if x.dtype not in FLOATS:
        raise Decline("it multiplies integers")
    gx = x.known[::-1] if ctx.attr("transA", 0) else x.known
    gy = y.known[::-1] if ctx.attr("transB", 0) else y.known
    (bx, by), groups = align(ctx.b, [Value((gx[1],), x.body, x.dtype), Value((gy[0],), y.body, y.dtype)])
    out = [gx[0], gy[1]]
    product = contracted(ctx, bx, by, frozenset(groups[0]), out, x.dtype)
    body = _scale(ctx, product.body, ctx.attr("alpha", 1.0))
    value = ctx.value(out, body, x.dtype)
    if not ctx.has(2):
        return [value]
    bias = fresh(ctx.input(2))
    beta = ctx.attr("beta", 1.0)
    if beta == 0:
        return [value]
    (bv, bc), groups = align(ctx.b, [value, Value(bias.groups, _scale(ctx, bias.body, beta), bias.dtype)])
    order = [a for g in groups for a in g]
    return [ctx.value(groups, add(ctx.b, [bv, bc], order), x.dtype)]


def _scale(ctx: Context, body: Body, factor: float) -> Body:
    if factor == 1:
        return body
    return zip_bodies(ctx.b, [body], lambda ls: scaled(ctx.b, ls[0], factor))


@rule("Einsum", splits=True)
def einsum(ctx: Context) -> list[Value]:
    """Any number of operands, two at a time, those first whose product is smallest. Of a letter that an operand has
    twice the diagonal is taken; an ellipsis is aligned as numpy does.

    Refuses integers, and the diagonal of a dynamic dimension.
    """
    equation = str(ctx.attr("equation")).replace(" ", "")
    values = [ctx.input(0)] + [fresh(ctx.input(i)) for i in range(1, len(ctx.inputs))]
    if values[0].dtype not in FLOATS:
        raise Decline("the Einsum multiplies integers")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    letters = [_letters(t, v.rank) for t, v in zip(terms, values, strict=True)]
    for i, ls in enumerate(letters):
        letters[i], values[i] = _diagonals(ctx, ls, values[i])
    spread = sorted({c for ls in letters for c in ls if len(c) > 1}, key=lambda c: -int(c[1:]))
    if arrow:
        out = [c for part in _tokens(right) for c in (spread if part == "..." else [part])]
    else:
        flat = [c for ls in letters for c in ls]
        out = spread + sorted(c for c in set(flat) if len(c) == 1 and flat.count(c) == 1)
    names = list(dict.fromkeys(c for ls in letters for c in ls))
    shaped = []
    for ls, value in zip(letters, values, strict=True):
        at = dict(zip(ls, value.known, strict=True))
        shaped.append(Value(tuple(at.get(c, ()) for c in names), value.body, value.dtype))
    bodies, groups = align(ctx.b, shaped)
    where = dict(zip(names, groups, strict=True))
    result = [where[c] for c in out]
    order = [a for g in result for a in g]
    k = frozenset(a for c in names if c not in out for a in where[c])
    if len(bodies) == 1:
        return [ctx.value(result, reduce_sum(ctx.b, bodies[0], k, order), values[0].dtype)]
    operands = [(body, set(ls)) for body, ls in zip(bodies, letters, strict=True)]
    while len(operands) > 2:
        operands = _joined(ctx, operands, where, set(out), values[0].dtype)
    k = frozenset(a for c in operands[0][1] | operands[1][1] if c not in out for a in where[c])
    return [contracted(ctx, operands[0][0], operands[1][0], k, result, values[0].dtype)]


def _joined(
    ctx: Context, operands: list[tuple[Body, set[str]]], where: dict[str, Group], out: set[str], dtype: int
) -> list[tuple[Body, set[str]]]:
    """The operands of an Einsum with the two that are cheapest to multiply as one; each with its letters.

    A letter that neither the result nor another operand has is summed over.
    """

    def price(i: int, j: int) -> float:
        return ctx.b.time.volume(axes_of(operands[i][0]) | axes_of(operands[j][0]))

    pairs = [(i, j) for j in range(len(operands)) for i in range(j)]
    i, j = min(pairs, key=lambda pair: price(*pair))
    (x, left), (y, right) = operands[i], operands[j]
    rest = [operand for at, operand in enumerate(operands) if at not in (i, j)]
    kept = (left | right) & out.union(*(ls for _, ls in rest))
    k = frozenset(a for c in (left | right) - kept for a in where[c])
    groups = [where[c] for c in where if c in kept]
    return [(contracted(ctx, x, y, k, groups, dtype).body, kept), *rest]


def _diagonals(ctx: Context, letters: list[str], value: Value) -> tuple[list[str], Value]:
    """An operand without letters that it has twice: ``x[i, i]`` is every ``n + 1``-th position of both axes as one."""
    for c in dict.fromkeys(letters):
        while letters.count(c) > 1:
            at, other = [i for i, each in enumerate(letters) if each == c][:2]
            size = value.shape[at]
            if not isinstance(size, int) or value.shape[other] != size:
                raise Decline("the Einsum takes the diagonal of a dynamic dimension")
            groups = list(value.known)
            groups[at] += groups.pop(other)
            letters = [*letters[:other], *letters[other + 1 :]]
            both = ctx.value(groups, value.body, value.dtype)
            value = positions(ctx, both, at, [i * (size + 1) for i in range(size)])
    return letters, value


def _tokens(term: str) -> list[str]:
    out, i = [], 0
    while i < len(term):
        step = 3 if term.startswith("...", i) else 1
        out.append(term[i : i + step])
        i += step
    return out


def _letters(term: str, rank: int) -> list[str]:
    """One name per axis; the axes of an ellipsis are named "." and their number counted from the right."""
    tokens = _tokens(term)
    wide = rank - (len(tokens) - 1)
    out: list[str] = []
    for token in tokens:
        out += [f".{wide - 1 - i}" for i in range(wide)] if token == "..." else [token]
    if len(out) != rank:
        raise Decline("the equation does not fit the operand's rank")
    return out


def pointwise(ctx: Context) -> list[Value | None]:
    """A Conv whose kernel is one element wide, undilated and unpadded, is a product over the channels.

    With groups or computed weights it stays a Conv, and each of its positions is computed by itself. Refuses a bias
    that is computed.
    """
    x = ctx.input(0)
    weight = ctx.array(1)
    ones = ctx.input(1).groups is not None and all(s == 1 for s in ctx.input(1).shape[2:])
    plain = all(p == 0 for p in ctx.attr("pads", [0])) and all(s == 1 for s in ctx.attr("strides", [1]))
    if weight is None or not ones or not plain or ctx.attr("group", 1) != 1:
        axes = [0, *(range(2, x.rank) if ones and plain else ())]
        return run(ctx, [Through((a, *([None] * (len(ctx.inputs) - 1))), (a,)) for a in axes])
    w = from_array(ctx.b, np.ascontiguousarray(weight.reshape(weight.shape[:2])), x.dtype)
    (bx, bw), groups = align(
        ctx.b, [Value((x.known[1],), x.body, x.dtype), Value((w.known[1],), w.body, x.dtype)]
    )
    out = [x.known[0], w.known[0], *x.known[2:]]
    value = contracted(ctx, bx, bw, frozenset(groups[0]), out, x.dtype)
    bias = ctx.array(2)
    if bias is None:
        if ctx.has(2):
            raise Decline("the bias is not constant")
        return [value]
    shift = from_array(ctx.b, bias.reshape(-1, *([1] * (x.rank - 2))), x.dtype)
    (bv, bs), groups = align(ctx.b, [value, shift])
    return [ctx.value(groups, add(ctx.b, [bv, bs], [a for g in groups for a in g]), x.dtype)]
