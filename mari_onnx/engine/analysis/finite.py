"""Which tensors may hold a NaN or an infinity of an input; what is multiplied by such a tensor must not be left out.

In: bodies and tensors of the new graph, and once per source whether a NaN always stays a NaN. Out: yes or no. Only
float inputs may hold them; ids and flags are finite, and so is what is computed from these and from weights, unless the
model itself divides by 0. If x is not finite, neither are ``0 * x``, ``-inf + x``, and a softmax over scores that have
x added.

Attention is an exception. A token that a causal mask hides still makes all rows NaN, because 0 * NaN is NaN. It also
makes its own row NaN, which the output reads. So if no operator of the model turns a NaN into a number, the rows that
do not see the token may leave it out: the output is NaN because of the token's own row.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Body, Leaf, Tensor, leaves
from mari_onnx.model import tensors
from mari_onnx.model.nodes import attribute, constant, domain, is_standard, reads
from mari_onnx.model.ops import Fact, having, row

FLOATS = {TensorProto.UNDEFINED, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}


def carried(graph: onnx.GraphProto) -> bool:
    """Whether a NaN of a float input stays one: nothing that is computed of such an input asks for it, or casts it."""
    weights = {t.name for t in graph.initializer}
    raw = {i.name for i in graph.input if i.name not in weights and i.type.tensor_type.elem_type in FLOATS}
    for node in graph.node:
        if node.op_type in having(Fact.SIZES) or raw.isdisjoint(reads(node)):
            continue
        if _swallows(node) and not _power(graph, node):
            return False
        raw.update(node.output)
    return True


def _swallows(node: NodeProto) -> bool:
    if node.op_type == "Where":
        return False  # it chooses by a condition that no operator made of a float input
    if node.op_type == "Cast":
        return attribute(node, "to") not in FLOATS
    known = row(node.op_type)
    return domain(node.domain) not in known.domains or Fact.KEEPS_NAN not in known.facts


def _power(graph: onnx.GraphProto, node: NodeProto) -> bool:
    """Whether a node is ``x ^ c``, c a constant without zeros: ``x ^ 0`` is 1 whatever x is, others keep a NaN."""
    if node.op_type != "Pow" or not is_standard(node):
        return False
    name, inputs = node.input[1], {i.name for i in graph.input}
    found = [tensors.array(t) for t in graph.initializer if t.name == name and name not in inputs]
    found += [array for made in graph.node if name in made.output and (array := constant(made)) is not None]
    return len(found) == 1 and bool(np.all(found[0]))


def masked(b: Builder, tensor: Tensor) -> bool:
    """Whether a score may be NaN where a mask hides it: one that is chosen is not, one that is added up is."""
    if b.carried or not given(b, Leaf(tensor, ())):
        return False
    node = tensor.node
    while node is not None and node.proto.op_type in having(Fact.MOVES):
        before = node.inputs[0]
        node = before.node if before is not None else None
    return node is None or node.proto.op_type != "Where" or not any(t is not None and t.const for t in node.inputs[1:])


def given(b: Builder, body: Body) -> bool:
    """Whether a body is computed from float inputs, so that it may be NaN or infinite as they are."""
    return any(_given(b, leaf.tensor) for leaf in leaves(body))


def _given(b: Builder, tensor: Tensor) -> bool:
    known = b.given
    stack = [tensor]
    while stack:
        top = stack[-1]
        if top.name not in known:
            node = top.node
            if top.const or top.dtype not in FLOATS or node is None:
                known[top.name] = not top.const and top.dtype in FLOATS
            else:
                read = [t for t in (*node.inputs, *node.captured) if t is not None]
                if any(known.get(t.name) for t in read):
                    known[top.name] = True
                elif more := [t for t in read if t.name not in known]:
                    stack += more
                    continue
                else:
                    known[top.name] = False
        stack.pop()
    return known[tensor.name]
