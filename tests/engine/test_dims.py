"""Symbolic dimensions: every operation agrees with the integers that they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.model.dims import Dim, Size, divide, evaluate, product, symbols

NAMES = ("N", "T", "R")
VALUES = st.fixed_dictionaries({name: st.integers(1, 50) for name in NAMES})
MONOMIALS = st.lists(st.sampled_from(NAMES), max_size=3).map(lambda names: tuple(sorted(names)))


@st.composite
def sizes(draw: st.DrawFn) -> Size:
    """A sum of a few monomials; plain integers among them."""
    total: Size = draw(st.integers(-5, 5))
    for monomial in draw(st.lists(MONOMIALS, max_size=3)):
        total = total + product(Dim.symbol(name) for name in monomial) * draw(st.integers(-4, 4))
    return total


@given(sizes(), sizes(), VALUES)
def test_arithmetic_is_that_of_integers(a: Size, b: Size, values: dict[str, int]) -> None:
    x, y = evaluate(a, values), evaluate(b, values)
    assert evaluate(a + b, values) == x + y
    assert evaluate(a - b, values) == x - y
    assert evaluate(a * b, values) == x * y
    assert evaluate(-a, values) == -x
    assert evaluate(3 - a, values) == 3 - x
    assert evaluate(product([a, b, 2]), values) == 2 * x * y


@given(sizes(), sizes())
def test_equal_polynomials_are_equal_and_hash_alike(a: Size, b: Size) -> None:
    assert (a + b) - b == a
    assert hash((a + b) - b) == hash(a)
    assert a * b == b * a
    assert a - a == 0
    assert isinstance(a - a, int)


@given(sizes(), sizes(), VALUES)
def test_an_exact_quotient_is_found_and_is_exact(a: Size, b: Size, values: dict[str, int]) -> None:
    quotient = divide(a, b)
    if quotient is not None:
        assert quotient * b == a
    if b != 0:
        again = divide(a * b, b)
        assert again == a
        assert evaluate(again, values) == evaluate(a, values)  # type: ignore[arg-type]


@given(sizes(), VALUES, st.sets(st.sampled_from(NAMES)))
def test_substituting_then_evaluating_is_evaluating(
    a: Size, values: dict[str, int], some: set[str]
) -> None:
    if not isinstance(a, Dim):
        return
    partly = a.substitute({name: values[name] for name in some})
    assert evaluate(partly, values) == a.evaluate(values)
    assert not symbols(partly) & some


@given(sizes())
def test_the_text_reads_back(a: Size) -> None:
    values = {"N": 7, "T": 5, "R": 3}
    assert eval(str(a), {}, values) == evaluate(a, values)


def test_a_constant_polynomial_is_a_plain_integer() -> None:
    n = Dim.symbol("N")
    assert n - n + 4 == 4
    assert isinstance(n - n + 4, int)
    assert symbols(4) == frozenset()
    assert symbols(n * n + Dim.symbol("T")) == {"N", "T"}


def test_a_dimension_that_does_not_divide() -> None:
    n, t = Dim.symbol("N"), Dim.symbol("T")
    assert divide(n + 1, n) is None
    assert divide(n * t, t * 2) is None
    assert divide(n, 0) is None
    assert divide(7, n) is None
    assert divide(0, n) == 0
    assert divide(n * t + t, n + 1) == t


def test_a_symbol_without_a_value() -> None:
    with pytest.raises(KeyError, match="T"):
        (Dim.symbol("N") * Dim.symbol("T")).evaluate({"N": 3})
