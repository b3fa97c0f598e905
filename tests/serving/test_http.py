"""Requests over HTTP: JSON and Arrow answer alike, and what is wrong is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

starlette = pytest.importorskip("starlette.testclient")

from starlette.applications import Starlette  # noqa: E402
from starlette.routing import Route  # noqa: E402

from mari_onnx.errors import BadFeatures, StoreUnavailable  # noqa: E402
from mari_onnx.serving import ArrowStore, Request, Service, StateCache, protocol  # noqa: E402
from mari_onnx.serving.catalogue import Catalogue  # noqa: E402
from mari_onnx.serving.http import Api, Limits, Metrics  # noqa: E402
from mari_onnx.serving.precompute import precompute  # noqa: E402
from tests.serving.conftest import features, write_catalogue  # noqa: E402
from tests.serving.test_service import ITEMS, close, expected, request, source  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
INFER = "/v2/models/ranking/infer"
LIMITS = Limits(body=20_000, candidates=50, seconds=5)


@pytest.fixture(scope="module")
def service(ranker, tmp_path_factory):
    folder = tmp_path_factory.mktemp("http")
    path = write_catalogue(folder / "i.parquet", np.arange(ITEMS), features(ITEMS))
    precompute(ranker, Catalogue(path, ranker.manifest), folder / "s.arrow")
    return Service(ranker, ArrowStore(folder / "s.arrow"), StateCache())


@pytest.fixture(scope="module")
def client(service):
    async def score(asked):
        return service.score_many([asked])[0]

    api = Api(service, "ranking", score, LIMITS, Metrics())
    return served(api)


def served(api, prefix=""):
    async def answer(http):
        return await api(http)

    route = Route("/{path:path}", answer, methods=["GET", "POST", "PUT"])
    return starlette.TestClient(Starlette(routes=[route]), root_path=prefix)


def body(asked, **more):
    tensors = {"item_ids": np.asarray(asked.item_ids), **asked.user, **asked.cross}
    inputs = [
        {
            "name": k,
            "datatype": {"int64": "INT64", "float32": "FP32"}[v.dtype.name],
            "shape": list(v.shape),
            "data": v.tolist(),
        }
        for k, v in tensors.items()
    ]
    return {"id": "7", "inputs": inputs, "parameters": {"user_key": asked.user_key}, **more}


def test_json_and_arrow_answer_what_the_source_does(client):
    asked = request(9)
    want = expected(asked, source())
    answer = client.post(INFER, json=body(asked))
    assert answer.status_code == 200, answer.text
    said = answer.json()
    (output,) = said["outputs"]
    assert (said["id"], output["name"], output["datatype"], output["shape"]) == ("7", "score", "FP32", [9, 1])
    close(np.array(output["data"]).reshape(9, 1), want)
    tensors = {"item_ids": np.asarray(asked.item_ids), **asked.user, **asked.cross}
    packed = protocol.tensors_to_arrow(tensors, {"user_key": asked.user_key, "id": "8"})
    answer = client.post(INFER, content=packed, headers={"content-type": protocol.ARROW})
    assert answer.headers["content-type"] == protocol.ARROW
    import pyarrow as pa

    table = pa.ipc.open_stream(answer.content).read_all()
    (row,) = table.to_pylist()
    assert (row["name"], row["shape"], table.schema.metadata[b"id"]) == ("score", [9, 1], b"8")
    close(np.frombuffer(row["data"], "<f4").reshape(9, 1), want)


def test_a_user_whose_state_is_kept_need_not_send_features(client):
    asked = request(4, 11)
    client.post(INFER, json=body(asked))
    without = body(asked)
    without["inputs"] = [each for each in without["inputs"] if each["name"] != "u"]
    said = client.post(INFER, json=without).json()
    assert said["parameters"]["user_cached"] is True
    close(np.array(said["outputs"][0]["data"])[:, None], expected(asked, source()))
    without["parameters"]["user_key"] = "nobody"
    answer = client.post(INFER, json=without)
    assert answer.status_code == 400
    assert "no state of the user nobody" in answer.json()["error"]


def changed(which, **to):
    made = body(request(3))
    for each in made["inputs"]:
        if each["name"] == which:
            each.update(to)
    return made


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"{", "the body is no JSON"),
        (b"[" * 10_000, "the body is no JSON"),
        (b"[]", "the body is no request"),
        (b'{"inputs": [3]}', "an input is no object"),
        (changed("u", datatype="FP31"), "u: datatype 'FP31' is none of"),
        (changed("u", shape=[2, 24]), "u: shape [2, 24] has 48 elements, and data 24"),
        (changed("u", shape=[-1]), "u: shape [-1] is no list of sizes"),
        (changed("u", data=["a"] * 24), "u: data holds something that is no float32"),
        (changed("u", data=[[1.0] * 24, 3]), "lists and elements side by side"),
        (changed("u", data=None), "u: data is no list"),
        (changed("item_ids", data=[[4, 9], [2]]), "item_ids: data has lists of other lengths than shape [3]"),
        (changed("c", data=[[0.5] * 6, [0.5] * 6]), "c: data has lists of other lengths than shape [3, 4]"),
        (changed("u", data=[[1e39] * 24]), "u: data holds a number that float32 cannot hold"),
        (body(request(3), outputs={"name": "score"}), "there is no output None"),
        (changed("u", datatype="FP64"), "u is float64, not float32"),
        (changed("u", name="v"), "there is no input v"),
        (changed("c", name="u"), "u is there twice"),
        (changed("c", shape=[1, 4], data=[0.0] * 4), "inputs differ in how many rows"),
        (changed("item_ids", data=[1, 2, ITEMS]), f"no rows of the items {ITEMS}"),
        (changed("item_ids", data=[1.5, 2, 3]), "item_ids: data holds something that is no int64"),
        (changed("item_ids", data=[1, 2, 2**70]), "item_ids: data holds a number that int64 cannot hold"),
        (changed("item_ids", datatype="FP32"), "item_ids is a list of integers or texts"),
        (body(request(51)), "has 51 candidates, and at most 50 are taken"),
        (body(request(3), outputs=[{"name": "click"}]), "there is no output click"),
        (body(request(3), parameters=[1]), "`parameters` is no object"),
        (body(request(3), parameters={"user_key": [1]}), "user_key is a text or an integer"),
    ],
)
def test_what_is_wrong_is_said(client, given, words):
    answer = client.post(INFER, **({"content": given} if isinstance(given, bytes) else {"json": given}))
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_garbage_is_refused(client, data):
    good = body(request(2))
    kind = data.draw(st.sampled_from(["bytes", "json", "cut", "arrow", "field"]))
    headers = {"content-type": protocol.ARROW if kind == "arrow" else protocol.JSON}
    if kind in ("bytes", "arrow"):
        content = data.draw(st.binary(max_size=200))
    elif kind == "json":
        leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
        content = json.dumps(
            data.draw(st.recursive(leaf, lambda x: st.lists(x) | st.dictionaries(st.text(max_size=8), x), max_leaves=8))
        ).encode()
    elif kind == "cut":
        text = json.dumps(good).encode()
        content = text[: data.draw(st.integers(0, len(text) - 1))]
    else:
        each = data.draw(st.sampled_from(good["inputs"]))
        odd = st.sampled_from([None, [], {}, "x", 3, [None], [[]], [3.5], True, [[[1]]], -1, 1e400, [2**80]])
        key = data.draw(st.sampled_from(["name", "datatype", "shape", "data"]))
        each[key] = data.draw(odd)
        content = json.dumps(good).encode()
    answer = client.post(INFER, content=content, headers=headers)
    assert answer.status_code == 400, (kind, content)
    assert answer.json()["error"]


def test_rows_without_bytes_are_refused(client):
    """A stream of a hundred bytes can say that it has a billion of them."""
    names = protocol._SCHEMA.names
    sink, columns = pa.BufferOutputStream(), [pa.nulls(10**6)] * len(names)
    batch = pa.record_batch(columns, names=names)
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    answer = client.post(INFER, content=bytes(sink.getvalue()), headers={"content-type": protocol.ARROW})
    assert (answer.status_code, answer.json()["error"]) == (400, "the column name is not string")


@pytest.mark.parametrize("how", ["lz4", "zstd", "dictionary"])
def test_a_small_arrow_body_that_becomes_large_is_refused(client, how):
    """26 KB can stand for 800 MB."""
    schema, sink = protocol._SCHEMA, pa.BufferOutputStream()
    columns = {"name": ["u"], "datatype": ["FP32"], "shape": pa.array([[1]], pa.list_(pa.int64()))}
    if how == "dictionary":
        columns["data"] = pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), pa.array([b"abcd"]))
        schema = pa.schema([*list(schema)[:3], pa.field("data", columns["data"].type)])
        options = pa.ipc.IpcWriteOptions()
    else:
        columns["data"] = pa.array([bytes(1 << 20)], pa.binary())
        options = pa.ipc.IpcWriteOptions(compression=how)
    with pa.ipc.new_stream(sink, schema, options=options) as stream:
        stream.write_table(pa.table(columns, schema=schema))
    content = bytes(sink.getvalue())
    assert len(content) < LIMITS.body
    answer = client.post(INFER, content=content, headers={"content-type": protocol.ARROW})
    assert answer.status_code == 400
    assert answer.json()["error"] == "the Arrow stream is compressed, or has dictionaries: send it without"


def test_a_request_without_candidates(client):
    answer = client.post(INFER, json=body(request(0)))
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert (output["shape"], output["data"]) == ([0, 1], [])


def test_routes(client):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/ranking/ready"):
        assert client.get(path).status_code == 200
    assert client.get("/v2").json()["name"] == "mari-onnx"
    said = client.get("/v2/models/ranking").json()
    assert {each["name"]: each["shape"] for each in said["inputs"]}["u"] == [-1, 24]
    assert said["inputs"][-1]["name"] == "item_ids"
    assert client.get("/v2/models/other").status_code == 404
    assert client.put(INFER).status_code == 405
    assert client.post(INFER, content=b" " * 20_001).status_code == 413
    text = client.get("/metrics").text
    assert 'mari_onnx_requests_total{status="413"} 1.0' in text
    assert "mari_onnx_user_cache_bytes" in text


def test_routes_under_a_prefix(service):
    """`serve run .. --route-prefix /a`."""

    async def score(asked):
        return service.score_many([asked])[0]

    client = served(Api(service, "ranking", score, LIMITS, Metrics()), "/a")
    assert client.get("/a/v2/health/ready").status_code == 200
    assert client.post(f"/a{INFER}", json=body(request(9))).status_code == 200


def test_a_store_that_does_not_answer_is_the_servers_fault(service):
    async def score(_):
        return StoreUnavailable("the store at X does not answer", "is it running?")

    api = Api(service, "ranking", score, LIMITS, Metrics())
    assert served(api).post(INFER, json=body(request(3))).status_code == 503


@pytest.mark.slow
def test_a_packed_input_is_read_by_all_parts(tmp_path):
    import mari_onnx
    from mari_onnx.serving import Ranker

    mari_onnx.split(ROOT / "models/packed_pnn.onnx").save(tmp_path / "split")
    with np.load(ROOT / "models/packed_pnn.npz") as arrays:
        recorded = {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith("0/")}
    whole = onnxruntime.InferenceSession(ROOT / "models/packed_pnn.onnx", providers=["CPUExecutionProvider"])
    count = max(len(v) for v in recorded.values())
    feed = {k: np.repeat(v, count, 0) if len(v) == 1 else v for k, v in recorded.items()}
    ranker = Ranker(tmp_path / "split")
    assert {each.side for each in ranker.manifest.inputs} >= {"packed"}
    packed = protocol.tensors_to_arrow(recorded, {})
    asked = protocol.from_arrow(packed, ranker.manifest, 10_000).request
    service = Service(ranker, states=StateCache())
    answer = service.score(replace(asked, user_key="someone"))
    for name, want in zip([o.name for o in whole.get_outputs()], whole.run(None, feed), strict=True):
        np.testing.assert_allclose(answer.outputs[name], want, rtol=1e-4, atol=1e-5)
    # Other candidates of the user take the state that is kept, another user does not.
    column = ranker.user_columns["X"][0]
    for rows, change, cached in ((slice(3, None), 0.0, True), (slice(0, None), 1.0, False)):
        x = recorded["X"][rows].copy()
        x[:, column] += change
        answer = service.score(Request("someone", None, {"X": x}, {"X": x}))
        assert answer.cached is cached
        with pytest.raises(BadFeatures, match="X has the shape"):
            service.score(Request("someone", None, {"X": x[:, :5]}, {"X": x[:, :5]}))
        np.testing.assert_allclose(answer.outputs["score"], whole.run(["score"], {"X": x})[0], rtol=1e-4, atol=1e-5)
