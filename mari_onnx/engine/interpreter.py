"""One walk over the source graph: every tensor becomes a `Value`, every node is answered by its operator's rule.

The source is only read. The default rule writes all inputs out and copies the node, so an operator that no rule knows
is still right; it is also what a rule falls back to when it declines, with the reason kept for the report.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.nodes import RANDOM, captures
from mari_onnx.engine.ir.value import (
    Axis,
    Cat,
    Decline,
    Group,
    Leaf,
    Part,
    Tensor,
    Value,
    axes_of,
    is_const,
    kind,
    leaves,
)
from mari_onnx.engine.rule import RULES, Context, constant, from_tensor
from mari_onnx.engine.rules import shape as shape_rules
from mari_onnx.engine.rules.control import loop as loop_rules
from mari_onnx.engine.session import Session
from mari_onnx.model.dims import Dim, Size
from mari_onnx.model.ops import Fact, having
from mari_onnx.sides.resolve import Sides

N = Dim.symbol("N")
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a rule may raise on a graph that it did not expect."""
NARROW = frozenset({17, 18, 19, 20, 21, 22, 23, 24, 25, 26})
"""float8, float4 and integers of 4 and 2 bits: no operator repeats or joins them, so they keep their N rows."""
STRICT = bool(os.environ.get("MARI_ONNX_STRICT"))
"""Raise what a rule trips over, for tests, instead of leaving the node as it is."""


@dataclass
class NodeReport:
    """What became of one source node."""

    name: str
    op: str
    kind: str
    action: str
    """lifted (once a request), split (parts of it once a request), folded (at build time), kept, or barrier."""
    rule: str
    reason: str | None = None
    outputs: tuple[str, ...] = ()


@dataclass
class Walk:
    """The state of the walk."""

    b: Builder
    session: Session
    env: dict[str, Value] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """The new graph's inputs, as it takes them."""
    reports: list[NodeReport] = field(default_factory=list)
    several: frozenset[str] = frozenset()
    """Source tensors that more than one node reads."""


def enter(walk: Walk, sides: Sides) -> None:
    """Initializers and inputs as Values."""
    graph, initialized = walk.session.graph, set()
    for proto in graph.initializer:
        initialized.add(proto.name)
        if proto.data_type == TensorProto.STRING:
            tensor = walk.b.input(proto.name, proto.data_type, tuple(proto.dims), frozenset())
        else:
            tensor = walk.b.initializer(proto)
        walk.env[proto.name] = from_tensor(tensor)
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        initialized.add(name)
        tensor = walk.b.input(name, sparse.values.data_type, tuple(sparse.dims), frozenset())
        walk.env[name] = from_tensor(tensor)
    for info in graph.input:
        if info.name not in initialized:
            _input(walk, info, sides)
        else:
            # an initializer that the caller may replace is not a constant
            old = walk.env[info.name].body
            assert isinstance(old, Leaf)
            walk.env[info.name] = from_tensor(
                Tensor(info.name, old.tensor.dtype, old.tensor.shape, frozenset({"item", "user"}))
            )


def input_shapes(graph: onnx.GraphProto, sides: Sides) -> dict[str, tuple[Size, ...]]:
    """Shapes of the inputs of known rank, with the symbol N for the candidates."""
    initialized = {p.name: tuple(p.dims) for p in graph.initializer}
    initialized |= {s.values.name: tuple(s.dims) for s in graph.sparse_initializer}
    inputs = [i for i in graph.input if i.name not in initialized]
    names = batch_names(inputs, sides)
    found: dict[str, tuple[Size, ...]] = {i.name: initialized.get(i.name, ()) for i in graph.input}
    for info in inputs:
        if info.type.tensor_type.HasField("shape"):
            found[info.name] = tuple(_size(info, i, sides, names) for i in range(len(info.type.tensor_type.shape.dim)))
        else:
            del found[info.name]
    return found


def _size(info: onnx.ValueInfoProto, i: int, sides: Sides, names: set[str | int]) -> Size:
    """Dimension i of an input; N also where a fixed-batch export has the number of candidates."""
    side, at, dim = _side(info.name, sides), sides.candidate_axis, info.type.tensor_type.shape.dim[i]
    # in the [R, N, ...] layout the user's inputs are [R, ...]: only a name tells that one has the candidates' axis
    candidate = side is not None and i == at and not (side == "user" and at)
    if dim.HasField("dim_value"):
        return N if candidate and dim.dim_value in names else dim.dim_value
    if candidate or dim.dim_param in names:
        return N
    # beside tagged inputs, a free dimension that the exporter happened to call N is not the candidates'
    name = "N (free)" if sides and dim.dim_param == "N" else dim.dim_param
    return Dim.symbol(name or f"{info.name}[{i}]")


