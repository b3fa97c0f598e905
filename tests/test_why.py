"""Why work is still done per candidate: each product that is left says so, and truly."""

from __future__ import annotations

from pathlib import Path

import pytest

import mari_onnx
from mari_onnx.cli.main import run
from mari_onnx.report.why import ITEM_ALONE
from tests.engine.graphs import Graph

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("models/*.onnx"), *ROOT.glob("tests/data/interop/*.onnx")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_product_that_is_left_has_a_reason(path: Path) -> None:
    report = mari_onnx.inspect(path)
    for node in report.products:
        if node.kind in ("Item", "Mixed"):
            assert bool(node.why) == (node.action not in ("lifted", "folded")), node
    assert all(each.why for each in report.left)
    assert [each.flops for each in report.left] == sorted((each.flops for each in report.left), reverse=True)
    assert sum(each.share for each in report.left) <= 1.001


def _reasons(g: Graph) -> dict[str, str | None]:
    return {node.op: node.why for node in mari_onnx.inspect(g.model(), g.sides).nodes}


def test_where_both_sides_mix_is_named() -> None:
    g = Graph()
    both = g.Concat(g.user(64), g.item(8), axis=1)
    hidden = g.Relu(g.MatMul(both, g.weight(72, 16)))
    g.output(g.Gemm(g.Add(hidden, g.weight(16)), g.weight(16, 4)))
    why = _reasons(g)
    assert "and Relu" in str(why["Gemm"])
    assert "has mixed user and candidate for good" in str(why["Gemm"])
    assert "the user's part runs once per request" in str(why["MatMul"])


def test_a_product_of_both_sides() -> None:
    g = Graph()
    g.output(g.MatMul(g.Unsqueeze(g.item(8), g.const([1])), g.Unsqueeze(g.user(8), g.const([2]))))
    assert "both sides meet here" in str(_reasons(g)["MatMul"])


def test_what_depends_on_the_item_alone_is_for_split() -> None:
    g = Graph()
    g.output(g.Add(g.MatMul(g.item(8), g.weight(8, 4)), g.Relu(g.Gemm(g.user(9), g.weight(9, 4)))))
    why = _reasons(g)
    assert why["MatMul"] == ITEM_ALONE
    assert why["Gemm"] is None  # once per request


def test_the_summary_says_what_changes_and_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["optimize", str(ROOT / "models/din.onnx"), str(tmp_path / "out.onnx"), "--no-check"]) == 0
    told = capsys.readouterr().out
    assert "hist_movie, hist_genre [N, 16] -> [1, 16]" in told
    lines = told.split("still per candidate")[1].splitlines()[1:4]
    assert all(line.startswith("  ") and "%" in line and ": " in line for line in lines)


def test_without_tags_the_summary_says_what_they_would_bring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that it prints is run, and gains."""
    import shlex

    model = tmp_path / "din.onnx"
    model.write_bytes((ROOT / "models/din.onnx").read_bytes())
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    assert run(["optimize", str(model), str(first), "--no-check"]) == 0
    told = capsys.readouterr().out
    command = next(line.strip() for line in told.splitlines() if line.strip().startswith("mari-onnx optimize"))
    assert str(first) in command
    words = [str(second) if word == str(first) else word for word in shlex.split(command)[1:]]
    assert run([*words, "--no-check"]) == 0
    less = [mari_onnx.inspect(path).before.flops for path in (first, second)]
    assert less[1] < 0.7 * less[0]


@pytest.mark.parametrize("flags", [[], ["-q"]])
@pytest.mark.parametrize("command", ["optimize", "split"])
def test_a_model_without_tags_is_refused_with_the_command_as_it_was_typed(
    command: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes((ROOT / "models/coarse_mlp.onnx").read_bytes())
    assert run([command, str(model), str(tmp_path / "made"), *flags]) == 2
    assert f"mari-onnx {command} {model} {tmp_path / 'made'} --user" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
