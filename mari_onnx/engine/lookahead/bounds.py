"""A source's own nodes and tensors as those of the new graph, so that `analysis.magnitude` can be asked about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from mari_onnx.engine.analysis.magnitude import bound
from mari_onnx.engine.ir.value import Node, Tensor
from mari_onnx.engine.lookahead.mask_tables import TRIPS, Tables
from mari_onnx.engine.lookahead.shapes import Shape
from mari_onnx.model.dims import Dim, Size
from mari_onnx.model.nodes import attribute, attributes


class Sourced:
    """The tensors of a source, with their nodes. here, other: shapes at two numbers of candidates."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        nodes: Sequence[NodeProto],
        here: Mapping[str, Shape],
        other: Mapping[str, Shape],
        tables: Tables,
    ):
        self.made = {name: node for node in nodes for name in node.output if name}
        self.spans: dict[tuple[str, int], Any] = {}
        """What `masked_rows` found of tensors, at a depth."""
        self._here, self._other, self._tables = here, other, tables
        self._tensors: dict[str, Tensor] = {}
        inputs = {info.name for info in graph.input}
        for proto in graph.initializer:
            if proto.name not in inputs:
                self._add(Tensor(proto.name, proto.data_type, tuple(proto.dims), frozenset(), proto=proto))
        for node in nodes:
            self._node(node)

    def bound(self, name: str) -> float:
        """An upper bound of the absolute values; infinity where none is known."""
        tensor = self._tensors.get(name)
        try:
            return bound(tensor) if tensor is not None else math.inf
        except TRIPS:
            return math.inf

    def _add(self, tensor: Tensor) -> Tensor:
        self._tensors[tensor.name] = tensor
        table = self._tables.known.get(tensor.name)
        if table is not None and table.slots and table.arrays[0].dtype.kind in "fb":
            most = [float(np.max(np.abs(a.astype(np.float64)), initial=0)) for a in table.arrays]
            tensor.bound = max(most)
        return tensor

    def _shape(self, name: str) -> tuple[Size, ...] | None:
        """Dimensions that are not the same at both numbers are symbols."""
        here, other = self._here.get(name), self._other.get(name)
        if here is None or other is None or len(here) != len(other):
            return None
        dims = enumerate(zip(here, other, strict=True))
        return tuple(
            p if p is not None and p == q else Dim.symbol(f"{name}/{i}" if p is None or q is None else f"{p + q}")
            for i, (p, q) in dims
        )

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            self._add(Tensor(name, TensorProto.UNDEFINED, self._shape(name), frozenset()))
        return self._tensors[name]

    def _node(self, node: NodeProto) -> None:
        constant = self._tables.constant(node.output[0]) if node.output else None
        if node.op_type == "Constant" and constant is not None:
            self._add(Tensor(node.output[0], TensorProto.UNDEFINED, constant.shape, frozenset(), array=constant))
            return
        if node.op_type == "Gemm":
            self._gemm(node)
            return
        proto = node
        if node.op_type == "Cast" and attribute(node, "to") in (1, 11):
            proto = helper.make_node("Identity", list(node.input), list(node.output))
        self._put(proto, [self._tensor(x) if x else None for x in node.input])

    def _put(self, proto: NodeProto, inputs: list[Tensor | None]) -> None:
        node = Node(proto, inputs, [], "", [])
        for name in filter(None, proto.output):
            made = Tensor(name, TensorProto.UNDEFINED, self._shape(name), frozenset(), node)
            node.outputs.append(self._add(made))

    def _gemm(self, node: NodeProto) -> None:
        """A product and a sum, where B is a constant."""
        attrs = attributes(node)
        weights = self._tensor(node.input[1])
        plain = weights.const and attrs.get("alpha", 1.0) == attrs.get("beta", 1.0) == 1.0 and not attrs.get("transA")
        if not plain:
            self._put(node, [self._tensor(x) if x else None for x in node.input])
            return
        name = node.output[0]
        array = weights.array.T if attrs.get("transB") else weights.array
        turned = Tensor(f"{name}//B", weights.dtype, array.shape, frozenset(), array=array)
        last = len(node.input) < 3 or not node.input[2]
        product = name if last else f"{name}//AB"
        self._here, self._other = dict(self._here), dict(self._other)
        self._here[product], self._other[product] = self._here.get(name, ()), self._other.get(name, ())
        self._put(helper.make_node("MatMul", [node.input[0], turned.name], [product]), [
            self._tensor(node.input[0]), turned,
        ])  # fmt: skip
        if not last:
            addends: list[Tensor | None] = [self._tensor(product), self._tensor(node.input[2])]
            self._put(helper.make_node("Add", [product, node.input[2]], [name]), addends)


def sliced(nodes: Sequence[NodeProto], constants: Mapping[str, np.ndarray]) -> list[NodeProto]:
    """The nodes, with what a SequenceAt takes of a SplitToSequence as a Slice."""
    split = {node.output[0]: node for node in nodes if node.op_type == "SplitToSequence" and len(node.input) > 1}
    found: list[NodeProto] = []
    for node in nodes:
        made = split.get(node.input[0]) if node.op_type == "SequenceAt" else None
        sizes = constants.get(made.input[1]) if made is not None else None
        at = constants.get(node.input[1]) if made is not None else None
        if made is None or sizes is None or at is None or int(at.reshape(())) < 0:
            found.append(node)
            continue
        i, axis = int(at.reshape(())), attribute(made, "axis", 0)
        ends = np.cumsum(sizes) if sizes.ndim else (np.arange(i + 1) + 1) * int(sizes)
        if i >= len(ends):
            found.append(node)
            continue
        name = node.output[0]
        numbers = {f"{name}//start": ends[i - 1] if i else 0, f"{name}//end": ends[i], f"{name}//axis": axis}
        for constant, value in numbers.items():
            tensor = helper.make_tensor(constant, TensorProto.INT64, [1], [int(value)])
            found.append(helper.make_node("Constant", [], [constant], value=tensor))
        found.append(helper.make_node("Slice", [made.input[0], *numbers], [name]))
    read = {name for node in found for name in node.input}
    return [node for node in found if node.op_type != "SplitToSequence" or node.output[0] in read]
