"""Rows that a mask of one bit picks: all of a request, or none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.graphs import Graph, N, actions, check, macs_each

T, D = 3, 4
THRESHOLDS = (-1, 25, 100)
"""Lengths are 0 to 49: all rows, those of some requests, none."""


def bit(g: Graph, lengths: str, threshold: int) -> str:
    return g.Greater(lengths, g.const(np.array(threshold, dtype=np.int64)))


def selected(g: Graph, x: str, mask: str, *inner: int) -> str:
    """`x[mask]` as it is exported: the mask at every element, coordinates, and the rows put together again."""
    wide = g.Expand(g.reshape(mask, -1, *([1] * len(inner))), g.Shape(x))
    picked = g.GatherND(x, g.Transpose(g.NonZero(wide), perm=[1, 0]))
    return g.reshape(picked, -1, *inner)


@given(
    st.sampled_from(THRESHOLDS),
    st.sampled_from((11, 13, 18)),
    st.lists(st.sampled_from(("user", "item", "cross")), min_size=1, max_size=3),
)
def test_rows_of_a_users_mask_are_the_same(threshold: int, opset: int, sides: list[str]) -> None:
    g = Graph(opset)
    mask = bit(g, g.user(high=50), threshold)
    parts = [g.input(side, N, T, D) for side in sides]
    both = g.Concat(*parts, axis=2) if len(parts) > 1 else parts[0]
    rows = selected(g, g.Sin(both), mask, T, D * len(parts))
    g.output(g.MatMul(rows, g.weight(D * len(parts), 2)), g.Shape(rows))
    check(g)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("largest", [0, 1])
def test_packed_sequences_run_once(threshold: int, largest: int) -> None:
    """DIEN: rows of users with a history, sorted by its length, and back in order behind the recurrent layer."""
    g = Graph(18)
    lengths, x, y = g.user(high=50), g.user(T, D), g.item(2)
    mask = bit(g, lengths, threshold)
    kept = selected(g, lengths, mask)
    _, order = g.nodes_of("TopK", [kept, g.Shape(kept)], 2, axis=-1, largest=largest)
    sorted_ = g.Gather(selected(g, x, mask, T, D), order, axis=0)
    hidden = g.Tanh(g.MatMul(sorted_, g.weight(D, D)))
    zero = g.ConstantOfShape(g.Shape(order))
    back = g.ScatterElements(
        g.Cast(zero, to=7), order, g.Range(g.const(0), g.squeeze(g.Shape(order)), g.const(1)), axis=0
    )
    pooled = g.squeeze(g.reduce("Sum", g.Gather(hidden, back, axis=0), [1]), [1])
    g.output(g.MatMul(g.Concat(pooled, selected(g, y, mask, 2), axis=1), g.weight(D + 2, 3)))
    result = check(g)
    if threshold == -1:
        assert macs_each(g, result) == 2 * 3, "the user's rows are multiplied for each candidate"


def test_a_mask_that_differs_by_candidate_is_left() -> None:
    g = Graph(18)
    x = g.user(T)
    g.output(selected(g, x, bit(g, g.item(high=50), 25), T))
    result = check(g)
    assert actions(result)["NonZero"] == ["barrier"]


@pytest.mark.parametrize("op", ["Greater", "Equal"])
def test_no_size_that_the_run_tells_is_taken_to_be_positive(op: str) -> None:
    """`if x[mask].shape[0] > 0`: with no rows picked the other way is right."""
    g = Graph(18)
    rows = selected(g, g.Sin(g.user(T)), bit(g, g.user(high=50), 25), T)
    count = g.size(rows, 0)
    test = getattr(g, op)(count, g.const(np.array([0], dtype=np.int64)))
    g.output(g.Where(test, g.item(1), g.Cos(g.item(1))))
    check(g)
