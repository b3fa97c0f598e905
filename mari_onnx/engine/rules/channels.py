"""Conv along channels of both sides.

    conv([u | x], W) = conv(u, W_u) + conv(x, W_x)       W_u and W_x the columns of W; of each group alike
    conv([u | x], W) = [conv(u, W_u) | conv(x, W_x)]     groups whose channels are of one side; W_u their rows of W

So the user's channels are computed once per request, where that saves more than its nodes cost.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from mari_onnx.engine.algebra.sums import add
from mari_onnx.engine.axes.align import align
from mari_onnx.engine.ir.value import Axis, Cat, Value, axes_of
from mari_onnx.engine.rule import Answer, Context, from_array
from mari_onnx.engine.rules.slices import positions
from mari_onnx.engine.rules.windows import cat_along, joined

TOO_FEW = "some channels are the user's, but splitting them off would cost more than it saves"
Kind = tuple[frozenset[Axis], bool]
"""The axes of the batch along which a channel varies, and whether it varies along space."""


def by_channels(ctx: Context, weight: np.ndarray, conv: Answer) -> list[Value | None] | None:
    """One Conv for channels that vary alike: of their results the sum, or side by side where whole groups vary alike.

    None where groups differ otherwise, and where it saves too little. conv: the rule of each of them.
    """
    value = cat_along(ctx, ctx.input(0), 1)
    if value is None:
        return None
    count, per = ctx.attr("group", 1), weight.shape[1]
    kinds = _kinds(value, spread=count == 1)
    groups = [kinds[i : i + per] for i in range(0, len(kinds), per)]
    whole = count > 1 and all(len(set(group)) == 1 for group in groups)
    if not whole and any(group != groups[0] for group in groups):
        return None
    sets: dict[Kind, list[int]] = {}
    for i, kind in enumerate([group[0] for group in groups] if whole else groups[0]):
        sets.setdefault(kind, []).append(i)
    if len(sets) < 2:
        return None
    if not _pays(ctx, weight, value, {k: len(at) * (per if whole else count) for k, at in sets.items()}, whole):
        ctx.b.notes.append(TOO_FEW)
        return None
    bias = ctx.array(2) if ctx.has(2) else None
    wide, time = weight.shape[0] // count, ctx.b.time
    made: list[Value] = []
    results: list[int] = []
    for at in (sets[kind] for kind in sorted(sets, key=lambda kind: (time.volume(kind[0]), kind[1]))):
        if whole:
            channels = [g * per + c for g in at for c in range(per)]
            rows = [g * wide + f for g in at for f in range(wide)]
            shift = bias[rows] if bias is not None else None
            made.append(_conv(ctx, conv, positions(ctx, value, 1, channels), weight[rows], shift, len(at)))
            results += rows
        else:
            channels = [g * per + c for g in range(count) for c in at]
            x = positions(ctx, value, 1, channels)
            made.append(_conv(ctx, conv, x, weight[:, at], bias if not made else None, count))
    if whole:
        return [positions(ctx, joined(ctx, made, 1), 1, [int(i) for i in np.argsort(results)])]
    bodies, known = align(ctx.b, made)
    return [ctx.value(known, add(ctx.b, bodies, [a for g in known for a in g]), value.dtype)]


def _kinds(x: Value, spread: bool) -> list[Kind]:
    """How each channel varies. spread: one that is the same all along space is a kind of its own."""
    assert isinstance(x.body, Cat)
    batch, inner = (frozenset(a for g in gs for a in g) for gs in (x.known[:1], x.known[2:]))
    kinds: list[Kind] = [(frozenset(), True)] * int(x.shape[1])  # type: ignore[arg-type]
    for part in x.body.parts:
        varies = axes_of(part.body)
        for p in part.positions:
            kinds[p] = varies & batch, bool(varies & inner) or not inner or not spread
    return kinds


def _pays(ctx: Context, weight: np.ndarray, x: Value, channels: dict[Kind, int], whole: bool) -> bool:
    """Whether Convs of so many channels each take less time than one of all. whole: their results stay apart."""
    time, count = ctx.b.time, ctx.attr("group", 1)
    strides = float(np.prod(ctx.attr("strides") or [1]))
    inner = time.volume(a for g in x.known[2:] for a in g)
    windows = max(1.0, inner / strides)
    each = weight[:, 0].size / count  # multiply-adds of one channel in one window
    full = time.volume(frozenset().union(*(axes for axes, _ in channels)))
    together = (each * windows + time.copy * inner) * time.length(x.shape[1]) * full
    apart = sum(each * (windows if along else 1) * n * time.volume(axes) for (axes, along), n in channels.items())
    more = time.piece if whole else time.spread * windows * weight.shape[0] * full + time.piece
    return bool(apart + (len(channels) - 1) * more < together)


def _conv(
    ctx: Context, conv: Answer, x: Value, weight: np.ndarray, bias: np.ndarray | None, groups: int
) -> Value:
    """The node on some channels, with weights and bias of these."""
    inputs = [x, from_array(ctx.b, np.ascontiguousarray(weight), x.dtype)]
    if bias is not None:
        inputs.append(from_array(ctx.b, bias, x.dtype))
    node = NodeProto()
    node.CopyFrom(ctx.node)
    del node.input[:]
    node.input.extend(f"i{i}" for i in range(len(inputs)))
    kept = [a for a in node.attribute if a.name != "group"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("group", groups)])
    (value,) = conv(ctx.on(node, inputs))
    assert value is not None
    return value
