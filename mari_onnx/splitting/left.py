"""What score.onnx still computes of the item alone, and why: its time beside that of gathering its results.

In: score.onnx, what it reads of the item, sizes and prices. Out: a `Left` for each group of nodes that read nothing but
items' rows and constants, and for each product that has terms of items among others. What other operators compute of
both sides at once is seen by running only (`mari_onnx.splitting.residual`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx
import numpy as np
import onnx
from onnx import NodeProto, helper

from mari_onnx.engine.cost.flops import node_costs
from mari_onnx.model.nodes import attribute, reads
from mari_onnx.model.ops import Fact, row
from mari_onnx.prices.table import Prices, node_seconds
from mari_onnx.prices.use import Use
from mari_onnx.splitting.caller import handing_seconds, one_more_input

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Left:
    """Work on the item alone that is done for each request.

    Attributes:
        nodes: names; of one without a name its first output. ops: their operators.
        share: of score.onnx's FLOPs, 0 to 1.
        seconds: of these nodes in a request, estimated.
        gather_seconds: what gathering their results takes, and adding them where they are terms of something, less that
            of rows which only they read; None where a result has no row for each item, so that it cannot be made
            beforehand.
    """

    nodes: tuple[str, ...]
    ops: tuple[str, ...]
    share: float
    seconds: float
    gather_seconds: float | None

    @property
    def text(self) -> str:
        """In words."""
        what = f"{', '.join(dict.fromkeys(self.ops))} ({self.nodes[-1]}, {self.share:.1%} of the FLOPs)"
        return f"{what}: {_why(self.seconds, self.gather_seconds)}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        gather = None if self.gather_seconds is None else 1e6 * self.gather_seconds
        return {"nodes": list(self.nodes), "ops": list(self.ops), "share": self.share,
                "us": 1e6 * self.seconds, "gather_us": gather, "why": self.text}  # fmt: skip


class Rest:
    """What score.onnx computes of the item.

    Args:
        items: inputs that are items' rows. shapes: sizes of all tensors with so many candidates.
        half: results would be handed over in half precision.
    """

    def __init__(
        self, score: onnx.ModelProto, items: Collection[str], shapes: Shapes, prices: Prices, candidates: int,
        half: bool = False,
    ):  # fmt: skip
        self._graph, self._shapes, self._prices, self._n = score.graph, shapes, prices, candidates
        self._item, self._items = _Item(score.graph, items, shapes), items
        self._width = {**self._item.width, "": 2 if half else 4}
        self._flops = [cost.flops for _, cost in node_costs(score.graph, shapes)]
        self._seconds = [each for _, each in node_seconds(score.graph, shapes, prices)]
        self.left = self._left()

    def why(self, name: str, share: float) -> str:
        """Why a node is there, of whose work this share was measured to be on the item alone."""
        if any(name in each.nodes for each in self.left):
            return "listed above"
        k = next((k for k, node in enumerate(self._graph.node) if (node.name or node.output[0]) == name), None)
        if k is None:
            return ""
        gather = self._gathering(self._graph.node[k].output[:1])
        seconds = share * self._seconds[k]
        kept = "" if gather is None or seconds <= gather else ", which is not taken apart"
        return f"in one operator with what depends on the user{kept}: {_why(seconds, gather)}"

    def _left(self) -> list[Left]:
        """Most FLOPs first."""
        found = [
            self._entry(group, sum(self._seconds[k] for k in group), sum(self._flops[k] for k in group))
            for group in self._item.groups
        ]
        for x, places in self._item.terms.items():
            sizes = [math.prod(self._shapes.get(self._graph.node[k].output[0], ())) for k in places]
            add = sum(self._prices.seconds(Use("Add", {"node": 1, "elements": size})) for size in sizes)
            seconds, flops = (sum(each[k] for k in places) for each in (self._seconds, self._flops))
            share = self._share(x)
            found.append(self._entry(places, share * seconds, share * flops - sum(sizes), add, self._item.joins.get(x)))
        return sorted((each for each in found if each.share > 0), key=lambda each: -each.share)

    def _share(self, name: str) -> float:
        """The share of the columns of a tensor that are items' alone."""
        if name in self._item.mine:
            return 1.0
        node = self._graph.node[self._item.joins[name]]
        widths = {x: (self._shapes.get(x) or (0,))[-1] for x in node.input}
        return sum(widths[x] for x in widths if x in self._item.mine) / (sum(widths.values()) or 1)

    def _entry(
        self, places: Sequence[int], seconds: float, flops: float, add: float = 0.0, join: int | None = None
    ) -> Left:
        """add: seconds of adding what is gathered to the rest. join: the place of a Concat that only these read."""
        nodes, item = [self._graph.node[k] for k in places], self._item
        made = [x for n in nodes for x in n.output if item.is_read_outside(x, places)]
        only = join is not None and not item.is_read_outside(self._graph.node[join].output[0], places)
        inside = {*places, *((join,) if only else ())}
        alone = [x for x in self._items if x in item.readers and not item.is_read_outside(x, inside)]
        gather = self._gathering(made, alone)
        if gather is not None:
            gather += add
        names, ops = tuple(n.name or n.output[0] for n in nodes), tuple(n.op_type for n in nodes)
        return Left(names, ops, flops / (sum(self._flops) or 1.0), seconds, gather)

    def _gathering(self, more: Sequence[str], less: Collection[str] = ()) -> float | None:
        """How many seconds longer handing over takes with some tensors more and some less; None as in `Left`."""
        if not all(self._n in self._shapes.get(name, ()) for name in more):
            return None
        now = [name for name in self._items if name in self._item.readers]
        inputs = one_more_input(self._prices) * (len(more) - len(less))
        return self._handing([*(x for x in now if x not in less), *more]) - self._handing(now) + inputs

    def _handing(self, names: Sequence[str]) -> float:
        rows, others = list[int](), list[int]()
        for name in names:
            shape = self._shapes.get(name, ())
            size = math.prod(shape) * self._width.get(name, self._width[""])
            (rows if self._n in shape else others).append(size)
        return handing_seconds(rows, others, self._n)


