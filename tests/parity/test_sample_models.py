"""The sample models: what the engine makes of them passes, and single faults in it do not."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mari_onnx.engine import Options, Rewrite, rewrite
from mari_onnx.model.signature import signature
from mari_onnx.parity import check
from mari_onnx.parity.bisect import first_divergence
from mari_onnx.parity.check import find_sides
from mari_onnx.parity.guard import optimize_checked
from mari_onnx.parity.requests.recorded import load
from mari_onnx.sides.resolve import Sides

FOLDER = Path(__file__).parents[2] / "models"
FILES = sorted(p.name for p in FOLDER.glob("*.onnx"))
NAMES = [f.removesuffix(".onnx") for f in FILES if f.count(".") == 1]
PRODUCTS = ("MatMul", "Gemm")


@functools.lru_cache(maxsize=2)
def rewritten(file: str) -> tuple[onnx.ModelProto, Sides, Rewrite]:
    source = onnx.load(FOLDER / file)
    sides = find_sides([FOLDER / file], [source])
    return source, sides, rewrite(source, sides, Options())


def weight_of(model: onnx.ModelProto, kinds: tuple[str, ...], place: int) -> onnx.TensorProto:
    """The largest float weight that such a node reads at that place."""
    read = {n.input[place] for n in model.graph.node if n.op_type in kinds}
    found = [t for t in model.graph.initializer if t.name in read and t.data_type == 1]
    return max(found, key=lambda t: int(np.prod(t.dims)))


def changed(model: onnx.ModelProto, tensor: onnx.TensorProto, value: np.ndarray) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    mine = next(t for t in copy.graph.initializer if t.name == tensor.name)
    mine.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    return copy


@pytest.mark.parametrize("file", FILES)
def test_right_models_pass_on_recorded_and_drawn_requests(file: str) -> None:
    source, sides, made = rewritten(file)
    recorded = load(FOLDER / f"{file.split('.')[0]}.npz", signature(source), sides)
    result = check(source, made.model, sides, requests=recorded)
    assert result.ok, result.reasons
    result = check(source, made.model, sides, candidates=(1, 2, 65), count=1, coverage=20)
    assert result.ok, result.reasons
    assert result.reference.startswith("float64")
    assert [note for note in result.notes if "N = 0" not in note] == []


@pytest.mark.parametrize("name", NAMES)
def test_one_zeroed_embedding_row_fails(name: str) -> None:
    source, sides, made = rewritten(f"{name}.onnx")
    table = weight_of(made.model, ("Gather",), 0)
    value = numpy_helper.to_array(table).copy()
    value[np.abs(value).sum(axis=1).argmax()] = 0
    assert not check(source, changed(made.model, table, value), sides, candidates=(2,), coverage=400).ok


@pytest.mark.parametrize("name", NAMES)
def test_one_weight_off_by_a_thousandth_fails(name: str) -> None:
    source, sides, made = rewritten(f"{name}.onnx")
    weight = weight_of(made.model, PRODUCTS, 1)
    value = numpy_helper.to_array(weight) * 1.001
    result = check(source, changed(made.model, weight, value), sides, candidates=(64,), coverage=0)
    assert not result.ok


def test_bisection_and_the_guard_find_the_node_by_the_engine_s_own_map() -> None:
    source, sides, _ = rewritten("coarse_mlp.onnx")
    culprit = next(n.name for n in source.graph.node if n.op_type in PRODUCTS)

    def broken(model: onnx.ModelProto, sides: Sides, options: Options) -> Rewrite:
        answer = rewrite(model, sides, options)
        if culprit not in options.skip:
            gemm = next(n for n in answer.model.graph.node if n.op_type in PRODUCTS)
            weight = next(t for t in answer.model.graph.initializer if t.name == gemm.input[1])
            answer.model = changed(answer.model, weight, numpy_helper.to_array(weight) * 1.01)
        return answer

    wrong = broken(source, sides, Options())
    result = check(source, wrong.model, sides, coverage=0)
    assert result.worst_request is not None
    found = first_divergence(
        source, wrong.model, wrong.tensor_map, result.worst_request, wrong.nodes
    )
    assert found is not None
    assert found.node == culprit
    assert found.rule == "products"
    done = optimize_checked(source, sides, Options(), engine=broken, coverage=0)
    assert done.ok
    assert done.options.skip == {culprit}
    assert culprit in done.incidents[0]
