"""Looks ahead in the source: does any output read the rows of an attention that its mask covers entirely?

    tokens = [history | items],  pad = Equal(ids, 0) of the history,  weights = Softmax(Where(pad[k] or k > q, -1e9, s))

A row q whose scores are all masked has equal weights for all columns, those of the items too, so this user row would
depend on the candidates. But such a row is a padded one (pad[q] = 1, or its own score would not be masked), and what is
computed from it stays in padded rows, as long as other rows give padded columns a weight of exactly 0. If no output
reads a padded row, its value does not matter, and the softmax may leave out the columns without weight in all rows.

`Attention` describes each Softmax, from the values of its mask (`mask_tables`) and the possible size of its scores
(`intervals.transfer`): rows whose bit ``rows`` is 0 have a score above ``floor``, and in these rows, columns whose bit
``columns`` is 1 have weights of exactly 0. `Flow` (`taint.py`) follows the padded rows to the outputs. Their elements
are called garbage: numbers that differ from the source's. Garbage is finite, because scores and values of the source
are; operators that could make it infinite are not followed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import NodeProto

from mari_onnx.engine.analysis.intervals import DEPTH, Span, operands, side_by_side, transfer
from mari_onnx.engine.analysis.magnitude import EXP_RANGE
from mari_onnx.engine.lookahead.bounds import Sourced, sliced
from mari_onnx.engine.lookahead.mask_tables import TRIPS, Slots, Table, Tables, forget, pick, possible, ways
from mari_onnx.engine.lookahead.shapes import Inputs, integers, needed, shapes
from mari_onnx.engine.lookahead.taint import Flow
from mari_onnx.model.nodes import attribute, graphs, is_standard

COUNTS = (2, 3)
"""Numbers of candidates at which it is proven; what is computed from the number itself is not known (`forget`)."""
LARGEST = 1e20
"""Scores beyond it may be lost beside a mask of the lowest number of a type."""
CLEAR = 0.02
"""What rounding of a mask and of scores may come to, as a share."""
GREATEST = float(np.finfo(np.float32).max)
"""What a sum or a product may come to; what is only chosen or moved may be as large as its type allows."""
TYPES = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(bool))


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
class Spans:
    """Bounds of a tensor's elements for each setting of its slots."""

    slots: Slots
    low: tuple[np.ndarray, ...]
    high: tuple[np.ndarray, ...]

    def of(self, way: int) -> Span:
        """The bounds for one setting."""
        return self.low[way], self.high[way]


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


def _floor(span: Spans, slots: Slots, rows: np.ndarray, columns: np.ndarray) -> float | None:
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


def _span(name: str, tables: Tables, sourced: Sourced, depth: int) -> Spans | None:
    """Bounds of scores with masks; None if there are none, or a sum may leave the type's range."""
    if (name, depth) not in sourced.spans:
        sourced.spans[name, depth] = _found(name, tables, sourced, depth)
    known: Spans | None = sourced.spans[name, depth]
    return known


def _found(name: str, tables: Tables, sourced: Sourced, depth: int) -> Spans | None:
    shape, table, node = tables.shape(name), tables.known.get(name), sourced.tensor(name).node
    if shape is None:
        return None
    if table is not None:
        return _of_table(table)
    found = _of_node(node.proto, tables, sourced, depth - 1) if node is not None and depth else None
    most = sourced.bound(name)
    if found is not None or not most < LARGEST:
        return found
    every = np.full((1,) * len(shape), most)
    return Spans((), (-every,), (every,))


def _of_table(table: Table) -> Spans | None:
    if any(a.dtype not in TYPES or not np.all(np.isfinite(a)) for a in table.arrays):
        return None
    arrays = tuple(a.astype(np.float64) for a in table.arrays)
    return Spans(table.slots, arrays, arrays)


def _of_node(node: NodeProto, tables: Tables, sourced: Sourced, depth: int) -> Spans | None:
    """What `intervals.transfer` tells for each setting of the operands' slots, if that is in range."""
    spans = [_span(name, tables, sourced, depth) for name in node.input[: operands(node)]]
    known = [x for x in spans if x is not None]
    made = tables.settings(node, [x.slots for x in known]) if known and len(known) == len(spans) else None
    if made is None:
        return None
    slots, maps = made
    given = [[x.of(pick(way, places)) for x, places in zip(known, maps, strict=True)] for way in ways(slots)]
    found = [transfer(node, each, partial(placed, node, tables)) for each in given]
    told = [x for x in found if x is not None]
    most = max(GREATEST, *(float(np.max(np.abs(side), initial=0)) for each in given for x in each for side in x))
    if len(told) < len(found) or any(np.any(np.abs(side) > most) for x in told for side in x):
        return None
    return Spans(slots, tuple(low for low, _ in told), tuple(high for _, high in told))


def placed(node: NodeProto, tables: Tables, sides: Sequence[np.ndarray]) -> np.ndarray | None:
    """Bounds of elements that a node moves or joins."""
    shapes = [shape for name in node.input[: len(sides)] if (shape := tables.shape(name)) is not None]
    out = tables.shape(node.output[0])
    if len(shapes) < len(sides) or out is None:
        return None
    if node.op_type == "Concat":
        return side_by_side(sides, shapes, attribute(node, "axis"))
    if sides[0].size == 1:
        return sides[0].reshape((1,) * len(out))
    moved = tables.moved(node, np.broadcast_to(sides[0], shapes[0]))
    return moved[0] if moved is not None else None
