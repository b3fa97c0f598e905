"""Small tables of embeddings are multiplied at build time, and the products are looked up.

T: a constant table; i: an index; W: a constant matrix, whose rows are W_t and W_x; c: what is added to the product.

    [T[i] | x] W + c  =  x W_x + (T W_t + c)[i]       where c has one row: a bias, or the user's part
                      =  x W_x + ((T W_t)[i] + c)     where it has a row per candidate
    T[i] W + c        =  (T W_t + c)[i], likewise; and as in the first line, where c is another product x W_x + c'

Conditions: T has two axes, and rows are looked up along the first; nothing but views stands between the look-up and
the product, and they keep rows whole; the multiplied table has at most `LARGEST` elements; floats of 32 or 64 bits.

It is done where that takes less time by the prices of kernels: rows that are looked up are as wide as the product, not
as the embedding, and ``T W_t + c`` is computed for each row of the table, once per request. So it pays for wide
embeddings, tables of few rows and narrow layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper

from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Node, Tensor
from mari_onnx.engine.output.assemble import in_order_of_use
from mari_onnx.model.dims import Size
from mari_onnx.model.nodes import attribute, is_standard
from mari_onnx.model.ops import Fact, row
from mari_onnx.prices.kernels import uses
from mari_onnx.prices.table import Prices
from mari_onnx.prices.use import Call

LARGEST = 1 << 16
"""Elements of a multiplied table. A larger one does not stay in a core's own cache."""
GAIN = 0.005
"""Share of a run's time that has to be saved."""
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)


def with_multiplied_tables(
    b: Builder,
    nodes: list[Node],
    outputs: Sequence[Tensor],
    prices: Prices,
    weights: Mapping[int, float],
    apart: Collection[str] = (),
) -> tuple[list[Node], dict[str, str]]:
    """The nodes, with products of tables computed at build time where that takes less time. And for each source node
    whose product this was, what to say of it.

    nodes: in an order in which they can run, and so is the result. Products are changed in place. weights: N -> how
    much its time counts. apart: source nodes whose products stay.
    """
    tables = _Tables(b, nodes, outputs, prices, weights)
    for node in nodes:
        if node.origin not in apart and node.product not in apart:
            tables.rewrite(node)
    return (in_order_of_use([*tables.new, *nodes], outputs) if tables.notes else nodes), tables.notes


@dataclass(frozen=True)
class _LookUp:
    """``table[index]``, which is one of the pieces that a product reads, from column ``start`` on."""

    piece: int
    table: Tensor
    index: Tensor
    start: int

    @property
    def width(self) -> int:
        return int(self.table.array.shape[1])


