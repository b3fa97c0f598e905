"""Products of quantized tensors: once for rows that are equal, and apart for parts that vary differently."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.engine import Options, rewrite
from tests.engine.checks import actions, check, lifted, reasons
from tests.engine.drawing import shapes, starts, tensor
from tests.engine.graphs import Draw, Graph, N, ort
from tests.engine.runtime import check as compared
from tests.engine.runtime import model

TYPES = (np.uint8, np.int8)
# before opset 19 the reference evaluator has no DequantizeLinear
OPSETS = (19, 21)


def scale(g: Graph, value: float = 0.05) -> str:
    return g.const(np.array(value), np.float32)


def zero(g: Graph, value: int = 3, dtype: type = np.uint8) -> str:
    return g.const(np.array(value), dtype)


def quantized(g: Graph, x: str, dtype: type = np.uint8) -> str:
    return g.QuantizeLinear(x, scale(g), zero(g, dtype=dtype))


def weights(g: Graph, *shape: int, dtype: type = np.uint8) -> str:
    return g.const(g.rng.integers(0, 100, shape), dtype)


def multiplied(g: Graph, x: str, w: str, dtype: type = np.uint8) -> str:
    """QLinearMatMul of quantized x and w, as floats again."""
    step = (scale(g), zero(g, dtype=dtype))
    return g.DequantizeLinear(g.QLinearMatMul(x, *step, w, *step, *step), *step)


@st.composite
def products(draw: Draw) -> Graph:
    g = draw(starts(OPSETS, dtype=np.float32))
    shape = shapes(draw)
    dtype = draw(st.sampled_from(TYPES))
    x = quantized(g, tensor(draw, g, shape), dtype)
    return g.output(multiplied(g, x, weights(g, int(shape[-1]), draw(st.integers(1, 3)), dtype=dtype), dtype))


@given(products())
def test_products_are_the_same(g: Graph) -> None:
    check(g, tolerance=1e-6)


@st.composite
def convolutions(draw: Draw) -> Graph:
    g = draw(starts(OPSETS, dtype=np.float32))
    x = quantized(g, tensor(draw, g, (N, 2, draw(st.integers(1, 4)))))
    w = weights(g, draw(st.integers(1, 3)), 2, 1)
    step = (scale(g), zero(g))
    if draw(st.booleans()):
        return g.output(g.Cast(g.ConvInteger(x, w, zero(g)), to=1))
    return g.output(g.DequantizeLinear(g.QLinearConv(x, *step, w, *step, *step), *step))


@given(convolutions())
def test_convolutions_are_the_same(g: Graph) -> None:
    check(g, tolerance=1e-6)


@pytest.mark.parametrize("conv", [False, True])
def test_a_users_tower_is_computed_once(conv: bool) -> None:
    g = Graph(21, np.float32)
    step = (scale(g), zero(g))
    x = quantized(g, g.user(4, 1) if conv else g.user(4))
    if conv:
        y = g.reshape(g.QLinearConv(x, *step, weights(g, 2, 4, 1), *step, *step), -1, 2)
        y = g.DequantizeLinear(y, *step)
    else:
        y = multiplied(g, x, weights(g, 4, 2))
    lifted(g.output(g.Sin(g.Concat(y, g.item(2), axis=1))))


def test_tokens_of_the_user_are_apart_from_the_candidates() -> None:
    g = Graph(21, np.float32)
    x = g.Concat(g.user(3, 4), g.item(1, 4), axis=1)
    check(g.output(g.Sin(multiplied(g, quantized(g, x), weights(g, 4, 2)))), expect="batched")


def test_a_scale_by_row_is_refused() -> None:
    g = Graph(21, np.float32)
    rows = g.const(np.full((1, 3, 1), 0.05), np.float32)
    zeros = g.const(np.full((1, 3, 1), 3), np.uint8)
    x, w = quantized(g, g.user(3, 4)), weights(g, 4, 2)
    y = g.QLinearMatMul(x, rows, zeros, w, scale(g), zero(g), scale(g), zero(g))
    result = check(g.output(g.Add(g.Cast(y, to=1), g.item(1, 1))))
    assert reasons(result)["QLinearMatMul"] == [f"{rows!r}, a scale or zero point, differs by row"]


def test_a_computed_operand_is_refused() -> None:
    g = Graph(21, np.float32)
    x, w = quantized(g, g.user(3, 4)), quantized(g, g.user(4, 2))
    result = check(g.output(g.Add(multiplied(g, x, w), g.item(1, 1))), tolerance=1e-6)
    assert reasons(result)["QLinearMatMul"] == ["its right operand is not a constant matrix"]


MORE = {
    "gemm": "y = com.microsoft.QGemm<transB=1>(r, s, z, W, s, z, , s, z)",
    "float": "y = com.microsoft.QGemm<transB=1>(r, s, z, W, s, z)",
    "sigmoid": "y = com.microsoft.QLinearSigmoid(r, s, z, s, z)",
    "add": "y = com.microsoft.QLinearAdd(r, s, z, r, s, z, s, z)",
    "row": "y = com.microsoft.QLinearMul(r, s, z, row, s, z, s, z)",
}


@pytest.mark.parametrize("text", MORE.values(), ids=MORE)
def test_operators_of_quantized_tensors_run_once_for_the_user(text: str) -> None:
    source = model(
        "(float[N,4] u, float[N,4] x) => (float[N,4] out) { r = QuantizeLinear(u, s, z) " + text + " "
        + ("f = Identity(y)" if "(r, s, z, W, s, z)" in text else "f = DequantizeLinear(y, s, z)")
        + " h = Tanh(f) out = Add(h, x) }",
        W=np.arange(16, dtype=np.uint8).reshape(4, 4),
        row=np.arange(4, dtype=np.uint8).reshape(1, 4),
        s=np.array(0.05, np.float32),
        z=np.array(3, np.uint8),
    )
    result = compared(source)
    assert actions(result)[text.split(".")[2].split("(")[0].split("<")[0]] == ["lifted"]


@pytest.mark.parametrize("other", [False, True])
def test_a_concat_of_quantized_tensors(other: bool) -> None:
    """Of one scale it is a Concat; of another one, a part is quantized anew."""
    source = model(
        "(float[N,4] u, float[N,2] x) => (float[N,6] out) { a = QuantizeLinear(u, s, z) b = QuantizeLinear(x, s, z)"
        f" y = com.microsoft.QLinearConcat<axis=1>(s, z, a, s, z, b, {'t' if other else 's'}, z)"
        " f = DequantizeLinear(y, s, z) out = Tanh(f) }",
        s=np.array(0.05, np.float32),
        t=np.array(0.07, np.float32),
        z=np.array(3, np.uint8),
    )
    result = compared(source)
    assert actions(result)["QLinearConcat"] == ["split"]


def test_constants_are_rounded_by_the_runtime() -> None:
    """-1.5 steps, zero point 5: onnx's evaluator adds the zero point before it rounds, and answers another step."""
    g = Graph(19, np.float32)
    left = (g.const(np.full((1, 1), 32), np.uint8), scale(g, 1 / 32), zero(g, 0))
    right = (g.const(np.full((1, 1), -24), np.int8), scale(g, 1 / 64), zero(g, 0, np.int8))
    step = (scale(g, 0.25), zero(g, 5))
    constant = g.DequantizeLinear(g.QLinearMatMul(*left, *right, *step), *step)
    row = g.MatMul(g.user(4), g.weight(4, 1))
    model_ = g.output(g.Add(g.Mul(row, g.item(1)), constant)).model()
    result = rewrite(model_, g.sides, Options())
    assert result.changed
    (want,), (have,) = ort(model_, g.feeds(3)), ort(result.model, g.feeds(3, once=True))
    np.testing.assert_allclose(have, want, rtol=1e-6, atol=1e-6)
