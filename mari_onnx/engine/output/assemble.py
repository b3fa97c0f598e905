"""Puts the finished graph together: the nodes that outputs need, MatMul and Add as one Gemm, and the model around them.

In: the builder's nodes, and the tensors that are outputs. Out: an onnx model with the source's names and metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mari_onnx.engine.ir.value import Node, Tensor
from mari_onnx.model.dims import Size
from mari_onnx.model.nodes import is_standard
from mari_onnx.model.tensors import FLOATS


def live(outputs: Sequence[Tensor]) -> list[Node]:
    """The nodes that the outputs need, in the order in which they were written."""
    seen: set[Node] = set()
    stack = [t.node for t in outputs if t.node is not None]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack += [t.node for t in [*node.inputs, *node.captured] if t is not None and t.node is not None]
    return sorted(seen, key=lambda node: node.index)


def in_order_of_use(nodes: Sequence[Node], outputs: Sequence[Tensor]) -> list[Node]:
    """Those of the nodes that the outputs need, each behind those that it reads, else in their order."""
    made = {t.name: node for node in nodes for t in node.outputs}

    def before(node: Node) -> list[Node]:
        read = [made.get(t.name) for t in [*node.inputs, *node.captured] if t is not None]
        return [each for each in read if each is not None]

    needed: set[int] = set()
    stack = [made[t.name] for t in outputs if t.name in made]
    while stack:
        node = stack.pop()
        if id(node) not in needed:
            needed.add(id(node))
            stack += before(node)
    ordered: list[Node] = []
    placed: set[int] = set()
    for first in nodes:
        stack = [first] if id(first) in needed else []
        while stack:
            waiting = [node for node in before(stack[-1]) if id(node) not in placed]
            if waiting:
                stack += waiting[::-1]
                continue
            node = stack.pop()
            if id(node) not in placed:
                placed.add(id(node))
                ordered.append(node)
    return ordered


def fuse_gemm(nodes: list[Node], outputs: Sequence[Tensor]) -> list[Node]:
    """The nodes with ``MatMul`` and a following ``Add`` as one Gemm, where nothing else reads the product.

    The user's part of a sum, one row, becomes its C operand.
    """
    uses: dict[str, int] = {}
    for node in nodes:
        for t in [*node.inputs, *node.captured]:
            if t is not None:
                uses[t.name] = uses.get(t.name, 0) + 1
    for t in outputs:
        uses[t.name] = uses.get(t.name, 0) + 1
    made = {t.name: node for node in nodes for t in node.outputs}
    gone: set[int] = set()
    for node in nodes:
        if node.proto.op_type != "Add" or not is_standard(node.proto):
            continue
        for k in (0, 1):
            x, c = node.inputs[k], node.inputs[1 - k]
            source = made.get(x.name) if x is not None else None
            if x is None or c is None or source is None or source.proto.op_type != "MatMul" or uses[x.name] != 1:
                continue
            if not _fits(source, x, c):
                continue
            proto = NodeProto(op_type="Gemm", name=node.proto.name)
            proto.output.append(node.outputs[0].name)
            node.proto, node.inputs, node.product = proto, [*source.inputs, c], source.origin
            gone.add(id(source))
            break
    return [node for node in nodes if id(node) not in gone]


def _fits(source: Node, product: Tensor, c: Tensor) -> bool:
    """Whether ``c`` broadcasts to the product of two matrices, of one float type, as the C of a Gemm does."""
    shapes = [t.shape if t is not None else None for t in source.inputs]
    if any(s is None or len(s) != 2 for s in shapes) or c.shape is None or len(c.shape) > 2:
        return False
    if product.dtype not in FLOATS or c.dtype != product.dtype:
        return False
    padded: tuple[Size, ...] = (1,) * (2 - len(c.shape)) + c.shape
    return all(have == 1 or have == want for have, want in zip(padded, product.known, strict=True))


def assemble(
    source: onnx.ModelProto,
    nodes: Sequence[Node],
    outputs: Sequence[Tensor],
    stored: Mapping[str, Tensor],
    interface: tuple[Sequence[onnx.ValueInfoProto], Sequence[onnx.ValueInfoProto]] | None = None,
) -> onnx.ModelProto:
    """A model with the source's inputs, outputs, opsets and metadata, and these nodes.

    stored: the tensors of graph inputs by name, with the shapes that the new graph takes. interface: inputs and outputs
    of a part of the graph, instead of the source's.
    """
    model = onnx.ModelProto()
    model.ir_version = source.ir_version
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if source.HasField(field):
            setattr(model, field, getattr(source, field))
    model.opset_import.extend(source.opset_import)
    model.metadata_props.extend(source.metadata_props)
    model.functions.extend(source.functions)
    graph, old = model.graph, source.graph
    graph.name, graph.doc_string = old.name, old.doc_string
    graph.metadata_props.extend(old.metadata_props)
    inputs_, outputs_ = interface or (old.input, old.output)
    used: dict[str, Tensor] = {t.name: t for t in outputs}
    for node in nodes:
        proto = node.proto
        names = [t.name if t is not None else "" for t in node.inputs]
        del proto.input[:]
        proto.input.extend(names)
        del proto.output[:]
        proto.output.extend(t.name for t in node.outputs)
        graph.node.append(proto)
        used.update((t.name, t) for t in [*node.inputs, *node.captured] if t is not None)
    for info in inputs_:
        new = graph.input.add()
        new.CopyFrom(info)
        tensor = stored.get(info.name)
        if tensor is not None and tensor.shape is not None:
            for dim, size in zip(new.type.tensor_type.shape.dim, tensor.known, strict=True):
                if size == 1 and dim.dim_value != 1:
                    dim.Clear()
                    dim.dim_value = 1
    graph.output.extend(outputs_)
    originals = {proto.name for proto in old.initializer}
    inputs = {info.name for info in inputs_}
    for proto in old.initializer:
        if proto.name in used or proto.name in inputs:
            graph.initializer.append(proto)
    for sparse in old.sparse_initializer:
        if sparse.values.name in used:
            graph.sparse_initializer.append(sparse)
    for name, tensor in used.items():
        if tensor.const and name not in originals:
            graph.initializer.append(to_proto(tensor))
    for annotation in old.quantization_annotation:
        if annotation.tensor_name in used:
            graph.quantization_annotation.append(annotation)
    for info in old.value_info:
        tensor = used.get(info.name)
        if tensor is not None and tensor.source == info.name:
            graph.value_info.append(info)
    return model


def to_proto(tensor: Tensor) -> TensorProto:
    """A constant as an initializer. Raises ValueError where numpy has no such element type."""
    array = tensor.array
    if array.dtype == object:
        values = [str(x).encode() for x in array.reshape(-1)]
        return helper.make_tensor(tensor.name, TensorProto.STRING, array.shape, values)  # type: ignore[arg-type]
    proto = numpy_helper.from_array(array, tensor.name)
    if proto.data_type != tensor.dtype:  # numpy has no type of its own for some, such as int4
        raise ValueError(f"{tensor.name}: {proto.data_type} is not {tensor.dtype}")
    return proto