class _Item:
    """Which nodes of a graph read nothing but items' rows and constants.

    mine: tensors that depend on the item alone. groups: places of such nodes, those together whose results or rows only
    they read. joins: result -> place of a Concat along the last axis with some of `mine` beside others. terms: such a
    result, or a tensor of `mine` -> places of products with constants, which add something else in the latter case.
    readers: tensor -> places of nodes, -1 for an output of the graph. width: bytes of an element of each input.
    """

    def __init__(self, graph: onnx.GraphProto, items: Collection[str], shapes: Shapes):
        self._shapes = shapes
        self.readers: dict[str, list[int]] = {o.name: [-1] for o in graph.output}
        self.width = {i.name: _width(i.type.tensor_type.elem_type) for i in graph.input}
        self.joins: dict[str, int] = {}
        self.terms: dict[str, list[int]] = {}
        constants = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        constants -= self.width.keys()
        mine, alone = set(items), list[int]()
        for k, node in enumerate(graph.node):
            inputs = dict.fromkeys(reads(node))
            for x in inputs:
                self.readers.setdefault(x, []).append(k)
            facts = row(node.op_type).facts
            if all(x in constants for x in inputs) and Fact.RANDOM not in facts:
                constants.update(node.output)
            elif Fact.RANDOM in facts or Fact.SIZES in facts:
                continue
            elif all(x in mine or x in constants for x in inputs):
                mine.update(node.output)
                alone.append(k)
            elif node.op_type == "Concat" and any(x in mine for x in inputs) and self._is_last(node):
                self.joins[node.output[0]] = k
            elif Fact.MATMUL in facts and node.input[1] in constants and node.input[0] in {*mine, *self.joins}:
                self.terms.setdefault(node.input[0], []).append(k)
        self.mine, self.groups = mine, self._together(graph.node, alone, mine)

    def _together(self, nodes: Sequence[NodeProto], alone: Sequence[int], mine: Collection[str]) -> list[list[int]]:
        links = networkx.Graph()
        links.add_nodes_from(alone)
        for k in alone:
            # a row that only such nodes read need not be gathered, if all of their results are
            shared = [x for x in reads(nodes[k]) if x in mine and not self.is_read_outside(x, alone)]
            both = [other for x in [*shared, *nodes[k].output] for other in self.readers.get(x, ())]
            links.add_edges_from((k, other) for other in both if other in links)
        return [sorted(group) for group in networkx.connected_components(links)]

    def _is_last(self, node: NodeProto) -> bool:
        rank = len(self._shapes.get(node.output[0], ()))
        return attribute(node, "axis", 0) in (-1, rank - 1)

    def is_read_outside(self, name: str, places: Collection[int]) -> bool:
        """Whether others than these nodes read a tensor."""
        return any(k not in places for k in self.readers.get(name, ()))


def _width(dtype: int) -> int:
    return int(np.dtype(helper.tensor_dtype_to_np_dtype(dtype)).itemsize) if dtype else 0


def _why(seconds: float, gather_seconds: float | None) -> str:
    if gather_seconds is None:
        return "there is no row for each item to hand over"
    took, gather = 1e6 * seconds, 1e6 * gather_seconds
    if took <= gather:
        return f"cheaper to compute than to gather, {took:.1f} us against {gather:.1f} us"
    return f"{took:.1f} us, and to gather the result would take {gather:.1f} us"
