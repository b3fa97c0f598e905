"""Axes of Values: splitting one axis, merging several, and giving several Values the same axes.

In: Values or bodies. Out: the same elements over other axes. `segments` finds the axes that two shapes of the same
elements have in common: [6, 4] and [3, 8] both split into (3, 2, 4).
"""

from __future__ import annotations

from collections.abc import Sequence

from mari_onnx.engine.axes.materialize import as_leaf, flatten_nested, write
from mari_onnx.engine.axes.select import take
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import derive, map_form, tensors_alone
from mari_onnx.engine.ir.value import Axis, Body, Cat, Decline, Group, Leaf, Part, Value, axes_of, is_const, rename
from mari_onnx.model.dims import Size, divide, product, static

MAX_FLAT = 65536
"""A constant may be repeated to this many elements so that it needs no axes of its own."""

MAX_RAGGED = 3
"""An axis is cut into rows if at most this many of them have parts of several kinds."""


def segments(b: Builder, left: Sequence[Size], right: Sequence[Size]) -> list[tuple[Size, int, int]] | None:
    """The coarsest axes of which both shapes consist, as a list of (size, index in ``left``, index in ``right``).

    left, right: two shapes with the same number of elements in row-major order. Dimensions of 1 are skipped. None where
    there are no such axes ([2, 3] and [3, 2]), or where sizes are not known well enough.
    """
    out: list[tuple[Size, int, int]] = []
    i = j = 0
    r: Size | None = None
    t: Size | None = None
    while True:
        while r is None and i < len(left):
            if left[i] != 1:
                r = left[i]
            else:
                i += 1
        while t is None and j < len(right):
            if right[j] != 1:
                t = right[j]
            else:
                j += 1
        if r is None or t is None:
            return out if r is None and t is None else None
        if b.same(r, t):
            out.append((r if not isinstance(r, int) else t, i, j))
            i, j, r, t = i + 1, j + 1, None, None
            continue
        rest = _ratio(b, t, r)
        if rest is not None:
            out.append((r, i, j))
            i, r, t = i + 1, None, rest
            continue
        rest = _ratio(b, r, t)
        if rest is None:
            return None
        out.append((t, i, j))
        j, t, r = j + 1, None, rest


def _ratio(b: Builder, a: Size, c: Size) -> Size | None:
    rest = divide(a, c)
    if rest is None and b.fixed:
        rest = divide(b.literal(a), b.literal(c))
    return rest


def split(b: Builder, body: Body, axis: Axis, new: Sequence[Axis]) -> Body:
    """The body with one axis replaced by several, in row-major order."""
    if len(new) == 1:
        return rename(body, {axis: new[0]})
    if isinstance(body, Leaf):
        if axis not in body.axes:
            return body
        i = body.axes.index(axis)
        sizes = [*body.tensor.known[:i], *(a.size for a in new), *body.tensor.known[i + 1 :]]
        leaf = Leaf(emit.reshape(b, body.tensor, sizes), (*body.axes[:i], *new, *body.axes[i + 1 :]))
        return derive(body, leaf, lambda form: split(b, form, axis, new))
    if not isinstance(body, Cat):
        return map_form(body, lambda item: split(b, item, axis, new))
    if body.axis is not axis:
        parts = tuple(p.with_body(split(b, p.body, axis, new)) for p in body.parts)
        return Cat(body.axis, parts, body.keep_split)
    return _split_cat(b, body, new) or split(b, _whole(b, body), axis, new)


def _whole(b: Builder, cat: Cat) -> Leaf:
    """The Cat as one leaf. Raises `Decline` for a Cat that is only a form; the form is then dropped."""
    if not tensors_alone(cat):
        raise Decline("a Reshape cuts through the parts of a tensor that is not written")
    return as_leaf(b, cat)


