"""Forms: other ways to compute a tensor (a `Sum`, a `Prod`, a softmax by blocks), remembered beside it.

`(q - k) W` is cheaper as `q W - k W` where q is the user's. So the tensor `q - k` is written, and the Sum is kept with
it; a product that reads it takes the cheaper way. `Alternatives` (`ir/value.py`) holds a tensor's forms, and only this
module changes them. Nothing is written for a form until something uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from mari_onnx.engine.ir.value import (
    WRITTEN,
    Again,
    Axis,
    Body,
    Cat,
    Decline,
    Form,
    Leaf,
    Prod,
    Sum,
    Tensor,
    axes_of,
    is_const,
    leaves,
    rename,
)


def form_of(leaf: Leaf) -> Body | None:
    """The leaf's other form, over the leaf's axes; None where it has none."""
    form = leaf.tensor.alternatives.form
    if callable(form):
        form = form()
        leaf.tensor.alternatives = replace(leaf.tensor.alternatives, form=form)
    if form is None:
        return None
    template, body = form
    mapping = {t: a for t, a in zip(template, leaf.axes, strict=True) if t is not None and a is not None and t is not a}
    return rename(body, mapping)


def has_cheaper_form(body: Body) -> bool:
    """Whether the leaf has a form whose parts vary along fewer axes than it; a constant factor alone does not count."""
    if not isinstance(body, Leaf) or body.tensor.const or body.tensor.alternatives.form is None:
        return False
    cheaper = body.tensor.alternatives.cheaper
    if cheaper is None:
        form = form_of(body)
        cheaper = form is not None and _helps(form, axes_of(body), scaled=False)
        body.tensor.alternatives = replace(body.tensor.alternatives, cheaper=cheaper)
    return cheaper


def with_form(leaf: Leaf, body: Body, price: float | None = None) -> Leaf:
    """Remembers another way to compute a leaf, if it can be cheaper to multiply than the leaf itself.

    price: the price of an element of the leaf, where it differs from its operator's usual one.
    """
    tensor = leaf.tensor
    if tensor.alternatives.form is None and not tensor.const and _helps(body, axes_of(leaf)):
        tensor.alternatives = replace(tensor.alternatives, form=(leaf.axes, body), price=price)
        # computed now, because forms can nest deeper than Python recurses
        has_cheaper_form(leaf)
    return leaf


def _helps(body: Body, full: frozenset[Axis], scaled: bool = True) -> bool:
    """Whether no item of the form is a plain tensor over all the axes that the leaf has.

    scaled: such a tensor may have a constant factor (a mask, the scale of a BatchNormalization), which goes into
    weights.
    """
    if isinstance(body, Leaf):
        formed = body.tensor.alternatives.form is not None if scaled else has_cheaper_form(body)
        return formed or axes_of(body) != full
    if isinstance(body, Cat):
        return True
    items = body.terms if isinstance(body, Sum) else body.factors
    plain = [item for item in items if not _helps(item, full, scaled)]
    if not scaled or not isinstance(body, Prod) or len(plain) != 1:
        return not plain
    return all(i in plain or is_const(i) for i in items)


def derive(old: Leaf, new: Leaf, how: Callable[[Body], Body]) -> Leaf:
    """Carries the form of a leaf over to a regrouped or cut copy of it; it is computed when something reads it."""
    if old.tensor.alternatives.form is None or new.tensor is old.tensor:
        return new
    if new.tensor.alternatives.form is None and not new.tensor.const:

        def later() -> Form | None:
            form = form_of(old)
            try:
                return (new.axes, how(form)) if form is not None else None
            except Decline:  # the copy has no such form
                return None

        new.tensor.alternatives = replace(new.tensor.alternatives, form=later)
    return new


def extendable(total: Leaf, more: Again, factor: Again | None = None) -> Leaf:
    """Remembers how to write a sum again with one more small term, or a product with a constant factor for each
    column.
    """
    old = total.tensor.alternatives
    if old.add_later is None and not total.tensor.const:
        total.tensor.alternatives = replace(old, add_later=more, rescale=factor)
    return total


def settle(body: Body) -> None:
    """Forgets how to write these tensors again: several nodes read them, so each would repeat the product.

    A bias or scale that one of the readers adds is then a node after them.
    """
    for leaf in leaves(body):
        leaf.tensor.alternatives = replace(leaf.tensor.alternatives, add_later=None, rescale=None)


def written_only(tensor: Tensor) -> None:
    """Forgets all other ways to compute a tensor, for good."""
    tensor.alternatives = WRITTEN


@contextmanager
def without_alternatives(bodies: Iterable[Body]) -> Iterator[None]:
    """A context in which tensors have no forms; what is remembered meanwhile is forgotten."""
    kept = [(leaf.tensor, leaf.tensor.alternatives) for body in bodies for leaf in leaves(body)]
    try:
        for tensor, _ in kept:
            tensor.alternatives = WRITTEN
        yield
    finally:
        for tensor, alternatives in kept:
            tensor.alternatives = alternatives


def tensors_alone(body: Body) -> bool:
    """Whether a body has no Sum or Prod inside, so that it can be written as a tensor."""
    if isinstance(body, Cat):
        return all(tensors_alone(p.body) for p in body.parts)
    return isinstance(body, Leaf)


def map_form(body: Body, how: Callable[[Body], Body]) -> Body:
    """Applies a function to each term of a Sum, or to each factor of a Prod."""
    if isinstance(body, Sum):
        return Sum(tuple(how(t) for t in body.terms))
    assert isinstance(body, Prod)
    return Prod(tuple(how(f) for f in body.factors))
