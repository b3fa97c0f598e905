"""What requests reach is measured, and further ones are drawn while they reach something new."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mari_onnx.model.signature import signature
from mari_onnx.parity import check
from mari_onnx.parity.coverage import sites, sizes
from mari_onnx.parity.coverage.budget import Budget, Price
from mari_onnx.parity.coverage.goals import Goal
from mari_onnx.parity.coverage.observe import Observer
from mari_onnx.parity.requests.draw import Request
from mari_onnx.sides.resolve import Sides
from tests.parity.pairs import PAIRS, Graph

SIDES = Sides({"x": "user", "z": "item"})


def looked(model: onnx.ModelProto, **rows: np.ndarray) -> list[Goal]:
    """The goals of a model after one request."""
    goals = sites.goals(model)
    observer = Observer(model, goals)
    observer.look(Request({}, rows, 1))
    return observer.goals


def missed(goal: Goal) -> list[str]:
    return [goal.text(int(at)) for at in np.flatnonzero(~goal.met)]


def test_rows_of_a_table() -> None:
    g = Graph()
    g.op("Gather", [g.weight("table", np.zeros((5, 2), np.float32)), g.input("x", TensorProto.INT64, ["N"])], "out")
    g.output("out", ["N", 2])
    (goal,) = looked(g.model(), x=np.array([0, 3, 3, -1]))
    assert missed(goal) == ["row 1", "row 2"]
    assert goal.look([np.array([-5, 1, 1])]) == 1
    assert not goal.done
    assert goal.look([np.array([2, 7])]) == 1
    assert goal.done


def test_outcomes_of_a_comparison_with_several_constants() -> None:
    g = Graph()
    g.op("Equal", [g.input("x", TensorProto.INT64, ["N", 1]), g.weight("codes", np.array([[3, 7, 9]]))], "out")
    g.output("out", ["N", 3], TensorProto.BOOL)
    (goal,) = looked(g.model(), x=np.array([[3], [7], [3]]))
    assert missed(goal) == ["true for constant 2"]


def test_units_that_are_never_on_or_off() -> None:
    g = Graph()
    g.op("Relu", [g.input("x", TensorProto.FLOAT, ["N", 3])], "out")
    g.output("out", ["N", 3])
    (goal,) = looked(g.model(), x=np.array([[1, -1, 1], [-1, -2, 2]], np.float32))
    assert missed(goal) == ["unit 2 is never off", "unit 1 is never on"]


def test_bounds() -> None:
    g = Graph()
    x = g.input("x", TensorProto.FLOAT, ["N"])
    g.op("Clip", [x, g.weight("low", np.float32(-1)), g.weight("high", np.float32(4))], "cut")
    g.op("Max", ["cut", g.weight("least", np.float32(2))], "out")
    g.output("out", ["N"])
    low, high, least = looked(g.model(), x=np.array([0, 5], np.float32))
    assert missed(low) == ["below -1"]
    assert missed(high) == []
    assert missed(least) == []


def test_categories() -> None:
    node = helper.make_node(
        "LabelEncoder", ["x"], ["out"], domain="ai.onnx.ml", keys_strings=["a", "b"], values_int64s=[1, 2]
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["N"])],
        [helper.make_tensor_value_info("out", TensorProto.INT64, ["N"])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    (goal,) = looked(model, x=np.array(["b", "b"], object))
    assert missed(goal) == ["'a'", "a category that is none of them"]
    (goal,) = looked(model, x=np.array(["b", "q"], object))
    assert missed(goal) == ["'a'"]


def tree() -> onnx.ModelProto:
    """x0 <= 1 ? leaf : (x1 < 5 ? leaf : leaf)"""
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["out"], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0] * 5, nodes_nodeids=[0, 1, 2, 3, 4], nodes_featureids=[0, 0, 1, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "BRANCH_LT", "LEAF", "LEAF"], nodes_values=[1.0, 0.0, 5.0, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 3, 0, 0], nodes_falsenodeids=[2, 0, 4, 0, 0],
        target_treeids=[0] * 3, target_nodeids=[1, 3, 4], target_ids=[0] * 3, target_weights=[1.0, 2.0, 3.0],
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_a_split_counts_only_where_a_row_comes_by() -> None:
    (goal,) = looked(tree(), x=np.array([[0, 9], [1, 0]], np.float32))
    assert [text.split(":")[0] for text in missed(goal)] == ["false at node 0", "false at node 2", "true at node 2"]
    (goal,) = looked(tree(), x=np.array([[0, 9], [2, 5], [2, 4]], np.float32))
    assert not missed(goal)


def loop(condition: bool) -> onnx.ModelProto:
    """Adds 1 as often as `times` says, or branches by it."""
    one = helper.make_node("Constant", [], ["one"], value_float=1.0)
    if condition:
        then = helper.make_graph(
            [one, helper.make_node("Add", ["z", "one"], ["a"])], "then", [],
            [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)],
        )  # fmt: skip
        other = helper.make_graph(
            [helper.make_node("Neg", ["z"], ["b"])], "else", [],
            [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
        )  # fmt: skip
        node = helper.make_node("If", ["times"], ["out"], "branch", then_branch=then, else_branch=other)
    else:
        body = helper.make_graph(
            [one, helper.make_node("Add", ["before", "one"], ["after"]), helper.make_node("Identity", ["go"], ["on"])],
            "body",
            [
                helper.make_tensor_value_info("trip", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info("on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
            ],
        )
        node = helper.make_node("Loop", ["times", "", "z"], ["out"], "loop", body=body)
    times = helper.make_tensor_value_info("times", TensorProto.BOOL if condition else TensorProto.INT64, [])
    graph = helper.make_graph(
        [node],
        "g",
        [times, helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_branches_and_trips() -> None:
    z = np.zeros(2, np.float32)
    (goal,) = looked(loop(True), times=np.array(True), z=z)
    assert (goal.kind, missed(goal)) == ("branches", ["false"])
    for times, expected in ((0, ["one trip", "several trips"]), (5, ["no trip", "one trip"])):
        (goal,) = looked(loop(False), times=np.array(times), z=z)
        assert (goal.kind, missed(goal)) == ("trips", expected)


@pytest.mark.parametrize("axis", [1, -1])
def test_numbers_that_a_size_meets(axis: int) -> None:
    g = Graph()
    x = g.input("x", TensorProto.FLOAT, ["N", "T"])
    ends = [g.weight(n, np.array([v])) for n, v in (("start", 0), ("end", 24), ("axis", axis))]
    g.op("Slice", [x, *ends], "cut")
    g.op("Gather", [g.op("Shape", [x], "shape"), g.weight("zero", np.array(0))], "n")
    g.op("Greater", ["n", g.weight("many", np.array(640))], "is_many")
    assert sizes.met(g.model()) == [24, 640]


def test_a_cut_of_a_fixed_axis_is_no_length() -> None:
    g = Graph()
    x = g.input("x", TensorProto.FLOAT, ["N", 48])
    g.op("Slice", [x, *(g.weight(n, np.array([v])) for n, v in (("start", 0), ("end", 24), ("axis", 1)))], "cut")
    assert sizes.met(g.model()) == []


def test_weights_too_large_to_run_twice_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mari_onnx.parity.coverage.observe.WEIGHTS", 1000)
    g = Graph()
    g.op("Gather", [g.weight("table", np.zeros((50, 20), np.float32)), g.input("x", TensorProto.INT64, ["N"])], "row")
    g.op("MatMul", ["row", g.weight("w", np.zeros((20, 20), np.float32))], "h")
    g.op("Relu", ["h"], "out")
    g.output("out", ["N", 20])
    assert [goal.kind for goal in looked(g.model(), x=np.arange(3))] == ["rows"]


def test_a_price_grows_with_candidates_and_a_budget_ends() -> None:
    pair = PAIRS["coarse"]()
    price = Price(pair.source)
    names = [i.name for i in signature(pair.source).inputs]
    few, many = (Request({}, {n: np.zeros((rows, 16), np.float32) for n in names}, rows) for rows in (1, 500))
    assert 0 < price.of(few) < price.of(many)
    budget = Budget(10.0)
    part = budget.part(0.5)
    assert not part.spend(6)
    assert part.spend(2)
    budget.back(part)
    assert budget.left == 8


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_seed_feeds_the_same_and_reaches_all_rows(name: str) -> None:
    pair = PAIRS[name]()
    first, second = (check(pair.source, pair.optimized, pair.sides, coverage=100).reached for _ in range(2))
    assert first == second
    assert first.digest
    other = check(pair.source, pair.optimized, pair.sides, coverage=100, seed=7).reached
    assert other.digest != first.digest


def test_no_clock_decides_what_is_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    pair = PAIRS["history"]()
    before = check(pair.source, pair.optimized, pair.sides).reached
    ticks = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    assert check(pair.source, pair.optimized, pair.sides).reached == before
