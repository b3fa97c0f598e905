"""Every error has an exit code and a line in docs/errors.md, and no line is stale."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mari_onnx import errors
from mari_onnx.errors import MariError

CATALOGUE = Path(__file__).parents[1] / "docs/errors.md"
ROW = re.compile(r"^\| `(\w+)` \| (\d+) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def all_errors() -> dict[str, type[MariError]]:
    found: dict[str, type[MariError]] = {}
    queue = [MariError]
    while queue:
        each = queue.pop()
        if each.__module__ == errors.__name__:
            found[each.__name__] = each
        queue.extend(each.__subclasses__())
    return found


def test_the_catalogue_lists_every_error_with_its_exit_code():
    listed = {name: int(code) for name, code, *_ in ROW.findall(CATALOGUE.read_text())}
    raised = {name: each.exit_code for name, each in all_errors().items() if name != "MariError"}
    assert listed == raised


@pytest.mark.parametrize("each", all_errors().values())
def test_every_error_is_explained(each):
    assert each.__doc__
    assert each("message", "do this").hint == "do this"


def test_the_hint_is_part_of_the_text():
    assert str(MariError("it broke", "mend it")) == "it broke\n  hint: mend it"
    assert str(MariError("it broke")) == "it broke"


def test_exit_codes_of_the_command_line_are_documented():
    text = (CATALOGUE.parent / "cli.md").read_text()
    for code in sorted({each.exit_code for each in all_errors().values()} | {0, 70, 130}):
        assert re.search(rf"^\| {code} \|", text, re.MULTILINE), code


def raised() -> list[tuple[str, ast.Call]]:
    """Every place in the package that makes one of the errors."""
    found = []
    for path in sorted((CATALOGUE.parents[1] / "mari_onnx").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in all_errors():
                found.append((f"{path.name}:{node.lineno}", node))
    return found


def test_every_error_of_the_catalogue_is_raised_somewhere():
    made = {node.func.id for _, node in raised()}
    bases = {"MariError"}
    assert made >= set(all_errors()) - bases, "listed, but nothing raises it"


def test_every_refusal_says_where_or_what_to_do():
    """A message that is one fixed sentence names no file, input, node or tensor: then a hint has to follow."""
    fixed = [
        (where, node.args[0].value)
        for where, node in raised()
        if node.func.id != "MariError" and isinstance(node.args[0], ast.Constant) and len(node.args) < 2
    ]
    assert fixed == []
