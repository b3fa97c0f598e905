"""Other ways to compute a tensor (`Sum`, `Prod`, a softmax by blocks), remembered beside it for contractions."""

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
    axes_of,
    is_const,
    leaves,
    rename,
)


def form_of(leaf: Leaf) -> Body | None:
    """The leaf's other form, over the leaf's axes."""
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
    """Whether a leaf has a form of parts that vary less than it: a factor that is a constant would not be one."""
    if not isinstance(body, Leaf) or body.tensor.const or body.tensor.alternatives.form is None:
        return False
    cheaper = body.tensor.alternatives.cheaper
    if cheaper is None:
        form = form_of(body)
        cheaper = form is not None and _helps(form, axes_of(body), scaled=False)
        body.tensor.alternatives = replace(body.tensor.alternatives, cheaper=cheaper)
    return cheaper


def with_form(leaf: Leaf, body: Body, price: float | None = None) -> Leaf:
    """Remember another way to compute a leaf, if it can be cheaper to contract than the leaf itself.

    price: of an element of the leaf, where it differs from its operator's usual one.
    """
    tensor = leaf.tensor
    if tensor.alternatives.form is None and not tensor.const and _helps(body, axes_of(leaf)):
        tensor.alternatives = replace(tensor.alternatives, form=(leaf.axes, body), price=price)
        # asked now, while the answer for what it is made of is known: forms can nest deeper than Python recurses
        has_cheaper_form(leaf)
    return leaf


def _helps(body: Body, full: frozenset[Axis], scaled: bool = True) -> bool:
    """Whether nothing in the form is a plain tensor over all the axes that the leaf has.

    scaled: but for one with a constant factor (a mask, the scale of a BatchNormalization), which goes into weights.
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
    """Carry the form of a leaf to a regrouped or cut copy of it, computed when asked for."""
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


def absorbing(total: Leaf, more: Again, factor: Again | None = None) -> Leaf:
    """Let a sum take in one more small term later on, and a product a constant factor of its columns."""
    old = total.tensor.alternatives
    if old.add_later is None and not total.tensor.const:
        total.tensor.alternatives = replace(old, add_later=more, rescale=factor)
    return total


def settle(body: Body) -> None:
    """Tensors that are needed as they are: a bias or a scale that one of several readers adds comes after them.

    Taken into their weights, the product would run once for each reader, or each iteration of a Loop.
    """
    for leaf in leaves(body):
        leaf.tensor.alternatives = replace(leaf.tensor.alternatives, add_later=None, rescale=None)


@contextmanager
def without_alternatives(bodies: Iterable[Body]) -> Iterator[None]:
    """Tensors as they were written alone, as long as it lasts; what is found of them meanwhile is forgotten."""
    kept = [(leaf.tensor, leaf.tensor.alternatives) for body in bodies for leaf in leaves(body)]
    try:
        for tensor, _ in kept:
            tensor.alternatives = WRITTEN
        yield
    finally:
        for tensor, alternatives in kept:
            tensor.alternatives = alternatives


def tensors_alone(body: Body) -> bool:
    """Whether no sum or product is inside, so that the body can be written out."""
    if isinstance(body, Cat):
        return all(tensors_alone(p.body) for p in body.parts)
    return isinstance(body, Leaf)


def map_form(body: Body, how: Callable[[Body], Body]) -> Body:
    """Applies a function to each term of a Sum, or to each factor of a Prod."""
    if isinstance(body, Sum):
        return Sum(tuple(how(t) for t in body.terms))
    assert isinstance(body, Prod)
    return Prod(tuple(how(f) for f in body.factors))
