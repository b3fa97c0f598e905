"""Time and memory of the check, and of `optimize` with its check, by the size of the model.

    python -m benchmarks.parity.time [--megabytes 5 2000] [--kind tables] [--kind dense] [--folder FOLDER]

Tables: two embedding tables of half the size each, one of them read by a history, two smaller ones of 200 and 10,000
rows, and an MLP of four layers over them. Dense: half the size in the user's table, half in layers of up to 4096 x
4096. From 500 MB on weights are in a file beside the model. Each command runs in a process of its own, from its start
to its end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.graphs import Graph
from benchmarks.scale import EXTERNAL_MB, write_heavy
from mari_onnx.model.tensors import set_external

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HISTORY, CATEGORIES, REGIONS, FEATURES = 64, 20, 10_000, 200, 32
USERS = ["--user", "user*", "--rest", "cross"]


def tables(megabytes: int, path: Path) -> None:
    """A ranking model whose weights are embedding tables."""
    g = Graph()
    small = {"user_region": REGIONS, "category": CATEGORIES if megabytes > 5 else 1000}
    ids = {name: g.input(name, ["N"], onnx.TensorProto.INT64) for name in ("user_id", "item_id", *small)}
    history = g.input("user_history", ["N", HISTORY], onnx.TensorProto.INT64)
    u, x = g.input("user_dense", ["N", FEATURES]), g.input("item_dense", ["N", FEATURES])
    rows = megabytes * 1_000_000 // (2 * WIDTH * 4)
    parts = [g.op("Gather", g.weight(count, WIDTH), ids[name]) for name, count in small.items()]
    parts += [g.op("Gather", "user_table", ids["user_id"]), g.op("Gather", "item_table", ids["item_id"]), u, x]
    parts.append(g.op("ReduceMean", g.op("Gather", "item_table", history), g.ints(1), keepdims=0))
    h = g.op("Concat", *parts, axis=1)
    for wide, out in ((5 * WIDTH + 2 * FEATURES, 512), (512, 256), (256, 128)):
        h = g.dense(h, wide, out)
    g.op("Sigmoid", g.dense(h, 128, 1, relu=False))
    model = g.model("score", ["N", 1])
    block = np.random.default_rng(0).standard_normal((4096, WIDTH), np.float32)
    beside = path.with_suffix(".data")
    with beside.open("wb") as data:
        for name in ("user_table", "item_table"):
            if megabytes < EXTERNAL_MB:
                model.graph.initializer.append(numpy_helper.from_array(np.resize(block, (rows, WIDTH)), name))
                continue
            tensor = onnx.TensorProto(name=name, dims=(rows, WIDTH), data_type=onnx.TensorProto.FLOAT)
            start = data.tell()
            for at in range(0, rows, len(block)):
                data.write(block[: rows - at].data)
            set_external(tensor, beside.name, start, data.tell() - start)
            model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())


KINDS: dict[str, Callable[[int, Path], None]] = {"tables": tables, "dense": write_heavy}


def command(*arguments: object) -> tuple[float, float, int]:
    """Seconds from start to end, those on processors, and peak resident bytes of `mari-onnx` with arguments."""
    begun, pid = time.perf_counter(), os.fork()
    if not pid:
        os.chdir(ROOT)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.execv(sys.executable, [sys.executable, "-m", "mari_onnx", *map(str, arguments)])
    _, status, used = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"mari-onnx {' '.join(map(str, arguments))} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[5, 2000])
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--folder", type=Path, help="for the models, four times their size in all")
    options = parser.parse_args()
    print("| model | command | seconds | on processors | peak memory |\n|---|---|---|---|---|")
    for size in options.megabytes:
        for kind in options.kind or KINDS:
            with tempfile.TemporaryDirectory(prefix="mari-onnx-", dir=options.folder) as folder:
                source, output = Path(folder, "in.onnx"), Path(folder, "out.onnx")
                KINDS[kind](size, source)
                for name, arguments in (
                    ("optimize --no-check", ["optimize", source, output, *USERS, "--no-check"]),
                    ("check", ["check", source, output]),
                    ("optimize", ["optimize", source, output, *USERS, "--force"]),
                ):
                    seconds, busy, peak = command(*arguments)
                    figures = f"{seconds:.1f} | {busy:.1f} | {peak / 1e6:,.0f} MB"
                    print(f"| {kind}, {size} MB | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
