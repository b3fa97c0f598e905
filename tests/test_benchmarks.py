"""The benchmarks run, on sizes too small to tell anything, and their page says what they found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import gpu, grid, layout, run, scale, split_check, tokens, whole
from benchmarks import split as split_benchmark
from benchmarks.demo import model as demo
from benchmarks.demo import table
from benchmarks.side_by_side import Setting, optimized, timed
from benchmarks.tables import Section, Target
from mari_onnx.errors import UsageError
from mari_onnx.sides.resolve import Sides
from mari_onnx.timing.clock import Timing
from mari_onnx.timing.measure import FLOOR, OURS, Measured

ROOT = Path(__file__).resolve().parents[1]
TINY = Setting(seconds=0, least=1)


def test_targets_are_judged():
    assert Target.at_least("fast", 0.95, 0.95).met
    assert not Target.at_least("fast", 0.94, 0.95).met
    assert Target.at_most("small", 1.02, 1.02).met
    assert Target.at_most("small", 1.03, 1.02).verdict == "MISSED"


def test_page_lists_what_is_missed():
    target = Target.at_most("small", 2, 1)
    found = Section("Title", "Text.", "python -m x", ["a", "b"], [["1", "2"]], [target], ["Note."])
    text = run.page([found], 60)
    assert "0 of 1 targets are met. Missed: small (2)." in text
    assert "| 1 | 2 |" in text
    assert "python -m x" in text
    assert "Note." in text


def test_page_says_that_no_gpu_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "none.json")
    assert "Not yet measured." in gpu.page()


def test_grid_cells_agree():
    axes = grid.Axes((20,), (64,), (8,), (16,))
    ((cell, timing),) = grid.measure(axes, TINY).items()
    assert cell == (20, 64, 8, 16)
    assert timing.names == ("vanilla", "one-shot", "ours", "floor")


@pytest.mark.parametrize("packed", [False, True])
def test_layouts_are_rewritten(packed: bool):
    source = layout.network(8, True, packed=packed)
    result = optimized(source, layout.sides_of(source), 64)
    user = [v.type.tensor_type.shape.dim[0] for v in result.model.graph.input]
    assert sum(dim.dim_value == 1 for dim in user) == (1 if packed else 8)


def test_transformers_keep_their_scores():
    source = tokens.transformer(5, 2, 2)
    result = optimized(source, tokens.SIDES, 200)
    rng = np.random.default_rng(0)
    user = rng.standard_normal((1, 5, tokens.WIDTH), np.float32)
    items = rng.standard_normal((6, 2, tokens.WIDTH), np.float32)
    models = {"source": source, "ours": result.model}
    _, outputs = timed(models, {"user": user}, {"item": items}, TINY)
    np.testing.assert_allclose(outputs["ours"], outputs["source"], atol=1e-5)


def test_gpu_forms_are_the_same_layer():
    models = {name: gpu.form(name, 4, 3, np.float32) for name in ("gemm_c", "matmul_add", "row")}
    user, items = np.ones((1, 3), np.float32), np.ones((5, 4), np.float32)
    _, outputs = timed(models, {"user": user}, {"item": items}, TINY)
    for got in outputs.values():
        np.testing.assert_allclose(got, outputs["gemm_c"], atol=1e-6)


@pytest.mark.parametrize("nodes", [100, 1000])
def test_towers_have_as_many_nodes_as_asked_for(nodes: int):
    model = scale.towers(nodes)
    onnx.checker.check_model(model)
    assert len(model.graph.node) == pytest.approx(nodes, rel=0.05)


def test_heavy_models_are_valid_either_way(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "LAYER", 64)
    for limit in (1, 1000):
        monkeypatch.setattr(scale, "EXTERNAL_MB", limit)
        path = tmp_path / f"{limit}.onnx"
        scale.write_heavy(2, path)
        assert path.with_suffix(".data").is_file() == (limit == 1)
        model = onnx.load(path)
        onnx.checker.check_model(model)
        assert optimized(model, Sides({"user_id": "user", "item": "item"}), 64).changed


def test_what_the_user_part_takes_is_told_beside_the_floor():
    seconds = np.array([[0.0095, 0.008, 0.002], [0.019, 0.016, 0.004]])
    timing = Timing((OURS, FLOOR, whole.USER_PART), seconds)
    said = whole._bound("model, N=5", Measured(5, 1, timing))
    assert "takes 12 ms and the user part alone 3 ms" in said
    assert "0.800 of the floor's speed" in said
    assert "0.950 times the two together" in said


def test_gpu_results_are_whole_and_say_what_did_not_run(monkeypatch, tmp_path):
    # What runs on CUDA runs on the CPU as well; only the figures mean nothing.
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "gpu.json")
    plan = gpu.Plan("cpu", gpu.SAMPLES[:1], ("no-such-model",))
    answer = gpu.measure(plan, gpu.RESULTS)
    assert answer["finished"] == [f"{name} {part}" for name, part in _both(plan)]
    for name, part in _both(plan):
        assert answer[name][part]
    for name in gpu.TYPES:
        (parity,) = answer[name]["parity"]
        assert parity["verdict"] == "equal", parity
    assert [each.split(":")[0] for each in answer["not_run"]] == [f"{n} models, no-such-model" for n in gpu.TYPES]
    assert json.loads(gpu.RESULTS.read_text(), parse_constant=pytest.fail) == answer
    page = gpu.page()
    assert "Not run: float32 models, no-such-model" in page
    assert "Parity in float16, sample models and what `--target cuda` makes of them: 1 equal." in page


def _both(plan: gpu.Plan) -> list[tuple[str, str]]:
    return [(name, part) for part in plan.parts() for name in gpu.TYPES]


class Steps(gpu.Plan):
    """A plan of three results, of which one may raise."""

    raises = False

    def parts(self):
        def work(dtype):
            yield {"model": "a"}
            if self.raises:
                raise RuntimeError("no memory\nmore")
            yield {"model": "b"}

        return {"parity": work}


def test_gpu_results_are_kept_when_time_is_up_or_a_part_fails(tmp_path, monkeypatch):
    file = tmp_path / "gpu.json"
    answer = gpu.measure(Steps("cpu"), file, seconds=0)
    assert answer["not_run"] == [f"{name} parity: the time was up after 0 results" for name in gpu.TYPES]
    monkeypatch.setattr(Steps, "raises", True)
    gpu.measure(Steps("cpu"), file)
    answer = json.loads(file.read_text())
    assert answer["float32"]["parity"] == [{"model": "a"}]
    assert answer["not_run"][0] == "float32 parity: RuntimeError: no memory"
    assert answer["finished"] == []
    monkeypatch.setattr(Steps, "raises", False)
    assert gpu.measure(Steps("cpu"), file)["finished"] == ["float32 parity", "float16 parity"]


def test_gpu_parts_that_are_finished_are_not_run_again_on_the_same_machine(tmp_path, monkeypatch):
    file = tmp_path / "gpu.json"
    first = gpu.measure(Steps("cpu"), file)
    monkeypatch.setattr(Steps, "raises", True)
    assert gpu.measure(Steps("cpu"), file) == first
    assert gpu.measure(Steps("cpu"), file, again=True)["finished"] == []
    monkeypatch.setattr(Steps, "raises", False)
    gpu.measure(Steps("cpu"), file)
    monkeypatch.setattr(gpu, "machine", lambda provider: {"processor": "another"})
    monkeypatch.setattr(Steps, "raises", True)
    assert gpu.measure(Steps("cpu"), file)["finished"] == []


def test_growth_is_judged_by_time_and_memory():
    runs = {1000: scale.Run(9, 2, 100), 4000: scale.Run(99, 8, 120)}
    met = {target.promise: target.met for target in scale._targets({}, runs)}
    assert met["4000 MB take at most 1.3 times the time a MB of 1000 MB"]
    assert met["4000 MB take at most 1.3 times the memory a MB of 1000 MB"]
    runs[4000] = scale.Run(99, 12, 600)
    assert [target.met for target in scale._targets({}, runs)[-2:]] == [False, False]


def test_demo_shows_ratios_and_how_far_off_they_are_beside_burners(tmp_path):
    path, out = ROOT / "models/coarse_mlp.onnx", tmp_path / "out.onnx"
    row = demo.measured(path, out, 8)
    assert row.verdict == "equal"
    assert row.requests > 10
    row = replace(row, loaded=demo.again(path, out, 8))
    assert len(table.cells(row)) == len(table.HEADINGS) + 3
    steady = Timing(("before", "after"), np.array([[3.0, 1.0], [3.0, 1.0], [3.0, 1.0], [9.0, 2.0], [3.0, 1.0]]))
    slowed = Timing(("before", "after"), np.array([[6.0, 2.5], [6.0, 2.5]]))
    row = replace(row, times=demo.Times.of(steady), loaded=demo.Times.of(slowed))
    assert (row.times.faster, row.times.median, row.times.spread) == (3, 3, 0)
    assert row.off == pytest.approx(-0.2)
    shaky = replace(row, name="shaky.onnx", times=demo.Times(0.004, 0.003, 4 / 3, 1.3, 0.2))
    said = "\n".join(table.summary([row, shaky], 4))
    assert "least gain: 1.33x, shaky.onnx" in said
    assert "no ratio is off by more than" in said
    assert "! spread above 10%: run again, or on a quieter machine (shaky.onnx)" in said
    assert "20% !" in table.cells(shaky)
    made = table.table([row, shaky], 4)
    assert {column.header: column.footer for column in made.columns}["faster"] == "2.00x"


def test_a_model_is_timed_until_its_fastest_run_is_no_accident(monkeypatch):
    fast, slow = np.full((10, 2), 1.0), np.full((10, 2), 2.0)
    once = np.where(np.arange(10)[:, None] == 0, 1.0, slow)
    both = ("before", "after")
    assert demo.steady(Timing(both, fast))
    assert not demo.steady(Timing(both, once))
    assert not demo.steady(Timing(both, np.stack([fast[:, 0], once[:, 0]], axis=1)))
    rounds = iter([once, once, np.concatenate([fast, slow])])
    monkeypatch.setattr(demo, "interleaved", lambda *_, **__: Timing(both, next(rounds)))
    model = ROOT / "models/coarse_mlp.onnx"
    request = demo.load(model.with_suffix(".npz"), demo.signature(demo.read(model).model), demo.sides_of(model))[0]
    assert demo.timed(model, model, request).rounds == 40
    lower = (np.full((10, 2), 1.0) * 0.9**k for k in range(99))
    shaky = (np.where(np.arange(10)[:, None] == 0, each, 3.0) for each in lower)
    monkeypatch.setattr(demo, "interleaved", lambda *_, **__: Timing(both, next(shaky)))
    assert demo.timed(model, model, request).rounds == 10 * demo.ROUNDS


def test_two_runs_of_the_demo_are_compared(tmp_path):
    times = demo.Times(0.002, 0.001, 2.0, 2.0, 0.01)
    row = demo.Row("a.onnx", "equal", 9, 0.0, (3, 3), (2.0, 1.0), 1, 1, times)
    (tmp_path / "then.json").write_text(json.dumps(table.figures([row])))
    then = table.earlier(tmp_path / "then.json")
    now = [replace(row, times=replace(times, faster=faster)) for faster in (2.2, 2.4, 1.6)]
    (said,) = table.against(now[:1], then)
    assert said == "1 of 1 ratios are within 15% of the earlier run; the largest difference is +10%, a.onnx"
    assert [line for line in table.against(now, then) if "then" in line] == [
        "a.onnx: 2.00x then, 2.40x now (+20%)",
        "a.onnx: 2.00x then, 1.60x now (-20%)",
    ]
    assert table.against([replace(row, name="b.onnx")], then) == ["none of these models is in the earlier run"]
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(UsageError, match="no figures of a demo"):
        table.earlier(tmp_path / "no.json")


def test_the_demo_says_something_at_once_and_a_line_per_model(tmp_path):
    names = ["coarse_mlp", "two_tower"]
    command = [sys.executable, "-m", "benchmarks.demo", *(f"models/{name}.onnx" for name in names), "--candidates", "8"]
    done = subprocess.Popen(
        [*command, "--json", str(tmp_path / "now.json")], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    lines = [line for line in err.splitlines() if not re.match(r" +\d+ s  at ", line)]
    assert lines[0].startswith("2 models, ")
    assert len(lines) == 3
    step = re.compile(r"\[[12]/2\] +\d+ s  \w+\.onnx: equal on \d+ requests, \d+\.\d\dx$")
    assert all(step.match(each) for each in lines[1:])
    assert "geometric mean" in out
    assert "faster: before over after" in out
    assert set(json.loads((tmp_path / "now.json").read_text())) == {f"{name}.onnx" for name in names}


def test_the_demo_is_not_silent_where_a_model_takes_long(monkeypatch, capsys):
    from concurrent.futures import ThreadPoolExecutor

    from benchmarks.demo import __main__ as command

    monkeypatch.setattr(command, "SILENCE", 0.05)
    with ThreadPoolExecutor(1) as pool:
        each = command._each(
            pool, [Path("slow.onnx")], lambda *_: time.sleep(0.2), Path(), None, command.Progress(1)
        )
        assert [path.name for path, _ in each] == ["slow.onnx"]
    assert "0 s  at slow.onnx" in capsys.readouterr().err


def test_the_first_line_of_the_demo_waits_for_no_library():
    code = (
        "import sys, json, benchmarks.demo.__main__ as m; "
        "print(json.dumps(sorted({'onnx', 'onnxruntime', 'numpy', 'rich', 'mari_onnx'} & sys.modules.keys())))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_scoring_after_a_split_is_measured_and_judged(tmp_path):
    path = ROOT / "models/coarse_mlp.onnx"
    found = {"group": "models", **split_benchmark.one(path, 7, 0.0)}
    assert found["gathered"] > 0
    assert found["bytes_per_item"] == sum(size for _, _, size in found["tensors"])
    good, bad = {**found, "gathered": 2.0, "predicted": 2.0}, {**found, "gathered": 0.9, "predicted": 2.0}
    made = split_benchmark.section([good, bad])
    assert [row[0] for row in made.rows] == ["coarse_mlp", "coarse_mlp"]
    assert [target.verdict for target in made.targets] == ["MISSED", "MISSED", "MISSED"]
    assert split_benchmark.section([good]).met


def test_a_split_is_checked_and_what_is_left_of_items_is_measured():
    found = split_check.one(ROOT / "tests/data/interop/mmoe.split.script.onnx")
    assert found["equal"]
    assert found["candidates"] == [1, 2, 7, 64, 500]
    assert found["least_residual"] <= 0.01 < found["residual"]
    assert found["least_bytes"] > found["bytes_per_item"]
    assert found["least_seconds"] > found["seconds"]
    text = split_check.table([found, {"model": "other", "error": "ModelError: no"}])
    assert "1 of 2 models are equal to their source" in text
    assert "| other | ModelError: no |" in text
