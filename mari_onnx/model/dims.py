"""Symbolic dimensions: integer polynomials over named symbols.

A dimension of a ranking graph is an integer times symbols (``N`` candidates, a history of ``T``), or a sum of such
(``T + 1`` where the target is appended to the history). A constant polynomial is a plain ``int``, so `Size` is what
the engine carries everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias, Union

Monomial: TypeAlias = tuple[str, ...]
Size: TypeAlias = Union[int, "Dim"]


class Dim:
    """A polynomial with integer coefficients that is not a constant. Immutable and hashable."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[Monomial, int]):
        self.terms = dict(sorted(terms.items(), key=lambda item: (-len(item[0]), item[0])))
        self._hash = hash(frozenset(self.terms.items()))

    @staticmethod
    def symbol(name: str) -> Dim:
        return Dim({(name,): 1})

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset(s for monomial in self.terms for s in monomial)

    def evaluate(self, values: Mapping[str, int]) -> int:
        """The dimension for given symbol values. Raises `KeyError` for a symbol without one."""
        total = 0
        for monomial, factor in self.terms.items():
            for name in monomial:
                factor *= values[name]
            total += factor
        return total

    def substitute(self, values: Mapping[str, int]) -> Size:
        """The dimension with some symbols replaced by integers."""
        terms: dict[Monomial, int] = {}
        for monomial, factor in self.terms.items():
            left = []
            for name in monomial:
                if name in values:
                    factor *= values[name]
                else:
                    left.append(name)
            terms[tuple(left)] = terms.get(tuple(left), 0) + factor
        return _size(terms)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Size) -> Size:
        terms = dict(self.terms)
        for monomial, factor in _terms(other).items():
            terms[monomial] = terms.get(monomial, 0) + factor
        return _size(terms)

    def __mul__(self, other: Size) -> Size:
        terms: dict[Monomial, int] = {}
        for m1, f1 in self.terms.items():
            for m2, f2 in _terms(other).items():
                monomial = tuple(sorted(m1 + m2))
                terms[monomial] = terms.get(monomial, 0) + f1 * f2
        return _size(terms)

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: Size) -> Size:
        return self + other * -1

    def __rsub__(self, other: Size) -> Size:
        return self * -1 + other

    __radd__ = __add__
    __rmul__ = __mul__

    def __repr__(self) -> str:
        parts = []
        for monomial, factor in self.terms.items():
            names = "*".join(monomial)
            parts.append(names if factor == 1 and names else f"{factor}*{names}" if names else str(factor))
        return " + ".join(parts)


def _terms(size: Size) -> Mapping[Monomial, int]:
    if isinstance(size, Dim):
        return size.terms
    return {(): int(size)}


def _size(terms: Mapping[Monomial, int]) -> Size:
    kept = {m: f for m, f in terms.items() if f}
    if not kept:
        return 0
    if len(kept) == 1 and () in kept:
        return kept[()]
    return Dim(kept)


def product(sizes: Iterable[Size]) -> Size:
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def divide(a: Size, b: Size) -> Size | None:
    """``a / b`` where the division is exact for every value of the symbols, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if a == b:
        return 1
    if b == 0 or a == 0:
        return 0 if b != 0 else None
    rest, divisor = dict(_terms(a)), _terms(b)
    lead = max(divisor, key=_order)
    quotient: dict[Monomial, int] = {}
    while rest:
        top = max(rest, key=_order)
        monomial = _without(top, lead)
        if monomial is None or rest[top] % divisor[lead]:
            return None
        factor = rest[top] // divisor[lead]
        quotient[monomial] = factor
        for m, f in divisor.items():
            key = tuple(sorted(m + monomial))
            value = rest.get(key, 0) - f * factor
            if value:
                rest[key] = value
            else:
                rest.pop(key, None)
        if len(quotient) > 32:
            return None
    return _size(quotient)


def _order(monomial: Monomial) -> tuple[int, Monomial]:
    return len(monomial), monomial


def _without(monomial: Monomial, divisor: Monomial) -> Monomial | None:
    left = list(monomial)
    for name in divisor:
        if name not in left:
            return None
        left.remove(name)
    return tuple(left)


def static(size: Size) -> int:
    """A size that is known not to depend on a symbol."""
    assert not isinstance(size, Dim)
    return int(size)


def evaluate(size: Size, values: Mapping[str, int]) -> int:
    return size.evaluate(values) if isinstance(size, Dim) else int(size)


def symbols(size: Size) -> frozenset[str]:
    return size.symbols if isinstance(size, Dim) else frozenset()
