"""Measuring: what is counted, cut, fed and written; how long anything takes is not asserted."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mari_onnx import engine, runtime
from mari_onnx.cli.main import run
from mari_onnx.errors import ModelError, ProviderError, UsageError
from mari_onnx.model.load import read
from mari_onnx.model.signature import signature
from mari_onnx.parity.work import work
from mari_onnx.sides.resolve import Sides, resolve, side_file_beside
from mari_onnx.timing import interleaved, measure, memory, peers, plot
from mari_onnx.timing.clock import HOT, WAKE, Timing, a_turn, clock_for
from mari_onnx.timing.floor import NoFloor, floor
from mari_onnx.timing.measure import FLOOR, OURS, Measured, Variant, draw, variants_of
from tests import tiny

MODELS = Path(__file__).parents[1] / "models"
SIDES = Sides({"user_x": "user", "item_x": "item"})
FLAGS = ["--user", "user*", "--item", "item*"]


class Clock:
    """Time that passes only while something runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float, log: list[str], name: str):
        def work(turn: int) -> None:
            self.now += seconds
            log.append(f"{name}{turn}")

        return work


def test_runs_take_turns_and_the_order_turns_too():
    clock, log = Clock(), []
    runs = {name: clock.takes(1.0, log, name) for name in "ab"}
    timing = interleaved(runs, seconds=0, least=3, warm_up=1, clock=clock)
    assert log == ["a0", "b0", "a0", "b0", "b1", "a1", "a2", "b2"]
    assert timing.rounds == 3


def test_a_short_run_is_timed_right_after_one_of_the_same():
    clock, log = Clock(), []
    runs = {"a": clock.takes(0.001, log, "a"), "b": clock.takes(1.0, log, "b")}
    timing = interleaved(runs, seconds=0, least=2, warm_up=1, clock=clock)
    assert log == ["a0", "b0", "a0", "a0", "b0", "b1", "a1", "a1"]
    assert timing.of("a") == pytest.approx([0.001, 0.001])


def test_rounds_end_by_time_between_least_and_most():
    clock = Clock()
    runs = {"a": clock.takes(1.0, [], "a"), "b": clock.takes(3.0, [], "b")}
    assert interleaved(runs, seconds=20, least=1, warm_up=1, clock=clock).rounds == 5
    assert interleaved(runs, seconds=20, most=2, least=1, warm_up=0, clock=clock).rounds == 2
    timing = interleaved(runs, seconds=0, least=7, warm_up=0, clock=clock)
    assert timing.rounds == 7
    assert timing.median("a") == pytest.approx(1)
    assert timing.ratio("b", "a") == pytest.approx(3)


def test_warm_up_stops_when_it_takes_longer_than_measuring():
    clock, log = Clock(), []
    interleaved({"a": clock.takes(9, log, "a")}, seconds=5, least=1, warm_up=4, clock=clock)
    assert log == ["a0", "a0"]


def test_sessions_of_several_threads_are_timed_awake_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log, slept = Clock(), [], []
    monkeypatch.setattr(time, "sleep", slept.append)
    waking, awake = clock.takes(0.009, log, "waking"), clock.takes(0.001, log, "awake")

    def run() -> None:
        (waking if len(log) < WAKE else awake)(0)

    assert a_turn(run, clock, 0.001, threads=2) == pytest.approx(0.001)
    assert log == ["waking0"] * WAKE + ["awake0"] * HOT
    assert len(slept) == 1
    log.clear()
    assert a_turn(partial(clock.takes(1.0, log, "long"), 0), clock, 1.0, threads=2) == pytest.approx(1.0)
    assert log == ["long0"]


def test_ratios_are_of_pairs():
    # Both slow down together in the second round: the ratio of medians would not be 2.
    timing = Timing(("a", "b"), np.array([[2.0, 1.0], [20.0, 10.0], [4.0, 2.0]]))
    assert timing.ratio("a", "b") == 2
    assert timing.quartiles("a", "b") == (2, 2)
    figures = timing.to_dict("a")["b"]
    assert figures["speedup"] == 2
    assert figures["median_ms"] == 2000
    assert figures["rounds"] == 3


def _rewritten(model: onnx.ModelProto, sides: Sides) -> engine.Rewrite:
    return engine.rewrite(model, sides, engine.Options(64))


