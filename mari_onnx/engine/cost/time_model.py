"""Estimated times, in multiply-adds of a GEMM: they decide between two exact ways to compute the same tensor.

In: axes, sizes and operators. Out: numbers. A symbolic dimension counts as a fixed length.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from mari_onnx.model.dims import Dim, Size, symbols
from mari_onnx.model.ops import row


class HasSize(Protocol):
    """An axis."""

    @property
    def size(self) -> Size:
        """The number of positions: an integer, or a polynomial."""


@dataclass(frozen=True)
class TimeModel:
    """Prices of elements, nodes and copies, and the numbers that symbolic dimensions count as. A `Builder` has one."""

    candidates: int = 500
    """The N for which costs are estimated."""
    requests: int = 16
    """The number of requests in a run for several."""
    several: bool = False
    """Whether the new graph takes several requests, whose number is R."""
    free: int = 50
    """The length that any other symbolic dimension counts as (a history)."""
    element: float = 12.0
    """An element read and written by an element-wise operator (about 0.4 ns on a CPU core, a multiply-add 0.03 ns)."""
    masked: float = 120.0
    """An element of a Softmax over masked scores: exp of -inf is several times slower on the CPU."""
    spread: float = 36.0
    """An element of an element-wise operator whose operands differ in shape: onnxruntime goes in short runs."""
    copy: float = 14.0
    """An element that a Concat or a Slice copies."""
    node: float = 30_000.0
    """The fixed cost of one more node (about 1 microsecond)."""
    call: float = 4_300.0
    """A small matrix product within a batched MatMul, however small (130 ns)."""
    apart: bool = False
    """Whether the graph will be split: what depends on the item alone is computed once per item and costs nothing here,
    so it stays apart from what depends on the user too."""

    def of_several(self) -> TimeModel:
        """As many candidates in all, of several requests: of few, if they are few."""
        requests = users_of(self.candidates)
        return replace(self, candidates=max(1, self.candidates // requests), requests=requests, several=True)

    @property
    def piece(self) -> float:
        """The fixed price of cutting off one more piece: its operator, a Slice, and a part in a Concat."""
        return 3 * self.node

    def element_of(self, op: str | None) -> float:
        """The price of one element of an operator's result."""
        return row(op or "").price or self.element

    def length(self, size: Size) -> int:
        """The number that a dimension counts as."""
        if isinstance(size, Dim):
            known = {"N": self.candidates, "R": self.requests if self.several else self.free}
            return size.evaluate({s: known.get(s, self.free) for s in symbols(size)})
        return size

    def volume(self, axes: Iterable[HasSize]) -> float:
        """The number of elements over these axes; each axis counts as at least one."""
        total = 1.0
        for axis in axes:
            total *= max(1, self.length(axis.size))
        return total


def users_of(candidates: int) -> int:
    """How many users so many candidates of one run are taken to be of: 16, but fewer than an eighth of them."""
    return max(1, min(TimeModel.requests, candidates // 8))
