"""Scores for requests: a user's state from the cache, items' rows from the store, and one run of score.onnx.

In: requests. Out: for each the outputs of the source, or what is wrong with that request alone. Which model, store and
version answers is one reference (`Service.switch`), so a request never meets two versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mari_onnx.errors import BadFeatures, MariError, OtherModel, StoreUnavailable
from mari_onnx.serving.row_format import Id, RowFormat, ids_to_numpy, shown
from mari_onnx.serving.states import StateCache, fingerprint
from mari_onnx.serving.store import ItemStore
from mari_onnx.splitting.packed import of_user
from mari_onnx.splitting.ranker import Ranker
from mari_onnx.splitting.rows import Arrays, ItemRows, UserState


@dataclass(frozen=True)
class Request:
    """One user and the candidates.

    Attributes:
        user_key: under which the user's state is kept; None to keep none.
        item_ids: the candidates, in the order in which scores are wanted. None: `items` has their features.
        user: the user's inputs `[1, ..]`; may be empty where the state is kept.
        items: the item's inputs `[n, ..]` for n candidates, where there are no ids.
        cross: inputs that depend on both, `[n, ..]`. Arrays have the element types of the source's inputs.
    """

    user_key: str | None = None
    item_ids: Sequence[Id] | np.ndarray | None = None
    user: Arrays = field(default_factory=dict)
    items: Arrays = field(default_factory=dict)
    cross: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a request is answered with.

    Attributes:
        outputs: name -> array, in the source's element types and shapes: `[n, ..]` where it has a row per candidate.
        missing: ids that the store does not have, and that got a default or computed row.
        cached: the user's state was there. version: `Manifest.source` sha256 of the model that answered.
    """

    outputs: Mapping[str, np.ndarray]
    missing: tuple[Id, ...]
    cached: bool
    version: str


@dataclass(frozen=True)
class _Model:
    ranker: Ranker
    store: ItemStore | None


class Service:
    """Answers requests. Safe for several threads.

    Args:
        ranker: the model. store: rows of its items; None where requests bring the items' features.
        states: where users' states are kept; None: nowhere.

    Raises:
        OtherModel: the store has rows of another model.
    """

    def __init__(self, ranker: Ranker, store: ItemStore | None = None, states: StateCache | None = None):
        self.states = states
        self._model = _matched(ranker, store)

    @property
    def ranker(self) -> Ranker:
        """The model that answers now."""
        return self._model.ranker

    @property
    def store(self) -> ItemStore | None:
        """The store that is read now."""
        return self._model.store

    def switch(self, ranker: Ranker, store: ItemStore | None) -> None:
        """Another model, or another store, from the next request on. Requests that run finish with what they have.

        Raises:
            OtherModel: the store has rows of another model; everything stays as it was.
        """
        self._model = _matched(ranker, store)

    def score(self, request: Request) -> Answer:
        """The outputs for one request.

        Raises:
            BadFeatures: something is missing or has another type or shape.
            MissingItems, StoreUnavailable: see `ItemStore.get_many`.
            ModelError: a model fails, as on an id that is in no table.
        """
        return self._score(self._model, request)

    def score_many(self, requests: Sequence[Request]) -> list[Answer | MariError]:
        """The outputs for each request, or its error; one model answers all of them.

        If the split has score.batched.onnx, rows are fetched for all requests at once, and one run scores them.
        """
        model = self._model
        if len(requests) > 1 and model.ranker.manifest.batched is not None:
            try:
                return self._merged(model, requests)
            except Exception:  # each by itself tells whose fault it is
                pass
        answers: list[Answer | MariError] = []
        for request in requests:
            try:
                answers.append(self._score(model, request))
            except MariError as error:
                answers.append(error)
            except Exception as error:  # whatever it is, the other requests get their scores
                answers.append(MariError(f"a defect of mari-onnx: {type(error).__name__}: {error}", "please report it"))
        return answers

    def _merged(self, model: _Model, requests: Sequence[Request]) -> list[Answer | MariError]:
        """The same by one run for all requests that are right."""
        failed: dict[int, MariError] = {}
        states: dict[int, tuple[UserState, bool]] = {}
        for at, request in enumerate(requests):
            try:
                states[at] = self._state(model, request)
            except MariError as error:
                failed[at] = error
        found = _rows_of_all(model, {at: requests[at] for at in states}, failed)
        answers: dict[int, Answer | MariError] = {**failed}
        if found is not None:
            ranker, version = model.ranker, model.ranker.manifest.source["sha256"]
            cross = [requests[at].cross for at in found.counts]
            whole, counts = found.rows, [*found.counts.values()]
            if not whole.arrays:
                counts = [ranker.count_of(whole, given) for given in cross]
            outputs = ranker.score_together([states[at][0] for at in found.counts], whole, counts, cross)
            for at, made in zip(found.counts, outputs, strict=True):
                if isinstance(made, MariError):
                    answers[at] = made
                else:
                    answers[at] = Answer(made, found.missing.get(at, ()), states[at][1], version)
        return [answers[at] for at in range(len(requests))]

    def _score(self, model: _Model, request: Request) -> Answer:
        state, cached = self._state(model, request)
        rows, missing = _rows(model, request)
        outputs = model.ranker.score(state, rows, request.cross)
        return Answer(outputs, missing, cached, model.ranker.manifest.source["sha256"])

    def _state(self, model: _Model, request: Request) -> tuple[UserState, bool]:
        ranker = model.ranker

        def make() -> UserState:
            if not request.user and request.user_key is not None and ranker.manifest.state:
                raise BadFeatures(
                    f"there is no state of the user {request.user_key}, and the request has no features of the user",
                    "send the user's features; they may be left out once the state is kept",
                )
            return ranker.user(request.user)

        if self.states is None or request.user_key is None:
            return make(), False
        features = fingerprint(of_user(request.user, ranker.user_columns)) if request.user else None
        return self.states.get(request.user_key, ranker.manifest.state_key, make, features)


