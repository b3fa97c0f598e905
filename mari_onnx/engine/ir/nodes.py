"""Runs a single node on numpy arrays, and tells whether a node is random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper
from onnx.reference import ReferenceEvaluator

from mari_onnx.model.nodes import all_nodes
from mari_onnx.model.ops import Fact, having

RANDOM = having(Fact.RANDOM)


def evaluate(proto: NodeProto, arrays: Sequence[np.ndarray | None], opset: int) -> np.ndarray:
    """The outputs of one node on arrays, by onnx's reference evaluator. Raises whatever the evaluator raises."""
    node = NodeProto()
    node.CopyFrom(proto)
    names = [f"i{k}" if a is not None else "" for k, a in enumerate(arrays)]
    del node.input[:], node.output[:]
    node.input.extend(names)
    node.output.append("o")
    feeds = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
    infos = [onnx.ValueInfoProto(name=n) for n in feeds]
    graph = helper.make_graph([node], "fold", infos, [onnx.ValueInfoProto(name="o")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    with np.errstate(all="ignore"):
        outputs: Sequence[np.ndarray] = ReferenceEvaluator(model).run(None, feeds)  # type: ignore[assignment]
        return np.asarray(outputs[0])


def is_random(node: NodeProto) -> bool:
    """Whether two equal nodes may compute different results: the operator draws numbers, or a subgraph of it does."""
    for each in all_nodes([node]):
        if each.op_type in RANDOM or (each.op_type == "Dropout" and len(each.input) > 2):
            return True
    return False
