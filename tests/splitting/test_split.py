"""Splits are equal to their sources, or are not made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from mari_onnx import engine
from mari_onnx.api import as_source, sides_of
from mari_onnx.choices import options_for
from mari_onnx.errors import BadFeatures, Unchanged, UsageError
from mari_onnx.splitting.assembly import Assembly
from mari_onnx.splitting.make import split_source, unchecked
from mari_onnx.splitting.ways import Budget
from tests.splitting.graphs import model, split, three_sides

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "models").glob("*.onnx"), *(ROOT / "tests/data/interop").glob("*.onnx")])


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".onnx"))
def test_the_parts_of_every_model_are_equal_to_it(path):
    source = as_source(path)
    counts = (2, 7, 64, 500) if path.name.startswith("dcnmix") else (1, 2, 7, 64, 500)  # it fails at N = 1 itself
    made = split_source(
        source, sides_of(source, None), options_for(500), candidates=counts, coverage=0, count=2, providers=("cpu",)
    )
    assert made.check is not None
    assert made.check.ok, str(made.check)
    assert set(counts) <= set(made.check.candidates)  # what is assumed is checked at further ones
    assert made.user is not None or path.name.startswith("request_grid")
    # Of the first four, gathering what an item part would make takes as long as making it; of the last nobody said
    # which inputs are the item's.
    assert made.item is not None or path.name.startswith(("autoint", "dcnmix", "hstu", "phoenix", "request_grid"))
    for part in (made.user, made.item, made.score):
        if part is not None:
            onnx.checker.check_model(part, full_check=True)


def test_a_history_in_one_sequence_with_candidates_is_the_users_state():
    source = as_source(ROOT / "models" / "hstu.onnx")
    sides, options = sides_of(source, None), options_for(500)
    made = unchecked(source, sides, options)
    assert made.user is not None
    whole = engine.rewrite(source.model, sides, replace(options, assume=True))
    assert made.plan.way.flops <= 1.01 * whole.flops / 500


def test_a_packed_input_without_candidates():
    """It has no row of the user, and there is nothing to score."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["X", "W"], ["p"]),
        helper.make_node("Relu", ["p"], ["h"]),
        helper.make_node("MatMul", ["h", "V"], ["score"]),
    ]
    weights = {"W": rng.standard_normal((96, 64)).astype(np.float32), "V": np.ones((64, 1), np.float32)}
    source = as_source(model(nodes, {"X": 96}, {"score": ["N", 1]}, weights))
    sides = sides_of(source, None, user=["X[:, 0:32]"], item=["X[:, 32:96]"])
    made = split_source(source, sides, options_for(500), candidates=(2,), coverage=0, providers=("cpu",))
    assert made.user is not None
    assert made.item is not None
    session = Assembly(made.folder).open("cpu", True, 1)
    (score,) = session.run(None, {"X": np.zeros((0, 96), np.float32)})
    assert score.shape == (0, 1)
    with pytest.raises(BadFeatures, match="user: X has no row"):
        made.ranker().user({"X": np.zeros((0, 96), np.float32)})


def test_parts_have_their_own_rates():
    made = split(three_sides())
    assert [p.op_type for p in made.item.graph.node] == ["MatMul"]
    assert {i.name for i in made.user.graph.input} == {"u"}
    assert {i.name for i in made.item.graph.input} == {"x"}
    assert {o.name for o in made.score.graph.output} == {"score"}
    handed = {o.name for part in (made.user, made.item) for o in part.graph.output}
    assert {i.name for i in made.score.graph.input} == handed | {"c"}


def test_weights_are_where_they_are_needed():
    made = split(three_sides())
    sizes = {k: sum(np.prod(t.dims) for t in p.graph.initializer if t.data_type == 1) for k, p in
             (("user", made.user), ("item", made.item), ("score", made.score))}  # fmt: skip
    assert sizes["item"] == 64 * 64
    assert sizes["user"] == 96 * 64 + 64
    assert sizes["score"] == 32 * 64 + 64


@pytest.mark.parametrize("op", ["Softmax", "CumSum", "ReduceMax", "ReduceMean"])
def test_what_mixes_items_is_not_made_beforehand(op):
    rng = np.random.default_rng(0)
    mix = {
        "Softmax": [helper.make_node("Softmax", ["a"], ["m"], axis=0)],
        "CumSum": [helper.make_node("CumSum", ["a", "zero"], ["m"])],
        "ReduceMax": [
            helper.make_node("ReduceMax", ["a", "axes"], ["r"], keepdims=1),
            helper.make_node("Sub", ["a", "r"], ["m"]),
        ],
        "ReduceMean": [
            helper.make_node("ReduceMean", ["a", "axes"], ["r"], keepdims=1),
            helper.make_node("Sub", ["a", "r"], ["m"]),
        ],
    }[op]
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        *mix,
        helper.make_node("MatMul", ["m", "V"], ["p"]),
        helper.make_node("MatMul", ["u", "U"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["score"]),
    ]
    weights = {"W": (64, 64), "V": (64, 64), "U": (64, 64)}
    arrays = {k: rng.standard_normal(shape).astype(np.float32) for k, shape in weights.items()}
    arrays |= {"zero": np.array(0), "axes": np.array([0])}
    made = split(model(nodes, {"u": 64, "x": 64}, {"score": ["N", 64]}, arrays))
    assert made.check is not None
    assert made.check.ok
    assert made.item is None
    assert any("item's part is computed per request" in note for note in made.notes)


