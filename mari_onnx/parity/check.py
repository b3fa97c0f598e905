"""Are two models equal? Same requests through both, against a float64 run of the source.

Every run is its own phase: one session is made, all requests go through it, it is let go. So a
large model is never in memory more than once (in float64: twice).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx import runtime
from mari_onnx.errors import MariError, ModelError, ProviderError, UsageError
from mari_onnx.model.signature import Signature, signature
from mari_onnx.parity import float64
from mari_onnx.parity.domains.domains import domains as domains_of
from mari_onnx.parity.judge import metrics
from mari_onnx.parity.judge.verdict import FLOOR_BLIND_ULPS, Verdict
from mari_onnx.parity.requests import draw
from mari_onnx.parity.requests.plan import Plan
from mari_onnx.parity.result import CheckResult
from mari_onnx.parity.settings import Settings

if TYPE_CHECKING:
    from mari_onnx.runtime import ModelLike
    from mari_onnx.sides.resolve import Sides

    Progress = Callable[[str, int, int], None]

# Requests that only complete the coverage: so many of them are run in float64 too.
_SETTLED = 32


def check(
    source: ModelLike,
    optimized: ModelLike,
    sides: Sides | None = None,
    *,
    requests: Iterable[draw.Request] | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> CheckResult:
    """Compares two models on the same requests.

    Args:
        source, optimized: paths (preferred for large models) or ModelProtos.
        sides: of the source's inputs; read from the models' metadata or side file where None.
        requests: recorded requests (`parity.recorded.load`) instead of drawn ones.
        settings: see `Settings`; `changes` are fields of it.
        progress: called with (phase, done, total).

    Raises:
        ModelError: a model cannot be read, or the source runs on no request.
        ProviderError: a provider is not there, or no node ran on it.
    """
    chosen = replace(settings or Settings(), **changes)
    return _Check(source, optimized, sides, chosen, progress).run(requests)


@dataclass
class _Runs:
    """Outputs of one session: [request][output], and whether a second run gave other bits."""

    outputs: list[list[np.ndarray] | MariError]
    unstable: set[str]


class _Check:
    def __init__(
        self,
        source: ModelLike,
        optimized: ModelLike,
        sides: Sides | None,
        settings: Settings,
        progress: Progress | None,
    ):
        self.models = {"source": source, "optimized": optimized}
        self.settings, self.progress = settings, progress or (lambda *_: None)
        self.names = {k: _name(m, k) for k, m in self.models.items()}
        self.result = CheckResult(self.names["source"], self.names["optimized"], settings)
        loaded, other = float64.light(source), float64.light(optimized)
        self.signatures = {"source": signature(loaded), "optimized": signature(other)}
        self.sides = (
            sides if sides is not None else find_sides([source, optimized], [loaded, other])
        )
        self.layout = draw.Layout(self.signatures["source"], self.sides)
        theirs = self.signatures["optimized"]
        both = {i.name for i in theirs.inputs} == {i.name for i in self.layout.signature.inputs}
        pair = (other, draw.Layout(theirs, self.sides)) if both and theirs.inputs else None
        domains, notes = domains_of(loaded, self.layout, pair)
        self.result.notes += notes
        self.plan = Plan(self.layout, domains, self.settings)
        self._refused: set[int] = set()

    def run(self, recorded: Iterable[draw.Request] | None) -> CheckResult:
        started = time.perf_counter()
        self._structure()
        first = self.settings.providers[0]
        requests, source_off = self._requests(recorded, first)
        self.result.requests, self.result.candidates = (
            len(requests),
            sorted({r.n for r in requests}),
        )
        if self.result.failures:
            return self._done(started)
        exact, *seconds = self._exact(requests)
        covering = []
        if recorded is None:
            covering = self.plan.covering(*seconds) + self._steep()
            self.result.coverage = self.plan.drawer.coverage()
            self.result.values = self.plan.drawer.meeting.report()
            self.result.notes += _unmet(self.result.values)
        once = len(covering)
        for provider in self.settings.providers:
            off = (
                source_off
                if provider == first
                else self._phase("source", provider, False, requests)
            )
            on = self._phase("source", provider, True, requests + covering, once)
            runs = {
                "off": self._phase("optimized", provider, False, requests),
                "on": self._phase("optimized", provider, True, requests + covering, once),
            }
            self._left_out(covering, on.outputs[len(requests) :])
            exact += [None] * (len(requests) + len(covering) - len(exact))
            self._settle(requests + covering, exact, on, runs["on"])
            self._compare(provider, requests + covering, len(requests), exact, [off, on], runs)
            if runtime.provider_name(provider) != "CPUExecutionProvider":
                self._verify(provider, requests[0])
        return self._done(started)

    def _done(self, started: float) -> CheckResult:
        self.result.seconds = time.perf_counter() - started
        return self.result

    def _structure(self) -> None:
        """Names, count, order and types of inputs and outputs."""
        a, b = self.signatures["source"], self.signatures["optimized"]
        for kind, mine, theirs in (("input", a.inputs, b.inputs), ("output", a.outputs, b.outputs)):
            types, others = {i.name: i.dtype for i in mine}, {i.name: i.dtype for i in theirs}
            self.result.failures += [f"{kind} {n} is missing" for n in types if n not in others]
            self.result.failures += [
                f"{kind} {n} is not in the source" for n in others if n not in types
            ]
            self.result.failures += [
                f"{kind} {n} is {others[n]}, in the source {types[n]}"
                for n in types
                if n in others and types[n] != others[n]
            ]
            if set(types) == set(others) and list(types) != list(others):
                self.result.failures.append(
                    f"the {kind}s are in another order: {', '.join(others)}"
                )

    def _requests(
        self, recorded: Iterable[draw.Request] | None, provider: str
    ) -> tuple[list[draw.Request], _Runs]:
        """Requests that the source can run, and its outputs on them."""
        positive, ordinary = False, True
        before = None  # requests with NaN where floats are of both signs
        if recorded is None and self.layout.fixed_n is not None:
            self.result.notes.append(f"the source takes N = {self.layout.fixed_n} alone")
        while True:
            given = list(recorded) if recorded is not None else self.plan.draw(positive, ordinary)
            recorded = given if recorded is not None else None
            if not given:
                raise UsageError(
                    "there is no request to check with", "give --candidates or recorded requests"
                )
            runs = self._phase("source", provider, False, given)
            kept = [
                (r, o)
                for r, o in zip(given, runs.outputs, strict=True)
                if not isinstance(o, MariError)
            ]
            lost = [
                (r, o) for r, o in zip(given, runs.outputs, strict=True) if isinstance(o, MariError)
            ]
            told_apart = recorded is None and self.plan.drawer.meeting.report()
            if told_apart and ordinary and any(r.edge is None for r, _ in lost):
                # Perhaps for a number that it is compared with: such numbers then have requests of their own alone.
                ordinary = False
                continue
            if not kept:
                raise ModelError(f"the source runs on no request; the first: {lost[0][1]}")
            nan = [r.edge for r, o in kept if _has_nan(o)]
            if recorded is None and before is None and None in nan:
                # Logarithms and roots: with NaN everywhere nothing would be compared.
                positive, before = True, nan.count(None)
                continue
            if positive and before is not None and nan.count(None) >= before:
                positive = False  # it is not the sign: negative numbers are worth having
                continue
            break
        where = {(f"at N={r.n}" if r.edge is None else f"for a user with {r.edge.label}"): o for r, o in reversed(lost)}
        for place, error in sorted(where.items()):
            self.result.notes.append(f"the source itself fails {place}, which is left out: {_first_line(error)}")
        if None in nan:
            self.result.notes.append("the source answers NaN on some requests")
        else:
            labels = ", ".join(dict.fromkeys(e.label for e in nan if e is not None))
            self.result.notes += [f"the source answers NaN for a user with {labels}"] if nan else []
        return [r for r, _ in kept], _Runs([o for _, o in kept], runs.unstable)

    def _phase(
        self,
        which: str,
        provider: str,
        optimize: bool,
        requests: Sequence[draw.Request],
        once: int = 0,
    ) -> _Runs:
        """All requests through one session, each twice but the last `once`."""
        model, name = self.models[which], self.names[which]
        large = _size(model) > runtime.STAGE_BYTES
        try:
            made = runtime.session(
                model, provider, optimize, self.settings.threads, lean=large, what=name
            )
        except ModelError as error:
            if which == "source":
                raise
            self.result.failures.append(_first_line(error))
            return _Runs([], set())
        outputs = [o.name for o in self.signatures["source"].outputs]
        has = {o.name for o in self.signatures[which].outputs}
        outputs = [o for o in outputs if o in has]
        found: list[list[np.ndarray] | MariError] = []
        unstable: set[str] = set()
        phase = f"{which}, {provider}, optimizations {'on' if optimize else 'off'}"
        for index, request in enumerate(requests):
            self.progress(phase, index, len(requests))
            feed = request.feed(made.get_inputs())
            try:
                found.append(runtime.run(made, feed, f"{name} at N={request.n}", outputs))
                if index >= len(requests) - once:
                    continue
                again = runtime.run(made, feed, name, outputs)
            except MariError as error:
                if provider != "cpu" and not isinstance(error, ModelError):
                    raise
                found[index:] = [error]  # of either run
                continue
            first: Any = found[-1]
            unstable |= {
                n
                for n, a, b in zip(outputs, first, again, strict=True)
                if not metrics.same_bits(a, b)
            }
        self.progress(phase, len(requests), len(requests))
        if unstable:
            names = ", ".join(sorted(unstable))
            self.result.notes.append(
                f"{name} is not deterministic: two runs ({phase}) differ in {names}"
            )
        return _Runs(found, unstable)

    def _exact(
        self, requests: Sequence[draw.Request]
    ) -> tuple[list[list[np.ndarray] | None], float, float]:
        """The float64 outputs of the source, the median seconds of a run of the fewest candidates,
        and the seconds a candidate of the most."""
        found: list[list[np.ndarray] | None] = []
        times: dict[int, list[float]] = {}
        try:
            with float64.float64(self.models["source"], threads=self.settings.threads) as model:
                self.result.reference = model.text
                for index, request in enumerate(requests):
                    self.progress("source, float64", index, len(requests))
                    feed = request.feed(self.signatures["source"].inputs)
                    begun = time.perf_counter()
                    found.append(model.run(feed))
                    times.setdefault(request.n, []).append(time.perf_counter() - begun)
        except Exception as error:
            # No verdict hangs on it alone: the source's own answers are what is left
            # to compare with.
            self.result.reference = "none"
            self.result.notes.append(
                f"the source cannot be run in float64 ({_first_line(error)}): compared with its "
                f"own answers, within {FLOOR_BLIND_ULPS:g} units in the last place of their scale"
            )
            found = [None] * len(requests)
        if not times:
            return found, 2e-3, 2e-5
        medians = {n: float(np.median(seconds)) for n, seconds in times.items()}
        return found, medians[min(medians)], medians[max(medians)] / max(medians)

    def _steep(self) -> list[draw.Request]:
        """Requests with large numbers on which the source stays finite."""
        given = self.plan.steep()
        if not given:
            return []
        runs = [self._phase("source", self.settings.providers[0], on, given, len(given)) for on in (False, True)]
        return [
            request
            for request, *outputs in zip(given, *(r.outputs for r in runs), strict=True)
            if all(not isinstance(o, MariError) and _is_finite(o) for o in outputs)
        ]

    def _settle(
        self,
        requests: Sequence[draw.Request],
        exact: list[list[np.ndarray] | None],
        source: _Runs,
        optimized: _Runs,
    ) -> None:
        """Runs those requests in float64 too that only complete the coverage of ids and are the
        furthest apart: where the source itself errs as much, nothing is wrong."""
        if all(e is None for e in exact):
            return
        apart = []
        for place, (mine, theirs) in enumerate(
            zip(source.outputs, optimized.outputs, strict=False)
        ):
            if exact[place] is None and isinstance(mine, list) and isinstance(theirs, list):
                apart.append((metrics.furthest(mine, theirs), place))
        places = [place for far, place in sorted(apart, reverse=True)[:_SETTLED] if far > 0]
        if places:
            found, *_ = self._exact([requests[place] for place in places])
            for place, outputs in zip(places, found, strict=True):
                exact[place] = outputs

    def _compare(
        self,
        provider: str,
        requests: Sequence[draw.Request],
        drawn: int,
        exact: Sequence[list[np.ndarray] | None],
        sources: Sequence[_Runs],
        optimized: dict[str, _Runs],
    ) -> None:
        failed = set()
        for mode, runs in optimized.items():
            for request, outputs in zip(requests, runs.outputs, strict=False):
                if isinstance(outputs, MariError) and request.n not in failed and id(request) not in self._refused:
                    failed.add(request.n)
                    self.result.failures.append(
                        f"the optimized model fails at N={request.n} (optimizations {mode}): "
                        f"{_first_line(outputs)}"
                    )
        for index, output in enumerate(self.signatures["source"].outputs):
            verdict = Verdict(
                output.name, str(output.dtype), provider, self.settings, self.layout.axis, drawn
            )
            verdict.judge(
                index,
                requests,
                exact,
                [s.outputs for s in sources],
                [r.outputs for r in optimized.values()],
            )
            result = verdict.result
            answers = [o[index] for s in sources for o in s.outputs if isinstance(o, list)]
            if provider == self.settings.providers[0] and len(requests) > 1 and metrics.constant(answers):
                self.result.notes.append(
                    f"output {output.name} is the same for all candidates of all requests: nothing that is fed moves "
                    "it, so little of it is checked"
                )
            if not result.ok and result.worst is not None:
                worst = requests[result.worst.request]
                self.result.worst_request = self.result.worst_request or worst
                if self.settings.dump is not None:
                    result.dumped = self._dump(worst, output.name)
            self.result.outputs.append(result)

    def _left_out(self, covering: Sequence[draw.Request], outputs: Sequence[Any]) -> None:
        """Notes those requests for further ids and numbers that the source itself refuses."""
        refused = [(r, o) for r, o in zip(covering, outputs, strict=False) if isinstance(o, MariError)]
        if refused and not self._refused:
            self.result.notes.append(
                f"the source itself fails on {len(refused)} of {len(covering)} requests that meet further ids and "
                f"numbers, which are left out: {_first_line(refused[0][1])}"
            )
        self._refused.update(id(r) for r, _ in refused)

    def _dump(self, request: draw.Request, output: str) -> str:
        folder = Path(os.fspath(self.settings.dump or "."))
        folder.mkdir(parents=True, exist_ok=True)
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in output)
        path = folder / f"{safe}-N{request.n}.npz"
        np.savez(path, **request.arrays())  # type: ignore[arg-type]
        return str(path)

    def _verify(self, provider: str, request: draw.Request) -> None:
        """At least one node of the optimized model must have run on the provider."""
        made = {i.name: i for i in self.signatures["optimized"].inputs}
        feed = request.feed(list(made.values()))
        counts = runtime.nodes_by_provider(
            self.models["optimized"], feed, provider, self.names["optimized"]
        )
        wanted = runtime.provider_name(provider)
        if not counts.get(wanted):
            raise ProviderError(
                f"no node of {self.names['optimized']} ran on {wanted}: {counts or 'none ran'}",
                "the provider loaded but took no node; see its log, or check on cpu",
            )
        ran = ", ".join(f"{v} on {k}" for k, v in sorted(counts.items()))
        self.result.notes.append(f"{provider}: nodes ran {ran}; TF32 is off")


def find_sides(paths: Sequence[ModelLike], models: Sequence[Any]) -> Sides:
    """Sides of the first of `models`: from a side file beside either, from their metadata, or from
    inputs of one row in the second; none where nothing says."""
    from mari_onnx.sides.resolve import METADATA_KEY, Sides, resolve, side_file_beside

    metadata = [p.value for m in models for p in m.metadata_props if p.key == METADATA_KEY]
    files = [side_file_beside(os.fspath(p)) for p in paths if isinstance(p, str | os.PathLike)]
    file = next((f for f in files if f is not None), None)
    mine: Signature = signature(models[0])
    found = resolve(mine, file=file, metadata=metadata[0] if metadata else None)
    if found or len(models) < 2:
        return found
    # The optimized model's single rows tell.
    other = resolve(signature(models[1]))
    named = {i.name for i in mine.inputs}
    return Sides({k: v for k, v in other.inputs.items() if k in named}, {}, other.candidate_axis)


def _name(model: ModelLike, kind: str) -> str:
    return os.fspath(model) if isinstance(model, str | os.PathLike) else f"the {kind} model"


def _size(model: ModelLike) -> int:
    if not isinstance(model, str | os.PathLike):
        return runtime.weight_bytes(model)
    path = Path(os.fspath(model))
    beside = (
        [p.stat().st_size for p in path.parent.glob(path.name + ".data")] if path.exists() else []
    )
    return (path.stat().st_size if path.exists() else 0) + sum(beside)


def _unmet(values: Mapping[str, tuple[int, int]]) -> list[str]:
    missed = [f"{met} of {of} of {name}" for name, (met, of) in values.items() if met < of]
    return [f"numbers that the graph compares inputs with, met: {', '.join(missed)}"] if missed else []


def _has_nan(outputs: Any) -> bool:
    return any(
        o.dtype.kind == "f" and bool(np.isnan(o).any())
        for o in outputs
        if isinstance(o, np.ndarray)
    )


def _is_finite(outputs: Any) -> bool:
    return all(bool(np.isfinite(metrics.wide(o)).all()) for o in outputs if o.dtype.kind not in "biuOSU")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
