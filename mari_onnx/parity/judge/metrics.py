"""How far outputs are from each other: errors, units in the last place, rankings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Kendall's tau looks at all pairs up to this many candidates, at an even sample beyond.
_TAU_ROWS = 1000


@dataclass
class Ranking:
    """Whether the order of candidates changed, the worst over all requests.

    Attributes:
        top_k: k -> smallest share of the source's top k that is in the optimized top k (ties count
            as equal).
        tau: smallest Kendall's tau-b over the pairs that are no ties.
        swaps: pairs of candidates that changed order though they differ by more than the tolerance.
    """

    top_k: dict[int, float] = field(default_factory=dict)
    tau: float = 1.0
    swaps: int = 0

    def add(self, source: np.ndarray, optimized: np.ndarray, tie: float, ks: Sequence[int]) -> None:
        """Takes in one request's scores, each `[N]`; differences up to `tie` are ties."""
        for k in ks:
            if k < len(source):
                bar = np.partition(source, -k)[-k]
                chosen = np.argsort(-optimized, kind="stable")[:k]
                share = float(np.mean(source[chosen] >= bar - tie))
                self.top_k[k] = min(self.top_k.get(k, 1.0), share)
        if len(source) > _TAU_ROWS:
            at = np.linspace(0, len(source) - 1, _TAU_ROWS).astype(int)
            source, optimized = source[at], optimized[at]
        a = source[:, None] - source[None, :]
        b = optimized[:, None] - optimized[None, :]
        a[np.abs(a) <= tie] = 0
        b[a == 0] = 0
        signs = np.sign(a) * np.sign(b)
        norm = np.sqrt(float(np.count_nonzero(a)) * float(np.count_nonzero(b)))
        if norm:
            self.tau = min(self.tau, float(signs.sum() / norm))
        self.swaps += int(np.count_nonzero(signs < 0)) // 2


@dataclass
class Worst:
    """The element with the largest error."""

    request: int
    label: str
    n: int
    candidate: int | None
    index: tuple[int, ...]
    source: float
    optimized: float
    exact: float | None


@dataclass
class Errors:
    """Errors over all requests, relative to a scale.

    Attributes:
        error, mean_error: of the optimized model against float64.
        source_error, source_mean_error: of the source against float64.
        apart: between the two models, on requests without a float64 run.
        allowed, mean_allowed: bounds on `error` and `mean_error`.
    """

    error: float = 0.0
    mean_error: float = 0.0
    source_error: float = 0.0
    source_mean_error: float = 0.0
    apart: float = 0.0
    allowed: float = 0.0
    mean_allowed: float = 0.0

    def bound(self, multiple: float, floor: float, mean_floor: float) -> None:
        """Sets what is allowed: a multiple of the source's own error, and a floor."""
        self.allowed = multiple * self.source_error + floor
        self.mean_allowed = multiple * self.source_mean_error + mean_floor

    def strain(self) -> float:
        """How near to their bounds the errors are; above 1 a bound is broken."""
        pairs = (
            (self.error, self.allowed),
            (self.mean_error, self.mean_allowed),
            (self.apart, self.allowed + self.source_error),
        )
        return max(error / bound if bound else float(error > 0) for error, bound in pairs)

    def fault(self) -> str | None:
        """The bound that is broken, in words."""
        if self.error > self.allowed:
            return (
                f"error {self.error:.3g} against float64, the source's own is "
                f"{self.source_error:.3g}, allowed {self.allowed:.3g}"
            )
        if self.mean_error > self.mean_allowed:
            return (
                f"mean error {self.mean_error:.3g} against float64, the source's own is "
                f"{self.source_mean_error:.3g}, allowed {self.mean_allowed:.3g}"
            )
        # Without a float64 run both models' errors may add up.
        if self.apart > self.allowed + self.source_error:
            return (
                f"{self.apart:.3g} from the source, allowed {self.allowed + self.source_error:.3g}"
            )
        return None


