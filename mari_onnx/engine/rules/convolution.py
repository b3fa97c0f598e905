"""Conv as a linear operator along space; along channels it is `channels.py`.

    conv(u, x)[p] = sum_k W_k u[q_k] + sum_k W_k x[q_k]  a window over both: the positions in u, and those in x; all at
                                                         once of a kernel so wide that windows lie on the same positions
    conv(broadcast x, W)[p] = x W',  W' = sum_k W_k      x equal at all positions; summed over the kernel elements k
                                                         that do not fall on padding, of which there are few sets

So the user's part of a window is computed once per request. Windows that lie on one side are left to `windows.py`. All
of it is used only where it saves more than its nodes cost. With groups, a kernel of one element is a product per group
(`groups.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mari_onnx.engine.algebra.sums import add
from mari_onnx.engine.axes.align import align
from mari_onnx.engine.axes.select import take
from mari_onnx.engine.ir.value import Axis, Group, Value, axes_of
from mari_onnx.engine.rule import Context, from_array, rule
from mari_onnx.engine.rules.channels import by_channels
from mari_onnx.engine.rules.groups import grouped
from mari_onnx.engine.rules.products import contracted, pointwise
from mari_onnx.engine.rules.slices import positions
from mari_onnx.engine.rules.windows import Run, Windows, by_windows, joined, padding, run_of
from mari_onnx.model.tensors import FLOATS

MAX_MIXED = 8
"""Up to this many products of windows over both sides."""


@rule("Conv")
def conv(ctx: Context) -> Sequence[Value | None]:
    """By windows, by channels, or as a product. With computed weights or bias it is computed whole, over the batch."""
    weight = ctx.array(1)
    if weight is None or ctx.input(0).rank != weight.ndim:
        return pointwise(ctx)
    kernel = _kernel(ctx, weight)
    linear = ctx.input(0).dtype in FLOATS and not (ctx.has(2) and ctx.array(2) is None)
    if ctx.attr("group", 1) != 1 or not linear:
        product = grouped(ctx, ctx.input(0), weight, ctx.attr("group")) if kernel.plain and linear else None
        if product is not None:
            return [_shifted(ctx, product)]
        found = by_windows(ctx, kernel.shape, float(weight.size))
        return found or (by_channels(ctx, weight, conv) if linear else None) or pointwise(ctx)
    if kernel.plain:
        return pointwise(ctx)
    spread = _spread(ctx, kernel)
    if spread is not None:
        return [spread]
    found = by_windows(ctx, kernel.shape, float(weight.size), lambda windows: _taps(ctx, kernel, windows))
    return found or by_channels(ctx, weight, conv) or pointwise(ctx)


@dataclass
class Kernel:
    """The weights [F, C, ..], and how windows lie along each spatial axis. pads are None where they are not known."""

    weight: np.ndarray
    strides: list[int]
    dilations: list[int]
    pads: list[int] | None

    @property
    def shape(self) -> list[int]:
        """The kernel's size along each spatial axis."""
        return list(self.weight.shape[2:])

    @property
    def plain(self) -> bool:
        """Whether the Conv is a product over channels already: one kernel element, no stride, no padding."""
        return set(self.shape) <= {1} and set(self.strides) <= {1} and not any(self.pads or [1])


def _kernel(ctx: Context, weight: np.ndarray) -> Kernel:
    spatial = weight.ndim - 2
    strides = list(ctx.attr("strides") or [1] * spatial)
    dilations = list(ctx.attr("dilations") or [1] * spatial)
    return Kernel(weight, strides, dilations, padding(ctx, ctx.input(0), weight.shape[2:], strides, dilations))


def _product(ctx: Context, x: Value, weight: Value, summed: Sequence[int], behind: Sequence[Group]) -> Value:
    """The sum over the axes ``summed`` of x [N, C, ..] times W [F, C, ..], plus the bias; ``behind``: the axes after
    F.
    """
    left, right = (Value(tuple(v.known[i] for i in summed), v.body, x.dtype) for v in (x, weight))
    (bx, bw), groups = align(ctx.b, [left, right])
    k = frozenset(a for g in groups for a in g)
    return _shifted(ctx, contracted(ctx, bx, bw, k, [x.known[0], weight.known[0], *behind], x.dtype))


def _shifted(ctx: Context, value: Value) -> Value:
    """The value plus the bias."""
    bias = ctx.array(2) if ctx.has(2) else None
    if bias is None:
        return value
    return _sum(ctx, [value, from_array(ctx.b, bias.reshape(-1, *([1] * (value.rank - 2))), value.dtype)])


def _sum(ctx: Context, values: Sequence[Value]) -> Value:
    bodies, groups = align(ctx.b, values)
    return ctx.value(groups, add(ctx.b, bodies, [a for g in groups for a in g]), values[0].dtype)


# ---- along space ---------------------------------------------------------------------------------------------------


