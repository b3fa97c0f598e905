"""Looks ahead in the source: which positions of each node's inputs does an output read?

    score = Gemm(Gather(layer_norm(attention(x)), 0, axis=1))

reads position 0 of all tokens. What the last layer computes of the others nobody reads, so a node is given its inputs
without the positions that none of its outputs' readers needs (`axes/unread.py`). `read.py` finds them at one size of
every dynamic dimension. A position counts as not read if it is so at several sizes; of a dynamic axis, only its first
or last position alone, at sizes that have no factor in common with what an index may be counted by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto

from mari_onnx.engine.ir.nodes import evaluate as evaluate_node
from mari_onnx.engine.lookahead.read import Mask, Read
from mari_onnx.engine.lookahead.shapes import CHOOSING, MAX_KNOWN, OF_SIZES, Inputs, Shape, grows_large, needed, shapes
from mari_onnx.model.dims import evaluate, symbols
from mari_onnx.model.nodes import attributes, captures, constant, graphs, is_standard, own_names
from mari_onnx.model.ops import Fact, having
from mari_onnx.model.tensors import EXACT, array

SIZES, PICKS = having(Fact.SIZES), having(Fact.PICKS)
WORKS = having(Fact.PRODUCT) | having(Fact.NORM) | having(Fact.SOFTMAX)
SETTINGS = ((1, 13), (2, 17), (3, 19))
"""Numbers of candidates, and lengths of every other dynamic dimension, at which it is looked at what is read."""


def may_be_partial(graph: onnx.GraphProto) -> bool:
    """Whether an output may read a part only of what an operator that is worth it computes. A quick look, without
    shapes.
    """
    constants = {proto.name for proto in graph.initializer}
    outputs = {o.name for o in graph.output}
    whole = set(outputs)
    for node in reversed(graph.node):
        if any(graphs(node)):
            whole.update(captures(node))
        inputs = {name for name in node.input if name} - constants
        part = not any(o in whole for o in node.output)
        if part and node.op_type in WORKS:
            return True
        if node.op_type in SIZES or part or (node.op_type in PICKS and node.op_type != "Split"):
            continue
        whole |= inputs
    return False


class ReadPositions:
    """What is read of the inputs of a source's nodes, looked for when first asked. sizes: of the dynamic dimensions."""

    def __init__(self, graph: onnx.GraphProto, inputs: Inputs, opset: int):
        self.graph, self.inputs, self.opset = graph, inputs, opset
        dynamic = frozenset().union(*(symbols(s) for shape in inputs.values() if shape is not None for s in shape))
        self.sizes = [{s: count if s == "N" else other for s in dynamic | {"N"}} for count, other in SETTINGS]
        self._found: list[Read] | None = None

    @property
    def found(self) -> list[Read]:
        """For each of `sizes`; none where all that is computed is read."""
        if self._found is None:
            self._found = []
            if may_be_partial(self.graph):
                self._found = self._look()
        return self._found

    def _look(self) -> list[Read]:
        nodes = needed(self.graph)
        inner = {o for node in nodes for graph in graphs(node) for o in own_names(graph)}
        if any(o in inner for node in nodes for o in node.output):
            return []
        all_shapes = []
        for sizes in self.sizes:
            given = {n: None if s is None else [evaluate(d, sizes) for d in s] for n, s in self.inputs.items()}
            all_shapes.append(shapes(self.graph, nodes, given, sizes["N"], self.opset))
        constants = Constants(self.graph, nodes, all_shapes, self.opset)
        outputs = [o.name for o in self.graph.output]
        return [Read(outputs, nodes, known, constants, self.opset) for known in all_shapes]

    def of(self, node: NodeProto, i: int) -> list[Mask] | None:
        """What is read of input ``i``, at each of `sizes`; None where that is all of it, or not known."""
        key = (next((o for o in node.output if o), ""), i)
        return self._masks([read.by_input.get(key) for read in self.found])

    def of_output(self, node: NodeProto) -> list[Mask] | None:
        """The same of its first output."""
        return self._masks([read.by_name.get(next((o for o in node.output if o), "")) for read in self.found])

    def whole(self, name: str) -> bool:
        """Whether all of a tensor is read, or what is read of it is not known."""
        return self._masks([read.by_name.get(name) for read in self.found]) is None

    def _masks(self, masks: Sequence[Mask | None]) -> list[Mask] | None:
        known = [m for m in masks if m is not None]
        return known if known and len(known) == len(masks) and any(m.size > 1 for m in known) else None


class Constants:
    """Small integer arrays that indices are made of, at several sizes of the dynamic dimensions.

    An element that is picked from a shape counts as it is; what is computed with sizes that differ is not known, as it
    may differ otherwise at yet another size.
    """

    def __init__(
        self, graph: onnx.GraphProto, nodes: Sequence[NodeProto], shapes: Sequence[Mapping[str, Shape]], opset: int
    ):
        self.shapes, self.opset = shapes, opset
        self._made = {name: node for node in nodes for name in node.output if name}
        inputs = {info.name for info in graph.input}
        self._known: dict[str, list[np.ndarray] | None] = {}
        for proto in graph.initializer:
            small = proto.data_type in EXACT and int(np.prod(proto.dims, dtype=np.int64)) <= MAX_KNOWN
            if small and proto.name not in inputs:
                self._known[proto.name] = [array(proto)] * len(shapes)

    def __call__(self, name: str) -> np.ndarray | None:
        """The array, if it is the same at all sizes."""
        found = self._find(name)
        return found[0] if found is not None and _alike(found) else None

    def _find(self, name: str) -> list[np.ndarray] | None:
        stack = [name]
        while stack:
            top = stack[-1]
            node = self._made.get(top)
            if top in self._known or node is None:
                stack.pop()
                continue
            below = [x for x in node.input if x and x not in self._known and x in self._made]
            if below and node.op_type in OF_SIZES:
                stack += below
                continue
            self._known[top] = self._of(node)
            stack.pop()
        return self._known.get(name)

    def _of(self, node: NodeProto) -> list[np.ndarray] | None:
        fixed = constant(node)
        if fixed is not None:
            small = fixed.dtype.kind in "iub" and fixed.size <= MAX_KNOWN
            return [fixed] * len(self.shapes) if small else None
        if not is_standard(node) or len(node.output) != 1:
            return None
        if node.op_type == "Shape":
            found = []
            for shapes in self.shapes:
                shape = shapes.get(node.input[0])
                if shape is None or None in shape:
                    return None
                attrs = attributes(node)
                found.append(np.asarray(shape[attrs.get("start", 0) : attrs.get("end", len(shape))], np.int64))
            return found
        given = [self._known.get(x) if x else None for x in node.input]
        if node.op_type not in OF_SIZES or any(x and g is None for x, g in zip(node.input, given, strict=True)):
            return None
        if node.op_type not in CHOOSING and not all(_alike(g) for g in given if g is not None):
            return None
        if any(grows_large(node, [g[i] for g in given if g is not None]) for i in range(len(self.shapes))):
            return None
        try:
            made = [
                evaluate_node(node, [g[i] if g is not None else None for g in given], self.opset)
                for i in range(len(self.shapes))
            ]
        except Exception:  # of numpy and the evaluator, many kinds
            return None
        return made if all(m.size <= MAX_KNOWN for m in made) else None


def _alike(arrays: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(arrays[0], each) for each in arrays[1:])
