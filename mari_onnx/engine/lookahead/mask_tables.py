"""The possible values of a source's masks, which are computed from booleans of the data.

A *bit* is an element of a boolean tensor of which nothing is known except that it is 0 or 1 (``Equal(ids, 0)``). Each
bit has a number of its own, its *label*. A tensor that is computed from constants and bits is a `Table`. Each of its
elements depends on at most one bit per *slot*: a slot is an array of labels, 0 for elements that depend on no bit. The
table has one array of values for each way to set the slots to 0 and 1.

    pad                       slots ([[1, 2, 3]],)                 arrays [[0, 0, 0]], [[1, 1, 1]]
    Concat(pad, False)        slots ([[1, 2, 3, 0]],)              arrays [[0, 0, 0, 0]], [[1, 1, 1, 0]]
    Or(pad[:, :, None], pad[:, None])   two slots, four arrays; on the diagonal both have one label

Where a label says what holds if a bit is 1, the negative label says what holds if that bit is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from mari_onnx.engine.ir.nodes import evaluate, is_random
from mari_onnx.engine.lookahead.shapes import CHOOSING, MAX_KNOWN, Shape, infer_fallback
from mari_onnx.model import tensors
from mari_onnx.model.nodes import attribute, attributes, graphs, is_standard
from mari_onnx.model.ops import Fact, having, row

LIMIT = 1 << 21
"""Elements of a tensor up to which it is looked into."""
SLOTS = 3
"""Bits that one element may depend on."""
TRIPS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What an evaluation may raise on a graph that it did not expect."""
BOOLEAN, LOGIC, BY_ELEMENT, MOVES = (having(f) for f in (Fact.BOOLEAN, Fact.LOGIC, Fact.ELEMENT, Fact.MOVES))
ONE_TYPE = having(Fact.ADDS) | having(Fact.MULTIPLIES) | having(Fact.MATMUL) | {"Where"}
"""Operators whose result is of the type of their inputs, of the condition aside."""
VIEWED = having(Fact.VIEW) | having(Fact.CONVERTS)
Slots = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Table:
    """What is known of a tensor: element ``e`` of ``arrays[a]`` where, for each slot, bit ``slot[e]`` is that of a."""

    slots: Slots
    arrays: tuple[np.ndarray, ...]

    def where_set(self, a: int, label: np.ndarray, value: int) -> np.ndarray:
        """Elements that can be as in ``arrays[a]`` while bit ``label`` has the value; those of label 0 can be."""
        return possible(self.slots, a, label, value)


def possible(slots: Slots, way: int, label: np.ndarray, value: int) -> np.ndarray:
    """Elements where bits can be set that way while ``label`` is ``value``; ``-label`` is the opposite of a bit."""
    agrees = np.ones((), bool)
    for j, slot in enumerate(slots):
        here = slot == (label if (way >> j & 1) != value else -label)
        agrees = agrees & (~here | (label == 0))
    return agrees


def ways(slots: Sequence[object]) -> range:
    """All settings of slots: bit j of a number is slot j's."""
    return range(1 << len(slots))


def union(
    operands: Sequence[Slots], shape: tuple[int, ...], most: int = SLOTS
) -> tuple[Slots, list[list[int]]] | None:
    """Slots for what depends on the bits of several operands element by element; which of them each slot became."""
    found: list[np.ndarray] = []
    maps = []
    for slots in operands:
        mine: list[int] = []
        for slot in slots:
            wide = np.broadcast_to(slot, shape)
            for i, old in enumerate(found):
                if i not in mine and np.all((wide == 0) | (old == 0) | (wide == old)):
                    found[i] = np.where(wide == 0, old, wide)
                    mine.append(i)
                    break
            else:
                mine.append(len(found))
                found.append(wide)
        maps.append(mine)
    return (tuple(found), maps) if len(found) <= most else None


def pick(way: int, places: Sequence[int]) -> int:
    """The setting of an operand's slots within that of all."""
    return sum((way >> place & 1) << j for j, place in enumerate(places))


