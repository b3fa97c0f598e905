"""Products of two tensors as MatMul and Gemm nodes, and sums of such products.

In: `Term` objects, each a sum over some axes of a product of two tensors. Out: one leaf. Terms that read the same
tensor, or vary along the same axes, become one product. Terms that are small (the user's) become the C operand of the
largest Gemm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mari_onnx.engine.algebra.sums import MANY, add_leaves, binary, folded, over, plain_add
from mari_onnx.engine.axes.align import flatten
from mari_onnx.engine.axes.materialize import as_leaf, write
from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import extendable
from mari_onnx.engine.ir.value import Axis, Body, Cat, Group, Leaf, Part, Tensor, axes_of, is_const, offline, rename
from mari_onnx.model.nodes import is_standard
from mari_onnx.model.ops import Fact, having

ALIKE = 4
"""From this many operands of one form on, it saves nodes to concatenate the pieces that they are computed from."""
SHORT_ROW = 64
"""onnxruntime is slow at repeating rows of up to this many elements."""
MAX_APART = 4
"""Up to this many products over the same axes may stay separate nodes."""
TILE = 100
"""From this many elements per product on, products by candidate and head are faster than transposing the operands."""


@dataclass(frozen=True)
class Term:
    """``outer`` times the sum over the axes ``k`` of ``a * c``. outer: factors that do not have the axes of k."""

    outer: tuple[Leaf, ...]
    a: Leaf
    c: Leaf
    k: frozenset[Axis]

    @property
    def out(self) -> frozenset[Axis]:
        """The axes of the product: all of both operands but those that are summed."""
        return (axes_of(self.a) | axes_of(self.c)) - self.k

    def offline(self, time: TimeModel) -> bool:
        """Whether the product, without the outer factors, is the items' own."""
        return offline(time, self.a, self.c)

    def cost(self, time: TimeModel) -> float:
        """The estimated time; 0 where both operands are constants."""
        if self.a.tensor.const and self.c.tensor.const and not self.outer:
            return 0.0  # at build time
        a, c = axes_of(self.a), axes_of(self.c)
        alone = self.k - (a & c)  # summed out of the operand that has it, at build time where that is a constant
        macs = 0.0 if self.offline(time) else time.volume((a | c) - alone)
        macs += sum(time.volume(x) for x, leaf in ((a, self.a), (c, self.c)) if x & alone and not leaf.tensor.const)
        return macs + time.node + sum(time.spread * time.volume(self.out | axes_of(g)) + time.node for g in self.outer)


def same_terms(b: Builder, terms: Sequence[Term]) -> list[Term]:
    """Terms that read the same tensor joined to one; their other operands are added, constants at build time."""
    out: list[Term] = []
    readers: dict[int, list[int]] = {}  # of a tensor, by index in `out`: no pairwise search
    for term in terms:
        for i in readers.setdefault(id(term.a.tensor), []):
            have = out[i]
            mapping = _match(have, term)
            if mapping is not None:
                c = rename(term.c, mapping)
                assert isinstance(c, Leaf)
                out[i] = Term(have.outer, have.a, add_leaves(b, [have.c, c]), have.k)
                break
        else:
            readers[id(term.a.tensor)].append(len(out))
            out.append(term)
    return out


def _match(x: Term, y: Term) -> dict[Axis, Axis] | None:
    """y's contracted axes by x's, where both terms read the same tensor in the same way; else None."""
    if x.a.tensor is not y.a.tensor or x.outer != y.outer or len(x.k) != len(y.k):
        return None
    mapping = {}
    for ax, ay in zip(x.a.axes, y.a.axes, strict=True):
        if (ax in x.k) != (ay in y.k):
            return None
        if ax is not None and ax in x.k and ay is not None:
            mapping[ay] = ax
        elif ax is not ay:
            return None
    return mapping if set(mapping) == set(y.k) and set(mapping.values()) == set(x.k) else None


def merge(b: Builder, terms: Sequence[Term], order: Sequence[Axis]) -> list[Term]:
    """At most one product for each set of axes: the operands of the others are concatenated along k, where that is
    cheaper.
    """
    groups: dict[object, list[Term]] = {}
    for term in same_terms(b, terms):
        if is_const(term.a) and not is_const(term.c):
            term = Term(term.outer, term.c, term.a, term.k)  # W x as x W
        free_a, free_c = axes_of(term.a) - term.k, axes_of(term.c) - term.k
        both = term.k <= axes_of(term.a) and term.k <= axes_of(term.c)
        joins = both and is_const(term.c) and not is_const(term.a)
        key = (term.outer, free_a, free_c, term.offline(b.time)) if joins else term
        groups.setdefault(key, []).append(term)
    out = []
    for group in groups.values():
        members = _as_one(b, group)
        rows = sum(b.time.volume(axes_of(t.a)) for t in members)
        saved = (len(members) - 1) * (2 * b.time.node + b.time.element * b.time.volume(members[0].out))
        if len(members) == 1 or (len(members) <= MAX_APART and b.time.copy * rows > saved):
            out += members  # few products: adding them up costs less than a Concat of their operands
            continue
        flat = [_flat(b, t) for t in members]
        k = Axis(sum(n for _, _, n, _ in flat))
        sides = []
        for second in (False, True):
            start, parts = 0, []
            for a, c, n, sub in flat:
                parts.append(Part(tuple(range(start, start + n)), sub, c if second else a))
                start += n
            sides.append(_side(b, Cat(k, tuple(parts)), k, second))
        out.append(Term(members[0].outer, sides[0], sides[1], frozenset({k})))
    return out


