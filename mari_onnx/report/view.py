"""Source and output graph as data for the page: nodes with rates and costs, groups, and work by layer.

Sentences that occur often are in one list, `strings`, and are told by their position there; nodes, tensors and groups
likewise. A graph of 10,000 nodes is then about 2 MB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mari_onnx.model.ops import Fact, having
from mari_onnx.report.fold import Folder
from mari_onnx.report.groups import Group
from mari_onnx.report.kinds import input_kinds, once, output_kinds, source_kinds
from mari_onnx.report.layers import RATES, Layer, Work, layers
from mari_onnx.report.report import PRODUCTS, Report, concrete, rounded
from mari_onnx.report.scopes import scopes, settled
from mari_onnx.report.stops import flat, label, source_of

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Rewrite
    from mari_onnx.model.dims import Size

_RATE_OF = {"Const": "build", "Shared": "request", "Item": "item", "Mixed": "candidate"}
_QUIET = having(Fact.MOVES) | having(Fact.VIEW) | having(Fact.SIZES)


@dataclass(frozen=True)
class View:
    """What the page shows of a rewrite.

    Attributes:
        data: JSON-ready: `strings`, `groups`, `before`, `after` (None where nothing was changed), `layers`.
        seconds: of a run of source and output by the prices of one CPU thread; None where sizes are not known.
    """

    data: dict[str, Any]
    seconds: tuple[float, float] | None


class _Strings:
    """Texts by their position in a list."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}

    def __call__(self, text: str | None) -> int:
        return -1 if text is None else self._index.setdefault(text, len(self._index))

    def __iter__(self) -> Any:
        return iter(self._index)


