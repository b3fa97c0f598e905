"""Static quantization with QuantizeLinear and DequantizeLinear around operators: products of integers by parts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.engine import Options, Rewrite, rewrite
from mari_onnx.engine.rules import dequantized
from tests.engine.checks import actions, check, reasons
from tests.engine.graphs import Draw, Graph, N
from tests.engine.runtime import check as compared
from tests.engine.runtime import model, sides

STEP = 2.0**-5
"""Scales are powers of two, so that floats of the reference evaluator are exact."""
TYPES = (np.uint8, np.int8)


def around(g: Graph, x: str, dtype: type = np.uint8, scale: float = STEP, zero: int = 3) -> str:
    """x quantized and dequantized."""
    parameters = g.const(np.array(scale), np.float32), g.const(np.array(zero), dtype)
    return g.DequantizeLinear(g.QuantizeLinear(x, *parameters), *parameters)


def matrix(
    g: Graph,
    rows: int,
    columns: int,
    by_column: bool = False,
    turned: bool = False,
    zero: int = 0,
    kind: type = np.int8,
) -> str:
    """Weights of integers, dequantized."""
    low = 0 if kind is np.uint8 else -100
    codes = g.const(g.rng.integers(low, low + 200, (columns, rows) if turned else (rows, columns)), kind)
    if not by_column:
        return g.DequantizeLinear(codes, g.const(np.array(STEP), np.float32), g.const(zero, kind))
    scales = g.const(STEP * 2.0 ** (np.arange(columns) % 3), np.float32)
    zeros = g.const(np.full(columns, zero) + (np.arange(columns) % 2 if zero else 0), kind)
    return g.DequantizeLinear(codes, scales, zeros, axis=0 if turned else 1)


def bias(g: Graph, columns: int, by_column: bool = False) -> str:
    scale = STEP * STEP * (2.0 ** (np.arange(columns) % 3) if by_column else np.array(1.0))
    codes = g.const(g.rng.integers(-1000, 1000, columns), np.int32)
    return g.DequantizeLinear(codes, g.const(scale, np.float32), **({"axis": 0} if by_column else {}))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are taken apart however little that saves."""
    monkeypatch.setattr(dequantized, "apart", lambda *_: True)
    monkeypatch.setattr(dequantized, "start_pays", lambda *_: True)


@st.composite
def layers(draw: Draw) -> Graph:
    """[u | x | ..], perhaps of tokens, through a product of integers."""
    g = Graph(draw(st.sampled_from((19, 21))), np.float32, seed=draw(st.integers(0, 3)))
    dtype = draw(st.sampled_from(TYPES))
    tokens = draw(st.lists(st.integers(2, 3), max_size=1))
    parts, width = [], 0
    for side in draw(st.permutations(("user", "item", "cross", "user")))[: draw(st.integers(2, 4))]:
        size = draw(st.integers(1, 4))
        lead = [1 if tokens and draw(st.booleans()) else t for t in tokens]
        x = g.input(side, N, *lead, size)
        parts.append(g.expand(x, 1, *tokens, 1) if tokens and lead != tokens else x)
        width += size
    x = around(g, g.Concat(*parts, axis=len(tokens) + 1), dtype)
    columns, by_column = draw(st.integers(1, 4)), draw(st.booleans())
    kind = draw(st.sampled_from(TYPES)) if dtype is np.uint8 else np.int8
    zero = draw(st.sampled_from((0, 7)))
    if not tokens and draw(st.booleans()):
        turned = draw(st.booleans())
        added = [bias(g, columns, by_column)] if draw(st.booleans()) else []
        y = g.Gemm(x, matrix(g, width, columns, by_column, turned, zero, kind), *added, transB=int(turned))
    else:
        y = g.MatMul(x, matrix(g, width, columns, by_column, False, zero, kind))
    if draw(st.booleans()):
        y = g.Relu(y)
    return g.output(around(g, y, dtype, STEP * 4) if draw(st.booleans()) else y)


@given(layers())
def test_layers_have_the_sources_own_numbers(g: Graph) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dequantized, "apart", lambda *_: True)
        patch.setattr(dequantized, "start_pays", lambda *_: True)
        check(g, tolerance=0)
    check(g, tolerance=0, weighed=True)


def answers(made: onnx.ModelProto, feeds: dict[str, np.ndarray], optimized: bool) -> list[np.ndarray]:
    """By onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)  # type: ignore[no-any-return]


@given(layers())
def test_onnxruntime_answers_as_for_the_source(g: Graph) -> None:
    """With its optimizations, which make kernels of integers, and without. It may move the source itself by a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dequantized, "apart", lambda *_: True)
        patch.setattr(dequantized, "start_pays", lambda *_: True)
        result = check(g, tolerance=0)
    source = [answers(g.model(), g.feeds(5), on) for on in (False, True)]
    for on in (False, True):
        for k, have in enumerate(answers(result.model, g.feeds(5, once=result.changed), on)):
            assert any(np.allclose(have, want[k], rtol=1e-5, atol=1e-6) for want in source)


def ranker(user: int = 400, item: int = 200, hidden: int = 64, by_column: bool = False, opset: int = 19) -> Graph:
    """[u | x] through a layer and a score, quantized."""
    g = Graph(opset, np.float32)
    x = around(g, g.Concat(g.user(user), g.item(item), axis=1))
    h = around(g, g.Gemm(x, matrix(g, user + item, hidden, by_column), bias(g, hidden, by_column)), scale=0.5)
    return g.output(around(g, g.MatMul(h, matrix(g, hidden, 1)), scale=64.0))


