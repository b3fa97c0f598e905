"""Operators that move elements without computing: they regroup axes or pick positions, and write no node.

    transpose([u | x]) = [u' | x'],   reshape(broadcast(x)) = broadcast(x) over other groups,   Concat is a `Cat`

Reshape, Flatten, Squeeze, Unsqueeze and Transpose regroup atomic axes; Expand and Tile add axes along which nothing
varies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from mari_onnx.engine.axes.align import align, flatten, segments, single, split
from mari_onnx.engine.axes.materialize import as_leaf
from mari_onnx.engine.axes.select import take
from mari_onnx.engine.ir.value import Axis, Body, Cat, Decline, Group, Part, Value, depth, fresh, is_const, rename
from mari_onnx.engine.rule import Context, normal, rule
from mari_onnx.model.dims import Dim, Size, divide, product

MAY_BE_ONE = "the Squeeze names no axes, and a dimension may be 1"
KEEPS = "the Squeeze keeps the candidate axis at N = 1 too"
DROPS = "a Squeeze without axes drops the candidate axis at N = 1"
MAX_DEPTH = 16
"""Cats nested deeper are written out, because functions over bodies are recursive."""


@rule("Transpose")
def transpose(ctx: Context) -> list[Value]:
    """The same groups in another order."""
    x = ctx.input(0)
    perm = ctx.attr("perm") or list(range(x.rank))[::-1]
    value = ctx.value([x.known[p] for p in perm], x.body, x.dtype)
    if x.places is not None and list(perm) == [1, 0]:
        value.places = replace(x.places, across=not x.places.across)
    return [value]


@rule("Reshape")
def reshape(ctx: Context) -> list[Value]:
    """The same atomic axes in other groups; an axis that the target cuts is split. 0 copies a dimension, -1 is
    solved for.
    """
    x = ctx.input(0)
    wanted = ctx.sizes(1) if ctx.has(1) else [int(s) for s in ctx.attr("shape")]
    keep_zero = bool(ctx.attr("allowzero", 0))
    target: list[Size | None] = []
    for i, size in enumerate(wanted):
        target.append(x.shape[i] if size == 0 and not keep_zero and isinstance(size, int) else size)
    return [_pointing(x, regroup(ctx, x, _solve(ctx, x, target)))]


def _pointing(x: Value, moved: Value) -> Value:
    """Coordinates of a flattened mask, which still point there when they are reshaped to a vector or a column."""
    if x.places is not None and x.places.merged:
        if moved.rank == 1:
            moved.places = x.places
        elif moved.rank == 2 and not moved.known[1]:
            moved.places = replace(x.places, across=False)
    return moved


def _solve(ctx: Context, x: Value, target: list[Size | None]) -> list[Size]:
    """The target with its -1 (or its one entry computed from data) filled in."""
    open_ = [i for i, s in enumerate(target) if s is None or (isinstance(s, int) and s == -1)]
    if len(open_) > 1:
        raise Decline("more than one dimension of the target is computed from data")
    if open_:
        rest = product(s for i, s in enumerate(target) if i not in open_ and s is not None)
        total = product(x.shape)
        size = divide(total, rest)
        if size is None and ctx.b.fixed:
            size = divide(ctx.b.literal(total), ctx.b.literal(rest))
        if size is None:
            raise Decline(f"nothing shows that {total} elements divide by {rest}")
        target[open_[0]] = size
    return [s for s in target if s is not None]


def regroup(ctx: Context, x: Value, target: Sequence[Size]) -> Value:
    """The value with other groups, axes split where the target cuts through them."""
    atoms = list(x.axes)
    found = segments(ctx.b, [a.size for a in atoms], target)
    if found is None:
        return _through(ctx, x, target)
    body: Body = x.body
    pieces: list[tuple[Axis, int]] = []
    for n, axis in enumerate(atoms):
        mine = [(size, j) for size, i, j in found if i == n]
        if len(mine) == 1:
            pieces.append((axis, mine[0][1]))
            continue
        new = [ctx.b.axis(size, atoms) for size, _ in mine]
        body = split(ctx.b, body, axis, new)
        pieces += [(a, j) for a, (_, j) in zip(new, mine, strict=True)]
    groups: list[Group] = [tuple(a for a, j in pieces if j == k) for k in range(len(target))]
    return Value(tuple(groups), body, x.dtype, None)


def _through(ctx: Context, x: Value, target: Sequence[Size]) -> Value:
    """The value for a target that cuts across axes: axes are merged up to points where both shapes have covered as many
    elements, and then split.

    A target of ``2 N`` counts as (N, 2), so that the candidates stay an axis of their own.
    """
    wide: list[tuple[Size, int]] = []
    for j, size in enumerate(target):
        factor = size.terms if isinstance(size, Dim) else {}
        (count,) = factor.values() if len(factor) == 1 else (1,)
        wide += [(divide(size, count) or size, j), (count, j)] if count > 1 else [(size, j)]
    atoms = list(x.axes)
    points = _meeting(ctx, [a.size for a in atoms], [size for size, _ in wide])
    body: Body = x.body
    pieces: list[tuple[Axis, int]] = []
    for (i0, j0), (i1, j1) in pairwise(points):
        own, want = tuple(atoms[i0:i1]), wide[j0:j1]
        found = segments(ctx.b, [a.size for a in own], [size for size, _ in want])
        if found is None:
            if any(isinstance(a.size, Dim) for a in own):
                raise Decline(f"the reshape of {list(x.shape)} to {list(target)} mixes a dynamic dimension with others")
            whole = Axis(product(a.size for a in own))
            body = flatten(ctx.b, body, own, whole)
            own, found = (whole,), [(size, 0, j) for j, (size, _) in enumerate(want) if size != 1]
        for n, axis in enumerate(own):
            mine = [(size, want[j][1]) for size, i, j in found if i == n]
            new = [axis] if len(mine) == 1 else [ctx.b.axis(size, atoms) for size, _ in mine]
            if len(mine) > 1:
                body = split(ctx.b, body, axis, new)
            pieces += [(a, j) for a, (_, j) in zip(new, mine, strict=True)]
    groups: list[Group] = [tuple(a for a, j in pieces if j == k) for k in range(len(target))]
    return Value(tuple(groups), body, x.dtype)


def _meeting(ctx: Context, left: Sequence[Size], right: Sequence[Size]) -> list[tuple[int, int]]:
    """Pairs of indices up to which both shapes have the same number of elements."""
    points = [(0, 0)]
    for i in range(1, len(left) + 1):
        done = product(left[:i])
        for j in range(points[-1][1] + 1, len(right) + 1):
            if ctx.b.same(done, product(right[:j])):
                points.append((i, j))
                break
    if points[-1] != (len(left), len(right)):
        if ctx.b.same(product(left), product(right)):
            points[-1:] = [(len(left), len(right))] if points[-1][0] == len(left) or len(points) > 1 else [
                (0, 0), (len(left), len(right))]  # fmt: skip
            return points
        raise Decline(f"the elements of {list(left)} cannot be grouped as {list(right)}")
    return points


@rule("Flatten")
def flatten_op(ctx: Context) -> list[Value]:
    """Two groups: the axes before `axis`, and the others."""
    x = ctx.input(0)
    axis = ctx.attr("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    groups = [tuple(a for g in x.known[:axis] for a in g), tuple(a for g in x.known[axis:] for a in g)]
    return [ctx.value(groups, x.body, x.dtype)]


@rule("Squeeze")
def squeeze(ctx: Context) -> list[Value]:
    """The groups without those of size 1; of a dimension that only a run can tell to be 1, its one position.

    Without axes, N is assumed to stay where it is 1 at one candidate; a run at N = 1 tells whether that matters.
    Refuses a dimension that is not known to be 1, such as N, and without axes any that may be 1.
    """
    x = ctx.input(0)
    axes = ctx.axes_arg(1)
    if axes is None:
        axes = [i for i, g in enumerate(x.known) if not g]
        dims = [s for s in x.shape if isinstance(s, Dim)]
        if any(not _multiple(d) for d in dims):
            raise Decline(MAY_BE_ONE)
        if dims and not ctx.b.fixed:
            ctx.assume(KEEPS, DROPS)
    gone = {normal(a, x.rank) for a in axes}
    left = [axis for a in gone for axis in x.known[a]]
    if any(not isinstance(axis.size, Dim) or "N" in axis.size.symbols for axis in left):
        raise Decline("nothing shows that the squeezed dimension is 1")
    body = x.body
    for axis in left:
        body = take(ctx.b, body, axis, [0], None)
    groups = [g for i, g in enumerate(x.known) if i not in gone]
    return [_pointing(x, ctx.value(groups, body, x.dtype))]


def _multiple(dim: Dim) -> bool:
    """Whether a dimension is a multiple of N, so that it is 1 at one candidate or never."""
    return "N" in dim.symbols <= {"N", "R"} and len(dim.terms) == 1


@rule("Unsqueeze")
def unsqueeze(ctx: Context) -> list[Value]:
    """An empty group, a dimension of size 1, at each of `axes`. Refuses axes that are computed."""
    x = ctx.input(0)
    axes = ctx.axes_arg(1) or []
    rank = x.rank + len(axes)
    at = {normal(a, rank) for a in axes}
    rest = iter(x.known)
    return [ctx.value([() if i in at else next(rest) for i in range(rank)], x.body, x.dtype)]


@rule("Expand")
def expand(ctx: Context) -> list[Value]:
    """Broadcast to a shape; an axis that the body does not have costs nothing.

    Refuses a target that is computed from data, or that is not known to fit.
    """
    x = ctx.input(0)
    target = ctx.sizes(1)
    rank = max(x.rank, len(target))
    groups: list[Group] = [()] * (rank - x.rank) + list(x.known)
    padded: list[Size | None] = [*[1] * (rank - len(target)), *target]
    out: list[Group] = []
    for group, size in zip(groups, padded, strict=True):
        if group:
            have = product(a.size for a in group)
            if size is None or not (size == 1 or ctx.b.same(have, size)):
                raise Decline(f"nothing shows that the dimension {have} equals {size}")
            out.append(group)
        elif size is None:
            raise Decline("a dimension of the target is computed from data")
        else:
            out.append((Axis(size),) if size != 1 else ())
    return [ctx.value(out, x.body, x.dtype)]


@rule("Tile")
def tile(ctx: Context) -> list[Value]:
    """The repeats are an axis before the repeated one: `[r * n]` is the group (r, n).

    Refuses repeats that are computed from data, and repeats of another rank than x (numpy takes them, ONNX does not).
    """
    x = ctx.input(0)
    repeats = ctx.sizes(1)
    if len(repeats) != x.rank:
        raise Decline(f"there are {len(repeats)} repeats for {x.rank} dimensions")
    groups: list[Group] = []
    for group, size in zip(x.known, repeats, strict=True):
        if size is None or size == 0:
            raise Decline("its repeats are computed from data")
        groups.append(group if size == 1 else (Axis(size), *group))
    return [ctx.value(groups, x.body, x.dtype)]


@rule("Concat")
def concat(ctx: Context) -> list[Value]:
    """A `Cat`, not written out; a Cat of a Cat along the same axis is flattened, so that nesting costs nothing.

    Parts of one dynamic length (heads concatenated on the batch axis) become an axis before it: `[h * N]` is the group
    (h, N). Refuses parts of different dynamic lengths.
    """
    values = [ctx.input(i) for i in range(len(ctx.inputs))]
    if len(values) == 1:
        return [values[0]]
    rank = values[0].rank
    at = normal(ctx.attr("axis"), rank)
    values = [v for v in values if v.shape[at] != 0] or values[:1]
    if len(values) == 1:
        return [values[0]]
    sizes = [v.shape[at] for v in values]
    if not all(isinstance(s, int) for s in sizes):
        if all(ctx.b.same(s, sizes[0]) for s in sizes):
            return [_behind_each_other(ctx, values, at)]
        raise Decline(f"a part of the Concat has the dynamic length {next(s for s in sizes if isinstance(s, Dim))}")
    flat = []
    subs: list[Axis | None] = []
    once: dict[tuple[tuple[Group, ...], int], Value] = {}  # a repeated part keeps its axes, so that it is recognized
    for value in values:
        value, axis = single(ctx.b, once.setdefault((value.known, id(value.body)), fresh(value)), at)
        if depth(value.body) > MAX_DEPTH:
            value = replace(value, body=as_leaf(ctx.b, value.body, value.axes))
        subs.append(axis)
        flat.append(Value((*value.known[:at], (), *value.known[at + 1 :]), value.body, value.dtype))
    bodies, groups = align(ctx.b, _agreed(ctx, flat))
    new = Axis(product([sum(int(s) for s in sizes if isinstance(s, int))]))
    parts: list[Part] = []
    start = 0
    for size, sub, body in zip(sizes, subs, bodies, strict=True):
        assert isinstance(size, int)
        if isinstance(body, Cat) and body.axis is sub:
            parts += [Part(tuple(start + p for p in q.positions), q.axis, q.body) for q in body.parts]
        else:
            parts.append(Part(tuple(range(start, start + size)), sub, body))
        start += size
    out = (*groups[:at], (new,), *groups[at + 1 :])
    if all(sub is None for sub in subs) and len(set(bodies)) == 1:
        return [ctx.value(out, bodies[0], values[0].dtype)]  # one value, repeated
    cat = Cat(new, tuple(parts))
    if is_const(cat) and all(isinstance(s, int) for g in out for s in (a.size for a in g)):
        return [ctx.value(out, as_leaf(ctx.b, cat, [a for g in out for a in g]), values[0].dtype)]
    return [ctx.value(out, cat, values[0].dtype)]


def _agreed(ctx: Context, values: Sequence[Value]) -> list[Value]:
    """The parts of a Concat, where a dimension that only a run can tell is taken to be what another part has there.

    A Concat runs only if its parts agree in all other dimensions.
    """
    out = list(values)
    for d in range(values[0].rank):
        known = [v.shape[d] for v in values if not _told_by_run(v.shape[d])]
        size = known[0] if known else values[0].shape[d]
        for k, v in enumerate(out):
            group = v.known[d]
            if len(group) == 1 and size != 1 and _told_by_run(group[0].size) and not ctx.b.same(group[0].size, size):
                axis = Axis(size)
                groups = (*v.known[:d], (axis,), *v.known[d + 1 :])
                out[k] = Value(groups, rename(v.body, {group[0]: axis}), v.dtype)
    return out


def _told_by_run(size: Size) -> bool:
    return isinstance(size, Dim) and any(symbol.startswith("?") for symbol in size.symbols)


def _behind_each_other(ctx: Context, values: Sequence[Value], at: int) -> Value:
    bodies, groups = align(ctx.b, [fresh(v) for v in values])
    new = Axis(len(values))
    cat = Cat(new, tuple(Part((i,), None, body) for i, body in enumerate(bodies)))
    return ctx.value([*groups[:at], (new, *groups[at]), *groups[at + 1 :]], cat, values[0].dtype)
