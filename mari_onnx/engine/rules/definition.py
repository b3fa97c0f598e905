"""An operator without a rule of its own, written as the standard defines it.

onnx ships a function body for most operators that are compositions of others (RotaryEmbedding, CenterCropPad,
MeanVarianceNormalization, ..). Each node of the body is computed by its own rule, so whatever these rules save is
saved. The operator's kernel does the same in one pass over memory, but on rows that are written out. The definition is
used where it is estimated to be cheaper; otherwise, or where there is none, the node is copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto

from mari_onnx.engine.cost.flops import node_cost
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Cat, Decline, Node, Value, axes_of, is_const, leaves
from mari_onnx.engine.rule import Context
from mari_onnx.model.dims import Size
from mari_onnx.model.nodes import attribute_graphs, domain, operator, rename_captures
from mari_onnx.model.ops import Fact, row


def by_definition(ctx: Context) -> list[Value | None]:
    """The outputs of the node, computed by the nodes of its definition.

    Refuses an operator that has no definition, one whose definition has another meaning at the model's opset or loses
    digits that a kernel keeps, and one whose definition would cost more than its kernel on rows that are written out.
    """
    b, name = ctx.b, operator(ctx.node)
    if not any(v is not None and _repeats(v) for v in ctx.inputs):
        raise Decline(f"no rule for {name}, and none of its inputs has equal rows, so nothing could be saved")
    body = _definition(ctx)
    if body is None:
        raise Decline(f"no rule for {name}, and no definition by other operators")
    before = len(b.nodes)
    env = dict(zip((f"{ctx.node.output[0]}/{i}" for i in body.input), _given(ctx, body), strict=True))
    present = {key: value for key, value in env.items() if value is not None}
    with b.named():
        for node in _inlined(ctx, body, set(env) - set(present)):
            ctx.visit(node, present)
    outputs = [present.get(f"{ctx.node.output[0]}/{o}") for o in body.output][: len(ctx.node.output)]
    if any(v is None or v.groups is None for v in outputs):
        raise Decline(f"the definition of {name} leaves the rank of an output unknown")
    written, kernel = _written(b, outputs, before), _kernel(ctx, outputs)
    if written >= kernel:
        how = f"{written:.3g} against {kernel:.3g} multiply-adds, estimated"
        raise Decline(f"the definition of {name} would cost more than its kernel ({how})")
    return [*outputs, *[None] * (len(ctx.node.output) - len(outputs))]


def _repeats(value: Value) -> bool:
    """Whether writing the value out repeats rows."""
    if value.groups is None or is_const(value.body):
        return False
    return isinstance(value.body, Cat) or axes_of(value.body) != frozenset(value.axes)


def _given(ctx: Context, body: FunctionProto) -> list[Value | None]:
    return [*ctx.inputs, *[None] * (len(body.input) - len(ctx.inputs))]


# ---- the body ---------------------------------------------------------------------------------------------------
def _definition(ctx: Context) -> FunctionProto | None:
    """The function body that onnx has for the node at the model's opset. Source: `onnx.defs`."""
    owner = domain(ctx.node.domain)
    try:
        schema: Any = onnx.defs.get_schema(ctx.node.op_type, ctx.session.opsets.get(owner, 1), owner)
    except onnx.defs.SchemaError:
        return None
    plain = [v for v in schema.function_opset_versions if v <= ctx.opset]
    typed = [v for v in schema.context_dependent_function_opset_versions if v <= ctx.opset]
    if plain:
        version, data = max(plain), schema.get_function_with_opset_version(max(plain))
    elif typed:
        node, types = ctx.node.SerializeToString(), [_type(v).SerializeToString() for v in ctx.inputs]
        version = max(typed)
        data = schema.get_context_dependent_function_with_opset_version(version, node, types)
    else:
        return None
    body = FunctionProto.FromString(data) if data else None
    if body is not None and any(_since(n, version) != _since(n, ctx.opset) for n in body.node):
        raise Decline(f"the definition of {ctx.node.op_type} is of opset {version}, whose operators have changed since")
    if body is not None and _subtracts_squares(body):
        raise Decline(f"the definition of {ctx.node.op_type} takes a variance as E[x^2] - E[x]^2: that loses digits")
    given = {a.name for a in body.attribute_proto} if body is not None else set()
    if body is not None:
        defaults = [each.default_value for name, each in schema.attributes.items() if name not in given]
        body.attribute_proto.extend(each for each in defaults if each.name)
    return body


