"""What a page of the docs says works: its commands run, its Python runs, and the site builds and needs no network."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mari_onnx.cli.main import run
from tests.serving.conftest import features, make_split, write_catalogue

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SIDES = 'user = ["user_*", "ctx_*", "hist_*"]\nitem = ["item_*"]\n'

NOT_RUN = {
    r"(pip|uvx|pipx) ": "installs from an index",
    r"docker ": "there is no container runtime",
    r"make ": "the targets are this repository's own; tests/test_house.py looks whether they exist",
    r"python -m benchmarks\.": "takes minutes; tests/test_benchmarks.py runs short forms",
    r"python -m tests\.fuzz\.run ": "tests/fuzz runs it",
    r"python -m tf2onnx": "needs TensorFlow",
    r"serve run ": "starts a server; tests/serving runs it",
    r"(eval .*|_MARI_ONNX_COMPLETE=\S+ mari-onnx.*)$": "is for a shell's start-up file",
    r"mari-onnx .*--engine ray": "starts a cluster of Ray; tests/serving/test_offline.py does",
    r"mari-onnx .*--provider cuda": "needs a GPU",
    r"mari-onnx .*--user-weights": "needs a user part of 16,384 weights; tests/test_user_weights.py has one",
    r"mari-onnx bench .*--peers": "tests/test_bench.py runs the peers",
    r"mari-onnx .*\"\$": "of the step in docs/ci.md; tests/parity/test_ci.py runs all of it",
    r"(set -eu|mkdir -p \"\$OUT\")$": "likewise",
}
"""Lines that are not run here, and why. A line of a page is run, or it is here."""

ELSEWHERE = {
    "integrations.md": "tests/test_integrations.py",
    "serving.md": "tests/serving/test_docs.py",
    "splitting.md": "tests/splitting/test_docs.py",
    "writing-rules.md": "tests/test_integrations.py",
}
"""Pages whose Python other tests run."""


def lines(page: Path) -> list[str]:
    """The commands of a page's sh blocks, in order, continued lines joined, comments left out."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    found = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#\s.*", "", each).strip() for each in found) if line]


def _left_out(line: str) -> bool:
    return any(re.match(pattern, line) for pattern in NOT_RUN)


