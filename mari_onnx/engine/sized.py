"""Shapes of a whole graph at a given number of candidates, by onnx's inference, and its small integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from mari_onnx.model.dims import Size, evaluate, symbols

SMALL = 1024
"""Elements up to which a constant is read."""
INTS = (TensorProto.INT64, TensorProto.INT32)

Shape = tuple[int | None, ...]
"""None as a dimension is one that is not known."""
Inputs = Mapping[str, Sequence[Size] | None]
"""Shapes of a graph's inputs, with the symbol N for the candidates."""


def shapes(
    graph: onnx.GraphProto,
    nodes: Sequence[NodeProto],
    inputs: Inputs,
    drops: Mapping[str, tuple[int, ...]],
    candidates: int,
    opset: int,
) -> dict[str, Shape]:
    """What is known of the tensors of `nodes`. drops: axes of Squeezes, by output; others stay as they are.

    Large constants and operators with graphs are left out, so that what is copied is small.
    """
    light = onnx.GraphProto(name="g")
    for node in nodes:
        large = _large(node)
        if large is not None:
            light.input.append(helper.make_tensor_value_info(node.output[0], large.data_type, list(large.dims)))
        elif not has_graphs(node):
            _copy(light, node, drops.get(node.output[0]), opset)
    given = {info.name: info for info in graph.input}  # an initializer that is an input may be replaced
    for name, info in given.items():
        sizes = None if (shape := inputs.get(name)) is None else [_at(size, candidates) for size in shape]
        light.input.append(helper.make_tensor_value_info(name, info.type.tensor_type.elem_type, sizes))
    for proto in graph.initializer:
        if proto.name in given:
            continue
        if proto.data_type in INTS and _elements(proto.dims) <= SMALL:
            light.initializer.append(proto)
        else:
            light.input.append(helper.make_tensor_value_info(proto.name, proto.data_type, list(proto.dims)))
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(d, 1) for d in {n.domain for n in light.node} - {"", "ai.onnx"}]
    model = helper.make_model(light, opset_imports=imports)
    try:
        done = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # of pybind, one class an error
        return {}
    found: dict[str, Shape] = {proto.name: tuple(proto.dims) for proto in graph.initializer if proto.name not in given}
    for info in [*done.input, *done.value_info]:
        if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            found[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return found


def integers(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Constants that are integers, if small."""
    inputs = {info.name for info in graph.input}
    protos = [(proto.name, proto) for proto in graph.initializer if proto.name not in inputs]
    found = {}
    for node in graph.node:
        for a in node.attribute if node.op_type == "Constant" else ():
            if a.name == "value":
                protos.append((node.output[0], a.t))
            elif a.name in ("value_int", "value_ints"):
                found[node.output[0]] = np.asarray(helper.get_attribute_value(a))
    for name, proto in protos:
        if proto.data_type in INTS and _elements(proto.dims) <= SMALL:
            found[name] = numpy_helper.to_array(proto)
    return found


def has_graphs(node: NodeProto) -> bool:
    """Whether a node is an If, a Loop, a Scan or the like."""
    return any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute)


def _copy(light: onnx.GraphProto, node: NodeProto, axes: tuple[int, ...] | None, opset: int) -> None:
    copy = light.node.add()
    copy.CopyFrom(node)
    if axes is None:
        return
    if not axes:
        copy.op_type = "Identity"
    elif opset < 13:
        copy.attribute.append(helper.make_attribute("axes", axes))
    else:
        name = f"{node.output[0]}//axes"
        light.initializer.append(numpy_helper.from_array(np.asarray(axes, np.int64), name))
        del copy.input[1:]
        copy.input.append(name)


def _at(size: Size, candidates: int) -> int | None:
    return evaluate(size, {"N": candidates}) if symbols(size) <= {"N"} else None


def _large(node: NodeProto) -> TensorProto | None:
    """The tensor of a large Constant."""
    found = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
    return found if found is not None and _elements(found.dims) > SMALL else None


def _elements(dims: Sequence[int]) -> int:
    return int(np.prod(dims, dtype=np.int64)) if len(dims) else 1