class _Graph:
    """One graph with what each node takes and at what rate it is needed.

    Args:
        kinds: of each node (`report.kinds`). single: whether it runs once per request; None where each runs per
            candidate, whatever it depends on. origins: for each node the position of its source node.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        shapes: Mapping[str, Sequence[Size]],
        candidates: int,
        kinds: Sequence[str],
        single: Sequence[bool] | None,
        origins: Sequence[int | None],
    ):
        from mari_onnx.engine.cost.flops import node_costs

        self.graph, self.shapes, self.candidates = graph, shapes, candidates
        sizes = concrete(shapes, candidates)
        self.costs = [cost * (1 / candidates) for _, cost in node_costs(graph, sizes)]
        self.known = all(x.output[0] in shapes for x in graph.node if x.op_type in PRODUCTS)
        seconds = _seconds(graph, sizes) if self.known else [0.0] * len(graph.node)
        self.rates = [_RATE_OF.get(kind, "candidate") for kind in kinds]
        if single is not None:  # what depends on the user alone and yet has N rows runs per candidate
            self.rates = [
                "candidate" if rate == "request" and not alone else rate
                for rate, alone in zip(self.rates, single, strict=True)
            ]
        self.work = [
            Work(rate, cost.flops, time, origin)
            for rate, cost, time, origin in zip(self.rates, self.costs, seconds, origins, strict=True)
        ]

    @property
    def seconds(self) -> float:
        """Of one run, by the prices of one CPU thread."""
        from mari_onnx.prices.table import load, run_seconds

        return run_seconds(len(self.graph.input), load()) + sum(each.seconds for each in self.work)

    def folder(self) -> Folder:
        nodes = self.graph.node
        tokens = [(x.domain, x.op_type, self.text(x.output[0]), r) for x, r in zip(nodes, self.rates, strict=True)]
        telling = [x.op_type not in _QUIET and rate != "build" for x, rate in zip(nodes, self.rates, strict=True)]
        weights = [c.flops + (1 if tells else 0.001) for c, tells in zip(self.costs, telling, strict=True)]
        return Folder(tokens, [x.op_type for x in nodes], weights, self.rates)

    def text(self, tensor: str) -> str | None:
        """The shape of a tensor: `[N, 16]`."""
        shape = self.shapes.get(tensor)
        return None if shape is None else f"[{', '.join(map(str, shape))}]"

    def to_dict(self, tree: Group, inputs: Mapping[str, str], strings: _Strings) -> dict[str, Any]:
        """Columns by node and by tensor. inputs: the kind of each."""
        nodes = self.graph.node
        weights = {t.name: list(t.dims) for t in self.graph.initializer}
        tensors: dict[str, int] = {}

        def number(name: str) -> int:
            return tensors.setdefault(name, len(tensors))

        reads = [[number(x) for x in node.input if x] for node in nodes]
        makes = [[number(x) for x in node.output if x] for node in nodes]
        given = [x.name for x in self.graph.input if x.name in inputs]
        ends = [number(x.name) for x in self.graph.output]
        sides = [RATES.index(_RATE_OF[inputs[name]]) for name in given]
        starts = [number(name) for name in given]
        parents = {
            each.key: group.key for group in tree.groups() for each in group.items if isinstance(each, Group)
        }
        around = {node: group.key for group in tree.groups() for node in group.items if isinstance(node, int)}
        shapes = [str(weights[x]) if x in weights else self.text(x) for x in tensors]
        return {
            "names": [label(node) for node in nodes],
            "ops": [strings(node.op_type) for node in nodes],
            "rates": "".join(str(RATES.index(rate)) for rate in self.rates),
            "flops": [rounded(cost.flops) for cost in self.costs],
            "bytes": [rounded(cost.bytes) for cost in self.costs],
            "micros": [float(f"{each.seconds * 1e6:.3g}") for each in self.work],
            "sources": [-1 if each.source is None else each.source for each in self.work],
            "reads": reads,
            "makes": makes,
            "around": [around[i] for i in range(len(nodes))],
            "parents": [[key, parent] for key, parent in parents.items()],
            "inputs": [[tensor, rate] for tensor, rate in zip(starts, sides, strict=True)],
            "outputs": ends,
            "tensors": list(tensors),
            "shapes": [strings(shape) for shape in shapes],
            "weights": [k for x, k in tensors.items() if x in weights],
        }


def view(source: onnx.ModelProto, rewrite: Rewrite, report: Report) -> View:
    """What the page shows; an output node is in the groups of its source node."""
    graph = flat(source)
    n = report.candidates
    kinds = _kinds(graph, source_kinds(graph, rewrite), input_kinds(report.inputs))
    before = _Graph(graph, rewrite.shapes, n, kinds, None, [None] * len(graph.node))
    tree = before.folder().fold(scopes(graph.node), _reads(graph))
    count = _number(tree, 0)
    strings, inputs = _Strings(), input_kinds(report.inputs)
    data: dict[str, Any] = {
        "before": before.to_dict(tree, inputs, strings) | _told(graph, rewrite, report, strings),
        "after": None,
    }
    after, other = None, None
    if report.changed:
        after, other = _after(graph, tree, rewrite, report)
        _number(other, count)
        data["after"] = after.to_dict(other, inputs, strings)
    found = layers(tree, before.work, other, after.work if after else [], [label(node) for node in graph.node])
    timed = before.known and (after is None or after.known)
    groups = {group.key: group for each in (tree, other) if each for group in each.groups()}
    data["layers"] = [_layer(each, timed) for each in found]
    data["groups"] = [
        {"name": g.name, "title": g.title, "kind": g.kind, "times": g.times} for _, g in sorted(groups.items())
    ]
    data["strings"] = list(strings)
    return View(data, (before.seconds, (after or before).seconds) if timed else None)


def _after(graph: onnx.GraphProto, tree: Group, rewrite: Rewrite, report: Report) -> tuple[_Graph, Group]:
    """The output, and its nodes in the groups of the source."""
    output = rewrite.model.graph
    index = {label(node): i for i, node in enumerate(graph.node)}
    told = {node.name: node for node in report.nodes}
    names = [source_of(label(node), told) for node in output.node]
    origins = [None if name is None else index.get(name) for name in names]
    feeds = _products_before(graph)
    for k, (node, origin) in enumerate(zip(output.node, origins, strict=True)):
        if origin is not None and node.op_type in PRODUCTS:  # a sum or a factor behind a product has joined it
            origins[k] = feeds.get(origin, origin)
    kinds = output_kinds(output, rewrite, report.inputs)
    single = once(output, rewrite.out_shapes, report.inputs)
    after = _Graph(output, rewrite.out_shapes, report.candidates, kinds, single, origins)
    where = _paths(tree)
    paths = settled(output.node, [None if i is None else where[i] for i in origins])
    made = [None if i is None else f"{graph.node[i].op_type} {label(graph.node[i])}" for i in origins]
    return after, after.folder().graft(tree, paths, made)


def _kinds(graph: onnx.GraphProto, told: Sequence[str], inputs: Mapping[str, str]) -> list[str]:
    """The kinds of a source's nodes; of one that the engine has dropped as a constant, those of what it reads."""
    kinds = dict(inputs)
    found = []
    for node, kind in zip(graph.node, told, strict=True):
        if kind == "Const" and node.op_type not in having(Fact.SIZES):
            reads = {kinds.get(x, "Const") for x in node.input} - {"Const"}
            kind = "Mixed" if len(reads) > 1 else next(iter(reads), "Const")
        kinds.update(dict.fromkeys(node.output, kind))
        found.append(kind)
    return found


