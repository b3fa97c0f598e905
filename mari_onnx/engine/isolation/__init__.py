"""History and candidates in one sequence, ``[history | candidates]``: a candidate attends to the history and itself.

In: a source graph, shapes of its tensors, and numbers that it computes from shapes. Out: a graph with the same outputs
in which such tensors are blocks, so that ``(T + N)^2`` becomes ``T^2 + N T`` and the history's rows are computed
without candidates; the engine then rewrites that graph like any other.

The blocks hold the source's own numbers, at their own positions: nothing is assumed of positions, lengths or what is
done with scores later. What a rewrite rests on is that weights between one candidate and another are 0, and those that
the history gives to candidates where they are left out. `facts` finds that at a few sizes; the check runs source and
output at numbers of candidates around each integer of the graph (`assumptions`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import NodeProto

from mari_onnx.engine.assumptions import Assumption
from mari_onnx.engine.ir.value import Decline
from mari_onnx.engine.isolation import products, row_rules, rules  # noqa: F401  fill the table
from mari_onnx.engine.isolation.blocks import RULES, Blocks, Writer
from mari_onnx.engine.isolation.facts import Facts
from mari_onnx.engine.isolation.layout import Layouts
from mari_onnx.engine.isolation.sizes import Sizes
from mari_onnx.engine.lookahead.shapes import needed
from mari_onnx.engine.outcome import NodeReport, Rewrite
from mari_onnx.model.dims import Size, symbols
from mari_onnx.model.nodes import captures, constant, graphs, is_standard
from mari_onnx.model.tensors import array

WHAT = "a candidate is scored as without the others: weights between candidates are 0"
HIDDEN = "what masks hide in a history and one more position is hidden at every length"
WHY = "weights were looked at for a few numbers of candidates and lengths of the history"


@dataclass
class Apart:
    """A source in blocks.

    graph: the new source. shapes: of the source's own tensors, with sizes that were found here. origins: the new
    source's tensors that were written -> the node of the source. refused: why nodes that count candidates were not
    written in blocks, by their names. joins: nodes that join history and candidates.
    candidates: N at which a run tells whether what was found of weights holds. what: is assumed.
    """

    graph: onnx.GraphProto
    shapes: dict[str, tuple[Size, ...]]
    origins: dict[str, str]
    refused: dict[str, str]
    joins: list[str]
    candidates: list[int]
    what: str

    def merged(self, source: onnx.GraphProto, plain: Rewrite, made: Rewrite) -> Rewrite:
        """The rewrite of `graph`, as one of the source.

        plain: a rewrite of the source itself, for what it says of its tensors.
        """
        names = {o for node in source.node for o in node.output} | {i.name for i in source.input}
        node, output = self.joins[0], next(n.output[0] for n in source.node if label(n) == self.joins[0])
        assumed = [Assumption(node, output, self.what, WHY, n) for n in self.candidates]
        inner = {label(n): self.origins[n.output[0]] for n in self.graph.node if n.output[0] in self.origins}
        return replace(
            made,
            nodes=self._reports(source, made.nodes),
            kinds={name: kind for name, kind in made.kinds.items() if name in names},
            shapes=self.shapes,
            numbers=plain.numbers,
            dtypes=plain.dtypes,
            tensor_map={a: b for a, b in made.tensor_map.items() if a in names},
            origins=[inner.get(name, name) for name in made.origins],
            multiplied=frozenset(inner.get(name, name) for name in made.multiplied),
            assumptions=[*assumed, *made.assumptions],
        )

    def _reports(self, source: onnx.GraphProto, made: Iterable[NodeReport]) -> list[NodeReport]:
        """What became of each node of the source, from what became of those of `graph`."""
        of: dict[str, list[NodeReport]] = {}
        for report in made:
            origin = next((self.origins[o] for o in report.outputs if o in self.origins), report.name)
            of.setdefault(origin, []).append(report)
        found = []
        for node in source.node:
            name = label(node)
            own = of.get(name, [])
            alike = [r for r in own if r.op == node.op_type] or own
            one = NodeReport(name, node.op_type, "Const", "folded", "isolation", None, tuple(node.output))
            if alike:
                kinds, actions = {r.kind for r in alike}, {r.action for r in own}
                kind = kinds.pop() if len(kinds) == 1 else "Mixed"
                action = actions.pop() if len(own) == 1 else "split"
                one = replace(one, kind=kind, action=action, rule=alike[0].rule, reason=alike[0].reason)
            found.append(replace(one, reason=self.refused.get(name, one.reason)))
        return found


def joins(graph: onnx.GraphProto, known: Rewrite) -> list[str]:
    """Nodes that join history and candidates."""
    try:
        return Layouts(needed(graph), known.shapes, _once(known)).joins
    except Decline:
        return []


def apart(graph: onnx.GraphProto, known: Rewrite, opset: int) -> Apart | None:
    """The graph with sequences of history and candidates in blocks; None where it has no such sequence.

    known: a rewrite of the graph, for what it found of the source's tensors: shapes, numbers and element types.

    Refuses a graph in which a sequence is laid out in two ways, or no input has a size.
    """
    nodes = needed(graph)
    layouts = Layouts(nodes, known.shapes, _once(known))
    if not layouts.sequences:
        return None
    constants = {**{p.name: array(p) for p in graph.initializer if _few(p)}, **_held(nodes)}
    numbers = {name: np.asarray(value, object) for name, value in constants.items() if value.dtype.kind in "iu"}
    told = Sizes(nodes, known.shapes, numbers | known.numbers)
    facts = Facts(graph, nodes, told, layouts, opset)
    writer = Writer(graph, told, known.dtypes, layouts, facts, opset)
    refused: dict[str, str] = {}
    for node in nodes:
        writer.nodes.append(node)
        _visit(writer, node, refused)
    made = onnx.GraphProto()
    made.CopyFrom(graph)
    del made.node[:]
    made.node.extend(_live(writer, graph))
    origins = {o: writer.origins[n.name] for n in made.node for o in n.output if n.name in writer.origins}
    what = WHAT if any("N" in symbols(size) for size in layouts.sequences) else HIDDEN
    return Apart(made, told.shapes, origins, refused, layouts.joins, sorted({s["N"] for s in facts.at}), what)


def _once(known: Rewrite) -> set[str]:
    """Tensors that the user alone, or nothing, decides."""
    return {name for name, kind in known.kinds.items() if kind in ("Shared", "Const")}


def _visit(w: Writer, node: NodeProto, refused: dict[str, str]) -> None:
    """Writes the blocks of a node's outputs, or the node itself on whole tensors."""
    w.origin = label(node)
    reads = [name for name in node.input if name]
    blocked = any(name in w.known for name in reads)
    if node.op_type == "Shape" and blocked:
        sizes = list(w.numbers.get(node.output[0], np.asarray([None])).reshape(-1))
        if None not in sizes:
            w.renamed[node.output[0]] = w.sizes(sizes)
            return
    found: Sequence[Blocks | None] = ()
    if blocked or not all(w.plain(o) for o in node.output if o):
        rule = RULES.get(node.op_type) if is_standard(node) and not any(graphs(node)) else None
        try:
            if rule is not None and any(o and w.counts(o) for o in (*reads, *node.output)):
                found = rule(w, node)
        except Decline as why:
            refused[label(node)] = str(why)
    for name, blocks in zip(node.output, found, strict=False):
        if name and blocks is not None:
            at = w.layouts.at(blocks.dims)
            only = next(iter(blocks.of.values()))
            if len(blocks.of) == 1 and len(at) < 2 and only.name is not None:
                w.renamed[name] = only.name
            else:
                w.known[name] = blocks
    inner = any(x in w.known or x in w.renamed for x in captures(node))
    if not found and not inner and any(w.whole(name) != name for name in reads):
        made = w.copy(node, [w.whole(name) if name else "" for name in node.input], len(node.output))
        w.renamed.update(zip(node.output, made, strict=True))


