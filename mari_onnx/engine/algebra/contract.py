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

import numpy as np
from onnx import TensorProto

from mari_onnx.engine.algebra.products import Term, merge, same_terms, total
from mari_onnx.engine.algebra.sums import add, cast_size, dtype_of, multiply, repeat, times
from mari_onnx.engine.analysis.finite import given
from mari_onnx.engine.analysis.magnitude import bound
from mari_onnx.engine.axes.align import flatten
from mari_onnx.engine.axes.materialize import as_block, as_leaf
from mari_onnx.engine.axes.select import coalesce, take
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import form_of, has_cheaper_form
from mari_onnx.engine.ir.value import (
    Axis,
    Body,
    Cat,
    Leaf,
    Node,
    Part,
    Prod,
    Sum,
    Tensor,
    axes_of,
    in_order,
    is_const,
    rename,
    within,
)
from mari_onnx.model.ops import Fact, having, row
from mari_onnx.model.tensors import FLOATS

NEARBY = 100
"""How many nodes back the work of a form is looked for: a rule writes both ways one after the other."""
WRITE = 0.5
"""The share of a tensor's own cost that falls on a contraction of it: others may want the tensor too."""
MAX_READ = 1 << 22
"""Elements of a constant up to which it is searched for zeros."""
LARGEST_HALF = 65504.0
DEPTH = 4
"""How deep forms of forms are followed."""


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
            if _one_product(b, cat, other, k):
                cat = as_block(b, cat)
            parts = []
            for part in cat.parts:
                cell = take(b, other, cat.axis, part.positions, part.axis)
                pair = (cell, part.body) if flip else (part.body, cell)
                parts.append(part.with_body(contract(b, *pair, k, within(order, cat.axis, part.axis))))
            return Cat(cat.axis, tuple(parts), True)
    for this, other, flip in ((x, y, False), (y, x, True)):
        rows = _zero_rows(b, this, other, k)
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
    whole = _whole(b, x, y, k, found, order)
    if whole is not None:
        found = [whole]
    terms = merge(b, [t for t in found if isinstance(t, Term)], order)
    bodies = [t for t in found if not isinstance(t, Term)]
    whole_sum = total(b, terms, order)
    if not bodies:
        assert whole_sum is not None
        return whole_sum
    return add(b, [*bodies, *([whole_sum] if whole_sum is not None else [])], order)


def _one_product(b: Builder, cat: Cat, other: Body, k: frozenset[Axis]) -> bool:
    """Columns that all vary as the other operand does, and are smaller than their products: those need no Concat."""
    if not isinstance(other, Leaf) or cat.axis in axes_of(other) or len(cat.parts) < 2:
        return False
    if is_const(other) or not all(isinstance(p.body, Leaf) for p in cat.parts):
        return False
    kinds = [axes_of(p.body) - {p.axis} for p in cat.parts]
    full = frozenset().union(*kinds)
    if any((kind | axes_of(other)) - k != (full | axes_of(other)) - k or not k <= kind for kind in kinds):
        return False
    if any(has_cheaper_form(body) for body in (other, *(p.body for p in cat.parts))):
        return False
    result = b.time.volume((full | axes_of(other)) - k) * b.time.volume([cat.axis])
    return b.time.volume(full) * b.time.volume([cat.axis]) <= result


