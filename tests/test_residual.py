"""Residual work of graphs whose redundancy is known exactly."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from mari_onnx.errors import ModelError
from mari_onnx.parity.requests.draw import Request
from mari_onnx.report.candidate_probe import pick_n
from mari_onnx.report.residual import Residual, measure
from mari_onnx.sides.resolve import Sides

UX = Sides({"u": "user", "x": "item"})


def model(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from the text form of its graph; `weights` become initializers."""
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g {text}')
    made.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    onnx.checker.check_model(made)
    return made


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def node(found: Residual, op: str):
    (one,) = [x for x in found.nodes if x.op == op]
    return one


def test_product_over_a_concat_wastes_the_share_of_user_columns():
    source = model(
        "(float[N,3] u, float[N,5] x) => (float[N,4] y)"
        " { c = Concat<axis=1>(x, u) y = MatMul(c, W) }",
        W=normal(8, 4),
    )
    found = measure(source, UX)
    assert found.share == pytest.approx(3 / 8, abs=1e-6)
    assert found.total.flops == 2 * found.n * 8 * 4
    assert node(found, "MatMul").terms == pytest.approx(3 / 8, abs=1e-6)
    assert node(found, "Concat").results == pytest.approx(3 / 8, abs=1e-6)
    assert "38% of the terms" in node(found, "MatMul").text


def test_user_rows_given_once_waste_nothing():
    output = model(
        "(float[1,3] u, float[N,5] x) => (float[N,4] y)"
        " { a = MatMul(u, A) b = MatMul(x, B) y = Add(a, b) }",
        A=normal(3, 4),
        B=normal(5, 4),
    )
    found = measure(output, UX)
    assert found.share == found.byte_share == 0
    assert found.once.flops == 2 * 3 * 4
    assert [x.op for x in found.nodes] == ["MatMul", "Add"]


def test_user_rows_expanded_again_are_found():
    output = model(
        "(float[1,3] u, float[N,5] x) => (float[N,4] y)"
        " { s = Shape<end=1>(x) t = Concat<axis=0>(s, three) e = Expand(u, t)"
        "   a = MatMul(e, A) b = MatMul(x, B) y = Add(a, b) }",
        A=normal(3, 4),
        B=normal(5, 4),
        three=ints(3),
    )
    found = measure(output, UX)
    wasted = 2 * found.n * 3 * 4
    assert found.redundant.flops == wasted
    assert found.share == pytest.approx(wasted / (wasted + 2 * found.n * 5 * 4 + found.n * 4))
    assert found.worst(1)[0].text == "the whole result is equal for all candidates"


@pytest.mark.parametrize("layout", ["rows", "sequence first"])
def test_folded_candidate_axis(layout):
    """[q | k] with N and T in one axis: half of the columns are the user's."""
    turn = "n = Identity(c)" if layout == "rows" else "n = Transpose<perm=[1,0,2]>(c)"
    source = model(
        "(float[N,6,3] u, float[N,3] x) => (float[M,4] y) {"
        " q = Unsqueeze(x, one) t = Expand(q, shape) c = Concat<axis=2>(t, u)"
        f" {turn} f = Reshape(n, flat) y = MatMul(f, W) }}",
        W=normal(6, 4),
        one=ints(1),
        shape=ints(1, 6, 1),
        flat=ints(-1, 6),
    )
    assert measure(source, UX).share == pytest.approx(1 / 2, abs=1e-6)


def test_rows_of_a_product_from_the_left():
    """A [u | x] over tokens: rows of the left factor meet user and item tokens."""
    source = model(
        "(float[N,3,4] u, float[N,5,4] x) => (float[N,2,4] y)"
        " { c = Concat<axis=1>(u, x) y = MatMul(A, c) }",
        A=normal(2, 8),
    )
    assert measure(source, UX).share == pytest.approx(3 / 8, abs=1e-6)


def test_pairwise_products_waste_the_user_block():
    source = model(
        "(float[N,3,4] u, float[N,5,4] x) => (float[N,8,8] y)"
        " { c = Concat<axis=1>(u, x) t = Transpose<perm=[0,2,1]>(c) y = MatMul(c, t) }"
    )
    assert measure(source, UX).share == pytest.approx(9 / 64, abs=1e-6)


