"""Operators as onnxruntime's optimizer joins them: lowered where something varies differently, else as they are."""

from __future__ import annotations

import numpy as np
import pytest

from mari_onnx.engine import rewrite
from tests.engine.checks import actions
from tests.engine.runtime import check, lifted, model, normal, ops, sides, unchanged

ACTIVATIONS = {
    "Relu": "",
    "LeakyRelu": "activation_alpha=0.3",
    "Elu": "activation_alpha=0.7",
    "HardSigmoid": "activation_alpha=0.3, activation_beta=0.4",
    "Selu": "activation_alpha=1.5, activation_gamma=1.1",
    "Sigmoid": "",
    "Softplus": "",
    "Softsign": "",
    "Tanh": "",
    "ThresholdedRelu": "activation_alpha=0.3",
}


def attributes(*given: str) -> str:
    return ", ".join(g for g in given if g)


# ---- products --------------------


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(
    ("user", "item", "axis", "flags", "weight"),
    [
        ("N,3", "N,5", 1, "alpha=0.5", (8, 4)),
        ("N,3", "N,5", 1, "transB=1", (4, 8)),
        ("N,2,3", "N,2,5", 2, "transBatchA=1", (2, 8, 4)),
        ("N,2,3", "N,2,5", 2, "transBatchA=1, transBatchB=1, transB=1, alpha=3.0", (4, 2, 8)),
        ("N,3,2", "N,5,2", 1, "transA=1", (8, 4)),
        ("N,2,3", "N,2,5", 2, "transBatchB=1", (8, 1, 4)),
    ],
)
def test_a_fused_product_over_a_concat(
    opset: int, user: str, item: str, axis: int, flags: str, weight: tuple[int, ...]
) -> None:
    lifted(
        model(
            f"(float[{user}] u, float[{item}] x) => (float y) {{ c = Concat<axis={axis}>(u, x)"
            f" m = com.microsoft.FusedMatMul<{flags}>(c, W) y = Relu(m) }}",
            opset,
            W=normal(*weight),
        )
    )


def test_scores_of_a_fused_product_are_a_grid() -> None:
    result = lifted(
        model(
            "(float[N,6,4] u, float[N,2,4] x) => (float y) { c = Concat<axis=1>(u, x) q = MatMul(c, Q) k = MatMul(c, K)"
            " s = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(q, k) y = Relu(s) }",
            Q=normal(4, 4),
            K=normal(4, 4),
        )
    )
    assert actions(result)["FusedMatMul"] == ["split"]


def test_the_scale_is_put_on_what_varies_least() -> None:
    source = model(
        "(float[N,6,4] u, float[N,2,4] x) => (float y) { k = Relu(u)"
        " s = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(x, k) y = Relu(s) }"
    )
    made = check(source).model
    scaled = next(node for node in made.graph.node if node.op_type == "Mul")
    before = {o: node for node in made.graph.node for o in node.output}
    assert before[scaled.input[0]].op_type in ("Relu", "Transpose")  # the user's keys, once per request


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_fused_gemm_over_a_concat(activation: str) -> None:
    given = attributes(f'activation="{activation}"', ACTIVATIONS[activation], "alpha=0.5, beta=2.0, transB=1")
    source = model(
        "(float[N,6] u, float[N,2] x) => (float y) { c = Concat<axis=1>(u, x)"
        f" h = com.microsoft.FusedGemm<{given}>(c, W, B) y = MatMul(h, V) }}",
        W=normal(5, 8),
        B=normal(5),
        V=normal(5, 1),
    )
    assert "FusedGemm" not in ops(lifted(source).model)


