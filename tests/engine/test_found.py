"""Models of which an output was wrong once, or that did not load: one each, as small as they got."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from mari_onnx.engine import Rewrite
from tests.engine import runtime
from tests.engine.checks import check
from tests.engine.graphs import Graph, N

INF = np.float32(np.inf)


def single(opset: int = 18) -> Graph:
    return Graph(opset, np.float32)


def in_runtime(g: Graph, result: Rewrite, **feeds: np.ndarray) -> None:
    """Source and result in onnxruntime. feeds: inputs that are not drawn, the user's with one row."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    outs = []
    for model, once in ((g.model(), False), (result.model, result.changed)):
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        given = g.feeds(3, once)
        for name, array in feeds.items():
            repeat = array.shape[0] == 1 and not once
            given[name] = np.repeat(array, 3, axis=0) if repeat else array
        outs.append(session.run(None, {i.name: given[i.name] for i in session.get_inputs()}))
    for want, have in zip(*outs, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [-INF, INF])
def test_the_logsumexp_of_an_infinite_row(value: np.float32) -> None:
    g = single()
    u, x = g.user(3), g.item(2)
    result = check(g.output(g.reduce("LogSumExp", g.Concat(u, x, axis=1), [1])), tolerance=1e-5)
    in_runtime(g, result, **{u: np.full((1, 3), value), x: np.full((3, 2), value)})


@pytest.mark.parametrize("op", ["Clip", "QuantizeLinear"])
def test_a_scalar_that_kept_its_dimensions(op: str) -> None:
    g = single(21)
    x = g.Concat(g.user(3), g.item(2), axis=1)
    low = g.reduce("Max", g.const(np.array([[0.25, 0.5]])), [0, 1], keepdims=0)
    u = g.squeeze(g.reduce("Mean", g.Relu(g.user(3)), [0, 1]), [0, 1])
    scale = g.Add(u, low)
    y = g.Clip(x, g.Neg(scale), scale) if op == "Clip" else g.DequantizeLinear(g.QuantizeLinear(x, scale), scale)
    in_runtime(g.output(y), check(g, tolerance=1e-5))


def test_a_spectrum_is_along_the_last_but_one_axis_from_opset_20_on() -> None:
    g = Graph(20)
    x = g.Concat(g.user(2, 4, 1), g.item(2, 4, 1), axis=2)
    check(g.output(g.DFT(x)))


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("wide", ["item", "tokens"])
def test_a_normalization_with_a_scale_of_more_axes(op: str, wide: str) -> None:
    g = Graph(23)
    if wide == "item":
        x, scale = g.user(5, 4), g.unsqueeze(g.item(4), 1)
    else:
        x, scale = g.Concat(g.user(2, 4), g.item(1, 4), axis=1), g.weight(3, 4)
    rest = [g.weight(3, 4)] if op == "LayerNormalization" and wide == "tokens" else []
    check(g.output(getattr(g, op)(x, scale, *rest)))


def test_the_indices_of_a_pooling_count_from_the_first_row() -> None:
    g = single()
    values, places = g.nodes_of("MaxPool", [g.Relu(g.user(2, 4))], 2, kernel_shape=[2], strides=[2])
    g.output(values, places, g.Add(values, g.item(2, 2)))
    in_runtime(g, check(g, tolerance=1e-5))


def test_a_sum_of_integers_stays_an_add() -> None:
    g = single()
    total = g.Add(*(g.input(side, N, 4, high=9, dtype=np.int32) for side in ("user", "item")))
    y = g.Sub(total, g.reduce("Mean", total, [1]))
    g.output(y, g.Relu(g.MatMul(g.user(4), g.weight(4, 4))))
    in_runtime(g, check(g, counts=()))


def test_ids_and_data_of_one_input() -> None:
    g = Graph()
    x = g.item(3)
    wide = g.expand(g.unsqueeze(g.Transpose(x, perm=[1, 0]), 0), 5, 1, 1)
    rows = g.GatherND(wide, g.ArgMax(x, axis=1, keepdims=1))
    check(g.output(rows, g.Relu(g.MatMul(g.user(4), g.weight(4, 4)))))


@pytest.mark.parametrize("op", ["Softmax", "Hardmax"])
def test_constants_are_folded_as_old_opsets_flatten_them(op: str) -> None:
    g = single(11)
    ballast = g.Relu(g.MatMul(g.user(4), g.weight(4, 4)))
    g.output(g.Mul(g.item(3, 4), getattr(g, op)(g.weight(1, 3, 4), axis=1)), ballast)
    in_runtime(g, check(g, counts=()))


