"""Which elements of the source's tensors have the same number whatever the inputs hold, above all weights of 0.

The source is followed at a few sizes with bounds for each element: masks are numbers there, and a weight is 0 where the
mask puts its score so far below another of the row that exp leaves nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial, reduce
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from mari_onnx.engine.analysis.intervals import INTERVALS, Span, operands, transfer
from mari_onnx.engine.analysis.magnitude import EXP_RANGE
from mari_onnx.engine.ir.nodes import evaluate
from mari_onnx.engine.isolation.layout import Key, Layouts, N
from mari_onnx.engine.isolation.sizes import Sizes
from mari_onnx.engine.lookahead.bounds import Sourced
from mari_onnx.engine.lookahead.mask_tables import TRIPS, Tables
from mari_onnx.engine.lookahead.masked_rows import CLEAR, placed
from mari_onnx.model.dims import Size, symbols
from mari_onnx.model.dims import evaluate as size_at
from mari_onnx.model.nodes import attribute, is_standard
from mari_onnx.model.ops import Fact, row

LARGEST = 1 << 23
"""Elements of a tensor up to which each one is looked at."""
HUGE = 1e30
"""What a score of which no bound is known is at most: a mask of the lowest number of float32 is beyond it, -1e9 is not.
"""
SMALL = 1 << 12
"""Integers of a graph that may be lengths or numbers of candidates."""
SIZES = 6
"""Sizes beside the first two at which it is looked."""
NEAR = 8
"""Numbers closer than this are looked at together, at the largest."""
STEPS = Fact.BOOLEAN | Fact.WHOLE | Fact.SATURATES | Fact.CONVERTS
"""Operators whose result may change at one position only."""
FEW = 16
"""Elements of a tensor of numbers that positions are compared with, at most."""


class Facts:
    """Blocks of tensors whose elements are known, at all sizes that were looked at."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        nodes: Sequence[NodeProto],
        told: Sizes,
        layouts: Layouts,
        opset: int,
    ):
        self.shapes, self.layouts = told.shapes, layouts
        self._found: dict[tuple[str, Key, bool], float | None] = {}
        found = {s for shape in told.shapes.values() for s in _symbols(shape)}
        others = sorted(s for s in found if s != "N" and not s.startswith("?"))
        least = [{**dict.fromkeys(others, t), "N": n} for t, n in ((5, 2), (4, 3), (1, 3))[: 3 if others else 2]]
        self._spans = [_Spans(graph, nodes, told, sizes, opset) for sizes in least]
        self.at = list(least)
        for sizes in self._further(nodes, least[0]):
            if len(self.at) >= SIZES + len(least):
                break
            spans = _Spans(graph, nodes, told, sizes, opset)
            # a position beyond a table: the source fails there
            if not any(self._spans[0].fixed(o) and not spans.fixed(o) for node in nodes for o in node.output):
                self.at.append(sizes)
                self._spans.append(spans)

    def _further(self, nodes: Sequence[NodeProto], least: Mapping[str, int]) -> list[dict[str, int]]:
        """More candidates, and longer histories, than each number that positions are compared with, or that they reach
        when they are scaled or multiplied with each other before.
        """
        tables = self._spans[0].tables
        numbers: set[int] = set()
        made = {o: node for node in nodes for o in node.output if o}
        few: dict[str, set[float]] = {}
        """Tensor that is known at a size -> the literal numbers that it is made of, but for 1."""
        for node in nodes:
            places = [tables.constant(name) for name in (*node.input, *node.output[:1]) if name]
            if any(x is None for x in places) or "N" not in _symbols(self.shapes.get(node.output[0], ())):
                continue
            literal = few.setdefault(node.output[0], set())
            for name, array in zip([name for name in node.input if name], places, strict=False):
                if array is not None and array.size <= FEW and array.dtype.kind in "iuf":
                    held = {abs(float(v)) for v in array.reshape(-1).tolist() if np.isfinite(v) and v}
                    numbers |= {int(v) for v in held if v <= SMALL and v == int(v)}
                    literal |= held - {1.0} if name not in made or made[name].op_type == "Constant" else set()
            if row(node.op_type).facts & STEPS and not row(node.op_type).facts & Fact.LOGIC:
                together, stack = set[float](), [node.output[0]]
                while stack:
                    name = stack.pop()
                    together |= few.get(name, set())
                    if name in few and (name == node.output[0] or not row(made[name].op_type).facts & Fact.BOOLEAN):
                        stack += made[name].input
                reached = [v for a in together if a != int(a) or a > SMALL for b in together for v in (a / b, b / a)]
                numbers |= {math.ceil(v) for v in (*reached, *map(math.sqrt, together)) if v <= SMALL}
        fixed = {length for size in self.layouts.sequences if isinstance(length := size + N * -1, int)}
        further: list[dict[str, int]] = []
        last = math.inf
        for v in sorted({v - t for v in numbers for t in (0, *fixed)}, reverse=True):
            if v <= 3 or v > last - NEAR:
                continue
            last = v
            further.append({**least, "N": v + 2})
            if len(least) > 1:
                further.append({**dict.fromkeys(least, v + 2), "N": 2})
        return further

    def value(self, name: str, dims: Sequence[Size], key: Key, off: bool = False) -> float | None:
        """The number that all elements of a block are; None where they differ or are not known. dims: the tensor's.

        Of a block that has the candidates twice: the elements of a candidate with itself, or with others (`off`).
        """
        asked = (name, key, off)
        if asked not in self._found:
            found = {self._at(spans, sizes, dims, *asked) for spans, sizes in zip(self._spans, self.at, strict=True)}
            self._found[asked] = found.pop() if len(found) == 1 else None
        return self._found[asked]

    def _at(
        self, spans: _Spans, sizes: Mapping[str, int], dims: Sequence[Size], name: str, key: Key, off: bool
    ) -> float | None:
        span = spans.told(name)
        if span is None or span[0].ndim != len(dims):
            return None
        twice = self.layouts.candidates(dims, key)[:2]
        low, high = (self._block(side, dims, key, sizes) for side in span)
        if len(twice) == 2:
            n = sizes["N"]
            shape = [n if i in twice else size for i, size in enumerate(low.shape)]
            pick = np.eye(n, dtype=bool) != off
            low, high = (np.moveaxis(np.broadcast_to(side, shape), twice, (0, 1))[pick] for side in (low, high))
        first = low.flat[0] if low.size else 0.0
        return float(first) if np.all(low == first) and np.all(high == first) else None

    def _block(self, side: np.ndarray, dims: Sequence[Size], key: Key, sizes: Mapping[str, int]) -> np.ndarray:
        index: list[slice] = [slice(None)] * side.ndim
        for i, s in zip(self.layouts.at(dims), key, strict=True):
            start, end = (size_at(x, sizes) for x in self.layouts.offsets(dims[i])[s : s + 2])
            index[i] = slice(start, end) if side.shape[i] > 1 else slice(None)
        return side[tuple(index)]


