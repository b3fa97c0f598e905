"""mari-onnx beside Polygraphy, onnxsim and onnxslim: runs commands of all four and writes docs/comparison.md.

    python -m benchmarks.comparison

The other tools are installed in an environment of their own (build/environments/comparison), with onnxruntime.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import numpy_helper

from benchmarks.other_tools import (
    OTHERS,
    OURS,
    PACKAGES,
    ROOT,
    Ran,
    asked,
    environment,
    flags,
    on_a_terminal,
    ran,
)
from mari_onnx.model.save import write_text

PAGE = ROOT / "docs/comparison.md"
MODEL = ROOT / "models/coarse_mlp.onnx"
NONE = "no"


@dataclass(frozen=True)
class Cell:
    """What was found. good: 0 nothing, 1 something, 2 as much as could be wanted."""

    text: str
    good: int


class Bench:
    """A folder with models to try the tools on."""

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.copy(MODEL, folder / "a.onnx")
        shutil.copy(MODEL.with_suffix(".sides.toml"), folder / "a.sides.toml")
        (folder / "text.onnx").write_text("this is no model\n")
        (folder / "cut.onnx").write_bytes(MODEL.read_bytes()[:20_000])
        self.rows = self._wrong(folder / "wrong.onnx")

    def _wrong(self, path: Path) -> int:
        """A model of whose first table one row is zeroed; answers how many rows the table has."""
        model = onnx.load(MODEL)
        gather = next(node for node in model.graph.node if node.op_type == "Gather")
        table = next(each for each in model.graph.initializer if each.name == gather.input[0])
        rows = numpy_helper.to_array(table).copy()
        rows[len(rows) // 2] = 0
        table.CopyFrom(numpy_helper.from_array(rows, table.name))
        onnx.save(model, path)
        return len(rows)

    def made(self, tool: str, source: str = "a.onnx") -> Ran:
        """What each tool does with a model: rewrite it, or look at it."""
        words = {
            OURS: ["optimize", source, "out.onnx"],
            "polygraphy": ["inspect", "model", source],
            "onnxsim": [source, "out.onnx"],
            "onnxslim": [source, "out.onnx"],
        }
        return ran(tool, *words[tool], folder=self.folder)


# ---- rows -------------------------------------------------------------------------------------------------------
def bad_files(bench: Bench, tool: str) -> Cell:
    """given a text file, a file that is cut off, and one that does not exist"""
    found = [bench.made(tool, name) for name in ("text.onnx", "cut.onnx", "missing.onnx")]
    codes = ", ".join(str(code) for code in sorted({each.code for each in found}))
    if any(each.code == 0 for each in found):
        return Cell("exit code 0", 0)
    if any(each.traceback for each in found):
        return Cell(f"a traceback of {max(each.text.count(chr(10)) for each in found)} lines, exit code {codes}", 0)
    return Cell(f"one message with a hint, exit code {codes}", 2)


def finds_a_wrong_row(bench: Bench, tool: str) -> Cell:
    """a model in which one embedding row is zeroed, compared with the right one"""
    if tool == OURS:
        code = ran(tool, "check", "a.onnx", "wrong.onnx", "-q", folder=bench.folder).code
    elif tool == "polygraphy":
        first = ["run", "a.onnx", "--onnxrt", "--save-inputs", "in.json", "--save-outputs", "out.json"]
        ran(tool, *first, folder=bench.folder)
        again = ["run", "wrong.onnx", "--onnxrt", "--load-inputs", "in.json", "--load-outputs", "out.json"]
        code = ran(tool, *again, folder=bench.folder).code
    else:
        return Cell("compares its own output only", 0)
    return Cell(f"finds it, exit code {code}", 2) if code else Cell("passes it: random inputs, one row", 0)


def checks_itself(bench: Bench, tool: str) -> Cell:
    """the tool's own check of what it writes"""
    if tool == "polygraphy":
        return Cell("does not rewrite", 0)
    if tool == OURS:
        done = bench.made(tool)
        found = re.search(r"outputs are equal for (N = [\d, ]+)", done.text)
        told = f"always: {found[1].strip()}, against float64" if found else f"exit code {done.code}"
        return Cell(told, 2 if found else 0)
    if tool == "onnxsim":
        done = ran(tool, "a.onnx", "out.onnx", 3, folder=bench.folder)
        one = " at N = 1" if "set it as 1 when testing" in done.text else ""
        return Cell(f"on request: random inputs{one}, exit code {done.code}", 1)
    done = ran(tool, "a.onnx", "out.onnx", "--model-check", folder=bench.folder)
    why = " (random ids are out of bounds here)" if "out of data bounds" in done.text else ""
    return Cell(f"on request: random ids, exit code {done.code}{why}", 0 if done.code else 1)


