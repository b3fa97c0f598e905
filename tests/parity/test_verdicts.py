"""Equal, different, or not to be compared; and outputs that are no plain float tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mari_onnx import runtime
from mari_onnx.cli.main import run
from mari_onnx.parity import check
from mari_onnx.parity.judge import values
from mari_onnx.parity.requests.recorded import load
from mari_onnx.sides.resolve import Sides
from tests.parity.pairs import Graph, coarse

SIDES = Sides({"user_x": "user", "item_x": "item"})
TAGS = ["--user", "user_*", "--item", "item_*"]
ML = helper.make_opsetid("ai.onnx.ml", 2)


def ranker(classes: int = 3, seed: int = 0) -> Graph:
    """`Softmax(Concat(user_x, item_x) W)` named p, without an output yet."""
    g = Graph()
    joined = g.op("Concat", [g.input("user_x", 1, ["N", 32]), g.input("item_x", 1, ["N", 16])], "z", axis=1)
    rng = np.random.default_rng(seed)
    h = g.op("MatMul", [joined, g.weight("w", rng.standard_normal((48, classes)).astype(np.float32))], "h")
    g.op("Softmax", [h], "p", axis=1)
    return g


def finished(g: Graph, *outputs: onnx.ValueInfoProto) -> onnx.ModelProto:
    g.outputs += outputs
    model = g.model()
    model.opset_import.append(ML)
    return model


def maps(keys: list[Any], seed: int = 0) -> onnx.ModelProto:
    """A classifier's probabilities as ZipMap gives them: a map per candidate."""
    g = ranker(len(keys), seed)
    text = isinstance(keys[0], str)
    attribute = {"classlabels_strings" if text else "classlabels_int64s": keys}
    g.nodes.append(helper.make_node("ZipMap", ["p"], ["maps"], "maps", domain="ai.onnx.ml", **attribute))
    kind = onnx.TypeProto()
    kind.sequence_type.elem_type.map_type.key_type = TensorProto.STRING if text else TensorProto.INT64
    kind.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    return finished(g, helper.make_value_info("maps", kind))


def sequence(sizes: list[int], seed: int = 0) -> onnx.ModelProto:
    """The probabilities in pieces along the classes, as a sequence."""
    g = ranker(sum(sizes), seed)
    g.op("SplitToSequence", ["p", g.weight("sizes", np.array(sizes))], "pieces", axis=1)
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    return finished(g, helper.make_value_info("pieces", kind))


def best(names: list[str], seed: int = 0) -> onnx.ModelProto:
    """The name of the best class."""
    g = ranker(len(names), seed)
    g.op("ArgMax", ["p"], "at", axis=1, keepdims=0)
    g.nodes.append(
        helper.make_node("LabelEncoder", ["at"], ["name"], "name", domain="ai.onnx.ml",
                         keys_int64s=list(range(len(names))), values_strings=names)
    )
    return finished(g, helper.make_tensor_value_info("name", TensorProto.STRING, ["N"]))


def whole(kind: str, seed: int = 0) -> onnx.ModelProto:
    """One number for all candidates."""
    g = ranker(seed=seed)
    g.op(kind, ["p"], "all", keepdims=0)
    return finished(g, helper.make_tensor_value_info("all", TensorProto.FLOAT, []))


def beside(seed: int = 0) -> onnx.ModelProto:
    """Outputs without candidates, and one that is an input."""
    g = ranker(seed=seed)
    g.op("ReduceMax", ["p"], "by_class", axes=[0], keepdims=0)
    outputs = [("p", ["N", 3]), ("by_class", [3]), ("item_x", ["N", 16])]
    return finished(g, *(helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs))


RIGHT = {
    "maps by number": lambda seed=0: maps([0, 1], seed),
    "maps by name": lambda seed=0: maps(["click", "like", "none"], seed),
    "a sequence of equal shapes": lambda seed=0: sequence([2, 2, 2], seed),
    "a sequence of unequal shapes": lambda seed=0: sequence([1, 4], seed),
    "text": lambda seed=0: best(["a", "b", "c"], seed),
    "a number for all": lambda seed=0: whole("ReduceMax", seed),
    "outputs without candidates": beside,
}


@pytest.mark.parametrize("name", RIGHT)
def test_every_type_of_output_is_compared(name: str, tmp_path: Path) -> None:
    source = RIGHT[name]()
    assert check(source, source, SIDES).ok
    other = RIGHT[name](seed=1)
    result = check(source, other, SIDES)
    assert result.verdict == "different"
    assert result.max_error > 0 or name == "text"
    onnx.save(source, tmp_path / "in.onnx")
    assert run(["optimize", str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), *TAGS]) == 0
    assert run(["check", str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), *TAGS, "--candidates", "1,9"]) == 0
    bench = ["bench", str(tmp_path / "in.onnx"), *TAGS, "--candidates", "3", "--seconds", "0.01", "--no-memory"]
    assert run(bench) == 0


