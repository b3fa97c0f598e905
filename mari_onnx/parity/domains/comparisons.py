"""Where a graph tells the numbers of an input apart: comparisons, and bounds of Clip, Min, Max and Mod.

A site compares one tensor, which inputs reach through operators that move elements or calculate with constants, with
another tensor whose numbers no input moves: a weight, or a Range over a Shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.parity.domains.dependence import evaluate, reads
from mari_onnx.parity.domains.scope import PASSING, SMALL, Scope, attribute

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.layout import Layout

MIRRORED = {"Greater": "Less", "GreaterOrEqual": "LessOrEqual", "Less": "Greater", "LessOrEqual": "GreaterOrEqual"}
# The bound itself is the first number that is cut, or counts anew.
_BOUNDS = {"Clip": "Less", "Min": "Greater", "Max": "Less", "Mod": "GreaterOrEqual"}
_MOVES = PASSING | {"Slice", "Split", "Gather"}
_WHOLE = {"Floor", "Ceil", "Round"}
_CALCULATES = {"Add", "Sub", "Mul", "Div", "Mod", "Min", "Max"}
_ONE_OPERAND = {"Neg", "Clip", "Abs", "CastLike", *_WHOLE, *_MOVES}
# Nodes between an input and a site, or behind a computed constant, that are looked at.
_NODES = 200
# Stands for the number 0, which a cast to booleans compares with.
_ZERO = ""


@dataclass(frozen=True)
class Site:
    """One comparison.

    Attributes:
        tensor: what inputs move.
        op: `Equal`, `Less`, .. as if the tensor stood on its left.
        numbers: what it is compared with; of at least one element.
        moved_only: nothing but movement lies between inputs and the tensor.
        whole: the tensor holds whole numbers by a cast or by rounding, whatever the input's type.
    """

    tensor: str
    op: str
    numbers: np.ndarray
    moved_only: bool
    whole: bool


class Known:
    """Numbers of tensors that no input moves.

    Args:
        model: the source; its large weights may be unloaded external data.
        scope: of its main graph.
    """

    def __init__(self, model: onnx.ModelProto, layout: Layout, scope: Scope):
        self._constants = {**scope.constants, _ZERO: np.zeros(1)}
        moved = _moved(scope)
        self._pairs = [
            (tensor, other, op, between)
            for tensor, other, op in _pairs(scope)
            if tensor in moved and other not in moved and (between := _between(tensor, moved, scope)) is not None
        ]
        wanted = {other for _, other, _, _ in self._pairs if other not in self._constants}
        self._found, self.varying = _evaluated(model, layout, sorted(t for t in wanted if _is_short(t, scope)))

    def numbers(self, tensor: str) -> np.ndarray | None:
        """What a tensor holds, of free dimensions of 5; None where that is not known."""
        return self._constants.get(tensor, self._found.get(tensor))

    def sites(self) -> Iterator[Site]:
        """Comparisons with numbers that are the same for all N and all lengths of free dimensions."""
        for tensor, other, op, between in self._pairs:
            numbers = self.numbers(other)
            if numbers is not None and other not in self.varying and numbers.dtype.kind in "iuf" and numbers.size:
                yield Site(tensor, op, numbers, *between)


def _pairs(scope: Scope) -> Iterator[tuple[str, str, str]]:
    """What is compared, with what, and how."""
    import onnx

    for node in scope.graph.node:
        given = [t for t in node.input if t]
        if node.op_type == "Equal" or node.op_type in MIRRORED:
            yield given[0], given[1], node.op_type
            yield given[1], given[0], MIRRORED.get(node.op_type, node.op_type)
        elif node.op_type == "Cast" and attribute(node, "to", 0) == onnx.TensorProto.BOOL:
            yield given[0], _ZERO, "Equal"
        elif node.op_type in _BOUNDS:
            yield from ((given[0], other, _BOUNDS[node.op_type]) for other in given[1:])
            if node.op_type in ("Min", "Max"):
                yield from ((other, given[0], _BOUNDS[node.op_type]) for other in given[1:])


def _moved(scope: Scope) -> set[str]:
    """Tensors whose numbers inputs move; a shape is none of them."""
    found = {i.name for i in scope.graph.input} - {t.name for t in scope.graph.initializer}
    for node in scope.graph.node:
        if node.op_type not in ("Shape", "Size") and any(t in found for t in reads(node)):
            found.update(o for o in node.output if o)
    return found


def _between(tensor: str, moved: set[str], scope: Scope) -> tuple[bool, bool] | None:
    """Whether all on the way from inputs to a tensor moves only, and whether something makes it whole; None where
    something else is on the way."""
    import onnx

    moved_only, whole = True, False
    seen, stack = set(), [tensor]
    while stack:
        name = stack.pop()
        node = scope.producer.get(name)
        if name in seen or node is None:
            continue
        seen.add(name)
        given = [t for t in node.input if t in moved]
        if len(seen) > _NODES:
            return None
        if node.op_type == "Concat":
            stack.extend(given)
            continue
        # Two operands that inputs move, or indices that they move: no element has an input element of its own.
        if len(given) != 1 or (node.op_type in _ONE_OPERAND and node.input[0] != given[0]):
            return None
        if node.op_type not in _ONE_OPERAND | _CALCULATES:
            return None
        to = attribute(node, "to", 0) if node.op_type == "Cast" else 0
        if to == onnx.TensorProto.BOOL:
            return None
        type_ = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to)) if to else np.dtype(np.float32)
        cut = type_.kind in "iu"
        whole |= cut or node.op_type in _WHOLE
        moved_only &= node.op_type in _MOVES and not cut and type_.itemsize >= 4
        stack.append(given[0])
    return moved_only, whole


def _is_short(tensor: str, scope: Scope) -> bool:
    """Whether a tensor is computed by few nodes: no part of the model that works on weights."""
    seen: set[str] = set()
    stack = [tensor]
    while stack and len(seen) <= _NODES:
        name = stack.pop()
        node = scope.producer.get(name)
        if name in seen or node is None:
            continue
        seen.add(name)
        stack.extend(reads(node))
    return len(seen) <= _NODES


def _evaluated(
    model: onnx.ModelProto, layout: Layout, tensors: list[str]
) -> tuple[dict[str, np.ndarray], set[str]]:
    """What tensors hold, and those that hold something else for another N or another length."""
    if not tensors:
        return {}, set()
    n = layout.fixed_n or 2
    for length in (5, 1):  # of free dimensions: a graph may refuse one
        try:
            found = evaluate(model, layout, tensors, length, n)
            break
        except MariError:
            continue
    else:
        return {}, set()
    small = {name: value for name, value in found.items() if value.size <= SMALL}
    try:
        others = evaluate(model, layout, list(small), length + 2, layout.fixed_n or 3)
    except MariError:
        others = {} if layout.free or layout.fixed_n is None else small
    same = {name for name, value in small.items() if name in others and np.array_equal(value, others[name])}
    return small, small.keys() - same


def counts(numbers: np.ndarray) -> int | None:
    """T where an array, or each of its rows, holds 0 to T-1 or 1 to T in any order; None else. T is at least 2."""
    if numbers.size < 2 or numbers.dtype.kind not in "iuf":
        return None
    flat = numbers.reshape(-1)
    if numbers.ndim > 1 and numbers.shape[-1] > 1 and (numbers == numbers.reshape(-1, numbers.shape[-1])[0]).all():
        flat = numbers.reshape(-1, numbers.shape[-1])[0]
    steps = np.arange(flat.size)
    return int(flat.size) if any((np.sort(flat) == steps + first).all() for first in (0, 1)) else None