def _taps(ctx: Context, kernel: Kernel, w: Windows) -> list[Value] | None:
    """Windows over both sides as products with the kernel elements on either; None where Convs on slices are as
    good.
    """
    time = ctx.b.time
    full = frozenset().union(*w.kinds)
    everywhere = time.volume(full)
    sizes = w.value.shape[2:]
    out: list[int | None] = []
    for i, width in enumerate(kernel.shape):
        step = kernel.strides[i] == 1 and w.pads[i] == w.pads[i + len(sizes)] == 0
        if i != w.d and not (step and (width == 1 or width == sizes[i])):
            return None
        out.append(i + 2 if width == 1 and i != w.d else None)
    segments: list[Run] = []
    mixed: list[Run] = []
    pure = False
    for p, qs in enumerate(w.inside):
        reads, whole = frozenset().union(*(w.kinds[q] for q in qs)), all(w.kinds[q] == full for q in qs)
        last = segments[-1] if segments else None
        if reads == full and not whole:
            if last in mixed and w.inside[p - 1] == qs:
                last.stop = p + 1
                continue
            mixed.append(Run(p, p + 1, full))
            segments.append(mixed[-1])
            continue
        if last is not None and last not in mixed and pure == whole and (whole or last.axes | reads != full):
            last.stop, last.axes = p + 1, last.axes | reads
        else:
            segments.append(Run(p, p + 1, reads))
        pure = whole
    if not mixed or len(mixed) > MAX_MIXED:
        return None
    tap = w.unit / kernel.shape[w.d]
    others = time.volume(a for i in range(len(sizes)) if i != w.d for a in w.value.known[i + 2])
    column = time.length(w.value.shape[1]) * others
    result = kernel.weight.shape[0] * time.volume(a for i in out if i is not None for a in w.value.known[i])

    def convs(runs: Sequence[Run]) -> float:
        span = [w.starts[r.stop - 1] + w.reach + 1 - w.starts[r.start] for r in runs]
        each = [(r.stop - r.start) * w.unit + n * column * time.copy for r, n in zip(runs, span, strict=True)]
        return sum(time.piece + cost * time.volume(r.axes) for r, cost in zip(runs, each, strict=True))

    apart = convs([r for r in segments if r not in mixed])
    for r in mixed:
        taps = sum(w.kinds[q] == full for q in w.inside[r.start])
        apart += (r.stop - r.start) * (taps * tap + result * time.spread) * everywhere + time.piece + time.node
    if apart >= convs(w.runs):
        return None
    values = [_same_window(ctx, kernel, w, r, out) if r in mixed else run_of(ctx, w, r) for r in segments]
    return [joined(ctx, values, w.d + 2) if len(values) > 1 else values[0]]


def _same_window(ctx: Context, kernel: Kernel, w: Windows, r: Run, out: Sequence[int | None]) -> Value:
    """The results at output positions whose windows lie on the same positions: one, or several of a kernel that is
    wider than the axis.
    """
    at, dilation, inside = w.d + 2, kernel.dilations[w.d], w.inside[r.start]
    x = positions(ctx, w.value, at, inside)
    taps = [[(q - w.starts[p]) // dilation for q in inside] for p in range(r.start, r.stop)]
    weight = from_array(ctx.b, np.stack([kernel.weight.take(ks, axis=at) for ks in taps], axis=-1), x.dtype)
    summed = [1, *(i + 2 for i, place in enumerate(out) if place is None)]
    behind = [weight.known[-1] if i == w.d else () if p is None else x.known[p] for i, p in enumerate(out)]
    return _product(ctx, x, weight, summed, behind)


def _spread(ctx: Context, kernel: Kernel) -> Value | None:
    """``x W'`` where x is equal at all positions: computed once per set of kernel elements, then broadcast."""
    x, spatial = ctx.input(0), len(kernel.shape)
    inner = frozenset(a for g in x.known[2:] for a in g)
    if not inner or kernel.pads is None or inner & axes_of(x.body):
        return None
    sizes = x.shape[2:]
    weight = kernel.weight.astype(np.float64)
    places: list[list[int]] = []
    for d, size in enumerate(sizes):
        if not isinstance(size, int):
            return None
        step, dilation, width = kernel.strides[d], kernel.dilations[d], kernel.shape[d]
        reach = (width - 1) * dilation
        number = (size + kernel.pads[d] + kernel.pads[d + spatial] - reach - 1) // step + 1
        starts = [p * step - kernel.pads[d] for p in range(number)]
        sets = [tuple(k for k in range(width) if 0 <= s + k * dilation < size) for s in starts]
        if number < 1 or not all(sets):
            return None
        unique = list(dict.fromkeys(sets))
        weight = np.stack([weight.take(ks, axis=d + 2).sum(axis=d + 2) for ks in unique], axis=d + 2)
        places.append([unique.index(s) for s in sets])
    columns = from_array(ctx.b, weight, x.dtype)
    value = _product(ctx, x, columns, [1], columns.known[2:])
    groups, body = list(value.known), value.body
    for d, at in enumerate(places):
        (own,) = value.known[d + 2] or (None,)
        new = Axis(len(at)) if len(at) > 1 else None
        if own is not None:
            body = take(ctx.b, body, own, at, new)
        groups[d + 2] = (new,) if new is not None else ()
    return Value(tuple(groups), body, x.dtype)
