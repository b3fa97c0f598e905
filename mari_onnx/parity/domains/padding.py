"""The id that stands for padding, read from the graph.

A model that masks its history by the ids themselves compares them with a constant: `ids == 0`, `ids > 0`, `ids != -1`,
or casts them to booleans. Such a comparison is a *site*; `probe.py` says which input element it looks at, and thus
which number the comparison turns on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.model.nodes import attribute
from mari_onnx.model.ops import Fact, having, mirrored, row, turns_below
from mari_onnx.parity.domains.dependence import Probe
from mari_onnx.parity.domains.scope import PASSING, Scope

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.layout import Layout

# Between an input and a comparison: these move elements, or shift them by constants.
_JOINED = having(Fact.JOINS) | having(Fact.ADDS)
_BETWEEN = PASSING | having(Fact.PICKS) | _JOINED
# How far the last padded number is from the constant: x > c, x >= c, x < c, x <= c; and the same read from the right.
_NONE = -(2**60)


def numbers(model: onnx.ModelProto, layout: Layout, scope: Scope) -> dict[str, np.ndarray]:
    """Padding of inputs whose elements the graph compares with a constant, broadcastable to them; 0 where it compares
    none of an element."""
    sites = [s for s in dict.fromkeys(_sites(scope)) if _moves_only(s[0], scope)]
    if not sites:
        return {}
    for length in (5, 1):
        try:
            probe = Probe(model, layout, [tensor for tensor, _, _ in sites], length)
            break
        except MariError:
            continue
    else:
        return {}
    if not probe.names:
        return {}
    found, rank = np.full(probe.total, _NONE), np.full(probe.total, 3)
    for tensor, constant, exact in sites:
        if tensor not in probe.names:
            continue
        base, known = probe.zeros[tensor], probe.moved(tensor)
        slope = np.where(known, probe.ones[tensor] - base, 1)
        known &= (constant - base) % slope == 0
        number = (constant - base) // slope
        # An order tells padding from ids only below them: elsewhere it is a guard of the table's end.
        mine = np.where(exact, 0, np.where(number == 0, 1, np.where(number == -1, 2, 3)))
        for place, value, order in zip(probe.origin[tensor][known] - 1, number[known], mine[known], strict=True):
            if order < rank[place]:
                found[place], rank[place] = value, order
    answer = {}
    for name, part in probe.by_input(found):
        if (part != _NONE).any():
            # `folded` keeps the least that is not 0.
            kept = probe.folded(name, np.where(part == _NONE, 0, part - _NONE))
            answer[name] = np.where(kept == 0, 0, kept + _NONE)
    return answer


def _sites(scope: Scope) -> Iterator[tuple[str, int, bool]]:
    """Tensors that are compared, the constant, and whether for being equal."""
    import onnx

    wraps = _wraps(scope)
    for node in scope.graph.node:
        if node.output and node.output[0] in wraps:
            continue
        if node.op_type == "Cast" and attribute(node, "to", 0) == onnx.TensorProto.BOOL:
            yield node.input[0], 0, True
        elif row(node.op_type).holds:
            for tensor, other, op in (
                (node.input[0], node.input[1], node.op_type),
                (node.input[1], node.input[0], mirrored(node.op_type)),
            ):
                constant = _number(other, scope)
                if constant is not None:
                    # the last padded number: of x > c, x >= c, x < c, x <= c
                    below = op in having(Fact.ORDERS) and turns_below(op)
                    yield tensor, constant - below, op == "Equal"


def _wraps(scope: Scope) -> set[str]:
    """Conditions of `Where(ids < 0, ids + rows, ids)`: ids counted from the end are no padding."""
    found = set()
    for node in scope.graph.node:
        if node.op_type == "Where":
            other = scope.producer.get(node.input[1])
            if other is not None and other.op_type == "Add" and node.input[2] in other.input:
                found.add(node.input[0])
    return found


def _number(tensor: str, scope: Scope) -> int | None:
    """The one whole number that a constant holds throughout."""
    while tensor not in scope.constants and tensor in scope.producer:
        node = scope.producer[tensor]
        if node.op_type == "ConstantOfShape":
            from onnx import numpy_helper

            value = next((numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), np.zeros(1))
            break
        if node.op_type not in PASSING:
            return None
        tensor = node.input[0]
    else:
        value = scope.constants.get(tensor, np.zeros(0))
    if not value.size or value.dtype.kind not in "iuf" or not (value == value.reshape(-1)[0]).all():
        return None
    number = float(value.reshape(-1)[0])
    return int(number) if np.isfinite(number) and number == int(number) and abs(number) < 2**53 else None


def _moves_only(tensor: str, scope: Scope) -> bool:
    """Whether nothing but movement and shifts by constants lies between inputs and a tensor."""
    fed = {i.name for i in scope.graph.input} - {t.name for t in scope.graph.initializer}
    seen, stack, reached = set(), [tensor], False
    while stack:
        name = stack.pop()
        if name in seen or name in scope.constants:
            continue
        seen.add(name)
        node = scope.producer.get(name)
        if node is None:
            reached |= name in fed
            continue
        if node.op_type not in _BETWEEN:
            return False
        # Gather, Slice, Reshape: the other inputs are indices and shapes.
        stack.extend(node.input if node.op_type in _JOINED else node.input[:1])
    return reached
