"""Requests without candidates or history: in a process of their own first."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from mari_onnx.parity import check
from mari_onnx.parity.coverage.empty import survived
from mari_onnx.parity.requests.draw import Request
from mari_onnx.sides.resolve import Sides
from tests.parity.pairs import Graph

SIDES = Sides({"hist": "user", "x": "item"})


def pooled(rows: int | str, how: str, fault: str = "") -> onnx.ModelProto:
    """The candidate plus a sum over the history, or its first entry."""
    g = Graph()
    hist = g.input("hist", TensorProto.FLOAT, [rows, "T", 2])
    one = g.weight("one", np.array([1]))
    if fault == "padded":  # an empty history counts as one entry of ones
        pad = g.weight("pad", np.ones((1, 1, 2), np.float32))
        shape = g.op("Shape", [hist], "shape")
        size = g.op("Gather", [shape, g.weight("place", np.array(1))], "size")
        empty = g.op("Cast", [g.op("Equal", [size, g.weight("zero", np.array(0))], "none")], "is_none", to=1)
        hist = g.op("Concat", [hist, g.op("Mul", [pad, empty], "padding")], "more", axis=1)
    if how == "ReduceSum":
        g.op("ReduceSum", [hist, one], "pooled", keepdims=0)
    else:
        g.op("Gather", [hist, g.weight("first", np.array(0))], "pooled", axis=1)
    g.op("Add", ["pooled", g.input("x", TensorProto.FLOAT, ["N", 2])], "score")
    g.output("score", ["N", 2])
    return g.model()


def test_an_empty_history_is_fed_where_the_source_takes_it() -> None:
    result = check(pooled("N", "ReduceSum"), pooled(1, "ReduceSum"), SIDES)
    assert result.ok, result.reasons
    assert result.reached.lengths == (0, 200)
    assert result.reached.candidates == (0, 500)
    wrong = check(pooled("N", "ReduceSum"), pooled(1, "ReduceSum", "padded"), SIDES)
    assert not wrong.ok


def test_what_the_source_refuses_is_left_out() -> None:
    result = check(pooled("N", "Gather"), pooled(1, "Gather"), SIDES)
    assert result.ok, result.reasons
    assert result.reached.lengths == (1, 200)
    assert not result.notes


def dying() -> onnx.ModelProto:
    """onnxruntime ends the process where a GRU has no rows."""
    g = Graph()
    x = g.input("x", TensorProto.FLOAT, ["T", "N", 2])
    w, r = (g.weight(n, np.zeros((1, 6, 2), np.float32)) for n in ("w", "r"))
    g.op("GRU", [x, w, r], "all", hidden_size=2)
    g.output("all", ["T", 1, "N", 2])
    return g.model()


def fine() -> onnx.ModelProto:
    g = Graph()
    one = g.weight("one", np.array([1]))
    g.op("Unsqueeze", [g.input("x", TensorProto.FLOAT, ["T", "N", 2]), one], "all")
    g.output("all", ["T", 1, "N", 2])
    return g.model()


@pytest.mark.parametrize(("n", "faults", "notes"), [(0, 0, 1), (3, 1, 0)])
def test_a_model_that_ends_the_process_does_not_end_this_one(n: int, faults: int, notes: int) -> None:
    request = Request({}, {"x": np.zeros((0, n, 2), np.float32)}, n)
    kept, wrong, odd = survived({"source": fine(), "optimized": dying()}, [request])
    assert (kept, len(wrong), len(odd)) == ([], faults, notes)
    assert survived({"source": dying(), "optimized": fine()}, [request]) == ([], [], [])
    assert survived({"source": fine(), "optimized": fine()}, [request]) == ([request], [], [])
