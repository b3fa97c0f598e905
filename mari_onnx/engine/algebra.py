"""The arithmetic of bodies: broadcast sums, products, contractions and reductions, block by block.

Every contraction of the source (MatMul, Gemm, Einsum, a Conv of width 1, a sum of products) comes through `contract`:

    sum_k A[.., k] B[k, ..],  A = [A_1 | A_2 | ..] along k      =  sum_p  A_p B_p      (B_p: the rows of B at p)
    A = A' + A''                                               =  A' B + A'' B
    A = g * A',  g without k                                   =  g * (A' B)
    A = f * A',  f along k and without A's candidates           =  A' (f * B)           (f * B once a request)

so that no operand is repeated along an axis on which it does not vary. An axis that only one operand has becomes rows
(or columns) of one product: a Mixed x Shared product is a single GEMM with the candidates as rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mari_onnx.engine import emit
from mari_onnx.engine.blocks import (
    as_leaf,
    flatten,
    form_of,
    neat,
    take,
    with_form,
    within,
    write,
    zip_bodies,
)
from mari_onnx.engine.builder import FOLD_LIMIT, Builder, Tensor
from mari_onnx.engine.value import Axis, Body, Cat, Leaf, Part, Prod, Sum, axes_of, is_const, rename
from mari_onnx.engine.weigh import ELEMENT, NODE, SLOW, SPREAD, element, volume

BINARY = {"Add", "Sub", "Mul", "Div", "Max", "Min"}
WRITE = 0.5
"""The share of a tensor's own cost that falls on a contraction of it: others may want the tensor too."""
DEPTH = 4
"""How deep forms of forms are followed."""


# ---- element-wise --------------------------------------------------------------------------------------------------


def stretch(
    b: Builder, leaves: Sequence[Leaf], order: Sequence[Axis] = ()
) -> tuple[list[Tensor], tuple[Axis | None, ...]]:
    """The leaves' tensors in one layout, ready for numpy broadcasting, and the axes of the result (None: size 1).

    The largest keeps the layout that it has.
    """
    union = frozenset().union(*(axes_of(leaf) for leaf in leaves))
    biggest = max(leaves, key=lambda leaf: (len(axes_of(leaf)), volume(axes_of(leaf)), not leaf.tensor.const))
    axes: list[Axis | None] = list(biggest.axes) if union else []
    if axes_of(biggest) != union:
        rest = [a for a in order if a in union]
        rest += [a for leaf in (biggest, *leaves) for a in leaf.axes if a is not None]
        axes = list(dict.fromkeys(rest))
    out = []
    for leaf in leaves:
        present = axes_of(leaf)
        lead = next((i for i, a in enumerate(axes) if a in present), len(axes)) if leaf is not biggest else 0
        out.append(write(b, leaf, [(a,) if a is not None else () for a in axes[lead:]]))
    return out, tuple(axes)


def binary(b: Builder, op: str, x: Leaf, y: Leaf, order: Sequence[Axis] = ()) -> Leaf:
    """One arithmetic operator on two leaves, with the form that contractions can look through."""
    x, y = thin(b, x), thin(b, y)
    plain = _neutral(op, x, y)
    if plain is not None:
        return plain
    if op == "Add":
        for this, other in ((x, y), (y, x)):
            if this.tensor.absorb is not None and axes_of(other) < axes_of(this):
                return this.tensor.absorb(this.axes, other)
    (tx, ty), axes = stretch(b, [x, y], order)
    leaf = Leaf(keep(b, emit.binary(b, op, tx, ty), axes), axes)
    if leaf.tensor.const:
        return leaf
    if op == "Add":
        return with_form(leaf, Sum((x, y)))
    if op == "Sub":
        return with_form(leaf, Sum((x, scaled(b, y, -1))))
    if op == "Mul":
        return with_form(leaf, Prod((x, y)))
    if op == "Div" and _inexact(y.tensor.dtype) and axes_of(y) < axes_of(leaf):
        return with_form(leaf, Prod((x, Leaf(emit.unary(b, "Reciprocal", y.tensor), y.axes))))
    return leaf


def keep(b: Builder, t: Tensor, axes: tuple[Axis | None, ...]) -> Tensor:
    """A tensor with one dimension an axis (numpy drops leading ones only where every operand lacked them)."""
    return t if len(t.known) == len(axes) else emit.reshape(b, t, [a.size if a is not None else 1 for a in axes])


