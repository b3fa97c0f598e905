"""The folder of a split: its manifest, and that it is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter

import jsonschema
import onnx
import pytest

from mari_onnx.cli.main import run
from mari_onnx.errors import OutputInTheWay, WriteError
from mari_onnx.splitting import folder as folders
from mari_onnx.splitting import manifest as manifests
from tests.splitting.graphs import split, three_sides


@pytest.fixture(scope="module")
def made():
    return split(three_sides(), counts=(2,))


def test_the_manifest_is_as_its_schema_says(made):
    schema = json.loads(manifests.SCHEMA.read_text())
    said = json.loads((made.folder / manifests.FILE).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(said, schema)
    assert manifests.read(made.folder) == made.manifest
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**said, "rows_key": "abc"}, schema)


def test_the_manifest_says_what_is_in_the_files(made):
    for name, part in made.manifest.parts.items():
        data = (made.folder / part.file).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (part.sha256, part.bytes)
        model = onnx.load(made.folder / part.file)
        assert tuple(i.name for i in model.graph.input) == part.inputs
        assert tuple(o.name for o in model.graph.output) == part.outputs
        assert {"mari_onnx.part": name}.items() <= {e.key: e.value for e in model.metadata_props}.items()
    assert made.manifest.to_dict()["bytes_per_item"] == 256


def test_a_folder_is_new_or_an_earlier_split(made, tmp_path):
    made.save(tmp_path / "a")
    files = ["item.onnx", "manifest.json", "score.onnx", "user.onnx"]
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == files
    with pytest.raises(OutputInTheWay, match="holds a split model"):
        made.save(tmp_path / "a")
    made.save(tmp_path / "a", force=True)
    (tmp_path / "a" / "ranker.onnx").write_text("the source")
    with pytest.raises(OutputInTheWay, match=r"beside it ranker.onnx, which would be lost"):
        made.save(tmp_path / "a", force=True)
    (tmp_path / "a" / "ranker.onnx").unlink()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "precious").write_text("")
    with pytest.raises(OutputInTheWay, match="is no split model"):
        made.save(tmp_path / "b", force=True)
    with pytest.raises(WriteError, match="no folder"):
        made.save(tmp_path / "c" / "d")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]


def _write_forever(target, splits):
    while True:
        for files in splits:
            folders.write(files, target)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere folders are exchanged in two steps")
def test_a_kill_leaves_the_old_or_the_new_split(made, tmp_path):
    target, other = tmp_path / "split", split(three_sides(seed=1), counts=(2,))
    folders.write(made.folder, target)
    keys = {made.manifest.rows_key, other.manifest.rows_key}
    context = multiprocessing.get_context("fork")
    rng, found = random.Random(0), Counter()
    for _ in range(int(os.environ.get("MARI_ONNX_KILLS", "20"))):
        writer = context.Process(target=_write_forever, args=(target, [made.folder, other.folder]))
        writer.start()
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        manifest = manifests.read(target)
        manifests.verify(target, manifest)
        found[manifest.rows_key] += 1
        found["killed while a folder was half written"] += any(tmp_path.glob(".*"))
    assert set(found) <= keys | {"killed while a folder was half written"}
    assert found["killed while a folder was half written"]
    folders.write(made.folder, target)
    assert [each.name for each in tmp_path.iterdir()] == ["split"]


def test_where_folders_cannot_be_exchanged_the_earlier_one_is_moved_aside(made, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_exchanged", lambda *_: False)
    made_again = split(three_sides(seed=1), counts=(2,))
    for files in (made.folder, made_again.folder):
        folders.write(files, tmp_path / "split")
    assert manifests.read(tmp_path / "split") == made_again.manifest
    assert [each.name for each in tmp_path.iterdir()] == ["split"]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(three_sides(), path)
    return path


FLAGS = ["--user", "u", "--item", "x", "--cross", "c", "--provider", "cpu"]


def test_the_command(source, tmp_path, capsys):
    folder = tmp_path / "split"
    assert run(["split", str(source), str(folder), *FLAGS, "--dry-run"]) == 0
    assert not folder.exists()
    assert "was not written" in capsys.readouterr().out
    assert run(["split", str(source), str(folder), *FLAGS, "--json", str(tmp_path / "s.json")]) == 0
    out = capsys.readouterr().out
    assert "item.onnx: 256 bytes per item" in out
    said = json.loads((tmp_path / "s.json").read_text())
    assert said["check"]["verdict"] == "equal"
    assert said["rates"]["item"] == 2 * 64 * 64
    assert 2 * 96 * 64 <= said["rates"]["user"] < 2.1 * 96 * 64
    assert 2 * 33 * 64 <= said["rates"]["score"] < 2.5 * 33 * 64
    assert run(["split", str(source), str(folder), *FLAGS]) == 2
    assert "--force" in capsys.readouterr().err
    assert run(["check", str(source), str(folder), "--provider", "cpu", "--candidates", "2,7"]) == 0
    assert "equal on cpu" in capsys.readouterr().out


def test_the_command_cuts_again_where_its_choices_say(source, tmp_path, capsys):
    choices = tmp_path / "choices.json"
    command = ["split", str(source), str(tmp_path / "a"), *FLAGS, "--choices", str(choices)]
    assert run(command) == 0
    said = json.loads(choices.read_text())
    assert said["cut"]["rows"]
    written = manifests.read(tmp_path / "a")
    assert run([*command, "--force"]) == 0
    assert manifests.read(tmp_path / "a") == written
    assert json.loads(choices.read_text()) == said
    capsys.readouterr()
    for wrong, message in (
        ({"cut": None}, "is not a file that split --choices wrote"),
        ({"state": "float8"}, "states and rows are 'float8'"),
        ({"source_sha256": "0" * 64}, "are those of another model"),
    ):
        choices.write_text(json.dumps({**said, **wrong}))
        assert run([*command, "--force"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("state", ["float32", "float16"])
def test_weights_that_are_external_stay_so(tmp_path, capsys, state):
    """And a part's hash is that of its file and its weights."""
    path, folder = tmp_path / "model.onnx", tmp_path / "split"
    onnx.save(three_sides(), path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    assert run(["split", str(path), str(folder), *FLAGS, "--state", state]) == 0
    manifest = manifests.read(folder)
    for name, part in manifest.parts.items():
        files = manifests.files(folder, part.file)
        assert len(files) == 2, name
        assert part.bytes == sum(f.stat().st_size for f in files)
        assert files[0].stat().st_size < 4096
    assert run(["check", str(path), str(folder), "--provider", "cpu", "--candidates", "2"]) == 0
    data = manifests.files(folder, "item.onnx")[1]
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    assert run(["inspect", str(path), str(folder)]) == 3
    assert "item.onnx is not the file that manifest.json names" in capsys.readouterr().err


def test_check_finds_parts_of_another_source(source, tmp_path, capsys):
    folder = tmp_path / "split"
    assert run(["split", str(source), str(folder), *FLAGS]) == 0
    onnx.save(three_sides(seed=5), source)
    assert run(["check", str(source), str(folder), "--provider", "cpu", "--candidates", "2"]) == 1
    assert "was split from another file" in capsys.readouterr().out


def test_bench_and_inspect_take_the_folder(source, tmp_path, capsys):
    folder = tmp_path / "split"
    assert run(["split", str(source), str(folder), *FLAGS]) == 0
    capsys.readouterr()
    bench = ["bench", str(source), str(folder), "--candidates", "7", "--seconds", "0.01", "--json", "-"]
    assert run(bench) == 0
    (figures,) = json.loads(capsys.readouterr().out)["results"]
    assert {"source", "user.onnx", "item.onnx", "score.onnx", "gather + score.onnx"} <= set(figures["variants"])
    assert run(["bench", str(folder), str(source)]) == 2
    capsys.readouterr()
    assert run(["inspect", str(source), str(folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["parts"]["item"]["flops"] == 2 * 64 * 64
    assert said["parts"]["user"]["flops"] >= 2 * 96 * 64
    assert said["parts"]["score"]["flops"] < said["source_flops"]
    assert run(["inspect", str(source), str(folder)]) == 0
    assert "once per item" in capsys.readouterr().out
