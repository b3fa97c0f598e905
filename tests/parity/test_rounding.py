"""Rounded outputs: one step away near a boundary, elsewhere in at most 0.1% of the rows, never two."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mari_onnx.parity import check
from mari_onnx.parity.judge.rounding import site
from mari_onnx.parity.requests.draw import Request
from tests.parity.mutants import mutate
from tests.parity.pairs import Graph
from tests.parity.typed import SIDES, rounded, where

PAIR = rounded()


def request(rows: int, above: int = 0, bar: float = 50.0) -> Request:
    """Of so many candidates; the first column of `above` of them is above a bar."""
    rng = np.random.default_rng(5)
    item = rng.standard_normal((rows, 16)).astype(np.float32)
    marks = np.zeros(rows, bool)
    marks[np.linspace(0, rows - 1, above).astype(int)] = True
    item[:, 0] = np.where(marks, bar + 1, item[:, 0])
    return Request({"user_x": rng.standard_normal((1, 32)).astype(np.float32)}, {"item_x": item}, rows)


@pytest.mark.parametrize("seed", range(4))
def test_a_model_that_rounds_its_scores_passes(seed: int) -> None:
    result = check(PAIR.source, PAIR.optimized, PAIR.sides, seed=seed, candidates=(2, 64, 3000), count=4)
    assert result.ok, result.reasons


@pytest.mark.parametrize("output", ["byte", "embedding", "whole"])
@pytest.mark.parametrize(("away", "verdict"), [(4, "equal"), (20, "equal"), (21, "different"), (200, "different")])
def test_one_step_in_one_row_of_a_thousand(output: str, away: int, verdict: str) -> None:
    # Steps of a value that the marked rows do not move.
    cast = {"byte": TensorProto.UINT8, "embedding": TensorProto.INT8, "whole": None}[output]
    step = np.float32(1) if cast is None else np.int32(1)
    source, model = without_mark(PAIR.source), without_mark(PAIR.optimized)
    wrong = mutate(model, where(output, "item_x", 50.0, step, cast))
    result = check(source, wrong, SIDES, requests=[request(20_000, away)])
    assert result.verdict == verdict, result.reasons
    if verdict == "equal":
        assert any("one step of the rounding away" in note for note in result.notes)
    twice = mutate(model, where(output, "item_x", 50.0, step * 2, cast))
    assert check(source, twice, SIDES, requests=[request(20_000, away)]).verdict == "different"


def without_mark(model: onnx.ModelProto) -> onnx.ModelProto:
    """The weights of the first column of the items are 0, so that marks change nothing else."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in ("w", "w_item"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[32 if tensor.name == "w" else 0] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return copy


def test_saturated_bytes_stay_where_they_are() -> None:
    """Bytes at the end of their range have one neighbour."""
    g = Graph()
    g.input("item_x", TensorProto.FLOAT, ["N", 16])
    names = [g.weight("s", np.float32(0.01)), g.weight("z", np.uint8(128))]
    g.op("QuantizeLinear", ["item_x", *names], "y")
    g.output("y", ["N", 16], TensorProto.UINT8)
    source = g.model()
    wrong = mutate(source, lambda m: None)
    assert check(source, wrong, SIDES).ok
    wrong.graph.node[0].output[0] = "right"
    wrong.graph.initializer.append(onnx.numpy_helper.from_array(np.uint8(1), "one"))
    wrong.graph.node.append(helper.make_node("Add", ["right", "one"], ["y"]))  # 255 becomes 0
    assert check(source, wrong, SIDES).verdict == "different"


def chain(build: Callable[[Graph], str]) -> onnx.ModelProto:
    g = Graph()
    g.input("x", TensorProto.FLOAT, ["N", 4])
    g.output(build(g), ["N", 4])
    return g.model()


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (lambda g: g.op("Round", ["x"], "r"), "Round"),
        (lambda g: g.op("Div", [g.op("Floor", ["x"], "f"), g.weight("s", np.float32(3))], "r"), "Floor"),
        (lambda g: g.op("Transpose", [g.op("Neg", [g.op("Ceil", ["x"], "c")], "m")], "r"), "Ceil"),
        (lambda g: g.op("Cast", [g.op("Round", ["x"], "c")], "r", to=7), "Round"),
        (lambda g: g.op("Cast", ["x"], "r", to=7), "Cast"),
        (lambda g: g.op("Relu", ["x"], "r"), None),
        # What follows mixes elements, or takes in what is not rounded.
        (lambda g: g.op("Add", [g.op("Round", ["x"], "c"), "x"], "r"), None),
        (lambda g: g.op("Softmax", [g.op("Round", ["x"], "c")], "r"), None),
        (lambda g: g.op("MatMul", [g.op("Round", ["x"], "c"), g.weight("w", np.eye(4, dtype=np.float32))], "r"), None),
    ],
)
def test_where_an_output_is_rounded(build: Callable[[Graph], str], found: str | None) -> None:
    place = site(chain(build), "r")
    assert (None if place is None else place.node.op_type) == found
