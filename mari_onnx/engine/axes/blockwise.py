"""Applies an element-wise operator to several bodies part by part (`zip_bodies`).

In: bodies over common axes, any of which may be a Cat, and a function of leaves. Out: one body. The positions of an
axis at which the same parts of all Cats meet are a *cell*; the function is called once per cell. Cells that save
nothing are computed together, where that needs fewer nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mari_onnx.engine.axes.materialize import as_leaf, flatten_nested
from mari_onnx.engine.axes.select import coalesce, pull, take
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import has_cheaper_form
from mari_onnx.engine.ir.value import Axis, Body, Cat, Leaf, Part, axes_of, is_const, offline, rename, within

MAX_CELLS = 12
"""An element-wise operator may have this many parts along an axis; with more its operands are written out."""


def zip_bodies(
    b: Builder,
    bodies: Sequence[Body],
    visit: Callable[[list[Leaf]], Body],
    mapped: frozenset[Axis] | None = None,
    order: Sequence[Axis] = (),
) -> Body:
    """Applies a function of leaves to each cell along every axis in ``mapped`` (None: all) on which a body is a Cat.

    visit: takes a leaf per body and returns the result's body. order: the logical order of the axes. A Cat along an
    axis that is not in ``mapped`` is written out first.
    """
    bodies = [coalesce(b, body, order) if isinstance(body, Cat) else body for body in bodies]
    for k, body in enumerate(bodies):
        if isinstance(body, Cat) and mapped is not None and body.axis not in mapped:
            bodies[k] = as_leaf(b, body, order)
    cats = [body for body in bodies if isinstance(body, Cat)]
    top = max(cats, key=lambda body: len(axes_of(body)), default=None)
    if top is None:
        return visit([body for body in bodies if isinstance(body, Leaf)])
    axis = top.axis
    cells = cells_of(bodies, axis)
    if mapped is None and _grid_saves_nothing(bodies):
        return _all_together(b, bodies, visit, order)
    if len(cells) > MAX_CELLS:
        return zip_bodies(b, [as_leaf(b, x, order) for x in bodies], visit, mapped, order)
    if mapped is None and len(cells) > 1:
        kinds = _kinds(b, bodies, axis, cells)
        fewer = len(kinds) - len(set(kinds)) if kinds is not None else 0
        if kinds is not None and fewer and _joining_pays(b, bodies, axis, fewer):
            if len(set(kinds)) == 1:
                return _unsplit(b, bodies, axis, [p for at in cells.values() for p in at], visit, order)
            merged: dict[object, list[int]] = {}
            for kind, at in zip(kinds, cells.values(), strict=True):
                merged.setdefault(kind, []).extend(at)
            cells = {(i,): at for i, at in enumerate(merged.values())}
    parts = []
    for at in cells.values():
        sub = Axis(len(at)) if len(at) > 1 else None
        inner = [take(b, body, axis, at, sub) for body in bodies]
        sub_order = within(order, axis, sub)
        inner_mapped = None if mapped is None else mapped | ({sub} if sub else frozenset())
        parts.append(Part(tuple(at), sub, zip_bodies(b, inner, visit, inner_mapped, sub_order)))
    return flatten_nested(Cat(axis, tuple(parts), True))


def cells_of(bodies: Sequence[Body], axis: Axis) -> dict[tuple[int, ...], list[int]]:
    """Positions along ``axis`` by cell, as a mapping (part of the first Cat, part of the second, ..) -> positions.

    The cells are in the order of the first Cat's parts, so that these need no reordering.
    """
    cats = [body for body in bodies if isinstance(body, Cat) and body.axis is axis]
    part_of = [{p: k for k, part in enumerate(cat.parts) for p in part.positions} for cat in cats]
    cells: dict[tuple[int, ...], list[int]] = {}
    for p in part_of[0]:
        cells.setdefault(tuple(of[p] for of in part_of), []).append(p)
    return cells


def interchange(b: Builder, cat: Cat, axes: frozenset[Axis]) -> Cat:
    """A Cat of Cats with one of ``axes``, the axis of an inner Cat, outside: [[a / b] | c] becomes [[a | c_a] / [b |
    c_b]].
    """
    inner = [p.body for p in cat.parts if isinstance(p.body, Cat) and p.body.axis in axes]
    if cat.axis in axes or not inner:
        return cat
    other = inner[0].axis
    cats = [body for body in inner if body.axis is other]
    parts = []
    for at in cells_of(cats, other).values():
        sub = Axis(len(at)) if len(at) > 1 else None
        parts.append(Part(tuple(at), sub, take(b, cat, other, at, sub)))
    return Cat(other, tuple(parts))


def _kinds(
    b: Builder, bodies: Sequence[Body], axis: Axis, cells: dict[tuple[int, ...], list[int]]
) -> list[object] | None:
    """The axes along which each cell varies, and whether it is constant or, for a split, the items' own; None where
    Cats are nested.

    Cells that vary along the same axes save nothing by being computed separately. A constant cell stays separate, as
    later operators can use that it is -inf or zero throughout.
    """
    cats = [body for body in bodies if isinstance(body, Cat) and body.axis is axis]
    if any(isinstance(p.body, Cat) for cat in cats for p in cat.parts):
        return None
    others = [body for body in bodies if not (isinstance(body, Cat) and body.axis is axis)]
    if any(isinstance(body, Cat) for body in others):
        return None
    rest = [axes_of(body) - {axis} for body in others]
    constant = all(is_const(body) for body in others)
    kinds: list[object] = []
    for key in cells:
        parts = [cat.parts[k] for cat, k in zip(cats, key, strict=True)]
        own = [axes_of(p.body) - {p.axis} for p in parts]
        fixed = constant and all(is_const(p.body) for p in parts)
        union = frozenset().union(*own, *rest)
        leaves = [p.body for p in parts] + others
        # a product of factors none of which has all the axes is a form that a contraction can use
        whole = [leaf for axes, leaf in zip([*own, *rest], leaves, strict=True) if axes == union]
        formed = len(leaves) > 1 and (not whole or (len(whole) == 1 and has_cheaper_form(whole[0])))
        kinds.append((union, fixed, formed, offline(b.time, *leaves)))
    return kinds


def _joining_pays(b: Builder, bodies: Sequence[Body], axis: Axis, fewer: int) -> bool:
    """Whether writing parts as one tensor costs less than the ``fewer`` nodes that it saves."""
    together = apart = 0.0
    for body in bodies:
        size = b.time.copy * b.time.volume(axes_of(body))
        if is_const(body):
            continue
        if isinstance(body, Cat) and len(body.parts) > 1:
            together += size
        elif axis in axes_of(body) and (not isinstance(body, Cat) or body.axis is axis):
            apart += size
    return together <= apart + 2 * b.time.node * fewer


def _grid_saves_nothing(bodies: Sequence[Body]) -> bool:
    """Whether Cats along several axes meet (heads and tokens) and one operand varies along all axes of the result
    anyway.
    """
    if len({body.axis for body in bodies if isinstance(body, Cat)}) < 2:
        return False
    union = frozenset().union(*(axes_of(body) for body in bodies))
    return any(_varies(body, union) for body in bodies)


def _all_together(
    b: Builder, bodies: Sequence[Body], visit: Callable[[list[Leaf]], Body], order: Sequence[Axis]
) -> Body:
    """One node on whole operands, whose positions are ordered along each axis as in the first Cat along it."""
    places: dict[Axis, list[int]] = {}
    stack = list(bodies)
    union = frozenset().union(*(axes_of(body) for body in bodies))
    stack.sort(key=lambda body: isinstance(body, Leaf))
    while stack:
        body = stack.pop(0)
        if isinstance(body, Cat):
            if body.axis in union:
                places.setdefault(body.axis, [p for part in body.parts for p in part.positions])
            stack += [p.body for p in body.parts]
        elif isinstance(body, Leaf) and not body.tensor.const and "item" in body.tensor.deps:
            for i, axis in enumerate(body.axes):
                if axis is not None and axis in union and isinstance(axis.size, int) and _stays(b, body, i, places):
                    places[axis] = list(range(axis.size))
    subs: dict[Axis, Axis] = {}
    for axis, at in places.items():
        if at == sorted(at):
            continue
        subs[axis] = Axis(len(at))
        bodies = [take(b, body, axis, at, subs[axis]) for body in bodies]
    inside = [subs.get(a, a) for a in order]
    result = visit([as_leaf(b, body, inside) for body in bodies])
    for axis, sub in subs.items():
        result = Cat(axis, (Part(tuple(places[axis]), sub, result),), True)
    return result


def _stays(b: Builder, leaf: Leaf, i: int, places: dict[Axis, list[int]]) -> bool:
    """Whether dimension i of a leaf can be put in the order of ``places`` through the weights that made it."""
    axis = leaf.axes[i]
    return axis in places and places[axis] != sorted(places[axis]) and pull(b, leaf.tensor, i, places[axis], 4) is None


def _varies(body: Body, need: frozenset[Axis]) -> bool:
    """Whether a body varies along all axes in ``need``, and has no cheaper form."""
    if isinstance(body, Cat):
        return all(_varies(p.body, need - {body.axis} | ({p.axis} if p.axis else frozenset())) for p in body.parts)
    return not has_cheaper_form(body) and axes_of(body) >= need


def _unsplit(
    b: Builder,
    bodies: Sequence[Body],
    axis: Axis,
    places: list[int],
    visit: Callable[[list[Leaf]], Body],
    order: Sequence[Axis],
) -> Body:
    """An element-wise step that saves nothing by parts, as one node.

    The operands keep the order of the parts: constants are put in that order at build time, and a product gets its
    columns from its weights in that order. Only an operand that was made otherwise forces the source's order.
    """
    for body in bodies:
        if isinstance(body, Leaf) and axis in body.axes and not body.tensor.const:
            i = body.axes.index(axis)
            if "item" in body.tensor.deps and pull(b, body.tensor, i, places, 4) is None:
                places = sorted(places)
    sub = Axis(len(places))
    inside = [sub if a is axis else a for a in order]
    leaves = [as_leaf(b, take(b, body, axis, places, sub), inside) for body in bodies]
    result = visit(leaves)
    if places == sorted(places):
        return rename(result, {sub: axis})
    return Cat(axis, (Part(tuple(places), sub, result),), True)
