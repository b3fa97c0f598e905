"""Operators of ai.onnx.ml, against onnxruntime's kernels."""

from __future__ import annotations

import numpy as np
import pytest

from mari_onnx.engine import rewrite
from tests.engine.checks import actions
from tests.engine.runtime import check, lifted, model, normal, ops, sides, unchanged

TREE = (
    "nodes_falsenodeids=[2,0,0], nodes_truenodeids=[1,0,0], nodes_featureids=[1,0,0], nodes_hitrates=[1.0,1.0,1.0],"
    ' nodes_modes=["BRANCH_LEQ","LEAF","LEAF"], nodes_nodeids=[0,1,2], nodes_treeids=[0,0,0],'
    " nodes_values=[0.1,0.0,0.0], nodes_missing_value_tracks_true=[0,0,0]"
)
REGRESSOR = f"TreeEnsembleRegressor<{TREE}, n_targets=1, target_ids=[0,0], target_nodeids=[1,2], target_treeids=[0,0], target_weights=[1.0,2.0]>"  # noqa: E501
CLASSIFIER = f"TreeEnsembleClassifier<{TREE}, class_ids=[0,1], class_nodeids=[1,2], class_treeids=[0,0], class_weights=[1.0,2.0], {{labels}}>"  # noqa: E501
VECTORS = "support_vectors=[0.1,0.2,0.3,0.4,0.5,0.6], rho=[0.1], kernel_type=\"RBF\", kernel_params=[0.5,0.0,3.0]"


def floats(*values: float) -> str:
    return "[" + ",".join(f"{v:.4f}" for v in values) + "]"


def vector(size: int, seed: int = 0) -> str:
    return floats(*np.random.default_rng(seed).uniform(0.5, 2.0, size))


@pytest.mark.parametrize(
    "op",
    [
        f"Scaler<offset={vector(8)}, scale={vector(8, 1)}>",
        "Scaler<offset=[0.5], scale=[2.0]>",
        f"Scaler<offset={floats(*[0.0] * 8)}, scale={floats(*[1.5] * 8)}>",
        f"Imputer<imputed_value_floats={vector(8)}, replaced_value_float=0.0>",
        "Imputer<imputed_value_floats=[0.3], replaced_value_float=0.0>",
        "Binarizer<threshold=0.3>",
    ],
)
@pytest.mark.parametrize("opset", [11, 17])
def test_columns_by_parts(op: str, opset: int) -> None:
    lifted(
        model(
            "(float[N,6] u, float[N,2] x) => (float y) { c = Concat<axis=1>(u, x)"
            f" h = ai.onnx.ml.{op}(c) y = MatMul(h, W) }}",
            opset,
            W=normal(8, 4),
        )
    )


@pytest.mark.parametrize("dtype", ["int64", "int32", "double"])
def test_a_scaler_of_other_types(dtype: str) -> None:
    result = check(
        model(
            f"({dtype}[N,6] u, {dtype}[N,2] x) => (float y) {{ c = Concat<axis=1>(u, x)"
            f" h = ai.onnx.ml.Scaler<offset={vector(8)}, scale={vector(8, 1)}>(c) y = MatMul(h, W) }}",
            W=normal(8, 4),
        )
    )
    assert actions(result)["Scaler"] == ["split"]


def test_missing_values_are_nan() -> None:
    source = model(
        "(float[N,6] u, float[N,2] x) => (float y) { s = Sqrt(u) c = Concat<axis=1>(s, x)"
        f" h = ai.onnx.ml.Imputer<imputed_value_floats={vector(8)}, replaced_value_float=0.0>(c) y = Relu(h) }}"
    )
    (node,) = [n for n in source.graph.node if n.op_type == "Imputer"]
    next(a for a in node.attribute if a.name == "replaced_value_float").f = float("nan")
    assert "Imputer" not in ops(check(source).model)


@pytest.mark.parametrize("zeros", [1])
def test_categories(zeros: int) -> None:
    source = model(
        "(int64[N,4] u, int64[N,2] x) => (float y) {"
        f" a = ai.onnx.ml.OneHotEncoder<cats_int64s=[0,1,2], zeros={zeros}>(u)"
        f" b = ai.onnx.ml.OneHotEncoder<cats_int64s=[0,1,2], zeros={zeros}>(x)"
        " c = Concat<axis=1>(a, b) f = Flatten(c) y = MatMul(f, W) }",
        W=normal(18, 4),
    )
    result = check(source)
    assert actions(result)["OneHotEncoder"] == ["lifted", "kept"]
    assert actions(result)["MatMul"] == ["split"]