def _zero_rows(b: Builder, x: Body, y: Body, k: frozenset[Axis]) -> tuple[Axis, list[list[int]]] | None:
    """Rows of a constant y by which parts of x they read at all: a mask of exact zeros cuts some off from the items."""
    if not (isinstance(x, Cat) and x.axis in k and isinstance(y, Leaf) and y.tensor.const and x.axis in y.axes):
        return None
    free = [a for a in y.axes if a is not None and a not in k]
    array = y.tensor.array
    if len(free) != 1 or array.dtype == object or array.size > MAX_READ or array.all() or given(b, x):
        return None
    joined = coalesce(b, x)
    if not isinstance(joined, Cat) or joined.axis is not x.axis:
        return None
    rows = np.moveaxis(array != 0, [y.axes.index(free[0]), y.axes.index(x.axis)], [0, 1]).reshape(
        array.shape[y.axes.index(free[0])], array.shape[y.axes.index(x.axis)], -1
    )
    reads = [rows[:, list(p.positions)].any(axis=(1, 2)) for p in joined.parts]
    cells: dict[tuple[bool, ...], list[int]] = {}
    for place, key in enumerate(zip(*reads, strict=True)):
        cells.setdefault(tuple(bool(r) for r in key), []).append(place)
    if len(cells) < 2 or len(cells) > 4:
        return None
    kinds = [axes_of(p.body) - {p.axis} for p in joined.parts]
    outs = [frozenset().union(*(kind for kind, on in zip(kinds, key, strict=True) if on)) for key in cells]
    return (free[0], list(cells.values())) if any(out != outs[0] for out in outs) else None


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
                joined = coalesce(b, this, order)  # pieces would be cut out of the other operand one by one
                if not isinstance(joined, Cat) or joined.axis is not this.axis:
                    pair = (other, joined) if flip else (joined, other)
                    return _lost(b, *pair, k, outer, depth, order)
                this = joined
            out: list[Term | Body] = []
            hidden = b.carried and not is_const(this) and not is_const(other)  # attention's, see `finite`
            for part in this.parts:
                cell = take(b, other, this.axis, part.positions, part.axis)
                inner = k - {this.axis} | ({part.axis} if part.axis else frozenset())
                if (_zero(part.body) and (hidden or not given(b, cell))) or (
                    _zero(cell) and (hidden or not given(b, part.body))
                ):
                    continue
                pair = (cell, part.body) if flip else (part.body, cell)
                out += _lost(b, *pair, inner, outer, depth, order)
            uncut = _uncut(b, this, other, k, out, flip) if not outer else None
            if uncut is not None:
                return [uncut]
            return out or [Leaf(b.const(0, dtype_of(x)), ())]
    if isinstance(x, Cat) or isinstance(y, Cat):
        body = contract(b, x, y, k, order)
        for g in outer:
            body = multiply(b, body, g, order)
        return [body]
    if isinstance(x, Sum):
        return [t for term in x.terms for t in _lost(b, term, y, k, outer, depth, order)]
    if isinstance(x, Prod):
        return _product(b, x, y, k, outer, depth, order)
    if isinstance(y, (Sum, Prod)):
        return _expand(b, y, x, k, outer, depth, order)
    assert isinstance(x, Leaf)
    assert isinstance(y, Leaf)
    x, y, k = _read(b, x, y, k)
    direct = Term(outer, x, y, k)
    best: list[Term | Body] = [direct]
    cost = _price(b, [direct])
    for this, other in ((x, y), (y, x)):
        form = form_of(this) if depth else None
        if isinstance(form, Sum) and x.tensor is y.tensor:
            continue  # a square is not negative, as a^2 - 2 a b + b^2 may come out
        if form is None:
            if b.closed.get(this.tensor.name):
                b.notes.append(b.closed[this.tensor.name])
            continue
        mark = len(b.nodes)
        other_way = _lost(b, form, other, k, outer, depth - 1, order)
        if not all(isinstance(t, Term) for t in other_way):
            continue
        terms = same_terms(b, [t for t in other_way if isinstance(t, Term)])
        if this.tensor.dtype == TensorProto.FLOAT16 and not all(_representable(b, t) for t in terms):
            continue
        price = _price(b, terms) + sum(b.time.element * b.time.volume(t.out) for t in terms[1:])
        price += _fresh(b, this, mark, terms)
        if price < cost:
            best, cost = list(terms), price
    return best


def _representable(b: Builder, term: Term) -> bool:
    """Whether no step of a term can exceed what float16 holds, which the source may scale down first."""
    total = b.time.volume(term.k)
    for leaf in (term.a, term.c, *term.outer):
        total *= max(bound(leaf.tensor), 1.0)
    return total < LARGEST_HALF