def test_floor_leaves_only_the_candidates_part():
    source = tiny.fc(user=64, item=8, hidden=16)
    result = _rewritten(source, SIDES)
    cut = floor(result, SIDES)
    assert "user_x" not in {value.name for value in cut.model.graph.input}
    assert "item_x" in {value.name for value in cut.model.graph.input}
    assert len(cut.cut) == 1
    assert not {name for node in cut.probe.graph.node for name in node.input} & {"item_x"}
    rng = np.random.default_rng(0)
    user = rng.standard_normal((1, 64), np.float32)
    items = rng.standard_normal((5, 8), np.float32)
    feed = cut.feed({"user_x": user, "item_x": items})
    (got,) = runtime.session(cut.model).run(None, feed)
    whole = {"user_x": np.repeat(user, 5, axis=0), "item_x": items}
    (want,) = runtime.session(source).run(None, whole)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert work(cut.model, feed).flops < work(result.model, {**feed, "user_x": user}).flops


def test_floor_of_a_model_that_was_not_rewritten_is_refused():
    sides = Sides({"item_x": "item"})
    with pytest.raises(NoFloor, match="mari-onnx changed nothing"):
        floor(_rewritten(tiny.items_only(), sides), sides)


def test_floor_drops_outputs_of_the_user_alone():
    source = tiny.fc(user=64, item=8, hidden=16)
    source.graph.node.append(helper.make_node("Relu", ["user_x"], ["profile"]))
    source.graph.output.append(
        helper.make_tensor_value_info("profile", TensorProto.FLOAT, ["N", 64])
    )
    cut = floor(_rewritten(source, SIDES), SIDES)
    assert [value.name for value in cut.model.graph.output] == ["score"]


@pytest.mark.parametrize("name", ["packed_pnn", "request_grid", "din"])
def test_floor_of_sample_models_gives_the_same_scores(name: str):
    path = MODELS / f"{name}.onnx"
    source = read(path)
    sides = resolve(signature(source.model), file=side_file_beside(path))
    result = _rewritten(source.model, sides)
    cut = floor(result, sides)
    request = draw(source, sides, 9, count=1)[0]
    feed = request.feed(cut.inputs)
    want = runtime.session(result.model).run(None, feed)
    got = runtime.session(cut.model).run(None, cut.feed(feed))
    np.testing.assert_allclose(got[0], want[0], atol=1e-6)
    fed = {value.name for value in cut.model.graph.input}
    assert not {each for each in fed if each.startswith(("user_", "ctx_", "hist_"))}


def test_work_counts_what_runs():
    model = tiny.fc(user=6, item=3, hidden=4)
    shapes = {"user_x": np.zeros((10, 6), np.float32), "item_x": np.zeros((10, 3), np.float32)}
    assert work(model, shapes).flops == 2 * 10 * 9 * 4


def test_work_of_unknown_shapes_is_none():
    model = tiny.fc()
    model.graph.node[0].op_type = "Unheard"
    feed = {"user_x": np.zeros((2, 6), np.float32), "item_x": np.zeros((2, 3), np.float32)}
    assert work(model, feed) is None


def _figures(path: Path, numbers: str, capsys) -> list[dict]:
    flags = [*FLAGS, "--candidates", numbers, "--seconds", "0.01", "--no-memory", "--json", "-"]
    assert run(["bench", str(path), *flags]) == 0
    return json.loads(capsys.readouterr().out)["results"]


def test_work_behind_an_operator_without_inference_is_counted_by_running(tmp_path: Path, capsys):
    """Shape inference knows no Gelu of com.microsoft, so nothing behind it."""
    model = tiny.fc(user=6, item=3, hidden=4)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[-1].output[0] = "product"
    model.graph.node.append(helper.make_node("Gelu", ["product"], ["hidden"], domain="com.microsoft"))
    weight = numpy_helper.from_array(np.ones((4, 5), np.float32), "last")
    model.graph.initializer.append(weight)
    model.graph.node.append(helper.make_node("MatMul", ["hidden", "last"], ["score"]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 5]))
    onnx.save(model, tmp_path / "gelu.onnx")
    (result,) = _figures(tmp_path / "gelu.onnx", "10", capsys)
    gelu = 8 * 4  # what it counts for each element
    assert result["variants"]["source"]["flops_per_candidate"] == 2 * (9 * 4 + 4 * 5) + gelu