def _neutral(op: str, x: Leaf, y: Leaf) -> Leaf | None:
    """x + 0, x * 1, x - 0, x / 1 are x; x * 0 is 0 and x - inf is -inf for the finite x that a model computes."""
    for this, other in ((x, y), (y, x)):
        value = other.tensor.scalar if not axes_of(other) else None
        if value is None or this.tensor.dtype != other.tensor.dtype or (this is y and op in ("Sub", "Div")):
            continue
        if value == {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}.get(op):
            return this
        if op == "Mul" and value == 0 or op == "Add" and value == -np.inf:
            return other
    return None


def thin(b: Builder, leaf: Leaf) -> Leaf:
    """A constant without the axes along which it is the same everywhere."""
    if not leaf.tensor.const or not axes_of(leaf):
        return leaf
    array, axes = leaf.tensor.array, list(leaf.axes)
    if array.dtype == object or array.size == 0 or array.size > FOLD_LIMIT:
        return leaf
    for i in reversed(range(array.ndim)):
        first = array.take([0], axis=i)
        if array.shape[i] == 1 or np.array_equal(np.broadcast_to(first, array.shape), array, equal_nan=array.dtype.kind == "f"):
            array = first.squeeze(i)
            del axes[i]
    if len(axes) == len(leaf.axes):
        return leaf
    return Leaf(b.const(array, leaf.tensor.dtype), tuple(axes))


def _inexact(dtype: int) -> bool:
    return dtype in (1, 10, 11, 16)


def scaled(b: Builder, x: Leaf, factor: float) -> Leaf:
    """A leaf times a constant; its form lets contractions put the constant into the weights."""
    if factor == 1:
        return x
    scale = b.const(factor, x.tensor.dtype)
    leaf = Leaf(emit.binary(b, "Mul", x.tensor, scale), x.axes)
    return with_form(leaf, Prod((x, Leaf(scale, ()))))


def multiply(b: Builder, x: Body, y: Body, order: Sequence[Axis] = ()) -> Body:
    return zip_bodies(b, [x, y], lambda ls: binary(b, "Mul", ls[0], ls[1], order), order=order)


def add(b: Builder, terms: Sequence[Body], order: Sequence[Axis] = ()) -> Body:
    """A broadcast sum, the small terms first."""
    return zip_bodies(b, list(terms), lambda ls: add_leaves(b, ls, order), order=order)


def add_leaves(b: Builder, terms: Sequence[Leaf], order: Sequence[Axis] = ()) -> Leaf:
    """Terms without axes that others have are added up first, so that each goes through the large ones once."""
    left = _folded(b, terms, order)
    total = left[-1]
    for term in left[:-1]:
        total = _plain_add(b, total, term, order)
    return _absorbing(total, lambda more: add_leaves(b, [*terms, more], order)) if len(terms) > 1 else total


def _folded(b: Builder, terms: Sequence[Leaf], order: Sequence[Axis]) -> list[Leaf]:
    """The terms by size, each added to the smallest other that has all of its axes, but for those of full size."""
    left = sorted(terms, key=lambda t: (not t.tensor.const, volume(axes_of(t))))
    done: list[Leaf] = []
    while left:
        first = left.pop(0)
        host = next((k for k, t in enumerate(left[:-1]) if axes_of(first) <= axes_of(t)), None)
        if host is None and left and axes_of(first) == axes_of(left[-1]):
            host = len(left) - 1
        if host is None:
            done.append(first)
        else:
            left[host] = _plain_add(b, left[host], first, order)
            left.sort(key=lambda t: (not t.tensor.const, volume(axes_of(t))))
    return done


def _plain_add(b: Builder, x: Leaf, y: Leaf, order: Sequence[Axis]) -> Leaf:
    x, y = thin(b, x), thin(b, y)
    plain = _neutral("Add", x, y)
    if plain is not None:
        return plain
    (tx, ty), axes = stretch(b, [x, y], order)
    leaf = Leaf(keep(b, emit.binary(b, "Add", tx, ty), axes), axes)
    return with_form(leaf, Sum((x, y)))


