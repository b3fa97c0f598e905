"""What all scores of a softmax's row have in common cancels, also under masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.engine.algebra.softmax_shift import UNPROVEN
from tests.engine.graphs import Draw, Graph, N, actions, check, lifted, starts, tensor

T, D = 4, 3
MASKS = (-np.inf, -1e9, -1e4, float(np.finfo(np.float32).min))


def _scores(draw: Draw, g: Graph, depth: int) -> str:
    """[N, T, 1] or so: sums of what has T and what has not, scaled, and through layers without an activation."""
    which = draw(st.integers(0, 5)) if depth else 0
    if which <= 1:
        x = tensor(draw, g, (N, T, D), 1) if draw(st.booleans()) else g.user(T, D)
        return g.Tanh(x) if draw(st.booleans()) else x
    if which == 2:
        return g.MatMul(_scores(draw, g, depth - 1), g.weight(D, D))
    if which == 3:
        factor = g.const(np.array(draw(st.sampled_from((0.5, -2.0))))) if draw(st.booleans()) else g.item(1, 1)
        return g.Mul(_scores(draw, g, depth - 1), factor)
    common = g.Relu(g.user(1, D)) if draw(st.booleans()) else _common(draw, g)
    common = g.Tanh(common) if draw(st.booleans()) else common
    pair = [_scores(draw, g, depth - 1), common][:: 1 if draw(st.booleans()) else -1]
    return getattr(g, draw(st.sampled_from(("Add", "Sub"))))(*pair)


def _common(draw: Draw, g: Graph) -> str:
    """The candidate's, looked up or as it is given."""
    return g.item(1, D) if draw(st.booleans()) else g.Gather(g.weight(9, D), g.item(1, high=9))


def _masked(draw: Draw, g: Graph, x: str) -> str:
    """By Where in both orders, or by an addend; of some rows all of it."""
    ids = g.user(T, 1, high=2) if draw(st.booleans()) else g.item(T, 1, high=2)
    mask = g.Equal(ids, g.const(0))
    fill = g.const(np.array(draw(st.sampled_from(MASKS))))
    if draw(st.booleans()):
        return g.Where(mask, fill, x)
    if draw(st.booleans()):
        return g.Where(g.Not(mask), x, fill)
    fill = g.const(np.array(draw(st.sampled_from([m for m in MASKS if m != -1e9]))))  # whose sums are round at 1e-7
    return g.Add(x, g.Where(mask, fill, g.const(np.array(0.0))))


@st.composite
def graphs(draw: Draw) -> Graph:
    g = draw(starts(opsets=(11, 13, 17, 21)))
    x = _scores(draw, g, 4)
    steps = draw(st.permutations(("mask", "scale", "common", "sum")))
    for step in steps[: draw(st.integers(0, 4))]:
        if step == "mask":
            x = _masked(draw, g, x)
        elif step == "scale":
            x = g.Div(x, g.const(np.array(1.7)))
        elif step == "common":
            x = g.Add(x, g.item(1, 1))
        else:
            x = g.reduce(draw(st.sampled_from(("Sum", "Mean"))), x, [2], keepdims=1)
    op = draw(st.sampled_from(("Softmax", "LogSoftmax")))
    turned = g.Transpose(x, perm=[0, 2, 1])  # any opset then has T alone in the row
    return g.output(getattr(g, op)(turned, axis=2))


@given(graphs())
def test_softmax_of_scores_with_something_in_common_is_the_same(g: Graph) -> None:
    check(g)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_a_linear_scorer_gives_weights_of_the_history_alone(op: str, opset: int) -> None:
    g = Graph(opset)
    history, target = g.Relu(g.user(T, D)), g.Gather(g.weight(9, D), g.item(high=9))
    both = g.Concat(g.expand(g.unsqueeze(target, 1), 1, T, 1), history, axis=2)
    hidden = g.Add(g.MatMul(both, g.weight(2 * D, 5)), g.weight(5))
    score = g.Div(g.Add(g.MatMul(hidden, g.weight(5, 1)), g.weight(1)), g.const(np.array(2.0)))
    weights = getattr(g, op)(score, axis=1)
    pooled = g.squeeze(g.MatMul(g.Transpose(weights, perm=[0, 2, 1]), history), [1])
    lifted(g.output(g.MatMul(g.Concat(pooled, target, axis=1), g.weight(2 * D, 2))), per_candidate=2 * D)


