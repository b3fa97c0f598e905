"""Of each element of a Value: does it depend on the user, and does it differ between candidates?

In: a Value. Out: an array over its dimensions, in which one of unknown length counts as 1.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mari_onnx.engine.ir.value import Axis, Body, Cat, Leaf, Sum, Value, axes_of, within
from mari_onnx.model.dims import symbols

USER, CANDIDATE = 1, 2
"""Bits: it depends on the user; it differs between candidates."""
LIMIT = 1 << 22
"""Elements up to which they are told apart."""


def dependence(value: Value) -> np.ndarray | None:
    """What each element depends on, `USER` and `CANDIDATE` as bits of uint8. None for a Value of unknown rank, or of
    more than `LIMIT` elements.
    """
    if value.groups is None or int(np.prod([_length(a) for a in value.axes], dtype=np.int64)) > LIMIT:
        return None
    found = _bits(value.body, value.axes)
    return found.reshape([int(np.prod([_length(a) for a in group], dtype=np.int64)) for group in value.known])


def _bits(body: Body, order: Iterable[Axis]) -> np.ndarray:
    """Of a body: one dimension for each axis, of length 1 or that axis'."""
    axes = list(order)
    found = np.zeros([_length(a) for a in axes], np.uint8)
    if isinstance(body, Leaf):
        differs = any("N" in symbols(axis.size) for axis in axes_of(body))
        found[...] = (USER if "user" in body.tensor.deps else 0) | (CANDIDATE if differs else 0)
    elif isinstance(body, Cat):
        at = axes.index(body.axis)
        for part in body.parts:
            inner = _bits(part.body, within(axes, body.axis, part.axis))
            inner = inner[(slice(None),) * at + (None,)] if part.axis is None else inner
            np.moveaxis(found, at, 0)[list(part.positions)] = np.moveaxis(inner, at, 0)
    else:
        for item in body.terms if isinstance(body, Sum) else body.factors:
            found |= _bits(item, axes)
    return found


def _length(axis: Axis) -> int:
    return axis.size if isinstance(axis.size, int) else 1
