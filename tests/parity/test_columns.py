"""Columns of an output that differ in scale."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from mari_onnx.parity import check
from mari_onnx.parity.judge.columns import columns
from mari_onnx.sides.resolve import Sides
from tests.parity.pairs import Graph

RNG = np.random.default_rng(0)


def groups(scale: list[float], counts: tuple[int, ...] = (1, 2, 7, 64)) -> list[list[int]]:
    arrays = [RNG.standard_normal((n, len(scale))) * scale for n in counts]
    return [g.tolist() for g in columns(arrays, counts, 0).groups]


def test_columns_of_one_scale_are_one_group() -> None:
    assert groups([1e4, 1, 1e4, 1]) == [[0, 2], [1, 3]]
    assert groups([1e-3, 1, 1e3]) == [[2], [1], [0]]
    assert len(groups([1.0, 0.5, 2.0])) == 1


def test_a_column_of_zeros_goes_with_the_largest() -> None:
    assert groups([1, 1e4, 0]) == [[1, 2], [0]]


def test_few_values_say_nothing_about_a_scale() -> None:
    assert len(groups([1e4, 1], (1, 2, 7))) == 1
    assert len(groups([1e4, 1], (1, 1, 1, 1))) == 1


def test_candidates_are_no_columns() -> None:
    arrays = [RNG.standard_normal((2, n)) * [[1e4], [1]] for n in (16, 64, 500, 64)]
    found = columns(arrays, (16, 64, 500, 64), 1)
    assert found.axis == 0
    assert [g.tolist() for g in found.groups] == [[0], [1]]
    same = [RNG.standard_normal((64,)) for _ in range(8)]
    assert columns(same, (64,) * 8, 0).axis is None


def two_tasks(split: bool, dtype: int, off: float = 1.0) -> onnx.ModelProto:
    """Seconds watched and a probability, from a layer that is split or not."""
    kind = np.float32 if dtype == TensorProto.FLOAT else np.float16
    rng = np.random.default_rng(1)
    w, heads = rng.standard_normal((12, 16)), rng.standard_normal((16, 2)) * [300, 0.02 * off]
    g = Graph()
    user, item = g.input("user", dtype, [1 if split else "N", 8]), g.input("item", dtype, ["N", 4])
    if split:
        g.op("MatMul", [user, g.weight("w_user", w[:8].astype(kind))], "user_part")
        g.op("MatMul", [item, g.weight("w_item", w[8:].astype(kind))], "item_part")
        g.op("Add", ["item_part", "user_part"], "h")
    else:
        g.op("Concat", [user, item], "all", axis=1)
        g.op("MatMul", ["all", g.weight("w", w.astype(kind))], "h")
    g.op("Relu", ["h"], "r")
    g.op("MatMul", ["r", g.weight("heads", heads.astype(kind))], "tasks")
    g.output("tasks", ["N", 2], dtype)
    return g.model()


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("seed", range(5))
def test_right_models_pass_and_a_fault_of_the_small_column_does_not(dtype: int, seed: int) -> None:
    sides = Sides({"user": "user", "item": "item"})
    source = two_tasks(False, dtype)
    right = check(source, two_tasks(True, dtype), sides, seed=seed)
    assert right.ok, right.reasons
    off = 1.0005 if dtype == TensorProto.FLOAT else 1.1
    assert not check(source, two_tasks(True, dtype, off), sides, seed=seed).ok


def test_ties_of_a_small_column_are_small() -> None:
    sides = Sides({"user": "user", "item": "item"})
    source = two_tasks(False, TensorProto.FLOAT)
    wrong = two_tasks(True, TensorProto.FLOAT, -1.0)
    ranking = check(source, wrong, sides).outputs[0].ranking
    assert ranking is not None
    assert ranking.swaps > 0
