"""Why a node of the source still runs per candidate, in a sentence that names what it reads.

Where user and candidate stay apart (`[u|x]`, `u W + x V`) the engine takes nodes apart. From the first node on that it
leaves whole, each element depends on both, and nothing behind it can be split. That node is the reason of all that read
it, unless a rule noted a reason of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mari_onnx.model.ops import Fact, having
from mari_onnx.report.kinds import input_kinds
from mari_onnx.report.records import Input, Node
from mari_onnx.report.stops import NOT_WORTH, label, source_of, written_out

if TYPE_CHECKING:
    import onnx

ITEM_ALONE = "it depends on the item alone: `mari-onnx split` computes it once per item"
_PRODUCTS = having(Fact.PRODUCT)
# Their results are a sum of the user's and the candidate's part, or parts side by side, if what they read is.
_APART = _PRODUCTS.union(
    *map(having, (Fact.MOVES, Fact.JOINS, Fact.VIEW, Fact.SAME, Fact.CONVERTS, Fact.ADDS, Fact.LINEAR))
)


@dataclass(frozen=True)
class Left:
    """Work that the output does for each candidate, by the source node that it comes from.

    Attributes:
        node, op: the source node. flops: per candidate. share: of all FLOPs of the output, 0 to 1.
        rate: "candidate", or "item" if it depends on the item alone. why: why it is not done less often.
    """

    node: str
    op: str
    flops: float
    share: float
    rate: str
    why: str


def whys(graph: Iterable[onnx.NodeProto], nodes: Sequence[Node], inputs: Sequence[Input]) -> list[str | None]:
    """For each node of a report why not more was done with it; None for what runs once per request, or is gone.

    Args:
        graph: the source's nodes, in order.
        nodes: of the report, of the nodes that the engine looked at, in the same order.
        inputs: of the graph.
    """
    told = {node.name: node for node in nodes}
    kinds = input_kinds(inputs)
    origins = {each.name: {each.side or "cross": each.name} for each in inputs}  # tensor -> side -> an input
    mixed_at: dict[str, onnx.NodeProto] = {}  # tensor -> the node from which on user and candidate are mixed
    found: dict[str, str] = {}
    for proto in graph:
        node = told.get(label(proto))
        if node is None:
            continue
        kinds.update(dict.fromkeys(proto.output, node.kind))
        reads = [x for x in proto.input if x and kinds.get(x, "Const") != "Const"]
        of: dict[str, str] = {}
        for x in reversed(reads):
            of |= origins.get(x, {})
        before = next((mixed_at[x] for x in reads if x in mixed_at), None)
        if of.keys() & {"user", "packed"} and node.kind == "Mixed" and (before is not None or _mixes(node, len(reads))):
            mixed_at.update(dict.fromkeys(proto.output, before if before is not None else proto))
        origins.update(dict.fromkeys(proto.output, of))
        why = _why(node, reads, kinds, mixed_at, told, of)
        if why is not None:
            found[node.name] = why
    return [found.get(node.name) for node in nodes]


def _mixes(node: Node, reads: int) -> bool:
    """Whether user and candidate, apart in what a node reads, are in each element of its result for good."""
    if node.op in _PRODUCTS and reads > 1:
        return True  # a sum over products of both
    return node.action != "split" and node.op not in _APART


def _why(
    node: Node,
    reads: Sequence[str],
    kinds: Mapping[str, str],
    mixed_at: Mapping[str, onnx.NodeProto],
    told: Mapping[str, Node],
    of: Mapping[str, str],
) -> str | None:
    if node.action in ("lifted", "folded") or node.kind == "Const":
        return None
    if node.reason:
        return node.reason
    if node.kind == "Item":
        return ITEM_ALONE
    if not of.keys() & {"user", "packed"} and "cross" in of:
        return f"it reads no input tagged user, and {of['cross']!r}, which is tagged cross or not at all"
    if node.stopped_by and node.stopped_by in told:
        return written_out(told[node.stopped_by])
    mixed = next((x for x in reads if x in mixed_at), None)
    if node.action == "split":
        theirs = next((x for x in reads if kinds[x] == "Item"), None) or mixed
        theirs = theirs or next((x for x in reads if kinds[x] == "Mixed"), None)
        done = "the user's part runs once per request"
        return f"{done}; the candidate's part, of {theirs!r}, is left" if theirs else None
    if mixed is not None:
        at = mixed_at[mixed]
        return f"it reads {mixed!r}, and {at.op_type} {label(at)!r} has mixed user and candidate for good"
    users = next((x for x in reads if kinds[x] == "Shared"), None)
    others = next((x for x in reads if kinds[x] != "Shared"), None)
    if users and others:
        return f"it combines {users!r} of the user with {others!r} of the candidate: both sides meet here"
    return NOT_WORTH


def left(
    source: Iterable[onnx.NodeProto],
    graph: onnx.GraphProto,
    costs: Sequence[float],
    once: Sequence[bool],
    kinds: Sequence[str],
    nodes: Sequence[Node],
) -> list[Left]:
    """What the output computes per candidate, the most expensive first.

    Args:
        source: its nodes. graph: the output.
        costs: FLOPs per candidate of each of its nodes. once, kinds: of each (`kinds.py`).
        nodes: of the report on the source, with `why`.
    """
    told = {node.name: node for node in nodes}
    feeds = _products_before(source, told)
    work: dict[tuple[str, str], float] = {}
    for proto, cost, single, kind in zip(graph.node, costs, once, kinds, strict=True):
        origin = source_of(label(proto), told)
        if origin is not None and proto.op_type in _PRODUCTS and told[origin].op not in _PRODUCTS:
            origin = feeds.get(origin, origin)  # a product that a sum or a factor behind it has joined
        if origin is not None and not single and cost:
            rate = "item" if kind == "Item" else "candidate"
            work[origin, rate] = work.get((origin, rate), 0.0) + cost
    whole = sum(costs) or 1.0
    ordered = sorted(work.items(), key=lambda entry: -entry[1])
    return [
        Left(name, told[name].op, flops, flops / whole, rate, _of(told[name], rate)) for (name, rate), flops in ordered
    ]


def _products_before(source: Iterable[onnx.NodeProto], told: Mapping[str, Node]) -> dict[str, str]:
    """Node -> the product whose result it reads."""
    made: dict[str, str] = {}
    found: dict[str, str] = {}
    for proto in source:
        name = label(proto)
        if proto.op_type in _PRODUCTS:
            made.update(dict.fromkeys(proto.output, name))
        found.update((name, made[x]) for x in proto.input if x in made and name in told)
    return found


def _of(node: Node, rate: str) -> str:
    if rate == "item" and node.kind != "Item":
        return ITEM_ALONE
    return node.why or NOT_WORTH


def to_dict(each: Left) -> dict[str, Any]:
    """As JSON: `node`, `op`, `flops_per_candidate`, `share`, `rate`, `why`."""
    return {
        "node": each.node,
        "op": each.op,
        "flops_per_candidate": round(each.flops, 1),
        "share": round(each.share, 4),
        "rate": each.rate,
        "why": each.why,
    }
