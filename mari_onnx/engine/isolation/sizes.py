"""Sizes of the source's tensors, beyond what a rule of the engine may claim of any graph.

A constant mask that is cut to the length of a sequence has that length: where it is shorter, the source fails. What
follows from it element by element, or as a product, is known then too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

import numpy as np
from onnx import NodeProto

from mari_onnx.engine.ir.value import Decline
from mari_onnx.model.dims import Dim, Size
from mari_onnx.model.ops import Fact, row


def never_negative(size: Size) -> bool:
    """Whether a size is at least 0 whatever its symbols are."""
    return size >= 0 if isinstance(size, int) else all(factor >= 0 for factor in size.terms.values())


def place(where: Size, size: Size) -> Size:
    """A start or end of a Slice, counted from the first position of a dimension."""
    if isinstance(where, int):
        return size if where >= 1 << 31 else where if where >= 0 else size + where
    return where if never_negative(where) else size + where


class Sizes:
    """shapes: of the source's tensors. numbers: elements of small integer tensors, as far as they are known."""

    def __init__(
        self, nodes: Iterable[NodeProto], shapes: Mapping[str, tuple[Size, ...]], numbers: Mapping[str, np.ndarray]
    ):
        self.shapes, self.numbers = dict(shapes), numbers
        for node in nodes:
            with suppress(Decline):
                self._settle(node)

    def dims(self, name: str) -> tuple[Size, ...]:
        """The dimensions of a tensor. Refuses one of unknown rank."""
        if name not in self.shapes:
            raise Decline(f"the shape of {name} is not known")
        return self.shapes[name]

    def listed(self, name: str) -> list[Size]:
        """The elements of a small integer tensor. Refuses one that is not known."""
        found = self.numbers.get(name)
        if found is None or any(x is None for x in found.reshape(-1)):
            raise Decline(f"the numbers of {name} are not known")
        return list(found.reshape(-1))

    def slices(self, node: NodeProto) -> tuple[list[Size], list[Size], list[int], list[Size]]:
        """Starts, ends, axes and steps of a Slice. Refuses those that are not known."""
        starts, ends, *more = (self.listed(name) if name else [] for name in node.input[1:])
        rank = len(self.dims(node.input[0]))
        axes = [int(str(a)) % rank for a in more[0]] if more and more[0] else list(range(len(starts)))
        return starts, ends, axes, more[1] if len(more) > 1 else [1] * len(starts)

    def _settle(self, node: NodeProto) -> None:
        """Sizes of a result, from operands of which more is known by now."""
        facts, given = row(node.op_type).facts, [self.shapes.get(name) for name in node.input if name]
        out = self.shapes.get(node.output[0])
        if out is None or not any(str(size).startswith("?") for size in out) or any(dims is None for dims in given):
            return
        aligned = [dims for dims in given if dims is not None]
        if node.op_type == "Slice":
            # a sequence that is longer than what it is cut from would have no mask: the source fails there
            for start, end, i, step in zip(*self.slices(node), strict=True):
                if step == 1:
                    first, last = place(start, aligned[0][i]), place(end, aligned[0][i])
                    self._learn(self.dims(node.output[0])[i], last + first * -1)
            return
        if node.op_type == "MatMul" and min(map(len, aligned)) > 1:
            a, b = aligned
            aligned = [(*a[:-2], a[-2], 1), (*b[:-2], 1, b[-1])]
        elif Fact.ELEMENT not in facts:
            return
        for i in range(1, len(out) + 1):
            sizes = {dims[-i] for dims in aligned if len(dims) >= i} - {1}
            if len(sizes) == 1:
                self._learn(out[-i], sizes.pop())

    def _learn(self, unknown: Size, size: Size) -> None:
        """A size that only a run could tell (`Builder.fresh`) is this one."""
        if isinstance(unknown, Dim) and str(unknown).startswith("?") and len(unknown.symbols) == 1:
            self.shapes = {name: tuple(size if d == unknown else d for d in dims) for name, dims in self.shapes.items()}

