"""Which elements are ids, and of how many rows.

A Gather, GatherElements, GatherND or OneHot (in the main graph or in the body of a Loop, Scan or
If) is a *sink*: its indices must stay inside its table. `dependence.py` says which input element moves which index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.model.nodes import attribute, attribute_graphs
from mari_onnx.model.ops import Fact, having
from mari_onnx.parity.domains.dependence import LARGE, Probe
from mari_onnx.parity.domains.scope import Scope, constants, sources
from mari_onnx.parity.domains.trace import folded

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.layout import Layout


# No base is as large.
_NONE = 2**62
# Operators that hand on elements of their first operand as they are.
_PICKING = having(Fact.MOVES) - having(Fact.FILLS) | having(Fact.SAME) | having(Fact.CONVERTS)


@dataclass(frozen=True)
class _Sink:
    """A tensor of the main graph whose elements index `rows` rows."""

    tensor: str
    rows: int


class Ids(NamedTuple):
    """Inputs with ids.

    Attributes:
        rows: how many ids each element may have, as `Domain.rows`.
        hashed: which of them may be any number, as `Domain.hashed`; `loose` are those too of which a remainder is
            taken and that are bounded somewhere else, as a quotient is a row too.
        before: bool, like `hashed`: an id of -1 has a row of its own, before that of 0.
        notes: what could not be found out.
    """

    rows: dict[str, np.ndarray]
    hashed: dict[str, np.ndarray]
    loose: dict[str, np.ndarray]
    before: dict[str, np.ndarray]
    notes: list[str]


def rows(model: onnx.ModelProto, layout: Layout, scope: Scope) -> Ids:
    """Which elements are ids.

    Args:
        model: its large weights may be unloaded external data.
        scope: of its main graph.
    """
    sinks = list(dict.fromkeys(_sinks(scope)))
    reason = None
    for length in (5, 1):  # of free dimensions: a graph may refuse one
        try:
            found, hashed, loose, before = _probe(model, layout, sinks, length)
            return Ids({**_picked(layout, scope, sinks, found), **found}, hashed, loose, before, [])
        except MariError as error:
            reason = str(error).splitlines()[0]
    note = f"the range of ids could not be found out ({reason}); 0 and 1 are drawn"
    return Ids({i.name: np.array(2) for i in layout.signature.inputs if i.dtype.kind in "iu"}, {}, {}, {}, [note])


def limited(
    rows: Mapping[str, np.ndarray], limits: Mapping[tuple[str, int], int], layout: Layout
) -> dict[str, np.ndarray]:
    """Rows, and how many ids there are of further elements: input and place (`trace.folded`) -> their number."""
    found = dict(rows)
    for (name, place), count in limits.items():
        own = np.array(np.broadcast_to(found.get(name, np.array(0)), folded(layout, name)))
        own.reshape(-1)[place] = count
        found[name] = own.reshape(-1)[:1].reshape(()) if (own == own.reshape(-1)[0]).all() else own
    return found


def _sinks(scope: Scope) -> Iterator[_Sink]:
    for node in scope.graph.node:
        rows = _table_rows(node, scope)
        if rows is not None:
            yield from (
                _Sink(t, rows)
                for t in _in_main(node.input[0 if node.op_type == "OneHot" else 1], scope)
            )
        for each in node.attribute:
            graphs = attribute_graphs(each)
            for body in graphs:
                yield from _sinks(_body(node, body, scope))


def _picked(
    layout: Layout, scope: Scope, sinks: Sequence[_Sink], known: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Inputs whose elements are ids of a table wherever a graph picks them, as a TopK of others may decide."""
    found: dict[str, np.ndarray] = {}
    kinds = {i.name: i.dtype.kind for i in layout.signature.inputs}
    for sink in sinks:
        for name in sources(sink.tensor, scope, lambda node: node.input[:1] if node.op_type in _PICKING else ()):
            if kinds.get(name, "") in "iu" and name in kinds and name not in known:
                found[name] = np.array(min(sink.rows, int(found.get(name, sink.rows))))
    return found


