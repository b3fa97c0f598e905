"""What goes wrong around a service: no wrong score, no crash, and no other request is harmed.

`make faults` sends 10,000 malformed requests; the tests send `MARI_ONNX_MALFORMED` of them, by default 1,000.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("httpx")
pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

import httpx
from starlette.applications import Starlette
from starlette.routing import Route

from mari_onnx.errors import MariError, MissingItems, StoreUnavailable
from mari_onnx.serving import ArrowStore, Service, StateCache
from mari_onnx.serving.http import Api, Limits, Metrics
from mari_onnx.serving.redis_store import RedisStore, load
from mari_onnx.splitting.ranker import Ranker
from tests.serving.conftest import make_split
from tests.serving.malformed import INFER, Wrong, json_of, tensors
from tests.serving.test_service import ITEMS, close, expected, request, source, store_of

MALFORMED = int(os.environ.get("MARI_ONNX_MALFORMED", "1000"))
LIMITS = Limits(body=20_000, candidates=50, seconds=1.0)
TOGETHER = 8
"""Malformed requests that are sent beside two right ones."""


class Merging:
    """Scores the requests that wait together, as the deployment does by `serve.batch`."""

    def __init__(self, service):
        self._service, self._waiting = service, []
        self.sizes = collections.Counter()

    async def __call__(self, asked):
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.append((asked, future))
        if len(self._waiting) == 1:
            loop.call_later(0.002, lambda: loop.create_task(self._run(loop)))
        return await future

    async def _run(self, loop):
        waiting, self._waiting = self._waiting, []
        self.sizes[len(waiting)] += 1
        answers = await loop.run_in_executor(None, self._service.score_many, [each for each, _ in waiting])
        for (_, future), answer in zip(waiting, answers, strict=True):
            if not future.done():
                future.set_result(answer)


def application(service, score=None):
    """The service over HTTP, and what counts for it."""
    api = Api(service, "ranking", score or Merging(service), LIMITS, Metrics())

    async def answer(http):
        return await api(http)

    methods = ["GET", "POST", "PUT"]
    return Starlette(routes=[Route("/{path:path}", answer, methods=methods)]), api


@pytest.fixture(scope="module")
def files(batched_folder, tmp_path_factory):
    """A ranker, and the store of its items."""
    ranker = Ranker(batched_folder)
    path = tmp_path_factory.mktemp("faults") / "items.arrow"
    store_of(ranker, path)
    return ranker, path


@pytest.fixture(scope="module")
def rights():
    """Right requests on the wire, with what the source scores."""
    session, found = source(), []
    for seed in range(40):
        asked = request(1 + seed % 12, 5000 + seed)
        said = json_of(tensors(asked), parameters={"user_key": asked.user_key})
        found.append((said, expected(asked, session)))
    return found


def counts_of(api):
    """Status -> how many requests had it, by the metrics."""
    (metric,) = api.metrics.requests.collect()
    return {each.labels["status"]: each.value for each in metric.samples if each.name.endswith("total")}


def judged(answer, want):
    """Whether an answer has the scores that are wanted."""
    if answer.status_code != 200:
        return f"status {answer.status_code}: {answer.text[:200]}"
    got = np.array(answer.json()["outputs"][0]["data"], np.float64)[:, None]
    return "" if got.shape == want.shape and np.allclose(got, want, rtol=1e-4, atol=1e-4) else "a wrong score"


def test_malformed_requests(files, rights):
    """Beside right ones, in the same batches: each gets a status of 4xx that says why, these get their scores."""
    ranker, path = files
    service = Service(ranker, ArrowStore(path), StateCache())
    merging = Merging(service)
    app, api = application(service, merging)
    wrong = Wrong(request, ITEMS, LIMITS.candidates, LIMITS.body)
    ways, faults = collections.Counter(), []

    async def one(client, case):
        answer = await client.request(case.method, case.path, content=case.content, headers=case.headers)
        ways[case.way, answer.status_code] += 1
        if answer.status_code not in case.may or (answer.status_code != 200 and not answer.json()["error"]):
            faults.append((case, answer.status_code, answer.text[:300]))

    async def right(client, number):
        said, want = rights[number % len(rights)]
        fault = judged(await client.post(INFER, json=said), want)
        if fault:
            faults.append((said, fault))

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for start in range(0, MALFORMED, TOGETHER):
                cases = [wrong.case(number) for number in range(start, min(start + TOGETHER, MALFORMED))]
                await asyncio.gather(
                    right(client, start), *(one(client, case) for case in cases), right(client, start // TOGETHER)
                )
                assert faults == []

    asyncio.run(run())
    assert len({way for way, _ in ways}) == len(wrong.ways)
    assert sum(ways.values()) == MALFORMED
    assert max(merging.sizes) > 2
    counted = counts_of(api)
    assert counted["200"] == sum(n for (_, status), n in ways.items() if status == 200) + 2 * -(-MALFORMED // TOGETHER)
    print(f"{MALFORMED} malformed requests: " + ", ".join(f"{k}: {int(v)}" for k, v in sorted(counted.items())))


# ---- over sockets -----------------------------------------------------------------------------------------------
@contextmanager
def listening(app):
    """The application on a port of this machine."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield port
    finally:
        server.should_exit = True
        thread.join()


