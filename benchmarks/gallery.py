"""Writes docs/gallery.md: what each sample model gains, and some public ones.

    make demo ARGS='--json build/demo.json'      # optimizes, checks and times the sample models
    python -m benchmarks.gallery build/demo.json

Figures of public models are taken from docs/interop.md, which `make interop` writes.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.demo.model import Row, Times
from mari_onnx.model.save import write_text
from mari_onnx.report.figures import change, quantity
from mari_onnx.timing.machine import machine

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/gallery.md"

HEAD = """---
hide: [toc]
---
# Gallery: what models gain
**{count} sample models: {mean:.2f}x in the geometric mean, {worst:.2f}x at least ({slowest}), {best:.1f}x at most
({fastest}).** These are times of a request of 500 candidates, source over output, on one CPU thread. Each output was
checked on drawn and on recorded requests before it was timed.

How much a model gains depends on how much of its work is the user's alone. It is most for towers, and for long
histories that are encoded before the candidate comes in; it is least where every layer mixes user and candidate.
`mari-onnx inspect ranker.onnx` says it for your model.

```sh
make demo ARGS='--json build/demo.json'
python -m benchmarks.gallery build/demo.json
```

make this table, here on {processor}, {cores} cores. [What the models are](../models/README.md).

## Sample models
`.torchscript` is the same model by PyTorch's older exporter. *FLOPs* are per candidate. *Error* is the largest absolute
difference of any output.

| model | | faster | time | FLOPs | products split | nodes | error |
|---|---|---:|---:|---:|---:|---:|---:|
"""

PUBLIC = """
## Public models
Some of the 110 graphs of deepctr-torch, with one input per feature, by the newer exporter: FLOPs and time of the source
over those of the output. [The table of all](interop.md) says which command makes it.

| model | FLOPs | 64 candidates | 500 candidates |
|---|---:|---:|---:|
"""
SHOWN = ("wdl", "deepfm", "din", "mmoe", "ple", "dcn_matrix", "autoint", "xdeepfm", "pnn", "pnn_outer", "ccpm")

WHAT = re.compile(r"^\| `(\w+)` \| ([^|]+) \|", re.MULTILINE)
CELL = r" ([^|]+) \|"
INTEROP = re.compile(r"^\| (\w+)\.split\.dynamo \|" + 6 * CELL + "$", re.MULTILINE)


def read(figures: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The rows of a run of `make demo`, from its JSON."""
    rows = []
    for each in figures.values():
        known = {field.name: each[field.name] for field in fields(Row)}
        rows.append(Row(**{**known, "times": Times(**each["times"]), "loaded": None}))
    return sorted(rows, key=lambda row: row.name)


def page(rows: Sequence[Row], readme: str, interop: str) -> str:
    """The text of docs/gallery.md.

    Args:
        readme: models/README.md, for what each model is. interop: docs/interop.md.
    """
    what = {name: told.strip() for name, told in WHAT.findall(readme)}
    ratios = [row.times.faster for row in rows]
    best, worst = max(rows, key=lambda row: row.times.faster), min(rows, key=lambda row: row.times.faster)
    on = machine()
    text = HEAD.format(
        count=len(rows),
        mean=math.exp(sum(map(math.log, ratios)) / len(ratios)),
        worst=worst.times.faster,
        slowest=_model(worst),
        best=best.times.faster,
        fastest=_model(best),
        processor=on["processor"],
        cores=on["cores"],
    )
    for row in rows:
        before, after = row.flops
        text += (
            f"| {_model(row)} | {what.get(row.name.split('.')[0], '')} | **{row.times.faster:.2f}x** | "
            f"{row.times.before * 1e3:.2f} -> {row.times.after * 1e3:.2f} ms | "
            f"{quantity(before)} -> {quantity(after)}, {change(before, after)} | {row.split} of {row.products} | "
            f"{row.nodes[0]} -> {row.nodes[1]} | {row.max_error:.1e} |\n"
        )
    found = {name: cells for name, *cells in INTEROP.findall(interop)}
    text += PUBLIC
    for name in SHOWN:
        _, flops, _, _, few, many = found[name]
        text += f"| {name} | {flops} | {few}x | {many}x |\n"
    return text


def _model(row: Row) -> str:
    return row.name.removesuffix(".onnx")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__)
    parser.add_argument("demo", type=Path, help="what make demo ARGS='--json FILE' wrote")
    rows = json.loads(parser.parse_args().demo.read_text(encoding="utf-8"))
    readme, interop = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("models/README.md", "docs/interop.md")
    )
    write_text(PAGE, page(read(rows), readme, interop))


if __name__ == "__main__":
    main()
