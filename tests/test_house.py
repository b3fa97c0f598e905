"""The package is built as docs/design.md draws it, and what the docs name exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from click import Command, Context, Group

import mari_onnx
from mari_onnx.cli.main import cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mari_onnx"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "models/README.md"])
DESIGN = ROOT / "docs/design.md"


@cache
def modules() -> dict[str, Path]:
    """Module name -> file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> dict[str, list[str]]:
    """Module -> modules of the package that it imports: at once, within a function, or for types alone."""
    found: dict[str, list[str]] = {}
    for name, path in modules().items():
        read = found.setdefault(name, [])
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                read += [a.name for a in node.names if a.name in modules()]
            elif isinstance(node, ast.ImportFrom) and node.module in modules():
                inside = [f"{node.module}.{a.name}" for a in node.names]
                read += [each if each in modules() else node.module for each in inside]
    return found


@cache
def layers() -> list[str]:
    """The layers of docs/design.md from the top one down, as module names: the first column of its table."""
    text = DESIGN.read_text().split("## The house", 1)[1]
    rows = re.findall(r"^\| `([\w./]+)` \|", text, re.MULTILINE)
    return [f"mari_onnx.{row.strip('/').removesuffix('.py').replace('/', '.')}" for row in rows]


def layer(module: str) -> int | None:
    """The index of the narrowest layer that a module is in; None for the front door, `mari_onnx` itself."""
    inside = [each for each in layers() if module == each or module.startswith(each + ".")]
    return layers().index(max(inside, key=len)) if inside else None


def test_the_design_has_a_layer_for_every_module() -> None:
    assert len(layers()) > 20
    assert [each for each in layers() if each not in modules()] == []
    doors = ("mari_onnx", "mari_onnx.__main__")
    assert [m for m in modules() if layer(m) is None and m not in doors] == []


def test_imports_run_downwards() -> None:
    wrong = []
    for name, read in imports().items():
        for other in read:
            mine, its = layer(name), layer(other)
            if mine is not None and its is not None and its < mine:
                wrong.append(f"{name} is below {other} in docs/design.md, and imports it")
    assert wrong == []


def test_no_module_imports_itself_through_others() -> None:
    state: dict[str, int] = {}

    def cycle(name: str, path: list[str]) -> list[str]:
        if state.get(name) == 2:
            return []
        if state.get(name) == 1:
            return [*path[path.index(name) :], name]
        state[name] = 1
        for other in imports()[name]:
            if other != name and (found := cycle(other, [*path, name])):
                return found
        state[name] = 2
        return []

    for name in modules():
        if name != "mari_onnx":  # its public names are looked up when they are asked for
            assert cycle(name, []) == []


def test_no_public_function_has_the_name_of_a_package() -> None:
    packages = {p.parent.name for p in modules().values() if p.name == "__init__.py"}
    assert sorted({name for name in mari_onnx.__all__ if name in packages}) == []
    submodules = {m.split(".")[1] for m in modules() if m.count(".") == 1}
    assert sorted(set(mari_onnx.__all__) & submodules) == []


def test_every_package_says_what_comes_in_and_what_goes_out() -> None:
    silent = []
    for name, path in modules().items():
        told = ast.get_docstring(ast.parse(path.read_text())) or ""
        if path.name == "__init__.py" and len(told) < 40:
            silent.append(name)
    assert silent == []


def _public(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Public classes and functions of a module, and the methods of these classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner


def _engine() -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    for name, path in modules().items():
        if name.startswith("mari_onnx.engine"):
            yield from ((f"{name}.{inner}", node) for inner, node in _public(ast.parse(path.read_text())))


def test_every_public_function_of_the_engine_has_a_docstring() -> None:
    found = list(_engine())
    assert len(found) > 300
    assert [name for name, node in found if not ast.get_docstring(node)] == []


def test_a_function_of_the_engine_that_declines_says_what_it_refuses() -> None:
    silent = []
    for name, node in _engine():
        raised = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and isinstance(node, ast.FunctionDef)]
        declines = any(isinstance(e, ast.Call) and getattr(e.func, "id", "") == "Decline" for e in raised)
        if declines and not re.search("refuse|decline", ast.get_docstring(node) or "", re.IGNORECASE):
            silent.append(name)
    assert silent == []