def _body(node: onnx.NodeProto, body: onnx.GraphProto, scope: Scope) -> Scope:
    formal = [i.name for i in body.input]
    actual = list(node.input) if node.op_type in having(Fact.ITERATES) else []
    dims = {t.name: list(t.dims) for t in body.initializer}
    return Scope(body, dims, constants(body), dict(zip(formal, actual, strict=False)), scope)


def _table_rows(node: onnx.NodeProto, scope: Scope) -> int | None:
    """Rows of the table that a node looks up in; None where it is no lookup or its size is not
    known."""
    if node.op_type == "OneHot":
        depth = scope.constants.get(node.input[1])
        return None if depth is None else int(depth.reshape(-1)[0]) + 1  # beyond them it is 0 everywhere
    if node.op_type == "SequenceAt":
        made = scope.producer.get(node.input[0])
        return len(made.input) if made is not None and made.op_type == "SequenceConstruct" else None
    if node.op_type not in having(Fact.LOOKUP) or node.input[1] in scope.constants:
        return None
    dims = scope.dims.get(node.input[0])
    if dims is None:
        return None
    if node.op_type == "GatherND":
        last = scope.dims.get(node.input[1]) or [None]
        return dims[0] if last[-1] == 1 and attribute(node, "batch_dims", 0) == 0 else None
    return dims[attribute(node, "axis", 0)] if dims else None


def _in_main(tensor: str, scope: Scope) -> Iterator[str]:
    """The tensors of the main graph whose values reach `tensor` of a body, along the data path."""
    if scope.parent is None:
        yield tensor
        return
    for name in sources(tensor, scope, _data):
        if name in scope.outer:
            yield from _in_main(scope.outer[name], scope.parent)
        elif name not in scope.producer and name not in {i.name for i in scope.graph.input}:
            yield from _in_main(name, scope.parent)


def _data(node: onnx.NodeProto) -> Sequence[str]:
    """Inputs that hold data: of Slice, Gather, Reshape, ... the first one."""
    return list(node.input if node.op_type in having(Fact.JOINS) | having(Fact.ELEMENT) else node.input[:1])


