"""Checks feed the same and answer the same on a busy machine.

    python -m benchmarks.parity.steady [--runs 20] [--burners 4] [SOURCE OPTIMIZED [FLAG ...]]

Runs `mari-onnx check` again and again while other processes burn the processors; every second run has them stopped. By
default on a right model, on one with a zeroed row in its user table, and then a rewrite with a check in which one
product of twelve is wrong and has to be undone. Ends with 1 where an exit code, the requests' digest, or anything of
what was found (all of `--json` but the seconds; what was undone, and why) differs.
"""

from __future__ import annotations

import argparse
import hashlib
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


def once(arguments: list[str], folder: Path) -> tuple[int, str, str]:
    """Exit code of a run, the digest of its requests, and one of all that it found."""
    found = folder / "result.json"
    command = ["mari_onnx", "check", *arguments, "--json"] if arguments else ["benchmarks.parity.steady", "--undo"]
    done = subprocess.run([sys.executable, "-m", *command, str(found)], capture_output=True, cwd=ROOT, check=False)
    result = json.loads(found.read_text())
    del result["seconds"]
    text = json.dumps(result, sort_keys=True)
    return done.returncode, result["reached"]["digest"], hashlib.sha256(text.encode()).hexdigest()


def undo(path: Path) -> None:
    """Writes the result of a checked rewrite of which one product is wrong, and what was undone."""
    from mari_onnx.parity.guard import optimize_checked
    from tests.parity.test_blame import SIDES, Faulty, tower

    done = optimize_checked(tower(), SIDES, engine=Faulty("product5"), candidates=(1, 2, 7), coverage=100)
    assert done.result is not None
    undone = {"skip": sorted(done.options.skip), "incidents": done.incidents}
    path.write_text(json.dumps({**done.result.to_dict(), **undone}))
    raise SystemExit(int(done.options.skip != {"product5"}))


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
    parser.add_argument("--undo", type=Path, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.undo:
        undo(options.undo)
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as place:
        folder = Path(place)
        differs = False
        for arguments in [rest] if rest else [*pairs(folder), []]:
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
                name = Path(arguments[1]).stem if arguments else "undone"
                code, requests, all_of_it = found[-1]
                print(f"{name}\t{len(burners)} burners\t{seconds:.1f} s\texit {code}\t{requests[:16]}\t"
                      f"{all_of_it[:16]}", flush=True)  # fmt: skip
            differs |= len(set(found)) > 1
            print(f"{len(set(found))} kinds of answer in {len(found)} runs")
    raise SystemExit(int(differs))


if __name__ == "__main__":
    main()
