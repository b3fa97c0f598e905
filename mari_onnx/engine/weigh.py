"""What decides between two exact ways to compute a thing: their estimated time, in multiply-adds of a GEMM."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

from mari_onnx.engine.value import Axis
from mari_onnx.model.dims import Dim, symbols

ELEMENT = 12.0
"""An element read and written by an element-wise operator (about 0.4 ns on a CPU core, a multiply-add 0.03 ns)."""
NODE = 30_000.0
"""The fixed cost of one more node (about 1 microsecond)."""

CANDIDATES: ContextVar[int] = ContextVar("candidates", default=500)
FREE = 50
"""What a free dimension (a history length) is taken for."""
REQUESTS = 1


def volume(axes: Iterable[Axis]) -> float:
    """Elements over these axes, candidates as asked for and free dimensions at a typical length."""
    total = 1.0
    for axis in axes:
        total *= length(axis)
    return total


def length(axis: Axis) -> int:
    if isinstance(axis.size, Dim):
        return max(1, axis.size.evaluate({s: CANDIDATES.get() if s == "N" else FREE for s in symbols(axis.size)}))
    return max(1, axis.size)