def _read(b: Builder, x: Leaf, y: Leaf, k: frozenset[Axis]) -> tuple[Leaf, Leaf, frozenset[Axis]]:
    """Without the positions along k at which a constant operand is zero throughout (pairs that a mask leaves out)."""
    if is_const(y) == is_const(x) or given(b, x) or given(b, y):
        return x, y, k
    w, other = (y, x) if is_const(y) else (x, y)
    array = w.tensor.array
    along = tuple(a for a in other.axes if a in k and a in w.axes and a is not None)
    if not along or array.dtype.kind != "f" or array.size > MAX_READ or not all(isinstance(a.size, int) for a in along):
        return x, y, k
    rest = tuple(i for i, a in enumerate(w.axes) if a not in along)
    read = np.any(array != 0, axis=rest).transpose(np.argsort(np.argsort([w.axes.index(a) for a in along])))
    at = np.flatnonzero(read).tolist()
    each = b.time.volume(axes_of(other) - set(along))
    columns = b.time.volume(axes_of(w) - set(along) - axes_of(other))
    if not at or (read.size - len(at)) * columns < b.time.copy * len(at) + b.time.node / each:
        return x, y, k
    whole, new = Axis(read.size), Axis(len(at)) if len(at) > 1 else None
    w, other = (_taken(b, leaf, along, whole, at, new) for leaf in (w, other))
    k = k - set(along) | ({new} if new is not None else frozenset())
    return (other, w, k) if is_const(y) else (w, other, k)


def _taken(
    b: Builder, leaf: Leaf, along: tuple[Axis, ...], whole: Axis, at: Sequence[int], new: Axis | None
) -> Leaf:
    """Positions of axes that are merged."""
    merged = flatten(b, leaf, along, whole) if len(along) > 1 else rename(leaf, {along[0]: whole})
    found = take(b, merged, whole, at, new)
    assert isinstance(found, Leaf)
    return found


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
    apart = _lost(b, form, y, k, outer, depth - 1, order)
    whole = _expand(b, x, y, k, outer, 0, order)
    pieces = [t for t in [*apart, *whole] if not isinstance(t, Term)]
    if pieces:
        return whole
    cost = [_price(b, [t for t in way if isinstance(t, Term)]) for way in (apart, whole)]
    cost[0] += _fresh(b, x, mark, [t for t in apart if isinstance(t, Term)])
    each = x.tensor.alternatives.price or b.time.element_of(_maker(x.tensor))
    cost[1] += (each + b.time.element / 2) * b.time.volume(axes_of(x))  # and the row's Concat
    return apart if cost[0] < cost[1] else whole


def _price(b: Builder, terms: Sequence[Term]) -> float:
    """Products, and a share of what their operands cost to write where those could do without."""
    total = 0.0
    for term in terms:
        total += term.cost(b.time)
        for leaf in (term.a, term.c):
            if leaf.tensor.alternatives.form is not None:
                op = _maker(leaf.tensor)
                share = WRITE if row(op or "").price is None else 1.0
                total += share * b.time.element_of(op) * b.time.volume(axes_of(leaf))
    return total


def _maker(tensor: Tensor) -> str | None:
    """The operator that computed a tensor, behind those that only move its elements."""
    while tensor.node is not None:
        node = tensor.node
        op = node.proto.op_type
        if op not in having(Fact.MOVES) or node.inputs[0] is None:
            return op
        tensor = node.inputs[0]
    return None


