"""Operators of onnxruntime-extensions (ai.onnx.contrib) that take strings one by one.

    f([x_1 | x_2], p) = [f(x_1, p) | f(x_2, p)]      f(broadcast(x), p) = broadcast(f(x, p))

where p are parameters: constants after the first input. The library is not needed: such nodes are only moved.
"""

from __future__ import annotations

from onnx import TensorProto

from mari_onnx.engine.axes.blockwise import zip_bodies
from mari_onnx.engine.axes.materialize import materialise
from mari_onnx.engine.ir.value import Decline, Leaf, Value
from mari_onnx.engine.rule import Context, rule
from mari_onnx.model.ops import EXTENSIONS


def _one_by_one(ctx: Context, dtype: int) -> list[Value]:
    """The operator on each part of its first input. Refuses parameters that are computed."""
    x = ctx.input(0)
    parameters = [materialise(ctx.b, v) if v is not None else None for v in ctx.inputs[1:]]
    if any(p is not None and p.node is not None for p in parameters):
        raise Decline("a parameter is computed at run time")

    def visit(leaves: list[Leaf]) -> Leaf:
        (leaf,) = leaves
        (out,) = ctx.b.copy(ctx.node, [leaf.tensor, *parameters], [dtype], [leaf.tensor.shape])
        return Leaf(out, leaf.axes)

    return [ctx.value(x.known, zip_bodies(ctx.b, [x.body], visit), dtype)]


@rule("StringToHashBucket", "StringToHashBucketFast", domain=EXTENSIONS)
def hashed(ctx: Context) -> list[Value]:
    """The bucket, an int64, of each string. Refuses a number of buckets that is computed."""
    return _one_by_one(ctx, TensorProto.INT64)


@rule("StringLower", "StringUpper", domain=EXTENSIONS)
def cased(ctx: Context) -> list[Value]:
    """Each string in another case. Refuses nothing of its own."""
    return _one_by_one(ctx, TensorProto.STRING)