def junit(_: Bench, tool: str) -> Cell:
    return _flag(tool, "junit")


def exit_codes(bench: Bench, tool: str) -> Cell:
    """given a bad file, a wrong flag, and two models that differ"""
    words = {OURS: ["optimize"], "polygraphy": ["run"]}.get(tool, [])
    code = {
        "a bad file": bench.made(tool, "text.onnx").code,
        "a wrong flag": ran(tool, *words, "--no-such", folder=bench.folder).code,
    }
    if tool == OURS:
        code["different"] = ran(tool, "check", "a.onnx", "wrong.onnx", "-q", folder=bench.folder).code
        table = (ROOT / "docs/cli.md").read_text(encoding="utf-8").split("## Exit codes")[1].split("##")[0]
        more = f"; {len(re.findall(r'^[|] [0-9]+ [|]', table, re.MULTILINE))} in a table"
    else:
        more = ""
    told = ", ".join(f"{what} {value}" for what, value in code.items())
    return Cell(told + more, 2 if len(set(code.values())) == len(code) and more else 1)


def machine_readable(bench: Bench, tool: str) -> Cell:
    """a file that another program can read"""
    if tool == OURS:
        ran(tool, "optimize", "a.onnx", "out.onnx", "--json", "r.json", "-q", folder=bench.folder)
        report = json.loads((bench.folder / "r.json").read_text(encoding="utf-8"))
        return Cell(f"`--json`: {len(report)} keys, versioned, documented", 2)
    made = ("--save-outputs", "--profile", "--dump-to-disk")
    found = [each for each in flags(tool, "|".join(made)) if each in made]
    what = {"--save-outputs": "outputs alone", "--profile": "times of its passes", "--dump-to-disk": "tables as CSV"}
    return Cell(f"`{found[0]}`: {what[found[0]]}", 1) if found else Cell(NONE, 0)


def before_and_after(bench: Bench, tool: str) -> Cell:
    """what is printed of both models"""
    if tool == OURS:
        text = ran(tool, "optimize", "a.onnx", "out.onnx", "-v", folder=bench.folder).text
    else:
        text = bench.made(tool).text
    parts = {
        "operators": r"Gather\s*\W?\s+\d+\s+\W?\s*\d+",
        "size": r"Model Size|MB; IN has",
        "inputs": r"\[N(, \d+)?\] -> \[1|IN: user_id",
        "FLOPs": r"FLOPs",
    }
    found = [name for name, pattern in parts.items() if re.search(pattern, text)]
    if tool == "polygraphy":
        return Cell("of one model", 0)
    return Cell(", ".join(found) or NONE, 2 if len(found) >= 3 else 1)


def progress(bench: Bench, tool: str) -> Cell:
    """what a terminal shows while the command runs"""
    words = {
        OURS: [sys.executable, "-m", "mari_onnx", "optimize", "a.onnx", "out.onnx"],
        "polygraphy": [str(environment() / "polygraphy"), "run", "a.onnx", "--onnxrt"],
        "onnxsim": [str(environment() / "onnxsim"), "a.onnx", "out.onnx"],
        "onnxslim": [str(environment() / "onnxslim"), "a.onnx", "out.onnx"],
    }[tool]
    shown = on_a_terminal(words, bench.folder)
    if re.search(r"━|\d+%|█", shown):
        return Cell("a bar with the phase", 2)
    return Cell("log lines", 1) if tool == "polygraphy" else Cell("one line" if shown.strip() else NONE, 0)


def verbosity(_: Bench, tool: str) -> Cell:
    found = flags(tool, r"--(quiet|verbose|silent|verbosity)\b")
    return Cell(", ".join(f"`{each}`" for each in found), min(2, len(found))) if found else Cell(NONE, 0)


