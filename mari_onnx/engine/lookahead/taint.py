"""Which elements of a source depend on attention rows that are masked throughout (garbage, see `masked_rows.py`).

In: the source's nodes, in order. Out: for each tensor a few slots of labels, as in `mask_tables.py`: an element may be
garbage where the bit of one of its labels is 1. Garbage is passed on with the elements. It ends where it is multiplied
by something that is exactly 0 there: the weights of padded columns, or a mask that multiplies or selects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx
from onnx import NodeProto

from mari_onnx.engine.lookahead.mask_tables import MOVES, Slots, Tables, union
from mari_onnx.model.nodes import attribute, attributes, captures, graphs, is_standard
from mari_onnx.model.ops import Fact, having, row

SLOTS = 4
ROUNDS = 8
"""How often what does not hold is left out, and the rest proven again."""
SAME = having(Fact.SAME) | {"Cast"}
WRITES = having(Fact.WRITES)
MAPS = having(Fact.ELEMENT | Fact.FINITE) - {"CastLike"} | SAME | {"Pow"}
"""Operators by element that make a finite number of finite ones, as far as `_finite` says so."""
REDUCE, MATMUL, SOFTMAX = having(Fact.REDUCES | Fact.FINITE), having(Fact.MATMUL), having(Fact.SOFTMAX)
ALONG = having(Fact.NORM) | SOFTMAX


class Masked(Protocol):
    """What `masked_rows.Attention` tells of a softmax."""

    @property
    def rows(self) -> np.ndarray:
        """Labels of the rows: where the bit is 1, the row may be padding throughout."""

    @property
    def columns(self) -> np.ndarray:
        """Labels of the columns: where the bit is 1, rows that are not padding give the column a weight of 0."""


class Flow:
    """What becomes of garbage rows. facts: of softmaxes, by output."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        nodes: Sequence[NodeProto],
        tables: Tables,
        facts: Mapping[str, Masked],
        opset: int,
    ):
        self.graph, self.nodes, self.tables, self.facts, self.opset = graph, nodes, tables, facts, opset
        self.made = {name: node for node in nodes for name in node.output if name}
        self.labels = np.unique([abs(i) for f in facts.values() for a in (f.rows, f.columns) for i in np.unique(a)])

    def unread(self) -> set[str]:
        """Softmaxes whose garbage rows no output reads, all of them being garbage."""
        open_ = set(self.facts)
        for _ in range(ROUNDS):
            stuck = self._walk(open_)
            if not stuck:
                return open_
            open_ -= stuck
        return set()

    def _walk(self, open_: set[str]) -> set[str]:
        self.taint: dict[str, Slots] = {}
        self.null: dict[str, np.ndarray] = {}
        origins: dict[str, frozenset[str]] = {}
        stuck: set[str] = set()
        self.open = open_
        for node in self.nodes:
            inner = captures(node) if any(graphs(node)) else []
            behind = [name for name in [*node.input, *inner] if name in self.taint]
            own = {o for o in node.output if o in open_}
            mine = frozenset(own).union(*(origins[name] for name in behind))
            known = is_standard(node) and not inner
            if known and node.output:
                null = self._nothing(node)
                if null is not None:
                    self.null[node.output[0]] = null
            if not mine or node.op_type in having(Fact.SIZES) or self.tables.constant(node.output[0]) is not None:
                continue
            outs = self._node(node) if known else None
            if outs is None or len(outs) < len(node.output):
                stuck |= mine
                continue  # they are settled
            for name, slots in zip(node.output, outs, strict=True):
                slots = tuple(s for s in slots if np.any(s))
                if not name or not slots:
                    continue
                if name in self.tables.roots and np.any(np.isin(self.tables.roots[name], self.labels[self.labels > 0])):
                    stuck |= mine  # the bits themselves
                self.taint[name], origins[name] = slots, mine
        return stuck.union(*(origins.get(o.name, ()) for o in self.graph.output))

    def _node(self, node: NodeProto) -> list[Slots] | None:
        """Garbage in the outputs; None if that is not known, or the operator may read it."""
        op, out = node.op_type, self.tables.shape(node.output[0])
        if out is None:
            return None
        if node.output[0] in self.open:
            return self._weights(node, out)
        if op in MAPS and len([o for o in node.output if o]) == 1:
            made = self._map(node, out)
        elif op == "Concat":
            made = self.tables.joined(node, [self.taint.get(x, ()) for x in node.input], SLOTS)
        elif op in MOVES:
            return self._moved(node)
        elif op in WRITES:
            made = self._written(node)
        elif op in REDUCE:
            made = self._reduced(node, out)
        elif op in ALONG:
            made = self._along(node)
        elif op in MATMUL:
            made = self._product(node, out)
        else:
            return None
        return [made] if made is not None else None

    def _weights(self, node: NodeProto, out: tuple[int, ...]) -> list[Slots] | None:
        """Weights of a softmax with a mask: garbage in its rows alone, if scores are in its rows and columns alone."""
        fact = self.facts[node.output[0]]
        rows, columns = np.broadcast_to(fact.rows, out), np.broadcast_to(fact.columns, out)
        slots = [np.broadcast_to(s, out) for s in self.taint.get(node.input[0], ())]
        if any(np.any((s != 0) & (s != rows) & (s != columns)) for s in slots):
            return None
        return [(rows,)]

    def _map(self, node: NodeProto, out: tuple[int, ...]) -> Slots | None:
        if not self._finite(node):
            return None
        operands = []
        for at, name in enumerate(node.input):
            slots = tuple(np.broadcast_to(s, out) for s in self.taint.get(name, ()))
            if slots and node.op_type == "Mul":
                slots = tuple(np.where(self._zero(node.input[1 - at], s), 0, s) for s in slots)
            elif slots and node.op_type == "Where" and at:
                slots = tuple(np.where(self.tables.zero(node.input[0], s, at == 2), 0, s) for s in slots)
            operands.append(slots)
        made = union(operands, out, SLOTS)
        return made[0] if made is not None else None

    def _moved(self, node: NodeProto) -> list[Slots] | None:
        if any(x in self.taint for x in node.input[1:]):
            return None
        outs: list[list[np.ndarray]] = [[] for _ in node.output]
        shape = self.tables.shape(node.input[0])
        for slot in self.taint[node.input[0]]:
            moved = self.tables.moved(node, np.broadcast_to(slot, shape)) if shape is not None else None
            if moved is None or len(moved) != len(outs):
                return None
            for out, array in zip(outs, moved, strict=True):
                out.append(array)
        return [tuple(out) for out in outs]

    def _written(self, node: NodeProto) -> Slots | None:
        """Of the data where nothing is written, and of what is written."""
        data, index, updates = node.input
        if index in self.taint:
            return None
        return self.tables.written(node, self.taint.get(data, ()), self.taint.get(updates, ()), SLOTS)

    def _reduced(self, node: NodeProto, out: tuple[int, ...]) -> Slots | None:
        attrs = attributes(node)
        shape = self.tables.shape(node.input[0])
        if shape is None or node.input[0] not in self.taint:
            return None
        axes = attrs.get("axes")
        if axes is None and len(node.input) > 1 and node.input[1]:
            array = self.tables.constant(node.input[1])
            if array is None:
                return None
            axes = [int(a) for a in array.reshape(-1)]
        if not axes:
            return None
        return self._collapsed(self.taint[node.input[0]], shape, [a % len(shape) for a in axes], out)

    def _collapsed(
        self, taint: Slots, shape: tuple[int, ...], axes: Sequence[int], out: tuple[int, ...] | None
    ) -> Slots | None:
        """Garbage that is the same along axes, as of the shape without them (out), or as it is."""
        slots = []
        for slot in taint:
            slot = first = np.broadcast_to(slot, shape)
            for axis in axes:
                first = first.take([0], axis=axis)
            if np.any(first != slot):
                return None
            slots.append(slot if out is None else first.reshape(out))
        return tuple(slots)

    def _along(self, node: NodeProto) -> Slots | None:
        """Normalizations and softmaxes of whole rows."""
        name, shape = node.input[0], self.tables.shape(node.input[0])
        softmax, flat = node.op_type in SOFTMAX, self.opset < row(node.op_type).flattened_before
        if any(x in self.taint for x in node.input[1:]) or shape is None or len([o for o in node.output if o]) > 1:
            return None
        axis = attribute(node, "axis", 1 if flat else -1)
        axis %= len(shape)
        if flat and axis != len(shape) - 1:
            return None
        axes = [axis] if softmax else list(range(axis, len(shape)))
        return self._collapsed(self.taint[name], shape, axes, None)

    def _product(self, node: NodeProto, out: tuple[int, ...]) -> Slots | None:
        a, b = node.input[:2]
        attrs = attributes(node)
        sizes = self.tables.shape(a), self.tables.shape(b)
        if sizes[0] is None or sizes[1] is None or min(len(sizes[0]), len(sizes[1])) < 2:
            return None
        turns = [bool(attrs.get("transA")), bool(attrs.get("transB"))] if node.op_type == "Gemm" else [False, False]
        contracted = (-2 if turns[0] else -1, -1 if turns[1] else -2)
        operands: list[Slots] = []
        for at, name in enumerate((a, b)):
            slots = []
            here, there, shape = contracted[at], contracted[1 - at], sizes[at]
            assert shape is not None
            for slot in self.taint.get(name, ()):
                slot = np.broadcast_to(slot, shape)
                if np.all(slot == slot.take([0], axis=here)):
                    free = slot.take(0, axis=here)
                    slots.append(np.broadcast_to(free[..., None, :] if at else free[..., :, None], out))
                    continue
                inner = slot.take([0], axis=-3 - here)
                if np.any(slot != inner):
                    return None
                inner = inner.take(0, axis=-3 - here)
                label = inner[..., None, :] if there == -1 else inner[..., :, None]
                if not np.all(self._zero((b, a)[at], label) | (label == 0)):
                    return None
            operands.append(tuple(slots))
        if len(node.input) > 2:
            operands.append(tuple(np.broadcast_to(s, out) for s in self.taint.get(node.input[2], ())))
        made = union(operands, out, SLOTS)
        return made[0] if made is not None else None

    def _zero(self, name: str, label: np.ndarray) -> np.ndarray:
        """Elements that are exactly 0 where the bit of ``label`` is 1 (but for what is garbage itself)."""
        found = self.tables.zero(name, label)
        null = self.null.get(name)
        return found if null is None else found | ((null == label) & (label != 0))

    def _nothing(self, node: NodeProto) -> np.ndarray | None:
        """Labels of the elements that are 0 where the bit is 1; 0 for others."""
        name = node.output[0]
        if name in self.open:
            return self.facts[name].columns if np.any(self.facts[name].columns) else None
        out = self.tables.shape(name)
        found = [self.null.get(x) for x in node.input]
        if out is None or all(f is None for f in found):
            return None
        first = found[0]
        if node.op_type in SAME or (node.op_type == "Div" and first is not None):
            return None if first is None else np.broadcast_to(first, out)
        if node.op_type in MOVES and first is not None and len(node.output) == 1:
            shape = self.tables.shape(node.input[0])
            moved = self.tables.moved(node, np.broadcast_to(first, shape)) if shape is not None else None
            return moved[0] if moved is not None else None
        if node.op_type == "Concat":
            joined = self.tables.joined(node, [() if f is None else (f,) for f in found])
            return joined[0] if joined is not None else None
        if node.op_type == "Mul":
            one = next(f for f in found if f is not None)
            return np.broadcast_to(one, out)
        if node.op_type == "Where":
            label = next((f for f in found[1:] if f is not None), None)
            if label is None:
                return None
            label = np.broadcast_to(label, out)
            return np.where(self._zero(node.input[1], label) & self._zero(node.input[2], label), label, 0)
        return None

    def _finite(self, node: NodeProto) -> bool:
        """Whether what an operator by element makes of finite garbage is finite."""
        op, inputs = node.op_type, node.input
        if op in having(Fact.NEEDS_POSITIVE):
            return self._positive(inputs[0])
        if op in having(Fact.NEEDS_NONZERO):
            divisor = self.tables.constant(inputs[-1])
            return self._positive(inputs[-1]) if divisor is None else bool(np.all(divisor != 0))
        if op == "Pow":
            exponent = self.tables.constant(inputs[1])
            return exponent is not None and exponent.size == 1 and float(exponent.reshape(())) in (1.0, 2.0, 3.0)
        return True

    def _positive(self, name: str, strictly: bool = True, depth: int = 8) -> bool:
        """Whether all elements are above 0 by what a constant adds, or at least not below it."""
        constant = self.tables.constant(name)
        if constant is not None:
            return bool(np.all(constant > 0) if strictly else np.all(constant >= 0))
        node = self.made.get(name)
        if node is None or not depth or not is_standard(node):
            return False
        op, inputs = node.op_type, list(node.input)
        if op == "Add":
            signs = [[self._positive(x, s, depth - 1) for x in inputs] for s in (True, False)]
            return all(signs[1]) and (any(signs[0]) or not strictly)
        if op in having(Fact.KEEPS_POSITIVE):
            return self._positive(inputs[0], strictly, depth - 1)
        if strictly:
            bounds = inputs[:2] if op == "Clip" else inputs if op == "Max" else []
            return any(self._positive(x, True, depth - 1) for x in bounds if x)
        if op in having(Fact.KEEPS_SIGN):
            return self._positive(inputs[0], False, depth - 1)
        if op == "Pow":
            exponent = self.tables.constant(inputs[1])
            return exponent is not None and bool(np.all(exponent == 2))
        return op in having(Fact.NONNEGATIVE) or (op == "Mul" and inputs[0] == inputs[1])