class Load:
    """Right requests from several clients, until the block ends; `faults` has what was wrong with answers.

    Args:
        ask: asks a request, by number, and says what is wrong with the answer. clients: threads.
    """

    def __init__(self, ask, clients=3):
        self.faults, self.done, self._ask = [], 0, ask
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]

    def _run(self, number):
        while not self._stop.is_set():
            try:
                fault = self._ask(number)
            except Exception as error:
                fault = repr(error)
            if fault:
                self.faults.append(fault)
            self.done += 1
            number += len(self._threads)

    def wait(self, more):
        """Until so many further requests were answered."""
        until = self.done + more
        while self.done < until:
            time.sleep(0.005)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def raw(port, text, then=b"", pause=0.0):
    """Sends bytes, a pause, more bytes; what comes back until the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(text)
        time.sleep(pause)
        connection.sendall(then)
        found = b""
        while b"\r\n\r\n" not in found and (part := connection.recv(4096)):
            found += part
        return found


def head(length, kind="application/json"):
    return f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n".encode()


def test_clients_that_are_slow_or_hang_up(files, rights):
    """Beside right requests: a body that does not come is a 408, one who hangs up is let go, garbage is a 400."""
    ranker, path = files
    app, api = application(Service(ranker, ArrowStore(path), StateCache()))
    body = json.dumps(rights[0][0]).encode()
    rng = np.random.default_rng(0)
    with listening(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

        def ask(number):
            said, want = rights[number % len(rights)]
            return judged(client.post(INFER, json=said), want)

        with Load(ask) as load_of:
            load_of.wait(20)
            slow = [threading.Thread(target=raw, args=(port, head(1000), b"", 1.5)) for _ in range(4)]
            for thread in slow:
                thread.start()
            for number in range(40):
                with socket.create_connection(("127.0.0.1", port), timeout=10) as gone:
                    sent = head(len(body)) + body
                    # Before the end of the body, at its end, and while the answer comes.
                    gone.sendall(sent[: [20, len(head(len(body))) + 10, len(sent) - 1, len(sent)][number % 4]])
                if number % 5 == 0:
                    assert b" 400 " in raw(port, rng.bytes(300) + b"\r\n\r\n")[:20]
            assert b" 408 " in raw(port, head(1000) + b"{", b"", 1.3)[:20]
            arrives = raw(port, head(len(body)) + body[:40], body[40:], 0.3)
            assert b" 200 " in arrives[:20]
            for thread in slow:
                thread.join()
            load_of.wait(20)
        assert load_of.faults == []
        counted = counts_of(api)
        assert counted["408"] >= 5
        assert counted["499"] >= 10
        assert "500" not in counted


# ---- stores -----------------------------------------------------------------------------------------------------
@contextmanager
def redis_server(folder, *options):
    """What starts a server of Redis on one socket; all that it started are ended."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    path, started = folder / "socket", []

    def start():
        path.unlink(missing_ok=True)
        command = [program, "--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", "", *options]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        import redis

        client = redis.Redis.from_url(f"unix://{path}")
        for _ in range(400):
            try:
                client.ping()
                break
            except redis.RedisError:
                time.sleep(0.025)
        client.close()
        return started[-1]

    try:
        yield f"unix://{path}", start
    finally:
        for server in started:
            server.kill()
            server.wait()


def asker(service, errors, count=12):
    """Asks for scores, alone and several at once; counts errors by their type."""
    session = source()
    asked = [request(1 + seed % 9, seed) for seed in range(count)]
    want = [expected(each, session) for each in asked]

    def ask(number):
        several = [number % count, (number + 1) % count] if number % 2 else [number % count]
        for at, answer in zip(several, service.score_many([asked[at] for at in several]), strict=True):
            if isinstance(answer, MariError):
                errors[type(answer).__name__] += 1
            elif not np.allclose(answer.outputs["score"], want[at], rtol=1e-4, atol=1e-4):
                return "a wrong score"
        return ""

    return ask


@pytest.mark.parametrize("kept", [True, False], ids=["with its rows", "without its rows"])
def test_redis_is_killed_and_started_again_under_load(files, tmp_path, kept):
    ranker, path = files
    options = ["--appendonly", "yes", "--appendfsync", "always"] if kept else []
    with redis_server(tmp_path, *options) as (url, start):
        server = start()
        load(ArrowStore(path), url)
        service, errors = Service(ranker, RedisStore(url), StateCache()), collections.Counter()
        with Load(asker(service, errors)) as load_of:
            for _ in range(3):
                load_of.wait(30)
                server.kill()
                server.wait()
                load_of.wait(6)  # who asks now is told
                assert errors["StoreUnavailable"] > 0
                server = start()
                if not kept:
                    load_of.wait(6)
                    load(ArrowStore(path), url)
                    service.switch(ranker, RedisStore(url))
                load_of.wait(6)  # what was on its way
                errors_before = errors.total()
                load_of.wait(30)
                assert errors.total() == errors_before
        assert load_of.faults == []
        assert set(errors) == {"StoreUnavailable"}