def _ranker(text: str, **tables: tuple[int, ...]) -> onnx.ModelProto:
    """A model by its text, with random weights of these shapes."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> {text}')
    rng = np.random.default_rng(0)
    for name, shape in tables.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
    return model


TABLES = {"users": (50, 16), "hours": (24, 8), "items": (100, 16), "w": (72, 16), "v": (16, 1)}
RANKER = """g (int64[N] user_id, int64[N] ctx_hour, int64[N, 3] hist_items, int64[N] item_id) => (float[N, 1] score) {
 u = Gather(users, user_id)  c = Gather(hours, ctx_hour)  h = Gather(items, hist_items)  i = Gather(items, item_id)
 axis = Constant <value = int64[1] {1}> ()  past = ReduceMean <keepdims = 0> (h, axis)
 wide = Concat <axis = 1> (u, c, past, past, i)  hidden = MatMul(wide, w)  on = Relu(hidden)  score = MatMul(on, v) }"""
SOURCE = """g (int64[N] user_id, float[N, 8] user_dense, int64[N] item_id) => (float[N, 1] score) {
 u = Gather(users, user_id)  i = Gather(items, item_id)
 wide = Concat <axis = 1> (u, user_dense, i)  hidden = MatMul(wide, w)  on = Relu(hidden)  score = MatMul(on, v) }"""
SEVERAL = """g (int64[R] user_id, int64[N] user_index, int64[N] item_id) => (float[N, 1] score) {
 each = Gather(user_id, user_index)  u = Gather(users, each)  i = Gather(items, item_id)
 wide = Concat <axis = 1> (u, i)  hidden = MatMul(wide, w)  on = Relu(hidden)  score = MatMul(on, v) }"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that pages take for given, under the names that they have there."""
    folder = tmp_path_factory.mktemp("docs")
    onnx.save(_ranker(RANKER, **TABLES), folder / "ranker.onnx")
    (folder / "ranker.sides.toml").write_text(SIDES)
    onnx.save(_ranker(SOURCE, **{**TABLES, "w": (40, 16)}), folder / "source.onnx")
    onnx.save(_ranker(SEVERAL, **{**TABLES, "w": (32, 16)}), folder / "several.onnx")
    shutil.copy(ROOT / "models/packed_pnn.onnx", folder / "packed.onnx")
    shutil.copytree(ROOT / "models", folder / "models", ignore=shutil.ignore_patterns("*.py", "zoo", "__pycache__"))
    rng = np.random.default_rng(1)
    request = {"user_id": [7], "ctx_hour": [20], "hist_items": [[3, 1, 0]], "item_id": rng.integers(0, 100, 7)}
    np.savez(folder / "requests.npz", **{f"0/{name}": np.array(value, np.int64) for name, value in request.items()})
    written = [str(folder / name) for name in ("ranker.fast.onnx", "report.json")]
    assert run(["optimize", str(folder / "ranker.onnx"), written[0], "--json", written[1], "-q"]) == 0
    make_split(folder / "ranking-v7")
    write_catalogue(folder / "items.parquet", np.arange(20), features(20))
    files = [str(folder / name) for name in ("ranking-v7", "items.parquet", "items-v7.arrow")]
    assert run(["precompute", *files]) == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder of its own, as the current one."""
    folder = tmp_path / "page"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


def _short(line: str) -> list[str]:
    """The arguments of a command; what measures does so briefly."""
    words = shlex.split(line)[1:]
    if words[0] == "bench" and "--seconds" not in words:
        words += ["--seconds", "0.02", "--no-memory"]
    if words[0] == "bench" and "--candidates" not in words:
        words += ["--candidates", "7"]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if lines(page)], ids=lambda p: p.name)
def test_the_commands_of_a_page_run(page: Path, here: Path) -> None:
    if page.name == "serving.md":  # makes it
        Path("items-v7.arrow").unlink()
    for line in lines(page):
        if _left_out(line):
            continue
        if line.startswith("cp "):
            source, target = shlex.split(line)[1:]
            shutil.copy(source, target)
            continue
        assert line.startswith("mari-onnx "), f"{line}: neither run here nor in NOT_RUN with a reason"
        assert run(_short(line)) == 0, line


def test_what_is_not_run_is_on_a_page() -> None:
    every = [line for page in PAGES for line in lines(page)]
    stale = [pattern for pattern in NOT_RUN if not any(re.match(pattern, line) for line in every)]
    assert stale == []


def test_modules_that_commands_name_exist() -> None:
    module = re.compile(r"^python -m ((?:benchmarks|tests)\S*)")
    named = {found[1] for page in PAGES for line in lines(page) if (found := module.match(line))}
    assert len(named) > 5
    assert [name for name in sorted(named) if find_spec(name) is None] == []


def _outside_of_blocks() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        yield from ((page.name, line) for line in text.splitlines())


def test_commands_are_in_blocks_that_are_run() -> None:
    indented = re.compile(r"^(    |\t)(mari-onnx|make|pip|python|serve|docker) ")
    assert [each for each in _outside_of_blocks() if indented.match(each[1])] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text("utf-8")], ids=lambda p: p.name)
def test_the_python_of_a_page_runs(page: Path, here: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    if page.name in ELSEWHERE:
        test = ROOT / ELSEWHERE[page.name]
        assert page.name in test.read_text(encoding="utf-8")
        for each in code:
            compile(each, page.name, "exec")
        return
    if "import torch" in code[0] and find_spec("torch") is None:
        compile("\n".join(code), page.name, "exec")
        return
    if page.name == "index.md":
        shutil.copy("models/din.onnx", "ranker.fast.onnx")
        shutil.copy("models/din.npz", "requests.npz")
        assert run(["optimize", "models/din.onnx", "ranker.fast.onnx", "--no-check", "-q"]) == 0
    exec(compile("\n".join(code), page.name, "exec"), {})


@pytest.mark.slow
def test_the_summary_in_the_docs_is_what_is_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/reading.md").read_text(encoding="utf-8")
    shown = page.split("```text\n")[1].split("```")[0].splitlines()
    command = re.findall(r"`mari-onnx ([^`]*--data [^`]*)`", page)[0]
    assert run(shlex.split(command)) == 0
    said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    timed = re.compile(r"\d[\d.]*x at \d+ candidates|note: times vary")  # differ from run to run
    assert [line for line in shown if not timed.match(line)] == [line for line in said if not timed.match(line)]


def test_the_gallery_is_made_from_a_run_of_the_demo() -> None:
    from benchmarks.demo.model import Row, Times
    from benchmarks.demo.table import figures
    from benchmarks.gallery import page, read

    times = [Times(2e-3, 1e-3, 2.0, 2.0, 0.01), Times(8e-3, 1e-3, 8.0, 8.0, 0.01)]
    rows = [
        Row("din.onnx", "equal", 9, 1e-7, (43, 51), (2000.0, 1000.0), 3, 7, times[0]),
        Row("bst.onnx", "equal", 9, 2e-7, (3, 3), (1e5, 5e4), 1, 1, times[1]),
    ]
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("models/README.md", "docs/interop.md")]
    text = page(read(figures(rows)), *texts)
    assert "2 sample models: 4.00x in the geometric mean, 2.00x at least (din), 8.0x at most" in text
    assert "| din | DIN | **2.00x** | 2.00 -> 1.00 ms | 2 k -> 1 k, -50% | 3 of 7 | 43 -> 51 | 1.0e-07 |" in text
    assert re.search(r"^[|] wdl [|] [\d.]+x [|] [\d.]+x [|] [\d.]+x [|]$", text, re.MULTILINE)
    rows = (ROOT / "docs/gallery.md").read_text(encoding="utf-8").splitlines()
    models = {path.name.removesuffix(".onnx") for path in (ROOT / "models").glob("*.onnx")}
    assert models <= {row.split(" ")[1] for row in rows if row.startswith("| ")}


# ---- the site ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built; a link or an anchor that leads nowhere is an error."""
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", "docs/site/mkdocs.yml"]
    command += ["-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_needs_no_network(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?(https?:)?//[^\s\">]+")
    asked = [(page.name, m[0]) for page in site.rglob("*.html") for m in loaded.finditer(page.read_text("utf-8"))]
    assert [each for each in asked if "rel=canonical" not in each[1] and 'rel="canonical"' not in each[1]] == []
    assert [page.name for page in site.rglob("*.html") if "hide: [" in page.read_text("utf-8")] == []  # no page's head
    styles = [each.read_text("utf-8") for each in site.rglob("*.css")]
    assert not any(re.search(r"(url\(|@import )[\"']?https?:", each) for each in styles)


@pytest.mark.slow
def test_every_page_is_in_the_site(site: Path) -> None:
    expected = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert expected <= {page.stem for page in site.glob("*.html")}


@pytest.mark.slow
def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    from click import Context

    from mari_onnx.cli.main import cli

    page = (site / "reference-commands.html").read_text("utf-8")
    context = Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert f"mari-onnx {name}" in page
        flags = [flag for each in command.params for flag in each.opts if flag.startswith("--")]
        assert [flag for flag in flags if flag not in page] == []
