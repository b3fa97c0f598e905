"""Shapes of all tensors of a source graph at a given number of candidates, and the values of its small integer tensors.

In: the graph, and N. Out: shapes and arrays by name, by onnx's shape inference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mari_onnx.engine.ir.infer import infer
from mari_onnx.engine.ir.nodes import evaluate as evaluate_node
from mari_onnx.engine.ir.value import Tensor
from mari_onnx.model.dims import Size, evaluate, symbols
from mari_onnx.model.nodes import attributes, captures, graphs
from mari_onnx.model.ops import Fact, having, row
from mari_onnx.model.tensors import INDICES

ROUNDS = 4
"""How often shapes may follow from sizes, and these from shapes."""
CHOOSING = (having(Fact.MOVES) | having(Fact.SAME) | having(Fact.CONVERTS) | {"Concat"}) - (
    having(Fact.FILLS) | having(Fact.REPEATS)
)
"""Operators that choose elements of shapes."""
OF_SIZES = CHOOSING | having(Fact.ELEMENT) | having(Fact.GROWS)
"""What graphs do with sizes: `expand(-1, ..)` compares them with -1, and chooses."""
MAX_KNOWN = 1024
"""Elements up to which a constant is read."""

BROADCAST = having(Fact.ELEMENT) - {"CastLike"} | having(Fact.SOFTMAX)
MOVING = having(Fact.MOVES) | {"Concat"}

Shape = tuple[int | None, ...]
"""None as a dimension is one that is not known."""
Inputs = Mapping[str, Sequence[Size] | None]
"""Shapes of a graph's inputs, with the symbol N for the candidates."""


def needed(graph: onnx.GraphProto) -> list[NodeProto]:
    """Nodes that an output needs: others are not run."""
    wanted = {o.name for o in graph.output}
    found = []
    for node in reversed(graph.node):
        if any(o in wanted for o in node.output):
            found.append(node)
            wanted.update(node.input, captures(node))
    return found[::-1]


def shapes(
    graph: onnx.GraphProto,
    nodes: Sequence[NodeProto],
    inputs: Inputs,
    candidates: int,
    opset: int,
) -> dict[str, Shape]:
    """What is known of the tensors of `nodes`.

    Large constants and operators with graphs are left out, so that what is copied is small.
    """
    light = onnx.GraphProto(name="g")
    for node in nodes:
        large = _large(node)
        if large is not None:
            light.input.append(helper.make_tensor_value_info(node.output[0], large.data_type, list(large.dims)))
        elif not any(graphs(node)):
            light.node.append(node)
    given = {info.name: info for info in graph.input}  # an initializer that is an input may be replaced
    for name, info in given.items():
        sizes = None if (shape := inputs.get(name)) is None else [_at(size, candidates) for size in shape]
        light.input.append(helper.make_tensor_value_info(name, info.type.tensor_type.elem_type, sizes))
    for proto in graph.initializer:
        if proto.name in given:
            continue
        if proto.data_type in INDICES and _elements(proto.dims) <= MAX_KNOWN:
            light.initializer.append(proto)
        else:
            light.input.append(helper.make_tensor_value_info(proto.name, proto.data_type, list(proto.dims)))
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(d, 1) for d in {n.domain for n in light.node} - {"", "ai.onnx"}]
    known = integers(graph) | {proto.name: numpy_helper.to_array(proto) for proto in light.initializer}
    found: dict[str, Shape] = {proto.name: tuple(proto.dims) for proto in graph.initializer if proto.name not in given}
    types = {proto.name: proto.data_type for proto in graph.initializer}
    types |= {name: info.type.tensor_type.elem_type for name, info in given.items()}
    for _ in range(ROUNDS):
        found |= _inferred(helper.make_model(light, opset_imports=imports), types)
        more = _sizes(light, found, known, opset)
        if not more:
            break
        known |= more
        left = [node for node in light.node if node.output[0] not in more]
        del light.node[:]
        light.node.extend(left)
        light.initializer.extend(numpy_helper.from_array(array, name) for name, array in more.items())
    return found | _one_by_one(nodes, found, types, known, opset)


def _one_by_one(
    nodes: Sequence[NodeProto],
    found: Mapping[str, Shape],
    types: Mapping[str, int],
    known: Mapping[str, np.ndarray],
    opset: int,
) -> dict[str, Shape]:
    """Shapes behind operators that inference of the whole graph does not know, as onnxruntime's own.

    types: element types of tensors, as far as they are known. known: arrays of small integer tensors.
    """
    more: dict[str, Shape] = {}
    kinds, arrays = dict(types), dict(known)
    opsets = {"": opset}
    for node in nodes:
        outputs = [o for o in node.output if o]
        if any(graphs(node)):
            continue
        shapes = [more.get(x, found.get(x)) for x in node.input]
        sized = [_known(shape) for shape in shapes]
        made = _of_sizes(node, sized, [arrays.get(x) for x in node.input], opset)
        if made is not None:
            arrays[outputs[0]], more[outputs[0]] = made, made.shape
        if all(None not in more.get(o, found.get(o, (None,))) for o in outputs):
            continue
        stubs = [
            Tensor(x, kinds.get(x, TensorProto.FLOAT), shape, frozenset(), array=arrays.get(x)) if x else None
            for x, shape in zip(node.input, sized, strict=True)
        ]
        for name, (kind, shape) in zip(node.output, infer(node, sized, stubs, opsets), strict=True):
            if name and shape is not None and all(isinstance(d, int) for d in shape):
                more[name], kinds[name] = shape, kind  # type: ignore[assignment]
    return more


