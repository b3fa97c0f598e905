"""Bodies as data: writing them out, taking positions, regrouping axes, walking several at once.

Everything here is exact and free of arithmetic; the arithmetic is in `algebra`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mari_onnx.engine import emit
from mari_onnx.engine.builder import Builder, Tensor
from mari_onnx.engine.value import (
    Axis,
    Body,
    Cat,
    Group,
    Leaf,
    Part,
    Prod,
    Sum,
    Value,
    axes_of,
    is_const,
    rename,
)
from mari_onnx.model.dims import Size, divide, product

MAX_RUNS = 128
"""Runs up to which an interleaved Cat is written by Split and Concat; a Gather moves single elements, and is slower."""
MAX_TIDY = 6
"""Parts up to which a Cat that was computed by parts stays as it is."""
MAX_CELLS = 12
"""Parts that one element-wise step may make of an axis; beyond it the operands are written out."""


class Decline(Exception):
    """A rule cannot go on; the default rule takes the node. The message is the reason in the report."""


# ---- forms ---------------------------------------------------------------------------------------------------------


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


def with_form(leaf: Leaf, body: Body) -> Leaf:
    """Remember another way to compute a leaf, if it can be cheaper to contract than the leaf itself."""
    if leaf.tensor.form is None and not leaf.tensor.const and _helps(body, axes_of(leaf)):
        leaf.tensor.form = (leaf.axes, body)
    return leaf


def _helps(body: Body, full: frozenset[Axis]) -> bool:
    """Whether nothing in the form is a plain tensor over all the axes that the leaf has."""
    if isinstance(body, Leaf):
        return axes_of(body) != full or body.tensor.form is not None
    if isinstance(body, Cat):
        return True
    return all(_helps(item, full) for item in (body.terms if isinstance(body, Sum) else body.factors))


def _derive(old: Leaf, new: Leaf, how: Callable[[Body], Body]) -> Leaf:
    """Carry the form of a leaf to a regrouped or cut copy of it, computed when asked for."""
    if old.tensor.form is not None and new.tensor.form is None and new.tensor is not old.tensor and not new.tensor.const:

        def later() -> tuple[tuple[Axis | None, ...], Body] | None:
            form = form_of(old)
            return (new.axes, how(form)) if form is not None else None

        new.tensor.form = later
    return new


# ---- writing out ---------------------------------------------------------------------------------------------------


def write(b: Builder, body: Body, order: Sequence[Group], full: frozenset[Axis] = frozenset()) -> Tensor:
    """One tensor with a dimension for each group of ``order``, axes merged within a group.

    A group of which the body has no axis becomes 1, unless ``full`` asks for it: then it is expanded.
    """
    if isinstance(body, Cat):
        return _write_cat(b, body, order, full)
    assert isinstance(body, Leaf), body
    present = axes_of(body)
    active = [any(a in present or a in full for a in group) for group in order]
    flat = [a for group in order for a in group]
    needed = {a for group, on in zip(order, active, strict=True) if on for a in group}
    have = [a for a in body.axes if a is not None]
    want = [a for a in flat if a in present]
    assert set(have) == set(want), f"{body} written without all of its axes"
    t = body.tensor
    if have != want:
        at = {a: i for i, a in enumerate(body.axes) if a is not None}
        t = emit.transpose(b, t, [i for i, a in enumerate(body.axes) if a is None] + [at[a] for a in want])
    if needed - present:
        t = emit.reshape(b, t, [a.size if a in present else 1 for a in flat])
        t = emit.expand(b, t, [a.size if a in needed else 1 for a in flat])
    return emit.reshape(b, t, [product(a.size for a in g) if on else 1 for g, on in zip(order, active, strict=True)])


def _write_cat(b: Builder, cat: Cat, order: Sequence[Group], full: frozenset[Axis]) -> Tensor:
    axis = cat.axis
    at = next(i for i, group in enumerate(order) if axis in group)
    group = order[at]
    union = axes_of(cat) | full | frozenset(a for g in order if len(g) > 1 and axes_of(cat) & set(g) for a in g)
    ordered = sorted(cat.parts, key=lambda p: p.at)
    whole = all(p.at == tuple(range(p.at[0], p.at[0] + len(p.at))) for p in ordered)
    if len(group) > 1 and (group[0] is not axis or not whole):
        loose = [*order[:at], *((a,) for a in group), *order[at + 1 :]]
        t = _write_cat(b, cat, loose, union)
        sizes = [*t.known[:at], product(a.size for a in group), *t.known[at + len(group) :]]
        return emit.reshape(b, t, sizes)
    # a dimension of 1 that every part has in front (the one row of the user) stays until the parts are together
    lead = [()] if len(ordered) > 1 and all(_fronted(p.body) for p in ordered) and at == 0 else []
    written = []
    for part in ordered:
        here = (*((part.sub,) if part.sub else ()), *group[1:])
        keep = frozenset(union - {axis}) | ({part.sub} if part.sub else frozenset())
        written.append(write(b, part.body, [*lead, *order[:at], here, *order[at + 1 :]], keep))
    at += len(lead)
    t = emit.concat(b, written, at) if whole else _interleaved(b, ordered, written, at)
    return emit.reshape(b, t, t.known[len(lead) :])


def _fronted(body: Body) -> bool:
    return isinstance(body, Leaf) and len(body.axes) > 1 and body.axes[0] is None


def _interleaved(b: Builder, ordered: Sequence[Part], written: Sequence[Tensor], at: int) -> Tensor:
    """Parts with scattered positions, in the order of the positions."""
    runs = _runs(ordered)
    if len(runs) <= MAX_RUNS:
        pieces: dict[tuple[int, int], Tensor] = {}
        for k, t in enumerate(written):
            own = sorted((i, n) for _, part, i, n in runs if part == k)
            for (i, _), piece in zip(own, emit.split(b, t, at, [n for _, n in own]), strict=True):
                pieces[k, i] = piece
        return emit.concat(b, [pieces[k, i] for _, k, i, _ in runs], at)
    places = [p for part in ordered for p in part.at]
    back = sorted(range(len(places)), key=places.__getitem__)
    return emit.pick(b, emit.concat(b, written, at), at, back)


def _runs(parts: Sequence[Part]) -> list[tuple[int, int, int, int]]:
    """Contiguous runs in order along the axis: (position, part, offset within the part, length)."""
    runs: list[tuple[int, int, int, int]] = []
    for p, k, i in sorted((p, k, i) for k, part in enumerate(parts) for i, p in enumerate(part.at)):
        if runs and runs[-1][1] == k and runs[-1][0] + runs[-1][3] == p and runs[-1][2] + runs[-1][3] == i:
            runs[-1] = (*runs[-1][:3], runs[-1][3] + 1)
        else:
            runs.append((p, k, i, 1))
    return runs


def as_leaf(b: Builder, body: Body, order: Sequence[Axis] = ()) -> Leaf:
    """The body as one tensor that has the axes along which it varies, in ``order`` where given."""
    if isinstance(body, Leaf):
        return body
    present = axes_of(body)
    axes = [a for a in order if a in present]
    for leaf in _biggest_first(body):
        axes += [a for a in leaf.axes if a is not None and a in present and a not in axes]
    axes += [a for a in present if a not in axes]
    return Leaf(write(b, body, [(a,) for a in axes]), tuple(axes))


def as_block(b: Builder, cat: Cat, order: Sequence[Axis] = ()) -> Cat:
    """The Cat as one tensor with its parts behind each other, for operators that do not mind the order along the axis."""
    cat = opened(cat)
    at = tuple(p for part in cat.parts for p in part.at)
    sub = Axis(len(at))
    placed, start = [], 0
    for part in cat.parts:
        placed.append(Part(tuple(range(start, start + len(part.at))), part.sub, part.body))
        start += len(part.at)
    wanted = [sub if a is cat.axis else a for a in order]
    return Cat(cat.axis, (Part(at, sub, as_leaf(b, Cat(sub, tuple(placed)), wanted)),), True)


def _biggest_first(body: Body) -> list[Leaf]:
    from mari_onnx.engine.value import leaves

    return sorted(leaves(body), key=lambda leaf: -len(leaf.axes))


def materialise(b: Builder, value: Value) -> Tensor:
    """The tensor of the source graph, with its whole logical shape."""
    if value.groups is None:
        assert isinstance(value.body, Leaf)
        return value.body.tensor
    return write(b, value.body, value.groups, frozenset(value.axes))


# ---- positions -----------------------------------------------------------------------------------------------------


def take(b: Builder, body: Body, axis: Axis, at: Sequence[int], new: Axis | None) -> Body:
    """Positions along an axis, on the axis ``new`` (None: a single position)."""
    if isinstance(body, Leaf):
        if axis not in body.axes:
            return body
        i = body.axes.index(axis)
        tensor = _picked(b, body.tensor, i, at)
        leaf = Leaf(tensor, (*body.axes[:i], new, *body.axes[i + 1 :]))
        return _derive(body, leaf, lambda form: take(b, form, axis, at, new))
    if isinstance(body, Cat):
        if body.axis is not axis:
            parts = tuple(Part(p.at, p.sub, take(b, p.body, axis, at, new)) for p in body.parts)
            return Cat(body.axis, parts, body.tidy)
        if list(at) == list(range(len(at))) and len(at) == axis.size and new is not None:
            return Cat(new, body.parts, body.tidy)
        if len(set(at)) < len(at) and not body.tidy:
            # positions taken several times (pairs of fields): blocks first, then one Gather a block
            return take(b, neat(b, body), axis, at, new)
        owner = {p: (k, i) for k, part in enumerate(body.parts) for i, p in enumerate(part.at)}
        hits: dict[int, list[tuple[int, int]]] = {}
        for place, p in enumerate(at):
            k, i = owner[p]
            hits.setdefault(k, []).append((place, i))
        if len(hits) == 1:
            ((k, found),) = hits.items()
            part = body.parts[k]
            if part.sub is None:
                return part.body
            return take(b, part.body, part.sub, [i for _, i in found], new)
        assert new is not None
        parts = []
        for k, found in hits.items():
            part = body.parts[k]
            sub = Axis(len(found)) if len(found) > 1 else None
            inner = part.body if part.sub is None else take(b, part.body, part.sub, [i for _, i in found], sub)
            parts.append(Part(tuple(place for place, _ in found), sub, inner))
        return Cat(new, tuple(parts), body.tidy)
    return _map_form(body, lambda item: take(b, item, axis, at, new))


ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh", "Neg", "Identity"}


def _picked(b: Builder, t: Tensor, dim: int, at: Sequence[int]) -> Tensor:
    """Positions of a tensor. Scattered ones are taken from the weights that made it, not gathered for each candidate."""
    if not t.const and list(at) != list(range(at[0], at[0] + len(at))) and "item" in t.deps:
        found = _pull(b, t, dim, at, 4)
        if found is not None:
            return found
    return emit.pick(b, t, dim, at)


def _pull(b: Builder, t: Tensor, dim: int, at: Sequence[int], depth: int) -> Tensor | None:
    """``(x W)[:, at] = x W[:, at]``, also behind element-wise operators; None where the tensor was made otherwise."""
    if t.const:
        return emit.pick(b, t, dim, at)
    if t.node is None or depth == 0:
        return None
    node = b.nodes[t.node]
    op, rank = node.proto.op_type, len(t.known)
    if op == "MatMul" and dim == rank - 1:
        x, w = node.inputs
        assert x is not None and w is not None
        return emit.matmul(b, x, emit.pick(b, w, len(w.known) - 1, at)) if w.const and len(w.known) > 1 else None
    if op not in ELEMENTWISE or node.proto.domain:
        return None
    inputs: list[Tensor] = []
    for have in node.inputs:
        assert have is not None
        own = dim - (rank - len(have.known))
        if own < 0 or have.known[own] == 1:
            inputs.append(have)
            continue
        found = _pull(b, have, own, at, depth - 1)
        if found is None:
            return None
        inputs.append(found)
    shape = (*t.known[:dim], len(at), *t.known[dim + 1 :])
    return b.emit(op, inputs, shape, t.dtype)


def cut(b: Builder, body: Body, axis: Axis, start: int, stop: int, new: Axis | None, size: Size) -> Body:
    """A range along an axis of symbolic size, start and stop as Slice takes them."""
    if isinstance(body, Leaf):
        if axis not in body.axes:
            return body
        i = body.axes.index(axis)
        tensor = emit.cut(b, body.tensor, i, start, stop, size)
        leaf = Leaf(tensor, (*body.axes[:i], new, *body.axes[i + 1 :]))
        return _derive(body, leaf, lambda form: cut(b, form, axis, start, stop, new, size))
    if isinstance(body, Cat):
        assert body.axis is not axis
        parts = (Part(p.at, p.sub, cut(b, p.body, axis, start, stop, new, size)) for p in body.parts)
        return Cat(body.axis, tuple(parts))
    return _map_form(body, lambda item: cut(b, item, axis, start, stop, new, size))


def _map_form(body: Body, how: Callable[[Body], Body]) -> Body:
    if isinstance(body, Sum):
        return Sum(tuple(how(t) for t in body.terms))
    assert isinstance(body, Prod)
    return Prod(tuple(how(f) for f in body.factors))


def within(order: Sequence[Axis], axis: Axis, sub: Axis | None) -> list[Axis]:
    """The order of axes inside a part of a Cat along ``axis``."""
    return [a for a in (sub if a is axis else a for a in order) if a is not None]


# ---- regrouping ----------------------------------------------------------------------------------------------------


def segments(b: Builder, left: Sequence[Size], right: Sequence[Size]) -> list[tuple[Size, int, int]] | None:
    """The common refinement of two factorisations of one row-major shape: (size, index left, index right).

    Entries of 1 on either side take no segment. None where the two cannot be refined.
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
    """One axis as several (row-major)."""
    if len(new) == 1:
        return rename(body, {axis: new[0]})
    if isinstance(body, Leaf):
        if axis not in body.axes:
            return body
        i = body.axes.index(axis)
        sizes = [*body.tensor.known[:i], *(a.size for a in new), *body.tensor.known[i + 1 :]]
        leaf = Leaf(emit.reshape(b, body.tensor, sizes), (*body.axes[:i], *new, *body.axes[i + 1 :]))
        return _derive(body, leaf, lambda form: split(b, form, axis, new))
    if not isinstance(body, Cat):
        return _map_form(body, lambda item: split(b, item, axis, new))
    if body.axis is not axis:
        parts = tuple(Part(p.at, p.sub, split(b, p.body, axis, new)) for p in body.parts)
        return Cat(body.axis, parts, body.tidy)
    return _split_cat(b, body, new) or split(b, as_leaf(b, body), axis, new)


