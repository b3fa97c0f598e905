"""How large a tensor's elements can be at most, from constants: for masks that are large but finite.

A softmax weight exp(c - max) of a masked score c is exactly 0 where some other score in the row is above c by more than
the exponent's range (800 covers every type). With c = -1e9 that holds whenever the row has an unmasked score that is
provably above -1e9 + 800; tables, weights and normalizations bound most scores of a ranking model by a few thousand.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from mari_onnx.engine.builder import Builder, Node, Tensor
from mari_onnx.engine.normalized import largest, normalized, standardized
from mari_onnx.model.dims import product

STEPS = 4000
"""Nodes looked at for one bound; beyond it nothing is claimed."""
UNIT = {"Sigmoid", "Tanh", "Softmax", "Erf", "Sin", "Cos", "HardSigmoid", "Softsign"}
KEEP = {
    "Relu", "Gelu", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Expand", "Neg",
    "Abs", "Split", "ReduceMean", "ReduceMax", "ReduceMin", "HardSwish", "Mish", "Tile", "Flatten", "Dropout",
}  # fmt: skip


def bound(b: Builder, tensor: Tensor) -> float:
    """An upper bound of the elements' absolute values; infinity where none is known."""
    known = b.bounds
    stack = [tensor]
    steps = 0
    while stack:
        top = stack[-1]
        if top.name in known:
            stack.pop()
            continue
        steps += 1
        if steps > STEPS:
            return math.inf
        if top.const:
            known[top.name] = largest(top)
        elif top.node is None:
            known[top.name] = math.inf
        else:
            node = b.nodes[top.node]
            needed = [t for t in _operands(node) if t.name not in known]
            if needed:
                stack += needed
                continue
            known[top.name] = min(_node(node, known), normalized(b, node), standardized(b, node, known))
        stack.pop()
    return known[tensor.name]


def _operands(node: Node) -> list[Tensor]:
    op = node.proto.op_type
    inputs = [t for t in node.inputs if t is not None]
    if op in UNIT:
        return []
    if op in KEEP or op in ("Gather", "GatherElements", "GatherND", "CumSum", "ReduceSum"):
        return inputs[:1]
    if op == "LayerNormalization":
        return inputs[1:]
    return inputs[1:] if op == "Where" else inputs


def _node(node: Node, known: dict[str, float]) -> float:
    op = node.proto.op_type
    inputs = [t for t in node.inputs if t is not None]
    if node.proto.domain not in ("", "ai.onnx"):
        return math.inf
    if op in UNIT:
        return 1.0
    values = [known.get(t.name, math.inf) for t in inputs]
    if op in KEEP or op in ("Gather", "GatherElements", "GatherND"):
        return values[0]
    if op == "LeakyRelu":
        return values[0] * max(1.0, abs(_attribute(node, "alpha", 0.01)))
    if op in ("Add", "Sub", "Sum"):
        return sum(values)
    if op == "Mul":
        return math.prod(values) if all(math.isfinite(v) for v in values) else math.inf
    if op == "Div":
        divisor = inputs[1]
        smallest = float(np.min(np.abs(divisor.array.astype(np.float64)))) if divisor.const else 0.0
        return values[0] / smallest if smallest > 0 else math.inf
    if op in ("Concat", "Max", "Min"):
        return max(values)
    if op == "Where":
        return max(values[1:])
    if op == "MatMul":
        return _product(inputs, values)
    if op == "ReduceSum":
        return math.inf
    if op == "LayerNormalization":
        axis = int(_attribute(node, "axis", -1))
        width = product(inputs[0].known[axis:])
        if not isinstance(width, int):
            return math.inf
        return math.sqrt(width) * values[1] + (values[2] if len(values) > 2 else 0.0)
    return math.inf


def _attribute(node: Node, name: str, default: float) -> float:
    found = [onnx.helper.get_attribute_value(a) for a in node.proto.attribute if a.name == name]
    return float(found[0]) if found else default


def _product(inputs: list[Tensor], values: list[float]) -> float:
    if not all(math.isfinite(v) for v in values):
        return math.inf
    for which, other in ((1, 0), (0, 1)):
        if inputs[which].const and inputs[which].array.ndim > 1:
            weights = np.abs(inputs[which].array.astype(np.float64))
            return values[other] * float(weights.sum(axis=-2 if which else -1).max())
    width = inputs[0].known[-1]
    return values[0] * values[1] * width if isinstance(width, int) else math.inf


# ---- element by element --------------------------------------------------------------------------------------------

Span = tuple[np.ndarray, np.ndarray]
LIMIT = 1 << 22


def span(b: Builder, tensor: Tensor, depth: int = 10) -> Span:
    """Lower and upper bounds of the elements, broadcastable to the tensor's dimensions (float64).

    Constant masks give each element its own bounds, through Where, Add and what only moves elements; everything else
    has one bound for all.
    """
    found = _span(b, tensor, depth) if depth else None
    if found is None:
        shape = (1,) * len(tensor.known)
        most = np.full(shape, 1.0 if tensor.dtype == onnx.TensorProto.BOOL else bound(b, tensor))
        found = (np.zeros(shape) if tensor.dtype == onnx.TensorProto.BOOL else -most), most
    return found


