"""Integer vectors whose elements follow a formula: arithmetic progressions (Range), and sizes linear in a symbol.

In: nodes on such vectors. Out: what is known of the results, noted in `Value.series` and `Value.strided`. Used by
look-ups at ``n T + i`` and by Loops over offsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Value
from mari_onnx.engine.rule import Context, constant, from_sizes, symbolic
from mari_onnx.model.dims import Dim, Size, product, symbols
from mari_onnx.model.ops import Fact, having
from mari_onnx.model.tensors import EXACT

PLAIN = having(Fact.VIEW) | having(Fact.SAME) | having(Fact.CONVERTS) | having(Fact.REPEATS)
"""Operators that hand elements on as they are, or repeat them."""


def follow(ctx: Context, outputs: Sequence[Value | None]) -> None:
    """Notes on outputs that they are the progression ``first, first + step, ...``, where that follows from the
    inputs.
    """
    op, out = ctx.node.op_type, outputs[0] if outputs else None
    source = ctx.inputs[0] if ctx.inputs else None
    if out is not None and out.groups is not None and source is not None and source.own_row and op in PLAIN:
        out.own_row = True
    if out is None or out.groups is None or out.rank != 1 or out.series is not None or out.dtype not in EXACT:
        return
    values = [v for v in ctx.inputs if v is not None]
    if op == "Range":
        start, _, step = (only(ctx.b, v) for v in values)
        if start is not None and step is not None:
            out.series = start, step
    elif op == "Cast" and values[0].strided is not None:
        out.strided = values[0].strided
    elif any(v.series is not None for v in values):
        out.series = _series(ctx, op, values)
        if op == "Add" and out.series is None:
            out.strided = _strided(values)


def _strided(values: Sequence[Value]) -> tuple[Size, Value] | None:
    """The step and the rest, where one of two added vectors is 0, step, 2 step, ..; else None."""
    x, y = values if values[0].series is not None else reversed(values)
    if x.series is None or x.series[0] != 0 or y.groups is None or y.rank != 1 or y.shape != x.shape:
        return None
    return x.series[1], y


def _series(ctx: Context, op: str, values: Sequence[Value]) -> tuple[Size, Size] | None:
    """First element and step of the operator's result; None where it is no arithmetic progression."""
    b, x = ctx.b, values[0]
    if op == "Cast":
        return x.series
    if len(values) == 2 and (op in having(Fact.ADDS) or op == "Mul"):
        y = values[1]
        if x.series is None and op != "Sub":
            x, y = y, x
        by = only(b, y)
        if x.series is None or by is None:
            return None
        first, step = x.series
        if op == "Mul":
            return first * by, step * by
        return (first - by if op == "Sub" else first + by), step
    if x.series is None:
        return None
    first, step = x.series
    if op == "Slice":
        start = only(b, values[1]) if len(values) > 1 else None
        by = only(b, values[4]) if len(values) > 4 else 1
        return (first + step * start, step) if isinstance(start, int) and start >= 0 and by == 1 else None
    if op == "Concat" and len(values) == 2 and only(b, values[1]) == first + step * x.shape[0]:
        return x.series
    return None


def only(b: Builder, value: Value) -> Size | None:
    """The single element of a small integer tensor, as an int or a `Dim`; None where it is not known."""
    if value.groups is None or product(value.shape) != 1:
        return None
    found = symbolic(b, value)
    return None if found is None else found.reshape(-1)[0]


def progression(b: Builder, value: Value) -> tuple[Size, Size] | None:
    """First element and step of an integer vector that is an arithmetic progression, noted or constant; else None."""
    if value.series is not None or value.groups is None or value.rank != 1 or value.dtype not in EXACT:
        return value.series
    array = constant(b, value)
    if array is None or array.size < 2 or len(set(np.diff(array).tolist())) != 1:
        return None
    return int(array[0]), int(array[1] - array[0])


def scalar(b: Builder, size: Size, dtype: int = TensorProto.INT64) -> Value:
    """A size as a Value of shape []."""
    sym = np.empty((), dtype=object)
    sym[()] = size
    return from_sizes(b, sym, dtype)


def substitute(size: Size, name: str, by: Size) -> Size:
    """The size with a symbol replaced by another size."""
    if not isinstance(size, Dim):
        return size
    total: Size = 0
    for monomial, factor in size.terms.items():
        total = total + factor * product(by if s == name else Dim.symbol(s) for s in monomial)
    return total


def linear(size: Size, name: str) -> tuple[Size, Size] | None:
    """(c, k) such that ``size`` is ``c + k * (name - 1)`` and k does not have the symbol; else None."""
    at = [substitute(size, name, k) for k in (1, 2)]
    step = at[1] - at[0]
    return (at[0], step) if size == at[0] + step * (Dim.symbol(name) - 1) else None


def solved(difference: Size, fixed: str) -> tuple[str, Size] | None:
    """A symbol other than ``fixed``, and its value where the difference is zero; None where there is none."""
    if not isinstance(difference, Dim):
        return None
    for name in sorted(difference.symbols - {fixed}):
        factor = difference.terms.get((name,), 0)
        rest = difference - factor * Dim.symbol(name)
        if factor in (1, -1) and name not in symbols(rest):
            return name, rest * -factor
    return None
