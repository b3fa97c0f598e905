"""A request is answered as the source would, by one version of the model."""

from __future__ import annotations

import threading

import numpy as np
import onnxruntime
import pytest

from mari_onnx.errors import BadFeatures, MissingItems, OtherModel
from mari_onnx.serving import ArrowStore, Ranker, Request, Service, StateCache
from mari_onnx.serving.catalogue import Catalogue
from mari_onnx.serving.precompute import precompute
from tests.serving.conftest import features, make_split, ranking_model, write_catalogue

ITEMS = 300


def source(seed=0):
    return onnxruntime.InferenceSession(ranking_model(seed).SerializeToString(), providers=["CPUExecutionProvider"])


def store_of(ranker, path):
    write_catalogue(path.with_suffix(".parquet"), np.arange(ITEMS), features(ITEMS))
    precompute(ranker, Catalogue(path.with_suffix(".parquet"), ranker.manifest), path)
    return ArrowStore(path)


@pytest.fixture(scope="module")
def store(ranker, tmp_path_factory):
    return store_of(ranker, tmp_path_factory.mktemp("store") / "items.arrow")


def request(count=7, seed=0, **given):
    rng = np.random.default_rng(seed)
    made = {
        "user_key": f"user {seed}",
        "item_ids": rng.integers(0, ITEMS, count),
        "user": {"u": rng.standard_normal((1, 24)).astype(np.float32)},
        "cross": {"c": rng.standard_normal((count, 4)).astype(np.float32)},
    }
    return Request(**{**made, **given})


def expected(asked, session):
    items = features(ITEMS)
    feed = {k: v[np.asarray(asked.item_ids)] for k, v in items.items()}
    feed |= {"u": np.repeat(asked.user["u"], len(feed["x"]), 0), **asked.cross}
    return session.run(None, feed)[0]


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_answers_are_the_sources(ranker, store):
    service, session = Service(ranker, store, StateCache()), source()
    asked = [request(n, seed) for seed in range(3) for n in (1, 7, 40)]
    for each, answer in zip(asked, service.score_many(asked), strict=True):
        close(answer.outputs["score"], expected(each, session))
    first = asked[-1]
    again = service.score(Request(first.user_key, first.item_ids, cross=first.cross))
    assert again.cached
    close(again.outputs["score"], expected(first, session))


def test_a_bad_request_does_not_harm_its_neighbours(ranker, store):
    service, session = Service(ranker, store, StateCache()), source()
    bad = [
        (request(item_ids=[1, ITEMS + 5], cross={"c": np.zeros((2, 4), np.float32)}), MissingItems, str(ITEMS + 5)),
        (request(cross={}), BadFeatures, "c is missing"),
        (request(user={}, user_key="never seen"), BadFeatures, "no state of the user never seen"),
        (request(user={"u": np.zeros((1, 24))}), BadFeatures, "u is float64, not float32"),
        (request(items=features(7)), BadFeatures, "item ids and items' features"),
    ]
    good = request(5, 9)
    answers = service.score_many([good, *(each for each, _, _ in bad), good])
    for answer, (_, kind, words) in zip(answers[1:-1], bad, strict=True):
        assert isinstance(answer, kind)
        assert words in str(answer)
    for answer in (answers[0], answers[-1]):
        close(answer.outputs["score"], expected(good, session))


def test_features_instead_of_ids(ranker):
    asked = request(item_ids=None, items={k: v[:7] for k, v in features(ITEMS).items()})
    want = expected(request(item_ids=np.arange(7)), source())
    close(Service(ranker).score(asked).outputs["score"], want)
    with pytest.raises(BadFeatures, match="no store of rows"):
        Service(ranker).score(request())


def test_a_changed_user_is_not_answered_with_the_old_state(ranker, store):
    service, session = Service(ranker, store, StateCache()), source()
    for seed in range(3):
        asked = request(seed=seed, user_key="same")
        close(service.score(asked).outputs["score"], expected(asked, session))


def test_switching_under_load_never_mixes_versions(ranker, store, tmp_path):
    other = Ranker(make_split(tmp_path / "other", seed=1))
    other_store = store_of(other, tmp_path / "other.arrow")
    service = Service(ranker, store, StateCache())
    with pytest.raises(OtherModel, match="the store has rows of the model"):
        service.switch(other, store)
    asked = request(20, 4)
    want = {r.manifest.source["sha256"]: expected(asked, source(seed)) for seed, r in enumerate((ranker, other))}
    wrong, seen, stop = [], set(), threading.Event()

    def score():
        while not stop.is_set():
            answer = service.score(asked)
            seen.add(answer.version)
            if not np.allclose(answer.outputs["score"], want[answer.version], rtol=1e-4, atol=1e-4):
                wrong.append(answer.version)

    workers = [threading.Thread(target=score) for _ in range(3)]
    for worker in workers:
        worker.start()
    for turn in range(200):
        service.switch(*((other, other_store) if turn % 2 else (ranker, store)))
        service.score(asked)
    stop.set()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert seen == set(want)
