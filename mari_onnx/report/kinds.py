"""What nodes of the output depend on, and which nodes of a graph run once per request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mari_onnx.model.ops import Fact, having

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Rewrite
    from mari_onnx.model.dims import Size
    from mari_onnx.report.records import Input

    Shapes = Mapping[str, tuple[Size, ...]]

_SIDES = {"user": "Shared", "item": "Item"}


def once(graph: onnx.GraphProto, shapes: Shapes, inputs: Sequence[Input]) -> list[bool]:
    """Which nodes depend on inputs, but on nothing that has N rows.

    Args:
        shapes: of the tensors; a node with an output whose shape is not known may have N rows.
        inputs: of the graph.
    """
    fed = {each.name for each in inputs}
    packed = {each.name for each in inputs if each.columns}
    rows = {x for x in fed if x not in shapes} | {x for x, shape in shapes.items() if _has_n(shape)}
    found = []
    for node in graph.node:
        # The user's columns of a packed input are read off its first row.
        first = node.op_type == "Slice" and node.input[0] in packed
        single = all(x in shapes and x not in rows for x in node.output if x)
        single = single and (first or not any(x in rows for x in node.input))
        if node.op_type in having(Fact.SIZES) or not any(x in fed for x in node.input):
            found.append(False)
            continue
        fed.update(x for x in node.output if x)
        rows.update(x for x in node.output if x and not single)
        found.append(single)
    return found


def _has_n(shape: tuple[Size, ...]) -> bool:
    return any("N" in d.symbols for d in shape if not isinstance(d, int))


def input_kinds(inputs: Sequence[Input]) -> dict[str, str]:
    """The kind of each input by name; one that is not tagged may be anything."""
    return {each.name: _SIDES.get(each.side or "", "Mixed") for each in inputs}


def source_kinds(graph: onnx.GraphProto, rewrite: Rewrite) -> list[str]:
    """The kind of each node of the source; what the engine did not look at may be anything."""
    known = {name: node.kind for node in rewrite.nodes for name in node.outputs if name}
    return [next((known[x] for x in node.output if x in known), "Mixed") for node in graph.node]


def output_kinds(graph: onnx.GraphProto, rewrite: Rewrite, inputs: Sequence[Input]) -> list[str]:
    """The kind of each node of the output graph; what runs once per request is Shared."""
    known = {mapped: rewrite.kinds[x] for x, mapped in rewrite.tensor_map.items() if x in rewrite.kinds}
    kinds: dict[str, str] = {**dict.fromkeys((t.name for t in graph.initializer), "Const")}
    kinds.update(input_kinds(inputs))
    found = []
    for node, single in zip(graph.node, once(graph, rewrite.out_shapes, inputs), strict=True):
        before = {kinds.get(x, "Const") for x in node.input if x} - {"Const"}
        if node.op_type in having(Fact.SIZES) or not before:
            kind = "Const"
        else:
            kind = before.pop() if len(before) == 1 else "Mixed"
        kind = "Shared" if single else next((known[x] for x in node.output if x in known), kind)
        kinds.update(dict.fromkeys(node.output, kind))
        found.append(kind)
    return found
