"""Work by layer, before and after, at the rate at which it is needed.

In: the trees of both graphs (`fold`) and what each node takes. Out: a dozen layers with their work by rate. A layer is
a group of the tree, the rest of one, or a single node; every node is in exactly one layer, so that layers add up to
the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mari_onnx.report.groups import Group, Item

RATES = ("build", "request", "item", "candidate")
"""Who changes what a node computes: nobody (weights and sizes alone), the user, the item, both together."""
MOST = 12
"""Layers at most: groups are taken apart while there are fewer."""
LARGE, SMALL, NODE = 0.12, 0.02, 0.08
"""Share of the work from which on a group is taken apart, and from which on a group or a node in it is a layer."""


@dataclass(frozen=True)
class Work:
    """What a node takes: `rate` is one of `RATES`; `flops` per candidate; `seconds` of a run; its `source` node."""

    rate: str
    flops: float
    seconds: float
    source: int | None = None


@dataclass
class Layer:
    """One line of the chart.

    Attributes:
        name: of the group or node. key: of the group. node: of the source, if the layer is one node.
        before, after: work in FLOPs and seconds by rate, in the order of `RATES`.
    """

    name: str
    key: int | None = None
    node: int | None = None
    before: dict[str, list[float]] = field(default_factory=lambda: _nothing())
    after: dict[str, list[float]] = field(default_factory=lambda: _nothing())


def _nothing() -> dict[str, list[float]]:
    return {"flops": [0.0] * len(RATES), "seconds": [0.0] * len(RATES)}


def layers(
    tree: Group,
    before: Sequence[Work],
    other: Group | None,
    after: Sequence[Work],
    names: Sequence[str],
) -> list[Layer]:
    """The layers of a model, in the order of its graph; those that take nothing are left out.

    Args:
        tree: of the source. before: of each of its nodes. names: of its nodes.
        other: of the output, with the keys of `tree`; None where there is none. after: of each of its nodes.
    """
    weight = _Weights(tree, before, other, after)
    groups, nodes = _chosen(tree, weight)
    found: dict[tuple[str, int | None], Layer] = {}
    for key, group in groups.items():
        times = f"{group.times} × " if group.times else ""
        found["group", key] = Layer(times + (group.title or group.name), key=key)
    for node in nodes:
        found["node", node] = Layer(names[node], node=node)
    order: dict[int, Layer] = {}
    for graph, work, side in ((tree, before, "before"), (other, after, "after")):
        for node, path in _paths(graph):
            own = node if side == "before" else work[node].source
            lone = own is not None and own in nodes
            layer = found["node", own] if lone else found["group", next(k for k in path if k in groups)]
            order.setdefault(id(layer), layer)
            figures = getattr(layer, side)
            figures["flops"][RATES.index(work[node].rate)] += work[node].flops
            figures["seconds"][RATES.index(work[node].rate)] += work[node].seconds
    return [layer for layer in order.values() if any(map(sum, (*layer.before.values(), *layer.after.values())))]


def _paths(tree: Group | None) -> Iterable[tuple[int, list[int]]]:
    """Each node with the keys of the groups around it, innermost first."""
    stack: list[tuple[Item, list[int]]] = [(tree, [])] if tree is not None else []
    while stack:
        item, path = stack.pop()
        if isinstance(item, Group):
            inner = [item.key, *path]
            stack += [(each, inner) for each in reversed(item.items)]
        else:
            yield item, path


class _Weights:
    """How much of the work a group or a node of the source is: of FLOPs or time, before or after, the largest share."""

    def __init__(self, tree: Group, before: Sequence[Work], other: Group | None, after: Sequence[Work]):
        self._groups: dict[int, float] = {}
        self._nodes: dict[int, float] = {}
        for graph, work in ((tree, before), (other, after)):
            for what in ("flops", "seconds"):
                groups: dict[int, float] = {}
                nodes: dict[int, float] = {}
                whole = sum(getattr(each, what) for each in work) or 1.0
                for node, path in _paths(graph):
                    share = getattr(work[node], what) / whole
                    own = node if graph is tree else work[node].source
                    for key in path:
                        groups[key] = groups.get(key, 0.0) + share
                    if own is not None:
                        nodes[own] = nodes.get(own, 0.0) + share
                _raise(self._groups, groups)
                _raise(self._nodes, nodes)

    def __call__(self, item: Item) -> float:
        return (self._groups if isinstance(item, Group) else self._nodes).get(
            item.key if isinstance(item, Group) else item, 0.0
        )


def _raise(whole: dict[int, float], more: Mapping[int, float]) -> None:
    for key, value in more.items():
        whole[key] = max(whole.get(key, 0.0), value)


def _has_name(group: Group) -> bool:
    return bool(group.place or any(isinstance(each, Group) and each.place for each in group.items))


def _chosen(tree: Group, weight: _Weights) -> tuple[dict[int, Group], set[int]]:
    """Groups and single nodes that are layers: all heavy groups of a level are taken apart, then those in them."""
    groups, nodes = {tree.key: tree}, set[int]()
    named = any(group.place for group in tree.groups())
    level = [tree]
    while level:
        parts: list[Item] = []
        for group in level:
            heavy = [each for each in group.items if weight(each) >= (SMALL if isinstance(each, Group) else NODE)]
            # Nodes and stretches say nothing beside modules.
            parts += [each for each in heavy if not named or (isinstance(each, Group) and _has_name(each))]
        if len(groups) + len(nodes) + len(parts) > MOST + len(level):
            if level != [tree]:
                break
            parts = sorted(parts, key=weight)[-MOST:]
        nodes.update(each for each in parts if isinstance(each, int))
        inner = [each for each in parts if isinstance(each, Group)]
        groups.update({each.key: each for each in inner})
        level = [each for each in inner if each.kind not in ("alike", "block") and weight(each) >= LARGE]
    return groups, nodes
