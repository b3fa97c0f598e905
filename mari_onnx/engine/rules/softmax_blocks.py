"""A softmax block by block: the weights of each block as factors, one of which may be the user's alone.

With blocks a_p of the scores,

    P_p = exp(a_p - m_p),  l_p = sum P_p,  m = max m_p,  g_p = exp(m_p - m) / sum_q l_q exp(m_q - m)

the weights of block p are g_p P_p. Where a_p is the user's alone, P_p and its product with the values are too.
"""

from __future__ import annotations

from ml_dtypes import finfo
from onnx import helper

from mari_onnx.engine.algebra.reduce import reduce_sum
from mari_onnx.engine.algebra.sums import add, binary, multiply
from mari_onnx.engine.axes.blockwise import zip_bodies
from mari_onnx.engine.axes.materialize import as_leaf
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Body, Cat, Leaf, Prod, axes_of, is_const
from mari_onnx.engine.rules.reduce import extreme, unary


def _finite(b: Builder, leaf: Leaf) -> Leaf:
    """The leaf with -inf replaced by the lowest finite number."""
    dtype = leaf.tensor.dtype
    lowest = b.const(float(finfo(helper.tensor_dtype_to_np_dtype(dtype)).min), dtype)
    return Leaf(emit.binary(b, "Max", leaf.tensor, lowest), leaf.axes)


def by_blocks(b: Builder, cat: Cat, order: list[Axis]) -> Body | None:
    """The weights of a Cat of blocks of scores, as a Cat of `Prod`. None for constant blocks, or nested ones."""
    parts = [p for p in cat.parts if p.axis is not None]
    if len(parts) != len(cat.parts) and any(not isinstance(p.body, Leaf) for p in cat.parts):
        return None
    if any(is_const(p.body) for p in cat.parts):
        return None
    outside = [a for a in order if a is not cat.axis]
    tops, sums, weights = [], [], []
    for p in cat.parts:
        inner = frozenset({p.axis} if p.axis is not None and p.axis in axes_of(p.body) else ())
        # a block that is masked throughout must weigh nothing, not be -inf minus -inf
        top = zip_bodies(b, [extreme(b, "Max", p.body, inner)], lambda ls: _finite(b, ls[0]))
        shifted = zip_bodies(b, [p.body, top], lambda ls: binary(b, "Sub", ls[0], ls[1], order), order=order)
        weight = unary(b, "Exp", shifted)
        tops.append(top)
        weights.append(weight)
        count = frozenset({p.axis}) if p.axis is not None else frozenset()
        sums.append(reduce_sum(b, weight, count, outside))
    top = tops[0]
    for other in tops[1:]:
        top = zip_bodies(b, [top, other], lambda ls: binary(b, "Max", ls[0], ls[1], outside), order=outside)
    gains = []
    for t in tops:
        shifted = zip_bodies(b, [t, top], lambda ls: binary(b, "Sub", ls[0], ls[1], outside), order=outside)
        gains.append(unary(b, "Exp", shifted))
    total = add(b, [multiply(b, s, g, outside) for s, g in zip(sums, gains, strict=True)], outside)
    out = []
    for p, weight, gain in zip(cat.parts, weights, gains, strict=True):
        share = zip_bodies(b, [gain, total], lambda ls: binary(b, "Div", ls[0], ls[1], outside), order=outside)
        out.append(p.with_body(Prod((as_leaf(b, share, outside), as_leaf(b, weight, order)))))
    return Cat(cat.axis, tuple(out))
