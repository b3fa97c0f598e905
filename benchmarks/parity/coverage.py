"""What the default check of models reaches: the table of `docs/parity-details.md`.

    python -m benchmarks.parity.coverage [FOLDER ...] [--missed]

Every `.onnx` of the folders (by default the sample models) is rewritten, and checked with the requests of the default
check. Ends with 1 where a right model fails, or where the check misses a row of a table, or more than 2% of the
outcomes of comparisons.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADS = ("model", "table rows", "outcomes", "sides of bounds", "units", "T", "N", "tried", "compared", "CPU s")


def main() -> None:
    import onnx

    from mari_onnx.engine import Options, rewrite
    from mari_onnx.parity import check
    from mari_onnx.parity.check import find_sides

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[ROOT / "models"])
    parser.add_argument("--missed", action="store_true", help="name what was not reached")
    options = parser.parse_args()
    print("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|")
    sums, failed = {"rows": [0, 0], "outcomes": [0, 0]}, []
    for path in sorted(p for folder in options.folders for p in folder.glob("*.onnx")):
        source = onnx.load(path)
        sides = find_sides([path], [source])
        made = rewrite(source, sides, Options())
        begun = time.process_time()
        result = check(path, made.model, sides)
        spent = time.process_time() - begun
        reached = result.reached
        if not result.ok:
            failed.append(path.stem)
        for kind, of in sums.items():
            met, all_ = reached.counts.get(kind, (0, 0))
            of[0], of[1] = of[0] + met, of[1] + all_
        cells = [
            f"{met} of {of}" if of else ""
            for met, of in (reached.counts.get(k, (0, 0)) for k in ("rows", "outcomes", "bounds", "units"))
        ]
        sizes = ["" if s is None else f"{s[0]}..{s[1]}" for s in (reached.lengths, reached.candidates)]
        last = [str(reached.tries), str(reached.kept), f"{spent:.1f}"]
        print("| " + " | ".join([path.stem, *cells, *sizes, *last]) + " |", flush=True)
        for each in reached.missed if options.missed else ():
            print(f"    {each['model']} {each['op']} {each['node']}: {', '.join(each['what'])}")
    (rows, all_rows), (outcomes, all_outcomes) = sums["rows"], sums["outcomes"]
    print(f"\n{rows:,} of {all_rows:,} table rows, {outcomes} of {all_outcomes} outcomes; failed: {failed or 'none'}")
    if failed or rows < all_rows or outcomes < 0.98 * all_outcomes:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
