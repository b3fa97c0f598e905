"""Numbers and categories that a graph tells apart, for each input element: what it reacts to, and what is next to that.

A model may choose a branch by `domain == 302`, and be wrong in that branch alone; numbers drawn at random do not get
there. `reactions.py` finds what the graph reacts to, `trace.py` which input element each looks at, and what to feed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.model.ops import turns_below
from mari_onnx.parity.domains.inverse import invert
from mari_onnx.parity.domains.reactions import ROUNDED, is_short
from mari_onnx.parity.domains.texts import Joint, split
from mari_onnx.parity.domains.trace import Trace, folded

if TYPE_CHECKING:
    from mari_onnx.parity.domains.reactions import Reaction
    from mari_onnx.parity.layout import Layout

# Beside a float threshold, relative: more than rounding of what is calculated from it, in float16 too; and where
# nothing is calculated.
_BESIDE, _NEXT = 2.0**-8, 2.0**-20
# Numbers above these are limits of a type rather than values; a bound may be a guard that nothing is meant to reach.
_MOST_WHOLE, _MOST_FLOAT, _MOST_BOUND = 2.0**53, 1e12, 1e6
# A column with more splits than this gets both sides of each, and nothing around it.
_MANY = 64

# Strings that are no category.
_UNKNOWN = ("", "unknown")

Value = float | str


@dataclass(frozen=True)
class Values:
    """What the elements of an input should be at least once.

    Attributes:
        shape: broadcastable to the input.
        numbers: for each place of `shape`, in C order, the numbers or strings; what is only next to one comes last.
            NaN and infinity are among them where the graph asks for them.
        why: for each place, number -> the node that tells it apart.
        closed: no other numbers may stand there.
    """

    shape: tuple[int, ...]
    numbers: tuple[tuple[Value, ...], ...]
    why: tuple[dict[Value, str], ...] = ()
    closed: bool = False

    @cached_property
    def finite(self) -> tuple[np.ndarray, np.ndarray]:
        """[place, count] finite numbers, and how many each place has."""
        own = [[n for n in numbers if not isinstance(n, str) and np.isfinite(n)] for numbers in self.numbers]
        table = np.zeros((len(own), max(map(len, own), default=0)))
        for place, numbers in enumerate(own):
            table[place, : len(numbers)] = numbers
        return table, np.array([len(numbers) for numbers in own], int)

    def without(self, places: Iterable[int]) -> Values:
        """No numbers of some places."""
        gone = set(places)
        return replace(self, numbers=tuple(() if k in gone else own for k, own in enumerate(self.numbers)))

    def within(self, rows: np.ndarray) -> Values:
        """Of an input whose elements are ids, of so many rows (as in `Domain`): those that are ids, in their shape."""
        if rows.size == 1:
            together = dict.fromkeys(n for numbers in self.numbers for n in numbers)
            why = {n: text for each in self.why for n, text in each.items()}
            return Values((), (tuple(n for n in together if _inside(n, rows.flat[0])),), (why,))
        numbers = self.numbers if self.shape else self.numbers * rows.size
        kept = zip(numbers, rows.reshape(-1).tolist(), strict=True)
        return Values(
            rows.shape,
            tuple(tuple(n for n in own if not count or _inside(n, count)) for own, count in kept),
            self.why if self.shape else self.why * rows.size,
        )


def _inside(number: Value, rows: int) -> bool:
    return not isinstance(number, str) and -1 <= number < rows  # -1 where a graph asks for what is below 0: no id


class Gathered:
    """Numbers of input elements, put together along the candidate axis and free axes.

    Args:
        layout: of the source.

    Attributes:
        joints: what several elements have to be together.
    """

    def __init__(self, layout: Layout):
        self._layout = layout
        self._inputs = {i.name: i for i in layout.signature.inputs}
        # input -> place -> number -> (0, or 1 where it is only next to one that is compared; the node)
        self._found: dict[str, dict[int, dict[Value, tuple[int, str]]]] = {}
        self._closed: set[str] = set()
        self.joints: dict[Joint, None] = {}
        # What was turned back already: the optimized model mostly asks what the source does.
        self.asked: set[tuple[object, ...]] = set()

    def close(self, name: str) -> None:
        """What is only next to a number is an error in an input."""
        self._closed.add(name)

    def add(self, name: str, place: int, number: Value, rank: int, why: str) -> None:
        mine = self._found.setdefault(name, {}).setdefault(place, {})
        if not isinstance(number, str) and np.isnan(number):
            number = float("nan") if not any(n != n for n in mine) else next(n for n in mine if n != n)
        mine[number] = min(mine.get(number, (rank, why)), (rank, why), key=lambda each: each[0])

    def ignore_case(self, name: str, why: str) -> None:
        """Strings of an input are normalized: its categories are wanted in capitals too."""
        for place, own in self._found.get(name, {}).items():
            for text in [n for n in own if isinstance(n, str) and n]:
                for other in (text.upper(), text.capitalize()):
                    self.add(name, place, other, 1, why)

    def values(self) -> dict[str, Values]:
        """Of each input, for each of its places."""
        found = {}
        for name, places in self._found.items():
            kept = folded(self._layout, name)
            ordered = [places.get(place, {}) for place in range(int(np.prod(kept)))]
            if name in self._closed:
                ordered = [{n: each for n, each in own.items() if not each[0]} for own in ordered]
            numbers = tuple(tuple(sorted(own, key=lambda n, own=own: own[n][0])) for own in ordered)  # type: ignore[misc]
            why = tuple({n: text for n, (_, text) in own.items()} for own in ordered)
            if len(numbers) == 1 and name not in self._layout.sides.columns:
                found[name] = Values((), numbers[:1], why[:1], name in self._closed)
            else:
                found[name] = Values(kept, numbers, why, name in self._closed)
        return found


def gather(trace: Trace, found: Gathered, reactions: Sequence[Reaction], exact: bool) -> None:
    """Adds what a graph reacts to, turned back into what is fed.

    Args:
        exact: floats are wanted at their thresholds too, where nothing is calculated; else only beside them.
    """
    jobs: list[tuple[str, int, float, bool]] = []
    wanted: list[tuple[str, int, str, np.dtype, str]] = []
    done = found.asked
    dense = _dense(reactions)
    for each in reactions:
        if each.numbers.dtype.kind == "O":
            _texts(trace, found, each)
        curve = trace.curves[each.tensor]
        origin = curve.origin[each.elements]
        for k in np.flatnonzero(origin >= 0):
            element, number = int(each.elements[k]), each.numbers[k]
            source = int(origin[k])
            name, place = trace.owner(source)
            slope, base = float(curve.slope[element]), float(curve.base[element])
            if each.closed:
                found.close(name)
            way = (each.tensor, exact) if np.isnan(slope) else ()
            key = (name, place, each.op, str(number), slope, base, way)
            if key in done:
                continue
            done.add(key)
            dtype = trace.place(source)[0].dtype
            if dtype.kind == "O" or isinstance(number, str):
                if dtype.kind == "O" and isinstance(number, str):
                    found.add(name, place, number, 0, each.node)
                    for unknown in _UNKNOWN:
                        found.add(name, place, unknown, 1, each.node)
                continue
            number = float(number)
            if each.op == ROUNDED:
                at = (number - base) / slope
                if exact and dtype.kind == "f" and all(map(is_short, (number, base, slope, at))):
                    found.add(name, place, at, 1, each.node)
                continue
            if not np.isfinite(number):
                if dtype.kind == "f" and abs(each.op == "Equal"):
                    found.add(name, place, number, 0, each.node)
                continue
            if np.isnan(slope):
                jobs += [(each.tensor, element, number, beyond) for beyond in (False, True)]
                wanted.append((name, place, each.op, dtype, each.node))
                continue
            most = _MOST_BOUND if each.bound else _MOST_FLOAT
            whole, same = bool(curve.whole[element]), bool(curve.same[element]) and exact
            few = len(dense.get((each.tensor, element), ())) <= _MANY
            numbers = _wanted(each.op, (number - base) / slope, slope, dtype, whole, same, most, few)
            for order, at in enumerate(numbers):
                found.add(name, place, at, int(each.op == "Equal" and order > 0), each.node)
    answers = invert(trace, jobs)
    for (name, place, op, dtype, node), reach, pass_ in zip(wanted, answers, answers, strict=True):
        for order, at in enumerate(_around(reach, pass_, dtype)):
            found.add(name, place, at, int(op == "Equal" and order > 0), node)


def _texts(trace: Trace, found: Gathered, each: Reaction) -> None:
    """Adds what has to be fed for strings that are put together from several."""
    pieces, whole = trace.pieces(each.tensor), {int(k) for k in np.flatnonzero(np.isin(trace.kinds, ["i", "u"]))}
    seen: set[tuple[object, ...]] = set()
    for element, text in zip(each.elements.tolist(), each.numbers.tolist(), strict=True):
        mine = pieces[element]
        origins = [p for p in mine if not isinstance(p, str)]
        if not origins or (len(mine) == 1 and origins[0] not in whole) or not isinstance(text, str):
            continue
        key = (text, *(p if isinstance(p, str) else trace.owner(p) for p in mine))
        answer = split(text, mine, whole) if key not in seen else None
        seen.add(key)
        parts = []
        for origin, part in (answer or {}).items():
            value = float(part) if origin in whole else part
            parts.append((*trace.owner(origin), value))
            found.add(*parts[-1], 0, each.node)
            for unknown in _UNKNOWN if isinstance(value, str) else ():
                found.add(*parts[-1][:2], unknown, 1, each.node)
        if len(parts) > 1:
            found.joints[Joint(tuple(parts))] = None


def _dense(reactions: Iterable[Reaction]) -> dict[tuple[str, int], set[float]]:
    """Numbers that one element is compared with by one operator, of elements that many are."""
    found: dict[tuple[str, int], set[float]] = {}
    for each in reactions:
        if each.elements.size > _MANY and each.numbers.dtype.kind != "O":
            for element, number in zip(each.elements.tolist(), each.numbers.tolist(), strict=True):
                if not isinstance(number, str):
                    found.setdefault((each.tensor, element), set()).add(number)
    return found


def _wanted(
    op: str, at: float, slope: float, dtype: np.dtype, whole: bool, same: bool, most: float, few: bool
) -> list[float]:
    """Numbers of an element that a comparison turns at `at`; those first that the graph names."""
    if dtype.kind == "b":
        return []
    if dtype.kind in "iu" or whole:
        return _whole(op, at, slope, dtype)
    if abs(at) > min(most, float(np.finfo(dtype).max) / 4):
        return []
    if not few:
        beside = max(abs(at), 1.0) * (_NEXT if same else _BESIDE / 16)
        return [at, at + beside] if same else [at - beside, at + beside]
    wide, narrow = (max(abs(at), 1.0) * part for part in (_BESIDE, _NEXT))
    if not same:  # so near to it the answer hangs on rounding, and two right models may differ
        return [at - wide, at + wide]
    return [at, *(at + sign * part for part in (wide, narrow) for sign in (1, -1))]


def _whole(op: str, at: float, slope: float, dtype: np.dtype) -> list[float]:
    most = min(_MOST_WHOLE, np.iinfo(dtype).max) if dtype.kind in "iu" else 2.0 ** (np.finfo(dtype).nmant + 1)
    if abs(at) + 1 > most:
        return []
    first, last = int(np.floor(at)), int(np.ceil(at))
    if op == "Equal" and first != last:
        return []  # never equal
    below_it = op != "Equal" and turns_below(op) == (slope > 0)
    # Below 0 only where the comparison turns there: a negative number may be no valid input.
    least = first - (op != "Equal") if at < 0 or (at == 0 and below_it) else 0
    least = max(least, 0) if dtype.kind == "u" else least
    near = dict.fromkeys([first, last, last + 1, first - 1])
    return [float(n) for n in near if n >= least]


def _around(reach: tuple[float, float] | None, beyond: tuple[float, float] | None, dtype: np.dtype) -> Iterator[float]:
    """Numbers on both sides of where an element comes to a number, and of where it goes beyond it."""
    ends = [end for end in (reach, beyond) if end is not None]
    if not ends or dtype.kind == "b":
        return
    if dtype.kind in "iu":
        yield from dict.fromkeys(n for low, high in ends for n in (high, low))
        return
    if len(ends) == 2 and reach is not None and beyond is not None and reach != beyond:
        inner = sorted([*reach, *beyond])[1:3]
        yield sum(inner) / 2  # all from the one to the other is the number
    for low, high in ends:
        beside = max(abs(low), 1.0) * _BESIDE
        yield from (low - beside, high + beside)
