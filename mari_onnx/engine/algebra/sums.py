"""Sums, differences, products and quotients of bodies with broadcasting, part by part.

In: bodies over common axes. Out: bodies. The terms or factors are kept beside the written tensor as a form, so that a
product behind it can use them: `(u + x) W = u W + x W`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np

from mari_onnx.engine.algebra.like_terms import collected
from mari_onnx.engine.analysis.cancellation import cancels
from mari_onnx.engine.analysis.finite import given
from mari_onnx.engine.axes.blockwise import zip_bodies
from mari_onnx.engine.axes.materialize import write
from mari_onnx.engine.axes.select import take
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import FOLD_LIMIT, Builder
from mari_onnx.engine.ir.forms import extendable, with_form
from mari_onnx.engine.ir.value import (
    Again,
    Axis,
    Body,
    Cat,
    Leaf,
    Prod,
    Sum,
    Tensor,
    axes_of,
    in_order,
    offline,
    rename,
    rows_first,
    within,
)
from mari_onnx.model.ops import Fact, having, row
from mari_onnx.model.tensors import FLOATS, WIDE_RANGE

SHORT = 64
"""Runs of a broadcast of fewer elements are slow in onnxruntime."""
MANY = 16
"""A sum of at least this many terms that gets one more is computed from its partial sums, not from all terms."""


def broadcast_layout(
    b: Builder, leaves: Sequence[Leaf], order: Sequence[Axis] = ()
) -> tuple[list[Tensor], tuple[Axis | None, ...]]:
    """The leaves' tensors in one common layout, ready to broadcast as in numpy, and the axes of the result (None: size
    1).

    The largest tensor keeps its layout.
    """
    union = frozenset().union(*(axes_of(leaf) for leaf in leaves))
    biggest = max(leaves, key=lambda leaf: (len(axes_of(leaf)), b.time.volume(axes_of(leaf)), not leaf.tensor.const))
    axes: list[Axis | None] = list(biggest.axes)
    if axes_of(biggest) != union:
        axes = _merged(biggest, leaves, union, order)
    aligned = axes == list(biggest.axes) and all(_aligned(leaf, axes) for leaf in leaves if not leaf.tensor.const)
    while axes and axes[-1] is None and not (aligned or _of_integers(biggest.tensor)):
        axes.pop()  # against a scalar onnxruntime would go element by element
    axes = [*[None] * max(_in_front(leaf, axes) for leaf in leaves), *axes]
    out = []
    for leaf in leaves:
        present = axes_of(leaf)
        lead = next((i for i, a in enumerate(axes) if a in present), len(axes))
        if leaf is biggest or (aligned and axes and axes[-1] is None):
            lead = 0
        full = frozenset(_filled(b, leaf, axes[lead:], union))
        if not full and len(leaf.axes) <= len(axes) and _in_front(leaf, axes[lead:]):
            out.append(leaf.tensor)  # [1, 64] broadcasts as [64] does
            continue
        out.append(write(b, leaf, [(a,) if a is not None else () for a in axes[lead:]], full))
    return out, tuple(axes)


def _in_front(leaf: Leaf, axes: Sequence[Axis | None]) -> int:
    """How many dimensions of 1 a leaf, which is stored along ``axes`` otherwise, has in front of them."""
    more = len(leaf.axes) - len(axes)
    return more if more > 0 and leaf.axes == (*(None,) * more, *axes) else 0


def _of_integers(t: Tensor) -> bool:
    """Whether a tensor is a product of integers as a float, which onnxruntime scales, and adds a bias to, in the
    product's own kernel, where shapes are the product's.
    """
    node = t.node
    for fact in (Fact.ADDS, Fact.MULTIPLIES, Fact.CONVERTS):
        if node is not None and fact in row(node.proto.op_type).facts:
            node = next((x.node for x in node.inputs if x is not None and not x.const and x.node is not None), None)
    return node is not None and Fact.QUANTIZED in row(node.proto.op_type).facts


def _aligned(leaf: Leaf, axes: Sequence[Axis | None]) -> bool:
    """Whether a leaf is stored like the result, or with 1 there: ``[N, 1] + [1, 1]`` needs no Squeeze."""
    return len(leaf.axes) == len(axes) and all(a is None or a is own for a, own in zip(leaf.axes, axes, strict=True))


def _merged(
    biggest: Leaf, leaves: Sequence[Leaf], union: frozenset[Axis], order: Sequence[Axis]
) -> list[Axis | None]:
    """The axes of all leaves in one order: the logical one where it names them all, else one that fits the leaves'
    own.
    """
    if union <= set(order):
        return list(rows_first([a for a in order if a in union]))
    axes: list[Axis | None] = [a for a in biggest.axes if a is not None]
    for leaf in leaves:
        own = [a for a in leaf.axes if a is not None]
        for i, axis in enumerate(own):
            if axis not in axes:
                behind = next((axes.index(a) for a in own[i + 1 :] if a in axes), len(axes))
                axes.insert(behind, axis)
    return axes


def _filled(b: Builder, leaf: Leaf, axes: Sequence[Axis | None], union: frozenset[Axis]) -> list[Axis]:
    """A small operand repeated along short inner axes: a constant at build time, the user's once per request.

    onnxruntime broadcasts in runs along which an operand advances or stays; short runs are slow.
    """
    inside, have = [a for a in axes if a is not None], axes_of(leaf)
    if not have or have >= set(inside) or not all(isinstance(a.size, int) for a in inside):
        return []
    if b.time.volume(inside) > FOLD_LIMIT:
        return []
    run = 1
    for axis in reversed(inside):
        if (axis in have) != (inside[-1] in have):
            break
        run *= int(b.time.volume([axis]))
    if leaf.tensor.const:
        return inside if inside[-1] not in have or run < SHORT else []
    small = b.time.volume(union) > 4 * b.time.volume(inside)
    return inside if run < SHORT and small and "item" not in leaf.tensor.deps else []


def binary(b: Builder, op: str, x: Leaf, y: Leaf, order: Sequence[Axis] = ()) -> Leaf:
    """One arithmetic operator on two leaves; terms or factors are kept beside the result as a form."""
    x, y = drop_uniform_axes(b, x), drop_uniform_axes(b, y)
    plain = _neutral(b, op, x, y)
    if plain is not None:
        return plain
    if op == "Add":
        for this, other in ((x, y), (y, x)):
            later = this.tensor.alternatives.add_later
            if later is not None and (axes_of(other) < axes_of(this) or _joins_items(b, this, other)):
                return later(this.axes, other)
    if op == "Mul":
        for this, other in ((x, y), (y, x)):
            rescale = this.tensor.alternatives.rescale
            if rescale is not None and other.tensor.const and axes_of(other) < axes_of(this):
                folded_in = rescale(this.axes, other)
                if folded_in.tensor is not this.tensor:
                    return folded_in
    (tx, ty), axes = broadcast_layout(b, [x, y], order)
    leaf = Leaf(keep(b, emit.binary(b, op, tx, ty), axes), axes)
    if leaf.tensor.const:
        return leaf
    if op in having(Fact.ADDS) and x.tensor.dtype in FLOATS:
        y = y if op == "Add" else scaled(b, y, -1)
        form = collected(b, x, y, lambda ls: add_leaves(b, ls))
        if form is not None:
            return with_form(leaf, form)
        b.closed[leaf.tensor.name] = cancels((x, y)) or ""
        return leaf
    if op == "Mul":
        return with_form(leaf, Prod((x, y)))
    if op == "Div" and y.tensor.dtype in WIDE_RANGE and axes_of(y) < axes_of(leaf):
        return with_form(leaf, Prod((x, Leaf(emit.unary(b, "Reciprocal", y.tensor), y.axes))))
    return leaf


def _joins_items(b: Builder, total: Leaf, term: Leaf) -> bool:
    """Whether a term that is the items' own may join others of a sum that are: before the split, not per candidate."""
    return offline(b.time, term) and not offline(b.time, total) and axes_of(term) == axes_of(total)


