"""Several requests in one run against one request per run, timed in turns on the same values."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx import runtime
from mari_onnx.model.signature import signature
from mari_onnx.parity.domains.domains import domains as domains_of
from mari_onnx.parity.float64 import light
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.requests.draw import Drawer
from mari_onnx.parity.several.form import Form
from mari_onnx.timing.clock import Timing, clock_for, interleaved

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.phases import Progress
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.sides.resolve import Sides

MARGIN = 0.03
"""How much faster one run has to be, so that it pays."""
MOST = 1 << 15
"""Rows in a run; combinations with more are left out."""


@dataclass
class Together:
    """Times for one number of requests and candidates.

    Attributes:
        requests, n, threads: the setting; n candidates of each request.
        clock: see `clock_for`.
        timing: seconds of all requests together, of each variant in turns; the first is the baseline.
        apart: largest absolute difference of any output to the baseline's.
    """

    requests: int
    n: int
    threads: int
    clock: str
    timing: Timing
    apart: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The documented form: one entry per variant."""
        figures = self.timing.to_dict(self.timing.names[0])
        for name, entry in figures.items():
            entry["max_difference"] = self.apart[name]
        setting = {"requests": self.requests, "candidates": self.n, "threads": self.threads, "clock": self.clock}
        return {**setting, "variants": figures}


def measure_together(
    source: onnx.ModelProto,
    sides: Sides,
    single: Mapping[str, Path],
    several: Mapping[str, Path],
    sizes: Sequence[tuple[int, int]],
    *,
    threads: int = 1,
    seconds: float = 2.0,
    least: int = 5,
    progress: Progress | None = None,
) -> Iterator[Together]:
    """Times for each (requests, candidates): the `single` models run request by request, the `several` once.

    Args:
        source: the model for one user that `sides` are of; requests are drawn to suit it.
        single, several: name -> file. The first of `single` is the baseline.

    Raises:
        ModelError: a model cannot be loaded or run.
    """
    layout = Layout(signature(source), sides)
    ranges = domains_of(source, layout)[0]
    forms = {name: Form(layout, light(path)) for name, path in several.items()}
    kind, clock = clock_for(threads)
    sessions = {n: runtime.session(p, threads=threads, what=n) for n, p in {**single, **several}.items()}
    for index, (count, n) in enumerate(sizes):
        if progress is not None:
            progress(f"{count} requests of {n}", index, len(sizes))
        drawer = Drawer(layout, ranges, count)
        free = dict.fromkeys(layout.free, 20)
        requests = [drawer.request(n, full=True, free=free) for _ in range(count)]
        feeds = {name: [r.feed(sessions[name].get_inputs()) for r in requests] for name in single}
        feeds |= {name: [form.feed(requests)] for name, form in forms.items()}
        outputs = {name: _outputs(sessions[name], feeds[name], forms.get(name), requests) for name in feeds}
        base = next(iter(outputs.values()))
        apart = {
            name: max(float(np.abs(a - b).max(initial=0)) for a, b in zip(base, mine, strict=True))
            for name, mine in outputs.items()
        }
        runs = {name: _Turn(sessions[name], feeds[name]) for name in feeds}
        timing = interleaved(runs, seconds=seconds, least=least, clock=clock, wall=time.perf_counter, threads=threads)
        yield Together(count, n, threads, kind, timing, apart)


PAYS_AT = (4, 16, 64, 256)
"""Candidates of each request at which it is timed whether one run for several pays."""
REQUESTS = 16


def until(
    source: onnx.ModelProto, sides: Sides, single: Path, several: Path, *, threads: int = 1, seconds: float = 0.3
) -> str:
    """From which N on one run for several requests stops paying, in a sentence, by the clock. As `ratios`."""
    return verdict(ratios(source, sides, single, several, threads=threads, seconds=seconds))


def ratios(
    source: onnx.ModelProto, sides: Sides, single: Path, several: Path, *, threads: int = 1, seconds: float = 0.3
) -> dict[int, float]:
    """Candidates of each of `REQUESTS` requests -> the time of one request per run over that of all in one.

    Args:
        source, sides: see `measure_together`. single, several: the outputs for one request per run and for several.
        seconds: for each N.

    Raises:
        ModelError: a model cannot be loaded or run.
    """
    sizes = [(REQUESTS, n) for n in PAYS_AT]
    found = measure_together(
        source, sides, {"one": single}, {"all": several}, sizes, threads=threads, seconds=seconds, least=3
    )
    return {each.n: each.timing.ratio("one", "all") for each in found}


def pays_to(ratios: Mapping[int, float]) -> int | None:
    """Up to how many candidates of all requests one run for several is faster; None where no number is too large."""
    slower = [n for n in ratios if all(ratios[m] < 1 + MARGIN for m in ratios if m >= n)]
    faster = [n for n in ratios if n not in slower]
    return REQUESTS * max(faster, default=0) if slower else None


def verdict(ratios: Mapping[int, float]) -> str:
    """Which is faster, in a sentence. ratios: by candidates of each request, the time of one request per run over that
    of all in one.
    """
    slower = [n for n in ratios if all(ratios[m] < 1 + MARGIN for m in ratios if m >= n)]
    at = ", ".join(f"{ratio:.2g}x as fast at {n}" for n, ratio in ratios.items())
    worse = any(ratios[n] < 1 - MARGIN for n in slower)
    if not slower:
        pays = f"it pays up to {max(ratios)} candidates and more"
    elif slower[0] == min(ratios):
        pays = f"one request per run is {'faster' if worse else 'as fast'} for this model, so --batched does not pay"
    else:
        than = "is faster" if worse else "is as fast"
        pays = f"from {slower[0]} candidates of each request on, one request per run {than}"
    return f"{REQUESTS} requests in one run, against one request per run: {at} candidates; {pays}"


class _Turn:
    """Runs all feeds of one model, one after the other."""

    def __init__(self, session: Any, feeds: Sequence[dict[str, np.ndarray]]):
        self.session, self.feeds = session, feeds

    def __call__(self, _: int) -> None:
        for feed in self.feeds:
            self.session.run(None, feed)


def _outputs(
    session: Any, feeds: Sequence[dict[str, np.ndarray]], form: Form | None, requests: Sequence[Request]
) -> list[np.ndarray]:
    """The numeric outputs of all requests, output by output within each."""
    answers = [session.run(None, feed) for feed in feeds]
    parts = answers if form is None else form.apart(answers[0], requests)
    return [np.asarray(output, np.float64) for part in parts for output in part if output.dtype.kind in "fiub"]