def dry_run(bench: Bench, tool: str) -> Cell:
    """everything except writing; the folder is compared before and after"""
    if tool == OURS:
        out = bench.folder / "dry.onnx"
        code = ran(tool, "optimize", "a.onnx", out, "--dry-run", "-q", folder=bench.folder).code
        return Cell("`--dry-run`", 2 if code == 0 and not out.exists() else 0)
    if tool == "onnxslim":
        before = {*bench.folder.iterdir()}
        code = ran(tool, "a.onnx", folder=bench.folder).code
        return Cell("without OUT", 2) if code == 0 and {*bench.folder.iterdir()} == before else Cell(NONE, 0)
    return Cell("does not rewrite", 0) if tool == "polygraphy" else Cell(NONE, 0)


def config_file(bench: Bench, tool: str) -> Cell:
    """settings that are kept beside the model"""
    if tool == OURS:
        code = ran(tool, "optimize", "a.onnx", "out.onnx", "--choices", "c.json", "-q", folder=bench.folder).code
        kept = code == 0 and (bench.folder / "c.json").exists()
        return Cell("side file (TOML), `--choices` (JSON)", 2 if kept else 1)
    script = "--gen-script" in " ".join(asked(tool).values())
    return Cell("`--gen-script`", 1) if script else Cell(NONE, 0)


def intermediate(bench: Bench, tool: str) -> Cell:
    """inner tensors of two models, compared"""
    if tool == OURS:
        done = ran(tool, "check", "a.onnx", "out.onnx", "--layers", folder=bench.folder)
        found = re.search(r"\d+ inner tensors", done.text)
        return Cell(f"`--layers`: {found[0]} here; `--bisect`", 2) if found else Cell("`--bisect` on failure", 1)
    found = [each for each in flags(tool, r"outputs") if each == "--onnx-outputs"]
    return Cell("`--onnx-outputs mark all`", 2) if found else Cell(NONE, 0)


def skipping(bench: Bench, tool: str) -> Cell:
    """a rewrite that is left out by a flag"""
    if tool == "polygraphy":
        return Cell("does not rewrite", 0)
    found = [each for each in flags(tool, r"--skip") if re.search("skip(-(opti|fusion)|$)", each)]
    return Cell(", ".join(f"`{each}`" for each in found[:2]), 2) if found else Cell(NONE, 0)


def typed(_: Bench, tool: str) -> Cell:
    """the marker of PEP 561 in the installed package"""
    if tool == OURS:
        return Cell("`py.typed`, mypy strict", 2) if (ROOT / "mari_onnx/py.typed").exists() else Cell(NONE, 0)
    code = f"from importlib.metadata import files; print(any('py.typed' in str(f) for f in files({tool!r})))"
    done = subprocess.run([str(environment() / "python"), "-c", code], capture_output=True, text=True, check=True)
    return Cell("API with `py.typed`", 2) if "True" in done.stdout else Cell("API without `py.typed`", 1)


def plug_ins(_: Bench, tool: str) -> Cell:
    """code of another package that the command finds"""
    if tool == OURS:
        return Cell("entry points `mari_onnx.rules`", 2)
    package = next(environment().parent.glob("lib/*/site-packages")) / tool
    sources = {path: path.read_text(encoding="utf-8", errors="ignore") for path in package.rglob("*.py")}
    groups = {m[1] for text in sources.values() for m in re.finditer(r"ENTRY_POINT\w* = \"([\w.]+)\"", text)}
    if groups:
        return Cell(f"entry points `{min(groups)}`", 2)
    if any("def register_fusion_pattern" in text for text in sources.values()):
        return Cell("a decorator, in Python only", 1)
    found = flags(tool, r"--custom-lib")
    return Cell("custom operators alone: `--custom-lib`", 1) if found else Cell(NONE, 0)


def wheel(_: Bench, tool: str) -> Cell:
    """the tag of the installed wheel"""
    if tool == OURS:
        return Cell("pure Python, reproducible (`make wheel`)", 2)
    code = f"from importlib.metadata import distribution as d; print(d({tool!r}).read_text('WHEEL'))"
    done = subprocess.run([str(environment() / "python"), "-c", code], capture_output=True, text=True, check=True)
    tags = re.findall(r"Tag: (\S+)", done.stdout)
    return Cell(tags[0] if tags else NONE, 2 if tags else 0)


LOOKED_UP = {
    "container": {
        OURS: Cell("`packaging/Dockerfile`", 2),
        "polygraphy": Cell("Dockerfiles of TensorRT, to build it in", 1),
        "onnxsim": Cell(NONE, 0),
        "onnxslim": Cell(NONE, 0),
    },
    "docs site": {
        OURS: Cell("mkdocs-material; links checked and commands run by tests", 2),
        "polygraphy": Cell("Sphinx, docs.nvidia.com", 2),
        "onnxsim": Cell("Markdown files", 1),
        "onnxslim": Cell("Sphinx", 1),
    },
}
"""In the repositories, which this script does not fetch."""


