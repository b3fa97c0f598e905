"""Checks feed the same and answer the same on a busy machine.

    python -m benchmarks.parity.steady [--runs 20] [--burners 4] [SOURCE OPTIMIZED [FLAG ...]]

Runs `mari-onnx check` again and again, by default on a sample model with one row of its user table zeroed and on the
right model, while other processes burn the processors; every second run has them stopped. Ends with 1 where exit codes
or digests of the requests differ.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def burn() -> None:
    while True:
        sum(range(10_000))


def once(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Exit code of a check, and the digest of its requests."""
    found = folder / "result.json"
    command = [sys.executable, "-m", "mari_onnx", "check", *arguments, "--json", str(found)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False)
    return done.returncode, json.loads(found.read_text())["reached"]["digest"]


def pairs(folder: Path) -> list[list[str]]:
    """A right and a wrong model."""
    import onnx
    from onnx import numpy_helper

    from mari_onnx.engine import Options, rewrite
    from mari_onnx.parity.check import find_sides

    path = ROOT / "models" / "coarse_mlp.onnx"
    source = onnx.load(path)
    made = rewrite(source, find_sides([path], [source]), Options()).model
    onnx.save(made, folder / "right.onnx")
    read = next(n for n in made.graph.node if n.op_type == "Gather" and n.input[1] == "user_id").input[0]
    table = next(t for t in made.graph.initializer if t.name == read)
    rows = numpy_helper.to_array(table).copy()
    rows[100] = 0
    table.CopyFrom(numpy_helper.from_array(rows, table.name))
    onnx.save(made, folder / "wrong.onnx")
    return [[str(path), str(folder / f"{name}.onnx")] for name in ("right", "wrong")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--burners", type=int, default=4)
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as name:
        folder = Path(name)
        differs = False
        for arguments in [rest] if rest else pairs(folder):
            found = []
            for run in range(options.runs):
                count = options.burners * (run % 2)
                burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range(count)]
                for each in burners:
                    each.start()
                begun = time.perf_counter()
                found.append(once(arguments, folder))
                seconds = time.perf_counter() - begun
                for each in burners:
                    each.kill()
                print(f"{Path(arguments[1]).stem}\t{len(burners)} burners\t{seconds:.1f} s\texit {found[-1][0]}\t"
                      f"{found[-1][1][:16]}", flush=True)  # fmt: skip
            differs |= len(set(found)) > 1
            print(f"{len(set(found))} kinds of answer in {len(found)} runs")
    raise SystemExit(int(differs))


if __name__ == "__main__":
    main()
