"""Sums whose large terms may cancel, for which ``(x + y) W`` must not be computed as ``x W + y W``.

The difference of two times in seconds is exact, and a product of it is as precise as one of small numbers. In the
difference of two products of times, the digits that both have in common are lost. So a product uses the terms of a sum
only where no two of them can be much larger than what they differ by. In: the terms, as tensors. Out: a reason, or
None.

How large a term counts:

- an input as it is has no bound;
- rows of a table count as far as their columns lie from 0, measured by how far the rows lie from each other: embeddings
  lie around 0 whatever their scale, years lie around 2020;
- the result of a product or a mean only has to be bounded: it is rounded, so the source has lost these digits too;
- everything else counts as large as it can be, measured by 1.

If all terms except one are small, that one is small as well, or no larger than the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mari_onnx.engine.analysis.magnitude import added, bound
from mari_onnx.engine.ir.value import Body, Leaf, Prod, Sum, Tensor, leaves
from mari_onnx.model.ops import Fact, having, row

LARGE = 16.0
"""How many times larger than what tells them apart a sum's terms may be, but for one of them."""
ROUNDED = 1e4
"""The same for what a product has rounded: its bound is far above what it comes to."""
TINY = 1e-30
"""For a size of 0, which an unknown one may be multiplied by."""
ROWS = 8
"""Rows of a table from which on they tell how far apart rows lie."""
SAMPLE = 1 << 20
"""Elements of a table that are looked at."""
MEANS = having(Fact.REDUCES | Fact.LINEAR)
DEPTH = 16
"""Operators between a tensor and the product or table that it was made from."""
MOVES = having(Fact.MOVES) | having(Fact.SAME) | {"Neg"}


def cancels(terms: Sequence[Body], of_product: bool = False) -> str | None:
    """Why a sum must not be opened, with the name of a tensor; None where it can be.

    of_product: the sum is itself part of a product of the source, whose rounded terms are added up as they are.
    """
    large = [term for term in terms if _size(term, of_product) > LARGE]
    if len(large) < 2:
        return None
    names = dict.fromkeys(_named(next(leaves(term)).tensor) for term in large[:2])
    what = " and ".join(names) if len(names) > 1 else f"two terms of {next(iter(names))}"
    return f"{what} may be large and cancel, so they are added before the product"


def _named(tensor: Tensor) -> str:
    """The name that a tensor has in the source: its own, or that of the node it is written for."""
    return tensor.source or (tensor.node.origin if tensor.node is not None else "") or tensor.name


def _size(body: Body, of_product: bool) -> float:
    if isinstance(body, Leaf):
        if of_product and rounded(body.tensor):
            return 0.0
        return offset(body.tensor)
    if isinstance(body, Prod):
        return math.prod(_size(factor, of_product) or TINY for factor in body.factors)
    if isinstance(body, Sum):
        return sum(_size(term, of_product) for term in body.terms)
    return max(_size(part.body, of_product) for part in body.parts)


def offset(tensor: Tensor, depth: int = DEPTH) -> float:
    """How large a tensor's elements can be against what tells them apart; infinity where that is not known."""
    if tensor.const:
        return _of_constant(tensor)
    if rounded(tensor):
        return bound(tensor) * (LARGE / ROUNDED)
    node = tensor.node
    first = node.inputs[0] if node is not None and node.inputs else None
    if node is not None and first is not None and depth and node.proto.domain in ("", "ai.onnx"):
        op = node.proto.op_type
        if op in MOVES:
            return offset(first, depth - 1)
        if op in MEANS:  # of a few rows
            count = added(first, tensor)
            return offset(first, depth - 1) * (count if isinstance(count, int) and op == "ReduceSum" else 1)
        if op == "Concat":
            return max(offset(t, depth - 1) for t in node.inputs if t is not None)
        if op == "Mul" and node.inputs[1] is not None:  # rows that a mask or a constant scales
            x, y = (offset(t, depth - 1) for t in (first, node.inputs[1]))
            return x * max(y, TINY) if math.isfinite(x) and math.isfinite(y) else math.inf
    return bound(tensor)


def rounded(tensor: Tensor, depth: int = DEPTH) -> bool:
    """Whether every element is a sum of products that were rounded, so that it is no exact copy of an input."""
    node = tensor.node
    if node is None or not depth or tensor.const:
        return False
    op = node.proto.op_type
    inputs = [t for t in node.inputs if t is not None]
    if op in MEANS:
        count = added(inputs[0], tensor)
        return count is not None and not (isinstance(count, int) and count < ROWS)
    if op in having(Fact.NO_LARGER) or op == "LeakyRelu":
        return rounded(inputs[0], depth - 1)
    if op == "Concat" or op in having(Fact.ADDS):
        return all(rounded(t, depth - 1) for t in inputs if not (op != "Concat" and t.const and bound(t) < LARGE))
    if op in having(Fact.MULTIPLIES):
        return any(rounded(t, depth - 1) for t in inputs)
    if op in having(Fact.MATMUL):
        return not any(_selects(t, last=i == 1) for i, t in enumerate(inputs[:2]))
    return bool(row(op).facts & (Fact.PRODUCT | Fact.SOFTMAX | Fact.NORM))


def _selects(operand: Tensor, last: bool) -> bool:
    """Whether a product with the operand may copy elements of the other: one element per column, or all 0 or 1."""
    if operand.const:
        if operand.array.ndim < 2:
            return operand.array.size < 2
        return bool((np.count_nonzero(operand.array, axis=-2 if last else -1) < 2).any())
    made = operand.node
    return made is not None and made.proto.op_type in having(Fact.BOOLEAN) | having(Fact.CONVERTS) | {"OneHot"}


def _of_constant(tensor: Tensor) -> float:
    array = tensor.array
    if array.dtype == bool:
        return 1.0
    if array.dtype == object or not array.size:
        return math.inf
    rows = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)
    rows = rows[:: -(-array.size // SAMPLE)].astype(np.float64)
    if not np.isfinite(rows).all():
        return math.inf
    if len(rows) >= ROWS:
        middle = np.median(rows, axis=0)
        apart = np.median(np.abs(rows - middle), axis=0)
        if apart.any():
            apart[apart == 0] = np.median(apart[apart > 0])
            return float((np.abs(middle) / apart).max())
    return float(np.abs(rows).max())
