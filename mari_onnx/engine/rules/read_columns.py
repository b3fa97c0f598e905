"""A product whose columns are read at different rows, as a product for each group of columns.

    x [W_q | W_k | W_v],  of x W_q row 0 alone is read      =      [x_0 W_q | x W_k | x W_v]

Self-attention projects queries, keys and values at once, and a reader of one token needs one query, but all keys.
"""

from __future__ import annotations

import numpy as np

from mari_onnx.engine.axes.unread import only_read
from mari_onnx.engine.ir.value import Value, is_const
from mari_onnx.engine.rule import Context, lowered
from mari_onnx.model.nodes import is_standard
from mari_onnx.model.ops import Fact, having

MAX_GROUPS = 4
"""Groups of columns that one product is taken apart into."""


def by_columns(ctx: Context) -> list[Value] | None:
    """The product by groups of columns; None for another operator, and where all columns are read at the same rows.

    The weights are constant, of two dimensions. A Gemm of the transposed x is left whole.
    """
    node, read = ctx.node, ctx.session.read
    masks = read.of_output(node) if node.op_type in having(Fact.MATMUL) and is_standard(node) else None
    if masks is None or not (ctx.has(0) and ctx.has(1)) or ctx.attr("transA", 0):
        return None
    x, weights = ctx.input(0), ctx.input(1)
    width = masks[0].shape[-1]
    if width == 1 or not is_const(weights.body) or weights.rank != 2 or any(m.ndim != x.rank for m in masks):
        return None
    if any(m.shape[-1] != width for m in masks):
        return None
    rows = np.concatenate([m.reshape(-1, width) for m in masks])
    groups: dict[bytes, list[int]] = {}
    for column in range(width):
        groups.setdefault(rows[:, column].tobytes(), []).append(column)
    if not 1 < len(groups) <= MAX_GROUPS:
        return None
    axis = 0 if ctx.attr("transB", 0) else 1
    parts, order = [], [column for columns in groups.values() for column in columns]
    with lowered(ctx) as step:
        for columns in groups.values():
            at = [np.asarray(np.any(np.take(m, columns, -1), axis=-1, keepdims=True)) for m in masks]
            for m in at:
                m.reshape(-1)[0] |= not m.any()  # columns that nobody reads: of one row
            own = [only_read(ctx.b, x, read.sizes, at), step("Gather", weights, step.ints(*columns), axis=axis)]
            if ctx.has(2):
                c = ctx.input(2)
                wide = c.rank and c.shape[-1] == width
                own.append(step("Gather", c, step.ints(*columns), axis=c.rank - 1) if wide else c)
            parts.append(step(node.op_type, *own, **ctx.attrs))
        whole = step("Concat", *parts, axis=x.rank - 1)
        if order != sorted(order):
            whole = step("Gather", whole, step.ints(*np.argsort(order).tolist()), axis=x.rank - 1)
    return [whole]
