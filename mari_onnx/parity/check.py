"""Are two models equal? Same requests through both, against a float64 run of the source."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx import runtime
from mari_onnx.errors import (
    CannotCompare,
    MariError,
    ModelError,
    ProviderError,
    UsageError,
    first_line,
    no_room,
    without_room,
)
from mari_onnx.model.signature import Signature, signature
from mari_onnx.parity import float64
from mari_onnx.parity.candidates import with_axes
from mari_onnx.parity.coverage.empty import ENDS, tried
from mari_onnx.parity.coverage.guide import Guide
from mari_onnx.parity.coverage.watch import Watch
from mari_onnx.parity.domains.domains import domains as domains_of
from mari_onnx.parity.judge import metrics
from mari_onnx.parity.outputs import Outputs
from mari_onnx.parity.phases import Phases, Runs
from mari_onnx.parity.requests import draw
from mari_onnx.parity.requests.plan import Plan
from mari_onnx.parity.requests.recorded import as_requests
from mari_onnx.parity.result import CheckResult
from mari_onnx.parity.settings import Settings
from mari_onnx.sides.doubts import unseen_tags
from mari_onnx.sides.shapes import reshaped

if TYPE_CHECKING:
    from mari_onnx.parity.phases import Progress
    from mari_onnx.runtime import ModelLike
    from mari_onnx.sides.resolve import Sides



def check(
    source: ModelLike,
    optimized: ModelLike,
    sides: Sides | None = None,
    *,
    requests: str | os.PathLike[str] | Iterable[draw.Request] | None = None,
    drawing: bool | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> CheckResult:
    """Compares two models on the same requests.

    Args:
        source, optimized: paths (preferred for large models) or ModelProtos.
        sides: of the source's inputs; read from the models' metadata or side file where None.
        requests: recorded requests (`parity.requests.recorded.load`), or their file.
        drawing: draw requests; by default where none are recorded.
        settings: see `Settings`; `changes` are fields of it.
        progress: called with (phase, done, total).

    Raises:
        ModelError: a model cannot be read, or the source cannot be loaded.
        ProviderError: a provider asked for by name is not there, or no node ran on it.
        WriteError: there is no room for the temporary files of a large model.
    """
    chosen = replace(settings or Settings(), **changes)
    drawing = requests is None if drawing is None else drawing
    made = _Check(source, optimized, sides, chosen, progress)
    return made.run(as_requests(requests, made.signatures["source"], made.sides), drawing)


class _Check:
    def __init__(
        self,
        source: ModelLike,
        optimized: ModelLike,
        sides: Sides | None,
        settings: Settings,
        progress: Progress | None,
    ):
        models = {"source": source, "optimized": optimized}
        self.settings = settings
        self.names = {k: _name(m, k) for k, m in models.items()}
        self.result = CheckResult(self.names["source"], self.names["optimized"], settings)
        loaded, other = float64.light(source), float64.light(optimized)
        self.loaded = {"source": loaded, "optimized": other}
        self.signatures = {"source": signature(loaded), "optimized": signature(other)}
        self.sides = (
            sides if sides is not None else find_sides([source, optimized], [loaded, other])
        )
        self.sides = with_axes(loaded, self.sides, source)
        shaped = reshaped(loaded, self.sides.shapes)
        if shaped is not loaded:
            loaded = models["source"] = shaped
            self.signatures["source"] = signature(loaded)
        self.layout = draw.Layout(self.signatures["source"], self.sides)
        theirs = self.signatures["optimized"]
        both = {i.name for i in theirs.inputs} == {i.name for i in self.layout.signature.inputs}
        pair = (other, draw.Layout(theirs, self.sides)) if both and theirs.inputs else None
        domains, notes = domains_of(loaded, self.layout, pair)
        self.result.notes += notes
        conflict = runtime.conflict()
        self.result.notes += [conflict] if conflict else []
        self.plan = Plan(self.layout, domains, self.settings)
        self.phases = Phases(models, self.loaded, self.names, self.signatures, self.result, progress)
        self.result.settings = replace(settings, threads=self.phases.threads)
        self._refused: set[int] = set()
        self.outputs = Outputs(
            settings, self.signatures["source"].outputs, self.layout.axis, self.phases, self.result, self._refused
        )

    def run(self, recorded: Sequence[draw.Request], drawing: bool) -> CheckResult:
        started = time.perf_counter()
        try:
            self._run(recorded, drawing)
        except CannotCompare as error:
            self.result.cannot_compare.append(error.message)
        except OSError as error:
            if without_room(error):
                raise no_room(error) from error
            raise
        self.result.seconds = time.perf_counter() - started
        return self.result

    def _run(self, recorded: Sequence[draw.Request], drawing: bool) -> None:
        self._structure()
        recorded = self._survived(recorded)
        if self.result.failures and not recorded and not drawing:
            return
        providers = runtime.chosen(self.settings.providers)
        requests, source_off = self._requests(recorded, drawing, providers[0])
        self.result.requests, self.result.candidates = (
            len(requests),
            sorted({r.n for r in requests}),
        )
        own = {id(r) for r in recorded}
        self.result.recorded = sum(id(r) in own for r in requests)
        self.result.doubts = [] if recorded else unseen_tags(self.signatures["source"], self.sides)
        if self.result.failures:
            return
        exact = self.phases.exact(requests)
        covering = self._explore(requests, drawing, providers[0])
        exact += [None] * len(covering)
        for provider in providers:
            before = self.result.mark()
            try:
                if runtime.provider_name(provider) != "CPUExecutionProvider":
                    self._verify(provider, requests[0])
                off = source_off if provider == providers[0] else self._source(provider, False, requests)
                self._on(provider, requests, covering, exact, off)
            except (ProviderError, ModelError, CannotCompare) as error:
                if provider in self.settings.providers or provider == "cpu":
                    raise
                self.result.reset(before)  # nobody asked for it by name
                self.result.notes.append(f"{provider} is skipped: {first_line(error)}")
                continue
            self.result.providers.append(provider)
        self._compared(requests)
        self._reached([r for r in requests + covering if id(r) not in self._refused])

    def _on(
        self,
        provider: str,
        requests: Sequence[draw.Request],
        covering: Sequence[draw.Request],
        exact: list[list[np.ndarray] | None],
        off: Runs,
    ) -> None:
        """Runs and compares all on one provider."""
        failing = next((o for o in off.outputs if isinstance(o, MariError)), None)
        if failing is not None:
            raise CannotCompare(f"the source model itself fails on {provider}: {first_line(failing)}")
        everything, once = [*requests, *covering], len(covering)
        on = self._source(provider, True, everything, once)
        runs = {
            "off": self.phases.run("optimized", provider, False, requests),
            "on": self.phases.run("optimized", provider, True, everything, once),
        }
        names = [*runs["off"].differing, *(n for n in runs["on"].differing if n not in runs["off"].differing)]
        self.result.failures += [
            f"the optimized model answers the same request differently each time: output {n} ({provider})"
            for n in names
        ]
        further = on.outputs[len(requests) :]
        self._left_out(covering, further)
        on.outputs[len(requests) :] = further
        self.outputs.settle(everything, exact, on, runs["on"])
        self.outputs.compare(provider, everything, len(requests), exact, [off, on], runs)

    def _source(self, provider: str, optimize: bool, requests: Sequence[draw.Request], once: int = 0) -> Runs:
        """Runs of the source, which must answer a request in one way and, on a further provider, at all."""
        runs = self.phases.run("source", provider, optimize, requests, once)
        if runs.differing:
            raise CannotCompare(
                f"the source gives different results for the same request, in {', '.join(runs.differing)} "
                f"on {provider}: Dropout in training mode, a random operator, or values that an operator does not write"
            )
        return runs

    def _structure(self) -> None:
        """Names, count, order and types of inputs and outputs."""
        a, b = self.signatures["source"], self.signatures["optimized"]
        for kind, mine, theirs in (("input", a.inputs, b.inputs), ("output", a.outputs, b.outputs)):
            types, others = {i.name: i.type for i in mine}, {i.name: i.type for i in theirs}
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

    def _survived(self, recorded: Sequence[draw.Request]) -> list[draw.Request]:
        """Recorded requests but those on which onnxruntime would end this process, all of which have an input without
        elements: there the source is left out, and the optimized model is wrong."""
        empty = [r for r in recorded if any(0 in np.shape(value) for value in r.arrays().values())]
        answers = tried(self.loaded, empty, self.phases.threads) if empty and not self.result.failures else []
        ended = {id(r): answer for r, answer in zip(empty, answers, strict=False) if "died" in answer}
        for request in empty:
            source, optimized = ended.get(id(request), ("ran", "ran"))
            what = f"{ENDS} on {request.label or 'a recorded request'}, where an input is empty"
            if source == "died":
                self.result.notes.append(f"the source itself {what}; it is left out")
            elif optimized == "died":
                self.result.failures.append(f"the optimized model {what}; the source does not")
                self.result.failing.append(request)
        kept = [r for r in recorded if id(r) not in ended]
        if recorded and not kept and not self.result.failures:
            raise CannotCompare(
                "the source model itself ends the process (in onnxruntime) on every recorded request",
                "record requests with candidates, and with a history",
            )
        return kept

    def _requests(
        self, recorded: Sequence[draw.Request], drawing: bool, provider: str
    ) -> tuple[list[draw.Request], Runs]:
        """Requests that the source can run, and its outputs on them."""
        positive, ordinary = False, True
        before = None  # requests with NaN where floats are of both signs
        while True:
            drawn = self.plan.draw(positive, ordinary) if drawing else []
            given = [*drawn, *recorded]
            if not given:
                raise UsageError(
                    "there is no request to run the models on", "give --candidates or recorded requests"
                )
            runs = self._source(provider, False, given)
            pairs = list(zip(given, runs.outputs, strict=True))
            kept = [(r, o) for r, o in pairs if not isinstance(o, MariError)]
            lost = [(r, o) for r, o in pairs if isinstance(o, MariError)]
            own = {id(r) for r in drawn}
            told_apart = drawing and self.plan.drawer.meeting.report()
            if told_apart and ordinary and any(r.edge is None and id(r) in own for r, _ in lost):
                # Perhaps for a number that it is compared with: such numbers then have requests of their own alone.
                ordinary = False
                continue
            if not kept and all("Got invalid dimensions" in str(error) for _, error in lost):
                raise UsageError(
                    f"the model rejects inputs of the shapes that their sides imply: {first_line(lost[0][1])}",
                    f"candidates are taken to be along axis {self.layout.axis}; if they are along another one, give "
                    "--candidate-axis; an input with a length of its own there is no item or cross input",
                )
            if not kept:
                text = f"the source model failed on every request, first with: {first_line(lost[0][1])}"
                inputs = self.layout.signature.inputs
                unknown = next((i for i in inputs if not i.rank_known or i.shape.count(None) > 1), None)
                if unknown is not None:
                    text += f" (the file does not say the dimensions of {unknown.name}: give --shape)"
                raise CannotCompare(text)
            nan = [r.edge for r, o in kept if _has_nan(o) and id(r) in own]
            if before is None and None in nan:
                # Logarithms and roots: with NaN everywhere nothing would be compared.
                positive, before = True, nan.count(None)
                continue
            if positive and before is not None and nan.count(None) >= before:
                positive = False  # it is not the sign: negative numbers are worth having
                continue
            break
        self._told(drawn, [r for r, _ in kept], lost)
        if any(_has_nan(o) for r, o in kept if r.edge is None):
            self.result.notes.append("the source outputs NaN on some requests")
        else:
            labels = ", ".join(dict.fromkeys(e.label for e in nan if e is not None))
            self.result.notes += [f"the source answers NaN for a user with {labels}"] if nan else []
        return [r for r, _ in kept], Runs([o for _, o in kept])

    def _told(
        self, drawn: Sequence[draw.Request], kept: Sequence[draw.Request], lost: Sequence[tuple[draw.Request, Any]]
    ) -> None:
        """Says where the source itself fails: of what was asked for nothing may be left out."""
        result, own, fixed = self.result, {id(r) for r in drawn}, self.layout.fixed_n
        if drawn and fixed is not None:
            others = [str(n) for n in self.settings.counts if n != fixed]
            if self.settings.asked and others:
                result.cannot_compare.append(f"the source takes N = {fixed} alone, so not at N = {', '.join(others)}")
            else:
                result.notes.append(f"the source runs only with N = {fixed}")
        runs_at = {r.n for r in kept if r.edge is None and id(r) in own}
        said: dict[str, str] = {}
        for request, error in lost:
            text = first_line(error)
            if id(request) not in own:
                said.setdefault(f"on {request.label or 'a recorded request'}, which is left out", text)
            elif request.edge is not None:
                said.setdefault(f"for a user with {request.edge.label}, which is left out", text)
            elif request.n in runs_at:
                said.setdefault(f"on some requests at N={request.n}, which are left out", text)
            elif self.settings.asked:
                said.setdefault(f"at N={request.n}", text)
            else:
                said.setdefault(f"at N={request.n}, which is left out", text)
        for place, text in sorted(said.items()):
            to = result.notes if "left out" in place else result.cannot_compare
            to.append(f"the source itself fails {place}: {text}")
        if any(id(r) not in own for r, _ in lost) and all(id(r) in own for r in kept):
            result.cannot_compare.append("the source itself fails on every recorded request")
        tried = {r.n for r in drawn if r.edge is None}
        if runs_at == {1} and tried - runs_at and all(r.n <= 1 for r in kept):
            result.cannot_compare.append(
                "only requests of N = 1 are left, which cannot tell a user's row from a candidate's"
            )

    def _compared(self, requests: Sequence[draw.Request]) -> None:
        """Equal is only what was compared."""
        if all(r.n == 0 for r in requests):
            self.result.cannot_compare.append("every request has 0 candidates, so no score was compared")
            return
        right = [each for each in self.result.outputs if each.ok]
        if right and all(each.compared and not each.values for each in right):
            self.result.cannot_compare.append("no output has an element on any request")
            return
        for each in self.result.outputs:
            if each.ok and (each.compared == 0 or (each.values and not each.numbers)):
                what = "was compared on no request" if each.compared == 0 else "is NaN wherever it was compared"
                self.result.cannot_compare.append(f"output {each.name} {what} ({each.provider})")

    def _explore(self, requests: Sequence[draw.Request], drawing: bool, provider: str) -> list[draw.Request]:
        """Further requests; where none are drawn, it is measured what recorded ones reach."""
        self.phases.progress("coverage", 0, 1)
        self.watch = Watch(self.loaded, self.phases.threads)
        if not drawing:
            for request in requests:
                self.watch.look(request)
            return []
        guide = Guide(self.plan, self.watch, self.phases.price)
        found = guide.explore(requests)
        self.result.coverage = self.plan.drawer.coverage()
        self.result.values = self.plan.drawer.meeting.report()
        self.result.notes += _unmet(self.result.values)
        self.result.failures += guide.faults
        self.result.notes += guide.notes
        self.result.reached.tries, self.result.reached.kept = guide.tries, len(found)
        return found + self._steep(provider)

    def _reached(self, requests: Sequence[draw.Request]) -> None:
        """What all requests together reached, of which the source runs on each."""
        tries, kept = self.result.reached.tries, self.result.reached.kept
        self.result.reached = replace(self.watch.report(requests, self.layout.lengths), tries=tries, kept=kept)

    def _steep(self, provider: str) -> list[draw.Request]:
        """Requests with large numbers on which the source stays finite."""
        given = self.plan.steep()
        if not given:
            return []
        runs = [self.phases.run("source", provider, on, given, len(given)) for on in (False, True)]
        return [
            request
            for request, *outputs in zip(given, *(r.outputs for r in runs), strict=True)
            if all(not isinstance(o, MariError) and _is_finite(o) for o in outputs)
        ]

    def _left_out(self, covering: Sequence[draw.Request], outputs: list[Any]) -> None:
        """Leaves out further requests that the source itself refuses, and variations and requests of size 0 of which
        it makes NaN or infinity; notes those for ids and numbers."""
        refused = {id(r) for r, o in zip(covering, outputs, strict=False) if isinstance(o, MariError)}
        meeting = [(r, o) for r, o in zip(covering, outputs, strict=False) if r.further == "ids"]
        lost = [(r, o) for r, o in meeting if id(r) in refused]
        if lost and not self._refused:
            self.result.notes.append(
                f"the source itself fails on {len(lost)} of {len(meeting)} requests that meet further ids and "
                f"numbers, which are left out: {first_line(lost[0][1])}"
            )
        for place, request in enumerate(covering):
            unusual = request.further == "varied" or request.empty
            if unusual and place < len(outputs) and not _is_finite(outputs[place]):
                outputs[place] = ModelError("the source makes NaN or infinity of it", "")
                refused.add(id(request))
        self._refused.update(refused)

    def _verify(self, provider: str, request: draw.Request) -> None:
        """At least one node of the optimized model must have run on the provider."""
        made = {i.name: i for i in self.signatures["optimized"].inputs}
        feed = request.feed(list(made.values()))
        model, name = self.phases.models["optimized"], self.names["optimized"]
        counts = runtime.nodes_by_provider(model, feed, provider, name)
        wanted = runtime.provider_name(provider)
        if not counts.get(wanted):
            raise ProviderError(
                f"no node of {name} ran on {wanted}: {counts or 'none ran'}",
                "the provider loaded but took no node; see its log, or check on cpu",
            )
        ran = ", ".join(f"{v} on {k}" for k, v in sorted(counts.items()))
        self.result.notes.append(f"{provider}: nodes ran {ran}; TF32 is off")


def find_sides(paths: Sequence[ModelLike], models: Sequence[Any]) -> Sides:
    """Sides of the first of `models`: from a side file beside either, from their metadata, or from
    inputs of one row in the second; none where nothing says."""
    from mari_onnx.sides.resolve import METADATA_KEY, resolve, side_file_beside

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
    return replace(other, inputs={k: v for k, v in other.inputs.items() if k in named}, columns={})


def _name(model: Any, kind: str) -> str:
    return os.fspath(model) if isinstance(model, str | os.PathLike) else f"the {kind} model"


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
    return isinstance(outputs, MariError) or all(
        bool(np.isfinite(metrics.wide(o)).all()) for o in outputs if o.dtype.kind not in "biuOSU"
    )
