"""Windows over fields: Conv, pooling and CumSum along an axis that has user positions and item positions.

    pool [u | x]     output positions whose whole window lies in u are computed once; the others on the slice they need
    cumsum [u | x] = [cumsum u | cumsum [x_0 + last(cumsum u) | x_1 ..]]
    pad [u | x]    = [c | u | x | c]

Padding counts as constant. A run of output positions becomes a node on a slice of the input, padded only at the border,
so every element is computed from the same numbers in the same order. All of it is used only where a run saves more than
its nodes cost. A CumSum that is reversed or exclusive is left to the rule for whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from onnx import NodeProto, helper

from mari_onnx.engine.algebra.sums import binary
from mari_onnx.engine.axes.align import align, single
from mari_onnx.engine.axes.blockwise import zip_bodies
from mari_onnx.engine.axes.select import coalesce
from mari_onnx.engine.batching import MAPPED, Through, run
from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.engine.ir.value import Axis, Body, Cat, Decline, Leaf, Part, Value, axes_of
from mari_onnx.engine.rule import Context, from_array, normal, rule
from mari_onnx.engine.rules import structure
from mari_onnx.engine.rules.slices import positions
from mari_onnx.model.tensors import FLOATS

MAX_RUNS = 4
"""One operator may become this many pieces."""
ACROSS = "its windows reach over user and item positions, and splitting them would cost more than it saves"


@dataclass
class Run:
    """The positions start to stop along an axis, which vary along these axes of the batch."""

    start: int
    stop: int
    axes: frozenset[Axis]


def cat_along(ctx: Context, x: Value, at: int) -> Value | None:
    """The Value with its Cat along logical axis ``at``; None where it is no Cat there."""
    if not isinstance(x.shape[at], int) or not x.known[at]:
        return None
    x, axis = single(ctx.b, x, at)
    body = coalesce(ctx.b, x.body) if isinstance(x.body, Cat) else x.body
    if not isinstance(body, Cat) or body.axis is not axis:
        return None
    return Value(x.groups, body, x.dtype)


def kinds_of(x: Value, at: int, batch: frozenset[Axis]) -> list[frozenset[Axis]]:
    """For each position along logical axis ``at``, the axes of the batch along which it varies."""
    assert isinstance(x.body, Cat)
    kinds: list[frozenset[Axis]] = [frozenset()] * int(x.shape[at])  # type: ignore[arg-type]
    for part in x.body.parts:
        for p in part.positions:
            kinds[p] = axes_of(part.body) & batch
    return kinds


def _runs(time: TimeModel, kinds: Sequence[frozenset[Axis]], unit: float) -> list[Run]:
    """Runs of positions that vary alike; a run that saves less than one more piece costs is joined to its neighbours.

    unit: the cost of one position at one position of the batch.
    """
    full = frozenset().union(*kinds)
    runs: list[Run] = []
    for p, axes in enumerate(kinds):
        if runs and (runs[-1].axes == axes or runs[-1].axes | axes != full):
            runs[-1].stop, runs[-1].axes = p + 1, runs[-1].axes | axes
        else:
            runs.append(Run(p, p + 1, axes))
    while len(runs) > 1:
        less = {k: time.volume(full) - time.volume(r.axes) for k, r in enumerate(runs) if r.axes != full}
        saved = {k: (runs[k].stop - runs[k].start) * unit * n for k, n in less.items()}
        if not saved:
            return [Run(0, len(kinds), full)]
        k = min(saved, key=saved.__getitem__)
        pieces = sum(1 for j in (k - 1, k + 1) if 0 <= j < len(runs))
        if saved[k] > time.piece * pieces and len(runs) <= MAX_RUNS:
            break
        first, last = max(k - 1, 0), min(k + 1, len(runs) - 1)
        runs[first : last + 1] = [Run(runs[first].start, runs[last].stop, full)]
    return runs


def joined(ctx: Context, values: Sequence[Value], at: int) -> Value:
    """The pieces, concatenated along logical axis ``at``."""
    node = helper.make_node("Concat", [f"i{k}" for k in range(len(values))], ["o"], axis=at)
    (value,) = structure.concat(ctx.on(node, values))
    return value


def _piece(ctx: Context, node: NodeProto, x: Value, through: Sequence[Through]) -> Value:
    (value,) = run(ctx.on(node, [x, *ctx.inputs[1:]]), through)
    assert value is not None
    return value


# ---- pooling, and what Conv has in common with it ------------------------------------------------------------------


@rule("MaxPool", "AveragePool")
def pool(ctx: Context) -> Sequence[Value | None]:
    """A pooling, by runs of output positions.

    Refuses the indices of a MaxPool as an output: they count from the start of the whole input.
    """
    kernel = list(ctx.attr("kernel_shape"))
    found = None
    if len([o for o in ctx.node.output if o]) > 1:
        raise Decline("its indices count from the start of the whole tensor")
    if not ctx.attr("ceil_mode", 0) or _even(ctx, kernel):
        channels = ctx.b.time.length(ctx.input(0).shape[1])
        found = by_windows(ctx, kernel, float(np.prod(kernel)) * channels * ctx.b.time.element / 4)
    return found or run(ctx, [Through((0,), (0,) * len(ctx.node.output))])


def _even(ctx: Context, kernel: Sequence[int]) -> bool:
    """Whether windows end with the last element, so that rounding up or down is the same."""
    ones = [1] * len(kernel)
    strides, dilations = ctx.attr("strides") or ones, ctx.attr("dilations") or ones
    if any(ctx.attr("pads") or []) or ctx.attr("auto_pad", "NOTSET") != "NOTSET":
        return False
    sizes = ctx.input(0).shape[2:]
    return all(
        isinstance(size, int) and (size - (k - 1) * d - 1) % s == 0
        for size, k, d, s in zip(sizes, kernel, dilations, strides, strict=True)
    )


@dataclass
class Windows:
    """What the windows along one spatial axis read.

    value: the input, a Cat along logical axis d + 2. inside: the positions that each window reads, and starts where it
    begins, both without padding. reach: from its first position to its last. kinds: how each position varies. unit: the
    cost of one window at one position of the batch. runs: how the operator would be taken apart, a node each.
    """

    value: Value
    d: int
    starts: list[int]
    inside: list[list[int]]
    kinds: list[frozenset[Axis]]
    unit: float
    runs: list[Run]
    pads: list[int]
    reach: int


def by_windows(
    ctx: Context, kernel: Sequence[int], each: float, other: Callable[[Windows], list[Value] | None] | None = None
) -> list[Value] | None:
    """The operator by runs of output positions along one spatial axis; None where that saves nothing.

    each: the cost of one output position. other: another way to compute it, which is taken where it is better.
    """
    x, spatial = ctx.input(0), len(kernel)
    if x.rank != spatial + 2:
        return None
    strides = list(ctx.attr("strides") or [1] * spatial)
    dilations = list(ctx.attr("dilations") or [1] * spatial)
    pads = padding(ctx, x, kernel, strides, dilations)
    if pads is None:
        return None
    for d in range(spatial):
        value = cat_along(ctx, x, d + 2) if kernel[d] > 1 else None
        if value is None:
            continue
        size = int(value.shape[d + 2])  # type: ignore[arg-type]
        reach = (kernel[d] - 1) * dilations[d]
        number = (size + pads[d] + pads[d + spatial] - reach - 1) // strides[d] + 1
        starts = [p * strides[d] - pads[d] for p in range(number)]
        inside = [[q for q in range(s, s + reach + 1, dilations[d]) if 0 <= q < size] for s in starts]
        if number < 1 or not all(inside):
            continue
        kinds = kinds_of(value, d + 2, frozenset(value.known[0]))
        # the other spatial axes keep about their length
        unit = each * ctx.b.time.volume(a for i in range(spatial) if i != d for a in value.known[i + 2])
        reads = [frozenset().union(*(kinds[q] for q in qs)) for qs in inside]
        full = frozenset().union(*kinds)
        runs = _runs(ctx.b.time, reads, unit)
        windows = Windows(value, d, starts, inside, kinds, unit, runs, pads, reach)
        better = other(windows) if other is not None else None
        if better is not None:
            return better
        if any(kinds[q] != full for r in runs if r.axes == full for p in range(r.start, r.stop) for q in inside[p]):
            ctx.b.notes.append(ACROSS)
        if len(runs) == 1 and runs[0].axes == full:
            continue
        return [joined(ctx, [run_of(ctx, windows, r) for r in runs], d + 2)]
    return None


def run_of(ctx: Context, windows: Windows, r: Run) -> Value:
    """The operator on the slice of the input that a run of windows reads."""
    d, size, pads = windows.d, len(windows.kinds), windows.pads
    low, high = windows.starts[r.start], windows.starts[r.stop - 1] + windows.reach + 1
    node = _with_pads(ctx.node, pads, d, len(pads) // 2, max(0, -low), max(0, high - size))
    piece = _read(ctx, windows, r, range(max(low, 0), min(high, size)))
    return _piece(ctx, node, piece, [Through((0, *([None] * (len(ctx.inputs) - 1))), (0,))])


def _read(ctx: Context, windows: Windows, r: Run, span: range) -> Value:
    """The positions that a run spans. Those that its dilated windows leave out are zeros, where they vary along more
    axes.
    """
    x, at = windows.value, windows.d + 2
    read = {q for qs in windows.inside[r.start : r.stop] for q in qs}
    apart = [q for q in span if q not in read and not windows.kinds[q] <= r.axes]
    if not apart:
        return positions(ctx, x, at, span)
    edges = [span.start, *(e for q in apart for e in (q, q + 1)), span.stop]
    pieces = []
    zero = ctx.value([*x.known[:at], (), *x.known[at + 1 :]], Leaf(ctx.b.const(0, x.dtype), ()), x.dtype)
    for start, stop in pairwise(edges):
        if start < stop:
            pieces.append(zero if start in apart else positions(ctx, x, at, range(start, stop)))
    return joined(ctx, pieces, at)


def padding(
    ctx: Context, x: Value, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int] | None:
    """The padding in numbers; None where it follows from a size that is not known."""
    spatial, how = len(kernel), ctx.attr("auto_pad", "NOTSET")
    if how == "VALID":
        return [0] * (2 * spatial)
    if how == "NOTSET":
        return list(ctx.attr("pads") or [0] * (2 * spatial))
    before, after = [], []
    for d in range(spatial):
        size = 1 if kernel[d] == strides[d] == 1 else x.shape[d + 2]
        if not isinstance(size, int) or dilations[d] != 1:
            return None
        total = max((-(-size // strides[d]) - 1) * strides[d] + kernel[d] - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if how == "SAME_UPPER" else large)
        after.append(large if how == "SAME_UPPER" else small)
    return before + after


def _with_pads(node: NodeProto, pads: Sequence[int], d: int, spatial: int, before: int, after: int) -> NodeProto:
    """The node with other padding along spatial axis d."""
    out = NodeProto()
    out.CopyFrom(node)
    kept = [a for a in out.attribute if a.name not in ("pads", "auto_pad")]
    del out.attribute[:]
    out.attribute.extend(kept)
    own = list(pads)
    own[d], own[d + spatial] = before, after
    out.attribute.append(helper.make_attribute("pads", own))
    return out


# ---- CumSum --------------------------------------------------------------------------------------------------------


@rule("CumSum")
def cumsum(ctx: Context) -> Sequence[Value | None]:
    """The leading user positions once per request; the others start from their last sum. Refuses an axis that is
    computed.
    """
    x, axes = ctx.input(0), ctx.ints(1)
    if axes is None:
        raise Decline("the axis is computed at run time")
    at = normal(axes[0], x.rank)
    through = [Through((a, None), (a,)) for a in range(x.rank) if a != at]
    if ctx.attr("reverse", 0) or ctx.attr("exclusive", 0):
        return run(ctx, through)
    value = cat_along(ctx, x, at)
    if value is None:
        return run(ctx, through)
    others = frozenset(a for i, g in enumerate(value.known) if i != at for a in g)
    kinds = kinds_of(value, at, others)
    full = frozenset().union(*kinds)
    lead = 0
    while lead < len(kinds) and frozenset().union(*kinds[: lead + 1]) != full:
        lead += 1
    small = frozenset().union(*kinds[:lead])
    saved = lead * ctx.b.time.element * (ctx.b.time.volume(full) - ctx.b.time.volume(small))
    # a sum of integers is a position: what is looked up by it costs more than the sum
    if not lead or (x.dtype in FLOATS and saved <= 2 * ctx.b.time.piece):
        ctx.b.notes.append("summing the user's leading positions once would save less than its extra nodes cost")
        return run(ctx, through)
    first = _piece(ctx, ctx.node, positions(ctx, value, at, range(lead)), through)
    last = positions(ctx, first, at, [lead - 1])
    next_ = positions(ctx, value, at, [lead])
    pieces = [_sum(ctx, last, next_)]
    if lead + 1 < len(kinds):
        pieces.append(positions(ctx, value, at, range(lead + 1, len(kinds))))
        pieces = [_piece(ctx, ctx.node, joined(ctx, pieces, at), through)]
    return [joined(ctx, [first, *pieces], at)]


def _sum(ctx: Context, x: Value, y: Value) -> Value:
    (bx, by), groups = align(ctx.b, [x, y])
    order = [a for g in groups for a in g]
    body = zip_bodies(ctx.b, [bx, by], lambda ls: binary(ctx.b, "Add", ls[0], ls[1], order), order=order)
    return ctx.value(groups, body, x.dtype)


# ---- Pad -----------------------------------------------------------------------------------------------------------


@rule("Pad")
def pad(ctx: Context) -> Sequence[Value | None]:
    """Constants before and after a Cat along its axis; any other padding is computed on whole rows."""
    x = ctx.input(0)
    pads = ctx.ints(1) if ctx.opset >= 11 else None
    axes = ctx.ints(3) if ctx.has(3) else list(range(x.rank))
    fill = ctx.array(2) if ctx.has(2) else np.zeros((), helper.tensor_dtype_to_np_dtype(x.dtype))
    plain = ctx.attr("mode", "constant") == "constant" and fill is not None and pads and axes and min(pads) >= 0
    touched = [
        (normal(a, x.rank), k) for k, a in enumerate(axes or []) if pads and (pads[k] or pads[k + len(pads) // 2])
    ]
    if not plain or len(touched) != 1 or fill is None or pads is None:
        return run(ctx, MAPPED["", "Pad"](ctx))
    ((at, k),) = touched
    value = cat_along(ctx, x, at) or _alone(ctx, x, at)
    if value is None:
        return run(ctx, MAPPED["", "Pad"](ctx))
    before, after = pads[k], pads[k + len(pads) // 2]
    constant: Body = from_array(ctx.b, fill.reshape(()), x.dtype).body
    assert isinstance(value.body, Cat)
    size = int(value.shape[at])  # type: ignore[arg-type]
    parts = [Part(tuple(p + before for p in part.positions), part.axis, part.body) for part in value.body.parts]
    for start, number in ((0, before), (before + size, after)):
        if number:
            sub = Axis(number) if number > 1 else None
            parts.append(Part(tuple(range(start, start + number)), sub, constant))
    axis = Axis(before + size + after)
    groups = (*value.known[:at], (axis,), *value.known[at + 1 :])
    return [ctx.value(groups, Cat(axis, tuple(parts), value.body.keep_split), x.dtype)]


def _alone(ctx: Context, x: Value, at: int) -> Value | None:
    """A user tensor as a Cat of one part: the padding (the candidate's column of a mask) stays a constant."""
    size = x.shape[at]
    if not isinstance(size, int) or size < 1:
        return None
    x, sub = single(ctx.b, x, at)
    if not isinstance(x.body, Leaf) or "item" in x.body.tensor.deps:
        return None
    axis, part = Axis(size), Part(tuple(range(size)), sub, x.body)
    return Value((*x.known[:at], (axis,), *x.known[at + 1 :]), Cat(axis, (part,), True), x.dtype)


__all__ = ["cumsum", "pad", "pool"]
