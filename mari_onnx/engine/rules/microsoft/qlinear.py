"""Operators of quantized tensors that onnxruntime has beside the standard's (com.microsoft, format QOperator).

    QGemm                           f(broadcast(A)) = broadcast(f(A)) over the rows of A
    QLinearAdd, -Mul, -Sigmoid, ..  each element by itself
    QLinearConcat                   [a | c] of equal scales and zero points is a Concat of their numbers

They are computed once for rows that are equal. A product of [u | x] stays whole: its sum is rounded to the scale of the
result, so parts do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mari_onnx.engine.batching import Through, mapped
from mari_onnx.engine.ir.value import Decline, Value
from mari_onnx.engine.rule import Context, lowered, rule
from mari_onnx.engine.rules.microsoft.shapes import MICROSOFT


@mapped("QGemm", domain=MICROSOFT)
def _qgemm_rows(ctx: Context) -> list[Through]:
    """The rows of A. Refuses a C with rows of its own, which is quantized with them."""
    if ctx.has(6) and ctx.input(6).rank > 1 and ctx.input(6).shape[0] != 1:
        raise Decline("C has a row for each row of A")
    return [Through((1 if ctx.attr("transA", 0) else 0, *[None] * (len(ctx.inputs) - 1)), (0,))]


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
    """A Concat, where all inputs have the scale and the zero point of the result: their numbers stay as they are.

    Refuses others, whose numbers it calculates anew.
    """
    for i in range(2, len(ctx.inputs), 3):
        for want, have in ((ctx.array(0), ctx.array(i + 1)), (ctx.array(1), ctx.array(i + 2))):
            if want is None or have is None or not np.array_equal(want, have):
                raise Decline("its inputs are not known to be of the scale of its result")
    with lowered(ctx) as step:
        return [step("Concat", *(ctx.input(i) for i in range(2, len(ctx.inputs), 3)), axis=ctx.attr("axis"))]
