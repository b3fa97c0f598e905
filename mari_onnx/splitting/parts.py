"""Models of the parts: the nodes that compute some tensors of a draft from others, as an ONNX model of their own.

In: a draft, the tensors that are wanted, and those that are given. Out: a `Part`. Nodes are copied, so that a node may
be in several parts; then operators are joined and written for the target as in a graph that stays whole. A part that
needs the number of candidates reads it from one of its own inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx
from onnx import NodeProto, helper

from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.value import Node, Tensor
from mari_onnx.engine.outcome import Draft
from mari_onnx.engine.output.assemble import assemble, fuse_gemm
from mari_onnx.engine.output.cpu import for_cpu
from mari_onnx.engine.output.integer_kernels import with_integer_kernels
from mari_onnx.model.dims import Dim, Size, product, symbols
from mari_onnx.splitting.rates import reads_sizes, sizes_read


@dataclass(frozen=True)
class Part:
    """One of the models that a draft was cut into.

    Attributes:
        model: its inputs are `inputs`, its outputs `outputs`, by the names that they have in the draft.
        tensors: all in it.
    """

    model: onnx.ModelProto
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tensors: tuple[Tensor, ...]


def part(
    source: onnx.ModelProto, draft: Draft, wanted: Sequence[Tensor], given: Collection[str], target: str = "cpu"
) -> Part:
    """The model that computes the tensors `wanted` from the tensors named `given` and from inputs of the graph.

    Args:
        source: for opsets, metadata and weights.
    """
    nodes, leaves, instead = _needed(source, draft, wanted, given)
    copies = [_copied(node, instead) for node in nodes]
    copies = with_integer_kernels(draft.b, fuse_gemm(copies, wanted), wanted)
    if target == "cpu":
        copies = for_cpu(draft.b, copies, wanted, most=2 * max(1, len(copies)))
    whole = draft.model
    order = {info.name: i for i, info in enumerate(whole.graph.input)}
    inputs = sorted(leaves, key=lambda t: (order.get(t.name, len(order)), t.name))
    symbol = candidate_symbol(draft)
    known = {info.name: info for info in [*whole.graph.output, *whole.graph.input]}
    ins = [known[t.name] if t.name in order else value_info(t, symbol) for t in inputs]
    outs = [known[t.name] if t.name in known else value_info(t, symbol) for t in wanted]
    model = assemble(source, copies, wanted, draft.stored, (ins, outs))
    tensors = dict.fromkeys(t for n in copies for t in [*n.inputs, *n.outputs] if t is not None)
    return Part(model, tuple(inputs), tuple(wanted), tuple(tensors))


def value_info(t: Tensor, symbol: str) -> onnx.ValueInfoProto:
    """A tensor as an input or output of a part. symbol: the name of the dimension of the candidates."""
    if t.shape is None:
        return helper.make_tensor_value_info(t.name, t.dtype, None)
    return helper.make_tensor_value_info(t.name, t.dtype, [dimension(size, symbol) for size in t.shape])


def dimension(size: Size, symbol: str) -> int | str | None:
    """A size as a model declares it: a number, a symbol, or None where only a run can tell."""
    if isinstance(size, int):
        return size
    if any(name.startswith("?") for name in symbols(size)):
        return None
    return symbol if size == Dim.symbol("N") else str(size).replace(" ", "")


def candidate_symbol(draft: Draft) -> str:
    """What the source calls the dimension of the candidates."""
    for info in draft.model.graph.input:
        t = draft.stored.get(info.name)
        for size, dim in zip(t.shape or () if t is not None else (), info.type.tensor_type.shape.dim, strict=False):
            if size == Dim.symbol("N") and dim.dim_param:
                return str(dim.dim_param)
    return "N"


def _needed(
    source: onnx.ModelProto, draft: Draft, wanted: Sequence[Tensor], given: Collection[str]
) -> tuple[list[Node], list[Tensor], dict[str, Tensor]]:
    """The nodes in order, the tensors that they start from, and tensors to read instead of sizes of absent ones."""
    weights = {t.name for t in source.graph.initializer} | {t.values.name for t in source.graph.sparse_initializer}
    weights -= {info.name for info in source.graph.input}
    seen: set[Node] = set()
    leaves: dict[str, Tensor] = {}
    sizes: dict[Node, None] = {}
    stack = list(wanted)

    def walk() -> None:
        while stack:
            t = stack.pop()
            if t.const or t.name in weights:
                continue
            if t.node is None or t.name in given:
                leaves[t.name] = t
            elif t.node not in seen and t.node not in sizes:
                if reads_sizes(t.node):
                    sizes[t.node] = None
                    continue
                seen.add(t.node)
                stack.extend(x for x in [*t.node.inputs, *t.node.captured] if x is not None)

    walk()
    instead: dict[str, Tensor] = {}
    extra: list[Node] = []
    while sizes:
        node = next(iter(sizes))
        del sizes[node]
        (t,) = node.inputs
        assert t is not None
        captured = {x.name for n in seen for x in n.captured}
        if t.name not in leaves and t.node not in seen and node.outputs[0].name not in captured:
            found = _resized(draft, node, list(leaves.values()))
            if found is not None:
                instead[node.outputs[0].name] = found
                extra += _makers(found, leaves)
                continue
        seen.add(node)
        stack.append(t)
        walk()
    first = dict.fromkeys(n for n in extra if n not in seen)
    return [*first, *sorted(seen, key=lambda n: n.index)], list(leaves.values()), instead


def _resized(draft: Draft, node: Node, leaves: Sequence[Tensor]) -> Tensor | None:
    """What `node` says of the sizes of a tensor, from the sizes of `leaves`; None where these do not tell."""
    b, sizes = draft.b, sizes_read(node)
    if sizes is None:
        return None
    names = {name for size in sizes for name in symbols(size)} - set(b.fixed)
    found = {}
    for name in names:
        at = next(((t, i) for t in leaves for i, s in enumerate(t.shape or ()) if s == Dim.symbol(name)), None)
        if at is None:
            return None
        found[name] = at
    before = dict(b.sources)
    b.sources.update(found)
    b.origin, b.label = node.origin, node.outputs[0].name
    try:
        if node.outputs[0].shape == ():
            return emit.reshape(b, b.size(product(sizes)), ())
        return b.sizes(sizes)
    finally:
        b.sources.clear()
        b.sources.update(before)


def _makers(t: Tensor, leaves: Collection[str]) -> list[Node]:
    """The nodes that compute `t` from leaves, in order."""
    found: dict[Node, None] = {}
    stack = [t]
    while stack:
        top = stack.pop()
        if top.node is not None and top.name not in leaves and top.node not in found:
            found[top.node] = None
            stack += [x for x in top.node.inputs if x is not None]
    return sorted(found, key=lambda n: n.index)


def _copied(node: Node, instead: dict[str, Tensor]) -> Node:
    proto = NodeProto()
    proto.CopyFrom(node.proto)
    inputs = [instead.get(t.name, t) if t is not None else None for t in node.inputs]
    return Node(proto, inputs, list(node.outputs), node.origin, list(node.captured), node.index)
