"""What onnxruntime does to a graph when it loads it, as far as it changes how long a run takes.

Nodes of constants alone are computed at load, of nodes that compute the same one is left, and some neighbours become
one kernel: a bias and an activation join their product, a Transpose and a scale join a MatMul, pieces that are all of
an axis become a Split, the nodes of a LayerNormalization or a Gelu become one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from mari_onnx.model.nodes import attribute, constant, is_standard, operator, producers, reads
from mari_onnx.model.ops import Fact, having, row

Shapes = Mapping[str, tuple[int, ...]]


_FEW, _SMALL = 64, 4096
"""Elements of a constant, and bytes of a node, up to which they are compared with others."""


class Loaded:
    """A graph as onnxruntime runs it.

    Attributes:
        nodes: those of the graph; ids below are theirs.
        constants: tensors that are known when the model is loaded.
        gone: ids of nodes that are no kernel of their own: computed at load or by an equal node, or done by a
            neighbour's kernel.
        joined: ids of nodes that a neighbour's kernel does element by element: they cost no start of their own.
        stands_for: id of a node -> the node that it and nodes in `gone` become.
    """

    def __init__(self, graph: onnx.GraphProto, shapes: Shapes):
        self.shapes = shapes
        self.weights = {t.name: t for t in graph.initializer}
        self.constants = set(self.weights) | {t.values.name for t in graph.sparse_initializer}
        self.gone: set[int] = set()
        self.joined: set[int] = set()
        self.stands_for: dict[int, NodeProto] = {}
        self.ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.input)}
        self.nodes = list(graph.node)  # ids hold as long as the objects live
        for node in self.nodes:
            random = Fact.RANDOM in row(node.op_type).facts
            if not random and all(not x or x in self.constants for x in node.input) and not _has_body(node):
                self.gone.add(id(node))
                self.constants.update(node.output)
        self.outputs = {o.name for o in graph.output}
        self.first = self._repeated(graph)
        self.producers = producers(self.nodes)
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            if node.output[0] not in self.first:
                for name in dict.fromkeys(self.first.get(x, x) for x in reads(node)):
                    self.consumers.setdefault(name, []).append(node)
        for node in self.nodes:
            if id(node) not in self.gone and is_standard(node):
                for fuse in FUSIONS:
                    fuse(self, node)

    def _repeated(self, graph: onnx.GraphProto) -> dict[str, str]:
        """Tensors -> the one before them that is equal: constants of few elements, results of equal nodes, and of a
        Cast to the type that is there.
        """
        kept: dict[object, list[str]] = {}
        first: dict[str, str] = {}
        types = {v.name: v.type.tensor_type.elem_type for v in graph.input} | {
            name: t.data_type for name, t in self.weights.items()
        }
        for name, t in self.weights.items():
            if np.prod(t.dims) <= _FEW and not t.external_data and t.data_type != onnx.TensorProto.STRING:
                (same,) = kept.setdefault((numpy_helper.to_array(t).tobytes(), t.data_type, *t.dims), [name])
                if same != name:
                    first[name] = same
        for node in self.nodes:
            random = Fact.RANDOM in row(node.op_type).facts
            if random or _has_body(node) or node.ByteSize() > _SMALL or not self.outputs.isdisjoint(node.output):
                continue
            facts = row(node.op_type).facts
            if Fact.CONVERTS in facts:
                types[node.output[0]] = attribute(node, "to", 0)
            elif Fact.MOVES in facts:
                types.update(dict.fromkeys(node.output, types.get(node.input[0], 0)))
            if node.op_type == "Cast" and types.get(node.input[0]) == types[node.output[0]]:
                self.gone.add(id(node))
                first[node.output[0]] = first.get(node.input[0], node.input[0])
                continue
            attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
            key = (operator(node), *attributes, *(first.get(x, x) for x in node.input))
            made = list(node.output)
            equal = kept.setdefault(key, made)
            if equal is not made and len(equal) == len(made):
                self.gone.add(id(node))
                first.update((x, y) for x, y in zip(made, equal, strict=True) if x)
        return first

    def only_reader(self, node: NodeProto) -> NodeProto | None:
        """The one node that reads the first output, which is no output of the graph."""
        name = node.output[0]
        found = self.consumers.get(name, [])
        return found[0] if len(found) == 1 and name not in self.outputs else None

    def in_place(self, node: NodeProto) -> bool:
        """Whether the memory of the first input may become the result's: nobody else reads it, and it is no input."""
        made = self.producers.get(node.input[0]) if node.input else None
        if made is None or id(made) in self.gone or self.only_reader(made) is not node:
            return False
        return made.op_type != "Reshape"  # its result's size is told at run time alone

    def scalar(self, name: str) -> float | None:
        """The value of a constant of one element."""
        found: np.ndarray | None = None
        if name in self.weights:
            tensor = self.weights[name]
            found = numpy_helper.to_array(tensor) if np.prod(tensor.dims) == 1 and not tensor.external_data else None
        elif name in self.producers:
            found = constant(self.producers[name])
        return float(found.reshape(())) if found is not None and found.size == 1 and found.dtype.kind in "fiu" else None

    def becomes(self, node: NodeProto, op: str) -> None:
        """The node and neighbours become one of this operator, which reads what the node reads first."""
        self.stands_for[id(node)] = onnx.helper.make_node(op, [node.input[0]], list(node.output))

    def other(self, node: NodeProto, name: str) -> str:
        """The operand of a node of two operands that is not this one."""
        return str(node.input[1] if node.input[0] == name else node.input[0])


