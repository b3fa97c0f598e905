"""Reductions along a Cat, beside it, over axes on which nothing varies, and over the candidates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import actions, check, lifted
from tests.engine.drawing import shapes, signed, starts, tensor
from tests.engine.graphs import Draw, Graph, N, Shape

OPS = ("Sum", "Mean", "SumSquare", "L1", "L2", "LogSum", "LogSumExp", "Max", "Min", "Prod")
POSITIVE = {"LogSum"}


def reduced(draw: Draw, g: Graph, shape: Shape, op: str, candidates: bool) -> str:
    """Over some axes (all, none, negative), with and without keepdims."""
    x = tensor(draw, g, shape, 3)
    if op in POSITIVE:
        x = g.Add(g.Abs(x), g.const(np.array(0.5)))
    free = [i for i, s in enumerate(shape) if candidates or s != N]
    axes: list[int] | None = [
        signed(draw, a, len(shape))
        for a in draw(st.lists(st.sampled_from(free), min_size=1, unique=True))
    ]
    attrs = {}
    if candidates and draw(st.integers(0, 3)) == 0:
        axes = None
        if g.opset >= 18 and draw(st.booleans()):
            attrs["noop_with_empty_axes"] = 1
            if op in ("SumSquare", "L1", "L2", "LogSum", "LogSumExp"):
                attrs = {}  # what a "noop" of these does changed between opsets
    return g.reduce(op, x, axes, draw(st.integers(0, 1)), **attrs)


@st.composite
def reductions(draw: Draw) -> Graph:
    g = draw(starts())
    for _ in range(draw(st.integers(1, 2))):
        y = reduced(draw, g, shapes(draw), draw(st.sampled_from(OPS)), draw(st.booleans()))
        g.output(g.Add(g.Sin(y), g.reduce("Mean", g.item(2), None, keepdims=0)))
    return g


@given(reductions())
def test_reductions_are_the_same(g: Graph) -> None:
    check(g)


@st.composite
def machines(draw: Draw) -> Graph:
    """A factorization machine: the square of the sum minus the sum of squares."""
    g = draw(starts())
    fields = tensor(draw, g, (N, draw(st.integers(2, 4)), draw(st.integers(1, 3))), 3)
    total = g.reduce("Sum", fields, [1], keepdims=1)
    squares = g.reduce("Sum", g.Mul(fields, fields), [1], keepdims=1)
    return g.output(g.reduce("Sum", g.Sub(g.Mul(total, total), squares), [-1], keepdims=0))


@given(machines())
def test_factorization_machines_are_the_same(g: Graph) -> None:
    check(g)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("opset", [11, 18])
def test_the_users_part_is_reduced_once(op: str, opset: int) -> None:
    g = Graph(opset)
    tokens = g.Concat(g.user(6, 4), g.item(3, 4), axis=1)
    if op in POSITIVE:
        tokens = g.Exp(tokens)
    g.output(g.reduce(op, tokens, [1], keepdims=0))
    lifted(g, check(g))


@pytest.mark.parametrize("op", OPS)
def test_beside_the_concat_each_part_is_reduced_by_itself(op: str) -> None:
    g = Graph()
    tokens = g.Concat(g.user(6, 4), g.item(3, 4), axis=1)
    if op in POSITIVE:
        tokens = g.Exp(tokens)
    g.output(g.MatMul(g.reduce(op, tokens, [-1], keepdims=0), g.weight(9, 8)))
    lifted(g, per_candidate=3 * 8)


def test_history_pooling_weighted_by_the_item() -> None:
    """sum_t w[n, t] h[t, :] is one product, not N x T x D element-wise work."""
    g = Graph()
    history, weights = g.Relu(g.user(10, 8)), g.item(10)
    g.output(g.reduce("Sum", g.Mul(history, g.unsqueeze(weights, 2)), [1], keepdims=0))
    lifted(g, per_candidate=10 * 8)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_over_the_candidates_all_rows_count(op: str, keepdims: int) -> None:
    """A user column summed over the candidates is N times itself."""
    g = Graph()
    both = g.Concat(g.user(3), g.item(2), axis=1)
    if op in POSITIVE:
        both = g.Exp(both)
    g.output(
        g.reduce(op, both, [0], keepdims=keepdims), g.reduce(op, both, None, keepdims=keepdims)
    )
    check(g)


@pytest.mark.parametrize("op", OPS)
def test_of_the_user_alone_over_the_candidates(op: str) -> None:
    g = Graph()
    u = g.Exp(g.user(3)) if op in POSITIVE else g.user(3)
    g.output(g.Add(g.reduce(op, u, [0, 1], keepdims=1), g.item(3)))
    check(g)


@pytest.mark.parametrize("op", ["Sum", "Max", "Prod", "Mean"])
def test_integers(op: str) -> None:
    g = Graph()
    ids = g.Concat(g.user(3, high=5), g.item(2, high=5), axis=1)
    g.output(g.reduce(op, ids, [1]), g.reduce(op, ids, [0]))
    check(g)


def test_booleans() -> None:
    g = Graph(20)
    mask = g.Greater(g.Concat(g.user(3), g.item(2), axis=1), g.const(np.array(0.0)))
    g.output(g.reduce("Max", mask, [1]), g.reduce("Min", mask, [1]))
    check(g)


def test_noop_with_empty_axes() -> None:
    g = Graph()
    both = g.Concat(g.user(3), g.item(2), axis=1)
    g.output(
        g.reduce("Sum", both, None, noop_with_empty_axes=1),
        g.reduce("Sum", both, [], noop_with_empty_axes=1),
    )
    check(g)


def test_axes_computed_at_run_time_are_left() -> None:
    g = Graph(dtype=np.float64)
    both = g.Concat(g.user(3), g.item(2), axis=1)
    axes = g.Cast(
        g.reduce(
            "Max",
            g.Clip(g.item(1), g.const(np.array(0.9)), g.const(np.array(0.99))),
            [0, 1],
            keepdims=0,
        ),
        to=7,
    )
    axes = g.Add(g.unsqueeze(axes, 0), g.const([1], np.int64))
    g.output(g.ReduceSum(both, axes))
    assert actions(check(g))["ReduceSum"] in (["kept"], ["barrier"])


@pytest.mark.parametrize("axes", [[1], [2], [1, 2], [0, 1], [0, 1, 2]])
@pytest.mark.parametrize("op", ["Sum", "Mean", "L2", "Max", "LogSumExp"])
def test_a_concat_of_one_number(op: str, axes: list[int]) -> None:
    """Masks of ones for the history and for the target: nothing varies, and all of it counts."""
    g = Graph()
    u, x = g.user(3), g.item(3)
    rows = [g.Concat(g.size(t, 0), g.const([n]), g.const([4]), axis=0) for t, n in ((u, 2), (x, 3))]
    ones = [g.Expand(g.const(np.array([0.5])), r) for r in rows]
    total = g.reduce(op, g.Concat(*ones, axis=1), axes, 0)
    both = g.MatMul(g.Concat(g.Relu(u), x, axis=1), g.weight(6, 1))
    g.output(g.Add(total, g.reduce("Sum", both, None, keepdims=0)))
    check(g)


def test_a_product_of_numbers_over_a_concat() -> None:
    """Both operands are the same everywhere: the length of the contracted axis is a factor."""
    g = Graph()
    u, x = g.user(3), g.item(3)
    rows = [g.Concat(g.size(t, 0), g.const([n]), axis=0) for t, n in ((u, 2), (x, 3))]
    ones = g.Concat(*(g.Expand(g.const(np.array([0.5])), r) for r in rows), axis=1)
    column = g.Expand(g.Relu(g.item(1, 1)), g.const([1, 5, 2]))
    both = g.MatMul(g.Concat(g.Relu(u), x, axis=1), g.weight(6, 1))
    g.output(g.Add(g.squeeze(g.MatMul(g.unsqueeze(ones, 1), column), [1]), both))
    check(g)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_equal_parts_count_each(op: str, constant: bool) -> None:
    """[w | w]: one tensor behind itself is found not to vary along the axis, and is still there twice."""
    g = Graph(18)
    u = g.user()
    w = g.unsqueeze(g.Expand(g.Abs(g.weight(1)), g.size(u, 0)) if constant else g.Abs(u), 1)
    both = g.Concat(w, w, axis=1)
    g.output(g.Add(g.reduce(op, both, [1]), g.item(1)), g.Add(g.reduce(op, g.Concat(both, g.item(2), axis=1), [1]), w))
    check(g)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_global_pools_are_means_and_maxima(op: str, axis: int) -> None:
    """tf2onnx writes the mean over the last axes of [N, T, ..] so; the tokens stay parts."""
    g = Graph()
    own, others = [3, 4, 2], [3, 4, 2]
    others[axis - 1] = 1
    both = g.Concat(g.Relu(g.user(*own)), g.item(*others), axis=axis)
    g.output(getattr(g, op)(both))
    lifted(g)
