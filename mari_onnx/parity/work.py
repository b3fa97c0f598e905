"""FLOPs, bytes and estimated time of any model on given inputs: shapes are inferred, and where that fails, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from mari_onnx.runtime import session, skeleton, weight_bytes

if TYPE_CHECKING:
    from mari_onnx.engine.cost.flops import Cost

# Values up to this many elements may be shapes; larger ones are not looked at.
_SMALL = 1024
# Bytes of weights up to which a model is copied in order to see the shapes of its tensors.
_RUNNABLE = 200_000_000


def work(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> Cost | None:
    """The work of one run on `feed`; None where the shapes of products stay unknown."""
    from mari_onnx.engine.cost.flops import graph_cost
    from mari_onnx.model.ops import Fact, having

    shapes = shapes_of(model, feed)
    products = having(Fact.PRODUCT)
    for node in model.graph.node:
        if node.op_type in products and node.output[0] not in shapes:
            return None
    return graph_cost(model.graph, shapes)


def shapes_of(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Sizes of the tensors in one run on `feed`, by name; those in bodies, and in models that cannot run, may lack.

    feed: what the model does not take is left out.
    """
    try:
        found = _inferred(model, feed)
    except Exception:  # inference gives up with exceptions of several kinds
        found = {}
    missing = [x for node in model.graph.node for x in node.output if x and x not in found]
    if missing and weight_bytes(model) < _RUNNABLE:
        found |= _met(model, feed, missing)
    return found


def _met(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Sizes of these tensors, in a run that answers them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    own = {i.name for i in model.graph.input}
    try:
        answers = session(copy, optimize=False).run(None, {k: v for k, v in feed.items() if k in own})
    except Exception:  # a sequence, or a model that takes other inputs
        return {}
    return {name: np.shape(each) for name, each in zip(names, answers, strict=True) if isinstance(each, np.ndarray)}


def _inferred(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
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
