"""Elements of two inputs that a graph compares with each other, and elements that it compares with themselves.

Whether the candidate's category is the user's favourite, or the candidate is in the history, is asked of equal numbers;
two that are drawn apart are never equal. `x == x` asks for NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.model.nodes import reads
from mari_onnx.model.ops import Fact, having
from mari_onnx.parity.domains.reactions import label

if TYPE_CHECKING:
    from mari_onnx.parity.domains.trace import Trace

_ELEMENTS = 2**16


@dataclass(frozen=True)
class Link:
    """Elements of `other` equal those of `name` where `other = name + shift`.

    Attributes:
        name, other: inputs; of one input, two of its columns.
        column, other_column: along the last axis; None where any will do.
        shift: 0 for strings.
        node: that compares them.
    """

    name: str
    other: str
    column: int | None
    other_column: int | None
    shift: float
    node: str


def links(trace: Trace) -> list[Link]:
    """Of a graph, each once."""
    found: dict[Link, None] = {}
    for node in trace.parts.nodes:
        given = [t for t in node.input if t]
        if node.op_type not in having(Fact.RELATES) or len(given) != 2:
            continue
        for mine, theirs, shift in _pairs(trace, *given):
            one, other = (trace.place(each) for each in (mine, theirs))
            first, second = (_column(trace, each.name, index) for each, index in (one, other))
            if one[0].name == other[0].name and first == second:
                continue
            if (one[0].dtype.kind == "O") == (other[0].dtype.kind == "O"):
                found[Link(one[0].name, other[0].name, first, second, shift, label(node))] = None
    return list(found)


def compared_with_themselves(trace: Trace) -> Iterator[tuple[int, str]]:
    """Input elements that are asked for NaN by `x == x`, and the node."""
    for node in trace.parts.nodes:
        if node.op_type == "Equal" and len(node.input) == 2 and all(t in trace.curves for t in node.input):
            one, other = (trace.curves[t].origin for t in node.input)
            if one.shape == other.shape and (one == other).all():
                yield from ((int(each), label(node)) for each in np.unique(one[one >= 0]))


def behind_products(trace: Trace) -> Iterator[tuple[int, str]]:
    """Input elements behind a tensor that is asked for NaN and has been calculated with since, and the node.

    No one element decides there, but a NaN in any of them gets through products and sums.
    """
    parts = trace.parts
    for node in parts.nodes:
        asked = node.op_type == "IsNaN" or (node.op_type == "Equal" and len(set(node.input)) == 1)
        if not asked or node.input[0] in parts.local:
            continue
        seen: set[str] = set()
        stack = [node.input[0]]
        while stack:
            name = stack.pop()
            if name not in seen:
                seen.add(name)
                stack.extend(reads(parts.producer[name]) if name in parts.producer else ())
        yield from ((origin, label(node)) for origin in range(trace.total) if trace.place(origin)[0].name in seen)


def _pairs(trace: Trace, one: str, other: str) -> Iterator[tuple[int, int, float]]:
    if one not in trace.curves or other not in trace.curves:
        return
    curves = trace.curves[one], trace.curves[other]
    shapes = trace.shape_of(one), trace.shape_of(other)
    try:
        if np.prod(np.broadcast_shapes(*shapes)) > _ELEMENTS:
            return
        arrays = []
        for field in ("origin", "slope", "base"):
            both = (getattr(c, field).reshape(s) for c, s in zip(curves, shapes, strict=True))
            arrays += [array.reshape(-1) for array in np.broadcast_arrays(*both)]
    except ValueError:
        return
    origin, origin2, slope, slope2, base, base2 = arrays
    known = (origin >= 0) & (origin2 >= 0) & (origin != origin2)
    same = np.isclose(slope, slope2) | (np.isnan(slope) & np.isnan(slope2))
    with np.errstate(all="ignore"):
        shift = np.where(np.isnan(slope), 0.0, (base - base2) / slope2)
    rows = np.stack([origin, origin2, shift])[:, known & same & np.isfinite(shift)]
    for mine, theirs, by in np.unique(rows, axis=1).T:
        yield int(mine), int(theirs), float(by)


def _column(trace: Trace, name: str, index: int) -> int | None:
    """Of an input with a last axis of known length, the place on it."""
    shape = trace.shape(name)
    declared = trace.input(name).shape
    if len(shape) < 2 or not isinstance(declared[-1], int):
        return None
    return index % shape[-1]