def _rows(model: _Model, request: Request) -> tuple[ItemRows, tuple[Id, ...]]:
    store = _store(model, request)
    if store is None or request.item_ids is None:
        return model.ranker.items(request.items), ()
    found = store.get_many(request.item_ids)
    return found.rows, found.missing


def _store(model: _Model, request: Request) -> ItemStore | None:
    """Where a request's rows are; None where it has features of items.

    Raises:
        BadFeatures: it has both, or there is no store.
    """
    if request.item_ids is None:
        return None
    if request.items:
        raise BadFeatures("the request has item ids and items' features", "send one of them")
    if model.store is None:
        raise BadFeatures("the request has item ids, and there is no store of rows", "send the items' features")
    return model.store


@dataclass
class _Gathered:
    """Rows of several requests, those of a request together.

    Attributes:
        counts: request -> how many it has, in the order of the rows. missing: request -> `Answer.missing`.
    """

    rows: ItemRows
    counts: dict[int, int]
    missing: dict[int, tuple[Id, ...]]


def _rows_of_all(model: _Model, requests: Mapping[int, Request], failed: dict[int, MariError]) -> _Gathered | None:
    """The rows of all requests, by one look-up in the store if all are there; None where no request has rows.

    Args:
        requests: by number. failed: gets the errors of requests that have none.
    """
    ids: dict[int, np.ndarray] = {}
    single: dict[int, ItemRows] = {}
    missing: dict[int, tuple[Id, ...]] = {}
    for at, request in requests.items():
        try:
            if _store(model, request) is not None and request.item_ids is not None:
                ids[at] = ids_to_numpy(request.item_ids)
            else:
                single[at] = model.ranker.items(request.items)
        except MariError as error:
            failed[at] = error
    whole = None
    try:
        if ids and model.store is not None and len({each.dtype.kind for each in ids.values() if each.size}) < 2:
            found = model.store.get_many(np.concatenate([*ids.values()]))
            whole, absent = found.rows, {*found.missing}
            missing = {at: tuple(x for x in dict.fromkeys(shown(i)) if x in absent) for at, i in ids.items() if absent}
    except StoreUnavailable as error:
        failed.update(dict.fromkeys(ids, error))
        ids = {}
    except MariError:  # each by itself tells whose fault it is
        pass
    if whole is None:
        for at in ids:
            try:
                single[at], missing[at] = _rows(model, requests[at])
            except MariError as error:
                failed[at] = error
        ids = {}
    counts = {at: len(each) for at, each in ids.items()} | {at: rows.count for at, rows in single.items()}
    parts = [*([whole] if whole is not None else []), *single.values()]
    return _Gathered(ItemRows.joined(parts), counts, missing) if parts else None


def _matched(ranker: Ranker, store: ItemStore | None) -> _Model:
    if store is not None and store.key != ranker.manifest.rows_key:
        raise OtherModel(
            f"the store has rows of the model {store.key[:12]}, and this one reads those of "
            f"{ranker.manifest.rows_key[:12]}",
            "mari-onnx precompute makes rows of this model",
        )
    if store is not None and store.format.columns != RowFormat.of(ranker.manifest).columns:
        raise OtherModel(
            f"the store has the tensors {', '.join(c.name for c in store.format.columns)}, and score.onnx reads "
            f"{', '.join(t.name for t in ranker.manifest.rows)}",
            "mari-onnx precompute makes rows of this model",
        )
    return _Model(ranker, store)
