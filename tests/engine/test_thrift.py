"""Graphs are written with few nodes: where they would grow beyond twice the source, and where a node does nothing.
"""

from __future__ import annotations

import numpy as np
import pytest

import mari_onnx.engine as engine
from mari_onnx.engine import Rewrite
from tests.engine.checks import check, lifted
from tests.engine.graphs import Graph


def _grown(monkeypatch: pytest.MonkeyPatch, g: Graph) -> tuple[Rewrite, Rewrite]:
    """Once as it comes, once sparing nodes."""
    with monkeypatch.context() as patch:
        patch.setattr(engine, "GROWTH", float("inf"))
        first = check(g, weighed=True)
    return first, check(g, weighed=True)


def _interacting(layers: int, fields: int = 20, width: int = 16) -> Graph:
    """Self-attention over fields of both sides: every layer is a grid of blocks."""
    g = Graph()
    x = g.Concat(g.user(fields, width), g.item(2, width), axis=1)
    for _ in range(layers):
        q, k, v = (g.MatMul(x, g.weight(width, width)) for _ in range(3))
        scores = g.Softmax(g.MatMul(q, g.Transpose(k, perm=[0, 2, 1])), axis=-1)
        x = g.Relu(g.Add(g.MatMul(scores, v), g.MatMul(x, g.weight(width, width))))
    return g.output(x)


def test_fewer_nodes_where_they_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _grown(monkeypatch, _interacting(2))
    assert first.grown > engine.GROWTH
    assert second.grown < first.grown
    assert second.flops <= engine.LOSS * first.flops


def test_nodes_are_spent_where_they_save_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five nodes that become more, and save nearly everything."""
    g = Graph()
    parts = [f(8) for _ in range(6) for f in (g.user, g.item)]
    g.output(g.MatMul(g.Mul(g.Concat(*parts, axis=1), g.Concat(*parts[::-1], axis=1)), g.weight(96, 4)))
    first, second = _grown(monkeypatch, g)
    assert second.flops <= engine.LOSS * first.flops


def test_a_short_graph_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    walks = []
    monkeypatch.setattr(engine, "_thrifty", lambda *a: walks.append(1))
    g = Graph()
    g.output(g.MatMul(g.Concat(g.user(9), g.item(3), axis=1), g.weight(12, 2)))
    lifted(g, check(g, weighed=True), per_candidate=3 * 2)
    assert not walks


def test_a_row_of_the_user_broadcasts_as_it_is_stored() -> None:
    """`[1, 12]` does what `[12]` would: no Squeeze before a sum, a choice or the C of a Gemm."""
    g = Graph()
    user = g.user(12)
    chosen = g.Where(g.Greater(user, g.weight(12)), g.Mul(user, g.weight(12)), g.Abs(user))
    both = g.Concat(chosen, g.item(3), axis=1)
    g.output(g.Add(g.Relu(g.Add(g.MatMul(both, g.weight(15, 4)), g.weight(4))), g.MatMul(user, g.weight(12, 4))))
    made = lifted(g, check(g), per_candidate=3 * 4)
    assert "Squeeze" not in {node.op_type for node in made.model.graph.node}


def test_columns_are_read_from_the_input_not_from_their_side() -> None:
    """An item's columns of a packed input that are read one by one are not put together before."""
    g = Graph()
    x = g.packed(user=(0, 1, 8, 9), item=(*range(2, 8), *range(10, 14)))
    chosen = g.Gather(x, g.const([*range(2, 8), *range(10, 14), 8], np.int64), axis=1)
    one, two, last = (g.Slice(chosen, *(g.const([k], np.int64) for k in (at, at + 1, 1))) for at in (0, 7, 10))
    g.output(g.Sub(g.Mul(one, two), last))
    made = check(g)
    assert "Concat" not in {node.op_type for node in made.model.graph.node}
