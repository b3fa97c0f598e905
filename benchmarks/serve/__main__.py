"""`make serve-demo`: a model, split and served, beside its source.

Four ways are served one after the other by Ray Serve on the loopback, each with one replica and one thread of
onnxruntime: the source, what `optimize` writes, the split with states and rows kept, and the same with requests merged;
then an application that scores nothing, for what HTTP takes. Clients in a process of their own send the same requests;
all scores are compared with the source's. Exits with 1 where they differ.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.serve import model, ways
from mari_onnx import Ranker, optimize, split
from mari_onnx.report.terminal import console
from mari_onnx.serving.catalogue import Catalogue
from mari_onnx.serving.precompute import precompute
from mari_onnx.serving.service import Answer, Request

CLOSE = 1e-5
"""How far apart scores, which are between 0 and 1, may be: a hundred units of float32's last place."""
ALONE = 128
"""Requests that are timed without HTTP."""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/serve"))
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--ways", nargs="*", default=list(ways.WAYS), choices=list(ways.WAYS))
    parser.add_argument("--again", action="store_true", help="with what an earlier run prepared in the folder")
    given = parser.parse_args()
    given.folder = given.folder.resolve()
    if not given.again:
        prepare(given.folder, given.items)
    found = {}
    with Server(given.folder) as server:
        for way in given.ways:
            with told(f"start {ways.WAYS[way]}"):
                server.serve(way)
            with told(f"{given.requests} requests from {given.clients} clients"):
                found[way] = asked(server.port, way, given)
    for way in given.ways:
        if way != "nothing":
            found[way]["alone"] = alone(way, given)
    raise SystemExit(write(found))


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Says what is done, and how long it took."""
    begun = time.perf_counter()
    yield
    print(f"{time.perf_counter() - begun:6.1f} s  {what}", flush=True)


def prepare(folder: Path, items: int) -> None:
    """The models, the catalogue, the store."""
    folder.mkdir(parents=True, exist_ok=True)
    source = model.build(folder / "source.onnx")
    with told("optimize, and check"):
        optimize(source, **model.SIDES).save(folder / "optimized.onnx")
    with told("split, and check the parts"):
        split(source, **model.SIDES, batched="offsets").save(folder / "split", force=True)
    with told(f"precompute the rows of {items} items"):
        ranker = Ranker(folder / "split")
        catalogue = Catalogue(model.catalogue(folder / "items.parquet", items), ranker.manifest)
        precompute(ranker, catalogue, folder / "items.arrow", force=True)


class Server:
    """Ray Serve in a process of its own, with one application at a time.

    Args:
        folder: of the models.
    """

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        code = f"from benchmarks.serve.__main__ import host; host({str(folder)!r}, {self.port})"
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, "-c", code], **pipes)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def serve(self, way: str) -> None:
        """Serves one of the ways in place of the last one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(way, file=self._process.stdin, flush=True)
        if not any(line == f"ready {way}\n" for line in iter(self._process.stdout.readline, "")):
            raise SystemExit(f"the server of {ways.WAYS[way]} did not start")


def host(folder: str, port: int) -> None:
    """Serves each way that standard input names, until that is closed."""
    # On a machine that does other work, too, the first process for HTTP takes longer than Ray waits for it.
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    for line in sys.stdin:
        serve.delete("demo")
        serve.run(ways.application(line.strip(), Path(folder)), name="demo")
        print(f"ready {line.strip()}", flush=True)
    serve.shutdown()
    ray.shutdown()


def asked(port: int, way: str, given: argparse.Namespace) -> dict[str, Any]:
    """What the clients say of one way."""
    answers = given.folder / f"{way}.npz"
    arguments = [str(port), str(answers), *(str(getattr(given, k)) for k in ("requests", "candidates", "clients"))]
    arguments += [str(given.users), str(given.items), "features" if way in ways.WHOLE else "ids"]
    clients = [sys.executable, "-m", "benchmarks.serve.clients", *arguments]
    said = subprocess.run(clients, check=True, stdout=subprocess.PIPE, text=True, timeout=1200)
    found: dict[str, Any] = json.loads(said.stdout)
    with np.load(answers) as arrays:
        found["scores"] = arrays["scores"]
    return found


def alone(way: str, given: argparse.Namespace) -> float:
    """Milliseconds of thread time of a request without HTTP, the median of batches; states are there."""
    score, taken, items = ways.scorer(way, given.folder), [], model.items(given.items)
    size = ways.BATCH if way == "merged" else 1
    requests = []
    for number in range(ALONE):
        ids, cross = model.candidates(number, given.candidates, given.items)
        who = number % min(given.users, ALONE // 4)
        features = way in ways.WHOLE
        taken_items = {k: v[ids] for k, v in items.items()} if features else {}
        requests.append(Request(str(who), None if features else ids, model.user(who), taken_items, cross))
    for turn in range(2):
        for start in range(0, ALONE, size):
            begun = time.thread_time()
            answers = score(requests[start : start + size])
            if turn:
                taken.append(1e3 * (time.thread_time() - begun) / size)
            assert all(isinstance(answer, Answer) for answer in answers)
    return float(np.median(taken))


def write(found: dict[str, dict[str, Any]]) -> int:
    """The table, and what limits the last way; answers 1 where scores differ."""
    table = Table(box=None, pad_edge=False)
    headings = ("p50, ms", "p99, ms", "requests/s", "faster", "without HTTP, ms", "faster", "scores differ by")
    for heading in ("", *headings):
        table.add_column(heading, justify="right" if heading else "left")
    base, wrong = found.get("source", next(iter(found.values()))), []
    for way, each in found.items():
        row = [f"{each['p50']:.1f}", f"{each['p99']:.1f}", f"{each['rate']:.0f}", f"{each['rate'] / base['rate']:.2f}x"]
        if way != "nothing":
            differ = float(np.max(np.abs(each["scores"] - base["scores"])))
            row += [f"{each['alone']:.2f}", f"{base['alone'] / each['alone']:.2f}x", f"{differ:.0e}"]
            if not differ <= CLOSE:
                wrong.append(ways.WAYS[way])
        table.add_row(ways.WAYS[way], *row)
    out = console()
    out.print(table)
    merged, nothing = found.get("merged"), found.get("nothing")
    if merged is not None and nothing is not None:
        share = merged["rate"] / nothing["rate"]
        out.print(
            f"Without a model, HTTP, Ray Serve and the clients reach {nothing['rate']:.0f} requests/s on this machine: "
            f"(d) is at {share:.0%} of that.",
            soft_wrap=True,
        )
    if wrong:
        print(f"scores differ from the source's by more than {CLOSE:g}: {', '.join(wrong)}", file=sys.stderr)
        return 1
    out.print(f"All scores agree with the source's within {CLOSE:g}.")
    return 0


if __name__ == "__main__":
    main()
