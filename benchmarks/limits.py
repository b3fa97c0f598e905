"""Graphs as large, wide and deep as they get: time and memory of `mari-onnx optimize`, each at three sizes.

Each model is optimized in a process of its own, from its start to its end; the smallest of each with the check too,
whose time is mostly onnxruntime's.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from benchmarks.graphs import OPSET, Graph
from benchmarks.scale import towers, write_heavy
from benchmarks.tables import Section, Target
from mari_onnx.report.terminal import console
from mari_onnx.timing.memory import resident

COMMAND = "python -m benchmarks.limits"
ROOT = Path(__file__).parents[1]
WIDTH = 8


def consumers(count: int) -> onnx.ModelProto:
    """One tensor of the user, read by `count` gates whose results are added up in a chain."""
    g = Graph()
    u, x = g.op("Relu", g.input("user", ["N", WIDTH])), g.input("item", ["N", WIDTH])
    total = x
    for _ in range(count):
        total = g.op("Add", total, g.op("Mul", u, g.op("Add", x, g.bias(WIDTH))))
    g.op("ReduceMean", total, g.ints(1), keepdims=1)
    return g.model("score", ["N", 1])


def inputs(count: int) -> onnx.ModelProto:
    """Three in four inputs are the user's; all are concatenated."""
    g = Graph()
    names = [g.input(f"user_{i}" if i % 4 else f"item_{i}", ["N", 4]) for i in range(count)]
    g.dense(g.dense(g.op("Concat", *names, axis=1), 4 * count, 32), 32, 1, relu=False)
    return g.model("score", ["N", 1])


