"""Which input element each element of a local tensor comes from, and what becomes of its numbers on the way.

The local part of the graph is run on probes. So Cast, Slice, Scaler, BatchNormalization, Reshape, GatherND and whatever
else lies between need no rule, and a number that is wanted inside the graph is turned back into one to feed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.model.ops import Fact, having
from mari_onnx.parity.domains import texts
from mari_onnx.parity.domains.dependence import reads
from mari_onnx.parity.domains.scope import PASSING

if TYPE_CHECKING:
    import onnx

    from mari_onnx.model.signature import Input
    from mari_onnx.parity.domains.local import Locals
    from mari_onnx.parity.layout import Layout

# How far elements are moved to see what they move: one step, and further than every rounding and division; the latter
# two set each bit of a whole number.
_FAR = 2.0**20
_STEPS = (1.0, _FAR - 1, -_FAR)
# The numbers at which a tensor is looked at: small ones, fractions, and powers of two to both sides.
_SMALL = [float(n) for n in range(18)]
_POWERS = [2.0**k for k in range(5, 41)]
_BELOW = [-n for n in (*_SMALL[:6], 8.0, 16.0, *_POWERS)]
GRID = np.array(sorted({*_SMALL, *_POWERS, *_BELOW, 0.5, -0.5, 0.25, 1.5, 2.75}))
# Tensors of more elements are not looked into, nor more tensors than this.
_ELEMENTS, _TENSORS = 2**14, 1500
# Of so many elements it is looked at whether they are moved in different ways.
_CURVES = 1024
_WHAT = "the part of the model between inputs and what reacts to them"


@dataclass(frozen=True)
class Curve:
    """What elements of one tensor are at numbers of the input element that moves them.

    Attributes:
        origin: number of the input element, from 0; those of a string input too. -1 where none moves it, or several.
        several: more than one input element moves it.
        x, y: [grid, element], what is fed (in the input's type) and what the element is then.
        slope, base: `y = base + slope x`; NaN where that does not hold.
        whole: it does for whole x, and other x count as one of their neighbours.
        same: y is x, bit for bit.
    """

    origin: np.ndarray
    several: np.ndarray
    x: np.ndarray
    y: np.ndarray
    slope: np.ndarray
    base: np.ndarray
    whole: np.ndarray
    same: np.ndarray


class Trace:
    """Answers of the local part of a graph that lies behind some inputs.

    Args:
        inputs: a component of `parts`.

    Raises:
        MariError: the part does not run.
    """

    def __init__(self, parts: Locals, layout: Layout, inputs: set[str]):
        from mari_onnx.runtime import session

        self.parts = parts
        local = {t for t, met in parts.local.items() if met <= inputs}
        mine = [n for n in parts.nodes if any(i in local for i in n.input)]
        wanted = {t for n in mine for t in n.input if t in local}
        wanted |= {o.name for o in parts.model.graph.output if o.name in local}
        beside = {t for n in mine for t in n.input if t in parts.static and parts.small(t)}
        names = [t for t in parts.local if t in wanted][:_TENSORS] + sorted(beside)
        self._inputs = [i for i in layout.signature.inputs if i.name in inputs]
        shapes = self._shapes = parts.shapes
        self._sizes = [int(np.prod(shapes[i.name])) for i in self._inputs]
        self.total = sum(self._sizes)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)]).astype(int)
        cut = parts.cut(names)
        self._fed = {i.name for i in cut.graph.input}
        self._session = session(cut, optimize=False, what=_WHAT)
        self._names = names
        self._beside = {k: v for k, v in parts.zeros().items() if k in self._fed and k not in inputs}
        self._kept = [folded(layout, i.name) for i in self._inputs]
        self.places = self._numbered()
        kinds = [np.full(size, i.dtype.kind) for i, size in zip(self._inputs, self._sizes, strict=True)]
        self.kinds = np.concatenate(kinds) if kinds else np.empty(0, "U1")
        zero = self.answer(np.zeros(self.total))
        self._marked: dict[str, np.ndarray] | None = None
        self.constants = {k: zero[k] for k in zero if k in parts.static}
        self._zero = {k: v for k, v in zero.items() if k not in parts.static and v.size <= _ELEMENTS}
        # By bits of its number each input element tells which tensors it moves.
        origin, several = self._origins()
        self.curves: dict[str, Curve] = {}
        self._curves(origin, several)
        self.reach = self._reached()

    def place(self, origin: int) -> tuple[Input, int]:
        """The input that holds an input element, and its number there, in C order."""
        which = int(np.searchsorted(self._starts, origin, "right")) - 1
        return self._inputs[which], origin - int(self._starts[which])

    def _numbered(self) -> np.ndarray:
        """[2, element]: the input of each input element, and its place in the input's folded shape."""
        parts = [np.zeros((2, 0), np.int64)]
        for which, (each, kept) in enumerate(zip(self._inputs, self._kept, strict=True)):
            shape = self._shapes[each.name]
            places = np.broadcast_to(np.arange(int(np.prod(kept))).reshape(kept), shape).reshape(-1)
            parts.append(np.stack([np.full(places.size, which), places]))
        return np.concatenate(parts, axis=1)

    def _reached(self) -> dict[str, int]:
        """Tensor -> bits of the places of inputs that move it, local or not."""
        starts = np.concatenate([[0], np.cumsum([int(np.prod(kept)) for kept in self._kept])]).astype(int).tolist()
        found: dict[str, int] = {}
        for each, start, end in zip(self._inputs, starts, starts[1:], strict=False):
            found[each.name] = (1 << end) - (1 << start)
        for node in self.parts.nodes:
            given = 0
            for tensor in reads(node):
                given |= found.get(tensor, 0)
            for output in node.output:
                curve = self.curves.get(output)
                if curve is not None and (curve.origin >= 0).all():
                    which, places = self.places[:, np.unique(curve.origin)]
                    found[output] = 0
                    for bit in {starts[w] + p for w, p in zip(which.tolist(), places.tolist(), strict=True)}:
                        found[output] |= 1 << bit
                elif given and output and node.op_type not in having(Fact.SIZES):
                    found[output] = given
        return found

    def owner(self, origin: int) -> tuple[str, int]:
        """The input of an input element, and its place in the shape that `folded` gives."""
        return self._inputs[int(self.places[0, origin])].name, int(self.places[1, origin])

    def owners(self, tensor: str, curves: bool = False) -> Iterator[tuple[str, int, int]]:
        """Each input and place that moves elements of a tensor, and the first such element.

        Args:
            curves: of elements that one place moves in different ways the first of each way, unless they are many.
        """
        origin = self.curves[tensor].origin
        elements = np.flatnonzero(origin >= 0)
        if elements.size:
            keys = self.places[:, origin[elements]]
            if curves and elements.size <= _CURVES:
                keys = np.concatenate([keys, self.curves[tensor].y[:, elements]])
            _, first = np.unique(keys, axis=1, return_index=True)
            for element in elements[first].tolist():
                yield *self.owner(int(origin[element])), element

    @property
    def inputs(self) -> list[Input]:
        return self._inputs

    def input(self, name: str) -> Input:
        return next(i for i in self._inputs if i.name == name)

    def counted(self, tensor: str) -> bool:
        """Whether a static tensor counts up from 0 or 1: a Range, whatever moves it."""
        while tensor in self.parts.producer:
            node = self.parts.producer[tensor]
            if node.op_type == "Range":
                return True
            if node.op_type not in PASSING:
                return False
            tensor = node.input[0]
        return False

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an input, as it is fed."""
        return self._shapes[name]

    def shape_of(self, tensor: str) -> tuple[int, ...]:
        """Of a tensor that has a curve."""
        return self._zero[tensor].shape

    def type_of(self, tensor: str) -> np.dtype:
        """Of a tensor that has a curve."""
        return self._zero[tensor].dtype

    def _origins(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """By the bits of their numbers: an element that one input element moves does so exactly where that one is
        among those that are moved."""
        codes = np.arange(1, self.total + 1)
        origin = {k: np.zeros(v.size, np.int64) for k, v in self._zero.items()}
        several = {k: np.zeros(v.size, bool) for k, v in self._zero.items()}
        for step in _STEPS:
            try:
                every = self._moved(np.full(self.total, step))
                found = {k: np.zeros(v.size, np.int64) for k, v in self._zero.items()}
                single = {k: np.ones(v.size, bool) for k, v in self._zero.items()}
                some = {k: v.copy() for k, v in every.items()}
                for bit in range(int(self.total).bit_length()):
                    one = ((codes >> bit) & 1).astype(bool)
                    here, there = (self._moved(np.where(mask, step, 0.0)) for mask in (one, ~one))
                    for k in found:
                        found[k] |= here[k].astype(np.int64) << bit
                        single[k] &= here[k] != there[k]
                        some[k] |= here[k] | there[k]
            except MariError:
                continue
            for k in found:
                fresh = every[k] & single[k] & (found[k] > 0) & (found[k] <= self.total)
                clash = fresh & (origin[k] > 0) & (origin[k] != found[k])
                several[k] |= (some[k] & ~fresh) | clash
                origin[k] = np.where(fresh & (origin[k] == 0), found[k], origin[k])
        return origin, several

    def _moved(self, elements: np.ndarray) -> dict[str, np.ndarray]:
        found = self.answer(elements)
        return {k: _differ(found[k].reshape(-1), v.reshape(-1)) for k, v in self._zero.items()}

    def _curves(self, origin: dict[str, np.ndarray], several: dict[str, np.ndarray]) -> None:
        xs, answers = [], []
        for number in GRID:
            fed = np.full(self.total, number)
            try:
                answers.append(self.answer(fed))
            except MariError:
                continue
            xs.append(self._typed(fed))
        fed_x = np.stack(xs) if xs else np.zeros((0, self.total))
        for name, value in self._zero.items():
            at = np.where(several[name], -1, origin[name] - 1)
            if value.dtype.kind == "O":
                found = self._strings(name)
                at = np.where(found >= 0, found, -1)
                nothing, none = np.full(at.shape, np.nan), np.zeros(at.shape, bool)
                empty = np.empty((0, at.size))
                self.curves[name] = Curve(at, several[name], empty, empty, nothing, nothing, none, none)
                continue
            y = np.array([a[name].reshape(-1).astype(np.float64) for a in answers]).reshape(len(answers), at.size)
            x = fed_x[:, np.maximum(at, 0)] if self.total else y
            slope, base = _line(x, y)
            off, shift = _line(np.where(x == np.round(x), x, np.nan), y)
            whole = np.isnan(slope) & ~np.isnan(off) & _between_neighbours(x, y)
            same = (x == y).all(axis=0) & (at >= 0)
            slope, base = np.where(whole, off, slope), np.where(whole, shift, base)
            self.curves[name] = Curve(at, several[name], x, y, slope, base, whole, same)

    def pieces(self, name: str) -> list[list[texts.Piece]]:
        """What the elements of a tensor of strings are put together from."""
        if self._marked is None:
            try:
                self._marked = self.answer(np.zeros(self.total), marked=True)
            except MariError:
                self._marked = {}
        found = self._marked.get(name, np.full(self._zero[name].shape, "")).reshape(-1)
        return [[p for p in texts.pieces(str(t)) if isinstance(p, str) or p < self.total] for t in found]

    def _strings(self, name: str) -> np.ndarray:
        """Origins of a tensor of strings, where an element is one of a string input."""
        found = [each[0] if len(each) == 1 else -1 for each in self.pieces(name)]
        return np.array([p if not isinstance(p, str) and p >= 0 and self.kinds[p] == "O" else -1 for p in found], int)

    def _typed(self, elements: np.ndarray) -> np.ndarray:
        """The numbers as they are fed: in the range and in the type of each input."""
        found = elements.copy()
        for each, start, size in zip(self._inputs, self._starts, self._sizes, strict=False):
            part = slice(int(start), int(start) + size)
            found[part] = cast(elements[part], each.dtype).astype(np.float64) if each.dtype.kind in "biuf" else 0
        return found

    def answer(self, elements: np.ndarray, marked: bool = False) -> dict[str, np.ndarray]:
        """Local and static tensors for one number an input element.

        Args:
            marked: each element of a string input holds its own mark (`texts.marked`), else "0"; so do whole numbers.

        Raises:
            MariError: the part does not run.
        """
        from mari_onnx.runtime import run

        feed = dict(self._beside)
        for each, start, size in zip(self._inputs, self._starts, self._sizes, strict=False):
            if each.name not in self._fed:
                continue
            shape, part = self._shapes[each.name], elements[int(start) : int(start) + size]
            if each.dtype.kind in "biuf":
                if marked and each.dtype.kind in "iu" and each.dtype.itemsize >= 4:
                    part = texts.NUMBERED + texts.APART * np.arange(int(start), int(start) + size, dtype=float)
                feed[each.name] = cast(part, each.dtype).reshape(shape)
            else:
                strings = [texts.marked(int(start) + k) if marked else "0" for k in range(size)]
                feed[each.name] = np.array(strings, object).reshape(shape)
        with np.errstate(all="ignore"):
            found = run(self._session, feed, _WHAT, [f"mari_onnx/{k}" for k in range(len(self._names))])
        return {k: np.asarray(v) for k, v in zip(self._names, found, strict=True)}


def folded(layout: Layout, name: str) -> tuple[int, ...]:
    """The shape of an input with 1 for the candidate axis and for free axes: one place for what is alike."""
    each = next(i for i in layout.signature.inputs if i.name == name)
    axis = layout.axis_of(name)
    return tuple(1 if not isinstance(dim, int) or index == axis else dim for index, dim in enumerate(each.shape))


def cast(elements: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers in the type of an input, at its ends where they lie beyond them."""
    found = np.asarray(elements, np.float64)
    if dtype.kind in "iu":
        ends = np.iinfo(dtype)
        low, high = max(float(ends.min), -(2.0**52)), min(float(ends.max), 2.0**52)
        found = np.trunc(np.clip(found, low, high))
    elif dtype.kind == "f":
        most = float(np.finfo(dtype).max) / 4
        found = np.clip(found, -most, most)
    return np.asarray(found != 0 if dtype.kind == "b" else found.astype(dtype))


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    differs = np.asarray(a != b)
    if a.dtype.kind == "f":
        differs &= ~(np.isnan(a) & np.isnan(b))
    return differs.astype(bool)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset of each column; NaN where it is no straight line."""
    nan = np.full(y.shape[1:], np.nan)
    usable = np.isfinite(x).all(axis=1) & (np.abs(x) <= _FAR).all(axis=1) if len(x) else np.zeros(0, bool)
    x, y = x[usable], y[usable]
    if len(x) < 3:
        return nan, nan
    with np.errstate(all="ignore"):
        first, last = x.argmin(axis=0), x.argmax(axis=0)
        every = np.arange(x.shape[1])
        width = x[last, every] - x[first, every]
        slope = (y[last, every] - y[first, every]) / width
        zero = np.abs(x).argmin(axis=0)
        base = y[zero, every] - slope * x[zero, every]
        near = np.abs(y - base - slope * x) <= 1e-5 * (np.abs(slope * x) + np.abs(base)) + 1e-30
        good = near.all(axis=0) & np.isfinite(slope) & np.isfinite(base) & (slope != 0)
    return np.where(good, slope, np.nan), np.where(good, base, np.nan)


def _between_neighbours(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[column]: whether fractions come to what one of their whole neighbours comes to."""
    found = np.ones(x.shape[1:], bool)
    for column in range(x.shape[1]) if len(x) else ():
        mine, theirs = x[:, column], y[:, column]
        whole = dict(zip(mine.tolist(), theirs.tolist(), strict=True))
        for number in mine[(mine != np.floor(mine)) & (np.abs(mine) < _FAR)].tolist():
            beside = [whole[n] for n in (np.floor(number), np.ceil(number)) if n in whole]
            found[column] &= not beside or whole[number] in beside
    return found


def traced(model: onnx.ModelProto, layout: Layout) -> list[Trace]:
    """Traces behind all inputs, with free dimensions of 5, or 1 where the graph refuses that; without those that run
    with neither."""
    from mari_onnx.model.functions import inlined
    from mari_onnx.parity.domains.local import Locals

    model = inlined(model)
    found: list[Trace] = []
    done: set[str] = set()
    for length in (5, 1):
        parts = Locals(model, layout.concrete(layout.fixed_n or 2, dict.fromkeys(layout.free, length)))
        for inputs in parts.components():
            if not inputs & done:
                with suppress(MariError):
                    found.append(Trace(parts, layout, inputs))
                    done |= inputs
        if len(done) == len(parts.inputs):
            break
    return found
