"""The table of operators is complete."""

from __future__ import annotations

import onnx.defs

from mari_onnx.engine.cost import flops
from mari_onnx.engine.ir.infer import OTHERS
from mari_onnx.engine.rule import RULES
from mari_onnx.model.ops import ML, STANDARD, TABLE, WITHOUT

STANDARD_NAMES = {(s.domain, s.name) for s in onnx.defs.get_all_schemas() if s.domain in (STANDARD, ML)}
ROWS = {(domain, op.name) for op in TABLE.values() for domain in op.domains}
REST = {(domain, name) for domain, names in WITHOUT.items() for name in names.split()}


def test_every_operator_of_the_standards_has_a_row_or_is_listed_as_without() -> None:
    assert not STANDARD_NAMES - ROWS - REST


def test_every_operator_with_a_rule_or_a_shape_has_a_row_or_is_listed_as_without() -> None:
    assert not {*RULES, *OTHERS} - ROWS - REST


def test_every_operator_with_a_formula_has_a_row_or_is_listed_as_without() -> None:
    assert not set(flops.FORMULAS) - {name for _, name in ROWS | REST}


def test_no_operator_has_a_row_and_is_listed_as_without() -> None:
    assert not ROWS & REST
