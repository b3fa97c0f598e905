"""Costs of single operators, against counts worked out by hand."""

from __future__ import annotations

import pytest
from onnx import helper

from mari_onnx.engine.cost.flops import TRANSCENDENTAL, Cost, einsum_sizes, graph_cost, node_cost


def flops(op: str, ins: list, outs: list, **attributes) -> float:
    node = helper.make_node(
        op, [f"i{k}" for k in range(len(ins))], [f"o{k}" for k in range(len(outs))], **attributes
    )
    return node_cost(node, ins, outs).flops


@pytest.mark.parametrize(
    ("op", "ins", "outs", "attributes", "expected"),
    [
        ("MatMul", [(7, 5), (5, 3)], [(7, 3)], {}, 2 * 7 * 5 * 3),
        ("MatMul", [(4, 7, 5), (4, 5, 3)], [(4, 7, 3)], {}, 2 * 4 * 7 * 5 * 3),
        ("Gemm", [(7, 5), (3, 5), (3,)], [(7, 3)], {"transB": 1}, 2 * 7 * 5 * 3 + 21),
        ("Gemm", [(5, 7), (5, 3)], [(7, 3)], {"transA": 1}, 2 * 7 * 5 * 3),
        ("Einsum", [(7, 5), (5, 3)], [(7, 3)], {"equation": "ab,bc->ac"}, 2 * 7 * 5 * 3),
        (
            "Einsum",
            [(2, 7, 5), (5, 3)],
            [(2, 7, 3)],
            {"equation": "...b,bc->...c"},
            2 * 2 * 7 * 5 * 3,
        ),
        ("Einsum", [(7,), (3,)], [(7, 3)], {"equation": "a,b->ab"}, 21),
        ("Conv", [(2, 4, 10), (6, 4, 3)], [(2, 6, 8)], {}, 2 * 2 * 6 * 8 * 4 * 3),
        ("Conv", [(2, 4, 10), (6, 2, 3)], [(2, 6, 8)], {"group": 2}, 2 * 2 * 6 * 8 * 2 * 3),
        ("Add", [(7, 5), (5,)], [(7, 5)], {}, 35),
        ("Sigmoid", [(7, 5)], [(7, 5)], {}, 35 * TRANSCENDENTAL),
        ("ReduceSum", [(7, 5)], [(7, 1)], {}, 35),
        ("Sum", [(7, 5)] * 3, [(7, 5)], {}, 70),
        ("Reshape", [(7, 5), (1,)], [(35,)], {}, 0),
        ("Concat", [(7, 5), (7, 5)], [(7, 10)], {"axis": 1}, 0),
        ("SomethingNew", [(7, 5)], [(7, 5)], {}, 35),
    ],
)
def test_flops(op, ins, outs, attributes, expected):
    assert flops(op, ins, outs, **attributes) == expected


def test_gather_costs_the_rows_it_takes_not_the_table():
    node = helper.make_node("Gather", ["table", "ids"], ["rows"])
    assert node_cost(node, [(1_000_000, 16), (8,)], [(8, 16)]) == Cost(0.0, 4 * (2 * 8 * 16 + 8))


def test_reshape_moves_nothing_and_concat_moves_all():
    reshape = helper.make_node("Reshape", ["x", "s"], ["y"])
    concat = helper.make_node("Concat", ["x", "x"], ["y"], axis=0)
    assert node_cost(reshape, [(8, 4), (1,)], [(32,)]).bytes == 0
    assert node_cost(concat, [(8, 4), (8, 4)], [(16, 4)]).bytes == 4 * 2 * 64


def test_recurrent_and_attention_grow_with_length():
    def gru(t: int) -> float:
        return flops("GRU", [(t, 2, 8), (1, 24, 8), (1, 24, 8)], [(t, 1, 2, 8)])

    def attention(t: int) -> float:
        return flops("MultiHeadAttention", [(2, t, 8)] * 3, [(2, t, 8)], num_heads=2)

    assert gru(10) == 10 * gru(1) > 10 * 2 * 2 * 2 * 24 * 8
    assert attention(10) == 100 * attention(1)


def test_einsum_sizes_names_the_ellipsis_and_the_implicit_output():
    operands, output, sizes = einsum_sizes("...ij,jk", [(9, 2, 3), (3, 4)])
    assert [len(x) for x in operands] == [3, 2]
    assert output[1:] == "ik"
    assert [sizes[x] for x in output] == [9, 2, 4]


def test_unknown_shapes_count_as_nothing():
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert node_cost(node, [None, None], [None]) == Cost()


def test_graph_cost_adds_nodes_and_reads_initializer_shapes():
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [],
        [],
        [helper.make_tensor("w", 1, [5, 3], [0.0] * 15)],
    )
    cost = graph_cost(graph, {"x": (7, 5), "h": (7, 3), "y": (7, 3)})
    assert cost.flops == 2 * 7 * 5 * 3 + 21
    assert cost.bytes == 4 * (35 + 15 + 21 + 21 + 21)
