"""The folder of a split: its manifest, and that it is written whole or not at all."""

from __future__ import annotations

import hashlib
import json

import jsonschema
import onnx
import pytest

from mari_onnx.cli.main import run
from mari_onnx.errors import OutputInTheWay, WriteError
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
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "precious").write_text("")
    with pytest.raises(OutputInTheWay, match="is no split model"):
        made.save(tmp_path / "b", force=True)
    with pytest.raises(WriteError, match="no folder"):
        made.save(tmp_path / "c" / "d")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]


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
    assert json.loads((tmp_path / "s.json").read_text())["check"]["verdict"] == "equal"
    assert run(["split", str(source), str(folder), *FLAGS]) == 2
    assert "--force" in capsys.readouterr().err
    assert run(["check", str(source), str(folder), "--provider", "cpu", "--candidates", "2,7"]) == 0
    assert "equal on cpu" in capsys.readouterr().out


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