def _subtracts_squares(body: FunctionProto) -> bool:
    """Whether the body computes a variance as E[x^2] - E[x]^2, which loses all digits where the mean is large.
    Kernels do not.
    """
    made = {name: node for node in body.node for name in node.output}

    def squared(name: str) -> bool:
        node = made.get(name)
        while node is not None and row(node.op_type).facts & (Fact.REDUCES | Fact.MOVES | Fact.CONVERTS):
            node = made.get(node.input[0])
        if node is None:
            return False
        return bool(node.op_type == "Pow" or (node.op_type == "Mul" and node.input[0] == node.input[1]))

    return any(node.op_type == "Sub" and all(squared(name) for name in node.input) for node in body.node)


def _since(node: NodeProto, opset: int) -> int:
    """The opset in which the version of the operator that ``opset`` uses was introduced."""
    return int(onnx.defs.get_schema(node.op_type, opset, node.domain).since_version)


def _type(value: Value | None) -> TypeProto:
    """The type of an input, with its shape as far as it is a number."""
    found = TypeProto()
    if value is not None:
        found.tensor_type.elem_type = value.dtype
        if value.groups is not None:
            for size in value.shape:
                known = {"dim_value": size} if isinstance(size, int) else {"dim_param": str(size)}
                found.tensor_type.shape.dim.add(**known)
    return found


def _inlined(ctx: Context, body: FunctionProto, absent: set[str]) -> Iterable[NodeProto]:
    """The body's nodes with names of their own and the node's attributes; an input that is absent stays so."""
    given = {a.name: a for a in body.attribute_proto} | {a.name: a for a in ctx.node.attribute}
    known = {*body.input, *(o for node in body.node for o in node.output if o)}
    names = {name: f"{ctx.node.output[0]}/{name}" for name in known}
    for each in body.node:
        node = NodeProto()
        node.CopyFrom(each)
        node.name = ctx.node.name or ctx.node.output[0]
        node.input[:] = ["" if names.get(x) in absent else names.get(x, x) for x in each.input]
        node.output[:] = [names.get(x, x) for x in each.output]
        rename_captures(node, names)
        _substitute(node, given)
        yield node


def _substitute(node: NodeProto, given: dict[str, AttributeProto]) -> None:
    """Replaces references to the function's attributes by their values; one that is not given is left to its
    default.
    """
    for i in reversed(range(len(node.attribute))):
        each = node.attribute[i]
        if each.ref_attr_name:
            name, source = each.name, given.get(each.ref_attr_name)
            if source is None:
                del node.attribute[i]
                continue
            each.CopyFrom(source)
            each.name = name
        for graph in attribute_graphs(each):
            for inner in graph.node:
                _substitute(inner, given)


# ---- what it costs ----------------------------------------------------------------------------------------------
def _written(b: Builder, outputs: Sequence[Value | None], before: int) -> float:
    """Estimated time of the nodes that were written for the outputs."""
    todo = [leaf.tensor for value in outputs if value is not None for leaf in leaves(value.body)]
    met: set[Node] = set()
    total = 0.0
    while todo:
        node = todo.pop().node
        if node is None or node.index < before or node in met:
            continue
        met.add(node)
        shapes = [None if t is None else t.shape for t in node.inputs]
        total += _price(b, node.proto, shapes, [t.shape for t in node.outputs])
        todo += [t for t in [*node.inputs, *node.captured] if t is not None]
    return total


def _kernel(ctx: Context, outputs: Sequence[Value | None]) -> float:
    """Estimated time of the operator itself, on inputs that are written out."""
    time = ctx.b.time
    copies = sum(time.copy * time.volume(v.axes) for v in ctx.inputs if v is not None and _repeats(v))
    shapes = [None if v is None or v.groups is None else v.shape for v in ctx.inputs]
    return copies + _price(ctx.b, ctx.node, shapes, [None if v is None else v.shape for v in outputs])


def _price(
    b: Builder, node: NodeProto, inputs: Sequence[tuple[Size, ...] | None], outputs: Sequence[tuple[Size, ...] | None]
) -> float:
    """Estimated time of a node: its multiply-adds, the elements that it writes, and the fixed cost of a node."""
    taken, made = (
        [None if shape is None else tuple(b.time.length(size) for size in shape) for shape in each]
        for each in (inputs, outputs)
    )
    elements = sum(math.prod(shape) for shape in made if shape is not None)
    return b.time.node + node_cost(node, taken, made).flops / 2 + b.time.element_of(node.op_type) * elements
