"""What a check answers, with its forms: text, JSON, JUnit XML."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mari_onnx.errors import OutputsDiffer
from mari_onnx.parity.judge.metrics import OutputResult
from mari_onnx.parity.settings import Settings

if TYPE_CHECKING:
    from mari_onnx.parity.bisect import Divergence
    from mari_onnx.parity.requests.draw import Request

SCHEMA = "mari-onnx/check"
SCHEMA_VERSION = 1

@dataclass
class CheckResult:
    """What a check found; `ok` is the verdict.

    Attributes:
        outputs: one a provider and output.
        failures: what is wrong beside outputs: names, types, runs that fail.
        notes: what a reader should know though it fails nothing.
        requests, candidates: how many requests were compared with float64, and of which N.
        coverage: input -> (ids met, ids in all).
        values: input -> (numbers met, numbers in all) that the graph tells apart.
        reference: how precise the float64 run was.
        divergence: the first tensor that diverges, where it was looked for.
        worst_request: the request of the largest error of the first output that fails.
    """

    source: str
    optimized: str
    settings: Settings
    outputs: list[OutputResult] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    requests: int = 0
    candidates: list[int] = field(default_factory=list)
    coverage: dict[str, tuple[int, int]] = field(default_factory=dict)
    values: dict[str, tuple[int, int]] = field(default_factory=dict)
    reference: str = "float64"
    seconds: float = 0.0
    divergence: Divergence | None = None
    worst_request: Request | None = None

    @property
    def ok(self) -> bool:
        return not self.failures and all(o.ok for o in self.outputs)

    @property
    def reasons(self) -> list[str]:
        """Why it fails, one line each."""
        failing = [o for o in self.outputs if not o.ok]
        return self.failures + [f"output {o.name} ({o.provider}): {o.reason}" for o in failing]

    @property
    def max_error(self) -> float:
        """Largest absolute difference of any output between the two models."""
        return max((o.max_abs for o in self.outputs), default=0.0)

    def raise_if_different(self) -> None:
        """Raises OutputsDiffer with the reasons."""
        if not self.ok:
            raise OutputsDiffer(
                f"{self.optimized} differs from {self.source}:\n  " + "\n  ".join(self.reasons[:20])
            )

    def __str__(self) -> str:
        return "equal" if self.ok else "; ".join(self.reasons[:5])

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; docs/parity.md documents it."""
        settings = asdict(self.settings)
        settings["dump"] = None if self.settings.dump is None else os.fspath(self.settings.dump)
        found: dict[str, Any] = _plain(
            {
                "schema": SCHEMA,
                "version": SCHEMA_VERSION,
                "ok": self.ok,
                "source": self.source,
                "optimized": self.optimized,
                "settings": settings,
                "reference": self.reference,
                "requests": self.requests,
                "candidates": self.candidates,
                "coverage": {k: {"met": a, "of": b} for k, (a, b) in self.coverage.items()},
                "values": {k: {"met": a, "of": b} for k, (a, b) in self.values.items()},
                "failures": self.failures,
                "notes": self.notes,
                "outputs": [asdict(o) for o in self.outputs],
                "divergence": None if self.divergence is None else asdict(self.divergence),
                "seconds": self.seconds,
            }
        )
        return found

    def to_junit(self) -> str:
        """JUnit XML: one test case an output and provider, and one for names, types and runs."""
        from xml.etree import ElementTree

        failing = sum(not o.ok for o in self.outputs) + bool(self.failures)
        suite = ElementTree.Element(
            "testsuite",
            name="mari-onnx check",
            tests=str(len(self.outputs) + 1),
            failures=str(failing),
            errors="0",
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
        notes = ElementTree.SubElement(suite, "system-out")
        notes.text = _xml("\n".join([f"seed {self.settings.seed}", *self.notes]))
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
