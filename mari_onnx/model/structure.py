"""Whether a graph is whole: every name defined once, before its use, in a known operator set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mari_onnx.errors import InvalidModel

if TYPE_CHECKING:
    import onnx


@dataclass
class _Scope:
    """Names seen so far in a graph, and the scope around it."""

    graph: onnx.GraphProto
    nodes: Iterator[tuple[int, onnx.NodeProto]]
    names: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> _Scope:
        names = {value.name for value in graph.input}
        names.update(tensor.name for tensor in graph.initializer)
        names.update(sparse.values.name for sparse in graph.sparse_initializer)
        return cls(graph, iter(enumerate(graph.node)), names)


def check_structure(model: onnx.ModelProto) -> None:
    """Raises InvalidModel with the node and tensor at fault; bodies of functions are not looked at.

    onnx.checker would copy all weights, and refuses models that run.
    """
    domains = {entry.domain or "ai.onnx" for entry in model.opset_import}
    domains.update(function.domain for function in model.functions)
    # A stack of its own: control flow may nest deeper than Python recurses.
    stack = [_Scope.of(model.graph)]
    while stack:
        scope = stack[-1]
        index, node = next(scope.nodes, (-1, None))
        if node is None:
            _check_outputs(scope, stack)
            stack.pop()
            continue
        what = f"node {node.name or index!r} ({node.op_type or 'no operator'})"
        if (node.domain or "ai.onnx") not in domains:
            raise InvalidModel(
                f"{what} is of domain {node.domain!r}, which the model does not import",
                "add the domain to opset_import, or export the model anew",
            )
        for name in node.input:
            if name and not any(name in each.names for each in reversed(stack)):
                raise InvalidModel(
                    f"{what} reads {name!r}, which nothing before it writes",
                    "the graph is incomplete or out of order; export the model anew",
                )
        for name in node.output:
            if name and name in scope.names:
                raise InvalidModel(f"{what} writes {name!r}, which was written before")
            scope.names.add(name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                stack.append(_Scope.of(attribute.g))
            stack.extend(_Scope.of(graph) for graph in attribute.graphs)


def _check_outputs(scope: _Scope, stack: list[_Scope]) -> None:
    for value in scope.graph.output:
        if not any(value.name in each.names for each in reversed(stack)):
            raise InvalidModel(
                f"graph {scope.graph.name!r}: nothing writes the output {value.name!r}",
                "the graph is incomplete; export the model anew",
            )
