"""Splits every model of some folders, checks the parts together, and measures what score.onnx still computes of items.

    python -m benchmarks.split_check [FOLDER ...] [--out FILE.json] [--only GLOB]

By default the sample models and the public ones in tests/data/interop; models that FILE has are left out. The check is
that of `mari-onnx split`: 1, 2, 7, 64 and 500 candidates, two requests of each, rows made in a batch with rows of
another request and in another order. The residual is the share of score.onnx's FLOPs that depend on the item alone
(`mari_onnx.splitting.residual`): of the split that prices choose, and where that is more than 1%, of the one that does
most beforehand, whose estimated time is a multiple of the former's. The table is Markdown.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed import drawer
from mari_onnx import api
from mari_onnx.choices import options_for
from mari_onnx.errors import MariError
from mari_onnx.model.signature import signature
from mari_onnx.sides.resolve import resolve, side_file_beside
from mari_onnx.splitting.make import split_source, unchecked
from mari_onnx.splitting.residual import item_residual
from mari_onnx.splitting.ways import Way

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "models", ROOT / "tests/data/interop")
SMALL = 0.01
"""A share of FLOPs that counts as nothing left."""


def one(path: Path) -> dict[str, Any]:
    """What the check said of one model, and its residual."""
    source = api.as_source(path)
    sides = api.sides_of(source, resolve(signature(source.model), file=side_file_beside(path)))
    split = split_source(source, sides, options_for(500), coverage=0, providers=("cpu",))
    assert split.check is not None
    draw = drawer(path, source.model, sides)[0]
    left = item_residual(source.model, sides, split.folder, draw=draw)
    least, residual = split, left
    if left.share > SMALL:
        least = unchecked(source, sides, options_for(500), choose=least_work)
        residual = item_residual(source.model, sides, least.folder, draw=draw)
    return {
        "model": path.stem,
        "equal": split.check.ok,
        "candidates": list(split.check.candidates),
        "max_error": split.check.max_error,
        "parts": sorted(split.manifest.parts),
        "bytes_per_item": split.plan.way.item_bytes,
        "bytes_per_user": split.plan.way.user_bytes,
        "residual": left.share,
        "seconds": split.plan.way.seconds,
        "least_residual": residual.share,
        "least_bytes": least.plan.way.item_bytes,
        "least_seconds": least.plan.way.seconds,
        "left": [[x.op, x.name, x.redundant.flops / left.total.flops] for x in left.worst(3)] if left.share else [],
        "why": [each.text for each in split.left[:3]],
        "notes": split.notes,
    }


def least_work(ways: Sequence[Way]) -> Way:
    """The way that does most of the item's work beforehand: his terms apart from all others, if there is such a way."""
    return min(ways, key=lambda way: (way.cut.form != "apart", way.flops))


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | equal at | largest difference | left of the item's | bytes per item | at least | bytes | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    made = [each for each in results if "error" not in each]
    for each in results:
        if "error" in each:
            lines.append(f"| {each['model']} | {each['error']} | | | | | | |")
            continue
        sizes = ", ".join(map(str, each["candidates"]))
        slower = each["least_seconds"] / each["seconds"]
        lines.append(
            f"| {each['model']} | {sizes} | {each['max_error']:.1e} | {each['residual']:.1%} "
            f"| {each['bytes_per_item']} | {each['least_residual']:.1%} | {each['least_bytes']} | {slower:.2f}x |"
        )
        lines += [f"| | {note} | | | | | | |" for note in each["notes"]]
    equal, least = sum(each["equal"] for each in made), sum(each["least_residual"] <= SMALL for each in made)
    little = sum(each["residual"] <= SMALL for each in made)
    lines.append(
        f"\n{equal} of {len(results)} models are equal to their source. At most {SMALL:.0%} of the FLOPs of score.onnx "
        f"depend on the item alone in {little} of them as prices choose the cut, and in {least} if most is done before."
    )
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=FOLDERS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="*", help="patterns on file names without .onnx, joined by commas")
    given = parser.parse_args()
    results: list[dict[str, Any]] = []
    if given.out is not None and given.out.exists():
        results = json.loads(given.out.read_text())
    there = {each["model"] for each in results}
    for path in [p for folder in given.folders for p in sorted(Path(folder).glob("*.onnx"))]:
        if path.stem in there or not any(fnmatch.fnmatch(path.stem, pattern) for pattern in given.only.split(",")):
            continue
        try:
            results.append(one(path))
        except MariError as error:
            results.append({"model": path.stem, "error": f"{type(error).__name__}: {error.message.splitlines()[0]}"})
        print(f"{path.name}: {results[-1].get('error') or format(results[-1]['residual'], '.1%')}", flush=True)
        if given.out is not None:
            given.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