def _absorbing(total: Leaf, again: Callable[[Leaf], Leaf]) -> Leaf:
    """Let a sum take in one more small term later on."""
    made = total.axes

    def absorb(axes: tuple[Axis | None, ...], more: Leaf) -> Leaf:
        forth = {now: then for then, now in zip(made, axes, strict=True) if then is not None and now is not None}
        clash = {a: Axis(a.size) for a in axes_of(more) if a not in forth and a in made}
        body = rename(more, {**forth, **clash})
        assert isinstance(body, Leaf)
        back = {then: now for now, then in {**forth, **clash}.items()}
        result = rename(again(body), back)
        assert isinstance(result, Leaf)
        return result

    if total.tensor.absorb is None and not total.tensor.const:
        total.tensor.absorb = absorb
    return total


# ---- contraction ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """outer * sum over k of a * c."""

    outer: tuple[Leaf, ...]
    a: Leaf
    c: Leaf
    k: frozenset[Axis]

    @property
    def out(self) -> frozenset[Axis]:
        return (axes_of(self.a) | axes_of(self.c)) - self.k

    def cost(self) -> float:
        a, c = axes_of(self.a), axes_of(self.c)
        alone = self.k - (a & c)  # summed out of the operand that has it, at build time where that is a constant
        macs = volume((a | c) - alone)
        macs += sum(volume(x) for x, leaf in ((a, self.a), (c, self.c)) if x & alone and not leaf.tensor.const)
        return macs + NODE + sum(SPREAD * volume(self.out | axes_of(g)) + NODE for g in self.outer)


def contract(b: Builder, x: Body, y: Body, k: frozenset[Axis], order: Sequence[Axis] = ()) -> Body:
    """The sum of ``x * y`` over the axes ``k``, as a body over the axes that are left.

    order: the logical order of the result's axes, a preference for layouts. Every axis in ``k`` must be an axis of x
    or y; one that neither has is the caller's to multiply by.
    """
    lost = k - (axes_of(x) | axes_of(y))
    if lost:
        # neither operand varies there: the sum is a multiplication, of the smaller one
        x, k = _repeat(b, x, lost), k - lost
    if not k:
        return multiply(b, x, y, order)
    for this, other, flip in ((x, y, False), (y, x, True)):
        if isinstance(this, Cat) and this.axis not in k:
            cat = neat(b, this, order)
            if not isinstance(cat, Cat) or cat.axis in k:
                return contract(b, *((other, cat) if flip else (cat, other)), k, order)
            parts = []
            for part in cat.parts:
                cell = take(b, other, cat.axis, part.at, part.sub)
                pair = (cell, part.body) if flip else (part.body, cell)
                parts.append(Part(part.at, part.sub, contract(b, *pair, k, within(order, cat.axis, part.sub))))
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
    terms = _merge(b, [t for t in found if isinstance(t, Term)], order)
    bodies = [t for t in found if not isinstance(t, Term)]
    total = _total(b, terms, order)
    if not bodies:
        assert total is not None
        return total
    return add(b, [*bodies, *([total] if total is not None else [])], order)


