"""Attention as onnxruntime's optimizer fuses it (com.microsoft), written as the operators that it stands for.

    Attention            Q, K, V = x W_q + b_q, ..;  softmax(s Q Kᵀ + mask + bias) V over heads
    MultiHeadAttention   the same of Q, K and V as inputs, each plus its part of the bias

A key whose mask is 0, or that lies beyond the length, gets `mask_filter_value` added to its score. A causal mask is
-inf; the kernel adds its type's lowest number, which has the same effect because each query sees itself. Where all
inputs have the same batch rows nothing can be saved, and the operator is computed whole, on rows that differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mari_onnx.engine.batching import Through, run
from mari_onnx.engine.ir.value import Decline, Value
from mari_onnx.engine.rule import Context, Steps, lowered, rule
from mari_onnx.engine.rules.attention import batches, causal
from mari_onnx.engine.rules.microsoft.shapes import MICROSOFT
from mari_onnx.model.tensors import WITHOUT_BFLOAT16


@rule("Attention", domain=MICROSOFT, splits=True)
def attention(ctx: Context) -> Sequence[Value | None]:
    """From x, W, b, a mask and a bias of the scores. Refuses what `_check` does, rotary embeddings, and a missing b."""
    _check(ctx, mask=3, bias=5, past=(4, 6))
    x, weights = ctx.input(0), ctx.input(1)
    if ctx.attr("do_rotary", 0) or not ctx.has(2):
        raise Decline("it applies a rotary embedding, or has no bias")  # the CPU's kernel takes neither
    if len(batches(x)) < 2:
        return _whole(ctx, [0, None, None, _mask_axis(ctx, 3), None, _bias_axis(ctx, 5)])
    total = weights.shape[1]
    if not isinstance(total, int):
        raise Decline("the width is not a constant")
    sizes = list(ctx.attr("qkv_hidden_sizes", [total // 3] * 3))
    with lowered(ctx) as step:
        projected, at = [], 0
        for size in sizes:
            cut = [step.ints(at), step.ints(at + size)]
            part = step("MatMul", x, step("Slice", weights, *cut, step.ints(1)))
            projected.append(step("Add", part, step("Slice", ctx.input(2), *cut, step.ints(0))))
            at += size
        return [_attend(ctx, step, projected, mask=3, bias=5)]


@rule("MultiHeadAttention", domain=MICROSOFT, splits=True)
def multi_head(ctx: Context) -> Sequence[Value | None]:
    """From Q, K and V of three dimensions. Refuses packed ones, those with heads as an axis, and what `_check` does."""
    _check(ctx, mask=4, bias=5, past=(6, 7, 8, 9))
    operands = [ctx.input(i) for i in range(3)]
    if any(value.rank != 3 for value in operands):
        raise Decline("Q, K or V is packed, or has the heads as an axis of its own")
    if len({size for value in operands for size in batches(value)}) < 2:
        return _whole(ctx, [0, 0, 0, None, _mask_axis(ctx, 4), _bias_axis(ctx, 5)])
    with lowered(ctx) as step:
        if ctx.has(3):
            at, biased = 0, []
            for value in operands:
                width = value.shape[2]
                if not isinstance(width, int):
                    raise Decline("the width is not a constant")
                share = step("Slice", ctx.input(3), step.ints(at), step.ints(at + width), step.ints(0))
                biased.append(step("Add", value, share))
                at += width
            operands = biased
        return [_attend(ctx, step, operands, mask=4, bias=5)]


def _check(ctx: Context, mask: int, bias: int, past: Sequence[int]) -> None:
    """Refuses caches, further outputs, and masks of other shapes than [B] (lengths), [B, T] and [B, S, T]."""
    x = ctx.input(0)
    if x.rank != 3 or x.dtype not in WITHOUT_BFLOAT16:
        raise Decline("the input is packed, or of a type that the kernel does not take")
    if any(ctx.has(i) for i in past) or any(ctx.node.output[1:]):
        raise Decline("it uses a cache, or outputs the scores")
    if ctx.attr("unidirectional", 0) and ctx.node.op_type == "MultiHeadAttention":
        other = ctx.input(1)
        if other.rank != 3 or not ctx.b.same(x.shape[1], other.shape[1]):
            raise Decline("it has a causal mask, and there may be more or fewer queries than keys")
    if ctx.has(mask):
        value = ctx.input(mask)
        keys = ctx.input(1).shape[1] if ctx.node.op_type == "MultiHeadAttention" else x.shape[1]
        if value.rank == 1 and not isinstance(keys, int):
            raise Decline("it takes lengths, and the number of tokens is not a constant")
        if not 1 <= value.rank <= 3 or (value.rank > 1 and not ctx.b.same(value.shape[-1], keys)) or keys == 1:
            raise Decline("nothing shows that the mask is as long as the keys, or there is one key only")
        if not ctx.b.same(value.shape[0], x.shape[0]):
            raise Decline("the mask does not have one row per element of the batch")
        if ctx.attr("unidirectional", 0):
            raise Decline("it has a causal mask beside another mask")
    if ctx.has(bias) and ctx.input(bias).rank != 4:
        raise Decline("the bias of the scores does not have four dimensions")


def _mask_axis(ctx: Context, i: int) -> int | None:
    return 0 if ctx.has(i) else None


def _bias_axis(ctx: Context, i: int) -> int | None:
    """The index of the batch axis in the bias of the scores; None where it has 1 there, the same for all."""
    return 0 if ctx.has(i) and ctx.input(i).shape[0] != 1 else None


def _whole(ctx: Context, places: Sequence[int | None]) -> list[Value | None]:
    """The operator itself over the batch."""
    inputs = [*places, *[None] * len(ctx.inputs)][: len(ctx.inputs)]
    return run(ctx, [Through(tuple(inputs), (0,))])


def _attend(ctx: Context, step: Steps, operands: Sequence[Value], mask: int, bias: int) -> Value:
    """softmax(s Q Kᵀ + mask + bias) V over heads, from Q, K and V of [B, T, W]; ``mask``, ``bias``: indices of these
    inputs.
    """
    heads, dtype = ctx.attr("num_heads", 0), operands[0].dtype
    split = []
    for value in operands:
        width = value.shape[2]
        if not isinstance(width, int) or not heads or width % heads:
            raise Decline("the number of heads is not known, or does not divide the width")
        apart = step("Reshape", value, step.ints(0, 0, heads, width // heads))
        split.append(step("Transpose", apart, perm=[0, 2, 1, 3]))
    q, k, v = split
    scale = ctx.attr("scale", 0.0) or 1 / math.sqrt(int(str(q.shape[3])))
    k_transposed = step("Transpose", k, perm=[0, 1, 3, 2])
    scores = step("MatMul", step("Mul", q, step.const(scale, dtype)), k_transposed)
    if ctx.has(bias):
        scores = step("Add", scores, ctx.input(bias))
    if ctx.has(mask):
        given = ctx.input(mask)
        if given.rank == 1:
            places = step.const(np.arange(int(str(k.shape[2]))), given.dtype)
            seen = step("Less", places, _unsqueezed(ctx, step, given, [1]))
        else:
            seen = step("Greater", given, step.const(0, given.dtype))
        low = step.const(ctx.attr("mask_filter_value", -10000.0), dtype)
        added = step("Where", seen, step.const(0.0, dtype), low)
        scores = step("Add", scores, _unsqueezed(ctx, step, added, [1] if given.rank == 3 else [1, 2]))
    if ctx.attr("unidirectional", 0):
        if ctx.opset < 15:
            raise Decline("a causal mask needs Shape with start and end, which this opset lacks")
        scores = step("Where", causal(step, scores), scores, step.const(-np.inf, dtype))
    out = step("MatMul", step("Softmax", scores, axis=3), v)
    return step("Reshape", step("Transpose", out, perm=[0, 2, 1, 3]), step.ints(0, 0, -1))


def _unsqueezed(ctx: Context, step: Steps, value: Value, axes: list[int]) -> Value:
    if ctx.opset < 13:
        return step("Unsqueeze", value, axes=axes)
    return step("Unsqueeze", value, step.ints(*axes))