def _as_one(b: Builder, members: list[Term]) -> list[Term]:
    """Operands that were computed alike from pieces (pairs of fields) as one: the pieces are concatenated, then
    computed.
    """
    alike: dict[object, list[tuple[Term, list[Tensor]]]] = {}
    out: list[Term] = []
    for term in members:
        made = _made(b, term)
        if made is None:
            out.append(term)
        else:
            op, pieces = made
            alike.setdefault((op, *(t.known for t in pieces), *term.a.axes[:-1]), []).append((term, pieces))
    for key, group in alike.items():
        if len(group) < ALIKE:
            out += [term for term, _ in group]
            continue
        lead, rank = group[0][0], len(group[0][0].a.tensor.known)
        width = int(b.time.volume(lead.k))
        k = Axis(width * len(group))
        sides = []
        for column in zip(*(pieces for _, pieces in group), strict=True):
            padded = [emit.reshape(b, t, (*((1,) * (rank - len(t.known))), *t.known)) for t in column]
            sides.append(emit.concat(b, padded, rank - 1))
        assert isinstance(key, tuple)
        tensor = emit.binary(b, key[0], sides[0], sides[1])
        weights = []
        for i, (term, _) in enumerate(group):
            (own,) = term.k
            weights.append(Part(tuple(range(i * width, (i + 1) * width)), own, term.c))
        c = _side(b, Cat(k, tuple(weights)), k, True)
        out.append(Term(lead.outer, Leaf(tensor, (*lead.a.axes[:-1], k)), c, frozenset({k})))
    return out


def _made(b: Builder, term: Term) -> tuple[str, list[Tensor]] | None:
    """The operator of an operand that is one short row, and the pieces it was computed from, where these differ in
    shape.
    """
    t, axes = term.a.tensor, term.a.axes
    if t.node is None or not axes or axes[-1] is None or term.k != {axes[-1]} or not isinstance(t.known[-1], int):
        return None
    node = t.node
    pieces = [x for x in node.inputs if x is not None and x.shape is not None]
    arithmetic = node.proto.op_type in having(Fact.ADDS) | having(Fact.MULTIPLIES) and is_standard(node.proto)
    if not arithmetic or len(pieces) != 2:
        return None
    if pieces[0].shape == pieces[1].shape or any(x.const or x.known[-1:] != t.known[-1:] for x in pieces):
        return None
    return (node.proto.op_type, pieces) if b.time.volume(term.k) < SHORT_ROW else None


def _flat(b: Builder, term: Term) -> tuple[Leaf, Leaf, int, Axis | None]:
    """Both operands of a term with the contracted axes merged to one of static size."""
    ks = tuple(a for a in term.a.axes if a in term.k and a is not None)
    size = 1
    for a in ks:
        assert isinstance(a.size, int)
        size *= a.size
    if not ks:
        return term.a, term.c, 1, None
    new = Axis(size)
    left, right = flatten(b, term.a, ks, new), flatten(b, term.c, ks, new)
    assert isinstance(left, Leaf)
    assert isinstance(right, Leaf)
    return left, right, size, new


def _side(b: Builder, cat: Cat, k: Axis, first: bool) -> Leaf:
    """Operands concatenated along k: weights have k in front, activations have it where the largest of them does."""
    lead = max(cat.parts, key=lambda p: b.time.volume(axes_of(p.body)))
    assert isinstance(lead.body, Leaf)
    free = [a for a in lead.body.axes if a is not None and a is not lead.axis]
    if first:
        return as_leaf(b, cat, [k, *free])
    if lead.axis is None or lead.axis not in lead.body.axes:
        return as_leaf(b, cat, [*free, k])
    return as_leaf(b, cat, [k if a is lead.axis else a for a in lead.body.axes if a is not None])


def total(b: Builder, terms: Sequence[Term], order: Sequence[Axis]) -> Body | None:
    """The sum of the terms' products. Terms without the rows of the largest one become the C operand of its Gemm."""
    if not terms:
        return None
    *small, large = sorted(terms, key=lambda t: (b.time.volume(t.out), not t.offline(b.time)))
    return _add_into_gemm(b, large, [_emit_term(b, t, order) for t in small], order)


