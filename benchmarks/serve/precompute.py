"""`mari-onnx precompute` over a million items: how near it comes to its slowest stage, and its memory.

    python -m benchmarks.serve.precompute

The model and its split are those of `make serve-demo`; `--again` takes what an earlier run prepared. Each stage is
measured alone over as many items: reading (a table from disk to arrays, and a hash of each item), running item.onnx,
and writing (runs, then all of them merged into the store). Then the whole, which does them at the same time. Memory is
the peak of a process of its own. Exits with 1 where the whole is slower than 0.9 of the slowest stage, or memory grows
by more than 10%.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.serve import model
from mari_onnx import split
from mari_onnx.report.terminal import console
from mari_onnx.serving.catalogue import Catalogue
from mari_onnx.serving.merge import merge
from mari_onnx.serving.precompute import BATCH, PIECE, Job, Made
from mari_onnx.serving.row_format import RowFormat
from mari_onnx.splitting.ranker import Ranker

LEAST, GROWTH = 0.9, 1.1


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/serve"))
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=100_000, help="items to compare the memory with")
    parser.add_argument("--rounds", type=int, default=2, help="the fastest of so many counts")
    parser.add_argument("--again", action="store_true", help="with what an earlier run prepared in the folder")
    given = parser.parse_args()
    folder = given.folder.resolve()
    tables = {count: folder / f"items-{count}.parquet" for count in (given.few, given.items)}
    if not given.again:
        folder.mkdir(parents=True, exist_ok=True)
        split(model.build(folder / "source.onnx"), **model.SIDES, batched="offsets").save(folder / "split", force=True)
        for count, path in tables.items():
            model.catalogue(path, count)
    ranker = Ranker(folder / "split")
    catalogue = Catalogue(tables[given.items], ranker.manifest)
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        job = Job(ranker, catalogue, RowFormat.of(ranker.manifest), None, False, BATCH, work)
        stages: dict[str, Callable[[], None]] = {"read": lambda: read(job), "run": lambda: run(job)}
        stages["write"] = lambda: write(job)
        seconds = {name: float("inf") for name in (*stages, "precompute")}
        for _ in range(given.rounds):  # in turns, as the machine is not equally fast at all times
            for name, stage in stages.items():
                seconds[name] = min(seconds[name], timed(stage))
            taken, memory = precompute(folder / "split", tables[given.items], work / "items.arrow")
            seconds["precompute"] = min(seconds["precompute"], taken)
        few = precompute(folder / "split", tables[given.few], work / "few.arrow")[1]
        raise SystemExit(told(seconds, given.items, {given.few: few, given.items: memory}))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def timed(stage: Callable[[], None]) -> float:
    """Seconds of a call."""
    begun = time.perf_counter()
    stage()
    return time.perf_counter() - begun


def pieces(job: Job) -> Iterator[Any]:
    """The catalogue as the model takes it."""
    parts = job.catalogue.parts(PIECE)
    for part, raw in zip(parts, job.catalogue.read(parts), strict=True):
        yield part, job.catalogue.convert(raw, part.first)


def read(job: Job) -> None:
    """All of it, and nothing more."""
    for _ in pieces(job):
        pass


def run(job: Job) -> None:
    """item.onnx over one piece as often as there are pieces."""
    part, piece = next(pieces(job))
    for each in job.catalogue.parts(PIECE):
        job.make(_first(piece, each.count), part)


def write(job: Job) -> None:
    """Runs of one piece's rows, under ids of their own, and all of them in one file."""
    part, piece = next(pieces(job))
    made = job.make(piece, part)
    files = []
    for each in job.catalogue.parts(PIECE):
        some = _first(piece, each.count)
        some.ids, some.rows = some.ids + each.first, some.rows + each.first
        arrays = {name: rows[: each.count] for name, rows in made.arrays.items()}
        files.append(job.run_of(each))
        job.write(Made(some, arrays, made.said), files[-1])
    merge(files, job.runs / "merged", job.format)
    for file in (*files, job.runs / "merged"):
        file.unlink()


def _first(piece: Any, count: int) -> Any:
    """The first items of a piece."""
    chosen = {name: rows[:count] for name, rows in piece.features.items()}
    return type(piece)(piece.ids[:count], chosen, piece.rows[:count], piece.hashes[:count])


def precompute(folder: Path, items: Path, store: Path) -> tuple[float, int]:
    """Seconds of the command in a process of its own, and the bytes of its peak.

    The seconds are from the first item that is read on: what starts Python and opens the model is not part of a stage.
    """
    code = (
        "import sys, time; from mari_onnx.serving.precompute import precompute; "
        "from mari_onnx.serving.catalogue import Catalogue; from mari_onnx.splitting.ranker import Ranker; "
        "ranker = Ranker(sys.argv[1]); catalogue = Catalogue(sys.argv[2], ranker.manifest); "
        "begun = time.perf_counter(); "
        "precompute(ranker, catalogue, sys.argv[3], force=True); print(time.perf_counter() - begun)"
    )
    command = [sys.executable, "-c", code, str(folder), str(items), str(store)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"precompute ended with {process.returncode}")
    store.unlink()
    return float(said), usage.ru_maxrss * 1024


def told(seconds: dict[str, float], items: int, memory: dict[int, int]) -> int:
    """The tables; 1 where something is less than it should be."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "seconds", "items/s"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, taken in seconds.items():
        table.add_row(name, f"{taken:.1f}", f"{items / taken:,.0f}")
    slowest = max((name for name in seconds if name != "precompute"), key=seconds.__getitem__)
    ratio = seconds[slowest] / seconds["precompute"]
    few, many = sorted(memory)
    growth = memory[many] / memory[few]
    out = console()
    out.print(table)
    out.print(f"all together: {ratio:.2f} of the slowest stage alone ({slowest}), at least {LEAST:g} is wanted")
    peaks = ", ".join(f"{memory[count] / 1e6:.0f} MB for {count:,} items" for count in (few, many))
    out.print(f"peak memory: {peaks}: {growth:.2f}, at most {GROWTH:g} is wanted")
    return int(ratio < LEAST or growth > GROWTH)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
