"""Sums over axes of one tensor: ReduceSum, a multiplication, or a contraction.

    sum_k [A_1 | A_2]  =  sum_k A_1 + sum_k A_2      [ | ] along an axis of k
    sum_k A            =  |k| A                      where A does not vary along k
    sum_k a b          =  a . b                      the contraction of the factors of a product
"""

from __future__ import annotations

from collections.abc import Sequence

from mari_onnx.engine.algebra.contract import contract
from mari_onnx.engine.algebra.sums import add, multiply, repeat
from mari_onnx.engine.axes.select import coalesce
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import form_of
from mari_onnx.engine.ir.value import Axis, Body, Cat, Leaf, Prod, axes_of, within
from mari_onnx.model.tensors import FLOATS


def reduce_sum(b: Builder, body: Body, k: frozenset[Axis], order: Sequence[Axis] = ()) -> Body:
    """The sum over axes: of a concatenation, the sum of its parts' sums; of a product of factors, a contraction."""
    if isinstance(body, Cat):
        body = coalesce(b, body, order)  # may find that nothing varies along the axis
    here = k & axes_of(body)
    return repeat(b, _sum_over(b, body, here, order) if here else body, k - here)


def _sum_over(b: Builder, body: Body, k: frozenset[Axis], order: Sequence[Axis]) -> Body:
    """`reduce_sum` over axes that the body has."""
    if isinstance(body, Cat):
        if body.axis not in k:
            parts = (p.with_body(reduce_sum(b, p.body, k, within(order, body.axis, p.axis))) for p in body.parts)
            return Cat(body.axis, tuple(parts), True)
        sums = []
        for p in body.parts:
            inner = k - {body.axis} | ({p.axis} if p.axis else frozenset())
            sums.append(reduce_sum(b, p.body, inner, order))
        return add(b, sums, order)
    assert isinstance(body, Leaf)
    best = weighted_sum(b, body, k, order)
    if best is not None:
        return best
    at = [i for i, a in enumerate(body.axes) if a in k]
    t = emit.reduce(b, "ReduceSum", body.tensor, at)
    return Leaf(t, tuple(None if i in at else a for i, a in enumerate(body.axes)))


def weighted_sum(b: Builder, body: Leaf, k: frozenset[Axis], order: Sequence[Axis]) -> Body | None:
    """The sum of a product as one product, where the factors have different axes: history pooling becomes a GEMM."""
    form = form_of(body)
    if not isinstance(form, Prod) or len(form.factors) != 2 or body.tensor.dtype not in FLOATS:
        return None
    x, y = form.factors
    full = axes_of(body)
    for this, other in ((x, y), (y, x)):
        if not axes_of(other) & k:
            return multiply(b, reduce_sum(b, this, k, order), other, order)
        if axes_of(this) == full:
            return None
    return contract(b, x, y, k, order)
