"""Are two models equal, of which the second may take several requests in one run?

Such an output is compared twice: as a model for one request, with all that `parity.check` draws; then in runs of
several requests with different users, with as many runs of the source.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx import runtime
from mari_onnx.errors import MariError
from mari_onnx.model.signature import signature
from mari_onnx.parity import float64
from mari_onnx.parity.candidates import with_axes
from mari_onnx.parity.check import check as check_one
from mari_onnx.parity.check import find_sides
from mari_onnx.parity.coverage.empty import ran, survivors
from mari_onnx.parity.domains.domains import domains as domains_of
from mari_onnx.parity.judge import values
from mari_onnx.parity.layout import Layout, symbol_of
from mari_onnx.parity.outputs import Outputs
from mari_onnx.parity.phases import Phases, Runs
from mari_onnx.parity.requests.draw import Drawer
from mari_onnx.parity.requests.edge_users import edges
from mari_onnx.parity.requests.recorded import as_requests
from mari_onnx.parity.requests.request import Request
from mari_onnx.parity.result import DIFFERENT, CheckResult
from mari_onnx.parity.settings import Settings
from mari_onnx.parity.several.form import Form, for_one, with_index
from mari_onnx.sides.resolve import METADATA_KEY, Sides
from mari_onnx.sides.shapes import reshaped

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.phases import Progress
    from mari_onnx.runtime import ModelLike

SIZES = ((7, 7), (2, 64), (64, 2), (3, 1))
"""Requests in a run, and candidates of each."""


def check(
    source: ModelLike,
    optimized: ModelLike,
    sides: Sides | None = None,
    *,
    requests: str | os.PathLike[str] | Iterable[Request] | None = None,
    drawing: bool | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> CheckResult:
    """As `parity.check.check`, also of an output of `optimize --batched`, which its metadata tells, and of an
    `Assembly` that takes several requests.

    Raises: as `parity.check.check`.
    """
    other = float64.light(optimized)
    loaded = float64.light(source)
    if sides is None:
        sides = find_sides([source, optimized], [loaded, other])
    batched = _batched(other, sides)
    chosen = replace(settings or Settings(), **changes)
    drawing = requests is None if drawing is None else drawing
    plain = replace(sides, batched=None, indices=(), index_name=None)
    if batched is None and not sides.indices:
        return check_one(
            source, optimized, plain, requests=requests, drawing=drawing, settings=chosen, progress=progress
        )
    shaped = reshaped(loaded, sides.shapes)
    given = source if shaped is loaded else shaped
    sides = replace(with_axes(shaped, sides, given), batched=batched)
    plain = replace(sides, batched=None, indices=(), index_name=None)
    parts = isinstance(optimized, runtime.Assembly)
    if sides.indices:
        form, given = with_index(shaped, sides, other)
    else:
        form = Form(Layout(signature(shaped), sides), None if parts else other)
    single = optimized if parts else for_one(other, form)
    recorded = as_requests(requests, signature(shaped), sides)
    result = check_one(given, single, plain, requests=recorded, drawing=drawing, settings=chosen, progress=progress)
    result.source, result.optimized = (_name(m, k) for m, k in ((source, "source"), (optimized, "optimized")))
    if result.verdict != DIFFERENT:
        _Several(given, optimized if parts else other, form, result, progress).run(recorded, drawing)
    return result


def _batched(model: onnx.ModelProto, sides: Sides) -> str | None:
    """How a model takes several requests: by its own metadata, or by `sides` where it has none."""
    own = any(entry.key == METADATA_KEY for entry in model.metadata_props)
    return form_in(model) if own else sides.batched


def form_in(model: onnx.ModelProto) -> str | None:
    """How an output takes several requests, by its metadata; None for one request per run."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            with suppress(ValueError, AttributeError):
                found = json.loads(entry.value).get("batched")
                return None if found is None else str(found)
    return None


def _name(model: Any, kind: str) -> str:
    return os.fspath(model) if isinstance(model, str | os.PathLike) else f"the {kind} model"


