"""States and rows in half precision: user.onnx and item.onnx round what they hand over, score.onnx makes it float32.

In: the models of a plan. Out: models with Casts where tensors are handed over. Inputs that are passed on keep their
type, and so do rows that are outputs of the source, which a caller may want as they are.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import TensorProto, helper

from mari_onnx.engine.ir.value import Tensor
from mari_onnx.model.nodes import all_names, free_name, rename_captures

COARSER = 2.0**13
"""How many times coarser half precision rounds than float32: so many times farther off may outputs be."""


def is_half(t: Tensor, outputs: Collection[str]) -> bool:
    """Whether a tensor that is handed over is so in half precision. outputs: names of the source's."""
    return t.node is not None and t.dtype == TensorProto.FLOAT and t.name not in outputs


def rounded(model: onnx.ModelProto, names: Collection[str], made: bool) -> onnx.ModelProto:
    """A copy in which the tensors `names` are float16 on the outside, and float32 within.

    Args:
        made: they are outputs of the model; else inputs.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, taken = copy.graph, all_names(model.graph)
    inner = {}
    for info in graph.output if made else graph.input:
        if info.name in names:
            inner[info.name] = free_name(f"{info.name}/float32", taken)
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in graph.node:
        node.input[:] = [inner.get(x, x) for x in node.input]
        if made:
            node.output[:] = [inner.get(x, x) for x in node.output]
        rename_captures(node, inner)
    kind = TensorProto.FLOAT16 if made else TensorProto.FLOAT
    pairs = [(within, name) if made else (name, within) for name, within in inner.items()]
    casts = [helper.make_node("Cast", [x], [y], f"{x}/Cast", to=kind) for x, y in pairs]
    nodes = [*graph.node, *casts] if made else [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return copy