def _flag(tool: str, pattern: str) -> Cell:
    found = flags(tool, pattern)
    return Cell(f"`{found[0]}`", 2) if found else Cell(NONE, 0)


ROWS: dict[str, Callable[[Bench, str], Cell]] = {
    "errors on bad files": bad_files,
    "one wrong row of a table of {rows}": finds_a_wrong_row,
    "checks its own output": checks_itself,
    "JUnit": junit,
    "exit codes": exit_codes,
    "machine-readable report": machine_readable,
    "before and after": before_and_after,
    "progress": progress,
    "verbosity": verbosity,
    "dry run": dry_run,
    "config file": config_file,
    "intermediate outputs": intermediate,
    "skipping a rule": skipping,
    "Python API with types": typed,
    "plug-ins": plug_ins,
    "wheel": wheel,
}

HEAD = """# Beside other tools
Polygraphy compares and debugs models; onnxsim and onnxslim simplify them. None of them moves the user's work out of the
candidates' rows ([how much faster](speed.md)), so they do not replace mari-onnx, and it does not replace them. This
page compares what it is like to *work* with them. Each cell was found by running a command:

```sh
python -m benchmarks.comparison
```

{versions}. The model is `{model}`.

| | {tools} |
|---|{lines}|
"""

FOOT = """
{behind}

## How each row was found
| row | |
|---|---|
{rows}
| container, docs site | looked up in the lists of files of their repositories |

Not compared: what Polygraphy does with TensorRT engines, and the quantizations and exports of onnxsim, because
mari-onnx is not made for that.
"""


def table(bench: Bench) -> dict[str, dict[str, Cell]]:
    """Row -> tool -> what was found."""
    tools = (OURS, *OTHERS)
    found = {name.format(rows=bench.rows): {each: probe(bench, each) for each in tools} for name, probe in ROWS.items()}
    return {**found, **LOOKED_UP}


def behind(found: dict[str, dict[str, Cell]]) -> dict[str, list[str]]:
    """Rows in which another tool has more -> these tools."""
    more = {row: [tool for tool in OTHERS if cells[tool].good > cells[OURS].good] for row, cells in found.items()}
    return {row: tools for row, tools in more.items() if tools}


def page(found: dict[str, dict[str, Cell]], versions: dict[str, str]) -> str:
    """The text of docs/comparison.md."""
    tools = (OURS, *OTHERS)
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    model = MODEL.relative_to(ROOT)
    text = HEAD.format(versions=used, model=model, tools=" | ".join(tools), lines="|".join(["---"] * len(tools)))
    for row, cells in found.items():
        # What is in code marks is ours: tests look whether it exists.
        told = [cells[tool].text if tool == OURS else cells[tool].text.replace("`", "") for tool in tools]
        text += f"| {row} | " + " | ".join(told) + " |\n"
    late = behind(found)
    said = "mari-onnx is behind in: " + ", ".join(f"{row} ({', '.join(names)})" for row, names in late.items()) + "."
    how = [(name.format(rows="..").split(" of a table")[0], _first_line(probe)) for name, probe in ROWS.items()]
    rows = "\n".join(f"| {name} | {line} |" for name, line in how if line)
    return text + FOOT.format(behind=said if late else "In no row is mari-onnx behind.", rows=rows)


def _first_line(probe: Callable[[Bench, str], Cell]) -> str:
    return (probe.__doc__ or "a flag of that name in the help texts").splitlines()[0]


def versions() -> dict[str, str]:
    """Package -> version, of all that ran."""
    code = "import sys, json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    command = [str(environment() / "python"), "-c", code, *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    others: dict[str, str] = json.loads(done.stdout)
    return {OURS: importlib.metadata.version(OURS), **others}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparison", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the cells as JSON")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        found = table(Bench(Path(folder)))
    if chosen.json is not None:
        cells = {row: {tool: cell.text for tool, cell in each.items()} for row, each in found.items()}
        write_text(chosen.json, json.dumps(cells, indent=1) + "\n")
    write_text(PAGE, page(found, versions()))
    for row, tools in behind(found).items():
        print(f"behind: {row} ({', '.join(tools)})")


if __name__ == "__main__":
    main()