def test_figures_of_a_model_with_a_fixed_batch_are_divided_by_it(tmp_path: Path, capsys):
    model = tiny.fc(user=64, item=8, hidden=16)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 32
    onnx.save(model, tmp_path / "fixed.onnx")
    (result,) = _figures(tmp_path / "fixed.onnx", "1,500", capsys)
    assert result["candidates"] == 32
    flops = {name: figures["flops_per_candidate"] for name, figures in result["variants"].items()}
    assert flops["source"] == 2 * 72 * 16
    added = 16
    assert flops[OURS] == 2 * 8 * 16 + added + 2 * 64 * 16 / 32


def test_one_thread_is_timed_by_what_it_ran_itself(tmp_path: Path):
    assert clock_for(1, "cpu") == ("thread", time.thread_time)
    assert clock_for(2, "cpu") == clock_for(1, "cuda") == ("wall", time.perf_counter)
    onnx.save(tiny.fc(), tmp_path / "fc.onnx")
    requests = {4: draw(read(tmp_path / "fc.onnx"), SIDES, 4)}
    variants = [Variant("a", tmp_path / "fc.onnx")]
    for threads, clock in ((1, "thread"), (2, "wall")):
        (result,) = measure(variants, requests, seconds=0, least=1, threads=threads)
        assert result.to_dict()["clock"] == clock


def test_a_ratio_that_varies_is_warned_of():
    steady, shaky = np.ones(8), np.array([0.5, 1.5] * 4)
    result = Measured(9, 1, Timing(("source", "ours"), np.stack([steady, steady], axis=1)))
    assert result.warnings() == []
    result.timing = Timing(("source", "ours"), np.stack([shaky, steady], axis=1))
    (said,) = result.warnings()
    assert "N = 9, ours: the ratio has a spread of 50% (middle half 0.50x to 1.50x)" in said


def test_peak_memory_is_of_the_model(tmp_path: Path):
    path = tmp_path / "fc.onnx"
    onnx.save(tiny.fc(user=2000, item=8, hidden=2000), path)
    feed = {"user_x": np.zeros((4, 2000), np.float32), "item_x": np.zeros((4, 8), np.float32)}
    found = memory.peak_bytes(path, feed)
    assert found is not None
    assert found > 16e6
    assert memory.peak_bytes(tmp_path / "none.onnx", feed) is None


def test_a_peer_that_is_missing_or_fails_says_why(tmp_path: Path, monkeypatch):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    monkeypatch.setattr(peers, "TOOLS", ("onnxscript",))
    (failed,) = peers.peers(broken, tmp_path)
    assert failed.path is None
    assert failed.reason
    assert "Error" in failed.reason
    monkeypatch.setattr(peers, "TOOLS", ("no-such-tool",))
    (missing,) = peers.peers(broken, tmp_path)
    assert missing.path is None
    assert missing.reason
    assert "not installed" in missing.reason


def test_variants_are_run_on_the_same_requests(tmp_path: Path):
    path = tmp_path / "fc.onnx"
    onnx.save(tiny.fc(user=64, item=8, hidden=16), path)
    source = read(path)
    variants, notes = variants_of(source, SIDES, tmp_path, with_floor=True)
    assert [each.name for each in variants] == ["source", OURS, FLOOR]
    assert notes == []
    requests = {n: draw(source, SIDES, n) for n in (1, 7)}
    results = list(measure(variants, requests, seconds=0, least=2))
    assert [each.n for each in results] == [1, 7]
    for each in results:
        assert max(each.apart.values()) < 1e-5
        figures = each.to_dict()["variants"]
        assert figures[OURS]["of_floor_speed"] > 0
    assert results[1].work[OURS][0] < results[1].work["source"][0]


def test_a_wrong_variant_is_seen(tmp_path: Path):
    for seed in (0, 1):
        onnx.save(tiny.fc(seed=seed), tmp_path / f"{seed}.onnx")
    variants = [Variant(str(seed), tmp_path / f"{seed}.onnx") for seed in (0, 1)]
    requests = {4: draw(read(tmp_path / "0.onnx"), SIDES, 4)}
    (result,) = measure(variants, requests, seconds=0, least=1)
    assert result.apart["0"] == 0
    assert result.apart["1"] > 0.1