def _weights(fill: float, bounded: bool, order: str, op: str = "Softmax") -> Graph:
    """Masked scores of the user's and one of the item's; rows of the user's may be masked throughout."""
    g = Graph(18)
    own, common = g.user(T), g.Cast(g.item(1, high=9), to=11)  # a count has no bound, but is no NaN
    if bounded:
        own, common = g.Tanh(own), g.Tanh(common)
    mask = g.Equal(g.user(T, high=2), g.const(0))
    f = g.const(np.array(fill))
    if order == "scale last":
        x = g.Div(g.Where(mask, f, g.Add(own, common)), g.const(np.array(2.0)))
    elif order == "scale first":
        x = g.Where(g.Not(mask), g.Mul(g.Add(common, own), g.const(np.array(0.5))), f)
    elif order == "common last":
        x = g.Add(g.Where(mask, f, own), common)
    else:
        x = g.Add(g.Add(own, common), g.Mul(g.Cast(mask, to=11), f))
    return g.output(getattr(g, op)(x, axis=1))


ORDERS = ("scale last", "scale first", "common last")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("fill", "bounded"), [(-np.inf, False), (-1e9, True), (float(np.finfo(np.float32).min), True)])
def test_masked_scores_lose_what_they_have_in_common(fill: float, bounded: bool, order: str) -> None:
    result = check(_weights(fill, bounded, order))
    assert actions(result)["Softmax"] == ["lifted"]


def test_a_mask_that_is_added_needs_no_bound() -> None:
    assert actions(check(_weights(-1e9, False, "added")))["Softmax"] == ["lifted"]


@pytest.mark.parametrize("order", ["scale last", "scale first"])
@pytest.mark.parametrize(("fill", "bounded"), [(-1e9, False), (-1e2, True), (0.0, True)])
def test_a_finite_mask_that_is_not_proven_to_be_far_below(fill: float, bounded: bool, order: str) -> None:
    result = check(_weights(fill, bounded, order))
    assert actions(result)["Softmax"] == ["kept"]
    assert any(n.reason is not None and UNPROVEN in n.reason for n in result.nodes)


def test_the_log_of_a_finite_mask_depends_on_what_is_common() -> None:
    assert actions(check(_weights(-1e9, True, "scale last", "LogSoftmax")))["LogSoftmax"] == ["kept"]
    assert actions(check(_weights(-np.inf, True, "scale last", "LogSoftmax")))["LogSoftmax"] == ["lifted"]


def test_what_is_common_stays_where_it_may_be_nan() -> None:
    """All weights of a row are NaN then: a float input of the candidate's is no number that any score could lose."""
    g = Graph(18)
    result = check(g.output(g.Softmax(g.Add(g.user(T), g.item(1)), axis=1)))
    assert actions(result)["Softmax"] == ["kept"]


@pytest.mark.parametrize("fill", [-np.inf, -1e9])
def test_an_addend_that_can_be_a_mask_stays(fill: float) -> None:
    g = Graph(18)
    gone = g.Where(g.Equal(g.item(1, high=2), g.const(0)), g.const(np.array(fill)), g.item(1))
    result = check(g.output(g.Softmax(g.Add(g.Relu(g.user(T)), gone), axis=1)), tolerance=1e-6)
    assert actions(result)["Softmax"] == ["kept"]


def test_a_mask_before_a_layer_stays() -> None:
    """-inf times a weight is no mask of a row."""
    g = Graph(18)
    mask = g.Equal(g.user(T, D, high=2), g.const(0))
    x = g.Where(mask, g.const(np.array(-np.inf)), g.Add(g.user(T, D), g.item(1, D)))
    result = check(g.output(g.Softmax(g.MatMul(x, g.weight(D, 2)), axis=1)))
    assert actions(result)["Softmax"] == ["kept"]


def test_what_is_common_through_an_activation_stays() -> None:
    g = Graph(18)
    result = check(g.output(g.Softmax(g.Relu(g.Add(g.user(T), g.item(1))), axis=1)))
    assert actions(result)["Softmax"] == ["kept"]
