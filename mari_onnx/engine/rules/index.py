"""Gather and its kin: constant indices pick positions, looked-up ids are element-wise in the ids.

    Gather(table, [i_1 | i_2]) = [Gather(table, i_1) | Gather(table, i_2)]
    Gather(broadcast(x), i) along an axis of x = broadcast(Gather(x, i)),  i broadcast alike
"""

from __future__ import annotations

import numpy as np

from mari_onnx.engine.blocks import Decline, single, write, zip_bodies
from mari_onnx.engine.context import Context, normal, rule
from mari_onnx.engine.rules.structure import positions
from mari_onnx.engine.value import Axis, Body, Group, Leaf, Value, axes_of, fresh
from mari_onnx.model.dims import Size


@rule("Gather")
def gather(ctx: Context) -> list[Value]:
    x = ctx.input(0)
    at = normal(ctx.attr("axis", 0), x.rank)
    index = ctx.array(1)
    if index is not None and index.ndim <= 1 and index.size:
        found = _picked(ctx, x, at, index)
        if found is not None:
            return [found]
    ids = fresh(ctx.input(1))
    return [lookup(ctx, x, ids, at)]


def _picked(ctx: Context, x: Value, at: int, index: np.ndarray) -> Value | None:
    """Constant indices along an axis."""
    size = x.shape[at]
    flat = [int(i) for i in index.reshape(-1)]
    if isinstance(size, int):
        if len(flat) > size and x.axes and len(x.axes) == 1:
            return None  # more rows than the table has: a look-up
        return positions(ctx, x, at, [i % size for i in flat], drop=index.ndim == 0)
    group = x.known[at]
    if not set(group) & axes_of(x.body):
        # the same at every position; a single one drops the axis
        new: Group = (Axis(len(flat)),) if len(flat) > 1 else ()
        return ctx.value([*x.known[:at], *([new] if index.ndim else []), *x.known[at + 1 :]], x.body, x.dtype)
    if len(flat) == 1 and flat[0] < 0:
        from mari_onnx.engine.rules.structure import _range

        end = 1 << 62 if flat[0] == -1 else flat[0] + 1
        value = _range(ctx, x, at, flat[0], end)
        groups = value.known if index.ndim else [*value.known[:at], *value.known[at + 1 :]]
        return ctx.value(groups, value.body, x.dtype)
    if min(flat) < 0:
        return None
    return positions(ctx, x, at, flat, drop=index.ndim == 0)


def lookup(ctx: Context, x: Value, ids: Value, at: int) -> Value:
    """Rows of a table by computed ids. The table must not vary along axes that the ids have: Gather has no batch."""
    b = ctx.b
    x, axis = single(b, x, at)
    own = [g for i, g in enumerate(x.known) if i != at]
    if axis is None:
        # one row: whatever the (valid) ids are
        return ctx.value([*x.known[:at], *ids.known, *x.known[at + 1 :]], x.body, x.dtype)
    groups = [*x.known[:at], *ids.known, *x.known[at + 1 :]]

    def visit(leaves: list[Leaf]) -> Body:
        table, index = leaves
        if axis not in table.axes:
            return table
        place = table.axes.index(axis)
        t, i = table.tensor, index.tensor
        shape: tuple[Size, ...] = (*t.known[:place], *i.known, *t.known[place + 1 :])
        out = b.emit("Gather", [t, i], shape, attrs={"axis": place})
        return Leaf(out, (*table.axes[:place], *index.axes, *table.axes[place + 1 :]))

    free = frozenset(a for g in [*own, *ids.known] for a in g)
    body = zip_bodies(b, [x.body, ids.body], visit, mapped=free)
    return ctx.value(groups, body, x.dtype)


@rule("GatherND")
def gather_nd(ctx: Context) -> list[Value]:
    """Constant indices of one coordinate are a Gather; of two, positions of the merged axes (upper-triangle pairs)."""
    x = ctx.input(0)
    batch = ctx.attr("batch_dims", 0)
    index = ctx.array(1)
    if index is None:
        return [_gather_rows(ctx, x, batch)]
    depth = index.shape[-1]
    if batch or not all(isinstance(x.shape[d], int) for d in range(depth)):
        raise Decline("GatherND over a dynamic or batch axis")
    sizes = [int(s) for s in x.shape[:depth] if isinstance(s, int)]
    flat = np.zeros(index.shape[:-1], dtype=np.int64)
    for d, size in enumerate(sizes):
        flat = flat * size + np.where(index[..., d] < 0, index[..., d] + size, index[..., d])
    merged = ctx.value([tuple(a for g in x.known[:depth] for a in g), *x.known[depth:]], x.body, x.dtype)
    value = positions(ctx, merged, 0, [int(i) for i in flat.reshape(-1)])
    if flat.ndim == 1:
        return [value]
    from mari_onnx.engine.rules.structure import regroup

    return [regroup(ctx, value, [*flat.shape, *value.shape[1:]])]


def _gather_rows(ctx: Context, x: Value, batch: int) -> Value:
    """Batched look-ups: all batch axes are mapped, so rows that are equal are looked up once."""
    from mari_onnx.engine.rules.mapped import Through, run

    through = [Through((d, d), (d,)) for d in range(batch)]
    if not through:
        raise Decline("GatherND with indices computed from data")
    (value,) = run(ctx, through)
    assert value is not None
    return value


__all__ = ["write"]