def _has_body(node: NodeProto) -> bool:
    return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)


def _bias_and_activation(g: Loaded, node: NodeProto) -> None:
    """A product, the constant that is added to its columns, and the activation after it."""
    facts = row(node.op_type).facts
    if not facts & (Fact.MATMUL | Fact.CONV):
        return
    matrix = node.op_type != "MatMul" or all(len(g.shapes.get(x, ())) == 2 for x in node.input)
    last, after = node, g.only_reader(node)
    if matrix and after is not None and after.op_type == "Add" and node.op_type == "MatMul":
        bias = g.other(after, node.output[0])
        if bias in g.constants and max(g.shapes.get(bias, (2, 2))[:-1], default=1) == 1:
            g.gone.add(id(after))
            last, after = after, g.only_reader(after)
    joins = matrix and (last is not node or node.op_type != "MatMul")
    if joins and after is not None and row(after.op_type).activation is not None:
        g.joined.add(id(after))


def _between_quantizations(g: Loaded, node: NodeProto) -> None:
    """An operator whose operands are dequantized and whose result is quantized: one kernel, of integers. A product is
    one without the quantization too.
    """
    facts = row(node.op_type).facts
    data = [g.producers.get(name) for name in node.input if name] if Fact.INTEGER_KERNEL in facts else []
    given = [made for made in data if made is not None and made.op_type == "DequantizeLinear"]
    if not data or len(given) < len(data) - (node.op_type == "Where"):
        return
    after = g.only_reader(node)
    if after is not None and row(after.op_type).activation == () and Fact.NO_LARGER in row(after.op_type).facts:
        last = g.only_reader(after)  # a Relu, which the quantization does too
        if last is not None and last.op_type == "QuantizeLinear":
            g.gone.add(id(after))
            after = last
    if after is not None and after.op_type == "QuantizeLinear":
        g.gone.add(id(after))
    elif Fact.MATMUL not in facts:
        return
    for made in given:
        if all(Fact.INTEGER_KERNEL in row(r.op_type).facts for r in g.consumers.get(made.output[0], [])):
            g.gone.add(id(made))
    if Fact.PRODUCT not in facts:
        op, inputs = f"QLinear{node.op_type}", list(node.input)
    else:
        op = "QGemm" if len(node.input) > 2 else "QLinearMatMul"
        inputs = [node.input[0], "", "", node.input[1], "", "", *node.input[2:]]
    g.stands_for[id(node)] = onnx.helper.make_node(op, inputs, list(node.output))
    g.stands_for[id(node)].attribute.extend(node.attribute)