def test_an_output_of_the_item_alone_is_a_row():
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["embedding"]),
        helper.make_node("Mul", ["embedding", "u"], ["score"]),
    ]
    weights = {"W": np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)}
    made = split(model(nodes, {"u": 16, "x": 32}, {"score": ["N", 16], "embedding": ["N", 16]}, weights))
    assert "embedding" in {o.name for o in made.item.graph.output}
    assert "embedding" in {t.name for t in made.manifest.rows}
    assert [o.depends_on for o in made.manifest.outputs] == ["cross", "item"]
    assert [o.name for o in made.score.graph.output] == ["score", "embedding"]


def test_an_input_that_is_read_as_it_is_keeps_its_name():
    nodes = [helper.make_node("MatMul", ["u", "W"], ["q"]), helper.make_node("Mul", ["q", "x"], ["score"])]
    weights = {"W": np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)}
    made = split(model(nodes, {"u": 64, "x": 8}, {"score": ["N", 8]}, weights))
    assert made.item is None
    (row,) = made.manifest.rows
    assert (row.name, row.made, row.bytes) == ("x", False, 32)


def test_shapes_of_items_are_read_from_what_score_has():
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        helper.make_node("Shape", ["x"], ["n"], end=1),
        helper.make_node("Concat", ["n", "rest"], ["shape"], axis=0),
        helper.make_node("MatMul", ["u", "W"], ["q"]),
        helper.make_node("Add", ["a", "q"], ["s"]),
        helper.make_node("Tanh", ["s"], ["t"]),
        helper.make_node("Reshape", ["t", "shape"], ["score"]),
    ]
    weights = {"W": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), "rest": np.array([8, 8])}
    made = split(model(nodes, {"u": 64, "x": 64}, {"score": ["N", 8, 8]}, weights))
    assert "x" not in {i.name for i in made.score.graph.input}


def test_budgets():
    made = split(three_sides(), budget=Budget(item=256))
    assert made.plan.way.item_bytes == 256
    with pytest.raises(UsageError, match=r"--item-bytes 8 \(256 at least\)"):
        split(three_sides(), budget=Budget(item=8))


def test_nothing_to_split():
    nodes = [helper.make_node("Mul", ["u", "x"], ["score"])]
    with pytest.raises(Unchanged, match="computed before a request"):
        split(model(nodes, {"u": 8, "x": 8}, {"score": ["N", 8]}))


def test_splits_of_one_source_are_equal_bytes():
    first, second = split(three_sides()), split(three_sides())
    assert first.manifest.parts == second.manifest.parts


def test_an_assembly_makes_rows_in_a_foreign_batch():
    """What depends on other items would differ: seen by what item.onnx is given."""
    made = split(three_sides())
    session = Assembly(made.folder).open("cpu", True, 1)
    given = []
    whole = session.ranker.items
    session.ranker.items = lambda features: given.append(features["x"]) or whole(features)
    rng = np.random.default_rng(0)

    def request(n):
        feed = {k: rng.standard_normal((n, w)).astype(np.float32) for k, w in (("u", 96), ("x", 64), ("c", 32))}
        return {**feed, "u": feed["u"][:1]}

    source = onnxruntime.InferenceSession(three_sides().SerializeToString(), providers=["CPUExecutionProvider"])
    for n in (7, 5):
        feed = request(n)
        (got,) = session.run(["score"], feed)
        (expected,) = source.run(None, {**feed, "u": np.repeat(feed["u"], n, 0)})
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        assert len(given[-1]) > n
        assert not np.array_equal(given[-1][:n], feed["x"])


def test_the_same_split_is_made_again_from_its_choices(monkeypatch):
    """Even where the clock chose a cut that the prices would not."""
    monkeypatch.setattr("mari_onnx.splitting.work.fastest", lambda ways, *_: ways[-1])
    monkeypatch.setattr("mari_onnx.splitting.work.contenders", lambda ways: [ways[0], ways[-1]])
    source = as_source(ROOT / "models/dcnv2.onnx")
    found = sides_of(source, None)
    checked = {"candidates": (2,), "coverage": 0, "count": 1, "providers": ("cpu",)}
    timed = split_source(source, found, options_for(500), clock=1, **checked)
    assert timed.plan.way.cut.by == "clock"
    priced = split_source(source, found, options_for(500), **checked)
    assert priced.plan.way.cut.by == "prices"
    assert priced.manifest.parts != timed.manifest.parts
    choices = timed.choices
    again = split_source(source, found, options_for(500, choices=choices.choices), choices=choices, **checked)
    assert again.manifest.parts == timed.manifest.parts
    assert again.choices == choices
