"""What the demo prints: a row per model, a summary, a legend; and where two runs differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.demo.model import TRIES, Row
from mari_onnx.errors import UsageError
from mari_onnx.parity import Settings
from mari_onnx.report.figures import change, quantity
from mari_onnx.timing.clock import LARGE

ALIKE = 0.15
"""By how much ratios of two runs of the demo may differ."""
HEADINGS = ("nodes", "products split", "FLOPs per candidate", "", "max error", "time", "faster", "median", "spread")
LEGEND = (
    f"check: outputs of source and output are equal, on so many requests; at most {TRIES} were tried to reach what the "
    f"first ones do not, and `mari-onnx optimize` tries up to {Settings.coverage:,}",
    "products split: matrix products whose user part runs once per request, or all of them",
    "max error: the largest difference of any output",
    "time: of one request, before -> after: the fastest run, in time of the one thread that runs it",
    "faster: before over after; median: of the ratios of pairs of runs; spread: half the middle half of these ratios",
)


def cells(row: Row) -> list[str]:
    """A row of the table behind the model's name."""
    times = row.times
    mark = " !" if times.spread > LARGE else ""
    beside = [f"{row.loaded.faster:.2f}x", f"{row.off:+.0%}"] if row.loaded else []
    return [
        f"{row.verdict} ({row.requests})",
        f"{row.nodes[0]} -> {row.nodes[1]}",
        f"{row.split} of {row.products}",
        f"{quantity(row.flops[0])} -> {quantity(row.flops[1])}",
        change(*row.flops),
        f"{row.max_error:.1e}",
        f"{times.before * 1e3:.2f} -> {times.after * 1e3:.2f} ms",
        f"{times.faster:.2f}x",
        f"{times.median:.2f}x",
        f"{times.spread:.0%}{mark}",
        *beside,
    ]


def table(rows: Sequence[Row], burners: int = 0) -> Table:
    """A row per model, and one for all: the geometric mean of the ratios, and the worst."""
    made = Table(box=None, pad_edge=False, show_footer=len(rows) > 1)
    equal = sum(row.verdict == "equal" for row in rows)
    mean = math.exp(sum(math.log(row.times.faster) for row in rows) / max(len(rows), 1))
    median = math.exp(sum(math.log(row.times.median) for row in rows) / max(len(rows), 1))
    footers = {"check": f"{equal} of {len(rows)}", "time": "geometric mean", "faster": f"{mean:.2f}x"}
    footers["median"] = f"{median:.2f}x"
    made.add_column("model", footer="all")
    beside = [f"beside {burners} burners", "off by"] if burners else []
    for name in ("check", *HEADINGS, *beside):
        made.add_column(name, justify="right", no_wrap=True, footer=footers.get(name, ""))
    for row in rows:
        made.add_row(row.name, *cells(row))
    return made


def summary(rows: Sequence[Row], burners: int = 0) -> list[str]:
    """What is said below the table."""
    worst = min(rows, key=lambda row: row.times.faster)
    lines = [f"least gain: {worst.times.faster:.2f}x, {worst.name}"]
    if burners:
        most = max(rows, key=lambda row: abs(row.off))
        lines.append(f"beside {burners} burners no ratio is off by more than {abs(most.off):.0%} ({most.name})")
    shaky = [row.name for row in rows if row.times.spread > LARGE]
    if shaky:
        lines.append(f"! spread above {LARGE:.0%}: run again, or on a quieter machine ({', '.join(shaky)})")
    return lines


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """For `--json`: model -> figures."""
    return {row.name: row.to_dict() for row in rows}


def earlier(path: Path) -> dict[str, float]:
    """Model -> how much faster, of a run with `--json`. Raises UsageError where the file is none."""
    try:
        return {name: float(each["faster"]) for name, each in json.loads(path.read_text()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} has no figures of a demo: {error}", "write them with --json FILE") from error


def against(rows: Sequence[Row], before: Mapping[str, float]) -> list[str]:
    """The models whose ratio differs by more than `ALIKE` from that of an earlier run, and how many do not."""
    both = [(row, row.times.faster / before[row.name] - 1) for row in rows if row.name in before]
    if not both:
        return ["none of these models is in the earlier run"]
    lines = [
        f"{row.name}: {before[row.name]:.2f}x then, {row.times.faster:.2f}x now ({off:+.0%})"
        for row, off in both
        if abs(off) > ALIKE
    ]
    row, off = max(both, key=lambda each: abs(each[1]))
    alike = f"{len(both) - len(lines)} of {len(both)} ratios are within {ALIKE:.0%} of the earlier run"
    return [*lines, f"{alike}; the largest difference is {off:+.0%}, {row.name}"]
