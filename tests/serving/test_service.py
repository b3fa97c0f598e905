"""A request is answered as the source would, by one version of the model."""

from __future__ import annotations

import threading

import numpy as np
import onnxruntime
import pytest

from mari_onnx.errors import BadFeatures, MissingItems, OtherModel, StoreUnavailable
from mari_onnx.serving import ArrowStore, Ranker, Request, Service, StateCache
from mari_onnx.serving.catalogue import Catalogue
from mari_onnx.serving.precompute import precompute
from mari_onnx.serving.row_format import RowFormat
from tests.serving.conftest import features, make_split, ranking_model, write_catalogue

ITEMS = 300


def source(seed=0):
    return onnxruntime.InferenceSession(ranking_model(seed).SerializeToString(), providers=["CPUExecutionProvider"])


def store_of(ranker, path):
    write_catalogue(path.with_suffix(".parquet"), np.arange(ITEMS), features(ITEMS))
    precompute(ranker, Catalogue(path.with_suffix(".parquet"), ranker.manifest), path)
    return ArrowStore(path)


@pytest.fixture(scope="module", params=["each by itself", "in one run"])
def ranker(request, folder, batched_folder):
    return Ranker(folder if request.param == "each by itself" else batched_folder)


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


def test_requests_that_are_right_are_scored_in_one_run(batched_folder, tmp_path, monkeypatch):
    """Their rows are fetched at once; features instead of ids, missing items and bad requests are among them."""
    ranker = Ranker(batched_folder)
    store = store_of(ranker, tmp_path / "items.arrow")
    runs, asked, whole, look_up = [], [], ranker.in_one_run, store.get_many
    monkeypatch.setattr(ranker, "in_one_run", lambda *given: runs.append(given[3]) or whole(*given))
    monkeypatch.setattr(store, "get_many", lambda ids: asked.append(len(ids)) or look_up(ids))
    service, session = Service(ranker, store, StateCache()), source()
    features_alone = request(item_ids=None, items={k: v[:7] for k, v in features(ITEMS).items()})
    requests = [request(5, 1), request(cross={}), features_alone, request(0, 2), request(3, 3)]
    answers = service.score_many(requests)
    assert asked == [5 + 7 + 0 + 3]
    assert runs == [[5, 0, 3, 7]]
    assert isinstance(answers[1], BadFeatures)
    for at in (0, 3, 4):
        close(answers[at].outputs["score"], expected(requests[at], session))
    close(answers[2].outputs["score"], expected(request(item_ids=np.arange(7)), session))
    assert [a.cached for a in service.score_many([requests[0], request(2, 9)])] == [True, False]


def test_items_that_are_missing_are_those_of_their_request(batched_folder, tmp_path):
    ranker = Ranker(batched_folder)
    path, session = tmp_path / "items.arrow", source()
    store_of(ranker, path)
    one = {k: v[:1] for k, v in features(ITEMS).items()}
    requests = [request(3, 1), request(item_ids=[4, ITEMS + 1, 4, 5, 6, 7, ITEMS + 1]), request(4, 2)]
    answers = Service(ranker, ArrowStore(path), StateCache()).score_many(requests)
    assert isinstance(answers[1], MissingItems)
    assert answers[1].ids == (ITEMS + 1,)
    for at in (0, 2):
        close(answers[at].outputs["score"], expected(requests[at], session))
    lenient = Service(ranker, ArrowStore(path, default=ranker.items(one)), StateCache())
    answers = lenient.score_many(requests)
    assert [each.missing for each in answers] == [(), (ITEMS + 1,), ()]
    for at in (0, 2):
        close(answers[at].outputs["score"], expected(requests[at], session))
    stands_for = request(item_ids=[4, 0, 4, 5, 6, 7, 0])
    close(answers[1].outputs["score"], expected(stands_for, session))
    text = request(item_ids=["a", "b"], cross={"c": np.zeros((2, 4), np.float32)})
    answers = lenient.score_many([requests[0], text, requests[2]])
    assert isinstance(answers[1], BadFeatures)
    close(answers[2].outputs["score"], expected(requests[2], session))


def test_a_store_that_does_not_answer_is_asked_once(batched_folder, tmp_path, monkeypatch):
    ranker = Ranker(batched_folder)
    store = store_of(ranker, tmp_path / "items.arrow")
    asked = []

    def gone(ids):
        asked.append(len(ids))
        raise StoreUnavailable("the server does not answer", "")

    monkeypatch.setattr(store, "get_many", gone)
    by_features = request(item_ids=None, items={k: v[:7] for k, v in features(ITEMS).items()})
    answers = Service(ranker, store, StateCache()).score_many([request(2, 1), by_features, request(3, 2)])
    assert asked == [5]
    assert isinstance(answers[0], StoreUnavailable)
    assert isinstance(answers[2], StoreUnavailable)
    close(answers[1].outputs["score"], expected(request(item_ids=np.arange(7)), source()))


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


def test_a_store_of_other_tensors_is_refused(ranker, store, monkeypatch):
    """Splits of one item.onnx may hand over other inputs of the item beside what it makes."""
    monkeypatch.setattr(store, "format", RowFormat(store.format.key, store.format.columns[:0]))
    with pytest.raises(OtherModel, match=r"the store has the tensors , and score.onnx reads"):
        Service(ranker, store)


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
        seen.add(service.score(asked).version)
    stop.set()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert seen == set(want)
