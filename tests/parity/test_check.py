"""The check itself: what it runs, says and writes."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mari_onnx import runtime
from mari_onnx.cli.main import run
from mari_onnx.errors import CannotCompare, ModelError, OutputsDiffer, ProviderError
from mari_onnx.parity import check
from mari_onnx.parity.bisect import first_divergence, layers
from mari_onnx.parity.float64 import float64
from mari_onnx.parity.guard import optimize_checked
from mari_onnx.parity.judge.metrics import Ranking, unequal_nonfinite
from mari_onnx.sides.resolve import Sides
from tests.parity.mutants import MUTANTS, mutate
from tests.parity.pairs import Graph, coarse, history

PAIR = coarse()
MUTANT = mutate(PAIR.optimized, MUTANTS["user part scaled"][1])


def one_op(kind: str, shape: list[int | str], dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    g = Graph()
    g.op(kind, [g.input("x", dtype, shape)], "y")
    g.outputs.append(onnx.ValueInfoProto(name="y"))
    return g.model()


def test_fixed_batch_is_checked_at_that_n_alone() -> None:
    model = one_op("Relu", [16, 3])
    result = check(model, model, Sides({"x": "item"}))
    assert result.ok
    assert result.candidates == [16]
    assert any("N = 16" in note for note in result.notes)


def test_a_source_that_fails_at_n_of_1_is_not_blamed_on_the_output() -> None:
    g = Graph()
    g.input("x", TensorProto.FLOAT, ["N", 4])
    g.op("Reshape", ["x", g.weight("pairs", np.array([2, -1]))], "r")
    g.op("Gather", ["x", g.weight("second", np.array([1]))], "row")
    g.op("Add", ["x", "row"], "y")
    g.output("y", ["N", 4])
    model = g.model()
    result = check(model, model, Sides({"x": "item"}))
    assert result.ok
    assert 1 not in result.candidates
    assert any("the source itself fails at N=1" in note for note in result.notes)


def test_a_source_that_never_runs_cannot_be_compared() -> None:
    g = Graph()
    g.op("Gather", [g.input("x", TensorProto.FLOAT, ["N", 4]), g.weight("at", np.array(9999))], "y")
    g.output("y", [4])
    result = check(g.model(), g.model(), Sides({"x": "item"}))
    assert result.verdict == "cannot be compared"
    with pytest.raises(CannotCompare, match="failed on every request"):
        result.raise_if_different()


def test_nan_and_infinity_are_equal_only_where_both_have_them() -> None:
    a = np.array([np.nan, np.inf, -np.inf, 1.0, np.inf, np.nan])
    b = np.array([np.nan, np.inf, np.inf, np.nan, 1.0, np.inf])
    assert unequal_nonfinite(a, b).tolist() == [False, False, True, True, True, True]
    nan = one_op("Log", ["N", 2])
    assert check(nan, nan, Sides({"x": "item"}), extremes=True).ok


def test_explicit_tolerance_beats_the_measured_one() -> None:
    assert not check(PAIR.source, MUTANT, PAIR.sides).ok
    assert check(PAIR.source, MUTANT, PAIR.sides, rtol=1e-2, atol=1e-2).ok
    tight = check(PAIR.source, MUTANT, PAIR.sides, rtol=1e-7)
    assert not tight.ok
    assert "rtol=1e-07" in tight.reasons[0]


def test_integer_outputs_are_exact() -> None:
    source, other = (
        one_op("Identity", ["N"], TensorProto.INT64),
        one_op("Neg", ["N"], TensorProto.INT64),
    )
    assert check(source, source, Sides({"x": "item"})).ok
    assert not check(source, other, Sides({"x": "item"})).ok


def test_ranking_counts_swaps_beyond_ties() -> None:
    ranking = Ranking()
    ranking.add(np.array([3.0, 2.0, 1.0, 1.0]), np.array([2.0, 3.0, 1.0, 1.1]), 0.2, [1, 2])
    assert ranking.swaps == 1
    assert ranking.top_k == {1: 0.0, 2: 1.0}
    assert -1 < ranking.tau < 1


def test_float64_runs_what_has_no_kernel_in_float32_and_says_so() -> None:
    with float64(one_op("Erf", ["N", 2])) as model:
        assert model.in_float32 == ["Erf"]
        (y,) = model.run({"x": np.array([[0.5, -1.0]], np.float32)})
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, [[0.5204998778, -0.8427007929]], rtol=1e-6)


def test_float64_is_float64_through_constants_casts_and_bodies() -> None:
    def branch(name: str, value: float) -> onnx.GraphProto:
        tensor = helper.make_tensor("c", TensorProto.FLOAT, [], [value])
        nodes = [
            helper.make_node("Constant", [], [f"{name}_c"], value=tensor),
            helper.make_node("Div", ["wide", f"{name}_c"], [name]),
        ]
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [output])

    g = Graph()
    g.op("Cast", [g.input("x", TensorProto.FLOAT, ["N"])], "wide", to=TensorProto.FLOAT)
    g.weight("yes", np.array(True))
    g.op("If", ["yes"], "y", then_branch=branch("a", 3.0), else_branch=branch("b", 5.0))
    g.output("y", ["N"])
    with float64(g.model()) as model:
        assert model.text == "float64"
        (y,) = model.run({"x": np.ones(2, np.float32)})
    assert y.tolist() == [1 / 3, 1 / 3]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("outside", [False, True])
def test_float64_of_a_large_model_uses_tables_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type, outside: bool
) -> None:
    """Layers are written in pieces; tables that are only looked up are not written."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rng = np.random.default_rng(0)
    table, layer = rng.standard_normal((700, 30)).astype(dtype), rng.standard_normal((30, 50)).astype(dtype)
    g = Graph()
    g.op("Gather", [g.weight("table", table), g.input("id", TensorProto.INT64, ["N"])], "row")
    g.op("MatMul", ["row", g.weight("layer", layer)], "y")
    g.output("y", ["N", 50], kind)
    path = tmp_path / "model.onnx"
    onnx.save(g.model(), path, save_as_external_data=outside, location="model.weights", size_threshold=0)
    monkeypatch.setattr(runtime, "STAGE_BYTES", 1000)
    monkeypatch.setattr("mari_onnx.runtime.files.STAGE_BYTES", 1000)
    monkeypatch.setattr("mari_onnx.model.load.LAZY_TENSOR", 1000)
    monkeypatch.setattr("mari_onnx.parity.float64_weights._TABLE_BYTES", 1000)
    monkeypatch.setattr("mari_onnx.parity.float64_weights._PIECE", 7)
    monkeypatch.setattr("mari_onnx.parity.float64.tempfile.tempdir", str(tmp_path))
    ids = np.array([0, 699, 3, -1])
    with float64(path) as model:
        (y,) = model.run({"id": ids})
        (written,) = tmp_path.glob("mari-onnx-*/wide.bin")
        assert written.stat().st_size == layer.size * 8
    np.testing.assert_allclose(y, table[ids].astype(np.float64) @ layer.astype(np.float64), rtol=1e-12, atol=1e-12)


