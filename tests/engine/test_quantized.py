"""Quantization by what a tensor holds at run time: the user's rows once, with the same scale."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import actions, check, lifted
from tests.engine.drawing import starts, tensor
from tests.engine.graphs import Draw, Graph, N


def _quantized(g: Graph, x: str, width: int, out: int) -> str:
    """What onnxruntime's dynamic quantization makes of x W."""
    y, scale, zero = g.nodes_of("DynamicQuantizeLinear", [x], 3)
    w = g.const(g.rng.integers(-100, 100, (width, out)), np.int8)
    product = g.Cast(g.MatMulInteger(y, w, zero, g.const(3, np.int8)), to=1)
    return g.Mul(product, g.Mul(scale, g.const(0.01)))


@st.composite
def layers(draw: Draw) -> Graph:
    g = draw(starts())
    g.dtype = np.float32
    width = draw(st.integers(1, 5))
    shape = (N, *draw(st.lists(st.integers(1, 3), max_size=2)), width)
    x = tensor(draw, g, shape, 2)
    for _ in range(draw(st.integers(1, 3))):
        x = _quantized(g, x, width, width)
    return g.output(x)


@given(layers())
def test_layers_are_the_same(g: Graph) -> None:
    check(g, tolerance=1e-4)


def _tower(*sides: str) -> Graph:
    g = Graph(dtype=np.float32)
    parts = [g.input(side, N, 6) for side in sides]
    x = g.Concat(*parts, axis=1) if len(parts) > 1 else parts[0]
    y = _quantized(g, g.Relu(_quantized(g, x, 6 * len(parts), 8)), 8, 4)
    return g.output(g.reduce("Sum", g.Mul(y, g.item(4)), [1]))


def test_a_tower_of_the_user_runs_once() -> None:
    for sides in (("user",), ("user", "user")):
        result = lifted(_tower(*sides), check(_tower(*sides), tolerance=1e-4))
        assert actions(result)["MatMulInteger"] == ["lifted", "lifted"]


def test_the_range_is_that_of_both_sides() -> None:
    """Rows of the user cannot be quantized by themselves: their scale is that of the items too."""
    for sides in (("user", "item"), ("item", "user", "cross")):
        result = check(_tower(*sides), tolerance=1e-4)
        assert "lifted" not in actions(result)["MatMulInteger"]
