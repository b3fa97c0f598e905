"""Quantization by what a tensor holds at run time: the user's rows once, with the same scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.engine.rules import quantized
from tests.engine.checks import actions, check, lifted, reasons, traced
from tests.engine.drawing import starts, tensor
from tests.engine.graphs import Draw, Graph, N
from tests.engine.runtime import check as compared
from tests.engine.runtime import model, normal

EVALUATED = (19, 20, 21)
"""Opsets in which onnx's evaluator has DequantizeLinear."""


def _quantized(g: Graph, x: str, width: int, out: int) -> str:
    """What onnxruntime's dynamic quantization makes of x W."""
    y, scale, zero = g.nodes_of("DynamicQuantizeLinear", [x], 3)
    w = g.const(g.rng.integers(-100, 100, (width, out)), np.int8)
    product = g.Cast(g.MatMulInteger(y, w, zero, g.const(3, np.int8)), to=1)
    return g.Mul(product, g.Mul(scale, g.const(0.01)))


@st.composite
def layers(draw: Draw) -> Graph:
    g = draw(starts(EVALUATED))
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


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are taken apart however few their columns are."""
    monkeypatch.setattr(quantized, "apart", lambda *_: True)
    monkeypatch.setattr(quantized, "_enough", lambda *_: True)


@given(layers())
def test_layers_in_parts_are_the_same(g: Graph) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized, "apart", lambda *_: True)
        patch.setattr(quantized, "_enough", lambda *_: True)
        check(g, tolerance=1e-4)


@st.composite
def exact(draw: Draw) -> Graph:
    """Integers alone: nothing is rounded differently, so outputs are equal to the last bit."""
    g = Graph(draw(st.sampled_from((13, 18, 21))), np.float32)
    widths = {side: draw(st.integers(1, 4)) for side in draw(st.permutations(("user", "item", "cross")))}
    rows = draw(st.lists(st.integers(1, 3), max_size=1))
    x = g.Concat(*(g.input(side, N, *rows, n) for side, n in widths.items()), axis=len(rows) + 1)
    total = sum(widths.values())
    q, scale, zero = g.nodes_of("DynamicQuantizeLinear", [x], 3)
    columns = draw(st.integers(1, 3))
    w = g.const(g.rng.integers(-127, 128, (total, columns)), draw(st.sampled_from((np.int8,))))
    zeros = [g.const(g.rng.integers(-3, 4, columns), np.int8)] if draw(st.booleans()) else []
    return g.output(g.MatMulInteger(q, w, zero, *zeros), scale, zero)


@given(exact())
def test_integers_are_equal(g: Graph) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized, "apart", lambda *_: True)
        patch.setattr(quantized, "_enough", lambda *_: True)
        result = check(g, tolerance=0)
    assert actions(result)["MatMulInteger"] == ["split"]


def test_the_users_columns_are_multiplied_once(always: None) -> None:
    g = Graph(19, np.float32)
    x = g.Concat(g.user(6), g.item(3), axis=1)
    result = check(g.output(_quantized(g, x, 9, 4)), tolerance=1e-6, expect="split")
    shapes = {tuple(seen[n.input[1]].shape)
              for seen in [traced(result.model, g.feeds(7, once=True))]
              for n in result.model.graph.node if n.op_type == "MatMulInteger"}  # fmt: skip
    assert shapes == {(6, 4), (3, 4)}


def test_few_columns_are_not_worth_a_product_of_their_own() -> None:
    g = Graph(19, np.float32)
    result = check(g.output(_quantized(g, g.Concat(g.user(6), g.item(3), axis=1), 9, 4)), tolerance=1e-6)
    assert sum(n.op_type == "MatMulInteger" for n in result.model.graph.node) == 1


def test_many_are() -> None:
    g = Graph(19, np.float32)
    g.output(_quantized(g, g.Concat(g.user(400), g.item(200), axis=1), 600, 64))
    result = check(g, tolerance=1e-6, weighed=True)
    assert result.changed, result.reason
    assert actions(result)["MatMulInteger"] == ["split"]


FUSED = {
    "whole": "y = com.microsoft.DynamicQuantizeMatMul(c, W, one, zero, B)",
    "quantized": "q, s, z = DynamicQuantizeLinear(c) y = com.microsoft.MatMulIntegerToFloat(q, W, s, one, z, zero, B)",
}


@pytest.mark.parametrize("fused", FUSED.values(), ids=FUSED)
def test_as_onnxruntime_fuses_it(always: None, fused: str) -> None:
    source = model(
        "(float[N,6] u, float[N,3] x) => (float y) { c = Concat<axis=1>(u, x) " + fused + " }",
        W=np.random.default_rng(0).integers(-100, 100, (9, 4)).astype(np.int8),
        B=normal(4),
        one=np.array(0.01, np.float32),
        zero=np.array(0, np.int8),
    )
    result = compared(source)
    assert sum(n.op_type == "MatMulInteger" for n in result.model.graph.node) == 2


def test_a_zero_point_of_each_row_is_refused() -> None:
    g = Graph(19, np.float32)
    q, _, _ = g.nodes_of("DynamicQuantizeLinear", [g.Concat(g.user(2, 3), g.item(2, 3), axis=2)], 3)
    w = g.const(g.rng.integers(-100, 100, (6, 4)), np.int8)
    result = check(g.output(g.MatMulInteger(q, w, g.const([[1], [2]], np.uint8))))
    assert "zero point differs by row" in str(reasons(result)["MatMulInteger"])