class _Tables:
    def __init__(
        self, b: Builder, nodes: list[Node], outputs: Sequence[Tensor], prices: Prices, weights: Mapping[int, float]
    ):
        self.b, self.prices, self.weights = b, prices, weights
        self.made = {t.name: node for node in nodes for t in node.outputs}
        self.new: list[Node] = []
        """Nodes that products read now, each behind those that it reads."""
        self.notes: dict[str, str] = {}
        """Source node -> what was done with it."""
        self.readers: dict[str, int] = {t.name: 1 for t in outputs}
        self._count(nodes, 1)
        self.times = {n: self._seconds(nodes, n) for n in self.weights}

    def rewrite(self, node: Node) -> None:
        """Takes the look-ups that pay out of this product, those of the widest embeddings first."""
        again = True
        while again and _is_product(node):
            found = sorted(self._look_ups(node), key=lambda each: -each.width)
            again = any(self._without(node, each) for each in found)

    def _look_ups(self, node: Node) -> Iterator[_LookUp]:
        x, y = node.inputs[0], node.outputs[0]
        assert x is not None
        start = 0
        for k, t in enumerate(self._pieces(x)):
            width = t.known[-1]
            if not isinstance(width, int):
                return
            node_before = self.made.get(t.name)
            while node_before is not None and _keeps_rows(node_before, width):
                assert node_before.inputs[0] is not None
                node_before = self.made.get(node_before.inputs[0].name)
            found = node_before.inputs if node_before is not None and _is_look_up(node_before) else ()
            columns, rows = y.known[-1], x.known[:-1]
            if len(found) == 2 and found[0] is not None and found[1] is not None:
                table, index = found[0], found[1]
                entries = table.known[0]  # before a large table is read
                fits = isinstance(columns, int) and isinstance(entries, int) and 0 < entries * columns <= LARGEST
                told = index.known == rows or sum(not isinstance(s, int) for s in rows) <= 1
                if fits and told and 0 not in rows:
                    yield _LookUp(k, table, index, start)
            start += width

    def _pieces(self, x: Tensor) -> list[Tensor]:
        """What is joined along the last axis, or the tensor itself."""
        node = self.made.get(x.name)
        if node is None or node.proto.op_type != "Concat" or not is_standard(node.proto):
            return [x]
        found = [t for t in node.inputs if t is not None]
        along = attribute(node.proto, "axis", 0) in (-1, len(x.known) - 1)
        return found if along and all(t.shape for t in found) else [x]

    def _without(self, node: Node, look_up: _LookUp) -> bool:
        """Takes this look-up out of the product, if that takes less time."""
        made = self._instead(node, look_up)
        new = self._new(made)
        old = self._only_for(node, [*new, made])
        if self._saved([*old, node], [*new, made]) < GAIN:
            return False
        self._count([*old, node], -1)
        node.proto, node.inputs = made.proto, made.inputs
        self._count([*new, node], 1)
        for each in old:
            for t in each.outputs:
                del self.made[t.name]
        self.made |= {t.name: each for each in new for t in each.outputs}
        self.new += new
        rows = f"{len(look_up.table.array)} rows of the table {look_up.table.name!r} are multiplied at build time"
        name = node.product or node.origin
        self.notes[name] = f"{self.notes[name]}; {rows}" if name in self.notes else rows
        return True

    def _count(self, nodes: Sequence[Node], by: int) -> None:
        for node in nodes:
            for t in [*node.inputs, *node.captured]:
                if t is not None:
                    self.readers[t.name] = self.readers.get(t.name, 0) + by

    def _instead(self, node: Node, look_up: _LookUp) -> Node:
        """What the product becomes without this piece. Nodes that it reads are written."""
        b, (x, w), y = self.b, node.inputs[:2], node.outputs[0]
        c = node.inputs[2] if len(node.inputs) > 2 else None
        assert x is not None
        assert w is not None
        pieces = [t for k, t in enumerate(self._pieces(x)) if k != look_up.piece]
        other = self.made.get(c.name) if c is not None and not pieces else None
        if other is not None and not (
            _is_gemm(other) and other.outputs[0].shape == y.shape and self.readers[other.outputs[0].name] == 1
        ):
            other = None
        if other is not None:
            c = other.inputs[2] if len(other.inputs) > 2 else None
        once = c is not None and all(size == 1 for size in c.known[:-1])
        matrix = w.array.T if attribute(node.proto, "transB", 0) else w.array
        taken = slice(look_up.start, look_up.start + look_up.width)
        with b.named(), np.errstate(all="ignore"):  # a table may hold infinities
            b.origin = b.label = node.origin
            table = look_up.table.array.astype(np.float64) @ matrix[taken].astype(np.float64)
            multiplied = b.const(table.astype(matrix.dtype))
            if c is not None and once:
                multiplied = emit.binary(b, "Add", multiplied, c)
            read = [multiplied, emit.reshape(b, look_up.index, x.known[:-1])]
            if other is None and not pieces and (c is None or once):
                return _as(node, "Gather", read, axis=0)
            rows = b.emit("Gather", read, y.known, attrs={"axis": 0})
            if other is None and not pieces:
                return _as(node, "Add", [rows, c])
            if c is not None and not once:
                rows = emit.binary(b, "Add", rows, c)
            if other is not None:
                return _as(node, "Gemm", [*other.inputs[:2], rows], transB=attribute(other.proto, "transB", 0))
            rest = emit.concat(b, pieces, len(x.known) - 1)
            others = b.const(np.delete(matrix, np.r_[taken], axis=0))
            if len(x.known) == 2:
                return _as(node, "Gemm", [rest, others, rows])
            return _as(node, "Add", [emit.matmul(b, rest, others), rows])

    def _new(self, made: Node) -> list[Node]:
        """The nodes before this one that the graph does not have yet, each behind those that it reads."""
        found: dict[int, Node] = {}
        stack = [made]
        while stack:
            for t in stack.pop().inputs:
                if t is not None and t.node is not None and t.name not in self.made:
                    found[t.node.index] = t.node
                    stack.append(t.node)
        return [found[index] for index in sorted(found)]

    def _only_for(self, node: Node, instead: Sequence[Node]) -> list[Node]:
        """The nodes before this one that nobody needs if it reads what these read."""
        self._count(instead, 1)
        left = dict(self.readers)
        self._count(instead, -1)
        found: list[Node] = []
        stack = [node]
        while stack:
            last = stack.pop()
            for t in [*last.inputs, *last.captured]:
                if t is None:
                    continue
                left[t.name] -= 1
                before = self.made.get(t.name)
                if before is not None and not any(left.get(each.name, 0) for each in before.outputs):
                    found.append(before)
                    stack.append(before)
        return found

    def _saved(self, old: Sequence[Node], new: Sequence[Node]) -> float:
        """What the new nodes save, as a share of a run's time, over the numbers of candidates."""
        total = sum(
            weight * (self._seconds(old, n) - self._seconds(new, n)) / self.times[n]
            for n, weight in self.weights.items()
        )
        return total / sum(self.weights.values())

    def _seconds(self, nodes: Sequence[Node], n: int) -> float:
        time = TimeModel(n).of_several() if self.b.time.several else TimeModel(n)

        def concrete(t: Tensor | None) -> tuple[int, ...] | None:
            return None if t is None or t.shape is None else tuple(map(time.length, t.shape))

        total = 0.0
        for node in nodes:
            ins = [concrete(t) for t in node.inputs]
            outs = [concrete(t) for t in node.outputs]
            call = Call(node.proto, ins, outs, [t is not None and t.const for t in node.inputs])
            total += sum(self.prices.seconds(use) for use in uses(call))
        return total


