"""Running a split: what a service calls, and what is refused."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import mari_onnx
from mari_onnx import runtime
from mari_onnx.cli.main import run
from mari_onnx.errors import BadFeatures, ModelError, ModelNotFound, OtherModel
from tests.splitting.graphs import model, split, three_sides

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
    for got, want in zip(ranker.score_many(requests), expected, strict=True):
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
        ({"u": list}, "user: u is of the type list, not float32"),
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
        elif how is list:
            given[name] = given[name].tolist()
        else:
            given[name] = given[name].astype(how)
    with pytest.raises(BadFeatures, match=message):
        ranker.score(ranker.user(given), ranker.items(given), {k: v for k, v in given.items() if k == "c"})


def test_a_row_that_is_not_there(ranker):
    rows = ranker.items(features(3))
    with pytest.raises(BadFeatures, match="there are rows of 3 items"):
        rows.take([0, 3])
    with pytest.raises(BadFeatures, match="not of item -1"):
        rows.take([-1, 2])
    assert rows.take([2, 2, 0]).count == 3


def test_where_score_reads_nothing_of_the_item_there_are_no_rows_to_take():
    """A service calls the same for any split."""
    nodes = [
        helper.make_node("MatMul", ["u", "W"], ["q"]),
        helper.make_node("Mul", ["q", "c"], ["score"]),
    ]
    weights = {"W": np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)}
    ranker = split(model(nodes, {"u": 64, "c": 8}, {"score": ["N", 8]}, weights)).ranker()
    rng = np.random.default_rng(0)
    user, cross = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 64), (3, 8)))
    rows = ranker.items({}).take([5, 0, 7])
    got = ranker.score(ranker.user({"u": user}), rows, {"c": cross})
    np.testing.assert_allclose(got["score"], user @ weights["W"] * cross, rtol=1e-5, atol=1e-5)


def test_rows_are_gathered_into_memory_that_is_kept(ranker):
    rows = ranker.items(features(9))
    first = rows.take([0, 3, 3])
    again = rows.take([8, 1, 0], out=first)
    for name, array in rows.arrays.items():
        assert again.arrays[name] is first.arrays[name]
        np.testing.assert_array_equal(again.arrays[name], array[[8, 1, 0]])
    with pytest.raises(BadFeatures, match="is no room for the rows of 2 items"):
        rows.take([0, 1], out=first)


def test_files_of_two_splits_are_not_mixed(made, tmp_path):
    other = split(three_sides(seed=1), counts=(2,))
    folder = tmp_path / "mixed"
    shutil.copytree(made.folder, folder)
    shutil.copyfile(other.folder / "item.onnx", folder / "item.onnx")
    with pytest.raises(ModelError, match=r"item\.onnx is not the file that manifest\.json names"):
        mari_onnx.Ranker(folder)


def test_a_folder_that_is_no_split(tmp_path):
    (tmp_path / "model.onnx").write_text("")
    with pytest.raises(ModelNotFound, match="it is a file, and a split model is a folder"):
        mari_onnx.Ranker(tmp_path / "model.onnx")
    with pytest.raises(ModelNotFound, match=r"is no split model: it has no manifest\.json"):
        mari_onnx.Ranker(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match="no manifest of this version"):
        mari_onnx.Ranker(tmp_path)


def _without(key):
    return lambda said: said.pop(key)


DAMAGES = {
    "not JSON": (None, "cannot be read"),
    "no source": (_without("source"), "it has no 'source'"),
    "no contract": (_without("contract"), "it has no 'contract'"),
    "another format": (lambda said: said.update(format=99), "format 99, not 1"),
    "another key": (lambda said: said.update(more=1), "more contradict the rest"),
    "a key of other states": (lambda said: said.update(state_key="0" * 64), "state_key contradict the rest"),
    "a shape that is none": (lambda said: said["rows"][0].update(shape="N"), "has the shape N"),
    "an axis that is not there": (lambda said: said["rows"][0].update(axis=5), "and the axis 5"),
    "a part of another hash": (
        lambda said: said["parts"]["user"].update(sha256=said["rows_key"]) or said.update(state_key=said["rows_key"]),
        r"user\.onnx is not the file that manifest\.json names",
    ),
    "an input of another name": (
        lambda said: said["parts"]["score"].update(inputs=["y", *said["parts"]["score"]["inputs"][1:]]),
        r"manifest\.json says that score\.onnx has the inputs y, .*; it has",
    ),
    "a tensor that nothing makes": (
        lambda said: said["rows"][0].update(name="y"),
        "does not say where these tensors come from: y",
    ),
    "an input that is passed on, and is none": (
        lambda said: said["state"][0].update(made=False),
        "does not say where these tensors come from",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_manifest_is_said_to_be(made, name, tmp_path, capsys):
    change, message = DAMAGES[name]
    folder, source = tmp_path / "split", tmp_path / "model.onnx"
    onnx.save(three_sides(), source)
    shutil.copytree(made.folder, folder)
    file = folder / "manifest.json"
    said = json.loads(file.read_text())
    if change is not None:
        change(said)
    file.write_text(json.dumps(said) if change is not None else "{")
    with pytest.raises(ModelError, match=message):
        mari_onnx.Ranker(folder)
    for command in ("inspect", "check"):
        assert run([command, str(source), str(folder)]) == 3
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("command", ["inspect", "check", "bench"])
def test_a_folder_in_the_place_of_the_source(made, command, capsys):
    assert run([command, str(made.folder)] if command == "inspect" else [command, str(made.folder), "x.onnx"]) in (2, 3)
    assert "split" in capsys.readouterr().err


def test_without_candidates_no_model_runs_on_empty_tensors(ranker, monkeypatch):
    """onnxruntime ends the process on some of them."""
    fed, whole = [], runtime.run
    monkeypatch.setattr(runtime, "run", lambda made, feed, what: fed.append(feed) or whole(made, feed, what))
    given = features(0)
    rows = ranker.items({"x": given["x"]})
    assert (rows.count, {k: v.shape[0] for k, v in rows.arrays.items()}) == (0, dict.fromkeys(rows.arrays, 0))
    found = ranker.score(ranker.user({"u": features(1)["u"]}), rows, {"c": given["c"]})
    assert (found["score"].shape, found["score"].dtype) == ((0, 1), np.float32)
    assert all(array.size for feed in fed for array in feed.values())
    for wrong, message in (
        ({"x": given["x"][:, 1:]}, r"shape \[0, 63\]"), ({"x": np.float32(3)}, r"shape \[\]"), ({}, "x is missing"),
    ):  # fmt: skip
        with pytest.raises(BadFeatures, match=message):
            ranker.items(wrong)
    with pytest.raises(BadFeatures, match="inputs differ in how many rows they have"):
        ranker.score(ranker.user({"u": features(1)["u"]}), rows, {"c": features(2)["c"]})


def test_without_candidates_an_output_of_the_user_alone_is_whole():
    nodes = [
        helper.make_node("MatMul", ["u", "W"], ["q"]),
        helper.make_node("Add", ["q", "x"], ["score"]),
        helper.make_node("ReduceMax", ["q"], ["best"], keepdims=0),
    ]
    weights = {"W": np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)}
    made = split(model(nodes, {"u": 64, "x": 8}, {"score": ["N", 8], "best": []}, weights)).ranker()
    user = np.ones((1, 64), np.float32)
    found = made.score(made.user({"u": user}), made.items({"x": np.zeros((0, 8), np.float32)}))
    assert found["score"].shape == (0, 8)
    np.testing.assert_allclose(found["best"], (user @ weights["W"]).max(), rtol=1e-5)


def test_a_state_does_not_share_the_callers_memory():
    """An input that score.onnx reads as it is would otherwise change with the buffer that it came in."""
    nodes = [
        helper.make_node("MatMul", ["u", "W"], ["q"]),
        helper.make_node("Mul", ["q", "c"], ["r"]),
        helper.make_node("Mul", ["r", "t"], ["score"]),
    ]
    weights = {"W": np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)}
    source = model(nodes, {"u": 64, "t": 8, "c": 8}, {"score": ["N", 8]}, weights)
    made = split(source, {"u": "user", "t": "user", "c": "cross"}).ranker()
    assert [t.name for t in made.manifest.state if not t.made] == ["t"]
    buffer = {"u": np.ones((1, 64), np.float32), "t": np.ones((1, 8), np.float32)}
    state, cross = made.user(buffer), {"c": np.ones((2, 8), np.float32)}
    before = made.score(state, made.items({}), cross)["score"]
    buffer["t"][:] = 100
    np.testing.assert_array_equal(made.score(state, made.items({}), cross)["score"], before)


def test_states_and_rows_stay_valid_where_only_later_layers_were_trained_further(ranker):
    further = three_sides()
    (head,) = (each for each in further.graph.initializer if each.name == "V")
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * 2, "V"))
    new, given = split(further, counts=(2,)).ranker(), features(2)
    assert new.manifest.source != ranker.manifest.source
    state, rows, cross = ranker.user(given), ranker.items(given), {"c": given["c"]}
    want = ranker.score(state, rows, cross)["score"] * 2
    np.testing.assert_allclose(new.score(state, rows, cross)["score"], want, rtol=1e-4, atol=1e-4)
