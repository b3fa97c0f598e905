"""Lower and upper bounds of each element of a tensor, to see which scores a mask keeps out of a softmax.

Exporters write masks in many ways (Where over And, Or and Not, a sum with -inf, ``(1 - mask) * -1e9``, Min); interval
arithmetic over the operators covers all of them. `transfer` computes the bounds of an operator's result from those of
its operands. `span` applies it to tensors of the new graph, whose masks are constants; `lookahead.masked_rows` applies
it to the source, for each value of the booleans that its masks are made of. `magnitude` bounds tensors that no mask
changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeVar

import numpy as np
from onnx import NodeProto, TensorProto

from mari_onnx.engine.analysis.magnitude import bound
from mari_onnx.engine.ir.value import Node, Tensor
from mari_onnx.model.dims import Size
from mari_onnx.model.nodes import attribute, attributes, is_standard
from mari_onnx.model.ops import Fact, having

F = TypeVar("F", bound=Callable[..., Any])
Span = tuple[np.ndarray, np.ndarray]
"""Lower and upper bounds, float64, broadcastable to the tensor's dimensions and of its rank. Booleans are 0 and 1."""
Place = Callable[[Sequence[np.ndarray]], np.ndarray | None]
"""Where a node that moves elements, or joins them, puts those of arrays like its operands; None where that is unknown.
"""
LIMIT = 1 << 22
"""Elements of a constant up to which it is looked into."""
DEPTH = 16
"""Operators between a mask and the scores."""
VARIADIC = having(Fact.VARIADIC)
PLACED = having(Fact.MOVES) - having(Fact.FILLS)
INTERVALS: dict[str, Callable[..., Any]] = {}
"""By operator, the bounds of its result from those of its operands: two at a time if it takes any number."""


def bounds_of(*ops: str) -> Callable[[F], F]:
    """Registers a function that gives bounds of what these operators compute element by element."""

    def register(function: F) -> F:
        INTERVALS.update(dict.fromkeys(ops, function))
        return function

    return register


def operands(node: NodeProto) -> int:
    """How many inputs, from the first on, `transfer` wants the bounds of; 0 where it can tell nothing of the node."""
    if not is_standard(node):
        return 0
    if node.op_type in INTERVALS or node.op_type == "Concat":
        return len(node.input)
    return int(node.op_type in PLACED or node.op_type == "Cast")


def transfer(node: NodeProto, spans: Sequence[Span], place: Place) -> Span | None:
    """Bounds of what a node computes of tensors with these bounds; None where there are none.

    spans: of as many inputs as `operands` says.
    """
    op = node.op_type
    if op == "Cast":
        return _cast(spans[0], attribute(node, "to"))
    if op in INTERVALS:
        found: Span | None = reduce(INTERVALS[op], spans) if op in VARIADIC else INTERVALS[op](*spans)
        return found
    low, high = (place([span[side] for span in spans]) for side in (0, 1))
    return (low, high) if low is not None and high is not None else None


def span(tensor: Tensor, depth: int = DEPTH) -> Span:
    """Bounds of the elements of a tensor of the new graph.

    Constant masks give each element its own bounds, through arithmetic and what only moves elements; everything else
    has one bound for all. What a model computes is finite: the sum of -inf and a score is -inf, 0 times it is 0.
    """
    if depth not in tensor.spans:
        tensor.spans[depth] = _found(tensor, depth) or _of_size(tensor)
    return tensor.spans[depth]


def _found(tensor: Tensor, depth: int) -> Span | None:
    if tensor.const:
        array = tensor.array
        if array.dtype == object or array.size > LIMIT:
            return None
        return (array.astype(np.float64),) * 2
    node = tensor.node
    count = operands(node.proto) if node is not None and depth else 0
    if node is None or not count:
        return None
    spans = [span(t, depth - 1) for t in node.inputs[:count] if t is not None]
    return transfer(node.proto, spans, lambda sides: _placed(node, tensor, sides))


def _of_size(tensor: Tensor) -> Span:
    shape = (1,) * len(tensor.known)
    if tensor.dtype == TensorProto.BOOL:
        return np.zeros(shape), np.ones(shape)
    most = np.full(shape, bound(tensor))
    return -most, most


@bounds_of("Add", "Sum")
def _add(x: Span, y: Span) -> Span:
    with np.errstate(invalid="ignore"):
        low, high = x[0] + y[0], x[1] + y[1]
    high = np.where(np.isneginf(x[1]) | np.isneginf(y[1]), -np.inf, high)
    return np.nan_to_num(low, nan=-np.inf, posinf=np.inf, neginf=-np.inf), high


@bounds_of("Sub")
def _subtract(x: Span, y: Span) -> Span:
    return _add(x, _negative(y))


@bounds_of("Neg")
def _negative(x: Span) -> Span:
    return -x[1], -x[0]


