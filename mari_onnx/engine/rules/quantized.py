"""Quantization whose scale depends on what the tensor holds at run time, and products of integers.

    DynamicQuantizeLinear   scale and zero point follow from the smallest and the largest element of x (and 0), so N
                            equal rows count like one, and [u | x] is quantized as one vector of all its elements:
                            q([u | x]) = [a | c] with (a, c) = q((u, x)), whatever the formula of the scale
    MatMulInteger           [a | c] W = a W_u + c W_x in 32 bits, exactly: the sum of integers has no rounding

The user's row is quantized once per request, with the range of all candidates, and multiplied once. onnxruntime fuses
DynamicQuantizeLinear, MatMulInteger, Cast and Mul into one kernel, but not with a sum between them; the two more passes
over the result cost less than the user's columns do, unless these are few (`apart`).
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from mari_onnx.engine.algebra.sums import add
from mari_onnx.engine.axes.align import align, single
from mari_onnx.engine.axes.materialize import as_leaf
from mari_onnx.engine.axes.select import coalesce, take
from mari_onnx.engine.batching import MAPPED, run
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.value import Body, Cat, Leaf, Tensor, Value, axes_of, leaves
from mari_onnx.engine.rule import Context, from_tensor, lowered, rule
from mari_onnx.engine.rules.dequantized import ELEMENT, INTEGER, apart, vary
from mari_onnx.engine.rules.microsoft.fused import differs
from mari_onnx.engine.rules.microsoft.shapes import MICROSOFT
from mari_onnx.engine.rules.slices import HUGE
from mari_onnx.model.dims import Size, product


@rule("DynamicQuantizeLinear", splits=True)
def dynamic(ctx: Context) -> list[Value]:
    """On one row for all that are equal, and with one range for all parts of a Cat."""
    x = ctx.input(0)
    body = coalesce(ctx.b, x.body) if isinstance(x.body, Cat) else x.body
    kinds = [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8]
    if isinstance(body, Cat) and vary(body) and _enough(x, body):
        return _together(ctx, x, body, kinds)
    leaf = as_leaf(ctx.b, body, [a for group in x.known for a in group])
    y, scale, zero = ctx.b.copy(ctx.node, [leaf.tensor], kinds, [leaf.tensor.shape, (), ()])
    return [ctx.value(x.known, Leaf(y, leaf.axes), y.dtype), from_tensor(scale), from_tensor(zero)]


def _enough(x: Value, cat: Cat) -> bool:
    """Whether a product behind it would be taken apart, as far as that does not depend on its width."""
    kinds = [axes_of(part.body) - {part.axis} for part in cat.parts]
    full = frozenset().union(*kinds)
    fewer = sum(len(p.positions) for p, kind in zip(cat.parts, kinds, strict=True) if kind != full)
    return cat.axis not in x.known[-1] or INTEGER * fewer > ELEMENT


def _together(ctx: Context, x: Value, body: Body, kinds: Sequence[int]) -> list[Value]:
    """The parts behind each other as one vector, which is quantized and cut again."""
    b = ctx.b
    found = {leaf.tensor.name: leaf.tensor for leaf in leaves(body)}
    tensors = sorted(found.values(), key=lambda t: not isinstance(product(t.known), int))
    flat = emit.concat(b, [emit.reshape(b, t, [product(t.known)]) for t in tensors], 0)
    y, scale, zero = b.copy(ctx.node, [flat], kinds, [flat.shape, (), ()])
    start: Size = 0
    done: dict[str, Tensor] = {}
    for t in tensors:
        size = product(t.known)
        end = b.ints([HUGE]) if t is tensors[-1] else b.sizes([start + size])
        piece = b.emit("Slice", [y, b.sizes([start]), end, b.ints([0])], (size,))
        done[t.name] = emit.reshape(b, piece, t.known)
        start = start + size
    return [ctx.value(x.known, _replaced(body, done), y.dtype), from_tensor(scale), from_tensor(zero)]


def _replaced(body: Body, tensors: dict[str, Tensor]) -> Body:
    if isinstance(body, Cat):
        return Cat(body.axis, tuple(p.with_body(_replaced(p.body, tensors)) for p in body.parts), True)
    assert isinstance(body, Leaf)
    return Leaf(tensors[body.tensor.name], body.axes)


@rule("MatMulInteger", splits=True)
def matmul(ctx: Context) -> Sequence[Value | None]:
    """The sum over the parts of a Cat along the contracted axis, in 32 bits; rows that are equal once. Refuses zero
    points of each row, and weights that are not a constant matrix.
    """
    rows = MAPPED["", "MatMulInteger"](ctx)
    a = ctx.input(0)
    x, axis = single(ctx.b, a, a.rank - 1)
    body = coalesce(ctx.b, x.body) if isinstance(x.body, Cat) else x.body
    parts = isinstance(body, Cat) and body.axis is axis and vary(body)
    if not parts or not isinstance(body, Cat) or not apart(ctx, body, ctx.input(1).shape[1]):
        return run(ctx, rows)
    weights, along = single(ctx.b, ctx.input(1), 0)
    assert along is not None
    products = []
    for part in body.parts:
        own = ctx.value([*x.known[:-1], (part.axis,) if part.axis else ()], part.body, x.dtype)
        matrix = take(ctx.b, weights.body, along, part.positions, part.axis)
        w = ctx.value([(part.axis,) if part.axis else (), weights.known[1]], matrix, weights.dtype)
        (one,) = run(ctx.on(ctx.node, [own, w, *ctx.inputs[2:]]), rows)
        assert one is not None
        products.append(one)
    bodies, groups = align(ctx.b, products)
    order = [axis for group in groups for axis in group]
    return [ctx.value(groups, add(ctx.b, bodies, order), products[0].dtype)]


@rule("DynamicQuantizeMatMul", domain=MICROSOFT, splits=True)
def dynamic_matmul(ctx: Context) -> Sequence[Value | None]:
    """As onnxruntime fuses it of DynamicQuantizeLinear, MatMulInteger, Cast, Mul and Add; as these, where something is
    saved.
    """
    if not differs(ctx.input(0)):
        return ctx.write_out()
    with lowered(ctx) as step:
        q, scale, zero = step.several("DynamicQuantizeLinear", 3, ctx.input(0))
        zeros = [ctx.input(3)] if ctx.has(3) else []
        return [_scaled(ctx, step("MatMulInteger", q, ctx.input(1), zero, *zeros), scale, ctx.input(2), 4)]


@rule("MatMulIntegerToFloat", domain=MICROSOFT, splits=True)
def matmul_to_float(ctx: Context) -> Sequence[Value | None]:
    """The same of what is quantized already."""
    if not differs(ctx.input(0)):
        return ctx.write_out()
    given = [ctx.inputs[i] if ctx.has(i) else None for i in (4, 5)]
    with lowered(ctx) as step:
        made = step("MatMulInteger", ctx.input(0), ctx.input(1), *given)
        return [_scaled(ctx, made, ctx.input(2), ctx.input(3), 6)]


def _scaled(ctx: Context, whole: Value, left: Value, right: Value, bias: int) -> Value:
    with lowered(ctx) as step:
        made = step("Mul", step("Cast", whole, to=TensorProto.FLOAT), step("Mul", left, right))
        return step("Add", made, ctx.input(bias)) if ctx.has(bias) else made
