"""What score.onnx computes of the item alone is seen."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper

from mari_onnx.api import as_source, sides_of
from mari_onnx.cli.main import run
from mari_onnx.report.candidate_probe import observe
from mari_onnx.splitting.residual import item_residual
from mari_onnx.splitting.ways import Budget
from tests.splitting.graphs import SIDES, model, split, three_sides

WIDE = {"user": 96, "item": 16, "cross": 32, "hidden": 256}


def residual(source, budget=None):
    made = split(source, budget=budget, counts=(2,))
    sides = {i.name: SIDES[i.name] for i in source.graph.input}
    return item_residual(source, sides_of(as_source(source), sides), made.folder)


def test_nothing_is_left_of_the_item_where_its_product_is_handed_over():
    assert residual(three_sides()).share == pytest.approx(0.0, abs=1e-3)


def test_a_product_that_a_budget_leaves_is_seen():
    """x W costs 2 * 16 * 256 for each candidate; c W, the sum and the head what is left."""
    left = residual(three_sides(**WIDE), Budget(item=64))
    product = 2 * 16 * 256
    assert left.redundant.flops / left.n == pytest.approx(product, rel=0.02)
    assert product / (2 * (16 + 32 + 1) * 256 + 6 * 256) < left.share < 0.4


def test_units_that_are_dead_for_all_users_do_not_count():
    """Without other states ``state * row`` would be 0 for all users, and so the item's own."""
    nodes = [
        helper.make_node("MatMul", ["u", "U"], ["a"]),
        helper.make_node("Relu", ["a"], ["dead"]),
        helper.make_node("MatMul", ["x", "W"], ["b"]),
        helper.make_node("Mul", ["dead", "b"], ["m"]),
        helper.make_node("MatMul", ["m", "V"], ["score"]),
    ]
    rng = np.random.default_rng(0)
    weights = {k: rng.standard_normal((64, 64)).astype(np.float32) for k in "UWV"}
    weights["U"][:, :32] = 0
    source = model(nodes, {"u": 64, "x": 64}, {"score": ["N", 64]}, weights)
    assert residual(source).share == pytest.approx(0.0, abs=1e-3)


def test_terms_of_items_are_told_from_those_of_users():
    nodes = [
        helper.make_node("Concat", ["u", "x"], ["both"], axis=1),
        helper.make_node("MatMul", ["both", "W"], ["p"]),
        helper.make_node("Add", ["x", "one"], ["q"]),
    ]
    weights = {"W": np.ones((12, 4), np.float32), "one": np.ones(4, np.float32)}
    graph = model(nodes, {"u": 8, "x": 4}, {"p": ["N", 4], "q": ["N", 4]}, weights)
    rng = np.random.default_rng(0)
    n, x = 11, rng.standard_normal((11, 4)).astype(np.float32)
    order = rng.permutation(n)
    users = [np.repeat(rng.standard_normal((1, 8)).astype(np.float32), n, 0) for _ in range(3)]
    feeds = [{"u": users[0], "x": x}, {"u": users[0], "x": x[order]}, *({"u": u, "x": x} for u in users[1:])]
    seen = observe(graph, feeds, order, of_items=True)
    assert seen["q"].equal.all()
    assert not seen["p"].equal.any()
    assert seen["both"].equal.reshape(-1).tolist() == [False] * 8 + [True] * 4


def test_padding_is_not_the_items():
    """Columns that are the same for all users and all items are no work that could be done per item."""
    nodes = [
        helper.make_node("MatMul", ["u", "U"], ["a"]),
        helper.make_node("MatMul", ["x", "X"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["m"]),
        helper.make_node("Pad", ["m", "pads"], ["wide"]),
        helper.make_node("MatMul", ["wide", "W"], ["score"]),
    ]
    rng = np.random.default_rng(0)
    shapes = {"U": (64, 64), "X": (64, 64), "W": (192, 4)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights["pads"] = np.array([0, 64, 0, 64])
    source = model(nodes, {"u": 64, "x": 64}, {"score": ["N", 4]}, weights)
    assert residual(source).share == 0


def test_inspect_prints_it(tmp_path, capsys):
    path, folder = tmp_path / "model.onnx", tmp_path / "split"
    onnx.save(three_sides(**WIDE), path)
    flags = ["--user", "u", "--item", "x", "--cross", "c", "--provider", "cpu", "--item-bytes", "64"]
    assert run(["split", str(path), str(folder), *flags]) == 0
    capsys.readouterr()
    assert run(["inspect", str(path), str(folder), "--measure"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "% of the FLOPs of score.onnx depend on the item alone (measured)" in printed
    assert "FLOPs; listed above" in printed
    assert run(["inspect", str(path), str(folder), "--measure", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["item_residual"]["share"] > 0.1
