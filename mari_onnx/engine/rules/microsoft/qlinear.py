"""Operators of quantized tensors that onnxruntime has beside the standard's (com.microsoft, format QOperator).

    QGemm, QLinearMatMul            f(broadcast(A)) = broadcast(f(A)) over the rows of A; [a | c] W as in `dequantized`,
                                    a sum of integers that is rounded once
    QLinearAdd, -Mul, -Sigmoid, ..  each element by itself
    QLinearConcat                   [a | c] of equal scales and zero points is a Concat of their numbers; of others each
                                    part is dequantized and quantized anew

They are computed once for rows that are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mari_onnx.engine.batching import MAPPED, Through, mapped, run
from mari_onnx.engine.ir.value import Decline, Value
from mari_onnx.engine.rule import Context, lowered, rule
from mari_onnx.engine.rules.dequantized import by_parts, codes, operands
from mari_onnx.engine.rules.microsoft.shapes import MICROSOFT


@mapped("QGemm", domain=MICROSOFT)
def _qgemm_rows(ctx: Context) -> list[Through]:
    """The rows of A. Refuses a C with rows of its own, which is quantized with them."""
    if ctx.has(6) and ctx.input(6).rank > 1 and ctx.input(6).shape[0] != 1:
        raise Decline("C has a row for each row of A")
    return [Through((1 if ctx.attr("transA", 0) else 0, *[None] * (len(ctx.inputs) - 1)), (0,))]


@rule("QGemm", domain=MICROSOFT, splits=True)
def qgemm(ctx: Context) -> Sequence[Value | None]:
    """By parts of integers where that pays, else the rows of A that differ."""
    turned = [bool(ctx.attr(name, 0)) for name in ("transA", "transB")]
    bias = ctx.input(6) if ctx.has(6) else None
    found = _by_parts(ctx, bias, turned, 7) if ctx.attr("alpha", 1.0) == 1 else None
    return run(ctx, _qgemm_rows(ctx)) if found is None else [found]


@rule("QLinearMatMul", splits=True)
def qlinear_matmul(ctx: Context) -> Sequence[Value | None]:
    """By parts of integers where that pays, else the rows of A that differ."""
    found = _by_parts(ctx, None, (False, False), 6)
    return run(ctx, MAPPED["", "QLinearMatMul"](ctx)) if found is None else [found]


def _by_parts(ctx: Context, bias: Value | None, turned: Sequence[bool], scale: int) -> Value | None:
    """The product by parts, quantized by inputs ``scale`` and ``scale + 1``; as floats where there are none."""
    x, w = codes(ctx, 0), codes(ctx, 3, 0 if turned[1] else 1)
    found = operands(ctx, x, w, bias, turned) if x is not None and w is not None else None
    value = by_parts(ctx, found) if found is not None else None
    if value is None or not ctx.has(scale):
        return value
    with lowered(ctx) as step:
        return step("QuantizeLinear", value, ctx.input(scale), ctx.inputs[scale + 1] if ctx.has(scale + 1) else None)


@mapped("QLinearSigmoid", "QLinearLeakyRelu", domain=MICROSOFT)
def _qlinear(ctx: Context) -> list[Through]:
    """All axes: each element by itself."""
    return [Through((a, *[None] * (len(ctx.inputs) - 1)), (a,)) for a in range(ctx.input(0).rank)]


@mapped("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def _qlinear_pair(ctx: Context) -> list[Through]:
    """All axes: each element by itself. Refuses operands of different rank."""
    x, y = ctx.input(0), ctx.input(3)
    if x.rank != y.rank:
        raise Decline("its operands differ in rank")
    rest = [None] * (len(ctx.inputs) - 4)
    found = []
    for a, (n, m) in enumerate(zip(x.shape, y.shape, strict=True)):
        if ctx.b.same(n, m) or 1 in (n, m):  # a dimension of 1 is broadcast
            left, right = a if n != 1 or n == m else None, a if m != 1 or n == m else None
            found.append(Through((left, None, None, right, *rest), (a,)))
    return found


@rule("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(ctx: Context) -> Sequence[Value | None]:
    """A Concat, where all inputs have the scale and the zero point of the result: their numbers stay as they are. An
    input of another scale is dequantized and quantized. Refuses scales that are computed.
    """
    with lowered(ctx) as step:
        parts = []
        for i in range(2, len(ctx.inputs), 3):
            pairs = [(ctx.array(0), ctx.array(i + 1)), (ctx.array(1), ctx.array(i + 2))]
            if any(want is None or have is None for want, have in pairs):
                raise Decline("a scale or zero point is computed at run time")
            x = ctx.input(i)
            if not all(np.array_equal(want, have) for want, have in pairs):  # type: ignore[arg-type]
                floats = step("DequantizeLinear", x, ctx.input(i + 1), ctx.input(i + 2))
                x = step("QuantizeLinear", floats, ctx.input(0), ctx.input(1))
            parts.append(x)
        return [step("Concat", *parts, axis=ctx.attr("axis"))]