class _Spans:
    """Lower and upper bounds of the elements of tensors at given sizes, as far as they are known, by name."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        nodes: Sequence[NodeProto],
        told: Sizes,
        sizes: Mapping[str, int],
        opset: int,
    ):
        known = {name: found for name, sym in told.numbers.items() if (found := _number(sym, sizes)) is not None}
        initial = [numpy_helper.from_array(array, name) for name, array in known.items()]
        light: Any = SimpleNamespace(initializer=[*graph.initializer, *initial], input=graph.input)
        nodes = [node for node in nodes if not any(o in known for o in node.output)]
        both = (sizes, {**sizes, "N": sizes["N"] + 1})
        here, other = ({k: _evaluated(v, s) for k, v in told.shapes.items()} for s in both)
        self.tables = Tables(light, nodes, here, opset, LARGEST)
        self.opset = opset
        self._sourced = Sourced(light, nodes, here, other, self.tables)
        self.known: dict[str, Span] = {}
        for node in nodes:
            table = self.tables.known.get(node.output[0]) if node.output else None
            if node.output and (table is None or table.slots):
                span = self._of(node)
                if span is not None:
                    self.known[node.output[0]] = span

    def fixed(self, name: str) -> bool:
        """Whether the elements follow from sizes alone."""
        return self.tables.constant(name) is not None

    def told(self, name: str) -> Span | None:
        """The bounds of elements that differ in what is known of them; None where they do not."""
        table = self.tables.known.get(name)
        if name not in self.known and table is not None and table.arrays[0].dtype.kind in "fbiu":
            low, high = (side(table.arrays).astype(np.float64) for side in (_least, _most))
            self.known[name] = (low, high)
        return self.known.get(name)

    def span(self, name: str) -> Span | None:
        """The bounds of a tensor's elements; of one of which nothing else is known, the same for all."""
        shape = self.tables.shapes.get(name)
        if self.told(name) is None and shape is not None:
            most = np.full((1,) * len(shape), min(HUGE, self._sourced.bound(name)))
            return -most, most
        return self.known.get(name)

    def _of(self, node: NodeProto) -> Span | None:
        shape = self.tables.shapes.get(node.output[0])
        if shape is None or None in shape or not is_standard(node):
            return None
        if row(node.op_type).facts & Fact.SOFTMAX:
            return self._weights(node, len(shape))
        if len(node.input) == 1 and Fact.ELEMENT in row(node.op_type).facts and node.op_type not in INTERVALS:
            span = self.told(node.input[0])
            sure = span[0] == span[1] if span is not None else np.zeros((), bool)
            if span is not None and np.any(sure) and node.op_type != "Cast":
                value = self._of_number(node, np.where(sure, span[0], 0))
                return None if value is None else (np.where(sure, value, -HUGE), np.where(sure, value, HUGE))
        count = operands(node)
        spans = [self.span(name) for name in node.input[:count] if name]
        if not count or any(span is None for span in spans):
            return None
        if all(span[0].size == 1 for span in spans if span is not None):
            return None
        try:
            found = transfer(node, [s for s in spans if s is not None], partial(placed, node, self.tables))
        except TRIPS:
            return None
        if found is None:
            return None
        low, high = found
        most = self._sourced.bound(node.output[0]) if not np.any(np.isneginf(high)) else math.inf
        return (np.maximum(low, -most), np.minimum(high, most)) if most < math.inf else found

    def _weights(self, node: NodeProto, rank: int) -> Span | None:
        """Bounds of a softmax: 0 where another score of the row is surely larger by what exp can tell apart."""
        span = self.span(node.input[0])
        if span is None or node.op_type != "Softmax":
            return None
        axis = attribute(node, "axis", -1 if self.opset >= 13 else 1) % rank
        low, high = np.broadcast_arrays(*span)
        best = np.max(low, axis=axis, keepdims=True)
        with np.errstate(invalid="ignore"):
            dead = np.isneginf(high) | (high < best - EXP_RANGE - CLEAR * np.abs(best))
        return np.zeros(dead.shape), np.where(dead, 0.0, 1.0)

    def _of_number(self, node: NodeProto, array: np.ndarray) -> np.ndarray | None:
        try:
            return evaluate(node, [array.astype(np.float32)], self.opset).astype(np.float64)
        except TRIPS:
            return None


def _least(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return reduce(np.minimum, arrays)


def _most(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return reduce(np.maximum, arrays)


def _symbols(sizes: Iterable[Size]) -> set[str]:
    return {s for size in sizes for s in symbols(size)}


def _number(sym: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray | None:
    """Small integers of the source at these sizes."""
    flat = sym.reshape(-1)
    if any(x is None or not symbols(x) <= sizes.keys() for x in flat):
        return None
    return np.asarray([size_at(x, sizes) for x in flat], np.int64).reshape(sym.shape)


def _evaluated(shape: Sequence[Size], sizes: Mapping[str, int]) -> tuple[int | None, ...]:
    return tuple(size_at(size, sizes) if symbols(size) <= sizes.keys() else None for size in shape)
