"""Writes bodies as tensors. The only place where a Cat becomes a Concat, and where one user row becomes N rows.

In: a body, and the layout that is wanted. Out: a tensor of the new graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Body, Cat, Decline, Group, Leaf, Part, Tensor, Value, axes_of, leaves
from mari_onnx.model.dims import product

MAX_RUNS = 128
"""An interleaved Cat of up to this many runs is written by Split and Concat; a Gather of elements is slower."""


def write(b: Builder, body: Body, order: Sequence[Group], full: frozenset[Axis] = frozenset()) -> Tensor:
    """The body as one tensor with a dimension for each group of ``order``; axes are merged within a group.

    A group of which the body has no axis becomes a dimension of 1, unless its axes are in ``full``: then it is
    repeated. Refuses a body that has the axis of the requests, where ``order`` does not.
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
    if b.requests in have and b.requests not in want:
        raise Decline("it needs a tensor of one request, and there are several")
    assert set(have) == set(want), f"{body} written without all of its axes"
    t = body.tensor
    if have != want:
        # without dimensions of 1, which slow onnxruntime's Transpose down
        t = emit.reshape(b, t, [a.size for a in have])
        t = emit.transpose(b, t, [have.index(a) for a in want])
    if needed - present:
        t = emit.reshape(b, t, [a.size if a in present else 1 for a in flat])
        t = emit.expand(b, t, [a.size if a in needed else 1 for a in flat])
    return emit.reshape(b, t, [product(a.size for a in g) if on else 1 for g, on in zip(order, active, strict=True)])


def _together(b: Builder, cat: Cat) -> Cat:
    """Neighbouring parts that are stored in the same layout, concatenated as they are stored, so that dimensions of 1
    are handled once and not in each part.
    """
    parts = sorted(cat.parts, key=lambda p: p.positions)
    out: list[Part] = []
    run: list[Part] = []
    shared: set[Layout] = set()
    for part in [*parts, None]:
        layouts = _layouts(part) if part is not None else set()
        if part is not None and run and shared & layouts and part.positions[0] == run[-1].positions[-1] + 1:
            run.append(part)
            shared &= layouts
            continue
        out += _joined(b, run, shared)
        run, shared = ([part], layouts) if part is not None else ([], set())
    return Cat(cat.axis, tuple(out), cat.keep_split)


Layout = tuple[int, tuple[Axis | None, ...]]


def _layouts(part: Part) -> set[Layout]:
    """The stored dimensions that can be a part's own along the Cat, each with the axes of the other dimensions."""
    body, at = part.body, part.positions
    if not isinstance(body, Leaf) or at != tuple(range(at[0], at[0] + len(at))):
        return set()
    axes = body.axes
    return {(i, (*axes[:i], *axes[i + 1 :])) for i, a in enumerate(axes) if a is part.axis}


def _joined(b: Builder, run: list[Part], shared: set[Layout]) -> list[Part]:
    """Three or more neighbouring parts that share a layout, concatenated to one part; fewer stay as they are."""
    if len(run) < 3:
        return run
    dim, rest = max(shared, key=lambda layout: layout[0])
    at = tuple(i for p in run for i in p.positions)
    sub = Axis(len(at))
    tensor = emit.concat(b, [p.body.tensor for p in run if isinstance(p.body, Leaf)], dim)
    return [Part(at, sub, Leaf(tensor, (*rest[:dim], sub, *rest[dim:])))]


def _write_cat(b: Builder, cat: Cat, order: Sequence[Group], full: frozenset[Axis]) -> Tensor:
    """A Cat as one tensor: its parts are written in the order of their positions, then concatenated."""
    cat = _together(b, cat)
    axis = cat.axis
    at = next((i for i, group in enumerate(order) if axis in group), None)
    if at is None:
        raise Decline("what is concatenated along the iterations of a Loop cannot be written as one tensor")
    group = order[at]
    union = axes_of(cat) | full | frozenset(a for g in order if len(g) > 1 and axes_of(cat) & set(g) for a in g)
    ordered = sorted(cat.parts, key=lambda p: p.positions)
    whole = all(p.positions == tuple(range(p.positions[0], p.positions[0] + len(p.positions))) for p in ordered)
    if len(group) > 1 and (group[0] is not axis or not whole):
        loose = [*order[:at], *((a,) for a in group), *order[at + 1 :]]
        t = _write_cat(b, cat, loose, union)
        sizes = [*t.known[:at], product(a.size for a in group), *t.known[at + len(group) :]]
        return emit.reshape(b, t, sizes)
    # a dimension of 1 that every part has in front (the one row of the user) stays until the parts are together
    lead = [()] if len(ordered) > 1 and all(_fronted(p.body) for p in ordered) and at == 0 else []
    written = []
    for part in ordered:
        here = (*((part.axis,) if part.axis else ()), *group[1:])
        keep = frozenset(union - {axis}) | ({part.axis} if part.axis else frozenset())
        written.append(write(b, part.body, [*lead, *order[:at], here, *order[at + 1 :]], keep))
    at += len(lead)
    t = emit.concat(b, written, at) if whole else _interleaved(b, ordered, written, at)
    return emit.reshape(b, t, t.known[len(lead) :])


