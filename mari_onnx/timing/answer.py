"""What a measurement answers; its JSON form is that of `mari-onnx bench --json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mari_onnx.shown import Rows, Shown
from mari_onnx.timing.measure import Measured
from mari_onnx.timing.several import Together

SCHEMA, VERSION = "mari-onnx/bench", 2


@dataclass(repr=False)
class Bench(Shown):
    """What models took. Printed, it is a line for each number of candidates and model.

    Attributes:
        source: the first model. provider: "cpu" or "cuda".
        results: one for each number of candidates (and of requests) and of threads, in the order of the measurement.
        notes: what is missing, and which ratios are not to be relied on.
    """

    source: str
    provider: str
    results: list[Measured | Together]
    notes: list[str] = field(default_factory=list)

    @property
    def faster_from(self) -> dict[int, dict[str, int | None]]:
        """Threads -> model -> the least N measured from which on it is no slower than the first model at any larger N
        measured; None where it is slower at the largest. Empty for several requests in one run.
        """
        found: dict[int, dict[str, int | None]] = {}
        for each in sorted(self.results, key=lambda r: -r.n):
            if isinstance(each, Together):
                return {}
            first, *others = each.timing.names
            ends = found.setdefault(each.threads, dict.fromkeys(others))
            for name in others:
                larger = [r for r in self.results if r.threads == each.threads and r.n >= each.n]
                if all(r.timing.ratio(first, name) >= 1 for r in larger):
                    ends[name] = each.n
        return found

    def to_dict(self) -> dict[str, Any]:
        """The documented form (docs/bench.md, schemas/bench.json): that of `mari-onnx bench --json`."""
        from mari_onnx.timing.machine import machine

        return {
            "schema": SCHEMA,
            "version": VERSION,
            "source": self.source,
            "provider": self.provider,
            "machine": machine(self.provider),
            "notes": list(self.notes),
            "faster_from": {str(threads): ends for threads, ends in self.faster_from.items()},
            "results": [each.to_dict() for each in self.results],
        }

    def shown(self) -> tuple[str, Rows]:
        """See `Shown`."""
        rows: list[tuple[str, ...]] = [("N", "model", "median", "spread", "faster", "(middle half)", "predicted")]
        for each in self.results:
            figures = each.to_dict()["variants"]
            setting = f"{each.requests} x {each.n}" if isinstance(each, Together) else str(each.n)
            setting += f", {each.threads} threads" if each.threads > 1 else ""
            for index, (name, one) in enumerate(figures.items()):
                low, high = one["speedup_quartiles"]
                predicted = one.get("predicted_speedup")
                ratios = (f"{one['speedup']:.2f}x", f"{low:.2f}-{high:.2f}") if index else ("", "")
                shown = f"{predicted:.2f}x" if index and predicted is not None else ""
                rows.append((setting, name, f"{one['median_ms']:.3f} ms", f"{one['spread']:.0%}", *ratios, shown))
        for threads, ends in self.faster_from.items():
            with_threads = f", {threads} threads" if threads > 1 else ""
            rows += [("faster from", f"{name}{with_threads}", _from(n)) for name, n in ends.items()]
        return f"Bench: {Path(self.source).name}", [*rows, *(("note", note) for note in self.notes)]


def _from(n: int | None) -> str:
    return "at no number that was measured" if n is None else f"{n} candidates on"
