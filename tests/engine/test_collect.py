"""Like terms of sums collected: cross layers of any depth, mixed with plain sums."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import check, traced
from tests.engine.drawing import starts, tensor
from tests.engine.graphs import Draw, Graph, N


@st.composite
def crosses(draw: Draw) -> Graph:
    """x_l = x_0 s_l (+ b_l) (+ x_{l-1}), s_l a number or a row per candidate, then something that reads x_L."""
    g = draw(starts())
    width = draw(st.integers(1, 6))
    x0 = tensor(draw, g, (N, width), 3)
    x0 = g.Tanh(x0) if draw(st.booleans()) else x0
    x = x0
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("own", "own", "other", "wide")))
        if kind == "own":
            scale = g.MatMul(x, g.weight(width, 1))
        else:
            scale = tensor(draw, g, (N, 1 if kind == "other" else width), 1)
        term = g.Mul(x0, scale)
        if draw(st.booleans()):
            term = g.Add(term, g.weight(draw(st.sampled_from((1, width)))))
        residual = draw(st.sampled_from(("x", "x0", "minus", "none")))
        if residual == "minus":
            x = g.Sub(x, term) if draw(st.booleans()) else g.Sub(term, x)
        else:
            x = {"x": g.Add(term, x), "x0": g.Add(x0, term), "none": term}[residual]
    end = draw(st.sampled_from(("matmul", "sum", "square", "self", "x")))
    if end == "matmul":
        x = g.MatMul(x, g.weight(width, draw(st.integers(1, 3))))
    elif end in ("sum", "square"):
        x = g.reduce("Sum", g.Mul(x, x) if end == "square" else x, [1])
    elif end == "self":
        x = g.MatMul(g.Mul(x, x0), g.weight(width, 2))
    return g.output(x)


@given(crosses(), st.sampled_from((1, 500, 50_000)))
def test_crosses_are_the_same(g: Graph, candidates: int) -> None:
    check(g, candidates=candidates)


def _cross(layers: int, width: int = 400) -> Graph:
    g = Graph()
    x0 = g.Tanh(g.Concat(g.user(width), g.item(3), axis=1))  # sums of what has no bound are written as they are
    x = x0
    for _ in range(layers):
        s = g.MatMul(x, g.weight(width + 3, 1))
        x = g.Add(g.Add(g.Mul(x0, s), g.weight(width + 3)), x)
    return g.output(g.MatMul(x, g.weight(width + 3, 2)))


def test_deep_cross_layers_never_write_the_users_half() -> None:
    for layers in (1, 3, 6):
        g = _cross(layers)
        result = check(g)
        many = traced(result.model, g.feeds(7, once=True))
        assert not [name for name, t in many.items() if t.shape == (7, 400)], f"{layers} layers"


def test_integer_sums_are_left() -> None:
    """Integers wrap around, and have no forms: the sum is written as it is."""
    g = Graph()
    u, x = g.user(3, dtype=np.int64, high=9), g.item(3, dtype=np.int64, high=9)
    s = g.item(1, dtype=np.int64, high=9)
    both = g.Concat(u, x, axis=1)
    y = g.Add(g.Mul(both, s), g.Mul(both, g.item(1, dtype=np.int64, high=9)))
    check(g.output(g.reduce("Sum", y, [1])))
