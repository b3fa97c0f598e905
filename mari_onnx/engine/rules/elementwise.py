"""Element-wise operators: applied to each part of a Cat, and to user-only operands once per request.

    f([x_1 | x_2], broadcast(y)) = [f(x_1, y_1) | f(x_2, y_2)]      f(broadcast(x)) = broadcast(f(x))
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from mari_onnx.engine.algebra.sums import binary, broadcast_layout, drop_uniform_axes, keep
from mari_onnx.engine.analysis.cancellation import cancels
from mari_onnx.engine.axes.align import align
from mari_onnx.engine.axes.blockwise import zip_bodies
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.forms import with_form
from mari_onnx.engine.ir.value import Axis, Body, Decline, Leaf, Prod, Sum, Tensor, Value, axes_of
from mari_onnx.engine.rule import Context, from_array, rule
from mari_onnx.engine.rules.regions import by_regions, times_mask
from mari_onnx.model.dims import Size
from mari_onnx.model.ops import MICROSOFT, STANDARD, Fact, having
from mari_onnx.model.tensors import INDICES


@rule(*sorted(
    having(Fact.ELEMENT, STANDARD) - {"Add", "Sub", "Mul", "Div", "Where", "Cast", "CastLike", "Clip", "Identity"}
))  # fmt: skip
def plain(ctx: Context) -> list[Value]:
    """Any element-wise operator whose result is boolean or of the first input's type; the others have rules of their
    own.
    """
    values = [ctx.input(i) for i in range(len(ctx.inputs))]
    bodies, groups = align(ctx.b, values)
    order = [a for g in groups for a in g]
    dtype = TensorProto.BOOL if ctx.node.op_type in having(Fact.BOOLEAN) else values[0].dtype
    body = zip_bodies(ctx.b, bodies, lambda ls: _copy(ctx, ls, order, dtype), order=order)
    return [ctx.value(groups, body, dtype)]


@rule("Gelu", "QuickGelu", domain=MICROSOFT)
def microsoft(ctx: Context) -> list[Value]:
    """Activations of com.microsoft, element-wise like any other: f([x_1 | x_2]) = [f(x_1) | f(x_2)]."""
    return plain(ctx)


def _copy(ctx: Context, leaves: list[Leaf], order: list[Axis], dtype: int) -> Leaf:
    """The node itself, on the leaves of one part."""
    leaves = [drop_uniform_axes(ctx.b, leaf) for leaf in leaves]
    tensors, axes = broadcast_layout(ctx.b, leaves, order)
    if ctx.node.domain and tensors[0].known == ():
        # kernels of com.microsoft want a dimension
        tensors[0], axes = emit.reshape(ctx.b, tensors[0], [1]), (None,)
    shape: tuple[Size, ...] = ()
    for t in tensors:
        shape = emit.broadcast(shape, t.known)
    if ctx.node.op_type == "PRelu" and tensors[0].known != shape:
        # its slope broadcasts to x, not the other way round
        x = emit.reshape(ctx.b, tensors[0], [*[1] * (len(shape) - len(tensors[0].known)), *tensors[0].known])
        tensors[0] = emit.expand(ctx.b, x, shape)
    (out,) = ctx.b.copy(ctx.node, tensors, [dtype], [shape])
    leaf = Leaf(keep(ctx.b, out, axes), axes)
    op = ctx.node.op_type
    if op == "Neg" and dtype == TensorProto.FLOAT:
        return with_form(leaf, Prod((leaves[0], Leaf(ctx.b.const(-1, dtype), ()))))
    if op == "Sum" and len(leaves) > 1:
        return leaf if cancels(leaves) else with_form(leaf, Sum(tuple(leaves)))
    if op == "Pow" and leaves[1].tensor.scalar == 2:
        return with_form(leaf, Prod((leaves[0], leaves[0])))
    return leaf


@rule("Add", "Sub", "Mul", "Div")
def arithmetic(ctx: Context) -> list[Value]:
    """Add, Sub, Mul and Div, part by part; terms and factors are kept for products that follow (`ir/forms.py`)."""
    x, y = ctx.input(0), ctx.input(1)
    (bx, by), groups = align(ctx.b, [x, y])
    order = [a for g in groups for a in g]
    op = ctx.node.op_type

    def visit(leaves: list[Leaf]) -> Body:
        found = times_mask(ctx.b, *leaves) if op == "Mul" else None
        return found if found is not None else binary(ctx.b, op, leaves[0], leaves[1], order)

    return [ctx.value(groups, zip_bodies(ctx.b, [bx, by], visit, order=order), x.dtype)]


@rule("Where")
def where(ctx: Context) -> list[Value]:
    """Part by part; where a part of the condition is the same throughout, the result is a part of one branch.

    A causal mask makes the block of the user's queries and the item's keys a constant. Equal branches are that branch.
    A constant condition of few regions makes parts of its own (`regions.py`).
    """
    values = [ctx.input(i) for i in range(3)]
    bodies, groups = align(ctx.b, values)
    order = [a for g in groups for a in g]

    def visit(leaves: list[Leaf]) -> Body:
        condition, x, y = (drop_uniform_axes(ctx.b, leaf) for leaf in leaves)
        chosen = condition.tensor.scalar if not axes_of(condition) else None
        if chosen is not None:
            return x if chosen else y
        same = x.tensor.scalar is not None and y.tensor.scalar is not None and not axes_of(x) and not axes_of(y)
        if same and np.array_equal(x.tensor.scalar, y.tensor.scalar):
            return x
        found = by_regions(ctx.b, condition, x, y)
        return found if found is not None else _copy(ctx, [condition, x, y], order, values[1].dtype)

    return [ctx.value(groups, zip_bodies(ctx.b, bodies, visit, order=order), values[1].dtype)]


@rule("Cast")
def cast(ctx: Context) -> list[Value]:
    """cast([x_1 | x_2]) = [cast x_1 | cast x_2]; a cast to the type that x has is x."""
    x, to = ctx.input(0), int(ctx.attr("to"))
    if x.dtype == to:
        return [x]
    body = zip_bodies(ctx.b, [x.body], lambda ls: _cast(ctx, ls[0], to))
    value = ctx.value(x.known, body, to)
    if to in INDICES:
        value.places = x.places
    return [value]


def _cast(ctx: Context, leaf: Leaf, to: int) -> Leaf:
    (out,) = ctx.b.copy(ctx.node, [leaf.tensor], [to], [leaf.tensor.shape])
    return Leaf(out, leaf.axes)


@rule("CastLike")
def cast_like(ctx: Context) -> list[Value]:
    """`cast` to the type of the other operand, of which nothing but the type counts; refuses an unknown type."""
    x = ctx.input(0)
    other = ctx.inputs[1]
    if other is None or other.groups is None:
        raise Decline("the element type of the target is not known")
    to = other.dtype
    if x.dtype == to:
        return [x]
    attrs = {name: value for name, value in ctx.attrs.items() if name in ("saturate", "round_mode")} | {"to": to}

    def visit(leaves: list[Leaf]) -> Leaf:
        t = leaves[0].tensor
        return Leaf(ctx.b.emit("Cast", [t], t.shape, to, attrs), leaves[0].axes)

    return [ctx.value(x.known, zip_bodies(ctx.b, [x.body], visit), to)]


@rule("Clip")
def clip(ctx: Context) -> list[Value]:
    """The bounds are scalars and stay inputs of each part's Clip. Refuses other bounds."""
    x = ctx.input(0)
    bounds: list[Tensor | None] = []
    for value in ctx.inputs[1:]:
        if value is not None and not (isinstance(value.body, Leaf) and not axes_of(value.body)):
            raise Decline("a bound of the Clip is not a scalar")
        # a reduction that kept its dimensions is stored as [1, 1]; Clip takes a scalar
        inside = value is not None and isinstance(value.body, Leaf)
        bounds.append(emit.reshape(ctx.b, value.body.tensor, ()) if inside else None)  # type: ignore[union-attr]

    def visit(leaves: list[Leaf]) -> Leaf:
        (out,) = ctx.b.copy(ctx.node, [leaves[0].tensor, *bounds], [x.dtype], [leaves[0].tensor.shape])
        return Leaf(out, leaves[0].axes)

    return [ctx.value(x.known, zip_bodies(ctx.b, [x.body], visit), x.dtype)]


