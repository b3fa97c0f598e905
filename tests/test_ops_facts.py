"""The facts of `mari_onnx.model.ops`, each operator on numbers, by onnx's reference evaluator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx.defs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.engine.ir.nodes import evaluate
from mari_onnx.model.ops import STANDARD, Fact, having, mirrored, row, turns_below

OPSET = 24
ATTRIBUTES: dict[str, dict[str, Any]] = {"Cast": {"to": TensorProto.DOUBLE}, "BitShift": {"direction": "LEFT"}}
ELEMENT = having(Fact.ELEMENT, STANDARD)
COUNT = {op: onnx.defs.get_schema(op, OPSET).min_input for op in ELEMENT}
UNARY = sorted(op for op in ELEMENT if COUNT[op] == 1 and Fact.VARIADIC not in row(op).facts)
BINARY = sorted(op for op in ELEMENT if COUNT[op] == 2 or Fact.VARIADIC in row(op).facts)
REDUCES = sorted(having(Fact.REDUCES, STANDARD))
NUMBERS = st.lists(st.floats(-20, 20).map(lambda x: round(x * 8) / 8), min_size=4, max_size=4)
"""Few enough digits that sums and products are exact, large enough to saturate, and often 0."""


def run(op: str, *arrays: np.ndarray, opset: int = OPSET, **attributes: Any) -> np.ndarray:
    names = [f"x{i}" for i in range(len(arrays))]
    return evaluate(helper.make_node(op, names, ["y"], **ATTRIBUTES.get(op, attributes)), arrays, opset)


def operand(op: str, numbers: Sequence[float]) -> np.ndarray:
    """An array of a type that the operator takes."""
    if op in having(Fact.LOGIC):
        return np.asarray(numbers) > 0
    if op.startswith("Bit"):
        return np.abs(np.asarray(numbers)).astype(np.uint8) % 8
    return np.asarray(numbers, np.float64)


def same(x: np.ndarray, y: np.ndarray) -> None:
    np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


def check_values(op: str, y: np.ndarray, x: np.ndarray) -> None:
    """What holds for the values of a result, given the first input."""
    facts = row(op).facts
    assert np.all(np.abs(y.astype(np.float64)) <= row(op).bound)
    if Fact.NO_LARGER in facts:
        assert np.max(np.abs(y)) <= np.max(np.abs(x)) + 1e-12
    if Fact.NONNEGATIVE in facts or (Fact.KEEPS_SIGN in facts and np.all(x >= 0)):
        assert np.all(y >= 0)
    if Fact.KEEPS_POSITIVE in facts and np.all(x > 0):
        assert np.all(y > 0)
    if Fact.WHOLE in facts:
        same(y, np.round(y))


@pytest.mark.parametrize("op", UNARY)
@given(NUMBERS)
def test_facts_of_one_input(op: str, numbers: list[float]) -> None:
    x = operand(op, numbers)
    if Fact.NEEDS_POSITIVE in row(op).facts:
        x = np.abs(x) + 0.125
    if Fact.NEEDS_NONZERO in row(op).facts:
        x = np.where(x == 0, 1, x)
    y, facts = run(op, x), row(op).facts
    assert y.shape == x.shape
    assert (y.dtype == bool) == (Fact.BOOLEAN in facts)
    if Fact.FINITE in facts:
        assert np.all(np.isfinite(y))
        check_values(op, y, x)
    if Fact.LINEAR in facts:
        same(run(op, 2 * x), 2 * y)
    if row(op).function is not None:
        same(y, np.array([row(op).function(float(v)) for v in x]))  # type: ignore[misc]


@pytest.mark.parametrize("op", BINARY)
@given(NUMBERS, NUMBERS)
def test_facts_of_two_inputs(op: str, first: list[float], second: list[float]) -> None:
    this, facts = row(op), row(op).facts
    x, y = operand(op, first), operand(op, second)
    if Fact.NEEDS_NONZERO in facts:
        y = np.where(y == 0, 1, y)
    if op == "Mod":
        x, y = x.astype(np.int64), np.abs(y).astype(np.int64) + 1
    out = run(op, x, y)
    assert (out.dtype == bool) == (Fact.BOOLEAN in facts)
    if Fact.FINITE in facts:
        assert np.all(np.isfinite(out))
    if Fact.COMMUTES in facts:
        same(out, run(op, y, x))
    elif op in having(Fact.ADDS) | having(Fact.MULTIPLIES):
        one, two = np.ones(1), np.full(1, 2.0)
        assert run(op, one, two) != run(op, two, one)
    if Fact.LINEAR in facts:
        same(run(op, 2 * x, y), 2 * out)
    if this.neutral is not None:
        same(run(op, x, np.full_like(x, this.neutral)), x)
    if this.holds:
        assert out.tolist() == [bool(sign in this.holds) for sign in np.sign(x - y)]
        assert out.tolist() == run(mirrored(op), y, x).tolist()
    if this.acts_where and op != "Mod":
        assert np.all((out == x) == ~run(this.acts_where, x, y))
    if Fact.ORDERS in facts:
        below, at, above = (bool(run(op, np.full(1, 2.0 + d), np.full(1, 2.0))[0]) for d in (-1, 0, 1))
        assert turns_below(op) == (below != at)
        assert below != above
    if this.function is not None:
        same(out, np.array([this.function(a, b) for a, b in zip(x, y, strict=True)]))


@pytest.mark.parametrize("op", REDUCES)
@given(NUMBERS)
def test_facts_of_reductions(op: str, numbers: list[float]) -> None:
    this, x = row(op), np.asarray(numbers, np.float64)
    if op == "ReduceLogSum":
        x = np.abs(x) + 0.125
    y = run(op, x)
    if Fact.FINITE in this.facts:
        assert np.all(np.isfinite(y))
    check_values(op, y, x)
    if Fact.LINEAR in this.facts:
        same(run(op, 2 * x), 2 * y)
    assert this.neutral is not None
    more = run(op, np.append(x, this.neutral))
    same(more * (5 / 4 if op == "ReduceMean" else 1), y)
    if this.function is not None:
        same(y.reshape(()), np.asarray(this.function(x.tolist())))


@pytest.mark.parametrize("op", sorted(having(Fact.SOFTMAX) | {"Hardmax"}))
@given(NUMBERS)
def test_facts_of_weights(op: str, numbers: list[float]) -> None:
    x = np.asarray([numbers], np.float64)
    check_values(op, run(op, x), x)


@pytest.mark.parametrize("op", sorted(having(Fact.KEEPS_NAN) & {*UNARY, *BINARY, *REDUCES, "Softmax", "MatMul"}))
def test_a_nan_is_kept(op: str) -> None:
    """In either operand, at every place; a 0 does not hide it."""
    clean = np.zeros((1, 4)) if op != "MatMul" else np.zeros((4, 4))
    for place in range(4):
        x = np.array([0.5, 1.0, 2.0, 3.0])[None].repeat(len(clean), 0)
        x[:, place] = np.nan
        pairs = [(x,)] if op in {*UNARY, *REDUCES, "Softmax"} else [(x, clean), (clean, x)]
        for inputs in pairs:
            out = run(op, *inputs)
            assert np.isnan(out[:, place] if op in {*UNARY, *BINARY} or inputs[0] is clean else out).all()


X = np.arange(1.0, 25.0).reshape(1, 4, 3, 2)
AT = np.asarray([1, 0])
ALL = np.broadcast_to(AT.reshape(1, 2, 1, 1), (1, 2, 3, 2))
MOVES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "Reshape": ([[6, 4]], {}), "Flatten": ([], {"axis": 2}), "Squeeze": ([[0]], {}), "Unsqueeze": ([[1]], {}),
    "Transpose": ([], {"perm": [3, 1, 2, 0]}), "Expand": ([[2, 4, 3, 2]], {}), "Tile": ([[1, 2, 1, 1]], {}),
    "Slice": ([[1], [3], [1]], {}), "Split": ([[1, 3]], {"axis": 1}), "Gather": ([AT], {"axis": 1}),
    "Compress": ([[True, False, True]], {"axis": 1}), "GatherElements": ([ALL], {"axis": 1}),
    "GatherND": ([[[0, 1], [0, 2]]], {}),
    "DepthToSpace": ([], {"blocksize": 2}), "SpaceToDepth": ([], {"blocksize": 1}),
    "ReverseSequence": ([[1, 2, 3, 2]], {"time_axis": 2, "batch_axis": 1}),
    "Pad": ([[0, 1, 0, 0, 0, 0, 0, 0]], {}), "Trilu": ([], {"upper": 0}),
}  # fmt: skip


def test_everything_that_moves_elements_is_tried() -> None:
    missing = having(Fact.MOVES, STANDARD) - set(MOVES)
    assert not missing, f"give an example of {sorted(missing)} in MOVES above: inputs after the first, attributes"
    assert set(MOVES) == having(Fact.MOVES, STANDARD)


@pytest.mark.parametrize("op", sorted(MOVES))
def test_facts_of_movement(op: str) -> None:
    inputs, attributes = MOVES[op]
    y = run(op, X, *(a if (a := np.asarray(i)).dtype == bool else a.astype(np.int64) for i in inputs), **attributes)
    facts, fill = row(op).facts, {0.0} if Fact.FILLS in row(op).facts else set()
    assert set(y.reshape(-1)) <= set(X.reshape(-1)) | fill
    assert bool(fill & set(y.reshape(-1))) == (Fact.FILLS in facts)
    if Fact.VIEW in facts:
        assert y.reshape(-1).tolist() == X.reshape(-1).tolist()
    if Fact.UNIT_DIMS in facts:
        assert [d for d in y.shape if d != 1] == [d for d in X.shape if d != 1]
    if Fact.PICKS in facts:
        assert set(y.reshape(-1)) < set(X.reshape(-1))
    elif not fill:
        assert set(y.reshape(-1)) == set(X.reshape(-1))
    assert (Fact.REPEATS in facts) == (y.size > X.size and not fill)


def test_what_costs_no_more_than_moving_it_has_the_price_of_an_element() -> None:
    times = TimeModel(element=3.0)
    assert [times.element_of(op) for op in ("Relu", "Reshape", None)] == [3.0] * 3
    assert times.element_of("Exp") == row("Exp").price != 3.0


def test_flattened_rows() -> None:
    for op in having(Fact.ROWS, STANDARD):
        before = row(op).flattened_before
        if before:
            schemas = [onnx.defs.get_schema(op, opset) for opset in (before - 1, before)]
            assert [schema.attributes["axis"].default_value.i for schema in schemas] == [1, -1]


def test_attributes_that_name_a_type() -> None:
    for schema in onnx.defs.get_all_schemas():
        name = row(schema.name).type_attribute
        if name and schema.domain == STANDARD:
            assert name in schema.attributes


def test_the_mirrored_comparison_of_every_comparison() -> None:
    found = {op: mirrored(op) for op in having(Fact.BOOLEAN) if row(op).holds}
    assert len(found) == 5
    assert all(found[other] == op for op, other in found.items())
    assert math.isinf(row("no such operator").bound)
