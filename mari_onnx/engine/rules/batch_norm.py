"""BatchNormalization: by its parameters in inference, by its own statistics in training mode.

    BN(x) = x a + c        a = scale / sqrt(var + eps), c = bias - mean a
    BN [u|x] = [BN u | BN x]    along the channels, in training mode: mean and variance of N equal rows are those of one
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import helper

from mari_onnx.engine.algebra.sums import binary
from mari_onnx.engine.axes.align import align, single
from mari_onnx.engine.axes.blockwise import zip_bodies
from mari_onnx.engine.axes.select import coalesce
from mari_onnx.engine.batching import Through, run
from mari_onnx.engine.ir.value import Cat, Decline, Leaf, Value, axes_of
from mari_onnx.engine.rule import Context, Steps, from_array, lowered, rule

FAR = 4.0
"""Standard deviations that a BatchNormalization's mean may lie from 0: rounding errors may grow by this factor."""
MIXES = "BatchNormalization in training mode mixes the candidates"


@rule("BatchNormalization")
def batch_normalization(ctx: Context) -> Sequence[Value | None]:
    """In inference ``x * a + c`` with a = scale / sqrt(var + eps), c = bias - mean * a for each channel (axis 1).

    The node itself is kept where the statistics are computed (tf2onnx's LayerNormalization: rows as channels), and
    where a mean is far above its deviation, because ``x a`` and ``c`` would then cancel. In training mode it is
    `_of_its_own`. Refuses inputs of which nothing can be computed once.
    """
    if ctx.attr("training_mode", 0):
        return _of_its_own(ctx)
    if len([o for o in ctx.node.output if o]) > 1:
        raise Decline(MIXES)
    x = ctx.input(0)
    arrays = [ctx.array(i) for i in range(1, 5)]
    if x.rank > 2 and isinstance(x.body, Leaf) and axes_of(x.body) == frozenset(x.axes):
        raise Decline("none of its inputs is equal for all candidates")  # one kernel, not a Mul and an Add
    if any(a is None for a in arrays) or _far(arrays[2], arrays[3], ctx.attr("epsilon", 1e-5)):
        out = run(ctx, [Through((0, *[None] * 4), (0,)), Through((1, 0, 0, 0, 0), (1,))])
        return [value for value in out if value is not None]
    scale, bias, mean, var = (np.asarray(a, dtype=np.float64) for a in arrays)
    a = scale / np.sqrt(var + ctx.attr("epsilon", 1e-5))
    a = a.astype(helper.tensor_dtype_to_np_dtype(x.dtype)).astype(np.float64)  # as it is written, so that c fits it
    c = bias - mean * a
    shape = (-1, *([1] * (x.rank - 2)))
    factor, shift = (from_array(ctx.b, v.reshape(shape), x.dtype) for v in (a, c))
    (bx, bf, bs), groups = align(ctx.b, [x, factor, shift])
    order = [a for g in groups for a in g]

    def visit(leaves: list[Leaf]) -> Leaf:
        scaled = binary(ctx.b, "Mul", leaves[0], leaves[1], order)
        return binary(ctx.b, "Add", scaled, leaves[2], order)

    return [ctx.value(groups, zip_bodies(ctx.b, [bx, bf, bs], visit, order=order), x.dtype)]


def _far(mean: np.ndarray | None, var: np.ndarray | None, epsilon: float) -> bool:
    """Whether the mean of some channel exceeds `FAR` standard deviations."""
    if mean is None or var is None:
        return True
    return bool(np.any(mean.astype(np.float64) ** 2 > FAR**2 * (var.astype(np.float64) + epsilon)))


def _of_its_own(ctx: Context) -> list[Value]:
    """By its own statistics, written as the standard defines them: those of channels that lack an axis, without it.

    The operator itself on fewer channels will not do: onnxruntime writes the new mean and variance in place of the
    old ones, which may be the same constants as scale and bias. Refuses an input of which nothing can be computed once,
    and parameters of another element type.
    """
    x, axis = single(ctx.b, ctx.input(0), 1)
    body = coalesce(ctx.b, x.body) if isinstance(x.body, Cat) else x.body
    others = frozenset(a for d, group in enumerate(x.known) if d != 1 for a in group)
    parts = [p.body for p in body.parts] if isinstance(body, Cat) and body.axis is axis else [body]
    if ctx.opset < 14 or x.rank < 2 or all(others <= axes_of(part) for part in parts):
        raise Decline(MIXES)
    if any(ctx.input(i).dtype != x.dtype for i in range(1, 5)):
        raise Decline("its parameters are of another element type than its input")
    x = Value(x.groups, body, x.dtype)
    with lowered(ctx) as step:
        scale, bias, mean, var = (step("Reshape", v, step.ints(-1, *[1] * (x.rank - 2))) for v in ctx.inputs[1:5])
        kept = ctx.attr("momentum", float(np.float32(0.9)))
        ours, keep, epsilon = (
            step.const(np.asarray(v, helper.tensor_dtype_to_np_dtype(x.dtype)), x.dtype)
            for v in (1 - kept, kept, ctx.attr("epsilon", 1e-5))
        )
        own = _mean(ctx, step, x)
        rest = step("Sub", x, own)
        spread = _mean(ctx, step, step("Mul", rest, rest))
        y = step("Div", rest, step("Sqrt", step("Add", spread, epsilon)))
        out = [step("Add", step("Mul", y, scale), bias)]
        for before, now in ((mean, own), (var, spread)):
            total = step("Add", step("Mul", before, keep), step("Mul", now, ours))
            out.append(step("Reshape", total, step.ints(-1)))
    return out[: len(ctx.node.output)]


def _mean(ctx: Context, step: Steps, x: Value) -> Value:
    """Over all axes but the channels, which are the second of the result too."""
    axes = [d for d in range(x.rank) if d != 1]
    if ctx.opset < 18:
        return step("ReduceMean", x, axes=axes)
    return step("ReduceMean", x, step.ints(*axes))


__all__ = ["batch_normalization"]
