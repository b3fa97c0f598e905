"""One model of the demo: optimized, checked, and timed against its source.

It is checked on drawn requests (N = 1, 2, 7, 64, 500), on further ones that reach what these do not, and on its
recorded ones. Source and output run in turns on one thread, and are timed by what the thread itself ran. What else runs
on the machine only adds to that, as it takes the caches: so the fastest run of each is what counts, and "faster" is
their ratio.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mari_onnx import api, runtime
from mari_onnx.choices import USUAL, options_for
from mari_onnx.model.load import read
from mari_onnx.model.signature import signature
from mari_onnx.parity import Request
from mari_onnx.parity.requests.recorded import load
from mari_onnx.sides.resolve import METADATA_KEY, Sides, resolve, side_file_beside
from mari_onnx.timing.clock import Timing, clock_for, interleaved
from mari_onnx.timing.measure import prepared

TYPICAL = max(USUAL)
SECONDS, PAIRS, WARM_UP = 0.3, 10, 5
"""Thread time and least pairs of runs in a round of timing, and pairs before the first that count for nothing."""
ROUNDS = 8
"""Rounds at most; fewer where the fastest run is no accident (`steady`)."""
AGAIN, NEAR = 5, 1.02
"""So many runs of a model have to come so near to its fastest."""
TRIES = 200
"""Further requests that a check tries, to reach what the first ones do not; `mari-onnx optimize` tries up to 10,000."""


@dataclass(frozen=True)
class Times:
    """Source and output timed against each other.

    Attributes:
        before, after: seconds of the fastest run.
        faster: the ratio of these two. median: of the ratios of pairs of runs.
        spread: half the middle half of the pairs' ratios, as a share of the median.
    """

    before: float
    after: float
    faster: float
    median: float
    spread: float

    @classmethod
    def of(cls, timing: Timing) -> Times:
        """Of runs called "before" and "after"."""
        before, after = timing.fastest("before"), timing.fastest("after")
        ratio, spread = timing.ratio("before", "after"), timing.ratio_spread("before", "after")
        return cls(before, after, before / after, ratio, spread)


@dataclass(frozen=True)
class Row:
    """What became of one model.

    Attributes:
        verdict: of the check. requests: how many it compared. max_error: the largest difference of any output.
        nodes, flops: of source and output, FLOPs per candidate.
        split, products: how many matrix products are split or lifted, and how many there are.
        times: of a request. loaded: the same beside burners, where there were any.
    """

    name: str
    verdict: str
    requests: int
    max_error: float
    nodes: tuple[int, int]
    flops: tuple[float, float]
    split: int
    products: int
    times: Times
    loaded: Times | None = None

    @property
    def off(self) -> float:
        """The ratio beside burners over the one without, less 1."""
        return self.loaded.faster / self.times.faster - 1 if self.loaded else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Figures for scripts."""
        return {"faster": self.times.faster, "spread": self.times.spread, "off": self.off, **asdict(self)}


def measured(path: Path, output: Path, only: int | None = None) -> Row:
    """Optimizes, checks and times one model.

    Args:
        only: the N that rewrites are chosen for; None for those that count by default.

    Raises:
        MariError: the model cannot be optimized, or differs.
    """
    source = read(path)
    recorded = load(_requests_of(path), signature(source.model), sides_of(path))
    how = {"requests": recorded, "coverage": TRIES}
    with api.checked(source, sides_of(path), output, options_for(only), **how) as (done, staged):
        staged.commit()
    report = done.report
    check = report.check or {"verdict": "unchanged", "requests": 0, "outputs": [], "reached": {}}
    return Row(
        name=path.name,
        verdict=check["verdict"],
        requests=check["requests"] + check["reached"].get("kept", 0),
        max_error=max((each["max_abs"] for each in check["outputs"]), default=0.0),
        nodes=(report.before.nodes, report.after.nodes),
        flops=(report.before.flops, report.after.flops),
        split=sum(node.action in ("split", "lifted") for node in report.products),
        products=len(report.products),
        times=again(path, output, only),
    )


def again(path: Path, output: Path, only: int | None = None) -> Times:
    """Times a model that was optimized before, on its first recorded request with its candidates repeated."""
    recorded = load(_requests_of(path), signature(read(path).model), sides_of(path))
    return Times.of(timed(path, output, widened(recorded[0], only or TYPICAL)))


def sides_of(path: Path) -> Sides:
    """The sides by the file beside the model and its metadata, as the bare command finds them."""
    model = read(path).model
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return resolve(signature(model), file=side_file_beside(path), metadata=metadata.get(METADATA_KEY))


def timed(before: Path, after: Path, request: Request) -> Timing:
    """Seconds of "before" and "after", run in turns on one thread, in the time that the thread itself ran."""
    sessions = {"before": runtime.session(before), "after": runtime.session(after)}
    runs = {}
    for name, session in sessions.items():
        runs[name], _ = prepared(session, [request.feed(session.get_inputs())], "cpu")
    _, clock = clock_for()
    found: list[np.ndarray] = []
    while True:
        # For so much thread time, not by the clock: as many pairs on a busy machine as on a quiet one.
        warm_up = 0 if found else WARM_UP
        found.append(interleaved(runs, seconds=SECONDS, least=PAIRS, warm_up=warm_up, clock=clock).seconds)
        timing = Timing(tuple(runs), np.concatenate(found))
        if steady(timing) or len(found) == ROUNDS:
            return timing


def steady(timing: Timing) -> bool:
    """Whether the fastest run of each model was met by others too: on a busy machine the first ones are all slowed."""
    return all(np.sort(timing.of(name))[AGAIN - 1] <= NEAR * timing.fastest(name) for name in timing.names)


def widened(request: Request, candidates: int) -> Request:
    """The request with its candidates repeated until there are `candidates`."""
    picks = np.arange(candidates) % request.n

    def wide(array: np.ndarray) -> np.ndarray:
        if array.ndim > request.axis and array.shape[request.axis] == request.n:
            return np.take(array, picks, axis=request.axis)
        return array

    return replace(
        request,
        rows={name: wide(array) for name, array in request.rows.items()},
        literal={name: wide(array) for name, array in request.literal.items()},
        n=candidates,
    )


def _requests_of(path: Path) -> Path:
    return path.with_name(path.name.split(".")[0] + ".npz")