def _zero_rows(b: Builder, x: Body, y: Body, k: frozenset[Axis]) -> tuple[Axis, list[list[int]]] | None:
    """Rows of a constant y by which parts of x they read at all: a mask of exact zeros cuts some off from the items."""
    if not (isinstance(x, Cat) and x.axis in k and isinstance(y, Leaf) and y.tensor.const and x.axis in y.axes):
        return None
    free = [a for a in y.axes if a is not None and a not in k]
    array = y.tensor.array
    if len(free) != 1 or array.dtype == object or array.size > 1 << 22 or array.all():
        return None
    tidy = neat(b, x)
    if not isinstance(tidy, Cat) or tidy.axis is not x.axis:
        return None
    rows = np.moveaxis(array != 0, [y.axes.index(free[0]), y.axes.index(x.axis)], [0, 1]).reshape(
        array.shape[y.axes.index(free[0])], array.shape[y.axes.index(x.axis)], -1
    )
    reads = [rows[:, list(p.at)].any(axis=(1, 2)) for p in tidy.parts]
    cells: dict[tuple[bool, ...], list[int]] = {}
    for row, key in enumerate(zip(*reads, strict=True)):
        cells.setdefault(tuple(bool(r) for r in key), []).append(row)
    if len(cells) < 2 or len(cells) > 4:
        return None
    kinds = [axes_of(p.body) - {p.sub} for p in tidy.parts]
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
                tidy = neat(b, this, order)  # pieces would be cut out of the other operand one by one
                if not isinstance(tidy, Cat) or tidy.axis is not this.axis:
                    pair = (other, tidy) if flip else (tidy, other)
                    return _lost(b, *pair, k, outer, depth, order)
                this = tidy
            out: list[Term | Body] = []
            for part in this.parts:
                cell = take(b, other, this.axis, part.at, part.sub)
                inner = k - {this.axis} | ({part.sub} if part.sub else frozenset())
                if _zero(part.body) or _zero(cell):
                    continue
                pair = (cell, part.body) if flip else (part.body, cell)
                out += _lost(b, *pair, inner, outer, depth, order)
            return out or [Leaf(b.const(0, _dtype(x)), ())]
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
    assert isinstance(x, Leaf) and isinstance(y, Leaf)
    direct = Term(outer, x, y, k)
    best: list[Term | Body] = [direct]
    cost = _price(b, [direct])
    for this, other in ((x, y), (y, x)):
        form = form_of(this) if depth else None
        if form is None:
            continue
        mark = len(b.nodes)
        other_way = _lost(b, form, other, k, outer, depth - 1, order)
        if not all(isinstance(t, Term) for t in other_way):
            continue
        terms = _same(b, [t for t in other_way if isinstance(t, Term)])
        price = _price(b, terms) + sum(ELEMENT * volume(t.out) for t in terms[1:])
        price += _fresh(b, mark, terms)
        if price < cost:
            best, cost = list(terms), price
    return best


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
    cost[0] += _fresh(b, mark, [t for t in apart if isinstance(t, Term)])
    op = _maker(b, x.tensor)
    cost[1] += element(op) * volume(axes_of(x)) + 0.5 * ELEMENT * volume(axes_of(x))  # and the row's Concat
    return apart if cost[0] < cost[1] else whole


def _price(b: Builder, terms: Sequence[Term]) -> float:
    """Products, and a share of what their operands cost to write where those could do without."""
    total = 0.0
    for term in terms:
        total += term.cost()
        for leaf in (term.a, term.c):
            if leaf.tensor.form is not None:
                op = _maker(b, leaf.tensor)
                total += (1.0 if op in SLOW else WRITE) * element(op) * volume(axes_of(leaf))
    return total


def _maker(b: Builder, tensor: Tensor) -> str | None:
    """The operator that computed a tensor, behind those that only move its elements."""
    while tensor.node is not None:
        node = b.nodes[tensor.node]
        if node.proto.op_type not in ("Slice", "Reshape", "Transpose", "Squeeze", "Unsqueeze") or node.inputs[0] is None:
            return node.proto.op_type
        tensor = node.inputs[0]
    return None


def _fresh(b: Builder, mark: int, terms: Sequence[Term]) -> float:
    """The price of element-wise work that the terms' operands need anew."""
    total, seen = 0.0, set()
    stack = [t.a.tensor for t in terms] + [t.c.tensor for t in terms] + [g.tensor for t in terms for g in t.outer]
    while stack:
        tensor = stack.pop()
        if tensor.node is None or tensor.node < mark or tensor.name in seen:
            continue
        seen.add(tensor.name)
        node = b.nodes[tensor.node]
        sizes = {t.shape for t in node.inputs if t is not None and t.shape != ()}
        each = SPREAD if len(sizes) > 1 and node.proto.op_type in BINARY else element(node.proto.op_type)
        total += each * volume([Axis(s) for s in tensor.known])
        stack += [i for i in node.inputs if i is not None]
    return total


def _lost(
    b: Builder, x: Body, y: Body, k: frozenset[Axis], outer: tuple[Leaf, ...], depth: int, order: Sequence[Axis]
) -> list[Term | Body]:
    """`_expand` where x may lack axes of k that y lacks too: the sum over those is a multiplication."""
    has = axes_of(x) | axes_of(y)
    gone = k - has
    if not gone:
        return _expand(b, x, y, k, outer, depth, order)
    scale = 1
    for a in gone:
        if not isinstance(a.size, int):
            total = cast_size(b, a, _dtype(y))
            outer = (*outer, Leaf(total, ()))
        else:
            scale *= a.size
    if scale != 1:
        y = _times(b, y, scale)
    return _expand(b, x, y, k & has, outer, depth, order)


