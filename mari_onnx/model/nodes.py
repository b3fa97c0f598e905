"""One view of a graph for reading it: operators, attributes, constants, graphs within nodes, and who makes what.

The engine, the check and the report all read nodes of an ONNX file through here. Graphs within nodes may nest deeper
than Python recurses, so walks keep a stack of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

STANDARD = ""
"""The domain of the standard's operators, which files spell "" or "ai.onnx"."""


def domain(name: str) -> str:
    """A domain by its usual name: "ai.onnx" is the standard's, "" here."""
    return STANDARD if name == "ai.onnx" else name


def operator(node: NodeProto) -> str:
    """The operator of a node: `MatMul`, or `com.microsoft.Gelu` for one of another domain."""
    owner = domain(node.domain)
    return f"{owner}.{node.op_type}" if owner else node.op_type


def is_standard(node: NodeProto) -> bool:
    """Whether the operator is one of the ONNX standard."""
    return domain(node.domain) == STANDARD


def value(attribute: AttributeProto) -> Any:
    """An attribute as Python has it: strings decoded, repeated ones as a list, tensors and graphs as protobuf."""
    found = helper.get_attribute_value(attribute)
    if isinstance(found, bytes):
        return found.decode()
    if attribute.type == AttributeProto.STRINGS:
        return [each.decode() for each in found]
    return list(found) if isinstance(found, Sequence) and not isinstance(found, str) else found


def attributes(node: NodeProto) -> dict[str, Any]:
    """All attributes of a node by name; one that refers to an attribute of the function around it is left out."""
    return {each.name: value(each) for each in node.attribute if not each.ref_attr_name}


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """One attribute of a node, or the default where the node does not have it."""
    return next((value(each) for each in node.attribute if each.name == name and not each.ref_attr_name), default)


def constant(node: NodeProto) -> np.ndarray | None:
    """What a Constant holds, in whichever of its attributes; None for another operator, and for a sparse tensor."""
    if node.op_type != "Constant" or not is_standard(node):
        return None
    for each in node.attribute:
        if each.name == "value":
            return numpy_helper.to_array(each.t)
        if each.name in ("value_int", "value_ints"):
            return np.asarray(value(each), np.int64)
        if each.name in ("value_float", "value_floats"):
            return np.asarray(value(each), np.float32)
        if each.name in ("value_string", "value_strings"):
            return np.asarray(value(each), object)
    return None


def producers(nodes: Iterable[NodeProto]) -> dict[str, NodeProto]:
    """Tensor -> the node that computes it."""
    return {name: node for node in nodes for name in node.output if name}


def consumers(nodes: Iterable[NodeProto]) -> dict[str, list[NodeProto]]:
    """Tensor -> the nodes that read it, their inner graphs included, in order."""
    found: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in dict.fromkeys(reads(node)):
            found.setdefault(name, []).append(node)
    return found


def reads(node: NodeProto) -> list[str]:
    """Names that a node reads: its inputs, and what its inner graphs take from outside."""
    return [*(name for name in node.input if name), *captures(node)]


# ---- graphs within nodes ----------------------------------------------------------------------------------------
def attribute_graphs(attribute: AttributeProto) -> Sequence[GraphProto]:
    """The graphs that an attribute holds: one, several, or none."""
    return [attribute.g] if attribute.HasField("g") else attribute.graphs


def graphs(node: NodeProto) -> Iterator[GraphProto]:
    """The branches of an If, the body of a Loop or a Scan."""
    for each in node.attribute:
        yield from attribute_graphs(each)


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and every graph within it, however deep."""
    stack = [graph]
    while stack:
        top = stack.pop()
        yield top
        for node in top.node:
            stack.extend(graphs(node))


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes and every node of graphs within them, however deep; a node comes before those within it."""
    stack = [iter(nodes)]
    while stack:
        node = next(stack[-1], None)
        if node is None:
            stack.pop()
            continue
        yield node
        stack.extend(iter(graph.node) for graph in graphs(node))


def own_names(graph: GraphProto) -> frozenset[str]:
    """Names that a graph defines: its inputs, its initializers and the outputs of its nodes."""
    given = [*(i.name for i in graph.input), *(i.name for i in graph.initializer)]
    return frozenset([*given, *(o for node in graph.node for o in node.output)])


def all_names(graph: GraphProto) -> set[str]:
    """Every name of a tensor in a graph and the graphs within it."""
    found: set[str] = set()
    for each in all_graphs(graph):
        found |= own_names(each) | {o.name for o in each.output}
    return found


def free_name(base: str, taken: set[str]) -> str:
    """`base`, or the first of `base_1`, `base_2`, .. that is not taken; from then on it is."""
    name, k = base, 0
    while name in taken:
        k += 1
        name = f"{base}_{k}"
    taken.add(name)
    return name


def captures(node: NodeProto) -> list[str]:
    """Names that the graphs within a node read from outside."""
    found: dict[str, None] = {}
    stack = [(graph, own_names(graph)) for graph in graphs(node)][::-1]
    while stack:
        graph, own = stack.pop()
        read = [name for inner in graph.node for name in inner.input if name] + [o.name for o in graph.output]
        found.update(dict.fromkeys(name for name in read if name not in own))
        inside = [body for inner in graph.node for body in graphs(inner)]
        stack += [(body, own | own_names(body)) for body in reversed(inside)]
    return list(found)


def rename_captures(node: NodeProto, names: dict[str, str]) -> None:
    """Renames, in place, what the graphs within a node read from outside.

    names: old name -> new name. What a graph defines itself hides an outer name.
    """
    stack = [(graph, names) for graph in graphs(node)]
    while stack:
        graph, outer = stack.pop()
        own = own_names(graph)
        mapping = {k: v for k, v in outer.items() if k not in own}
        for inner in graph.node:
            for i, name in enumerate(inner.input):
                if name in mapping:
                    inner.input[i] = mapping[name]
            stack += [(body, mapping) for body in graphs(inner)]
        for output in graph.output:
            if output.name in mapping:
                output.name = mapping[output.name]


def held(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    """Tensors that the nodes' own attributes hold; a sparse one as its values and indices."""
    for node in nodes:
        for each in node.attribute:
            if each.HasField("t"):
                yield each.t
            yield from each.tensors
            if each.HasField("sparse_tensor"):
                yield each.sparse_tensor.values
                yield each.sparse_tensor.indices
