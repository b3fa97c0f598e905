"""What a node costs: floating-point operations and bytes moved, from concrete shapes.

An estimate to compare rewrites by, not a model of any machine. A multiply-add counts as 2 FLOPs, a transcendental
function as `TRANSCENDENTAL`, moving data as none. Bytes are every operand read once and every result written once;
operators that read part of an operand (Gather and the like) count that part, and Reshape counts nothing. An operator
without a row in `model/ops.py` costs one FLOP per output element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from mari_onnx.model.einsum import einsum_sizes
from mari_onnx.model.nodes import attribute, graphs
from mari_onnx.model.ops import TRANSCENDENTAL, Fact, row

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """Work of a node or a graph: `flops` (operations) and `bytes` (read and written)."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, factor: float) -> Cost:
        return Cost(self.flops * factor, self.bytes * factor)

    __rmul__ = __mul__


def size(shape: Shape | None) -> int:
    """Number of elements; 0 for an absent or unknown tensor."""
    return 0 if shape is None else math.prod(shape)


@dataclass(frozen=True)
class _Call:
    """One node with the shapes at hand."""

    node: onnx.NodeProto
    ins: Sequence[Shape | None]
    outs: Sequence[Shape | None]

    def i(self, k: int) -> Shape:
        return (self.ins[k] if k < len(self.ins) else None) or ()

    def has(self, k: int) -> bool:
        return k < len(self.node.input) and bool(self.node.input[k])

    @property
    def n_in(self) -> int:
        return size(self.ins[0]) if self.ins else 0

    @property
    def n_out(self) -> int:
        return size(self.outs[0]) if self.outs else 0

    def attr(self, name: str, default: int = 0) -> int:
        return int(attribute(self.node, name, default))

    def text(self, name: str) -> str:
        return str(attribute(self.node, name, ""))


FORMULAS: dict[str, Callable[[_Call], float]] = {}


def flops_of(*ops: str) -> Callable[[Callable[[_Call], float]], Callable[[_Call], float]]:
    """Registers the formula of `ops`, where FLOPs are no multiple of the elements (`Op.flops`)."""

    def register(formula: Callable[[_Call], float]) -> Callable[[_Call], float]:
        FORMULAS.update(dict.fromkeys(ops, formula))
        return formula

    return register


