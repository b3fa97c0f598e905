"""The command line on small models: what it writes, what it says, how it exits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import mari_onnx
from mari_onnx.cli.main import run
from mari_onnx.model import save
from mari_onnx.sides.resolve import Sides
from tests import tiny

TAGS = ["--user", "user_*", "--item", "item_*"]
COMMANDS = ["optimize", "check", "inspect"]
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


@pytest.fixture
def source(tmp_path) -> Path:
    # Wide enough that a split pays for its nodes.
    path = tmp_path / "in.onnx"
    save.save(tiny.fc(user=256, item=64, hidden=128), path)
    return path


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out.onnx"


def metadata(path: Path) -> dict[str, str]:
    return {each.key: each.value for each in onnx.load(path).metadata_props}


def scores(path: Path, rows: int) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    user = rng.standard_normal((1, 256)).astype(np.float32)
    item = rng.standard_normal((rows, 64)).astype(np.float32)
    if session.get_inputs()[0].shape[0] != 1:
        user = np.repeat(user, rows, axis=0)
    return session.run(None, {"user_x": user, "item_x": item})[0]


def test_optimize_splits_checks_and_writes(source, out, capsys):
    assert run(["optimize", str(source), str(out), *TAGS]) == 0
    assert onnx.load(out).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    np.testing.assert_allclose(scores(out, 7), scores(source, 7), rtol=1e-4, atol=1e-5)
    said = capsys.readouterr().out
    assert "1 of 1 products split" in said
    assert "outputs are equal for N = " in said
    assert "\x1b[" not in said


def test_provenance_is_in_the_output(source, out):
    import hashlib

    run(["optimize", str(source), str(out), *TAGS, "--no-check"])
    found = metadata(out)
    assert found["mari_onnx.version"] == mari_onnx.__version__
    assert found["mari_onnx.source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert json.loads(found["mari_onnx.sides"])["user"] == ["user_x"]
    assert json.loads(found["mari_onnx.report"])["actions"]["split"]


def test_optimizing_twice_gives_the_same_bytes(source, out, tmp_path):
    run(["optimize", str(source), str(out), *TAGS, "--no-check"])
    again = tmp_path / "again.onnx"
    assert run(["optimize", str(out), str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_the_same_source_gives_the_same_bytes(source, out, tmp_path):
    again = tmp_path / "again.onnx"
    for path in (out, again):
        run(["optimize", str(source), str(path), *TAGS, "--no-check", "--quiet"])
    assert again.read_bytes() == out.read_bytes()


def test_metadata_and_docs_of_the_source_stay(source, out):
    model = onnx.load(source)
    model.doc_string, model.producer_name = "the ranker", "us"
    model.metadata_props.add(key="team", value="search")
    model.graph.doc_string = "a graph"
    model.graph.input[0].doc_string = "the user"
    onnx.save(model, source)
    run(["optimize", str(source), str(out), *TAGS, "--no-check"])
    kept = onnx.load(out)
    assert (kept.doc_string, kept.producer_name) == ("the ranker", "us")
    assert metadata(out)["team"] == "search"
    assert kept.graph.doc_string == "a graph"
    assert kept.graph.input[0].doc_string == "the user"
    assert kept.opset_import == model.opset_import


def test_bare_optimize_takes_the_side_file_beside(source, out):
    source.with_name("in.sides.toml").write_text('user = ["user_*"]\nitem = ["item_*"]\n')
    assert run(["optimize", str(source), str(out)]) == 0
    assert "mari_onnx.sides" in metadata(out)


def test_unknown_sides_print_a_command_that_works(source, out, capsys):
    assert run(["optimize", str(source), str(out)]) == 2
    assert not out.exists()
    said = capsys.readouterr().err
    (command,) = re.findall(r"^ +mari-onnx (optimize .*)$", said, re.MULTILINE)
    import shlex

    pasted = shlex.split(command.replace("OUT.onnx", str(out)))
    assert run(pasted) == 0
    assert out.exists()


def test_a_guess_is_used_when_asked_for(source, out, capsys):
    assert run(["optimize", str(source), str(out), "--guess"]) == 0
    assert "user_x" in capsys.readouterr().out


def test_a_wrong_pattern_is_a_usage_error(source, out, capsys):
    assert run(["optimize", str(source), str(out), "--user", "usr_x"]) == 2
    assert "did you mean 'user_x'" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(("flags", "code"), [([], 0), (["--fail-unchanged"], 4)])
def test_nothing_to_lift_writes_the_very_bytes(tmp_path, out, capsys, flags, code):
    source = tmp_path / "in.onnx"
    save.save(tiny.items_only(), source)
    assert run(["optimize", str(source), str(out), "--item", "item_x", *flags]) == code
    assert out.read_bytes() == source.read_bytes()
    assert "nothing to lift" in capsys.readouterr().out


def test_out_is_never_in(source, capsys):
    before = source.read_bytes()
    assert run(["optimize", str(source), str(source), *TAGS]) == 2
    assert "--force" in capsys.readouterr().err
    assert source.read_bytes() == before
    assert run(["optimize", str(source), str(source), *TAGS, "--force"]) == 0
    assert source.read_bytes() != before


@posix
def test_out_is_never_a_link_to_in(source, out):
    out.symlink_to(source)
    assert run(["optimize", str(source), str(out), *TAGS]) == 2


def break_engine(monkeypatch, honours_skip: bool) -> None:
    """Every rewrite gets a weight wrong; one that honours `skip` leaves what it is told to."""
    from mari_onnx import engine

    right = engine.rewrite

    def wrong(model, sides, options):
        if honours_skip and options.skip:
            return right(model, Sides(), options)
        found = right(model, sides, replace(options, skip=frozenset()))
        weight = found.model.graph.initializer[0]
        changed = onnx.numpy_helper.to_array(weight).copy()
        changed.flat[0] += 0.01
        weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
        return found

    monkeypatch.setattr(engine, "rewrite", wrong)


def test_differing_outputs_write_nothing(source, out, monkeypatch, capsys):
    break_engine(monkeypatch, honours_skip=False)
    assert run(["optimize", str(source), str(out), *TAGS]) == 1
    assert "outputs differ" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == [source]


def test_a_wrong_rewrite_is_taken_back_and_told(source, out, monkeypatch, capsys):
    break_engine(monkeypatch, honours_skip=True)
    assert run(["optimize", str(source), str(out), *TAGS]) == 0
    assert "undone: " in capsys.readouterr().out
    assert out.read_bytes() == source.read_bytes()


def test_dry_run_writes_nothing(source, out, capsys):
    assert run(["optimize", str(source), str(out), *TAGS, "--dry-run"]) == 0
    assert list(out.parent.iterdir()) == [source]
    assert "outputs are equal" in capsys.readouterr().out


def test_quiet_says_nothing(source, out, capsys):
    assert run(["optimize", str(source), str(out), *TAGS, "-q"]) == 0
    assert capsys.readouterr() == ("", "")


def test_the_report_holds_what_the_terminal_says(source, out, tmp_path, capsys):
    report = tmp_path / "report.json"
    run(["optimize", str(source), str(out), *TAGS, "--report", str(report)])
    found = json.loads(report.read_text())
    assert (found["schema"], found["version"]) == ("mari-onnx/report", 1)
    assert found["changed"] is True
    assert found["output"]["bytes"] == out.stat().st_size
    assert found["sides"]["item"] == ["item_x"]
    assert [each["side"] for each in found["inputs"]] == ["user", "item"]
    assert found["check"]["ok"] is True
    before, after = (found[key]["flops_per_candidate"] for key in ("before", "after"))
    assert after < before / 2
    products = [each for each in found["nodes"] if each["op"] == "MatMul"]
    assert [each["action"] for each in products] == ["split"]
    assert "1 of 1 products split" in capsys.readouterr().out


def test_every_key_of_the_report_is_documented(source, capsys):
    assert run(["inspect", str(source), *TAGS, "--measure", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    text = (Path(__file__).parents[1] / "docs/report.md").read_text()
    keys = {*found, *found["before"], *found["inputs"][0], *found["nodes"][0]}
    measured = found["residual"]["before"]
    keys |= {*measured, *measured["nodes"][0]}
    assert not {key for key in keys if f"`{key}`" not in text}


def test_check_compares_inner_tensors_by_their_names(source, out, tmp_path, capsys):
    model = onnx.load(source)
    model.graph.node.append(onnx.helper.make_node("Relu", ["score"], ["on"], "relu"))
    model.graph.output[0].name = "on"
    save.save(model, source)
    assert run(["optimize", str(source), str(out), *TAGS, "-q"]) == 0
    found = tmp_path / "check.json"
    assert run(["check", str(source), str(out), "--layers"]) == 0
    assert "2 inner tensors have the same name in both models, and agree" in capsys.readouterr().out
    assert run(["check", str(source), str(out), "--layers", "--json", str(found)]) == 0
    layers = json.loads(found.read_text())["layers"]
    assert [(each["tensor"], each["op"]) for each in layers] == [("score", "MatMul"), ("on", "Relu")]
    assert all(0 <= each["error"] <= each["allowed"] for each in layers)
    wrong = onnx.load(out)
    weight = next(each for each in wrong.graph.initializer if list(each.dims) == [64, 128])
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name))
    save.save(wrong, out)
    assert run(["check", str(source), str(out), "--layers"]) == 1
    assert re.search(r"2 differ, the first one is\n  score \(MatMul product\)", capsys.readouterr().out)


def test_counts_of_operators_are_told(source, out, capsys):
    assert run(["optimize", str(source), str(out), *TAGS, "-v"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^Concat +1 +0 *$", said, re.MULTILINE)
    assert run(["inspect", str(source), *TAGS, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["before"]["operators"] == {"Concat": 1, "MatMul": 1}
    assert sum(told["after"]["operators"].values()) == told["after"]["nodes"]


def test_the_report_may_not_replace_a_model(source, out):
    assert run(["optimize", str(source), str(out), *TAGS, "--report", str(source)]) == 2


def test_inspect_shows_sides_and_products(source, capsys):
    assert run(["inspect", str(source), *TAGS]) == 0
    said = capsys.readouterr().out
    assert re.search(r"user_x +user +float32 +\[N, 256\]", said)
    assert re.search(r"product +MatMul +user and candidate +split", said)


def test_inspect_without_sides_lists_inputs_and_the_command(source, capsys):
    assert run(["inspect", str(source)]) == 2
    said = capsys.readouterr()
    assert "item_x" in said.out
    assert "mari-onnx optimize" in said.err


def test_a_broken_model_is_one_line(tmp_path, out, capsys):
    path = tmp_path / "in.onnx"
    path.write_text("hello")
    assert run(["optimize", str(path), str(out)]) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert run(["optimize", str(path), str(out), "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_is_one_line_too(source, out, monkeypatch, capsys):
    def broken(*_, **__):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("mari_onnx.api.rewriting.finished", broken)
    assert run(["optimize", str(source), str(out), *TAGS]) == 70
    said = capsys.readouterr().err
    assert "a defect of mari-onnx: ZeroDivisionError: oh" in said
    assert "Traceback" not in said


def test_a_misspelt_command_has_a_suggestion(capsys):
    assert run(["optimise"]) == 2
    assert "Did you mean 'optimize'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], *([each] for each in COMMANDS)])
def test_help_needs_no_heavy_library(command):
    """What makes --help fast: none of these is imported for it."""
    code = (
        "import sys; from mari_onnx.cli.main import run; run(sys.argv[1:]); "
        "heavy = {'onnx', 'numpy', 'onnxruntime', 'onnxscript', 'rich', 'torch'}; "
        "sys.exit(','.join(heavy & set(sys.modules)) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "Usage: mari-onnx" in found.stdout


def test_help_names_context_as_the_users(capsys):
    run(["optimize", "--help"])
    said = re.sub(r"\s+", " ", capsys.readouterr().out).replace("- ", "-")  # a line may end at the hyphen
    assert "request-level context (time, device, page)" in said


def test_version(capsys):
    assert run(["--version"]) == 0
    assert mari_onnx.__version__ in capsys.readouterr().out


def test_the_python_api(source, tmp_path):
    done = mari_onnx.optimize(source, user=["user_*"], item=["item_*"])
    assert done.changed
    assert [each.action for each in done.report.products] == ["split"]
    assert done.report.check["ok"]
    done.save(tmp_path / "api.onnx")
    assert mari_onnx.check(source, tmp_path / "api.onnx", done.sides).ok
    in_memory = mari_onnx.optimize(onnx.load(source), {"user_x": "user", "item_x": "item"}, check=False)
    assert in_memory.model.graph == done.model.graph
    assert mari_onnx.inspect(source, done.sides).changed


def test_the_api_offers_what_it_lists():
    assert {"optimize", "check", "inspect"} <= set(dir(mari_onnx))
    for name in dir(mari_onnx):
        assert getattr(mari_onnx, name) is not None
    with pytest.raises(AttributeError):
        _ = mari_onnx.optimise


def test_without_tags_it_says_what_was_lifted_and_what_tags_would_bring(tmp_path, out, capsys):
    """A row that is repeated inside the graph needs no tag."""
    make = onnx.helper.make_tensor_value_info
    weights = np.random.default_rng(0).standard_normal((320, 128)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Shape", ["item"], ["size"], start=0, end=1),
        onnx.helper.make_node("Concat", ["size", "width"], ["shape"], axis=0),
        onnx.helper.make_node("Expand", ["context", "shape"], ["rows"]),
        onnx.helper.make_node("Concat", ["rows", "item"], ["both"], axis=1),
        onnx.helper.make_node("MatMul", ["both", "w"], ["score"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "one_shot",
        [make("context", 1, ["R", 256]), make("item", 1, ["N", 64])],
        [make("score", 1, ["N", 128])],
        [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(np.asarray([256]), "width")],
    )
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    path = tmp_path / "one_shot.onnx"
    save.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    assert run(["optimize", str(path), str(out)]) == 0
    assert "1 of 1 products split" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["optimize", "IN", "OUT", *TAGS, "--no-check", "--json", "-"],
        ["optimize", "IN", "OUT", *TAGS, "--no-check", "--report", "-"],
        ["split", "IN", "DIR", *TAGS, "--json", "-", "--no-clock"],
        ["check", "IN", "IN", *TAGS, "--json", "-"],
        ["inspect", "IN", *TAGS, "--json"],
        ["inspect", "--json", "IN", *TAGS],
        ["inspect", "IN", *TAGS, "--json", "-"],
        ["bench", "IN", "IN", *TAGS, "--json", "-", "--candidates", "4", "--seconds", "0.05"],
    ],
    ids=" ".join,
)
def test_json_on_standard_output_is_all_there_is(command, source, tmp_path, capsys):
    places = {"IN": str(source), "OUT": str(tmp_path / "out.onnx"), "DIR": str(tmp_path / "parts")}
    assert run([places.get(word, word) for word in command]) == 0
    told = json.loads(capsys.readouterr().out)
    assert isinstance(told, dict)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["split", "IN", "DIR", "--json", "none/x.json"], 6, "no folder"),
        (["check", "IN", "IN", "--json", "none/x.json"], 6, "no folder"),
        (["check", "IN", "IN", "--junit", "DIR"], 2, "is a folder"),
        (["check", "IN", "IN", "--bisect", "none/x.json"], 2, "is not a report that mari-onnx optimize wrote"),
        (["check", "IN", "DIR", "--layers"], 2, "--layers compares two files"),
        (["bench", "IN", "--plot", "none/x.png"], 6, "no folder"),
        (["precompute", "DIR", "IN", "OUT", "--json", "none/x.json"], 6, "no folder"),
    ],
    ids=lambda word: " ".join(word) if isinstance(word, list) else "",
)
def test_what_would_fail_after_the_work_fails_before_it(command, code, words, tmp_path, capsys, monkeypatch):
    """IN is no file, so that work would end with another message."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()
    assert run(command) == code
    assert words in capsys.readouterr().err


def test_inspect_writes_json_beside_its_tables(source, tmp_path, capsys):
    assert run(["inspect", str(source), *TAGS, "--json", str(tmp_path / "report.json")]) == 0
    assert "depends on" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["schema"] == "mari-onnx/report"


def test_verbose_lists_products_and_quiet_nothing(source, tmp_path, capsys):
    out = str(tmp_path / "out.onnx")
    assert run(["optimize", str(source), out, *TAGS, "--no-check", "-v"]) == 0
    assert "why not more" in capsys.readouterr().out
    assert run(["optimize", str(source), out, *TAGS, "--no-check", "-q"]) == 0
    assert capsys.readouterr().out == ""


def test_a_failed_check_says_why_once(source, tmp_path, capsys):
    model = onnx.load(source)
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    assert run(["check", str(source), str(tmp_path / "other.onnx"), *TAGS, "-q"]) == 1
    assert capsys.readouterr().err.count("worst") == 1