def _product(
    b: Builder, x: Prod, y: Body, k: frozenset[Axis], outer: tuple[Leaf, ...], depth: int, order: Sequence[Axis]
) -> list[Term | Body]:
    """Factors without a contracted axis go outside; of the others one stays, the rest goes to y (once a request)."""
    inside: list[Body] = []
    for factor in x.factors:
        if axes_of(factor) & k:
            inside.append(factor)
        elif isinstance(factor, Leaf):
            outer = (*outer, factor)
        else:
            outer = (*outer, as_leaf(b, factor, order))
    if not inside:
        return _lost(b, Leaf(b.const(1, _dtype(y)), ()), y, k, outer, depth, order)
    inside.sort(key=lambda f: (volume(axes_of(f)), not is_const(f)))
    stays = inside.pop()
    for factor in inside:
        y = multiply(b, y, factor, order)
    return _lost(b, stays, y, k, outer, depth, order)


def cast_size(b: Builder, axis: Axis, dtype: int) -> Tensor:
    """The length of an axis as a scalar of a floating-point type."""
    size = emit.reshape(b, b.size(axis.size), ())
    return b.emit("Cast", [size], (), dtype, {"to": dtype})


def _dtype(body: Body) -> int:
    while not isinstance(body, Leaf):
        if isinstance(body, Cat):
            body = body.parts[0].body
        else:
            body = body.terms[0] if isinstance(body, Sum) else body.factors[0]
    return body.tensor.dtype


def _times(b: Builder, body: Body, factor: float) -> Body:
    if isinstance(body, Leaf):
        return scaled(b, body, factor)
    if isinstance(body, Sum):
        return Sum(tuple(_times(b, t, factor) for t in body.terms))
    if isinstance(body, Prod):
        return Prod((*body.factors, Leaf(b.const(factor, _dtype(body)), ())))
    return zip_bodies(b, [body], lambda ls: scaled(b, ls[0], factor))


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
    split = sum(t.cost() - NODE for t in terms) + NODE * len(kinds)
    # writing the Cat out takes an Expand for each part that is repeated, and a copy of the rows
    one = volume(union | axes_of(y)) + NODE * len(kinds) + ELEMENT * volume(union) / 3
    if split < one:
        return None
    return Term((), as_leaf(b, x, order), y, k)


def _same(b: Builder, terms: Sequence[Term]) -> list[Term]:
    """Terms over the same tensor become one: their other operands are added (constants at build time)."""
    out: list[Term] = []
    for term in terms:
        for i, have in enumerate(out):
            mapping = _match(have, term)
            if mapping is not None:
                c = rename(term.c, mapping)
                assert isinstance(c, Leaf)
                out[i] = Term(have.outer, have.a, add_leaves(b, [have.c, c]), have.k)
                break
        else:
            out.append(term)
    return out


def _match(x: Term, y: Term) -> dict[Axis, Axis] | None:
    """How y's contracted axes are x's, where both read the same tensor the same way."""
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


def _merge(b: Builder, terms: Sequence[Term], order: Sequence[Axis]) -> list[Term]:
    """At most one product for each set of axes: operands over the same axes are laid side by side along k."""
    groups: dict[object, list[Term]] = {}
    for term in _same(b, terms):
        free_a, free_c = axes_of(term.a) - term.k, axes_of(term.c) - term.k
        both = term.k <= axes_of(term.a) and term.k <= axes_of(term.c)
        key = (term.outer, free_a, free_c) if both and is_const(term.c) else term
        groups.setdefault(key, []).append(term)
    out = []
    for members in groups.values():
        if len(members) == 1:
            out.append(members[0])
            continue
        flat = [_flat(b, t) for t in members]
        size = sum(int(n) for _, _, n, _ in flat)
        k = Axis(size)
        sides = []
        for which in (0, 1):
            start, parts = 0, []
            for entry in flat:
                parts.append(Part(tuple(range(start, start + entry[2])), entry[3], entry[which]))
                start += entry[2]
            sides.append(_side(b, Cat(k, tuple(parts)), k, which == 1))
        out.append(Term(members[0].outer, sides[0], sides[1], frozenset({k})))
    return out


