"""The report of one rewrite. docs/report.md documents its JSON form."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mari_onnx.model.ops import Fact, having
from mari_onnx.report.kinds import once, output_kinds, source_kinds
from mari_onnx.report.records import Input, Node, Stop, Totals
from mari_onnx.report.stops import LEFT, flat, stopped_by, stops_here
from mari_onnx.report.why import Left, left, whys
from mari_onnx.report.why import to_dict as left_dict
from mari_onnx.shown import Rows, Shown
from mari_onnx.sides.resolve import Sides
from mari_onnx.version import __version__

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Rewrite
    from mari_onnx.engine.assumptions import Assumption
    from mari_onnx.model.signature import Input as Given

Shape: TypeAlias = "tuple[int | str | None, ...]"

SCHEMA = "mari-onnx/report"
SCHEMA_VERSION = 1
PRODUCTS = having(Fact.PRODUCT)
# Lengths that the graph leaves free (a history, say) are costed as this long, requests as one.
FREE_LENGTH = 50


@dataclass(repr=False)
class Report(Shown):
    """What `optimize` did, and what it left.

    Attributes:
        changed: something was lifted or split.
        reason: why nothing was, None where something was.
        candidates: the N that costs are for.
        inputs, nodes: of the source.
        before, after: totals of source and output.
        tensors: source tensor -> output tensor of equal value.
        source, output: path, sha256 and bytes of the files, as far as there are any.
        check: the parity check's result as a dictionary, None where it was not run.
        incidents: rewrites that were undone because the check failed with them.
        notes: what was done to the source before it was rewritten, such as the conversion of an old operator set.
        assumptions: what the output takes for granted; verified if `check` is there.
        choices: parts that were left as they are (`mari_onnx.choices`).
        estimated: N -> the source's time over the output's, by prices of kernels; empty where work decided.
        speed: the same measured, and from which N on the output is faster; None where nothing was timed.
        user_weights: products of the user with 8-bit weights, and what they lose (`parity.loss`); None where all are
            floats.
        residual: what `report.explain_rest.measured` found, None where nothing was measured.
        separation: what a model retrained without reads of the candidate by the user's part would save
            (`mari_onnx.separation`), None where nobody asked.
        left: what the output still computes per candidate, and why, the most expensive first.
        reshaped: input whose dimensions differ -> those of source and output.
    """

    changed: bool
    candidates: int
    sides: Sides
    inputs: Sequence[Input]
    nodes: Sequence[Node]
    before: Totals
    after: Totals
    tensors: Mapping[str, str]
    source: dict[str, Any] = field(default_factory=dict)
    output: dict[str, Any] | None = None
    check: dict[str, Any] | None = None
    incidents: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    assumptions: Sequence[Assumption] = ()
    reason: str | None = None
    choices: dict[str, Any] = field(default_factory=dict)
    estimated: dict[int, float] = field(default_factory=dict)
    speed: dict[str, Any] | None = None
    residual: dict[str, Any] | None = None
    separation: dict[str, Any] | None = None
    user_weights: dict[str, Any] | None = None
    left: Sequence[Left] = ()
    reshaped: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)

    def shown(self) -> tuple[str, Rows]:
        """See `Shown`."""
        from mari_onnx.report.brief import rows

        return f"Report on {Path(str(self.source.get('path', 'a model'))).name}", rows(self.to_dict())

    @property
    def actions(self) -> dict[str, int]:
        """How many nodes were split, lifted, kept, ..."""
        return dict(sorted(Counter(node.action for node in self.nodes).items()))

    @property
    def products(self) -> list[Node]:
        """The source's MatMul, Gemm, Einsum, ... nodes."""
        return [node for node in self.nodes if node.op in PRODUCTS]

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """Why nodes were kept, the most frequent first."""
        return Counter(node.reason for node in self.nodes if node.reason and node.action in LEFT).most_common()

    @property
    def assumed(self) -> list[str]:
        """What the output takes for granted, a sentence each, and who verifies it."""
        verified = "the check ran both models there, and they agree"
        told = verified if self.check is not None else "the check that `optimize` runs verifies it there"
        lines = [f"assumed at {each.node}: {each.what} ({each.why}; {told})" for each in self.assumptions]
        return list(dict.fromkeys(lines))  # one that several numbers of candidates tell of

    @property
    def stops(self) -> list[Stop]:
        """The operators that stopped the rewrite, those that stopped most first."""
        after = Counter(node.stopped_by for node in self.nodes if node.stopped_by)
        found = [
            Stop(node.name, node.op, node.reason or "", after[node.name]) for node in self.nodes if stops_here(node)
        ]
        return sorted(found, key=lambda stop: -stop.after)

    def short(self) -> dict[str, Any]:
        """The few figures that go into the output's metadata."""
        return {
            "candidates": self.candidates,
            "actions": self.actions,
            "flops_per_candidate": [rounded(self.before.flops), rounded(self.after.flops)],
        }

    def to_dict(self) -> dict[str, Any]:
        """The documented form, version `SCHEMA_VERSION`."""
        return {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "tool": {"name": "mari-onnx", "version": __version__},
            "source": self.source,
            "output": self.output,
            "changed": self.changed,
            "reason": self.reason,
            "candidates": self.candidates,
            "sides": self.sides.to_dict(),
            "before": _totals(self.before),
            "after": _totals(self.after),
            "actions": self.actions,
            "reshaped_inputs": {name: {"before": a, "after": b} for name, (a, b) in self.reshaped.items()},
            "per_candidate": [left_dict(each) for each in self.left],
            "inputs": [_plain(each) for each in self.inputs],
            "nodes": [_plain(each) for each in self.nodes],
            "residual": self.residual,
            "separation": self.separation,
            "tensors": dict(self.tensors),
            "check": self.check,
            "incidents": self.incidents,
            "notes": self.notes,
            "choices": self.choices,
            "estimated_speedup": {str(n): ratio for n, ratio in self.estimated.items()},
            "speed": self.speed,
            "user_weights": self.user_weights,
            "assumptions": [
                {"node": each.node, "what": each.what, "why": each.why, "candidates": each.candidates}
                | {"verified": self.check is not None}
                for each in self.assumptions
            ],
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, default=str) + "\n"


