"""Compress by a constant condition picks positions: of parts and of the flattened tensor."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import check, lifted, reasons
from tests.engine.drawing import shapes, signed, starts, tensor
from tests.engine.graphs import Draw, Graph


@st.composite
def graphs(draw: Draw) -> Graph:
    """Along an axis behind the candidates', with a condition that may be shorter than it."""
    g = draw(starts(opsets=(11, 13, 18, 26)))
    shape = shapes(draw)
    axis = draw(st.integers(1, len(shape) - 1))
    size = int(shape[axis])
    bits = draw(st.lists(st.booleans(), min_size=1, max_size=size))
    y = g.Compress(tensor(draw, g, shape), g.const(bits, bool), axis=signed(draw, axis, len(shape)))
    return g.output(g.Sin(y))


@given(graphs())
def test_compress_is_the_same(g: Graph) -> None:
    check(g)


def test_the_users_positions_are_taken_once() -> None:
    """Of [u|x] the first product takes the chosen columns of both; those of u once."""
    g = Graph(18)
    both = g.Concat(g.Relu(g.user(3)), g.item(2), axis=1)
    chosen = g.Compress(both, g.const([True, False, True, True, True], bool), axis=1)
    lifted(g.output(g.MatMul(chosen, g.weight(4, 5))), per_candidate=2 * 5)


def test_without_an_axis_it_chooses_of_the_flattened_tensor() -> None:
    g = Graph(18)
    u = g.reshape(g.reduce("Sum", g.Relu(g.user(2, 3)), [0], keepdims=0), 2, 3)
    chosen = g.Compress(u, g.const([True, False, False, True], bool))
    check(g.output(g.Add(g.item(2), chosen)), expect="lifted")


def test_of_the_candidates_it_is_copied() -> None:
    g = Graph(18)
    x = g.Concat(g.Relu(g.user(2)), g.item(2), axis=1)
    result = check(g.output(g.Compress(x, g.const([True], bool), axis=0)))
    assert reasons(result)["Compress"] == ["it takes positions of the dynamic dimension N"]


def test_a_computed_condition_is_refused() -> None:
    g = Graph(18)
    x = g.Concat(g.Relu(g.user(2)), g.item(2), axis=1)
    condition = g.Greater(g.reduce("Max", g.item(4), [0], keepdims=0), g.const(np.array(0.0)))
    result = check(g.output(g.Compress(x, condition, axis=1)))
    assert reasons(result)["Compress"] == ["the condition is computed at run time"]