def _flat(b: Builder, term: Term) -> tuple[Leaf, Leaf, int, Axis | None]:
    """Both operands of a term with the contracted axes as one, of static size."""
    ks = tuple(a for a in term.a.axes if a in term.k and a is not None)
    size = 1
    for a in ks:
        assert isinstance(a.size, int)
        size *= a.size
    if not ks:
        return term.a, term.c, 1, None
    new = Axis(size)
    a, c = flatten(b, term.a, ks, new), flatten(b, term.c, ks, new)
    assert isinstance(a, Leaf) and isinstance(c, Leaf)
    return a, c, size, new


def _side(b: Builder, cat: Cat, k: Axis, first: bool) -> Leaf:
    lead = cat.parts[0]
    assert isinstance(lead.body, Leaf)
    free = [a for a in lead.body.axes if a is not None and a is not lead.sub]
    return as_leaf(b, cat, [k, *free] if first else [*free, k])


def _total(b: Builder, terms: Sequence[Term], order: Sequence[Axis]) -> Body | None:
    """The terms' products, added: smaller ones ride in the largest, where they lack its rows."""
    if not terms:
        return None
    *small, large = sorted(terms, key=lambda t: volume(t.out))
    return _ride(b, large, [_emit_term(b, t, order) for t in small], order)


def _ride(b: Builder, large: Term, others: Sequence[Leaf], order: Sequence[Axis]) -> Leaf:
    """The largest product plus the others; what takes one more small term later adds it to the others."""
    rows = axes_of(large.a) - axes_of(large.c)
    riding = [t for t in others if not axes_of(t) & rows] if not large.outer else []
    rest = [t for t in others if t not in riding]
    addend = add_leaves(b, riding, order) if riding else None
    total = _emit_term(b, large, order, addend)
    if rest:
        folded = _folded(b, [total, *rest], order)
        total = folded[-1]
        for term in folded[:-1]:
            total = _plain_add(b, total, term, order)
    return _absorbing(total, lambda more: _ride(b, large, [*others, more], order))


def _emit_term(b: Builder, term: Term, order: Sequence[Axis], addend: Leaf | None = None) -> Leaf:
    leaf = product(b, term.a, term.c, term.k, order, addend)
    for g in sorted(term.outer, key=lambda g: volume(axes_of(g))):
        leaf = binary(b, "Mul", leaf, g, order)
    return leaf


def product(
    b: Builder, x: Leaf, y: Leaf, k: frozenset[Axis], order: Sequence[Axis] = (), addend: Leaf | None = None
) -> Leaf:
    """One contraction of two tensors as a MatMul: shared axes are the batch, the others rows and columns.

    addend: what is added to it; without the rows it is added before the columns are told apart, so that a Gemm takes it.
    """
    if addend is not None:
        if axes_of(addend) <= axes_of(y) - axes_of(x) and not axes_of(x) & axes_of(y) - k and k:
            leaf = _rows_times_columns(b, x, y, k, addend)
            if leaf is not None:
                return leaf
        return _plain_add(b, product(b, x, y, k, order), addend, order)
    x, y = (_drop(b, leaf, k, other) for leaf, other in ((x, y), (y, x)))
    ax, ay = axes_of(x), axes_of(y)
    k = k & ax & ay
    if not k:
        return binary(b, "Mul", x, y, order)
    batch = [a for a in x.axes if a is not None and a in ay and a not in k]
    rows = [a for a in x.axes if a is not None and a not in ay]
    cols = [a for a in y.axes if a is not None and a not in ax]
    turned = "item" in y.tensor.deps and "item" not in x.tensor.deps
    if (turned and cols) or (batch and cols and not rows):
        return product(b, y, x, k, order)  # the candidates as rows
    ks = tuple(a for a in (y if is_const(x) else x).axes if a is not None and a in k)
    left: list[tuple[Axis, ...]]
    if not batch:
        stored = [a for a in x.axes if a is not None]
        if len(stored) > 2 and len(ks) == 1 and stored[-2] is ks[0] and len(cols) == 1:
            # a product from the left, as the source has it: no transposition of the candidates' tensor
            tx = write(b, x, [(a,) for a in stored])
            out = emit.matmul(b, write(b, y, [tuple(cols), ks]), tx)
            return Leaf(out, (*stored[:-2], cols[0], stored[-1]))
        left = [(a,) for a in rows] or [()]
        tx = write(b, x, [*left, ks])
        ty = write(b, y, [ks, tuple(cols)])
        out = emit.matmul(b, tx, ty)
        axes: list[Axis | None] = [*(rows or [None]), *([cols[0]] if len(cols) == 1 else cols or [None])]
        if len(cols) > 1:
            out = emit.reshape(b, out, [*out.known[:-1], *(a.size for a in cols)])
        return Leaf(out, tuple(axes))
    tx = write(b, x, [*((a,) for a in batch), tuple(rows), ks])
    ty = write(b, y, [*((a,) for a in batch), ks, tuple(cols)])
    out = emit.matmul(b, tx, ty)
    if len(rows) > 1 or len(cols) > 1:
        sizes = [a.size for a in batch] + ([a.size for a in rows] or [1]) + ([a.size for a in cols] or [1])
        out = emit.reshape(b, out, sizes)
    return Leaf(out, (*batch, *(rows or [None]), *(cols or [None])))