def keep(b: Builder, t: Tensor, axes: tuple[Axis | None, ...]) -> Tensor:
    """A tensor as a leaf with one dimension per axis; numpy drops leading ones only where every operand lacks them."""
    return t if len(t.known) == len(axes) else emit.reshape(b, t, [a.size if a is not None else 1 for a in axes])


def _neutral(b: Builder, op: str, x: Leaf, y: Leaf) -> Leaf | None:
    """x for x + 0, x * 1, x - 0 and x / 1; 0 for x * 0 and -inf for x - inf where x is finite
    (`analysis/finite.py`); else None.
    """
    for this, other in ((x, y), (y, x)):
        value = other.tensor.scalar if not axes_of(other) else None
        if value is None or this.tensor.dtype != other.tensor.dtype or (this is y and op not in having(Fact.COMMUTES)):
            continue
        if value == row(op).neutral:
            return this
        if (op == "Mul" and value == 0) or (op == "Add" and value == -np.inf):
            return other if (b.carried and op == "Add") or not given(b, this) else None
    return None


def drop_uniform_axes(b: Builder, leaf: Leaf) -> Leaf:
    """A constant without the axes along which all its elements are equal; any other leaf unchanged."""
    if not leaf.tensor.const or not axes_of(leaf):
        return leaf
    array, axes = leaf.tensor.array, list(leaf.axes)
    if array.dtype == object or array.size == 0 or array.size > FOLD_LIMIT:
        return leaf
    for i in reversed(range(array.ndim)):
        first = array.take([0], axis=i)
        everywhere = np.broadcast_to(first, array.shape)
        if array.shape[i] == 1 or np.array_equal(everywhere, array, equal_nan=array.dtype.kind == "f"):
            array = first.squeeze(i)
            del axes[i]
    if len(axes) == len(leaf.axes):
        return leaf
    return Leaf(b.const(array, leaf.tensor.dtype), tuple(axes))


