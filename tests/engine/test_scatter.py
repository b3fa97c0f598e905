"""ScatterND: assignments to slices as PyTorch writes them, and constant coordinates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import check, lifted
from tests.engine.drawing import starts, tensor
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