class _Several:
    """Runs of several requests against separate runs of the source; what is found goes into `result`."""

    def __init__(
        self,
        source: ModelLike,
        optimized: ModelLike,
        form: Form,
        result: CheckResult,
        progress: Progress | None,
    ):
        self.source, self.optimized, self.form, self.result = source, optimized, form, result
        # Of parts, the caller pads what a grid needs.
        self.uneven = form.flat or isinstance(optimized, runtime.Assembly)
        loaded, other = float64.light(source), float64.light(optimized)
        self.found, self.loaded = _another(result), loaded
        signatures = {"source": signature(loaded), "optimized": signature(other)}
        self.outputs = signatures["source"].outputs
        models = {"source": source, "optimized": optimized}
        names = {"source": result.source, "optimized": result.optimized}
        both = {"source": loaded, "optimized": other}
        self.phases = Phases(models, both, names, signatures, self.found, progress)
        self.domains, _ = domains_of(loaded, form.layout)

    def run(self, recorded: Sequence[Request], drawing: bool) -> None:
        batches = [*(self._drawn() if drawing else []), *_alike(recorded, self.form)]
        requests = [request for batch in batches for request in batch]
        for provider in self.result.providers:
            self._on(provider, batches, requests)
        if not isinstance(self.optimized, runtime.Assembly):
            self._empty(self.optimized)
        sizes = ", ".join(str(n) for n in sorted({len(batch) for batch in batches}))
        if self.found.failures or not all(o.ok for o in self.found.outputs):
            self.result.failures += [f"several requests in one run: {reason}" for reason in self.found.reasons]
            self.result.failing += self.found.failing
        else:
            self.result.notes.append(
                f"{sizes} requests of different users in one run ({self.form.kind}) equal as many runs of the source"
            )

    def _drawn(self) -> list[list[Request]]:
        """Runs of different users: ordinary ones, and those that are out of the ordinary."""
        layout, seed = self.form.layout, self.result.settings.seed
        drawer = Drawer(layout, self.domains, [seed, 2])
        counts = self.result.candidates or [7]
        found = []
        for k, (size, n) in enumerate(SIZES):
            near = sorted(counts, key=lambda c: (abs(c - n), c))
            near = near[: 3 if self.uneven else 1]
            n = near[0]
            free = {name: 4 + (k + place) % 3 for place, name in enumerate(layout.free)}
            batch = [
                drawer.request(near[place % len(near)], free=free | self._lengths(place + k)) for place in range(size)
            ]
            if not k:
                batch += [drawer.request(n, free=free, edge=edge) for edge in edges(layout, self.domains)]
            found.append(survivors(self.loaded, batch))
        return [batch for batch in found if batch]

    def _lengths(self, place: int) -> dict[str, int]:
        """How many ids the user's bag has, in the request at this place: the first has none."""
        listed = {name for ids in self.form.layout.bags(user=True).values() for name in ids}
        inputs = [i for i in self.form.layout.signature.inputs if i.name in listed]
        return {symbol_of(each, 0): 3 * place % 7 for each in inputs if not isinstance(each.shape[0], int)}

    def _on(self, provider: str, batches: Sequence[Sequence[Request]], requests: Sequence[Request]) -> None:
        """Compares all on one provider."""
        sources = [self.phases.run("source", provider, optimize, requests, len(requests)) for optimize in (False, True)]
        ran = {id(r) for k, r in enumerate(requests) if all(isinstance(s.outputs[k], list) for s in sources)}
        kept = [k for k, r in enumerate(requests) if id(r) in ran]
        batches = [each for batch in batches if (each := [r for r in batch if id(r) in ran])]
        requests = [requests[k] for k in kept]
        sources = [Runs([s.outputs[k] for k in kept]) for s in sources]
        exact = self.phases.exact(requests)
        runs = {mode: Runs(self._together(provider, mode == "on", batches)) for mode in ("off", "on")}
        outputs = Outputs(
            self.result.settings, self.outputs, self.form.layout.axis, self.phases, self.found, set()
        )
        outputs.compare(provider, requests, len(requests), exact, sources, runs)

    def _together(
        self, provider: str, optimize: bool, batches: Sequence[Sequence[Request]]
    ) -> list[list[np.ndarray] | MariError]:
        """What the output answers for each request, run with the others of its batch."""
        name = self.phases.names["optimized"]
        made = runtime.session(self.optimized, provider, optimize, self.phases.threads, what=name)
        names = [o.name for o in self.outputs]
        found: list[list[np.ndarray] | MariError] = []
        for batch in batches:
            try:
                fed = self._with_a_bare_one(batch)
                parts = self._answers(made, fed, name, names)
                found += [part for part, request in zip(parts, fed, strict=True) if any(request is r for r in batch)]
            except MariError as error:
                found += [error] * len(batch)
            except ValueError as error:
                found += [MariError(str(error))] * len(batch)
        return found

    def _answers(self, made: Any, fed: Sequence[Request], name: str, names: list[str]) -> list[list[np.ndarray]]:
        """The outputs of each request by one run. Raises MariError, ValueError."""
        if isinstance(self.optimized, runtime.Assembly):
            answers = made.run_several(names, [request.feed(made.get_inputs()) for request in fed])
            return [values.arrays(answer, self.outputs) for answer in answers]
        answer = runtime.run(made, self.form.feed(fed), name, names)
        return self.form.apart(values.arrays(answer, self.outputs), fed)

    def _with_a_bare_one(self, batch: Sequence[Request]) -> list[Request]:
        """The requests, and where they need not have equally many candidates one more without any."""
        # Without candidates a packed input has no row, and so no columns of the user.
        no_user = isinstance(self.optimized, runtime.Assembly) and self.form.sides.columns
        if not self.uneven or no_user or not batch or self.form.layout.fixed_n is not None or batch[0].n == 0:
            return [*batch]
        bare = replace(batch[0].of_candidates([]), n=0)
        bare.counts = {name: np.zeros_like(value) for name, value in bare.counts.items()}
        return [*batch[:1], bare, *batch[1:]]

    def _empty(self, optimized: ModelLike) -> None:
        """Runs without a request and with requests without candidates, where onnxruntime may end the process."""
        layout = self.form.layout
        drawer = Drawer(layout, self.domains, [self.result.settings.seed, 4])
        free = {name: 4 + place for place, name in enumerate(layout.free)}
        like = drawer.request(2, free=free)
        bare = [drawer.request(0, free=free) for _ in range(2)]
        cases: list[tuple[str, dict[str, np.ndarray], Request | None]]
        cases = [("no request", self.form.feed([], like), None)]
        if layout.fixed_n is None:
            cases.append(("requests without candidates", self.form.feed(bare), bare[0]))
        for what, feed, request in cases:
            source = float64.light(self.source)
            if request is not None and ran(source, request.feed(layout.signature.inputs), self.phases.threads) != "ran":
                continue
            answer = ran(float64.light(optimized), feed, self.phases.threads)
            if answer != "ran":
                does = "fails" if answer == "failed" else "ends the process (in onnxruntime)"
                self.result.notes.append(f"the output {does} on {what}")


def _another(result: CheckResult) -> CheckResult:
    """A result of its own, for the same models and settings."""
    return CheckResult(result.source, result.optimized, result.settings)


def _alike(requests: Sequence[Request], form: Form) -> list[list[Request]]:
    """Recorded requests that can be in one run, as they have the same shapes. Bags may differ in length, and without a
    grid so may the numbers of candidates.
    """
    groups: dict[object, list[Request]] = {}
    for request in requests:
        arrays = {name: value for name, value in request.arrays().items() if name not in form.sides.listed}
        shapes = {name: list(np.shape(value)) for name, value in arrays.items()}
        if form.flat:
            for name in request.rows.keys() & shapes.keys():
                shapes[name][request.axis_of(name)] = 0
        groups.setdefault(str(sorted(shapes.items())), []).append(request)
    return [group[k : k + 64] for group in groups.values() for k in range(0, len(group), 64)]

