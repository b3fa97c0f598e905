"""Positions along an axis: taking some of them (`take`), and joining the parts of a Cat that vary alike (`coalesce`).

In: bodies and positions. Out: bodies. What is computed from constant weights gets the chosen columns from the weights
at build time; other tensors are sliced or gathered.
"""

from __future__ import annotations

from collections.abc import Sequence

from mari_onnx.engine.axes.materialize import as_leaf, flatten_nested
from mari_onnx.engine.axes.moved import moved
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import derive, map_form
from mari_onnx.engine.ir.value import (
    Axis,
    Body,
    Cat,
    Leaf,
    Part,
    Prod,
    Sum,
    Tensor,
    axes_of,
    is_const,
    offline,
    rename,
    rows_first,
)
from mari_onnx.model.dims import Size, static
from mari_onnx.model.nodes import attributes, is_standard
from mari_onnx.model.ops import Fact, having

MAX_SPLIT = 6
"""A Cat that was computed by parts stays as it is if it has no more parts."""
ELEMENTWISE = having(Fact.ELEMENT) - having(Fact.CONVERTS)


def take(b: Builder, body: Body, axis: Axis, at: Sequence[int], new: Axis | None) -> Body:
    """The body at some positions along an axis; ``new`` is the axis of the result, None for a single position."""
    if isinstance(body, Leaf):
        if axis not in body.axes:
            return body
        i = body.axes.index(axis)
        tensor = _picked(b, body.tensor, i, at)
        leaf = Leaf(tensor, (*body.axes[:i], new, *body.axes[i + 1 :]))
        return derive(body, leaf, lambda form: take(b, form, axis, at, new))
    if isinstance(body, Cat):
        if body.axis is not axis:
            parts = tuple(p.with_body(take(b, p.body, axis, at, new)) for p in body.parts)
            return Cat(body.axis, parts, body.keep_split)
        if list(at) == list(range(len(at))) and len(at) == axis.size and new is not None:
            return Cat(new, body.parts, body.keep_split)
        if len(set(at)) < len(at) and not body.keep_split:
            # positions taken several times (pairs of fields): blocks first, then one Gather a block
            return take(b, coalesce(b, body), axis, at, new)
        owner = {p: (k, i) for k, part in enumerate(body.parts) for i, p in enumerate(part.positions)}
        hits: dict[int, list[tuple[int, int]]] = {}
        for place, p in enumerate(at):
            k, i = owner[p]
            hits.setdefault(k, []).append((place, i))
        if len(hits) == 1:
            ((k, found),) = hits.items()
            part = body.parts[k]
            if part.axis is None:
                return part.body
            return take(b, part.body, part.axis, [i for _, i in found], new)
        assert new is not None
        pieces: list[Part] = []
        for k, found in hits.items():
            part = body.parts[k]
            sub = Axis(len(found)) if len(found) > 1 else None
            inner = part.body if part.axis is None else take(b, part.body, part.axis, [i for _, i in found], sub)
            pieces.append(Part(tuple(place for place, _ in found), sub, inner))
        return Cat(new, tuple(pieces), body.keep_split)
    return map_form(body, lambda item: take(b, item, axis, at, new))


def _picked(b: Builder, t: Tensor, dim: int, at: Sequence[int]) -> Tensor:
    """Some positions of a tensor. Scattered ones are taken from the weights that made it, not gathered for each
    candidate.
    """
    found = moved(b, t, dim, at)
    if found is not None:
        return found
    if not t.const and list(at) != list(range(at[0], at[0] + len(at))) and "item" in t.deps:
        found = pull(b, t, dim, at, 4)
        if found is not None:
            return found
    return emit.pick(b, t, dim, at)


def pull(b: Builder, t: Tensor, dim: int, at: Sequence[int], depth: int) -> Tensor | None:
    """``(x W)[:, at]`` computed as ``x W[:, at]``, also behind element-wise operators; None where the tensor is no
    product.
    """
    if t.const:
        return emit.pick(b, t, dim, at)
    if t.node is None or depth == 0:
        return None
    node = t.node
    op, rank = node.proto.op_type, len(t.known)
    if op == "MatMul" and dim == rank - 1:
        x, w = node.inputs
        assert x is not None
        assert w is not None
        return emit.matmul(b, x, emit.pick(b, w, len(w.known) - 1, at)) if w.const and len(w.known) > 1 else None
    if op not in ELEMENTWISE or not is_standard(node.proto):
        return None
    inputs: list[Tensor] = []
    for have in node.inputs:
        assert have is not None
        own = dim - (rank - len(have.known))
        if own < 0 or have.known[own] == 1:
            inputs.append(have)
            continue
        found = pull(b, have, own, at, depth - 1)
        if found is None:
            return None
        inputs.append(found)
    shape = (*t.known[:dim], len(at), *t.known[dim + 1 :])
    attrs = attributes(node.proto)
    return b.emit(op, inputs, shape, t.dtype, attrs)