def batch_names(inputs: Sequence[onnx.ValueInfoProto], sides: Sides) -> set[str | int]:
    """What tagged inputs call the candidate axis: names, and the literal size of a fixed-batch export."""
    names: set[str | int] = set()
    for info in inputs:
        side = _side(info.name, sides)
        dims = info.type.tensor_type.shape.dim
        if side is None or len(dims) <= sides.candidate_axis or (side == "user" and sides.candidate_axis):
            continue
        dim = dims[sides.candidate_axis]
        if dim.HasField("dim_value"):
            if dim.dim_value > 1:
                names.add(dim.dim_value)
        elif dim.dim_param:
            names.add(dim.dim_param)
    return names


def several_readers(graph: onnx.GraphProto) -> frozenset[str]:
    """Tensors whose elements, not only sizes, more than one node reads on the way to an output."""
    readers = Counter(o.name for o in graph.output)
    for node in reversed(graph.node):
        if node.op_type not in having(Fact.SIZES) and any(o in readers for o in node.output):
            readers.update({name for name in node.input if name} | set(captures(node)))
    return frozenset(name for name, count in readers.items() if count > 1)


def _side(name: str, sides: Sides) -> str | None:
    return "packed" if name in sides.columns else sides.inputs.get(name)


DEPS = {"user": {"user"}, "item": {"item"}, "cross": {"user", "item"}, "packed": {"user", "item"}, None: {"item"}}


def _input(walk: Walk, info: onnx.ValueInfoProto, sides: Sides) -> None:
    b, side, at = walk.b, _side(info.name, sides), sides.candidate_axis
    kind_ = info.type.WhichOneof("value")
    if kind_ != "tensor_type" or not info.type.tensor_type.HasField("shape"):
        dtype = info.type.tensor_type.elem_type if kind_ == "tensor_type" else TensorProto.UNDEFINED
        tensor = b.input(info.name, dtype, None, frozenset(DEPS[side]))
        walk.env[info.name], walk.inputs[info.name] = from_tensor(tensor), tensor
        return
    shape = walk.session.inputs[info.name]
    for size, dim in zip(shape, info.type.tensor_type.shape.dim, strict=True):
        if size == N and dim.HasField("dim_value"):
            b.fixed["N"] = dim.dim_value
    if N in shape:
        b.rows |= {symbol for size in shape[: shape.index(N)] if isinstance(size, Dim) for symbol in size.symbols}
    axes = [Axis(size) if size != 1 else None for size in shape]
    groups: tuple[Group, ...] = tuple((a,) if a is not None else () for a in axes)
    lifted = side == "user" and len(shape) > at and shape[at] == N
    stored = tuple(1 if lifted and i == at else size for i, size in enumerate(shape))
    # an input that no one tagged is the user's where it has no row for each candidate
    once = side is None and not any(isinstance(size, Dim) and "N" in size.symbols for size in shape)
    deps = DEPS["user" if once else side]
    tensor = b.input(info.name, info.type.tensor_type.elem_type, stored, frozenset(deps))
    walk.inputs[info.name] = tensor
    for i, size in enumerate(stored):
        if isinstance(size, Dim) and len(size.symbols) == 1:
            (symbol,) = size.symbols
            if not (symbol == "N" and side == "user"):
                b.sources.setdefault(symbol, (tensor, i))
    body: Leaf | Cat = Leaf(tensor, tuple(None if lifted and i == at else a for i, a in enumerate(axes)))
    if side == "packed":
        body = _packed(b, tensor, axes, sides.columns[info.name], at)
    walk.env[info.name] = Value(groups, body, tensor.dtype)


def _packed(
    b: Builder, tensor: Tensor, axes: Sequence[Axis | None], columns: Mapping[str, Sequence[int]], at: int
) -> Cat:
    """``X[N, F]``: the user's columns from row 0, the others as they are. Refuses other layouts."""
    if len(axes) != 2:
        raise Decline("only an input [N, F] has columns of several sides")
    rows, across = axes[at], axes[1 - at]
    assert across is not None
    parts = []
    first = emit.cut(b, tensor, at, 0, 1, 1)
    first.deps = frozenset({"user"})
    for side, places in columns.items():
        if not places:
            continue
        source = first if side == "user" else tensor
        piece = emit.pick(b, source, 1 - at, list(places))
        piece.deps = frozenset(DEPS[side])
        sub = Axis(len(places)) if len(places) > 1 else None
        own: list[Axis | None] = [sub, sub]
        own[at] = rows if side != "user" else None
        parts.append(Part(tuple(places), sub, Leaf(piece, tuple(own))))
    return Cat(across, tuple(parts))