def test_categories_of_both() -> None:
    result = check(
        model(
            "(int64[N,4] u, int64[N,2] x) => (float y) { c = Concat<axis=1>(u, x)"
            " a = ai.onnx.ml.OneHotEncoder<cats_int64s=[0,1,2]>(c) f = Flatten(a) y = MatMul(f, W) }",
            W=normal(18, 4),
        )
    )
    assert actions(result)["OneHotEncoder"] == ["split"]


@pytest.mark.parametrize(
    "given",
    [
        "keys_int64s=[0,1], values_floats=[0.5,0.25]",
        "keys_int64s=[0,1], values_int64s=[7,5], default_int64=3",
        "keys_int64s=[0], values_int64s=[7], default_int64=3",
    ],
)
def test_labels(given: str) -> None:
    source = model(
        "(int64[N,4] u, int64[N,2] x) => (y) { c = Concat<axis=1>(u, x)"
        f" l = ai.onnx.ml.LabelEncoder<{given}>(c) y = Add(l, l) }}"
    )
    source.graph.output[0].type.tensor_type.elem_type = 1 if "floats" in given else 7
    assert actions(check(source))["LabelEncoder"] == ["split"]


@pytest.mark.parametrize("at", [[1, 7, 3], [[0, 6]]])
def test_features_by_positions(at: list) -> None:
    source = model(
        "(float[N,6] u, float[N,2] x) => (float y) { c = Concat<axis=1>(u, x)"
        " h = ai.onnx.ml.ArrayFeatureExtractor(c, I) y = MatMul(h, W) }",
        I=np.array(at),
        W=normal(np.size(at), 4),
    )
    assert "ArrayFeatureExtractor" not in ops(lifted(source).model)


def test_a_vector_of_features() -> None:
    source = model(
        "(float[N,6] u, int64[N,2] x) => (float y) {"
        " h = ai.onnx.ml.FeatureVectorizer<inputdimensions=[2,6]>(x, u) y = MatMul(h, W) }",
        W=normal(8, 4),
    )
    # its inputs are of one type
    source.graph.input[1].type.tensor_type.elem_type = 1
    assert "FeatureVectorizer" not in ops(lifted(source).model)


@pytest.mark.parametrize(
    "op",
    [
        'Normalizer<norm="L2">',
        'Normalizer<norm="MAX">',
        REGRESSOR,
        f"SVMRegressor<coefficients=[1.0,2.0], n_supports=2, {VECTORS}>",
        "LinearRegressor<coefficients=[1.0,2.0,3.0], intercepts=[0.5]>",
    ],
)
def test_rows_of_the_users_run_once(op: str) -> None:
    source = model(
        "(float[N,3] u, float[N,3] x) => (float y, float z) {"
        f" r = Relu(u) a = ai.onnx.ml.{op}(r) b = ai.onnx.ml.{op}(x) y = Sub(a, b) z = Exp(a) }}"
    )
    result = check(source)
    assert actions(result)[op.partition("<")[0]] == ["lifted", "kept"]
    assert actions(result)["Exp"] == ["lifted"]


@pytest.mark.parametrize("labels", ["classlabels_int64s=[4,9]", 'classlabels_strings=["a","b"]'])
def test_labels_and_scores_of_the_users_row(labels: str) -> None:
    op = f"ai.onnx.ml.{CLASSIFIER.format(labels=labels)}"
    source = model(
        "(float[N,3] u, float[N,3] x) => (l, float y) { r = Relu(u)"
        f" l, s = {op}(r) p, q = {op}(x) y = Sub(s, q) }}"
    )
    source.graph.output[0].type.tensor_type.elem_type = 7 if "int64" in labels else 8
    assert actions(check(source))["TreeEnsembleClassifier"] == ["lifted", "kept"]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("probabilities", [False, True])
