"""Measured redundant work beside the reason for it: `mari-onnx inspect --measure`.

Nodes of an output graph are named `SOURCE/Op`, `SOURCE/Op_1`, ... after the source node that they
compute, so that what is left in the output has its reason in the report on the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mari_onnx.model.ops import Fact, having
from mari_onnx.report.records import Node
from mari_onnx.report.report import Report
from mari_onnx.report.residual import NodeResidual, Residual, measure
from mari_onnx.report.stops import NOT_WORTH, flat, label, source_of, written_out

if TYPE_CHECKING:
    import onnx

TOGETHER = "combines user-only values with candidate values"
_WRITES_OUT = having(Fact.REPEATS) | {"Concat"}
_DONE = {
    "lifted": "runs once per request in the output",
    "split": "its user part runs once per request in the output",
    "folded": "is gone from the output",
}


def measured(
    source: onnx.ModelProto, output: onnx.ModelProto | None, report: Report, base_dir: str = ""
) -> dict[str, Any]:
    """The residual of the source and, where one was made, of the output graph, with reasons.

    Args:
        source: the model that `report` is about.
        output: what it was rewritten into, None where it was left as it is.
        base_dir: folder of external data.

    Raises:
        ModelError: see `residual.measure`.
    """
    before = measure(source, report.sides, base_dir=base_dir)
    if output is None:
        return {"before": explained(before, source, report), "after": None}
    after = measure(output, report.sides, base_dir=base_dir)
    return {
        "before": explained(before, source, report, done=True),
        "after": explained(after, output, report),
    }


def explained(found: Residual, model: onnx.ModelProto, report: Report, done: bool = False) -> dict[str, Any]:
    """`found` as JSON, each node of `model` with why it is left, or (`done`) what becomes of it."""
    nodes = {node.name: node for node in report.nodes}
    graph = flat(model).node
    told = found.to_dict()
    wasteful = {x.name: x for x in found.worst(len(found.nodes))}
    origins = _origins(graph, wasteful)
    for each in told["nodes"]:
        origin = origins.get(each["name"], each["name"])
        written = wasteful[origin].op in _WRITES_OUT
        each["source"] = source_of(each["name"], nodes)
        each["why"] = _why(each["source"], source_of(origin, nodes), written, nodes, done)
    return told


def _origins(graph: Iterable[onnx.NodeProto], wasteful: Mapping[str, NodeResidual]) -> dict[str, str]:
    """For each wasteful node the one that its redundant rows come from, itself if from nowhere."""
    made: dict[str, str] = {}
    origins: dict[str, str] = {}
    for node in graph:
        name = label(node)
        if name not in wasteful:
            continue
        origins[name] = next((made[x] for x in node.input if x in made), name)
        made.update(dict.fromkeys(node.output, origins[name]))
    return origins


def _why(name: str | None, origin: str | None, written: bool, nodes: Mapping[str, Node], done: bool) -> str:
    """Why a node of source `name` is left; `written`: its origin is a Concat, Expand or Tile."""
    own = nodes.get(name or "")
    if own is None:
        return "no single operator of the source computes it"
    if own.reason:
        return own.reason
    if own.stopped_by and own.stopped_by in nodes:
        return written_out(nodes[own.stopped_by])
    if done and own.action in _DONE:
        return _DONE[own.action]
    if done:
        return "nodes around it are taken apart"
    if origin is None or origin == name:
        return f"{own.op} {f'runs on all N rows: {NOT_WORTH}' if written else TOGETHER}"
    before = nodes[origin]
    return written_out(before) if written else f"{before.op} {before.name!r} {TOGETHER}"
