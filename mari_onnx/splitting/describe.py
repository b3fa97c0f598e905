"""What a split computes at each rate, and what it hands over, for people and as JSON.

In: a source and the folder of its split. Out: figures, and tables of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from mari_onnx.model.load import Source
from mari_onnx.model.signature import signature
from mari_onnx.parity.candidates import with_axes
from mari_onnx.parity.domains.domains import domains
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.requests.draw import Drawer
from mari_onnx.parity.work import shapes_of, work
from mari_onnx.prices import table
from mari_onnx.report.figures import quantity
from mari_onnx.report.terminal import Block
from mari_onnx.sides.resolve import resolve
from mari_onnx.splitting.assembly import Assembly, Session
from mari_onnx.splitting.left import Rest
from mari_onnx.splitting.residual import item_residual
from mari_onnx.splitting.together import joined

SHOWN = 5
"""Nodes of what is left that are listed."""
RATES = {
    "user": "once per user",
    "item": "once per item",
    "score": "for each candidate",
    "batched": "for each candidate of several requests",
}
REQUESTS = 4
"""In the run of score.batched.onnx whose FLOPs are counted."""


def rates(source: Source, folder: str | Path, measure: bool = False) -> dict[str, Any]:
    """For each part its nodes, bytes, and FLOPs; for each tensor that is handed over its bytes.

    "item_left" says what score.onnx computes of the item alone, and why (`mari_onnx.splitting.left`).

    FLOPs are per candidate for `score`, `batched` and the source, per item for `item`, and per user for `user`; None
    where the shapes of products are not known. With `measure`, "item_residual" is what score.onnx computes of the item
    alone (`mari_onnx.splitting.residual`).

    Raises:
        ModelError: the folder is no split, or a model cannot run.
    """
    from mari_onnx.model.load import load

    parts = Assembly(folder)
    said = parts.manifest
    sides = with_axes(source.model, resolve(signature(source.model), metadata=parts.metadata), source.model)
    layout = Layout(signature(source.model), sides)
    n = layout.fixed_n or said.candidates
    request = Drawer(layout, domains(source.model, layout)[0], 0).request(n, full=layout.axis == 0)
    session: Session = parts.open("cpu", True, 1)
    feed = request.feed(session.get_inputs())
    state, rows = session.ranker.user(feed), session.ranker.items(feed)
    feeds = {**feed, **state.arrays, **rows.arrays}
    found: dict[str, Any] = {}
    for name, part in said.parts.items():
        model, given, per = load(parts.folder / part.file), feeds, 1 if name == "user" else n
        if name == "batched":
            many = rows.take(np.tile(np.arange(rows.count), REQUESTS)).arrays
            given, per = joined(said, [feeds] * REQUESTS, many, [feeds] * REQUESTS, [n] * REQUESTS), REQUESTS * n
        cost = work(model, {k: given[k] for k in part.inputs if k in given})
        found[name] = {
            "rate": RATES[name],
            "nodes": len(model.graph.node),
            "bytes": part.bytes,
            "flops": None if cost is None else cost.flops / per,
        }
    whole = work(source.model, request.feed(layout.signature.inputs))
    score = load(parts.folder / said.parts["score"].file)
    shapes = shapes_of(score, {k: feeds[k] for k in said.parts["score"].inputs if k in feeds})
    rest = Rest(score, {t.name for t in said.rows}, shapes, table.load(), n, said.contract.state == "float16")
    residual = None
    if measure:
        residual = item_residual(source.model, sides, parts.folder).to_dict()
        for each in residual["nodes"]:
            each["why"] = rest.why(each["name"], each["redundant_flops"] / (each["flops"] or 1.0))
    return {
        "source_flops": None if whole is None else whole.flops / n,
        "candidates": n,
        "parts": found,
        "item_left": [each.to_dict() for each in rest.left],
        "item_residual": residual,
        "same_source": said.source["sha256"] == source.sha256,
        "manifest": said.to_dict(),
    }


def blocks(found: dict[str, Any]) -> list[Block]:
    """Tables for a terminal: inputs, parts, and what is handed over."""
    said = found["manifest"]
    inputs = Table(box=None, pad_edge=False)
    for name in ("input", "side", "type", "shape", "read by"):
        inputs.add_column(name, overflow="fold")
    for each in said["inputs"]:
        read = [part["file"] for part in said["parts"].values() if each["name"] in part["inputs"]]
        inputs.add_row(escape(each["name"]), each["side"], each["dtype"], escape(_text(each["shape"])), ", ".join(read))
    parts = Table(box=None, pad_edge=False)
    parts.add_column("part")
    parts.add_column("runs")
    for name in ("nodes", "FLOPs each time", "MB"):
        parts.add_column(name, justify="right")
    for name, part in found["parts"].items():
        flops = "?" if part["flops"] is None else quantity(part["flops"])
        size = f"{part['bytes'] / 1e6:.2f}"
        parts.add_row(said["parts"][name]["file"], part["rate"], str(part["nodes"]), flops, size)
    handed = Table(box=None, pad_edge=False)
    for name in ("handed over", "of", "type", "shape"):
        handed.add_column(name, overflow="fold")
    handed.add_column("bytes", justify="right")
    for what, tensors in (("the user", said["state"]), ("the item", said["rows"])):
        for each in tensors:
            name = each["name"] if each["made"] else f"{each['name']} (an input)"
            handed.add_row(escape(name), what, each["dtype"], escape(_text(each["shape"])), str(each["bytes"]))
    lines: list[Block] = [inputs, "", parts]
    if said["batched"] is not None:
        index = said["batched"]["index"]
        by = f", by the input {index}" if index else ""
        lines.append(f"several requests in one run: {said['batched']['form']}{by}")
    if found["source_flops"] is not None:
        lines.append(f"the source takes {quantity(found['source_flops'])} FLOPs for each candidate")
    alone = found["item_left"]
    if alone:
        share = sum(x["share"] for x in alone)
        lines.append(f"{share:.1%} of the FLOPs of score.onnx are of nodes that read items alone:")
        lines += [f"  {escape(x['why'])}" for x in alone[:SHOWN]]
    if found["item_residual"] is not None:
        measured = found["item_residual"]
        lines.append(f"{measured['share']:.1%} of the FLOPs of score.onnx depend on the item alone (measured)")
        for x in [x for x in measured["nodes"] if x["redundant_flops"]][:SHOWN]:
            lines.append(f"  {x['op']} {escape(x['name'])}: {quantity(x['redundant_flops'])} FLOPs; {x['why']}")
    lines += ["", handed]
    lines += ["", *(f"output {o['name']}: depends on {o['depends_on']}" for o in said["outputs"])]
    if not found["same_source"]:
        lines.append("note: the folder was split from another file than this one")
    return lines


def _text(shape: list[Any]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"
