"""The code in docs/splitting.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_walk_through(tmp_path, monkeypatch):
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    with np.load(ROOT / "models/coarse_mlp.npz") as arrays:
        recorded = {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith("0/")}
    count = max(map(len, recorded.values()))
    candidates = np.array([3, 0, 2, 1])[: min(4, count)]
    features = {
        "user_features": {k: v for k, v in recorded.items() if len(v) == 1},
        "catalogue_features": {k: v for k, v in recorded.items() if k.startswith("item_")},
        "cross_features": {k: v[candidates] for k, v in recorded.items() if k.startswith("cross_")},
    }
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/splitting.md").read_text(), re.DOTALL)
    assert len(code) == 5
    features["other_user_features"] = {k: v[..., ::-1].copy() for k, v in features["user_features"].items()}
    features["other_cross_features"] = {k: v[:2] for k, v in features["cross_features"].items()}
    names = {**features, "candidates": candidates}
    exec("\n".join(code), names)
    whole = onnxruntime.InferenceSession(ROOT / "models/coarse_mlp.onnx", providers=["CPUExecutionProvider"])
    feed = {k: np.repeat(v, len(candidates), 0) if len(v) == 1 else v[candidates] for k, v in recorded.items()}
    (expected,) = whole.run(["score"], feed)
    np.testing.assert_allclose(names["outputs"]["score"], expected, rtol=1e-4, atol=1e-5)
    assert set(names["best"]) == set(candidates)
    np.testing.assert_allclose(names["first"]["score"], expected, rtol=1e-4, atol=1e-5)
    recorded |= features["other_user_features"]
    feed = {k: np.repeat(v, 2, 0) if len(v) == 1 else v[candidates[:2]] for k, v in recorded.items()}
    np.testing.assert_allclose(names["second"]["score"], whole.run(["score"], feed)[0], rtol=1e-4, atol=1e-5)
