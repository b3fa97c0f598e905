"""The verdict on an output of a model that is not lossless (`optimize --user-weights int8`): is the order kept?

In: runs of both models on recorded requests. Out: an `OutputResult`, whose `tau_loss` decides. It is 1 less the mean of
Kendall's tau-b over requests, each counted as often as it has pairs of candidates that the source scores differently;
of several scores for a candidate that of the worst column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx.parity.judge.metrics import OutputResult, Ranking, Worst, scale_of, unequal_nonfinite, wide

if TYPE_CHECKING:
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.parity.settings import Settings


class OrderVerdict:
    """Judges one output on one provider; `result` is what comes of it.

    axis: the candidate axis of the output.
    """

    def __init__(self, name: str, dtype: str, provider: str, settings: Settings, axis: int):
        self.result = OutputResult(name, provider, dtype, ranking=Ranking())
        self.settings, self.axis = settings, axis
        # for each column: pairs, and pairs times tau
        self._pairs: dict[int, float] = {}
        self._taus: dict[int, float] = {}
        self._rows = self._other = 0
        self._sum = 0.0

    def judge(
        self,
        index: int,
        requests: Sequence[Request],
        sources: Sequence[Sequence[Any]],
        optimized: Sequence[Sequence[Any]],
    ) -> None:
        """Compares array `index` of all runs. sources, optimized: [mode][request][array], an error where a run failed;
        runs of one mode are compared.
        """
        for mine, theirs in zip(sources, optimized, strict=True):
            for place, (request, a, b) in enumerate(zip(requests, mine, theirs, strict=False)):
                if not isinstance(a, Exception) and not isinstance(b, Exception):
                    self._add(place, request, a[index], b[index])
        self._conclude()

    def _add(self, place: int, request: Request, source: np.ndarray, optimized: np.ndarray) -> None:
        result = self.result
        if source.shape != optimized.shape or source.dtype != optimized.dtype:
            result.fail(f"shape or type {optimized.dtype}{list(optimized.shape)} at N={request.n}, in the source "
                        f"{source.dtype}{list(source.shape)}")  # fmt: skip
            return
        result.compared, result.values = result.compared + 1, result.values + source.size
        if not source.size:
            return
        along = source.ndim > self.axis and source.shape[self.axis] == request.n
        rows = np.moveaxis(source, self.axis, 0).reshape(request.n, -1) if along else source.reshape(1, -1)
        others = np.moveaxis(optimized, self.axis, 0).reshape(request.n, -1) if along else optimized.reshape(1, -1)
        if source.dtype.kind not in "fV":
            result.numbers += source.size
            self._rows += len(rows)
            self._other += int(np.count_nonzero((rows != others).any(axis=1)))
            return
        a, b = wide(rows), wide(others)
        result.numbers += int(np.count_nonzero(~np.isnan(a)))
        bad = unequal_nonfinite(a, b)
        result.nonfinite += int(bad.sum())
        with np.errstate(invalid="ignore"):
            apart = np.where(bad | ~np.isfinite(a), 0.0, np.abs(a - b))
        self._sum += float(apart.sum())
        error = float(apart.max(initial=0)) / (scale_of(a) or 1.0)
        if result.worst is None or error > result.overall.error:
            at = tuple(int(i) for i in np.unravel_index(int(apart.argmax()), apart.shape)) if apart.size else (0, 0)
            first, second = (float(x[at]) if x.size else 0.0 for x in (a, b))
            result.worst = Worst(place, request.label, request.n, at[0] if along else None, at, first, second, None)
        result.overall.error = max(result.overall.error, error)
        result.max_abs = max(result.max_abs, float(apart.max(initial=0)))
        if along:
            finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
            for column in range(a.shape[1]):
                self._column(column, a[finite, column], b[finite, column])

    def _column(self, column: int, source: np.ndarray, optimized: np.ndarray) -> None:
        one = Ranking()
        one.add(source, optimized, 0.0, self.settings.top_k)
        pairs = float(len(source) ** 2 - sum(n * n for n in np.unique(source, return_counts=True)[1]))
        self._pairs[column] = self._pairs.get(column, 0.0) + pairs
        self._taus[column] = self._taus.get(column, 0.0) + pairs * one.tau
        total = self.result.ranking
        assert total is not None
        total.tau, total.swaps = min(total.tau, one.tau), total.swaps + one.swaps
        for k, share in one.top_k.items():
            total.top_k[k] = min(total.top_k.get(k, 1.0), share)

    def _conclude(self) -> None:
        result, most = self.result, self.settings.max_tau_loss
        assert most is not None
        result.mean_abs = self._sum / max(result.values, 1)
        if result.nonfinite:
            result.fail(f"{result.nonfinite} values are NaN or infinite in one model only")
        losses = [1 - self._taus[c] / n for c, n in self._pairs.items() if n]
        if losses:
            result.tau_loss = max(losses)
        elif self._pairs:
            result.fail("no recorded request has two candidates that the source scores differently")
        if self._rows:
            result.tau_loss = max(result.tau_loss or 0.0, self._other / self._rows)
        if result.tau_loss is not None and result.tau_loss > most:
            what = f"{self._other} of {self._rows} rows differ" if self._rows else (
                f"the order of candidates changes by {result.tau_loss:.2g} (1 - Kendall's tau)")  # fmt: skip
            result.fail(f"{what}, allowed {most:g}")
