"""FLOPs and bytes of any model on given inputs, by shape inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine.cost.flops import Cost

# Values up to this many elements may be shapes; larger ones are not looked at.
_SMALL = 1024


def work(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> Cost | None:
    """The work of one run on `feed`; None where the shapes of products stay unknown."""
    from mari_onnx.engine.cost.flops import graph_cost
    from mari_onnx.model.ops import Fact, having

    try:
        shapes = _shapes(model, feed)
    except Exception:  # inference gives up with exceptions of several kinds
        return None
    products = having(Fact.PRODUCT)
    for node in model.graph.node:
        if node.op_type in products and node.output[0] not in shapes:
            return None
    return graph_cost(model.graph, shapes)


def _shapes(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    import onnx

    from mari_onnx.runtime import skeleton

    bare = skeleton(model)
    del bare.graph.value_info[:], bare.graph.input[:], bare.graph.output[:]
    small = [t for t in model.graph.initializer if int(np.prod(list(t.dims))) <= _SMALL]
    bare.graph.initializer.extend(small)
    kept = {t.name for t in small}
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    for name, array in feed.items():
        if name in types:
            info = onnx.helper.make_tensor_value_info(name, types[name], array.shape)
            bare.graph.input.append(info)
    for tensor in model.graph.initializer:
        if tensor.name not in kept:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            bare.graph.input.append(info)
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    found = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        tensor_type = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor_type.shape.dim]
        if tensor_type.HasField("shape") and -1 not in dims:
            found[value.name] = tuple(dims)
    return found
