"""The ways to serve: as services that take the same requests.

In: a folder with the models. Out: applications of Ray Serve; and for times without HTTP, functions that score requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray import serve

from mari_onnx import runtime
from mari_onnx.errors import MariError
from mari_onnx.serving.opening import open_store
from mari_onnx.serving.ray import Scoring, Settings
from mari_onnx.serving.service import Answer, Request, Service
from mari_onnx.serving.states import StateCache
from mari_onnx.splitting.manifest import Manifest, read
from mari_onnx.splitting.ranker import Ranker

WAYS = {
    "source": "(a) the source",
    "optimized": "(b) what optimize writes",
    "split": "(c) split, states and rows kept",
    "merged": "(d) split, requests merged",
    "nothing": "no model: every score is 0",
}
WHOLE = ("source", "optimized")
"""Ways whose requests bring all features."""
BATCH, WAIT_MS = 16, 2.0


class Whole:
    """A model in one file, behind the same interface as `mari_onnx.serving.Service`: every request brings all features.

    Args:
        path: the model. repeat: whether it takes the user's inputs once per candidate.
    """

    states = store = None

    def __init__(self, path: Path, manifest: Manifest, repeat: bool):
        self.ranker = SimpleNamespace(manifest=manifest)
        self._session, self._repeat = runtime.session(path, "cpu", threads=1), repeat
        self._names = [each.name for each in self._session.get_outputs()]

    def score(self, request: Request) -> Answer:
        """The outputs."""
        count = len(next(iter(request.items.values())))
        user = {k: np.repeat(v, count, 0) if self._repeat else v for k, v in request.user.items()}
        outputs = runtime.run(self._session, {**user, **request.items, **request.cross}, "the model")
        return Answer(dict(zip(self._names, outputs, strict=True)), (), False, "")

    def score_many(self, requests: Sequence[Request]) -> list[Answer | MariError]:
        """The outputs of each."""
        return [self.score(each) for each in requests]


class Nothing:
    """Scores of 0, for what HTTP and Ray Serve take by themselves."""

    states = store = None

    def __init__(self, manifest: Manifest):
        self.ranker = SimpleNamespace(manifest=manifest)

    def score_many(self, requests: Sequence[Request]) -> list[Answer | MariError]:
        """As many zeros as there are candidates."""
        shapes = [(len(np.asarray(each.item_ids)), 1) for each in requests]
        return [Answer({"score": np.zeros(shape, np.float32)}, (), False, "") for shape in shapes]


class WholeScoring(Scoring.func_or_class):  # type: ignore[name-defined, misc]
    """A replica with a model in one file, which the setting `store` names."""

    def service(self, settings: Settings) -> Any:
        """See `Scoring.service`."""
        return Whole(Path(settings.store), read(settings.folder), Path(settings.store).name == "source.onnx")


class NothingScoring(Scoring.func_or_class):  # type: ignore[name-defined, misc]
    """A replica without a model."""

    def service(self, settings: Settings) -> Any:
        """See `Scoring.service`."""
        return Nothing(read(settings.folder))


def application(way: str, folder: Path) -> serve.Application:
    """One of `WAYS`, with one replica."""
    several = way in ("merged", "nothing")
    settings = Settings(
        str(folder / "split"),
        str(folder / (f"{way}.onnx" if way in WHOLE else "items.arrow")),
        batch=BATCH if several else 1,
        wait_ms=WAIT_MS if several else 0.0,
    )
    of = {"source": WholeScoring, "optimized": WholeScoring, "nothing": NothingScoring}
    made: Any = serve.deployment(of[way]) if way in of else Scoring
    app: serve.Application = made.options(
        num_replicas=1, max_ongoing_requests=4 * BATCH, ray_actor_options={"num_cpus": 0.5}
    ).bind(settings)
    return app


def scorer(way: str, folder: Path) -> Callable[[Sequence[Request]], Sequence[Answer | MariError]]:
    """The same without HTTP, for several requests."""
    if way in WHOLE:
        return Whole(folder / f"{way}.onnx", read(folder / "split"), way == "source").score_many
    return Service(Ranker(folder / "split"), open_store(str(folder / "items.arrow")), StateCache()).score_many
