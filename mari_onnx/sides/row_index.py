"""Inputs that say which row of other inputs a candidate belongs to: they differ between candidates by their nature."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mari_onnx.errors import UsageError
from mari_onnx.model.nodes import attribute, captures, is_standard
from mari_onnx.model.ops import Fact, having
from mari_onnx.model.signature import signature
from mari_onnx.sides.resolve import METADATA_KEY, Sides

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


# What an index goes through before it picks.
_HANDS_ON = _PLAIN | having(Fact.REPEATS) | having(Fact.JOINS) | having(Fact.ELEMENT)


def with_picked(model: onnx.ModelProto, sides: Sides) -> Sides:
    """The sides, with axis 0 of each input whose rows an index picks (`Sides.indices`) as the axis of its users.

    Raises:
        UsageError: there are several indices, one picks from no user input or is used otherwise too, or a user input
            has rows that it does not pick.
    """
    if not sides.indices or any(p.key == METADATA_KEY and p.value == sides.to_json() for p in model.metadata_props):
        return sides  # an output reads the index otherwise too, to find out where candidates stand
    if len(sides.indices) > 1 or sides.batched:
        also = f"--batched {sides.batched}" if sides.batched else f"--index {sides.indices[1]}"
        raise UsageError(f"--index {sides.indices[0]} and {also} both say whose candidates are whose", "give one")
    (index,) = sides.indices
    graph, inputs = model.graph, signature(model).inputs
    depends: dict[str, frozenset[str]] = {i.name: frozenset({i.name}) for i in inputs}
    handed, rows, other = {index}, set[str](), ""
    for node in graph.node:
        read = [name for name in (*node.input, *captures(node)) if name]
        all_of = frozenset().union(*(depends.get(name, frozenset()) for name in read))
        depends |= dict.fromkeys(node.output, all_of)
        mine = [name for name in read if name in handed]
        if not mine:
            continue
        data = depends.get(node.input[0], frozenset()) if node.input else frozenset()
        picks = is_standard(node) and node.op_type in having(Fact.LOOKUP) and mine == [node.input[1]]
        if picks and data and index not in data:
            rows |= data
        elif is_standard(node) and node.op_type in _HANDS_ON:
            handed.update(node.output)
        elif node.op_type not in having(Fact.SIZES):
            other = other or f"{node.name or node.output[0]} ({node.op_type}) reads it too"
    other = other or next((f"the output {o.name} is computed from it" for o in graph.output if o.name in handed), "")
    users = {name for name in rows if sides.side(name) == "user"}
    if other or not users:
        what = other or "it picks no row of an input that is tagged user"
        raise UsageError(
            f"input {index!r} is no index of user rows: {what}",
            f"--index is for an input that does nothing but pick rows of user inputs; tag others --cross {index}",
        )
    of_candidates = {i.shape[0] for i in inputs if i.name == index or sides.side(i.name) in ("item", "cross")}
    for each in inputs:
        rowed = each.shape and isinstance(each.shape[0], str) and each.shape[0] in of_candidates
        if sides.side(each.name) == "user" and each.name not in users and rowed:
            raise UsageError(
                f"user input {each.name!r} {each.text} has a row for each candidate, and --index {index} says that "
                "these are of several users",
                f"tag it --cross {each.name}",
            )
    return replace(sides, axes={**dict.fromkeys(sorted(users), 0), **sides.axes})


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
                f"give --index {name} instead: the rows are the users of several requests in one run "
                f"(docs/batching.md). --cross {name} is always right too, and saves nothing",
            )
