"""What a check is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

# The optimized model's error may be this many times the source's own (measured: docs/parity-details.md).
MULTIPLE = 4.0
# The N of drawn requests unless others are asked for. One of these at which the source fails is left out.
CANDIDATES = (1, 2, 7, 64, 500)


@dataclass(frozen=True)
class Settings:
    """What a check does; the defaults are those of the command line.

    Attributes:
        candidates: the N of drawn requests, at each of which the source must run; None for the usual ones.
        count: drawn requests for each N.
        providers: each is run and compared on its own; `auto` is the CPU, and CUDA if a GPU answers.
        rtol, atol: `|optimized - source| <= atol + rtol * |source|` instead of the tolerance
            from float64.
        multiple: how many times the source's own error is allowed.
        coarser: how many times coarser than the outputs something in between is rounded on purpose (states in half
            precision); all that is allowed counts so many times.
        max_tau_loss: not equality is asked for, but that the order of candidates changes by no more than this
            (`judge/order.py`).
        coverage: at most so many further requests, to reach what the drawn ones do not.
        extremes: further requests with floats of 0, 1e-6, 1e3 and 1e4.
        threads: within an operator; None for one, and two for a model of more than 256 MiB of weights.
        dump: folder for the inputs of the worst request of outputs that fail.
    """

    candidates: Sequence[int] | None = None
    count: int = 2
    seed: int = 0
    providers: Sequence[str] = ("auto",)
    rtol: float | None = None
    atol: float | None = None
    multiple: float = MULTIPLE
    coarser: float = 1.0
    max_tau_loss: float | None = None
    top_k: Sequence[int] = (10, 50)
    coverage: int = 10_000
    extremes: bool = False
    threads: int | None = None
    dump: str | os.PathLike[str] | None = None

    @property
    def asked(self) -> bool:
        """Whether the caller gave `candidates`."""
        return self.candidates is not None

    @property
    def counts(self) -> Sequence[int]:
        """The N of drawn requests."""
        return CANDIDATES if self.candidates is None else self.candidates


class Changes(TypedDict, total=False):
    """The fields of `Settings` as arguments of `mari_onnx.check`, where `count` is a tag."""

    candidates: Sequence[int] | None
    seed: int
    providers: Sequence[str]
    rtol: float | None
    atol: float | None
    multiple: float
    coarser: float
    max_tau_loss: float | None
    top_k: Sequence[int]
    coverage: int
    extremes: bool
    threads: int | None
    dump: str | os.PathLike[str] | None
