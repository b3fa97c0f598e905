"""Where one product over a written-out concatenation is cheaper than one product per part.

In: the operands of a contraction, and the terms that it would become. Out: whether to write the Cat as one tensor, or
the single term that replaces the others. All of it compares estimated times (`Builder.time`).
"""

from __future__ import annotations

from collections.abc import Sequence

from mari_onnx.engine.algebra.products import Term
from mari_onnx.engine.axes.materialize import as_leaf
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import has_cheaper_form
from mari_onnx.engine.ir.value import Axis, Body, Cat, Leaf, axes_of, is_const


def side_by_side(b: Builder, cat: Cat, other: Body, k: frozenset[Axis]) -> bool:
    """Whether the parts of ``cat``, an operand, are better written side by side and multiplied at once.

    That is so where all parts vary along the same axes as their products do, and are together no larger than these
    products, which would otherwise be put side by side. Not where an operand has a cheaper form.
    """
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


def instead_of_parts(
    b: Builder, x: Body, y: Body, k: frozenset[Axis], found: Sequence[Term | Body], order: Sequence[Axis]
) -> Term | None:
    """One product over the written-out Cat ``x``; None where products by parts save more than their nodes cost."""
    if not isinstance(x, Cat) or not isinstance(y, Leaf) or not all(isinstance(t, Term) for t in found):
        return None
    union, terms = axes_of(x), [t for t in found if isinstance(t, Term)]
    kinds = {((axes_of(t.a) | axes_of(t.c)) - t.k, t.offline(b.time)) for t in terms}
    if len(kinds) < 2 or any(t.outer for t in terms):
        return None
    time = b.time
    split = sum(t.cost(time) - time.node for t in terms) + time.node * len(kinds)
    # writing the Cat out takes an Expand for each part that is repeated, and a copy of the rows
    one = time.volume(union | axes_of(y)) + time.node * len(kinds) + time.element * time.volume(union) / 3
    if split < one:
        return None
    return Term((), as_leaf(b, x, order), y, k)


def instead_of_cuts(
    b: Builder, x: Cat, y: Body, k: frozenset[Axis], found: Sequence[Term | Body], flip: bool
) -> Term | None:
    """One product over the written-out Cat ``x``, where the larger operand ``y`` would be cut and nothing saved.

    None where products by parts are cheaper. flip: y is the left operand.
    """
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
