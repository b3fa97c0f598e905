"""The service over HTTP: routes of the Open Inference Protocol (v2), and metrics in Prometheus' format.

In: requests as Starlette has them. Out: responses. Scoring is handed to a callable, which may merge requests that wait.
What is wrong with a request is a status 400 with one sentence; 413 is a body that is too large, 503 a store that does
not answer.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mari_onnx.errors import MariError, ModelError, StoreUnavailable, UsageError
from mari_onnx.serving import protocol
from mari_onnx.serving.service import Answer, Request, Service
from mari_onnx.splitting.manifest import InputInfo, OutputInfo

Score = Callable[[Request], Awaitable[Answer | MariError]]


@dataclass(frozen=True)
class Limits:
    """Of one request. body: bytes. candidates: their number. seconds: until the body has come."""

    body: int = 16 << 20
    candidates: int = 10_000
    seconds: float = 10.0


class Metrics:
    """What the service counts. A batch is what is scored in one go."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("mari_onnx_requests", "Requests by status", ["status"], registry=registry)
        self.seconds = Histogram("mari_onnx_request_seconds", "From the body to the answer", registry=registry)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batch = Histogram("mari_onnx_batch_size", "Requests in a batch", buckets=sizes, registry=registry)
        self.missing = Counter("mari_onnx_missing_items", "Items that the store did not have", registry=registry)
        self.hits = Gauge("mari_onnx_user_cache_hits", "States that were there", registry=registry)
        self.misses = Gauge("mari_onnx_user_cache_misses", "States that had to be made", registry=registry)
        self.bytes = Gauge("mari_onnx_user_cache_bytes", "What states take", registry=registry)

    def text(self, service: Service) -> bytes:
        """All of them."""
        if service.states is not None:
            self.hits.set(service.states.counts.hits + service.states.counts.joined)
            self.misses.set(service.states.counts.misses)
            self.bytes.set(service.states.bytes)
        return generate_latest(self.registry)


class Api:
    """Answers HTTP requests.

    Args:
        service: what scores. name: of the model in routes.
        score: scores one request, maybe together with others that wait.
    """

    def __init__(self, service: Service, name: str, score: Score, limits: Limits, metrics: Metrics):
        self._service, self._name, self._score, self._limits, self.metrics = service, name, score, limits, metrics

    async def __call__(self, http: HttpRequest) -> Response:
        """The answer to one request."""
        # Ray Serve may have the application under a prefix.
        path = http.scope["path"].removeprefix(http.scope.get("root_path", "")).strip("/")
        get = http.method == "GET"
        model = f"v2/models/{self._name}"
        if get and path in ("v2/health/live", "v2/health/ready", f"{model}/ready"):
            return Response(b"")
        if get and path == "metrics":
            return Response(self.metrics.text(self._service), media_type="text/plain; version=0.0.4")
        if get and path in ("v2", model):
            return _json(self._server() if path == "v2" else self._model())
        if path == f"{model}/infer":
            if http.method != "POST":
                return self._failed(405, "infer takes POST")
            return await self._infer(http)
        return self._failed(404, f"there is no {http.method} /{path}; this server has the model {self._name}")

    async def _infer(self, http: HttpRequest) -> Response:
        begun = time.perf_counter()
        arrow = http.headers.get("content-type", "").split(";")[0] == protocol.ARROW
        manifest = self._service.ranker.manifest
        try:
            body = await asyncio.wait_for(self._body(http), self._limits.seconds)
            if body is None:
                return self._failed(413, f"the body has more than {self._limits.body} bytes")
            read = protocol.from_arrow if arrow else protocol.from_json
            asked = read(body, manifest, self._limits.candidates)
        except MariError as error:
            return self._failed(400, str(error.message))
        except ClientDisconnect:  # nobody reads this; it is counted
            return self._failed(499, "the client hung up")
        except TimeoutError:
            return self._failed(408, f"the body did not come within {self._limits.seconds:g} s")
        answer = await self._score(asked.request)
        if isinstance(answer, StoreUnavailable):
            return self._failed(503, answer.message)
        if isinstance(answer, MariError):
            # A value that the model cannot take (an id beyond its table) is the request's fault, too.
            known = isinstance(answer, UsageError | ModelError)
            return self._failed(400 if known else 500, answer.message.splitlines()[0])
        self.metrics.requests.labels("200").inc()
        self.metrics.missing.inc(len(answer.missing))
        if arrow:
            made = Response(protocol.to_arrow(answer, self._name, asked.id), media_type=protocol.ARROW)
        else:
            made = Response(protocol.to_json(answer, self._name, asked.id, asked.outputs), media_type=protocol.JSON)
        self.metrics.seconds.observe(time.perf_counter() - begun)
        return made

    async def _body(self, http: HttpRequest) -> bytes | None:
        """The body; None where it is too large."""
        said = http.headers.get("content-length", "")
        if said.isdecimal() and int(said) > self._limits.body:
            return None
        parts, size = [], 0
        async for part in http.stream():
            size += len(part)
            if size > self._limits.body:
                return None
            parts.append(part)
        return b"".join(parts)

    def _failed(self, status: int, why: str) -> Response:
        self.metrics.requests.labels(str(status)).inc()
        return Response(json.dumps({"error": why}).encode(), status, media_type=protocol.JSON)

    def _server(self) -> dict[str, object]:
        from mari_onnx.version import __version__

        return {"name": "mari-onnx", "version": __version__, "extensions": [protocol.ARROW]}

    def _model(self) -> dict[str, object]:
        manifest, names = self._service.ranker.manifest, {v: k for k, v in protocol.TYPES.items()}

        def shown(each: InputInfo | OutputInfo) -> dict[str, object]:
            shape = [d if isinstance(d, int) else -1 for d in each.shape]
            return {"name": each.name, "datatype": names.get(each.dtype, each.dtype), "shape": shape}

        inputs: list[dict[str, object]] = [shown(each) for each in manifest.inputs]
        if self._service.store is not None:
            inputs.append({"name": protocol.ITEM_IDS, "datatype": "INT64 or BYTES", "shape": [-1]})
        return {
            "name": self._name,
            "versions": [manifest.source["sha256"][:12]],
            "platform": "mari-onnx",
            "inputs": inputs,
            "outputs": [shown(each) for each in manifest.outputs],
        }


def check_number(name: str, text: object, whole: bool) -> float:
    """A setting that is a number: a whole one from 1 on, or any from 0 on.

    Raises:
        UsageError: it is none.
    """
    try:
        number = float(str(text))
    except ValueError as error:
        raise UsageError(f"{name}={text} is no number", f"{name}=100, for instance") from error
    least = int(whole)
    if not least <= number < math.inf or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{name}={text} is not {kind} from {least} on", f"{name}=100, for instance")
    return number


def _json(said: object) -> Response:
    return Response(json.dumps(said).encode(), media_type=protocol.JSON)