def scaled(b: Builder, x: Leaf, factor: float) -> Leaf:
    """A leaf times a constant. A product behind it can put the constant into its weights."""
    if factor == 1:
        return x
    scale = b.const(factor, x.tensor.dtype)
    leaf = Leaf(emit.binary(b, "Mul", x.tensor, scale), x.axes)
    return with_form(leaf, Prod((x, Leaf(scale, ()))))


def multiply(b: Builder, x: Body, y: Body, order: Sequence[Axis] = ()) -> Body:
    """``x * y``, part by part; a Sum or Prod is multiplied term by term."""
    for form, other in ((x, y), (y, x)):
        if isinstance(form, Prod):
            return reduce(lambda product, factor: multiply(b, product, factor, order), form.factors, other)
        if isinstance(form, Sum):
            return add(b, [multiply(b, item, other, order) for item in form.terms], order)
        if isinstance(form, Cat) and any(isinstance(p.body, (Sum, Prod)) for p in form.parts):
            parts = []
            for p in form.parts:
                inside = take(b, other, form.axis, p.positions, p.axis)
                parts.append(p.with_body(multiply(b, p.body, inside, within(order, form.axis, p.axis))))
            return Cat(form.axis, tuple(parts), True)
    return zip_bodies(b, [x, y], lambda ls: binary(b, "Mul", ls[0], ls[1], order), order=order)


def add(b: Builder, terms: Sequence[Body], order: Sequence[Axis] = ()) -> Body:
    """The broadcast sum of the terms, part by part; small terms are added first."""
    return zip_bodies(b, list(terms), lambda ls: add_leaves(b, ls, order), order=order)


def add_leaves(b: Builder, terms: Sequence[Leaf], order: Sequence[Axis] = ()) -> Leaf:
    """The sum of leaves. Terms that lack axes are added to each other first, so that each large tensor is read once."""
    left = folded(b, terms, order)
    total = left[-1]
    for term in left[:-1]:
        given = any(total.tensor is t.tensor for t in terms)  # a sum written here would call this again
        later = total.tensor.alternatives.add_later
        if given and later is not None and (axes_of(term) < axes_of(total) or _joins_items(b, total, term)):
            total = later(total.axes, term)  # a bias joins the user's row
        else:
            total = plain_add(b, total, term, order)
    if any(total.tensor is t.tensor for t in terms):
        return total  # the others were 0: its add_later must not call itself
    if cancels(terms, of_product=True):
        return total
    again = terms if len(terms) < MANY else left
    return extendable(total, over(total.axes, lambda more: add_leaves(b, [*again, more], order)))


