"""What a check answers, with its forms: text, JSON, JUnit XML."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mari_onnx.errors import CannotCompare, OutputsDiffer
from mari_onnx.parity.coverage.report import Coverage
from mari_onnx.parity.judge.metrics import OutputResult
from mari_onnx.parity.settings import Settings
from mari_onnx.shown import Rows, Shown

if TYPE_CHECKING:
    from mari_onnx.parity.bisect import Divergence, Layer
    from mari_onnx.parity.requests.request import Request

SCHEMA = "mari-onnx/check"
SCHEMA_VERSION = 1

OUTPUTS_SHOWN = 8
FURTHEST = 10
EQUAL, DIFFERENT, CANNOT_COMPARE = "equal", "different", "cannot be compared"


@dataclass(frozen=True)
class Far:
    """How far apart the models are on one request. error: see `judge.verdict.Verdict.errors`."""

    request: Request
    output: str
    provider: str
    error: float


@dataclass(repr=False)
class CheckResult(Shown):
    """What a check found; `verdict` is its answer, `ok` whether that is "equal".

    Attributes:
        outputs: one per provider and output.
        failures: what is wrong beside outputs: names, types, runs that fail.
        cannot_compare: why the two could not be compared on all that was asked for, though nothing was found to differ.
        notes: what a reader should know though it fails nothing.
        doubts: what no drawn request can show of the sides; none where requests were recorded.
        providers: on what both models ran.
        requests, candidates: how many requests were compared with float64, and of which N; `recorded` of them were
            not drawn.
        coverage: input -> (ids met, ids in all).
        values: input -> (numbers met, numbers in all) that the graph tells apart.
        reached: what the requests reached in both models, and what not.
        reference: how precise the float64 run was.
        divergence: the first tensor that diverges, where it was looked for.
        layers: inner tensors of both models, where they were compared.
        failing: requests on which outputs differ most, one for each output that fails and each N it fails at.
        furthest: of each output and provider the requests on which the models are the furthest apart, whether that is
            allowed or not; `FURTHEST` of them, the furthest first.
    """

    source: str
    optimized: str
    settings: Settings
    outputs: list[OutputResult] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    cannot_compare: list[str] = field(default_factory=list)
    providers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    requests: int = 0
    recorded: int = 0
    candidates: list[int] = field(default_factory=list)
    coverage: dict[str, tuple[int, int]] = field(default_factory=dict)
    values: dict[str, tuple[int, int]] = field(default_factory=dict)
    reached: Coverage = field(default_factory=Coverage)
    reference: str = "float64"
    seconds: float = 0.0
    divergence: Divergence | None = None
    layers: list[Layer] | None = None
    failing: list[Request] = field(default_factory=list)
    furthest: list[Far] = field(default_factory=list)

    def shown(self) -> tuple[str, Rows]:
        """See `Shown`."""
        names = [os.path.basename(name) for name in (self.source, self.optimized)]
        sizes = ", ".join(map(str, self.candidates))
        ran = f"{self.requests} requests ({self.recorded} recorded), N = {sizes}, on {' and '.join(self.providers)}"
        rows = [("checked", f"{ran}; reference {self.reference}; {self.seconds:.1f} s")]
        rows += [("reached", str(self.reached))] if str(self.reached) else []
        for each in sorted(self.outputs, key=lambda o: o.ok)[:OUTPUTS_SHOWN]:
            off = f"largest difference {each.max_abs:.1e}, error {each.overall.error:.1e}"
            verdict = "equal" if each.ok else "DIFFERS"
            rows.append((f"output {each.name}", f"{verdict} on {each.provider}: {off} of {each.overall.allowed:.1e}"))
        left = len(self.outputs) - OUTPUTS_SHOWN
        rows += [("", f"and {left} more outputs")] if left > 0 else []
        rows += [("why", reason) for reason in self.reasons[:OUTPUTS_SHOWN]]
        return f"CheckResult: {' and '.join(names)}: {self.verdict}", rows

    @property
    def worst_request(self) -> Request | None:
        """The request of the largest error of the first output that fails."""
        return self.failing[0] if self.failing else None

    @property
    def verdict(self) -> str:
        """EQUAL, DIFFERENT or CANNOT_COMPARE. A difference that was found counts whatever else was left out."""
        if self.failures or not all(o.ok for o in self.outputs):
            return DIFFERENT
        return CANNOT_COMPARE if self.cannot_compare else EQUAL

    @property
    def ok(self) -> bool:
        return self.verdict == EQUAL

    @property
    def reasons(self) -> list[str]:
        """Why it is not equal, one line each."""
        failing = [o for o in self.outputs if not o.ok]
        found = self.failures + [f"output {o.name} ({o.provider}): {o.reason}" for o in failing]
        return found + self.cannot_compare

    def add(self, other: CheckResult, what: str) -> None:
        """Adds what a check of something else found, `what` it is said with, as failures and notes."""
        wrong = [r for r in other.reasons if r not in other.cannot_compare]
        self.failures += [f"{what}: {reason}" for reason in wrong]
        self.cannot_compare += [f"{what}: {reason}" for reason in other.cannot_compare]
        self.notes += [f"{what}: {note}" for note in other.notes if note not in self.notes]
        self.failing += other.failing
        self.furthest += other.furthest

    def mark(self) -> tuple[int, ...]:
        """For `reset`."""
        return tuple(map(len, self._found()))

    def reset(self, mark: tuple[int, ...]) -> None:
        """Takes back what was found since `mark`."""
        for found, length in zip(self._found(), mark, strict=True):
            del found[length:]

    def _found(self) -> tuple[list[Any], ...]:
        return self.outputs, self.failures, self.notes, self.failing, self.furthest

    @property
    def max_error(self) -> float:
        """Largest absolute difference of any output between the two models."""
        return max((o.max_abs for o in self.outputs), default=0.0)

    def raise_if_different(self) -> None:
        """Raises OutputsDiffer or CannotCompare with the reasons, unless the verdict is "equal"."""
        reasons = "\n  ".join(self.reasons[:20])
        if self.verdict == DIFFERENT:
            raise OutputsDiffer(f"{self.optimized} differs from {self.source}:\n  {reasons}")
        if self.verdict == CANNOT_COMPARE:
            raise CannotCompare(f"{self.optimized} cannot be compared with {self.source}:\n  {reasons}")

    def __str__(self) -> str:
        return self.verdict if self.ok else "; ".join(self.reasons[:5])

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; docs/parity-details.md documents it."""
        settings = asdict(self.settings)
        settings["dump"] = None if self.settings.dump is None else os.fspath(self.settings.dump)
        settings["candidates"] = list(self.settings.counts)
        found: dict[str, Any] = _plain(
            {
                "schema": SCHEMA,
                "version": SCHEMA_VERSION,
                "ok": self.ok,
                "verdict": self.verdict,
                "source": self.source,
                "optimized": self.optimized,
                "settings": settings,
                "reference": self.reference,
                "requests": self.requests,
                "recorded": self.recorded,
                "candidates": self.candidates,
                "coverage": {k: {"met": a, "of": b} for k, (a, b) in self.coverage.items()},
                "values": {k: {"met": a, "of": b} for k, (a, b) in self.values.items()},
                "providers": self.providers,
                "reached": self.reached.to_dict(),
                "failures": self.failures,
                "cannot_compare": self.cannot_compare,
                "notes": self.notes,
                "doubts": self.doubts,
                "outputs": [asdict(o) for o in self.outputs],
                "divergence": None if self.divergence is None else asdict(self.divergence),
                "layers": None if self.layers is None else [asdict(each) for each in self.layers],
                "seconds": self.seconds,
            }
        )
        return found

    def to_junit(self) -> str:
        """JUnit XML: one test case per output and provider, and one for names, types and runs."""
        from xml.etree import ElementTree

        failing = sum(not o.ok for o in self.outputs) + bool(self.failures)
        suite = ElementTree.Element(
            "testsuite",
            name="mari-onnx check",
            tests=str(len(self.outputs) + 1),
            failures=str(failing),
            errors=str(int(bool(self.cannot_compare))),
            skipped="0",
            time=f"{self.seconds:.3f}",
        )
        cases = [("signature and runs", "all", "\n".join(self.failures))]
        cases += [(o.name, o.provider, "" if o.ok else str(o.reason)) for o in self.outputs]
        for name, provider, reason in cases:
            case = ElementTree.SubElement(
                suite, "testcase", classname=_xml(f"{self.optimized}.{provider}"), name=_xml(name)
            )
            if reason:
                message = reason.splitlines()[0]
                failure = ElementTree.SubElement(case, "failure", message=_xml(message))
                failure.text = _xml(reason)
            if name == cases[0][0] and self.cannot_compare:
                error = ElementTree.SubElement(case, "error", message=_xml(self.cannot_compare[0]))
                error.text = _xml("\n".join(self.cannot_compare))
        notes = ElementTree.SubElement(suite, "system-out")
        notes.text = _xml("\n".join([f"seed {self.settings.seed}", *self.notes, *self.doubts]))
        return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(
            suite, encoding="unicode"
        )


def _xml(text: str) -> str:
    """Without the control characters that XML 1.0 has no form for."""
    return "".join(c for c in text if c in "\t\n" or ord(c) >= 32)


def _plain(value: Any) -> Any:
    """What JSON has: NaN and infinity as text, keys as text, sequences as lists."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value
