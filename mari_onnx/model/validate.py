"""Whether a graph is whole: every name defined once, before its use, in a known operator set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mari_onnx.errors import InvalidModel
from mari_onnx.model.functions import depths
from mari_onnx.model.nodes import graphs

if TYPE_CHECKING:
    import onnx


@dataclass
class _Scope:
    """Names seen so far in a graph, and the scope around it."""

    graph: onnx.GraphProto
    nodes: Iterator[tuple[int, onnx.NodeProto]]
    outer: _Scope | None
    names: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, graph: onnx.GraphProto, outer: _Scope | None = None) -> _Scope:
        names = {value.name for value in graph.input}
        names.update(tensor.name for tensor in graph.initializer)
        names.update(sparse.values.name for sparse in graph.sparse_initializer)
        return cls(graph, iter(enumerate(graph.node)), outer, names)

    def sees(self, name: str) -> bool:
        scope: _Scope | None = self
        while scope is not None and name not in scope.names:
            scope = scope.outer
        return scope is not None


def check_structure(model: onnx.ModelProto) -> None:
    """Raises InvalidModel with the node and tensor at fault; of functions, only who calls whom is looked at.

    onnx.checker would copy all weights, and refuses models that run.
    """
    domains = {entry.domain or "ai.onnx" for entry in model.opset_import}
    domains.update(function.domain for function in model.functions)
    depths(model)
    # A stack of its own: control flow may nest deeper than Python recurses.
    stack = [_Scope.of(model.graph)]
    while stack:
        scope = stack[-1]
        index, node = next(scope.nodes, (-1, None))
        if node is None:
            _check_outputs(scope)
            stack.pop()
            continue
        what = f"node {node.name or index!r} ({node.op_type or 'no operator'})"
        if (node.domain or "ai.onnx") not in domains:
            raise InvalidModel(
                f"{what} is of domain {node.domain!r}, which the model does not import",
                "add the domain to opset_import, or export the model anew",
            )
        for name in node.input:
            if name and not scope.sees(name):
                raise InvalidModel(
                    f"{what} reads {name!r}, which nothing before it writes",
                    "the graph is incomplete, or its nodes wait for each other; export the model anew",
                )
        for name in node.output:
            if name and name in scope.names:
                raise InvalidModel(f"{what} writes {name!r}, which an earlier node writes too")
            scope.names.add(name)
        stack.extend(_Scope.of(graph, scope) for graph in graphs(node))


def _check_outputs(scope: _Scope) -> None:
    for value in scope.graph.output:
        if not scope.sees(value.name):
            raise InvalidModel(
                f"graph {scope.graph.name!r}: nothing writes the output {value.name!r}",
                "the graph is incomplete; export the model anew",
            )
