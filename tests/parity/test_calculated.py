"""Rows that are calculated are reached, whatever calculates them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from mari_onnx.model.signature import signature
from mari_onnx.parity import check
from mari_onnx.parity.coverage.sites import goals
from mari_onnx.parity.domains.domains import Domains, domains
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.requests.draw import Drawer
from mari_onnx.parity.requests.joints import Joints
from mari_onnx.sides.resolve import Sides

# How a row is calculated from ids a and b, and how many rows there are.
WAYS = {
    "k = Mul(a, c30)\n k2 = Add(k, b)\n r = Identity(k2)": lambda a, b: 30 * a + b,
    "k = Div(a, c10)\n k2 = Mul(k, c30)\n r = Add(k2, b)": lambda a, b: a // 10 * 30 + b,
    "k = Sub(c599, a)\n r = Sub(k, b)": lambda a, b: 599 - a - b,
    "r = Min(a, b)": min,
    "ka = Min(a, c19)\n kb = Min(b, c29)\n k = Mul(ka, c30)\n r = Add(k, kb)": (
        lambda a, b: 30 * min(a, 19) + min(b, 29)
    ),
    "k = Mul(a, b)\n r = Mod(k, c599)": lambda a, b: a * b % 599,
    "k = Div(a, c50000000)\n r = Div(k, c30)": lambda a, b: a // 50000000 // 30,
    "k = Div(a, c10)\n r = Div(k, c30)": lambda a, b: a // 10 // 30,
}


def _model(way: str, rows: int = 600) -> onnx.ModelProto:
    text = (
        '<ir_version: 9, opset_import: ["": 18]> g (int64[N] a, int64[N] b) => (float[N,2] y) '
        f"<int64 c10 = {{10}}, int64 c30 = {{30}}, int64 c599 = {{599}}, int64 c19 = {{19}}, int64 c29 = {{29}}, "
        f"int64 c50000000 = {{50000000}}> {{ {way}\n y = Gather(table, r) }}"
    )
    model = onnx.parser.parse_model(text)
    table = np.random.default_rng(0).standard_normal((rows, 2)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    return model


def _domains(model: onnx.ModelProto, sides: Sides) -> Domains:
    return domains(model, Layout(signature(model), sides))[0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("user", [True, False])
def test_what_is_fed_reaches_every_row(way: str, user: bool) -> None:
    found = _domains(_model(way), Sides({"a": "user" if user else "item", "b": "item"}))
    pairs = [{name: int(value) for name, _, value in joint.parts} for joint in found.joints]
    pairs += [{"a": int(n), "b": 0} for n in (found["a"].values.numbers[0] if found["a"].values else ())]
    rows = {WAYS[way](pair["a"], pair["b"]) for pair in pairs}
    assert rows == set(range(599 if "Mod" in way else 600))


def test_of_a_sum_of_multiples_each_id_ends_where_the_next_begins() -> None:
    found = _domains(_model(next(iter(WAYS))), Sides({"a": "user", "b": "item"}))
    assert [int(found[name].rows) for name in "ab"] == [20, 30]
    # A remainder never ends.
    assert _domains(_model("k = Mul(a, c30)\n k2 = Add(k, b)\n r = Mod(k2, c599)"), Sides({"a": "user", "b": "item"}))[
        "a"
    ].rows is None


def test_a_table_of_ten_thousand_rows_is_reached_by_the_default_check() -> None:
    model = _model("k = Mul(a, c30)\n r = Add(k, b)", 9990)
    result = check(model, model, Sides({"a": "user", "b": "item"}))
    assert result.ok
    assert result.reached.counts["rows"] == (9990, 9990)


def test_no_row_is_looked_for_where_candidates_meet() -> None:
    model = _model("k = CumSum(a, zero)\n r = Mod(k, c599)")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    assert not _domains(model, Sides({"a": "item", "b": "item"})).joints


def _tree() -> onnx.ModelProto:
    """A full tree of depth 5 over four features, two of each side, the splits of which are random."""
    rng, inner = np.random.default_rng(3), 2**5 - 1
    count = 2 * inner + 1
    own = {
        "nodes_treeids": [0] * count,
        "nodes_nodeids": list(range(count)),
        "nodes_featureids": [*rng.integers(0, 4, inner).tolist(), *[0] * (inner + 1)],
        "nodes_modes": ["BRANCH_LEQ"] * inner + ["LEAF"] * (inner + 1),
        "nodes_values": [*rng.standard_normal(inner).tolist(), *[0.0] * (inner + 1)],
        "nodes_truenodeids": [*range(1, count, 2), *[0] * (inner + 1)],
        "nodes_falsenodeids": [*range(2, count, 2), *[0] * (inner + 1)],
        "target_treeids": [0] * (inner + 1),
        "target_nodeids": list(range(inner, count)),
        "target_ids": [0] * (inner + 1),
        "target_weights": rng.standard_normal(inner + 1).tolist(),
    }
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18, "ai.onnx.ml": 3]> g (float[N,2] u, float[N,2] x) => (float[N,1] y) '
        "{ c = Concat <axis = 1> (u, x) }"
    )
    node = onnx.helper.make_node("TreeEnsembleRegressor", ["c"], ["y"], domain="ai.onnx.ml", n_targets=1, **own)
    model.graph.node.append(node)
    return model


def test_splits_that_contradict_what_was_asked_before_are_not_counted() -> None:
    split = next(goal for goal in goals(_tree()) if goal.kind == "splits")
    rows = np.random.default_rng(0).standard_normal((200_000, 4)).astype(np.float32) * 3
    split.look([rows])
    assert 40 < split.met.size < 62
    assert split.done


def test_few_users_get_to_all_leaves() -> None:
    model = _tree()
    result = check(model, model, Sides({"u": "user", "x": "item"}))
    met, of = result.reached.counts["splits"]
    assert met == of
    found = _domains(model, Sides({"u": "user", "x": "item"}))
    joints = Joints(found.joints, Layout(signature(model), Sides({"u": "user", "x": "item"})))
    users = 0
    while joints.left:
        arrays = {"u": np.zeros((1, 2), np.float32), "x": np.zeros((64, 2), np.float32)}
        joints.deal(arrays)
        users += 1
    assert users < len(found.joints) / 2


def test_ids_that_are_a_size_are_no_ids_of_a_table() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (int64 length, float[1,20] history, float[N,1] x) => (float[N,1] y) '
        "<int64 zero = {0}, int64 one = {1}, int64[1] last = {1}> { places = Range(zero, length, one)\n"
        "seen = Gather <axis = 1> (history, places)\n total = ReduceSum(seen, last)\n y = Add(total, x) }"
    )
    sides = Sides({"length": "user", "history": "user", "x": "item"})
    assert check(model, model, sides).ok


def test_numbers_that_fall_into_buckets_are_no_ids() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (float[N] price) => (float[N,2] y) '
        "<float one = {1}, float four = {4}, float low = {0}, float high = {49}> { a = Abs(price)\n b = Add(a, one)\n"
        "l = Log(b)\n m = Mul(l, four)\n f = Floor(m)\n c = Clip(f, low, high)\n k = Cast <to = 7> (c)\n"
        "y = Gather(table, k) }"
    )
    table = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    found = _domains(model, Sides({"price": "item"}))["price"]
    assert found.rows is None
    assert found.values is not None
    reached = np.floor(4 * np.log(np.abs(np.array(found.values.numbers[0])) + 1)).clip(0, 49)
    assert set(range(50)) - {1} <= set(reached.astype(int).tolist())
    assert check(model, model, Sides({"price": "item"})).reached.counts["rows"] == (50, 50)


def test_two_lengths_of_a_user_differ_in_some_requests() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (int64[N,1] one, int64[N,1] other, float[N,20] x) '
        "=> (float[N,20] y) "
        "{ a = Less(places, one)\n b = Less(places, other)\n c = Xor(a, b)\n d = Cast <to = 1> (c)\n y = Add(d, x) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.arange(20)[None], "places"))
    sides = Sides({"one": "user", "other": "user", "x": "item"})
    layout = Layout(signature(model), sides)
    drawer = Drawer(layout, domains(model, layout)[0])
    apart = [bool((r.user["one"] != r.user["other"]).any()) for r in (drawer.request(3) for _ in range(24))]
    assert 0 < sum(apart) < 12


def test_the_number_in_a_sequence_is_one_of_it() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (int64 k, float[N,4] x) => (float[N,2] y) '
        "{ a, b = Split <axis = 1, num_outputs = 2> (x)\n s = SequenceConstruct(a, b)\n y = SequenceAt(s, k) }"
    )
    assert int(_domains(model, Sides({"k": "user", "x": "item"}))["k"].rows) == 2


def test_what_a_graph_picks_ids_from_holds_ids() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (float[1,50] score, int64[1,50] ids, float[N,1] x) '
        "=> (float[N,2] y) "
        "<int64[1] five = {5}, int64[1] one = {1}> { best, at = TopK <axis = 1> (score, five)\n"
        "chosen = GatherElements <axis = 1> (ids, at)\n row = Gather(table, chosen)\n"
        "mean = ReduceMean <keepdims = 0> (row, one)\n y = Add(mean, x) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((100, 2), np.float32), "table"))
    assert int(_domains(model, Sides({"score": "user", "ids": "user", "x": "item"}))["ids"].rows) == 100


def test_ids_that_are_added_are_no_mask() -> None:
    found = _domains(_model("ka = Min(a, c19)\n k = Mul(ka, c30)\n r = Add(k, b)"), Sides({"a": "user", "b": "item"}))
    assert found["a"].role == "plain"


def test_a_user_meets_most_items_where_both_are_few() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (int64[N] a, int64[N,1] b) => (float[N,1] y) '
        "{ row = Gather(table, a)\n y = GatherElements <axis = 1> (row, b) }"
    )
    wrong = onnx.ModelProto.FromString(model.SerializeToString())
    table = np.random.default_rng(0).standard_normal((20, 25)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    table = table.copy()
    table[13, 21] = 9
    wrong.graph.initializer.append(numpy_helper.from_array(table, "table"))
    assert not check(model, wrong, Sides({"a": "user", "b": "item"})).ok
