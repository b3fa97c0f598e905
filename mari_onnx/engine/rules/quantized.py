"""Quantization whose scale depends on what the tensor holds at run time.

    DynamicQuantizeLinear   scale and zero point follow from the smallest and the largest element of x (and 0), so N
                            equal rows count like one: f(broadcast(x)) = broadcast(f(x))
"""

from __future__ import annotations

from onnx import TensorProto

from mari_onnx.engine.axes.materialize import as_leaf
from mari_onnx.engine.ir.value import Leaf, Value
from mari_onnx.engine.rule import Context, from_tensor, rule


@rule("DynamicQuantizeLinear")
def dynamic(ctx: Context) -> list[Value]:
    """On one row for all that are equal. The parts of a Cat are concatenated, because the range is that of all of
    them.
    """
    x = ctx.input(0)
    leaf = as_leaf(ctx.b, x.body, [a for group in x.known for a in group])
    kinds = [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8]
    y, scale, zero = ctx.b.copy(ctx.node, [leaf.tensor], kinds, [leaf.tensor.shape, (), ()])
    return [ctx.value(x.known, Leaf(y, leaf.axes), y.dtype), from_tensor(scale), from_tensor(zero)]
