"""What is assumed of Squeezes without axes, and what becomes of it: a run at one candidate tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import mari_onnx
from mari_onnx.engine import Options, Rewrite, rewrite
from mari_onnx.engine.assumptions import UNCHECKED
from mari_onnx.engine.rules.structure import DROPS, KEEPS, MAY_BE_ONE
from mari_onnx.parity.assumptions import settle
from tests.engine.checks import check, lifted, repeated, same, unweighed
from tests.engine.graphs import LENGTHS, Draw, Graph, run
from tests.fuzz.oracle import refuted

D = 3
ASSUME = Options(assume=True)


def settled(g: Graph) -> Rewrite:
    """The rewrite whose assumptions hold, and equal to the source wherever that runs, at one candidate too."""
    model = g.model()
    with unweighed():
        made, _ = settle(
            model, ASSUME, lambda options: rewrite(model, g.sides, options), lambda m: refuted(g, model, m, 1e-4)
        )
    for n in (1, 2, 3, 7):
        try:
            want = run(model, g.feeds(n))
        except Exception:
            assert n == 1
            continue
        for name, a, b in zip(g.outputs, want, run(made.model, g.feeds(n, once=made.changed)), strict=True):
            same(a, b, 1e-4, f"{name} at N={n}")
    return made


def _squeezes(result: Rewrite) -> list[str | None]:
    return [n.reason for n in result.nodes if n.op == "Squeeze"]


STEPS: dict[str, Callable[[Graph, str, str, int], str]] = {
    "gemm": lambda g, x, y, axis: g.Gemm(x, g.weight(D, D), g.weight(D)),
    "matmul": lambda g, x, y, axis: g.MatMul(x, g.weight(D, D)),
    "add": lambda g, x, y, axis: g.Add(x, y),
    "softmax": lambda g, x, y, axis: g.Softmax(x, axis=axis),
    "concat": lambda g, x, y, axis: g.MatMul(g.Concat(x, y, axis=axis), g.weight(2 * D, D)),
    "sum": lambda g, x, y, axis: g.Mul(y, g.reduce("Sum", x, [axis])),
    "field": lambda g, x, y, axis: g.Squeeze(g.unsqueeze(x, axis)),
    "reshape": lambda g, x, y, axis: g.reshape(x, -1, D),
    "turned": lambda g, x, y, axis: g.Transpose(g.Relu(g.Transpose(x, perm=[1, 0])), perm=[1, 0]),
    "pieces": lambda g, x, y, axis: g.Concat(*g.split(x, [1, D - 1], axis), axis=axis),
    "column": lambda g, x, y, axis: g.Mul(g.Gather(x, g.const([1], np.int64), axis=axis), y),
    "expand": lambda g, x, y, axis: g.expand(x, 1, D),
}  # fmt: skip


@st.composite
def graphs(draw: Draw) -> Graph:
    g = Graph(draw(st.sampled_from((11, 13, 17))))
    user, item = g.user(1, D), g.item(D, 1)
    pool = [g.Squeeze(user), g.Squeeze(g.MatMul(user, g.weight(D, D))), g.Squeeze(item), g.user(D), g.item(D)]
    for _ in range(draw(st.integers(1, 5))):
        x, y = draw(st.sampled_from(pool)), draw(st.sampled_from(pool))
        pool.append(STEPS[draw(st.sampled_from(sorted(STEPS)))](g, x, y, draw(st.sampled_from((1, -1)))))
    for end in draw(st.lists(st.sampled_from(pool[5:]), min_size=1, max_size=2, unique=True)):
        g.output(end if draw(st.booleans()) else g.Gemm(end, g.weight(D, 2)))
    return g


@given(graphs())
def test_a_graph_does_at_one_candidate_what_the_source_does(g: Graph) -> None:
    settled(g)


HOLDS: dict[str, Callable[[Graph, str], str]] = {
    "a Gemm takes the vector for a row": lambda g, x: g.Add(g.Gemm(g.Relu(x), g.weight(D, 6), g.weight(6)), g.item(6)),
    "a vector and a row are a row": lambda g, x: g.Add(g.MatMul(x, g.weight(D, 6)), g.item(6)),
    "a Reshape makes it a row again": lambda g, x: g.Mul(g.reshape(g.MatMul(x, g.weight(D, 6)), -1, 6), g.item(6)),
}


@pytest.mark.parametrize("where", sorted(HOLDS))
def test_an_assumption_that_holds(where: str) -> None:
    g = Graph(17)
    g.output(HOLDS[where](g, g.Squeeze(g.user(1, D))))
    result = settled(g)
    lifted(g, result)
    assert [a.what for a in result.assumptions] == [KEEPS]
    assert [a.candidates for a in result.assumptions] == [1]
    assert _squeezes(result) == [None]


FAILS: dict[str, Callable[[Graph, str], str]] = {
    "an output": lambda g, x: x,
    "an output behind a product": lambda g, x: g.MatMul(x, g.weight(D, 2)),
    "another Squeeze": lambda g, x: g.MatMul(g.Add(x, g.Squeeze(g.item(1, D))), g.weight(D, 2)),
    "a transposition without perm": lambda g, x: g.Add(g.Transpose(x), g.weight(D, 1)),
    "its rank": lambda g, x: g.Mul(g.Gemm(x, g.weight(D, 2)), g.Cast(g.Size(g.Shape(x)), to=11)),
}


@pytest.mark.parametrize("where", sorted(FAILS))
def test_an_assumption_that_fails(where: str) -> None:
    g = Graph(17)
    g.output(FAILS[where](g, g.Squeeze(g.Relu(g.user(1, D)))), g.Relu(g.item(D)))
    result = settled(g)
    assert result.assumptions == []
    assert any((reason or "").startswith(DROPS) for reason in _squeezes(result))


def test_the_squeeze_at_an_output_does_not_take_others_with_it() -> None:
    g = Graph(17)
    hidden = g.Gemm(g.Squeeze(g.user(1, D)), g.weight(D, 6))
    inner = g.nodes[-2].name
    first = g.Squeeze(g.MatMul(g.Add(hidden, g.item(6)), g.weight(6, 1)))
    outer = g.nodes[-1].name
    g.output(first, g.Add(hidden, g.item(6)))
    result = settled(g)
    assert [a.node for a in result.assumptions] == [inner]
    assert next(n.reason for n in result.nodes if n.name == outer).startswith(DROPS)
    assert repeated(g, result) == []


# ---- with the check of the tool itself


def _model(g: Graph) -> onnx.ModelProto:
    model = g.model()
    for k, node in enumerate(model.graph.node):
        node.name = f"n{k}_{node.op_type}"
    return model


def holds() -> Graph:
    g = Graph(17, dtype=np.float32)
    return g.output(g.Add(g.Gemm(g.Squeeze(g.user(1, 64)), g.weight(64, 16)), g.item(16)))


def fails() -> Graph:
    g = Graph(17, dtype=np.float32)
    x = g.MatMul(g.Squeeze(g.user(1, 64)), g.weight(64, 16))
    return g.output(g.Concat(x, x, axis=-1), g.Relu(g.item(16)))


def source_fails() -> Graph:
    """As PEPNet is exported: the Concat has parts of different ranks at one candidate."""
    g = Graph(17, dtype=np.float32)
    hidden = g.Relu(g.Gemm(g.Squeeze(g.user(1, 64)), g.weight(64, 16)))
    gate = g.Softmax(g.Squeeze(g.user(1, 8)), axis=-1)
    return g.output(g.MatMul(g.Concat(gate, hidden, g.item(2), axis=1), g.weight(26, 2)))


def test_optimize_verifies_what_it_assumes() -> None:
    g = holds()
    done = mari_onnx.optimize(_model(g), g.sides)
    assert done.changed
    assert 1 in done.report.check["candidates"]
    assert [(a["node"], a["verified"]) for a in done.report.to_dict()["assumptions"]] == [("n0_Squeeze", True)]
    assert not done.report.incidents


@pytest.mark.parametrize("made", [fails, source_fails])
def test_optimize_declines_what_it_cannot_verify(made: Callable[[], Graph]) -> None:
    g = made()
    done = mari_onnx.optimize(_model(g), g.sides)
    assert done.report.to_dict()["assumptions"] == []
    reasons = [n.reason for n in done.report.nodes if n.op == "Squeeze" and n.reason]
    told = "the source itself fails at N = 1" if made is source_fails else "outputs differ there"
    assert reasons
    assert all(reason.startswith(DROPS) and told in reason for reason in reasons)
    assert not done.report.incidents


def test_one_candidate_is_run_though_others_were_asked_for() -> None:
    from mari_onnx.parity.guard import optimize_checked

    g = fails()
    done = optimize_checked(_model(g), g.sides, candidates=(2, 7))
    assert done.ok
    assert done.rewrite.assumptions == []
    g = holds()
    done = optimize_checked(_model(g), g.sides, candidates=(2, 7))
    assert done.result is not None
    assert done.result.candidates == [1, 2, 7]


@pytest.mark.parametrize("made", [holds, fails, source_fails])
def test_without_a_check_nothing_is_assumed(made: Callable[[], Graph]) -> None:
    g = made()
    done = mari_onnx.optimize(_model(g), g.sides, check=False)
    assert done.report.to_dict()["assumptions"] == []
    assert {n.reason for n in done.report.nodes if n.op == "Squeeze"} == {f"{DROPS}: {UNCHECKED}"}


def test_inspect_assumes_what_optimize_would_and_marks_it() -> None:
    g = holds()
    report = mari_onnx.inspect(_model(g), g.sides)
    assert report.changed
    assert [(a["node"], a["verified"]) for a in report.to_dict()["assumptions"]] == [("n0_Squeeze", False)]
    assert "n0_Squeeze" in report.assumed[0]
    assert "the check that `optimize` runs verifies it" in report.assumed[0]


# ---- where nothing is assumed


def test_a_literal_batch_is_never_one() -> None:
    g = Graph(17, fixed=5)
    hidden = g.Tanh(g.MatMul(g.Squeeze(g.user(1, 8)), g.weight(8, 6)))
    result = lifted(g.output(g.Add(hidden, g.item(6))), check(g))
    assert result.assumptions == []
    assert _squeezes(result) == [None]


OTHERS: dict[str, Callable[[Graph], str]] = {
    "a history": lambda g: g.user("T", D),
    "candidates and a history": lambda g: g.reshape(g.MatMul(g.user("T", D), g.weight(D, D)), -1, 1, D),
    "all candidates but the first": lambda g: g.slice(g.item(1, D), 1, 2**31, 0),
    "every other candidate": lambda g: g.slice(g.item(1, D), 0, 2**31, 0, 2),
    "a length that an input tells": lambda g: g.Slice(
        g.user(D, D), g.const([0], np.int64), g.input("user", 1, high=4), g.const([1], np.int64)),
}  # fmt: skip


@pytest.mark.parametrize("where", sorted(OTHERS))
def test_other_dimensions_may_be_one_at_any_number_of_candidates(where: str) -> None:
    g = Graph(17)
    x = g.Squeeze(OTHERS[where](g))
    g.output(g.reduce("Sum", x, None, 0), g.Relu(g.item(D)))
    result = settled(g)
    assert MAY_BE_ONE in _squeezes(result)
    assert result.assumptions == []


def test_one_position_of_a_history_is_dropped_as_in_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    g = Graph(17)
    g.output(g.Gemm(g.Squeeze(g.user("T", D)), g.weight(D, 2)), g.Relu(g.item(D)))
    monkeypatch.setitem(LENGTHS, "T", 1)
    assert MAY_BE_ONE in _squeezes(settled(g))


def test_a_body_may_not_be_reached_by_a_run() -> None:
    g = Graph(17)
    x, big = g.user(1, D), g.Greater(g.reduce("Sum", g.user(1), None, 0), g.const(0.0))
    result = helper.make_tensor_value_info("inner", 11, None)
    bodies = [helper.make_graph([helper.make_node("Squeeze", [x], ["inner"])], "a", [], [result])]
    other = helper.make_tensor_value_info("outer", 11, None)
    bodies.append(helper.make_graph([helper.make_node("Flatten", [x], ["outer"])], "b", [], [other]))
    g.output(g.Gemm(g.If(big, then_branch=bodies[0], else_branch=bodies[1]), g.weight(D, 2)), g.Relu(g.item(D)))
    made = settled(g)
    assert made.assumptions == []


def _by_length(g: Graph, x: str, axis: int) -> str:
    """x.squeeze(axis) as torch exports it where the dimension is not known: a Squeeze if it is 1."""
    one = g.Equal(g.Gather(g.Shape(x), g.const(axis, np.int64), axis=0), g.const(1, np.int64))
    then = helper.make_node("Squeeze", [x, g.const([axis], np.int64)], [g.name("s")])
    other = helper.make_node("Identity", [x], [g.name("s")])
    branches = [
        helper.make_graph([node], "b", [], [helper.make_tensor_value_info(node.output[0], 11, None)])
        for node in (then, other)
    ]
    return g.If(one, then_branch=branches[0], else_branch=branches[1])


def test_a_squeeze_if_the_dimension_is_1_is_folded_where_that_is_known() -> None:
    g = Graph(17)
    hidden = g.Relu(g.MatMul(_by_length(g, g.user(1, 8), 1), g.weight(8, 6)))
    lifted(g.output(g.Add(hidden, g.item(6))), settled(g))


@pytest.mark.parametrize("length", [1, 4])
def test_a_squeeze_if_the_history_is_of_one(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g = Graph(17)
    monkeypatch.setitem(LENGTHS, "T", length)
    settled(g.output(_by_length(g, g.user("T", D), 1), g.Relu(g.item(D))))


def test_a_squeeze_if_there_is_one_candidate() -> None:
    g = Graph(17)
    settled(g.output(_by_length(g, g.Relu(g.user(D)), 0), g.Relu(g.item(D))))


def test_declined_assumptions_are_not_made_again() -> None:
    g = holds()
    model = _model(g)
    again = rewrite(model, g.sides, replace(ASSUME, declined={"n0_Squeeze": "so it was decided"}))
    assert again.assumptions == []
    assert _squeezes(again) == [f"{DROPS}: so it was decided"]