def folded(b: Builder, terms: Sequence[Leaf], order: Sequence[Axis]) -> list[Leaf]:
    """The terms by size, each added to the smallest other one that has all of its axes, except for those of full
    size. The items' own are added to each other first where the graph will be split.
    """
    own = [t for t in terms if offline(b.time, t)]
    if 1 < len(own) < len(terms):
        terms = [*(t for t in terms if not offline(b.time, t)), *folded(b, own, order)]
    left = sorted(terms, key=lambda t: (not t.tensor.const, b.time.volume(axes_of(t))))
    done: list[Leaf] = []
    while left:
        first = left.pop(0)
        host = next((k for k, t in enumerate(left[:-1]) if axes_of(first) <= axes_of(t)), None)
        if host is None and left and axes_of(first) == axes_of(left[-1]):
            host = len(left) - 1
        if host is None:
            done.append(first)
        else:
            left[host] = plain_add(b, left[host], first, order)
            left.sort(key=lambda t: (not t.tensor.const, b.time.volume(axes_of(t))))
    return done


def plain_add(b: Builder, x: Leaf, y: Leaf, order: Sequence[Axis]) -> Leaf:
    """``x + y`` as one tensor with these axes; the two terms are kept beside it as a form, unless they could cancel."""
    x, y = drop_uniform_axes(b, x), drop_uniform_axes(b, y)
    plain = _neutral(b, "Add", x, y)
    if plain is not None:
        return plain
    (tx, ty), axes = broadcast_layout(b, [x, y], order)
    leaf = Leaf(keep(b, emit.binary(b, "Add", tx, ty), axes), axes)
    return leaf if leaf.tensor.const or cancels((x, y), of_product=True) else with_form(leaf, Sum((x, y)))


def over(made: tuple[Axis | None, ...], again: Callable[[Leaf], Leaf]) -> Again:
    """A function that computes a tensor again (``again``), for whatever axes the tensor has by then."""

    def compute(axes: tuple[Axis | None, ...], other: Leaf) -> Leaf:
        forth = {now: then for then, now in zip(made, axes, strict=True) if then is not None and now is not None}
        clash = {a: Axis(a.size) for a in axes_of(other) if a not in forth and a in made}
        body = rename(other, {**forth, **clash})
        assert isinstance(body, Leaf)
        back = {then: now for now, then in {**forth, **clash}.items()}
        result = rename(again(body), back)
        assert isinstance(result, Leaf)
        return result

    return compute


def cast_size(b: Builder, axis: Axis, dtype: int) -> Tensor:
    """The length of an axis as a scalar tensor of a floating-point type."""
    size = emit.reshape(b, b.size(axis.size), ())
    return b.emit("Cast", [size], (), dtype, {"to": dtype})


def dtype_of(body: Body) -> int:
    """The ONNX element type of a body: that of its first leaf."""
    while not isinstance(body, Leaf):
        if isinstance(body, Cat):
            body = body.parts[0].body
        else:
            body = body.terms[0] if isinstance(body, Sum) else body.factors[0]
    return body.tensor.dtype


def times(b: Builder, body: Body, factor: float) -> Body:
    """The body times a number, part by part."""
    if isinstance(body, Leaf):
        return scaled(b, body, factor)
    if isinstance(body, Sum):
        return Sum(tuple(times(b, t, factor) for t in body.terms))
    if isinstance(body, Prod):
        return Prod((*body.factors, Leaf(b.const(factor, dtype_of(body)), ())))
    return zip_bodies(b, [body], lambda ls: scaled(b, ls[0], factor))


def repeat(b: Builder, body: Body, axes: frozenset[Axis]) -> Body:
    """The sum over axes on which the body does not vary: the body times their length."""
    scale: float = 1
    for a in in_order(axes):
        if isinstance(a.size, int):
            scale *= a.size
        else:
            size = Leaf(cast_size(b, a, dtype_of(body)), ())
            body = multiply(b, body, size)
    return times(b, body, scale) if scale != 1 else body
