"""Every error has an exit code and a line in docs/errors.md, and no line is stale."""

from __future__ import annotations

import ast
import re
import signal
from pathlib import Path

import pytest

from mari_onnx import errors
from mari_onnx.cli.main import EXIT_CODES, INTERNAL, INTERRUPTED, run
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


def test_there_is_one_table_of_exit_codes_and_it_is_that_of_the_code():
    own = {INTERNAL, INTERRUPTED, 128 + signal.SIGTERM, 0}
    assert set(EXIT_CODES) == {each.exit_code for each in all_errors().values()} | own
    tables = []
    for page in [*CATALOGUE.parent.glob("*.md"), CATALOGUE.parents[1] / "README.md"]:
        rows = re.findall(r"^\| (\d+) \| (.+?) \|$", page.read_text(), re.MULTILINE)
        if {int(code) for code, _ in rows} >= {0, 1, 2, 3}:
            tables.append((page.name, {int(code): what.replace("`", "") for code, what in rows}))
    assert tables == [("cli.md", EXIT_CODES)]


def test_help_lists_the_exit_codes(capsys: pytest.CaptureFixture[str]):
    run(["--help"])
    said = capsys.readouterr().out
    for code, what in EXIT_CODES.items():
        assert f"{code}  {what}" in said


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
