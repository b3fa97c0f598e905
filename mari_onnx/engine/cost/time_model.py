"""What decides between two exact ways to compute a thing: their estimated time, in multiply-adds of a GEMM."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

from mari_onnx.engine.ir.value import Axis
from mari_onnx.model.dims import Dim, symbols

ELEMENT = 12.0
"""An element read and written by an element-wise operator (about 0.4 ns on a CPU core, a multiply-add 0.03 ns)."""
SLOW = {
    "Softmax": 25.0, "LayerNormalization": 40.0, "Exp": 30.0, "Erf": 40.0, "Tanh": 40.0, "Sigmoid": 40.0, "Gelu": 50.0,
    "Pow": 40.0, "Log": 40.0, "Sqrt": 15.0, "Div": 15.0,
}  # fmt: skip
"""An element of operators that cost more than moving it."""
MASKED = 120.0
"""An element of a Softmax over masked scores: exp of -inf is several times slower on the CPU."""
SPREAD = 36.0
"""An element of an element-wise operator whose operands differ in shape: onnxruntime walks short runs."""
COPY = 14.0
"""An element that a Concat or a Slice copies."""
NODE = 30_000.0
"""The fixed cost of one more node (about 1 microsecond)."""
CALL = 4_300.0
"""A small matrix product within a batched MatMul, however small (130 ns)."""

CANDIDATES: ContextVar[int] = ContextVar("candidates", default=500)
THRIFT: ContextVar[float] = ContextVar("thrift", default=1.0)
"""How many times its cost a node is taken for, where a graph must not grow."""
FREE = 50
"""What a free dimension (a history length) is taken for."""


def node_cost() -> float:
    """The fixed cost of one more node."""
    return NODE * THRIFT.get()


def piece_cost() -> float:
    """Of one more piece: its operator, a Slice, and a part in what is concatenated."""
    return 3 * node_cost()


def volume(axes: Iterable[Axis]) -> float:
    """Elements over these axes, candidates as asked for and free dimensions at a typical length."""
    total = 1.0
    for axis in axes:
        total *= length(axis)
    return total


def element(op: str | None) -> float:
    """An element of an operator's result."""
    return SLOW.get(op or "", ELEMENT)


def length(axis: Axis) -> int:
    if isinstance(axis.size, Dim):
        return max(1, axis.size.evaluate({s: CANDIDATES.get() if s == "N" else FREE for s in symbols(axis.size)}))
    return max(1, axis.size)
