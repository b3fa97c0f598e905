"""The application on a real Ray Serve: requests are merged, and a bad one does not harm its neighbours."""

from __future__ import annotations

import json
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mari_onnx.errors import UsageError
from mari_onnx.serving.catalogue import Catalogue
from mari_onnx.serving.precompute import precompute
from tests.serving.conftest import features, write_catalogue
from tests.serving.malformed import Wrong, json_of
from tests.serving.test_faults import LIMITS, head
from tests.serving.test_http import INFER, body
from tests.serving.test_service import ITEMS, close, expected, request, source

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own modules
pytest.importorskip("ray")
httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def url(ray_here, batched_folder, ranker, tmp_path_factory):
    from ray import serve

    from mari_onnx.serving.ray import app

    path = tmp_path_factory.mktemp("ray")
    catalogue = write_catalogue(path / "i.parquet", np.arange(ITEMS), features(ITEMS))
    precompute(ranker, Catalogue(catalogue, ranker.manifest), path / "s.arrow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = {"folder": str(batched_folder), "store": str(path / "s.arrow"), "batch": "8", "wait_ms": "20"}
    settings |= {"body_mb": str(LIMITS.body / (1 << 20)), "candidates": str(LIMITS.candidates)}
    serve.run(app(settings), name="test")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.mark.slow
def test_merged_requests_are_answered_each_by_itself(url):
    session = source()
    asked = [request(1 + seed % 20, seed) for seed in range(40)]
    bodies = [body(each) for each in asked]
    for bad in range(0, 40, 5):
        bodies[bad]["inputs"][0]["data"][0] = ITEMS + bad
    with httpx.Client() as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda b: client.post(url + INFER, json=b, timeout=60), bodies))
        text = client.get(f"{url}/metrics").text
    for number, (each, answer) in enumerate(zip(asked, answers, strict=True)):
        if number % 5:
            close(np.array(answer.json()["outputs"][0]["data"])[:, None], expected(each, session))
        else:
            assert answer.status_code == 400
            assert f"no rows of the items {ITEMS + number}" in answer.json()["error"]
    batches = float(next(x for x in text.splitlines() if x.startswith("mari_onnx_batch_size_count")).split()[1])
    assert batches < len(asked)


@pytest.mark.slow
def test_faults_harm_no_other_request(url):
    """Each way to be wrong, and clients that hang up, beside right requests."""
    session, port = source(), int(url.rpartition(":")[2])
    wrong = Wrong(request, ITEMS, LIMITS.candidates, LIMITS.body)
    cases = [wrong.case(number) for number in range(len(wrong.ways))]
    asked = [request(1 + seed % 9, 300 + seed) for seed in range(len(cases))]

    def both(number):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as gone:
            text = json.dumps(body(asked[number])).encode()
            gone.sendall((head(len(text)) + text)[: len(head(len(text))) + number * len(text) // len(cases)])
        case = cases[number]
        bad = client.request(case.method, url + case.path, content=case.content, headers=case.headers, timeout=60)
        return bad, client.post(url + INFER, json=body(asked[number]), timeout=60)

    with httpx.Client() as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(both, range(len(cases))))
    for case, each, (bad, right) in zip(cases, asked, answers, strict=True):
        assert bad.status_code in case.may, (case, bad.text)
        close(np.array(right.json()["outputs"][0]["data"])[:, None], expected(each, session))


@pytest.mark.slow
def test_more_requests_than_may_wait_are_a_503(url, batched_folder, monkeypatch):
    """Of a replica that is slow, under a prefix: four requests run, one waits, and the others are told at once."""
    from ray import serve

    from mari_onnx.serving import ray as module

    class Slow(module.Scoring.func_or_class):  # type: ignore[name-defined, misc]
        def service(self, settings):
            import time

            service = super().service(settings)
            score_many = service.score_many
            service.score_many = lambda requests: time.sleep(1) or score_many(requests)
            return service

    monkeypatch.setattr(module, "Scoring", serve.deployment(Slow))
    settings = {"folder": str(batched_folder), "name": "busy", "batch": 1, "queue": 1}
    serve.run(module.app(settings), name="busy", route_prefix="/busy")
    asked = request(item_ids=None, items={k: v[:7] for k, v in features(ITEMS).items()})
    inputs = {**asked.user, **asked.items, **asked.cross}
    said, path = json_of(inputs), f"{url}/busy/v2/models/busy"
    with httpx.Client(timeout=60) as client, ThreadPoolExecutor(16) as pool:
        assert client.get(f"{path}/ready").status_code == 200
        answers = list(pool.map(lambda _: client.post(f"{path}/infer", json=said), range(16)))
        again = client.post(f"{path}/infer", json=said)
    counts = Counter(answer.status_code for answer in [*answers, again])
    assert set(counts) == {200, 503}
    assert counts[200] >= 5
    want = expected(request(item_ids=np.arange(7)), source())
    for answer in [*answers, again]:
        if answer.status_code == 200:
            close(np.array(answer.json()["outputs"][0]["data"])[:, None], want)
    assert again.status_code == 200
    serve.delete("busy")


def test_settings_that_are_wrong():
    from mari_onnx.serving.ray import Settings

    with pytest.raises(UsageError, match="folder of a split is missing"):
        Settings.of({})
    with pytest.raises(UsageError, match="there is no setting wait"):
        Settings.of({"folder": "x", "wait": "1"})
    with pytest.raises(UsageError, match="batch=many is no number"):
        Settings.of({"folder": "x", "batch": "many"})
    for name, value in (("batch", "0.5"), ("threads", "1.5"), ("queue", "inf"), ("replicas", 0)):
        with pytest.raises(UsageError, match=f"{name}={value} is not a whole number from 1 on"):
            Settings.of({"folder": "x", name: value})
    with pytest.raises(UsageError, match="wait_ms=-1 is not a number from 0 on"):
        Settings.of({"folder": "x", "wait_ms": -1})
    made = Settings.of({"folder": "x", "batch": "4", "cache_mb": "0.5", "wait_ms": 0, "store": None})
    assert (made.folder, made.batch, made.cache_mb, made.queue) == ("x", 4, 0.5, 200)
    assert (made.wait_ms, made.store) == (0, "")
