"""The part of a graph before one tensor, run with candidates by the thousand, each a try of its own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.parity.domains.local import Locals
from mari_onnx.parity.domains.trace import cast, folded

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.domains.trace import Trace
    from mari_onnx.parity.layout import Layout

# Elements of the tensor that are looked at, and halvings.
_PLACES, _HALVINGS = 64, 56

# An input, and a place in its folded shape.
Coordinate = tuple[str, int]
Given = Mapping[Coordinate, np.ndarray]


class Tries:
    """Answers of the part.

    Args:
        model: without functions.
        trace: to which the tensor belongs.
        sizes: of the axes of a table that the tensor holds rows of: of several, its last dimension has one number each.
            None where it holds no rows.
        count: of tries at once; a prime, which no other dimension is likely to be.

    Attributes:
        coordinates: elements that may move the tensor.
        zero: what it is where all are 0.

    Raises:
        MariError: the part does not run, or candidates meet in it.
    """

    def __init__(
        self, model: onnx.ModelProto, layout: Layout, trace: Trace, tensor: str, sizes: tuple[int, ...], count: int
    ):
        from mari_onnx.runtime import session

        self._layout, self._sizes, self.count = layout, sizes, count
        self.kinds = {i.name: i.dtype for i in layout.signature.inputs}
        self._folded = {i.name: folded(layout, i.name) for i in layout.signature.inputs}
        parts = Locals(model, self._shapes(trace))
        if tensor not in parts.local:
            raise MariError("the part of the model that computes rows depends on the number of candidates")
        cut = parts.cut([tensor])
        for each in cut.graph.input:
            if each.name in parts.shapes:
                each.type.tensor_type.ClearField("shape")
                for size in parts.shapes[each.name]:
                    each.type.tensor_type.shape.dim.add().dim_value = size
        self._session = session(cut, optimize=False, what="the part of the model that computes rows")
        fed = {i.name for i in cut.graph.input}
        self._feed = {k: v for k, v in parts.zeros().items() if k in fed}
        moving, start = trace.reach.get(tensor, 0), 0
        self.coordinates: list[Coordinate] = []
        for own in trace.inputs:
            size = int(np.prod(self._folded[own.name]))
            if own.name in fed and own.dtype.kind in "iuf" and self._apart(own.name):
                self.coordinates += [(own.name, k) for k in range(size) if moving >> (start + k) & 1]
            start += size
        self.zero, _ = self.run({})

    def _shapes(self, trace: Trace) -> dict[str, tuple[int, ...]]:
        """Of all inputs: each try has another user too."""
        layout = self._layout
        length = max(
            (
                trace.shape(i.name)[k]
                for i in trace.inputs
                for k, dim in enumerate(i.shape)
                if not isinstance(dim, int) and layout.axis_of(i.name) != k
            ),
            default=1,
        )
        found = layout.concrete(self.count, dict.fromkeys(layout.free, length))
        for each in layout.signature.inputs:
            shape, axis = found[each.name], layout.axis_of(each.name)
            if axis is not None and layout.has_candidates(each):
                found[each.name] = (*shape[:axis], self.count, *shape[axis + 1 :])
        return found

    def _apart(self, name: str) -> bool:
        """Whether an input has a row for each try."""
        axis = self._layout.axis_of(name)
        return axis is not None and self._feed[name].shape[axis : axis + 1] == (self.count,)

    def run(self, given: Given) -> tuple[np.ndarray, np.ndarray]:
        """[try, element] what the tensor is, of several axes the row in C order, and whether it is a row or a number.

        Args:
            given: what elements are in each try; others are 0.

        Raises:
            MariError: the part does not run, or its answer is not one a try.
        """
        from mari_onnx.runtime import run

        arrays = {name: self._feed[name].copy() for name, _ in given}
        for (name, place), numbers in given.items():
            axis, value, kept = self._layout.axis_of(name) or 0, arrays[name], self._folded[name]
            at = np.unravel_index(place, kept) if kept else ()
            where = [slice(None) if size == 1 else int(k) for k, size in zip(at, kept, strict=True)]
            part = np.moveaxis(value, axis, 0)[(slice(None), *(w for k, w in enumerate(where) if k != axis))]
            part[...] = cast(numbers, value.dtype).reshape(-1, *[1] * (part.ndim - 1))
        with np.errstate(all="ignore"):
            found = np.asarray(run(self._session, {**self._feed, **arrays}, "rows", ["mari_onnx/0"])[0])
        if self.count in found.shape:
            found = np.moveaxis(found, found.shape.index(self.count), 0)
        elif not found.size or found.shape[0] % self.count:
            raise MariError("candidates meet in the part of the model that computes rows")
        found = found.reshape(self.count, -1, max(len(self._sizes), 1))[:, :_PLACES].astype(np.float64)
        inside = np.isfinite(found)
        if self._sizes:
            inside = (found >= 0) & (found < np.array(self._sizes))
            found = found * np.array([np.prod(self._sizes[k + 1 :]) for k in range(len(self._sizes))], np.float64)
        return found.sum(axis=-1), np.asarray(inside.all(axis=-1))

    def moved(self, steps: tuple[float, ...]) -> np.ndarray:
        """[coordinate, element]: whether one moves the other. There may be no more coordinates than tries.

        Args:
            steps: by so much.
        """
        found = np.zeros((len(self.coordinates), self.zero.shape[1]), bool)
        for step, others in product(steps, (0.0, 3.0)):  # in each try another one is moved
            diagonal = others + np.eye(len(self.coordinates), self.count) * step
            with suppress(MariError):
                still, _ = self.run(dict.fromkeys(self.coordinates, np.full(self.count, others)))
                answer, _ = self.run(dict(zip(self.coordinates, diagonal, strict=True)))
                found |= (answer != still)[: len(self.coordinates)]
        return found

    def crossing(
        self, place: int, given: Given, each: Coordinate, ends: tuple[float, float], aims: np.ndarray
    ) -> np.ndarray:
        """Numbers of one coordinate with which an element comes to what is wanted in each try, where it does so at all.

        Args:
            given: the others.
            ends: between which it is looked for, by halving.
        """
        kind = self.kinds[each[0]]

        def at(numbers: np.ndarray) -> np.ndarray:
            return self.run({**given, each: numbers})[0][:, place]

        def crossed(beyond: bool) -> np.ndarray:
            low, high = np.full(self.count, ends[0]), np.full(self.count, ends[1])
            rising = at(high) >= at(low)

            def passed(numbers: np.ndarray) -> np.ndarray:
                value = at(numbers)
                over = value > aims if beyond else value >= aims
                under = value < aims if beyond else value <= aims
                return np.where(rising, over, under)

            high = np.where(passed(low), low, high)
            for _ in range(_HALVINGS):
                middle = cast(np.floor((low + high) / 2) if kind.kind in "iu" else (low + high) / 2, kind)
                middle = middle.astype(np.float64)
                between = (middle > low) & (middle < high)
                if not between.any():
                    break
                done = passed(middle)
                high, low = np.where(between & done, middle, high), np.where(between & ~done, middle, low)
            return high

        first = crossed(False)
        # In the middle of all numbers that come to it: at the edges of floats it hangs on rounding.
        return first if kind.kind in "iu" else (first + crossed(True)) / 2
