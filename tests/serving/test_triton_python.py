"""Triton's Python backend answers requests by a service, each by itself."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tritonclient")

from mari_onnx.cli.main import cli
from mari_onnx.errors import UsageError
from mari_onnx.serving.catalogue import Catalogue
from mari_onnx.serving.precompute import precompute
from mari_onnx.serving.triton.onnx_backend import one_file
from mari_onnx.serving.triton.python_backend import Settings, service
from mari_onnx.serving.triton.repository import write
from tests.serving.conftest import features, ranking_model, write_catalogue
from tests.serving.test_triton import answer_of_source, close, run_readme, saved
from tests.serving.triton_server import Refused, Server

ITEMS = 300


@pytest.fixture(scope="module")
def store(ranker, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "items.arrow"
    write_catalogue(path.with_suffix(".parquet"), np.arange(ITEMS), features(ITEMS))
    precompute(ranker, Catalogue(path.with_suffix(".parquet"), ranker.manifest), path)
    return path


@pytest.fixture(params=["folder", "batched_folder"])
def server(request, tmp_path, store):
    folder = request.getfixturevalue(request.param)
    write(tmp_path / "repository", [service(folder, "ranking", Settings(str(store)))], force=False)
    saved(ranking_model(), tmp_path / "source.onnx")
    write(tmp_path / "repository", [one_file(tmp_path / "source.onnx", "source")], force=False)
    return Server(tmp_path / "repository")


def a_request(count=7, seed=0, **given):
    """As Triton hands it over."""
    rng = np.random.default_rng(seed)
    made = {
        "user_key": np.array([[f"user {seed}".encode()]], object),
        "item_ids": rng.integers(0, ITEMS, (1, count)),
        "u": rng.standard_normal((1, 24)).astype(np.float32),
        "c": rng.standard_normal((1, count, 4)).astype(np.float32),
    }
    return {k: v for k, v in {**made, **given}.items() if v is not None}


def expected(request):
    items = {k: v[request["item_ids"][0]] for k, v in features(ITEMS).items()}
    return answer_of_source({"u": request["u"], **items, "c": request["c"][0]})[0][None]


def test_requests_that_come_together(server):
    requests = [a_request(count, seed) for seed, count in enumerate((1, 7, 40))]
    for request, answer in zip(requests, server.infer_together("ranking", requests), strict=True):
        close(answer["score"], expected(request))
    again = {**requests[1], "u": None}
    close(server.infer("ranking", {k: v for k, v in again.items() if v is not None})["score"], expected(requests[1]))


def test_a_bad_request_gets_an_error_of_its_own(server):
    good = a_request(5, 9)
    bad = [
        (a_request(2, item_ids=np.array([[1, ITEMS + 5]])), str(ITEMS + 5)),
        (a_request(c=None), "c is missing"),
        (a_request(u=None, user_key=np.array([[b"never seen"]], object)), "no state of the user never seen"),
        (a_request(user_key=np.array([[b"\xff"]], object)), "not UTF-8"),
        ({k: np.repeat(v, 2, 0) for k, v in a_request().items()}, "a request is for one user"),
    ]
    answers = server.infer_together("ranking", [good, *(each for each, _ in bad), good])
    for answer, (_, words) in zip(answers[1:-1], bad, strict=True):
        assert isinstance(answer, Refused)
        assert words in str(answer)
        assert answer.code == "INVALID_ARG"
    for answer in (answers[0], answers[-1]):
        close(answer["score"], expected(good))


def test_features_instead_of_ids(server):
    whole = a_request(7)
    request = {**whole, **{k: v[whole["item_ids"][0]][None] for k, v in features(ITEMS).items()}}
    del request["item_ids"]
    close(server.infer("ranking", request)["score"], expected(whole))


def test_the_readme(server, tmp_path, monkeypatch):
    request = a_request(7, 3)
    ids = request["item_ids"][0]
    given = {"u": request["u"], "c": request["c"][0], **{k: v[ids] for k, v in features(ITEMS).items()}}
    folder = tmp_path / "repository/ranking"
    names = {"features": given, "n": 7, "candidates": ids, "user": "user 3"}
    _, before, after = run_readme(folder, server, monkeypatch, **names)
    close(before["score"], expected(request)[0])
    close(after["score"], before["score"])
    assert 'tensor("x"' not in (folder / "README.md").read_text().split("## After")[1]


def test_the_command(tmp_path, folder, store):
    to = str(tmp_path / "r")
    cli.main(["triton", str(folder), to, "--backend", "python", "--store", str(store), "--name", "m", "-q"],
             standalone_mode=False)  # fmt: skip
    close(Server(tmp_path / "r").infer("m", a_request())["score"], expected(a_request()))
    cli.main(["triton", str(folder), to, "--backend", "python", "--name", "features", "-q"], standalone_mode=False)
    assert {i.name for i in Server(tmp_path / "r").configs["features"].input} == {"user_key", "u", "x", "genre", "c"}
    saved(ranking_model(), tmp_path / "source.onnx")
    with pytest.raises(UsageError, match="--backend python serves a split"):
        cli.main(["triton", str(tmp_path / "source.onnx"), to, "--backend", "python"], standalone_mode=False)
    with pytest.raises(UsageError, match="--store is read by --backend python"):
        cli.main(["triton", str(folder), to, "--store", str(store)], standalone_mode=False)
