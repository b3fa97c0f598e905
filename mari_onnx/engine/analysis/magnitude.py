"""The largest absolute value that elements of a tensor can have, from constants. Needed for masks that are large but
finite.

A softmax weight exp(c - max) of a masked score c is exactly 0 if some other score in the row exceeds c by more than the
range of exp (800 is enough for every type). With c = -1e9 that is so if the row has an unmasked score that is provably
above -1e9 + 800. Tables, weights and normalizations bound most scores of a ranking model by a few thousand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from mari_onnx.engine.analysis.norm_patterns import NORMALIZED, largest
from mari_onnx.engine.ir.value import Node, Tensor
from mari_onnx.model.dims import Size, divide, product
from mari_onnx.model.nodes import attribute, attributes, is_standard
from mari_onnx.model.ops import Fact, having, row

EXP_RANGE = 800.0
"""exp(-EXP_RANGE) is 0 in every floating-point type."""
STEPS = 4000
"""Nodes looked at for one bound; beyond it nothing is claimed."""
NORMS, KEEP, ADDS, WRITES = (having(f) for f in (Fact.NORM, Fact.NO_LARGER, Fact.ADDS, Fact.WRITES))


def bound(tensor: Tensor) -> float:
    """An upper bound of the elements' absolute values; infinity where none is known."""
    stack = [tensor]
    steps = 0
    while stack:
        top = stack[-1]
        if top.bound is not None:
            stack.pop()
            continue
        steps += 1
        if steps > STEPS:
            return math.inf
        if top.const:
            top.bound = largest(top)
        elif top.node is None:
            top.bound = math.inf
        else:
            node = top.node
            needed = [t for t in _operands(node) if t.bound is None]
            if needed:
                stack += needed
                continue
            first = top is node.outputs[0] or node.proto.op_type == "Split"  # a mean, a spread and a mask are unlike it
            top.bound = min(_node(node), *(f(node) for f in NORMALIZED)) if first else math.inf
        stack.pop()
    assert tensor.bound is not None
    return tensor.bound


def _operands(node: Node) -> list[Tensor]:
    op = node.proto.op_type
    inputs = [t for t in node.inputs if t is not None]
    if row(op).bound < math.inf:
        return []
    if op in KEEP:
        return inputs[:1]
    if op in NORMS:
        return inputs[1:]
    if op in WRITES:
        return [t for i, t in enumerate(inputs) if i != 1]
    return inputs[1:] if op == "Where" else inputs


def _node(node: Node) -> float:
    op = node.proto.op_type
    inputs = [t for t in node.inputs if t is not None]
    if not is_standard(node.proto):
        return math.inf
    if row(op).bound < math.inf:
        return row(op).bound
    values = [math.inf if t.bound is None else t.bound for t in inputs]
    if op in KEEP:
        return values[0]
    if op == "LeakyRelu":
        return values[0] * max(1.0, abs(float(attribute(node.proto, "alpha", 0.01))))
    if op in ADDS:
        return sum(values)
    if op == "Mul":
        return math.prod(values) if all(math.isfinite(v) for v in values) else math.inf
    if op == "Div":
        divisor = inputs[1]
        smallest = float(np.min(np.abs(divisor.array.astype(np.float64)))) if divisor.const else 0.0
        return values[0] / smallest if smallest > 0 else math.inf
    if op == "Concat" or op in having(Fact.VARIADIC):
        return max(values)
    if op == "Where":
        return max(values[1:])
    if op in WRITES:
        return max(values[0], values[2]) if attribute(node.proto, "reduction", "none") == "none" else math.inf
    if op == "Cast" and attribute(node.proto, "to") in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return values[0]
    if op in having(Fact.MATMUL):
        return _product(inputs, values, attributes(node.proto))
    if op == "ReduceSum":
        count = added(inputs[0], node.outputs[0])
        return values[0] * count if isinstance(count, int) else math.inf
    if op in NORMS:
        axis = int(attribute(node.proto, "axis", -1))
        width = product(inputs[0].known[axis:])
        if not isinstance(width, int):
            return math.inf
        return math.sqrt(width) * values[1] + (values[2] if len(values) > 2 else 0.0)
    return math.inf


def added(x: Tensor, total: Tensor) -> Size | None:
    """How many elements a reduction adds up each time; None where that is not known."""
    if x.shape is None or total.shape is None:
        return None
    return divide(product(x.known), product(total.known))


def _product(inputs: list[Tensor], values: list[float], attrs: Mapping[str, Any]) -> float:
    """Of two matrices, and what Gemm adds to it."""
    if not all(math.isfinite(v) for v in values):
        return math.inf
    scale, beta = (abs(float(attrs.get(name, 1.0))) for name in ("alpha", "beta"))
    rest = beta * values[2] if len(values) > 2 else 0.0
    contracted = -2 if attrs.get("transA") else -1, -1 if attrs.get("transB") else -2
    for which, other in ((1, 0), (0, 1)):
        if inputs[which].const and inputs[which].array.ndim > 1:
            weights = np.abs(inputs[which].array.astype(np.float64))
            return scale * values[other] * float(weights.sum(axis=contracted[which]).max()) + rest
    width = inputs[0].known[contracted[0]]
    return scale * values[0] * values[1] * width + rest if isinstance(width, int) else math.inf