def _reads(graph: onnx.GraphProto) -> list[list[int]]:
    """For each node the positions of the nodes whose results it reads."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    return [[makers[name] for name in node.input if name in makers] for node in graph.node]


def _products_before(graph: onnx.GraphProto) -> dict[int, int]:
    """Nodes that are no products -> the product whose result they read."""
    made: dict[str, int] = {}
    found: dict[int, int] = {}
    for i, node in enumerate(graph.node):
        if node.op_type in PRODUCTS:
            made.update(dict.fromkeys(node.output, i))
        else:
            found.update((i, made[x]) for x in node.input if x in made)
    return found


def _number(tree: Group, first: int) -> int:
    """Gives each group without a number its own, from `first` on; the next one that is free."""
    for group in tree.groups():
        if group.key < 0:
            group.key, first = first, first + 1
    return first


def _paths(tree: Group) -> dict[int, tuple[int, ...]]:
    """For each node the keys of the groups around it, outermost first, without the root's."""
    paths: dict[int, tuple[int, ...]] = {tree.key: ()}
    found: dict[int, tuple[int, ...]] = {}
    for group in tree.groups():
        for each in group.items:
            if isinstance(each, Group):
                paths[each.key] = (*paths[group.key], each.key)
            else:
                found[each] = paths[group.key]
    return found


def _seconds(graph: onnx.GraphProto, sizes: Mapping[str, tuple[int, ...]]) -> list[float]:
    from mari_onnx.prices.table import load, node_seconds

    return [seconds for _, seconds in node_seconds(graph, sizes, load())]


def _told(graph: onnx.GraphProto, rewrite: Rewrite, report: Report, strings: _Strings) -> dict[str, Any]:
    """What became of each source node, and why not more."""
    nodes = {next(iter(done.outputs), ""): node for done, node in zip(rewrite.nodes, report.nodes, strict=True)}
    told = [nodes.get(next(iter(node.output), "")) for node in graph.node]
    index = {label(node): i for i, node in enumerate(graph.node)}
    return {
        **{
            key: [-1 if node is None else strings(getattr(node, field)) for node in told]
            for key, field in (("actions", "action"), ("rules", "rule"), ("reasons", "reason"), ("whys", "why"))
        },
        "stops": [-1 if node is None else index.get(node.stopped_by or "", -1) for node in told],
    }


def _layer(layer: Layer, timed: bool) -> dict[str, Any]:
    def figures(of: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        flops = [rounded(x) for x in of["flops"]]
        return {"flops": flops, **({"micros": [float(f"{x * 1e6:.4g}") for x in of["seconds"]]} if timed else {})}

    own = {"name": layer.name, "group": layer.key, "node": layer.node}
    return own | {"before": figures(layer.before), "after": figures(layer.after)}
