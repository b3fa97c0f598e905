"""Shapes of a whole graph at a given number of candidates, by onnx's inference, and its small integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from mari_onnx.engine.builder import evaluate as evaluate_node
from mari_onnx.model.dims import Size, evaluate, symbols

ROUNDS = 4
"""How often shapes may follow from sizes, and these from shapes."""
MOVING = {
    "Add", "Cast", "Concat", "Div", "Gather", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze",
}  # fmt: skip
"""What graphs do with sizes."""
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
    known = integers(graph) | {proto.name: numpy_helper.to_array(proto) for proto in light.initializer}
    found: dict[str, Shape] = {proto.name: tuple(proto.dims) for proto in graph.initializer if proto.name not in given}
    for _ in range(ROUNDS):
        found |= _inferred(helper.make_model(light, opset_imports=imports))
        more = _sizes(light, found, known, opset)
        if not more:
            break
        known |= more
        left = [node for node in light.node if node.output[0] not in more]
        del light.node[:]
        light.node.extend(left)
        light.initializer.extend(numpy_helper.from_array(array, name) for name, array in more.items())
    return found


def _inferred(model: onnx.ModelProto) -> dict[str, Shape]:
    try:
        done = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # of pybind, one class an error
        return {}
    found: dict[str, Shape] = {}
    for info in [*done.input, *done.value_info]:
        if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            found[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return found


def _sizes(
    light: onnx.GraphProto, found: Mapping[str, Shape], known: Mapping[str, np.ndarray], opset: int
) -> dict[str, np.ndarray]:
    """Integers that sizes tell and inference has not followed, where a shape is open for want of them."""
    if all(None not in found.get(o, (None,)) for node in light.node for o in node.output if o):
        return {}
    told: dict[str, np.ndarray] = {}
    for node in light.node:
        arrays = [told[i] if i in told else known.get(i) for i in node.input]
        shape = found.get(node.input[0], (None,)) if node.op_type == "Shape" else (None,)
        if None not in shape:
            ends = {a.name: a.i for a in node.attribute}
            told[node.output[0]] = np.asarray(shape[ends.get("start", 0) : ends.get("end", len(shape))], np.int64)
        elif node.op_type in MOVING and node.input and all(array is not None for array in arrays):
            try:
                told[node.output[0]] = evaluate_node(node, arrays, opset)
            except Exception:  # of numpy and the evaluator, many kinds
                continue
    return told


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