def test_large_models_have_two_threads_unless_a_number_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"candidates": (1, 2), "coverage": 0}
    assert check(PAIR.source, PAIR.optimized, PAIR.sides, **settings).settings.threads == 1
    monkeypatch.setattr(runtime, "STAGE_BYTES", 1000)
    assert check(PAIR.source, PAIR.optimized, PAIR.sides, **settings).settings.threads == 2
    assert check(PAIR.source, PAIR.optimized, PAIR.sides, threads=1, **settings).settings.threads == 1


def test_of_dear_requests_the_cheapest_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    plain = runtime.run

    def counted(made, feed, what, names=None):  # type: ignore[no-untyped-def]
        if what in ("the source model", "the optimized model") or " at N=" in what:
            runs.append(max(len(value) for value in feed.values()))
        return plain(made, feed, what, names)

    monkeypatch.setattr(runtime, "run", counted)
    model = one_op("Relu", ["N", 3])
    assert check(model, model, Sides({"x": "item"}), coverage=0).ok
    assert runs.count(500) == 2 * 2 * 4  # requests, runs, phases
    runs.clear()
    monkeypatch.setattr("mari_onnx.parity.phases._AGAIN", 1.0)
    assert check(model, model, Sides({"x": "item"}), coverage=0).ok
    assert runs.count(500) == 2 * 4
    assert runs.count(1) == (2 + 1) * 4
    random = one_op("RandomUniformLike", ["N", 3])
    assert check(random, random, Sides({"x": "item"}), coverage=0).verdict == "cannot be compared"


