"""Gather, GatherND and related operators: constant indices pick positions, computed ids look rows up.

    Gather(table, [i_1 | i_2]) = [Gather(table, i_1) | Gather(table, i_2)]
    Gather(broadcast(x), i) along an axis of x = broadcast(Gather(x, i)),  where i lacks the same axes
    Gather([u | x], i) = [Gather([u | x], i_1) | Gather([u | x], i_2)],  i = [i_1 | i_2] constant, of several dimensions
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from mari_onnx.engine.axes.align import align, single
from mari_onnx.engine.axes.blockwise import zip_bodies
from mari_onnx.engine.batching import MAPPED, Through, run
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.value import Axis, Body, Decline, Group, Leaf, Value, axes_of, fresh
from mari_onnx.engine.rule import Context, from_array, from_sizes, normal, rule
from mari_onnx.engine.rules.mask_index import flat_masked, masked, merged
from mari_onnx.engine.rules.slices import positions, range_of
from mari_onnx.engine.rules.structure import regroup
from mari_onnx.engine.rules.windows import cat_along, joined, kinds_of
from mari_onnx.model.dims import Size, product


@rule("Gather")
def gather(ctx: Context) -> list[Value]:
    """Constant indices pick positions: Gather([x_1 | x_2], i) = [x_1 or x_2 at i]. Computed ones look rows up
    (`lookup`).
    """
    x = ctx.input(0)
    at = normal(ctx.attr("axis", 0), x.rank)
    if ctx.input(1).own_row:
        return [_own_rows(ctx, x, ctx.input(1).known, at)]
    places = ctx.input(1).places
    if places is not None and places.merged and ctx.input(1).rank == 1:
        return [flat_masked(ctx, x, at, places)]
    index = ctx.array(1)
    if index is not None and index.ndim <= 1 and index.size:
        found = _picked(ctx, x, at, index)
        if found is not None:
            return [found]
    if index is not None and index.ndim > 1 and index.size:
        found = _by_columns(ctx, x, at, index)
        if found is not None:
            return [found]
    x, ids = _own_row(ctx, x, ctx.input(1), at)
    return [lookup(ctx, x, fresh(ids), at)]


def _picked(ctx: Context, x: Value, at: int, index: np.ndarray) -> Value | None:
    """The positions that constant indices name, along dimension ``at``."""
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
        end = 1 << 62 if flat[0] == -1 else flat[0] + 1
        value = range_of(ctx, x, at, flat[0], end, inside=True)
        groups = value.known if index.ndim else [*value.known[:at], *value.known[at + 1 :]]
        return ctx.value(groups, value.body, x.dtype)
    if min(flat) < 0:
        return None
    return positions(ctx, x, at, flat, drop=index.ndim == 0)


def _by_columns(ctx: Context, x: Value, at: int, index: np.ndarray) -> Value | None:
    """Constant indices of several dimensions, as an unfold has them (taps x windows): positions along one of these that
    read parts which vary along fewer axes are a part of their own. None where that saves less than its nodes cost.
    """
    value = cat_along(ctx, x, at)
    if value is None:
        return None
    time, size = ctx.b.time, int(value.shape[at])  # type: ignore[arg-type]
    index = index % size
    others = frozenset(a for i, group in enumerate(value.known) if i != at for a in group)
    kinds = kinds_of(value, at, others)
    best: tuple[float, int, dict[frozenset[Axis], list[int]]] = (0.0, 0, {})
    for d, length in enumerate(index.shape):
        columns: dict[frozenset[Axis], list[int]] = {}
        for p in range(length):
            read = frozenset().union(*(kinds[q] for q in index.take(p, axis=d).reshape(-1)))
            columns.setdefault(read, []).append(p)
        full = time.volume(frozenset().union(*columns))
        each = time.copy * index.size / length
        saved = sum(each * len(places) * (full - time.volume(read)) for read, places in columns.items())
        best = max(best, (saved - time.piece * len(columns), d, columns), key=lambda found: found[0])
    _, d, columns = best
    if len(columns) < 2:
        return None
    pieces = []
    for places in columns.values():
        some = index.take(places, axis=d)
        read_at = np.unique(some)
        ids = from_array(ctx.b, np.searchsorted(read_at, some), TensorProto.INT64)
        pieces.append(lookup(ctx, positions(ctx, value, at, [int(q) for q in read_at]), ids, at))
    order = [p for places in columns.values() for p in places]
    return positions(ctx, joined(ctx, pieces, at + d), at + d, [int(p) for p in np.argsort(order)])


def _own_row(ctx: Context, x: Value, ids: Value, at: int) -> tuple[Value, Value]:
    """``h[arange(N), i]`` as exporters write it, a look-up at n T + i in flattened rows; of equal rows, at i mod T
    in one.
    """
    group = x.known[at]
    if ids.strided is None or len(group) < 2 or group[0] in axes_of(x.body):
        return x, ids
    step, rest = ids.strided
    length = product(a.size for a in group[1:])
    if not ctx.b.same(step, length) or not ctx.b.same(ids.shape[0], group[0].size):
        return x, ids
    size = from_sizes(ctx.b, np.asarray(length, dtype=object), ids.dtype)
    (bx, by), groups = align(ctx.b, [rest, size])
    wrapped = zip_bodies(ctx.b, [bx, by], lambda ls: _mod(ctx, ls[0], ls[1]))
    rows = ctx.value([*x.known[:at], group[1:], *x.known[at + 1 :]], x.body, x.dtype)
    return rows, ctx.value(groups, wrapped, ids.dtype)


def _mod(ctx: Context, x: Leaf, y: Leaf) -> Leaf:
    out = ctx.b.emit("Mod", [x.tensor, emit.reshape(ctx.b, y.tensor, ())], x.tensor.shape, x.tensor.dtype)
    return Leaf(out, x.axes)


def lookup(ctx: Context, x: Value, ids: Value, at: int) -> Value:
    """Rows of a table by computed ids, part by part. Refuses a table that varies along an axis of the ids."""
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


def _own_rows(ctx: Context, x: Value, index: Sequence[Group], at: int) -> Value:
    """Rows in their own places: ``x`` itself, but for dimensions of 1. index: the groups of the coordinates.

    Refuses coordinates that are not as many as the rows.
    """
    places = [i for i, group in enumerate(index) if group]
    size = product(a.size for a in index[places[0]]) if len(places) == 1 else 0
    if not ctx.b.same(size, x.shape[at]):
        raise Decline("the index has not one entry for each row")
    rows: list[Group] = [x.known[at] if i in places else () for i in range(len(index))]
    return ctx.value([*x.known[:at], *rows, *x.known[at + 1 :]], x.body, x.dtype)


@rule("GatherElements")
def gather_elements(ctx: Context) -> list[Value | None]:
    """Rows in their own places are the data itself; others are picked (`batched`)."""
    x, index = ctx.input(0), ctx.input(1)
    at = normal(ctx.attr("axis", 0), x.rank)
    if index.own_row and all(ctx.b.same(a, c) for a, c in zip(x.shape, index.shape, strict=True)):
        return [_own_rows(ctx, x, [index.known[at]], at)]
    return run(ctx, MAPPED["", "GatherElements"](ctx))


@rule("GatherND")
def gather_nd(ctx: Context) -> list[Value]:
    """Constant coordinates, or those of a constant mask, pick positions of the merged axes; others are looked up.

    A coordinate along an axis on which the data does not vary has no effect. Refuses coordinates along a dynamic or a
    batch axis.
    """
    x, batch = ctx.input(0), ctx.attr("batch_dims", 0)
    if ctx.input(1).own_row and not batch and ctx.input(1).shape[-1] == 1:
        return [_own_rows(ctx, x, ctx.input(1).known[:-1], 0)]
    places = ctx.input(1).places
    if places is not None and not batch and not places.across:
        if places.merged:
            return [flat_masked(ctx, x, 0, places)]
        if len(places.shape) <= x.rank:
            return [masked(ctx, x, places)]
    index = ctx.array(1)
    if index is None:
        return [_looked_up_rows(ctx, x, batch)]
    depth = index.shape[-1]
    if batch or not all(isinstance(x.shape[d], int) for d in range(depth)):
        raise Decline("GatherND reads along a dynamic axis or the batch")
    sizes = [int(s) for s in x.shape[:depth] if isinstance(s, int)]
    value = positions(ctx, merged(ctx, x, 0, depth), 0, flat_positions(index, sizes))
    if index.ndim == 2:
        return [value]
    return [regroup(ctx, value, [*index.shape[:-1], *value.shape[1:]])]


def flat_positions(index: np.ndarray, sizes: Sequence[int]) -> list[int]:
    """Row-major positions of constant coordinates, which are the last axis of ``index``."""
    flat = np.zeros(index.shape[:-1], dtype=np.int64)
    for d, size in enumerate(sizes):
        flat = flat * size + np.where(index[..., d] < 0, index[..., d] + size, index[..., d])
    return [int(i) for i in flat.reshape(-1)]


def _looked_up_rows(ctx: Context, x: Value, batch: int) -> Value:
    """Look-ups by computed coordinates."""
    if batch:
        (value,) = run(ctx, [Through((d, d), (d,)) for d in range(batch)])
        assert value is not None
        return value
    index = fresh(ctx.input(1))
    depth = index.shape[-1]
    if not isinstance(depth, int):
        raise Decline("GatherND has an unknown number of coordinates")
    body_axes = axes_of(x.body)
    left = [d for d in range(depth) if set(x.known[d]) & body_axes]
    if len(left) > 1:
        raise Decline("GatherND has several coordinates that are computed from data")
    if not left:
        return ctx.value([*index.known[:-1], *x.known[depth:]], x.body, x.dtype)
    (d,) = left
    ids = positions(ctx, index, index.rank - 1, [d], drop=True)
    table = ctx.value([x.known[d], *x.known[depth:]], x.body, x.dtype)
    return lookup(ctx, table, ids, 0)
