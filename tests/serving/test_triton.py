"""A model repository is as Triton wants it, and what it answers is what the source does."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

pytest.importorskip("tritonclient")

import mari_onnx
from mari_onnx.api import as_source, sides_of
from mari_onnx.choices import options_for
from mari_onnx.cli.main import cli
from mari_onnx.errors import CannotServe, ModelError, OutputInTheWay, UsageError
from mari_onnx.serving.triton.onnx_backend import ensemble, one_file
from mari_onnx.serving.triton.repository import model_name, write
from mari_onnx.splitting import manifest as manifests
from mari_onnx.splitting.make import split_source
from tests.serving.conftest import SIDES, features, make_split, ranking_model
from tests.serving.triton_server import Server, client_of


def a_request(count=7, seed=0):
    """Features, user inputs with one row."""
    rng = np.random.default_rng(seed)
    return {
        "u": rng.standard_normal((1, 24)).astype(np.float32),
        **features(count, seed),
        "c": rng.standard_normal((count, 4)).astype(np.float32),
    }


def answer_of_source(request, model=None):
    session = onnxruntime.InferenceSession((model or ranking_model()).SerializeToString())
    return session.run(None, {**request, "u": np.repeat(request["u"], len(request["x"]), 0)})


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def run_readme(folder: Path, server: Server, monkeypatch, **names):
    """Runs the code of a README piece by piece; what `outputs` was after each."""
    client = client_of(server)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", client)
    monkeypatch.setattr("tritonclient.grpc", client, raising=False)
    found = []
    for code in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL):
        exec(code, names)
        found.append(dict(names.get("outputs", {})))
    return found


def tiny(inputs, outputs, nodes, opset=20):
    graph = helper.make_graph(nodes, "tiny", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def saved(model, path):
    onnx.save(model, path)
    return path


def test_an_optimized_file(tmp_path, monkeypatch):
    saved(ranking_model(), tmp_path / "source.onnx")
    made = mari_onnx.optimize(ranking_model(), sides=SIDES, check=False)
    saved(made.model, tmp_path / "ranker.onnx")
    write(tmp_path / "repository", [one_file(tmp_path / "ranker.onnx", "ranker")], force=False)
    write(tmp_path / "repository", [one_file(tmp_path / "source.onnx", "source")], force=False)
    server = Server(tmp_path / "repository")
    dims = {i.name: list(i.dims) for i in server.configs["ranker"].input}
    assert dims == {"u": [1, 24], "x": [-1, 16], "genre": [-1], "c": [-1, 4]}
    request = a_request()
    (want,) = answer_of_source(request)
    close(server.infer("ranker", request)["score"], want)
    _, before, after = run_readme(tmp_path / "repository/ranker", server, monkeypatch, features=request, n=7)
    close(before["score"], want)
    close(after["score"], want)
    assert [name for name, _ in server.runs] == ["ranker", "source", "ranker"]


def test_an_ensemble_answers_what_the_source_does(tmp_path, folder, monkeypatch):
    served = ensemble(folder, "ranking")
    write(tmp_path / "repository", served, force=False)
    saved(ranking_model(), tmp_path / "source.onnx")
    write(tmp_path / "repository", [one_file(tmp_path / "source.onnx", "source")], force=False)
    server = Server(tmp_path / "repository")
    parts = [name.split(".")[1] for name in server.configs if name.startswith("ranking.")]
    assert sorted(parts) == ["item", "score", "user"]
    kept = {name.split(".")[1] for name, config in server.configs.items() if config.response_cache.enable}
    assert kept == {"user"}
    for count in (1, 7, 40):
        request = a_request(count, seed=count)
        close(server.infer("ranking", request)["score"], answer_of_source(request)[0])
    _, before, after = run_readme(tmp_path / "repository/ranking", server, monkeypatch, features=request, n=40)
    close(before["score"], after["score"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["packed_pnn", "dynamic_history"])
def test_ensembles_of_sample_models(name, tmp_path):
    path = Path(__file__).resolve().parents[2] / f"models/{name}.onnx"
    source = as_source(path)
    checked = {"candidates": (2,), "coverage": 0, "count": 1, "providers": ("cpu",)}
    split_source(source, sides_of(source, path.with_suffix(".sides.toml")), options_for(500), **checked).save(
        tmp_path / "split"
    )
    write(tmp_path / "repository", ensemble(tmp_path / "split", name), force=False)
    server = Server(tmp_path / "repository")
    feed = {key[2:]: array for key, array in np.load(path.with_suffix(".npz")).items() if key.startswith("0/")}
    whole = dict(feed)  # of the users one row is recorded
    count = max(len(array) for array in feed.values())
    for each in manifests.read(tmp_path / "split").inputs:
        if each.side == "user" and each.axis is not None:
            whole[each.name] = np.repeat(feed[each.name], count, each.axis)
    session = onnxruntime.InferenceSession(path)
    want = dict(zip([o.name for o in session.get_outputs()], session.run(None, whole), strict=True))
    answer = server.infer(name, feed)
    assert set(answer) == set(want)
    for output, array in want.items():
        close(answer[output], array)


def test_a_part_of_another_model_has_another_name(tmp_path, folder):
    names = {s.config.name for s in ensemble(folder, "ranking")}
    others = {s.config.name for s in ensemble(make_split(tmp_path / "other", seed=1), "ranking")}
    assert names & others == {"ranking"}


def test_texts_and_numbers_without_dimensions(tmp_path):
    value = helper.make_tensor_value_info
    model = tiny(
        [value("word", TensorProto.STRING, ["N"]), value("k", TensorProto.FLOAT, [])],
        [value("same", TensorProto.STRING, ["N"]), value("twice", TensorProto.FLOAT, [])],
        [helper.make_node("Identity", ["word"], ["same"]), helper.make_node("Add", ["k", "k"], ["twice"])],
    )
    write(tmp_path / "r", [one_file(saved(model, tmp_path / "m.onnx"), "m")], force=False)
    server = Server(tmp_path / "r")
    answer = server.infer("m", {"word": np.array(["a", "b"], object), "k": np.ones(1, np.float32)})
    assert answer["same"].tolist() == ["a", "b"]
    assert answer["twice"].tolist() == [2.0]


@pytest.mark.parametrize(
    ("kind", "shape", "words"),
    [
        (TensorProto.STRING, [], "x is one text"),
        (TensorProto.FLOAT, [0, 3], "x has a dimension of 0"),
        (TensorProto.BFLOAT16, ["N"], r"x is tensor\(bfloat16\), which Triton's onnxruntime backend does not take"),
        (TensorProto.FLOAT, None, "nothing says how many dimensions x has"),
    ],
)
def test_what_triton_cannot_take_is_refused(kind, shape, words, tmp_path):
    value = helper.make_tensor_value_info
    model = tiny([value("x", kind, shape)], [value("y", kind, shape)], [helper.make_node("Identity", ["x"], ["y"])])
    with pytest.raises(CannotServe, match=words):
        one_file(saved(model, tmp_path / "m.onnx"), "m")


def test_folders_are_replaced_when_asked_to(tmp_path, folder):
    repository = tmp_path / "repository"
    write(repository, ensemble(folder, "ranking"), force=False)
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    with pytest.raises(OutputInTheWay, match="--force"):
        write(repository, ensemble(folder, "ranking"), force=False)
    write(repository, ensemble(folder, "ranking"), force=True)
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before
    (repository / "mine").mkdir()
    served = ensemble(folder, "mine")
    with pytest.raises(OutputInTheWay, match="no model of a repository"):
        write(repository, served, force=True)


def test_names():
    assert model_name("ranker v7/é") == "ranker_v7"
    with pytest.raises(UsageError, match="no name of a model"):
        model_name("...")


def test_the_command(tmp_path, folder):
    done = CliRunner().invoke(cli, ["triton", str(folder), str(tmp_path / "r"), "--name", "ranking"])
    assert done.exit_code == 0, done.output
    assert set(Server(tmp_path / "r").configs) >= {"ranking"}
    with pytest.raises(ModelError, match="folder without manifest"):
        cli.main(["triton", str(tmp_path), str(tmp_path / "r")], standalone_mode=False)
