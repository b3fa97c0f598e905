"""Which input element moves which element of an inner tensor, by how much and from which offset.

The part of the graph between the inputs and the tensors is cut out and run on a few probes of zeros and ones. So Cast,
Slice, Split, Concat, Add, Mod, Reshape, GatherND and whatever else lies between need no rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.model.nodes import attribute_graphs

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.layout import Layout

# Larger than any table, exact in float32, and odd.
LARGE = 16_000_001
_OUTPUT = "mari_onnx.ids/"
# From where on tensors are looked at: a graph may treat small numbers apart from the others, as padding or as rare ids.
_STARTS = (0, *(2**k for k in range(21)))
_WHAT = "the part of the model that computes ids"


class Probe:
    """Answers of the cut-out part on probes; `names` are the tensors that depend on an input.

    Args:
        length: of free dimensions.

    Attributes:
        origin: for each element of a tensor, 1 + the number of the input element that moves it; 0 where none does.
        known: which elements of a tensor one input element moves.
        start: from which number of it on they are `base + step number`; for 0 that is known of 0 and 1 alone.
        big, bigger: with all input elements very large; empty where the part refuses that.
        total: input elements in all; `floats` says which of them are.

    Raises:
        MariError: the part does not run.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        layout: Layout,
        tensors: Sequence[str],
        length: int,
    ):
        from mari_onnx.runtime import session

        cut, found = _cut(model, tensors)
        self.names = [t for t in dict.fromkeys(tensors) if t in found]
        used = {i.name for i in cut.graph.input}
        self._layout = layout
        self._at: dict[int, dict[str, np.ndarray]] = {}
        self._inputs = [i for i in layout.signature.inputs if i.name in used]
        self._numbers = [i for i in self._inputs if i.dtype.kind in "iuf"]
        if not self._numbers:
            self.names = []
        if not self.names:
            return
        self._shapes = layout.concrete(layout.fixed_n or 2, dict.fromkeys(layout.free, length))
        sizes = [int(np.prod(self._shapes[i.name])) for i in self._numbers]
        self.total = sum(sizes)
        self.floats = np.repeat([i.dtype.kind == "f" for i in self._numbers], sizes)
        self._session = session(cut, optimize=False, what=_WHAT)
        zero, one = self.at(0), self.at(1)
        self.names = [name for name in self.names if zero[name].shape == one[name].shape]  # else a size hangs on ids
        if not self.names:
            return
        self._at = {number: {k: at[k] for k in self.names} for number, at in self._at.items()}
        self.origin = {name: np.zeros(v.shape, np.int64) for name, v in self.at(0).items()}
        self.known, self._even = ({k: v.astype(bool) for k, v in self.origin.items()} for _ in range(2))
        self.start, self.base, self.step = ({k: v.copy() for k, v in self.origin.items()} for _ in range(3))
        for start in _STARTS:
            if not self._lines(start):
                break
        self.big: dict[str, np.ndarray] = {}
        self.bigger: dict[str, np.ndarray] = {}
        try:
            self.big, self.bigger = (self.answer(np.full(self.total, LARGE + k)) for k in (0, 1))
        except MariError:
            self.big = self.bigger = {}

    def _lines(self, start: int) -> bool:
        """Looks for elements that are in step from a number on and were not from a smaller one; whether any is left."""
        try:
            answers = [self.at(k) if not start else self.answer(np.full(self.total, start + k)) for k in range(4)]
        except MariError:
            return False
        fresh: dict[str, np.ndarray] = {}
        for name in self.names:
            first, second, third = (b[name] - a[name] for a, b in pairwise(answers))
            even = (first == second) & (second == third) & (first > 0)
            fresh[name] = even & ~self._even[name] if start else first != 0
            self._even[name] |= even | (fresh[name] & (first == second) & (second == third))
        if any(mine.any() for mine in fresh.values()):
            codes = np.arange(1, self.total + 1)
            origin = {name: np.zeros_like(at) for name, at in self.origin.items()}
            alone = {name: np.ones(at.shape, bool) for name, at in self.origin.items()}
            for bit in range(int(self.total).bit_length()):
                one = (codes >> bit) & 1
                here, there = self.answer(start + one), self.answer(start + 1 - one)
                for name in self.names:
                    moved, other = (each[name] != answers[0][name] for each in (here, there))
                    origin[name] |= moved.astype(np.int64) << bit
                    alone[name] &= moved != other  # one element moves it in one of the two alone
            for name, mine in fresh.items():
                mine &= (origin[name] > 0) & (origin[name] <= self.total) & alone[name]
                step = answers[1][name] - answers[0][name]
                base = answers[0][name] - start * step
                for kept, new in ((self.origin, origin[name]), (self.base, base), (self.step, step)):
                    kept[name] = np.where(mine, new, kept[name])
                self.start[name][mine], self.known[name][mine] = start, True
        return not all(even.all() for even in self._even.values())

    def by_input(self, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """One number an input element, as arrays of the inputs' shapes."""
        start = 0
        for each in self._numbers:
            size = int(np.prod(self._shapes[each.name]))
            yield each.name, values[start : start + size].reshape(self._shapes[each.name])
            start += size

    def folded(self, name: str, rows: np.ndarray) -> np.ndarray:
        """One number where all elements agree, else one along each axis of fixed length; the least that is not 0."""
        each = next(i for i in self._numbers if i.name == name)
        axis = self._layout.axis_of(name)
        for index, dim in enumerate(each.shape):
            if not isinstance(dim, int) or index == axis:
                most = np.where(rows > 0, rows, np.iinfo(np.int64).max).min(axis=index, keepdims=True)
                rows = np.where(rows.any(axis=index, keepdims=True), most, 0)
        return rows.reshape(-1)[:1].reshape(()) if (rows == rows.reshape(-1)[0]).all() else rows

    def at(self, number: int) -> dict[str, np.ndarray]:
        """The tensors with all input elements equal; as a straight line would go where the part refuses that."""
        if number not in self._at and number < 2:
            self._at[number] = self.answer(np.full(self.total, number))
        if number not in self._at:
            try:
                self._at[number] = self.answer(np.full(self.total, number))
            except MariError:
                zero, one = self.at(0), self.at(1)
                self._at[number] = {k: zero[k] + number * (v - zero[k]) for k, v in one.items()}
        return self._at[number]

    def halves(self) -> dict[str, np.ndarray]:
        """The tensors with all input elements half way from 1 to 2, where they are floats; empty where the part refuses
        that."""
        try:
            return self.answer(np.full(self.total, 1.5))
        except MariError:
            return {}

    def answer(self, elements: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors for one number an input element.

        Raises:
            MariError: the part does not run on them.
        """
        from mari_onnx.runtime import run

        feed, start = {}, 0
        for each in self._inputs:
            shape = self._shapes[each.name]
            if each.dtype.kind in "iuf":
                size = int(np.prod(shape))
                feed[each.name] = elements[start : start + size].reshape(shape).astype(each.dtype)
                start += size
            else:
                feed[each.name] = np.zeros(shape, each.dtype)
        found = run(self._session, feed, _WHAT, [_OUTPUT + name for name in self.names])
        answer = {k: np.asarray(v).astype(np.int64) for k, v in zip(self.names, found, strict=True)}
        if 1 in self._at and any(answer[k].shape != self._at[1][k].shape for k in answer):
            raise MariError("the number of ids depends on what is fed")
        return answer


def _cut(
    model: onnx.ModelProto, tensors: Sequence[str]
) -> tuple[onnx.ModelProto, set[str]]:
    """The part of the model that computes `tensors` from inputs, and those of them that depend on an input."""
    import onnx

    from mari_onnx.model import tensors as tensors_

    graph = model.graph
    producer = {o: n for n in graph.node for o in n.output if o}
    weights = {t.name: t for t in graph.initializer}
    inputs = {i.name: i for i in graph.input if i.name not in weights}
    fed: set[str] = set()  # tensors that depend on an input
    for name in inputs:
        fed.add(name)
    for node in graph.node:
        if any(t in fed for t in reads(node)):
            fed.update(node.output)
    wanted = {t for t in tensors if t in fed}
    needed, stack = set(), list(wanted)
    while stack:
        name = stack.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in producer:
            stack.extend(reads(producer[name]))
    cut = onnx.ModelProto(ir_version=model.ir_version)
    cut.opset_import.extend(model.opset_import)
    cut.functions.extend(model.functions)
    cut.graph.name = "ids"
    cut.graph.node.extend(n for n in graph.node if any(o in needed for o in n.output))
    cut.graph.input.extend(v for k, v in inputs.items() if k in needed)
    for name in needed & weights.keys():
        tensor = cut.graph.initializer.add()
        tensor.CopyFrom(weights[name])
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensors_.inline(tensor)
    for name in wanted:
        # An input may itself be the index: an output must be written by a node.
        cut.graph.node.append(onnx.helper.make_node("Identity", [name], [_OUTPUT + name]))
        cut.graph.output.append(onnx.ValueInfoProto(name=_OUTPUT + name))
    return cut, wanted


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """All tensors that a node reads, in its bodies too."""
    yield from (t for t in node.input if t)
    for attribute in node.attribute:
        for body in attribute_graphs(attribute):
            own = {i.name for i in body.input} | {t.name for t in body.initializer}
            for each in body.node:
                yield from (t for t in reads(each) if t not in own)
                own.update(each.output)
