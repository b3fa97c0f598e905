"""Inputs of unusual shapes: a model is optimized and checked, left as it is, or refused in words."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.api import optimize
from mari_onnx.engine import interpreter, rewrite
from mari_onnx.errors import CannotCompare, ModelError, UsageError
from mari_onnx.sides.resolve import Sides

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Shape = Sequence[int | str | None] | None
EMB, DIM = 50, 16


def tensor(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.random.default_rng(0).standard_normal(shape).astype(np.float32), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Shape]],
    weights: Sequence[onnx.TensorProto],
) -> onnx.ModelProto:
    """The last node's output is the model's."""
    infos = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    outputs = [onnx.ValueInfoProto(name=nodes[-1].output[0])]
    graph = helper.make_graph(list(nodes), "g", infos, outputs, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=output, **attributes)


def one_number(kind: int, user: Shape, item: Shape) -> onnx.ModelProto:
    """All of the user's values as one number, which every candidate is multiplied by."""
    first = [node("Gather", "E u", "e")] if kind == INT64 else [node("Identity", "u", "e")]
    nodes = [*first, node("ReduceSum", "e", "s", keepdims=0), node("Mul", "x s", "m"), node("Sigmoid", "m", "y")]
    return model(nodes, [("u", kind, user), ("x", FLOAT, item)], [tensor("E", EMB, 3)])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", [FLOAT, INT64])
@pytest.mark.parametrize(
    "user", [[], [1], [8], ["K"], [1, 8], ["N", 8], ["R", 8], ["R", 1, 8], ["R", "T", 8], [0], ["N", 0], None], ids=str
)
def test_user_inputs_of_any_rank(axis: int, kind: int, user: Shape) -> None:
    source = one_number(kind, user, ["R", "N", 4][1 - axis :])
    with suppress(ModelError, UsageError):  # eight values of a user's are not told from a batch of eight
        optimize(source, Sides({"u": "user", "x": "item"}, {}, axis))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("side", ["item", "cross", None])
@pytest.mark.parametrize("item", [[], [4], ["N"], [1, 1], ["R", "N"], [0], ["N", 0], ["R", "N", 0], None], ids=str)
def test_item_inputs_of_any_rank(axis: int, side: Any, item: Shape) -> None:
    source = one_number(FLOAT, ["N", 8], item)
    # No output has an element then; and of [N, 0] axis 1 cannot be the candidates'.
    empty = suppress(CannotCompare, UsageError) if item and 0 in item else nullcontext()
    with empty:
        optimize(source, Sides({"u": "user"} | ({"x": side} if side else {}), {}, axis))


def joined(symbols: Sequence[Shape], lookup_first: bool) -> onnx.ModelProto:
    """Ids of four features behind each other, split again by lengths that the run tells, before or after the lookup."""
    names = ["user_a", "user_b", "item_a", "item_b"]
    nodes = [node("Reshape", f"{k} flat", f"{k}f") for k in names]
    nodes += [node("Shape", f"{k}f", f"{k}s") for k in names]
    nodes += [node("Concat", " ".join(f"{k}{what}" for k in names), what * 2, axis=0) for what in "fs"]
    if lookup_first:
        nodes += [node("Gather", "E ff", "rows"), helper.make_node("Split", ["rows", "ss"], names_of(names, "e"))]
    else:
        nodes += [helper.make_node("Split", ["ff", "ss"], names_of(names, "i"))]
        nodes += [node("Gather", f"E {k}i", f"{k}e") for k in names]
    nodes += [node("Concat", " ".join(names_of(names, "e")), "c", axis=1), node("MatMul", "c W", "h")]
    nodes += [node("Relu", "h", "y")]
    weights = [numpy_helper.from_array(np.array([-1]), "flat"), tensor("E", EMB, DIM), tensor("W", 4 * DIM, 8)]
    return model(nodes, [(k, INT64, s) for k, s in zip(names, symbols, strict=True)], weights)


def names_of(names: Sequence[str], what: str) -> list[str]:
    return [name + what for name in names]


@pytest.mark.parametrize("lookup_first", [False, True])
@pytest.mark.parametrize(
    "symbols", [["N"] * 4, ["s25", "s94", "s7", "s12"], ["s1", "N", "s2", "N"], [None] * 4], ids=str
)
def test_every_feature_with_a_batch_symbol_of_its_own(lookup_first: bool, symbols: Sequence[Any]) -> None:
    source = joined([[s, 1] for s in symbols], lookup_first)
    done = optimize(source, user=["user*"], item=["item*"])
    assert any(r.op == "MatMul" and r.action == "split" for r in done.rewrite.nodes)


def test_parts_of_other_lengths_are_left_joined() -> None:
    """The history is as long as it is: its share is none of equal ones."""
    nodes = [
        node("Concat", "u x", "all", axis=0),
        helper.make_node("Split", ["all", "lengths"], ["a", "b"]),
        node("Gather", "E a", "ea"),
        node("Gather", "E b", "eb"),
        node("ReduceMean", "ea", "m", axes=[0]),
        node("Mul", "m eb", "y"),
    ]
    inputs = [("u", INT64, ["T"]), ("x", INT64, ["N"]), ("lengths", INT64, [2])]
    result = rewrite(model(nodes, inputs, [tensor("E", EMB, DIM)]), Sides({"x": "item"}))
    assert not result.changed


def test_what_the_engine_trips_over_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def trips(*_: Any) -> None:
        raise TypeError("not subscriptable")

    source = one_number(FLOAT, ["N", 8], ["N", 4])
    monkeypatch.setattr("mari_onnx.engine._rewrite", trips)
    monkeypatch.setattr(interpreter, "STRICT", False)
    result = rewrite(source, Sides({"u": "user", "x": "item"}))
    assert result.model is source
    assert not result.changed
    assert result.reason == "the rewrite failed (TypeError: not subscriptable)"
    monkeypatch.setattr(interpreter, "STRICT", True)
    with pytest.raises(TypeError):
        rewrite(source, Sides({"u": "user", "x": "item"}))