def visit(walk: Walk, node: NodeProto) -> None:
    """Answer one node."""
    inputs = [walk.env[name] if name else None for name in node.input]
    captured = {name: walk.env[name] for name in captures(node) if name in walk.env}
    ctx = Context(walk.b, node, inputs, walk.session, captured)
    ctx.visit = lambda inner, env: visit(Walk(walk.b, walk.session, env), inner)
    walk.b.origin = node.name or next((o for o in node.output if o), "")
    walk.b.label = next((o for o in node.output if o), node.name)
    walk.b.notes.clear()
    reason: str | None = None
    outputs: Sequence[Value | None] | None = None
    name, splits = "default", False
    domain = "" if node.domain == "ai.onnx" else node.domain
    if {node.name, walk.b.label} & walk.session.options.skip:
        reason = "left alone on request"
    elif node.op_type in RANDOM:
        reason = "random operators are never lifted"
    else:
        try:
            outputs = shape_rules.fold(ctx)
            name = "shape"
            if outputs is None:
                found = RULES.get((domain, node.op_type))
                if found is None:
                    raise Decline(f"no rule for {domain + '.' if domain else ''}{node.op_type}")
                name, splits = found.name, found.splits
                outputs = found.answer(ctx)
        except Decline as decline:
            reason, name, outputs = str(decline), "default", None
        except FAILURES as error:
            if STRICT:
                raise
            # a rule that trips over a graph it did not expect leaves the node as it is
            reason, name, outputs = f"the rule failed ({type(error).__name__}: {error})", "default", None
    if outputs is not None and any(v is not None and v.dtype in NARROW and _partial(v) for v in outputs):
        reason, name, outputs = "Expand and Concat do not take the element type", "default", None
    if outputs is None:
        outputs = ctx.write_out()
    loop_rules.follow(ctx, outputs)
    for output, value in zip(node.output, outputs, strict=False):
        if output and value is not None:
            walk.env[output] = value
            if output in walk.several:
                _settle(value)
    report = _report(node, inputs, outputs, name, splits, reason)
    report.reason = reason or "; ".join(dict.fromkeys(walk.b.notes)) or None
    walk.reports.append(report)


def _settle(value: Value) -> None:
    """A tensor with several readers is needed as it is: a bias or a scale that one of them adds comes after it.

    Taken into its weights (`add_later`, `rescale`), the product would run once for each reader.
    """
    for leaf in leaves(value.body):
        leaf.tensor.add_later = leaf.tensor.rescale = None


def _report(
    node: NodeProto,
    inputs: Sequence[Value | None],
    outputs: Sequence[Value | None],
    name: str,
    splits: bool,
    reason: str | None,
) -> NodeReport:
    first = next((v for v in outputs if v is not None), None)
    if node.op_type == "Loop":  # its counter comes first
        first = next((v for v in outputs if v is not None and v.groups is not None and _saves(v)), first)
    kinds = kind(first.body) if first is not None else "Const"
    if first is not None and is_const(first.body):
        action = "folded"
    elif first is not None and first.groups is not None and _saves(first):
        action = "split" if isinstance(first.body, Cat) else "lifted"
    elif reason is None and splits and any(_split_inputs(v) for v in inputs):
        action = "split"
    elif reason is not None and any(v is not None and v.groups is not None and _saves(v) for v in inputs):
        action = "barrier"
    else:
        action = "kept"
    return NodeReport(node.name or (node.output[0] if node.output else ""), node.op_type, kinds, action, name, reason,
                      tuple(node.output))  # fmt: skip


def _partial(value: Value) -> bool:
    return value.groups is not None and (isinstance(value.body, Cat) or axes_of(value.body) != frozenset(value.axes))


def _saves(value: Value) -> bool:
    """Whether some of the value is computed once for positions that are equal."""
    if is_const(value.body):
        return False
    axes = frozenset(value.axes)
    if isinstance(value.body, Cat):
        return any(axes_of(p.body) - {p.axis} != axes - {value.body.axis} for p in value.body.parts)
    return axes_of(value.body) != axes


def _split_inputs(value: Value | None) -> bool:
    return value is not None and isinstance(value.body, Cat) and _saves(value)


def constant_of(walk: Walk, name: str) -> np.ndarray | None:
    """A tensor's value where it is a build-time constant."""
    value = walk.env.get(name)
    return None if value is None else constant(walk.b, value)
