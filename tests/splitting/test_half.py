"""States and rows in half precision."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mari_onnx.cli.main import run
from mari_onnx.errors import BadFeatures, OutputsDiffer
from mari_onnx.splitting import half
from mari_onnx.splitting import manifest as manifests
from tests.splitting.graphs import model, split, three_sides


def test_what_is_handed_over_takes_half_the_bytes():
    whole, made = split(three_sides()), split(three_sides(), half=True)
    said = made.manifest
    assert {t.dtype for t in (*said.state, *said.rows)} == {"float16"}
    assert 2 * sum(t.bytes for t in said.rows) == sum(t.bytes for t in whole.manifest.rows)
    assert made.check is not None
    assert made.check.ok
    assert said.contract.state == "float16"
    assert said.contract.max_error == made.check.max_error > whole.manifest.contract.max_error
    for part in (made.user, made.item, made.score):
        onnx.checker.check_model(part, full_check=True)


def test_outputs_that_the_source_computes_without_an_error_may_round_too():
    nodes = [
        helper.make_node("ReduceMax", ["x", "last"], ["top"], keepdims=1),
        helper.make_node("Max", ["top", "u"], ["score"]),
    ]
    source = model(nodes, {"u": 1, "x": 64}, {"score": ["N", 1]}, {"last": np.array([1])})
    made = split(source, half=True)
    assert [t.dtype for t in made.manifest.rows] == ["float16"]
    assert made.check is not None
    assert made.check.ok
    assert 0 < made.manifest.contract.max_error < 2.0**-9


def test_a_state_in_float32_is_refused():
    rng = np.random.default_rng(0)
    given = {k: rng.standard_normal((2, w)).astype(np.float32) for k, w in (("u", 96), ("x", 64), ("c", 32))}
    given["u"] = given["u"][:1]
    ranker, wide = split(three_sides(), half=True).ranker(), split(three_sides()).ranker()
    state, rows = ranker.user(given), ranker.items(given)
    (name,) = state.arrays
    assert state.arrays[name].dtype == np.float16
    expected = wide.score(wide.user(given), wide.items(given), {"c": given["c"]})["score"]
    np.testing.assert_allclose(ranker.score(state, rows, {"c": given["c"]})["score"], expected, rtol=1e-2, atol=1e-2)
    state.arrays[name] = state.arrays[name].astype(np.float32)
    with pytest.raises(BadFeatures, match="is float32, not float16"):
        ranker.score(state, rows, {"c": given["c"]})


def test_outputs_of_the_source_stay_as_they_are():
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["embedding"]),
        helper.make_node("Mul", ["embedding", "u"], ["score"]),
    ]
    weights = {"W": np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)}
    made = split(model(nodes, {"u": 16, "x": 32}, {"score": ["N", 16], "embedding": ["N", 16]}, weights), half=True)
    assert {t.name: t.dtype for t in made.manifest.rows} == {"embedding": "float32"}


def test_numbers_beyond_half_precision_are_not_written():
    source = three_sides()
    for tensor in source.graph.initializer:
        if tensor.name == "W":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1e6, "W"))
    assert split(source).check.ok
    with pytest.raises(OutputsDiffer, match="with states in half precision"):
        split(source, half=True)


def test_a_tensor_that_a_branch_reads_from_outside():
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["row", "row"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4])],
        )
        for name, op in (("then", "Add"), ("else", "Mul"))
    }
    nodes = [
        helper.make_node("If", ["flag"], ["y"], then_branch=branches["then"], else_branch=branches["else"]),
        helper.make_node("Add", ["y", "row"], ["score"]),
    ]
    whole = model(nodes, {"row": 4}, {"score": ["N", 4]})
    whole.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    narrow = half.rounded(whole, {"row"}, made=False)
    row = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float16)
    for flag in (True, False):
        answers = [
            onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(
                None, {"flag": np.array(flag), "row": row.astype(dtype)}
            )[0]
            for each, dtype in ((whole, np.float32), (narrow, np.float16))
        ]
        np.testing.assert_array_equal(*answers)


def test_the_command_prints_the_error_and_check_takes_the_contract(tmp_path, capsys):
    path, folder = tmp_path / "model.onnx", tmp_path / "split"
    onnx.save(three_sides(), path)
    flags = ["--user", "u", "--item", "x", "--cross", "c", "--provider", "cpu", "--state", "float16"]
    assert run(["split", str(path), str(folder), *flags]) == 0
    assert "states and rows are float16: outputs differ from the source's by at most" in capsys.readouterr().out
    contract = json.loads((folder / manifests.FILE).read_text())["contract"]
    assert contract["multiple"] == 4 * half.COARSER
    check = ["check", str(path), str(folder), "--provider", "cpu", "--candidates", "2"]
    assert run(check) == 0
    assert "states and rows are float16" in capsys.readouterr().out
    assert run([*check, "--multiple", "5"]) == 1


def test_choices_say_how_states_are_stored(tmp_path, capsys):
    path, folder, choices = tmp_path / "model.onnx", tmp_path / "split", tmp_path / "choices.json"
    onnx.save(three_sides(), path)
    flags = ["--user", "u", "--item", "x", "--cross", "c", "--provider", "cpu", "--choices", str(choices)]
    assert run(["split", str(path), str(folder), *flags, "--state", "float16"]) == 0
    assert json.loads(choices.read_text())["state"] == "float16"
    written = manifests.read(folder)
    assert run(["split", str(path), str(folder), *flags, "--force"]) == 0
    assert manifests.read(folder) == written
    capsys.readouterr()
    assert run(["split", str(path), str(folder), *flags, "--force", "--state", "float32"]) == 2
    assert "made with states and rows in float16, and --state says float32" in capsys.readouterr().err
