"""Models of a few nodes with inputs of the user, the item and both, and how tests split them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mari_onnx import engine
from mari_onnx.api import as_source, sides_of
from mari_onnx.choices import options_for
from mari_onnx.engine.outcome import Draft
from mari_onnx.splitting.make import Split, split_source
from mari_onnx.splitting.ways import Budget

SIDES = {"u": "user", "x": "item", "c": "cross"}


def model(
    nodes: Sequence[onnx.NodeProto],
    widths: dict[str, int],
    outputs: dict[str, Sequence[int | str]],
    weights: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """Float inputs `[N, width]` and float outputs of these shapes."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, ["N", w]) for k, w in widths.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, list(shape)) for k, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def three_sides(user: int = 96, item: int = 64, cross: int = 32, hidden: int = 64, seed: int = 0) -> onnx.ModelProto:
    """`Relu([u | x | c] W + b) V`."""
    rng = np.random.default_rng(seed)
    return model(
        [
            helper.make_node("Concat", ["u", "x", "c"], ["all"], "join", axis=1),
            helper.make_node("MatMul", ["all", "W"], ["p"], "product"),
            helper.make_node("Add", ["p", "b"], ["q"], "bias"),
            helper.make_node("Relu", ["q"], ["h"], "relu"),
            helper.make_node("MatMul", ["h", "V"], ["score"], "head"),
        ],
        {"u": user, "x": item, "c": cross},
        {"score": ["N", 1]},
        {
            "W": rng.standard_normal((user + item + cross, hidden)).astype(np.float32),
            "b": rng.standard_normal(hidden).astype(np.float32),
            "V": rng.standard_normal((hidden, 1)).astype(np.float32),
        },
    )


def draft(source: onnx.ModelProto, apart: str = "apart", sides: dict[str, str] = SIDES) -> Draft:
    """The new graph before it is cut."""
    found = sides_of(as_source(source), {name: sides[name] for name in sides if name in _names(source)})
    options = replace(options_for(500, assume=True), prices=None, split=apart)
    made = engine.rewrite(source, found, options).draft
    assert made is not None
    return made


def split(
    source: onnx.ModelProto,
    sides: dict[str, str] = SIDES,
    budget: Budget | None = None,
    counts: Sequence[int] = (1, 2, 7),
    half: bool = False,
    batched: str | None = None,
) -> Split:
    """A split, checked on a few requests."""
    loaded = as_source(source)
    found = sides_of(loaded, {name: sides[name] for name in sides if name in _names(source)}, batched=batched)
    checked = {"candidates": counts, "coverage": 0, "count": 1, "providers": ("cpu",)}
    return split_source(loaded, found, options_for(500), budget, state="float16" if half else None, **checked)


def _names(source: onnx.ModelProto) -> set[str]:
    return {i.name for i in source.graph.input}
