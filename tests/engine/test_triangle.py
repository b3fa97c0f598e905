"""Trilu as a choice by a constant triangle: on grids of parts, on tensors that lack an axis, for every type."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import actions, check, lifted, repeated
from tests.engine.drawing import tensor
from tests.engine.graphs import Draw, Graph, N

FLOAT, INT32, BOOL, DOUBLE = 1, 6, 9, 11


@st.composite
def triangles(draw: Draw) -> Graph:
    """Of parts along rows, columns or both; of rows that are repeated; bits and integers."""
    g = Graph(draw(st.sampled_from((14, 18, 21))), seed=draw(st.integers(0, 3)))
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    lead = draw(st.sampled_from(((N,), (N, 2))))
    which = draw(st.integers(0, 3))
    if which == 0:
        x = tensor(draw, g, (*lead, rows, columns), 3)
    elif which == 1:
        x = g.MatMul(tensor(draw, g, (*lead, rows, 2), 2), tensor(draw, g, (*lead, 2, columns), 2))
    else:
        x = tensor(draw, g, (*lead, 1, columns) if which == 2 else (*lead, rows, 1), 2)
        x = g.expand(x, *[1] * len(lead), rows, columns)
    to = draw(st.sampled_from((None, BOOL, INT32, FLOAT, 3)))
    if to is not None:
        x = g.Cast(g.Round(x) if to == BOOL else x, to=to)
    k = draw(st.one_of(st.none(), st.integers(-6, 6), st.sampled_from((-(1 << 62), 1 << 62))))
    y = g.Trilu(x, *([] if k is None else [g.const(k, np.int64)]), upper=draw(st.integers(0, 1)))
    y = g.Cast(y, to=DOUBLE) if to is not None else g.Sin(y)
    return g.output(y, g.Mul(g.user(1), g.item(1)))


@given(triangles())
def test_triangles_are_the_same(g: Graph) -> None:
    check(g)


def test_a_triangle_of_parts_stays_in_parts() -> None:
    """Of [u|x] along the columns the user's columns are taken once, and so are the rows of a product with it. Of the
    items' columns a single element is below the diagonal, and it takes no product.
    """
    g = Graph(18)
    both = g.Concat(g.Relu(g.user(4, 3)), g.item(4, 2), axis=2)
    lifted(g.output(g.MatMul(g.Trilu(both, upper=0), g.weight(5, 6))), per_candidate=0)


def test_a_mask_of_the_history_and_the_candidate() -> None:
    """The padding of [history | candidate], repeated along the rows and cut to a triangle, as RecBole does."""
    g = Graph(17)
    ids = g.Concat(g.user(4, high=2), g.item(1, high=2), axis=1)
    seen = g.unsqueeze(g.Not(g.Equal(ids, g.const(0))), 1)
    mask = g.Cast(g.Trilu(g.Cast(g.expand(seen, 1, 5, 5), to=INT32), upper=0), to=BOOL)
    x = g.Concat(g.user(4, 3), g.item(1, 3), axis=1)
    g.output(g.MatMul(g.Where(mask, g.const(np.array(1.0)), g.const(np.array(0.0))), x))
    result = check(g)
    assert actions(result)["Trilu"] == ["split"]
    assert repeated(g, result) == []


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_dropped_may_be_infinite(value: float) -> None:
    g = Graph(18)
    both = g.Concat(g.Mul(g.Relu(g.user(3, 2)), g.const(np.array(value))), g.item(3, 1), axis=2)
    result = check(g.output(g.Trilu(both, g.const(3))), counts=(1, 3))
    assert actions(result)["Trilu"] in (["split"], ["folded"])


def test_a_tensor_in_one_piece_keeps_the_operator() -> None:
    g = Graph(18)
    g.output(g.Trilu(g.Mul(g.item(3, 3), g.user(3, 3))), g.Trilu(g.user(3, 3)))
    result = check(g)
    assert sum(n.op_type == "Trilu" for n in result.model.graph.node) == 2


def test_a_diagonal_that_is_computed_keeps_the_operator() -> None:
    g = Graph(18)
    both = g.Concat(g.user(3, 2), g.item(3, 1), axis=2)
    k = g.squeeze(g.Cast(g.reduce("Max", g.item(1, high=2), [0, 1], keepdims=0), to=7))
    result = check(g.output(g.Trilu(both, k)))
    assert any(n.op_type == "Trilu" for n in result.model.graph.node)


def test_along_the_candidates_it_sees_all_rows() -> None:
    g = Graph(18)
    result = check(g.output(g.Trilu(g.Concat(g.Relu(g.user(2)), g.item(2), axis=1))))
    assert actions(result)["Trilu"] == ["kept"]
