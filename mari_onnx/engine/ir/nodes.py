"""Nodes as a file has them: the graphs within, what these read from outside, and what a node computes of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, helper
from onnx.reference import ReferenceEvaluator

from mari_onnx.model.ops import Fact, having

RANDOM = having(Fact.RANDOM)


def evaluate(proto: NodeProto, arrays: Sequence[np.ndarray | None], opset: int) -> np.ndarray:
    """One node on arrays, by onnx's reference evaluator. Raises whatever it raises."""
    node = NodeProto()
    node.CopyFrom(proto)
    names = [f"i{k}" if a is not None else "" for k, a in enumerate(arrays)]
    del node.input[:], node.output[:]
    node.input.extend(names)
    node.output.append("o")
    feeds = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
    infos = [onnx.ValueInfoProto(name=n) for n in feeds]
    graph = helper.make_graph([node], "fold", infos, [onnx.ValueInfoProto(name="o")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    with np.errstate(all="ignore"):
        outputs: Sequence[np.ndarray] = ReferenceEvaluator(model).run(None, feeds)  # type: ignore[assignment]
        return np.asarray(outputs[0])


def graphs(node: NodeProto) -> Iterator[GraphProto]:
    """The branches of an If, the body of a Loop or a Scan."""
    for attribute in node.attribute:
        yield from _graphs(attribute)


def _graphs(attribute: AttributeProto) -> Sequence[GraphProto]:
    return [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs


def is_random(node: NodeProto) -> bool:
    """Whether two equal nodes need not compute the same: it draws numbers, or a body of it does."""
    if node.op_type in RANDOM or (node.op_type == "Dropout" and len(node.input) > 2):
        return True
    return any(is_random(inner) for graph in graphs(node) for inner in graph.node)


def rename_subgraphs(attribute: AttributeProto, names: dict[str, str]) -> None:
    """Rename what subgraphs read from outside; what a subgraph defines itself hides an outer name."""
    for graph in _graphs(attribute):
        own = _own(graph)
        mapping = {k: v for k, v in names.items() if k not in own}
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name in mapping:
                    node.input[i] = mapping[name]
            for inner in node.attribute:
                rename_subgraphs(inner, mapping)
        for output in graph.output:
            if output.name in mapping:
                output.name = mapping[output.name]


def captures(node: NodeProto) -> list[str]:
    """Names that the subgraphs of a node read from outside."""
    found: dict[str, None] = {}

    def walk(graph: GraphProto, hidden: frozenset[str]) -> None:
        own = hidden | _own(graph)
        read = [name for inner in graph.node for name in inner.input if name] + [o.name for o in graph.output]
        found.update(dict.fromkeys(name for name in read if name not in own))
        for inner in graph.node:
            for body in graphs(inner):
                walk(body, own)

    for graph in graphs(node):
        walk(graph, frozenset())
    return list(found)


def _own(graph: GraphProto) -> frozenset[str]:
    """Names that a graph defines."""
    given = [*(i.name for i in graph.input), *(i.name for i in graph.initializer)]
    return frozenset([*given, *(o for node in graph.node for o in node.output)])


def names(graph: onnx.GraphProto) -> set[str]:
    """Every tensor name of the graph and its subgraphs."""
    names: set[str] = set()
    stack = [graph]
    while stack:
        top = stack.pop()
        names |= {i.name for i in top.initializer} | {i.name for i in top.input} | {o.name for o in top.output}
        for node in top.node:
            names |= set(node.output)
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    stack.append(attribute.g)
                stack += list(attribute.graphs)
    return names
