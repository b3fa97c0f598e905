"""The standard's Attention (opset 23), written as the operators of its definition where that saves work.

    Y = P V,  P = softmax(cap(s Q Kᵀ) masked),  Y = 0 where all keys of a query are masked

Heads are an axis ([B, T, H D] is [B, H, T, D]). A head of K and V that several heads of Q share is broadcast. A cache
is `[past | K]`, a causal mask is j <= i + past, a boolean mask is Where(mask, scores, -inf), and a float mask is added.
The rules of these operators then split scores and softmax into blocks.

That saves work where Q, K, V, the cache or the mask depend on different inputs: the user's history under the
candidate's query, or tokens `[user | item]` of which the user's do not see the item's. Where all depend on the same
inputs, or little is saved, the operator stays whole, over the batch, because a runtime computes it in one kernel.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from mari_onnx.engine.analysis.intervals import span
from mari_onnx.engine.batching import Through, run
from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.engine.ir.value import Body, Cat, Decline, Leaf, Value, axes_of
from mari_onnx.engine.rule import Context, Steps, constant, lowered, rule
from mari_onnx.model.dims import Size, product
from mari_onnx.model.tensors import FLOATS, FROM_32_BITS

Q, K, V, MASK, PAST_K, PAST_V, VALID = range(7)
"""Indices of the inputs."""


@rule("Attention", splits=True)
def attention(ctx: Context) -> list[Value | None]:
    """softmax(s Q Kᵀ + mask) V, by the operators of its definition where that saves work, else whole over the batch.

    Refuses, where they do: scores as an output, lengths of the keys as an input, windows, a mask that is not known to
    be as long as the keys, heads or widths that are not known, a causal mask behind a cache of dynamic length or on top
    of a mask that is one for all queries.
    """
    if not _gains(ctx):
        return _whole(ctx)
    with lowered(ctx) as step:
        found = _parts(ctx, step)
    return found or _whole(ctx)


# ---- the operator itself -------------------------------------------------------------------------------------------


def _whole(ctx: Context) -> list[Value | None]:
    """The operator itself, over the batch. A mask has the batch axis if it has four dimensions and more than one
    row.
    """
    batch = [0 if i != MASK or _has_batch(ctx) else None for i in range(len(ctx.inputs))]
    return run(ctx, [Through(tuple(batch), (0,) * len(ctx.node.output))])


def _has_batch(ctx: Context) -> bool:
    mask = ctx.inputs[MASK]
    return mask is not None and mask.groups is not None and mask.rank == 4 and mask.shape[0] != 1


def _gains(ctx: Context) -> bool:
    """Whether some inputs, or parts of one, lack the batch axis or parts of it that others have. A mask alone saves
    nothing.
    """
    kinds = {s for i in (Q, K, V, PAST_K, PAST_V) if ctx.has(i) for s in batches(ctx.input(i))}
    masks = batches(ctx.input(MASK)) if ctx.has(MASK) and _has_batch(ctx) else set()
    return len(kinds) > 1 or not masks <= kinds | {1}


def batches(value: Value) -> set[Size | None]:
    """For each part of a Value, how much of the batch it varies along: that size, or None where the batch itself is
    in parts.
    """
    group = frozenset(value.known[0])

    def of(body: Body) -> set[Size | None]:
        if isinstance(body, Leaf):
            return {product(a.size for a in group if a in body.axes)}
        if not isinstance(body, Cat) or body.axis in group:
            return {None}
        return {s for p in body.parts for s in of(p.body)}

    return of(value.body)


# ---- its parts -----------------------------------------------------------------------------------------------------


def _parts(ctx: Context, step: Steps) -> list[Value | None] | None:
    """The outputs by the definition's operators; None where these are not cheaper."""
    dtype = ctx.input(Q).dtype
    outputs = list(ctx.node.output) + [""] * (4 - len(ctx.node.output))
    if dtype not in FLOATS or any(ctx.input(i).dtype != dtype for i in (K, V)):
        raise Decline("Q, K and V are not of one float type")
    if outputs[3] or ctx.has(VALID) or ctx.has(PAST_K) != ctx.has(PAST_V):
        raise Decline("it outputs the scores, or takes the lengths of the keys")
    if max(ctx.attr("left_window_size", -1), ctx.attr("right_window_size", -1)) >= 0:
        raise Decline("it attends only to a window of the keys")
    flat = ctx.input(Q).rank == 3
    q, k, v = _heads(ctx, step)
    past: Size = 0
    if ctx.has(PAST_K):
        past = ctx.input(PAST_K).shape[2]
        k, v = (step("Concat", ctx.input(i), x, axis=2) for i, x in ((PAST_K, k), (PAST_V, v)))
    present, parts = (k, v), (q, k, v)
    heads, groups, width, keys = q.shape[1], k.shape[1], q.shape[3], k.shape[2]
    if not (isinstance(heads, int) and isinstance(groups, int) and isinstance(width, int)):
        raise Decline("the number of heads or their width is not a constant")
    if v.shape[1] != groups or heads % groups:
        raise Decline("the heads of Q are no multiple of those of K and V")
    if heads != groups:
        # [B, G, H / G, T, D]: the heads that share one of K and V are neighbours
        q = step("Reshape", q, step.ints(0, groups, heads // groups, -1, width))
        k, v = (step("Unsqueeze", x, step.ints(2)) for x in (k, v))
    k_transposed = step("Transpose", k, perm=[*range(k.rank - 2), k.rank - 1, k.rank - 2])
    scores = step("MatMul", *_scaled(ctx, step, q, k_transposed, width))
    if heads != groups:
        scores = _shaped(step, scores, heads)
    cap = ctx.attr("softcap", 0.0)
    if cap > 0:
        scores = step("Mul", step("Tanh", step("Div", scores, step.const(cap, dtype))), step.const(cap, dtype))
    scores, dead = _masked(ctx, step, scores, keys, past)
    precision = ctx.attr("softmax_precision", 0) or dtype
    if precision != dtype:
        scores = step("Cast", scores, to=precision)
    weights = step("Softmax", scores, axis=-1)
    if precision != dtype:
        weights = step("Cast", weights, to=dtype)
    if heads != groups:
        weights = _shaped(step, weights, groups, heads // groups)
    y = step("MatMul", weights, v)
    if heads != groups:
        y = _shaped(step, y, heads)
    if dead is not None:
        y = step("Where", dead, step.const(0.0, dtype), y)
    if not _pays(ctx.b.time, *parts, y, ctx.b.time.masked if ctx.has(MASK) else ctx.b.time.element_of("Softmax")):
        return None
    if flat:
        y = step("Reshape", step("Transpose", y, perm=[0, 2, 1, 3]), step.ints(0, 0, -1))
    found = [y, *present, None]
    return [value if name else None for name, value in zip(ctx.node.output, found, strict=False)]


def _pays(time: TimeModel, q: Value, k: Value, v: Value, y: Value, each: float) -> bool:
    """Whether the definition's operators are cheaper than the kernel on written-out inputs.

    They are where an operand lacks the batch, or rows of the result do. Otherwise the kernel copies K and V for each
    candidate, and the operators copy the scores; user rows may still take their softmax by blocks.
    """
    rows, columns = batches(q), batches(k) | batches(v)
    if len(batches(y)) > 1 or (len(rows) == len(columns) == 1 and rows != columns):
        return True
    queries, keys, width = q.shape[2], k.shape[2], q.shape[3]
    if not (isinstance(queries, int) and isinstance(keys, int) and isinstance(width, int)):
        return True
    rest = keys - _without(k)
    blocks = max(0.0, (each + time.element / 2) * keys - time.spread * (2 * width + rest))
    return _without(q) * blocks + 2 * keys * width * time.element > queries * keys * time.element


def _without(value: Value) -> int:
    """The number of positions along axis 2 in parts that do not have all axes of the batch."""
    body, group = value.body, frozenset(value.known[0])
    if not isinstance(body, Cat) or (body.axis,) != value.known[2]:
        return 0
    return sum(len(p.positions) for p in body.parts if not group <= axes_of(p.body))


def _heads(ctx: Context, step: Steps) -> list[Value]:
    """Q, K and V as [B, H, T, D]."""
    found = []
    for i, name in ((Q, "q_num_heads"), (K, "kv_num_heads"), (V, "kv_num_heads")):
        value = ctx.input(i)
        if value.rank == 3:
            heads, width = ctx.attr(name, 0), value.shape[2]
            if not heads or not isinstance(width, int) or width % heads:
                raise Decline("the number of heads is not known, or does not divide the width")
            value = step("Reshape", value, step.ints(0, 0, heads, width // heads))
            value = step("Transpose", value, perm=[0, 2, 1, 3])
        found.append(value)
    if {v.rank for v in found} != {4}:
        raise Decline("some of Q, K and V have three dimensions and some four")
    return found


def _shaped(step: Steps, x: Value, *heads: int) -> Value:
    """x as [B, .., T, D], with these axes of heads between."""
    last = step("Shape", x, start=x.rank - 2)
    return step("Reshape", x, step("Concat", step.ints(0, *heads), last, axis=0))


def _scaled(ctx: Context, step: Steps, q: Value, k_transposed: Value, width: int) -> tuple[Value, Value]:
    """Q and K for the scores, with the scale on Q. In types narrower than 32 bits each has its root, to avoid overflow.

    Refuses a negative scale.
    """
    scale = ctx.attr("scale")
    scale = 1 / math.sqrt(width) if scale is None else scale
    if scale < 0:
        raise Decline("its scale is negative")
    if q.dtype in FROM_32_BITS:
        return (step("Mul", q, step.const(scale, q.dtype)) if scale != 1 else q), k_transposed
    half = step.const(math.sqrt(scale), q.dtype)
    return step("Mul", q, half), step("Mul", k_transposed, half)


# ---- masks ---------------------------------------------------------------------------------------------------------


def _masked(ctx: Context, step: Steps, scores: Value, keys: Size, past: Size) -> tuple[Value, Value | None]:
    """The scores with -inf at masked keys, and which queries see no key at all; None for that where each sees one."""
    b, dtype = ctx.b, scores.dtype
    low = step.const(-np.inf, dtype)
    if ctx.attr("is_causal", 0) and past != 0:
        raise Decline("it has a causal mask and a cache, and runtimes disagree on that")
    seen = causal(step, scores) if ctx.attr("is_causal", 0) else None
    if not ctx.has(MASK):
        # every query sees the first key
        return (scores if seen is None else step("Where", seen, scores, low)), None
    mask = ctx.input(MASK)
    if not 2 <= mask.rank <= 4 or not b.same(mask.shape[-1], keys):
        raise Decline("nothing shows that the mask is as long as the keys")
    if seen is not None and not b.same(mask.shape[-2], scores.shape[-2]):
        raise Decline("it has a causal mask beside one without a query axis, and runtimes disagree on that")
    if mask.dtype == TensorProto.BOOL:
        if seen is not None:
            mask = step("And", mask, seen)
        scores = step("Where", mask, scores, low)
        bias = step("Where", mask, step.const(0.0, dtype), low)
    elif mask.dtype != dtype:
        raise Decline("the mask is neither boolean nor of the type of the scores")
    else:
        scores, bias = step("Add", scores, mask), mask
        if seen is not None:
            scores, bias = step("Where", seen, scores, low), step("Where", seen, bias, low)
    top = step("ReduceMax", bias, step.ints(-1), keepdims=1)
    known = constant(b, top)
    if known is not None and not np.isneginf(known.astype(np.float64)).any():
        return scores, None
    if isinstance(top.body, Leaf) and np.all(span(top.body.tensor)[0] > -np.inf):
        return scores, None
    return scores, step("Equal", top, low)


def causal(step: Steps, scores: Value) -> Value:
    """The mask j <= i, of shape [queries, keys]."""
    zero, one = step.const(0), step.const(1)
    size = [step("Squeeze", step("Shape", scores, start=2 + d, end=3 + d)) for d in (0, 1)]
    i, j = (step("Range", zero, s, one) for s in size)
    return step("LessOrEqual", j, step("Unsqueeze", i, step.ints(1)))


