"""What an input may hold follows from what is done with it, whatever it is called and wherever it lies."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.model.signature import signature
from mari_onnx.parity import check
from mari_onnx.parity.domains.domains import Domain, Domains, domains
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.requests.draw import Drawer
from mari_onnx.sides.resolve import Sides
from tests.parity.pairs import Graph, _random
from tests.parity.reacting import ML, _tree

ITEM = Sides({"x": "item"})


def graph(opset: int = 19, ml: int = 3) -> Graph:
    return Graph(opsets={"": opset, ML: ml})


def all_of(g: Graph, sides: Sides = ITEM) -> Domains:
    known = {o for n in g.nodes for o in n.output} - {t for n in g.nodes for t in n.input}
    g.outputs += [onnx.ValueInfoProto(name=t) for t in sorted(known)]
    model = g.model()
    return domains(model, Layout(signature(model), sides))[0]


def found(g: Graph, sides: Sides = ITEM) -> Domain:
    return all_of(g, sides)["x"]


def numbers(g: Graph, sides: Sides = ITEM) -> list[set[float | str]]:
    values = found(g, sides).values
    assert values is not None
    return [set(each) for each in values.numbers]


# ---- masks


def masked(how: str) -> Graph:
    """Scores of a history [N, 4] masked by `x` in one of many ways; the scores are of another input."""
    g = graph()
    whole = how in ("bert", "cast")
    x = g.input("x", TensorProto.INT64 if whole else TensorProto.FLOAT, ["N", 4])
    g.op("MatMul", [g.input("h", TensorProto.FLOAT, ["N", 4]), g.weight("w", _random(1, 4, 4))], "scores")
    one = g.weight("one", np.float32(1))
    if how == "factor":
        g.op("Mul", ["scores", x], "out")
    elif how == "turned factor":
        g.op("Mul", ["scores", g.op("Sub", [one, x], "left")], "out")
    elif how == "bert":
        left = g.op("Sub", [one, g.op("Cast", [x], "float", to=TensorProto.FLOAT)], "left")
        g.op("Add", [g.op("Mul", [left, g.weight("low", np.float32(-1e4))], "bias"), "scores"], "out")
    elif how == "smallest float":
        low = g.weight("low", np.float32(np.finfo(np.float32).min))
        g.op("Add", ["scores", g.op("Mul", [g.op("Sub", [one, x], "left"), low], "bias")], "out")
    elif how == "logarithm":
        some = g.op("Clip", [x, g.weight("tiny", np.float32(1e-12))], "some")
        g.op("Add", ["scores", g.op("Log", [some], "log")], "out")
    elif how == "subtracted":
        g.op("Sub", ["scores", g.op("Mul", [x, g.weight("high", np.float32(1e9))], "bias")], "out")
    elif how == "cast":
        seen = g.op("Cast", [x], "seen", to=TensorProto.BOOL)
        g.op("Where", [seen, "scores", one], "out")
    elif how == "not above a half":
        seen = g.op("Not", [g.op("Greater", [x, g.weight("half", np.float32(0.5))], "above")], "seen")
        g.op("Where", [seen, "scores", one], "out")
    elif how == "equal to 1, as a factor":
        seen = g.op("Cast", [g.op("Equal", [x, one], "is_one")], "seen", to=TensorProto.FLOAT)
        g.op("Mul", ["scores", seen], "out")
    else:
        row = g.op("Unsqueeze", [x, g.weight("axis", np.array([1]))], "row")
        column = g.op("Unsqueeze", ["scores", g.weight("last", np.array([2]))], "column")
        g.op("MatMul", [row, column], "out")
    return g


@pytest.mark.parametrize(
    "how",
    ["factor", "turned factor", "bert", "smallest float", "logarithm", "subtracted", "cast", "not above a half",
     "equal to 1, as a factor", "product"],
)  # fmt: skip
def test_a_mask_by_what_is_done_with_it(how: str) -> None:
    domain = found(masked(how), Sides({"x": "user", "h": "item"}))
    assert domain.role == "mask"
    assert domain.real == (how not in ("bert", "smallest float", "logarithm", "subtracted"))


def test_what_is_called_a_mask_may_be_an_id() -> None:
    g = graph()
    g.input("mask", TensorProto.INT64, ["N"])
    g.op("Gather", [g.weight("table", _random(1, 30, 4)), "mask"], "rows")
    domain = all_of(g, Sides({"mask": "item"}))["mask"]
    assert domain.role == "plain"
    assert domain.rows == 30


def test_a_dense_feature_that_is_crossed_with_itself_is_no_mask() -> None:
    g = graph()
    g.op("MatMul", [g.input("x", TensorProto.FLOAT, ["N", 4]), g.weight("w", _random(1, 4, 4))], "product")
    g.op("Mul", ["x", "product"], "out")
    assert found(g).role == "plain"


def test_columns_of_a_packed_input_are_ids_masks_lengths_and_features() -> None:
    g = graph()
    g.input("x", TensorProto.FLOAT, ["N", 12])
    axis, last = g.weight("axis", np.array([1])), g.weight("last", np.array([2]))
    for name, first, end in (("ids", 0, 4), ("seen", 4, 8), ("length", 8, 9), ("count", 9, 10), ("price", 10, 12)):
        ends = [g.weight(f"{name}_{k}", np.array([v])) for k, v in (("first", first), ("end", end))]
        g.op("Slice", ["x", *ends, axis], name)
    g.op("Gather", [g.weight("table", _random(1, 50, 4)), g.op("Cast", ["ids"], "whole", to=TensorProto.INT64)], "keys")
    g.op("Mul", ["keys", g.op("Unsqueeze", ["seen", last], "seen_3d")], "kept")
    g.op("Less", [g.weight("steps", np.arange(4, dtype=np.float32)), "length"], "within")
    g.op("Log", ["count"], "log")
    g.op("Div", ["price", g.weight("scale", np.float32([1e4, 1]))], "scaled")
    sides = Sides({}, {"x": {"user": tuple(range(9)), "item": (9, 10, 11)}})
    every = all_of(g, sides)
    domain = every["x"]
    assert domain.rows is not None
    assert domain.rows.reshape(-1).tolist() == [50] * 4 + [0] * 8
    assert domain.levels is not None
    assert [len(n) for n in domain.levels.numbers] == [0] * 4 + [2] * 4 + [5] + [0] * 3
    assert domain.positive is not None
    assert np.flatnonzero(domain.positive).tolist() == [9]
    drawer = Drawer(Layout(signature(g.model()), sides), every)
    drawn = np.concatenate([drawer.request(200).rows["x"] for _ in range(4)])
    assert set(np.unique(drawer.request(3).rows["x"][:, 4:8])) <= {0, 1}  # every second time they are weights
    assert (drawn[:, 9] > 0).all()
    assert drawn[:, 10].std() > 2000
    assert 0.3 < drawn[:, 11].std() < 3


# ---- categories


def test_strings_of_one_column_of_a_packed_input_that_are_equal_to_constants() -> None:
    g = graph()
    g.input("x", TensorProto.STRING, ["N", 3])
    g.op("Gather", ["x", g.weight("at", np.array([2]))], "city", axis=1)
    g.op("Equal", ["city", g.weight("c", np.array([["rome", "oslo"]], object))], "out")
    found_ = numbers(g, Sides({"x": "item"}))
    assert found_[:2] == [set(), set()]
    assert {"rome", "oslo"} < found_[2]


@pytest.mark.parametrize(("kind", "keys"), [(TensorProto.INT64, [7, 9000]), (TensorProto.FLOAT, [0.25, 400.0])])
def test_keys_behind_casts_and_reshapes(kind: int, keys: list[float]) -> None:
    g = graph()
    g.op("Cast", [g.input("x", TensorProto.DOUBLE, ["N", 2])], "typed", to=kind)
    g.op("Reshape", ["typed", g.weight("shape", np.array([-1]))], "flat")
    name = "keys_int64s" if kind == TensorProto.INT64 else "keys_floats"
    g.op("LabelEncoder", ["flat"], "out", domain=ML, **{name: keys}, values_floats=[1.0, 2.0])
    assert all(set(map(float, keys)) <= each for each in numbers(g))


def test_a_one_hot_that_refuses_other_categories_gets_none() -> None:
    g = graph()
    g.op("OneHotEncoder", [g.input("x", TensorProto.STRING, ["N"])], "out", domain=ML, cats_strings=["a", "b"], zeros=0)
    values = found(g).values
    assert values is not None
    assert values.numbers == (("a", "b"),)
    drawer = Drawer(Layout(signature(g.model()), ITEM), all_of(g))
    assert set(drawer.request(50).rows["x"].tolist()) == {"a", "b"}


# ---- trees


def test_trees_of_the_newest_form() -> None:
    g = graph(ml=5)
    floats = {"nodes_splits": [3.5, 800.0], "leaf_weights": [1.0, 2.0, 3.0]}
    given = {k: numpy_helper.from_array(np.float32(v)) for k, v in floats.items()}
    given["nodes_modes"] = numpy_helper.from_array(np.array([0, 4], np.uint8))
    g.op("TreeEnsemble", [g.input("x", TensorProto.FLOAT, ["N", 2])], "out", domain=ML, n_targets=1,
         nodes_featureids=[0, 1], nodes_truenodeids=[0, 1], nodes_trueleafs=[1, 1], nodes_falsenodeids=[1, 2],
         nodes_falseleafs=[0, 1], nodes_missing_value_tracks_true=[0, 1], tree_roots=[0], leaf_targetids=[0, 0, 0],
         **given)  # fmt: skip
    first, second = numbers(g)
    assert 3.5 in first
    assert 800.0 in second
    assert any(n != n for n in second)
    assert not any(n != n for n in first)


def test_a_tree_beside_an_embedding() -> None:
    g = graph()
    g.op("Gather", [g.weight("table", _random(1, 50, 4)), g.input("id", TensorProto.INT64, ["N"])], "rows")
    g.op("Concat", ["rows", g.input("x", TensorProto.FLOAT, ["N", 2])], "all", axis=1)
    g.op("TreeEnsembleRegressor", ["all"], "out", domain=ML, **_tree([(5, "BRANCH_LEQ", 300.0, 0)], [1.0, 2.0]))
    first, second = numbers(g, Sides({"x": "item", "id": "user"}))
    assert not first
    assert 300.0 in second


def test_a_number_behind_a_logarithm_is_found_by_halving() -> None:
    g = graph()
    g.op("Add", [g.input("x", TensorProto.FLOAT, ["N"]), g.weight("one", np.float32(1))], "more")
    g.op("Greater", [g.op("Log", ["more"], "log"), g.weight("c", np.float32(6))], "out")
    (found_,) = numbers(g)
    at = np.exp(6) - 1
    assert any(at * 0.99 < n < at for n in found_)
    assert any(at < n < at * 1.01 for n in found_)


@pytest.mark.parametrize("edges", [[-2.0, 0.5, 30.0, 400.0], [0.1, 0.2, 0.9]])
def test_a_bucket_is_no_id(edges: list[float]) -> None:
    g = graph()
    g.op("Unsqueeze", [g.input("x", TensorProto.FLOAT, ["N"]), g.weight("axis", np.array([1]))], "column")
    g.op("Greater", ["column", g.weight("edges", np.float32(edges))], "above")
    g.op("Cast", ["above"], "ones", to=TensorProto.INT64)
    g.op("ReduceSum", ["ones", "axis"], "bucket", keepdims=0)
    g.op("Gather", [g.weight("table", _random(1, 12, 4)), "bucket"], "out")
    domain = found(g)
    assert domain.rows is None
    assert domain.values is not None
    known = np.array(domain.values.numbers[0], float)
    assert all(((known > np.float32(e)) & (known < e + 0.1 + abs(e) / 50)).any() for e in edges)


# ---- missing values, scales, equality


@pytest.mark.parametrize("how", ["IsNaN", "itself"])
def test_nan_is_fed_where_the_graph_asks_for_it(how: str) -> None:
    g = graph()
    g.input("x", TensorProto.FLOAT, ["N", 3])
    g.op("Gather", ["x", g.weight("at", np.array([1]))], "one", axis=1)
    g.op("Mul", ["one", g.weight("scale", np.float32(0.1))], "scaled")
    g.op(*(("IsNaN", ["scaled"]) if how == "IsNaN" else ("Equal", ["scaled", "scaled"])), "out")
    assert [any(n != n for n in each) for each in numbers(g)] == [False, True, False]


def test_what_only_the_optimized_model_reacts_to() -> None:
    def build(column: int | None) -> onnx.ModelProto:
        g = graph()
        g.input("x", TensorProto.FLOAT, ["N", 2])
        g.op("MatMul", ["x", g.weight("w", np.float32([[1], [2]]))], "y" if column is None else "right")
        if column is not None:
            g.op("Gather", ["x", g.weight("at", np.array([column]))], "one", axis=1)
            g.op("Greater", ["one", g.weight("c", np.float32(250))], "far")
            g.op("Cast", ["far"], "more", to=TensorProto.FLOAT)
            g.op("Add", ["right", "more"], "y")
        g.output("y", ["N", 1])
        return g.model()

    assert check(build(None), build(None), ITEM).ok
    assert not check(build(None), build(1), ITEM).ok


@pytest.mark.parametrize("how", ["subtracted", "multiplied", "normalized", "scaled"])
def test_a_feature_is_drawn_at_its_own_scale(how: str) -> None:
    g = graph()
    g.input("x", TensorProto.FLOAT, ["N", 2])
    if how == "normalized":
        given = {"s": [1, 1], "b": [0, 0], "m": [9e5, 2], "v": [1e10, 1]}
        stats = [g.weight(k, np.float32(v)) for k, v in given.items()]
        g.op("BatchNormalization", ["x", *stats], "norm")
    elif how == "scaled":
        g.op("Scaler", ["x"], "norm", domain=ML, offset=[9e5, 2.0], scale=[1e-5, 1.0])
    else:
        g.op("Sub", ["x", g.weight("mean", np.float32([9e5, 2]))], "moved")
        by = [1e5, 1] if how == "subtracted" else [1e-5, 1]
        g.op("Div" if how == "subtracted" else "Mul", ["moved", g.weight("by", np.float32(by))], "norm")
    g.op("MatMul", [g.op("Relu", ["norm"], "row"), g.weight("w", _random(1, 2, 1))], "y")
    every = all_of(g)
    drawn = Drawer(Layout(signature(g.model()), ITEM), every).request(500).rows["x"]
    assert 8e5 < np.median(drawn[:, 0]) < 1e6
    assert 5e4 < np.diff(np.quantile(drawn[:, 0], [0.25, 0.75]))[0] < 3e5
    assert np.abs(drawn[:, 1]).max() < 20


def test_equal_numbers_of_user_and_item_are_drawn() -> None:
    g = graph()
    g.op("Add", [g.input("x", TensorProto.INT64, ["N", 1]), g.weight("one", np.array(1))], "next")
    g.op("Equal", [g.input("u", TensorProto.INT64, ["N", 3]), "next"], "out")
    sides = Sides({"x": "item", "u": "user"})
    every = all_of(g, sides)
    assert {(link.name, link.other, link.shift) for link in every.links} == {("u", "x", -1.0)}
    request = Drawer(Layout(signature(g.model()), sides), every).request(60, alike=True)
    assert np.isin(request.rows["x"] + 1, request.user["u"]).mean() > 0.2


def test_a_softmax_is_driven_beyond_the_range_of_the_type() -> None:
    def build(stable: bool) -> onnx.ModelProto:
        g = graph()
        g.op("MatMul", [g.input("x", TensorProto.FLOAT, ["N", 3]), g.weight("w", _random(1, 3, 3))], "h")
        if stable:
            g.op("Softplus", ["h"], "y")
        else:
            g.op("Log", [g.op("Add", [g.op("Exp", ["h"], "e"), g.weight("one", np.float32(1))], "more")], "y")
        g.output("y", ["N", 3])
        return g.model()

    assert check(build(True), build(True), ITEM).ok
    assert not check(build(True), build(False), ITEM).ok


def test_an_operator_that_does_not_run_hides_nothing_of_other_inputs() -> None:
    g = graph()
    g.input("s", TensorProto.STRING, ["N"])
    g.op("StringNormalizer", ["s"], "lower", case_change_action="LOWER", locale="xx")
    g.op("Equal", [g.input("x", TensorProto.INT64, ["N"]), g.weight("c", np.array(40))], "out")
    assert numbers(g, Sides({"x": "item", "s": "item"})) == [{39.0, 40.0, 41.0}]


def test_a_comparison_in_a_branch_is_seen() -> None:
    g = graph()
    g.input("x", TensorProto.INT64, ["N"])
    branches = {}
    for name, code in (("then_branch", 40), ("else_branch", 90)):
        constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(code)))
        equal = helper.make_node("Equal", ["x", "c"], ["is"])
        value = helper.make_tensor_value_info("is", TensorProto.BOOL, None)
        branches[name] = helper.make_graph([constant, equal], name, [], [value])
    g.op("If", [g.input("ready", TensorProto.BOOL, [])], "out", **branches)
    assert numbers(g) == [{39.0, 40.0, 41.0, 89.0, 90.0, 91.0}]


# ---- what reaches a question only by way of a product, and ids that are none


@pytest.mark.parametrize("idiom", ["IsNaN", "itself"])
def test_an_input_may_be_nan_where_a_product_of_it_is_asked_for_it(idiom: str) -> None:
    g = graph()
    product = g.op("MatMul", [g.input("x", TensorProto.FLOAT, ["N", 3]), g.weight("w", _random(1, 3, 2))], "product")
    missing = g.op("IsNaN", [product], "missing")
    if idiom == "itself":
        missing = g.op("Not", [g.op("Equal", [product, product], "there")], "missing")
    g.op("Where", [missing, g.weight("instead", np.float32(0.5)), product], "out")
    assert all(any(n != n for n in each) for each in numbers(g))


def _looked_up(least: int | None) -> Graph:
    """Rows by ids, of which those below `least` get the last row."""
    g = graph()
    ids = g.input("x", TensorProto.INT64, ["N"])
    if least is not None:
        unknown = g.op("Less", [ids, g.weight("least", np.array(least))], "unknown")
        ids = g.op("Where", [unknown, g.weight("last", np.array(9)), ids], "known")
    g.op("Gather", [g.weight("table", _random(1, 10, 2)), ids], "out")
    return g


def test_an_id_may_be_minus_one_where_a_graph_asks_for_what_is_below_0() -> None:
    assert numbers(_looked_up(0)) == [{-1.0, 0.0, 1.0}]
    assert -1.0 not in numbers(_looked_up(1))[0]
    assert found(_looked_up(None)).values is None


def test_ids_are_of_all_rows_where_0_stands_for_another_row_and_where_they_count_down() -> None:
    assert found(_looked_up(1)).rows == 10
    g = graph()
    down = g.op("Sub", [g.weight("last", np.array(9)), g.input("x", TensorProto.INT64, ["N"])], "down")
    g.op("Gather", [g.weight("table", _random(1, 10, 2)), down], "out")
    assert found(g).rows == 10
