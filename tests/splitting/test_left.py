"""What is left of the item's in score.onnx is listed with its times."""

from __future__ import annotations

import json

import onnx
import pytest
from onnx import TensorProto, helper

from mari_onnx.cli.main import run
from mari_onnx.prices.table import load, node_seconds
from mari_onnx.prices.use import Use
from mari_onnx.splitting.left import Rest
from mari_onnx.splitting.ways import Budget
from tests.splitting.graphs import split, three_sides

N = 500


def graph(nodes, inputs, outputs, shapes):
    """A score model; all tensors float32 of `shapes`, constants among them by their names in capitals."""
    infos = {k: helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items()}
    fixed = {k: v for k, v in shapes.items() if k.isupper()}
    weights = [helper.make_tensor(k, TensorProto.FLOAT, v, [0.0] * (v[0] * v[1])) for k, v in fixed.items()]
    made = helper.make_graph(nodes, "score", [infos[k] for k in inputs], [infos[k] for k in outputs], weights)
    return helper.make_model(made)


def test_nodes_that_read_rows_alone_are_one_group_with_the_time_of_all():
    shapes = {"x": (N, 8), "u": (1, 4), "A": (8, 64), "a": (N, 64), "r": (N, 64)}
    shapes |= {"B": (64, 4), "b": (N, 4), "y": (N, 4)}
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "B"], ["b"], "last"),
        helper.make_node("Mul", ["b", "u"], ["y"]),
    ]
    score = graph(nodes, ["x", "u"], ["y"], shapes)
    (found,) = Rest(score, {"x"}, shapes, load(), N).left
    assert found.nodes == ("first", "r", "last")
    times = [seconds for _, seconds in node_seconds(score.graph, shapes, load())]
    assert found.seconds == pytest.approx(sum(times[:3]))
    assert found.share == pytest.approx(1 - 4 / (2 * 8 * 64 + 64 + 2 * 64 * 4 + 4))
    # b has half the bytes of x, which nothing else reads: both have a call of their own
    assert found.gather_seconds == pytest.approx(-0.08e-9 * N * 4 * 4)
    assert "to gather the result would take" in found.text


def test_rows_that_others_read_too_are_gathered_in_any_case():
    shapes = {"x": (N, 4), "u": (1, 4), "a": (N, 4), "b": (N, 4), "y": (N, 4)}
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Mul", ["x", "u"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    (found,) = Rest(graph(nodes, ["x", "u"], ["y"], shapes), {"x"}, shapes, load(), N).left
    assert found.gather_seconds > 5e-6
    assert "cheaper to compute than to gather" in found.text


def test_a_product_to_which_a_gemm_adds_the_users_part():
    shapes = {"x": (N, 8), "u": (1, 64), "A": (8, 64), "y": (N, 64)}
    score = graph([helper.make_node("Gemm", ["x", "A", "u"], ["y"])], ["x", "u"], ["y"], shapes)
    (found,) = Rest(score, {"x"}, shapes, load(), N).left
    assert found.share == pytest.approx(16 / 17)
    whole = next(seconds for _, seconds in node_seconds(score.graph, shapes, load()))
    assert found.seconds == whole


def test_a_product_of_rows_joined_with_others():
    shapes = {"x": (N, 8), "c": (N, 24), "both": (N, 32), "A": (32, 64), "y": (N, 64)}
    nodes = [
        helper.make_node("Concat", ["x", "c"], ["both"], axis=1),
        helper.make_node("MatMul", ["both", "A"], ["y"], "product"),
    ]
    (found,) = Rest(graph(nodes, ["x", "c"], ["y"], shapes), {"x"}, shapes, load(), N).left
    assert found.nodes == ("product",)
    assert found.share == pytest.approx((2 * 8 * 64 - 64) / (2 * 32 * 64))  # the result has to be added
    add = load().seconds(Use("Add", {"node": 1, "elements": N * 64}))
    assert found.gather_seconds == pytest.approx(add + 0.08e-9 * N * 4 * (64 - 8))  # and x is not read any more


def test_what_has_no_row_for_each_item_cannot_be_handed_over():
    shapes = {"x": (N, 8), "u": (1, 8), "a": (1, 8), "y": (1, 8)}
    nodes = [helper.make_node("ReduceMax", ["x"], ["a"], axes=[0]), helper.make_node("Mul", ["a", "u"], ["y"])]
    (found,) = Rest(graph(nodes, ["x", "u"], ["y"], shapes), {"x"}, shapes, load(), N).left
    assert found.gather_seconds is None
    assert "no row for each item" in found.text


def test_nothing_is_listed_of_what_all_is_done_beforehand():
    assert split(three_sides(), counts=(2,)).left == []


def test_the_summary_and_inspect_list_it(tmp_path, capsys):
    wide = {"user": 96, "item": 16, "cross": 32, "hidden": 256}
    (expected,) = split(three_sides(**wide), budget=Budget(item=64), counts=(2,)).left
    path, folder = tmp_path / "model.onnx", tmp_path / "split"
    onnx.save(three_sides(**wide), path)
    flags = ["--user", "u", "--item", "x", "--cross", "c", "--provider", "cpu", "--item-bytes", "64"]
    assert run(["split", str(path), str(folder), *flags]) == 0
    assert expected.text in " ".join(capsys.readouterr().out.split())
    assert run(["inspect", str(path), str(folder), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["item_left"]
    assert found["share"] == pytest.approx(expected.share)
    assert found["us"] == pytest.approx(1e6 * expected.seconds)
