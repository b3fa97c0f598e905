"""Lower and upper bounds of a tensor's elements, one by one: which of them a constant mask keeps out of a softmax.

A mask reaches the scores in many spellings (Where over And, Or and Not, a sum with -inf, ``(1 - mask) * -1e9``, Min);
interval arithmetic over what makes it tells them all. How large a tensor is that no mask reaches is for `bounds`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import onnx

from mari_onnx.engine.analysis.magnitude import bound
from mari_onnx.engine.ir.value import Node, Tensor
from mari_onnx.model.nodes import attribute, attributes, is_standard
from mari_onnx.model.ops import Fact, having, row

Span = tuple[np.ndarray, np.ndarray]
LIMIT = 1 << 22
"""Elements of a constant up to which it is looked into."""
DEPTH = 16
"""Operators between a mask and the scores."""


def span(tensor: Tensor, depth: int = DEPTH) -> Span:
    """Lower and upper bounds of the elements, broadcastable to the tensor's dimensions (float64).

    Constant masks give each element its own bounds, through arithmetic and what only moves elements; everything else
    has one bound for all. What a model computes is finite: the sum of -inf and a score is -inf, 0 times it is 0.
    """
    if depth not in tensor.spans:
        tensor.spans[depth] = _bounds_of(tensor, depth)
    return tensor.spans[depth]


def _bounds_of(tensor: Tensor, depth: int) -> Span:
    found = _span(tensor, depth) if depth else None
    if found is None:
        shape = (1,) * len(tensor.known)
        most = np.full(shape, 1.0 if tensor.dtype == onnx.TensorProto.BOOL else bound(tensor))
        found = (np.zeros(shape) if tensor.dtype == onnx.TensorProto.BOOL else -most), most
    return found


def _span(tensor: Tensor, depth: int) -> Span | None:
    if tensor.const:
        array = tensor.array
        if array.dtype == object or array.size > LIMIT:
            return None
        return array.astype(np.float64), array.astype(np.float64)
    node = tensor.node
    if node is None or not is_standard(node.proto):
        return None
    op, rank = node.proto.op_type, len(tensor.known)
    inputs = [t for t in node.inputs if t is not None]
    if op == "Where":
        spans = [tuple(_lead(side, rank) for side in span(t, depth - 1)) for t in inputs]
        (surely, may), (low_x, high_x), (low_y, high_y) = spans
        low = np.where(surely == 1, low_x, np.where(may == 0, low_y, np.minimum(low_x, low_y)))
        return low, np.where(surely == 1, high_x, np.where(may == 0, high_y, np.maximum(high_x, high_y)))
    if op == "Not":
        low, high = span(inputs[0], depth - 1)
        return 1 - high, 1 - low
    if op == "Concat" and all(isinstance(t.known[_axis(node)], int) for t in inputs):
        spans = [span(t, depth - 1) for t in inputs]
        return tuple(_side_by_side([s[i] for s in spans], inputs, _axis(node)) for i in (0, 1))  # type: ignore
    if row(op).function in COMBINED and len(inputs) == 2:
        (low_x, high_x), (low_y, high_y) = (tuple(_lead(s, rank) for s in span(t, depth - 1)) for t in inputs)
        return COMBINED[row(op).function](low_x, high_x, low_y, high_y)
    if op == "Neg":
        low, high = span(inputs[0], depth - 1)
        return -high, -low
    if op == "Identity":
        return span(inputs[0], depth - 1)
    if op == "Expand":
        low, high = span(inputs[0], depth - 1)
        return _lead(low, rank), _lead(high, rank)
    if op == "Cast":
        return _cast(span(inputs[0], depth - 1), inputs[0].dtype, tensor.dtype)
    if op == "Reshape":
        sides = [_regrouped(side, inputs[0], tensor) for side in span(inputs[0], depth - 1)]
        return (sides[0], sides[1]) if sides[0] is not None and sides[1] is not None else None
    if op in having(Fact.MOVES) - having(Fact.FILLS):
        low, high = span(inputs[0], depth - 1)
        if low.size == 1 and high.size == 1:
            return low.reshape((1,) * rank), high.reshape((1,) * rank)
        moved = [_moved(node, inputs, side) for side in (low, high)]
        return (moved[0], moved[1]) if moved[0] is not None and moved[1] is not None else None
    return None


def _add(low_x: np.ndarray, high_x: np.ndarray, low_y: np.ndarray, high_y: np.ndarray) -> Span:
    with np.errstate(invalid="ignore"):
        low, high = low_x + low_y, high_x + high_y
    high = np.where(np.isneginf(high_x) | np.isneginf(high_y), -np.inf, high)
    return np.nan_to_num(low, nan=-np.inf, posinf=np.inf, neginf=-np.inf), high


def _sub(low_x: np.ndarray, high_x: np.ndarray, low_y: np.ndarray, high_y: np.ndarray) -> Span:
    return _add(low_x, high_x, -high_y, -low_y)


def _mul(low_x: np.ndarray, high_x: np.ndarray, low_y: np.ndarray, high_y: np.ndarray) -> Span:
    with np.errstate(invalid="ignore"):
        corners = [x * y for x in (low_x, high_x) for y in (low_y, high_y)]
    corners = [np.nan_to_num(c, nan=0.0, posinf=np.inf, neginf=-np.inf) for c in corners]
    return np.minimum.reduce(np.broadcast_arrays(*corners)), np.maximum.reduce(np.broadcast_arrays(*corners))


COMBINED: dict[object, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Span]] = {
    operator.add: _add,
    operator.sub: _sub,
    operator.mul: _mul,
    max: lambda low_x, high_x, low_y, high_y: (np.maximum(low_x, low_y), np.maximum(high_x, high_y)),
    min: lambda low_x, high_x, low_y, high_y: (np.minimum(low_x, low_y), np.minimum(high_x, high_y)),
}
"""Bounds of what two operands are combined to, by the function of an operator."""


def _cast(found: Span, old: int, new: int) -> Span | None:
    low, high = found
    if new == onnx.TensorProto.BOOL:
        return ((low > 0) | (high < 0)).astype(np.float64), ((low != 0) | (high != 0)).astype(np.float64)
    exact = old == onnx.TensorProto.BOOL or new in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    return found if exact and new != onnx.TensorProto.UNDEFINED else None


def _regrouped(side: np.ndarray, old: Tensor, new: Tensor) -> np.ndarray | None:
    """Bounds behind a Reshape that only drops and adds dimensions of 1."""
    if side.size == 1:
        return side.reshape((1,) * len(new.known))
    kept = [i for i, size in enumerate(old.known) if size != 1]
    if [old.known[i] for i in kept] != [size for size in new.known if size != 1]:
        return None
    sizes = iter([side.shape[i] for i in kept])
    return side.reshape([1 if size == 1 else next(sizes) for size in new.known])


def _axis(node: Node) -> int:
    return int(attribute(node.proto, "axis"))


def _side_by_side(sides: list[np.ndarray], inputs: list[Tensor], axis: int) -> np.ndarray:
    shape = list(np.max([s.shape for s in sides], axis=0))
    wide = []
    for side, tensor in zip(sides, inputs, strict=True):
        size = tensor.known[axis]
        assert isinstance(size, int)
        wide.append(np.broadcast_to(side, [*shape[:axis], size, *shape[axis + 1 :]]))
    return np.concatenate(wide, axis=axis)


def _lead(array: np.ndarray, rank: int) -> np.ndarray:
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def _moved(node: Node, inputs: list[Tensor], side: np.ndarray) -> np.ndarray | None:
    """Bounds after an operator that moves elements; a dimension of 1 stands for one that does not differ."""
    op = node.proto.op_type
    attrs = attributes(node.proto)
    if op == "Transpose":
        return side.transpose(attrs["perm"])
    if not all(t.const for t in inputs[1:]):
        return None
    arrays = [t.array.reshape(-1) for t in inputs[1:]]
    if op in having(Fact.UNIT_DIMS):
        axes = tuple(int(a) for a in (arrays[0] if arrays else attrs["axes"]))
        return np.expand_dims(side, axes) if op == "Unsqueeze" else np.squeeze(side, axis=axes)
    if op == "Gather":
        axis = int(attrs.get("axis", 0))
        if inputs[1].array.ndim != 1:
            return None
        return side if side.shape[axis] == 1 else side.take(inputs[1].array, axis=axis)
    if op != "Slice":
        return None
    starts, ends, along = arrays[0], arrays[1], arrays[2]
    steps = arrays[3] if len(arrays) > 3 else np.ones_like(starts)
    index = [slice(None)] * side.ndim
    for start, end, axis, step in zip(starts, ends, along, steps, strict=True):
        if side.shape[int(axis)] != 1:
            index[int(axis)] = slice(int(start), int(end), int(step))
    return side[tuple(index)]
