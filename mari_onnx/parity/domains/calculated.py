"""What to feed for rows and categories whose number is calculated from several elements, or in no straight line.

`table[30 * country + device]`, `table[id // 10]` and a look-up by `1000 * hour + slot` have rows that no element
reaches by itself. The part of the graph before the look-up is run with candidates by the thousand, each a try of its
own: one element is found by halving for each row that is wanted, the others are drawn, however it is calculated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.model.nodes import attribute
from mari_onnx.model.ops import Fact, having
from mari_onnx.parity.domains.reactions import label, reactions
from mari_onnx.parity.domains.texts import Joint
from mari_onnx.parity.domains.trace import GRID, cast, folded
from mari_onnx.parity.domains.tries import Coordinate, Tries

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.domains.trace import Trace
    from mari_onnx.parity.layout import Layout

# All rows of tables up to so many are looked for, of larger ones so many spread evenly.
_ROWS, _SPREAD = 10_000, 1000
# Candidates that are tried at once: primes, which no other dimension is likely to be.
_LANES = (251, 1021, 4093)
# Input elements that one element is calculated from, and that are asked whether they move it.
_COORDINATES, _ASKED = 6, 200
# Rounds in which elements are drawn and one is halved; of these so many in a row may find nothing new.
_ROUNDS, _STALE = 48, 4
# Of the user's elements few different numbers are drawn in a round: each costs a request of its own.
_USERS = 48
# Ids that come to this part of the largest row come to all.
_FAR_ENOUGH = 0.9
# No larger numbers are fed: the product of two fits 64 bits.
_LARGEST = 2.0**31
# Of what may be anything so many are drawn by their magnitude.
_FAR = 0.5
# Numbers of elements that may be anything, by how many are wanted; and how far elements are moved.
_WIDER, _STEPS = 8, (1.0, 2.0, -2.0, 37.0, 1000.0, 2.0**17, 2.0**36)


@dataclass(frozen=True)
class Target:
    """Numbers that elements of a tensor should come to.

    Attributes:
        tensor: a local one.
        sizes: of the axes of a table; a GatherND has the numbers of several in its last dimension. Of categories none.
        numbers: wanted ones; of several axes, of the row in C order. Sorted.
        node: for messages.
    """

    tensor: str
    sizes: tuple[int, ...]
    numbers: tuple[float, ...]
    node: str


@dataclass
class Found:
    """What was found.

    Attributes:
        numbers: of single elements, each with the node.
        joints: of several.
        limits: how many ids an element may have that is added to others.
    """

    numbers: dict[tuple[str, int, float], str] = field(default_factory=dict)
    joints: dict[Joint, None] = field(default_factory=dict)
    limits: dict[Coordinate, int] = field(default_factory=dict)


def calculated(
    model: onnx.ModelProto,
    layout: Layout,
    traces: Sequence[Trace],
    rows: Mapping[str, np.ndarray],
    loose: Mapping[str, np.ndarray],
    seed: int = 0,
) -> Found:
    """What to feed for rows and categories that are calculated.

    Args:
        model: without functions.
        rows: ids of elements that are known already; `loose` says which of them may be any number here.
    """
    found = Found()
    anything = {
        (name, place)
        for name, own in loose.items()
        for place in np.flatnonzero(np.broadcast_to(own, folded(layout, name))).tolist()
    }
    known = {
        (name, place): int(np.broadcast_to(own, folded(layout, name)).reshape(-1)[place])
        for name, own in rows.items()
        for place in range(int(np.prod(folded(layout, name))))
    }
    for trace in traces:
        for target in dict.fromkeys(_targets(trace)):
            lanes = next(n for n in _LANES if n >= min(2 * len(target.numbers), _LANES[-1]))
            rng = np.random.default_rng([seed, len(found.joints)])
            with suppress(MariError):
                tries = Tries(model, layout, trace, target.tensor, target.sizes, lanes)
                _Search(tries, target, layout, known, anything, found, rng).all()
    return found


def _targets(trace: Trace) -> Iterator[Target]:
    weights = trace.parts.weights
    for node in trace.parts.nodes:
        if node.op_type == "OneHot":
            index, depth = node.input[0], trace.constants.get(node.input[1])
            sizes = () if depth is None or not depth.size else (int(depth.reshape(-1)[0]),)
        elif node.op_type in having(Fact.LOOKUP) and node.input[0] in weights:
            index, table = node.input[1], tuple(weights[node.input[0]].dims)
            sizes = table[attribute(node, "axis", 0) :][:1]
            if node.op_type == "GatherND" and index in trace.curves:
                sizes = table[: (trace.shape_of(index) or (1,))[-1]] if not attribute(node, "batch_dims", 0) else ()
        else:
            continue
        count = int(np.prod(sizes)) if sizes else 0
        if count and index in trace.curves and (_crooked(trace, index) or len(sizes) > 1):
            numbers = np.arange(count) if count <= _ROWS else np.unique(np.linspace(0, count - 1, _SPREAD).astype(int))
            yield Target(index, sizes, tuple(numbers.tolist()), label(node))
    for each in reactions(trace):
        if each.op == "Equal" and each.numbers.dtype.kind in "iuf" and trace.curves[each.tensor].several.any():
            mine = np.unique(each.numbers[trace.curves[each.tensor].several[each.elements]].astype(np.float64))
            mine = mine[np.isfinite(mine)][:_ROWS]
            if mine.size:
                yield Target(each.tensor, (), tuple(mine.tolist()), each.node)


def _crooked(trace: Trace, tensor: str) -> bool:
    """Whether an element is calculated from several, in no straight line from one, or from large numbers alone."""
    curve = trace.curves[tensor]
    return bool((curve.several | (curve.origin < 0) | np.isnan(curve.slope)).any())


class _Search:
    """Looks for what to feed for one target."""

    def __init__(
        self,
        tries: Tries,
        target: Target,
        layout: Layout,
        known: Mapping[Coordinate, int],
        anything: Set[Coordinate],
        found: Found,
        rng: np.random.Generator,
    ):
        self._tries, self._target, self._layout = tries, target, layout
        self._known, self._anything, self._found, self._rng = known, anything, found, rng

    def all(self) -> None:
        """Of each element of the tensor that is calculated from few."""
        coordinates = self._tries.coordinates
        if not 0 < len(coordinates) <= min(_ASKED, self._tries.count):
            return
        moved = self._tries.moved(_STEPS)
        for by in dict.fromkeys(tuple(np.flatnonzero(column).tolist()) for column in moved.T):
            mine = [coordinates[k] for k in by]
            if len(mine) == 1 and not self._target.sizes:
                continue  # turned back by itself
            if 0 < len(mine) <= _COORDINATES:
                place = next(k for k, column in enumerate(moved.T) if tuple(np.flatnonzero(column).tolist()) == by)
                with suppress(MariError):
                    if len(mine) > 1 or not self._is_dealt(place, mine[0]):
                        self._place(place, mine)

    def _is_dealt(self, place: int, each: Coordinate) -> bool:
        """Whether the ids of an element are all that there is to be met; of those that may be any number, whether they
        come as far as what is wanted."""
        count = self._known.get(each)
        if not count or each not in self._anything:
            return bool(count)
        answer = self._tries.run({each: np.floor(np.linspace(0, count - 1, self._tries.count))})
        return bool(answer[0][:, place][answer[1][:, place]].max(initial=0) >= _FAR_ENOUGH * self._target.numbers[-1])

    def _place(self, place: int, mine: list[Coordinate]) -> None:
        wanted, found = np.array(self._target.numbers), self._found
        limits = self._limits(place, mine)
        found.limits.update({k: min(n, found.limits.get(k, n)) for k, n in limits.items() if not self._known.get(k)})
        ranges = {each: self._range(place, each, wanted, limits.get(each)) for each in mine}
        left, stale = np.ones(wanted.size, bool), 0
        order = sorted(mine, key=lambda each: self._layout.is_user_at(*each))
        remainder = all(most > high for _, high, most in ranges.values())  # there halving is of no use
        for number in range(_ROUNDS):
            given = {each: self._drawn(each, *ranges[each]) for each in mine}
            if number % 2 == remainder or len(mine) == 1:
                solved = order[number // 2 % len(order)]
                aims = np.resize(np.flatnonzero(left), self._tries.count)
                given[solved] = self._tries.crossing(place, given, solved, ranges[solved][::2], wanted[aims])
            answer = self._tries.run(given)
            at = np.searchsorted(wanted, answer[0][:, place]).clip(max=wanted.size - 1)
            hit = answer[1][:, place] & (wanted[at] == answer[0][:, place]) & left[at]
            fresh = np.flatnonzero(hit)
            _, first = np.unique(at[fresh], return_index=True)
            for lane in fresh[first].tolist():
                parts = tuple((*each, float(given[each][lane])) for each in mine)
                if len(parts) > 1:
                    found.joints[Joint(parts)] = None
                else:
                    found.numbers.setdefault(parts[0], self._target.node)
            left[at[fresh]] = False
            stale = 0 if fresh.size else stale + 1
            if not left.any() or stale > _STALE * len(mine):
                return

    def _range(
        self, place: int, each: Coordinate, wanted: np.ndarray, limit: int | None
    ) -> tuple[float, float, float]:
        """Where an element lies, if the others are 0, for what is calculated to be wanted.

        Returns:
            From where, up to where it is mostly drawn, and up to where it may be at all.
        """
        kind, count = self._tries.kinds[each[0]], self._known.get(each) or limit
        if each in self._anything and not limit:
            count = None
        if count:
            return 0.0, count - 1.0, count - 1.0
        grid = np.unique(cast(GRID if kind.kind == "f" else GRID[np.round(GRID) == GRID], kind).astype(np.float64))
        answer = self._tries.run({each: np.resize(grid, self._tries.count)})
        least = min(wanted[0], self._tries.zero[0, place])  # the others add to it
        inside = answer[1][:, place] & (answer[0][:, place] >= least) & (answer[0][:, place] <= wanted[-1])
        inside = inside[: grid.size]
        some = inside & (grid >= 0) if (inside & (grid > 0)).any() else inside
        most = float(_WIDER * wanted.size)
        if not some.any():
            return 0.0, most, most
        at = np.flatnonzero(some)
        low = float(grid[at[0]]) if kind.kind != "f" or at[0] == 0 else float(grid[at[0] - 1])
        high = float(grid[min(at[-1] + 1, grid.size - 1)])
        anything = bool(some[-1])  # of which a remainder is taken, or which is bounded
        values = answer[0][: grid.size, place][grid < _LARGEST]  # of which onnxruntime's Clip makes 0
        changing = np.flatnonzero((values != values[-1]) & (grid[: values.size] >= 0))
        if anything and changing.size and changing[-1] + 2 < values.size:
            return low, float(grid[changing[-1] + 1]), float(grid[changing[-1] + 1])
        return (low, min(high, most), min(high, _LARGEST)) if anything else (low, high, high)

    def _limits(self, place: int, mine: list[Coordinate]) -> dict[Coordinate, int]:
        """Of rows that are a sum of multiples: as many ids of each element as do not reach the next one's."""
        if len(mine) < 2 or not self._target.sizes or any(self._tries.kinds[n].kind == "f" for n, _ in mine):
            return {}
        zero = float(self._tries.zero[0, place])
        steps: dict[Coordinate, float] = {}
        for each in mine:
            apart = np.diff(self._tries.run({each: np.resize(np.arange(4.0), self._tries.count)})[0][:4, place])
            if not (apart == apart[0]).all() or apart[0] <= 0:
                return {}
            steps[each] = float(apart[0])
        found, room = {}, float(np.prod(self._target.sizes)) - zero
        for each in sorted(mine, key=lambda each: -steps[each]):
            found[each] = self._known.get(each) or max(int(np.ceil(room / steps[each])), 1)
            room = min(room, steps[each])
        for each, count in found.items():  # beyond, rows end; of a remainder they do not
            far = 2.0 * count + 1
            if self._tries.run({each: np.full(self._tries.count, far)})[0][0, place] != zero + steps[each] * far:
                return {}
        return found

    def _drawn(self, each: Coordinate, low: float, high: float, most: float) -> np.ndarray:
        rng = self._rng
        count = _USERS if self._layout.is_user_at(*each) else self._tries.count
        drawn = rng.uniform(low, high + 1, count)
        if most > high:
            far = 2.0 ** rng.uniform(0, np.log2(most), count)
            drawn = np.where(rng.random(count) < _FAR, far, drawn)
        kind = self._tries.kinds[each[0]]
        return np.resize(drawn if kind.kind == "f" else np.floor(drawn).clip(low, most), self._tries.count)