def _add_into_gemm(b: Builder, large: Term, others: Sequence[Leaf], order: Sequence[Axis]) -> Leaf:
    """The largest product plus the others. If one more small term is added later, it is added to the others first."""
    others = others if len(others) < MANY else folded(b, others, order)
    own = [t for t in others if offline(b.time, t)]
    if own and len(own) < len(others) and large.offline(b.time):
        total = _add_into_gemm(b, large, own, order)  # one tensor of the items' own, which the others do not enter
        for term in folded(b, [t for t in others if not offline(b.time, t)], order):
            total = plain_add(b, total, term, order)
        return extendable(total, over(total.axes, lambda term: _add_into_gemm(b, large, [*others, term], order)))
    rows = axes_of(large.a) - axes_of(large.c)
    riding = [t for t in others if not axes_of(t) & rows] if not large.outer else []
    rest = [t for t in others if t not in riding]
    addend = add_leaves(b, riding, order) if riding else None
    host = next((i for i, t in enumerate(rest) if "item" not in t.tensor.deps), None)
    if addend is not None and host is not None and axes_of(addend) <= axes_of(rest[host]):
        rest[host], addend = plain_add(b, rest[host], addend, order), None  # once per request
    total = _emit_term(b, large, order, addend)
    if rest:
        sums = folded(b, [total, *rest], order)
        total = sums[-1]
        for term in sums[:-1]:
            total = plain_add(b, total, term, order)

    def scaled_columns(factor: Leaf) -> Leaf:
        columns = axes_of(large.c) - large.k - axes_of(large.a)
        cheap = large.c.tensor.const and not any("item" in t.tensor.deps and not offline(b.time, t) for t in others)
        if not cheap or not axes_of(factor) <= columns or not axes_of(factor):
            return total
        c = binary(b, "Mul", large.c, factor, order)
        rest = [binary(b, "Mul", t, factor, order) for t in others]
        return _add_into_gemm(b, Term(large.outer, large.a, c, large.k), rest, order)

    more = over(total.axes, lambda term: _add_into_gemm(b, large, [*others, term], order))
    return extendable(total, more, over(total.axes, scaled_columns))


def _emit_term(b: Builder, term: Term, order: Sequence[Axis], addend: Leaf | None = None) -> Leaf:
    leaf = product(b, term.a, term.c, term.k, order, addend)
    for g in sorted(term.outer, key=lambda g: b.time.volume(axes_of(g))):
        leaf = binary(b, "Mul", leaf, g, order)
    return leaf


def product(
    b: Builder, x: Leaf, y: Leaf, k: frozenset[Axis], order: Sequence[Axis] = (), addend: Leaf | None = None
) -> Leaf:
    """One contraction of two tensors as a MatMul. Axes that both have beside ``k`` are its batch, the others rows and
    columns.

    addend: a leaf to add to the result. If it lacks the rows, it becomes the C operand of a Gemm.
    """
    if addend is not None:
        if axes_of(addend) <= axes_of(y) - axes_of(x) and not axes_of(x) & axes_of(y) - k and k:
            from_left = _from_left(x, y, k, order)
            leaf = _rows_times_columns(b, x, y, k, addend) if not from_left else None
            if leaf is not None:
                return leaf
        return plain_add(b, product(b, x, y, k, order), addend, order)
    x, y = (_drop(b, leaf, k, other) for leaf, other in ((x, y), (y, x)))
    ax, ay = axes_of(x), axes_of(y)
    k = k & ax & ay
    if not k:
        return binary(b, "Mul", x, y, order)
    batch = [a for a in x.axes if a is not None and a in ay and a not in k]
    rows = [a for a in x.axes if a is not None and a not in ay]
    cols = [a for a in y.axes if a is not None and a not in ax]
    flip = "item" in y.tensor.deps and "item" not in x.tensor.deps
    if (flip and cols) or (batch and cols and not rows):
        return product(b, y, x, k, order)  # the candidates as rows
    ks = tuple(a for a in (y if is_const(x) else x).axes if a is not None and a in k)
    left: list[tuple[Axis, ...]]
    if not batch:
        stored = [a for a in x.axes if a is not None]
        own = tuple(a for a in stored if a in k)
        if len(cols) == 1 and _from_left(x, y, k, order):
            # a product from the left, as the source has it: no transposition of the candidates' tensor
            lead = stored[: -1 - len(own)]
            tx = write(b, x, [*((a,) for a in lead), own, (stored[-1],)])
            out = emit.matmul(b, write(b, y, [tuple(cols), own]), tx)
            return Leaf(out, (*lead, cols[0], stored[-1]))
        left = [(a,) for a in rows] or [()]
        tx = write(b, x, [*left, ks])
        ty = write(b, y, [ks, tuple(cols)])
        out = emit.matmul(b, tx, ty)
        axes = (*_or_one(rows), *_or_one(cols))
        if len(cols) > 1:
            out = emit.reshape(b, out, [*out.known[:-1], *(a.size for a in cols)])
        return Leaf(out, axes)
    outside = _outside(b, x, rows, batch, cols, order)
    if outside:
        inside = tuple(a for a in rows if a not in outside)
        here: list[Group] = [(a,) for a in batch]
        far: list[Group] = [*((a,) for a in outside), *here]
        if order.index(inside[0]) > order.index(cols[0]):
            out = emit.matmul(b, write(b, y, [*here, tuple(cols), ks]), write(b, x, [*far, ks, inside]))
            return Leaf(out, (*outside, *batch, *cols, *inside))
        out = emit.matmul(b, write(b, x, [*far, inside, ks]), write(b, y, [*here, ks, tuple(cols)]))
        return Leaf(out, (*outside, *batch, *inside, *cols))
    tx = write(b, x, [*((a,) for a in batch), tuple(rows), ks])
    ty = write(b, y, [*((a,) for a in batch), ks, tuple(cols)])
    out = emit.matmul(b, tx, ty)
    if len(rows) > 1 or len(cols) > 1:
        sizes = [a.size for a in batch] + ([a.size for a in rows] or [1]) + ([a.size for a in cols] or [1])
        out = emit.reshape(b, out, sizes)
    return Leaf(out, (*batch, *_or_one(rows), *_or_one(cols)))