def _split_cat(b: Builder, cat: Cat, new: Sequence[Axis]) -> Cat | None:
    """A Cat with its axis split into the axes ``new``; None where its parts do not fit them."""
    if not all(isinstance(a.size, int) for a in new):
        return None
    inner = static(product(a.size for a in new[1:]))
    last = static(new[-1].size)
    if all(_blocks(p.positions, inner) for p in cat.parts):
        parts = []
        for p in cat.parts:
            at = tuple(q // inner for q in p.positions[::inner])
            sub = Axis(len(at)) if len(at) > 1 else None
            axes = [*([sub] if sub else []), *new[1:]]
            body = split(b, p.body, p.axis, axes) if p.axis is not None else p.body
            parts.append(Part(at, sub, body))
        return Cat(new[0], tuple(parts), cat.keep_split)
    outer = int(cat.axis.size) // last if isinstance(cat.axis.size, int) else 0
    if not all(_repeats(p, outer, last) for p in cat.parts):
        return _ragged(b, cat, new, inner)
    parts = []
    for p in cat.parts:
        n = len(p.positions) // outer
        sub = Axis(n) if n > 1 else None
        axes = [*new[:-1], *([sub] if sub else [])]
        assert p.axis is not None
        parts.append(Part(p.positions[:n], sub, split(b, p.body, p.axis, axes)))
    return Cat(new[-1], tuple(parts), cat.keep_split)


def _repeats(p: Part, outer: int, last: int) -> bool:
    """Whether a part has the same columns in each of ``outer`` rows of length ``last``."""
    if outer == 0 or len(p.positions) % outer or p.axis is None:
        return False
    n = len(p.positions) // outer
    first = p.positions[:n]
    return p.positions == tuple(k * last + q for k in range(outer) for q in first) and first[-1] < last


def _ragged(b: Builder, cat: Cat, new: Sequence[Axis], inner: int) -> Cat | None:
    """A Cat split into rows of ``inner`` positions each: rows of parts that vary alike together, other rows one by one.

    None where no row has parts of one kind only, or where more than `MAX_RAGGED` rows have several.
    """
    cat = flatten_nested(cat)
    owner = {q: axes_of(p.body) - {p.axis} for p in cat.parts for q in p.positions}
    rows: dict[frozenset[Axis], list[int]] = {}
    mixed: list[int] = []
    for r in range(static(new[0].size)):
        found = {owner[q] for q in range(r * inner, (r + 1) * inner)}
        if len(found) > 1:
            mixed.append(r)
        else:
            rows.setdefault(found.pop(), []).append(r)
    if not rows or len(mixed) > MAX_RAGGED or len(cat.parts) == 1:
        return None  # every row has several parts, so that nothing is gained
    parts = []
    for at in [*rows.values(), *([r] for r in mixed)]:
        sub = Axis(len(at)) if len(at) > 1 else None
        whole = Axis(len(at) * inner)
        body = take(b, cat, cat.axis, [q for r in at for q in range(r * inner, (r + 1) * inner)], whole)
        if len(at) > 1 and isinstance(body, Cat) and body.axis is whole:
            body = _whole(b, body)  # parts that vary alike
        parts.append(Part(tuple(at), sub, split(b, body, whole, [*([sub] if sub else []), *new[1:]])))
    return Cat(new[0], tuple(parts))


def _blocks(at: Sequence[int], n: int) -> bool:
    """Whether positions come in whole rows of n."""
    if len(at) % n:
        return False
    return all(at[i] % n == 0 and tuple(at[i : i + n]) == tuple(range(at[i], at[i] + n)) for i in range(0, len(at), n))


def flatten(b: Builder, body: Body, group: Group, new: Axis) -> Body:
    """The body with a group of axes replaced by the single axis ``new``."""
    if len(group) == 1:
        return rename(body, {group[0]: new})
    if isinstance(body, Leaf):
        present = axes_of(body) & set(group)
        if not present:
            return body
        order: list[Group] = []
        for a in body.axes:
            if a not in present:
                order.append((a,) if a is not None else ())
            elif group not in order:
                order.append(group)
        tensor = write(b, body, order)
        leaf = Leaf(tensor, tuple(new if g is group else g[0] if g else None for g in order))
        return derive(body, leaf, lambda form: flatten(b, form, group, new))
    if not isinstance(body, Cat):
        return map_form(body, lambda item: flatten(b, item, group, new))
    if body.axis not in group:
        joined = tuple(p.with_body(flatten(b, p.body, group, new)) for p in body.parts)
        return Cat(body.axis, joined, body.keep_split)
    if not all(isinstance(a.size, int) for a in group):
        return flatten(b, _whole(b, body), group, new)
    k = group.index(body.axis)
    outer = static(product(a.size for a in group[:k]))
    inner = static(product(a.size for a in group[k + 1 :]))
    size = static(group[k].size)
    parts = []
    for p in body.parts:
        at = tuple((o * size + q) * inner + i for o in range(outer) for q in p.positions for i in range(inner))
        rest = (*group[:k], *((p.axis,) if p.axis else ()), *group[k + 1 :])
        sub = Axis(len(at)) if len(at) > 1 else None
        inside = flatten(b, p.body, rest, sub) if sub is not None and rest else p.body
        parts.append(Part(at, sub, inside))
    return Cat(new, tuple(parts), body.keep_split)


def single(b: Builder, value: Value, i: int) -> tuple[Value, Axis | None]:
    """The value with its logical dimension i as one atomic axis, and that axis; None for a dimension of 1."""
    group = value.known[i]
    if not group:
        return value, None
    if len(group) == 1:
        return value, group[0]
    new = Axis(product(a.size for a in group))
    body = flatten(b, value.body, group, new)
    groups = (*value.known[:i], (new,), *value.known[i + 1 :])
    return Value(groups, body, value.dtype, value.sym), new


def align(b: Builder, values: Sequence[Value]) -> tuple[list[Body], tuple[Group, ...]]:
    """The values' bodies over common axes, for broadcasting as in numpy, and the groups of the result. Raises `Decline`
    where dimensions are not known to be equal or 1.

    Constants are aligned last and take the axes of the others: a tiled gate ``(16, 32)`` over fields ``(32, 16)`` is
    written out as 512 columns, because axes that fit both would cut a `Cat` across its parts.
    """
    rank = max(v.rank for v in values)
    padded = [((),) * (rank - v.rank) + v.known for v in values]
    bodies: list[Body] = [v.body for v in values]
    canon: list[Group] = [() for _ in range(rank)]
    done: list[int] = []
    for k in sorted(range(len(values)), key=lambda k: is_const(bodies[k])):
        groups = padded[k]
        if is_const(bodies[k]):
            bodies[k], groups = _coarse(b, bodies[k], groups, canon)
        mapping: dict[Axis, Axis] = {}
        used = {a for g in canon for a in g}
        for i, group in enumerate(groups):
            if not group:
                continue
            if not canon[i]:
                fresh = tuple(Axis(a.size) if a in used else a for a in group)
                mapping.update({a: f for a, f in zip(group, fresh, strict=True) if a is not f})
                canon[i] = fresh
                used |= set(fresh)
                continue
            found = segments(b, [a.size for a in canon[i]], [a.size for a in group])
            if found is None:
                sizes = [" * ".join(str(a.size) for a in g) for g in (canon[i], group)]
                raise Decline(f"nothing shows that the dimensions {sizes[0]} and {sizes[1]} are equal")
            axes = [b.axis(size, used) for size, _, _ in found]
            for side, own in ((1, canon[i]), (2, group)):
                for n, axis in enumerate(own):
                    pieces = [a for a, segment in zip(axes, found, strict=True) if segment[side] == n]
                    if len(pieces) == 1 and side == 1:
                        # an axis that is not split stays the same axis
                        axes[axes.index(pieces[0])] = axis
                    elif side == 1:
                        for j in done:
                            bodies[j] = split(b, bodies[j], axis, pieces)
            canon[i] = tuple(axes)
            used |= set(axes)
            for n, axis in enumerate(group):
                pieces = [a for a, segment in zip(axes, found, strict=True) if segment[2] == n]
                if len(pieces) == 1:
                    mapping[axis] = pieces[0]
                else:
                    parts = [Axis(a.size) for a in pieces]
                    bodies[k] = split(b, bodies[k], axis, parts)
                    mapping.update(zip(parts, pieces, strict=True))
        bodies[k] = rename(bodies[k], {a: m for a, m in mapping.items() if a is not m})
        done.append(k)
    return bodies, tuple(canon)


def _coarse(
    b: Builder, body: Body, groups: Sequence[Group], canon: Sequence[Group]
) -> tuple[Body, tuple[Group, ...]]:
    """A constant written out so that it has the axes of ``canon``, where its own would split them."""
    out: list[Group] = []
    for group, other in zip(groups, canon, strict=True):
        sizes, whole = [a.size for a in other], product(a.size for a in group)
        if len(group) > 1 and other and isinstance(whole, int) and whole <= MAX_FLAT:
            found = segments(b, sizes, [a.size for a in group])
            if found is None or len(found) > len(other):
                axis = Axis(whole)
                body, group = flatten(b, body, group, axis), (axis,)
        out.append(group)
    return body, tuple(out)
