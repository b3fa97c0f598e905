"""Collects like terms of a sum. In a cross network the user's half stays one tensor, times one number per candidate:

    u s_1 + b_1 + u s_2 + b_2 + u  =  u (s_1 + s_2 + 1) + (b_1 + b_2)

The sum does not grow from layer to layer, so a product behind any number of layers needs ``u W`` only once per request.

In: two tensors with the forms of both. Out: the form of their sum. A product may use it, ``(x + y) W = x W + y W``,
only where no two terms can be large and cancel (`analysis/cancellation.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mari_onnx.engine.analysis.cancellation import cancels
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import form_of, has_cheaper_form
from mari_onnx.engine.ir.value import Body, Leaf, Prod, Sum, axes_of

MOST = 8
"""A sum of more terms is left as it is."""
Entry = tuple[Leaf, Leaf | None]
"""A tensor and what it is multiplied by (None: by 1)."""
Plus = Callable[[Sequence[Leaf]], Leaf]


def collected(b: Builder, x: Leaf, y: Leaf, plus: Plus) -> Sum | None:
    """The form of ``x + y`` with like terms and constants collected; just the two where nothing is alike.

    plus: adds coefficients. None where terms could cancel.
    """
    terms = _like_terms(b, x, y, plus)
    return next((Sum(tuple(found)) for found in (terms, (x, y)) if found and cancels(found) is None), None)


def _like_terms(b: Builder, x: Leaf, y: Leaf, plus: Plus) -> list[Body] | None:
    """The terms of both, collected; None where nothing is alike."""
    entries = [*_entries(b, x), *_entries(b, y)]
    found: dict[object, list[Entry]] = {}
    for base, factor in entries:
        # constants over the same axes are one as well, at build time
        key = (id(base.tensor) if not (base.tensor.const and factor is None) else None, base.axes)
        found.setdefault(key, []).append((base, factor))
    if len(entries) > MOST or all(len(group) == 1 or group[0][0].tensor.const for group in found.values()):
        return None
    terms: list[Body] = []
    for group in found.values():
        base, factor = group[0]
        if len(group) > 1 and factor is None and base.tensor.const:
            terms.append(plus([leaf for leaf, _ in group]))
        elif len(group) == 1:
            terms.append(base if factor is None else Prod((base, factor)))
        else:
            one = Leaf(b.const(np.asarray(1), base.tensor.dtype), ())
            terms.append(Prod((base, plus([one if f is None else f for _, f in group]))))
    return terms


def _entries(b: Builder, leaf: Leaf) -> list[Entry]:
    """The terms of a leaf's form; the leaf itself where it has none."""
    form = form_of(leaf)
    if isinstance(form, Prod):
        return [(_entry(b, form) if has_cheaper_form(leaf) else None) or (leaf, None)]
    if not isinstance(form, Sum):
        return [(leaf, None)]
    out: list[Entry] = []
    for term in form.terms:
        entry = _entry(b, term) if isinstance(term, Prod) else None
        if isinstance(term, Leaf):
            out += _entries(b, term)
        elif entry is None:
            return [(leaf, None)]
        else:
            out.append(entry)
    return out


def _entry(b: Builder, form: Prod) -> Entry | None:
    """A product of two tensors as (tensor, factor): the tensor that candidates share first, else the larger one."""
    if len(form.factors) != 2:
        return None
    x, y = form.factors
    if not isinstance(x, Leaf) or not isinstance(y, Leaf):
        return None
    x, y = sorted((x, y), key=lambda leaf: ("item" in leaf.tensor.deps, -b.time.volume(axes_of(leaf))))
    return x, y