def concat(count: int) -> onnx.ModelProto:
    """A Concat of `count` pieces, of user and item in turns."""
    g = Graph()
    u, x = g.input("user", ["N", count]), g.input("item", ["N", count])
    sizes = g.ints(*[2] * (count // 2))
    pairs = zip(*(g.ops("Split", side, sizes, count=count // 2, axis=1) for side in (u, x)), strict=True)
    pieces = [g.op("Relu", piece) for pair in pairs for piece in pair]
    g.dense(g.dense(g.op("Concat", *pieces, axis=1), 2 * count, 32), 32, 1, relu=False)
    return g.model("score", ["N", 1])


def nested_concats(depth: int) -> onnx.ModelProto:
    """Each Concat takes in the one before, along axes 1 and 2 in turns."""
    g = Graph()
    user, item = g.input("user", ["N", 1, 1]), g.input("item", ["N", 1, 1])
    total, rows, columns = item, 1, 1
    for level in range(depth):
        side, along = (user, 1) if level % 2 else (item, 2)
        shape = g.ints(1, 1, columns) if along == 1 else g.ints(1, rows, 1)
        total = g.op("Concat", total, g.op("Expand", side, shape), axis=along)
        rows, columns = rows + (along == 1), columns + (along == 2)
    pooled = g.op("ReduceMean", total, g.ints(1), keepdims=0)
    g.dense(pooled, columns, 1, relu=False)
    return g.model("score", ["N", 1])


def nested_ifs(depth: int) -> onnx.ModelProto:
    """An If in an If in an If; the bodies read tensors of the main graph."""
    g = Graph()
    u, x = g.input("user", ["N", WIDTH]), g.input("item", ["N", WIDTH])
    h = g.dense(g.op("Concat", u, x, axis=1), 2 * WIDTH, WIDTH)
    test = g.op("Greater", g.op("ReduceMean", h, keepdims=0), g.const(np.array(0.1, np.float32)))

    def body(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        node.output.append(name)
        value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", WIDTH])
        return helper.make_graph([node], name, [], [value])

    inner = body("then_0", helper.make_node("Add", [h, u], []))
    for level in range(1, depth):
        other = body(f"else_{level}", helper.make_node("Mul", [h, u], []))
        node = helper.make_node("If", [test], [], f"if_{level}", then_branch=inner, else_branch=other)
        inner = body(f"then_{level}", node)
    other = body("else_0", helper.make_node("Mul", [h, u], []))
    g.op("If", test, then_branch=inner, else_branch=other)
    return g.model("score", ["N", WIDTH])


def nested_functions(depth: int) -> onnx.ModelProto:
    """A function that calls a function that calls a function."""
    g = Graph()
    u, x = g.input("user", ["N", WIDTH]), g.input("item", ["N", WIDTH])
    h = g.dense(g.op("Concat", u, x, axis=1), 2 * WIDTH, WIDTH)
    g.nodes.append(helper.make_node(f"f{depth - 1}", [h], ["score"], "call", domain="deep"))
    model = g.model("score", ["N", WIDTH])
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("deep", 1)]
    model.opset_import.append(imports[1])
    for level in range(depth):
        call = ("Tanh", "") if level == 0 else (f"f{level - 1}", "deep")
        node = helper.make_node(call[0], ["a"], ["b"], domain=call[1])
        model.functions.append(helper.make_function("deep", f"f{level}", ["a"], ["b"], [node], imports))
    return model


@dataclass(frozen=True)
class Case:
    """What grows, its sizes, and what makes a file of a size."""

    name: str
    sizes: Sequence[int]
    make: Callable[[int, Path], None]
    judged: bool = True
    """Whether time and memory have to be linear; the small ones end before that could be told."""


def _graph(make: Callable[[int], onnx.ModelProto]) -> Callable[[int, Path], None]:
    def write(size: int, path: Path) -> None:
        onnx.save(make(size), path)

    return write


CASES = (
    Case("nodes", (12_500, 25_000, 50_000), _graph(towers)),
    Case("consumers of one user tensor", (2500, 5000, 10_000), _graph(consumers)),
    Case("inputs", (500, 1000, 2000), _graph(inputs)),
    Case("pieces of one Concat", (1250, 2500, 5000), _graph(concat)),
    Case("Concats within each other", (50, 100, 200), _graph(nested_concats), judged=False),
    Case("Ifs within each other", (7, 15, 30), _graph(nested_ifs), judged=False),
    Case("functions within each other", (25, 50, 100), _graph(nested_functions), judged=False),
    Case("MB of weights", (1000, 2000, 4000), write_heavy),
)


def optimize(path: Path, *flags: str) -> tuple[float, int]:
    """Seconds of CPU and peak bytes of the command, in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory(prefix="mari-onnx-", dir=path.parent) as folder:
        out = Path(folder, "out.onnx")
        command = [sys.executable, "-m", "benchmarks.limits", "--child", str(path), str(out), *flags]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode or not out.exists():
            raise RuntimeError(f"{path.name}: {done.stderr.strip()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, int(done.stdout.split()[-1])


def section(cases: Sequence[Case] = CASES, check: bool = True) -> Section:
    result = Section(
        "Limits",
        "`mari-onnx optimize`, process start and end included: seconds of CPU, and peak memory of the whole process. "
        "The check, whose time is mostly onnxruntime's, is measured at the smallest size.",
        COMMAND,
        ["model", "CPU s without check", "peak", "CPU s with check", "peak"],
    )
    start = _start()
    for case in cases:
        found: dict[int, tuple[float, int]] = {}
        for size in case.sizes:
            with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
                name = f"{size:,} {case.name}"
                heavy = case.make is write_heavy
                if heavy and shutil.disk_usage(folder).free < 3 * size * 10**6:
                    result.notes.append(f"{name}: not run, the disk has no room.")
                    continue
                path = Path(folder, "model.onnx")
                case.make(size, path)
                found[size] = optimize(path, "--no-check")
                row = [name, *_figures(*found[size])]
                checked = check and size == min(case.sizes)
                result.rows.append(row + (_figures(*optimize(path)) if checked else ["", ""]))
                print("\t".join(result.rows[-1]), file=sys.stderr, flush=True)
        if case.judged and len(found) > 1:
            result.targets += _linear(case.name, found, start)
    return result


def _figures(seconds: float, peak: int) -> list[str]:
    return [f"{seconds:.1f}", f"{peak / 1e6:.0f} MB"]


def _start() -> tuple[float, int]:
    """What a process takes that has next to nothing to do."""
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        path = Path(folder, "model.onnx")
        onnx.save(consumers(1), path)
        return optimize(path, "--no-check")


def _linear(name: str, found: dict[int, tuple[float, int]], start: tuple[float, int]) -> list[Target]:
    """Twice the size may cost 2.6 times the time and 2.4 times the memory, each beyond that of a tiny model."""
    *_, small, large = sorted(found)
    factor = large / small
    result = []
    for what, index, slack in (("time", 0, 1.3), ("memory", 1, 1.2)):
        grown = (found[large][index] - start[index]) / (found[small][index] - start[index])
        result.append(Target.at_most(f"{name}: {factor:g} times as many, {what}", grown, slack * factor, "x"))
    return result


def _child(source: str, output: str, *flags: str) -> int:
    from mari_onnx.cli.main import run

    code = run(["optimize", source, output, "--user", "user*", "--item", "item*", "--quiet", *flags])
    print(resident(peak=True))
    return code


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--no-check", action="store_true", help="leave out the runs with the check")
    parser.add_argument("--only", metavar="WORD", help="the cases whose name has this word")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/reliability.md has it")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return _child(*args.child)
    cases = [case for case in CASES if args.only is None or args.only in case.name]
    result = section(cases, not args.no_check)
    print(result.markdown()) if args.markdown else result.show(console())
    return 0 if result.met else 1


if __name__ == "__main__":
    sys.exit(main())
