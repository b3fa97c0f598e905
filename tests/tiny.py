"""Models of a few nodes for tests, named after what is in them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def fc(user: int = 6, item: int = 3, hidden: int = 4, seed: int = 0) -> onnx.ModelProto:
    """`MatMul(Concat(user_x [N, user], item_x [N, item]), w)`, output `score [N, hidden]`."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((user + item, hidden)).astype(np.float32)
    nodes = [
        helper.make_node("Concat", ["user_x", "item_x"], ["x"], "join", axis=1),
        helper.make_node("MatMul", ["x", "w"], ["score"], "product"),
    ]
    return _model(
        nodes,
        [_floats("user_x", ["N", user]), _floats("item_x", ["N", item])],
        [_floats("score", ["N", hidden])],
        [numpy_helper.from_array(weight, "w")],
    )


def items_only() -> onnx.ModelProto:
    """`Relu(item_x)`: there is no user."""
    return _model(
        [helper.make_node("Relu", ["item_x"], ["score"], "relu")],
        [_floats("item_x", ["N", 3])],
        [_floats("score", ["N", 3])],
        [],
    )


def inputs(**shapes: list[int | str]) -> onnx.ModelProto:
    """A model with float inputs of these shapes; each has an output of its own."""
    return _model(
        [helper.make_node("Identity", [name], [f"out_{name}"]) for name in shapes],
        [_floats(name, shape) for name, shape in shapes.items()],
        [_floats(f"out_{name}", shape) for name, shape in shapes.items()],
        [],
    )


def _floats(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
