"""Puts DequantizeLinear and QuantizeLinear where onnxruntime fuses them with the operator between them.

In: nodes of the new graph. Out: nodes that compute the same. onnxruntime runs ``DequantizeLinear -> MatMul ->
QuantizeLinear`` as one kernel of integers; with a Concat, a Reshape or a constant of floats in between, it
runs three, of floats.

    move(dequantize(q))             =  dequantize(move(q)), also of a table of embeddings
    quantize(move(x))               =  move(quantize(x))
    quantize(dequantize(q))         =  q, for one scale and zero point
    the floats that weights were dequantized to at build time, beside a dequantized operand: the integers again
    quantize(dequantize(q)) of two scales: with a Concat of that one tensor in between
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto, TensorProto, helper

from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Node, Tensor
from mari_onnx.model.nodes import is_standard
from mari_onnx.model.ops import Fact, having, row

BITS = frozenset({TensorProto.INT8, TensorProto.UINT8})
JOINED = having(Fact.JOINS)
"""Their data are all of their inputs."""
LARGER = having(Fact.REPEATS) | having(Fact.LOOKUP)
"""Their result may have more elements than they read."""


def with_integer_kernels(b: Builder, nodes: list[Node], outputs: Sequence[Tensor]) -> list[Node]:
    """The nodes in an order in which they can run. Nodes that nobody reads any more are left out."""
    if not b.quantized and not any(n.proto.op_type == "DequantizeLinear" for n in nodes):
        return nodes
    return _Rewriter(b, nodes, outputs).rewritten()


class _Rewriter:
    def __init__(self, b: Builder, nodes: list[Node], outputs: Sequence[Tensor]):
        self.b, self.nodes = b, nodes
        self.wanted = {t.name for t in outputs}
        self.made = {t.name: node for node in nodes for t in node.outputs}
        self.readers: dict[str, list[Node]] = {}
        for node in nodes:
            for t in [*node.inputs, *node.captured]:
                if t is not None:
                    self.readers.setdefault(t.name, []).append(node)
        self.instead: dict[str, Tensor] = {}
        """Tensors whose readers read another one, which is equal."""
        self.out: list[Node] = []

    def rewritten(self) -> list[Node]:
        for node in self.nodes:
            node.inputs = [self.instead.get(t.name, t) if t is not None else None for t in node.inputs]
            if self._same(node) or self._moved(node) or self._quantized_first(node):
                continue
            self._weights(node)
            self._kept_apart(node)
            self.out.append(node)
        return self._needed()

    def _needed(self) -> list[Node]:
        needs, kept = set(self.wanted), list[Node]()
        for node in reversed(self.out):
            if any(t.name in needs for t in node.outputs):
                kept.append(node)
                needs.update(t.name for t in [*node.inputs, *node.captured] if t is not None)
        return kept[::-1]

    # ---- the four rewrites
    def _same(self, node: Node) -> bool:
        """quantize(dequantize(q)) = q."""
        codes = self._codes(node.inputs[0]) if node.proto.op_type == "QuantizeLinear" else None
        out = node.outputs[0]
        if codes is None or codes[0].dtype != out.dtype or out.name in self.wanted or self._read_inside(out):
            return False
        if not _alike(codes[1:], node.inputs[1:]):
            return False
        self.instead[out.name] = codes[0]
        return True

    def _moved(self, node: Node) -> bool:
        """move(dequantize(q)) = dequantize(move(q)), where that is one scale and zero point for all."""
        facts = row(node.proto.op_type).facts
        moves = facts & (Fact.VIEW | Fact.PICKS | Fact.REPEATS | Fact.JOINS) or node.proto.op_type == "Transpose"
        if not is_standard(node.proto) or not moves or len(node.outputs) > 1:
            return False
        out = node.outputs[0]
        data = node.inputs if node.proto.op_type in JOINED else node.inputs[:1]
        found = [self._codes(t) for t in data]
        first = next((each for each in found if each is not None), None)
        if first is None or any(each is None or not _alike(each[1:], first[1:]) for each in found):
            return False
        if out.name in self.wanted or self._read_inside(out):
            return False
        table = Fact.LOOKUP in facts and all(t is not None and t.const for t in data)
        if not table and not any(self._dequantized(t) for t in data):
            return False
        readers = self.readers.get(out.name, [])
        grows = node.proto.op_type in LARGER or node.proto.op_type in JOINED
        if not table and grows and not all(self._takes_integers(r) for r in readers):
            return False
        whole = [each[0] for each in found if each is not None]
        moved = self._add(node, node.proto, [*whole, *node.inputs[len(data) :]], whole[0].dtype, out.shape, "codes")
        proto = helper.make_node("DequantizeLinear", [], [out.name], name=f"{node.proto.name}/DequantizeLinear")
        self.out.append(Node(proto, [moved, *first[1:]], [out], node.origin, []))
        self.made[out.name] = self.out[-1]
        return True

    def _quantized_first(self, node: Node) -> bool:
        """quantize(move(x)) = move(quantize(x)), where x is the result of an operator that has a kernel of integers."""
        if node.proto.op_type != "QuantizeLinear" or node.inputs[0] is None:
            return False
        x, out = node.inputs[0], node.outputs[0]
        move = self.made.get(x.name)
        if move is None or not is_standard(move.proto) or len(self.readers.get(x.name, [])) != 1:
            return False
        if Fact.VIEW not in row(move.proto.op_type).facts and move.proto.op_type != "Transpose":
            return False
        source = move.inputs[0]
        kernel = self.made.get(source.name) if source is not None else None
        if source is None or kernel is None or x.name in self.wanted or len(self.readers[source.name]) != 1:
            return False
        if not self._on_integers(kernel) or any(t is not None and t.known not in ((), (1,)) for t in node.inputs[1:]):
            return False
        coded = self._add(node, node.proto, [source, *node.inputs[1:]], out.dtype, source.shape, "codes")
        proto = NodeProto()
        proto.CopyFrom(move.proto)
        proto.name = f"{node.proto.name}/{move.proto.op_type}"
        self.out.append(Node(proto, [coded, *move.inputs[1:]], [out], node.origin, []))
        self.made[out.name] = self.out[-1]
        return True

    def _kept_apart(self, node: Node) -> None:
        """A Concat of one tensor between a DequantizeLinear and a QuantizeLinear of another scale: onnxruntime has a
        kernel for these, and would make one of two pairs that follow each other, with another scale.
        """
        x = node.inputs[0] if node.proto.op_type == "QuantizeLinear" else None
        if x is not None and self._dequantized(x) and x.shape:
            one = helper.make_node("Concat", [], [""], name=f"{node.proto.name}/Concat", axis=len(x.shape) - 1)
            node.inputs[0] = self._add(node, one, [x], x.dtype, x.shape, "apart")

    def _weights(self, node: Node) -> None:
        """Constant operands as integers, where the others are dequantized."""
        data = [t for t in node.inputs if t is not None and t.dtype != TensorProto.BOOL]
        if not self._kernel(node) or not any(map(self._dequantized, data)):
            return
        if any(self._codes(t, any_axis=True) is None for t in data):
            return
        readers = self.readers.get(node.outputs[0].name, [])
        coded = bool(readers) and all(r.proto.op_type == "QuantizeLinear" for r in readers)
        if not coded and Fact.MATMUL not in row(node.proto.op_type).facts:
            return  # between floats it is one of floats
        for i, t in enumerate(node.inputs):
            known = self.b.quantized.get(t.name) if t is not None else None
            if t is None or known is None:
                continue
            proto = helper.make_node("DequantizeLinear", [], [""], name=f"{t.name}/DequantizeLinear")
            if known.axis is not None:
                proto.attribute.append(helper.make_attribute("axis", known.axis))
            params = [known.scale, known.zero] if known.zero is not None else [known.scale]
            node.inputs[i] = self._add(node, proto, [known.codes, *params], t.dtype, t.shape, "floats")

    # ---- what is known of tensors
    def _codes(self, t: Tensor | None, any_axis: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
        """The integers that a tensor was dequantized from, with their scale and zero point; None for others, and
        unless `any_axis` where there is more than one scale.
        """
        if t is None:
            return None
        known = self.b.quantized.get(t.name)
        if known is not None:
            return (known.codes, known.scale, known.zero) if any_axis or known.axis is None else None
        node = self.made.get(t.name)
        if node is None or node.proto.op_type != "DequantizeLinear" or node.inputs[0] is None:
            return None
        given = [*node.inputs[1:], None][:2]
        if not any_axis and any(p is not None and p.known not in ((), (1,)) for p in given):
            return None
        return node.inputs[0], given[0], given[1]

    def _dequantized(self, t: Tensor | None) -> bool:
        """Whether a node of the graph dequantizes it, from 8 bits."""
        node = self.made.get(t.name) if t is not None else None
        if node is None or node.proto.op_type != "DequantizeLinear":
            return False
        first = node.inputs[0]
        return first is not None and first.dtype in BITS

    def _kernel(self, node: Node) -> bool:
        """Whether onnxruntime has a kernel of integers for an operator between the two."""
        facts = row(node.proto.op_type).facts
        return is_standard(node.proto) and Fact.INTEGER_KERNEL in facts

    def _on_integers(self, node: Node) -> bool:
        given = [t for t in node.inputs if t is not None]
        return self._kernel(node) and any(map(self._dequantized, given))

    def _takes_integers(self, node: Node, depth: int = 4) -> bool:
        """Whether a node of dequantized operands is part of a kernel of integers, or moves what goes into one."""
        op, facts = node.proto.op_type, row(node.proto.op_type).facts
        if op == "QuantizeLinear" or (self._kernel(node) and Fact.MATMUL in facts):
            return True
        if not depth or not (self._kernel(node) or facts & (Fact.MOVES | Fact.JOINS)):
            return False
        readers = self.readers.get(node.outputs[0].name, [])
        return bool(readers) and all(self._takes_integers(r, depth - 1) for r in readers)

    def _read_inside(self, t: Tensor) -> bool:
        """Whether a subgraph reads it, under its name."""
        return any(t in node.captured for node in self.readers.get(t.name, []))

    def _add(
        self, at: Node, like: NodeProto, inputs: Sequence[Tensor | None], dtype: int, shape: object, what: str
    ) -> Tensor:
        """A further node beside ``at``, and its output."""
        proto = NodeProto()
        proto.CopyFrom(like)
        proto.name = self.b.unique(f"{like.name}/{what}") if like.name else ""
        deps: frozenset[str] = frozenset().union(*(t.deps for t in inputs if t is not None))
        out = Tensor(self.b.unique(f"{at.outputs[0].name}/{what}"), dtype, shape, deps)  # type: ignore[arg-type]
        self.out.append(Node(proto, list(inputs), [out], at.origin, []))
        self.made[out.name] = self.out[-1]
        return out


def _alike(these: Sequence[Tensor | None], those: Sequence[Tensor | None]) -> bool:
    """Whether scale and zero point are the same constants. A zero point that is left out is 0."""
    for one, other in zip([*these, None, None][:2], [*those, None, None][:2], strict=True):
        a, c = (t.scalar if t is not None else 0 for t in (one, other))
        if a is None or c is None or a != c:
            return False
    return True
