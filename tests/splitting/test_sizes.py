"""Sizes that only a run can tell count in prices."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from mari_onnx.api import as_source, sides_of
from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.splitting.sizes import Sizes, is_told
from tests.splitting.graphs import SIDES, draft, model


def source() -> onnx.ModelProto:
    """Columns of x where the user has a number, summed."""
    nodes = [
        helper.make_node("IsNaN", ["u"], ["none"]),
        helper.make_node("Not", ["none"], ["flags"]),
        helper.make_node("Squeeze", ["flags", "first"], ["flat"]),
        helper.make_node("NonZero", ["flat"], ["places"]),
        helper.make_node("Squeeze", ["places", "first"], ["at"]),
        helper.make_node("Gather", ["x", "at"], ["found"], axis=1),
        helper.make_node("Relu", ["found"], ["r"]),
        helper.make_node("ReduceSum", ["r", "last"], ["score"], keepdims=1),
    ]
    weights = {"first": np.array([0]), "last": np.array([1])}
    made = model(nodes, {"u": 8, "x": 8}, {"score": ["N", 1]}, weights)
    del made.graph.input[0]
    made.graph.input.insert(0, helper.make_tensor_value_info("u", TensorProto.FLOAT, [1, 8]))
    return made


def test_what_nonzero_finds_is_as_long_as_in_a_run():
    graph = source()
    made = draft(graph)
    sides = sides_of(as_source(graph), {name: SIDES[name] for name in ("u", "x")})
    unknown = [t for node in made.nodes for t in node.outputs if not is_told(t)]
    assert unknown
    found = Sizes(graph, sides, TimeModel(500)).of(made)
    assert {t.name for t in unknown} <= found.keys()
    assert (500, 1, 8) in {found[t.name] for t in unknown}


def test_nothing_is_run_where_symbols_tell_all(monkeypatch):
    from tests.splitting.graphs import three_sides

    graph = three_sides()
    sizes = Sizes(graph, sides_of(as_source(graph), SIDES), TimeModel(500))
    monkeypatch.setattr(sizes, "_requests", lambda: 1 / 0)
    assert sizes.of(draft(graph))["score"] == (500, 1)
