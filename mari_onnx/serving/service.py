"""Scores for requests: a user's state from the cache, items' rows from the store, and one run of score.onnx.

In: requests. Out: for each the outputs of the source, or what is wrong with that request alone. Which model, store and
version answers is one reference (`Service.switch`), so a request never meets two versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mari_onnx.errors import BadFeatures, MariError, OtherModel
from mari_onnx.serving.row_format import Id
from mari_onnx.serving.states import StateCache, fingerprint
from mari_onnx.serving.store import ItemStore
from mari_onnx.splitting.ranker import Arrays, ItemRows, Ranker, UserState


@dataclass(frozen=True)
class Request:
    """One user and the candidates.

    Attributes:
        user_key: under which the user's state is kept; None to keep none.
        item_ids: the candidates, in the order in which scores are wanted. None: `items` has their features.
        user: the user's inputs with one row; may be empty where the state is kept.
        items: the item's inputs with a row per candidate, where there are no ids.
        cross: inputs that depend on both, a row per candidate.
    """

    user_key: str | None = None
    item_ids: Sequence[Id] | np.ndarray | None = None
    user: Arrays = field(default_factory=dict)
    items: Arrays = field(default_factory=dict)
    cross: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """Outputs by name, with a row per candidate where the source has one.

    Attributes:
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
            BadFeatures: something is missing or has another type or shape. MissingItems, StoreUnavailable: see
            `ItemStore.get_many`.
        """
        return self._score(self._model, request)

    def score_many(self, requests: Sequence[Request]) -> list[Answer | MariError]:
        """The outputs for each request, or its error; one model answers all of them."""
        model, answers = self._model, []
        for request in requests:
            answer: Answer | MariError
            try:
                answer = self._score(model, request)
            except MariError as error:
                answer = error
            except Exception as error:  # whatever it is, the other requests get their scores
                answer = MariError(f"a defect of mari-onnx: {type(error).__name__}: {error}", "please report it")
            answers.append(answer)
        return answers

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
        features = fingerprint(request.user) if request.user else None
        return self.states.get(request.user_key, ranker.manifest.state_key, make, features)


def _rows(model: _Model, request: Request) -> tuple[ItemRows, tuple[Id, ...]]:
    if request.item_ids is None:
        return model.ranker.items(request.items), ()
    if request.items:
        raise BadFeatures("the request has item ids and items' features", "send one of them")
    if model.store is None:
        raise BadFeatures("the request has item ids, and there is no store of rows", "send the items' features")
    found = model.store.get_many(request.item_ids)
    return found.rows, found.missing


def _matched(ranker: Ranker, store: ItemStore | None) -> _Model:
    if store is not None and store.key != ranker.manifest.rows_key:
        raise OtherModel(
            f"the store has rows of the model {store.key[:12]}, and this one reads those of "
            f"{ranker.manifest.rows_key[:12]}",
            "mari-onnx precompute makes rows of this model",
        )
    return _Model(ranker, store)