def _as(node: Node, op: str, inputs: Sequence[Tensor | None], **attributes: int) -> Node:
    """Another operator in place of this one, with the same result."""
    proto = NodeProto(op_type=op, name=node.proto.name, output=[node.outputs[0].name])
    proto.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return Node(proto, list(inputs), node.outputs, node.origin, [])


def _is_product(node: Node) -> bool:
    """Whether this is ``x W``, perhaps with something added, of floats and a constant matrix."""
    if not is_standard(node.proto) or Fact.MATMUL not in row(node.proto.op_type).facts:
        return False
    x, w = node.inputs[:2]
    if x is None or w is None or x.shape is None or len(x.shape) < 2 or w.shape is None or len(w.shape) != 2:
        return False
    if not w.const or w.dtype not in FLOATS or x.dtype != w.dtype or node.outputs[0].shape is None:
        return False
    c = node.inputs[2] if len(node.inputs) > 2 else None
    plain = not attribute(node.proto, "transA", 0) and attribute(node.proto, "alpha", 1.0) == 1.0
    return plain and (c is None or (c.shape is not None and attribute(node.proto, "beta", 1.0) == 1.0))


def _is_gemm(node: Node) -> bool:
    return node.proto.op_type == "Gemm" and _is_product(node)


def _keeps_rows(node: Node, width: Size) -> bool:
    """Whether this is a view that leaves stretches of ``width`` elements together."""
    x = node.inputs[0]
    view = is_standard(node.proto) and Fact.VIEW in row(node.proto.op_type).facts
    return view and x is not None and bool(x.shape) and x.known[-1] == width


def _is_look_up(node: Node) -> bool:
    """Whether this takes rows of a constant table of two axes."""
    if not is_standard(node.proto) or node.proto.op_type != "Gather" or attribute(node.proto, "axis", 0) != 0:
        return False
    table, index = node.inputs
    return table is not None and table.const and len(table.known) == 2 and index is not None and index.shape is not None
