"""The id that stands for padding, read from the graph.

A model that masks its history by the ids themselves compares them with a constant: `ids == 0`, `ids > 0`, `ids != -1`,
or casts them to booleans. Such a comparison is a *site*; `probe.py` says which input element it looks at, and thus
which number the comparison turns on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.model.nodes import attribute
from mari_onnx.model.ops import Fact, having, mirrored, row, turns_below
from mari_onnx.parity.domains.dependence import Probe
from mari_onnx.parity.domains.scope import PASSING, Scope, sources

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
        known = probe.known[tensor] & (probe.start[tensor] == 0)
        base, slope = probe.base[tensor], np.where(known, probe.step[tensor], 1)
        known = known & ((constant - base) % slope == 0)
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
    import onnx

    ends = list(sources(tensor, scope, lambda node: node.input[:1] if node.op_type in PASSING else (), constant=True))
    if len(ends) != 1:
        return None
    node = scope.producer.get(ends[0])
    if ends[0] in scope.constants:
        value = scope.constants[ends[0]]
    elif node is not None and node.op_type == "ConstantOfShape":
        given = attribute(node, "value")
        value = np.zeros(1) if given is None else onnx.numpy_helper.to_array(given)
    else:
        return None
    if not value.size or value.dtype.kind not in "iuf" or not (value == value.reshape(-1)[0]).all():
        return None
    number = float(value.reshape(-1)[0])
    return int(number) if np.isfinite(number) and number == int(number) and abs(number) < 2**53 else None


def _moves_only(tensor: str, scope: Scope) -> bool:
    """Whether nothing but movement and shifts by constants lies between inputs and a tensor."""
    fed = {i.name for i in scope.graph.input} - {t.name for t in scope.graph.initializer}
    ends = set(sources(tensor, scope, _moved))
    return bool(ends & fed) and not any(name in scope.producer for name in ends)


def _moved(node: onnx.NodeProto) -> Sequence[str]:
    """Inputs whose elements a node moves or shifts; of Gather, Slice, Reshape the others are indices and shapes."""
    if node.op_type not in _BETWEEN:
        return ()
    return list(node.input if node.op_type in _JOINED else node.input[:1])
