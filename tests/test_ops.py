"""The table of operators: complete, right, and the one place where operators are listed."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx.defs
import pytest

import mari_onnx
from mari_onnx.engine.batching import MAPPED
from mari_onnx.engine.cost import flops
from mari_onnx.engine.ir.infer import OTHERS
from mari_onnx.engine.rule import RULES
from mari_onnx.model import ops
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


# ---- no other module lists operators --------------------------------------------------------------------------------

REGISTERING = {"rule", "mapped", "shape_of", "flops_of", "bounds_of", "kernel_of"}
"""Functions whose arguments say which operators the function that follows is for."""
NAMES = {name for _, name in STANDARD_NAMES | ROWS | REST}
PACKAGE = Path(mari_onnx.__file__).parent


def listed(tree: ast.AST) -> Iterator[tuple[int, set[str]]]:
    """Line and names of every literal that names two or more operators.

    A literal is a tuple, a list, a set, the keys of a dictionary, the alternatives of a pattern (``case "A" | "B"``) or
    of a condition (``op == "A" or op == "B"``), or a string of nothing but names with blanks between them. Upper and
    lower case matter, so that plain words are few; one word that is also an operator ("Max", "If", "Sum") is no list.
    Arguments of `REGISTERING` are left out.
    """
    told = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in REGISTERING
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        found: Sequence[ast.AST | None] = ()
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            found = node.elts
        elif isinstance(node, ast.Dict):
            found = node.keys
        elif isinstance(node, ast.MatchOr):
            found = [p.value for p in node.patterns if isinstance(p, ast.MatchValue)]
        elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            found = [c for v in node.values if isinstance(v, ast.Compare) and isinstance(v.ops[0], ast.Eq)
                     for c in (v.left, *v.comparators)]  # fmt: skip
        names = {x.value for x in found if isinstance(x, ast.Constant) and isinstance(x.value, str)} & NAMES
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and set(node.value.split()) <= NAMES:
            names = set(node.value.split())
        if len(names) > 1 and id(node) not in told:
            yield node.lineno, names  # type: ignore[attr-defined]


def own(module: str) -> set[str]:
    """The operators that a module answers: of its rules, its mapped axes, its shapes and its formulas."""
    tables: list[Mapping[Any, Any]] = [RULES, MAPPED, OTHERS, flops.FORMULAS]
    pairs = [(key if isinstance(key, str) else key[1], f) for table in tables for key, f in table.items()]
    return {name for name, function in pairs if getattr(function, "answer", function).__module__ == module}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_operators_are_listed_in_the_table_alone(path: Path) -> None:
    """But for the operators that the module itself answers: its code may tell those apart."""
    if path == Path(ops.__file__):
        return
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    found = [(line, names) for line, names in listed(ast.parse(path.read_text())) if not names <= own(module)]
    assert not found, f"ask mari_onnx.model.ops for the fact instead: {found}"


@pytest.mark.parametrize(
    "code",
    [
        'op in ("Add", "Sub")', '{"Add": 1, "Sub": 2}', 'frozenset({*X, "Add", "Sub"})', '["x", "Add", "Sub"]',
        '"Add Sub"', 'op == "Add" or op == "Sub"', 'match op:\n    case "Add" | "Sub":\n        pass',
    ],
)  # fmt: skip
def test_a_list_of_operators_is_found(code: str) -> None:
    assert [names for _, names in listed(ast.parse(code))] == [{"Add", "Sub"}]


@pytest.mark.parametrize("code", ['@rule("Add", "Sub")\ndef f(): ...', '("max", "sum")', '("Max", "x")', '"Add"'])
def test_what_is_no_list_of_operators_is_not_found(code: str) -> None:
    assert not list(listed(ast.parse(code)))