def build(source: onnx.ModelProto, rewrite: Rewrite, sides: Sides, candidates: int) -> Report:
    """The report of one rewrite of `source`, without files and check."""
    from mari_onnx.engine.cost.flops import node_costs
    from mari_onnx.model.signature import signature

    shapes = concrete(rewrite.shapes, candidates)
    graph = flat(source)
    costs = {next(iter(node.output), ""): cost * (1 / candidates) for node, cost in node_costs(graph, shapes)}
    stopped = stopped_by(graph.node, {next(iter(n.outputs), ""): n for n in rewrite.nodes})
    inputs = [
        Input(
            each.name,
            str(each.dtype),
            each.shape,
            "packed" if each.name in sides.columns else sides.side(each.name),
            sides.columns.get(each.name),
        )
        for each in signature(source).inputs
    ]
    nodes = []
    for n in rewrite.nodes:
        first = next(iter(n.outputs), "")
        cost = costs.get(first)
        own = (None, None) if cost is None else (cost.flops, cost.bytes)
        nodes.append(Node(n.name, n.op, n.kind, n.action, n.rule, n.reason, stopped.get(first), *own))
    reasons = whys(graph.node, nodes, inputs)
    nodes = [dataclasses.replace(node, why=why) for node, why in zip(nodes, reasons, strict=True)]
    output = rewrite.model.graph
    out_shapes = concrete(rewrite.out_shapes, candidates)
    single, kinds = once(output, rewrite.out_shapes, inputs), output_kinds(output, rewrite, inputs)
    spent = [cost.flops / candidates for _, cost in node_costs(output, out_shapes)]
    return Report(
        changed=rewrite.changed,
        candidates=candidates,
        sides=sides,
        inputs=inputs,
        nodes=nodes,
        before=totals(graph, shapes, candidates, once(graph, rewrite.shapes, inputs), source_kinds(graph, rewrite)),
        after=totals(output, out_shapes, candidates, single, kinds),
        reshaped=_reshaped(signature(source).inputs, signature(rewrite.model).inputs),
        left=left(graph.node, output, spent, single, kinds, nodes),
        tensors=dict(rewrite.tensor_map),
        reason=rewrite.reason,
        assumptions=rewrite.assumptions,
    )


def _reshaped(before: Sequence[Given], after: Sequence[Given]) -> dict[str, tuple[Shape, Shape]]:
    """The inputs of both models that differ in a dimension."""
    now = {each.name: each.shape for each in after}
    both = {each.name: (each.shape, now[each.name]) for each in before if each.name in now}
    return {name: shapes for name, shapes in both.items() if shapes[0] != shapes[1]}


def totals(
    graph: onnx.GraphProto,
    shapes: Mapping[str, tuple[int, ...]],
    candidates: int,
    once: Sequence[bool],
    kinds: Sequence[str],
) -> Totals:
    """Totals of `graph` for the given shapes, FLOPs and bytes divided by `candidates`.

    Args:
        once: for each node, whether it runs once per request. kinds: for each node, what it depends on.
    """
    from mari_onnx.engine.cost.flops import Cost, node_costs

    costs = [cost for _, cost in node_costs(graph, shapes)]
    cost = sum(costs, Cost())
    return Totals(
        nodes=len(graph.node),
        products=sum(node.op_type in PRODUCTS for node in graph.node),
        flops=cost.flops / candidates,
        bytes=cost.bytes / candidates,
        once_nodes=sum(once),
        once_flops=sum(each.flops for each, alone in zip(costs, once, strict=True) if alone) / candidates,
        item_nodes=kinds.count("Item"),
        item_flops=sum(each.flops for each, kind in zip(costs, kinds, strict=True) if kind == "Item") / candidates,
        operators=dict(sorted(Counter(node.op_type for node in graph.node).items())),
    )


def concrete(shapes: Mapping[str, Sequence[Any]], candidates: int) -> dict[str, tuple[int, ...]]:
    """Symbolic shapes as numbers: N is `candidates`, R one, any other symbol `FREE_LENGTH`."""
    values = _Lengths({"N": candidates, "R": 1})
    return {
        name: tuple(d if isinstance(d, int) else d.evaluate(values) for d in shape) for name, shape in shapes.items()
    }


class _Lengths(dict[str, int]):
    def __missing__(self, _: str) -> int:
        return FREE_LENGTH


def _totals(each: Totals) -> dict[str, Any]:
    return {
        "nodes": each.nodes,
        "products": each.products,
        "flops_per_candidate": rounded(each.flops),
        "bytes_per_candidate": rounded(each.bytes),
        "once_nodes": each.once_nodes,
        "once_flops_per_candidate": rounded(each.once_flops),
        "item_nodes": each.item_nodes,
        "item_flops_per_candidate": rounded(each.item_flops),
        "operators": dict(each.operators),
    }


def _plain(each: Input | Node) -> dict[str, Any]:
    found = dataclasses.asdict(each)
    for key in ("flops", "bytes"):
        if found.get(key) is not None:
            found[key] = rounded(found[key])
    return {k: v for k, v in found.items() if v is not None or k in ("side", "reason")}


def rounded(value: float) -> float:
    """As figures of a candidate are written."""
    return round(value, 1)
