"""Contractions and sums over axes, block by block.

Every contraction of the source (MatMul, Gemm, Einsum, a Conv of width 1, a sum of products) comes through `contract`:

    sum_k A[.., k] B[k, ..],  A = [A_1 | A_2 | ..] along k      =  sum_p  A_p B_p      (B_p: the rows of B at p)
    A = A' + A''                                               =  A' B + A'' B
    A = g * A',  g without k                                   =  g * (A' B)
    A = f * A',  f along k and without A's candidates           =  A' (f * B)           (f * B once per request)

so that no operand is repeated along an axis on which it does not vary. An axis that only one operand has becomes rows
(or columns) of one product: a Mixed x Shared product is a single GEMM with the candidates as rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from mari_onnx.engine.algebra.one_product import instead_of_cuts, instead_of_parts, side_by_side
from mari_onnx.engine.algebra.prices import extra_price, maker, price
from mari_onnx.engine.algebra.products import Term, merge, same_terms, total
from mari_onnx.engine.algebra.sums import add, cast_size, dtype_of, multiply, repeat, times
from mari_onnx.engine.algebra.zeros import is_zero, rows_by_use, without_zeros
from mari_onnx.engine.analysis.finite import given
from mari_onnx.engine.analysis.magnitude import bound
from mari_onnx.engine.axes.materialize import as_block, as_leaf
from mari_onnx.engine.axes.select import coalesce, take
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import form_of
from mari_onnx.engine.ir.value import Axis, Body, Cat, Leaf, Part, Prod, Sum, axes_of, in_order, is_const, within

TIMES_ZERO = "what has a weight of 0 is multiplied all the same: a float input is in it, and 0 times NaN is NaN"
LARGEST_HALF = 65504.0
"""The largest number that float16 holds."""
DEPTH = 4
"""The number of nested forms that are used: a form of an item of a form, and so on."""


def contract(b: Builder, x: Body, y: Body, k: frozenset[Axis], order: Sequence[Axis] = ()) -> Body:
    """The sum of ``x * y`` over the axes ``k``, as a body over the axes that are left.

    order: the logical order of the result's axes, a preference for layouts. Every axis in ``k`` must be an axis of x
    or y; one that neither has is the caller's to multiply by.
    """
    while lost := k - (axes_of(x) | axes_of(y)):
        # neither operand varies there: the sum is a multiplication, which may show that x lacks more of k
        x, k = repeat(b, x, lost), k - lost
    if not k:
        return multiply(b, x, y, order)
    for this, other, flip in ((x, y, False), (y, x, True)):
        if isinstance(this, Cat) and this.axis not in k:
            cat = coalesce(b, this, order)
            if not isinstance(cat, Cat) or cat.axis in k:
                return contract(b, *((other, cat) if flip else (cat, other)), k, order)
            if side_by_side(b, cat, other, k):
                cat = as_block(b, cat)
            parts = []
            for part in cat.parts:
                cell = take(b, other, cat.axis, part.positions, part.axis)
                pair = (cell, part.body) if flip else (part.body, cell)
                parts.append(part.with_body(contract(b, *pair, k, within(order, cat.axis, part.axis))))
            return Cat(cat.axis, tuple(parts), True)
    for this, other, flip in ((x, y, False), (y, x, True)):
        rows = rows_by_use(b, this, other, k)
        if rows is not None:
            axis, cells = rows
            parts = []
            for at in cells:
                sub = Axis(len(at)) if len(at) > 1 else None
                cell = take(b, other, axis, at, sub)
                pair = (cell, this) if flip else (this, cell)
                parts.append(Part(tuple(at), sub, contract(b, *pair, k, within(order, axis, sub))))
            return Cat(axis, tuple(parts), True)
    found = _expand(b, x, y, k, (), DEPTH, order)
    whole = instead_of_parts(b, x, y, k, found, order)
    if whole is not None:
        found = [whole]
    terms = merge(b, [t for t in found if isinstance(t, Term)], order)
    bodies = [t for t in found if not isinstance(t, Term)]
    whole_sum = total(b, terms, order)
    if not bodies:
        assert whole_sum is not None
        return whole_sum
    return add(b, [*bodies, *([whole_sum] if whole_sum is not None else [])], order)


def _expand(
    b: Builder, x: Body, y: Body, k: frozenset[Axis], outer: tuple[Leaf, ...], depth: int, order: Sequence[Axis]
) -> list[Term | Body]:
    """The sum as terms, opened along every Cat on a contracted axis and through forms where that is cheaper."""
    blocks = _by_blocks(b, x, y, k, outer, depth, order) or _by_blocks(b, y, x, k, outer, depth, order)
    if blocks is not None:
        return blocks
    for this, other, flip in ((x, y, False), (y, x, True)):
        if isinstance(this, Cat) and this.axis in k:
            if not is_const(other) and all(isinstance(p.body, (Leaf, Cat)) for p in this.parts):
                joined = coalesce(b, this, order)  # else the other operand would be cut into many pieces
                if not isinstance(joined, Cat) or joined.axis is not this.axis:
                    pair = (other, joined) if flip else (joined, other)
                    return _expand_varying(b, *pair, k, outer, depth, order)
                this = joined
            out: list[Term | Body] = []
            hidden = b.carried and not is_const(this) and not is_const(other)  # attention, see `finite`
            for part in this.parts:
                cell = take(b, other, this.axis, part.positions, part.axis)
                inner = k - {this.axis} | ({part.axis} if part.axis else frozenset())
                times = cell if is_zero(part.body) else part.body if is_zero(cell) else None
                if times is not None and (hidden or not given(b, times)):
                    continue
                if times is not None:
                    b.notes.append(TIMES_ZERO)
                pair = (cell, part.body) if flip else (part.body, cell)
                out += _expand_varying(b, *pair, inner, outer, depth, order)
            uncut = instead_of_cuts(b, this, other, k, out, flip) if not outer else None
            if uncut is not None:
                return [uncut]
            return out or [Leaf(b.const(0, dtype_of(x)), ())]
    if isinstance(x, Cat) or isinstance(y, Cat):
        body = contract(b, x, y, k, order)
        for g in outer:
            body = multiply(b, body, g, order)
        return [body]
    if isinstance(x, Sum):
        return [t for term in x.terms for t in _expand_varying(b, term, y, k, outer, depth, order)]
    if isinstance(x, Prod):
        return _product(b, x, y, k, outer, depth, order)
    if isinstance(y, (Sum, Prod)):
        return _expand(b, y, x, k, outer, depth, order)
    assert isinstance(x, Leaf)
    assert isinstance(y, Leaf)
    x, y, k = without_zeros(b, x, y, k)
    direct = Term(outer, x, y, k)
    best: list[Term | Body] = [direct]
    cost = price(b, [direct])
    for this, other in ((x, y), (y, x)):
        form = form_of(this) if depth else None
        if isinstance(form, Sum) and x.tensor is y.tensor:
            continue  # a^2 - 2 a b + b^2 may be negative by rounding, a square is not
        if form is None:
            if b.closed.get(this.tensor.name):
                b.notes.append(b.closed[this.tensor.name])
            continue
        mark = len(b.nodes)
        other_way = _expand_varying(b, form, other, k, outer, depth - 1, order)
        if not all(isinstance(t, Term) for t in other_way):
            continue
        terms = same_terms(b, [t for t in other_way if isinstance(t, Term)])
        if this.tensor.dtype == TensorProto.FLOAT16 and not all(_representable(b, t) for t in terms):
            continue
        opened = price(b, terms) + sum(b.time.element * b.time.volume(t.out) for t in terms[1:])
        opened += extra_price(b, this, mark, terms)
        if opened < cost:
            best, cost = list(terms), opened
    return best


def _representable(b: Builder, term: Term) -> bool:
    """Whether no step of a term can exceed what float16 holds, which the source may scale down first."""
    total = b.time.volume(term.k)
    for leaf in (term.a, term.c, *term.outer):
        total *= max(bound(leaf.tensor), 1.0)
    return total < LARGEST_HALF


def _by_blocks(
    b: Builder, x: Body, y: Body, k: frozenset[Axis], outer: tuple[Leaf, ...], depth: int, order: Sequence[Axis]
) -> list[Term | Body] | None:
    """A tensor that could be computed by blocks (a Softmax), against a Cat along the same axis: all blocks or none."""
    if not (depth and isinstance(x, Leaf) and isinstance(y, Cat) and y.axis in k):
        return None
    form = form_of(x)
    if not isinstance(form, Cat) or form.axis is not y.axis:
        return None
    mark = len(b.nodes)
    apart = _expand_varying(b, form, y, k, outer, depth - 1, order)
    whole = _expand(b, x, y, k, outer, 0, order)
    pieces = [t for t in [*apart, *whole] if not isinstance(t, Term)]
    if pieces:
        return whole
    cost = [price(b, [t for t in way if isinstance(t, Term)]) for way in (apart, whole)]
    cost[0] += extra_price(b, x, mark, [t for t in apart if isinstance(t, Term)])
    each = x.tensor.alternatives.price or b.time.element_of(maker(x.tensor))
    cost[1] += (each + b.time.element / 2) * b.time.volume(axes_of(x))  # and the Concat of the row
    return apart if cost[0] < cost[1] else whole


def _expand_varying(
    b: Builder, x: Body, y: Body, k: frozenset[Axis], outer: tuple[Leaf, ...], depth: int, order: Sequence[Axis]
) -> list[Term | Body]:
    """`_expand` where x may lack axes of k that y lacks too: the sum over those is a multiplication."""
    has = axes_of(x) | axes_of(y)
    gone = k - has
    if not gone:
        return _expand(b, x, y, k, outer, depth, order)
    scale = 1
    for a in in_order(gone):
        if not isinstance(a.size, int):
            total = cast_size(b, a, dtype_of(y))
            outer = (*outer, Leaf(total, ()))
        else:
            scale *= a.size
    if scale == 1:
        return _expand(b, x, y, k & has, outer, depth, order)
    # the factor may show that y lacks more of k
    return _expand_varying(b, x, times(b, y, scale), k & has, outer, depth, order)


def _product(
    b: Builder, x: Prod, y: Body, k: frozenset[Axis], outer: tuple[Leaf, ...], depth: int, order: Sequence[Axis]
) -> list[Term | Body]:
    """Factors without a contracted axis go outside; of the others one stays, the rest goes to y (once per request)."""
    inside: list[Body] = []
    for factor in x.factors:
        if axes_of(factor) & k:
            inside.append(factor)
        elif isinstance(factor, Leaf):
            outer = (*outer, factor)
        else:
            outer = (*outer, as_leaf(b, factor, order))
    if not inside:
        return _expand_varying(b, Leaf(b.const(1, dtype_of(y)), ()), y, k, outer, depth, order)
    inside.sort(key=lambda f: (b.time.volume(axes_of(f)), not is_const(f)))
    stays = inside.pop()
    for factor in inside:
        y = multiply(b, y, factor, order)
    return _expand_varying(b, stays, y, k, outer, depth, order)
