"""Convs of width 1 over groups of channels, as one product per group.

    Conv 1x1 in G groups    sum_c W[g, f, c] X[n, g, c, ..]
"""

from __future__ import annotations

import numpy as np

from mari_onnx.engine.axes.align import align, single
from mari_onnx.engine.axes.select import coalesce, take
from mari_onnx.engine.ir.value import Axis, Cat, Part, Value, axes_of, rename
from mari_onnx.engine.rule import Context, from_array
from mari_onnx.engine.rules.products import contracted
from mari_onnx.engine.rules.structure import regroup

FEW = "splitting the channels of {} groups would save less than the extra nodes cost"


def grouped(ctx: Context, x: Value, weight: np.ndarray, count: int) -> Value | None:
    """``sum_c W[g, f, c] X[n, g, c, ..]``: all groups at once, or group by group where a Cat's parts lie across groups.

    None where x is one tensor (the Conv is one kernel), or where parts save less than their nodes cost.
    """
    b, per = ctx.b, weight.shape[1]
    if x.shape[1] != count * per or not (isinstance(x.body, Cat) or set(x.known[1]) - axes_of(x.body)):
        return None
    kernel = weight.reshape(count, -1, per)
    x = Value(x.groups, coalesce(b, x.body, x.axes) if isinstance(x.body, Cat) else x.body, x.dtype)
    apart = regroup(ctx, x, [x.shape[0], count, per, *x.shape[2:]])
    if isinstance(apart.body, Cat) or set(apart.known[1] + apart.known[2]) - axes_of(apart.body):
        w = from_array(b, kernel, x.dtype)
        left = Value((apart.known[1], apart.known[2]), apart.body, x.dtype)
        (bx, bw), groups = align(b, [left, Value((w.known[0], w.known[2]), w.body, x.dtype)])
        out = [apart.known[0], (*groups[0], *w.known[1]), *apart.known[3:]]
        return contracted(ctx, bx, bw, frozenset(groups[1]), out, x.dtype)
    x, axis = single(b, x, 1)
    if not isinstance(x.body, Cat) or x.body.axis is not axis or not _saves(ctx, x.body, kernel.shape):
        return None
    rows, columns = Axis(count), Axis(kernel.shape[1]) if kernel.shape[1] > 1 else None
    free = (columns,) if columns else ()
    parts = []
    for g in range(count):
        sub = Axis(per) if per > 1 else None
        w = from_array(b, kernel[g], x.dtype)
        mine = take(b, x.body, axis, range(g * per, (g + 1) * per), sub)
        pair = [Value(((sub,) if sub else (),), mine, x.dtype), Value((w.known[1],), w.body, x.dtype)]
        (bx, bw), groups = align(b, pair)
        value = contracted(ctx, bx, bw, frozenset(groups[0]), [x.known[0], w.known[0], *x.known[2:]], x.dtype)
        parts.append(Part((g,), None, rename(value.body, dict(zip(w.known[0], free, strict=True)))))
    return ctx.value([x.known[0], (rows, *free), *x.known[2:]], Cat(rows, tuple(parts)), x.dtype)


def _saves(ctx: Context, cat: Cat, shape: tuple[int, ...]) -> bool:
    """Whether channels that vary along fewer axes save more than a product per group, and joining the results, cost."""
    time = ctx.b.time
    count, wide, _ = shape
    kinds = [axes_of(p.body) - {p.axis} for p in cat.parts]
    full = frozenset().union(*kinds)
    less = [time.volume(full) - time.volume(k) for k in kinds]
    saved = sum(len(p.positions) * wide * n for p, n in zip(cat.parts, less, strict=True))
    if saved > count * 3 * time.node + time.copy * time.volume(full) * count * wide:
        return True
    if any(k != full for k in kinds):
        ctx.b.notes.append(FEW.format(count))
    return False