def test_a_provider_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ProviderError, match="there is no execution provider 'gpu'"):
        check(PAIR.source, PAIR.optimized, PAIR.sides, providers=["gpu"])
    with pytest.raises(ProviderError, match="DmlExecutionProvider"):
        runtime.session(PAIR.source, "dml")


def test_the_nodes_of_a_provider_are_counted() -> None:
    feed = {"x": np.ones((2, 3), np.float32)}
    assert runtime.nodes_by_provider(one_op("Relu", ["N", 3]), feed, "cpu") == {
        "CPUExecutionProvider": 1
    }


def test_an_error_of_onnxruntime_names_model_input_and_remedy(tmp_path: Path) -> None:
    onnx.save(PAIR.optimized, tmp_path / "out.onnx")
    made = runtime.session(tmp_path / "out.onnx")
    feed = {
        "user_id": np.zeros(3, np.int64),
        "user_dense": np.zeros((1, 3), np.float32),
        "item_id": np.zeros(3, np.int64),
        "item_dense": np.zeros((3, 2), np.float32),
    }
    with pytest.raises(ModelError) as caught:
        runtime.run(made, feed, "out.onnx")
    assert "out.onnx" in caught.value.message
    assert "user_id" in caught.value.message
    assert "\n" not in caught.value.message
    assert "one row" in str(caught.value.hint)


def test_result_as_json_and_junit() -> None:
    result = check(PAIR.source, MUTANT, PAIR.sides)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (data["schema"], data["version"], data["ok"]) == ("mari-onnx/check", 1, False)
    assert data["outputs"][0]["overall"]["error"] > data["outputs"][0]["overall"]["allowed"]
    suite = ElementTree.fromstring(result.to_junit().split("\n", 1)[1])
    assert suite.attrib["tests"] == "3"
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure")) == 2
    with pytest.raises(OutputsDiffer):
        result.raise_if_different()


def test_the_dumped_request_fails_again(tmp_path: Path) -> None:
    from mari_onnx.model.signature import signature
    from mari_onnx.parity.requests.recorded import load

    result = check(PAIR.source, MUTANT, PAIR.sides, dump=tmp_path)
    file = result.outputs[0].dumped
    assert file is not None
    (request,) = load(file, signature(PAIR.source), PAIR.sides)
    assert not check(PAIR.source, MUTANT, PAIR.sides, requests=[request]).ok


def test_bisection_finds_the_first_tensor_that_diverges() -> None:
    wrong = mutate(PAIR.optimized, MUTANTS["wrong epsilon in BatchNormalization"][1])
    result = check(PAIR.source, wrong, PAIR.sides)
    assert result.worst_request is not None
    same = {t: t for t in ("u", "x", "h", "r", "n", "like")}
    nodes = [{"name": "n", "action": "split", "rule": "normalization"}]
    found = first_divergence(PAIR.source, wrong, same, result.worst_request, nodes)
    assert found is not None
    assert (found.tensor, found.node, found.rule) == ("n", "n", "normalization")
    right = first_divergence(PAIR.source, PAIR.optimized, same, result.worst_request)
    assert right is None


def test_layers_are_compared_by_their_names() -> None:
    wrong = mutate(PAIR.optimized, MUTANTS["wrong epsilon in BatchNormalization"][1])
    result = check(PAIR.source, wrong, PAIR.sides)
    assert result.worst_request is not None
    found = {each.tensor: each for each in layers(PAIR.source, wrong, result.worst_request)}
    assert found["u"].ok
    assert found["u"].error == 0
    assert not found["n"].ok
    assert found["n"].op == "BatchNormalization"
    right = list(layers(PAIR.source, PAIR.optimized, result.worst_request))
    assert [each.tensor for each in right] == [*found]
    assert all(each.ok for each in right)
    other = list(layers(PAIR.source, wrong, result.worst_request, {"u": "x"}))
    assert [(each.counterpart, each.ok) for each in other] == [("x", False)]