def _scaled_integers(g: Loaded, node: NodeProto) -> None:
    """A product of integers, its Cast and scale, the bias that is added, and the quantization before it."""
    if Fact.QUANTIZED not in row(node.op_type).facts or Fact.CONV in row(node.op_type).facts:
        return
    after = _chain(g, node, "Cast", "Mul")
    if after is None:
        return
    g.gone.update(id(n) for n in after)
    last = g.only_reader(after[-1])
    if last is not None and last.op_type == "Add" and g.other(last, after[-1].output[0]) in g.constants:
        g.gone.add(id(last))


def _turned_operand(g: Loaded, node: NodeProto) -> None:
    """A Transpose that products alone read, of the last two dimensions or of the first one behind the others: the
    product goes through its operand in that order. Of the last two, a first operand is turned matrix by matrix, where
    else all its leading dimensions are rows of one product.
    """
    if node.op_type != "Transpose":
        return
    order = list(attribute(node, "perm", ()))
    rank = len(order)
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    batch = [[*range(1, rank - 1), 0, rank - 1], [*range(1, rank), 0]] if rank > 2 else []
    readers = g.consumers.get(node.output[0], [])
    alone = rank > 1 and order in [swapped, *batch] and readers and node.output[0] not in g.outputs
    if not alone or any(r.op_type != "MatMul" for r in readers):
        return
    g.gone.add(id(node))
    for reader in readers if order == swapped else []:
        if reader.input[0] == node.output[0]:
            inputs = [node.input[0], reader.input[1]]
            g.stands_for[id(reader)] = onnx.helper.make_node("FusedMatMul", inputs, list(reader.output), transA=1)


def _scaled(g: Loaded, node: NodeProto) -> None:
    """A constant factor before or after a MatMul."""
    if node.op_type not in having(Fact.MULTIPLIES) or not any(g.scalar(x) is not None for x in node.input):
        return
    data = node.input[0] if g.scalar(node.input[1]) is not None else node.input[1]
    made, read = g.producers.get(data), g.only_reader(node)
    before = read is not None and read.op_type == "MatMul"
    after = made is not None and made.op_type == "MatMul" and g.only_reader(made) is node
    if before or after:
        g.gone.add(id(node))


def _piece(g: Loaded, node: NodeProto) -> tuple[int, int, int] | None:
    """Axis, begin and end of the one stretch that a Slice or a Gather takes of an axis; None for other nodes."""
    x = g.shapes.get(node.input[0]) if node.input else None
    if not x:
        return None
    if node.op_type == "Gather" and (at := g.scalar(node.input[1])) is not None:
        axis = attribute(node, "axis", 0) % len(x)
        return axis, int(at) % max(1, x[axis]), int(at) % max(1, x[axis]) + 1
    if node.op_type == "Slice" and len(node.input) > 3:
        begin, end, axis, step = [*map(g.scalar, node.input[1:]), 1.0][:4]
        if begin is not None and end is not None and axis is not None and step == 1:
            axis = int(axis) % len(x)
            return axis, *slice(int(begin), int(end)).indices(x[axis])[:2]
    return None


def _pieces(g: Loaded, node: NodeProto) -> None:
    """Slices and Gathers that together take all of an axis, each element once, are one Split."""
    mine = _piece(g, node)
    if mine is None:
        return
    name = g.first.get(node.input[0], node.input[0])
    readers = [r for r in g.consumers.get(name, []) if r.input and g.first.get(r.input[0], r.input[0]) == name]
    cuts = ((reader, _piece(g, reader)) for reader in readers)
    found = ((reader, piece) for reader, piece in cuts if piece is not None and piece[0] == mine[0])
    head = next(found, None)
    if head is None or head[0] is not node:
        return
    others = list(found)
    ranges = sorted([mine[1:], *(piece[1:] for _, piece in others)])
    ends = [0, *(end for _, end in ranges)]
    whole = ends[-1] == g.shapes[name][mine[0]] if name in g.shapes else False
    if not others or not whole or any(begin != end for (begin, _), end in zip(ranges, ends, strict=False)):
        return
    results = [node.output[0], *(reader.output[0] for reader, _ in others)]
    g.stands_for[id(node)] = onnx.helper.make_node("Split", [name], results, axis=mine[0])
    for reader, _ in others:
        if len(g.shapes.get(reader.output[0], ())) == len(g.shapes[name]):
            g.gone.add(id(reader))
        else:  # a Gather by a number, which drops the axis
            g.becomes(reader, "Squeeze")