def _fronted(body: Body) -> bool:
    """Whether a body is a leaf with a stored dimension of 1 in front."""
    return isinstance(body, Leaf) and len(body.axes) > 1 and body.axes[0] is None


def _interleaved(b: Builder, ordered: Sequence[Part], written: Sequence[Tensor], at: int) -> Tensor:
    """Parts with scattered positions as one tensor, in the order of the positions."""
    runs = _runs(ordered)
    if len(runs) <= MAX_RUNS:
        pieces: dict[tuple[int, int], list[Tensor]] = {}
        for k, t in enumerate(written):
            own = sorted((i, n) for _, part, i, n in runs if part == k)
            for (i, _), piece in zip(own, emit.pieces(b, t, at, [n for _, n in own]), strict=True):
                pieces[k, i] = piece
        return emit.concat(b, [t for _, k, i, _ in runs for t in pieces[k, i]], at)
    places = [p for part in ordered for p in part.positions]
    back = sorted(range(len(places)), key=places.__getitem__)
    return emit.pick(b, emit.concat(b, written, at), at, back)


def _runs(parts: Sequence[Part]) -> list[tuple[int, int, int, int]]:
    """Contiguous ranges along the axis, in order, as (first position, part, offset within the part, length)."""
    runs: list[tuple[int, int, int, int]] = []
    for p, k, i in sorted((p, k, i) for k, part in enumerate(parts) for i, p in enumerate(part.positions)):
        if runs and runs[-1][1] == k and runs[-1][0] + runs[-1][3] == p and runs[-1][2] + runs[-1][3] == i:
            runs[-1] = (*runs[-1][:3], runs[-1][3] + 1)
        else:
            runs.append((p, k, i, 1))
    return runs


def as_leaf(b: Builder, body: Body, order: Sequence[Axis] = ()) -> Leaf:
    """The body as one tensor that has just the axes along which it varies, in ``order`` where that is given."""
    if isinstance(body, Leaf):
        return body
    present = axes_of(body)
    axes = [a for a in order if a in present]
    for leaf in _biggest_first(body):
        axes += [a for a in leaf.axes if a is not None and a in present and a not in axes]
    axes += [a for a in present if a not in axes]
    return Leaf(write(b, body, [(a,) for a in axes]), tuple(axes))


def as_block(b: Builder, cat: Cat, order: Sequence[Axis] = ()) -> Cat:
    """The Cat as a Cat of one part: all parts concatenated in their own order, for operators that do not mind the
    order.
    """
    cat = flatten_nested(cat)
    at = tuple(p for part in cat.parts for p in part.positions)
    sub = Axis(len(at))
    placed, start = [], 0
    for part in cat.parts:
        placed.append(Part(tuple(range(start, start + len(part.positions))), part.axis, part.body))
        start += len(part.positions)
    wanted = [sub if a is cat.axis else a for a in order]
    return Cat(cat.axis, (Part(at, sub, as_leaf(b, Cat(sub, tuple(placed)), wanted)),), True)


def flatten_nested(cat: Cat) -> Cat:
    """The Cat with a part that is itself a Cat along the same positions replaced by that Cat's parts."""
    if not any(isinstance(p.body, Cat) and p.body.axis is p.axis for p in cat.parts):
        return cat
    parts: list[Part] = []
    for p in cat.parts:
        if isinstance(p.body, Cat) and p.body.axis is p.axis:
            for q in flatten_nested(p.body).parts:
                parts.append(Part(tuple(p.positions[i] for i in q.positions), q.axis, q.body))
        else:
            parts.append(p)
    return Cat(cat.axis, tuple(parts), cat.keep_split)


def _biggest_first(body: Body) -> list[Leaf]:
    """The leaves of a body, those with the most dimensions first."""
    return sorted(leaves(body), key=lambda leaf: -len(leaf.axes))


def materialise(b: Builder, value: Value) -> Tensor:
    """The whole tensor of the source graph, in its logical shape, with all N rows."""
    if value.groups is None:
        assert isinstance(value.body, Leaf)
        return value.body.tensor
    return write(b, value.body, value.groups, frozenset(value.axes))