def test_support_vectors_of_several_classes(classes: int, probabilities: bool) -> None:
    pairs, rng = classes * (classes - 1) // 2, np.random.default_rng(0)
    given = (
        f"coefficients={floats(*rng.normal(size=(classes - 1) * 2 * classes))}, support_vectors={vector(6 * classes)},"
        f" vectors_per_class={[2] * classes}, rho={vector(pairs)}, kernel_type=\"RBF\", kernel_params=[0.5,0.0,3.0],"
        f" classlabels_ints={list(range(classes))}"
    )
    if probabilities:
        given += f", prob_a={vector(pairs)}, prob_b={vector(pairs)}"
    source = model(
        "(float[N,3] u, float[N,3] x) => (int64 l, float y) { r = Relu(u)"
        f" l, s = ai.onnx.ml.SVMClassifier<{given}>(r) p, q = ai.onnx.ml.SVMClassifier<{given}>(x) y = Sub(s, q) }}"
    )
    assert actions(check(source))["SVMClassifier"] == ["lifted", "kept"]


# ---- linear models --------------------

BOTH = "(float[N,6] u, float[N,2] x) => ({out}) {{ c = Concat<axis=1>(u, x) {body} }}"


@pytest.mark.parametrize("given", ["", ", intercepts=[0.5,-0.5]", ', post_transform="SOFTMAX"'])
def test_a_linear_regressor_over_columns_of_both(given: str) -> None:
    body = f"y = ai.onnx.ml.LinearRegressor<coefficients={vector(16)}, targets=2{given}>(c)"
    assert "LinearRegressor" not in ops(check(model(BOTH.format(out="float y", body=body))).model)


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"])
@pytest.mark.parametrize("classes", [[0, 1], [5, 3], [0, 1, 2]])
def test_a_linear_classifier_over_columns_of_both(transform: str, classes: list[int]) -> None:
    count = len(classes)
    coefficients = floats(*np.random.default_rng(count).normal(size=8 * count))
    given = (
        f"coefficients={coefficients}, intercepts={vector(count)}, classlabels_ints={classes},"
        f' multi_class=1, post_transform="{transform}"'
    )
    body = f"l, y = ai.onnx.ml.LinearClassifier<{given}>(c)"
    result = check(model(BOTH.format(out="int64 l, float y", body=body)))
    assert ("LinearClassifier" in ops(result.model)) == (transform == "SOFTMAX_ZERO")


def test_one_row_for_two_classes_goes_by_rows() -> None:
    body = f"l, y = ai.onnx.ml.LinearClassifier<coefficients={vector(8)}, intercepts=[0.5], classlabels_ints=[0,1]>(c)"
    result = check(model(BOTH.format(out="int64 l, float y", body=body)))
    assert "LinearClassifier" in ops(result.model)


# ---- refused --------------------


@pytest.mark.parametrize(
    ("text", "op", "reason"),
    [
        (
            "(float[N,3] u, float[N,3] x) => (float y) { r = Relu(u) s = ArgMax<axis=1>(x)"
            " q = Squeeze(s) h = ai.onnx.ml.ArrayFeatureExtractor(r, q) y = Relu(h) }",
            "ArrayFeatureExtractor",
            "the positions are computed, or the input is a single row",
        ),
        (
            "(float[3] u, float[N,3] x) => (float y) { n = ai.onnx.ml.Normalizer(u) y = Add(n, x) }",
            "Normalizer",
            "the input is a single row without a batch axis",
        ),
    ],
)
def test_what_is_refused(text: str, op: str, reason: str) -> None:
    source = model(text)
    (report,) = [r for r in rewrite(source, sides(source)).nodes if r.op == op]
    assert report.reason == reason


def test_maps_of_scores_see_all_rows() -> None:
    source = model(
        "(float[N,6] u, float[N,3] x) => (z, float y) { r = Relu(u) m = MatMul(r, W) s = Add(m, x)"
        " z = ai.onnx.ml.ZipMap<classlabels_int64s=[0,1,2]>(m) y = Exp(s) }",
        W=normal(6, 3),
    )
    result = rewrite(source, sides(source))
    assert "ZipMap" in ops(result.model)


@pytest.mark.parametrize(
    "op", ["Scaler<offset=[0.5], scale=[2.0]>", "Binarizer<threshold=0.3>", REGRESSOR, "Normalizer<norm=\"L1\">"]
)
def test_what_has_nothing_of_the_users_is_given_back(op: str) -> None:
    unchanged(model(f"(float[N,3] u, float[N,3] x) => (float y, float v) {{ y = ai.onnx.ml.{op}(x) v = Exp(x) }}"))
