"""Which number to feed, so that an element within the graph comes to a number that is wanted there.

Where the way between them is no straight line (a logarithm, a division of whole numbers, a rounding) it is found by
halving, of all input elements at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError

if TYPE_CHECKING:
    from mari_onnx.parity.domains.trace import Trace

# Of one input element so many numbers are turned back where its way is no straight line.
_ROUNDS = 96
_HALVINGS = 64


@dataclass
class _Job:
    """A number of an element that is turned back: `low` and `high` close in on where it is crossed."""

    name: str
    element: int
    number: float
    beyond: bool
    origin: int
    low: float
    high: float
    rising: bool


def invert(trace: Trace, wanted: Iterable[tuple[str, int, float, bool]]) -> Iterator[tuple[float, float] | None]:
    """For elements whose way is no straight line: neighbouring numbers to feed, the lower one first, between which
    they cross a number; None where they do not.

    Args:
        wanted: tensor, element, the number, and whether to reach it (`>=`) or to go beyond it (`>`).
    """
    jobs: list[_Job | None] = []
    rounds: dict[int, int] = {}
    for name, element, number, beyond in wanted:
        curve = trace.curves[name]
        origin = int(curve.origin[element])
        found = _bracket(curve.x[:, element], curve.y[:, element], number, beyond) if origin >= 0 else None
        rounds[origin] = rounds.get(origin, 0) + 1
        within = found is not None and rounds[origin] <= _ROUNDS
        jobs.append(_Job(name, element, number, beyond, origin, *found) if found and within else None)
    left = [job for job in jobs if job is not None]
    while left:  # in each round one number of each input element
        busy: dict[int, _Job] = {}
        for job in left:
            busy.setdefault(job.origin, job)
        _halve(trace, list(busy.values()))
        left = [job for job in left if busy[job.origin] is not job]
    return iter([None if job is None else (job.low, job.high) for job in jobs])


def _halve(trace: Trace, jobs: list[_Job]) -> None:
    for _ in range(_HALVINGS):
        fed = np.zeros(trace.total)
        open_: list[tuple[_Job, float]] = []
        for job in jobs:
            middle = (job.low + job.high) / 2
            dtype = trace.place(job.origin)[0].dtype
            middle = float(np.asarray(np.floor(middle) if dtype.kind in "iu" else middle).astype(dtype))
            if middle not in (job.low, job.high):
                fed[job.origin] = middle
                open_.append((job, middle))
        if not open_:
            return
        try:
            found = trace.answer(fed)
        except MariError:
            return
        for job, middle in open_:
            at = float(found[job.name].reshape(-1)[job.element])
            if (at > job.number if job.beyond else at >= job.number) == job.rising:
                job.high = middle
            else:
                job.low = middle


def _bracket(x: np.ndarray, y: np.ndarray, number: float, beyond: bool) -> tuple[float, float, bool] | None:
    """The neighbours on the grid between which a number is crossed, those nearest to 0, and whether upwards."""
    known = np.isfinite(x) & ~np.isnan(y)
    x, y = x[known], y[known]
    passed = y > number if beyond else y >= number
    at = np.flatnonzero((passed[1:] != passed[:-1]) & (x[1:] != x[:-1]))
    if not len(at):
        return None
    best = min(at, key=lambda k: min(abs(x[k]), abs(x[k + 1])))
    return float(x[best]), float(x[best + 1]), bool(passed[best + 1])
