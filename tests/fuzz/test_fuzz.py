"""Random graphs, thin and the same each time; `make fuzz` searches for hours. And every case that once failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from onnx import numpy_helper

from mari_onnx.engine import Rewrite, rewrite
from tests.fuzz import oracle
from tests.fuzz.case import CASES, Case, cases, load
from tests.fuzz.oracle import Fault, judge
from tests.fuzz.sequence import SequenceCase, judge_sequence, sequence_cases

SHARDS = 10
"""The 500 examples in as many tests, so that they run side by side."""


@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_graphs(shard: int) -> None:
    @seed(shard)
    @settings(max_examples=500 // SHARDS, suppress_health_check=list(HealthCheck))
    @given(cases())
    def right(case: Case) -> None:
        judge(case)

    right()


@seed(0)
@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(sequence_cases())
def test_random_sequences(case: SequenceCase) -> None:
    judge_sequence(case)


@pytest.mark.parametrize("path", sorted(CASES.glob("*.json")), ids=lambda path: path.stem)
def test_cases_that_failed_once(path: Path) -> None:
    judge(load(path))


def test_a_wrong_weight_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    case = load(CASES / "softmax-of-nested-parts.json")

    def spoilt(*args: Any) -> Rewrite:
        result = rewrite(*args)
        for tensor in result.model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float64:
                tensor.CopyFrom(numpy_helper.from_array(array * (1 + 1e-6), tensor.name))
        return result

    monkeypatch.setattr(oracle, "rewrite", spoilt)
    with pytest.raises(Fault, match="other values") as caught:
        judge(case)
    assert caught.value.kind == "wrong"


def test_what_a_rule_raises_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Rewrite:
        raise KeyError("k")

    monkeypatch.setattr(oracle, "rewrite", broken)
    with pytest.raises(Fault, match="KeyError"):
        judge(load(CASES / "softmax-of-nested-parts.json"))
