"""Numbers that N and lengths of histories meet in a graph: from there on it may do something else.

A number is met where it cuts an axis of a size that is not fixed (Slice, TopK, Gather), or where it is compared,
bounded, subtracted or divided with something that a Shape was made into; so is the length of a table that is cut or
read by such a size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from mari_onnx.model.nodes import attribute
from mari_onnx.model.ops import Fact, having
from mari_onnx.parity.domains.dependence import reads
from mari_onnx.parity.domains.scope import constants, dims

# More than that is no length of a history and no number of candidates.
LONGEST = 10_000
# What a shape remains through; behind other operators it is a number like any other.
_COMPUTES = having(Fact.ELEMENT) | having(Fact.MOVES) | having(Fact.JOINS) | having(Fact.GROWS)
_KEEPS = _COMPUTES | having(Fact.REDUCES)
# Weights above this many elements have no numbers that a size is compared with, though they may be cut by one.
_FEW = 16


def met(model: onnx.ModelProto) -> list[int]:
    """The numbers in ascending order, 1 to `LONGEST`.

    Args:
        model: only read; bodies of If and Loop are looked into, with the shapes around them.
    """
    sizes = dims(model)
    found = set(_of_graph(model.graph, constants(model.graph), sizes, set()))
    return sorted(n for n in found if 1 <= n <= LONGEST)


def _of_graph(
    graph: onnx.GraphProto, known: dict[str, np.ndarray], sizes: dict[str, list[int | None]], shaped: set[str]
) -> Iterator[int]:
    shaped, weights = set(shaped), {t.name for t in graph.initializer}
    for node in graph.node:
        given = [t for t in node.input if t]
        of_shape = node.op_type in having(Fact.SIZES)
        if of_shape and None not in (sizes.get(given[0]) or [None]):
            continue  # a fixed shape
        if of_shape or (node.op_type in _KEEPS and _all_shaped(given, shaped, known)):
            shaped.update(node.output)
        yield from _of_node(node, known, sizes, shaped, weights)
        for each in node.attribute:
            for body in [each.g] if each.HasField("g") else list(each.graphs):
                own = {**known, **constants(body)}
                yield from _of_graph(body, own, {**sizes, **{t.name: list(t.dims) for t in body.initializer}}, shaped)


def _all_shaped(given: list[str], shaped: set[str], known: dict[str, np.ndarray]) -> bool:
    return any(t in shaped for t in given) and all(t in shaped or t in known for t in given)


def _of_node(
    node: onnx.NodeProto,
    known: dict[str, np.ndarray],
    sizes: dict[str, list[int | None]],
    shaped: set[str],
    weights: set[str],
) -> Iterator[int]:
    op, given = node.op_type, [t for t in node.input if t]
    if op in _COMPUTES and any(t in shaped for t in reads(node)):
        for tensor in given:
            if tensor in known:
                yield from _whole(known[tensor])
            elif tensor in weights:
                # A table that is cut or read by a size, or a mask that is compared along one.
                yield from (d for d in sizes.get(tensor) or () if d is not None and d > 1)
        for tensor in given:
            if tensor in known and known[tensor].size > 1:
                yield from (d for d in known[tensor].shape if d > 1)
    elif op == "Slice":
        yield from _cut(node, known, sizes)
    elif op == "TopK":
        yield from _whole(known[given[1]]) if len(given) > 1 and given[1] in known else [attribute(node, "k", 0)]
    elif op == "Gather" and given[1] in known and _free(given[0], attribute(node, "axis", 0), sizes):
        yield from (abs(n) + 1 for n in _whole(known[given[1]]))


def _cut(node: onnx.NodeProto, known: dict[str, np.ndarray], sizes: dict[str, list[int | None]]) -> Iterator[int]:
    """Starts and ends of a Slice along axes that are not fixed."""
    import onnx

    if len(node.input) > 1:
        given = [known.get(t) if t else None for t in node.input[1:5]] + [None] * 4
        starts, ends, axes = given[:3]
    else:
        by_name = {a.name: np.array(onnx.helper.get_attribute_value(a)) for a in node.attribute}
        starts, ends, axes = (by_name.get(n) for n in ("starts", "ends", "axes"))
    for numbers in (starts, ends):
        if numbers is None:
            continue
        along = np.arange(numbers.size) if axes is None else axes.reshape(-1)
        for axis, number in zip(along.tolist(), numbers.reshape(-1).tolist(), strict=False):
            if _free(node.input[0], int(axis), sizes):
                yield abs(int(number))


def _free(tensor: str, axis: int, sizes: dict[str, list[int | None]]) -> bool:
    found = sizes.get(tensor)
    return found is None or not -len(found) <= axis < len(found) or found[axis] is None


def _whole(numbers: np.ndarray) -> Iterator[int]:
    if numbers.dtype.kind in "iuf" and numbers.size <= _FEW:
        for number in numbers.reshape(-1).tolist():
            if np.isfinite(number) and abs(number) <= LONGEST:
                yield from {abs(int(np.floor(number))), abs(int(np.ceil(number)))}
