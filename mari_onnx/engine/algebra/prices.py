"""What the terms of a contraction cost: their products, and the element-wise work that their operands need.

In: terms, and the nodes written so far. Out: estimated times, in multiply-adds of a GEMM (`cost/time_model.py`).
`contract` compares them to choose between a tensor and the other ways to compute it.
"""

from __future__ import annotations

from collections.abc import Sequence

from mari_onnx.engine.algebra.products import Term
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Leaf, Node, Tensor, axes_of, offline
from mari_onnx.model.ops import Fact, having, row

NEARBY = 100
"""Nodes before the leaf's own that are searched for work of a form; a rule writes both ways one after the other."""
WRITE = 0.5
"""The share of a tensor's cost that is charged to one product that reads it: other nodes may read it too."""


def price(b: Builder, terms: Sequence[Term]) -> float:
    """The products, and a share of what it costs to write those operands that have another way to be computed."""
    total = 0.0
    for term in terms:
        total += term.cost(b.time)
        for leaf in (term.a, term.c):
            if leaf.tensor.alternatives.form is not None and not offline(b.time, leaf):
                op = maker(leaf.tensor)
                share = WRITE if row(op or "").price is None else 1.0
                total += share * b.time.element_of(op) * b.time.volume(axes_of(leaf))
    return total


def maker(tensor: Tensor) -> str | None:
    """The operator that computed a tensor's elements; operators that only move them are skipped. None for an input."""
    while tensor.node is not None:
        node = tensor.node
        op = node.proto.op_type
        if op not in having(Fact.MOVES) or node.inputs[0] is None:
            return op
        tensor = node.inputs[0]
    return None


def extra_price(b: Builder, leaf: Leaf, mark: int, terms: Sequence[Term]) -> float:
    """The price of nodes that the terms need and that computing ``leaf`` directly does not.

    mark: how many nodes there were before the terms were written.
    """
    time = b.time
    made = leaf.tensor.node
    first = min(mark, (made.index if made is not None else mark) - NEARBY)
    needed = _ancestors([leaf.tensor], first)
    total = 0.0
    operands = [t.a.tensor for t in terms] + [t.c.tensor for t in terms]
    more = _ancestors(operands + [g.tensor for t in terms for g in t.outer], first) - needed
    for node in sorted(more, key=lambda node: node.index):
        if time.apart and node.outputs[0].deps == {"item"}:
            continue  # once per item
        sizes = {t.shape for t in node.inputs if t is not None and t.shape != ()}
        spread = len(sizes) > 1 and node.proto.op_type in having(Fact.ELEMENT)
        each = time.spread if spread else time.element_of(node.proto.op_type)
        total += each * time.volume([Axis(s) for s in node.outputs[0].known])
    return total


def _ancestors(tensors: Sequence[Tensor], first: int) -> set[Node]:
    """The nodes that the tensors are computed by, from index ``first`` on."""
    found: set[Node] = set()
    stack = list(tensors)
    while stack:
        node = stack.pop().node
        if node is not None and node.index >= first and node not in found:
            found.add(node)
            stack += [i for i in node.inputs if i is not None]
    return found