def test_an_empty_history_takes_the_other_branch() -> None:
    g = Graph()
    h, x = g.user("T", 3), g.item(3)
    values = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, None) for n in ("some", "none")]
    then = [
        helper.make_node("ReduceMax", [h, g.const([1], np.int64)], ["top"], keepdims=0),
        helper.make_node("Mul", ["top", x], ["some"]),
    ]
    some = helper.make_graph(then, "some", [], values[:1])
    none = helper.make_graph([helper.make_node("Identity", [x], ["none"])], "none", [], values[1:])
    length = g.squeeze(g.size(h, 1), [0])
    g.output(g.If(g.Greater(length, g.const(0, np.int64)), then_branch=some, else_branch=none))
    result = check(g)
    feeds = {x: np.ones((3, 3))}
    (want,) = onnx.reference.ReferenceEvaluator(g.model()).run(None, {**feeds, h: np.zeros((3, 0, 3))})
    (have,) = onnx.reference.ReferenceEvaluator(result.model).run(None, {**feeds, h: np.zeros((1, 0, 3))})
    np.testing.assert_array_equal(have, want)


def test_extremes_of_integers_in_an_old_opset() -> None:
    g = single(11)
    x = g.Concat(*(g.input(s, N, 3, high=9, dtype=np.int32) for s in ("user", "item")), axis=1)
    g.output(g.reduce("Max", x, [1]), g.Relu(g.MatMul(g.user(4), g.weight(4, 4))))
    in_runtime(g, check(g, tolerance=1e-5))


def test_a_reshape_to_no_elements() -> None:
    g = Graph()
    both = g.Concat(g.Transpose(g.item(1, 5), perm=[0, 2, 1]), g.Concat(g.user(4, 3), g.user(1, 3), axis=1), axis=2)
    check(g.output(g.Gather(both, g.const(np.zeros(0, np.int64)), axis=1)))


def test_a_small_denominator_of_float16() -> None:
    g = Graph(18, np.float16)
    u, x = g.user(64, high=1), g.item(8, high=1)  # zeros
    total, count = (g.Cast(t, to=TensorProto.FLOAT16) for t in (u, x))
    count = g.Add(g.reduce("Sum", count, [1]), g.const(np.float16(1e-6)))
    check(g.output(g.MatMul(g.Div(total, count), g.weight(64, 32))), tolerance=1e-2)


def test_a_gate_keeps_float16_small() -> None:
    g = Graph(18, np.float16)
    u, x = (g.Cast(g.input(side, N, n, high=1), to=TensorProto.FLOAT16) for side, n in (("user", 256), ("item", 1)))
    gated = g.Mul(g.Add(u, g.const(np.float16(300))), g.Add(x, g.const(np.float16(0.01))))
    check(g.output(g.MatMul(gated, g.const(np.ones((256, 64))))), tolerance=2e-2)


def test_two_masks_of_a_training_dropout_are_two() -> None:
    g = Graph()
    x = g.item(40)
    half, training = g.const(np.array(0.5)), g.const(np.array(True), bool)
    pair = [g.Dropout(x, half, training) for _ in range(2)]
    g.output(g.Sub(*pair), g.Relu(g.MatMul(g.user(4), g.weight(4, 4))))
    result = check(g, counts=())
    assert sum(n.op_type == "Dropout" for n in result.model.graph.node) == 2


@pytest.mark.parametrize("op", ["com.microsoft.BiasGelu", "com.microsoft.FastGelu"])
def test_a_bias_that_is_not_of_one_dimension(op: str) -> None:
    for x in ("x", "c"):
        body = f"c = Concat<axis=1>(u, x) g = {op}({x}, b) y = Mul(g, s) z = Relu(u)"
        text = f"(float[N,{{u}},2] u, float[N,1,2] x) => (float y, float z) {{{{ {body} }}}}".format(u=3)
        runtime.check(runtime.model(text, b=runtime.normal(2), s=runtime.normal(2)))
    text = f"(float[N,4] u, float[N,1] x) => (float y, float z) {{ y = {op}(x, b) z = Relu(u) }}"
    runtime.check(runtime.model(text, b=runtime.normal(1)))


def test_a_causal_mask_of_fewer_queries_than_keys() -> None:
    text = (
        "(float[N,5,4] u, float[N,1,4] x) => (float y) { c = Concat<axis=1>(u, x)"
        " a = com.microsoft.MultiHeadAttention<num_heads=2, unidirectional=1>(x, c, c) y = Relu(a) }"
    )
    runtime.check(runtime.model(text))


@pytest.mark.parametrize("opset", [13, 22])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_a_last_window_that_lies_in_padding(op: str, opset: int) -> None:
    for given in ("", ", count_include_pad=1")[: 1 + (op == "AveragePool")]:
        text = (
            f"(float[N,1,14] c, float[N,1,6] x, float[N,1,1] u, float[N,4] v) => (float y, float z) {{"
            f" a = Concat<axis=2>(c, x) p = {op}<kernel_shape=[1], strides=[3], ceil_mode=1{given}>(a)"
            " q = Concat<axis=2>(p, u) y = Transpose<perm=[0,2,1]>(q) z = Relu(u) }"
        )
        runtime.check(runtime.model(text, opset))