@pytest.mark.parametrize("given", ["activation_params=[0.2]", "activation_params=[-0.2, 0.3]", ""])
def test_a_fused_conv_over_a_concat(given: str) -> None:
    op = {"activation_params=[0.2]": "LeakyRelu", "": "Relu"}.get(given, "Clip")
    given = attributes(f'activation="{op}"', given)
    source = model(
        "(float[N,6,3] u, float[N,2,3] x) => (float y) { c = Concat<axis=1>(u, x)"
        f" h = com.microsoft.FusedConv<{given}>(c, W, B) y = MatMul(h, V) }}",
        W=normal(5, 8, 1),
        B=normal(5),
        V=normal(3, 1),
    )
    result = check(source)
    assert "FusedConv" not in ops(result.model)
    assert actions(result)["FusedConv"] == ["split"]


def test_a_fused_conv_that_adds_a_tensor_sees_all_rows() -> None:
    source = model(
        "(float[N,4,5] u, float[N,4,5] x) => (float y) { r = Relu(u)"
        ' y = com.microsoft.FusedConv<activation="Relu">(r, W, B, x) }',
        W=normal(4, 4, 1),
        B=normal(4),
    )
    result = check(source)
    assert actions(result)["FusedConv"] == ["barrier"]
    assert "FusedConv" in ops(result.model)


# ---- normalizations --------------------

NORM = (
    "(float[N,6,4] u, float[N,2,4] x) => (float y{more}) {{ c = Concat<axis=1>(u, x) h = MatMul(c, W)"
    " {norm} m = MatMul(n, V) y = Relu(m) }}"
)
WEIGHTS = {"W": normal(4, 4), "G": normal(4), "B": normal(4, scale=0.5), "D": normal(4, scale=2.0), "V": normal(4, 3)}


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("inputs", ["h, c, G", "h, c, G, B", "h, c, G, B, D", "h, c, G, , D"])
@pytest.mark.parametrize("total", [False, True])
def test_the_norm_of_a_sum(opset: int, inputs: str, total: bool) -> None:
    outs = "n, , , t" if total else "n"
    norm = f"{outs} = com.microsoft.SkipLayerNormalization<epsilon=0.01>({inputs})"
    lifted(model(NORM.format(norm=norm, more=", float t" if total else ""), opset, **WEIGHTS))


@pytest.mark.parametrize("inputs", ["h, c, G", "h, c, G, D"])
def test_the_root_mean_square_norm_of_a_sum(inputs: str) -> None:
    norm = f"n, , , t = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.01>({inputs})"
    lifted(model(NORM.format(norm=norm, more=", float t"), **WEIGHTS))


@pytest.mark.parametrize("opset", [13, 17])
def test_a_simplified_norm_of_tokens(opset: int) -> None:
    norm = "n = SimplifiedLayerNormalization<axis=-1, epsilon=0.01>(h, G)"
    lifted(model(NORM.format(norm=norm, more=""), opset, **WEIGHTS))


def test_a_simplified_norm_over_a_concat_goes_into_the_product() -> None:
    source = model(
        "(float[N,600] u, float[N,8] x) => (float y) { c = Concat<axis=1>(u, x)"
        " n = SimplifiedLayerNormalization<axis=-1, epsilon=0.01>(c, G) y = MatMul(n, V) }",
        G=normal(608),
        V=normal(608, 128),
    )
    assert "SimplifiedLayerNormalization" not in ops(check(source).model)


@pytest.mark.parametrize("opset", [13, 17])
def test_a_skip_that_is_one_for_all(opset: int) -> None:
    source = model(
        "(float[N,6,4] u, float[N,2,4] x) => (float y) { c = Concat<axis=1>(u, x)"
        " n = com.microsoft.SkipLayerNormalization<epsilon=0.01>(c, P, G, B) y = MatMul(n, V) }",
        opset,
        P=normal(1, 8, 4),
        **{k: WEIGHTS[k] for k in "GBV"},
    )
    check(source)


def test_the_deviation_as_an_output_is_refused() -> None:
    # no kernel of onnxruntime for the CPU writes it
    norm = "n, m = com.microsoft.SkipLayerNormalization<epsilon=0.01>(h, c, G)"
    source = model(NORM.format(norm=norm, more=", float m"), **WEIGHTS)
    (report,) = [r for r in rewrite(source, sides(source)).nodes if r.op == "SkipLayerNormalization"]
    assert report.reason == "it outputs the mean or the deviation"


