"""What commands write as JSON is what the files in mari_onnx/schemas say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
from referencing import Registry, Resource

from mari_onnx.cli.main import run
from mari_onnx.timing import user_weights
from mari_onnx.timing.calibrate import calibrate
from mari_onnx.timing.kernel_samples import Sample
from tests import tiny
from tests.serving.conftest import features, make_split, write_catalogue
from tests.test_user_weights import ranker, recorded

ROOT = Path(__file__).parents[1]
SCHEMAS = ROOT / "mari_onnx/schemas"
MODELS = ROOT / "models"
TAGS = ["--user", "user_x", "--item", "item_x"]
SHORT = ["--candidates", "2,8", "--seconds", "0.01"]


@cache
def schema(name: str) -> Any:
    return json.loads((SCHEMAS / f"{name}.json").read_text())


@cache
def registry() -> Registry[Any]:
    found = {path.name: Resource.from_contents(schema(path.stem)) for path in SCHEMAS.glob("*.json")}
    return Registry().with_resources(found.items())


def fits(said: Any, name: str) -> Any:
    """Raises where `said` is not what the schema says; also where it has NaN or infinity, which JSON has not."""
    text = json.dumps(said, allow_nan=False)
    jsonschema.Draft202012Validator(schema(name), registry=registry()).validate(json.loads(text))
    return said


def read(path: Path, name: str) -> Any:
    return fits(json.loads(path.read_text(), parse_constant=pytest.fail), name)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(tiny.fc(user=256, item=64, hidden=128), tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


def _objects(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for each in node.values():
            yield from _objects(each)
    elif isinstance(node, list):
        for each in node:
            yield from _objects(each)


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda p: p.stem)
def test_schemas_are_valid_and_closed(path: Path) -> None:
    found = schema(path.stem)
    jsonschema.Draft202012Validator.check_schema(found)
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert found["$id"] == path.name
    assert found["title"]
    assert found["description"]
    for each in _objects(found):
        if each.get("type") == "object" and each is not found["properties"].get("sides"):
            assert "additionalProperties" in each, each
        for name in each.get("required", []):
            assert name in each["properties"]
        reference = each.get("$ref", "")
        if reference.startswith("#/$defs/"):
            assert reference.removeprefix("#/$defs/") in found["$defs"]
    used = set(re.findall(r'"#/\$defs/([\w-]+)"', path.read_text()))
    assert used == set(found.get("$defs", {}))


SAMPLES = ["coarse_mlp", "dynamic_history", "packed_pnn.torchscript", "request_grid"]


@pytest.mark.parametrize("name", SAMPLES)
def test_reports_of_samples(name: str, tmp_path: Path) -> None:
    source, out = str(MODELS / f"{name}.onnx"), str(tmp_path / "out.onnx")
    files = ["--json", str(tmp_path / "r.json"), "--choices", str(tmp_path / "c.json"), "--skip", "Sigmoid"]
    assert run(["optimize", source, out, *files]) == 0
    told = read(tmp_path / "r.json", "report")
    assert told["check"]["ok"]
    assert told["speed"] is not None
    fits(told["check"], "check")
    assert read(tmp_path / "c.json", "choices")["left_on_request"]


def test_a_report_with_all_that_is_measured(tmp_path: Path) -> None:
    source = str(MODELS / "rankmixer.onnx")
    assert run(["inspect", source, "--measure", "--what-if", "separation", "--json", str(tmp_path / "r.json")]) == 0
    told = read(tmp_path / "r.json", "report")
    assert told["separation"]["layers"]
    assert told["residual"]["after"]["nodes"]
    assert told["check"] is None


def test_a_report_of_a_model_that_is_left_as_it_is(tmp_path: Path) -> None:
    onnx.save(tiny.items_only(), tmp_path / "in.onnx")
    files = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx")]
    assert run(["optimize", *files, "--item", "item*", "--json", str(tmp_path / "r.json")]) == 0
    assert not read(tmp_path / "r.json", "report")["changed"]


def test_a_report_of_an_output_for_several_requests(model: Path, tmp_path: Path) -> None:
    args = ["optimize", str(model), str(tmp_path / "out.onnx"), *TAGS, "--batched", "offsets", "--index-name", "ends"]
    assert run([*args, "--json", str(tmp_path / "r.json")]) == 0
    assert read(tmp_path / "r.json", "report")["sides"]["index_name"] == "ends"


def test_a_report_of_8_bit_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_weights, "_speedup", lambda *_: 2.0)
    onnx.save(ranker(), tmp_path / "in.onnx")
    data = str(recorded(tmp_path / "data.npz"))
    args = ["optimize", str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--user", "user", "--item", "item"]
    args += ["--data", data, "--user-weights", "int8", "--max-tau-loss", "0.05", "--json", str(tmp_path / "r.json")]
    assert run(args) == 0
    assert read(tmp_path / "r.json", "report")["user_weights"]["products"]
    files = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx")]
    assert run(["check", *files, "--data", data, "--json", str(tmp_path / "c.json")]) == 0
    assert read(tmp_path / "c.json", "check")["outputs"][0]["tau_loss"] is not None


def test_checks_that_fail(model: Path, tmp_path: Path) -> None:
    out, told, report = tmp_path / "out.onnx", tmp_path / "c.json", tmp_path / "r.json"
    assert run(["optimize", str(model), str(out), *TAGS, "--json", str(report), "-q"]) == 0
    args = ["--json", str(told), "--candidates", "2,5", "--coverage", "20", "-q"]
    assert run(["check", str(model), str(out), *args]) == 0
    assert read(told, "check")["verdict"] == "equal"
    wrong = onnx.load(out)
    bias = next(t for t in wrong.graph.initializer if t.dims == [128] or list(t.dims)[-1:] == [128])
    value = onnx.numpy_helper.to_array(bias).copy()
    value[...] = float("nan")
    bias.CopyFrom(onnx.numpy_helper.from_array(value, bias.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    dump = ["--dump", str(tmp_path / "worst"), "--bisect", str(report), "--layers"]
    assert run(["check", str(model), str(tmp_path / "wrong.onnx"), *args, *dump]) == 1
    found = read(told, "check")
    assert found["verdict"] == "different"
    assert found["divergence"] is not None
    assert found["layers"] is not None
    assert "nan" in json.dumps(found["outputs"])
    wrong.graph.output[0].name = wrong.graph.node[-1].output[0] = "other"
    onnx.save(wrong, tmp_path / "wrong.onnx")
    assert run(["check", str(model), str(tmp_path / "wrong.onnx"), *args]) == 1
    assert read(told, "check")["failures"]


def test_a_check_that_cannot_compare(tmp_path: Path) -> None:
    model = tiny.fc()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "in.onnx")
    args = [*TAGS, "--candidates", "4,9", "--coverage", "0", "--json", str(tmp_path / "c.json"), "-q"]
    assert run(["check", *[str(tmp_path / "in.onnx")] * 2, *args]) == 8
    assert read(tmp_path / "c.json", "check")["cannot_compare"]


def test_benches(model: Path, tmp_path: Path) -> None:
    told = tmp_path / "b.json"
    assert run(["bench", str(model), *TAGS, *SHORT, "--floor", "--threads", "1,2", "--json", str(told)]) == 0
    assert read(told, "bench")["results"][0]["variants"]["mari-onnx"]["of_floor_speed"] > 0
    assert run(["bench", str(model), *TAGS, *SHORT, "--users-per-run", "2", "--json", str(told), "-q"]) == 0
    assert read(told, "bench")["results"][0]["requests"] == 2


def test_a_bench_of_a_model_that_answers_infinity(model: Path, tmp_path: Path) -> None:
    wrong = onnx.load(model)
    weight = wrong.graph.initializer[0]
    value = onnx.numpy_helper.to_array(weight) * float("inf")
    weight.CopyFrom(onnx.numpy_helper.from_array(value.astype("float32"), weight.name))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    told = tmp_path / "b.json"
    args = [str(model), str(tmp_path / "wrong.onnx"), *TAGS, *SHORT, "--no-memory", "-q", "--json", str(told)]
    assert run(["bench", *args]) == 0
    read(told, "bench")


def test_a_split_and_what_is_made_of_it(tmp_path: Path) -> None:
    source, folder, told = str(MODELS / "coarse_mlp.onnx"), str(tmp_path / "parts"), tmp_path / "s.json"
    args = ["split", source, folder, "--batched", "index", "--json", str(told), "--choices", str(tmp_path / "c.json")]
    assert run([*args, "-q"]) == 0
    found = read(told, "split")
    assert found["together"]["ok"]
    fits(found["manifest"], "manifest")
    read(tmp_path / "c.json", "choices")
    read(Path(folder, "manifest.json"), "manifest")
    assert run(["inspect", source, folder, "--measure", "--json", str(told)]) == 0
    assert read(told, "inspect-split")["item_residual"] is not None
    assert run(["bench", source, folder, *SHORT, "--json", str(told), "-q"]) == 0
    assert "gather + score.onnx" in read(told, "bench")["results"][0]["variants"]
    assert run(["check", source, folder, "--json", str(told), "-q"]) == 0
    read(told, "check")


def test_a_catalogue(tmp_path: Path) -> None:
    folder, told = make_split(tmp_path / "parts"), tmp_path / "p.json"
    items = write_catalogue(tmp_path / "items.parquet", ["a", "b", "b", "c"], features(4))
    args = [str(folder), str(items), str(tmp_path / "rows.store"), "--json", str(told), "-q"]
    assert run(["precompute", *args, "--bad-rows", "skip"]) == 0
    found = read(told, "precompute")
    assert found["duplicates"] == 1


def test_a_repository(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tritonclient")
    out = tmp_path / "out.onnx"
    assert run(["optimize", str(model), str(out), *TAGS, "-q"]) == 0
    assert run(["triton", str(out), str(tmp_path / "models"), "--json", str(tmp_path / "t.json"), "-q"]) == 0
    assert read(tmp_path / "t.json", "triton")["called"] == "out"


def test_prices() -> None:
    read(ROOT / "mari_onnx/prices/cpu.json", "prices")
    fits(calibrate(seconds=0.001, which=[Sample("Relu", ((n, 8),)) for n in (1, 50)]), "prices")


def test_what_is_not_as_described_is_refused(tmp_path: Path, model: Path) -> None:
    told = tmp_path / "b.json"
    assert run(["bench", str(model), *TAGS, *SHORT, "--no-memory", "--json", str(told), "-q"]) == 0
    found = json.loads(told.read_text())
    for change in ({"more": 1}, {"version": 1}, {"results": [{}]}, {"provider": "tpu"}):
        with pytest.raises(jsonschema.ValidationError):
            fits({**found, **change}, "bench")


def test_the_docs_name_every_schema_and_how_to_use_it() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    for path in SCHEMAS.glob("*.json"):
        assert f"`{path.name}`" in page, path.name
