"""Deals the numbers that a graph tells apart to the elements of requests, and keeps which of them were met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mari_onnx.model.signature import Input
    from mari_onnx.parity.domains.domains import Domain
    from mari_onnx.parity.layout import Layout

# Larger numbers than this are left to requests that are there for them: where a model calculates with one, it hides
# what is wrong with the small scores beside it.
_ORDINARY = 10_000
# Of a longer history so many lengths are met, spread evenly, with both ends.
_LENGTHS = 64

_Key = tuple[str, int]


class Meeting:
    """What is left to meet, for each place of each input that has `Domain.values`, or is a length of known size.

    Args:
        ordinary: small whole numbers are dealt to all requests, not only to those that are there for them.
    """

    def __init__(self, layout: Layout, domains: Mapping[str, Domain], ordinary: bool = True):
        self._layout, self._domains, self._ordinary = layout, domains, ordinary
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._numbers: dict[_Key, list[Any]] = {}
        for each in layout.signature.inputs:
            domain = domains[each.name]
            if layout.is_count(each.name):
                continue
            if domain.role == "length" and domain.size is not None:
                self._shapes[each.name] = ()
                self._numbers[each.name, 0] = _lengths(domain.low, domain.size)
            elif domain.values is not None:
                self._shapes[each.name] = domain.values.shape
                for place, given in enumerate(domain.values.numbers):
                    kept = _typed(given, each.dtype, positive=domain.role == "positive")
                    if kept:
                        self._numbers[each.name, place] = list(dict.fromkeys(kept))
        self._places: dict[str, list[int]] = {}
        for name, place in self._numbers:
            self._places.setdefault(name, []).append(place)
        self._left = {key: dict.fromkeys(numbers) for key, numbers in self._numbers.items()}
        kinds = {each.name: each.dtype.kind for each in layout.signature.inputs}
        # Whole numbers of ordinary size, and NaN, which equals nothing but is kept once.
        self._small = {
            key: dict.fromkeys(n for n in numbers if abs(n) <= _ORDINARY) if kinds[key[0]] in "iu" else {}
            for key, numbers in self._numbers.items()
        }
        self._nan = {key: n for key, numbers in self._numbers.items() for n in numbers if n != n}

    def deal(
        self, each: Input, value: np.ndarray, columns: Sequence[int] | None, rng: np.random.Generator, meet: bool
    ) -> None:
        """Overwrites elements of an input that are neither ids nor lengths.

        Args:
            columns: those of a packed input that may be changed.
            meet: as many as are left, floats and large numbers too; else small whole numbers in half of the elements.
        """
        places = [p for p in self._places.get(each.name, ()) if not _rows(self._domains[each.name], p)]
        if not (meet or self._ordinary):
            return
        for place, elements in self._elements(each.name, places, value.shape, columns):
            if not meet and each.dtype.kind == "O":
                continue  # categories are drawn from them anyhow
            left, small = self._left[each.name, place], self._small[each.name, place]
            room = elements.size if meet else int(elements.size / 2 + rng.random())
            dealt: list[Any] = list(islice(left if meet else (n for n in left if n in small), room))
            if small and not meet:
                dealt += rng.choice(list(small), room - len(dealt)).tolist()
            value.reshape(-1)[rng.permutation(elements)[: len(dealt)]] = dealt

    def mix(self, each: Input, value: np.ndarray, rng: np.random.Generator) -> None:
        """Overwrites some elements, of any place, by numbers that the graph tells apart there."""
        for place, elements in self._elements(each.name, self._places.get(each.name, ()), value.shape, None):
            some = elements[rng.random(elements.size) < rng.random()]
            value.reshape(-1)[some] = rng.choice(self._numbers[each.name, place], some.size)

    def seen(self, each: Input, value: np.ndarray, columns: Sequence[int] | None) -> None:
        """An input's elements are part of a request."""
        places = [p for p in self._places.get(each.name, ()) if self._left[each.name, p]]
        for place, elements in self._elements(each.name, places, value.shape, columns):
            left = self._left[each.name, place]
            for number in set(value.reshape(-1)[elements].tolist()):
                left.pop(number if number == number else self._nan.get((each.name, place), number), None)

    def missing(self, user: bool) -> int:
        """How many numbers are left to meet on one side, lengths aside."""
        return sum(
            len(left)
            for (name, place), left in self._left.items()
            if self._domains[name].role != "length" and user == self._layout.is_user_at(name, place)
        )

    def lengths(self, user: bool) -> list[int]:
        """Lengths of histories that are left to meet on one side."""
        mine = (
            left
            for (name, _), left in self._left.items()
            if self._domains[name].role == "length" and user == self._layout.of_user(name)
        )
        return sorted({int(number) for left in mine for number in left})

    def report(self) -> dict[str, tuple[int, int]]:
        """Input -> (numbers met, numbers in all), over its columns."""
        found: dict[str, tuple[int, int]] = {}
        for key, numbers in self._numbers.items():
            met, of = found.get(key[0], (0, 0))
            found[key[0]] = (met + len(numbers) - len(self._left[key]), of + len(numbers))
        return found

    def _elements(
        self, name: str, places: Sequence[int], shape: tuple[int, ...], columns: Sequence[int] | None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Of some places of an input, those in the columns, and their elements' indices in C order."""
        if not places:
            return
        every = np.arange(int(np.prod(shape))).reshape(shape)
        kept = self._shapes[name]
        for place in places:
            if not kept:
                yield place, (every if columns is None else every[:, list(columns)]).reshape(-1)
            elif columns is None or place in columns:
                at = np.unravel_index(place, kept)
                where = tuple(slice(None) if size == 1 else int(i) for i, size in zip(at, kept, strict=True))
                yield place, np.asarray(every[where]).reshape(-1)


def _rows(domain: Domain, place: int) -> int:
    """How many ids a place has; 0 where it has none."""
    if domain.rows is None:
        return 0
    return int(domain.rows.flat[place if domain.rows.size > 1 else 0])


def _typed(numbers: Sequence[Any], dtype: np.dtype, positive: bool) -> list[Any]:
    """Numbers as an input holds them, NaN once; strings as they are."""
    if dtype.kind == "O":
        return list(numbers)
    kept = [float(n) for n in np.asarray(numbers, np.float64).astype(dtype)]
    return [n for n in kept if not n <= 0 or not positive or dtype.kind != "f"]


def _lengths(low: int, longest: int) -> list[float]:
    if longest - low < _LENGTHS:
        return [float(n) for n in range(low, longest + 1)]
    return [float(n) for n in np.unique(np.linspace(low, longest, _LENGTHS).round())]
