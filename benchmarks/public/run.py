"""What is left in graphs of public models: ``python -m benchmarks.public.run DIR [--only TEXT] [--table FILE]``.

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
HEAD = """# Models of public packages
Ranking models that the engine was not developed on, from packages of PyPI, small and with weights drawn at random:
re-rankers of transformers (the query is the user's, 14 tokens, the text the item's, 8) and late interaction as in
ColBERT; rankers over 9 user and 6 item ids and some numbers; next-item models over a history of 12.

```sh
python -m benchmarks.public.export --out DIR        # where PyTorch and the packages are
python -m benchmarks.public.run DIR --table docs/public-models.md
```

- **residual**: share of the per-candidate FLOPs that is spent on results equal for all candidates, or that no output
  reads, in the source and in the rewrite, measured by running both. Time is ignored: rewrites are those that save
  FLOPs.
- **FLOPs**: of the source over those of that rewrite.
- **optimize**: how much faster the output of `mari-onnx optimize` is at 500 candidates on one thread, by prices of
  kernels (~) or measured (``--time``). It is chosen for time, and compared with the source by the check. Empty where
  it was not run.
""".splitlines()


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


def page(found: list[dict[str, Any]]) -> str:
    """All results as Markdown, and what is left where it is more than `MOST`."""
    lines = ["| graph | residual | FLOPs | optimize |", "| --- | --- | --- | --- |"]
    for each in found:
        if "residual" not in each:
            lines.append(f"| {each['graph']} | {each['error']} | | |")
            continue
        a, b = each["residual"]
        flops = each["flops"][0] / each["flops"][1] if each["flops"][1] else 1.0
        lines.append(f"| {each['graph']} | {a:.1%} -> {b:.1%} | {flops:.2f}x | {outcome(each)} |")
    good = [e for e in found if "residual" in e]
    more = [e for e in good if e["residual"][1] > MOST]
    few, packages = len(good) - len(more), ", ".join(sorted({e["package"] for e in found}))
    asked = [e for e in found if "changed" in e]
    ratios = sorted(float(outcome(e).strip("~x")) for e in asked if e["changed"])
    said = f"- `optimize` was run on {len(asked)} of them; each passed its check"
    if ratios:
        said += f"; {ratios[len(ratios) // 2]:.2f}x in the median, {ratios[0]:.2f}x to {ratios[-1]:.2f}x"
    reasons = [f"- `{e['graph']}` ({e['residual'][1]:.1%}): {e['left'][0][0]}: {e['left'][0][3]}." for e in more]
    failed = [f"- `{e['graph']}`: {e['error']}" for e in found if "error" in e]
    return "\n".join([
        *HEAD, f"Packages: {packages}.", "", "## Summary", "",
        f"- {len(found)} graphs; residual at most {MOST:.0%} in {few} of {len(good)} ({few / max(len(good), 1):.1%}).",
        said + ".", *(["", "## Failed", "", *failed] if failed else []), "", "## Graphs", "", *lines,
        "", "## More than 1% left, and why", "", *reasons, "",
    ])  # fmt: skip


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
        args.table.write_text(page([found[k] for k in sorted(found)]))


if __name__ == "__main__":
    main()