@dataclass
class OutputResult:
    """One output on one provider.

    Attributes:
        reason: why it fails, None where it passes.
        max_abs, mean_abs, max_rel, max_ulp: optimized against source, element by element.
        overall: errors relative to the output's largest magnitude in all requests; of its columns of one scale that
            are nearest to their bound.
        by_request: errors relative to its largest magnitude in each request (but no less than a
            usual one), likewise.
        nonfinite: elements that are NaN or infinite in one model only.
        compared: requests on which it was compared.
        values: elements compared, each as often as the optimized model was run on them.
        numbers: of the source's elements those that are no NaN.
        stepped: rows of a rounded output that are one step away, with nothing near the boundary of two steps.
        tau_loss: how far the order of candidates changed (`order.py`), where that is what is judged.
        dumped: file with the inputs of the worst request.
    """

    name: str
    provider: str
    dtype: str
    ok: bool = True
    reason: str | None = None
    max_abs: float = 0.0
    mean_abs: float = 0.0
    max_rel: float = 0.0
    max_ulp: float = 0.0
    overall: Errors = field(default_factory=Errors)
    by_request: Errors = field(default_factory=Errors)
    nonfinite: int = 0
    stepped: int = 0
    compared: int = 0
    values: int = 0
    numbers: int = 0
    worst: Worst | None = None
    ranking: Ranking | None = None
    tau_loss: float | None = None
    dumped: str | None = None

    def fail(self, reason: str) -> None:
        """The first reason stays."""
        self.ok = False
        self.reason = self.reason or reason


def unequal_nonfinite(source: np.ndarray, optimized: np.ndarray) -> np.ndarray:
    """Where one is NaN or infinite and the other is not the same."""
    bad = np.isnan(source) != np.isnan(optimized)
    infinite = np.isinf(source) | np.isinf(optimized)
    with np.errstate(invalid="ignore"):
        differ: np.ndarray = bad | (infinite & ~np.isnan(source) & ~np.isnan(optimized) & (source != optimized))
    return differ


def ulps(source: np.ndarray, optimized: np.ndarray) -> np.ndarray:
    """Distance in units in the last place of the larger of the two, for arrays of one float
    dtype."""
    larger = np.maximum(np.maximum(np.abs(source), np.abs(optimized)), np.finfo(source.dtype).tiny)
    spacing = np.spacing(larger).astype(np.float64)
    steps: np.ndarray = np.abs(source.astype(np.float64) - optimized.astype(np.float64)) / spacing
    return steps


def furthest(source: Sequence[np.ndarray], optimized: Sequence[np.ndarray]) -> float:
    """Largest difference of any float output relative to its scale; 0 for other shapes."""
    found = 0.0
    for a, b in zip(source, optimized, strict=False):
        if a.dtype.kind == "f" and a.shape == b.shape and a.size:
            with np.errstate(invalid="ignore"):
                difference = np.abs(wide(a) - wide(b))
            found = max(found, float(np.nan_to_num(difference).max()) / (scale_of(wide(a)) or 1.0))
    return found


def scale_of(values: np.ndarray) -> float:
    """Largest finite magnitude; 0 where there is none."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0


def epsilon(dtype: np.dtype) -> float:
    """Distance from 1 to the next number of a float dtype (bfloat16 included)."""
    return 2.0**-7 if dtype.name == "bfloat16" else float(np.finfo(dtype).eps)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal, NaN counted as equal to NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def same_but_for_rounding(a: np.ndarray, b: np.ndarray, ulps: float) -> bool:
    """Equal, floats up to so many units in the last place of their scale."""
    if a.shape != b.shape or a.dtype != b.dtype or a.dtype.kind != "f":
        return same_bits(a, b)
    mine, theirs = wide(a), wide(b)
    if unequal_nonfinite(mine, theirs).any():
        return False
    finite = np.isfinite(mine)
    apart = np.abs(mine[finite] - theirs[finite])
    return float(apart.max(initial=0)) <= ulps * epsilon(a.dtype) * (scale_of(mine) or 1.0)


def constant(answers: Sequence[np.ndarray]) -> bool:
    """Whether all elements of several arrays are one and the same number; not so for a single element, or NaN."""
    held = [a for a in answers if a.size]
    return sum(a.size for a in held) > 1 and all(bool((a == held[0].flat[0]).all()) for a in held)


def wide(values: Any) -> np.ndarray:
    """As float64, whatever the float type."""
    return np.asarray(values).astype(np.float64)