@bounds_of("Mul")
def _multiply(x: Span, y: Span) -> Span:
    with np.errstate(invalid="ignore"):
        corners = [a * b for a in x for b in y]
    corners = [np.nan_to_num(c, nan=0.0, posinf=np.inf, neginf=-np.inf) for c in corners]
    return np.minimum.reduce(np.broadcast_arrays(*corners)), np.maximum.reduce(np.broadcast_arrays(*corners))


@bounds_of("Div")
def _divide(x: Span, y: Span) -> Span | None:
    """Of integers too, whose quotient is cut towards 0."""
    if not np.all((y[0] > 0) | (y[1] < 0)):
        return None
    low, high = _multiply(x, (1 / y[1], 1 / y[0]))
    return np.where(low > 0, np.floor(low), low), np.where(high < 0, np.ceil(high), high)


@bounds_of("Max", "Or")
def _largest(x: Span, y: Span) -> Span:
    return np.maximum(x[0], y[0]), np.maximum(x[1], y[1])


@bounds_of("Min", "And")
def _smallest(x: Span, y: Span) -> Span:
    return np.minimum(x[0], y[0]), np.minimum(x[1], y[1])


@bounds_of("Not")
def _not(x: Span) -> Span:
    return 1 - x[1], 1 - x[0]


@bounds_of("Identity")
def _same(x: Span) -> Span:
    return x


@bounds_of("Where")
def _chosen(condition: Span, x: Span, y: Span) -> Span:
    surely, never = condition[0] == 1, condition[1] == 0
    low = np.where(surely, x[0], np.where(never, y[0], np.minimum(x[0], y[0])))
    return low, np.where(surely, x[1], np.where(never, y[1], np.maximum(x[1], y[1])))


def _cast(x: Span, to: int) -> Span | None:
    low, high = x
    if to == TensorProto.BOOL:
        return ((low > 0) | (high < 0)).astype(np.float64), ((low != 0) | (high != 0)).astype(np.float64)
    if to in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return x
    fits = np.all(low >= 0) and np.all(high <= 1)  # whatever is cut or rounded
    return (np.floor(low), np.ceil(high)) if fits else None


# ---- elements at other places -----------------------------------------------------------------------------------
def _placed(node: Node, out: Tensor, sides: Sequence[np.ndarray]) -> np.ndarray | None:
    """Bounds of elements that are moved or joined; a dimension of 1 stands for one that does not differ."""
    op, side, attrs = node.proto.op_type, sides[0], attributes(node.proto)
    inputs = [t for t in node.inputs if t is not None]
    if op == "Concat":
        return side_by_side(sides, [t.known for t in inputs], attrs["axis"])
    rank = len(out.known)
    if side.size == 1:
        return side.reshape((1,) * rank)
    if op == "Expand":
        return side.reshape((1,) * (rank - side.ndim) + side.shape)
    if op in having(Fact.VIEW):
        return _regrouped(side, inputs[0], out)
    if op == "Transpose":
        return side.transpose(attrs.get("perm"))
    if not all(t.const for t in inputs[1:]):
        return None
    arrays = [t.array for t in inputs[1:]]
    if op == "Gather":
        axis = attrs.get("axis", 0)
        return side.take(arrays[0] if side.shape[axis] > 1 else np.zeros_like(arrays[0]), axis=axis)
    if op != "Slice":
        return None
    starts, ends = arrays[:2]
    along = arrays[2] if len(arrays) > 2 else range(len(starts))
    steps = arrays[3] if len(arrays) > 3 else np.ones_like(starts)
    index = [slice(None)] * side.ndim
    for start, end, axis, step in zip(starts, ends, along, steps, strict=True):
        if side.shape[axis] != 1:
            index[axis] = slice(int(start), int(end), int(step))
    return side[tuple(index)]


def _regrouped(side: np.ndarray, old: Tensor, new: Tensor) -> np.ndarray | None:
    """Bounds behind a Reshape that only drops and adds dimensions of 1."""
    kept = [i for i, size in enumerate(old.known) if size != 1]
    if [old.known[i] for i in kept] != [size for size in new.known if size != 1]:
        return None
    sizes = iter([side.shape[i] for i in kept])
    return side.reshape([1 if size == 1 else next(sizes) for size in new.known])


def side_by_side(sides: Sequence[np.ndarray], shapes: Sequence[tuple[Size, ...]], axis: int) -> np.ndarray | None:
    """Bounds of what a Concat joins, where the tensors have these shapes; None where one has no known size there."""
    wide = list(np.max([s.shape for s in sides], axis=0))
    parts = []
    for side, shape in zip(sides, shapes, strict=True):
        wide[axis] = shape[axis]
        if not isinstance(shape[axis], int):
            return None
        parts.append(np.broadcast_to(side, wide))
    return np.concatenate(parts, axis=axis)
