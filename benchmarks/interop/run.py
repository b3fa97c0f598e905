"""Optimizes, checks and measures the corpus, and writes the table of `docs/interop.md`.

    python -m benchmarks.interop [--only TEXT] [--again] [--no-export] [--no-time] [--out DIR]

Every graph is one process with a time limit, so that none can stop the run; its result is a JSON
file, taken again until the engine's code changes. Rewrites are chosen as `mari-onnx optimize` does, by
prices of kernels. Times are thread time, source and output in turn in one process; the ratio is the
median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.interop import zoo

if TYPE_CHECKING:
    from mari_onnx.parity.requests.draw import Request

ROOT = Path(__file__).resolve().parents[2]
CANDIDATES = (1, 7, 64, 500)
TIMED = (64, 500)
LIMIT_S = 900


def fingerprint() -> str:
    """Changes with the code that makes the output graphs."""
    digest = hashlib.sha256()
    for folder in ("engine", "model", "prices"):
        for path in sorted(p for p in (ROOT / "mari_onnx" / folder).rglob("*") if p.suffix in (".py", ".json")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def one(path: Path, out: Path, timed: bool) -> dict[str, Any]:
    """Everything about one graph; what fails ends the record with its `error`."""
    import onnx

    from mari_onnx.choices import options_for
    from mari_onnx.engine import rewrite
    from mari_onnx.model.signature import signature
    from mari_onnx.parity import check
    from mari_onnx.report.explain_rest import explained
    from mari_onnx.report.report import build
    from mari_onnx.report.residual import measure
    from mari_onnx.sides.resolve import resolve

    found: dict[str, Any] = {"graph": path.stem}
    try:
        source = onnx.load(path)
        sides = resolve(signature(source), file=path.with_suffix(".sides.toml"))
        draw = drawer(source, sides, path.stem, zoo.Sizes())
        before = measure(source, sides, draw=draw)
        found["nodes"] = [len(source.graph.node)]
        found["residual"], found["bytes"] = [before.share], [before.byte_share]
        found["flops"] = [(before.total.flops + before.once.flops) / before.n]
        started = time.perf_counter()
        done = rewrite(source, sides, options_for(assume=True))
        found["seconds"] = time.perf_counter() - started
        target = out / path.name
        model = done.model if done.changed else source
        onnx.save(model, target)
        found["nodes"].append(len(model.graph.node))
        after = measure(model, sides, draw=draw)
        found["residual"].append(after.share)
        found["bytes"].append(after.byte_share)
        found["doubtful"] = after.doubtful.flops / after.total.flops if after.total.flops else 0.0
        found["flops"].append((after.total.flops + after.once.flops) / after.n)
        left = explained(after, model, build(source, done, sides, 64))["nodes"][:8]
        found["left"] = [[x["op"], x["name"], x["redundant_flops"], x["found"], x["why"]] for x in left]
        requests = [draw(k, n) for k, n in enumerate(CANDIDATES)]
        checked = check(path, target, sides, requests=requests)
        found["check"] = {"ok": checked.ok, "error": checked.max_error}
        found["check"]["reasons"] = checked.reasons[:3]
        if timed:
            found["ratio"] = {str(n): settled(path, target, draw(9, n)) for n in TIMED}
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        found["trace"] = "".join(traceback.format_exception(error))[-3000:]
    return found


def drawer(source: Any, sides: Any, stem: str, sizes: zoo.Sizes) -> Any:
    """`(seed, n) -> Request`; the history's length is one, wherever it is."""
    from mari_onnx.model.signature import signature
    from mari_onnx.parity.domains.domains import domains
    from mari_onnx.parity.requests.draw import Drawer, Layout

    layout = Layout(signature(source), sides)
    ranges, _ = domains(source, layout)
    name, form, *_ = stem.split(".")
    longest = sizes.history

    def draw(seed: int, n: int) -> Request:
        full = seed % 3 == 2
        made = Drawer(layout, ranges, seed).request(n, full=full)
        length = longest if full else np.random.default_rng(seed).integers(1, longest + 1)
        if form == "packed" and (column := zoo.length_column(name, sizes)) is not None:
            made.rows["X"][:, column] = length
        elif "hist_len" in made.user:
            made.user["hist_len"][:] = length
        return made

    return draw