@pytest.mark.parametrize(
    ("source", "wrong", "why"),
    [
        (maps([0, 1]), maps([0, 2]), "keys or shapes differ"),
        (maps([0, 1, 2]), maps([1, 0, 2]), "error"),
        (maps(["a", "b"]), maps(["b", "a"]), "error"),
        (maps(["1", "2"]), maps([1, 2]), r"is seq\(map\(int64, float32\)\)"),
        (sequence([2, 2]), sequence([1, 3]), "keys or shapes differ|shape"),
        (sequence([2, 2]), sequence([1, 1, 2]), "keys or shapes differ|shape"),
        (best(["a", "b", "c"]), best(["a", "b", "C"]), "values differ"),
        (whole("ReduceMax"), whole("ReduceMin"), "error"),
    ],
)
def test_what_is_wrong_with_them_is_said(source: onnx.ModelProto, wrong: onnx.ModelProto, why: str) -> None:
    result = check(source, wrong, SIDES)
    assert result.verdict == "different"
    import re

    assert re.search(why, " ".join(result.reasons)), result.reasons


def test_maps_whose_keys_differ_and_sequences_that_are_empty_have_arrays_too() -> None:
    from mari_onnx.model.signature import signature

    (output,) = signature(maps(["a", "b"])).outputs
    numbers, keys = values.arrays([[{"b": 1.0, "a": 2.0}, {"c": 3.0}]], [output])
    assert (numbers.tolist(), list(keys)) == ([2, 1, 3], ["0: a", "0: b", "1: c"])
    numbers, keys = values.arrays([[]], [output])
    assert (numbers.dtype, numbers.size, keys.size) == (np.float32, 0, 0)


def squares_at(sizes: list[int]) -> onnx.ModelProto:
    """Fails at every N but these."""
    g = ranker()
    g.op("Shape", ["item_x"], "n", start=0, end=1)
    g.op("Equal", ["n", g.weight("sizes", np.array(sizes, np.int64))], "equal")
    g.op("Cast", ["equal"], "ones", to=TensorProto.INT64)
    g.op("ReduceMax", ["ones"], "one", keepdims=1)
    g.op("Sub", ["one", g.weight("unit", np.array([1]))], "at")  # 0, or -1 at other sizes
    g.op("Add", ["at", "at"], "twice")
    g.op("Gather", [g.weight("single", np.zeros(1, np.float32)), "twice"], "zero")
    g.op("Add", ["p", "zero"], "score")
    return finished(g, helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 3]))


def test_outputs_without_an_element_are_not_equal() -> None:
    g = ranker()
    none = g.weight("none", np.array([0]))
    g.op("Slice", ["p", none, none, g.weight("axis", np.array([1]))], "y")
    model = finished(g, helper.make_tensor_value_info("y", 1, ["N", 0]))
    result = check(model, model, SIDES)
    assert not result.ok
    assert "no output has an element on any request" in result.cannot_compare


def test_an_n_of_the_default_is_left_out_and_named_one_that_was_typed_is_not() -> None:
    model = squares_at([2, 7, 64])
    result = check(model, model, SIDES)
    assert (result.verdict, result.candidates) == ("equal", [2, 7, 64])
    assert any("fails at N=500, which is left out" in note for note in result.notes)
    asked = check(model, model, SIDES, candidates=(2, 500))
    assert (asked.verdict, asked.candidates) == ("cannot be compared", [2])
    assert "fails at N=500" in asked.reasons[0]
    assert check(model, model, SIDES, candidates=(7, 2)).ok
    # What differs is different, whatever else was left out.
    other = squares_at([7])
    assert check(model, other, SIDES, candidates=(2, 500)).verdict == "different"


@pytest.mark.parametrize("sizes", [[], [1]])
def test_a_verdict_needs_requests_of_more_than_one_candidate(sizes: list[int]) -> None:
    model = squares_at(sizes)
    assert check(model, model, SIDES).verdict == "cannot be compared"


