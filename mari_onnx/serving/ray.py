"""The service as an application of Ray Serve: replicas, merged requests, HTTP.

    serve run mari_onnx.serving.ray:app folder=ranking-v7 store=items-v7.arrow

In: settings as `name=value`. Out: an application. Requests that wait are scored together (`serve.batch`). Deploying the
application again with other settings is how a new version comes: its replicas start before the old ones end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from ray import serve
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mari_onnx.errors import MariError, UsageError
from mari_onnx.serving.http import Api, Limits, Metrics, check_number
from mari_onnx.serving.opening import open_store
from mari_onnx.serving.service import Answer, Request, Service
from mari_onnx.serving.states import StateCache
from mari_onnx.splitting.ranker import Ranker


@dataclass(frozen=True)
class Settings:
    """What `serve run` takes.

    Attributes:
        folder: of the split. store: a file or URL of item rows; "": requests bring the items' features.
        name: of the model in routes. threads: onnxruntime's, per replica. replicas: processes.
        cache_mb, cache_seconds: of users' states, per replica.
        batch: requests that are scored together at most. wait_ms: how long the first one waits for others.
        body_mb, candidates: of a request at most.
        queue: requests that may wait at each HTTP proxy of Ray while every replica has `4 * batch`; more get a 503.
    """

    folder: str
    store: str = ""
    name: str = "ranking"
    threads: int = 1
    replicas: int = 1
    cache_mb: float = 256.0
    cache_seconds: float = 600.0
    batch: int = 16
    wait_ms: float = 1.0
    body_mb: float = 16.0
    candidates: int = 10_000
    queue: int = 200

    @classmethod
    def of(cls, args: dict[str, Any]) -> Settings:
        """Settings of texts.

        Raises:
            UsageError: one is not there, or is no number.
        """
        kinds: dict[str, Any] = {name: type(default) for name, default in vars(cls("")).items()}
        for name in args:
            if name not in kinds:
                raise UsageError(f"there is no setting {name}", f"there are: {', '.join(kinds)}")
        if not args.get("folder"):
            raise UsageError("the folder of a split is missing", "serve run mari_onnx.serving.ray:app folder=DIR")
        read: dict[str, Any] = {}
        for name, value in args.items():
            kind = kinds[name]
            if value is not None:  # "store: null" in a config file
                read[name] = str(value) if kind is str else kind(check_number(name, value, kind is int))
        return cls(**read)


@serve.deployment
class Scoring:
    """A replica: the models, the store, a cache of states."""

    def __init__(self, settings: Settings):
        self._service = self.service(settings)
        limits = Limits(int(settings.body_mb * (1 << 20)), settings.candidates)
        self._metrics = Metrics()
        self._api = Api(self._service, settings.name, self._one, limits, self._metrics)
        self._many.set_max_batch_size(settings.batch)
        self._many.set_batch_wait_timeout_s(settings.wait_ms / 1000)

    def service(self, settings: Settings) -> Service:
        """What scores."""
        return Service(
            Ranker(settings.folder, threads=settings.threads),
            open_store(settings.store) if settings.store else None,
            StateCache(int(settings.cache_mb * (1 << 20)), settings.cache_seconds),
        )

    async def __call__(self, http: HttpRequest) -> Response:
        """Answers over HTTP."""
        return await self._api(http)

    async def _one(self, request: Request) -> Answer | MariError:
        # An exception in a list would be raised by Ray; in a tuple it is an answer.
        return (await self._many(request))[0]  # type: ignore[no-any-return]

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.001)  # type: ignore[untyped-decorator]
    async def _many(self, requests: list[Request]) -> list[tuple[Answer | MariError]]:
        self._metrics.batch.observe(len(requests))
        answers = await asyncio.get_running_loop().run_in_executor(None, self._service.score_many, requests)
        return [(answer,) for answer in answers]


def app(args: dict[str, Any]) -> serve.Application:
    """The application, for `serve run mari_onnx.serving.ray:app name=value ..` or a Serve config file.

    Args:
        args: see `Settings`.

    Raises:
        UsageError: a setting is wrong.
    """
    settings = Settings.of(args)
    options = {
        "name": settings.name,
        "num_replicas": settings.replicas,
        "max_ongoing_requests": 4 * settings.batch,
        "max_queued_requests": settings.queue,
        "ray_actor_options": {"num_cpus": settings.threads},
    }
    made: serve.Application = Scoring.options(**options).bind(settings)  # type: ignore[attr-defined]
    return made
