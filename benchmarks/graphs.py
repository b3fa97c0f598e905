"""Graphs that benchmarks write by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 20


class Graph:
    """Nodes and weights in the making; every method answers the name of a tensor."""

    def __init__(self, seed: int = 0, dtype: type = np.float32):
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.dtype = dtype
        self.rng = np.random.default_rng(seed)
        self._count = 0

    def input(self, name: str, shape: Sequence[int | str], kind: int | None = None) -> str:
        kind = kind or helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def const(self, array: np.ndarray) -> str:
        name = self._name("const")
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def weight(self, *shape: int) -> str:
        """Random, scaled so that a product keeps the size of its operand."""
        values = self.rng.standard_normal(shape, np.float32) / np.sqrt(shape[0])
        return self.const(values.astype(self.dtype))

    def bias(self, size: int) -> str:
        """Small random numbers: equal ones would be a case of its own."""
        return self.const((self.rng.standard_normal(size, np.float32) / 10).astype(self.dtype))

    def vector(self, size: int, value: float) -> str:
        return self.const(np.full(size, value, self.dtype))

    def op(self, op: str, *inputs: str, **attributes: object) -> str:
        return self.ops(op, *inputs, count=1, **attributes)[0]

    def ops(self, op: str, *inputs: str, count: int, **attributes: object) -> list[str]:
        outputs = [self._name(op) for _ in range(count)]
        self.nodes.append(helper.make_node(op, inputs, outputs, outputs[0], **attributes))
        return outputs

    def dense(self, x: str, wide: int, out: int, relu: bool = True) -> str:
        y = self.op("Gemm", x, self.weight(wide, out), self.bias(out))
        return self.op("Relu", y) if relu else y

    def rows_of(self, x: str) -> str:
        """`[N]`, the length of the first axis, as a tensor of shape `[1]`."""
        return self.op("Shape", x, start=0, end=1)

    def model(self, output: str, shape: Sequence[int | str]) -> onnx.ModelProto:
        """The model, whose last node writes `output`."""
        self.nodes[-1].output[0] = output
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        value = helper.make_tensor_value_info(output, kind, shape)
        graph = helper.make_graph(self.nodes, "benchmark", self.inputs, [value], self.weights)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem.lower()}_{self._count}"