def ratio(source: Path, output: Path, request: Request, seconds: float = 1.0) -> float:
    """Time of the source over the time of the output, one thread; above 1 the output is faster."""
    from mari_onnx import runtime
    from mari_onnx.timing.clock import clock_for, interleaved
    from mari_onnx.timing.measure import prepared

    runs = {}
    for name, path in (("source", source), ("output", output)):
        session = runtime.session(str(path), "cpu", threads=1)
        runs[name], _ = prepared(session, [request.feed(session.get_inputs())], "cpu")
    _, clock = clock_for()
    timing = interleaved(runs, seconds=seconds, least=15, clock=clock, wall=time.perf_counter)
    return timing.ratio("source", "output")


def settled(source: Path, output: Path, request: Request) -> float:
    """`ratio`, taken again and longer where it is below what an output may be."""
    found = ratio(source, output, request)
    return found if found >= 0.98 else ratio(source, output, request, seconds=6.0)


def everything(out: Path, only: str, again: bool, timed: bool) -> list[dict[str, Any]]:
    """The result of every graph under `out`, made now where there is none for this engine."""
    results = out / "results"
    for folder in (results, out / "optimized"):
        folder.mkdir(parents=True, exist_ok=True)
    code = fingerprint()
    found = []
    for path in sorted(out.glob("*.onnx")):
        kept = results / f"{path.stem}.json"
        if kept.exists():
            old = json.loads(kept.read_text())
            fresh = old.get("code") == code and ("ratio" in old or "error" in old or not timed)
            if only not in path.stem or (fresh and not again):
                found.append(old)
                continue
        if only not in path.stem:
            continue
        command = [sys.executable, "-m", "benchmarks.interop.run", "--one", str(path)]
        command += ["--out", str(out)] + ([] if timed else ["--no-time"])
        try:
            ran = subprocess.run(command, cwd=ROOT, timeout=LIMIT_S, capture_output=True, text=True, check=False)
            result = json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else None
            failure = f"exit status {ran.returncode}: {ran.stderr[-300:]}"
        except subprocess.TimeoutExpired:
            result, failure = None, f"took more than {LIMIT_S} s"
        result = result or {"graph": path.stem, "error": failure}
        result["code"] = code
        kept.write_text(json.dumps(result, indent=1))
        found.append(result)
        print(_line(result), flush=True)
    return found


def _line(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['graph']:34s} {result['error']}"
    before, after = result["residual"]
    times = " ".join(f"{x:.2f}x" for x in result.get("ratio", {}).values())
    equal = "equal" if result["check"]["ok"] else f"DIFFERS {result['check']['reasons']}"
    return f"{result['graph']:34s} {before:6.1%} -> {after:6.1%}  {equal}  {times}"


def write_table(found: list[dict[str, Any]], out: Path, target: Path) -> None:
    """`docs/interop.md`."""
    from benchmarks.interop.table import render

    failed = {p.name.removesuffix(".failed.txt"): p.read_text() for p in out.glob("*.failed.txt")}
    target.write_text(render(found, failed, machine()))


def machine() -> str:
    """Processor, cores and runtime, in words."""
    import onnxruntime

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    load = f"load average {os.getloadavg()[0]:.1f} at the end"
    return f"{name}, {os.cpu_count()} cores, onnxruntime {onnxruntime.__version__}, {load}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interop", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "interop")
    parser.add_argument("--only", default="", help="graphs whose name contains this")
    parser.add_argument("--again", action="store_true", help="take no earlier results")
    parser.add_argument("--no-export", action="store_true")
    parser.add_argument("--no-time", action="store_true")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one(chosen.one, chosen.out / "optimized", not chosen.no_time)))
        return
    if not chosen.no_export:
        command = [sys.executable, "-m", "benchmarks.interop.export", str(chosen.out)]
        subprocess.run(command, cwd=ROOT, check=False)
    found = everything(chosen.out, chosen.only, chosen.again, not chosen.no_time)
    if found and not chosen.only:
        write_table(found, chosen.out, ROOT / "docs" / "interop.md")
        print("wrote docs/interop.md")


if __name__ == "__main__":
    main()
