"""Which values inputs may have, read from the graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.model.signature import signature
from mari_onnx.parity import check
from mari_onnx.parity.domains.domains import Domain, domains
from mari_onnx.parity.requests.draw import Drawer, Layout
from mari_onnx.sides.resolve import Sides
from tests.parity.pairs import Graph

TABLE = np.zeros((37, 2), np.float32)


def found(model: onnx.ModelProto, sides: Sides | None = None) -> dict[str, Domain]:
    layout = Layout(signature(model), sides or Sides({"ids": "item"}))
    answer, notes = domains(model, layout)
    assert not notes
    return answer


def lookup(g: Graph, ids: str, table: np.ndarray = TABLE) -> None:
    g.op("Gather", [g.weight("table", table), ids], "out")
    g.outputs.append(onnx.ValueInfoProto(name="out"))


def test_ids_through_casts_and_an_offset() -> None:
    g = Graph()
    g.op("Cast", [g.input("ids", TensorProto.FLOAT, ["N"])], "whole", to=TensorProto.INT32)
    g.op("Cast", ["whole"], "long", to=TensorProto.INT64)
    g.op("Add", ["long", g.weight("offset", np.array(5))], "row")
    lookup(g, "row")
    assert found(g.model())["ids"].rows == 32


def test_columns_of_a_packed_input_have_their_own_ranges() -> None:
    g = Graph()
    g.input("ids", TensorProto.INT64, ["N", 4])
    starts, ends = g.weight("starts", np.array([1])), g.weight("ends", np.array([4]))
    g.op("Slice", ["ids", starts, ends, g.weight("axis", np.array([1]))], "three")
    g.op("Add", ["three", g.weight("offsets", np.array([0, 10, 30]))], "rows")
    lookup(g, "rows")
    rows = found(g.model())["ids"].rows
    assert rows is not None
    assert rows.ravel().tolist() == [0, 10, 20, 7]


def test_negative_offset_and_slope() -> None:
    g = Graph()
    g.input("ids", TensorProto.INT64, ["N"])
    g.op("Mul", ["ids", g.weight("two", np.array(2))], "twice")
    lookup(g, "twice")
    assert found(g.model())["ids"].rows == 19


def test_fields_between_each_other() -> None:
    """``id * fields + field``, as DeepFFM has it: an id counts as far as its own rows reach."""
    g = Graph()
    g.input("ids", TensorProto.INT64, ["N", 3])
    g.op("Mul", ["ids", g.weight("fields", np.array(3))], "first")
    g.op("Add", ["first", g.weight("field", np.array([0, 1, 2]))], "rows")
    lookup(g, "rows")
    rows = found(g.model())["ids"].rows
    assert rows is not None
    assert rows.ravel().tolist() == [13, 12, 12]


def test_modulo_lets_ids_go_beyond_the_table() -> None:
    g = Graph()
    g.op("Mod", [g.input("ids", TensorProto.INT64, ["N"]), g.weight("m", np.array(37))], "row")
    lookup(g, "row")
    rows = found(g.model())["ids"].rows
    assert rows is not None
    assert rows > 37


def test_one_hot_is_a_lookup() -> None:
    g = Graph()
    g.input("ids", TensorProto.INT64, ["N"])
    g.weight("values", np.array([0, 1], np.float32))
    g.op("OneHot", ["ids", g.weight("depth", np.array(11)), "values"], "out")
    g.outputs.append(onnx.ValueInfoProto(name="out"))
    assert found(g.model())["ids"].rows == 12  # one more than there are is 0 everywhere


def test_the_smaller_of_two_tables_counts() -> None:
    g = Graph()
    g.input("ids", TensorProto.INT64, ["N"])
    g.op("Gather", [g.weight("small", TABLE[:9]), "ids"], "other")
    g.outputs.append(onnx.ValueInfoProto(name="other"))
    lookup(g, "ids")
    assert found(g.model())["ids"].rows == 9


def test_lookup_in_a_loop_body() -> None:
    body = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["i", "zero"], ["at"]),
            helper.make_node("Gather", ["ids", "at"], ["one"]),
            helper.make_node("Gather", ["table", "one"], ["row"]),
            helper.make_node("Identity", ["going"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("row", TensorProto.FLOAT, [1, 2]),
        ],
    )
    g = Graph()
    g.input("ids", TensorProto.INT64, ["N"])
    g.weight("table", TABLE)
    g.weight("zero", np.array([0]))
    g.op("Size", ["ids"], "count")
    g.op("Loop", ["count", g.weight("yes", np.array(True))], "out", body=body)
    g.outputs.append(onnx.ValueInfoProto(name="out"))
    assert found(g.model())["ids"].rows == 37


def test_a_model_without_lookups_has_no_ids() -> None:
    g = Graph()
    g.op("Relu", [g.input("ids", TensorProto.FLOAT, ["N", 3])], "out")
    g.output("out", ["N", 3])
    assert found(g.model())["ids"] == Domain()


def test_lengths_masks_and_positive_inputs() -> None:
    g = Graph()
    g.op(
        "Unsqueeze",
        [g.input("length", TensorProto.INT64, ["N"]), g.weight("one", np.array([1]))],
        "l",
    )
    g.op("Less", [g.weight("steps", np.arange(8)), "l"], "seen")
    g.op("And", ["seen", g.input("valid", TensorProto.BOOL, ["N", 8])], "both")
    g.op("Log", [g.input("count", TensorProto.FLOAT, ["N", 8])], "logs")
    g.op("Where", ["both", "logs", g.weight("nothing", np.float32(0))], "out")
    g.output("out", ["N", 8])
    sides = Sides({"length": "user", "valid": "user", "count": "item"})
    answer = found(g.model(), sides)
    assert (answer["length"].role, answer["length"].size) == ("length", 8)
    assert answer["valid"].role == "mask"
    assert answer["count"].role == "positive"
    drawer = Drawer(Layout(signature(g.model()), sides), answer)
    for _ in range(8):
        request = drawer.request(3)
        length = int(request.user["length"][0])
        assert request.user["valid"].tolist() == [[i < length for i in range(8)]]
        assert (request.rows["count"] > 0).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_every_id_is_dealt_before_one_comes_twice(seed: int) -> None:
    g = Graph()
    g.input("ids", TensorProto.INT64, ["N"])
    lookup(g, "ids")
    drawer = Drawer(Layout(signature(g.model()), Sides({"ids": "item"})), found(g.model()), seed)
    assert sorted(drawer.request(37).rows["ids"].tolist()) == list(range(37))
    assert drawer.coverage() == {"ids": (37, 37)}


def one_sequence(places: int | str) -> onnx.ModelProto:
    """A history `[1, T]` of ids and candidates `[1, N]`: each candidate beside the mean of the history."""
    g = Graph()
    table = g.weight("table", np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32))
    one = g.weight("one", np.array([1]))
    g.op("Gather", [table, g.input("hist", TensorProto.INT64, [1, places])], "past")
    g.op("ReduceMean", ["past"], "mean", axes=[1], keepdims=1)
    g.op("Gather", [table, g.input("cand", TensorProto.INT64, [1, "N"])], "each")
    g.op("ReduceSum", [g.op("Mul", ["mean", "each"], "both"), g.op("Add", [one, one], "two")], "score", keepdims=0)
    g.output("score", [1, "N"])
    return g.model()


@pytest.mark.parametrize("places", [12, "T"])
def test_a_history_beside_a_candidate_axis_behind_the_first_is_no_candidate_axis(places: int | str) -> None:
    model = one_sequence(places)
    result = check(model, model, Sides({"hist": "user", "cand": "item"}, {}, 1))
    assert result.ok
    assert result.candidates == [1, 2, 7, 64, 500]
    assert result.coverage == {"hist": (300, 300), "cand": (300, 300)}
    assert result.reached.counts["rows"] == (300, 300)
    assert result.reached.lengths == (None if places == 12 else (0, 200))


def test_candidates_of_a_packed_input_keep_their_user_where_a_comparison_turns() -> None:
    text = (
        '<ir_version: 9, opset_import: ["": 18]> g (float[N,4] X) => (float[N,5] y) '
        "<int64[2] user = {0, 2}, int64[2] item = {1, 3}, int64[1] axis = {1}, int64[1] first = {0}> "
        "{ u = Gather<axis = 1>(X, user)\n x = Gather<axis = 1>(X, item)\n HOW\n t = Add(m, v)\n "
        "b = GreaterOrEqual(t, edges)\n y = Cast<to = 1>(b) }"
    )
    means = "v = ReduceSum(x, axis)\n "
    source = onnx.parser.parse_model(text.replace("HOW", means + "m = ReduceSum(u, axis)"))
    shared = onnx.parser.parse_model(
        text.replace("HOW", means + "o = Gather<axis = 0>(u, first)\n m = ReduceSum(o, axis)")
    )
    edges = numpy_helper.from_array(np.array([-2.5, -1.31, 0.27, 1.7, 3.21], np.float32), "edges")
    for model in (source, shared):
        model.graph.initializer.append(edges)
    result = check(source, shared, Sides({}, {"X": {"user": (0, 2), "item": (1, 3)}}))
    assert result.ok


def test_a_number_that_many_weights_multiply_has_few_distributions() -> None:
    """Each weight says another one; a thousand of them say no more than some."""
    g = Graph()
    weights = np.geomspace(1e-6, 1e-2, 500, dtype=np.float32)[None]
    g.op("Mul", [g.input("number", TensorProto.FLOAT, ["N", 1]), g.weight("w", weights)], "each")
    g.op("Sigmoid", ["each"], "out")
    g.outputs.append(onnx.ValueInfoProto(name="out"))
    spread = found(g.model(), Sides({"number": "item"}))["number"].spread
    assert spread is not None
    assert 1 < len(spread.options[0]) <= 64