@flops_of("MatMul", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
def _matmul(c: _Call) -> float:
    """`2 B M N K`: each output element sums over K, the last axis of the first operand."""
    return 2.0 * c.n_out * (c.i(0)[-1] if c.i(0) else 1)


@flops_of("QGemm")
def _qgemm(c: _Call) -> float:
    return 2.0 * c.n_out * (c.i(0)[0 if c.attr("transA") else -1] if c.i(0) else 1)


@flops_of("FusedMatMul", "TransposeMatMul")
def _fused_matmul(c: _Call) -> float:
    a = c.i(0)
    if not c.attr("transA") or len(a) < 2:
        return _matmul(c)
    return 2.0 * c.n_out * a[0 if c.attr("transBatchA") else -2]


@flops_of("Gemm", "FusedGemm")
def _gemm(c: _Call) -> float:
    a = c.i(0)
    k = a[0 if c.attr("transA") else -1] if a else 1
    return 2.0 * c.n_out * k + (c.n_out if c.has(2) else 0)


@flops_of("Einsum")
def _einsum(c: _Call) -> float:
    operands, output, sizes = einsum_sizes(c.text("equation"), c.ins)
    total = math.prod(sizes.values())
    summed = set(sizes) - set(output)
    return float(total) * (max(len(operands) - 1, 0) + (1 if summed else 0))


@flops_of("Conv", "FusedConv", "NhwcFusedConv")
def _conv(c: _Call) -> float:
    weight = c.i(1)  # [M, C/group, k...]
    return 2.0 * c.n_out * math.prod(weight[1:]) + (c.n_out if c.has(2) else 0)


@flops_of("ConvTranspose")
def _conv_transpose(c: _Call) -> float:
    weight = c.i(1)  # [C, M/group, k...]
    return 2.0 * c.n_in * math.prod(weight[1:])


@flops_of("GRU", "LSTM", "DynamicQuantizeLSTM", "RNN")
def _recurrent(c: _Call) -> float:
    """Two products per step and a gate, and the gates' activations."""
    x, w, r = c.i(0), c.i(1), c.i(2)  # [T, B, I], [dirs, gates*H, I], [dirs, gates*H, H]
    gates = row(c.node.op_type).gates
    if len(x) != 3 or len(w) != 3:
        return float(c.n_out)
    steps = x[0] * x[1]
    return steps * (2.0 * (size(w) + size(r)) + w[0] * (w[1] // gates) * (gates * TRANSCENDENTAL + 4))


@flops_of("Attention", "MultiHeadAttention", "GroupQueryAttention")
def _attention(c: _Call) -> float:
    """Attention (ONNX 23, com.microsoft): two products over `[.., Tq, Tk]` scores, and softmax."""
    q, k = c.i(0), c.i(1)
    if len(q) == 4 and len(k) == 4:  # [B, H, T, d]
        scores, width = (
            q[0] * q[1] * q[2] * k[2],
            2.0 * q[3] + 2.0 * (c.i(2)[-1] if c.i(2) else q[3]),
        )
    elif len(q) == 3 and c.node.op_type == "Attention" and c.node.domain == "com.microsoft":
        heads, model = max(c.attr("num_heads"), 1), size(k) // max(q[-1], 1) // 3  # k is W[I, 3*D]
        projection = 2.0 * q[0] * q[1] * size(k)
        scores = q[0] * q[1] * q[1] * heads
        return projection + scores * (4.0 * model / heads + TRANSCENDENTAL + 4)
    elif len(q) == 3 and len(k) == 3:  # [B, T, H*d]
        heads = max(c.attr("num_heads"), c.attr("q_num_heads"), 1)
        scores, width = q[0] * q[1] * k[1] * heads, 4.0 * q[2] / heads
    else:
        return float(c.n_out)
    return scores * (width + TRANSCENDENTAL + 4)


@flops_of("LinearRegressor", "LinearClassifier", "SVMRegressor", "SVMClassifier")
def _linear(c: _Call) -> float:
    """ai.onnx.ml: a product with its coefficients, or with its support vectors."""
    weights = max((len(a.floats) for a in c.node.attribute), default=0)
    return 2.0 * weights * (c.i(0)[0] if len(c.i(0)) > 1 else 1)


@flops_of("TreeEnsembleRegressor", "TreeEnsembleClassifier")
def _trees(c: _Call) -> float:
    """ai.onnx.ml: one comparison per level of each tree, were they balanced."""
    nodes = attribute(c.node, "nodes_treeids", [])
    count = max(len(set(nodes)), 1)
    return count * math.log2(len(nodes) / count + 1) * (c.i(0)[0] if len(c.i(0)) > 1 else 1)


@flops_of("MatMulNBits")
def _matmul_nbits(c: _Call) -> float:
    return 2.0 * c.n_out * c.attr("K", c.i(0)[-1] if c.i(0) else 1)


def _flops(c: _Call) -> float:
    op = c.node.op_type
    if op in FORMULAS:
        return FORMULAS[op](c)
    facts = row(op)
    times = max(len(c.node.input) - 1, 1) if Fact.VARIADIC in facts.facts else 1
    return facts.flops * (c.n_in if facts.per_input else c.n_out) * times


def _elements_moved(c: _Call) -> float:
    facts = row(c.node.op_type).facts
    if Fact.FREE in facts:
        return 0.0
    written = sum(map(size, c.outs))
    if Fact.READS_PART in facts:
        return 2.0 * written + sum(map(size, c.ins[1:]))
    return float(written + sum(map(size, c.ins)))


def node_cost(
    node: onnx.NodeProto,
    in_shapes: Sequence[Shape | None],
    out_shapes: Sequence[Shape | None],
    itemsize: int = 4,
) -> Cost:
    """The cost of one node.

    Args:
        node: The node; its attributes are read, its subgraphs are not (see `graph_cost`).
        in_shapes: One shape per input, None where an input is absent or its shape unknown.
        out_shapes: One shape per output, likewise.
        itemsize: Bytes an element, taken for all operands.
    """
    call = _Call(node, in_shapes, out_shapes)
    return Cost(float(_flops(call)), itemsize * _elements_moved(call))


def node_costs(
    graph: onnx.GraphProto, shapes: Mapping[str, Shape], itemsize: int = 4
) -> Iterator[tuple[onnx.NodeProto, Cost]]:
    """Each node of `graph` with its cost.

    Tensors missing in `shapes` count as empty; initializers need not be in it.

    A subgraph (If, Loop, Scan) is counted once for each branch: shapes tell no trip count.
    """
    known: dict[str, Shape] = {t.name: tuple(t.dims) for t in graph.initializer}
    known.update(shapes)
    for node in graph.node:
        cost = node_cost(
            node, [known.get(x) for x in node.input], [known.get(x) for x in node.output], itemsize
        )
        for inner in graphs(node):
            cost = cost + graph_cost(inner, known, itemsize)
        yield node, cost


def graph_cost(graph: onnx.GraphProto, shapes: Mapping[str, Shape], itemsize: int = 4) -> Cost:
    """The cost of all nodes of `graph`, given the shapes of its tensors by name."""
    return sum((cost for _, cost in node_costs(graph, shapes, itemsize)), Cost())
