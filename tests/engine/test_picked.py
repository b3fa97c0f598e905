"""Rows that a mask of one bit picks: all of a request, or none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import actions, check, macs_each
from tests.engine.graphs import Graph, N

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


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min", "LogSumExp"])
def test_a_reduction_over_the_rows_that_are_picked(op: str, threshold: int) -> None:
    """Of no rows the mean is NaN and the maximum -inf, though the one row of the user is there."""
    g = Graph(18)
    rows = selected(g, g.Sin(g.user(T)), bit(g, g.user(high=50), threshold), T)
    g.output(g.Add(g.reduce(op, rows, [0]), g.item(T)))
    check(g)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("bounds", [(0, 1), (1, 1 << 62), (-1, 1 << 62), (0, -1), (-2, -1), (1, 2), (-1, -2)])
@pytest.mark.parametrize("side", ["user", "item"])
def test_a_range_of_the_rows_that_are_picked(side: str, bounds: tuple[int, int], threshold: int) -> None:
    """`x[mask][:1]` has no row where none is picked."""
    g = Graph(18)
    rows = selected(g, g.Sin(g.input(side, N, T)), bit(g, g.user(high=50), threshold), T)
    g.output(g.slice(rows, *bounds, 0), g.Relu(g.item(T)))
    check(g)


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_reshape_of_the_rows_that_are_picked(threshold: int, opset: int) -> None:
    """Of no elements, -1 beside a dimension of 0 could be anything: sizes are written out."""
    g = Graph(opset)
    mask = bit(g, g.user(high=50), threshold)
    x = g.Sin(g.item("T", D))
    rows = g.GatherND(x, g.Transpose(g.NonZero(mask), perm=[1, 0]))
    cut = g.Concat(g.size(rows, 0), g.Mul(g.size(rows, 1), g.const([2])), g.const([D // 2]), axis=0)
    again = g.Gather(x, g.squeeze(g.NonZero(mask), [0]), axis=0)
    g.output(g.Reshape(rows, cut), g.Relu(again))
    check(g)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_rows_of_a_fixed_batch_that_is_itself_concatenated(threshold: int) -> None:
    g = Graph(18, fixed=8)
    x, y = g.item(D), g.user(D)
    both = g.Concat(g.slice(x, 0, 3, 0), g.slice(g.Sin(y), 3, 8, 0), axis=0)
    rows = g.GatherND(both, g.Transpose(g.NonZero(bit(g, g.user(high=50), threshold)), perm=[1, 0]))
    g.output(g.MatMul(rows, g.weight(D, 2)))
    check(g)


def test_ids_that_the_mask_keeps_from_the_table() -> None:
    """`table[ids[ids < n]]`: the one row of a user without an id must not be looked up."""
    g = Graph(18)
    ids = g.user(high=50)
    none = g.Less(ids, g.const(np.array(0, dtype=np.int64)))
    kept = g.GatherND(ids, g.Transpose(g.NonZero(none), perm=[1, 0]))
    g.output(g.Gather(g.weight(1, D), g.Mul(kept, g.const(np.array(2))), axis=0), g.Relu(g.item(2)))
    g.output(g.Gather(g.weight(2, D), kept, axis=0))
    check(g)


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_picked_rows_twice(threshold: int, opset: int) -> None:
    """[2, rows, T, D] as [2 rows, T, D]: a computed 0 in front would copy the 2."""
    g = Graph(opset)
    rows = g.GatherND(g.Sin(g.item("T", D)), g.Transpose(g.NonZero(bit(g, g.user(high=50), threshold)), perm=[1, 0]))
    g.output(g.Tile(rows, g.const([2, 1, 1])))
    check(g)
