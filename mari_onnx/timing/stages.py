"""The stages of a split model as a service runs them: what each takes, beside one model that does it all.

In: the folder of a split and a request. Out: callables for `clock.interleaved`. Gathering rows is timed with scoring
(`mari_onnx.splitting.store`), because that is what a service does beside running `score.onnx`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx import runtime
from mari_onnx.splitting.assembly import Assembly
from mari_onnx.splitting.store import scoring
from mari_onnx.timing.clock import clock_for, interleaved
from mari_onnx.timing.measure import Measured, Variant

if TYPE_CHECKING:
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.timing.measure import Progress

GATHERED = "gather + score.onnx"
"""The name of scoring with the gathering of rows."""


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
        timing = interleaved(runs, seconds=seconds, least=least, clock=clock, wall=time.perf_counter)
        yield Measured(n, threads, timing, kind)
