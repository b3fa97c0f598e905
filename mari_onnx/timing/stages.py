"""The stages of a split model as a service runs them: what each takes, beside one model that does it all.

In: the folder of a split and a request. Out: callables for `clock.interleaved`. Gathering rows is timed with scoring
(`mari_onnx.splitting.store`), because that is what a service does beside running `score.onnx`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx import runtime
from mari_onnx.errors import MariError
from mari_onnx.model.signature import signature
from mari_onnx.parity.domains.domains import domains
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.requests.draw import Drawer
from mari_onnx.splitting.assembly import Assembly
from mari_onnx.splitting.rows import ItemRows
from mari_onnx.splitting.store import Store, scoring
from mari_onnx.timing.clock import clock_for, interleaved
from mari_onnx.timing.measure import Measured, Variant
from mari_onnx.timing.several import Together

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.requests.request import Request
    from mari_onnx.sides.resolve import Sides
    from mari_onnx.timing.measure import Progress

GATHERED = "gather + score.onnx"
"""The name of scoring with the gathering of rows."""
ONE = ", one request per run"
Outputs = dict[str, np.ndarray]


class Stages:
    """A split, loaded.

    Args:
        folder: that `mari-onnx split` wrote. threads, provider: see `mari_onnx.runtime.session`.
    """

    def __init__(self, folder: str | Path, threads: int = 1, provider: str = "cpu"):
        self._session = Assembly(folder).open(provider, True, threads)
        self.ranker = self._session.ranker
        self.manifest = self.ranker.manifest

    def feed(self, request: Request) -> dict[str, np.ndarray]:
        """The inputs of all parts."""
        return request.feed(self._session.get_inputs())

    def runs(self, requests: Sequence[Request]) -> dict[str, Callable[[int], object]]:
        """What to time: each part by itself, and scoring with the gathering of its rows. Each takes a number that
        picks the request.
        """
        feeds = [self.feed(request) for request in requests]
        sessions = self.ranker.sessions
        found: dict[str, Callable[[int], object]] = {}
        for name in ("user", "item"):
            if name in sessions:
                own = [{k: feed[k] for k in self.manifest.parts[name].inputs} for feed in feeds]
                found[f"{name}.onnx"] = _runner(sessions[name], own)
        found["score.onnx"], found[GATHERED] = scoring(self.ranker, feeds)
        return found

    def together(
        self, requests: Sequence[Request]
    ) -> tuple[dict[str, Callable[[int], object]], dict[str, list[Outputs]]]:
        """All of the requests, one run of score.onnx for each, and one run of score.batched.onnx for all, with the
        gathering of rows; what to time, and what each answers.
        """
        feeds = [self.feed(request) for request in requests]
        states = [self.ranker.user(feed) for feed in feeds]
        cross = [{name: feed[name] for name in self.manifest.cross if name in feed} for feed in feeds]
        made = [self.ranker.items(feed) for feed in feeds]
        whole, counts = ItemRows.joined(made), [r.n for r in requests]
        names = [t.name for t in self.manifest.rows]
        stores, store = [Store(rows, k, names) for k, rows in enumerate(made)], Store(whole, 0, names)

        def alone(_: int) -> list[Outputs]:
            return [
                self.ranker.score(state, replace(rows, arrays={**rows.arrays, **each.gather()}), given)
                for state, rows, each, given in zip(states, made, stores, cross, strict=True)
            ]

        def merged(_: int) -> list[Outputs]:
            rows = replace(whole, arrays={**whole.arrays, **store.gather()})
            answers = self.ranker.score_together(states, rows, counts, cross)
            return [answer for answer in answers if not isinstance(answer, MariError)]

        runs: dict[str, Callable[[int], list[Outputs]]] = {f"{GATHERED}{ONE}": alone}
        if self.manifest.batched is not None:
            runs[f"gather + score.batched.onnx, all requests in one run ({self.manifest.batched.form})"] = merged
        return dict(runs), {name: run(0) for name, run in runs.items()}


def _runner(session: object, feeds: Sequence[dict[str, np.ndarray]]) -> Callable[[int], object]:
    return lambda turn: session.run(None, feeds[turn % len(feeds)])  # type: ignore[attr-defined]


def measure_split(
    variants: Sequence[Variant],
    folder: Path,
    requests: Mapping[int, Sequence[Request]],
    *,
    threads: int = 1,
    seconds: float = 2.0,
    least: int = 5,
    progress: Progress | None = None,
) -> Iterator[Measured]:
    """Times the parts of a split, and scoring with the gathering of rows, beside whole models, on the CPU.

    Args:
        variants: whole models, that with which the others are compared first. folder: of the split.
        requests, seconds, least, progress: as for `mari_onnx.timing.measure.measure`.

    Raises:
        ModelError: a model cannot be loaded or run.
    """
    tell = progress or (lambda *_: None)
    kind, clock = clock_for(threads)
    sessions = {each.name: runtime.session(each.path, threads=threads, what=each.name) for each in variants}
    stages = Stages(folder, threads)
    for index, (n, drawn) in enumerate(requests.items()):
        tell(f"N = {n}", index, len(requests))
        runs = {
            each.name: _runner(sessions[each.name], [each.feed(r, sessions[each.name].get_inputs()) for r in drawn])
            for each in variants
        }
        runs |= stages.runs(drawn)
        timing = interleaved(runs, seconds=seconds, least=least, clock=clock, wall=time.perf_counter, threads=threads)
        yield Measured(n, threads, timing, kind)


def measure_merging(
    variants: Sequence[Variant],
    folder: Path,
    source: onnx.ModelProto,
    sides: Sides,
    sizes: Sequence[tuple[int, int]],
    *,
    threads: int = 1,
    seconds: float = 2.0,
    least: int = 5,
    progress: Progress | None = None,
) -> Iterator[Together]:
    """Times for each (requests, candidates): whole models and score.onnx request by request, score.batched.onnx once.

    Args:
        variants: whole models, that with which the others are compared first. folder: of the split.
        source, sides: requests are drawn to suit them. seconds, least, progress: as for `measure_split`.

    Raises:
        ModelError: a model cannot be loaded or run.
    """
    kind, clock = clock_for(threads)
    sessions = {each.name: runtime.session(each.path, threads=threads, what=each.name) for each in variants}
    stages = Stages(folder, threads)
    layout = Layout(signature(source), sides)
    ranges = domains(source, layout)[0]
    names = [o.name for o in layout.signature.outputs]
    for index, (count, n) in enumerate(sizes):
        if progress is not None:
            progress(f"{count} requests of {n}", index, len(sizes))
        drawer = Drawer(layout, ranges, count)
        requests = [drawer.request(n, full=True, free=dict.fromkeys(layout.free, 20)) for _ in range(count)]
        runs, found = stages.together(requests)
        wholes: dict[str, Callable[[int], object]] = {}
        for each in variants:
            session = sessions[each.name]
            feeds = [each.feed(r, session.get_inputs()) for r in requests]
            wholes[f"{each.name}{ONE}"] = _each(session, feeds)
            found[f"{each.name}{ONE}"] = [dict(zip(names, session.run(names, feed), strict=True)) for feed in feeds]
        runs = {**wholes, **runs}
        base = found[next(iter(runs))]
        apart = {name: _apart(base, found[name]) for name in runs}
        timing = interleaved(runs, seconds=seconds, least=least, clock=clock, wall=time.perf_counter, threads=threads)
        yield Together(count, n, threads, kind, timing, apart)


def _each(session: Any, feeds: Sequence[dict[str, np.ndarray]]) -> Callable[[int], object]:
    return lambda _: [session.run(None, feed) for feed in feeds]


def _apart(one: Sequence[Outputs], other: Sequence[Outputs]) -> float:
    """The largest difference of numeric outputs."""
    return max(
        float(np.abs(np.asarray(a[name], np.float64) - np.asarray(b[name], np.float64)).max(initial=0))
        for a, b in zip(one, other, strict=True)
        for name in a
        if a[name].dtype.kind in "fiub"
    )
