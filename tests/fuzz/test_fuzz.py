"""Random graphs, thin and the same each time; `make fuzz` searches for hours. And every case that once failed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings

from tests.fuzz.case import CASES, Case, cases, load
from tests.fuzz.oracle import judge

SHARDS = 4
"""The 500 examples in as many tests, so that they run side by side."""


@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_graphs(shard: int) -> None:
    @seed(shard)
    @settings(max_examples=500 // SHARDS, suppress_health_check=list(HealthCheck))
    @given(cases())
    def right(case: Case) -> None:
        judge(case)

    right()


@pytest.mark.parametrize("path", sorted(CASES.glob("*.json")), ids=lambda path: path.stem)
def test_cases_that_failed_once(path: Path) -> None:
    judge(load(path))