def test_a_variant_that_cannot_be_loaded_is_named(tmp_path: Path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"theirs \(bad.onnx\)"):
        list(measure([Variant("theirs", tmp_path / "bad.onnx")], {}, seconds=0))


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plots_are_written(tmp_path: Path, suffix: str):
    pytest.importorskip("matplotlib")
    path = tmp_path / "fc.onnx"
    onnx.save(tiny.fc(), path)
    requests = {n: draw(read(path), SIDES, n) for n in (1, 16)}
    variants = [Variant("a", path), Variant("b", path)]
    results = list(measure(variants, requests, seconds=0, least=2))
    plot.plot(results, tmp_path / f"plot{suffix}", "title")
    plot.heat_maps([("one", [[1.0, 2.0]])], ("y", [1]), ("x", [1, 2]), tmp_path / f"map{suffix}")
    heads = {".png": b"\x89PNG", ".svg": b"<?xml"}
    for name in ("plot", "map"):
        assert (tmp_path / f"{name}{suffix}").read_bytes().startswith(heads[suffix])


def test_other_plot_formats_are_refused():
    with pytest.raises(UsageError, match="cannot plot"):
        plot.check_format(Path("figure.bmp"))


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "fc.onnx"
    onnx.save(tiny.fc(user=64, item=8, hidden=16), path)
    return str(path)


SHORT = ["--candidates", "1,8", "--seconds", "0.01", "--no-memory"]


def test_command_prints_a_table_and_writes_json(model: str, tmp_path: Path, capsys):
    answer = tmp_path / "bench.json"
    flags = [*FLAGS, *SHORT, "--floor", "--threads", "1,2", "--json", str(answer)]
    assert run(["bench", model, *flags]) == 0
    text = capsys.readouterr().out
    assert "threads" in text
    assert "of floor" in text
    assert OURS in text
    data = json.loads(answer.read_text())
    assert data["schema"] == "mari-onnx/bench"
    assert data["machine"]["libraries"]["onnx"]
    assert [(each["candidates"], each["threads"]) for each in data["results"]] == [
        (n, threads) for threads in (1, 2) for n in (1, 8)
    ]
    assert set(data["results"][0]["variants"]) == {"source", OURS, FLOOR}


def test_command_prints_json_alone_on_standard_output(model: str, capsys):
    assert run(["bench", model, *FLAGS, *SHORT, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 2


def test_command_times_given_models_against_the_first(model: str, tmp_path: Path, capsys):
    output = tmp_path / "optimized.onnx"
    assert run(["optimize", model, str(output), *FLAGS, "--quiet"]) == 0
    capsys.readouterr()
    assert run(["bench", model, str(output), *SHORT, "--json", "-"]) == 0
    variants = json.loads(capsys.readouterr().out)["results"][0]["variants"]
    assert list(variants) == ["fc.onnx", "optimized.onnx"]


def test_command_takes_recorded_requests(capsys):
    path = MODELS / "coarse_mlp.onnx"
    data = ["--data", str(path.with_suffix(".npz"))]
    assert run(["bench", str(path), *data, *SHORT, "--json", "-"]) == 0
    sizes = [each["candidates"] for each in json.loads(capsys.readouterr().out)["results"]]
    with np.load(path.with_suffix(".npz")) as arrays:
        recorded = {arrays[key].shape[0] for key in arrays.files if key.endswith("item_id")}
    assert set(sizes) == recorded


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--candidates", "0"], 2, "not a comma-separated list of positive integers"),
        (["--candidates", "many"], 2, "not a comma-separated list of positive integers"),
        (["--plot", "plot.bmp"], 2, ".png or .svg"),
        (["--user", "nobody*"], 2, "nobody"),
    ],
)
def test_command_refuses(model: str, flags: list[str], code: int, said: str, capsys):
    assert run(["bench", model, *flags]) == code
    assert said in capsys.readouterr().err


def test_command_refuses_cuda_where_there_is_none(model: str, capsys):
    try:
        runtime.session(model, "cuda")
    except ProviderError:
        assert run(["bench", model, *FLAGS, *SHORT, "--provider", "cuda"]) == 5
        assert "CUDA" in capsys.readouterr().err
    else:
        pytest.skip("CUDA is here")


def test_command_says_where_nothing_is_lifted(tmp_path: Path, capsys):
    path = tmp_path / "items.onnx"
    onnx.save(tiny.items_only(), path)
    assert run(["bench", str(path), "--item", "item*", *SHORT, "--floor"]) == 0
    text = capsys.readouterr().out
    assert "does not change the model" in text
    assert "--floor was skipped" in text
