"""Time decides: by prices, by the clock (a stand-in: nothing is timed here), and by choices that were made before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mari_onnx
from mari_onnx.choices import options_for
from mari_onnx.cli.main import run
from mari_onnx.cli.options import weighted_numbers
from mari_onnx.engine import Options, rewrite
from mari_onnx.engine.interpreter import SLOWER
from mari_onnx.prices.table import OTHER, Prices
from mari_onnx.sides.resolve import Sides
from mari_onnx.timing import speed
from mari_onnx.timing.clock import Timing
from mari_onnx.timing.speed import Speed, Stopwatch
from tests import tiny

SIDES = Sides({"user_x": "user", "item_x": "item"})
FLAGS = ["--user", "user*", "--item", "item*"]
BY_WORK = Prices({OTHER: {"node": 1e-9}, "gemm": {"mults": 1e-9}, "gemm of 1 row": {"weights": 1e-9}})
BY_NODES = Prices({OTHER: {"node": 1.0}})


def two_towers() -> onnx.ModelProto:
    """Two products of the joined inputs, "left" and "right", whose sum is the score."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal((96, 8)).astype(np.float32), name) for name in ("v", "w")]
    nodes = [
        helper.make_node("Concat", ["user_x", "item_x"], ["x"], "join", axis=1),
        helper.make_node("MatMul", ["x", "v"], ["a"], "left"),
        helper.make_node("MatMul", ["x", "w"], ["b"], "right"),
        helper.make_node("Relu", ["a"], ["c"], "relu"),
        helper.make_node("Add", ["c", "b"], ["score"], "sum"),
    ]
    widths = {"user_x": 64, "item_x": 32}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", k]) for name, k in widths.items()]
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 8])]
    graph = helper.make_graph(nodes, "towers", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def actions(made: Any) -> dict[str, str]:
    return {node.name: node.action for node in made.nodes}


def test_nodes_that_are_asked_for_are_left(tmp_path, capsys):
    source, out, kept = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "kept.json"
    onnx.save(two_towers(), source)
    report = mari_onnx.optimize(source, SIDES, check=False, candidates=500, skip="le*").report
    told = {node.name: (node.action, node.reason) for node in report.nodes}
    assert told["left"][1] == "skipped, as you asked for it"
    assert told["right"][0] == "split"
    words = ["optimize", str(source), str(out), *FLAGS, "--no-check", "--candidates", "500", "-q"]
    assert run([*words, "--skip", "left", "--choices", str(kept)]) == 0
    first = out.read_bytes()
    assert json.loads(kept.read_text())["left_on_request"] == ["left"]
    assert run([*words, "--choices", str(kept)]) == 0  # it is in the record
    assert out.read_bytes() == first
    assert run(words) == 0
    assert out.read_bytes() != first
    assert run([*words, "--skip", "MatMul"]) == 0  # by the operator: both products
    assert onnx.load(out).graph.node == onnx.load(source).graph.node
    assert run([*words, "--skip", "lefd"]) == 2
    assert "close names are left" in capsys.readouterr().err


def test_a_rewrite_that_saves_work_but_no_time_is_not_made() -> None:
    by_work = rewrite(two_towers(), SIDES, Options(prices=BY_WORK))
    assert by_work.changed
    assert by_work.estimated[500] > 2
    assert not by_work.left_for_time
    by_nodes = rewrite(two_towers(), SIDES, Options(prices=BY_NODES))
    assert not by_nodes.changed
    assert by_nodes.reason is not None
    assert "no time is saved" in by_nodes.reason
    assert by_nodes.model.SerializeToString() == two_towers().SerializeToString()


def test_the_number_of_candidates_decides_and_another_choice_for_the_typical_one_is_told() -> None:
    """A product of one row is dear here: it pays for many candidates only."""
    prices = Prices({OTHER: {"node": 1e-9}, "gemm": {"mults": 1e-9}, "gemm of few rows": {"mults": 1e-9},
                     "gemm of 1 row": {"node": 1e-4}})  # fmt: skip
    many = rewrite(two_towers(), SIDES, Options(prices=prices, weights={500: 1}))
    assert many.changed
    assert many.estimated[500] > 1.5
    few = rewrite(two_towers(), SIDES, Options(prices=prices, weights={2: 1, 500: 1}))
    assert not few.changed
    assert few.alone is not None
    assert few.alone[0] == 500
    assert few.alone[1] == pytest.approx(many.estimated[500])


def test_a_cautious_choice_is_slower_nowhere() -> None:
    """What is gained at 500 candidates outweighs the loss at 2, but a loss counts for more."""
    prices = Prices({OTHER: {"node": 1e-9}, "gemm": {"mults": 1e-9}, "gemm of few rows": {"mults": 1e-9},
                     "gemm of 1 row": {"node": 3e-6}})  # fmt: skip
    weights = {2: 1.0, 500: 1.0}
    bold = rewrite(two_towers(), SIDES, Options(prices=prices, weights=weights))
    assert bold.changed
    assert bold.estimated[2] < 1 < bold.estimated[500]
    cautious = rewrite(two_towers(), SIDES, Options(prices=prices, weights=weights, cautious=True))
    assert min(cautious.estimated.values()) >= 1


def test_nodes_that_were_left_for_time_say_so_and_leaving_them_again_gives_the_same_model() -> None:
    made = rewrite(two_towers(), SIDES, Options(slower=frozenset({"right"})))
    assert actions(made)["left"] == "split"
    assert actions(made)["right"] == "barrier"
    assert next(node.reason for node in made.nodes if node.name == "right") == SLOWER
    again = rewrite(two_towers(), SIDES, Options(prices=BY_NODES, slower=frozenset({"right"})))
    assert again.changed
    assert again.model.SerializeToString() == made.model.SerializeToString()
    assert again.left_for_time == {"right"}


def test_without_the_shapes_of_products_work_decides() -> None:
    """Nobody knows the rank of what an unknown operator gives."""
    model = two_towers()
    model.graph.node.insert(1, helper.make_node("Mystery", ["item_x"], ["z"], "mystery", domain="somewhere"))
    model.graph.node.insert(2, helper.make_node("MatMul", ["z", "v"], ["unused"], "product"))
    model.graph.output.append(onnx.ValueInfoProto(name="unused"))
    model.opset_import.append(helper.make_opsetid("somewhere", 1))
    made = rewrite(model, SIDES, Options(prices=BY_NODES))
    assert made.changed
    assert not made.estimated


def test_without_prices_work_decides() -> None:
    made = rewrite(two_towers(), SIDES, Options())
    assert made.changed
    assert not made.estimated
    assert options_for(target="cuda").prices is None
    assert options_for().prices is not None


@pytest.fixture
def towers(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    onnx.save(two_towers(), path)
    return path


def test_choices_are_written_and_give_the_same_file_again(towers: Path, tmp_path: Path) -> None:
    choices = tmp_path / "choices.json"
    choices.write_text(json.dumps({
        "version": 1, "source_sha256": mari_onnx.inspect(towers, SIDES).source["sha256"], "changed": True,
        "left_for_time": ["right"], "left_for_outputs": [], "not_assumed": {},
    }))  # fmt: skip
    outputs = [tmp_path / f"{k}.onnx" for k in range(3)]
    assert run(["optimize", str(towers), str(outputs[0]), *FLAGS, "--choices", str(choices), "-q"]) == 0
    made = {entry.key: entry.value for entry in onnx.load(outputs[0]).metadata_props}
    assert json.loads(made["mari_onnx.choices"])["left_for_time"] == ["right"]
    choices.unlink()
    assert run(["optimize", str(towers), str(outputs[1]), *FLAGS, "--choices", str(choices), "-q"]) == 0
    assert run(["optimize", str(towers), str(outputs[2]), *FLAGS, "--choices", str(choices), "-q"]) == 0
    assert outputs[1].read_bytes() == outputs[2].read_bytes() != outputs[0].read_bytes()


def test_choices_that_leave_all_of_it_write_the_source(towers: Path, tmp_path: Path) -> None:
    choices, output = tmp_path / "choices.json", tmp_path / "out.onnx"
    choices.write_text(json.dumps({
        "version": 1, "source_sha256": mari_onnx.inspect(towers, SIDES).source["sha256"], "changed": False,
        "left_for_time": [], "left_for_outputs": [], "not_assumed": {},
    }))  # fmt: skip
    assert run(["optimize", str(towers), str(output), *FLAGS, "--choices", str(choices), "-q"]) == 0
    assert output.read_bytes() == towers.read_bytes()


def test_choices_of_another_model_are_refused(towers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choices, other = tmp_path / "choices.json", tmp_path / "other.onnx"
    onnx.save(tiny.fc(), other)
    assert run(["optimize", str(towers), str(tmp_path / "a.onnx"), *FLAGS, "--choices", str(choices), "-q"]) == 0
    assert run(["optimize", str(other), str(tmp_path / "b.onnx"), *FLAGS, "--choices", str(choices), "-q"]) == 2
    assert "another model" in capsys.readouterr().err
    choices.write_text("{}")
    assert run(["optimize", str(towers), str(tmp_path / "a.onnx"), *FLAGS, "--choices", str(choices), "-q"]) == 2
    assert "not a file that --choices wrote" in capsys.readouterr().err


def ticking(monkeypatch: pytest.MonkeyPatch, slow: str | None) -> None:
    """A clock by which an output is half as fast as its source where the weight of this name is split."""

    def measured(self: Stopwatch, output: Any, numbers: Sequence[int], always: Sequence[int] = ()) -> Speed:
        model = output if isinstance(output, onnx.ModelProto) else onnx.load(output)
        split = slow is not None and all(t.name != slow for t in model.graph.initializer)
        return Speed(dict.fromkeys(numbers, 0.5 if split else 2.0), dict.fromkeys(numbers, 0.01), 1, self.typical)

    monkeypatch.setattr(speed.Stopwatch, "speed", measured)


def optimized(towers: Path, *flags: str) -> int:
    return run(["optimize", str(towers), str(towers.parent / "out.onnx"), *FLAGS, *flags])


def test_a_faster_output_says_how_much(
    towers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ticking(monkeypatch, None)
    assert optimized(towers) == 0
    assert "2x at 500 candidates, one CPU thread; faster at any number" in capsys.readouterr().out


def test_a_slower_output_is_told_undone_or_refused(
    towers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ticking(monkeypatch, "w")
    report = towers.parent / "report.json"
    assert optimized(towers) == 0
    assert "0.5x at 500 candidates, one CPU thread: slower than the source" in capsys.readouterr().out
    assert optimized(towers, "--if-slower", "fail") == 9
    assert "slower than the source at 16, 64, 500 candidates" in capsys.readouterr().err
    assert optimized(towers, "--if-slower", "undo", "--report", str(report)) == 0
    told = capsys.readouterr().out
    assert "the rewrite of right was undone: slower by the clock" in told
    assert "2x at 500" in told
    said = json.loads(report.read_text())
    assert said["choices"]["left_for_time"] == ["right"]
    assert said["speed"]["speedup"]["500"] == 2.0
    split = {node["name"]: node["action"] for node in said["nodes"]}
    assert split["left"] == "split"
    assert split["right"] != "split"


def test_a_model_that_runs_long_is_timed_only_where_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "interleaved", lambda *_, **__: Timing(("0", "1"), np.ones((5, 2))))
    watch = Stopwatch(two_towers(), SIDES, two_towers(), 1, 500)
    once = rewrite(two_towers(), SIDES, Options()).model
    assert set(watch.speed(once, [1, 2, 16, 500], [16]).ratios) == {16, 500}


def test_the_least_number_from_which_on_the_output_is_faster() -> None:
    ratios = {1: 1.2, 2: 0.8, 4: 0.9, 8: 1.1, 500: 2.0}
    found = Speed(ratios, dict.fromkeys(ratios, 0.0), 2, 500)
    assert found.faster_from == 8
    assert str(found) == "2x at 500 candidates, 2 CPU threads; faster from 8 candidates on"
    assert found.slower_at([1, 2, 500]) == [2]


@pytest.mark.parametrize(
    ("text", "wanted"), [("500", 500), ("1:0.2,500:0.8", {1: 0.2, 500: 0.8}), ("16,64", {16: 1, 64: 1})]
)
def test_numbers_of_candidates_with_weights(text: str, wanted: object) -> None:
    assert weighted_numbers(None, None, text) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["0", "x", "1:0", "1:-1,500:2", "500:", "1:x", ","])
def test_numbers_of_candidates_that_are_none(text: str, towers: Path) -> None:
    assert optimized(towers, "--candidates", text) == 2
