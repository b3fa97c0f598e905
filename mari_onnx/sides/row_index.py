"""Inputs that say which row of other inputs a candidate belongs to: they differ between candidates by their nature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mari_onnx.errors import UsageError
from mari_onnx.model.nodes import attribute, captures, is_standard
from mari_onnx.model.ops import Fact, having
from mari_onnx.model.signature import signature
from mari_onnx.sides.resolve import Sides

if TYPE_CHECKING:
    import onnx

# What hands elements on as they are.
_PLAIN = having(Fact.VIEW) | having(Fact.SAME) | having(Fact.CONVERTS)


def row_indices(model: onnx.ModelProto) -> dict[str, frozenset[str]]:
    """Integer inputs that do nothing but pick rows (a Gather on axis 0) of what is computed from other inputs, each
    with these. An id, which picks rows of a weight, is none."""
    graph = model.graph
    inputs = signature(model).inputs
    whole = [i.name for i in inputs if i.dtype.kind in "iu"]
    origin = {name: name for name in whole}  # tensors that hold the elements of one input
    depends: dict[str, frozenset[str]] = {i.name: frozenset({i.name}) for i in inputs}
    found: dict[str, frozenset[str]] = {}
    other: set[str] = {o.name for o in graph.output}
    for node in graph.node:
        read = [name for name in (*node.input, *captures(node)) if name]
        all_of = frozenset().union(*(depends.get(name, frozenset()) for name in read))
        for out in node.output:
            depends[out] = all_of
        standard = is_standard(node)
        if standard and node.op_type in _PLAIN and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
            other.update(node.input[1:])
        elif standard and node.op_type == "Gather" and node.input[1] in origin and not attribute(node, "axis", 0):
            index, rows = origin[node.input[1]], depends.get(node.input[0], frozenset())
            if rows and index not in rows:
                found[index] = found.get(index, frozenset()) | rows
            else:
                other.add(node.input[1])
            other.add(node.input[0])
        else:
            other.update(read)
    used = {origin[name] for name in other if name in origin}
    return {name: rows for name, rows in found.items() if name not in used}


def refuse_row_indices(model: onnx.ModelProto, sides: Sides) -> None:
    """Raises `UsageError` where an index of user rows, with one entry per candidate, is tagged user."""
    for name, rows in row_indices(model).items():
        each, axis = signature(model).input(name), sides.axis_of(name)
        if sides.side(name) != "user" or axis is None or len(each.shape) <= axis or each.shape[axis] == 1:
            continue
        of = ", ".join(sorted(rows))
        if any(sides.side(row) == "user" for row in rows):
            raise UsageError(
                f"input {name!r} {each.text} picks, for each candidate, a row of {of}: it is an index of users, not an "
                "input of one user, and a model for one user would score all candidates with the same row",
                f"tag it --cross {name}, which is always right. The flag for such an index, --index {name}, for "
                "several users in one run, is not in this version",
            )
