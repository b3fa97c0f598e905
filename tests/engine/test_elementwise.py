from __future__ import annotations

import onnx
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import check, lifted
from tests.engine.drawing import shapes, starts, tensor
from tests.engine.graphs import Draw, Graph


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


@given(st.integers(2, 5), st.integers(2, 4), st.integers(1, 3), st.booleans(), st.booleans())
def test_a_tiled_gate_over_fields_leaves_the_user_apart(
    users: int, items: int, width: int, first: bool, computed: bool
) -> None:
    """EDCN: a gate of one number a field, tiled ``width`` times, on ``[N, fields * width]`` flattened fields first."""
    g = Graph(18)
    parts = [g.user(users, width), g.item(items, width)]
    flat = g.reshape(g.Concat(*parts, axis=1), 0, (users + items) * width)
    gate = g.Tile(g.Sigmoid(g.weight(users + items)) if computed else g.weight(users + items), g.const([width]))
    gated = g.Mul(gate, flat) if first else g.Mul(flat, gate)
    g.output(g.Relu(g.MatMul(gated, g.weight((users + items) * width, 6))))
    check(g)
    lifted(g, per_candidate=items * width * 6)


@given(st.booleans(), st.booleans(), st.sampled_from((11, 16, 18)))
def test_a_slope_that_varies_where_x_does_not(parts: bool, slope: bool, opset: int) -> None:
    """PRelu broadcasts its slope to x alone: a user's x has the candidates of an item's slope all the same."""
    g = Graph(opset)
    x = g.Concat(g.user(2), g.item(1), axis=1) if parts else g.user(3)
    out = g.output(g.PRelu(x, g.item(3) if slope else g.item(1)))
    result = check(out)
    onnx.shape_inference.infer_shapes(result.model, strict_mode=True)
