"""`python -m benchmarks.demo`, which is `make demo`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.demo import jobs

if TYPE_CHECKING:
    from benchmarks.demo.model import Row

MODELS = Path(__file__).parents[2] / "models"
SILENCE = 8.0
"""Seconds after which something is said where no model is done."""


def main() -> int:
    """See the module. Nothing that takes long to load is imported before the first line is printed."""
    parser = argparse.ArgumentParser(prog="make demo", description=sys.modules["benchmarks.demo"].__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="by default all in models/")
    parser.add_argument("--candidates", type=int, help="choose rewrites for this N alone, and time it; by default 500")
    parser.add_argument("--jobs", type=int, default=_cores(), help="models at a time; by default one per core")
    parser.add_argument(
        "--burners",
        type=int,
        default=0,
        metavar="K",
        help="time each model again beside K processes that burn the processors: how far off are the ratios?",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with a run that wrote FILE by --json")
    args = parser.parse_args()
    if args.against is not None and not args.against.is_file():
        parser.error(f"there is no file {args.against} of an earlier run")
    began = time.monotonic()
    paths = args.models or sorted(MODELS.glob("*.onnx"))
    count = max(1, min(args.jobs, len(paths)))
    say = Progress(len(paths), count)
    say.line(f"{len(paths)} models, {count} at a time: each is optimized, checked against its source, and timed")
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder, _pool(count) as pool:
        found = _rows(pool, paths, Path(folder), args.candidates, say, failed)
        if args.burners:
            say.line(f"once more, beside {args.burners} processes that burn the processors")
            say = Progress(len(found), count)
            with burning(args.burners):
                found = _loaded(pool, [p for p in paths if p.name in found], found, Path(folder), args.candidates, say)
    say.end()
    return _show([found[path.name] for path in paths if path.name in found], failed, args, time.monotonic() - began)


def _show(rows: Sequence[Row], failed: Sequence[str], args: argparse.Namespace, seconds: float) -> int:
    from benchmarks.demo.model import TYPICAL
    from benchmarks.demo.table import LEGEND, against, earlier, figures, summary, table
    from mari_onnx.model.save import write_text
    from mari_onnx.report.terminal import console

    out = console()
    if rows:
        out.print(table(rows, args.burners))
        lines = summary(rows, args.burners)
        lines.append(f"N = {args.candidates or TYPICAL}; {seconds:.0f} s; load average {os.getloadavg()[0]:.1f}")
        for line in ["", *lines, *(f"  {each}" for each in LEGEND)]:
            out.print(line, markup=False, soft_wrap=True)
    for each in failed:
        out.print(f"failed: {each}", markup=False, soft_wrap=True)
    if args.against is not None:
        for line in against(rows, earlier(args.against)):
            out.print(line, markup=False, soft_wrap=True)
    if args.json is not None:
        write_text(args.json, json.dumps(figures(rows), indent=1) + "\n")
    return 1 if failed else 0


def _rows(
    pool: ProcessPoolExecutor, paths: Sequence[Path], folder: Path, only: int | None, say: Progress, failed: list[str]
) -> dict[str, Row]:
    """Models by name; those that fail go into `failed`."""
    found = {}
    for path, done in _each(pool, paths, jobs.measured, folder, only, say):
        answer = done.result()
        if isinstance(answer, str):
            failed.append(f"{path.name}: {answer}")
            say.step(f"{path.name}: failed")
            continue
        found[path.name] = answer
        times = answer.times
        say.step(f"{path.name}: {answer.verdict} on {answer.requests} requests, {times.faster:.2f}x")
    return found


def _loaded(
    pool: ProcessPoolExecutor,
    paths: Sequence[Path],
    found: dict[str, Row],
    folder: Path,
    only: int | None,
    say: Progress,
) -> dict[str, Row]:
    """The same with times beside burners."""
    made = dict(found)
    for path, done in _each(pool, paths, jobs.again, folder, only, say):
        made[path.name] = replace(found[path.name], loaded=done.result())
        say.step(f"{path.name}: {made[path.name].off:+.0%}")
    return made


def _each(
    pool: ProcessPoolExecutor,
    paths: Sequence[Path],
    work: Callable[..., Any],
    folder: Path,
    only: int | None,
    say: Progress,
) -> Iterator[tuple[Path, Future[Any]]]:
    """Models as they are done. Where that takes long, it is said which are being worked on."""
    left = {pool.submit(work, path, folder / path.name, only): path for path in paths}
    while left:
        finished, _ = wait(left, timeout=SILENCE, return_when=FIRST_COMPLETED)
        if not finished:
            say.still([path.name for path in left.values()][: say.jobs])
        for each in finished:
            yield left.pop(each), each


class Progress:
    """A line per step on standard error: one that is written over on a terminal, else one below the other."""

    def __init__(self, total: int, jobs: int = 1):
        self.total, self.jobs, self.done = total, jobs, 0
        self._began, self._live = time.monotonic(), sys.stderr.isatty()

    def step(self, text: str) -> None:
        """One of `total` is done."""
        self.done += 1
        width = len(str(self.total))
        self.line(f"[{self.done:{width}}/{self.total}] {time.monotonic() - self._began:3.0f} s  {text}")

    def still(self, names: Sequence[str]) -> None:
        """These are being worked on."""
        self.line(f"{'':{2 * len(str(self.total)) + 3}} {time.monotonic() - self._began:3.0f} s  at {', '.join(names)}")

    def line(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The line of a terminal is wiped."""
        if self._live:
            self.line("")


@contextlib.contextmanager
def _pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for so many models at a time; what has not begun is dropped where this one ends early."""
    pool = ProcessPoolExecutor(count, get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


if __name__ == "__main__":
    sys.exit(main())