def cut(b: Builder, body: Body, axis: Axis, start: int, stop: int, new: Axis | None, size: Size) -> Body:
    """A range along an axis of symbolic size; ``start`` and ``stop`` as Slice takes them, ``size`` is the result's."""
    if isinstance(body, Leaf):
        if axis not in body.axes:
            return body
        i = body.axes.index(axis)
        tensor = emit.cut(b, body.tensor, i, start, stop, size)
        leaf = Leaf(tensor, (*body.axes[:i], new, *body.axes[i + 1 :]))
        return derive(body, leaf, lambda form: cut(b, form, axis, start, stop, new, size))
    if isinstance(body, Cat):
        assert body.axis is not axis
        parts = (p.with_body(cut(b, p.body, axis, start, stop, new, size)) for p in body.parts)
        return Cat(body.axis, tuple(parts))
    return map_form(body, lambda item: cut(b, item, axis, start, stop, new, size))


def coalesce(b: Builder, cat: Cat, order: Sequence[Axis] = ()) -> Body:
    """The Cat with one part for each set of axes along which parts vary, in whatever order the source concatenated
    them.
    """
    cat = flatten_nested(cat)
    if any(isinstance(p.body, (Sum, Prod)) for p in cat.parts):
        return cat  # a form: nothing is written
    if cat.keep_split and len(cat.parts) <= MAX_SPLIT and cat.parts[0].positions != tuple(range(static(cat.axis.size))):
        return cat
    repeated = _repeated(b, cat, order)
    if repeated is not None:
        return repeated
    classes: dict[object, list[Part]] = {}
    for part in cat.parts:
        classes.setdefault(_signature(b, part.body, part.axis), []).append(part)
    _adopt(classes)
    parts = [members[0] if len(members) == 1 else _join(b, cat.axis, members, order) for members in classes.values()]
    if len(parts) == 1:
        (part,) = parts
        body = part.body
        if part.axis is not None:
            if part.positions != tuple(range(len(part.positions))):
                back = sorted(range(len(part.positions)), key=part.positions.__getitem__)
                body = take(b, body, part.axis, back, cat.axis)
            else:
                body = rename(body, {part.axis: cat.axis})
            # the result may be a Cat along another axis, whose parts are not joined yet
            return coalesce(b, body, order) if isinstance(body, Cat) and body.axis is not cat.axis else body
    return Cat(cat.axis, tuple(parts), True)


def _repeated(b: Builder, cat: Cat, order: Sequence[Axis]) -> Body | None:
    """A Cat in which pieces occur several times (a field in each of its pairs): each piece once, then rows by a
    Gather.
    """
    if len(cat.parts) < 8 or any(p.axis is not None for p in cat.parts):
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
        at[p.positions[0]] = index[p.body]
    return take(b, coalesce(b, each, inside), axis, at, cat.axis)


def _adopt(classes: dict[object, list[Part]]) -> None:
    """Puts constants that are not uniform into a part of the user's: a copy once per request instead of nodes of
    their own.
    """
    hosts = [key for key, parts in classes.items() if all(_shared(p.body) for p in parts)]
    for key, parts in list(classes.items()):
        if not all(isinstance(p.body, Leaf) and p.body.tensor.const and axes_of(p.body) for p in parts):
            continue
        for host in hosts:
            lead = classes[host][0]
            if all(axes_of(p.body) - {p.axis} <= axes_of(lead.body) - {lead.axis} for p in parts):
                classes[host] += parts
                del classes[key]
                break


def _shared(body: Body) -> bool:
    """Whether a body is one tensor of the user's alone, and no constant."""
    return isinstance(body, Leaf) and not body.tensor.const and body.tensor.deps == {"user"}


def _signature(b: Builder, body: Body, sub: Axis | None) -> object:
    """What parts must have in common to be joined: the axes along which they vary, and whether they are constant or,
    for a split, the items' own.
    """
    if isinstance(body, Cat):
        return "cat", body.axis, tuple((p.positions, _signature(b, p.body, p.axis)) for p in body.parts)
    return axes_of(body) - {sub}, is_const(body), offline(b.time, body)


