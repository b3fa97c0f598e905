"""Source and output graph as data for a picture: nodes with kinds, shapes, cost, and groups."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mari_onnx.report.kinds import input_kinds, output_kinds
from mari_onnx.report.records import Node
from mari_onnx.report.report import Report, concrete, rounded
from mari_onnx.report.stops import flat, label, source_of

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Rewrite
    from mari_onnx.model.dims import Size

# A folded group opens into about so many.
FEW = 10
# Names may have any number of levels; groups are drawn for the first.
LEVELS = 16
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass
class Group:
    """A folded part of the graph: nodes by position, and further groups."""

    name: str
    nodes: list[int] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "nodes": self.nodes,
            "groups": [each.to_dict() for each in self.groups],
        }


def views(source: onnx.ModelProto, rewrite: Rewrite, report: Report) -> dict[str, Any]:
    """`before`, `after` (None where nothing was changed) and `groups`, JSON-ready.

    A node of either graph is of group `paths[i]`, a list of positions in the tree of groups that
    both share: an output node is where its source node is.
    """
    graph = flat(source)
    by_output = {next(iter(done.outputs), ""): node for done, node in zip(rewrite.nodes, report.nodes, strict=True)}
    tree = grouped([scopes(node) for node in graph.node])
    paths = _paths(tree)
    where = {label(node): paths[i] for i, node in enumerate(graph.node)}
    inputs = input_kinds(report.inputs)
    before = []
    for i, node in enumerate(graph.node):
        told = by_output.get(next(iter(node.output), ""))
        before.append({**_node(node, told), "path": paths[i]})
    answer: dict[str, Any] = {
        "groups": tree.to_dict(),
        "before": _graph(graph, before, rewrite.shapes, inputs, report.candidates),
        "after": None,
    }
    if report.changed:
        output = rewrite.model.graph
        kinds = output_kinds(output, rewrite, report.inputs)
        nodes = {node.name: node for node in report.nodes}
        after = []
        for node, kind in zip(output.node, kinds, strict=True):
            origin = source_of(label(node), nodes)
            told = nodes.get(origin or "")
            own = {**_node(node, told), "kind": kind, "source": origin}
            after.append({**own, "path": where.get(origin or "", [])})
        answer["after"] = _graph(output, after, rewrite.out_shapes, inputs, report.candidates)
    return answer


def _node(node: onnx.NodeProto, told: Node | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": label(node),
        "op": node.op_type,
        "inputs": [x for x in node.input if x],
        "outputs": [x for x in node.output if x],
        "kind": told.kind if told else "Const",
    }
    if told:
        found |= {"action": told.action, "rule": told.rule, "reason": told.reason}
        found |= {"stopped_by": told.stopped_by, "why": told.why}
    return found


def _graph(
    graph: onnx.GraphProto,
    nodes: list[dict[str, Any]],
    shapes: Mapping[str, Sequence[Size]],
    inputs: Mapping[str, str],
    candidates: int,
) -> dict[str, Any]:
    from mari_onnx.engine.cost.flops import node_costs

    costs = node_costs(graph, concrete(shapes, candidates))
    for found, (_, cost) in zip(nodes, costs, strict=True):
        found["flops"] = rounded(cost.flops / candidates)
        found["bytes"] = rounded(cost.bytes / candidates)
    weights = {t.name: list(t.dims) for t in graph.initializer}
    known = {**weights, **{name: [str(d) for d in shape] for name, shape in shapes.items()}}
    used = {x for node in nodes for x in (*node["inputs"], *node["outputs"])}
    return {
        "nodes": nodes,
        "inputs": [{"name": x.name, "kind": inputs[x.name]} for x in graph.input if x.name in inputs],
        "outputs": [x.name for x in graph.output],
        "weights": [name for name in weights if name in used],
        "shapes": {name: shape for name, shape in known.items() if name in used},
    }


def scopes(node: onnx.NodeProto) -> list[str]:
    """The modules that a node is in, outermost first, as its exporter noted them."""
    noted = next((p.value for p in node.metadata_props if p.key == _SCOPES), "")
    if noted:
        try:
            names = [str(x) for x in ast.literal_eval(noted)]
        except (SyntaxError, ValueError):
            names = []
        # Each is the full name of a module: only what it adds to the one before is shown.
        return [x for x in names[:-1] if x][:LEVELS]
    parts = [x for x in node.name.split("/") if x]
    return ["/".join(parts[: i + 1]) for i in range(min(len(parts) - 1, LEVELS))]


def grouped(places: Sequence[Sequence[str]]) -> Group:
    """The tree of groups over nodes 0, 1, ...: by module, and large ones by stretches in order."""
    root = Group("model")
    found: dict[tuple[str, ...], Group] = {(): root}
    for i, place in enumerate(places):
        at = root
        for depth in range(len(place)):
            key = tuple(place[: depth + 1])
            if key not in found:
                found[key] = Group(place[depth])
                at.groups.append(found[key])
            at = found[key]
        at.nodes.append(i)
    return _tidy(root)


def _tidy(group: Group) -> Group:
    """Without groups of one, and with stretches where there would be too many nodes beside."""
    group.groups = [_tidy(each) for each in group.groups]
    for each in [g for g in group.groups if len(g.nodes) + len(g.groups) == 1]:
        group.groups.remove(each)
        group.nodes += each.nodes
        group.groups += each.groups
    group.nodes.sort()
    if not group.nodes and len(group.groups) == 1:
        return group.groups[0]
    while len(group.nodes) > FEW or len(group.groups) > FEW:
        nodes, groups = group.nodes, group.groups
        if len(nodes) > FEW:
            groups = groups + [Group(f"nodes {part[0] + 1} to {part[-1] + 1}", part) for part in _parts(nodes)]
            group.nodes = []
        else:
            groups = [Group(_span(part), [], part) for part in _parts(groups)]
        group.groups = groups
    return group


def _span(groups: Sequence[Group]) -> str:
    return f"{groups[0].name.split(' to ')[0]} to {groups[-1].name.split(' to ')[-1]}"


def _parts(whole: list[Any]) -> list[list[Any]]:
    """As few parts of at most `FEW` as there can be, of about one length."""
    count = -(-len(whole) // FEW)
    ends = [round(i * len(whole) / count) for i in range(count + 1)]
    return [whole[a:b] for a, b in itertools.pairwise(ends)]


def _paths(tree: Group) -> list[list[int]]:
    """For each node the way to its group: the position in each group's `groups`."""
    found: dict[int, list[int]] = {}
    stack: list[tuple[Group, list[int]]] = [(tree, [])]
    while stack:
        group, path = stack.pop()
        found.update(dict.fromkeys(group.nodes, path))
        stack += [(each, [*path, i]) for i, each in enumerate(group.groups)]
    return [found[i] for i in range(len(found))]