# ---- left as they are --------------------


@pytest.mark.parametrize(
    "body",
    [
        "h = com.microsoft.FusedMatMul<alpha=0.5>(x, W) y = Relu(h)",
        'h = com.microsoft.FusedGemm<activation="Relu">(x, W, B) y = MatMul(h, W)',
        "h = com.microsoft.SkipLayerNormalization<epsilon=0.01>(x, x, B) y = MatMul(h, W)",
        "h = SimplifiedLayerNormalization<epsilon=0.01>(x, B) y = MatMul(h, W)",
        "h = com.microsoft.QuickGelu(x) y = MatMul(h, W)",
    ],
)
def test_what_has_nothing_of_the_users_is_given_back(body: str) -> None:
    text = f"(float[N,3] u, float[N,4] x) => (float y, float v) {{ {body} v = Identity(x) }}"
    source = model(text, W=normal(4, 4), B=normal(4))
    result = unchanged(source)
    assert set(ops(result.model)) == set(ops(source))


def test_twice_is_once() -> None:
    source = model(
        "(float[N,60] u, float[N,4] x) => (float y) { c = Concat<axis=1>(u, x)"
        ' h = com.microsoft.FusedGemm<activation="Relu">(c, W, B)'
        ' g = com.microsoft.FusedGemm<activation="Relu">(h, V, C)'
        " s = com.microsoft.SkipLayerNormalization<epsilon=0.01>(g, h, C)"
        " y = com.microsoft.FusedMatMul<alpha=0.5>(s, E) }",
        W=normal(64, 32), B=normal(32), V=normal(32, 32), C=normal(32), E=normal(32, 1),
    )  # fmt: skip
    once = rewrite(source, sides(source))
    assert once.changed
    assert ops(once.model).count("FusedGemm") == 1
    assert "SkipLayerNormalization" in ops(once.model)
    again = rewrite(once.model, sides(source))
    assert not again.changed


def test_the_rank_is_known_behind_an_operator_without_a_rule() -> None:
    source = model(
        "(float[N,6,4] u, float[N,2,4] x) => (float y, float z) { k = Relu(u)"
        " p = com.microsoft.BiasSplitGelu(x, B) z = Identity(p) y = Relu(k) }",
        B=normal(4),
    )
    shapes = rewrite(source, sides(source)).shapes
    assert [int(str(s)) if str(s).isdigit() else str(s) for s in shapes["p"]] == ["N", 2, 2]
    assert np.all([len(shapes[name]) == 3 for name in ("k", "p", "y")])


def test_the_last_layer_is_computed_for_the_token_that_is_read() -> None:
    """Nothing of the other two is, behind operators whose shapes onnx does not infer."""
    source = model(
        "(float[N,2,4] u, float[N,1,4] x) => (float y) { c = Concat<axis=1>(u, x) t = Tanh(c)"
        " s, , , r = com.microsoft.SkipLayerNormalization<epsilon=0.01>(t, c, G, B) h = MatMul(s, W)"
        " a = com.microsoft.BiasGelu(h, b) o = MatMul(a, V)"
        " n = com.microsoft.SkipLayerNormalization<epsilon=0.01>(o, r, G, B) f = Gather<axis=1>(n, last) y = Tanh(f) }",
        G=normal(4), B=normal(4, scale=0.1), W=normal(4, 6), b=normal(6), V=normal(6, 4), last=np.array(-1),
    )  # fmt: skip
    result = check(source)
    shapes = {tuple(s for s in result.out_shapes[n.output[0]] if s != 1)
              for n in result.model.graph.node if n.op_type in ("MatMul", "Gemm")}  # fmt: skip
    assert {len(s) for s in shapes} == {2}, shapes