def _join(b: Builder, axis: Axis, parts: Sequence[Part], order: Sequence[Axis]) -> Part:
    """Several parts as one, whose positions follow each other."""
    at = tuple(p for part in parts for p in part.positions)
    sub = Axis(len(at))
    first = parts[0].body
    if isinstance(first, Leaf) and first.tensor.scalar is not None:
        same = [p.body.tensor.scalar for p in parts if isinstance(p.body, Leaf) and not axes_of(p.body)]
        if len(same) == len(parts) and all(s == same[0] for s in same):
            return Part(at, sub, first)
    whole = _rejoined(b, parts) or _stacked(b, parts)
    if whole is not None:
        return whole
    placed, start = [], 0
    for part in parts:
        n = len(part.positions)
        placed.append(Part(tuple(range(start, start + n)), part.axis, part.body))
        start += n
    if isinstance(first, Cat):
        inner = []
        for k, member in enumerate(first.parts):
            column = [p.with_body(_align_sub(p.body, k, member, p.axis)) for p in placed]
            inner.append(member.with_body(coalesce(b, Cat(sub, tuple(column)), order)))
        return Part(at, sub, Cat(first.axis, tuple(inner)))
    lead = next((p for p in parts if isinstance(p.body, Leaf) and p.axis is not None and p.axis in p.body.axes), None)
    wanted: list[Axis] = []
    if lead is not None and isinstance(lead.body, Leaf):
        wanted = [sub if a is lead.axis else a for a in lead.body.axes if a is not None]
    elif axis in order:
        varies = axes_of(first)
        wanted = rows_first([sub if a is axis else a for a in order if a is axis or a in varies])
    elif isinstance(first, Leaf):
        *outer, last = [a for a in first.axes if a is not None] or [sub]
        wanted = list(dict.fromkeys([*outer, sub, last]))  # fields before their features: rows stay contiguous
    return Part(at, sub, as_leaf(b, Cat(sub, tuple(placed)), wanted))


def _rejoined(b: Builder, parts: Sequence[Part]) -> Part | None:
    """Parts that are ranges of one tensor and together a range of it: that range, without a Concat. None for others."""
    base: Tensor | None = None
    owners: dict[int, int] = {}
    axes: tuple[Axis | None, ...] = ()
    dim = -1
    for part in parts:
        if not isinstance(part.body, Leaf):
            return None
        leaf = part.body
        source, where, start = b.cuts.get(leaf.tensor.name, (None, -1, 0))
        if source is None or leaf.axes[where] is not part.axis or (base is not None and (source, where) != (base, dim)):
            return None
        rest = (*leaf.axes[:where], None, *leaf.axes[where + 1 :])
        if base is not None and rest != axes:
            return None
        base, dim, axes = source, where, rest
        owners.update({start + i: p for i, p in enumerate(part.positions)})
    first, count = min(owners), len(owners)
    if base is None or count != sum(len(p.positions) for p in parts) or max(owners) != first + count - 1:
        return None
    sub = Axis(count)
    tensor = emit.pick(b, base, dim, range(first, first + count))
    leaf = Leaf(tensor, (*axes[:dim], sub, *axes[dim + 1 :]))
    return Part(tuple(owners[i] for i in sorted(owners)), sub, leaf)


def _stacked(b: Builder, parts: Sequence[Part]) -> Part | None:
    """Equal ranges of one tensor along an axis of their own (heads, split and stacked): the tensor with its axis
    split.
    """
    first = parts[0].body
    if len(parts) < 2 or not isinstance(first, Leaf) or any(p.axis is not None for p in parts):
        return None
    if first.tensor.name not in b.cuts:
        return None
    base, dim, _ = b.cuts[first.tensor.name]
    size = first.tensor.known[dim]
    starts: dict[int, int] = {}
    for p in parts:
        if not isinstance(p.body, Leaf) or p.body.axes != first.axes:
            return None
        source, where, start = b.cuts.get(p.body.tensor.name, (None, -1, 0))
        if source is not base or where != dim or p.body.tensor.known[dim] != size:
            return None
        starts[start] = p.positions[0]
    if not isinstance(size, int):
        return None
    begin, count = min(starts), len(parts)
    if sorted(starts) != [begin + i * size for i in range(count)]:
        return None
    tensor = emit.pick(b, base, dim, range(begin, begin + count * size))
    tensor = emit.reshape(b, tensor, [*tensor.known[:dim], count, size, *tensor.known[dim + 1 :]])
    sub = Axis(count)
    return Part(
        tuple(starts[start] for start in sorted(starts)),
        sub,
        Leaf(tensor, (*first.axes[:dim], sub, *first.axes[dim:])),
    )


def _align_sub(body: Body, k: int, member: Part, sub: Axis | None) -> Body:
    """Part k of a nested Cat over the axis that the first part of its column has."""
    assert isinstance(body, Cat)
    part = body.parts[k]
    if part.axis is None or member.axis is None:
        return part.body
    return rename(part.body, {part.axis: member.axis})
