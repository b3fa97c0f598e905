"""`make demo`: optimizes every model in models/, checks each, and prints one table.

Each model is checked on drawn requests (N = 1, 2, 7, 64, 500) and on its recorded ones. Time is
that of one thread, source and output run in turns; the ratio is the median of the pairs'.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mari_onnx import api, runtime
from mari_onnx.errors import MariError
from mari_onnx.model.load import read
from mari_onnx.model.signature import signature
from mari_onnx.parity import Request, check
from mari_onnx.parity.requests.recorded import load
from mari_onnx.report.terminal import change, console, quantity
from mari_onnx.sides.resolve import METADATA_KEY, Sides, resolve, side_file_beside

MODELS = Path(__file__).parents[1] / "models"
PAIRS = 60
WARM_UP = 10


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="by default all in models/")
    parser.add_argument("--candidates", type=int, default=500)
    args = parser.parse_args()
    out = console()
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for name in ("nodes", "products split", "FLOPs per candidate", "", "max error", "time", "faster"):
        table.add_column(name, justify="right", no_wrap=True)
    failed = []
    paths = args.models or sorted(MODELS.glob("*.onnx"))
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        for index, path in enumerate(paths, 1):
            if sys.stderr.isatty():
                print(f"\r\x1b[K{index}/{len(paths)} {path.name}", end="", file=sys.stderr)
            try:
                row = measured(path, Path(folder, path.name), args.candidates)
            except MariError as error:
                failed.append(f"{path.name}: {error}")
                row = [path.name, "failed"]
            table.add_row(*row)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    out.print(table)
    out.print(f"\nN = {args.candidates}; time is a request's median, one thread, before -> after")
    for each in failed:
        out.print(each, markup=False)
    return 1 if failed else 0


def measured(path: Path, output: Path, candidates: int) -> list[str]:
    """One row of the table. Raises MariError where the model cannot be optimized or differs."""
    source = read(path)
    sides = sides_of(path)
    with api.checked(source, sides, output, candidates=candidates) as (done, staged):
        staged.commit()
    report = done.report
    recorded = load(_requests_of(path), signature(source.model), sides)
    result = check(path, output, sides, requests=recorded)
    result.raise_if_different()
    errors = [each["max_abs"] for each in (report.check or {}).get("outputs", [])]
    before, after, ratio = timed(path, output, widened(recorded[0], candidates))
    products = report.products
    split = sum(node.action in ("split", "lifted") for node in products)
    return [
        path.name,
        f"{report.before.nodes} -> {report.after.nodes}",
        f"{split} of {len(products)}",
        f"{quantity(report.before.flops)} -> {quantity(report.after.flops)}",
        change(report.before.flops, report.after.flops),
        f"{max([result.max_error, *errors]):.1e}",
        f"{before * 1e3:.2f} -> {after * 1e3:.2f} ms",
        f"{ratio:.2f}x",
    ]


def sides_of(path: Path) -> Sides:
    """The sides by the file beside the model and its metadata, as the bare command finds them."""
    model = read(path).model
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return resolve(
        signature(model), file=side_file_beside(path), metadata=metadata.get(METADATA_KEY)
    )


def timed(before: Path, after: Path, request: Request) -> tuple[float, float, float]:
    """Median seconds of both, and the median of before/after pair by pair."""
    sessions = [runtime.session(path) for path in (before, after)]
    feeds: list[Any] = [request.feed(each.get_inputs()) for each in sessions]
    times = np.zeros((PAIRS, 2))
    for pair in range(-WARM_UP, PAIRS):
        for which in (0, 1) if pair % 2 else (1, 0):
            start = time.perf_counter()
            sessions[which].run(None, feeds[which])
            if pair >= 0:
                times[pair, which] = time.perf_counter() - start
    first, second = np.median(times, axis=0)
    return float(first), float(second), float(np.median(times[:, 0] / times[:, 1]))


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