def test_rows_that_go_one_by_one(files, tmp_path):
    """An eviction: requests for these items say so, others get their scores, in one run and by themselves."""
    import redis

    ranker, path = files
    with redis_server(tmp_path) as (url, start):
        start()
        load(ArrowStore(path), url)
        service, session = Service(ranker, RedisStore(url), StateCache()), source()
        asked = [request(5, seed) for seed in range(6)]
        gone = {int(asked[0].item_ids[2]), int(asked[3].item_ids[0])}
        with redis.Redis.from_url(url) as client:
            generation = service.store.generation
            client.delete(*(f"mari-onnx:{generation}:{item}" for item in gone))
            for answers in (service.score_many(asked), [service.score_many([each])[0] for each in asked]):
                for each, answer in zip(asked, answers, strict=True):
                    lost = [x for x in dict.fromkeys(each.item_ids.tolist()) if x in gone]
                    if lost:
                        assert isinstance(answer, MissingItems)
                        assert list(answer.ids) == lost
                    else:
                        close(answer.outputs["score"], expected(each, session))
            client.flushall()
        answers = service.score_many(asked)
        assert {type(answer) for answer in answers} == {StoreUnavailable}


def test_rows_that_are_gone_are_no_missing_items(files, tmp_path):
    """A server that lost its rows, or a store that was loaded anew twice, is not the client's fault."""
    _, path = files
    with redis_server(tmp_path) as (url, start):
        server = start()
        load(ArrowStore(path), url)
        store = RedisStore(url)
        server.kill()
        server.wait()
        start()
        with pytest.raises(StoreUnavailable, match="no longer has the rows"):
            store.get_many([1, 2])
        with pytest.raises(StoreUnavailable, match="no longer has the rows"):
            store.get_many([1, ITEMS + 1])


def test_stores_are_switched_under_load(files, tmp_path):
    """Two versions in Redis under one name, loaded and switched to in turn, while requests come over HTTP."""
    ranker, path = files
    other = Ranker(make_split(tmp_path / "other", seed=1, batched="offsets"))
    store_of(other, tmp_path / "other.arrow")
    both = ((ranker, path), (other, tmp_path / "other.arrow"))
    asked = [request(1 + seed % 9, seed) for seed in range(12)]
    names = [each.manifest.source["sha256"][:12] for each, _ in both]
    want = {name: [expected(each, source(seed)) for each in asked] for seed, name in enumerate(names)}
    bodies = [json_of(tensors(each), parameters={"user_key": each.user_key}) for each in asked]
    with redis_server(tmp_path) as (url, start):
        start()
        load(ArrowStore(path), url)
        service, seen = Service(ranker, RedisStore(url), StateCache()), collections.Counter()
        app, _ = application(service)
        with listening(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

            def ask(number):
                answer = client.post(INFER, json=bodies[number % len(bodies)])
                if answer.status_code != 200:
                    return answer.text
                version = answer.json()["model_version"]
                seen[version] += 1
                return judged(answer, want[version][number % len(bodies)])

            with Load(ask) as load_of:
                for turn in range(10):
                    load_of.wait(10)
                    next_one, rows = both[turn % 2]
                    load(ArrowStore(rows), url)
                    service.switch(next_one, RedisStore(url))
        assert load_of.faults == []
        assert set(seen) == set(names)


def test_a_store_file_is_replaced_under_load(files, tmp_path):
    """A file that is renamed over another one: who has the old one open reads it to the end."""
    ranker, path = files
    shutil.copy(path, tmp_path / "items.arrow")
    service, errors = Service(ranker, ArrowStore(tmp_path / "items.arrow"), StateCache()), collections.Counter()
    with Load(asker(service, errors)) as load_of:
        for _ in range(10):
            load_of.wait(10)
            shutil.copy(path, tmp_path / "new.arrow")
            os.replace(tmp_path / "new.arrow", tmp_path / "items.arrow")
            service.switch(ranker, ArrowStore(tmp_path / "items.arrow"))
    assert load_of.faults == []
    assert errors.total() == 0


def test_right_requests_are_right_without_faults(files, rights):
    """The other tests would pass if nothing were compared."""
    ranker, path = files
    app, _ = application(Service(ranker, ArrowStore(path), StateCache()))
    said, want = rights[3]

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post(INFER, json=said)

    answer = asyncio.run(run())
    assert judged(answer, want) == ""
    assert judged(answer, want + 1) == "a wrong score"
    close(np.array(answer.json()["outputs"][0]["data"])[:, None], want)
