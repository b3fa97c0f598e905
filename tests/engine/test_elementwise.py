from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.engine.graphs import Draw, Graph, check, shapes, starts, tensor


@st.composite
def expressions(draw: Draw) -> Graph:
    g = draw(starts())
    shape = shapes(draw)
    return g.output(*(g.Sin(tensor(draw, g, shape, 3)) for _ in range(draw(st.integers(1, 2)))))


@given(expressions(), st.sampled_from((2, 500, 50_000)))
def test_any_expression_is_the_same(g: Graph, candidates: int) -> None:
    check(g, candidates=candidates)


@st.composite
def requests(draw: Draw) -> Graph:
    """[R, N, ...]: R requests of N candidates, the user expanded in the graph."""
    g = draw(starts(requests=True))
    shape = ("R", *shapes(draw))
    return g.output(*(g.Sin(tensor(draw, g, shape, 3)) for _ in range(draw(st.integers(1, 2)))))


@given(requests(), st.sampled_from((2, 500)))
def test_requests_by_candidates_are_the_same(g: Graph, candidates: int) -> None:
    check(g, candidates=candidates)
