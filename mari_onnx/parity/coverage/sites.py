"""Finds what a graph reacts to, and makes it goals.

Bodies of If and Loop count by their branches and trips, and by comparisons inside of them: these are reduced within the
body, for a body may only hand out what has one shape in each run of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.model.nodes import attribute
from mari_onnx.model.ops import Fact, having, row
from mari_onnx.parity.coverage.bodies import COMPARISONS, PREFIX
from mari_onnx.parity.coverage.decisions import decisions
from mari_onnx.parity.coverage.goals import Goal, Keys, Rows, Trips
from mari_onnx.parity.coverage.splits import Splits
from mari_onnx.parity.coverage.turns import Inner, Outcomes, Peaks, Picks, Sides, Ties
from mari_onnx.parity.domains.dependence import reads
from mari_onnx.parity.domains.reactions import attributes, by_name
from mari_onnx.parity.domains.scope import constants, dims

if TYPE_CHECKING:
    import onnx

# Tables of more rows than this are not counted, and no more goals than this are watched in one model.
_ROWS, _MOST = 2**24, 2000
# Constants of more numbers than this are not kept apart.
_APART = 256
# Of longer axes it is not counted which places are picked.
_PICKED = 64
# Bytes of the codes of a quantization whose ends are asked for.
_CODES = 2
# A bound beyond this stands for none.
_UNBOUNDED = 1e30


def goals(model: onnx.ModelProto) -> list[Goal]:
    """What the main graph of a model reacts to, in the order of its nodes.

    Args:
        model: only read; its large weights may be unloaded external data.
    """
    graph = model.graph
    known, sizes = constants(graph), dims(model)
    live = _live(graph)
    found: list[Goal] = []
    seen: set[str] = set()  # what a Where asks is mostly a comparison that is there already
    for node in graph.node:
        for goal in _of_node(node, known, sizes, live):
            if goal.met.size and not (goal.kind == "outcomes" and goal.tensors[0] in seen):
                seen.update(goal.tensors if goal.kind == "outcomes" else ())
                found.append(goal)
    return [*found, *decisions(graph, live)][:_MOST]


def compared(model: onnx.ModelProto) -> list[float]:
    """Numbers that the main graph compares something with, or bounds it by: values that inputs may be worth having."""
    known = constants(model.graph)
    found = [
        known[t]
        for node in model.graph.node
        if row(node.op_type).holds or row(node.op_type).acts_where
        for t in node.input
        if t in known and known[t].size <= _APART and known[t].dtype.kind in "iuf"
    ]
    numbers = {float(n) for each in found for n in each.reshape(-1)}
    return sorted(n for n in numbers if abs(n) < _UNBOUNDED)


def _live(graph: onnx.GraphProto) -> set[str]:
    """Tensors that inputs or their shapes move."""
    found = {i.name for i in graph.input} - {t.name for t in graph.initializer}
    for node in graph.node:
        if any(t in found for t in reads(node)):
            found.update(o for o in node.output if o)
    return found


def _of_node(
    node: onnx.NodeProto, known: dict[str, np.ndarray], sizes: dict[str, list[int | None]], live: set[str]
) -> Iterator[Goal]:
    import onnx

    op, given = node.op_type, list(node.input)
    name = node.name or node.output[0]
    if not any(t in live for t in reads(node)):
        return
    facts = row(op)
    yield from (Inner(output) for output in node.output if output.startswith(PREFIX))
    if op in having(Fact.LOOKUP) or op == "OneHot":
        rows = _rows(node, known, sizes, live)
        if rows is not None:
            table, indices = (name, given[0]) if op == "OneHot" else given[:2]
            yield Rows(name, op, table, indices, rows)
    elif op in COMPARISONS or (op == "Cast" and attribute(node, "to", 0) == onnx.TensorProto.BOOL):
        constant = next((known[t] for t in given if t in known), np.zeros(()))
        numbers = given if facts.holds else ()  # they say how far the other outcome is
        yield Outcomes("outcomes", name, op, node.output[0], constant.shape, numbers)
        if op in having(Fact.ORDERS):
            yield Ties(name, op, constant.shape, given)
    elif op in having(Fact.RANKS):
        axis = attribute(node, "axis", -1 if len(node.output) > 1 else 0)
        yield Peaks(name, op, given[0], axis)
        yield from _picks(node, name, axis, sizes)
    elif op == "Hardmax":
        yield from _picks(node, name, attribute(node, "axis", -1), sizes)
    elif op == "Where" and given[0] in live:
        yield Outcomes("outcomes", name, op, given[0])
    elif facts.kinks:
        for bound in facts.kinks:
            yield Sides("units", name, op, given[0], np.array(bound), _units(given[0], sizes))
    elif facts.acts_where and op != "Mod":
        yield from _bounds(node, name, known, sizes, live)
    elif op == "QuantizeLinear":
        yield from _ends(node, name, known)
    elif op == "If" and given[0] in live:
        yield Outcomes("branches", name, op, given[0])
    elif op == "Loop" and any(t in live for t in given[:2]):
        yield Trips(name, trips_of(node))
    elif node.domain == "ai.onnx.ml":
        own = attributes(node)
        if own.get("nodes_modes") is not None and "nodes_treeids" in own:
            yield Splits(name, op, given[0], own)
        elif "tree_roots" in own:  # one node a number since ai.onnx.ml 5
            yield Splits(name, op, given[0], by_name(own))
        for key in () if op in having(Fact.MOVES) else facts.categories:
            if len(own.get(key, ())):
                yield Keys(name, op, given[0], np.asarray(own[key]).reshape(-1).tolist())
                break


def trips_of(node: onnx.NodeProto) -> str:
    """The tensor that has one element a trip of a Loop; `observe` adds it."""
    return f"mari_onnx.trips/{node.name or next(o for o in node.output if o)}"


def _rows(
    node: onnx.NodeProto, known: dict[str, np.ndarray], sizes: dict[str, list[int | None]], live: set[str]
) -> list[int] | None:
    """Sizes of the axes of a table that a node looks up in; None where it is no table, or one that is too large."""
    if node.op_type == "OneHot":
        depth = known.get(node.input[1])
        return None if depth is None or node.input[0] not in live else [int(depth.reshape(-1)[0])]
    table = sizes.get(node.input[0])
    if node.input[0] in live or node.input[1] not in live or not table:
        return None
    axes = table[attribute(node, "axis", 0) :][:1]
    if node.op_type == "GatherND":
        last = (sizes.get(node.input[1]) or [None])[-1]
        axes = table[:last] if last and attribute(node, "batch_dims", 0) == 0 else []
    found = [size or 0 for size in axes]
    return found if found and 0 < int(np.prod(found)) <= _ROWS else None


def _units(tensor: str, sizes: dict[str, list[int | None]]) -> int | None:
    """The last dimension, where it is fixed and not the only one."""
    found = sizes.get(tensor) or []
    return found[-1] if len(found) > 1 else None


def _picks(node: onnx.NodeProto, name: str, axis: int, sizes: dict[str, list[int | None]]) -> Iterator[Goal]:
    """The places along an axis of a fixed size, of which one or some are picked."""
    shape = sizes.get(node.input[0]) or []
    at = axis - len(shape) if axis >= 0 else axis
    size = shape[at] if -len(shape) <= at < 0 else None
    if size is not None and 1 < size <= _PICKED:
        indices = "" if node.op_type == "Hardmax" else node.output[-1]
        smallest = node.op_type == "ArgMin" or attribute(node, "largest", 1) == 0
        yield Picks(name, node.op_type, node.input[0], indices, at, size, -1 if smallest else 1)


def _ends(node: onnx.NodeProto, name: str, known: dict[str, np.ndarray]) -> Iterator[Goal]:
    """Both ends of the codes that a number is rounded to: beyond them it is cut off."""
    dtype = known[node.input[2]].dtype if len(node.input) > 2 and node.input[2] in known else np.dtype(np.uint8)
    if dtype.kind in "iu" and dtype.itemsize <= _CODES:
        ends = np.iinfo(dtype)
        for number in (ends.min + 1, ends.max - 1):
            yield Sides("bounds", name, node.op_type, node.output[0], np.array(number), None)


def _bounds(
    node: onnx.NodeProto,
    name: str,
    known: dict[str, np.ndarray],
    sizes: dict[str, list[int | None]],
    live: set[str],
) -> Iterator[Goal]:
    given = [t for t in node.input if t]
    moved = [t for t in given if t in live]
    bounds = [known[t] for t in given if t in known]
    if node.op_type == "Clip":
        moved = [t for t in given[:1] if t in live]
        bounds += [np.array(a.f) for a in node.attribute if a.name in ("min", "max")]
    if len(moved) != 1:
        return
    for bound in bounds:
        if bound.size and bound.dtype.kind in "iuf" and bool((np.abs(bound.astype(np.float64)) < _UNBOUNDED).all()):
            units = _units(moved[0], sizes) if bound.size > 1 else None
            yield Sides("bounds", name, node.op_type, moved[0], bound, units)
