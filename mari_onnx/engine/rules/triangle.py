"""Trilu as a Where with a constant triangle, which is then applied to each part like any Where.

    trilu(x)[i, j] = x[i, j] where j - i >= k (upper) or j - i <= k (lower), else 0        = Where(triangle, x, 0)

Exact for any x: infinities and NaN that are dropped leave no trace.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper

from mari_onnx.engine.batching import MAPPED, run
from mari_onnx.engine.ir.value import Axis, Body, Cat, Value, axes_of
from mari_onnx.engine.rule import Context, from_array, rule
from mari_onnx.engine.rules import elementwise

LARGEST = 1 << 20
"""A triangle of up to this many elements may be a constant."""
WHERE = {
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8,
}  # fmt: skip
"""Element types for which runtimes have a Where; a boolean is an And."""


@rule("Trilu")
def trilu(ctx: Context) -> Sequence[Value | None]:
    """Where(triangle, x, 0) where x is a Cat along the last two axes, or does not vary along one of them.

    Otherwise, and with dynamic sizes or a computed k, the operator itself, over all axes but the last two.
    """
    x = ctx.input(0)
    sizes, k = x.shape[-2:], ctx.ints(1) if ctx.has(1) else [0]
    plain = x.dtype == TensorProto.BOOL or x.dtype in WHERE
    if not plain or not k or x.rank < 2 or not _apart(x.body, frozenset(a for g in x.known[-2:] for a in g)):
        return run(ctx, MAPPED["", "Trilu"](ctx))
    rows, columns = sizes
    if not isinstance(rows, int) or not isinstance(columns, int) or rows * columns > LARGEST:
        return run(ctx, MAPPED["", "Trilu"](ctx))
    ones = np.ones((rows, columns), np.bool_)
    shift = max(-rows - 1, min(k[0], columns + 1))  # k is any int64
    kept = np.triu(ones, shift) if ctx.attr("upper", 1) else np.tril(ones, shift)
    triangle = from_array(ctx.b, kept, TensorProto.BOOL)
    if x.dtype == TensorProto.BOOL:
        node = helper.make_node("And", ["x", "triangle"], ["y"])
        return elementwise.plain(ctx.on(node, [x, triangle]))
    zero = from_array(ctx.b, np.zeros((), helper.tensor_dtype_to_np_dtype(x.dtype)), x.dtype)
    node = helper.make_node("Where", ["triangle", "x", "zero"], ["y"])
    return elementwise.where(ctx.on(node, [triangle, x, zero]))


def _apart(body: Body, axes: frozenset[Axis]) -> bool:
    """Whether a body is a Cat along one of these axes, or lacks one."""
    if not axes <= axes_of(body):
        return True
    return isinstance(body, Cat) and (body.axis in axes or any(_apart(p.body, axes) for p in body.parts))