def _span(b: Builder, tensor: Tensor, depth: int) -> Span | None:
    if tensor.const:
        array = tensor.array
        if array.dtype == object or array.size > LIMIT:
            return None
        return array.astype(np.float64), array.astype(np.float64)
    node = _made(b, tensor)
    if node is None or node.proto.domain not in ("", "ai.onnx"):
        return None
    op, rank = node.proto.op_type, len(tensor.known)
    inputs = [t for t in node.inputs if t is not None]
    if op == "Where":
        spans = [tuple(_lead(side, rank) for side in span(b, t, depth - 1)) for t in inputs]
        (surely, may), (low_x, high_x), (low_y, high_y) = spans
        low = np.where(surely == 1, low_x, np.where(may == 0, low_y, np.minimum(low_x, low_y)))
        return low, np.where(surely == 1, high_x, np.where(may == 0, high_y, np.maximum(high_x, high_y)))
    if op in ("And", "Or"):
        pick = np.minimum if op == "And" else np.maximum
        (low_x, high_x), (low_y, high_y) = (span(b, t, depth - 1) for t in inputs)
        return pick(_lead(low_x, rank), _lead(low_y, rank)), pick(_lead(high_x, rank), _lead(high_y, rank))
    if op == "Not":
        low, high = span(b, inputs[0], depth - 1)
        return 1 - high, 1 - low
    if op == "Concat" and all(isinstance(t.known[_axis(node)], int) for t in inputs):
        spans = [span(b, t, depth - 1) for t in inputs]
        return tuple(_side_by_side([s[i] for s in spans], inputs, _axis(node)) for i in (0, 1))  # type: ignore
    if op == "Add" and any(t.const for t in inputs):
        (low_x, high_x), (low_y, high_y) = (span(b, t, depth - 1) for t in inputs)
        with np.errstate(invalid="ignore"):
            low, high = _lead(low_x, rank) + _lead(low_y, rank), _lead(high_x, rank) + _lead(high_y, rank)
        return np.nan_to_num(low, nan=-np.inf, neginf=-np.inf), np.nan_to_num(high, nan=np.inf, neginf=-np.inf)
    if op in ("Slice", "Gather", "Transpose", "Unsqueeze", "Squeeze"):
        low, high = span(b, inputs[0], depth - 1)
        if low.size == 1 and high.size == 1:
            return low.reshape((1,) * rank), high.reshape((1,) * rank)
        moved = [_moved(node, inputs, side) for side in (low, high)]
        return (moved[0], moved[1]) if moved[0] is not None and moved[1] is not None else None
    return None


def _axis(node: Node) -> int:
    return next(int(a.i) for a in node.proto.attribute if a.name == "axis")


def _side_by_side(sides: list[np.ndarray], inputs: list[Tensor], axis: int) -> np.ndarray:
    shape = list(np.max([s.shape for s in sides], axis=0))
    wide = []
    for side, tensor in zip(sides, inputs, strict=True):
        size = tensor.known[axis]
        assert isinstance(size, int)
        wide.append(np.broadcast_to(side, [*shape[:axis], size, *shape[axis + 1 :]]))
    return np.concatenate(wide, axis=axis)


def _made(b: Builder, tensor: Tensor) -> Node | None:
    return b.nodes[tensor.node] if tensor.node is not None else None


def _lead(array: np.ndarray, rank: int) -> np.ndarray:
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _moved(node: Node, inputs: list[Tensor], side: np.ndarray) -> np.ndarray | None:
    """Bounds after an operator that moves elements; a dimension of 1 stands for one that does not differ."""
    op = node.proto.op_type
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.proto.attribute}
    if op == "Transpose":
        return side.transpose(attrs["perm"])
    if not all(t.const for t in inputs[1:]):
        return None
    arrays = [t.array.reshape(-1) for t in inputs[1:]]
    if op in ("Unsqueeze", "Squeeze"):
        axes = tuple(int(a) for a in (arrays[0] if arrays else attrs["axes"]))
        return np.expand_dims(side, axes) if op == "Unsqueeze" else np.squeeze(side, axis=axes)
    if op == "Gather":
        axis = int(attrs.get("axis", 0))
        if inputs[1].array.ndim != 1:
            return None
        return side if side.shape[axis] == 1 else side.take(inputs[1].array, axis=axis)
    starts, ends, along = arrays[0], arrays[1], arrays[2]
    steps = arrays[3] if len(arrays) > 3 else np.ones_like(starts)
    index = [slice(None)] * side.ndim
    for start, end, axis, step in zip(starts, ends, along, steps, strict=True):
        if side.shape[int(axis)] != 1:
            index[int(axis)] = slice(int(start), int(end), int(step))
    return side[tuple(index)]