def _outside(
    b: Builder, x: Leaf, rows: Sequence[Axis], batch: Sequence[Axis], cols: Sequence[Axis], order: Sequence[Axis]
) -> list[Axis]:
    """A product for each position of the rows (candidates), where that is cheaper than to transpose a result that has
    the batch (heads) first.
    """
    if len(cols) != 1 or not set(order) >= {*rows, *batch, *cols} or "item" not in x.tensor.deps:
        return []
    first = min(order.index(a) for a in batch)
    outside = [a for a in order if a in rows and order.index(a) < first]
    inside = [a for a in rows if a not in outside]
    if len(inside) != 1 or b.time.volume([*inside, *cols]) < TILE:
        return []
    return outside


def _or_one(axes: Sequence[Axis]) -> Sequence[Axis | None]:
    """The axes of rows or columns, or [None], a dimension of size 1, where there are none."""
    return axes or [None]


def _from_left(x: Leaf, y: Leaf, k: frozenset[Axis], order: Sequence[Axis]) -> bool:
    """Whether ``y x`` needs no Transpose: x has k before its last axis, and the result has that axis last too."""
    stored = [a for a in x.axes if a is not None]
    own = [a for a in stored if a in k]
    if len(stored) <= len(own) + 1 or stored[-1 - len(own) : -1] != own:
        return False
    columns = [a for a in y.axes if a is not None and a not in k]
    named = [a for a in order if a is stored[-1] or a in columns]
    return len(named) < 2 or named[-1] is stored[-1]


def _rows_times_columns(b: Builder, x: Leaf, y: Leaf, k: frozenset[Axis], addend: Leaf) -> Leaf | None:
    """``x y + addend`` with all columns merged to one dimension; the addend is a row."""
    if not k <= axes_of(x) & axes_of(y) or is_const(x):
        return None
    rows = [a for a in x.axes if a is not None and a not in k]
    cols = tuple(a for a in y.axes if a is not None and a not in k)
    if not rows or not cols or (len(cols) > 1 and len(rows) > 1):
        return None
    ks = tuple(a for a in (y if is_const(y) else x).axes if a is not None and a in k)
    out = emit.matmul(b, write(b, x, [*((a,) for a in rows), ks]), write(b, y, [ks, cols]))
    front: list[Group] = [()] if addend.axes[:1] == (None,) else []  # C of a Gemm may be [1, columns]
    row = write(b, addend, [*front, cols], frozenset(cols) if len(cols) > 1 else frozenset())
    out = emit.binary(b, "Add", out, row)
    if len(cols) > 1:
        out = emit.reshape(b, out, [*out.known[:-1], *(a.size for a in cols)])
    return Leaf(out, (*rows, *cols))


def _drop(b: Builder, leaf: Leaf, k: frozenset[Axis], other: Leaf) -> Leaf:
    """A leaf summed over the contracted axes that the other operand does not have."""
    own = [i for i, a in enumerate(leaf.axes) if a in k and a not in axes_of(other)]
    if not own:
        return leaf
    t = emit.reduce(b, "ReduceSum", leaf.tensor, own)
    return Leaf(t, tuple(None if i in own else a for i, a in enumerate(leaf.axes)))