@pytest.mark.parametrize("items", [5, 6, 7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (3, 3)])
def test_a_last_window_that_begins_on_an_element(items: int, kernel: int, stride: int) -> None:
    """Its number is known though it may hang over; where none does, the user's windows are computed once."""
    pool = f"AveragePool<kernel_shape=[{kernel}], strides=[{stride}], ceil_mode=1>"
    count = -(-(14 + items - kernel) // stride) + 1
    text = (
        f"(float[N,1,14] u, float[N,1,{items}] x) => (float y) {{"
        f" a = Concat<axis=2>(u, x) p = {pool}(a) t = Tanh(p) y = MatMul(t, w) }}"
    )
    source = runtime.model(text, w=runtime.normal(count, 3))
    assert runtime.check(source).shapes["p"][2] == count


def test_a_pooling_that_leaves_nothing() -> None:
    text = (
        "(float[N,64,2,3] x, float[N,4] u) => (float y, float m, float z) { p = AveragePool<kernel_shape=[3, 1]>(x)"
        " y = Softmax<axis=3>(p) n = Neg(p) m = ReduceMean<axes=[2], keepdims=0>(n) z = Relu(u) }"
    )
    runtime.check(runtime.model(text))


def test_branches_that_give_what_is_outside_of_them() -> None:
    branches = ", ".join(
        f"{name}: graph = {name}_g () => (float[] {name}_y, float[] {name}_z)"
        f" {{ {name}_y = Identity(m) {name}_z = {last} }}"
        for name, last in (("then_branch", "Identity(r)"), ("else_branch", "Mul(r, r)"))
    )
    text = (
        "(float[N,4] u, float[N,4] x, float[N,3] v) => (float y, float z, float r) { n = Neg(x)"
        " c = Concat<axis=1>(u, n) m = MatMul(c, w) r = Relu(m) top = ReduceMax<keepdims=0>(v) zero = Sub(top, top)"
        " flag = Equal(top, zero)"
        f" i, j = If(flag) <{branches}> y = Tanh(i) z = Concat<axis=1>(j, i) }}"
    )
    runtime.check(runtime.model(text, w=runtime.normal(8, 3)))


@pytest.mark.parametrize("transform", ["SOFTMAX", "LOGISTIC"])
def test_a_regressor_of_one_target_is_not_transformed(transform: str) -> None:
    given = f'coefficients=[0.5, -1.0, 2.0, 0.25], post_transform="{transform}"'
    body = f"y = ai.onnx.ml.LinearRegressor<{given}>(c)"
    text = f"(float[N,3] u, float[N,1] x) => (float y, float z) {{ c = Concat<axis=1>(u, x) {body} z = Relu(u) }}"
    runtime.check(runtime.model(text))


def test_an_output_without_elements_in_an_old_opset() -> None:
    text = (
        "(float[N,4,2,5,1] u, float[N,4,2,5,1] x) => (float y, float z) { a = Add(u, x)"
        " p = LpPool<kernel_shape=[3, 3, 1], p=2>(a) m = ReduceMean<axes=[1], keepdims=1>(p)"
        " y = Transpose<perm=[0, 2, 1, 3, 4]>(m) z = Relu(u) }"
    )
    runtime.check(runtime.model(text, 12))


def test_a_pooling_with_holes_under_same_padding() -> None:
    pool = 'MaxPool<auto_pad="SAME_UPPER", dilations=[3, 3], kernel_shape=[3, 1], strides=[3, 2]>'
    text = (
        f"(float[N,8,1,2] u, float[N,8,1,3] x) => (float y, float z) {{ a = Concat<axis=3>(u, x) p = {pool}(a)"
        " y = MatMul(p, w) z = Relu(u) }"
    )
    runtime.check(runtime.model(text, 12, w=runtime.normal(3, 2)))


@pytest.mark.parametrize("op", ["BiasGelu", "FastGelu"])
def test_an_activation_of_a_single_number(op: str) -> None:
    text = (
        "(float[N,1] u, float[N,3] x, float[N,2,2,2] u_four) => (float y, float z) { c = Concat<axis=1>(x, u)"
        f" n = Shape(u_four) b = Cast<to=1>(n) g = com.microsoft.{op}(c, b) y = MatMul(g, w) z = Neg(g) }}"
    )
    runtime.check(runtime.model(text, w=runtime.normal(4, 2)))


def test_a_causal_row_of_one_token_whose_heads_are_of_both_sides() -> None:
    g = Graph(11)
    u, history = g.user(1, 1), g.user(2, 2)
    x = g.Concat(g.Concat(u, g.item(1, 1), axis=2), history, history, g.Concat(u, u, axis=2), axis=1)
    scale, cut = g.const(0.5), g.const([0, 6, 2, 1], np.int64)
    q, k, v = (g.Reshape(t, cut) for t in (g.MatMul(x, g.weight(2, 2)), x, x))
    scores = g.Mul(g.MatMul(g.Transpose(q, perm=[0, 2, 1, 3]), g.Transpose(k, perm=[0, 2, 3, 1])), scale)
    weights = g.Softmax(g.Add(scores, g.const(np.triu(np.full((6, 6), -np.inf), 1))), axis=3)
    mixed = g.Transpose(g.MatMul(weights, g.Transpose(v, perm=[0, 2, 1, 3])), perm=[0, 2, 1, 3])
    check(g.output(g.Add(x, g.Reshape(mixed, g.const([0, 6, 2], np.int64)))), candidates=50_000)
