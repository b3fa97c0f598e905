"""`make demo`: optimizes every model in models/, checks each, and prints one table.

Each model is checked on drawn requests (N = 1, 2, 7, 64, 500) and on its recorded ones. Source
and output run in turns on one thread, and are timed by what the thread itself ran. What else runs on
the machine only adds to that, as it takes the caches: so the fastest run of each is what counts, and
"faster" is their ratio. "spread" is half the middle half of the pairs' ratios, as a share of their median.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mari_onnx import api, runtime
from mari_onnx.choices import USUAL, options_for
from mari_onnx.errors import MariError
from mari_onnx.model.load import read
from mari_onnx.model.save import write_text
from mari_onnx.model.signature import signature
from mari_onnx.parity import Request
from mari_onnx.parity.requests.recorded import load
from mari_onnx.report.figures import change, quantity
from mari_onnx.report.terminal import console
from mari_onnx.sides.resolve import METADATA_KEY, Sides, resolve, side_file_beside
from mari_onnx.timing.clock import LARGE, Timing, clock_for, interleaved
from mari_onnx.timing.measure import prepared

MODELS = Path(__file__).parents[1] / "models"
TYPICAL = max(USUAL)
SECONDS, PAIRS = 1.5, 60
HEADINGS = ("nodes", "products split", "FLOPs per candidate", "", "max error", "time", "faster", "spread")
WARM_UP = 10


@dataclass(frozen=True)
class Row:
    """What became of one model.

    Attributes:
        cells: what is shown before the times.
        timing: seconds "before" and "after"; `loaded`: beside burners, where there were any.
    """

    cells: list[str]
    timing: Timing
    loaded: Timing | None = None

    @property
    def faster(self) -> float:
        return _faster(self.timing)

    @property
    def spread(self) -> float:
        return self.timing.ratio_spread("before", "after")

    @property
    def off(self) -> float:
        """The ratio beside burners over the one without, less 1."""
        return _faster(self.loaded) / self.faster - 1 if self.loaded else 0.0

    def to_dict(self) -> dict[str, object]:
        """What `--json` writes: the cells by their headings, milliseconds of the fastest runs, and the ratios."""
        cells = {name: cell for name, cell in zip(HEADINGS, self.cells, strict=False) if name}
        times = {f"{name}_ms": self.timing.fastest(name) * 1e3 for name in ("before", "after")}
        return {**cells, **times, "faster": self.faster, "spread": self.spread, "off": self.off}

    def shown(self) -> list[str]:
        before, after = (self.timing.fastest(name) * 1e3 for name in ("before", "after"))
        mark = " !" if self.spread > LARGE else ""
        beside = [f"{_faster(self.loaded):.2f}x", f"{self.off:+.0%}"] if self.loaded else []
        times = [f"{before:.2f} -> {after:.2f} ms", f"{self.faster:.2f}x", f"{self.spread:.0%}{mark}"]
        return [*self.cells, *times, *beside]


def _faster(timing: Timing) -> float:
    return timing.fastest("before") / timing.fastest("after")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="by default all in models/")
    parser.add_argument("--candidates", type=int, help="choose rewrites for this N alone, and time it; by default 500")
    parser.add_argument(
        "--burners",
        type=int,
        default=0,
        metavar="K",
        help="time each model again beside K processes that burn the processors: how far off are the ratios?",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    args = parser.parse_args()
    out, found, failed, live = console(), {}, [], sys.stderr.isatty()
    paths = args.models or sorted(MODELS.glob("*.onnx"))
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        for index, path in enumerate(paths, 1):
            line = f"{index}/{len(paths)} {path.name}"
            print(f"\r\x1b[K{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)
            try:
                found[path.name] = measured(path, Path(folder, path.name), args.candidates, args.burners)
            except MariError as error:
                failed.append(f"{path.name}: {error}")
    if live:
        print("\r\x1b[K", end="", file=sys.stderr)
    _show(out, found, args.candidates or TYPICAL, args.burners)
    for each in failed:
        out.print(f"failed: {each}", markup=False)
    if args.json is not None:
        write_text(args.json, json.dumps({name: row.to_dict() for name, row in found.items()}, indent=1) + "\n")
    return 1 if failed else 0


def _show(out: Console, found: Mapping[str, Row], candidates: int, burners: int) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    beside = [f"beside {burners} burners", "off by"] if burners else []
    for name in (*HEADINGS, *beside):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in found.items():
        table.add_row(name, *row.shown())
    out.print(table)
    out.print(
        f"\nN = {candidates}; time is the thread time of a request's fastest run, one thread, before -> after; "
        f"load average {os.getloadavg()[0]:.1f}"
    )
    if burners and found:
        worst = max(abs(row.off) for row in found.values())
        out.print(f"beside {burners} burners no ratio is off by more than {worst:.0%}")
    if any(row.spread > LARGE for row in found.values()):
        out.print(f"! the ratio has a spread above {LARGE:.0%}: run again, or on a quieter machine")


def measured(path: Path, output: Path, only: int | None = None, burners: int = 0) -> Row:
    """Optimizes, checks and times one model.

    Args:
        only: the N that rewrites are chosen for; None for those that count by default.
        burners: beside how many processes it is timed again.

    Raises:
        MariError: the model cannot be optimized, or differs.
    """
    source = read(path)
    sides = sides_of(path)
    recorded = load(_requests_of(path), signature(source.model), sides)
    with api.checked(source, sides, output, options_for(only), requests=recorded) as (done, staged):
        staged.commit()
    report = done.report
    errors = [each["max_abs"] for each in (report.check or {}).get("outputs", [])]
    products = report.products
    split = sum(node.action in ("split", "lifted") for node in products)
    cells = [
        f"{report.before.nodes} -> {report.after.nodes}",
        f"{split} of {len(products)}",
        f"{quantity(report.before.flops)} -> {quantity(report.after.flops)}",
        change(report.before.flops, report.after.flops),
        f"{max(errors, default=0.0):.1e}",
    ]
    request = widened(recorded[0], only or TYPICAL)
    timing = timed(path, output, request)
    if not burners:
        return Row(cells, timing)
    with burning(burners):
        return Row(cells, timing, timed(path, output, request))


def sides_of(path: Path) -> Sides:
    """The sides by the file beside the model and its metadata, as the bare command finds them."""
    model = read(path).model
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return resolve(
        signature(model), file=side_file_beside(path), metadata=metadata.get(METADATA_KEY)
    )


def timed(before: Path, after: Path, request: Request) -> Timing:
    """Seconds of "before" and "after", run in turns on one thread, in the time that the thread itself ran."""
    sessions = {"before": runtime.session(before), "after": runtime.session(after)}
    runs = {}
    for name, session in sessions.items():
        runs[name], _ = prepared(session, [request.feed(session.get_inputs())], "cpu")
    _, clock = clock_for()
    # For so much thread time, not by the clock: as many pairs on a busy machine as on a quiet one.
    return interleaved(runs, seconds=SECONDS, least=PAIRS, warm_up=WARM_UP, clock=clock)


@contextlib.contextmanager
def burning(count: int) -> Iterator[None]:
    """So many processes that do nothing but run."""
    made = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in made:
            each.kill()
            each.wait()


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


if __name__ == "__main__":
    sys.exit(main())