def _rows_times_columns(b: Builder, x: Leaf, y: Leaf, k: frozenset[Axis], addend: Leaf) -> Leaf | None:
    """``x y + addend`` with all columns as one dimension, the addend a row of it."""
    if not k <= axes_of(x) & axes_of(y) or is_const(x):
        return None
    rows = [a for a in x.axes if a is not None and a not in k]
    cols = tuple(a for a in y.axes if a is not None and a not in k)
    if not rows or not cols or (len(cols) > 1 and len(rows) > 1):
        return None
    ks = tuple(a for a in (y if is_const(y) else x).axes if a is not None and a in k)
    out = emit.matmul(b, write(b, x, [*((a,) for a in rows), ks]), write(b, y, [ks, cols]))
    row = write(b, addend, [cols], frozenset(cols) if len(cols) > 1 else frozenset())
    out = emit.binary(b, "Add", out, row)
    if len(cols) > 1:
        out = emit.reshape(b, out, [*out.known[:-1], *(a.size for a in cols)])
    return Leaf(out, (*rows, *cols))


def _drop(b: Builder, leaf: Leaf, k: frozenset[Axis], other: Leaf) -> Leaf:
    """Sum a leaf over contracted axes that the other operand does not have."""
    own = [i for i, a in enumerate(leaf.axes) if a in k and a not in axes_of(other)]
    if not own:
        return leaf
    t = emit.reduce(b, "ReduceSum", leaf.tensor, own)
    return Leaf(t, tuple(None if i in own else a for i, a in enumerate(leaf.axes)))


# ---- reduction -----------------------------------------------------------------------------------------------------


def reduce_sum(b: Builder, body: Body, k: frozenset[Axis], order: Sequence[Axis] = ()) -> Body:
    """The sum over axes: of a concatenation, the sum of its parts' sums; of a product of factors, a contraction."""
    if isinstance(body, Cat):
        body = neat(b, body, order)  # may find that nothing varies along the axis
    here = k & axes_of(body)
    return _repeat(b, _sum_over(b, body, here, order) if here else body, k - here)


def _sum_over(b: Builder, body: Body, k: frozenset[Axis], order: Sequence[Axis]) -> Body:
    """`reduce_sum` over axes that the body has."""
    if isinstance(body, Cat):
        if body.axis not in k:
            parts = (Part(p.at, p.sub, reduce_sum(b, p.body, k, within(order, body.axis, p.sub))) for p in body.parts)
            return Cat(body.axis, tuple(parts), True)
        sums = []
        for p in body.parts:
            inner = k - {body.axis} | ({p.sub} if p.sub else frozenset())
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
    if not isinstance(form, Prod) or len(form.factors) != 2:
        return None
    x, y = form.factors
    full = axes_of(body)
    for this, other in ((x, y), (y, x)):
        if not axes_of(other) & k:
            return multiply(b, reduce_sum(b, this, k, order), other, order)
        if axes_of(this) == full:
            return None
    return contract(b, x, y, k, order)


def _repeat(b: Builder, body: Body, axes: frozenset[Axis]) -> Body:
    """The sum over axes on which the body does not vary: a multiplication by their length."""
    scale: float = 1
    for a in axes:
        if isinstance(a.size, int):
            scale *= a.size
        else:
            size = Leaf(cast_size(b, a, _dtype(body)), ())
            body = multiply(b, body, size)
    return _times(b, body, scale) if scale != 1 else body
