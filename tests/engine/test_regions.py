"""A choice by a constant condition of few regions: parts of what is chosen, and what is left whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import check, lifted, repeated
from tests.engine.drawing import tensor
from tests.engine.graphs import Draw, Graph, N


@st.composite
def choices(draw: Draw) -> Graph:
    """By a condition made of blocks, between a tensor and a number, the user's rows, or each other."""
    g = Graph(draw(st.sampled_from((14, 18, 21))), seed=draw(st.integers(0, 3)))
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    bits = st.lists(st.booleans(), min_size=rows, max_size=rows), st.lists(
        st.booleans(), min_size=columns, max_size=columns
    )
    condition = np.zeros((rows, columns), bool)
    for _ in range(draw(st.integers(1, 2))):
        condition ^= np.outer(draw(bits[0]), draw(bits[1]))
    if draw(st.booleans()):
        condition = condition[:, :1] if draw(st.booleans()) else condition[:1]
    ways = (lambda: g.const(np.array(0.0)), lambda: g.user(rows, columns), lambda: g.user(1, columns),
            lambda: tensor(draw, g, (N, rows, columns), 2))  # fmt: skip
    x = tensor(draw, g, (N, rows, columns), 3)
    y = draw(st.sampled_from(ways))()
    mask = g.const(condition if draw(st.booleans()) else condition[None], bool)
    chosen = g.Where(mask, *((x, y) if draw(st.booleans()) else (y, x)))
    if draw(st.booleans()):
        chosen = g.Add(chosen, g.user(rows, columns))
    axis = draw(st.sampled_from((1, 2)))
    return g.output(g.Sin(chosen), g.reduce("Sum", chosen, [axis]), g.MatMul(chosen, g.weight(columns, 3)))


@given(choices())
def test_what_is_chosen_is_the_same(g: Graph) -> None:
    check(g)


@st.composite
def masks(draw: Draw) -> Graph:
    """A mask of 0 and 1 in blocks times a tensor of embeddings, or of numbers, which may be NaN."""
    g = Graph(draw(st.sampled_from((14, 18, 21))), seed=draw(st.integers(0, 3)))
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    mask = np.ones((rows, columns))
    mask[draw(st.integers(0, rows - 1)) :, draw(st.integers(0, columns - 1)) :] = 0
    mask = mask[::-1] if draw(st.booleans()) else mask
    mask = mask * 2 if draw(st.integers(0, 3)) == 0 else mask
    if draw(st.booleans()):
        ids = g.Concat(g.user(rows, high=9), g.item(rows, high=9), axis=1)
        x = g.slice(g.Gather(g.weight(9, columns), ids, axis=0), draw(st.integers(0, rows)), 2 * rows, 1)
        mask = np.tile(mask, (2, 1))[-1:] if draw(st.booleans()) else mask[:1]
    else:
        x = tensor(draw, g, (N, rows, columns), 3)
    y = g.Mul(*((x, g.const(mask)) if draw(st.booleans()) else (g.const(mask), x)))
    return g.output(g.Sin(y), g.reduce("Sum", y, [draw(st.sampled_from((1, 2)))]))


@given(masks())
def test_what_is_masked_is_the_same(g: Graph) -> None:
    check(g)


@pytest.mark.parametrize("how", ["where", "turned", "times"])
def test_a_mask_that_keeps_the_users_tokens_free_of_items(how: str) -> None:
    """Tokens exchange columns; what the user's get of the item's is set to 0, and they are computed once."""
    g = Graph(18)
    if how == "times":  # 0 times NaN is NaN, so no number of an input may be in it
        ids = g.Concat(g.user(4, high=9), g.item(1, high=9), axis=1)
        h = g.Gather(g.weight(9, 10), ids, axis=0)
    else:
        h = g.Concat(g.user(4, 10), g.item(1, 10), axis=1)
    exchanged = g.reshape(g.Transpose(g.reshape(h, -1, 5, 5, 2), perm=[0, 2, 1, 3]), -1, 5, 10)
    mask = np.zeros((5, 10), bool)
    mask[:4, 8:] = True
    zero = g.const(np.array(0.0))
    kept = {
        "where": lambda: g.Where(g.const(mask), zero, exchanged),
        "turned": lambda: g.Where(g.const(~mask), exchanged, zero),
        "times": lambda: g.Mul(exchanged, g.const(1.0 - mask)),
    }[how]()
    h = g.Sin(g.Add(h, kept))
    lifted(g.output(g.MatMul(h, g.weight(10, 6))), per_candidate=10 * 6)


def test_numbers_times_a_mask_stay_whole() -> None:
    """A NaN of one candidate makes all that it is multiplied with NaN."""
    g = Graph(18)
    mask = np.ones((4, 6))
    mask[:3, 2:] = 0
    y = g.Mul(g.item(4, 6), g.const(mask))
    result = check(g.output(g.MatMul(g.Sin(y), g.weight(6, 2)), g.user(1)))
    assert [n.op_type for n in result.model.graph.node].count("Mul") == 1


def test_a_choice_between_two_that_differ_between_candidates_stays_whole() -> None:
    g = Graph(18)
    mask = g.const(np.arange(4) < 2)
    result = check(g.output(g.MatMul(g.Where(mask, g.Sin(g.item(4)), g.Cos(g.item(4))), g.weight(4, 2)), g.user(1)))
    assert [n.op_type for n in result.model.graph.node].count("Where") == 1


def test_a_condition_of_many_regions_stays_whole() -> None:
    """A triangle of eight rows has eight kinds of rows."""
    g = Graph(18)
    scores = g.MatMul(g.item(8, 2), g.item(2, 8))
    masked = g.Where(g.const(np.tril(np.ones((8, 8), bool))), scores, g.const(np.array(0.0)))
    result = check(g.output(g.Add(g.Sin(masked), g.Relu(g.user(8, 8)))))
    assert [n.op_type for n in result.model.graph.node].count("Where") == 1


def test_a_condition_that_is_computed_stays_whole() -> None:
    g = Graph(18)
    mask = g.Greater(g.user(4, 1), g.const(np.array(0.0)))
    result = check(g.output(g.Where(mask, g.item(4, 3), g.const(np.array(0.0)))))
    assert [n.op_type for n in result.model.graph.node].count("Where") == 1
    assert repeated(g, result) == []