def _fresh(b: Builder, leaf: Leaf, mark: int, terms: Sequence[Term]) -> float:
    """The price of element-wise work that the terms' operands need and the leaf, computed as it is, does not."""
    time = b.time
    made = leaf.tensor.node
    first = min(mark, (made.index if made is not None else mark) - NEARBY)
    needed = _ancestors([leaf.tensor], first)
    total = 0.0
    operands = [t.a.tensor for t in terms] + [t.c.tensor for t in terms]
    more = _ancestors(operands + [g.tensor for t in terms for g in t.outer], first) - needed
    for node in sorted(more, key=lambda node: node.index):
        sizes = {t.shape for t in node.inputs if t is not None and t.shape != ()}
        spread = len(sizes) > 1 and node.proto.op_type in having(Fact.ELEMENT)
        each = time.spread if spread else time.element_of(node.proto.op_type)
        total += each * time.volume([Axis(s) for s in node.outputs[0].known])
    return total


def _ancestors(tensors: Sequence[Tensor], first: int) -> set[Node]:
    """Nodes from ``first`` on that tensors are computed by."""
    found: set[Node] = set()
    stack = list(tensors)
    while stack:
        node = stack.pop().node
        if node is not None and node.index >= first and node not in found:
            found.add(node)
            stack += [i for i in node.inputs if i is not None]
    return found


def _lost(
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
    return _lost(b, x, times(b, y, scale), k & has, outer, depth, order)


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
        return _lost(b, Leaf(b.const(1, dtype_of(y)), ()), y, k, outer, depth, order)
    inside.sort(key=lambda f: (b.time.volume(axes_of(f)), not is_const(f)))
    stays = inside.pop()
    for factor in inside:
        y = multiply(b, y, factor, order)
    return _lost(b, stays, y, k, outer, depth, order)


def _zero(body: Body) -> bool:
    return isinstance(body, Leaf) and body.tensor.const and not np.any(body.tensor.array)


def _whole(
    b: Builder, x: Body, y: Body, k: frozenset[Axis], found: Sequence[Term | Body], order: Sequence[Axis]
) -> Term | None:
    """One product over the written-out Cat, where parts save less than the nodes they add."""
    if not isinstance(x, Cat) or not isinstance(y, Leaf) or not all(isinstance(t, Term) for t in found):
        return None
    union, terms = axes_of(x), [t for t in found if isinstance(t, Term)]
    kinds = {(axes_of(t.a) | axes_of(t.c)) - t.k for t in terms}
    if len(kinds) < 2 or any(t.outer for t in terms):
        return None
    time = b.time
    split = sum(t.cost(time) - time.node for t in terms) + time.node * len(kinds)
    # writing the Cat out takes an Expand for each part that is repeated, and a copy of the rows
    one = time.volume(union | axes_of(y)) + time.node * len(kinds) + time.element * time.volume(union) / 3
    if split < one:
        return None
    return Term((), as_leaf(b, x, order), y, k)


def _uncut(
    b: Builder, x: Cat, y: Body, k: frozenset[Axis], found: Sequence[Term | Body], flip: bool
) -> Term | None:
    """One product over the written-out Cat, where a larger operand would be cut for products that save nothing."""
    if not isinstance(y, Leaf) or is_const(y) or any(isinstance(p.body, Cat) for p in x.parts):
        return None
    terms = [t for t in found if isinstance(t, Term)]
    if len(terms) != len(found) or len(terms) < 2 or any(t.outer or t.out != terms[0].out for t in terms):
        return None
    if x.axis not in axes_of(y) or any(axes_of(t.a) <= t.k or axes_of(t.c) <= t.k for t in terms):
        return None
    full = axes_of(x)
    time = b.time
    apart = time.copy * time.volume(axes_of(y))
    apart += (len(terms) - 1) * (time.element * time.volume(terms[0].out) + 2 * time.node)
    together = time.volume(full | axes_of(y)) + 1.4 * time.copy * time.volume(full) + 3 * time.node
    if sum(t.cost(time) for t in terms) + apart < together:
        return None
    batch = [a for a in y.axes if a is not None and a in full and a not in k]
    whole = as_leaf(b, x, [*batch, *(a for a in y.axes if a is not None and a in k)])
    return Term((), y, whole, k) if flip else Term((), whole, y, k)


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
