"""A look ahead in the source: whether an output reads the rows of an attention that its mask leaves nothing.

    tokens = [history | items],  pad = Equal(ids, 0) of the history,  weights = Softmax(Where(pad[k] or k > q, -1e9, s))

A row q that is masked throughout spreads evenly over all columns, those of the items too, so the user's rows depend on
the candidates. Such a row is a padded one (pad[q] = 1: else its own entry is not masked), and what is computed from it
is in padded rows only, as long as others give padded columns a weight of exactly 0. If no output reads a padded row,
any number will do there: the softmax may take the columns without weight out of all rows.

`Attentions` tells of each Softmax, from what its mask is for each setting of its bits (`bits`) and from how large the
scores can be (`bounds`, here of the source): rows whose bit ``rows`` is 0 have an entry above ``floor``; in them,
columns whose bit ``columns`` is 1 weigh exactly 0. `Flow` follows the padded rows (garbage) from there to the outputs:
an element may be garbage if one of the bits in its slots is 1. Garbage is finite: scores and values of the source are,
and operators that may make another thing of them are not passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto

from mari_onnx.engine.analysis.magnitude import EXP_RANGE
from mari_onnx.engine.lookahead.bounds import Sourced, sliced
from mari_onnx.engine.lookahead.mask_tables import (
    MOVES,
    TRIPS,
    Slots,
    Table,
    Tables,
    forget,
    pick,
    possible,
    union,
    ways,
)
from mari_onnx.engine.lookahead.shapes import Inputs, integers, needed, shapes
from mari_onnx.engine.lookahead.taint import Flow
from mari_onnx.model.nodes import attribute, graphs, is_standard
from mari_onnx.model.ops import Fact, having

COUNTS = (2, 3)
"""Numbers of candidates at which it is proven; what is computed from the number itself is not known (`forget`)."""
DEPTH = 16
"""Operators between a mask and the scores."""
LARGEST = 1e20
"""Scores beyond it may be lost beside a mask of the lowest number of a type."""
CLEAR = 0.02
"""What rounding of a mask and of scores may come to, as a share."""
TYPES = (np.dtype(np.float32), np.dtype(np.float64))


class Unread:
    """The softmaxes of a graph whose rows that are masked throughout no output reads, looked for when first asked."""

    def __init__(self, graph: onnx.GraphProto, inputs: Inputs, opset: int):
        self.graph, self.inputs, self.opset = graph, inputs, opset
        self._floors: dict[str, float] | None = None

    @property
    def floors(self) -> Mapping[str, float]:
        """By output of the softmax, what a score of each row is at least, but for rows that no output reads.

        In rows that an output reads, the numbers of all others never count.
        """
        if self._floors is None:
            try:
                self._floors = self._look()
            except TRIPS:
                self._floors = {}
        return self._floors

    def _look(self) -> dict[str, float]:
        nodes = sliced(needed(self.graph), integers(self.graph))
        inner = _inner(nodes)
        sized = [shapes(self.graph, nodes, self.inputs, count, self.opset) for count in COUNTS]
        found = []
        both = [Tables(self.graph, nodes, here, self.opset) for here in sized]
        forget(nodes, *both)
        for i, tables in enumerate(both):
            sourced = Sourced(self.graph, nodes, tables.shapes, both[1 - i].shapes, tables)
            facts = {}
            for node in nodes:
                if node.op_type == "Softmax" and is_standard(node) and node.output[0] not in inner:
                    fact = Attention.of(node, tables, sourced, self.opset)
                    if fact is not None:
                        facts[node.output[0]] = fact
            if not facts:
                return {}
            kept = Flow(self.graph, nodes, tables, facts, self.opset).unread()
            found.append({name: facts[name].floor for name in kept})
        first, *others = found
        return {
            name: min(f[name] for f in found)
            for name in first
            if all(name in f and math.isclose(f[name], first[name], rel_tol=1e-6, abs_tol=1e-6) for f in others)
        }


def _inner(nodes: Iterable[NodeProto]) -> set[str]:
    """Names that subgraphs have for their own tensors."""
    inside = [inner for node in nodes for graph in graphs(node) for inner in graph.node]
    return {o for node in inside for o in node.output} | (_inner(inside) if inside else set())


@dataclass(frozen=True)
class Span:
    """Lower and upper bounds of a tensor's elements for each setting of its slots."""

    slots: Slots
    low: tuple[np.ndarray, ...]
    high: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Attention:
    """What is known of the weights of a softmax; labels are broadcast to all its elements.

    rows: rows whose bit is 0 have an entry of at least ``floor``. columns: in those rows, columns whose bit is 1 have
    weights of exactly 0.
    """

    rows: np.ndarray
    columns: np.ndarray
    floor: float

    @staticmethod
    def of(node: NodeProto, tables: Tables, sourced: Sourced, opset: int) -> Attention | None:
        """None where a mask does not tell that there are such rows."""
        shape = tables.shape(node.output[0])
        axis = attribute(node, "axis", 1 if opset < 13 else -1)
        if shape is None or len(shape) < 2 or axis not in (-1, len(shape) - 1):
            return None
        span = _span(node.input[0], tables, sourced, DEPTH)
        if span is None or not span.slots:
            return None
        if any(not np.all(np.isfinite(a)) for a in (*span.low, *span.high)):
            return None
        slots = tuple(np.broadcast_to(s, shape) for s in span.slots)
        none = np.zeros(shape, np.int64)
        over = [s for s in slots if np.any(s) and np.all(s == s[..., :1, :])]
        along = [s for s in slots if np.any(s) and np.all(s == s[..., :1])]
        best = None
        square = shape[-1] == shape[-2]
        for columns in [sign * s for s in over for sign in (1, -1)] + [none]:
            mirrored = [np.swapaxes(columns[..., :1, :], -1, -2)] if square and np.any(columns) else []
            for rows in [*mirrored, *(sign * s for s in along for sign in (1, -1)), none]:
                rows = np.broadcast_to(rows, shape)
                floor = _floor(span, slots, rows, columns)
                if floor is not None and (best is None or floor > best.floor):
                    best = Attention(rows, columns, floor)
        return best


