"""ScatterND and ScatterElements: assignments to slices as PyTorch writes them, and constant coordinates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import actions, check, lifted, reasons
from tests.engine.drawing import shapes, signed, starts, tensor
from tests.engine.graphs import Draw, Graph, N


def _coordinates(draw: Draw, g: Graph, data: str, shape: tuple, depth: int) -> tuple[str, list]:
    """A range of each axis, cut, expanded to one another and laid side by side; and the shape they give."""
    spans: list[list[int] | None] = []
    for size in shape[:depth]:
        kind = draw(st.sampled_from(("all", "range", "one"))) if size != N else "all"
        if kind == "all":
            spans.append(None)
        elif kind == "one":
            spans.append([draw(st.integers(-size, size - 1))])
        else:
            at = list(range(size))[draw(st.integers(0, size - 1)) :: draw(st.integers(1, 2))]
            spans.append(at[::-1] if draw(st.integers(0, 4)) == 0 else at)
    drop = [s is not None and len(s) == 1 and draw(st.booleans()) for s in spans]
    rank = sum(not d for d in drop)
    sizes: list[str] = []
    vectors = []
    for d, span in enumerate(spans):
        if span is None and (shape[d] == N or draw(st.booleans())):
            end = g.squeeze(g.size(data, d), [0])
            vectors.append(g.Range(g.const(0, np.int64), end, g.const(1, np.int64)))
        else:
            vectors.append(g.const(list(range(shape[d])) if span is None else span, np.int64))
        if not drop[d]:
            sizes.append(g.size(data, d) if span is None else g.const([len(span)], np.int64))
    target = g.Concat(*sizes, axis=0) if sizes else None
    columns, place = [], 0
    for d, vector in enumerate(vectors):
        if drop[d]:
            column = g.squeeze(vector, [0])
            if target is not None:
                column = g.Expand(column, target)
        else:
            wide = [1] * rank
            wide[place] = -1
            column = g.Expand(g.reshape(vector, *wide), target or "")
            place += 1
        columns.append(g.unsqueeze(column, rank))
    lengths = [
        (shape[d] if span is None else len(span)) for d, span in enumerate(spans) if not drop[d]
    ]
    return g.Concat(*columns, axis=-1), lengths


@st.composite
def assignments(draw: Draw) -> Graph:
    g = draw(starts((11, 13, 18)))
    shape = (N, *draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    data = tensor(draw, g, shape, 2)
    for _ in range(draw(st.integers(1, 2))):
        depth = draw(st.integers(1, len(shape)))
        index, lengths = _coordinates(draw, g, data, shape, depth)
        updates = tensor(draw, g, (*lengths, *shape[depth:]), 2)
        data = g.ScatterND(data, index, updates)
    return g.output(data)


@given(assignments(), st.sampled_from((1, 500)))
def test_assignments_to_slices_are_the_same(g: Graph, candidates: int) -> None:
    check(g, candidates=candidates)


def _assigned(*at: int) -> Graph:
    """zeros[:, at] = items, then a product."""
    g = Graph()
    data = g.Concat(g.user(6, 4), g.user(2, 4), axis=1)
    rows = g.Range(g.const(0, np.int64), g.squeeze(g.size(data, 0), [0]), g.const(1, np.int64))
    shape = g.Concat(g.size(data, 0), g.const([len(at)], np.int64), axis=0)
    columns = [g.reshape(rows, -1, 1), g.const([list(at)], np.int64)]
    index = g.Concat(*(g.unsqueeze(g.Expand(c, shape), 2) for c in columns), axis=-1)
    x = g.ScatterND(data, index, g.item(len(at), 4))
    return g.output(g.MatMul(g.reshape(x, -1, 32), g.weight(32, 5)))


def test_an_assignment_to_a_slice_keeps_the_users_rows_once() -> None:
    g = _assigned(5, 6)
    lifted(g, check(g), per_candidate=2 * 4 * 5)


@pytest.mark.parametrize("at", [(5, 5), (5, -3)])
def test_a_position_that_is_written_twice_is_left(at: tuple[int, ...]) -> None:
    """The last update wins, in an order that the operator does not promise."""
    result = check(_assigned(*at))
    assert any(n.op_type == "ScatterND" for n in result.model.graph.node)


def test_coordinates_from_data_are_left() -> None:
    g = Graph()
    rows = g.unsqueeze(g.user(3, high=2), 2)
    g.output(g.ScatterND(g.const(np.zeros((2, 2))), g.Concat(rows, rows, axis=-1), g.item(3)))
    assert "ScatterND" in {n.op_type for n in check(g).model.graph.node}


@st.composite
def writes(draw: Draw) -> Graph:
    """Some positions of an axis are written over, all of the other axes."""
    g = draw(starts((11, 13, 18)))
    shape = shapes(draw, low=2)
    data = tensor(draw, g, shape)
    for _ in range(draw(st.integers(1, 2))):
        axis = draw(st.integers(1, len(shape) - 1))
        size = int(shape[axis])
        at = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
        at = [i - size if draw(st.booleans()) else i for i in at]
        updates = tensor(draw, g, (*shape[:axis], len(at), *shape[axis + 1 :]))
        line = g.const(np.reshape(at, [-1 if d == axis else 1 for d in range(len(shape))]), np.int64)
        data = g.ScatterElements(data, g.Expand(line, g.Shape(updates)), updates, axis=signed(draw, axis, len(shape)))
    return g.output(g.Sin(data))


@given(writes())
def test_positions_that_are_written_over(g: Graph) -> None:
    check(g)


def _write(g: Graph, index: list, updates: str, **how: str) -> Graph:
    x = g.Concat(g.user(3, 2), g.item(1, 2), axis=1)
    where = g.Expand(g.const(np.reshape(index, (1, -1, 1)), np.int64), g.Shape(updates))
    return g.output(g.MatMul(g.ScatterElements(x, where, updates, axis=1, **how), g.weight(2, 3)))


def test_a_token_that_is_written_is_one_of_its_own() -> None:
    g = Graph(18)
    lifted(_write(g, [3], g.item(1, 2)), per_candidate=2 * 3)


@pytest.mark.parametrize(
    ("index", "how", "why"),
    [
        ([1, 1], {}, "twice"),
        ([1, -3], {}, "twice"),
        ([1, 3], {"reduction": "add"}, "reduction"),
    ],
)
def test_other_writes_stay(index: list, how: dict, why: str) -> None:
    g = Graph(18)
    updates = g.item(1, 2)
    result = check(_write(g, index, g.Concat(updates, updates, axis=1), **how))
    assert why in str(reasons(result)["ScatterElements"])


def test_a_write_to_a_part_of_the_columns_stays() -> None:
    g = Graph(18)
    x = g.Concat(g.user(3, 2), g.item(1, 2), axis=1)
    updates = g.item(1, 1)
    where = g.Expand(g.const(np.full((1, 1, 1), 3), np.int64), g.Shape(updates))
    result = check(g.output(g.ScatterElements(x, where, updates, axis=1)))
    assert "a part of the other axes" in str(reasons(result)["ScatterElements"])


def test_another_position_for_each_column_stays() -> None:
    g = Graph(18)
    x = g.Concat(g.user(3, 2), g.item(1, 2), axis=1)
    updates = g.item(1, 2)
    where = g.Expand(g.const([[[3, 2]]], np.int64), g.Shape(updates))
    result = check(g.output(g.ScatterElements(x, where, updates, axis=1)))
    assert "for each element" in str(reasons(result)["ScatterElements"])


def test_positions_that_only_the_run_knows_are_written_on_rows_that_differ() -> None:
    g = Graph(18)
    made = g.ScatterElements(g.Sin(g.user(4)), g.user(1, high=4), g.Cos(g.user(1)), axis=1)
    result = check(g.output(g.Add(made, g.item(4))))
    assert actions(result)["ScatterElements"] == ["lifted"]


@st.composite
def written_at_run_time(draw: Draw) -> Graph:
    """`x[:, at] = y`, as exporters turn it, at positions of the user or of each request's first candidate."""
    g = draw(starts((13, 18)))
    t = draw(st.integers(2, 4))
    how = {"reduction": "add"} if g.opset >= 16 and draw(st.booleans()) else {}
    k = draw(st.integers(1, 2)) if how else 1  # which one is written last is not said
    x = g.Transpose(tensor(draw, g, (N, t, 3), 1), perm=[1, 0, 2])
    y = g.Transpose(tensor(draw, g, (N, k, 3), 1), perm=[1, 0, 2])
    ids = g.input(draw(st.sampled_from(("user", "item"))), N, k, high=t)
    at = g.unsqueeze(g.Gather(ids, g.const(0, np.int64), axis=0), 1)
    return g.output(g.Transpose(g.ScatterND(x, at, y, **how), perm=[1, 0, 2]))


@given(written_at_run_time())
def test_positions_that_only_the_run_knows_are_written(g: Graph) -> None:
    check(g)


def test_the_users_own_write_at_a_position_of_the_run_is_made_once() -> None:
    g = Graph()
    x, y = (g.Transpose(g.user(size, 4), perm=[1, 0, 2]) for size in (5, 1))
    at = g.unsqueeze(g.Gather(g.user(1, high=5), g.const(0, np.int64), axis=0), 1)
    history = g.Transpose(g.ScatterND(x, at, y), perm=[1, 0, 2])
    g.output(g.Add(g.reduce("Sum", g.MatMul(history, g.weight(4, 3)), [1], keepdims=0), g.item(3)))
    lifted(g, check(g, expect="lifted"), per_candidate=0)
