"""Running a split: what a service calls, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import onnxruntime
import pytest

import mari_onnx
from mari_onnx.errors import BadFeatures, ModelError, ModelNotFound, OtherModel
from tests.splitting.graphs import split, three_sides

WIDTHS = {"u": 96, "x": 64, "c": 32}


@pytest.fixture(scope="module")
def made():
    return split(three_sides(), counts=(2,))


@pytest.fixture(scope="module")
def ranker(made):
    return made.ranker()


def features(n, seed=0):
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal((1 if k == "u" else n, w)).astype(np.float32) for k, w in WIDTHS.items()}


def test_rows_of_a_catalogue_score_for_several_users_and_calls(ranker):
    source = onnxruntime.InferenceSession(three_sides().SerializeToString(), providers=["CPUExecutionProvider"])
    catalogue = ranker.items({"x": features(50)["x"]})
    rng = np.random.default_rng(1)
    requests, expected = [], []
    for seed in range(3):
        state = ranker.user({"u": features(1, seed)["u"]})
        for n in (1, 2, 7):
            places = rng.permutation(50)[:n]
            cross = features(n, seed + 10)["c"]
            requests.append((state, catalogue.take(places), {"c": cross}))
            feed = {"u": np.repeat(features(1, seed)["u"], n, 0), "x": features(50)["x"][places], "c": cross}
            expected.append(source.run(None, feed)[0])
    for got, want in zip(ranker.score_each(requests), expected, strict=True):
        np.testing.assert_allclose(got["score"], want, rtol=1e-4, atol=1e-4)


def test_states_and_rows_of_another_model_are_refused(ranker):
    other = split(three_sides(seed=1), counts=(2,)).ranker()
    given = features(2)
    state, rows, cross = ranker.user(given), ranker.items(given), {"c": given["c"]}
    with pytest.raises(OtherModel, match="the user's state was made by the model"):
        ranker.score(other.user(given), rows, cross)
    with pytest.raises(OtherModel, match="the items' rows were made by the model"):
        ranker.score(state, other.items(given), cross)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": None}, r"score: c is missing \(float32 \[N, 32\]\)"),
        ({"c": np.float64}, "score: c is float64, not float32"),
        ({"c": (2, 31)}, r"score: c has the shape \[2, 31\], not \[N, 32\]"),
        ({"c": (3, 32)}, "inputs differ in how many rows they have"),
        ({"x": None}, r"item: x is missing"),
        ({"x": np.int64}, "item: x is int64, not float32"),
        ({"u": None}, r"user: u is missing"),
        ({"u": (1, 95)}, r"user: u has the shape \[1, 95\]"),
    ],
)
def test_bad_features_are_refused_by_name(ranker, change, message):
    given = features(2)
    for name, how in change.items():
        if how is None:
            del given[name]
        elif isinstance(how, tuple):
            given[name] = np.zeros(how, np.float32)
        else:
            given[name] = given[name].astype(how)
    with pytest.raises(BadFeatures, match=message):
        ranker.score(ranker.user(given), ranker.items(given), {k: v for k, v in given.items() if k == "c"})


def test_a_row_that_is_not_there(ranker):
    rows = ranker.items(features(3))
    with pytest.raises(BadFeatures, match="there are rows of 3 items"):
        rows.take([0, 3])
    assert rows.take([2, 2, 0]).count == 3


def test_files_of_two_splits_are_not_mixed(made, tmp_path):
    other = split(three_sides(seed=1), counts=(2,))
    folder = tmp_path / "mixed"
    shutil.copytree(made.folder, folder)
    shutil.copyfile(other.folder / "item.onnx", folder / "item.onnx")
    with pytest.raises(ModelError, match=r"item\.onnx is not the file that manifest\.json names"):
        mari_onnx.Ranker(folder)


def test_a_folder_that_is_no_split(tmp_path):
    with pytest.raises(ModelNotFound, match="is no split model"):
        mari_onnx.Ranker(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match="no manifest of this version"):
        mari_onnx.Ranker(tmp_path)
