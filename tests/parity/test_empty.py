"""Requests without candidates or history: in a process of their own first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from mari_onnx.model.load import load
from mari_onnx.model.tensors import is_external
from mari_onnx.parity import check
from mari_onnx.parity.coverage import empty
from mari_onnx.parity.coverage.empty import fragile, nothing_in, survived
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


def test_the_odd_shape_that_a_kernel_gives_no_candidates_is_not_asked_for() -> None:
    """onnxruntime's ReduceSum answers [0, 4] where it should answer [0, 1]."""

    def summed(by: str) -> onnx.ModelProto:
        g = Graph()
        x = g.input("x", TensorProto.FLOAT, ["N", 4])
        if by == "ReduceSum":
            g.op("ReduceSum", [x, g.weight("one", np.array([-1]))], "score", keepdims=1)
        else:
            g.op("MatMul", [x, g.weight("ones", np.ones((4, 1), np.float32))], "score")
        g.output("score", ["N", 1])
        return g.model()

    sides = Sides({"x": "item"})
    assert check(summed("ReduceSum"), summed("MatMul"), sides).ok
    wrong = check(summed("MatMul"), summed("ReduceSum"), sides)
    assert wrong.reasons == ["output score (cpu): shape [0, 4] at N=0, in the source [0, 1]"]


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


def zeros() -> onnx.ModelProto:
    """What `dying` answers, for its weights are zeros, without a GRU."""
    g = Graph()
    one = g.weight("one", np.array([1]))
    g.op("Unsqueeze", [g.input("x", TensorProto.FLOAT, ["T", "N", 2]), one], "wide")
    g.op("Mul", ["wide", g.weight("none", np.zeros(1, np.float32))], "all")
    g.output("all", ["T", 1, "N", 2])
    return g.model()


def test_recorded_requests_that_end_the_process_do_not_end_this_one() -> None:
    sides = Sides({"x": "item"}, candidate_axis=1)
    nothing, some = (Request({}, {"x": np.ones((t, 3, 2), np.float32)}, 3, axis=1) for t in (0, 2))
    result = check(dying(), dying(), sides, requests=[nothing, some])
    assert result.ok, result.reasons
    assert result.requests == 1
    assert any("the source itself ends the process" in note for note in result.notes)
    assert check(dying(), dying(), sides, requests=[nothing]).verdict == "cannot be compared"
    for requests in ([nothing, some], [nothing]):
        wrong = check(zeros(), dying(), sides, requests=requests)
        assert wrong.verdict == "different"
        assert "the optimized model ends the process" in wrong.reasons[0]
        assert wrong.failing[0] is nothing
    assert check(fine(), fine(), sides, requests=[nothing, some]).ok


def test_a_model_with_its_weights_outside_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mari_onnx.model.load.LAZY_FILE", 1)
    monkeypatch.setattr("mari_onnx.model.load.LAZY_TENSOR", 1)
    monkeypatch.setattr("mari_onnx.runtime.files._EXTERNAL_BYTES", 1)
    path = tmp_path / "model.onnx"
    onnx.save(dying(), path, save_as_external_data=True, location="weights", size_threshold=0)
    request = Request({}, {"x": np.zeros((2, 3, 2), np.float32)}, 3)
    models = {"source": load(path), "optimized": load(path)}
    assert any(is_external(t) for t in models["source"].graph.initializer)
    assert survived(models, [request]) == ([request], [], [])


def test_columns_that_may_be_lengths_of_nothing() -> None:
    """A fraction is cut off to 0 where it becomes a length."""
    request = Request({"X": np.array([[0.5, 3, -1]], np.float32)}, {"x": np.ones((3, 2), np.int64)}, 3)
    assert nothing_in(request) == {("X", 0), ("X", 2)}
    assert fragile([fine(), dying()])
    assert not fragile([fine()])


def test_what_ends_the_process_is_left_out_until_it_was_ended_often(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["ran", "died", "failed", "ran", *["died"] * empty.DEATHS, "ran"])
    monkeypatch.setattr(empty, "ran", lambda *_: next(answers))
    request = Request({}, {}, 1)
    model = onnx.ModelProto()
    assert len(empty.survivors(model, [request] * 9)) == 9
    monkeypatch.setattr(empty, "fragile", lambda _: True)
    assert len(empty.survivors(model, [request] * 9)) == 2