def _split_cat(b: Builder, cat: Cat, new: Sequence[Axis]) -> Cat | None:
    if not all(isinstance(a.size, int) for a in new):
        return None
    inner = int(product(a.size for a in new[1:]))
    last = int(new[-1].size)
    if all(_blocks(p.at, inner) for p in cat.parts):
        parts = []
        for p in cat.parts:
            at = tuple(q // inner for q in p.at[::inner])
            sub = Axis(len(at)) if len(at) > 1 else None
            axes = [*([sub] if sub else []), *new[1:]]
            body = split(b, p.body, p.sub, axes) if p.sub is not None else p.body
            parts.append(Part(at, sub, body))
        return Cat(new[0], tuple(parts), cat.tidy)
    outer = int(cat.axis.size) // last if isinstance(cat.axis.size, int) else 0
    parts = []
    for p in cat.parts:
        if outer == 0 or len(p.at) % outer or p.sub is None:
            return None
        n = len(p.at) // outer
        if p.at != tuple(k * last + q for k in range(outer) for q in p.at[:n]) or p.at[n - 1] >= last:
            return None
        sub = Axis(n) if n > 1 else None
        axes = [*new[:-1], *([sub] if sub else [])]
        parts.append(Part(p.at[:n], sub, split(b, p.body, p.sub, axes)))
    return Cat(new[-1], tuple(parts), cat.tidy)


def _blocks(at: Sequence[int], n: int) -> bool:
    """Whether positions come as whole rows of n."""
    if len(at) % n:
        return False
    return all(at[i] % n == 0 and tuple(at[i : i + n]) == tuple(range(at[i], at[i] + n)) for i in range(0, len(at), n))


def flatten(b: Builder, body: Body, group: Group, new: Axis) -> Body:
    """A group of axes as one."""
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
        return _derive(body, leaf, lambda form: flatten(b, form, group, new))
    if not isinstance(body, Cat):
        return _map_form(body, lambda item: flatten(b, item, group, new))
    if body.axis not in group:
        joined = tuple(Part(p.at, p.sub, flatten(b, p.body, group, new)) for p in body.parts)
        return Cat(body.axis, joined, body.tidy)
    if not all(isinstance(a.size, int) for a in group):
        return flatten(b, as_leaf(b, body), group, new)
    k = group.index(body.axis)
    outer = int(product(a.size for a in group[:k]))
    inner = int(product(a.size for a in group[k + 1 :]))
    size = int(group[k].size)  # type: ignore[arg-type]
    parts = []
    for p in body.parts:
        at = tuple((o * size + q) * inner + i for o in range(outer) for q in p.at for i in range(inner))
        rest = (*group[:k], *((p.sub,) if p.sub else ()), *group[k + 1 :])
        sub = Axis(len(at)) if len(at) > 1 else None
        inside = flatten(b, p.body, rest, sub) if sub is not None and rest else p.body
        parts.append(Part(at, sub, inside))
    return Cat(new, tuple(parts), body.tidy)


def single(b: Builder, value: Value, i: int) -> tuple[Value, Axis | None]:
    """The value with logical axis i as one atomic axis (None: size 1)."""
    group = value.known[i]
    if not group:
        return value, None
    if len(group) == 1:
        return value, group[0]
    new = Axis(product(a.size for a in group))
    body = flatten(b, value.body, group, new)
    groups = (*value.known[:i], (new,), *value.known[i + 1 :])
    return Value(groups, body, value.dtype, value.sym), new


# ---- several bodies at once ----------------------------------------------------------------------------------------


def align(b: Builder, values: Sequence[Value]) -> tuple[list[Body], tuple[Group, ...]]:
    """Bodies over common axes, for numpy broadcasting of the values. Raises `Decline`."""
    rank = max(v.rank for v in values)
    padded = [((),) * (rank - v.rank) + v.known for v in values]
    bodies: list[Body] = [v.body for v in values]
    canon: list[Group] = [() for _ in range(rank)]
    for k, groups in enumerate(padded):
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
                raise Decline(f"dimensions {sizes[0]} and {sizes[1]} are not known to be equal")
            axes = [Axis(size) for size, _, _ in found]
            for side, own in ((1, canon[i]), (2, group)):
                for n, axis in enumerate(own):
                    pieces = [a for a, segment in zip(axes, found, strict=True) if segment[side] == n]
                    if len(pieces) == 1 and side == 1:
                        # an axis that stays whole keeps its identity
                        axes[axes.index(pieces[0])] = axis
                    elif side == 1:
                        bodies[:k] = [split(b, body, axis, pieces) for body in bodies[:k]]
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
    return bodies, tuple(canon)


def neat(b: Builder, cat: Cat, order: Sequence[Axis] = ()) -> Body:
    """At most one part for each set of axes that parts vary along: one a kind, however the source interleaved them."""
    cat = opened(cat)
    if any(isinstance(p.body, (Sum, Prod)) for p in cat.parts):
        return cat  # a form: nothing is written
    if cat.tidy and len(cat.parts) <= MAX_TIDY and cat.parts[0].at != tuple(range(int(product([cat.axis.size])))):
        return cat
    repeated = _repeated(b, cat, order)
    if repeated is not None:
        return repeated
    classes: dict[object, list[Part]] = {}
    for part in cat.parts:
        classes.setdefault(_signature(part.body, part.sub), []).append(part)
    _adopt(classes)
    parts = [members[0] if len(members) == 1 else _join(b, cat.axis, members, order) for members in classes.values()]
    if len(parts) == 1:
        (part,) = parts
        body = part.body
        if part.sub is not None:
            if part.at != tuple(range(len(part.at))):
                back = sorted(range(len(part.at)), key=part.at.__getitem__)
                return take(b, body, part.sub, back, cat.axis)
            return rename(body, {part.sub: cat.axis})
    return Cat(cat.axis, tuple(parts), True)


def _repeated(b: Builder, cat: Cat, order: Sequence[Axis]) -> Body | None:
    """Pieces that occur several times (a field in each of its pairs): each once, then rows of the blocks by a Gather."""
    if len(cat.parts) < 8 or any(p.sub is not None for p in cat.parts):
        return None
    unique = {p.body: i for i, p in reversed(list(enumerate(cat.parts)))}
    if 2 * len(unique) > len(cat.parts) or len(unique) < 2:
        return None
    bodies = sorted(unique, key=unique.__getitem__)
    index = {body: i for i, body in enumerate(bodies)}
    axis = Axis(len(bodies))
    each = Cat(axis, tuple(Part((i,), None, body) for i, body in enumerate(bodies)))
    inside = [axis if a is cat.axis else a for a in order]
    at = [0] * len(cat.parts)
    for p in cat.parts:
        at[p.at[0]] = index[p.body]
    return take(b, neat(b, each, inside), axis, at, cat.axis)


def _adopt(classes: dict[object, list[Part]]) -> None:
    """Constants that are not uniform go with a part of the user's: a copy once a request, not nodes of their own."""
    hosts = [key for key, parts in classes.items() if all(_shared(p.body) for p in parts)]
    for key, parts in list(classes.items()):
        if not all(isinstance(p.body, Leaf) and p.body.tensor.const and axes_of(p.body) for p in parts):
            continue
        for host in hosts:
            lead = classes[host][0]
            if all(axes_of(p.body) - {p.sub} <= axes_of(lead.body) - {lead.sub} for p in parts):
                classes[host] += parts
                del classes[key]
                break


def _shared(body: Body) -> bool:
    return isinstance(body, Leaf) and not body.tensor.const and body.tensor.deps == {"user"}


def opened(cat: Cat) -> Cat:
    """A part that is itself a Cat along the same positions gives its parts to the outer one."""
    if not any(isinstance(p.body, Cat) and p.body.axis is p.sub for p in cat.parts):
        return cat
    parts: list[Part] = []
    for p in cat.parts:
        if isinstance(p.body, Cat) and p.body.axis is p.sub:
            parts += [Part(tuple(p.at[i] for i in q.at), q.sub, q.body) for q in opened(p.body).parts]
        else:
            parts.append(p)
    return Cat(cat.axis, tuple(parts), cat.tidy)


def _signature(body: Body, sub: Axis | None) -> object:
    if isinstance(body, Cat):
        return "cat", body.axis, tuple((p.at, _signature(p.body, p.sub)) for p in body.parts)
    return axes_of(body) - {sub}, is_const(body)


def _join(b: Builder, axis: Axis, parts: Sequence[Part], order: Sequence[Axis]) -> Part:
    """Several parts as one, their positions behind each other."""
    at = tuple(p for part in parts for p in part.at)
    sub = Axis(len(at))
    first = parts[0].body
    if isinstance(first, Leaf) and first.tensor.scalar is not None:
        same = [p.body.tensor.scalar for p in parts if isinstance(p.body, Leaf) and not axes_of(p.body)]
        if len(same) == len(parts) and all(s == same[0] for s in same):
            return Part(at, sub, first)
    placed, start = [], 0
    for part in parts:
        n = len(part.at)
        placed.append(Part(tuple(range(start, start + n)), part.sub, part.body))
        start += n
    if isinstance(first, Cat):
        inner = []
        for k, member in enumerate(first.parts):
            column = [Part(p.at, p.sub, _align_sub(p.body, k, member, p.sub)) for p in placed]
            inner.append(Part(member.at, member.sub, neat(b, Cat(sub, tuple(column)), order)))
        return Part(at, sub, Cat(first.axis, tuple(inner)))
    lead = next((p for p in parts if isinstance(p.body, Leaf) and p.sub is not None and p.sub in p.body.axes), None)
    wanted: list[Axis] = []
    if lead is not None and isinstance(lead.body, Leaf):
        wanted = [sub if a is lead.sub else a for a in lead.body.axes if a is not None]
    elif axis in order:
        varies = axes_of(first)
        wanted = [sub if a is axis else a for a in order if a is axis or a in varies]
    elif isinstance(first, Leaf):
        *outer, last = [a for a in first.axes if a is not None] or [sub]
        wanted = list(dict.fromkeys([*outer, sub, last]))  # fields before their features: rows stay contiguous
    return Part(at, sub, as_leaf(b, Cat(sub, tuple(placed)), wanted))


def _align_sub(body: Body, k: int, member: Part, sub: Axis | None) -> Body:
    """Part k of a nested Cat, on the axis that the first of its column has."""
    assert isinstance(body, Cat)
    part = body.parts[k]
    return rename(part.body, {part.sub: member.sub}) if part.sub is not None and member.sub is not None else part.body


def zip_bodies(
    b: Builder,
    bodies: Sequence[Body],
    visit: Callable[[list[Leaf]], Body],
    mapped: frozenset[Axis] | None = None,
    order: Sequence[Axis] = (),
) -> Body:
    """Apply an operator cell by cell along every axis in ``mapped`` (None: all), where any body is a Cat.

    A Cat along another axis is written out first.
    """
    bodies = [neat(b, body, order) if isinstance(body, Cat) else body for body in bodies]
    for k, body in enumerate(bodies):
        if isinstance(body, Cat) and mapped is not None and body.axis not in mapped:
            bodies[k] = as_leaf(b, body, order)
    cats = [body for body in bodies if isinstance(body, Cat)]
    top = max(cats, key=lambda body: len(axes_of(body)), default=None)
    if top is None:
        return visit([body for body in bodies if isinstance(body, Leaf)])
    axis = top.axis
    keys: dict[int, list[int]] = {p: [] for part in top.parts for p in part.at}
    for body in bodies:
        if isinstance(body, Cat) and body.axis is axis:
            for k, part in enumerate(body.parts):
                for p in part.at:
                    keys[p].append(k)
    cells: dict[tuple[int, ...], list[int]] = {}
    for p in keys:  # in the order of the first Cat's parts, which then need no reordering
        cells.setdefault(tuple(keys[p]), []).append(p)
    if len(cells) > MAX_CELLS:
        return zip_bodies(b, [as_leaf(b, x, order) for x in bodies], visit, mapped, order)
    if mapped is None and len(cells) > 1:
        kinds = _kinds(bodies, axis, cells)
        if kinds is not None and len(set(kinds)) < len(kinds):
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
    return opened(Cat(axis, tuple(parts), True))


def _kinds(bodies: Sequence[Body], axis: Axis, cells: dict[tuple[int, ...], list[int]]) -> list[object] | None:
    """Along which axes each cell of an element-wise step varies, and whether it is constant; None for grids.

    Cells that vary alike save nothing apart. One that is constant may be -inf or zero throughout, which later operators
    can use.
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
        own = [axes_of(cat.parts[k].body) - {cat.parts[k].sub} for cat, k in zip(cats, key, strict=True)]
        fixed = constant and all(is_const(cat.parts[k].body) for cat, k in zip(cats, key, strict=True))
        kinds.append((frozenset().union(*own, *rest), fixed))
    return kinds


def _unsplit(
    b: Builder,
    bodies: Sequence[Body],
    axis: Axis,
    places: list[int],
    visit: Callable[[list[Leaf]], Body],
    order: Sequence[Axis],
) -> Body:
    """An element-wise step that saves nothing by parts, as one node.

    The operands keep the order of the parts, block behind block: constants are put in that order at build time, a
    product gets its columns from its weights in that order, and only what was made otherwise forces the source's order.
    """
    for body in bodies:
        if isinstance(body, Leaf) and axis in body.axes and not body.tensor.const:
            i = body.axes.index(axis)
            if "item" in body.tensor.deps and _pull(b, body.tensor, i, places, 4) is None:
                places = sorted(places)
    sub = Axis(len(places))
    inside = [sub if a is axis else a for a in order]
    leaves = [as_leaf(b, take(b, body, axis, places, sub), inside) for body in bodies]
    result = visit(leaves)
    if places == sorted(places):
        return rename(result, {sub: axis})
    return Cat(axis, (Part(tuple(places), sub, result),), True)
