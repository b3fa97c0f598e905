"""Inputs that are lengths, masks, or positive, by what is done with their elements.

A mask is what is multiplied with features as 0 or 1, what moves scores by a very large number or by none, or what
nothing but conditions look at that tell 0 from 1. What an input is called says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.model.ops import Fact, having, row
from mari_onnx.parity.domains.reactions import counts
from mari_onnx.parity.domains.scope import PASSING

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.domains.trace import Curve, Trace

# A score that moves by more than this is masked; by a logarithm, already by less.
_LARGE, _LARGE_LOG = 5e3, 15.0
_PRODUCTS = having(Fact.MULTIPLIES) | having(Fact.PRODUCT) - having(Fact.CONV) - having(Fact.QUANTIZED)
_SUMS = having(Fact.ADDS) | having(Fact.VARIADIC)
# So many operators may lie between a sum and the softmax of it.
_STEPS = 4


@dataclass(frozen=True)
class Role:
    """What elements of an input are used as.

    Attributes:
        name: "length", "mask", "addend" or "positive".
        size: of a length, its upper bound where that is known.
        low: of a length, its lower bound.
        real: a mask whose elements may as well be other numbers.
    """

    name: str
    size: int | None = None
    low: int = 0
    real: bool = False

    @property
    def rank(self) -> int:
        """Where elements are used in two ways, that of the lowest rank tells more."""
        return 2 * ("length", "mask", "addend", "positive").index(self.name) + self.real


def roles(trace: Trace, varying: set[str]) -> dict[tuple[str, int], Role]:
    """Of inputs and places that have one.

    Args:
        varying: static tensors that hold something else for other lengths.
    """
    found: dict[tuple[str, int], Role] = {}
    ends: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for node in trace.parts.nodes:
        for key, role in _of_node(node, trace, varying):
            if key not in found or role.rank < found[key].rank:
                found[key] = role
    for tensor in trace.curves:
        readers = trace.parts.readers.get(tensor, [])
        if not readers or not all(_goes_on(node, trace) for node in readers):
            for name, place, element in trace.owners(tensor, curves=True):
                ends.setdefault((name, place), []).append((tensor, element))
    for key, several in ends.items():
        if key not in found:
            curves = [_at(trace.curves[t], e) for t, e in several]
            by_ends = _of_ends(trace.input(key[0]).dtype, curves)
            if by_ends is not None:
                found[key] = by_ends
    return found


def _of_node(node: onnx.NodeProto, trace: Trace, varying: set[str]) -> Iterator[tuple[tuple[str, int], Role]]:
    given = [t for t in node.input if t]
    if node.op_type in having(Fact.ORDERS):
        for tensor, other in (given, given[::-1]):
            if tensor not in trace.curves:
                continue
            size = counts(trace.constants[other]) if other in trace.constants else None
            if size is None and not (other in varying and trace.counted(other)):
                continue
            for name, place, element in trace.owners(tensor):
                if abs(trace.curves[tensor].slope[element]) == 1 and trace.input(name).dtype.kind in "iuf":
                    yield (name, place), Role("length", None if other in varying else size)
    elif row(node.op_type).gates and len(node.input) > 4 and node.input[4] in trace.curves:
        steps = trace.parts.known.get(node.input[0], (None,))[0]
        for name, place, _ in trace.owners(node.input[4]):
            yield (name, place), Role("length", steps if node.input[0] not in varying else None, 1)
    elif node.op_type in _PRODUCTS | _SUMS:
        for number, tensor in enumerate(given):
            others = [t for k, t in enumerate(given) if k != number and t not in trace.parts.static]
            if tensor not in trace.curves or not others or (node.op_type == "Div" and number == 1):
                continue
            several = list(trace.owners(tensor))
            if len({name for name, _, _ in several}) != 1 or (trace.curves[tensor].origin < 0).any():
                continue  # features that stand side by side
            if node.op_type in _PRODUCTS and any(trace.reach[tensor] & trace.reach.get(t, 0) for t in others):
                continue  # it is multiplied with what it made itself: a gate, or a cross
            if node.op_type in _SUMS and trace.type_of(tensor).kind != "f":
                continue  # whole numbers are no scores: ids are put together so
            for name, place, element in several:
                operand = _as_operand(node, *_ends_of(trace.curves[tensor], element))
                if operand is not None:
                    yield (name, place), operand
                elif trace.curves[tensor].same[element] and _weighs(node, trace):
                    yield (name, place), Role("addend", real=True)


def _weighs(node: onnx.NodeProto, trace: Trace) -> bool:
    """Whether a sum is taken the softmax of: what is added to scores there may be a mask."""
    if node.op_type not in _SUMS:
        return False
    readers = [node]
    for _ in range(_STEPS):
        readers = [r for n in readers for o in n.output for r in trace.parts.readers.get(o, ())]
        if any(r.op_type in having(Fact.SOFTMAX) for r in readers):
            return True
        readers = [r for r in readers if r.op_type in PASSING | _SUMS]
    return False


def together(several: Mapping[int, Role], places: int, dtype: np.dtype) -> Role | None:
    """The role of a whole input, by those of its places; None where it has none, or one in some of them alone."""
    if dtype.kind == "b":
        return Role("mask")
    names = {role.name for role in several.values()}
    if len(several) < places or len(names) != 1:
        return None
    sizes = [role.size for role in several.values()]
    return Role(
        names.pop(),
        None if None in sizes else min(s for s in sizes if s is not None),
        max(role.low for role in several.values()),
        any(role.real for role in several.values()),
    )


def _ends_of(curve: Curve, element: int) -> tuple[float, float, bool]:
    """An element at 0 and at 1, and whether its way is a straight line."""
    x, y = _at(curve, element)
    zero, one = (y[x == number] for number in (0.0, 1.0))
    if not zero.size or not one.size:
        return np.nan, np.nan, False
    return float(zero[0]), float(one[0]), not np.isnan(curve.slope[element])


def _as_operand(node: onnx.NodeProto, zero: float, one: float, straight: bool) -> Role | None:
    if node.op_type in _PRODUCTS:
        return Role("mask", real=True) if {zero, one} == {0.0, 1.0} else None
    small, large = sorted((abs(zero), abs(one)))
    far = _LARGE if straight else _LARGE_LOG
    return Role("mask") if large >= far and small <= 1e-3 * min(large, _LARGE) else None


def _goes_on(node: onnx.NodeProto, trace: Trace) -> bool:
    """Whether an element behind a node is still that of one input element."""
    outputs = [trace.curves.get(o) for o in node.output if o]
    return node.op_type != "Concat" and all(curve is not None and not curve.several.any() for curve in outputs)


def _at(curve: Curve, element: int) -> tuple[np.ndarray, np.ndarray]:
    return curve.x[:, element], curve.y[:, element]


def _of_ends(dtype: np.dtype, curves: list[tuple[np.ndarray, np.ndarray]]) -> Role | None:
    """The role of an input by all that its elements come to."""
    if not curves or any(not len(x) for x, _ in curves):
        return None
    if dtype.kind in "iuf":
        two = [len(np.unique(y[~np.isnan(y)])) == 2 for _, y in curves]
        apart = [bool(len(y[x == 0]) and len(y[x == 1]) and y[x == 0][0] != y[x == 1][0]) for x, y in curves]
        if all(two) and all(apart):
            return Role("mask", real=True)
    if dtype.kind == "f":
        for x, y in curves:
            below, above = y[x <= -1], y[x >= 1]
            if len(below) and not np.isfinite(below[x[x <= -1] >= -4]).any() and np.isfinite(above).any():
                return Role("positive")
    return None