def _floor(span: Span, slots: Slots, rows: np.ndarray, columns: np.ndarray) -> float | None:
    """What the best entry of a row outside ``rows`` is at least, if ``columns`` are so far below that they weigh 0."""
    shape = rows.shape
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    for way in ways(slots):
        open_ = possible(slots, way, rows, 0)
        shut = open_ & possible(slots, way, columns, 1)
        low = np.where(open_, np.minimum(low, span.low[way]), low)
        high = np.where(shut, np.maximum(high, span.high[way]), high)
    counts = (columns == 0) | (columns == rows)
    best = np.max(np.where(counts, low, -np.inf), axis=-1, keepdims=True)
    off = (columns != 0) & (columns != rows)
    with np.errstate(invalid="ignore"):
        clear = best - high >= EXP_RANGE + CLEAR * (np.abs(best) + np.where(off, np.abs(high), 0))
    if not np.all(np.isfinite(best)) or np.any(off & ~clear):
        return None
    return float(best.min())


def _span(name: str, tables: Tables, sourced: Sourced, depth: int) -> Span | None:
    """Bounds of scores with masks; None if there are none, or a sum may leave the type's range."""
    known = sourced.spans.get((name, depth))
    if known is None:
        known = sourced.spans[name, depth] = (_found(name, tables, sourced, depth),)
    return known[0]


def _found(name: str, tables: Tables, sourced: Sourced, depth: int) -> Span | None:
    shape = tables.shape(name)
    if shape is None:
        return None
    table = tables.known.get(name)
    if table is not None:
        return _of_table(table)
    found = None
    node = sourced.made.get(name)
    if node is not None and depth and is_standard(node):
        found = _of_node(node, shape, tables, sourced, depth - 1)
    if found is None:
        most = sourced.bound(name)
        if not most < LARGEST:
            return None
        found = Span((), (np.full((1,) * len(shape), -most),), (np.full((1,) * len(shape), most),))
    return found