def _live(w: Writer, graph: onnx.GraphProto) -> list[NodeProto]:
    """The nodes that the outputs need, with the source's names where its own node is gone."""
    wanted, back = dict[str, str](), dict[str, str]()
    for output in graph.output:
        new = w.whole(output.name)
        if new != output.name and (new not in w.origins or new in back):
            w.origin = output.name
            new = w.add("Identity", [new])
        wanted[output.name] = new
        if new != output.name:
            back[new] = output.name
    needs, kept = set(wanted.values()), list[NodeProto]()
    for node in reversed(w.nodes):
        if any(o in needs for o in node.output):
            kept.append(node)
            needs.update([*node.input, *captures(node)])
    kept.reverse()
    made = {o for node in kept for o in node.output}
    for old, new in w.renamed.items():
        if new in made and new in w.origins and old not in made:
            back.setdefault(new, old)
    clash = {old: f"{old}/whole" for old in back.values() if old in made}
    found = []
    for node in kept:
        copy = NodeProto()
        copy.CopyFrom(node)
        for names in (copy.input, copy.output):
            for i, name in enumerate(names):
                names[i] = back.get(name, clash.get(name, name))
        found.append(copy)
    return found


def label(node: NodeProto) -> str:
    """What a node goes by: its name, or its first output."""
    return node.name or next((o for o in node.output if o), "")


def _few(proto: onnx.TensorProto) -> bool:
    return int(np.prod(proto.dims)) <= 64 and proto.data_type in (6, 7)


def _held(nodes: Sequence[NodeProto]) -> dict[str, np.ndarray]:
    return {node.output[0]: value for node in nodes if (value := constant(node)) is not None and value.size <= 64}
