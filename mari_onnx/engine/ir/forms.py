"""Other ways to compute a tensor (`Sum`, `Prod`, a softmax by blocks), remembered beside it for contractions."""

from __future__ import annotations

from collections.abc import Callable

from mari_onnx.engine.ir.value import Axis, Body, Cat, Decline, Form, Leaf, Prod, Sum, axes_of, is_const, rename


def form_of(leaf: Leaf) -> Body | None:
    """The leaf's other form, over the leaf's axes."""
    form = leaf.tensor.form
    if callable(form):
        form = leaf.tensor.form = form()
    if form is None:
        return None
    template, body = form
    mapping = {t: a for t, a in zip(template, leaf.axes, strict=True) if t is not None and a is not None and t is not a}
    return rename(body, mapping)


def has_cheaper_form(body: Body) -> bool:
    """Whether a leaf has a form of parts that vary less than it: a factor that is a constant would not be one."""
    if not isinstance(body, Leaf) or body.tensor.const or body.tensor.form is None:
        return False
    if body.tensor.cheaper is None:
        form = form_of(body)
        body.tensor.cheaper = form is not None and _helps(form, axes_of(body), scaled=False)
    return body.tensor.cheaper


def with_form(leaf: Leaf, body: Body) -> Leaf:
    """Remember another way to compute a leaf, if it can be cheaper to contract than the leaf itself."""
    if leaf.tensor.form is None and not leaf.tensor.const and _helps(body, axes_of(leaf)):
        leaf.tensor.form = (leaf.axes, body)
        # asked now, while the answer for what it is made of is known: forms can nest deeper than Python recurses
        has_cheaper_form(leaf)
    return leaf


def _helps(body: Body, full: frozenset[Axis], scaled: bool = True) -> bool:
    """Whether nothing in the form is a plain tensor over all the axes that the leaf has.

    scaled: but for one with a constant factor (a mask, the scale of a BatchNormalization), which goes into weights.
    """
    if isinstance(body, Leaf):
        return axes_of(body) != full or (body.tensor.form is not None if scaled else has_cheaper_form(body))
    if isinstance(body, Cat):
        return True
    items = body.terms if isinstance(body, Sum) else body.factors
    plain = [item for item in items if not _helps(item, full, scaled)]
    if not scaled or not isinstance(body, Prod) or len(plain) != 1:
        return not plain
    return all(i in plain or is_const(i) for i in items)


def derive(old: Leaf, new: Leaf, how: Callable[[Body], Body]) -> Leaf:
    """Carry the form of a leaf to a regrouped or cut copy of it, computed when asked for."""
    if old.tensor.form is None or new.tensor is old.tensor:
        return new
    if new.tensor.form is None and not new.tensor.const:

        def later() -> Form | None:
            form = form_of(old)
            try:
                return (new.axes, how(form)) if form is not None else None
            except Decline:  # the copy has no such form
                return None

        new.tensor.form = later
    return new


def tensors_alone(body: Body) -> bool:
    """Whether no sum or product is inside, so that the body can be written out."""
    if isinstance(body, Cat):
        return all(tensors_alone(p.body) for p in body.parts)
    return isinstance(body, Leaf)


def map_form(body: Body, how: Callable[[Body], Body]) -> Body:
    if isinstance(body, Sum):
        return Sum(tuple(how(t) for t in body.terms))
    assert isinstance(body, Prod)
    return Prod(tuple(how(f) for f in body.factors))