def _probe(
    model: onnx.ModelProto, layout: Layout, sinks: Sequence[_Sink], length: int
) -> tuple[dict[str, np.ndarray], ...]:
    """`Ids`, but for its notes."""
    if not sinks:
        return {}, {}, {}, {}
    probe = Probe(model, layout, [s.tensor for s in sinks], length)
    if not probe.names:
        return {}, {}, {}, {}
    rows = np.zeros(probe.total, np.int64)
    bounded, before = np.zeros(probe.total, bool), np.zeros(probe.total, bool)
    half = probe.halves()
    for sink in sinks:
        if sink.tensor not in probe.names:
            continue
        at = probe.origin[sink.tensor]
        base, slope, later = probe.base[sink.tensor], probe.step[sink.tensor], probe.start[sink.tensor] > 0
        known = probe.known[sink.tensor].copy()
        limit = _limits(base, slope, np.unique(base[known]), sink.rows)
        high = np.where(slope > 0, (limit - 1 - base) // np.where(slope > 0, slope, 1) + 1, 1)
        high = np.where(slope < 0, np.maximum(base, 0) // np.where(slope < 0, -slope, 1) + 1, high)
        modulo = inside = np.zeros(base.shape, bool)
        last = high
        if sink.tensor in probe.big:
            far, farther = probe.big[sink.tensor], probe.bigger[sink.tensor]
            inside = (far >= -sink.rows) & (far < sink.rows) & (farther >= -sink.rows) & (farther < sink.rows)
            modulo = inside & (far != farther)
            # Modulo: any id will do; a clip: a little beyond the end.
            high = np.where(inside, np.where(modulo, 3 * sink.rows + 1, sink.rows + 2), high)
        # A bucket that a number falls into steps from one row to the next too, but not in step with it.
        for number in (2, 3):
            known &= modulo | later | (number >= last) | (probe.at(number)[sink.tensor] == base + number * slope)
        if sink.tensor in half:  # nor do its fractions fall on rows between
            known &= (half[sink.tensor] == probe.at(1)[sink.tensor]) | (half[sink.tensor] == probe.at(2)[sink.tensor])
        first = base[known & (probe.start[sink.tensor] == 0)].min(initial=_NONE)
        if first > 1:  # floats that are bounded, and 0 not the first of them
            known &= ~(inside & ~modulo & (base == first) & probe.floats[np.maximum(at - 1, 0)])
        before[at[known & (base == first) & (slope == 1) & (first > 0)] - 1] = True
        for place, count in zip(at[known] - 1, np.maximum(high, 1)[known], strict=True):
            rows[place] = count if rows[place] == 0 else min(rows[place], count)
        bounded[at[known & ~modulo] - 1] = True
    rows[_astray(probe, rows)] = 0
    found = {name: probe.folded(name, part) for name, part in probe.by_input(rows) if part.any()}
    flags = [
        {name: probe.folded(name, part.astype(np.int64)) > 0 for name, part in probe.by_input(each)}
        for each in (bounded, before)
    ]
    limited, early = ({name: (part > 0) & each[name] for name, part in found.items()} for each in flags)
    loose = {name: (part > 0) & ~limited[name] for name, part in found.items()}
    hashed = {name: each & _may_be_large(probe, sinks, name) for name, each in loose.items()}
    return found, hashed, loose, early


def _may_be_large(probe: Probe, sinks: Sequence[_Sink], name: str) -> bool:
    """Whether all rows are there if an input holds large numbers alone."""
    large = np.concatenate([np.full(part.size, LARGE if k == name else 0) for k, part in probe.by_input(probe.floats)])
    try:
        answer = probe.answer(large)
    except MariError:
        return False
    rows = ((answer[s.tensor], s.rows) for s in sinks if s.tensor in answer)
    return all(bool(((at >= -count) & (at < count)).all()) for at, count in rows)


def _astray(probe: Probe, rows: np.ndarray) -> np.ndarray:
    """[input element] whether its ids were in step from some number on, and are not half way to the last of them:
    numbers that fall into buckets."""
    found, ids_ = np.zeros(probe.total, bool), np.zeros(probe.total, np.int64)
    later = {name: probe.known[name] & (probe.start[name] > 0) & (probe.origin[name] > 0) for name in probe.names}
    for name, mine in later.items():
        origin, start = probe.origin[name][mine] - 1, probe.start[name][mine]
        ids_[origin] = np.maximum(start + (rows[origin] - 1 - start) // 2, 0)
    try:
        answer = probe.answer(ids_)
    except MariError:
        return found
    for name, mine in later.items():
        origin = probe.origin[name][mine] - 1
        off = answer[name][mine] != probe.base[name][mine] + probe.step[name][mine] * ids_[origin]
        if name in probe.big:  # of a remainder no number is the last
            off &= probe.bigger[name][mine] == probe.big[name][mine]
        found[origin[off & (rows[origin] > 0)]] = True
    return found


def _limits(base: np.ndarray, slope: np.ndarray, offsets: np.ndarray, rows: int) -> np.ndarray:
    """Where the rows for each place of the ids end: at the next offset that its own rows reach.

    ``id + offset`` has one offset a field, ``id * fields + field`` puts rows of the fields between each other.
    """
    found = np.full(base.shape, rows, np.int64)
    for place in {(int(b), int(s)) for b, s in zip(base.reshape(-1), slope.reshape(-1), strict=True)}:
        start, step = place[0], max(place[1], 1)
        later = offsets[(offsets > start) & ((offsets - start) % step == 0)]
        if len(later):
            found[(base == start) & (slope == place[1])] = min(int(later[0]), rows)
    return found