@pytest.mark.parametrize(
    ("op", "weight"),
    [
        ("y = Gemm<transB=1>(c, W)", (4, 8)),
        ('y = Einsum<equation="nk,jk->nj">(c, W)', (4, 8)),
        ('y = Einsum<equation="...k,kj">(c, W)', (8, 4)),
    ],
)
def test_other_products(op, weight):
    source = model(
        f"(float[N,3] u, float[N,5] x) => (float[N,4] y) {{ c = Concat<axis=1>(u, x) {op} }}",
        W=normal(*weight),
    )
    assert measure(source, UX).share == pytest.approx(3 / 8, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "user", "item", "weight", "axis"),
    [
        ("transB=1", "N,3", "N,5", (4, 8), 1),
        ("transBatchA=1", "N,2,3", "N,2,5", (2, 8, 4), 2),
        ("transBatchA=1, transBatchB=1, transB=1", "N,2,3", "N,2,5", (4, 2, 8), 2),
        ("transA=1", "3,N", "5,N", (8, 4), 0),
    ],
)
def test_products_that_onnxruntime_fuses_with_transpositions(flags, user, item, weight, axis):
    source = model(
        f"(float[{user}] u, float[{item}] x) => (float y)"
        f" {{ c = Concat<axis={axis}>(u, x) y = com.microsoft.FusedMatMul<{flags}>(c, W) }}",
        W=normal(*weight),
    )
    source.graph.output[0].type.tensor_type.ClearField("shape")
    sides = Sides({"u": "user", "x": "item"}, {}, int(user.endswith("N")))
    assert measure(source, sides).share == pytest.approx(3 / 8, abs=1e-6)


def test_a_scalar_of_the_users_is_fed_as_it_is():
    source = model(
        "(float[N,3] u, bool new, float[N,5] x) => (float[N,4] y)"
        " { c = If(new) <then_branch = t () => (a) { a = Concat<axis=1>(u, x) },"
        "   else_branch = e () => (b) { b = Concat<axis=1>(x, u) }> y = MatMul(c, W) }",
        W=normal(8, 4),
    )
    assert measure(source, Sides({"u": "user", "new": "user", "x": "item"})).total.flops > 0


def test_convolution_over_fields():
    source = model(
        "(float[N,3,6] u, float[N,5,6] x) => (float[N,4,4] y)"
        " { c = Concat<axis=1>(u, x) y = Conv(c, W) }",
        W=normal(4, 8, 3),
    )
    assert measure(source, UX).share == pytest.approx(3 / 8, abs=1e-6)


def test_sum_over_a_concat():
    source = model(
        "(float[N,3] u, float[N,5] x) => (float[N,1] y)"
        " { c = Concat<axis=1>(u, x) y = ReduceSum(c, one) }",
        one=ints(1),
    )
    assert measure(source, UX).share == pytest.approx(3 / 8, abs=1e-6)


def test_packed_columns():
    source = model(
        "(float[N,8] X) => (float[N,4] y) { y = MatMul(X, W) }",
        W=normal(8, 4),
    )
    sides = Sides({}, {"X": {"user": (0, 4, 7), "item": (1, 2, 3), "cross": (5, 6)}})
    assert measure(source, sides).share == pytest.approx(3 / 8, abs=1e-6)


def test_requests_of_several_candidates_each():
    """[R, N, ...]: nothing is tagged, the user part is expanded in the graph."""
    source = model(
        "(float[R,3] user, float[R,N,5] items) => (float[R,N,4] y) {"
        " s = Shape<start=0, end=2>(items) t = Concat<axis=0>(s, three)"
        " w = Unsqueeze(user, one) e = Expand(w, t)"
        " c = Concat<axis=2>(e, items) y = MatMul(c, W) }",
        W=normal(8, 4),
        one=ints(1),
        three=ints(3),
    )
    assert measure(source, Sides()).share == pytest.approx(3 / 8, abs=1e-6)


def test_dead_units_are_not_redundant():
    source = model(
        "(float[N,3] u, float[N,5] x) => (float[N,4] y)"
        " { h = Gemm(x, A, b) r = Relu(h) y = MatMul(r, B) }",
        A=normal(5, 6),
        b=np.full(6, -1e3, np.float32),
        B=normal(6, 4),
    )
    found = measure(source, UX)
    assert found.share == 0
    assert found.doubtful.flops == 0


def test_dead_units_of_a_fused_activation_are_not_redundant():
    source = model(
        "(float[N,3] u, float[N,5] x) => (float[N,4] y)"
        ' { r = com.microsoft.FusedGemm<activation="Relu">(x, A, b) y = MatMul(r, B) }',
        A=normal(5, 6),
        b=np.full(6, -1e3, np.float32),
        B=normal(6, 4),
    )
    assert measure(source, UX).share == 0


def test_saturated_values_are_counted_apart():
    source = model(
        "(float[N,3] u, float[N,5] x) => (float[N,4] y) { h = Clip(x, lo, hi) y = MatMul(h, B) }",
        B=normal(5, 4),
        lo=np.float32(90),
        hi=np.float32(99),
    )

    def draw(seed: int, n: int) -> Request:
        """Values that the Clip takes for one: requests made up from the graph would be near its bounds."""
        rng = np.random.default_rng(seed)
        u, x = rng.standard_normal((n, 3), np.float32), rng.standard_normal((n, 5), np.float32)
        return Request({"u": u[:1]}, {"x": x}, n)

    found = measure(source, UX, draw=draw)
    assert found.share == 0
    assert found.doubtful.flops == found.total.flops


