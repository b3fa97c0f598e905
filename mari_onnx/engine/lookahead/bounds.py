"""Nodes and tensors of the source in the form of the new graph's, so that `analysis.magnitude` can bound them."""

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
from mari_onnx.model.nodes import attribute


class Sourced:
    """The tensors of a source, each with its node. here, other: shapes at two numbers of candidates."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        nodes: Sequence[NodeProto],
        here: Mapping[str, Shape],
        other: Mapping[str, Shape],
        tables: Tables,
    ):
        self.spans: dict[tuple[str, int], Any] = {}
        """What `masked_rows` found of tensors, at a depth."""
        self._here, self._other, self._tables = here, other, tables
        inputs = {info.name for info in graph.input}
        self._tensors = {
            proto.name: Tensor(proto.name, proto.data_type, tuple(proto.dims), frozenset(), proto=proto)
            for proto in graph.initializer
            if proto.name not in inputs
        }
        for proto in nodes:
            node = Node(proto, [self.tensor(x) if x else None for x in proto.input], [], "", [])
            node.outputs += [self.tensor(name) for name in proto.output if name]
            for tensor in node.outputs:
                tensor.node = node

    def tensor(self, name: str) -> Tensor:
        """The tensor of this name; constant where the masks' tables tell its numbers."""
        if name not in self._tensors:
            shape, table = self._shape(name), self._tables.known.get(name)
            fixed = shape is not None and all(isinstance(size, int) for size in shape)
            array = self._tables.constant(name) if fixed else None
            tensor = self._tensors[name] = Tensor(name, TensorProto.UNDEFINED, shape, frozenset(), array=array)
            if table is not None and table.slots and table.arrays[0].dtype.kind in "fb":
                tensor.bound = max(float(np.max(np.abs(a.astype(np.float64)), initial=0)) for a in table.arrays)
        return self._tensors[name]

    def bound(self, name: str) -> float:
        """An upper bound of the absolute values; infinity where none is known."""
        try:
            return bound(self.tensor(name))
        except TRIPS:
            return math.inf

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
