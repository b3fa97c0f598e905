"""Leaves positions out of a body that nobody reads.

In: a Value, and masks of what is read of it at several sizes of the dynamic dimensions. Out: a Value of the same shape
that is right at the positions that are read, and cheaper elsewhere:

    one position is read        [x_0, x_1, .., x_n]  ->  x_0 at all positions: a body without the axis
    several of a fixed number   [x_0, x_1, .., x_n]  ->  [x_0, x_1 | 0]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mari_onnx.engine.axes.select import cut, take
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Body, Cat, Leaf, Part, Value, axes_of, leaves
from mari_onnx.model.dims import evaluate, symbols


def only_read(b: Builder, value: Value, sizes: Sequence[Mapping[str, int]], masks: Sequence[np.ndarray]) -> Value:
    """The value without positions that are not read. A mask has a dimension per logical axis; one of 1 stands for
    positions that are read alike. The candidates' axis stays whole, and so does one of which the sizes are not known.
    """
    body = value.body
    if value.groups is None or any(mask.ndim != value.rank for mask in masks):
        return value
    for d, group in enumerate(value.known):
        for axis, places in _read(group, d, sizes, masks).items():
            if axis in axes_of(body) and axis is not b.requests:
                body = _without(b, body, axis, places)
    return value if body is value.body else Value(value.groups, body, value.dtype)


def _read(
    group: Sequence[Axis], d: int, sizes: Sequence[Mapping[str, int]], masks: Sequence[np.ndarray]
) -> dict[Axis, list[int]]:
    """The positions that are read of each axis of dimension ``d``, where these are not all; -1 is the last one of a
    dynamic axis.
    """
    found: dict[Axis, list[list[int]]] = {}
    for here, mask in zip(sizes, masks, strict=True):
        line = np.asarray(np.any(mask, axis=tuple(i for i in range(mask.ndim) if i != d)))
        if any(not symbols(axis.size) <= here.keys() for axis in group):
            return {}
        lengths = [evaluate(axis.size, here) for axis in group]
        if line.size != int(np.prod(lengths)):
            return {}
        grid = line.reshape(lengths)
        for i, axis in enumerate(group):
            used = np.flatnonzero(np.any(grid, axis=tuple(k for k in range(len(group)) if k != i)))
            found.setdefault(axis, []).append([int(p) for p in used])
    told: dict[Axis, list[int]] = {}
    for axis, used_at in found.items():
        if isinstance(axis.size, int):
            if all(used == used_at[0] for used in used_at) and 0 < len(used_at[0]) < axis.size:
                told[axis] = used_at[0]
        elif "N" not in symbols(axis.size):
            if all(used == [0] for used in used_at):
                told[axis] = [0]
            elif all(used == [evaluate(axis.size, here) - 1] for used, here in zip(used_at, sizes, strict=True)):
                told[axis] = [-1]
    return told


def _without(b: Builder, body: Body, axis: Axis, places: list[int]) -> Body:
    if not isinstance(axis.size, int):
        if any(isinstance(c, Cat) and c.axis is axis for c in _cats(body)):
            return body
        return cut(b, body, axis, places[0], 1 if places == [0] else 1 << 62, None, 1)
    if len(places) == 1:
        return take(b, body, axis, places, None)
    if isinstance(body, Cat) and body.axis is axis and len(body.parts) == 2 and body.parts[1].positions == tuple(
        p for p in range(axis.size) if p not in places
    ) and _zero(body.parts[1].body):
        return body
    if len(places) == axis.size - 1:
        return body  # the other position costs less than to cut it off, and pairs of fields are of all of them
    read, rest = Axis(len(places)), [p for p in range(axis.size) if p not in places]
    zero = Leaf(b.const(0, next(iter(leaves(body))).tensor.dtype), ())
    parts = (
        Part(tuple(places), read, take(b, body, axis, places, read)),
        Part(tuple(rest), Axis(len(rest)) if len(rest) > 1 else None, zero),
    )
    return Cat(axis, parts, True)


def _zero(body: Body) -> bool:
    return isinstance(body, Leaf) and body.tensor.const and body.tensor.scalar == 0


def _cats(body: Body) -> list[Cat]:
    return [body, *(c for p in body.parts for c in _cats(p.body))] if isinstance(body, Cat) else []
