"""Loops whose iterations read each other's results (recurrences): what is equal for all candidates is one row.

    Loop(broadcast(s)) = broadcast(Loop(s))        where the body maps states that lack an axis to states that lack it

The body is interpreted once, with states that lack the axes which their initial values lack. Where a next state varies
along such an axis, the state is given it from the start, and the body is interpreted again. Nodes written for the body
that depend on a state or on the iteration number are the new body; all others are computed once, outside of it. So a
recurrence over the user's history (Keras with a mask) runs on one row: that holds by induction over the iterations.

Refused: states that change their shape, sequences, and a body in which nothing lacks a dynamic axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import GraphProto, TensorProto, helper

from mari_onnx.engine.axes.align import align
from mari_onnx.engine.axes.materialize import materialise, write
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import settle
from mari_onnx.engine.ir.nodes import is_random
from mari_onnx.engine.ir.value import (
    Axis,
    Decline,
    Group,
    Leaf,
    Node,
    Tensor,
    Value,
    axes_of,
    depends,
    fresh,
    is_const,
    rename,
)
from mari_onnx.engine.rule import Context, from_tensor
from mari_onnx.model.dims import Dim, Size, symbols

ROUNDS = 8
"""Maximum number of rounds in which states may gain axes."""


@dataclass
class State:
    """name: in the body. given: the initial value. place: index among the Loop's states. axes: the axes that the
    state has.
    """

    name: str
    given: Value
    place: int
    axes: frozenset[Axis]

    @property
    def order(self) -> list[Axis]:
        """Axes that the state has in the body, in the order of its Value."""
        return [a for a in self.given.axes if a in self.axes]


@dataclass
class Interpreted:
    """The body interpreted with these states: the Values that stand for them, and those that an iteration makes of
    them.
    """

    number: Tensor
    going: Tensor
    stored: list[Tensor]
    going_on: Tensor
    next: list[Tensor]
    scans: list[tuple[list[Group], list[Axis], Tensor]]


def carried(ctx: Context) -> list[Value | None]:
    """The outputs of the Loop, with states that lack the axes along which none of their values varies. Refuses: see
    the module.
    """
    graph: GraphProto = ctx.attrs["body"]
    names = [i.name for i in graph.input][2:]
    after = [o.name for o in graph.output]
    made = {o for node in graph.node for o in node.output}
    fixed = {k for k, name in enumerate(names) if after[k + 1] == name and name not in made}
    states = [
        State(name, value := fresh(ctx.input(k + 2)), k, axes_of(value.body))
        for k, name in enumerate(names)
        if k not in fixed
    ]
    for value in ctx.captured.values():
        settle(value.body)
    b, mark = ctx.b, len(ctx.b.nodes)
    with b.named():
        body = _settled(ctx, graph, states, {names[k]: ctx.input(k + 2) for k in fixed})
    outs = _write(ctx, body, states, mark)
    values: list[Value | None] = [ctx.inputs[k + 2] if k in fixed else None for k in range(len(names))]
    for state, out in zip(states, outs, strict=False):
        values[state.place] = ctx.value(state.given.known, Leaf(out, tuple(state.order)), out.dtype)
    for (groups, order, tensor), out in zip(body.scans, outs[len(states) :], strict=True):
        out.shape = (b.fresh(out, 0), *tensor.known)
        count = Axis(out.shape[0])
        values.append(ctx.value([(count,), *groups], Leaf(out, (count, *order)), out.dtype))
    return values


def _settled(ctx: Context, graph: GraphProto, states: list[State], fixed: dict[str, Value]) -> Interpreted:
    """The body interpreted until no next state varies along an axis that the state lacks."""
    for _ in range(ROUNDS):
        found = _interpret(ctx, graph, states, fixed)
        if found is not None:
            return found
    raise Decline(f"the axes of the Loop's states are not settled after {ROUNDS} rounds")


def _shares(value: Value) -> bool:
    """Whether the value is computed once for all positions of a dynamic axis, such as the candidates."""
    if value.groups is None or is_const(value.body):
        return False
    return any(isinstance(a.size, Dim) for a in frozenset(value.axes) - axes_of(value.body))


def _interpret(
    ctx: Context, graph: GraphProto, states: list[State], fixed: dict[str, Value]
) -> Interpreted | None:
    """Interprets the body once. None where a next state has more axes than the state, which then gets them."""
    b = ctx.b
    read = [*ctx.captured.values(), *ctx.inputs]
    deps = frozenset().union(*(depends(v.body) for v in read if v is not None))

    def stand_in(name: str, dtype: int, shape: tuple[Size, ...]) -> Tensor:
        return Tensor(b.unique(f"{b.label}/{name}"), dtype, shape, deps)

    number, going = (stand_in(n, t, ()) for n, t in (("number", TensorProto.INT64), ("going", TensorProto.BOOL)))
    env = {**ctx.captured, **fixed}
    env[graph.input[0].name], env[graph.input[1].name] = from_tensor(number), from_tensor(going)
    stored = []
    for state in states:
        tensor = stand_in(state.name, state.given.dtype, tuple(a.size for a in state.order))
        stored.append(tensor)
        env[state.name] = Value(state.given.known, Leaf(tensor, tuple(state.order)), tensor.dtype)
    results = ctx.interpret(graph, env)
    settled, bodies = True, []
    for state in states:
        value = results[state.place + 1]
        if value.groups is None or value.rank != state.given.rank or value.dtype != state.given.dtype:
            raise Decline("a state of the Loop changes its shape")
        if not all(b.same(x, y) for x, y in zip(value.shape, state.given.shape, strict=True)):
            raise Decline("a state of the Loop changes its shape")
        (_, body), groups = align(b, [Value(state.given.known, state.given.body, value.dtype), fresh(value)])
        if [[a.size for a in g] for g in groups] != [[a.size for a in g] for g in state.given.known]:
            raise Decline("the Loop reshapes one of its states")
        body = rename(body, dict(zip((a for g in groups for a in g), state.given.axes, strict=True)))
        bodies.append(body)
        if not axes_of(body) <= state.axes:
            state.axes |= axes_of(body)
            settled = False
    if not settled:
        return None
    if not any(_shares(env[o]) for node in graph.node for o in node.output if o in env):
        raise Decline("no state of the Loop is equal for all candidates")
    after = [
        write(b, body, [(a,) for a in s.order], s.axes) for s, body in zip(states, bodies, strict=True)
    ]
    scans = []
    for value in results[1 + len(states) + len(fixed) :]:
        if value.groups is None:
            raise Decline("what the Loop collects has an unknown rank")
        own = [a for a in value.axes if a in axes_of(value.body)]
        scans.append((list(value.groups), own, write(b, value.body, [(a,) for a in own])))
    again = results[0]
    if again.groups is None or axes_of(again.body):
        raise Decline("the condition of the Loop is not a single value")
    return Interpreted(number, going, stored, write(b, again.body, []), after, scans)


def _write(ctx: Context, body: Interpreted, states: Sequence[State], mark: int) -> list[Tensor]:
    """Writes the Loop node, with the states as they are stored."""
    b = ctx.b
    wanted = [body.going_on, *body.next, *(t for *_, t in body.scans)]
    inside = needed(depending(b, mark, {t.name for t in [body.number, body.going, *body.stored]}), wanted)
    made = {t.name for node in inside for t in node.outputs}
    for groups, _, _ in body.scans:
        for group in groups:
            if any(b.sources[s][0].name in made for a in group for s in symbols(a.size) if s in b.sources):
                raise Decline("the Loop computes the shape of what it collects")
    nodes = [node.proto for node in inside]
    outputs = []
    for i, tensor in enumerate(wanted):
        name = b.unique(f"{b.label}/out{i}")
        nodes.append(helper.make_node("Identity", [tensor.name], [name]))
        outputs.append(helper.make_tensor_value_info(name, tensor.dtype, None))
    own = [body.number, body.going, *body.stored]
    infos = [helper.make_tensor_value_info(t.name, t.dtype, () if i < 2 else None) for i, t in enumerate(own)]
    hidden = made | {t.name for t in own}
    captured = {
        t.name: t for node in inside for t in [*node.inputs, *node.captured] if t is not None and t.name not in hidden
    } | {t.name: t for t in wanted if t.name not in hidden}
    start: list[Tensor | None] = [
        materialise(b, v) if v is not None else None for v in (list(ctx.inputs[:2]) + [None] * 2)[:2]
    ]
    start += [write(b, s.given.body, [(a,) for a in s.order], s.axes) for s in states]
    graph = helper.make_graph(nodes, ctx.attrs["body"].name or "body", infos, outputs)
    proto = helper.make_node("Loop", [t.name if t else "" for t in start], [""] * (len(wanted) - 1), body=graph)
    shapes: list[tuple[Size, ...] | None] = [t.known for t in body.stored] + [None] * len(body.scans)
    return b._append(proto, start, [t.dtype for t in wanted[1:]], shapes, list(captured.values()))


def depending(b: Builder, mark: int, names: set[str]) -> list[Node]:
    """The nodes written since ``mark`` that depend on these tensors, or draw random numbers."""
    found, names = [], set(names)
    for node in b.nodes[mark:]:
        if is_random(node.proto) or any(t is not None and t.name in names for t in [*node.inputs, *node.captured]):
            found.append(node)
            names |= {t.name for t in node.outputs}
    return found


def needed(nodes: Sequence[Node], wanted: Sequence[Tensor]) -> list[Node]:
    """The nodes that these tensors are computed by, in the order of the graph."""
    names, found = {t.name for t in wanted}, []
    for node in reversed(nodes):
        if any(t.name in names for t in node.outputs):
            found.append(node)
            names |= {t.name for t in [*node.inputs, *node.captured] if t is not None}
    return found[::-1]
