"""Operators of ai.onnx.ml, and of text: what their kernels are asked for.

Scaler, Imputer and Binarizer are element-wise (`kernels`).
"""

from __future__ import annotations

import math

from mari_onnx.model.nodes import attribute
from mari_onnx.prices.use import Call, Use, kernel_of, size


def _texts(call: Call) -> bool:
    """Whether what is looked up, or what is found, is text."""
    return any(a.strings for a in call.node.attribute)


def _width(call: Call) -> tuple[int, int]:
    """Rows of the input, and numbers in one."""
    x = call.shape(0)
    return (x[0], size(x[1:])) if len(x) > 1 else (1, size(x))


@kernel_of("OneHotEncoder")
def _one_hot(call: Call) -> list[Use]:
    looked_up = size(call.shape(0))
    kernel = "OneHotEncoder of text" if _texts(call) else "OneHotEncoder"
    return [Use(kernel, {"node": 1, "rows": float(looked_up), "elements": float(max(looked_up, size(call.out)))})]


@kernel_of("LabelEncoder", "CategoryMapper", "StringNormalizer")
def _label(call: Call) -> list[Use]:
    text = _texts(call) or call.node.op_type == "StringNormalizer"
    kernel = "LabelEncoder of text" if text else "LabelEncoder"
    return [Use(kernel, {"node": 1, "elements": float(size(call.shape(0)))})]


@kernel_of("ArrayFeatureExtractor")
def _columns(call: Call) -> list[Use]:
    return [Use("ArrayFeatureExtractor", {"node": 1, "elements": float(size(call.out))})]


@kernel_of("Normalizer")
def _normalizer(call: Call) -> list[Use]:
    rows, width = _width(call)
    return [Use("Normalizer", {"node": 1, "rows": float(rows), "elements": float(rows * width)})]


@kernel_of("FeatureVectorizer")
def _vectorizer(call: Call) -> list[Use]:
    """Each input's rows are copied, one after the other."""
    shapes = [shape or () for shape in call.ins]
    rows = sum(shape[0] if len(shape) > 1 else 1 for shape in shapes)
    return [Use("FeatureVectorizer", {"node": 1, "runs": float(rows), "elements": float(sum(map(size, shapes)))})]


@kernel_of("LinearRegressor", "LinearClassifier")
def _linear(call: Call) -> list[Use]:
    """A product, and what becomes of its results: labels, and the function that is applied to scores."""
    rows, width = _width(call)
    targets = len(attribute(call.node, "coefficients", [])) // max(1, width)
    amounts = {"mults": float(rows * width * targets), "rows": float(rows), "elements": float(rows * targets)}
    return [Use(call.node.op_type, {"node": 1, **amounts})]


@kernel_of("SVMRegressor", "SVMClassifier")
def _machine(call: Call) -> list[Use]:
    """Each row against each support vector."""
    rows, width = _width(call)
    vectors = len(attribute(call.node, "support_vectors", [])) // max(1, width)
    amounts = {"rows": float(rows), "mults": float(rows * vectors * width), "elements": float(rows * vectors)}
    return [Use("support vectors", {"node": 1, **amounts})]


@kernel_of("ZipMap", "CastMap", "DictVectorizer")
def _map(call: Call) -> list[Use]:
    return [Use("ZipMap", {"node": 1, "elements": float(size(call.shape(0)))})]


@kernel_of("TfIdfVectorizer")
def _look_up(call: Call) -> list[Use]:
    kernel = "TfIdfVectorizer of text" if _texts(call) else "TfIdfVectorizer"
    return [Use(kernel, {"node": 1, "rows": float(size(call.shape(0))), "elements": float(size(call.out))})]


@kernel_of("TreeEnsembleRegressor", "TreeEnsembleClassifier", "TreeEnsemble")
def _trees(call: Call) -> list[Use]:
    owners = attribute(call.node, "nodes_treeids", None)
    count, nodes = (len(set(owners)), len(owners)) if owners else (len(attribute(call.node, "tree_roots", [0])), 100)
    rows, _ = _width(call)
    return [Use("trees", {"node": 1, "rows": rows, "visits": rows * count * math.log2(nodes / max(1, count) + 1)})]
