"""How much faster outputs are than their sources, measured and predicted, over a folder of graphs.

    python -m benchmarks.speed FOLDER OUT.jsonl [--only GLOB] [--threads 1] [--candidates 16,64,500] [--seconds 0.5]
                               [--times EARLIER.jsonl]

Beside ``X.onnx`` stands its side file, and where a length has to be drawn in a range ``X.draw.json`` (input ->
column, or "" for all of it -> [low, high]). Each graph is a line of OUT.jsonl; lines that are there are kept. One
thread is timed in thread time, several by the clock, source and output in turns; the ratio is the median of the pairs'.
With `--times` nothing is timed: what an earlier run measured is predicted anew, where the output has as many nodes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mari_onnx import runtime
from mari_onnx.model.signature import signature
from mari_onnx.parity.domains.domains import domains
from mari_onnx.parity.requests.draw import Drawer, Layout, Request
from mari_onnx.parity.work import shapes_of
from mari_onnx.prices.table import Prices, graph_seconds, load
from mari_onnx.sides.resolve import Sides, resolve, side_file_beside
from mari_onnx.timing.clock import clock_for, interleaved


def drawer(path: Path, source: onnx.ModelProto, sides: Sides) -> tuple[Callable[..., Request], int | None]:
    """(n, seed) -> a request whose histories are full; and the only n that the model takes, if there is one."""
    layout = Layout(signature(source), sides)
    ranges, _ = domains(source, layout)
    beside = path.with_suffix(".draw.json")
    lengths = json.loads(beside.read_text()) if beside.exists() else {}

    def draw(n: int, seed: int = 2) -> Request:
        # In the layout [R, N, ..] a drawer's first request that is not full is a single one.
        made = Drawer(layout, ranges, seed).request(n, full=layout.axis == 0)
        for name, columns in lengths.items():
            array = made.user.get(name, made.rows.get(name))
            for column, (_, high) in columns.items():
                if array is not None:
                    array[... if column == "" else (slice(None), int(column))] = high
        return made

    return draw, layout.fixed_n


def one(
    path: Path,
    candidates: list[int],
    threads: int,
    seconds: float,
    prices: Prices,
    earlier: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A line: nodes, and for each N the ratio source / output, measured (or as it was `earlier`) and predicted, and
    milliseconds.
    """
    import mari_onnx

    source = onnx.load(path)
    sides = resolve(signature(source), file=side_file_beside(path))
    begun = time.process_time()
    done = mari_onnx.optimize(path, sides, check=False)
    found: dict[str, Any] = {"graph": path.stem, "changed": done.changed, "took": time.process_time() - begun}
    if not done.changed:
        return found
    found["nodes"] = [len(source.graph.node), len(done.model.graph.node)]
    if earlier is not None and earlier.get("nodes") != found["nodes"]:
        return found
    draw, fixed = drawer(path, source, done.sides)
    sessions = [runtime.session(m, "cpu", threads=threads) for m in (source, done.model)]
    _, clock = clock_for(threads)
    for n in [fixed] if fixed else candidates:
        request = draw(n)
        feeds = [request.feed(s.get_inputs()) for s in sessions]
        if earlier is None:
            runs = {str(k): partial(_run, *each) for k, each in enumerate(zip(sessions, feeds, strict=True))}
            timing = interleaved(runs, seconds=seconds, least=7, clock=clock, wall=time.perf_counter, threads=threads)
            milliseconds = [1e3 * float(np.quantile(timing.of(k), 0.3)) for k in ("0", "1")]
            measured = {"ratio": timing.ratio("0", "1"), "ms": milliseconds}
        elif str(n) in earlier:
            measured = {key: earlier[str(n)][key] for key in ("ratio", "ms")}
        else:
            continue
        pairs = zip((source, done.model), feeds, strict=True)
        predicted = [graph_seconds(model.graph, shapes_of(model, feed), prices) for model, feed in pairs]
        found[str(n)] = {**measured, "predicted_ms": [1e3 * p for p in predicted]}
    return found


def _run(session: Any, feed: dict[str, np.ndarray], _: int) -> object:
    return session.run(None, feed)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="*")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--candidates", default="16,64,500")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--prices", type=Path)
    parser.add_argument("--times", type=Path)
    given = parser.parse_args()
    there = set()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    if given.out.exists():
        there = {json.loads(line)["graph"] for line in given.out.read_text().splitlines()}
    prices = load(given.prices, given.threads)
    candidates = [int(n) for n in given.candidates.split(",")]
    times = [json.loads(line) for line in given.times.read_text().splitlines()] if given.times else []
    earlier = {line["graph"]: line for line in times}
    for path in sorted(given.folder.glob(f"{given.only}.onnx")):
        if path.stem in there or side_file_beside(path) is None or (times and path.stem not in earlier):
            continue
        try:
            line = one(path, candidates, given.threads, given.seconds, prices, earlier.get(path.stem))
        except Exception as error:
            line = {"graph": path.stem, "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        with given.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
