"""Scores that are shifted by their distance are computed for the distances that are picked, and for no others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mari_onnx
from tests.engine.checks import check, lifted, macs_each
from tests.engine.graphs import Draw, Graph

D = 4


def shifted(g: Graph, scores: str, rows: int, width: int, less: int, heads: tuple[int, ...]) -> str:
    """[.., rows, width] -> [.., rows, width - less], row i moved by less * i, as Transformer-XL does it."""
    axis = len(heads) + 1
    turned = g.slice(g.reshape(scores, -1, *heads, width, rows), less, 2**31 - 1, axis)
    return g.reshape(turned, -1, *heads, rows, width - less)


def shifted_back(g: Graph, scores: str, rows: int, width: int, heads: tuple[int, ...]) -> str:
    """[.., rows, width] -> [.., rows, width + 1], row i moved by i the other way: the skewing of Music Transformer."""
    flat, none = g.reshape(scores, -1, *heads, rows * width), [0] * (len(heads) + 1)
    long = g.Pad(flat, g.const([*none, 0, *none, rows]), g.const(0.0))
    return g.reshape(long, -1, *heads, rows, width + 1)


def tokens(g: Graph, *sides: str, width: int = D) -> str:
    """[N, tokens, width]; sides: u, x or w for a token of the user, of the item, or a constant one."""
    each = {"u": lambda: g.user(1, width), "x": lambda: g.item(1, width), "w": lambda: g.weight(1, width)}
    rows = [each[side]() for side in sides]
    wide = [g.Expand(r, g.Concat(g.size(rows[-1], 0), g.const([1, 1]), axis=0)) if r[0] == "w" else r for r in rows]
    return g.Concat(*wide, axis=1)


def heads_of(g: Graph, x: str, rows: int, heads: int) -> str:
    """[N, rows, heads * D] -> [N, heads, rows, D]."""
    return g.Transpose(g.reshape(x, -1, rows, heads, D), perm=[0, 2, 1, 3])


@st.composite
def graphs(draw: Draw) -> Graph:
    g = Graph(draw(st.sampled_from((13, 18, 23))), seed=draw(st.integers(0, 3)))
    heads, rows = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    width = draw(st.one_of(st.just(2 * rows), st.integers(2, 2 * rows + 2)))
    sides = [draw(st.sampled_from("ux")) for _ in range(rows)]
    if draw(st.integers(0, 3)):
        sides.sort(reverse=draw(st.booleans()))
    q = heads_of(g, g.Sin(tokens(g, *sides, width=heads * D)), rows, heads)
    table = draw(st.sampled_from(("constant", "heads", "user", "item")))
    if table == "constant":
        r = g.weight(D, width)
    elif table == "heads":
        r = g.weight(heads, D, width)
    else:
        r = g.reshape(g.user(D * width) if table == "user" else g.item(D * width), -1, 1, D, width)
    scores = g.MatMul(q, r)
    less = draw(st.sampled_from((1, 1, 1, min(2, width - 1), width - 1, 0)))
    if draw(st.integers(0, 3)):
        y, most = shifted(g, scores, rows, width, less, (heads,)), width - less
    else:
        y, most = shifted_back(g, scores, rows, width, (heads,)), width + 1
    kinds = draw(st.sampled_from(("slice", "slice", "gather", "end", "rows", "all")))
    count = draw(st.one_of(st.just(min(rows, most)), st.integers(1, most)))
    if kinds == "slice":
        y = g.slice(y, 0, count, 3)
    elif kinds == "end":
        y = g.slice(y, most - count, most, 3)
    elif kinds == "gather":
        y = g.Gather(y, g.const([draw(st.integers(0, most - 1)) for _ in range(count)]), axis=-1)
    elif kinds == "rows":
        y = g.slice(g.slice(y, 0, count, 3), draw(st.integers(0, rows - 1)), rows, 2)
    if not draw(st.integers(0, 3)):
        y = g.Gather(y, g.const(draw(st.integers(-1, 0)), np.int64), axis=2)
    return g.output(g.Tanh(y))


@given(graphs())
def test_shifted_scores_are_the_same(g: Graph) -> None:
    check(g)


def attention(g: Graph, sides: str, heads: int, table: str | None = None) -> Graph:
    """Scores of tokens among themselves by their distance alone, as XLNet shifts them."""
    rows = len(sides)
    q = heads_of(g, tokens(g, *sides, width=heads * D), rows, heads)
    scores = g.MatMul(q, table or g.weight(heads, D, 2 * rows))
    return g.output(g.Softmax(g.slice(shifted(g, scores, rows, 2 * rows, 1, (heads,)), 0, rows, 3), axis=-1))


@pytest.mark.parametrize(("sides", "items"), [("uuxx", 2), ("uxxx", 3), ("uuuxxx", 3), ("uuwxx", 2)])
@pytest.mark.parametrize("heads", [1, 2])
def test_rows_of_candidates_are_multiplied_by_the_distances_of_their_keys(sides: str, items: int, heads: int) -> None:
    g = attention(Graph(18), sides, heads)
    result = check(g)
    assert macs_each(g, result) == items * heads * len(sides) * D


@pytest.mark.parametrize("heads", [1, 2])
def test_a_table_of_the_users_is_gathered_for_each_row_once(heads: int) -> None:
    g = Graph(18)
    g = attention(g, "uuuxx", heads, g.reshape(g.user(heads * D * 10), -1, heads, D, 10))
    result = check(g)
    lifted(g, result, per_candidate=2 * heads * 5 * D)


@pytest.mark.parametrize("sides", ["xxxxuuuu", "uuxxxxuu", "uxuxuuxx", "uuuxxxxu"])
def test_the_product_is_not_made_twice_where_a_row_of_users_and_items_is_cut(sides: str) -> None:
    for shift in (shifted_back, lambda *of: shifted(*of[:4], 1, of[4])):
        g = Graph(18)
        y = shift(g, g.MatMul(tokens(g, *sides), g.weight(D, 16)), 8, 16, ())
        g.output(g.Tanh(g.slice(y, 0, 8, 2)))
        assert macs_each(g, check(g)) <= sides.count("x") * 16 * D


def test_a_row_that_is_read_alone_is_not_repeated_to_be_moved() -> None:
    """Of the last layer: one row of scores, which no Expand brings to all rows, to shift them."""
    g = Graph(18)
    x = tokens(g, *"uuxx", width=D)
    mixed = g.Add(x, g.MatMul(g.Softmax(g.MatMul(x, g.Transpose(x, perm=[0, 2, 1])), axis=-1), x))
    scores = g.MatMul(mixed, g.weight(D, 8))
    y = g.Softmax(g.slice(shifted(g, scores, 4, 8, 1, ()), 0, 4, 2), axis=-1)
    g.output(g.Gather(y, g.const(-1, np.int64), axis=1))
    result = check(g)
    wide = [n for n in result.model.graph.node if n.op_type == "Expand" and "Gather" not in n.name]
    assert not [n.name for n in wide if n.name.startswith(("Reshape", "Slice"))]


def test_rows_that_reach_into_the_next_one_stay() -> None:
    """Transformer-XL without its mask: behind its own scores row i has some of row i + 1."""
    g = Graph(18)
    scores = g.Pad(g.MatMul(tokens(g, *"uuxxx"), g.weight(D, 5)), g.const([0, 0, 1, 0, 0, 0]), g.const(0.0))
    g.output(g.Tanh(shifted(g, scores, 5, 6, 1, ())))
    assert macs_each(g, check(g)) == 3 * 5 * D


def test_columns_that_differ_by_head_stay() -> None:
    g = Graph(18)
    scores = g.MatMul(heads_of(g, tokens(g, *"uuxx", width=2 * D), 4, 2), g.weight(2, D, 8))
    flat = g.slice(g.reshape(scores, -1, 64), 3, 63, 1)  # rows of both heads are shifted as one
    g.output(g.Tanh(g.slice(g.reshape(flat, -1, 6, 10), 0, 4, 2)))
    check(g)


def test_a_table_of_the_candidates_stays_a_product_of_all() -> None:
    g = Graph(18)
    g = attention(g, "uuxx", 1, g.reshape(g.item(D * 8), -1, 1, D, 8))
    assert macs_each(g, check(g)) == 4 * 8 * D


def test_weights_that_would_be_too_many_stay_as_they_are() -> None:
    g, rows, width = Graph(18, np.float32), 48, 64
    q = g.Concat(g.user(rows // 2, width), g.item(rows // 2, width), axis=1)
    y = shifted(g, g.MatMul(q, g.weight(width, 2 * rows)), rows, 2 * rows, 1, ())
    g.output(g.Tanh(g.slice(y, 0, rows, 2)))
    assert macs_each(g, check(g, tolerance=1e-5)) == rows // 2 * width * 2 * rows


def test_where_few_columns_are_left_out_of_a_wide_row_the_product_stays() -> None:
    g = Graph(18)
    q = g.Concat(g.user(2, 64), g.item(2, 64), axis=1)
    g.output(g.Tanh(g.slice(shifted(g, g.MatMul(q, g.weight(64, 6)), 4, 6, 1, ()), 0, 4, 2)))
    assert macs_each(g, check(g)) == 2 * 64 * 6


def test_a_rewrite_of_it_pays() -> None:
    g = Graph(18, np.float32)
    x = g.Concat(g.user(12, 64), g.item(6, 64), axis=1)
    q = heads_of(g, g.MatMul(x, g.weight(64, 2 * D)), 18, 2)
    scores = g.slice(shifted(g, g.MatMul(q, g.weight(2, D, 36)), 18, 36, 1, (2,)), 0, 18, 3)
    g.output(g.Softmax(scores, axis=-1))
    result = check(g, weighed=True, tolerance=1e-5)
    assert result.changed, result.reason
    assert macs_each(g, result) == 6 * (64 * 2 * D + 2 * D * 18)
    report = mari_onnx.optimize(g.model(), user=["u*"], item=["x*"], check=False).report
    assert report.changed, report.reason
