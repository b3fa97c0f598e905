"""The check fails every wrong model and passes every right one."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from mari_onnx.parity import check
from tests.parity import mutants, pairs
from tests.parity.calculated import CALCULATED, CALCULATED_MUTANTS
from tests.parity.decided import DECIDED, DECIDED_MUTANTS
from tests.parity.hidden import HIDDEN, HIDDEN_MUTANTS
from tests.parity.mutants import mutate
from tests.parity.pairs import Pair
from tests.parity.reach import REACH_MUTANTS, REACH_PAIRS
from tests.parity.reacting import REACTING
from tests.parity.reacting_mutants import REACTING_MUTANTS
from tests.parity.typed import TYPED_MUTANTS, TYPED_PAIRS

PAIRS = {**pairs.PAIRS, **REACTING, **TYPED_PAIRS, **REACH_PAIRS, **HIDDEN, **CALCULATED, **DECIDED}
SEVERAL = (
    mutants.MUTANTS, REACTING_MUTANTS, TYPED_MUTANTS, REACH_MUTANTS, HIDDEN_MUTANTS, CALCULATED_MUTANTS, DECIDED_MUTANTS
)  # fmt: skip
MUTANTS = {name: each for some in SEVERAL for name, each in some.items()}
DOCS = Path(__file__).parents[2] / "docs" / "parity-mutants.md"


@functools.cache
def pair(name: str) -> Pair:
    return PAIRS[name]()


def _tries(name: str) -> int:
    """Fewer requests than by default where they do: most faults show at once."""
    return 1000 if name in REACH_PAIRS else 300


@pytest.mark.parametrize("name", PAIRS)
def test_right_models_pass(name: str) -> None:
    right = pair(name)
    result = check(right.source, right.optimized, right.sides, coverage=_tries(name))
    assert result.ok, result.reasons
    assert result.reference.startswith("float64")


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_fail(name: str) -> None:
    base, fault = MUTANTS[name]
    right = pair(base)
    result = check(right.source, mutate(right.optimized, fault), right.sides, coverage=_tries(base))
    assert not result.ok
    assert result.reasons


def test_there_are_enough_mutants_and_the_table_names_them() -> None:
    assert len(MUTANTS) >= 150
    assert len(MUTANTS) == sum(map(len, SEVERAL))
    text = DOCS.read_text(encoding="utf-8")
    listed = re.findall(r"^\| ([^|]+) \| `(\w+)` \|", text, re.MULTILINE)
    assert {(name, base) for name, (base, _) in MUTANTS.items()} == {(a, b) for a, b in listed}
