"""Requests that Triton puts together in one run are answered as each by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tritonclient")

from mari_onnx.cli.main import cli
from mari_onnx.errors import CannotServe
from mari_onnx.serving.triton.batched import Waiting, form_of, served
from mari_onnx.serving.triton.onnx_backend import one_file
from mari_onnx.serving.triton.ragged import Form
from mari_onnx.serving.triton.readme import Call
from mari_onnx.serving.triton.repository import write
from mari_onnx.sides.resolve import METADATA_KEY
from tests.serving.conftest import ranking_model
from tests.serving.test_triton import a_request, answer_of_source, close, run_readme, saved
from tests.serving.triton_server import Server

MODELS = Path(__file__).resolve().parents[2] / "models"
FORM = Form(("x", "genre", "c"), "request_offsets")
CALLS = [Call("u", "user", 0), Call("x", "item", 0), Call("genre", "item", 0), Call("c", "cross", 0)]


def offsets_model():
    """`ranking_model` for several requests: u `[R, 24]`, others `[P, ..]`, and request_offsets `[R + 1]`."""
    model = ranking_model()
    graph = model.graph
    nodes = [
        # the request of a candidate: how many requests begin at it or before, without the first
        helper.make_node("Shape", ["x"], ["x.shape"]),
        helper.make_node("Gather", ["x.shape", "zero"], ["P"]),
        helper.make_node("Range", ["zero", "P", "one"], ["places"]),
        helper.make_node("Unsqueeze", ["places", "axis1"], ["column"]),
        helper.make_node("Cast", ["request_offsets"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Slice", ["wide", "axis1", "minus1"], ["begins"]),
        helper.make_node("GreaterOrEqual", ["column", "begins"], ["begun"]),
        helper.make_node("Cast", ["begun"], ["ones"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["ones", "axis1"], ["index"], keepdims=0),
        helper.make_node("Gather", ["u", "index"], ["u.rows"]),
    ]
    for node in graph.node:
        node.input[:] = ["u.rows" if name == "u" else name for name in node.input]
    nodes += list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    for name, value in {"zero": 0, "one": 1, "axis1": [1], "minus1": [-1]}.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    for info in graph.input:
        info.type.tensor_type.shape.dim[0].dim_param = "R" if info.name == "u" else "N"
    graph.input.append(helper.make_tensor_value_info("request_offsets", TensorProto.INT32, [None]))
    onnx.checker.check_model(model)
    return model


@pytest.fixture
def server(tmp_path):
    path = saved(offsets_model(), tmp_path / "ranker.onnx")
    write(tmp_path / "repository", [served(path, "ranker", FORM, CALLS, Waiting())], force=False)
    saved(ranking_model(), tmp_path / "source.onnx")
    write(tmp_path / "repository", [one_file(tmp_path / "source.onnx", "source")], force=False)
    return Server(tmp_path / "repository")


def of_triton(request):
    return {name: array if name == "u" else array[None] for name, array in request.items()}


def test_requests_that_are_put_together(server):
    config = server.configs["ranker"]
    assert {i.name: list(i.dims) for i in config.input} == {"u": [24], "x": [-1, 16], "genre": [-1], "c": [-1, 4]}
    assert {i.name for i in config.input if i.allow_ragged_batch} == {"x", "genre", "c"}
    for counts in ((7,), (1, 1), (3, 40, 2), (5, 1, 1, 9)):
        requests = [a_request(count, seed) for seed, count in enumerate(counts)]
        answers = server.infer_together("ranker", [of_triton(each) for each in requests])
        for request, answer in zip(requests, answers, strict=True):
            close(answer["score"], answer_of_source(request)[0][None])


def test_the_readme(server, tmp_path, monkeypatch):
    request = a_request()
    _, before, after = run_readme(tmp_path / "repository/ranker", server, monkeypatch, features=request, n=7)
    close(before["score"], answer_of_source(request)[0])
    close(after["score"], before["score"])


def test_lengths_that_make_up_for_each_other_fail(server):
    """Together both have as many rows of x as of c; by itself neither has."""
    one, other = a_request(7, 1), a_request(5, 2)
    one["c"], other["c"] = other["c"], one["c"]
    with pytest.raises(Exception, match="cannot be less than -1"):
        server.infer_together("ranker", [of_triton(one), of_triton(other)])


def test_a_request_of_several_users_fails(server):
    request = {name: np.repeat(array, 2, 0) for name, array in of_triton(a_request()).items()}
    with pytest.raises(Exception, match="cannot be less than -1"):
        server.infer_together("ranker", [request])


def test_outputs_of_all_kinds(tmp_path):
    """Two columns, no columns, a row per request, and a vector per request."""
    model = offsets_model()
    graph = model.graph
    graph.node.append(helper.make_node("Concat", ["score", "score"], ["both"], axis=1))
    graph.node.append(helper.make_node("Squeeze", ["score", "axis1"], ["flat"]))
    graph.node.append(helper.make_node("Identity", ["u"], ["again"]))
    graph.node.append(helper.make_node("ReduceSum", ["u", "axis1"], ["sum"], keepdims=0))
    for name, shape in {"both": ["N", 2], "flat": ["N"], "again": ["R", 24], "sum": ["R"]}.items():
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    path = saved(model, tmp_path / "ranker.onnx")
    write(tmp_path / "r", [served(path, "ranker", FORM, CALLS, Waiting())], force=False)
    server = Server(tmp_path / "r")
    requests = [a_request(count, seed) for seed, count in enumerate((3, 1, 6))]
    for request, answer in zip(
        requests, server.infer_together("ranker", [of_triton(each) for each in requests]), strict=True
    ):
        (want,) = answer_of_source(request)
        close(answer["both"], np.concatenate([want, want], 1)[None])
        close(answer["flat"], want[None, :, 0])
        close(answer["again"], request["u"])
        close(answer["sum"], request["u"].sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("form", "shape", "words"),
    [
        (Form((), "request_offsets"), None, "no input has a row per candidate"),
        (FORM, ["N", "width"], "x has the shape"),
        (Form(FORM.ragged, "u"), None, "u is FP32"),
    ],
)
def test_what_cannot_be_put_together_is_refused(form, shape, words, tmp_path):
    model = offsets_model()
    if shape:
        (info,) = [i for i in model.graph.input if i.name == "x"]
        info.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, shape))
    path = saved(model, tmp_path / "ranker.onnx")
    with pytest.raises(CannotServe, match=words):
        served(path, "ranker", form, CALLS, Waiting())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coarse_mlp", "packed_pnn"])
def test_a_file_that_optimize_wrote(name, tmp_path):
    """By its metadata alone."""
    source, out = MODELS / f"{name}.onnx", tmp_path / "out.onnx"
    cli.main(["optimize", str(source), str(out), "--batched", "offsets", "-q"], standalone_mode=False)
    cli.main(["triton", str(out), str(tmp_path / "r"), "--name", name, "-q"], standalone_mode=False)
    server = Server(tmp_path / "r")
    inputs = {io.name: io for io in server.configs[name].input}
    session = onnxruntime.InferenceSession(source)
    recorded = np.load(source.with_suffix(".npz"))
    sent, want = [], []
    for key in ("0", "1", "2"):
        feed = {i.name: recorded[f"{key}/{i.name}"] for i in session.get_inputs()}
        count = max(map(len, feed.values()))
        whole = {n: v if len(v) == count else np.repeat(v, count, 0) for n, v in feed.items()}  # of users one row
        want.append(session.run(None, whole))
        sent.append({n: v[None] if inputs[n].allow_ragged_batch else v.reshape(1, *inputs[n].dims)
                     for n, v in feed.items()})  # fmt: skip
    for answer, arrays in zip(server.infer_together(name, sent), want, strict=True):
        for output, array in zip(session.get_outputs(), arrays, strict=True):
            close(answer[output.name], array[None])


def test_bags_of_several_requests_are_refused() -> None:
    """Triton would put the offsets of requests, each from 0 on, behind each other."""
    model = offsets_model()
    said = {"user": ["u"], "item": ["x", "genre"], "cross": ["c"], "batched": "offsets", "bags": {"genre": "x"}}
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(said))
    with pytest.raises(CannotServe) as error:
        form_of(model)
    assert "genre says where bags of x begin" in str(error.value)