def _known(shape: Shape | None) -> tuple[Size, ...] | None:
    """A shape of which all is known; None for others."""
    found = tuple(size for size in shape or () if size is not None)
    return found if shape is not None and len(found) == len(shape) else None


def _of_sizes(
    node: NodeProto, shapes: Sequence[tuple[Size, ...] | None], arrays: Sequence[np.ndarray | None], opset: int
) -> np.ndarray | None:
    """The small array of integers that a node computes of sizes; None where it is another, or not known.

    shapes, arrays: of its inputs, as far as they are known.
    """
    if node.op_type == "Shape" and shapes[0] is not None:
        ends = attributes(node)
        return np.asarray(shapes[0][ends.get("start", 0) : ends.get("end", len(shapes[0]))], np.int64)
    if node.op_type not in OF_SIZES or not arrays or any(a is None for a in arrays) or len(node.output) > 1:
        return None
    if grows_large(node, arrays):
        return None
    try:
        made = evaluate_node(node, arrays, opset)
    except Exception:  # of numpy and the evaluator, many kinds
        return None
    return made if made.size <= MAX_KNOWN and made.dtype.kind in "iub" else None


def grows_large(node: NodeProto, arrays: Sequence[np.ndarray | None]) -> bool:
    """Whether what is computed of small arrays may be large: a Range to 10^9."""
    facts = row(node.op_type)
    if Fact.GROWS not in facts.facts:
        return False
    given = arrays if facts.shape_input is None else arrays[facts.shape_input : facts.shape_input + 1]
    return math.prod(max(1, abs(int(n))) for a in given if a is not None for n in a.reshape(-1)) > MAX_KNOWN


def _inferred(model: onnx.ModelProto, types: dict[str, int]) -> dict[str, Shape]:
    try:
        done = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # of pybind, one class an error
        return {}
    found: dict[str, Shape] = {}
    for info in [*done.input, *done.value_info]:
        if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            found[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
            types[info.name] = info.type.tensor_type.elem_type
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
        shapes = [_known(found.get(i)) for i in node.input]
        made = _of_sizes(node, shapes, arrays, opset)
        if made is not None:
            told[node.output[0]] = made
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
        if proto.data_type in INDICES and _elements(proto.dims) <= MAX_KNOWN:
            found[name] = numpy_helper.to_array(proto)
    return found


def infer_fallback(
    node: NodeProto, sizes: Sequence[tuple[int, ...] | None], constants: Sequence[np.ndarray | None], opset: int
) -> dict[str, Shape]:
    """Shapes of results that onnx's inference does not tell, as it follows no slices of shapes.

    sizes, constants: of the inputs, as far as they are known.
    """
    op, inputs, outputs = node.op_type, list(node.input), list(node.output)
    if not sizes or sizes[0] is None:
        return {}
    first = sizes[0]
    attrs = attributes(node)
    listed = constants[1] if len(inputs) > 1 else np.asarray(attrs.get("split", attrs.get("axes", ())))
    found: tuple[int, ...] | None = None
    if op == "Split" and listed is not None:
        axis = attrs.get("axis", 0) % len(first)
        even = first[axis] // len(outputs)
        parts = [int(c) for c in listed.reshape(-1)] or [even] * len(outputs)
        if len(parts) != len(outputs) or sum(parts) != first[axis]:
            return {}
        return {o: (*first[:axis], part, *first[axis + 1 :]) for o, part in zip(outputs, parts, strict=True)}
    if len(outputs) > 1:
        return {}
    if op in having(Fact.REDUCES):
        if listed is not None and listed.size and attrs.get("keepdims", 1):
            axes = {int(a) % len(first) for a in listed.reshape(-1)}
            found = tuple(1 if i in axes else d for i, d in enumerate(first))
    elif op in BROADCAST:
        known = [s for s in sizes if s is not None]
        found = _broadcast(*known) if len(known) == len(sizes) else None
    elif op == "MatMul" and sizes[1] is not None and min(len(first), len(sizes[1])) > 1:
        batch = _broadcast(first[:-2], sizes[1][:-2])
        found = (*batch, first[-2], sizes[1][-1]) if batch is not None else None
    elif op in MOVING:
        blank = [np.zeros(s, np.float32) if s is not None else None for s in sizes]
        rest = blank[1:] if op == "Concat" else list(constants[1:])
        if op == "Pad" and len(rest) > 1:
            rest[1] = np.zeros((), np.float32)
        if any(array is None and name for array, name in zip(rest, inputs[1:], strict=True)):
            return {}
        try:
            found = evaluate_node(node, [blank[0], *rest], opset).shape
        except Exception:  # whatever the reference evaluator raises
            return {}
    return {outputs[0]: tuple(int(d) for d in found)} if found is not None else {}


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...] | None:
    """None where sizes do not fit: free dimensions that were taken for independent of each other may not be."""
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        return None


def _at(size: Size, candidates: int) -> int | None:
    return evaluate(size, {"N": candidates}) if symbols(size) <= {"N"} else None


def _large(node: NodeProto) -> TensorProto | None:
    """The tensor of a large Constant."""
    found = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
    return found if found is not None and _elements(found.dims) > MAX_KNOWN else None


def _elements(dims: Sequence[int]) -> int:
    return int(np.prod(dims, dtype=np.int64)) if len(dims) else 1
