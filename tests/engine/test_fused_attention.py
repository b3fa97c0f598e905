"""com.microsoft's Attention and MultiHeadAttention, against onnxruntime's kernels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mari_onnx.engine import rewrite
from tests.engine.checks import actions
from tests.engine.runtime import check, model, normal, ops, sides, unchanged

TOKENS = "(float[N,6,8] u, float[N,2,8] x{more}) => (float y) {{ c = Concat<axis=1>(u, x) {body} y = Relu(a) }}"
WEIGHTS = {"W": normal(8, 24, scale=0.4), "B": normal(24, scale=0.4)}


def attention(
    inputs: str,
    given: str = "num_heads=2",
    more: str = "",
    before: str = "",
    opset: int = 17,
    **weights: np.ndarray,
) -> onnx.ModelProto:
    body = f"{before} a = com.microsoft.Attention<{given}>({inputs})"
    return model(TOKENS.format(body=body, more=more), opset, **{**WEIGHTS, **weights})


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("given", ["num_heads=2", "num_heads=4, scale=0.3"])
def test_attention_over_tokens_of_both(opset: int, given: str) -> None:
    result = check(attention("c, W, B", given, opset=opset))
    assert actions(result)["Attention"] == ["split"]
    assert "Attention" not in ops(result.model)


def test_values_of_another_width() -> None:
    sizes = "num_heads=2, qkv_hidden_sizes=[8, 8, 4]"
    source = attention("c, W, B", sizes, W=normal(8, 20, scale=0.4), B=normal(20))
    assert "Attention" not in ops(check(source).model)


@pytest.mark.parametrize("filter_", ["", ", mask_filter_value=-50.0"])
def test_a_mask_of_tokens(filter_: str) -> None:
    more = ", int32[N,6] u_mask, int32[N,2] x_mask"
    before = "mask = Concat<axis=1>(u_mask, x_mask)"
    source = attention("c, W, B, mask", "num_heads=2" + filter_, more, before)
    assert "Attention" not in ops(check(source).model)


def test_a_mask_of_pairs_of_tokens_and_a_bias_of_scores() -> None:
    more = ", int32[N,8,8] x_mask"
    assert "Attention" not in ops(check(attention("c, W, B, x_mask", more=more)).model)
    for shape in ((1, 1, 8, 8), (1, 2, 8, 8)):
        assert "Attention" not in ops(check(attention("c, W, B, , , P", P=normal(*shape))).model)


def test_a_causal_mask_leaves_user_tokens_shared() -> None:
    result = check(attention("c, W, B", "num_heads=2, unidirectional=1"))
    assert "Attention" not in ops(result.model)


def test_attention_of_the_user_alone_runs_once_as_it_is() -> None:
    source = model(
        "(float[N,6,8] u, int32[N,6] u_mask, float[N,2,8] x) => (float y) {"
        " a = com.microsoft.Attention<num_heads=2>(u, W, B, u_mask) y = Concat<axis=1>(a, x) }",
        **WEIGHTS,
    )
    result = check(source)
    assert actions(result)["Attention"] == ["lifted"]
    assert ops(result.model).count("Attention") == 1


@pytest.mark.parametrize("bias", ["", "B"])
def test_the_item_attends_to_the_users_history(bias: str) -> None:
    source = model(
        "(float[N,6,8] u, float[N,1,8] x) => (float y) { k = MatMul(u, K) v = MatMul(u, V)"
        f" a = com.microsoft.MultiHeadAttention<num_heads=2>(x, k, v, {bias}) y = Relu(a) }}",
        K=normal(8, 8), V=normal(8, 8), B=WEIGHTS["B"],
    )  # fmt: skip
    result = check(source)
    assert "MultiHeadAttention" not in ops(result.model)
    assert {r.action for r in result.nodes if r.op == "MatMul"} == {"lifted"}


def test_a_mask_of_keys() -> None:
    source = model(
        "(float[N,6,8] u, int32[N,6] u_mask, float[N,2,8] x) => (float y) {"
        " a = com.microsoft.MultiHeadAttention<num_heads=2>(x, u, u, , u_mask) y = Relu(a) }"
    )
    assert "MultiHeadAttention" not in ops(check(source).model)


@pytest.mark.parametrize(
    ("inputs", "more", "reason"),
    [
        ("c, W, B, x_mask", ", int32[N,1] x_mask",
         "nothing shows that the mask is as long as the keys, or there is one key only"),
        ("c, W, B, M", "", "the mask does not have one row per element of the batch"),
        ("c, W, B, , x_past", ", float[2,N,2,3,4] x_past", "it uses a cache, or outputs the scores"),
    ],
)
def test_what_is_refused(inputs: str, more: str, reason: str) -> None:
    source = attention(inputs, more=more, M=np.array([3, 4], np.int32))
    (report,) = [r for r in rewrite(source, sides(source)).nodes if r.op == "Attention"]
    assert report.reason == reason
    assert report.action in ("kept", "barrier")


def test_lengths_as_a_mask_are_right() -> None:
    lengths = "z = Cast<to=6>(x_of) m = ReduceSum<keepdims=0>(z, A) l = Add(m, O)"
    given = {"A": np.array([1]), "O": np.int32(3)}
    source = attention("c, W, B, l", more=", int64[N,2] x_of", before=lengths, **given)
    assert "Attention" not in ops(check(source).model)


def test_attention_of_items_is_given_back() -> None:
    unchanged(
        model(
            "(float[N,3] u, float[N,2,8] x) => (float y, float v) {"
            " a = com.microsoft.Attention<num_heads=2>(x, W, B) y = Relu(a) v = Identity(x) }",
            **WEIGHTS,
        )
    )


@pytest.mark.parametrize("positions", ["N,8", "1"])
def test_rotary_embeddings_of_tokens(positions: str) -> None:
    user, item = ("int64[N,6] u_at", "int64[N,2] x_at") if "N" in positions else ("int64[1] x_at", "float[N,1] x_z")
    at = "p = Concat<axis=1>(u_at, x_at)" if "N" in positions else "p = Identity(x_at)"
    source = model(
        f"(float[N,6,8] u, {user}, float[N,2,8] x, {item}) => (float y) {{ r = Relu(u) c = Concat<axis=1>(r, x) {at}"
        " a = com.microsoft.RotaryEmbedding<num_heads=2>(c, p, C, S) y = Relu(a) }",
        C=normal(16, 2), S=normal(16, 2),
    )  # fmt: skip
    result = check(source)
    assert actions(result)["RotaryEmbedding"] == (["split"] if "N" in positions else ["kept"])