def test_a_wrong_candidate_axis_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fields first: [5, N]."""
    g = Graph()
    g.op("Concat", [g.input("user_x", 1, [5, "N"]), g.input("item_x", 1, [3, "N"])], "y", axis=0)
    g.output("y", [8, "N"])
    onnx.save(g.model(), tmp_path / "in.onnx")
    line = ["check", str(tmp_path / "in.onnx"), str(tmp_path / "in.onnx"), *TAGS]
    assert run(line) == 2
    assert "--candidate-axis" in capsys.readouterr().err
    assert run([*line, "--candidates", "3", "--candidate-axis", "1"]) == 0


def test_a_fixed_batch_is_not_compared_at_another_n() -> None:
    g = Graph()
    g.op("Relu", [g.input("x", TensorProto.FLOAT, [16, 3])], "y")
    g.output("y", [16, 3])
    sides = Sides({"x": "item"})
    assert check(g.model(), g.model(), sides).ok
    assert check(g.model(), g.model(), sides, candidates=(16,)).ok
    assert check(g.model(), g.model(), sides, candidates=(3,)).verdict == "cannot be compared"


def random(kind: str) -> onnx.ModelProto:
    g = ranker()
    if kind == "Dropout":
        g.weight("ratio", np.float32(0.5))
        g.op("Dropout", ["p", "ratio", g.weight("yes", np.array(True))], "noise", seed=7)
    else:
        g.op(kind, ["p"], "noise")
    g.op("Add", ["p", "noise"], "score")
    g.output("p", ["N", 3])
    return finished(g, helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 3]))


@pytest.mark.parametrize("kind", ["Dropout", "RandomUniformLike", "RandomNormalLike", "Bernoulli"])
def test_a_source_that_answers_differently_twice_cannot_be_compared(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(random(kind), source)
    assert run(["optimize", str(source), str(out), *TAGS]) == 8
    assert "different results for the same request, in score" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]
    json_file, junit = tmp_path / "r.json", tmp_path / "r.xml"
    assert run(["check", str(source), str(source), *TAGS, "--json", str(json_file), "--junit", str(junit)]) == 8
    found = json.loads(json_file.read_text())
    assert (found["ok"], found["verdict"]) == (False, "cannot be compared")
    assert "different results" in found["cannot_compare"][0]
    suite = ElementTree.fromstring(junit.read_text().split("\n", 1)[1])
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("0", "1")
    assert "different results" in suite.find("testcase/error").attrib["message"]  # type: ignore[union-attr]


def test_random_values_that_reach_no_output_do_not_matter() -> None:
    g = ranker()
    g.op("Dropout", ["p"], "noise", seed=7)  # of no effect where the model does not train
    g.op("RandomUniformLike", ["p"], "unused")
    model = finished(g, helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["N", 3]))
    assert check(model, model, SIDES).ok


def test_values_that_an_operator_leaves_unwritten_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that holds what the request before has left there."""
    plain, left = runtime.run, [np.zeros(1, np.float32)]

    def leaky(made: Any, feed: Any, what: str, names: Any = None) -> list[Any]:
        found = plain(made, feed, what, names)
        found[0], left[0] = found[0] + left[0].flat[0], found[0]
        return found

    monkeypatch.setattr(runtime, "run", leaky)
    pair = coarse()
    result = check(pair.source, pair.source, pair.sides)
    assert result.verdict == "cannot be compared"


def test_an_optimized_model_that_answers_differently_twice_differs() -> None:
    g = ranker()
    g.output("p", ["N", 3])
    steady = finished(g, helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 3]))
    steady.graph.node.append(helper.make_node("Add", ["p", "p"], ["score"]))
    result = check(steady, random("Dropout"), SIDES)
    assert result.verdict == "different"
    assert any("optimized model answers the same request differently" in r for r in result.reasons)


def test_nan_everywhere_is_nothing_to_compare() -> None:
    g = ranker()
    g.op("Sub", ["p", g.weight("two", np.float32(2))], "negative")
    g.op("Log", ["negative"], "nothing")
    model = finished(g, helper.make_tensor_value_info("nothing", TensorProto.FLOAT, ["N", 3]))
    result = check(model, model, SIDES)
    assert result.verdict == "cannot be compared"
    assert "NaN" in result.reasons[0]


def recorded(path: Path, *sizes: int, rows: int | None = None) -> str:
    rng = np.random.default_rng(3)
    arrays = {}
    for place, n in enumerate(sizes):
        arrays[f"{place}/user_x"] = np.ones((1 if rows is None else rows, 32), np.float32)
        arrays[f"{place}/item_x"] = rng.standard_normal((n, 16)).astype(np.float32)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def test_recorded_requests_without_candidates(tmp_path: Path) -> None:
    from mari_onnx.model.signature import signature

    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    for model in (maps(["a", "b"]), beside_without_max()):
        onnx.save(model, source)
        assert run(["optimize", str(source), str(out), *TAGS, "--quiet"]) == 0
        for name, rows in (("one", None), ("none", 0)):
            data = recorded(tmp_path / f"{name}.npz", 0, rows=rows)
            (request,) = load(data, signature(model), SIDES)
            assert request.n == 0
            # Nothing was compared: no candidate, no score.
            assert run(["check", str(source), str(out), *TAGS, "--data", data]) == 8
        data = recorded(tmp_path / "both.npz", 0, 3)
        assert run(["check", str(source), str(out), *TAGS, "--data", data]) == 0


def beside_without_max() -> onnx.ModelProto:
    g = ranker()
    return finished(g, helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 3]))


def test_a_recorded_request_that_the_source_fails_on_is_left_out_and_named(tmp_path: Path) -> None:
    from mari_onnx.model.signature import signature

    model = squares_at([3])
    requests = load(recorded(tmp_path / "r.npz", 3, 4), signature(model), SIDES)
    result = check(model, model, SIDES, requests=requests)
    assert (result.verdict, result.requests) == ("equal", 1)
    assert any("fails on r.npz 1, which is left out" in note for note in result.notes)
    none = check(model, model, SIDES, requests=requests[1:], drawing=True, candidates=(3,))
    assert none.verdict == "cannot be compared"
    assert "every recorded request" in none.reasons[0]
    assert check(model, model, SIDES, requests=requests[1:]).verdict == "cannot be compared"
