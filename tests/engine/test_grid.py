"""Attention over fields or tokens of both sides: scores as a grid of blocks, put together or not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import check, lifted
from tests.engine.drawing import starts, tensor
from tests.engine.graphs import Draw, Graph, N


@st.composite
def attentions(draw: Draw) -> Graph:
    """softmax(Q K') V over tokens of both sides in any order, masked or not, by heads or not, once or twice."""
    g = draw(starts())
    width = draw(st.sampled_from((2, 4)))
    sizes = draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    x = g.Concat(*(tensor(draw, g, (N, size, width), 1) for size in sizes), axis=1)
    count = sum(sizes)
    heads = draw(st.sampled_from((1, 2)))
    for _ in range(draw(st.integers(1, 2))):
        parts = []
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            part = g.MatMul(x, g.weight(width, width)) if draw(st.booleans()) else x
            split = g.Reshape(part, g.const([0, count, heads, width // heads], np.int64))
            parts.append(g.Transpose(split, perm=perm))
        scores = g.Mul(g.MatMul(parts[0], parts[1]), g.const(0.5))
        if draw(st.booleans()):  # as ALiBi: another bias by head and column
            scores = g.Add(g.Tanh(scores), g.const(g.rng.standard_normal((heads, 1, count))))
        mask = draw(st.sampled_from(("none", "causal", "finite")))
        if mask != "none":
            above = np.triu(np.full((count, count), -np.inf if mask == "causal" else -1e9), 1)
            scores = g.Add(scores, g.const(above))
        mixed = g.Transpose(g.MatMul(g.Softmax(scores, axis=3), parts[2]), perm=[0, 2, 1, 3])
        x = g.Add(x, g.Reshape(mixed, g.const([0, count, width], np.int64)))
    return g.output(g.MatMul(g.Reshape(x, g.const([0, count * width], np.int64)), g.weight(count * width, 2)))


@given(attentions(), st.sampled_from((1, 500, 50_000)))
def test_attention_over_fields_is_the_same(g: Graph, candidates: int) -> None:
    check(g, candidates=candidates)


def _fields(users: int, items: int, width: int, causal: bool = False) -> Graph:
    """One layer of attention over fields, and its result summed over them."""
    g = Graph()
    x = g.Concat(g.user(users, width), g.item(items, width), axis=1)
    keys = g.Transpose(g.MatMul(x, g.weight(width, width)), perm=[0, 2, 1])
    scores = g.MatMul(g.MatMul(x, g.weight(width, width)), keys)
    if causal:
        scores = g.Add(scores, g.const(np.triu(np.full((users + items,) * 2, -np.inf), 1)))
    mixed = g.MatMul(g.Softmax(scores, axis=2), g.MatMul(x, g.weight(width, width)))
    return g.output(g.reduce("Sum", g.MatMul(mixed, g.weight(width, 64)), [1], 0))


@pytest.mark.parametrize("masked", [-np.inf, -1e9])
def test_a_bias_by_head_beside_a_causal_mask(masked: float) -> None:
    """The user's tokens do not see the candidate's in any head; scores are bounded, by another number in each."""
    g, heads, users, items = Graph(), 2, 5, 2
    x = g.Concat(g.user(heads, users, 4), g.item(heads, items, 4), axis=2)
    scores = g.Tanh(g.MatMul(x, g.Transpose(x, perm=[0, 1, 3, 2])))
    scores = g.Add(scores, g.const(np.arange(users + items) * np.array([0.5, 0.25]).reshape(heads, 1, 1)))
    scores = g.Add(scores, g.const(np.triu(np.full((users + items,) * 2, masked), 1)))
    g.output(g.MatMul(g.MatMul(g.Softmax(scores, axis=-1), x), g.weight(4, 3)))
    each = items * (users + items) * 4  # scores, and likewise what they mix
    lifted(g, per_candidate=heads * (2 * each + items * 4 * 3))


def _softmaxes(g: Graph) -> int:
    result = lifted(g, check(g, weighed=True))
    return sum(node.op_type == "Softmax" for node in result.model.graph.node)


def test_few_small_fields_have_one_softmax() -> None:
    """A product with V for each kind of rows takes as long as one for all of them."""
    for users, items in ((1, 1), (2, 4), (10, 6), (12, 2)):
        assert _softmaxes(_fields(users, items, 8)) == 1


def test_masked_rows_are_softmaxes_of_their_own() -> None:
    for users, items in ((2, 4), (12, 2)):
        assert _softmaxes(_fields(users, items, 8, causal=True)) == 2
