"""Small graphs of one operator of ai.onnx.ml, or of text, each: `kernel_samples` has the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mari_onnx.model.ops import ML
from mari_onnx.timing.sample import Sample

ROWS = (1, 16, 64, 500)


def ml_samples() -> Iterator[Sample]:
    """All of them, operator by operator."""
    yield from _looked_up()
    yield from _numbers()
    yield from _models()


def _looked_up() -> Iterator[Sample]:
    """Categories and tokens, as numbers and as text."""
    rng = np.random.default_rng(0)
    for rows in ROWS:
        for width in (1, 10):
            for count in (4, 20, 100):
                ids = rng.integers(0, count, (rows, width))
                texts, categories = _texts(ids), [f"category {k}" for k in range(count)]
                yield Sample("OneHotEncoder", (), (ids,), {"cats_int64s": [*range(count)]}, ML)
                yield Sample("OneHotEncoder", (), (texts,), {"cats_strings": categories}, ML)
                whole = {"keys_int64s": [*range(count)], "values_int64s": [*range(count)]}
                floats = {"keys_floats": [*map(float, range(count))], "values_floats": [0.5] * count}
                yield Sample("LabelEncoder", (), (ids,), whole, ML)
                yield Sample("LabelEncoder", (), (ids.astype(np.float32),), floats, ML)
                words = {"keys_strings": categories, "values_int64s": [*range(count)]}
                yield Sample("LabelEncoder", (), (texts,), words, ML)
                names = {"cats_strings": categories, "cats_int64s": [*range(count)]}
                yield Sample("CategoryMapper", (), (ids,), names, ML)
    for rows, tokens, count in ((1, 10, 50), (1, 100, 50), (64, 10, 50), (64, 10, 500), (500, 20, 100)):
        ids = rng.integers(0, count, (rows, tokens))
        shape = {"mode": "TF", "min_gram_length": 1, "max_gram_length": 1, "max_skip_count": 0, "ngram_counts": [0]}
        shape["ngram_indexes"] = [*range(count)]
        yield Sample("TfIdfVectorizer", (), (ids,), {**shape, "pool_int64s": [*range(count)]})
        pool = [f"category {k}" for k in range(count)]
        yield Sample("TfIdfVectorizer", (), (_texts(ids),), {**shape, "pool_strings": pool})


def _texts(ids: np.ndarray) -> np.ndarray:
    return np.array([f"category {k}" for k in ids.ravel()], object).reshape(ids.shape)


def _numbers() -> Iterator[Sample]:
    """Matrices of features."""
    for rows in ROWS:
        for width in (4, 20, 100):
            shape, each = (rows, width), {"offset": [0.5] * width, "scale": [2.0] * width}
            yield Sample("Scaler", (shape,), (), each, ML)
            missing = {"imputed_value_floats": [0.5] * width, "replaced_value_float": np.nan}
            yield Sample("Imputer", (shape,), (), missing, ML)
            yield Sample("Binarizer", (shape,), (), {"threshold": 0.5}, ML)
            for norm in ("L1", "L2", "MAX"):
                yield Sample("Normalizer", (shape,), (), {"norm": norm}, ML)
            yield Sample("ArrayFeatureExtractor", (shape,), (np.arange(0, width, 3),), {}, ML)
        for widths in ((4, 4), (20,) * 5, (1,) * 20):
            shapes = tuple((rows, w) for w in widths)
            yield Sample("FeatureVectorizer", shapes, (), {"inputdimensions": list(widths)}, ML)
        for width in (1, 2, 10):
            yield Sample("ZipMap", ((rows, width),), (), {"classlabels_int64s": [*range(width)]}, ML)


def _models() -> Iterator[Sample]:
    rng = np.random.default_rng(0)
    for rows in ROWS:
        for width, targets in ((8, 1), (40, 1), (200, 1), (40, 4)):
            weights = rng.uniform(-1, 1, width * targets).tolist()
            both = {"coefficients": weights, "intercepts": [0.1] * targets}
            yield Sample("LinearRegressor", ((rows, width),), (), {**both, "targets": targets}, ML)
            after = "SOFTMAX" if targets > 1 else "LOGISTIC"
            labels = {"classlabels_ints": [*range(max(2, targets))], "post_transform": after}
            yield Sample("LinearClassifier", ((rows, width),), (), {**both, **labels}, ML, outputs=2)
        for width, vectors in ((10, 20), (10, 200), (50, 100)):
            for kind in ("RBF", "LINEAR"):
                yield Sample("SVMRegressor", ((rows, width),), (), _svm(width, vectors, kind), ML)
        for count, depth in ((10, 4), (100, 6)):
            yield Sample("TreeEnsembleRegressor", ((rows, 20),), (), _trees(count, depth), ML)


def _svm(width: int, vectors: int, kind: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "coefficients": rng.uniform(-1, 1, vectors).tolist(),
        "support_vectors": rng.uniform(-1, 1, vectors * width).tolist(),
        "n_supports": vectors,
        "rho": [0.1],
        "kernel_type": kind,
        "kernel_params": [0.1, 0.0, 3.0],
    }


def _trees(count: int, depth: int) -> dict[str, Any]:
    """Full trees of random splits of 20 features."""
    rng, inner, size = np.random.default_rng(0), 2**depth - 1, 2 ** (depth + 1) - 1
    nodes = [(tree, k) for tree in range(count) for k in range(size)]
    leaves = [(tree, k) for tree, k in nodes if k >= inner]
    return {
        "n_targets": 1,
        "nodes_treeids": [tree for tree, _ in nodes],
        "nodes_nodeids": [k for _, k in nodes],
        "nodes_featureids": rng.integers(0, 20, len(nodes)).tolist(),
        "nodes_modes": ["BRANCH_LEQ" if k < inner else "LEAF" for _, k in nodes],
        "nodes_values": rng.uniform(0.1, 0.9, len(nodes)).tolist(),
        "nodes_truenodeids": [2 * k + 1 if k < inner else 0 for _, k in nodes],
        "nodes_falsenodeids": [2 * k + 2 if k < inner else 0 for _, k in nodes],
        "target_treeids": [tree for tree, _ in leaves],
        "target_nodeids": [k for _, k in leaves],
        "target_ids": [0] * len(leaves),
        "target_weights": rng.uniform(-1, 1, len(leaves)).tolist(),
    }
