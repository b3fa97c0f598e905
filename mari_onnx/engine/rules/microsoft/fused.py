"""Products and normalizations as onnxruntime's optimizer fuses them (com.microsoft), written as what they were fused
from.

    FusedMatMul             alpha A' B', A' and B' transposed by transA, transBatchA, ..
    FusedGemm, FusedConv    f(Gemm(..)), f(Conv(..))
    BiasGelu, FastGelu      f(x + bias)
    SkipLayerNormalization  LayerNorm(x + skip + bias), the sum being output 3; likewise SkipSimplified.. and RMSNorm

These are then split like any other sum or product, and onnxruntime fuses the result again when it loads the new model.
Where no operand has parts, lacks an axis or has another form, nothing could be saved, and the operator is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from mari_onnx.engine.batching import MAPPED, Through, run
from mari_onnx.engine.ir.value import Axis, Body, Cat, Decline, Leaf, Value, axes_of, is_const
from mari_onnx.engine.rule import Context, lowered, rule
from mari_onnx.engine.rules.batched import norm_axes
from mari_onnx.engine.rules.elementwise import plain
from mari_onnx.engine.rules.microsoft.shapes import MICROSOFT, permutation
from mari_onnx.engine.rules.norm import layer_norm
from mari_onnx.model.dims import Dim
from mari_onnx.model.ops import row


def differs(value: Value | None) -> bool:
    """Whether an operand has parts that vary along different axes, lacks an axis, or has another form."""
    if value is None or value.groups is None or is_const(value.body):
        return False
    return _differs(value.body, frozenset(value.axes))


def _differs(body: Body, axes: frozenset[Axis]) -> bool:
    if isinstance(body, Cat):
        rest = axes - {body.axis}
        return any(_differs(p.body, rest | ({p.axis} if p.axis is not None else set())) for p in body.parts)
    return axes_of(body) != axes or (isinstance(body, Leaf) and body.tensor.alternatives.form is not None)


@rule("FusedMatMul", domain=MICROSOFT, splits=True)
def matmul(ctx: Context) -> Sequence[Value | None]:
    """alpha is multiplied into the operand that is constant, or varies along fewer dynamic axes.

    Refuses transposed batch axes of operands of two dimensions, which onnxruntime does not take either.
    """
    x, y = ctx.input(0), ctx.input(1)
    if not (differs(x) or differs(y)):
        return ctx.write_out()
    if (ctx.attr("transBatchA", 0) or ctx.attr("transBatchB", 0)) and not x.rank == y.rank > 2:
        raise Decline("it transposes batch axes, and the operands differ in rank")
    with lowered(ctx) as step:
        operands = []
        for value, side in ((x, "A"), (y, "B")):
            perm = permutation(ctx.node, value.rank, side)
            operands.append(step("Transpose", value, perm=perm) if perm != list(range(value.rank)) else value)
        alpha = ctx.attr("alpha", 1.0)
        if alpha != 1:
            small = int(_varies(y) < _varies(x))
            operands[small] = step("Mul", operands[small], step.const(alpha, x.dtype))
        return [step("MatMul", *operands)]


def _varies(value: Value) -> int:
    """The number of dynamic axes along which a value varies; 0 for a constant."""
    return sum(isinstance(a.size, Dim) for a in axes_of(value.body)) + (not is_const(value.body))


@rule("FusedGemm", domain=MICROSOFT, splits=True)
def gemm(ctx: Context) -> Sequence[Value | None]:
    """f(alpha A' B' + beta C); refuses an operator that is no activation, or lacks a parameter."""
    if not any(differs(value) for value in ctx.inputs[:2]):
        return ctx.write_out()
    parameters = {name: ctx.attr(f"activation_{name}") for name in ("alpha", "beta", "gamma")}
    activation = _activation(ctx, {k: v for k, v in parameters.items() if v is not None})
    plain = {k: v for k, v in ctx.attrs.items() if k in ("alpha", "beta", "transA", "transB")}
    with lowered(ctx) as step:
        inputs = [ctx.input(i) for i in range(3) if ctx.has(i)]
        return [step(activation[0], step("Gemm", *inputs, **plain), **activation[1])]


def _activation(ctx: Context, given: dict[str, float]) -> tuple[str, dict[str, float]]:
    op = str(ctx.attr("activation", ""))
    names = row(op).activation
    if names is None or any(name not in given for name in names):
        raise Decline(f"the activation {op or 'is not named'}")
    return op, {name: given[name] for name in names}


@rule("FusedConv", domain=MICROSOFT, splits=True)
def conv(ctx: Context) -> Sequence[Value | None]:
    """f(Conv(X, W, B)); refuses a tensor that is added before the activation."""
    if ctx.has(3):
        raise Decline("the Conv also adds another tensor")
    if not differs(ctx.input(0)):
        return ctx.write_out()
    plain = {k: v for k, v in ctx.attrs.items() if not k.startswith("activation")}
    given = list(ctx.attr("activation_params", []))
    op = ctx.attr("activation", "")
    clip = op == "Clip" and len(given) == 2
    activation = ("Clip", {}) if clip else _activation(ctx, dict(zip(row(op).activation or (), given, strict=False)))
    with lowered(ctx) as step:
        x = step("Conv", *(ctx.input(i) for i in range(3) if ctx.has(i)), **plain)
        bounds = [step.const(v, x.dtype) for v in given] if clip else []
        return [step(activation[0], x, *bounds, **activation[1])]


@rule("BiasGelu", "FastGelu", domain=MICROSOFT, splits=True)
def gelu(ctx: Context) -> Sequence[Value | None]:
    """f(x + bias). The kernels take a bias of one dimension only, and parts of it may have more."""
    if not ctx.has(1):
        return plain(ctx)
    if not differs(ctx.input(0)):
        return ctx.write_out()
    op = ctx.node.op_type.removeprefix("Bias")
    with lowered(ctx) as step:
        return [step(op, step("Add", ctx.input(0), ctx.input(1)), domain=MICROSOFT)]


MAPPED["", "SimplifiedLayerNormalization"] = norm_axes
rule("SimplifiedLayerNormalization")(layer_norm)  # RMSNormalization, as onnxruntime has it in every opset


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT, splits=True)
def skip_norm(ctx: Context) -> Sequence[Value | None]:
    """The norm of a sum over the last axis. Refuses the mean and the inverse deviation as outputs.

    In opsets without that norm, the operator itself on rows that differ, and the sum beside it.
    """
    simplified = ctx.node.op_type == "SkipSimplifiedLayerNormalization"
    outputs = [*ctx.node.output, *[""] * 4][:4]
    if not any(differs(value) for value in ctx.inputs[:2]):
        return ctx.write_out()
    if outputs[1] or outputs[2]:
        raise Decline("it outputs the mean or the deviation")
    x, skip, scale = (ctx.input(i) for i in range(3))
    epsilon = ctx.attr("epsilon", 1e-12)
    shift, bias = (None if simplified else 3), (3 if simplified else 4)
    whole: Value | None = None
    with lowered(ctx) as step:
        total = step("Add", x, skip)
        if ctx.has(bias):
            total = step("Add", total, ctx.input(bias))
        if ctx.opset >= (23 if simplified else 17):
            more = [ctx.input(shift)] if shift is not None and ctx.has(shift) else []
            norm = "RMSNormalization" if simplified else "LayerNormalization"
            whole = step(norm, total, scale, *more, axis=-1, epsilon=epsilon)
    if whole is None:
        missing = x.rank - skip.rank
        rows = [Through((a, a - missing if a >= missing else None), (a, None, None, a)) for a in range(x.rank - 1)]
        if any(t.inputs[1] is not None and not ctx.b.same(x.shape[a], skip.shape[t.inputs[1]])
               for a, t in enumerate(rows)):  # fmt: skip
            raise Decline("the skip input is broadcast")
        only = ctx.on(_alone(ctx), ctx.inputs)
        rows = [Through((*t.inputs, *[None] * (len(ctx.inputs) - 2)), t.outputs[:1]) for t in rows]
        whole = run(only, rows)[0]
    return [whole, None, None, total][: len(ctx.node.output)]


def _alone(ctx: Context) -> NodeProto:
    """The node with its first output alone."""
    node = NodeProto()
    node.CopyFrom(ctx.node)
    del node.output[1:]
    return node
