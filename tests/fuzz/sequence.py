"""History and candidates in one sequence: masks of every kind, layouts, writes, and what keeps candidates together."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from mari_onnx.engine import Options, Rewrite, rewrite
from mari_onnx.parity.assumptions import Refuted, settle
from tests import sequences
from tests.engine.graphs import Draw, runner
from tests.fuzz.oracle import ROUNDING, Fault, differs, session
from tests.sequences import Form, build, feeds

LEAKS = ("window", "first", "late", "scaled", "little", "mean", "causal", "second", "back", "centred", "summed", "zero",
         "turned", "neighbour", "count")  # fmt: skip
SCALES = (1.0, 1.0, 30.0, 1e6)
"""Of the inputs: masks that are finite hide nothing behind scores that are larger."""


@dataclass(frozen=True)
class SequenceCase:
    """A form, numbers of candidates and the scale of what is fed."""

    form: Form
    counts: tuple[int, ...]
    scale: float

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The source."""
        return build(self.form)

    def __repr__(self) -> str:
        return f"N={self.counts} scale={self.scale} {self.form}"

    @property
    def size(self) -> int:
        """What makes one case simpler than another: fields that are not the default."""
        plain = Form()
        return sum(getattr(self.form, name) != getattr(plain, name) for name in asdict(plain))

    def save(self, path: Path, why: str) -> None:
        """As text: a form is small."""
        fields = {name: str(value) for name, value in asdict(self.form).items()}
        content = {"why": why, "counts": self.counts, "scale": self.scale, "form": fields}
        path.write_text(json.dumps(content, indent=1) + "\n")


@st.composite
def sequence_cases(draw: Draw) -> SequenceCase:
    """A model, isolated or not."""
    one: Any = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    opset = one(13, 14, 17, 18, 19, 21)
    form = Form(
        length=one(1, 2, 5, 6),
        free=one(False, False, True),
        layers=one(1, 2, 2, 3),
        mask=one("compared", "compared", "constant", "triangle", "gathered", "given") if opset >= 14 else "compared",
        how=one("where", "add", "factor", "factor before"),
        lowest=one(-np.inf, -np.inf, -1e9, float(np.finfo(np.float32).min), -1e4),
        norm=one("layer", "rms", "") if opset >= 17 else one("rms", ""),
        rope=one(False, False, True),
        bias=one(False, False, True),
        first=one(False, False, True),
        flat=one(False, False, True),
        pad=one(False, False, True),
        strict=one(False, False, True),
        leak=one(*[""] * 12, *LEAKS),
        end=one("", "", "softmax", "rank"),
        places=one("same", "own"),
        heads=one(1, 2, 2, 4),
        layout=one("apart", "apart", "joined", "flat", "einsum"),
        write=one("", "", "history", "sequence", "nd"),
        integers=one("", "", "static", "dynamic") if opset >= 19 else "",
        two=one(False, False, True),
        opset=opset,
        seed=one(0, 1, 2),
        dtype=one(np.float64, np.float64, np.float32),
    )
    if form.flat and form.pad:
        form = Form(**{**asdict(form), "pad": False})
    return SequenceCase(form, (1, draw(st.integers(2, 9)), one(2, 40)), one(*SCALES))


def judge_sequence(case: SequenceCase, tally: Counter[str] | None = None) -> None:
    """Raises `Fault`. Counts in ``tally`` what was compared."""
    seen: Counter[str] = Counter() if tally is None else tally
    form, sides = case.form, sequences.sides(case.form)
    source = runner(case.model)

    def request(n: int, length: int) -> dict[str, np.ndarray]:
        found = feeds(form, n, length, seed=n)
        return {k: v * case.scale if v.dtype.kind == "f" else v for k, v in found.items()}

    def lengths() -> tuple[int, ...]:
        return (form.length, 1, 3) if form.free else (form.length,)

    tolerance = 1e-9 if form.dtype is np.float64 else 1e-4

    def shaky(feed: dict[str, np.ndarray], want: np.ndarray) -> bool:
        """Whether rounding alone moves the source's scores: large numbers that cancel."""
        rng, by = np.random.default_rng(0), 4 * ROUNDING[np.dtype(form.dtype).name]
        moved = {
            k: (v * (1 + by * rng.standard_normal(v.shape))).astype(v.dtype) if v.dtype.kind == "f" else v
            for k, v in feed.items()
        }
        return differs(want, source(moved)[0], tolerance / 50) is not None

    def difference(made: onnx.ModelProto, n: int) -> str | None:
        output = runner(made)
        for length in lengths():
            feed = request(n, length)
            (want,), (have,) = source(feed), output(feed)
            bad = differs(want, have, tolerance)
            if bad is not None and not shaky(feed, want):
                return f"{bad} at N={n}, T={length}"
        return None

    def verify(made: Rewrite) -> Refuted | None:
        for n in sorted({each.candidates for each in made.assumptions}):
            bad = difference(made.model, n)
            if bad is not None:
                return Refuted(bad)
        return None

    try:
        made, _ = settle(case.model, Options(assume=True), lambda options: rewrite(case.model, sides, options), verify)
    except Exception as error:
        raise Fault("trip", f"{type(error).__name__}: {error}") from error
    apart = any("weights between candidates" in each.what for each in made.assumptions)
    seen["sequences: apart" if apart else "sequences: together"] += 1
    if not made.changed:
        return
    onnx.checker.check_model(made.model)
    for n in case.counts:
        bad = difference(made.model, n)
        if bad is not None:
            raise Fault("wrong", bad)
    if session(case.model) is not None and session(made.model) is None:
        raise Fault("load", session.why[:300])  # type: ignore[attr-defined]
    seen["compared, sequences"] += 1
