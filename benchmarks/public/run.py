"""What is left in graphs of public models: ``python -m benchmarks.public.run DIR [--only TEXT] [--table FILE]``.

- **residual**: share of the per-candidate FLOPs that is spent on results equal for all candidates, in the source and in
  the rewrite, measured by running both. Time is ignored: rewrites are those that save FLOPs.
- **FLOPs**: of the source over those of that rewrite.
- **optimize**: the speedup at 500 candidates on one thread that `mari-onnx optimize` says of its output, which is
  chosen for time and compared with the source by its check: by prices of kernels (~), or measured (``--time``).

Results are kept in DIR/results.json, a graph a line; a graph that is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import onnx

import mari_onnx
from mari_onnx.engine import Options, rewrite
from mari_onnx.model.signature import signature
from mari_onnx.report.explain_rest import explained
from mari_onnx.report.report import build
from mari_onnx.report.residual import measure
from mari_onnx.sides.resolve import resolve

MOST = 0.01
SLOWER = 0.97


def residual(path: Path) -> dict[str, Any]:
    """What is left in one graph; what fails ends the record with its `error`."""
    found: dict[str, Any] = {"graph": path.stem, "package": package(path)}
    try:
        source = onnx.load(path)
        sides = resolve(signature(source), file=path.with_suffix(".sides.toml"))
        before = measure(source, sides)
        started = time.process_time()
        done = rewrite(source, sides, Options(assume=True))
        found["seconds"] = round(time.process_time() - started, 2)
        after = measure(done.model, sides)
        found["residual"] = [before.share, after.share]
        found["flops"] = [(r.total.flops + r.once.flops) / r.n for r in (before, after)]
        if after.share > MOST:
            left = explained(after, done.model, build(source, done, sides, 64))["nodes"]
            found["left"] = [[x["op"], x["name"], x["redundant_flops"], x["why"] or x["found"]] for x in left[:6]]
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:400]
    return found


def optimized(path: Path, timed: bool) -> dict[str, Any]:
    """What `optimize` says of one graph."""
    found: dict[str, Any] = {}
    try:
        made = mari_onnx.optimize(path, if_slower="warn" if timed else None)
        found["changed"], found["speed"] = made.changed, made.report.speed
        found["estimated"] = made.report.estimated.get(500)
        found["incidents"] = [str(i)[:300] for i in made.report.incidents]
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:400]
    return found


def package(path: Path) -> str:
    """The package that a graph is of, as its side file says."""
    return path.with_suffix(".sides.toml").read_text().splitlines()[0].removeprefix("# ")


def table(found: list[dict[str, Any]]) -> str:
    """All results as Markdown, and what is left where it is more than `MOST`."""
    lines = ["| graph | package | residual | FLOPs | optimize |", "| --- | --- | --- | --- | --- |"]
    for each in found:
        if "residual" not in each:
            lines.append(f"| {each['graph']} | {each['package']} | {each['error']} | | |")
            continue
        a, b = each["residual"]
        flops = each["flops"][0] / each["flops"][1] if each["flops"][1] else 1.0
        lines.append(f"| {each['graph']} | {each['package']} | {a:.1%} -> {b:.1%} | {flops:.2f}x | {outcome(each)} |")
    more = [e for e in found if e.get("residual", [0, 0])[1] > MOST]
    lines += ["", *(f"- `{e['graph']}` ({e['residual'][1]:.1%}): {e['left'][0][0]}: {e['left'][0][3]}" for e in more)]
    good = [e for e in found if "residual" in e]
    few = sum(e["residual"][1] <= MOST for e in good)
    return f"{len(found)} graphs; residual at most {MOST:.0%} in {few} of {len(good)}.\n\n" + "\n".join(lines) + "\n"


def outcome(each: dict[str, Any]) -> str:
    """What `optimize` said of a graph."""
    if "error" in each:
        return str(each["error"])
    if not each.get("changed"):
        return "unchanged" if "changed" in each else ""
    measured = (each["speed"] or {}).get("speedup", {}).get("500")
    return f"{measured:.2f}x" if measured is not None else f"~{each['estimated'] or 1:.2f}x"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="graphs whose name has this text")
    parser.add_argument("--residual", action="store_true", help="the residual alone")
    parser.add_argument("--time", action="store_true", help="measure the speed of outputs too")
    parser.add_argument("--again", action="store_true", help="graphs that were measured too")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no graph after this time")
    parser.add_argument("--table", type=Path, help="write the table of all results to this file")
    args = parser.parse_args()
    kept, begin = args.folder / "results.json", time.monotonic()
    found = {r["graph"]: r for r in map(json.loads, kept.read_text().splitlines())} if kept.exists() else {}
    for path in sorted(args.folder.glob("*.onnx")):
        if args.only not in path.stem or time.monotonic() - begin > args.minutes * 60:
            continue
        each = found.get(path.stem, {})
        if args.again or not each:
            each = residual(path)
        elif args.residual or "changed" in each or "error" in each:
            continue
        if not args.residual:
            each |= optimized(path, args.time)
        found[path.stem] = each
        print(f"{path.stem:40s} {each.get('residual')} {outcome(each)}", flush=True)
        kept.write_text("".join(json.dumps(found[k]) + "\n" for k in sorted(found)))
    if args.table is not None:
        args.table.write_text(table([found[k] for k in sorted(found)]))


if __name__ == "__main__":
    main()
