"""How long scoring takes after a split, gathering rows included, beside what `optimize` writes.

    python -m benchmarks.split [FOLDER ...] [--out FILE.json] [--candidates 500] [--seconds 1.0] [--only GLOB]
        [--write]

By default the sample models and the public ones in tests/data/interop; models that FILE has are not measured again.
Beside a model is its side file, and where lengths have a range, ``X.draw.json`` (see `benchmarks.speed`).
`optimize`'s output, score.onnx, and score.onnx with the gathering of its rows from a store of 20,000 items run in
turns on one thread, in thread time; a ratio is the median of the pairs'. Each model has a process of its own. What the
prices predict is for the shapes of the first request. The parts are not checked here; tests and
`benchmarks.split_check` do. `--write` puts the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.run import PAGE
from benchmarks.speed import drawer
from benchmarks.tables import Section, Target, replaced
from mari_onnx import api, runtime
from mari_onnx.choices import options_for
from mari_onnx.model.save import write_text
from mari_onnx.model.signature import signature
from mari_onnx.parity.work import shapes_of
from mari_onnx.prices.table import graph_seconds
from mari_onnx.report.terminal import console
from mari_onnx.sides.resolve import resolve, side_file_beside
from mari_onnx.splitting.caller import handing_seconds
from mari_onnx.splitting.make import unchecked
from mari_onnx.timing.clock import interleaved
from mari_onnx.timing.machine import machine
from mari_onnx.timing.stages import GATHERED, Stages

ROOT = Path(__file__).resolve().parents[1]
KEPT = 0.9
"""The share of the predicted ratio that a model should reach."""
NONE = 0.97
"""The ratio that no model should be below."""
GROUPS = {
    "models": ("sample models", 1.4),
    "interop": ("public models", 1.15),
    "industrial": ("models at industrial width", 1.12),
}
"""Folder -> what is in it, and the ratio that it should reach."""
COMMAND = "python -m benchmarks.split models build/interop build/industrial --out build/split.json --write"
FOLDERS = (ROOT / "models", ROOT / "tests/data/interop")


def one(path: Path, candidates: int, seconds: float) -> dict[str, Any]:
    """Figures of one model: seconds, ratios, bytes, and what the prices say."""
    source = api.as_source(path)
    sides = api.sides_of(source, resolve(signature(source.model), file=side_file_beside(path)))
    options = options_for(candidates)
    whole = api.rewritten(source, sides, options_for(candidates, assume=True))
    split = unchecked(source, sides, options, clock=1)
    stages = Stages(split.folder)
    draw, fixed = drawer(path, source.model, sides)
    requests = [draw(fixed or candidates, seed) for seed in (0, 1)]
    session = runtime.session(whole.model, "cpu", threads=1)
    feed, *others = [r.feed(session.get_inputs()) for r in requests]
    runs: dict[str, Any] = {"optimize": partial(_run, session, [feed, *others]), **stages.runs(requests)}
    timing = interleaved(runs, seconds=seconds, least=20, clock=time.thread_time, wall=time.perf_counter)
    assert options.prices is not None
    plan, ranker, own = split.plan, stages.ranker, stages.feed(requests[0])
    handed = [*ranker.user(own).arrays.items(), *ranker.items(own).arrays.items()]
    read = {**own, **dict(handed)}
    expected = {
        name: graph_seconds(model.graph, shapes_of(model, given), options.prices)
        for name, model, given in (("optimize", whole.model, feed), (GATHERED, split.score, read))
    }
    rows = {t.name for t in split.manifest.rows if t.axis is not None}
    sizes = [[array.nbytes for name, array in handed if (name in rows) is row] for row in (True, False)]
    expected[GATHERED] += handing_seconds(*sizes, fixed or candidates)
    return {
        "model": path.stem,
        "us": {name: 1e6 * timing.median(name) for name in runs},
        "score": timing.ratio("optimize", "score.onnx"),
        "gathered": timing.ratio("optimize", GATHERED),
        "predicted": expected["optimize"] / expected[GATHERED],
        "bytes_per_item": split.plan.way.item_bytes,
        "bytes_per_user": split.plan.way.user_bytes,
        "predicted_us": {name: 1e6 * seconds for name, seconds in expected.items()},
        "cut": plan.way.cut.to_dict(),
        "tensors": [[t.name, t.made, t.bytes] for t in split.manifest.rows],
        "notes": split.notes,
    }


def _run(session: Any, feeds: Sequence[Any], turn: int) -> object:
    return session.run(None, feeds[turn % len(feeds)])


def section(results: Sequence[dict[str, Any]]) -> Section:
    """The table, and targets for each group of models."""
    made = Section(
        "Scoring after a split",
        f"Microseconds of a request of 500 candidates, median, one thread, thread time: what `optimize` writes, "
        f"score.onnx, and score.onnx with the gathering of its rows from a store of 20,000 items. Faster: the median "
        f"of the pairs' ratios of the first to the last. Predicted: the same by the prices of kernels. {platform()}.",
        COMMAND,
        ["model", "optimize", "score", "gather + score", "faster", "predicted", "bytes per item", "per user"],
    )
    for group, (what, least) in GROUPS.items():
        here = [each for each in results if each["group"] == group]
        for each in here:
            us = [f"{each['us'][name]:.0f}" for name in ("optimize", "score.onnx", GATHERED)]
            ratios = [f"{each['gathered']:.2f}x", f"{each['predicted']:.2f}x"]
            made.rows.append([each["model"], *us, *ratios, str(each["bytes_per_item"]), str(each["bytes_per_user"])])
        if here:
            ratios = [each["gathered"] for each in here]
            mean = float(np.exp(np.mean(np.log(ratios))))
            promise = f"{len(here)} {what}: at least {least}x, geometric mean"
            made.targets.append(Target.at_least(promise, mean, least, "x"))
            made.targets.append(Target.at_least(f"the same: none below {NONE}x", min(ratios), NONE, "x"))
            kept = sum(each["gathered"] >= KEPT * each["predicted"] for each in here)
            said = f"{kept} of {len(here)}"
            made.targets.append(Target(f"the same: at least {KEPT} of what is predicted", said, kept == len(here)))
    return made


def platform() -> str:
    """On what, and how busy it is."""
    found = machine()
    return f"{found['processor']}, {found['cores']} cores, load average {os.getloadavg()[2]:.1f}"


def alone(path: Path, candidates: int, seconds: float) -> dict[str, Any]:
    """`one` in a process of its own: what ran before in a process decides how often memory is mapped anew.

    Raises:
        RuntimeError: with the last line of what it printed.
    """
    command = [sys.executable, "-m", "benchmarks.split", "--alone", str(path.resolve())]
    command += ["--candidates", str(candidates), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1])
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=FOLDERS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default="*", help="patterns on file names without .onnx, joined by commas")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--alone", type=Path, help="measure this model in this process, and print the figures as JSON")
    given = parser.parse_args()
    if given.alone is not None:
        print(json.dumps(one(given.alone, given.candidates, given.seconds)))
        return
    results: list[dict[str, Any]] = []
    if given.out is not None and given.out.exists():
        results = json.loads(given.out.read_text())
    there = {(each["group"], each["model"]) for each in results}
    for path in [p for folder in given.folders for p in sorted(Path(folder).glob("*.onnx"))]:
        group, wanted = path.parent.name, any(fnmatch.fnmatch(path.stem, each) for each in given.only.split(","))
        if (group, path.stem) in there or not wanted:
            continue
        try:
            results.append({"group": group, **alone(path, given.candidates, given.seconds)})
        except RuntimeError as error:
            print(f"{path.name}: {error}", flush=True)
            continue
        print(f"{path.name}: {results[-1]['gathered']:.2f}x", flush=True)
        if given.out is not None:
            given.out.write_text(json.dumps(results, indent=1) + "\n")
    result = section(results)
    result.show(console())
    if given.write:
        write_text(PAGE, replaced(PAGE.read_text(encoding="utf-8"), "split", result.markdown()))


if __name__ == "__main__":
    main()
