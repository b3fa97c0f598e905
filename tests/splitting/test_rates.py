"""What depends on the item alone stays apart from the user's and from what depends on both."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from mari_onnx import engine
from mari_onnx.api import as_source, sides_of
from mari_onnx.choices import options_for
from mari_onnx.splitting.rates import Rates
from tests.splitting.graphs import SIDES, draft, model, three_sides


def products(made):
    """What each product of a draft depends on, sorted."""
    rates = Rates(made)
    return sorted(rates.words(n.outputs[0]) for n in made.nodes if n.proto.op_type in ("MatMul", "Gemm"))


def test_a_layer_over_three_sides_is_a_product_for_each():
    assert products(draft(three_sides())) == ["cross", "cross", "item", "user"]  # and the head


def test_a_graph_that_stays_whole_is_what_it_was():
    source = three_sides()
    sides = sides_of(as_source(source), SIDES)
    options = replace(options_for(500, assume=True), prices=None)
    whole = engine.rewrite(source, sides, options)
    assert whole.draft is None
    again = engine.rewrite(source, sides, options)
    digests = {hashlib.sha256(m.model.SerializeToString(deterministic=True)).hexdigest() for m in (whole, again)}
    assert len(digests) == 1


def test_terms_of_a_sum_are_joined_rate_by_rate():
    rng = np.random.default_rng(0)
    weights = {f"W{i}": rng.standard_normal((8, 8)).astype(np.float32) for i in range(4)}
    nodes = [
        helper.make_node("MatMul", ["x", "W0"], ["x0"]),
        helper.make_node("MatMul", ["u", "W1"], ["u1"]),
        helper.make_node("MatMul", ["x", "W2"], ["x2"]),
        helper.make_node("MatMul", ["c", "W3"], ["c3"]),
        helper.make_node("Relu", ["x2"], ["r2"]),
        helper.make_node("Add", ["x0", "u1"], ["a"]),
        helper.make_node("Add", ["a", "r2"], ["b"]),
        helper.make_node("Add", ["b", "c3"], ["score"]),
    ]
    made = draft(model(nodes, {"u": 8, "x": 8, "c": 8}, {"score": ["N", 8]}, weights))
    rates = Rates(made)
    read = [t for n in made.nodes if rates.words(n.outputs[0]) == "cross" for t in n.inputs if t and rates.is_item(t)]
    assert len({t.name for t in read}) == 1  # x W0 + Relu(x W2), one tensor


def test_an_input_without_a_side_is_cross():
    source = three_sides()
    rates = Rates(made := draft(source, sides={"u": "user", "x": "item", "c": "cross"}))
    assert rates.words(made.stored["c"]) == "cross"
    untagged = replace(sides_of(as_source(source), SIDES), inputs={"u": "user", "x": "item"})
    options = replace(options_for(500, assume=True), prices=None, split="apart")
    made = engine.rewrite(source, untagged, options).draft
    assert made is not None
    assert Rates(made).words(made.stored["c"]) == "cross"


def test_columns_of_a_packed_input_depend_on_their_side():
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["X", "W"], ["p"]),
        helper.make_node("Relu", ["p"], ["score"]),
    ]
    source = model(nodes, {"X": 12}, {"score": ["N", 8]}, {"W": rng.standard_normal((12, 8)).astype(np.float32)})
    sides = sides_of(as_source(source), None, user=["X[:, 0:5]"], item=["X[:, 5:9]"], cross=["X[:, 9:12]"])
    options = replace(options_for(500, assume=True), prices=None, split="apart")
    made = engine.rewrite(source, sides, options).draft
    assert made is not None
    assert products(made) == ["cross", "item", "user"]


def test_how_many_there_are_depends_on_no_item():
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], end=1),
        helper.make_node("Concat", ["n", "four"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
        helper.make_node("Mul", ["y", "u"], ["score"]),
    ]
    made = draft(model(nodes, {"u": 4, "x": 4}, {"score": ["N", 4]}, {"four": np.array([4])}))
    rates = Rates(made)
    sizes = [n.outputs[0] for n in made.nodes if n.proto.op_type == "Shape"]
    assert all(not rates.is_item(t) and not rates.is_user(t) for t in sizes)


@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(0, 4), st.sampled_from(["apart", "joined"]),
    st.floats(-1e4, 1e4), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_layer_norm_over_all_sides(user, item, cross, apart, offset, seed):
    """Each part by its own mean, then the product: equal to the operator, also with a large common offset."""
    rng = np.random.default_rng(seed)
    widths = {"u": user, "x": item, **({"c": cross} if cross else {})}
    width = sum(widths.values())
    weights = {
        "scale": rng.standard_normal(width),
        "bias": rng.standard_normal(width),
        "W": rng.standard_normal((width, 3)),
    }
    nodes = [
        helper.make_node("Concat", list(widths), ["all"], axis=1),
        helper.make_node("LayerNormalization", ["all", "scale", "bias"], ["n"], axis=-1, epsilon=1e-3),
        helper.make_node("MatMul", ["n", "W"], ["score"]),
    ]
    source = model(nodes, widths, {"score": ["N", 3]}, {k: v.astype(np.float32) for k, v in weights.items()})
    made = draft(source, apart)
    feed = {k: rng.standard_normal((5, w)).astype(np.float32) + np.float32(offset) for k, w in widths.items()}
    feed["u"][:] = feed["u"][0]
    (expected,) = ReferenceEvaluator(wide(source)).run(None, as_wide(feed))
    (got,) = ReferenceEvaluator(wide(made.model)).run(None, as_wide({**feed, "u": feed["u"][:1]}))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def wide(source):
    """The model in float64."""
    from mari_onnx.parity.float64 import _convert_graph

    out = type(source)()
    out.CopyFrom(source)
    _convert_graph(out.graph, out)
    return out


def as_wide(feed):
    return {k: v.astype(np.float64) for k, v in feed.items()}


def test_a_norm_over_all_sides_keeps_a_product_of_the_items():
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Concat", ["u", "x", "c"], ["all"], axis=1),
        helper.make_node("LayerNormalization", ["all", "scale"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "W"], ["score"]),
    ]
    weights = {"scale": np.ones(768, np.float32), "W": rng.standard_normal((768, 256)).astype(np.float32)}
    made = draft(model(nodes, {"u": 256, "x": 256, "c": 256}, {"score": ["N", 256]}, weights))
    assert products(made) == ["cross", "item", "user"]
