"""What decides between two exact ways to compute a thing: their estimated time, in multiply-adds of a GEMM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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
    """Prices, and the sizes that dimensions are taken for. A `Builder` has one, for all that is written with it."""

    candidates: int = 500
    """N."""
    free: int = 50
    """Any other dimension that is not a number (a history length)."""
    element: float = 12.0
    """An element read and written by an element-wise operator (about 0.4 ns on a CPU core, a multiply-add 0.03 ns)."""
    masked: float = 120.0
    """An element of a Softmax over masked scores: exp of -inf is several times slower on the CPU."""
    spread: float = 36.0
    """An element of an element-wise operator whose operands differ in shape: onnxruntime walks short runs."""
    copy: float = 14.0
    """An element that a Concat or a Slice copies."""
    node: float = 30_000.0
    """The fixed cost of one more node (about 1 microsecond)."""
    call: float = 4_300.0
    """A small matrix product within a batched MatMul, however small (130 ns)."""

    @property
    def piece(self) -> float:
        """The fixed cost of one more piece: its operator, a Slice, and a part in what is concatenated."""
        return 3 * self.node

    def element_of(self, op: str | None) -> float:
        """An element of an operator's result."""
        return row(op or "").price or self.element

    def length(self, size: Size) -> int:
        """The number that a dimension is taken for."""
        if isinstance(size, Dim):
            return size.evaluate({s: self.candidates if s == "N" else self.free for s in symbols(size)})
        return size

    def volume(self, axes: Iterable[HasSize]) -> float:
        """Elements over these axes, at least one along each."""
        total = 1.0
        for axis in axes:
            total *= max(1, self.length(axis.size))
        return total
