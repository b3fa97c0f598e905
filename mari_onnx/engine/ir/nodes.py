"""Runs a single node on numpy arrays, and tells whether a node is random."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import onnx
from onnx import NodeProto, helper
from onnx.reference import ReferenceEvaluator

from mari_onnx.model.nodes import all_nodes
from mari_onnx.model.ops import Fact, having

RANDOM = having(Fact.RANDOM)
LARGE = 1 << 12
"""Bytes of a node from which on what runs it is not kept for the next one like it."""


def evaluate(proto: NodeProto, arrays: Sequence[np.ndarray | None], opset: int) -> np.ndarray:
    """The outputs of one node on arrays, by onnx's reference evaluator. Raises whatever the evaluator raises."""
    node = NodeProto(op_type=proto.op_type, domain=proto.domain, output=["o"])
    node.attribute.extend(proto.attribute)
    node.input.extend(f"i{k}" if a is not None else "" for k, a in enumerate(arrays))
    key = node.SerializeToString(deterministic=True)
    runner = _evaluator(key, opset) if len(key) < LARGE else _evaluator.__wrapped__(key, opset)
    feeds = {f"i{k}": a for k, a in enumerate(arrays) if a is not None}
    with np.errstate(all="ignore"):
        outputs: Sequence[np.ndarray] = runner.run(None, feeds)  # type: ignore[assignment]
        return np.asarray(outputs[0])


@lru_cache(maxsize=512)
def _evaluator(node: bytes, opset: int) -> ReferenceEvaluator:
    """What runs a node, whose inputs and output are named as in `evaluate`."""
    proto = NodeProto.FromString(node)
    infos = [onnx.ValueInfoProto(name=name) for name in proto.input if name]
    graph = helper.make_graph([proto], "fold", infos, [onnx.ValueInfoProto(name="o")])
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))


def is_random(node: NodeProto) -> bool:
    """Whether two equal nodes may compute different results: the operator draws numbers, or a subgraph of it does."""
    for each in all_nodes([node]):
        if each.op_type in RANDOM or (each.op_type == "Dropout" and len(each.input) > 2):
            return True
    return False
