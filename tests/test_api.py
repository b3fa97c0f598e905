"""The Python API: its names, what they mean by a side, and how its answers print."""

from __future__ import annotations

import inspect as signatures
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import mari_onnx
from mari_onnx import shown
from mari_onnx.cli.main import run
from mari_onnx.errors import NoSuchInput, SidesUnknown, TaggedTwice, UntaggedInput, UsageError
from mari_onnx.ir_pass import OncePerRequest
from mari_onnx.parity.settings import Changes, Settings
from mari_onnx.sides.resolve import Sides
from tests import tiny

ROOT = Path(__file__).parents[1]
TAGGED = ("user", "item", "cross", "rest", "shapes", "count", "candidate_axis", "guess")
SHORT = {"candidates": (4,), "seconds": 0.01, "memory": False}


def _documented() -> set[str]:
    table = (ROOT / "docs/python.md").read_text().split("## Whose")[0]
    return {name for row in re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


def test_the_public_names_are_those_that_are_documented() -> None:
    assert set(mari_onnx.__all__) == _documented() == set(dir(mari_onnx))
    assert all(hasattr(mari_onnx, name) for name in mari_onnx.__all__)


def test_no_other_name_leaks_and_the_import_loads_nothing() -> None:
    code = (
        "import sys, mari_onnx, json; loaded = sorted({'onnx', 'onnxruntime', 'numpy'} & sys.modules.keys()); "
        "print(json.dumps([sorted(n for n in vars(mari_onnx) if n[0] != '_'), loaded]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, loaded = json.loads(done.stdout)
    assert set(names) <= {"Any", "TYPE_CHECKING", "annotations", "version"}
    assert loaded == []


FUNCTIONS = (mari_onnx.optimize, mari_onnx.inspect, mari_onnx.check, mari_onnx.bench, mari_onnx.split, OncePerRequest)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_tags_are_the_same_everywhere(function: Callable[..., Any]) -> None:
    given, first = (signatures.signature(f).parameters for f in (function, mari_onnx.optimize))
    for name in ("sides", *TAGGED):
        assert (given[name].default, given[name].annotation) == (first[name].default, first[name].annotation), name
    assert all(given[name].kind is signatures.Parameter.KEYWORD_ONLY for name in TAGGED)
    assert function.__doc__ is not None
    assert "Raises" in function.__doc__


def test_arguments_of_the_check_are_its_settings() -> None:
    assert {*Changes.__annotations__, "count"} == set(Settings.__dataclass_fields__)
    for name, annotation in Changes.__annotations__.items():
        field = Settings.__dataclass_fields__[name].type
        assert getattr(annotation, "__forward_arg__", annotation) == field


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api") / "fc.onnx"
    onnx.save(tiny.fc(user=256, item=64, hidden=128), path)
    return path


def _calls(model: Path) -> dict[str, Callable[..., Any]]:
    return {
        "optimize": lambda *a, **k: mari_onnx.optimize(model, *a, check=False, **k),
        "inspect": lambda *a, **k: mari_onnx.inspect(model, *a, **k),
        "check": lambda *a, **k: mari_onnx.check(model, model, *a, candidates=(2,), coverage=0, **k),
        "bench": lambda *a, **k: mari_onnx.bench(model, **({"sides": a[0]} if a else {}), **SHORT, **k),
        "split": lambda *a, **k: mari_onnx.split(model, *a, clock=False, **k),
        "pass": lambda *a, **k: OncePerRequest(*a, check=False, **k).call(_ir(model)),
    }


def _ir(model: Path) -> Any:
    import onnx_ir

    return onnx_ir.from_proto(onnx.load(model))


CALLS = ("optimize", "inspect", "check", "bench", "split", "pass")


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_tag_is_one_error_everywhere(model: Path, name: str) -> None:
    call = _calls(model)[name]
    with pytest.raises(NoSuchInput, match="nobody"):
        call(user="nobody*")
    with pytest.raises(NoSuchInput, match="nobody"):
        call({"nobody": "user"})
    with pytest.raises(UsageError, match="the side of 'user_x' is 'users'"):
        call({"user_x": "users"})
    with pytest.raises(UntaggedInput, match="item_x"):
        call(user="user_x")
    with pytest.raises(TaggedTwice, match="user_x"):
        call({"user_x": "item", "item_x": "item"}, user=["user_x"])
    with pytest.raises(UsageError, match="complete, and user= says more"):
        call(Sides({"user_x": "user", "item_x": "item"}), user="user_x")


@pytest.mark.parametrize("name", ["optimize", "inspect", "pass"])
def test_a_model_of_which_nothing_is_said_is_refused(model: Path, name: str) -> None:
    with pytest.raises(SidesUnknown):
        _calls(model)[name]()


def test_sides_may_be_said_in_any_way(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('user = ["user_*"]\nrest = "item"\n')
    ways: list[tuple[Any, dict[str, Any]]] = [
        (None, {"user": "user_x", "item": "item_x"}),
        (None, {"user": iter(["user_*"]), "rest": "item"}),
        ({"user_x": "user", "item_x": "item"}, {}),
        ({"user_x": "user"}, {"item": ["item_*"]}),
        (Sides({"user_x": "user", "item_x": "item"}), {}),
        (str(file), {}),
        (file, {}),
        (None, {"guess": True}),
        (None, {"user": "user_x", "item": "item_x", "candidate_axis": 0}),
        (None, {"user": "user_x", "item": "item_x", "candidate_axis": {"item_x": 0}}),
    ]
    found = [mari_onnx.inspect(model, sides, **flags).sides for sides, flags in ways]
    assert {tuple(sorted(each.inputs.items())) for each in found} == {(("item_x", "item"), ("user_x", "user"))}


def test_a_file_of_sides_comes_behind_what_is_said(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('user = ["user_x"]\nitem = ["item_x"]\n')
    assert mari_onnx.inspect(model, file, cross="item_x").sides.inputs["item_x"] == "cross"


# ---- answers ----------------------------------------------------------------------------------------------------
class Page(HTMLParser):
    """Whether tags close each other, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: set[str] = set()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        assert not {name for name, _ in attrs} & {"src", "href", "onclick"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def _answers(model: Path) -> dict[str, shown.Shown]:
    tags = {"user": "user_x", "item": "item_x"}
    done = mari_onnx.optimize(model, **tags)
    return {
        "Optimized": done,
        "Report": done.report,
        "CheckResult": mari_onnx.check(model, done.model, **tags, candidates=(1, 3), coverage=0),
        "Bench": mari_onnx.bench(model, **tags, **SHORT),
        "Split": mari_onnx.split(model, **tags, clock=False),
    }


def test_answers_say_what_was_gained_and_what_was_checked(model: Path) -> None:
    answers = _answers(model)
    wanted = {
        "Optimized": ["fc.onnx", "FLOPs per candidate", "checked", "equal for N = 1, 2, 7, 64", "[N, 256] -> [1, 256]"],
        "Report": ["FLOPs per candidate", "checked", "still per candidate"],
        "CheckResult": ["equal", "requests", "N = 1, 3", "output score", "float64"],
        "Bench": ["median", "spread", "source", "mari-onnx", "faster from", "predicted"],
        "Split": ["score.onnx", "bytes per item", "checked", "equal"],
    }
    for name, answer in answers.items():
        text = repr(answer)
        assert type(answer).__name__ == name
        assert text.startswith(name)
        for part in wanted[name]:
            assert part in text, (name, part)
        assert 3 < len(text.splitlines()) < 40
        page = Page(answer._repr_html_())
        assert page.tags <= {"table", "caption", "tbody", "tr", "th", "td"}
        for part in wanted[name]:
            assert part in page.text


def test_a_failed_check_says_why(model: Path, tmp_path: Path) -> None:
    onnx.save(tiny.fc(user=256, item=64, hidden=128, seed=5), tmp_path / "other.onnx")
    result = mari_onnx.check(model, tmp_path / "other.onnx", user="user_x", item="item_x", candidates=(2,), coverage=0)
    assert "DIFFERS" in repr(result)
    assert "why" in repr(result)


def test_cells_stand_below_each_other_and_text_is_escaped() -> None:
    rows = [("a", "1", "x"), ("long name", "22", "y"), ("two", "rest of the line")]
    text = shown.as_text("title", rows).splitlines()
    assert text[0] == "title"
    assert text[1].index("x") == text[2].index("y")
    assert text[1].index("1") == text[2].index("22") == text[3].index("rest")
    page = Page(shown.as_html("<script>", [("<b>", '"&"')]))
    assert page.tags == {"table", "caption", "tbody", "tr", "th", "td"}
    assert "<script>" in page.text
    assert "<b>" in page.text


def test_bench_answers_what_the_command_writes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--user", "user_x", "--item", "item_x", "--candidates", "4", "--seconds", "0.01", "--no-memory"]
    assert run(["bench", str(model), *flags, "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    done = mari_onnx.bench(model, user="user_x", item="item_x", **SHORT)
    mine = json.loads(json.dumps(done.to_dict()))
    for each in (told, mine):
        for result in each["results"]:
            for figures in result["variants"].values():
                for key in ("median_ms", "p99_ms", "spread", "speedup", "speedup_quartiles", "rounds"):
                    assert figures.pop(key) is not None
        each["notes"] = each["faster_from"] = None  # what was measured
    assert told == mine
    figures = mine["results"][0]["variants"]["mari-onnx"]
    assert figures["predicted_speedup"] == pytest.approx(
        mine["results"][0]["variants"]["source"]["predicted_ms"] / figures["predicted_ms"]
    )


def test_a_model_given_as_an_object_is_timed() -> None:
    done = mari_onnx.bench(tiny.fc(user=64, item=8, hidden=16), user="user_x", item="item_x", **SHORT)
    assert done.results[0].timing.names == ("source", "mari-onnx")


def test_the_least_n_from_which_a_model_is_faster() -> None:
    from mari_onnx.timing.answer import Bench
    from mari_onnx.timing.clock import Timing
    from mari_onnx.timing.measure import Measured

    def at(n: int, a: float, b: float, threads: int = 1) -> Measured:
        return Measured(n, threads, Timing(("source", "a", "b"), np.array([[1.0, a, b]] * 3)))

    found = [at(1, 0.5, 2.0), at(16, 2.0, 2.0), at(64, 0.9, 0.9), at(500, 0.5, 2.0), at(1, 1, 1, threads=2)]
    done = Bench("x.onnx", "cpu", found)
    assert done.faster_from == {1: {"a": 64, "b": None}, 2: {"a": 1, "b": 1}}
    assert "64 candidates on" in repr(done)
    assert "at no number that was measured" in repr(done)


def test_the_example_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (ROOT / "docs/python.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    exec(compile(code, "python.md", "exec"), {})
    assert (tmp_path / "din.opt.onnx").is_file()


TYPED = """
import mari_onnx
from mari_onnx.errors import MariError

done = mari_onnx.optimize("a.onnx", user="user_*", item=["item_*"], shapes={"x": ("N", 3)})
reveal_type(done)
reveal_type(done.report.before.flops)
reveal_type(mari_onnx.inspect("a.onnx", {"x": "user"}))
reveal_type(mari_onnx.check("a.onnx", "b.onnx", candidates=(1, 2)))
times = mari_onnx.bench("a.onnx", "b.onnx", threads=[1, 2])
reveal_type(times.results[0].timing.ratio("a", "b"))
reveal_type(mari_onnx.split("a.onnx", mari_onnx.Sides({"x": "user"})))
reveal_type(mari_onnx.Ranker("folder"))
mari_onnx.check("a.onnx", "b.onnx", no_such_setting=1)
mari_onnx.inspect("a.onnx", user=3)
"""
REVEALED = (
    "mari_onnx.api.optimized.Optimized", "float", "mari_onnx.report.report.Report",
    "mari_onnx.parity.result.CheckResult", "float", "mari_onnx.splitting.make.Split",
    "mari_onnx.splitting.ranker.Ranker",
)  # fmt: skip


@pytest.mark.slow
def test_a_strict_type_checker_sees_the_types(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "setup.cfg"), "use.py"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert tuple(re.findall(r'Revealed type is "(?:builtins\.)?(.+?)"', done.stdout)) == REVEALED, done.stdout
    errors = re.findall(r"^use\.py:(\d+): error: (.+)$", done.stdout, re.MULTILINE)
    assert [number for number, _ in errors] == ["14", "15"], done.stdout


@pytest.mark.parametrize("given", [{"requests": []}, {"if_slower": "warn"}], ids=str)
def test_what_needs_the_check_is_not_ignored_without_it(given):
    with pytest.raises(UsageError, match="needs the check, and check is False"):
        mari_onnx.optimize(tiny.fc(), {"user_x": "user", "item_x": "item"}, check=False, **given)