def test_constants_spread_over_candidates_are_redundant():
    source = model(
        "(float[N,3] u, float[N,5] x) => (float[N,4] y) {"
        " s = Shape<end=1>(x) t = Concat<axis=0>(s, five) e = Expand(token, t) y = MatMul(e, B) }",
        B=normal(5, 4),
        token=normal(1, 5),
        five=ints(5),
    )
    assert measure(source, UX).share == 1


def test_an_operator_across_candidates_is_not_redundant():
    source = model(
        "(float[N,3] u, float[N,1] x) => (float[N,1] y) { y = Softmax<axis=0>(x) }",
    )
    assert measure(source, UX).share == 0


def test_untrained_weights_do_not_hide_the_item():
    source = model(
        "(float[N,3] u, float[N,5] x) => (float[N,4] y)"
        " { a = MatMul(u, A) b = MatMul(x, B) s = Add(a, b) y = Mul(s, s) }",
        A=normal(3, 4),
        B=normal(5, 4) * np.float32(1e-9),
    )
    found = measure(source, UX)
    assert node(found, "Mul").redundant.flops == 0


def test_ids_are_drawn_over_the_table():
    source = model(
        "(int64[N] u, int64[N] x) => (float[N,2] y)"
        " { a = Gather(T, u) b = Gather(T, x) y = Mul(a, b) }",
        T=normal(500, 2),
    )
    found = measure(source, UX)
    gathers = [x for x in found.nodes if x.op == "Gather"]
    assert [x.results for x in gathers] == [1.0, 0.0]
    assert gathers[0].redundant.bytes == gathers[0].cost.bytes > 0


def test_history_of_free_length():
    source = model(
        "(float[N,T,3] u, float[N,3] x) => (float[N,T,4] y) { y = MatMul(u, W) }",
        W=normal(3, 4),
    )
    found = measure(source, UX, history=9)
    assert found.total.flops == 2 * found.n * 9 * 3 * 4
    assert found.share == 1


def test_number_of_candidates_is_no_dimension_of_the_model():
    source = model("(float[N,122] x) => (float[N,59] y) { y = MatMul(x, W) }", W=normal(122, 59))
    assert pick_n(source, 64) == 53


def test_report_is_json_ready():
    source = model(
        "(float[N,3] u, float[N,5] x) => (float[N,4] y)"
        " { c = Concat<axis=1>(u, x) y = MatMul(c, W) }",
        W=normal(8, 4),
    )
    told = measure(source, UX).to_dict()
    assert told["share"] == pytest.approx(3 / 8, abs=1e-6)
    assert [x["op"] for x in told["nodes"]] == ["MatMul", "Concat"]


def test_a_model_for_one_candidate_is_refused():
    source = model("(float[1,3] u, float[1,3] x) => (float[1,3] y) { y = Add(u, x) }")
    with pytest.raises(ModelError, match="one candidate"):
        measure(source, UX)


def test_a_model_that_cannot_run_is_refused():
    source = model(
        "(float[N,3] u, float[N,5] x) => (float[N,4] y) { c = Reshape(x, s) y = MatMul(c, W) }",
        W=normal(5, 4),
        s=ints(7, 5),
    )
    with pytest.raises(ModelError, match="cannot run"):
        measure(source, UX)


def test_positions_that_no_output_reads_are_wasted():
    """Four of five tokens, of what is computed for each token; the sum over the five is read."""
    source = model(
        "(float[N,5,4] x) => (float[N,3] y, float[N,4] z)"
        " { a = MatMul(x, A) r = Relu(a) g = Gather<axis=1>(r, zero) y = MatMul(g, B)"
        "   z = ReduceSum<keepdims=0>(x, one) }",
        A=normal(4, 6),
        B=normal(6, 3),
        zero=np.array(0, np.int64),
        one=ints(1),
    )
    found = measure(source, Sides({"x": "item"}))
    n = found.n
    assert found.redundant.flops == pytest.approx(n * (4 / 5) * (5 * 2 * 4 * 6 + 5 * 6))
    assert "80% of the result is read by no output" in found.worst(1)[0].text


def test_positions_that_are_all_read_are_not():
    source = model(
        "(float[N,5,4] x) => (float[N,6] y, float[N,6] z)"
        " { a = MatMul(x, A) g = Gather<axis=1>(a, zero) y = Relu(g) z = ReduceSum<keepdims=0>(a, one) }",
        A=normal(4, 6),
        zero=np.array(0, np.int64),
        one=ints(1),
    )
    assert measure(source, Sides({"x": "item"})).redundant.flops == 0