# ---- what the docs name -----------------------------------------------------------------------------------------
def _code(text: str) -> Iterator[str]:
    """What stands between backticks, blocks of code left out."""
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def _file(name: str) -> Path | None:
    inside = [PACKAGE / each for each in ("engine", "parity", "model")]
    for base in (ROOT, PACKAGE, *inside, ROOT / "docs", ROOT / "models"):
        if (base / name).is_file():
            return base / name
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = {token for token in _code(page.read_text()) if re.fullmatch(r"[\w/]+\.(py|md|toml)", token)}
    mine = {token for token in named if not token.startswith("ranker.")}
    assert sorted(token for token in mine if _file(token) is None) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", re.sub(r"`[^`]*`", "", page.read_text()))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_functions_named_behind_a_file_are_in_it(page: Path) -> None:
    """In "`rules/slices.py` `slice_`, `positions`" each name up to the next file is defined in the file."""
    missing = []
    for path, names in re.findall(r"`([\w/]+\.py)`((?: ?,? ?(?:and )?`[A-Za-z_]\w*`)+)", page.read_text()):
        file = _file(path)
        defined = set(re.findall(r"\b\w+\b", file.read_text())) if file else set()
        missing += [f"{path} {name}" for name in re.findall(r"`(\w+)`", names) if name not in defined]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_modules_and_attributes_that_a_page_names_exist(page: Path) -> None:
    import importlib

    # of a model's metadata
    keys = {"mari_onnx.sides", "mari_onnx.version", "mari_onnx.source_sha256", "mari_onnx.report"}
    missing = []
    for token in _code(page.read_text()):
        if (match := re.match(r"(mari_onnx(?:\.\w+)+)", token)) is None or match[1] in keys:
            continue
        name, rest = match[1], []
        while name not in modules() and "." in name:
            name, _, last = name.rpartition(".")
            rest.insert(0, last)
        thing: object = importlib.import_module(name)
        for each in rest:
            thing = getattr(thing, each, None)
        if thing is None:
            missing.append(match[1])
    assert missing == []


def _options(command: Command, context: Context) -> Iterator[str]:
    for parameter in command.params:
        yield from [*parameter.opts, *parameter.secondary_opts]
    if isinstance(command, Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _options(inner, Context(inner, parent=context))


@cache
def options() -> set[str]:
    """Options of the command line, and of the modules that `make` runs."""
    found = set(_options(cli, Context(cli))) | {"--help"}
    for folder in ("benchmarks", "tests", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            found.update(re.findall(r"add_argument\(\s*\"(--[\w-]+)\"", path.read_text()))
    return found


def test_every_option_is_explained_somewhere() -> None:
    told = {flag for page in PAGES for flag in re.findall(r"(?<![\w-])(--[a-z][\w-]*)", page.read_text())}
    context, silent = Context(cli), []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            words = {word for word in [*parameter.opts, *parameter.secondary_opts] if word.startswith("--")}
            if words and not words & told:
                silent.append(f"{name} {', '.join(sorted(words))}")
    assert silent == []


OTHERS = {"--hypothesis-profile", "--no-deps", "--strict", "--model-repository", "--cache-config", "--opset"}
"""Options of pytest, pip, mypy, Triton and tf2onnx."""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_options_that_a_page_names_exist(page: Path) -> None:
    named = {flag for token in _code(page.read_text()) for flag in re.findall(r"(?<![\w-])(--[a-z][\w-]*)", token)}
    assert sorted(named - options() - OTHERS) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_make_targets_that_a_page_names_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {m for token in _code(page.read_text()) for m in re.findall(r"^make (?:-s )?([a-z-]+)", token)}
    assert sorted(named - targets) == []




def test_no_merge_was_left_half_done() -> None:
    texts = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "Makefile", ROOT / "setup.cfg", *PACKAGE.rglob("*.py")]
    marks = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)
    assert [str(path) for path in texts if marks.search(path.read_text())] == []
