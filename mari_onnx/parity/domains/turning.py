"""What to feed so that a number that is calculated from several elements lies on both sides of one it is compared with.

`now - seen < 86400` turns where no element alone decides. The others are drawn, and one is found by halving, by the
tries of `calculated.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.model.ops import Fact, having
from mari_onnx.parity.domains.reactions import reactions
from mari_onnx.parity.domains.texts import Joint
from mari_onnx.parity.domains.trace import folded
from mari_onnx.parity.domains.tries import Coordinate, Tries

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.domains.trace import Trace
    from mari_onnx.parity.layout import Layout

# Tries at once, a prime; numbers of one comparison; elements that may move what is compared, and of one of its places.
_LANES, _NUMBERS, _ASKED, _COORDINATES = 61, 8, 60, 6
# How far elements are moved to see what they move.
_STEPS = (1.0, 2.0, 37.0, 2.0**17)
# Where one is looked for: floats to both sides of 0, whole numbers above.
_LARGEST = {"f": (-(2.0**24), 2.0**24), "i": (0.0, 2.0**40), "u": (0.0, 2.0**31)}
# Powers of two between which the others lie, of both signs if they are floats.
_OTHERS = (0.0, 12.0)
# Beside a float that turns, relative: more than rounding reaches.
_BESIDE = 2.0**-7


def turning(
    model: onnx.ModelProto, layout: Layout, traces: Sequence[Trace], rows: Mapping[str, np.ndarray], seed: int = 0
) -> Iterator[Joint]:
    """Elements with which comparisons of what is calculated from several come out the one way and the other, as near
    to where they turn as whole numbers, or the last bits of floats, allow.

    Args:
        model: without functions.
        rows: of elements that are ids, how many there are.
    """
    rng = np.random.default_rng([seed, 5])
    for trace in traces:
        wanted: dict[str, dict[float, None]] = {}
        for each in reactions(trace):
            if each.op in having(Fact.ORDERS) and not each.bound and each.numbers.dtype.kind in "iuf":
                several = trace.curves[each.tensor].several[each.elements]
                mine = np.unique(each.numbers[several].astype(np.float64))
                wanted.setdefault(each.tensor, {}).update(dict.fromkeys(mine[np.isfinite(mine)].tolist()))
        for tensor, numbers in wanted.items():
            with suppress(MariError):
                tries = Tries(model, layout, trace, tensor, (), _LANES)
                yield from _of_tensor(tries, layout, rows, list(numbers)[:_NUMBERS], rng)


def _of_tensor(
    tries: Tries, layout: Layout, rows: Mapping[str, np.ndarray], numbers: Sequence[float], rng: np.random.Generator
) -> Iterator[Joint]:
    if not 0 < len(tries.coordinates) <= min(_ASKED, tries.count):
        return
    moved = tries.moved(_STEPS)
    groups = [tuple(np.flatnonzero(column).tolist()) for column in moved.T]
    for by in dict.fromkeys(groups):
        mine = [tries.coordinates[k] for k in by]
        if 1 < len(mine) <= _COORDINATES:
            for number in numbers:
                with suppress(MariError):
                    yield from _both(tries, layout, rows, groups.index(by), mine, number, rng)


def _both(
    tries: Tries,
    layout: Layout,
    rows: Mapping[str, np.ndarray],
    place: int,
    mine: Sequence[Coordinate],
    number: float,
    rng: np.random.Generator,
) -> Iterator[Joint]:
    """Elements with which one place of the tensor is on both sides of a number: an item's is found before a user's."""
    counts = {each: _ids(layout, rows, each) for each in mine}
    given = {each: _drawn(tries.kinds[each[0]], counts[each], tries.count, rng) for each in mine}
    for each in sorted(mine, key=lambda each: layout.is_user_at(*each)):
        kind = tries.kinds[each[0]]
        ends = (0.0, counts[each] - 1.0) if counts[each] else _LARGEST[kind.kind]
        ends = ends if kind.kind == "f" else (ends[0], min(ends[1], float(np.iinfo(kind).max) / 2))
        at = tries.crossing(place, given, each, ends, np.full(tries.count, number))
        beside = np.maximum(np.abs(at), 1.0) * _BESIDE if kind.kind == "f" else np.ones_like(at)
        sides = [at - beside, at + beside] if kind.kind == "f" else [at - 1, at, at + 1]
        values = [tries.run({**given, each: side})[0][:, place] for side in sides]
        turns = (values[0] < number) != (values[-1] < number)
        turns |= (values[0] <= number) != (values[-1] <= number)
        turns &= (sides[0] >= ends[0]) & (sides[-1] <= ends[1]) & np.isfinite(values).all(axis=0)
        if turns.any():
            lane = int(np.flatnonzero(turns)[0])
            for side in sides:
                yield Joint(tuple((*k, float((side if k == each else given[k])[lane])) for k in mine))
            return


def _ids(layout: Layout, rows: Mapping[str, np.ndarray], each: Coordinate) -> int:
    """How many ids an element may have; 0 where it is none."""
    if each[0] not in rows:
        return 0
    return int(np.broadcast_to(rows[each[0]], folded(layout, each[0])).reshape(-1)[each[1]])


def _drawn(kind: np.dtype, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    if count:
        return rng.integers(0, count, size).astype(np.float64)
    drawn = 2.0 ** rng.uniform(*_OTHERS, size)
    return drawn * rng.choice([-1.0, 1.0], size) if kind.kind == "f" else np.floor(drawn)
