"""Nodes in an order in which each reads only what an earlier one wrote.

ONNX demands it, onnxruntime does not, and tools that insert nodes append them: onnxruntime's float16 converter leaves
the Casts of inputs behind their readers.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mari_onnx.model.nodes import all_graphs, graphs

if TYPE_CHECKING:
    import onnx


def put_in_order(model: onnx.ModelProto, *, copy: bool) -> onnx.ModelProto:
    """The model with the nodes of each graph sorted, in place or as a copy; the model itself where they are.

    Nodes keep their order as far as they can. A graph with a cycle is left as it is.
    """
    if not any(_order(graph) for graph in all_graphs(model.graph)):
        return model
    if copy:
        original, model = model, type(model)()
        model.CopyFrom(original)
    for graph in all_graphs(model.graph):
        order = _order(graph)
        if order:
            count = len(graph.node)
            graph.node.extend([graph.node[i] for i in order])
            del graph.node[:count]
    return model


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, the names that its bodies take from around them included (and some of their own)."""
    yield from node.input
    for body in graphs(node):
        for graph in all_graphs(body):
            for inner in graph.node:
                yield from inner.input
            for output in graph.output:
                yield output.name


def _order(graph: onnx.GraphProto) -> list[int] | None:
    """A new order of the nodes; None where they are in order, or cannot be."""
    writer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [{writer[n] for n in _reads(node) if n in writer and writer[n] != i} for i, node in enumerate(graph.node)]
    if all(not need or max(need) < i for i, need in enumerate(needs)):
        return None
    readers: list[list[int]] = [[] for _ in needs]
    for i, need in enumerate(needs):
        for j in need:
            readers[j].append(i)
    left = [len(need) for need in needs]
    ready = [i for i, count in enumerate(left) if not count]
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for reader in readers[i]:
            left[reader] -= 1
            if not left[reader]:
                heapq.heappush(ready, reader)
    return order if len(order) == len(needs) else None