def _chain(g: Loaded, node: NodeProto, *ops: str) -> list[NodeProto] | None:
    """The nodes of these operators, each the only reader of the one before, after `node`."""
    found = [node]
    for op in ops:
        after = g.only_reader(found[-1])
        if after is None or after.op_type != op:
            return None
        found.append(after)
    return found[1:]


def _layer_norm(g: Loaded, node: NodeProto) -> None:
    """``d = x - mean(x); d / sqrt(mean(d d) + eps)``, then a scale and a bias."""
    mean = g.producers.get(node.input[1]) if node.op_type == "Sub" else None
    if mean is None or mean.op_type != "ReduceMean" or mean.input[0] != node.input[0]:
        return
    readers = g.consumers.get(node.output[0], [])
    square = next((r for r in readers if r.op_type == "Pow" or list(r.input) == [node.output[0]] * 2), None)
    divided = next((r for r in readers if r is not square and row(r.op_type).facts & Fact.MULTIPLIES), None)
    if square is None or divided is None:
        return
    inner = _chain(g, square, "ReduceMean", "Add", "Sqrt")
    if inner is None:
        return
    g.gone.update(id(n) for n in (mean, square, *inner))
    if divided.op_type == "Mul":
        g.gone.update(id(n) for n in g.consumers.get(inner[-1].output[0], []) if n.op_type == "Reciprocal")
    g.becomes(node, "LayerNormalization")
    g.gone.add(id(divided))
    last = divided
    for _ in range(2):
        after = g.only_reader(last)
        if after is None or after.op_type not in _AFFINE or g.other(after, last.output[0]) not in g.constants:
            break
        g.gone.add(id(after))
        last = after


_AFFINE = having(Fact.ADDS | Fact.COMMUTES) | having(Fact.MULTIPLIES | Fact.COMMUTES)


def _norm_of_sum(g: Loaded, node: NodeProto) -> None:
    """An Add of two tensors of one shape, of three dimensions that are written in the graph, before the norm."""
    made = g.producers.get(node.input[0]) if node.op_type == "LayerNormalization" else None
    if made is None or made.op_type != "Add" or g.shapes.get(made.input[0]) != g.shapes.get(made.input[1]):
        return
    if all(g.ranks.get(x) == 3 for x in made.input):
        g.gone.add(id(made))
        g.becomes(node, "SkipLayerNormalization")


def _gelu(g: Loaded, node: NodeProto) -> None:
    """``0.5 x (1 + erf(x / sqrt 2))``."""
    if node.op_type != "Erf":
        return
    before, after = g.producers.get(node.input[0]), _chain(g, node, "Add", "Mul")
    if before is None or after is None or not row(before.op_type).facts & Fact.MULTIPLIES:
        return
    g.gone.update((id(before), *map(id, after)))
    last = g.only_reader(after[-1])
    if last is not None and last.op_type == "Mul":
        g.gone.add(id(last))
    g.becomes(node, "Gelu")


def _norm_into_product(g: Loaded, node: NodeProto) -> None:
    """BatchNormalization is folded into the Conv, or the Gemm, before it; else it is element-wise."""
    if node.op_type == "BatchNormalization":
        made = g.producers.get(node.input[0])
        if made is not None and g.only_reader(made) is node and _takes_norm(made):
            g.gone.add(id(node))


def _takes_norm(node: NodeProto) -> bool:
    return node.op_type == "Gemm" or Fact.CONV in row(node.op_type).facts


FUSIONS: Sequence[Callable[[Loaded, NodeProto], None]] = (
    _between_quantizations, _pieces, _layer_norm, _norm_of_sum, _gelu, _norm_into_product, _bias_and_activation,
    _scaled_integers, _turned_operand, _scaled,
)  # fmt: skip
