"""8-bit weights for the user's products: a contract of their own, measured on recorded requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.cli.main import main
from mari_onnx.parity import Settings, check
from mari_onnx.parity.loss import LOSS_KEY, contract_of
from mari_onnx.sides.resolve import Sides
from mari_onnx.timing import user_weights

SIDES = Sides({"user": "user", "item": "item"})
TAGS = ["--user", "user", "--item", "item"]


def ranker(user: int = 512, item: int = 32, hidden: int = 256, seed: int = 0) -> onnx.ModelProto:
    """[user | item] through a hidden layer; the user's part of it is 2^17 weights."""
    rng = np.random.default_rng(seed)
    weights = {"w": rng.standard_normal((user + item, hidden)) / 16, "b": rng.standard_normal(hidden),
               "v": rng.standard_normal((hidden, 1)) / 16}  # fmt: skip
    nodes = [
        helper.make_node("Concat", ["user", "item"], ["x"], axis=1, name="join"),
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="hidden"),
        helper.make_node("Tanh", ["h"], ["t"], name="tanh"),
        helper.make_node("MatMul", ["t", "v"], ["score"], name="head"),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("user", user), ("item", item))]
    out = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1])
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "ranker", infos, [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def recorded(path: Path, requests: int = 4, n: int = 60) -> Path:
    rng = np.random.default_rng(3)
    arrays = {}
    for k in range(requests):
        arrays[f"{k}/user"] = rng.standard_normal((1, 512), np.float32)
        arrays[f"{k}/item"] = rng.standard_normal((n, 32), np.float32)
    np.savez(path, **arrays)
    return path


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    """Source, output and recorded requests; every product counts as faster with 8 bits."""
    monkeypatch.setattr(user_weights, "_speedup", lambda *_: 2.0)
    onnx.save(ranker(), tmp_path / "in.onnx")
    return str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), str(recorded(tmp_path / "data.npz"))


def run(args: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(args)
    return int(ended.value.code or 0)


def test_the_users_product_has_8_bits(files: tuple[str, str, str], capsys: pytest.CaptureFixture[str]) -> None:
    source, out, data = files
    report = str(Path(out).with_suffix(".json"))
    args = ["optimize", source, out, *TAGS, "--data", data, "--user-weights", "int8", "--report", report]
    assert run([*args, "--max-tau-loss", "0.05"]) == 0
    made = onnx.load(out)
    ops = [node.op_type for node in made.graph.node]
    assert ops.count("MatMulNBits") == 1
    contract = contract_of(made)
    assert contract is not None
    assert 0 < contract["outputs"]["score"]["tau_loss"] < 0.05
    assert contract["requests"] == 4
    assert json.loads(Path(report).read_text())["user_weights"] == contract
    text = capsys.readouterr().out
    assert "8-bit weights for 1 products of the user" in text
    assert "of the top 10" in text
    assert "float" not in {t.name for t in made.graph.initializer if t.dims == [512, 256]}
    assert sum(np.prod(t.dims) for t in made.graph.initializer if t.data_type == TensorProto.FLOAT) < 2**15


def test_check_judges_by_the_contract(files: tuple[str, str, str], capsys: pytest.CaptureFixture[str]) -> None:
    source, out, data = files
    run(["optimize", source, out, *TAGS, "--data", data, "--user-weights", "int8", "--max-tau-loss", "0.05"])
    assert run(["check", source, out, "--data", data]) == 0
    assert "products of the user have 8-bit weights" in capsys.readouterr().out
    assert run(["check", source, out]) == 2
    assert "only recorded requests tell what they cost" in capsys.readouterr().err
    made = onnx.load(out)
    scales = next(t for t in made.graph.initializer if "scales" in t.name)
    scales.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scales)[::-1].copy(), scales.name))
    onnx.save(made, out)
    assert run(["check", source, out, "--data", data]) == 1
    assert "the order of candidates changes by" in capsys.readouterr().err


def test_too_much_is_refused(files: tuple[str, str, str], capsys: pytest.CaptureFixture[str]) -> None:
    source, out, data = files
    args = ["optimize", source, out, *TAGS, "--data", data, "--user-weights", "int8"]
    assert run([*args, "--max-tau-loss", "0"]) == 1
    assert not Path(out).exists()
    said = capsys.readouterr().err
    assert "too much is lost" in said
    assert "--max-tau-loss" in said


def test_a_mutant_is_refused(files: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights whose zero points are off by some steps."""
    source, out, data = files
    real = user_weights.quantized

    def wrong(matrix: np.ndarray) -> user_weights.Coded:
        coded = real(matrix)
        zeros = coded.tensors[-1]
        moved = numpy_helper.to_array(zeros) + np.arange(zeros.dims[0], dtype=np.uint8)[:, None] % 9
        zeros.CopyFrom(numpy_helper.from_array(moved.astype(np.uint8), zeros.name))
        return coded

    monkeypatch.setattr(user_weights, "quantized", wrong)
    args = ["optimize", source, out, *TAGS, "--data", data, "--user-weights", "int8", "--max-tau-loss", "0.01"]
    assert run(args) == 1
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "only recorded requests tell what they cost"),
        (["--no-check", "--data", "DATA"], "--no-check skips it"),
        (["--batched", "grid", "--data", "DATA"], "one request per run"),
        (["--target", "cuda", "--data", "DATA"], "onnxruntime's CPU kernels"),
    ],
)
def test_what_does_not_go_with_it(
    files: tuple[str, str, str], more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, data = files
    more = [data if x == "DATA" else x for x in more]
    assert run(["optimize", source, out, *TAGS, "--user-weights", "int8", *more]) == 2
    assert told in capsys.readouterr().err
    assert not Path(out).exists()


def test_where_nothing_is_faster_weights_stay(
    files: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, data = files
    monkeypatch.setattr(user_weights, "_speedup", lambda *_: 1.0)
    assert run(["optimize", source, out, *TAGS, "--data", data, "--user-weights", "int8"]) == 0
    assert "no product that is computed once per request is faster with 8-bit weights" in capsys.readouterr().out
    made = onnx.load(out)
    assert contract_of(made) is None
    assert LOSS_KEY not in {entry.key for entry in made.metadata_props}


def test_only_products_of_few_rows_and_many_weights_are_looked_at() -> None:
    shapes: dict[str, Any] = {"u": (1, 512), "x": (500, 512), "s": (1, 16)}
    model = ranker()
    node = helper.make_node("MatMul", ["u", "w"], ["y"])
    assert user_weights._rows(node, shapes, 500) == 1
    assert user_weights._rows(helper.make_node("MatMul", ["x", "w"], ["y"]), shapes, 500) is None
    weights = {t.name: t for t in model.graph.initializer}
    assert user_weights._weights(helper.make_node("MatMul", ["s", "v"], ["y"]), weights) is None
    found = user_weights._weights(node, weights)
    assert found is not None
    assert found.shape == (544, 256)


def test_the_order_is_judged_over_pairs() -> None:
    """Scores that are rounded to halves tie half of the candidates: their order is the source's as far as it goes."""
    source, other = ranker(), ranker()
    weights = next(t for t in other.graph.initializer if t.name == "v")
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), "v"))
    settings = Settings(max_tau_loss=0.5, providers=("cpu",), candidates=(20,))
    result = check(source, other, SIDES, settings=settings)
    assert not result.ok
    assert result.outputs[0].tau_loss == pytest.approx(2.0)
    same = check(source, source, SIDES, settings=settings)
    assert same.ok
    assert same.outputs[0].tau_loss == 0