@rule("Identity")
def identity(ctx: Context) -> list[Value | None]:
    """x itself."""
    return [ctx.inputs[0]]


@rule("Dropout")
def dropout(ctx: Context) -> list[Value | None]:
    """Dropout outside training, or of nothing, is the identity. Refuses training mode, which is random."""
    training = ctx.array(2) if ctx.has(2) else np.asarray(False)
    ratio = ctx.array(1) if ctx.has(1) else np.asarray(0.5)
    if (training is None or bool(np.any(training))) and (ratio is None or bool(np.any(ratio))):
        raise Decline("dropout in training mode is random")
    out: list[Value | None] = [ctx.inputs[0]]
    if len(ctx.node.output) > 1:
        x = ctx.input(0)
        mask = from_array(ctx.b, np.asarray(True), TensorProto.BOOL)
        out.append(ctx.value(x.known, mask.body, TensorProto.BOOL))
    return out


def _quantized(ctx: Context) -> list[Value]:
    """Quantization with one scale is element-wise; with a scale per channel the node is left as it is."""
    x = ctx.input(0)
    for value in ctx.inputs[1:]:
        if value is not None and (value.groups is None or value.rank > 0):
            raise Decline("scale or zero point is not a scalar")
    parameters = [
        emit.reshape(ctx.b, v.body.tensor, ()) if v is not None and isinstance(v.body, Leaf) else None
        for v in ctx.inputs[1:]
    ]

    def visit(leaves: list[Leaf]) -> Leaf:
        tensors = [leaves[0].tensor, *parameters]
        found = ctx.infer([t.shape if t else None for t in tensors], tensors)
        (out,) = ctx.b.copy(ctx.node, tensors, [found[0][0]], [leaves[0].tensor.shape])
        return Leaf(out, leaves[0].axes)

    body = zip_bodies(ctx.b, [x.body], visit)
    return [ctx.value(x.known, body)]


rule("QuantizeLinear", "DequantizeLinear")(_quantized)
