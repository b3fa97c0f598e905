"""Products of dequantized operands (static quantization, format QDQ), which onnxruntime runs on integers.

    dequantize([a | c]) dequantize(W) + bias  =  dequantize(c) dequantize(W_c) + dequantize(a W_a + bias)

with the zero points taken off a and W_a. ``a W_a + bias`` is a sum of integers in 32 bits, without rounding, once per
request; its scale is the product of both scales. As the C of a Gemm it is what the kernel of integers starts to add up
from, so the result has the source's own numbers. Products of floats would take three to four times as long, and round
otherwise. Where a part cannot be in the C, the sum of integers is dequantized as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from mari_onnx.engine.axes.align import single
from mari_onnx.engine.axes.materialize import as_leaf, write
from mari_onnx.engine.axes.select import coalesce, take
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.value import Axis, Body, Cat, Group, Leaf, Part, Tensor, Value, axes_of, is_const, rows_first
from mari_onnx.engine.rule import Answer, Context, from_tensor, lowered
from mari_onnx.model.dims import Size, static
from mari_onnx.model.nodes import attribute, is_standard

BITS = frozenset({TensorProto.INT8, TensorProto.UINT8})
INTEGER = 0.2
"""Time of a multiply-add of 8-bit integers, in multiply-adds of floats (measured on AVX-512 VNNI: 6 ps)."""
ELEMENT = 30.0
"""Time per element of a product that is added up, as it is not fused with the Cast and the Mul (measured: 0.9 ns)."""
START = 4.0
"""Time per element of a result that starts from a C, in multiply-adds of floats (0.1 ns)."""
WRITE = 4.0
"""Time per 8-bit element that is repeated and concatenated."""


@dataclass(frozen=True)
class Codes:
    """What a dequantized operand of the source is: integers, and arrays of one scale and zero point, or of one for each
    position along ``axis``.
    """

    numbers: Value
    scale: np.ndarray
    zero: np.ndarray
    axis: int | None


@dataclass(frozen=True)
class Operands:
    """A product [.., K] x [K, H] of dequantized operands, and the integers that are added to it.

    rows: the groups of x but its last. inner: the axis of K. columns: the group of H. matrix: [K, H], of integers.
    """

    x: Codes
    w: Codes
    rows: tuple[Group, ...]
    body: Body
    inner: Axis
    columns: Group
    matrix: Value
    bias: Value | None

    @property
    def scale(self) -> np.ndarray:
        """Of the sums: one number, or one for each column."""
        found: np.ndarray = (self.x.scale * self.w.scale).astype(np.float32)
        return found


def on_integers(ctx: Context, floats: Answer) -> Sequence[Value | None]:
    """A MatMul or a Gemm, whose first operand is dequantized parts that vary differently, by parts of integers, or on
    integers that are written out. floats: the rule for any other.
    """
    found = _dequantized_operands(ctx)
    if found is None:
        return floats(ctx)
    value = by_parts(ctx, found)
    if value is not None:
        return [value]
    if not isinstance(found.body, Leaf) and not _along(found):
        return floats(ctx)
    leaf = as_leaf(ctx.b, found.body, [a for group in (*found.rows, (found.inner,)) for a in group])
    if found.bias is not None:
        part = Part(tuple(range(static(found.inner.size))), found.inner, leaf)
        return [_gemm(ctx, found, part, write(ctx.b, found.bias.body, [(), found.bias.known[-1]]))]
    groups = (*found.rows, (found.inner,))
    whole = Leaf(_floats(ctx, leaf.tensor, found.x), leaf.axes)
    x = Value(groups[::-1] if ctx.attr("transA", 0) else groups, whole, TensorProto.FLOAT)
    return floats(ctx.on(ctx.node, [x, *ctx.inputs[1:]]))


def _along(found: Operands) -> bool:
    """Whether the first operand is a Cat along K whose parts vary differently."""
    body = found.body
    if not isinstance(body, Cat) or body.axis is not found.inner or not vary(body):
        return False
    return not any(isinstance(part.body, Cat) for part in body.parts)


def by_parts(ctx: Context, found: Operands) -> Value | None:
    """The product as floats, of integers by parts; None where there are none, or that would take longer."""
    if not isinstance(found.body, Cat) or not _along(found):
        return None
    kinds = [axes_of(part.body) - {part.axis} for part in found.body.parts]
    full = frozenset().union(*kinds)
    whole = [part for part, kind in zip(found.body.parts, kinds, strict=True) if kind == full]
    others = [part for part, kind in zip(found.body.parts, kinds, strict=True) if not kind]
    if len(whole) != 1 or len(others) != len(kinds) - 1:
        return _sum_of_all(ctx, found) if apart(ctx, found.body, found.matrix.shape[1]) else None
    return _from_a_start(ctx, found, whole[0], others) if start_pays(ctx, found, others, full) else None


def start_pays(ctx: Context, found: Operands, others: Sequence[Part], full: frozenset[Axis]) -> bool:
    """Whether the product of one part, that starts from the others', takes less time than the product of all.

    full: the axes of the result.
    """
    time = ctx.b.time
    rows, width = time.volume(full), time.volume(found.columns)
    saved = INTEGER * sum(len(part.positions) for part in others) * (rows - 1) * width
    saved += WRITE * rows * time.volume([found.inner])
    start = 0.0 if found.bias is not None else START * rows * width
    return saved > 2 * len(others) * time.node + start


def vary(cat: Cat) -> bool:
    """Whether parts vary along different axes."""
    kinds = [axes_of(part.body) - {part.axis} for part in cat.parts]
    return any(kind != kinds[0] for kind in kinds) or any(isinstance(p.body, Cat) and vary(p.body) for p in cat.parts)


def apart(ctx: Context, cat: Cat, columns: Size) -> bool:
    """Whether products by parts take less time than one product over all columns."""
    time = ctx.b.time
    kinds = [axes_of(part.body) - {part.axis} for part in cat.parts]
    full = time.volume(frozenset().union(*kinds)) * time.length(columns)
    each = [time.volume(kind) * time.length(columns) for kind in kinds]
    saved = INTEGER * sum(len(p.positions) * (full - n) for p, n in zip(cat.parts, each, strict=True))
    return saved > 2 * len(cat.parts) * time.node + ELEMENT * full


def operands(ctx: Context, x: Codes, w: Codes, bias: Value | None, turned: Sequence[bool]) -> Operands | None:
    """The product of matrices of integers; None where it is none.

    bias: integers of the product's scale. turned: whether the operands are transposed.
    """
    if x.axis is not None or x.numbers.rank < 2 or w.numbers.rank != 2 or not is_const(w.numbers.body):
        return None
    if x.numbers.dtype not in BITS or w.numbers.dtype not in BITS or w.axis not in (None, 0 if turned[1] else 1):
        return None
    if x.numbers.dtype == TensorProto.INT8 and w.numbers.dtype != TensorProto.INT8:
        return None
    groups = x.numbers.known[::-1] if turned[0] else x.numbers.known
    numbers, inner = single(ctx.b, Value(groups, x.numbers.body, x.numbers.dtype), len(groups) - 1)
    body = coalesce(ctx.b, numbers.body) if isinstance(numbers.body, Cat) else numbers.body
    if inner is None:
        return None
    matrix = Value(w.numbers.known[::-1], w.numbers.body, w.numbers.dtype) if turned[1] else w.numbers
    if bias is not None and (not is_const(bias.body) or bias.shape not in (matrix.shape[1:], (1, *matrix.shape[1:]))):
        return None
    return Operands(x, w, numbers.known[:-1], body, inner, matrix.known[1], matrix, bias)


def _dequantized_operands(ctx: Context) -> Operands | None:
    x, w, bias = (_codes(ctx, i) for i in range(3))
    if x is None or w is None or ctx.attr("alpha", 1.0) != 1 or ctx.attr("beta", 1.0) != 1:
        return None
    if ctx.has(2) and (bias is None or bias.numbers.dtype != TensorProto.INT32 or bias.zero.any()):
        return None
    turned = [bool(ctx.attr(name, 0)) for name in ("transA", "transB")]
    found = operands(ctx, x, w, bias.numbers if bias is not None else None, turned)
    if found is None or bias is None:
        return found
    size = max(found.scale.size, bias.scale.size)
    same = np.allclose(np.resize(found.scale, size), np.resize(bias.scale, size), rtol=1e-5, atol=0)
    return found if same else None


def _codes(ctx: Context, i: int) -> Codes | None:
    """Operand i before its DequantizeLinear; None where another operator computes it, or the scale is computed."""
    node = ctx.session.made.get(ctx.node.input[i]) if ctx.has(i) else None
    if node is None or node.op_type != "DequantizeLinear" or not is_standard(node):
        return None
    if attribute(node, "block_size", 0):
        return None
    there = ctx.on(node, [ctx.env.get(x) for x in node.input])
    return codes(there, 0, attribute(node, "axis", 1))


def codes(ctx: Context, i: int, axis: int = 1) -> Codes | None:
    """Inputs i to i + 2 as integers, their scale and zero point; None where these are computed."""
    numbers, scale, zero = ctx.inputs[i], ctx.array(i + 1), ctx.array(i + 2)
    if numbers is None or numbers.groups is None or scale is None or scale.ndim > 1 or scale.dtype != np.float32:
        return None
    if ctx.has(i + 2) and zero is None:
        return None
    zero = np.zeros(scale.shape, np.int64) if zero is None else zero
    along = axis % max(1, numbers.rank) if scale.size > 1 else None
    return Codes(numbers, scale.reshape(-1), zero.reshape(-1), along)


def _from_a_start(ctx: Context, found: Operands, whole: Part, others: Sequence[Part]) -> Value:
    """The part that varies like the result as a Gemm, with the integers of all others in its C."""
    b = ctx.b
    zeros = [_zero(ctx, _unsigned(found.x)), _zero(ctx, found.w)]
    start: Tensor | None = None
    for part in others:
        row = write(b, part.body, [(), (part.axis,) if part.axis else ()], frozenset({part.axis} if part.axis else ()))
        if found.x.numbers.dtype == TensorProto.INT8:
            given = [_numbers(ctx, found.x.scale, TensorProto.FLOAT), zeros[0]]
            row = b.emit("QuantizeLinear", [_floats(ctx, row, found.x), *given], row.shape, TensorProto.UINT8)
        matrix = _matrix(ctx, found, part)
        product = b.emit("MatMulInteger", [row, matrix, *zeros], (1, matrix.known[1]), TensorProto.INT32)
        start = product if start is None else emit.binary(b, "Add", start, product)
    assert start is not None
    if found.bias is not None:
        start = emit.binary(b, "Add", start, write(b, found.bias.body, [(), found.bias.known[-1]]))
    return _gemm(ctx, found, whole, start)


def _gemm(ctx: Context, found: Operands, whole: Part, start: Tensor) -> Value:
    """The product of a part of the first operand, which starts from the integers ``start``, [1, H]."""
    b = ctx.b
    rows = rows_first([a for group in found.rows for a in group if a in axes_of(whole.body)])
    inside = (whole.axis,) if whole.axis else ()
    x = write(b, whole.body, [tuple(rows), inside])
    scale = _numbers(ctx, found.scale, TensorProto.FLOAT)
    by_column = {"axis": 1} if found.scale.size > 1 else {}
    operands = [
        _floats(ctx, x, found.x),
        _floats(ctx, _matrix(ctx, found, whole), found.w),
        b.emit("DequantizeLinear", [start, scale], start.shape, TensorProto.FLOAT, by_column),
    ]
    made = b.emit("Gemm", operands, (x.known[0], start.known[1]), TensorProto.FLOAT)
    # one column stays a dimension, so that nothing stands between the product and its quantization
    columns = found.columns or (None,)
    out = emit.reshape(b, made, [*(a.size for a in rows), *(a.size if a else 1 for a in columns)])
    return ctx.value([*found.rows, found.columns], Leaf(out, (*rows, *columns)), TensorProto.FLOAT)


def _sum_of_all(ctx: Context, found: Operands) -> Value:
    """The sum of integers of all parts, dequantized."""
    with lowered(ctx) as step:
        x = Value((*found.rows, (found.inner,)), found.body, found.x.numbers.dtype)
        zeros = [from_tensor(_zero(ctx, each)) for each in (found.x, found.w)]
        whole = step("MatMulInteger", x, found.matrix, *zeros)
        if found.bias is not None:
            whole = step("Add", whole, found.bias)
        scale = from_tensor(_numbers(ctx, found.scale, TensorProto.FLOAT))
        return step("Mul", step("Cast", whole, to=TensorProto.FLOAT), scale)


def _matrix(ctx: Context, found: Operands, part: Part) -> Tensor:
    """The rows of the weights for a part, [K of the part, H]."""
    value, along = single(ctx.b, found.matrix, 0)
    assert along is not None
    body = take(ctx.b, value.body, along, part.positions, part.axis)
    full = frozenset(found.columns) | (frozenset({part.axis}) if part.axis else frozenset())
    return write(ctx.b, body, [(part.axis,) if part.axis else (), found.columns], full)


def _unsigned(of: Codes) -> Codes:
    """The same as integers without a sign: onnxruntime's MatMulInteger is several times slower with one on the left."""
    if of.numbers.dtype == TensorProto.UINT8:
        return of
    zero = of.zero.astype(np.int64) + 128
    return Codes(Value(of.numbers.groups, of.numbers.body, TensorProto.UINT8), of.scale, zero, of.axis)


def _numbers(ctx: Context, array: np.ndarray, dtype: int) -> Tensor:
    """One number as a scalar, several as a vector."""
    return ctx.b.const(array if array.size > 1 else array[0], dtype)


def _zero(ctx: Context, of: Codes) -> Tensor:
    return _numbers(ctx, of.zero, of.numbers.dtype)


def _floats(ctx: Context, t: Tensor, of: Codes) -> Tensor:
    """Integers as floats again; a scale for each column is one along dimension 1."""
    attrs = {"axis": 1} if of.scale.size > 1 else {}
    scale = _numbers(ctx, of.scale, TensorProto.FLOAT)
    return ctx.b.emit("DequantizeLinear", [t, scale, _zero(ctx, of)], t.shape, TensorProto.FLOAT, attrs)

