"""Where to cut: the minimum cut between what is computed beforehand and what is left for each request.

In: a draft, its rates, the time of each node, and what it costs to hand a tensor over. Out: the tensors to hand over.
A node of one rate that stays in the score model costs its time; a tensor that the score model reads across the cut
costs what handing it over takes. The part before the cut may compute anything again, so it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import networkx

from mari_onnx.engine.ir.value import Node, Tensor
from mari_onnx.engine.outcome import Draft

UNIT = 1e13
"""Capacities are whole tenths of picoseconds: an algorithm on floats may not end."""
BEFORE, SCORE = "before", "score"


def cut(
    draft: Draft,
    mine: Callable[[Tensor], bool],
    seconds: Mapping[Node, float],
    handing: Callable[[Tensor], float | None],
) -> list[Tensor]:
    """The tensors to hand over, so that what is left takes least time.

    Args:
        mine: whether a tensor has the rate that is cut off.
        seconds: of each node, in one run of the score model.
        handing: seconds that it takes to hand a tensor over; None where that cannot be done. Inputs always can.

    Source: a minimum s-t cut (Ford and Fulkerson, 1956), as networkx computes it.
    """
    graph = networkx.DiGraph()
    graph.add_nodes_from((BEFORE, SCORE))
    tensors: dict[str, Tensor] = {}

    def place(node: Node) -> object:
        return ("node", node.outputs[0].name) if mine(node.outputs[0]) else SCORE

    def read(t: Tensor, by: object) -> None:
        """`by` needs `t` if it is in the score model."""
        if t.const or not mine(t):
            return
        at = ("tensor", t.name)
        if t.name not in tensors:
            tensors[t.name] = t
            price = handing(t)
            maker = place(t.node) if t.node is not None else BEFORE
            if price is None and t.node is not None:
                graph.add_edge(maker, at)  # without a capacity it is never cut
            else:
                graph.add_edge(maker, at, capacity=round((price or 0.0) * UNIT))
        graph.add_edge(at, by)

    for node in draft.nodes:
        if mine(node.outputs[0]):
            graph.add_edge(BEFORE, place(node), capacity=round(seconds[node] * UNIT) + 1)
        for t in [*node.inputs, *node.captured]:
            if t is not None:
                read(t, place(node))
    for t in draft.outputs:
        read(t, SCORE)
    _, (before, after) = networkx.minimum_cut(graph, BEFORE, SCORE)
    handed = []
    for name, t in tensors.items():
        made_before = t.node is None or place(t.node) in before
        if ("tensor", name) in after and made_before:
            handed.append(t)
    return handed
