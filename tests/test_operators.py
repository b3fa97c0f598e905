"""Operators of the standard between user and item tensors; `python -m tests.operators` runs all of them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import onnx
import pytest

from tests.fuzz.oracle import Fault
from tests.operators import Met, Sample, samples, sweep

EACH = 2
"""Node tests of an operator that run here."""
GROUPS = 4
WRITTEN_FOR = 28
"""The newest opset that docs/operators.md speaks of."""


@pytest.fixture(scope="module")
def some() -> list[Sample]:
    """The simplest node tests of each operator."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples():
        found[f"{sample.node.domain}.{sample.node.op_type}"].append(sample)
    return [s for _, given in sorted(found.items()) for s in given[:EACH]]


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_every_operator_is_right_or_refused(some: list[Sample], group: int) -> None:
    seen: dict[str, Met] = defaultdict(Met)
    faults: list[str] = []

    def report(where: str, fault: Fault) -> None:
        faults.append(f"{where}: {fault}")

    sweep(some[group::GROUPS], seen, report)
    assert not faults, "\n".join(faults)
    assert sum(met.runs for met in seen.values()) > 100


def test_the_page_names_every_operator() -> None:
    page = (Path(__file__).parents[1] / "docs" / "operators.md").read_text()
    schemas = onnx.defs.get_all_schemas_with_history()
    wanted = {s.name for s in schemas if s.domain == "" and s.since_version <= WRITTEN_FOR and not s.deprecated} - {
        "Optional"
    }
    assert [op for op in sorted(wanted) if f"| {op} |" not in page] == []