def kernels(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Operators of the graph as onnxruntime runs it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def rewritten(g: Graph) -> Rewrite:
    result = check(g, tolerance=0, weighed=True)
    assert result.changed, result.reason
    return result


@pytest.mark.parametrize("by_column", [False, True])
def test_the_users_part_is_where_the_candidates_sums_start(by_column: bool, tmp_path: Path) -> None:
    g = ranker(by_column=by_column)
    result = rewritten(g)
    assert actions(result)["Gemm"] == ["split"]
    source, output = kernels(g.model(), tmp_path), kernels(result.model, tmp_path)
    assert output["MatMulInteger"] == 1
    products = ("QGemm", "QLinearMatMul")
    assert [output[op] for op in products] == [source[op] for op in products] == [1, 1]
    assert output["MatMul"] + output["Gemm"] == 0


def test_onnxruntime_has_the_sources_own_numbers_too() -> None:
    g = ranker()
    result = rewritten(g)
    outputs = []
    for made, once in ((g.model(), False), (result.model, True)):
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, g.feeds(50, once=once))[0])
    assert np.array_equal(*outputs)


def test_weights_stay_integers() -> None:
    """In the file too: as floats they would take four times as much."""
    g = ranker()
    assert rewritten(g).model.ByteSize() < 1.2 * g.model().ByteSize()


def test_a_bias_of_another_scale_is_a_product_of_floats() -> None:
    g = Graph(19, np.float32)
    x = around(g, g.Concat(g.user(4), g.item(3), axis=1))
    other = g.DequantizeLinear(g.const(g.rng.integers(0, 9, 2), np.int32), g.const(np.array(0.5), np.float32))
    result = check(g.output(g.Gemm(x, matrix(g, 7, 2), other)), tolerance=1e-6)
    assert not any(n.op_type == "MatMulInteger" for n in result.model.graph.node)


def test_few_columns_are_written_out_as_integers(tmp_path: Path) -> None:
    """Where parts do not pay, the kernel stays one of integers: their Concat is one of integers too."""
    g = Graph(19, np.float32)
    x = around(g, g.Concat(g.user(2), g.item(3), axis=1))
    g.output(around(g, g.MatMul(x, matrix(g, 5, 4)), scale=0.25), around(g, g.Sin(g.user(4)), scale=0.01))
    result = check(g, tolerance=0)
    assert kernels(result.model, tmp_path)["QLinearMatMul"] == 1


def test_a_concat_of_integers_of_two_scales(always: None) -> None:
    g = Graph(19, np.float32)
    parts = [around(g, g.user(3), scale=STEP), around(g, g.item(2), scale=2 * STEP)]
    x = around(g, g.Concat(*parts, axis=1))
    result = check(g.output(around(g, g.MatMul(x, matrix(g, 5, 4)))), tolerance=0)
    assert actions(result)["MatMul"] == ["split"]


def test_two_scales_of_the_activation_are_left(always: None) -> None:
    g = Graph(21, np.float32)
    scale, zero = g.const(np.full(5, STEP), np.float32), g.const(np.zeros(5), np.uint8)
    codes = g.QuantizeLinear(g.Concat(g.user(3), g.item(2), axis=1), scale, zero, axis=1)
    x = g.DequantizeLinear(codes, scale, zero, axis=1)
    result = check(g.output(g.MatMul(x, matrix(g, 5, 4))), tolerance=1e-6)
    assert "scale or zero point is not a scalar" in str(reasons(result)["QuantizeLinear"])


def test_a_quantization_of_what_was_dequantized_is_nothing() -> None:
    g = Graph(19, np.float32)
    x = around(g, g.Concat(g.user(3), g.item(2), axis=1))
    for _ in range(3):
        x = around(g, x)
    result = check(g.output(g.Sin(x)), tolerance=0)
    assert Counter(n.op_type for n in result.model.graph.node)["QuantizeLinear"] == 2


@pytest.mark.parametrize("bits", ["QGemm", "QLinearMatMul"])
def test_the_other_format_is_split_alike(bits: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    product = {
        "QGemm": "y = com.microsoft.QGemm(q, s, z, W, s, w, B, t, z)",
        "QLinearMatMul": "y = QLinearMatMul(q, s, z, W, s, w, t, z)",
    }[bits]
    source = model(
        "(float[N,400] u, float[N,200] x) => (float[N,64] out) { c = Concat<axis=1>(u, x) q = QuantizeLinear(c, s, z) "
        f"{product} out = DequantizeLinear(y, t, z) }}",
        W=rng.integers(-100, 100, (600, 64)).astype(np.int8),
        B=rng.integers(-1000, 1000, 64).astype(np.int32),
        s=np.array(STEP, np.float32),
        t=np.array(0.5, np.float32),
        z=np.array(3, np.uint8),
        w=np.array(0, np.int8),
    )
    result = compared(source, tolerance=0)
    assert actions(result)[bits] == ["split"]
    assert kernels(result.model, tmp_path)["QGemm"] == 1
    assert rewrite(source, sides(source), Options()).changed
