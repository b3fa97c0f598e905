"""The code in docs/serving.md runs, and answers what the source does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx

from mari_onnx.errors import BadFeatures
from mari_onnx.serving.catalogue import Catalogue
from mari_onnx.serving.precompute import precompute
from mari_onnx.splitting.ranker import Ranker
from tests.serving.conftest import features, make_split, ranking_model, write_catalogue
from tests.serving.test_service import close, expected, request, source

ROOT = Path(__file__).resolve().parents[2]


def test_the_walk_through(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for version in (7, 8):
        ranker = Ranker(make_split(tmp_path / f"ranking-v{version}", seed=version))
        path = write_catalogue(tmp_path / "items.parquet", np.arange(300), features(300))
        precompute(ranker, Catalogue(path, ranker.manifest), tmp_path / f"items-v{version}.arrow")
    asked = request(5, user_key="user 17")
    longer = {"c": np.concatenate([asked.cross["c"], asked.cross["c"][:1]])}
    names = {
        "user_features": asked.user,
        "candidates": asked.item_ids,
        "cross_features": asked.cross,
        "item_features": {k: v[asked.item_ids] for k, v in features(300).items()},
        "other_features": {"c": asked.cross["c"][::-1]},
        "longer_features": longer,
        "new_item": 1000,
        "features_of": lambda ids: {k: v[:1] for k, v in features(300).items()},
    }
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/serving.md").read_text(), re.DOTALL)
    assert len(code) == 7  # the last one is run by test_offline.py
    onnx.save(ranking_model(7), "ranking.onnx")
    exec("\n".join(code[:5]), names)
    want = expected(asked, source(7))
    close(names["before"], want)
    close(names["scores"], want)
    close(names["more"].outputs["score"], want[::-1])
    assert [type(each) for each in names["failed"]] == [BadFeatures]
    assert names["answer"].missing == (1000,)
    close(names["answer"].outputs["score"][:5], want)
    exec(code[5], names)
    close(names["service"].score(asked).outputs["score"], expected(asked, source(8)))
