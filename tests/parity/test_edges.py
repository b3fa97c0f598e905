"""Users at the edge: what stands for padding, and that such users are drawn."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from mari_onnx.model.signature import signature
from mari_onnx.parity import check
from mari_onnx.parity.domains.domains import Domain, domains
from mari_onnx.parity.requests.draw import Drawer, Layout, Request
from mari_onnx.parity.requests.edge_users import edges
from mari_onnx.sides.resolve import Sides
from tests.parity.pairs import Graph, Pair, bag, coarse, grid, lengths

USER = Sides({"ids": "user"})


def domain(g: Graph, sides: Sides = USER) -> Domain:
    g.op("Gather", [g.weight("table", np.zeros((37, 2), np.float32)), "ids"], "rows")
    g.outputs.append(onnx.ValueInfoProto(name="rows"))
    return domains(g.model(), Layout(signature(g.model()), sides))[0]["ids"]


def drawn(pair: Pair) -> dict[str, Request]:
    layout = Layout(signature(pair.source), pair.sides)
    known = domains(pair.source, layout)[0]
    drawer = Drawer(layout, known)
    return {edge.label: drawer.request(7, edge=edge) for edge in edges(layout, known)}


@pytest.mark.parametrize(
    ("op", "constant", "padding"),
    [("Equal", 0, 0), ("Equal", 36, 36), ("Equal", -1, -1), ("Greater", 0, 0), ("GreaterOrEqual", 1, 0),
     ("Less", 1, 0), ("LessOrEqual", 0, 0), ("GreaterOrEqual", 0, -1)],
)  # fmt: skip
@pytest.mark.parametrize("mirrored", [False, True])
def test_padding_is_what_ids_are_compared_with(op: str, constant: int, padding: int, mirrored: bool) -> None:
    g = Graph()
    pair = [g.input("ids", TensorProto.INT64, ["N", 6]), g.weight("c", np.array(constant))]
    turned = {"Greater": "Less", "Less": "Greater", "GreaterOrEqual": "LessOrEqual", "LessOrEqual": "GreaterOrEqual"}
    g.op(turned.get(op, op) if mirrored else op, pair[::-1] if mirrored else pair, "padded")
    assert domain(g).padding == padding


def test_padding_behind_casts_offsets_and_a_cast_to_booleans() -> None:
    g = Graph()
    g.op("Cast", [g.input("ids", TensorProto.FLOAT, ["N", 6])], "whole", to=TensorProto.INT64)
    g.op("Add", ["whole", g.weight("offset", np.array(5))], "shifted")
    g.op("Equal", ["shifted", g.weight("c", np.array(9))], "padded")
    g.op("Gather", [g.weight("other", np.zeros((50, 2), np.float32)), "shifted"], "more")
    g.outputs.append(onnx.ValueInfoProto(name="more"))
    layout = Layout(signature(g.model()), USER)
    assert domains(g.model(), layout)[0]["ids"].padding == 4
    g = Graph()
    g.op("Cast", [g.input("ids", TensorProto.INT64, ["N", 6])], "valid", to=TensorProto.BOOL)
    assert domain(g).padding == 0


def test_a_guard_of_the_table_s_ends_is_no_padding() -> None:
    g = Graph()
    g.input("ids", TensorProto.INT64, ["N", 6])
    g.op("Less", ["ids", g.weight("zero", np.array(0))], "negative")
    g.op("Add", ["ids", g.weight("many", np.array(37))], "wrapped")
    g.op("Where", ["negative", "wrapped", "ids"], "row")
    g.op("Less", ["ids", "many"], "inside")
    assert domain(g).padding is None


def test_columns_of_a_packed_input_are_a_history_of_their_own() -> None:
    g = Graph()
    g.input("X", TensorProto.FLOAT, ["N", 6])
    for name, at, rows in (("hist", [1, 2, 3], 40), ("target", [4], 40), ("city", [5], 7)):
        g.op("Gather", ["X", g.weight(f"{name}_at", np.array(at))], f"{name}_float", axis=1)
        g.op("Cast", [f"{name}_float"], f"{name}_ids", to=TensorProto.INT64)
        g.op("Gather", [g.weight(f"{name}_table", np.zeros((rows, 2), np.float32)), f"{name}_ids"], f"{name}_rows")
        g.outputs.append(onnx.ValueInfoProto(name=f"{name}_rows"))
    g.op("Equal", ["hist_ids", g.weight("last", np.array(39))], "padded")
    model = g.model()
    pair = Pair(model, model, Sides({}, {"X": {"user": (0, 1, 2, 3, 5), "item": (4,)}}))
    found = {label: request.rows["X"] for label, request in drawn(pair).items()}
    assert (found["no history"][:, 1:4] == 39).all()
    assert (found["a history of zeros"][:, 1:4] == 0).all()
    assert (found["a history of one entry"][:, 2:4] == 39).all()
    assert (found["a history of one entry, the last"][:, 1:3] == 39).all()
    assert len(set(found["a history that repeats itself"][:, 4]) & set(found["a history that repeats itself"][0, 1:4]))


def test_a_history_of_ids() -> None:
    found = drawn(bag())
    assert list(found) == [
        "no history", "a history of zeros", "a history of one entry", "a history of one entry, the last",
        "a history that repeats itself",
    ]  # fmt: skip
    clicks = {label: request.user["clicks"][0] for label, request in found.items()}
    assert (clicks["no history"] == 299).all()
    assert (clicks["a history of one entry"][1:] == 299).all()
    assert (clicks["a history of one entry, the last"][:-1] == 299).all()
    several = clicks["a history that repeats itself"]
    assert len(set(several.tolist())) < len(several)
    targets = set(found["a history that repeats itself"].rows["item_id"].tolist())
    assert targets & set(several.tolist())
    assert targets - set(several.tolist())


def test_lengths_and_what_has_no_history() -> None:
    assert {label: int(r.user["length"][0]) for label, r in drawn(lengths()).items()} == {
        "no history": 0,
        "a history of one entry": 1,
    }
    assert drawn(coarse()) == drawn(grid()) == {}


def pooled(divide: str) -> onnx.ModelProto:
    """The mean of a history that is masked, NaN or an error for one without entries."""
    g = Graph()
    g.input("mask", TensorProto.BOOL, ["N", 64])
    g.op("Cast", [g.input("x", TensorProto.FLOAT, ["N", 64])], "y", to=TensorProto.FLOAT)
    one = g.weight("one", np.array([1]))
    if divide == "nan":
        g.op("Cast", ["mask"], "valid", to=TensorProto.FLOAT)
        g.op("ReduceSum", ["valid", one], "count")
        g.op("Div", ["y", "count"], "pooled")
        g.op("Mul", ["pooled", g.op("Sub", ["count", "count"], "none")], "nothing")
        g.op("Add", ["pooled", "nothing"], "out")
        g.op("Div", ["nothing", "none"], "never")
        g.op("Where", [g.op("Greater", ["count", g.weight("zero", np.float32(0))], "any"), "out", "never"], "score")
    else:
        g.op("Cast", ["mask"], "valid", to=TensorProto.INT64)
        g.op("ReduceSum", ["valid", one], "count")
        g.op("Div", [g.weight("many", np.array(64)), "count"], "share")
        g.op("Cast", ["share"], "scale", to=TensorProto.FLOAT)
        g.op("Mul", ["y", "scale"], "score")
    g.output("score", ["N", 64])
    return g.model()


@pytest.mark.parametrize(("divide", "note"), [("nan", "answers NaN for a user with"), ("int", "fails for a user with")])
def test_a_source_that_cannot_do_without_history_is_not_blamed_on_the_output(divide: str, note: str) -> None:
    model = pooled(divide)
    result = check(model, model, Sides({"mask": "user", "x": "item"}), seed=1)
    assert result.ok, result.reasons
    assert any(note in each and "no history" in each for each in result.notes), result.notes
    assert not any("on some requests" in each for each in result.notes)
