"""What the site has beyond the files of docs/: pages made from the package itself, and links into the repository.

Pages (mkdocs reads them as if they lay in docs/):
    reference-commands.md   every command and option, from click
    reference-python.md     what mkdocstrings is to show of the Python API
    sample-models.md        models/README.md
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, get_type_hints

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import mari_onnx
from mari_onnx.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]

PYTHON = """# Python: every argument
From the docstrings. [Python](python.md) is the overview.

{}
"""
MORE = ["mari_onnx.torch.export", "mari_onnx.ir_pass.OncePerRequest", "mari_onnx.report.Report"]
"""What is public beside the names of `mari_onnx`."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    made = {
        "reference-commands.md": commands(),
        "reference-python.md": PYTHON.format("\n\n".join(f"::: {name}" for name in public())),
        "sample-models.md": _moved((ROOT / "models/README.md").read_text(encoding="utf-8")),
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page as the site needs it where the repository's own view needs it otherwise.

    Links to models/README.md lead to its page, and a `|` in code within a table needs no backslash.
    """
    markdown = markdown.replace("](../models/README.md", "](sample-models.md")
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("\\|", "|"), markdown)


def commands() -> str:
    """Every command with its help and its options."""
    told = "What `mari-onnx COMMAND --help` prints. Files and exit codes: [cli.md](cli.md)."
    parts = ["# Commands and options", told]
    context = click.Context(cli, info_name="mari-onnx")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        inner = click.Context(command, parent=context, info_name=name)
        usage = " ".join(command.collect_usage_pieces(inner))
        parts += [f"## mari-onnx {name} {{ #{name} }}", f"```text\nmari-onnx {name} {usage}\n```"]
        records = [each.get_help_record(inner) for each in command.params if isinstance(each, click.Option)]
        rows = [f"| <code>{_cell(left)}</code> | {_cell(_text(right))} |" for left, right in filter(None, records)]
        parts += [re.sub(r"\n[ \t]*(?=\S)", "\n", command.help or ""), "\n".join(["| option | |\n|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def public() -> list[str]:
    """What the page of the Python API shows, by the modules in which it is defined."""
    names = sorted(mari_onnx.__all__, key=lambda name: (name[0].isupper(), name != "optimize"))
    named = [getattr(mari_onnx, name) for name in names if name != "__version__"]
    homes = [f"{each.__module__}.{each.__qualname__}" for each in named]
    answers = [f"{each.__module__}.{each.__qualname__}" for each in map(_answer, named) if each is not None]
    return list(dict.fromkeys([*homes, *answers, *MORE]))


def _answer(function: Any) -> type | None:
    """The class of the package that a function answers, if it does."""
    if isinstance(function, type):
        return None
    try:
        found = get_type_hints(function).get("return")
    except NameError:  # imported for types alone
        home = importlib.import_module(function.__module__)
        found = getattr(home, str(function.__annotations__.get("return")), None)
    return found if isinstance(found, type) and found.__module__.startswith("mari_onnx") else None


def _text(told: str) -> str:
    """Help as markdown: what stands in single quotes or angle brackets is left as it is typed."""
    return re.sub(r"([*_<\[\]])", r"\\\1", told)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "&#124;").split())


def _moved(text: str) -> str:
    """models/README.md as a page of docs/: what it links to in its folder is text."""
    return re.sub(r"\[([^\]]+)\]\((?!http)[^)]+\)", r"\1", text)
