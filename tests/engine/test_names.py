"""Names in the source that collide with the engine's own words."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.engine import rewrite
from mari_onnx.sides.resolve import Sides
from tests.engine.graphs import run


def test_a_free_dimension_called_n_is_not_the_candidates() -> None:
    """A history of length "N" beside candidates called "batch": its Range has the history's length."""
    nodes = [
        helper.make_node("Shape", ["history"], ["length"], start=1, end=2),
        helper.make_node("Squeeze", ["length", "zero"], ["count"]),
        helper.make_node("Range", ["start", "count", "step"], ["places"]),
        helper.make_node("Cast", ["places"], ["weights"], to=TensorProto.DOUBLE),
        helper.make_node("Unsqueeze", ["weights", "one"], ["column"]),
        helper.make_node("Mul", ["history", "column"], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", "one"], ["pooled"], keepdims=0),
        helper.make_node("Mul", ["pooled", "item"], ["score"]),
    ]
    constants = {"zero": [0], "one": [1], "start": 0, "step": 1}
    graph = helper.make_graph(
        nodes,
        "names",
        [
            helper.make_tensor_value_info("history", TensorProto.DOUBLE, ["batch", "N", 4]),
            helper.make_tensor_value_info("item", TensorProto.DOUBLE, ["batch", 4]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.DOUBLE, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(v, np.int64), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    result = rewrite(model, Sides({"history": "user", "item": "item"}))
    rng = np.random.default_rng(0)
    row, items = rng.normal(size=(1, 3, 4)), rng.normal(size=(5, 4))
    (expected,) = run(model, {"history": np.repeat(row, 5, axis=0), "item": items})
    (got,) = run(result.model, {"history": row if result.changed else np.repeat(row, 5, axis=0), "item": items})
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert result.changed


def test_the_last_clicks_of_a_short_history() -> None:
    """`h[:, -3:]` of a history of two has two elements."""
    nodes = [
        helper.make_node("Slice", ["history", "from", "to", "one"], ["last"]),
        helper.make_node("ReduceSum", ["last", "one"], ["pooled"], keepdims=0),
        helper.make_node("Shape", ["last"], ["kept"], start=1, end=2),
        helper.make_node("Cast", ["kept"], ["count"], to=TensorProto.DOUBLE),
        helper.make_node("Div", ["pooled", "count"], ["mean"]),
        helper.make_node("Mul", ["mean", "item"], ["score"]),
    ]
    constants = {"from": [-3], "to": [2**63 - 1], "one": [1]}
    graph = helper.make_graph(
        nodes,
        "last",
        [
            helper.make_tensor_value_info("history", TensorProto.DOUBLE, ["batch", "T", 4]),
            helper.make_tensor_value_info("item", TensorProto.DOUBLE, ["batch", 4]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.DOUBLE, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(v, np.int64), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    result = rewrite(model, Sides({"history": "user", "item": "item"}))
    assert result.changed
    rng = np.random.default_rng(0)
    for length in (1, 2, 3, 7):
        row, items = rng.normal(size=(1, length, 4)), rng.normal(size=(5, 4))
        (expected,) = run(model, {"history": np.repeat(row, 5, axis=0), "item": items})
        (got,) = run(result.model, {"history": row, "item": items})
        np.testing.assert_allclose(got, expected, rtol=1e-12)