def _of_table(table: Table) -> Span | None:
    if any(a.dtype not in TYPES for a in table.arrays):
        return None
    arrays = tuple(a.astype(np.float64) for a in table.arrays)
    least = float(np.finfo(table.arrays[0].dtype).min)
    return None if any(np.any(a < least) or not np.all(np.isfinite(a)) for a in arrays) else Span(
        table.slots, arrays, arrays
    )


def _of_node(node: NodeProto, shape: tuple[int, ...], tables: Tables, sourced: Sourced, depth: int) -> Span | None:
    op, inputs = node.op_type, list(node.input)
    if op == "Where":
        condition = tables.known.get(inputs[0])
        sides = [_span(x, tables, sourced, depth) for x in inputs[1:]]
        if condition is None or sides[0] is None or sides[1] is None:
            return None
        return _combined(condition, sides[0], sides[1], shape)
    if op in having(Fact.ADDS) and len(inputs) == 2:
        sides = [_span(x, tables, sourced, depth) for x in inputs]
        x, y = sides
        if x is None or y is None:
            return None
        if op == "Sub":
            y = Span(y.slots, tuple(-a for a in y.high), tuple(-a for a in y.low))
        made = union([x.slots, y.slots], shape)
        if made is None:
            return None
        slots, (left, right) = made
        low = tuple(x.low[pick(w, left)] + y.low[pick(w, right)] for w in ways(slots))
        high = tuple(x.high[pick(w, left)] + y.high[pick(w, right)] for w in ways(slots))
        least = float(np.finfo(np.float32).min) - 2 * LARGEST
        return Span(slots, low, high) if all(np.all(a >= least) for a in low) else None
    if op in having(Fact.MULTIPLIES):
        for at in (1, 0) if op == "Mul" else (1,):
            factor = tables.constant(inputs[at])
            if factor is None or factor.size != 1 or factor.dtype not in TYPES:
                continue
            other = _span(inputs[1 - at], tables, sourced, depth)
            if other is None:
                return None
            value = float(factor.reshape(()))
            if op == "Div":
                value = 1 / value if value else math.inf
            if not 0 < value < LARGEST or (value > 1 and any(np.any(np.abs(a) > LARGEST) for a in other.low)):
                return None
            wide = [tuple(np.broadcast_to(a, np.broadcast_shapes(a.shape, shape)) * value for a in side)
                    for side in (other.low, other.high)]  # fmt: skip
            return Span(tuple(np.broadcast_to(s, shape) for s in other.slots), wide[0], wide[1])
    if op == "Identity":
        return _span(inputs[0], tables, sourced, depth)
    if op in MOVES - having(Fact.FILLS) and len(node.output) == 1:
        inner = _span(inputs[0], tables, sourced, depth)
        old = tables.shape(inputs[0])
        if inner is None or old is None or not inner.slots:
            return None
        groups: list[Slots] = []
        for group in (inner.slots, inner.low, inner.high):
            moves = [tables.moved(node, np.broadcast_to(a, old)) for a in group]
            if any(m is None for m in moves):
                return None
            groups.append(tuple(m[0] for m in moves if m is not None))
        return Span(groups[0], groups[1], groups[2])
    return None


def _combined(condition: Table, x: Span, y: Span, shape: tuple[int, ...]) -> Span | None:
    made = union([condition.slots, x.slots, y.slots], shape)
    if made is None:
        return None
    slots, (chosen, left, right) = made
    low, high = [], []
    for way in ways(slots):
        which = condition.arrays[pick(way, chosen)].astype(bool)
        low.append(np.where(which, x.low[pick(way, left)], y.low[pick(way, right)]))
        high.append(np.where(which, x.high[pick(way, left)], y.high[pick(way, right)]))
    return Span(slots, tuple(low), tuple(high))
