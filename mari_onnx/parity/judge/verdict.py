"""The verdict on one output: its errors over all requests against what the source's own error
allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx.parity.judge.columns import columns
from mari_onnx.parity.judge.metrics import (
    Errors,
    OutputResult,
    Ranking,
    Worst,
    epsilon,
    scale_of,
    ulps,
    unequal_nonfinite,
    wide,
)

if TYPE_CHECKING:
    from mari_onnx.parity.judge.rounding import Rounding
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.parity.settings import Settings


# Beside a multiple of the source's own error, so many units in the last place of the output's
# scale are allowed: at most, and on average.
FLOOR_ULPS, FLOOR_MEAN_ULPS = 8.0, 2.0
# Without a float64 run the source's error is not known.
FLOOR_BLIND_ULPS = 64.0

Shape = tuple[int | None, ...]


class Verdict:
    """Judges one output on one provider; `result` is what comes of it.

    Attributes:
        errors: request -> how far apart the models are there: the largest difference relative to the scale, or beyond
            an explicit tolerance; infinite where one is not finite; of integers and texts the share that differs.
    """

    def __init__(
        self,
        name: str,
        dtype: str,
        provider: str,
        settings: Settings,
        axis: int,
        drawn: int,
        rounding: Rounding | None = None,
    ):
        self.result = OutputResult(name, provider, dtype)
        self.rounding = rounding
        self.errors: dict[int, float] = {}
        # The first `drawn` requests are the check's own; others only meet further ids.
        self.settings, self.axis, self.drawn = settings, axis, drawn

    def judge(
        self,
        index: int,
        requests: Sequence[Request],
        exact: Sequence[list[np.ndarray] | None],
        sources: Sequence[Sequence[Any]],
        optimized: Sequence[Sequence[Any]],
        arrangement: bool = False,
    ) -> None:
        """Compares array `index` of all runs; the arrays of one output (`values.arrays`) come one after the other.

        Args:
            exact: float64 outputs; where there are none a request is compared with the source.
            sources, optimized: [mode][request][array]; an error stands where a run failed.
            arrangement: the array holds keys or shapes.
        """
        triples = []
        for place, request in enumerate(requests):
            mine = [
                s[place][index]
                for s in sources
                if place < len(s) and not isinstance(s[place], Exception)
            ]
            theirs = [
                o[place][index]
                for o in optimized
                if place < len(o) and not isinstance(o[place], Exception)
            ]
            truth = exact[place] if place < len(exact) else None
            if mine and theirs and self._alike(
                request, mine[0], theirs, partial(_usual, requests, sources, index)
            ):
                triples.append(
                    (place, request, mine, theirs, None if truth is None else truth[index])
                )
        if not triples:
            return
        if arrangement:
            self._exactly(triples, "keys or shapes")
            return
        self.result.compared = len(triples)
        self.result.numbers = sum(int(np.count_nonzero(_is_number(mine[0]))) for _, _, mine, *_ in triples)
        if self.rounding is not None:
            triples = self.rounding.settle(triples)
            self.result.stepped = self.rounding.away
            if self.rounding.fault is not None and self.rounding.first is not None:
                place, request, at, source, values = self.rounding.first
                self._worst_at(place, request, at, source, values, None)
                self.result.fail(self.rounding.fault + self._place())
        if triples[0][2][0].dtype.kind == "f" or triples[0][2][0].dtype.name == "bfloat16":
            self._floats(triples)
        else:
            self._exactly(triples)

    def _alike(
        self, request: Request, source: np.ndarray, optimized: Sequence[np.ndarray], usual: Callable[[], Shape | None]
    ) -> bool:
        for each in optimized:
            if each.shape != source.shape:
                if source.size == each.size == 0 and not _fits(source.shape, usual()) and _fits(each.shape, usual()):
                    return False  # some kernels answer no candidates in a shape of their own; nothing is in either
                self.result.fail(
                    f"shape {list(each.shape)} at N={request.n}, in the source {list(source.shape)}"
                )
                return False
            if each.dtype != source.dtype:
                self.result.fail(f"type {each.dtype}, in the source {source.dtype}")
                return False
        return True

    def _exactly(self, triples: Sequence[Any], what: str = "values") -> None:
        """Integers, booleans, text: equal, but where the source itself disagrees with its float64
        run."""
        wrong = total = 0
        for place, request, mine, theirs, truth in triples:
            settled = np.ones(mine[0].shape, bool)
            if truth is not None and truth.shape == mine[0].shape:
                settled = np.asarray(mine[0] == truth)
            for each in theirs:
                differs = (each != mine[0]) & settled
                total += each.size
                if differs.any():
                    wrong += int(differs.sum())
                    self._apart(place, float(differs.mean()))
                    at = tuple(int(i) for i in np.argwhere(differs)[0])
                    self._worst_at(place, request, at, mine[0], each, None)
        if wrong:
            self.result.fail(f"{wrong} of {total} {what} differ{self._place()}")
        self.result.values += total

    def _floats(self, triples: Sequence[Any]) -> None:
        result, settings = self.result, self.settings
        truths = [wide(mine[0]) if truth is None else truth for _, _, mine, _, truth in triples]
        parts = columns(truths, [request.n for _, request, *_ in triples], self.axis)
        eps = epsilon(triples[0][2][0].dtype)
        known = any(truth is not None for *_, truth in triples)
        meters = [_Meters([scale_of(parts.take(t, g)) for t in truths], eps) for g in range(len(parts.groups))]
        total, largest = 0.0, -1.0
        for at, (place, request, mine, theirs, truth) in enumerate(triples):
            first = wide(mine[0])
            if truth is not None:
                for each in mine:
                    error = _error(wide(each), truth)
                    for group, meter in enumerate(meters):
                        meter.source(at, parts.take(error, group))
            scale = parts.spread([m.scales[at] for m in meters], first.ndim)
            for each in theirs:
                values = wide(each)
                bad = unequal_nonfinite(first, values)
                if bad.any():
                    self._apart(place, np.inf)
                    result.nonfinite += int(bad.sum())
                    if largest != np.inf:
                        largest = np.inf
                        where = tuple(int(i) for i in np.argwhere(bad)[0])
                        self._worst_at(place, request, where, mine[0], each, truth)
                difference = _error(values, first)
                wrong = None if truth is None else _error(values, truth)
                for group, meter in enumerate(meters):
                    own = None if wrong is None else parts.take(wrong, group)
                    meter.optimized(at, own, parts.take(difference, group))
                self._differences(mine[0], each, difference)
                total += float(difference.sum())
                over = self._over(first, values, difference, scale)
                self._apart(place, float(over.max(initial=0)))
                if over.size and float(over.max()) > largest:
                    largest = float(over.max())
                    where = tuple(int(i) for i in np.unravel_index(int(over.argmax()), over.shape))
                    self._worst_at(place, request, where, mine[0], each, truth)
        result.mean_abs = total / max(result.values, 1)
        for meter in meters:
            meter.finish(settings, known)
        result.overall = max((m.overall.errors for m in meters), key=Errors.strain)
        result.by_request = max((m.by_request.errors for m in meters), key=Errors.strain)
        ties = parts.spread([2 * m.overall.errors.allowed * max(m.scales) for m in meters], truths[0].ndim)
        # Requests that are there to meet ids have no ranking of interest.
        self._rank([t for t in triples if t[0] < self.drawn], ties)
        if result.nonfinite:
            result.fail(
                f"{result.nonfinite} values are NaN or infinite in one model only{self._place()}"
            )
        if settings.rtol is not None or settings.atol is not None:
            if largest > 0:
                bounds = f"rtol={settings.rtol or 0:g}, atol={settings.atol or 0:g}"
                result.fail(f"beyond {bounds}{self._place()}")
            return
        for errors, relative_to in (
            (result.overall, "the output's scale"),
            (result.by_request, "the request's scale"),
        ):
            fault = errors.fault()
            if fault is not None:
                result.fail(f"relative to {relative_to}: {fault}{self._place()}")

    def _apart(self, place: int, error: float) -> None:
        self.errors[place] = max(error, self.errors.get(place, 0.0))

    def _over(
        self, first: np.ndarray, values: np.ndarray, difference: np.ndarray, scale: np.ndarray
    ) -> np.ndarray:
        """How far beyond the explicit tolerance, or relative to the scale: the largest is the
        worst."""
        settings = self.settings
        if settings.rtol is None and settings.atol is None:
            relative: np.ndarray = difference / scale
            return relative
        bound = (settings.atol or 0.0) + (settings.rtol or 0.0) * np.abs(first)
        return np.where(np.isfinite(first) & np.isfinite(values), difference - bound, 0.0)

    def _differences(
        self, source: np.ndarray, optimized: np.ndarray, difference: np.ndarray
    ) -> None:
        result = self.result
        result.values += source.size
        if not source.size:
            return
        result.max_abs = max(result.max_abs, float(difference.max()))
        magnitude = np.abs(wide(source))
        nonzero = np.isfinite(magnitude) & (magnitude > 0)
        if nonzero.any():
            result.max_rel = max(
                result.max_rel, float((difference[nonzero] / magnitude[nonzero]).max())
            )
        finite = np.isfinite(wide(source)) & np.isfinite(wide(optimized))
        if source.dtype.name != "bfloat16" and finite.any():
            result.max_ulp = max(
                result.max_ulp, float(ulps(source[finite], optimized[finite]).max())
            )

    def _rank(self, triples: Sequence[Any], ties: np.ndarray) -> None:
        result, settings = self.result, self.settings
        for _, request, mine, theirs, _ in triples:
            if request.n < 2 or mine[0].ndim <= self.axis or mine[0].shape[self.axis] != request.n:
                continue
            scores, others, tied = (
                np.moveaxis(np.broadcast_to(a, mine[0].shape), self.axis, 0).reshape(request.n, -1)
                for a in (wide(mine[0]), wide(theirs[-1]), ties)
            )
            if scores.shape[1] > 16 or not (np.isfinite(scores).all() and np.isfinite(others).all()):
                continue  # no list of scores
            result.ranking = result.ranking or Ranking()
            for a, b, tie in zip(scores.T, others.T, tied[0], strict=True):
                result.ranking.add(a, b, tie, settings.top_k)

    def _worst_at(
        self,
        place: int,
        request: Request,
        at: tuple[int, ...],
        source: Any,
        optimized: Any,
        truth: Any,
    ) -> None:
        along = len(at) > self.axis and source.shape[self.axis] == request.n
        self.result.worst = Worst(
            place,
            request.label,
            request.n,
            at[self.axis] if along else None,
            at,
            _number(source[at]),
            _number(optimized[at]),
            None if truth is None else _number(truth[at]),
        )

    def _place(self) -> str:
        worst = self.result.worst
        if worst is None:
            return ""
        who = "" if worst.candidate is None else f", candidate {worst.candidate}"
        return f"; worst in {worst.label}{who}: {worst.optimized!r}, in the source {worst.source!r}"


class _Meters:
    """Both bounds of one group of columns.

    Args:
        own: its scale in each request.
    """

    def __init__(self, own: Sequence[float], eps: float):
        # A group of few values may be near zero by cancellation: its scale is at least a usual one.
        usual = float(np.median([s for s in own if s] or [1.0]))
        self.scales = [max(s, usual) for s in own]
        self.overall = _Meter(Errors(), [max(self.scales)] * len(self.scales))
        self.by_request = _Meter(Errors(), self.scales)
        self._eps = eps

    def source(self, at: int, error: np.ndarray) -> None:
        for meter in (self.overall, self.by_request):
            meter.source(at, error)

    def optimized(self, at: int, error: np.ndarray | None, difference: np.ndarray) -> None:
        for meter in (self.overall, self.by_request):
            meter.optimized(at, error, difference)

    def finish(self, settings: Settings, known: bool) -> None:
        multiple, eps = settings.multiple * settings.coarser, self._eps * settings.coarser
        floor = FLOOR_ULPS if known else FLOOR_BLIND_ULPS
        for meter in (self.overall, self.by_request):
            meter.finish()
            meter.errors.bound(multiple, floor * eps, FLOOR_MEAN_ULPS * eps)


class _Meter:
    """Gathers errors relative to one scale a request."""

    def __init__(self, errors: Errors, scales: Sequence[float]):
        self.errors, self.scales = errors, scales
        self._sums = [0.0, 0.0]
        self._counts = [0, 0]

    def source(self, at: int, error: np.ndarray) -> None:
        relative = error / self.scales[at]
        self.errors.source_error = max(self.errors.source_error, float(relative.max(initial=0)))
        self._add(0, relative)

    def optimized(self, at: int, error: np.ndarray | None, difference: np.ndarray) -> None:
        if error is None:
            apart = float(difference.max(initial=0)) / self.scales[at]
            self.errors.apart = max(self.errors.apart, apart)
            return
        relative = error / self.scales[at]
        self.errors.error = max(self.errors.error, float(relative.max(initial=0)))
        self._add(1, relative)

    def finish(self) -> None:
        means = [
            total / max(count, 1) for total, count in zip(self._sums, self._counts, strict=True)
        ]
        self.errors.source_mean_error, self.errors.mean_error = means

    def _add(self, which: int, relative: np.ndarray) -> None:
        self._sums[which] += float(relative.sum())
        self._counts[which] += relative.size


def _error(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """|values - truth|, 0 where either is not finite (those are counted apart)."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(values - truth)
    return np.where(np.isfinite(values) & np.isfinite(truth), difference, 0.0)


def _is_number(values: np.ndarray) -> np.ndarray:
    return ~np.isnan(wide(values)) if values.dtype.kind == "f" else np.ones(values.shape, bool)


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _usual(requests: Sequence[Request], sources: Sequence[Sequence[Any]], index: int) -> Shape | None:
    """An array's shape in all runs of the source with candidates, None where a size changes; None of fewer than two."""
    runs = [s[at] for s in sources for at, request in enumerate(requests) if request.n and at < len(s)]
    shapes = [run[index].shape for run in runs if not isinstance(run, Exception)]
    if len(set(shapes)) < 2 or len({len(shape) for shape in shapes}) > 1:
        return None
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))


def _fits(shape: tuple[int, ...], usual: Shape | None) -> bool:
    """Whether a shape is as usual. Without a usual one every shape is."""
    if usual is None:
        return True
    return len(shape) == len(usual) and all(want in (None, have) for have, want in zip(shape, usual, strict=True))