class Tables:
    """The Tables of a graph at one number of candidates.

    shapes: of all tensors, as far as they are known. limit: elements of a tensor up to which it is looked into.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        nodes: Sequence[NodeProto],
        shapes: Mapping[str, Shape],
        opset: int,
        limit: int = LIMIT,
    ):
        self.shapes, self.opset, self._limit = dict(shapes), opset, limit
        self.known: dict[str, Table] = {}
        self.roots: dict[str, np.ndarray] = {}
        """The labels of the boolean tensors that are bits."""
        self.counted: dict[str, np.ndarray] = {}
        """Arrays that are computed from the number of candidates, and hold for this one alone (`forget`)."""
        self._names: dict[str, object] = {}
        self._labels: dict[object, np.ndarray] = {}
        self._numbers: dict[object, int] = {}
        self._next = 1
        self._made = {name: node for node in nodes for name in node.output}
        inputs = {info.name: info.type.tensor_type.elem_type for info in graph.input}
        for proto in graph.initializer:
            if proto.name not in inputs and proto.data_type != TensorProto.STRING and _size(proto.dims) <= limit:
                self.known[proto.name] = Table((), (tensors.array(proto),))
        for name, dtype in inputs.items():
            if dtype == TensorProto.BOOL:
                self._root(name, name)
        for node in nodes:
            if node.output:
                self._node(node)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """A shape of which all is known, if that is not too large."""
        shape = self.shapes.get(name)
        if shape is None or None in shape or _size(shape) > self._limit:  # type: ignore[arg-type]
            return None
        return shape  # type: ignore[return-value]

    def constant(self, name: str) -> np.ndarray | None:
        """The array of what depends on no bit."""
        table = self.known.get(name)
        return table.arrays[0] if table is not None and not table.slots else None

    def zero(self, name: str, label: np.ndarray, target: float | bool = 0) -> np.ndarray:
        """Elements that are surely ``target`` where the bit of ``label`` is 1; of label 0: where they are anyway."""
        table = self.known.get(name)
        if table is None:
            return np.zeros((), bool)
        sure = np.ones((), bool)
        for a in ways(table.slots):
            sure = sure & (~table.where_set(a, label, 1) | (table.arrays[a] == target))
        return sure

    def moved(self, node: NodeProto, array: np.ndarray) -> list[np.ndarray] | None:
        """What an operator that moves elements makes of labels (Pad adds 0); None if that is not known."""
        shapes = [self.shape(name) for name in node.output]
        if any(s is None for s in shapes):
            return None
        attrs = attributes(node)
        op, out = node.op_type, shapes[0]
        assert out is not None
        if op in having(Fact.VIEW):
            return [array.reshape(out)]
        if op == "Transpose":
            return [array.transpose(attrs.get("perm", range(array.ndim)[::-1]))]
        if op == "Expand":
            return [np.broadcast_to(array, out)]
        if op == "Split":
            axis = attrs.get("axis", 0)
            ends = np.cumsum([s[axis] for s in shapes if s is not None])
            return np.split(array, ends[:-1], axis=axis) if ends[-1] == array.shape[axis] else None
        rest = [self.constant(name) if name else None for name in node.input[1:]]
        if any(name and value is None for name, value in zip(node.input[1:], rest, strict=True)):
            return None
        if op == "Pad":
            if attrs.get("mode", b"constant") != b"constant" or len(rest) < 1:
                return None
            rest[1:2] = [np.zeros((), array.dtype)]
        result = self._run(node, [np.ascontiguousarray(array), *rest])
        return [result] if result is not None and result.shape == out else None

    def joined(self, node: NodeProto, operands: Sequence[Slots], most: int = SLOTS) -> Slots | None:
        """The slots of a Concat."""
        parts, shapes = [], [self.shape(name) for name in node.input]
        if any(s is None for s in shapes):
            return None
        axis = attribute(node, "axis")
        for j in range(max(len(slots) for slots in operands)):
            rows = [
                np.broadcast_to(slots[j] if j < len(slots) else np.zeros((), np.int64), shape)  # type: ignore[arg-type]
                for slots, shape in zip(operands, shapes, strict=True)
            ]
            parts.append(np.concatenate(rows, axis))
        return tuple(parts) if len(parts) <= most else None

    def written(self, node: NodeProto, data: Slots, updates: Slots, most: int = SLOTS) -> Slots | None:
        """The slots of a Scatter at indices that are known."""
        index = self.constant(node.input[1])
        if index is None and self._whole_rows(node):
            index = self.counted[node.input[1]]
        shapes = [self.shape(name) for name in (node.input[0], node.input[2])]
        if index is None or None in shapes or attribute(node, "reduction", "none") != "none":
            return None
        parts = []
        for j in range(max(len(data), len(updates))):
            one, two = (
                np.broadcast_to(slots[j] if j < len(slots) else np.zeros((), np.int64), shape)  # type: ignore[arg-type]
                for slots, shape in zip((data, updates), shapes, strict=True)
            )
            made = self._run(node, [np.ascontiguousarray(one), index, np.ascontiguousarray(two)])
            if made is None:
                return None
            parts.append(made)
        return tuple(parts) if len(parts) <= most else None

    def _whole_rows(self, node: NodeProto) -> bool:
        """Whether coordinates of a ScatterND that differ by the number of candidates are all positions of an axis."""
        made, shape = self._made.get(node.input[1]), self.shape(node.input[0])
        if node.input[1] not in self.counted or made is None or made.op_type != "Concat" or shape is None:
            return False
        columns = [name for name in made.input if self.constant(name) is None]
        places = [i for i, name in enumerate(made.input) if name in columns]
        if attribute(made, "axis") not in (-1, len(self.counted[node.input[1]].shape) - 1):
            return False
        return all(self._every(name, shape[i]) for name, i in zip(columns, places, strict=True))

    def _every(self, name: str, size: int) -> bool:
        """Whether a vector, however it is repeated, is ``0 .. size - 1``, with a size that a Shape tells."""
        node = self._source(name, VIEWED | having(Fact.REPEATS))
        if node is None or node.op_type != "Range" or len(node.input) != 3:
            return False
        first, last, step = ((a if (a := self.constant(x)) is not None else self.counted.get(x)) for x in node.input)
        if first is None or last is None or step is None:
            return False
        told = self._source(node.input[1], VIEWED | having(Fact.PICKS))
        return (int(first), int(last), int(step)) == (0, size, 1) and told is not None and told.op_type == "Shape"

    def _source(self, name: str, through: frozenset[str]) -> NodeProto | None:
        """The node that makes what these operators take as their first input."""
        node = self._made.get(name)
        while node is not None and node.op_type in through:
            node = self._made.get(node.input[0])
        return node

    def _node(self, node: NodeProto) -> None:
        name = node.output[0]
        key = self._key(node)
        for i, output in enumerate(node.output):
            self._names[output] = (key, i)
        if any(graphs(node)) or is_random(node) or not is_standard(node):
            return
        if None in self.shapes.get(name, (None,)):
            sizes = [self.shape(x) for x in node.input]
            constants = [self.constant(x) if x else None for x in node.input]
            self.shapes |= infer_fallback(node, sizes, constants, self.opset)
        if node.op_type in having(Fact.SIZES):
            shape = self.shapes.get(node.input[0])
            if shape is not None and None not in shape:
                self._plain(node, [np.zeros(shape, bool)] if _size(shape) <= self._limit else [])  # type: ignore[arg-type]
            return
        if node.op_type == "CastLike":
            array = self.constant(node.input[0])
            if array is not None and array.dtype.kind == "f" and self._is(node.input[1], array.dtype, 8):
                self.known[name], self.shapes[name] = Table((), (array,)), array.shape
            return
        tables = [self.known.get(x) for x in node.input if x]
        if all(t is not None and not t.slots for t in tables):
            arrays = [self.known[x].arrays[0] if x else None for x in node.input]
            if len([o for o in node.output if o]) == 1 and _size(self.shape(name) or ()) <= self._limit:
                self._plain(node, arrays)
            return
        found = self._with_bits(node) if all(t is not None for t in tables) else None
        if found is not None:
            self.known.update(found)
        elif node.op_type in BOOLEAN or (node.op_type == "Cast" and _to(node) == TensorProto.BOOL):
            self._root(name, key)

    def _is(self, name: str, dtype: np.dtype, depth: int) -> bool:
        """Whether a tensor is of a type, by a constant that it is computed with."""
        array, node = self.constant(name), self._made.get(name)
        if array is not None:
            return array.dtype == dtype
        if node is None or not depth or node.op_type not in ONE_TYPE:
            return False
        return any(self._is(x, dtype, depth - 1) for x in list(node.input)[1 if node.op_type == "Where" else 0 :])

    def _with_bits(self, node: NodeProto) -> dict[str, Table] | None:
        tables = [self.known[x] for x in node.input if x]
        out, made = self.shape(node.output[0]), self.settings(node, [t.slots for t in tables])
        if out is None or made is None:
            return None
        slots, maps = made
        if node.op_type in LOGIC and len(slots) > max(len(t.slots) for t in tables) and _alike(tables, out):
            return None  # two bits an element: a bit of its own
        arrays = []
        for way in ways(slots):
            given = iter(t.arrays[pick(way, places)] for t, places in zip(tables, maps, strict=True))
            array = self._run(node, [next(given) if x else None for x in node.input])
            if array is None or array.shape != out:
                return None
            arrays.append(array)
        return {node.output[0]: Table(slots, tuple(arrays))}

    def settings(self, node: NodeProto, operands: Sequence[Slots]) -> tuple[Slots, list[list[int]]] | None:
        """The slots of what a node makes of operands that have these; which of them each operand's slots became."""
        out = self.shape(node.output[0])
        if out is None or len(node.output) > 1:
            return None
        if node.op_type in BY_ELEMENT:
            return union(operands, out)
        slots: Slots | None = None
        if node.op_type == "Concat":
            slots = self.joined(node, operands)
        elif node.op_type in MOVES and not any(operands[1:]):
            moves = [self.moved(node, slot) for slot in operands[0]]
            slots = None if any(m is None for m in moves) else tuple(m[0] for m in moves if m is not None)
        return (slots, [list(range(len(s))) for s in operands]) if slots is not None else None

    def _plain(self, node: NodeProto, arrays: Sequence[np.ndarray | None]) -> None:
        result = self._run(node, arrays) if len(arrays) == len(node.input) else None
        if result is not None and result.size <= self._limit and result.dtype != object:
            self.known[node.output[0]] = Table((), (result,))
            self.shapes[node.output[0]] = result.shape

    def _run(self, node: NodeProto, arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
        try:
            return evaluate(node, arrays, self.opset)
        except TRIPS:
            return None

    def _root(self, name: str, key: object) -> None:
        shape = self.shape(name)
        if shape is None:
            return
        if key not in self._labels:
            self._labels[key] = np.arange(self._next, self._next + _size(shape), dtype=np.int64).reshape(shape)
            self._next += _size(shape)
        labels = self._labels[key]
        self.roots[name] = labels
        self.known[name] = Table((labels,), (np.zeros(shape, bool), np.ones(shape, bool)))

    def _key(self, node: NodeProto) -> object:
        """What a node computes: equal nodes on equal inputs are one."""
        if is_random(node) or any(graphs(node)):
            return node.output[0]
        attrs = tuple(sorted(a.SerializeToString() for a in node.attribute))
        names = tuple(self._name(x) for x in node.input)
        return self._numbers.setdefault((node.op_type, node.domain, attrs, names), len(self._numbers))

    def _name(self, name: str) -> object:
        """What tells a tensor: a small constant's numbers, else the node that makes it."""
        array = self.constant(name)
        if array is not None and array.size <= MAX_KNOWN and array.dtype != object:
            return (str(array.dtype), array.shape, array.tobytes())
        return self._names.get(name, name)


def forget(nodes: Sequence[NodeProto], first: Tables, second: Tables) -> None:
    """What is computed from the number of candidates, other than shapes, is not known: it may differ at a third.

    An element of a shape that is the same at both numbers, however it was picked, is no such number.
    """
    picked: set[str] = set()  # elements of shapes
    counted: set[str] = set()
    for node in nodes:
        op = node.op_type
        values = [name for i, name in enumerate(node.input) if i != row(op).shape_input]
        for name in node.output:
            here, there = first.constant(name), second.constant(name)
            same = here is not None and there is not None and np.array_equal(here, there)
            if op in having(Fact.SIZES):
                picked.add(name)
                if not same:
                    counted.add(name)
            elif op in CHOOSING and all(x in picked or x not in counted for x in values):
                if any(x in picked for x in values):
                    picked.add(name)
                    if not same:
                        counted.add(name)
            elif any(x in counted for x in values) or (
                here is not None and there is not None and here.shape == there.shape and not same
            ):
                counted.add(name)
    for tables in (first, second):
        for name in counted - tables.roots.keys():
            if (array := tables.constant(name)) is not None:
                tables.counted[name] = array
            tables.known.pop(name, None)


def _alike(tables: Sequence[Table], out: tuple[int, ...]) -> bool:
    return all(t.arrays[0].shape == out for t in tables)


def _to(node: NodeProto) -> int:
    return int(attribute(node, "to"))


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) if len(shape) else 1
