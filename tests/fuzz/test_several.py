"""Random graphs with several requests in one run: as separate runs of the source, or refused."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, seed, settings

from mari_onnx.sides.resolve import BATCHED
from tests.fuzz.case import Case, cases
from tests.fuzz.several import judge_several


@pytest.mark.parametrize("form", BATCHED)
@pytest.mark.parametrize("shard", range(3))
def test_random_graphs_for_several_requests(shard: int, form: str) -> None:
    @seed(shard)
    @settings(max_examples=50, suppress_health_check=list(HealthCheck))
    @given(cases())
    def right(case: Case) -> None:
        judge_several(case, form)

    right()