class _Engine:
    """Stands in for the engine: wrong until told to skip what is at fault."""

    def __init__(self, fault: str, culprit: str):
        self.fault, self.culprit = fault, culprit

    def __call__(self, model: onnx.ModelProto, sides: Sides, options: object) -> object:
        from types import SimpleNamespace

        skipped = options.skip  # type: ignore[attr-defined]
        wrong = self.culprit not in skipped
        made = mutate(PAIR.optimized, MUTANTS[self.fault][1]) if wrong else PAIR.optimized
        names = ["h", "n", "like_logit"]
        nodes = [SimpleNamespace(name=n, action="split", rule="r") for n in names]
        tensors = {t: t for t in ("u", "x", "h", "r", "n")}
        return SimpleNamespace(
            model=made, changed=True, nodes=nodes, tensor_map=tensors, assumptions=[], multiplied=frozenset()
        )


@pytest.mark.parametrize(
    ("fault", "culprit"),
    [("wrong epsilon in BatchNormalization", "n"), ("one weight's sign flipped", "like_logit")],
)
def test_a_wrong_rewrite_is_dropped(fault: str, culprit: str) -> None:
    engine = _Engine(fault, culprit)
    done = optimize_checked(PAIR.source, PAIR.sides, engine=engine)  # type: ignore[arg-type]
    assert done.ok
    assert culprit in done.options.skip
    assert len(done.incidents) == 1


def test_a_rewrite_that_stays_wrong_is_not_ok() -> None:
    engine = _Engine("bias dropped", "no such node")
    done = optimize_checked(PAIR.source, PAIR.sides, engine=engine)  # type: ignore[arg-type]
    assert not done.ok


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str, str]:
    paths = [str(tmp_path / f"{name}.onnx") for name in ("in", "out", "wrong")]
    for path, model in zip(paths, (PAIR.source, PAIR.optimized, MUTANT), strict=True):
        onnx.save(model, path)
    return paths[0], paths[1], paths[2]


def test_command_line(files: tuple[str, str, str], capsys: pytest.CaptureFixture[str]) -> None:
    source, right, wrong = files
    sides = ["--user", "user_*", "--item", "item_*"]
    assert run(["check", source, right, *sides]) == 0
    text = capsys.readouterr().out
    assert "seed 0" in text
    assert "\x1b" not in text
    assert run(["check", source, wrong, *sides, "--quiet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "like" in captured.err
    # Without flags, the single rows of the optimized model tell.
    assert run(["check", source, right, "--candidates", "3", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["candidates"] == [3]
    assert run(["check", source, right, "--candidates", "0"]) == 2
    assert run(["check", source, right, "--provider", "gpu"]) == 5
    assert run(["check", source, "none.onnx"]) == 3


def test_command_line_bisects_by_a_report(
    files: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _, wrong = files
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"tensors": {"x": "x", "h": "h", "n": "n"}, "nodes": []}))
    assert run(["check", source, wrong, "--bisect", str(report)]) == 1
    assert "first divergence: h (of Gemm h)" in capsys.readouterr().out
    report.write_text("{}")
    assert run(["check", source, wrong, "--bisect", str(report)]) == 2


def test_a_history_of_padding_alone_is_among_the_requests() -> None:
    from mari_onnx.model.signature import signature
    from mari_onnx.parity.domains.domains import domains
    from mari_onnx.parity.requests.draw import Drawer, Layout

    pair = history()
    layout = Layout(signature(pair.source), pair.sides)
    drawer = Drawer(layout, domains(pair.source, layout)[0])
    masks = [drawer.request(1).user["hist_mask"].sum() for _ in range(60)]
    assert {0, 6} <= {int(m) for m in masks}


def test_a_source_that_fails_the_second_time_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = runtime.run, []

    def flaky(made: object, feed: object, what: str, *rest: object) -> list[np.ndarray]:
        calls.append(what)
        if what == "the source model" and calls.count(what) == 3:
            raise ModelError("out of memory")
        return plain(made, feed, what, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(runtime, "run", flaky)
    result = check(PAIR.source, PAIR.optimized, PAIR.sides)
    assert result.ok, result.reasons
    assert result.requests == 9
    assert any("out of memory" in note for note in result.notes)
