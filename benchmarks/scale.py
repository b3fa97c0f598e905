"""How time and memory of `mari-onnx optimize --no-check` grow with nodes and with weights.

Each model is optimized in a process of its own, from its start to its end.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.graphs import Graph
from benchmarks.tables import Section, Target
from mari_onnx.report.terminal import console
from mari_onnx.timing.memory import resident

COMMAND = "python -m benchmarks.scale"
ROOT = Path(__file__).parents[1]
NODES = (100, 1000, 5000, 20_000)
MEGABYTES = (10, 100, 1000, 4000)
WIDTH = 32
LAYER = 4096
# Models above this keep their weights in a file beside them; protobuf ends at 2 GiB.
EXTERNAL_MB = 500


def towers(nodes: int) -> onnx.ModelProto:
    """About `nodes` nodes: towers over pieces of user and item features, added up in a chain."""
    g = Graph()
    u, x = g.input("user", ["N", 16 * WIDTH]), g.input("item", ["N", 4 * WIDTH])
    users = g.ops("Split", u, g.ints(*[WIDTH] * 16), count=16, axis=1)
    items = g.ops("Split", x, g.ints(*[WIDTH] * 4), count=4, axis=1)
    first, second = g.weight(2 * WIDTH, WIDTH), g.weight(2 * WIDTH, WIDTH)
    bias = g.bias(WIDTH)
    total = g.op("Relu", items[0])
    for index in range(max((nodes - 4) // 8, 1)):
        pair = g.op("Concat", users[index % 16], items[index % 4], axis=1)
        h = g.op("Relu", g.op("Gemm", pair, first, bias))
        again = g.op("Concat", users[(index + 1) % 16], h, axis=1)
        h = g.op("Relu", g.op("Add", g.op("MatMul", again, second), bias))
        total = g.op("Add", total, h)
    g.op("ReduceMean", total, g.ints(1), keepdims=1)
    return g.model("score", ["N", 1])


def write_heavy(megabytes: int, path: Path) -> None:
    """Half the weights in the user's embedding table, half in layers of up to 4096 x 4096."""
    g = Graph()
    ids = g.input("user_id", ["N"], onnx.TensorProto.INT64)
    x = g.input("item", ["N", 256])
    wide = LAYER if megabytes >= EXTERNAL_MB else 512
    block = np.random.default_rng(0).standard_normal(2**20, np.float32) / wide**0.5
    sizes = {"table": (megabytes * 125_000 // 256, 256), "first": (512, wide)}
    layers = max(megabytes * 125_000 // wide**2, 1)
    sizes |= {f"layer_{index}": (wide, wide) for index in range(layers)}
    h = g.op("Concat", g.op("Gather", "table", ids), x, axis=1)
    for name in list(sizes)[1:]:
        h = g.op("Relu", g.op("MatMul", h, name))
    g.op("ReduceMean", h, g.ints(1), keepdims=1)
    model = g.model("score", ["N", 1])
    external = megabytes >= EXTERNAL_MB
    with path.with_suffix(".data").open("wb") as data:
        for name, shape in sizes.items():
            values = np.resize(block, shape)
            if external:
                tensor = onnx.TensorProto(name=name, dims=shape, data_type=onnx.TensorProto.FLOAT)
                entries = {"location": path.with_suffix(".data").name, "offset": data.tell()}
                for key, value in (*entries.items(), ("length", values.nbytes)):
                    tensor.external_data.add(key=key, value=str(value))
                tensor.data_location = onnx.TensorProto.EXTERNAL
                data.write(values.tobytes())
            else:
                tensor = numpy_helper.from_array(values, name)
            model.graph.initializer.append(tensor)
    if not external:
        path.with_suffix(".data").unlink()
    path.write_bytes(model.SerializeToString())


@dataclass(frozen=True)
class Run:
    """Seconds of the command from start to end, those on a processor, and its peak memory in MB."""

    seconds: float
    busy: float
    peak: float


def optimize(path: Path) -> Run:
    """Runs the command in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="mari-onnx-", dir=path.parent) as folder:
        command = [
            sys.executable,
            "-m",
            "benchmarks.scale",
            "--child",
            str(path),
            f"{folder}/out.onnx",
        ]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{path.name}: {done.stderr.strip()}")
    peak, busy = done.stdout.split()[-2:]
    return Run(seconds, float(busy), int(peak) / 1e6)


def section(nodes: Sequence[int] = NODES, megabytes: Sequence[int] = MEGABYTES) -> Section:
    result = Section(
        "Scale of the tool itself",
        "`mari-onnx optimize --no-check`, process start and end included; peak memory of the whole "
        "process. Busy: seconds on a processor, without waiting for disk or other work; what grows is "
        "judged by these. Nodes: towers over pieces of both sides, added up in a chain. Weights: half in "
        f"an embedding table, half in layers; from {EXTERNAL_MB} MB on as external data.",
        COMMAND,
        ["model", "seconds", "busy", "busy ms per node", "peak memory", "times its size"],
    )
    by_nodes: dict[int, Run] = {}
    by_size: dict[int, Run] = {}
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        for count in nodes:
            path = Path(folder, "nodes.onnx")
            model = towers(count)
            onnx.save(model, path)
            run = by_nodes[count] = optimize(path)
            each = f"{run.busy / len(model.graph.node) * 1e3:.2f}"
            row = [f"{len(model.graph.node)} nodes", f"{run.seconds:.2f}", f"{run.busy:.2f}", each]
            result.rows.append([*row, f"{run.peak:.0f} MB", ""])
        for size in megabytes:
            if shutil.disk_usage(folder).free < 3 * size * 10**6:
                result.notes.append(f"{size} MB of weights: not run, the disk has no room.")
                continue
            path = Path(folder, "weights.onnx")
            write_heavy(size, path)
            run = by_size[size] = optimize(path)
            row = [f"{size} MB of weights", f"{run.seconds:.2f}", f"{run.busy:.2f}", ""]
            result.rows.append([*row, f"{run.peak:.0f} MB", f"{run.peak / size:.2f}"])
    result.targets = _targets(by_nodes, by_size)
    return result


def _targets(by_nodes: dict[int, Run], by_size: dict[int, Run]) -> list[Target]:
    found = []
    if 5000 in by_nodes:
        found.append(Target.at_most("5,000 nodes in under 10 s", by_nodes[5000].seconds, 10, " s"))
    counts = sorted(by_nodes)[-2:]
    if len(counts) == 2 and counts[0] >= 1000:
        found += _linear(by_nodes, counts[0], counts[1], f"{counts[1]:,} nodes", f"a node of {counts[0]:,}")
    for size, run in by_size.items():
        if size >= 1000:
            name = f"{size} MB of weights: peak memory at most 2.5 times that"
            found.append(Target.at_most(name, run.peak / size, 2.5, "x"))
    sizes = sorted(by_size)[-2:]
    if len(sizes) == 2 and sizes[0] >= 100:
        found += _linear(by_size, sizes[0], sizes[1], f"{sizes[1]} MB", f"a MB of {sizes[0]} MB")
    return found


def _linear(runs: dict[int, Run], small: int, large: int, what: str, each: str) -> list[Target]:
    """Time and memory grow no faster than the size."""
    time_ratio = (runs[large].busy / large) / (runs[small].busy / small)
    memory_ratio = (runs[large].peak / large) / (runs[small].peak / small)
    return [
        Target.at_most(f"{what} take at most 1.3 times the time {each}", time_ratio, 1.3, "x"),
        Target.at_most(f"{what} take at most 1.3 times the memory {each}", memory_ratio, 1.3, "x"),
    ]


def _child(source: str, output: str) -> int:
    from mari_onnx.cli.main import run

    flags = ["--user", "user*", "--item", "item*", "--no-check", "--quiet"]
    code = run(["optimize", source, output, *flags])
    print(resident(peak=True), time.process_time())
    return code


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--child", nargs=2, metavar=("IN", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return _child(*args.child)
    result = section()
    result.show(console())
    return 0 if result.met else 1


if __name__ == "__main__":
    sys.exit(main())
