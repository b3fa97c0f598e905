"""Loops whose iterations are independent: the body is interpreted once, for all iterations together.

    [f(x[i], y[L i : L i + L]) for i < N]   =   f over the rows of x and of y as [N, L], stacked

Exporters write an EmbeddingBag as such a Loop: offsets are ``Range(0, N L, L)``, and iteration i looks up, and reduces,
the ids between two neighbouring offsets. The iteration number is a symbol here. A row of a tensor is a Value that
varies along an axis which is in none of its groups; element-wise operators, look-ups and reductions keep such an axis,
and at the end the results are stacked along it. A bag of the user's ids does not vary along it, so it is computed once.

A Loop inside the body that collects the positions of ids other than the padding becomes a mask over the bag.

A Loop of one iteration is its body, with the number 0.

Refused: a body that needs the iteration number as data, states other than a counter and a sequence that grows by one
element, a trip count that is not known to be the number of rows, offsets that are data. `state_loop.py` tries next.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper

from mari_onnx.engine.axes.materialize import materialise
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Decline, Leaf, Tensor, Value
from mari_onnx.engine.rule import Context, constant, from_tensor, rule
from mari_onnx.engine.rules.control.map_loop import LoopBody, is_empty
from mari_onnx.engine.rules.control.state_loop import carried
from mari_onnx.engine.rules.index_series import follow, only, scalar
from mari_onnx.model.dims import Dim, Size, symbols
from mari_onnx.model.ops import row

# ---- the rules -----------------------------------------------------------------------------------------------------


@rule("Loop")
def loop(ctx: Context) -> list[Value | None]:
    """A Loop whose iterations do not read each other's results; else one whose states lack an axis (`carried`).

    Refuses others, with the reasons of both ways.
    """
    try:
        return _independent(ctx)
    except Decline as reason:
        try:
            return carried(ctx)
        except Decline as other:
            raise Decline(f"{reason}; {other}") from other


def _independent(ctx: Context) -> list[Value | None]:
    """The outputs of a Loop whose iterations do not read each other's results. Refuses others, and unknown trip
    counts.
    """
    b, graph = ctx.b, ctx.attrs["body"]
    keep = constant(b, ctx.input(1)) if ctx.has(1) else np.asarray(True)
    if keep is None or not keep.reshape(-1)[0]:
        raise Decline("whether the Loop runs at all is computed from data")
    limit = ctx.sizes(0)[0] if ctx.has(0) else None
    if ctx.has(0) and limit is None:
        raise Decline("the number of iterations is computed from data")
    if limit == 1:
        return _once(ctx)
    body = _start(ctx)
    try:
        with b.named():
            outputs = _map(body, graph, limit)
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError) as error:
        # a rule could not handle the axis of the iterations
        raise Decline(f"the Loop cannot be run for all iterations at once ({type(error).__name__})") from error
    return [value if name else None for name, value in zip(ctx.node.output, outputs, strict=True)]


def _once(ctx: Context) -> list[Value | None]:
    """The outputs of a Loop of one iteration, which is its body."""
    b, graph = ctx.b, ctx.attrs["body"]
    number, going, *states = (i.name for i in graph.input)
    env = {**ctx.captured, number: scalar(b, 0), going: from_tensor(b.const(np.asarray(True)))}
    env |= {name: value for name, value in zip(states, ctx.inputs[2:], strict=True) if value is not None}
    env |= {p.name: from_tensor(b.const(numpy_helper.to_array(p), p.data_type)) for p in graph.initializer}
    with b.named():
        for node in graph.node:
            ctx.visit(node, env)
    _, *results = (env[o.name] for o in graph.output)
    found = []
    for place, (name, value) in enumerate(zip(ctx.node.output, results, strict=True)):
        if place >= len(states) and name:
            if value.groups is None:
                raise Decline("the rank of what the Loop collects is not known")
            value = Value(((), *value.groups), value.body, value.dtype)
        found.append(value if name else None)
    return found


def _start(ctx: Context) -> LoopBody:
    """The body with its iteration number, its states and what it reads from outside."""
    symbol = ctx.b.unique("iteration")
    tensor = Tensor(symbol, TensorProto.INT64, (Dim.symbol(symbol),), frozenset({"user", "item"}))
    ctx.b.sources[symbol] = tensor, 0
    body = LoopBody(ctx, symbol, tensor, dict(ctx.captured))
    number, going, *states = (i.name for i in ctx.attrs["body"].input)
    body.env[number] = scalar(ctx.b, Dim.symbol(symbol) - 1)
    body.env[going] = from_tensor(ctx.b.const(np.asarray(True)))
    for k, name in enumerate(states):
        value = ctx.inputs[k + 2]
        assert value is not None
        first = only(ctx.b, value) if value.groups is not None and value.rank == 0 else None
        body.env[name] = value if first is None else scalar(ctx.b, first + Dim.symbol(symbol) - 1, value.dtype)
    return body


def _map(body: LoopBody, graph: GraphProto, limit: Size | None) -> list[Value]:
    """The outputs of the Loop, after its body was interpreted for all iterations together."""
    ctx, b = body.ctx, body.b
    states = [i.name for i in graph.input][2:]
    entered = [body.env[name] for name in states]
    results = body.run(graph)
    body.rows.finish(_trips(body, graph.output[0].name, limit))
    assert body.rows.count is not None
    outputs: list[Value] = []
    for k, (before, after) in enumerate(zip(entered, results[1 : 1 + len(states)], strict=True)):
        given = ctx.inputs[k + 2]
        assert given is not None
        if after.items is not None and is_empty(given):
            outputs.append(_sequence(b, body.rows.stacked(after.items)))
        elif before is given and after is given:
            outputs.append(given)
        elif before is not given and only(b, after) == only(b, before) + 1:  # type: ignore[operator]
            first = only(b, given)
            assert first is not None
            outputs.append(scalar(b, first + body.rows.count, given.dtype))
        else:
            raise Decline("an iteration of the Loop reads what the one before it computed")
    return outputs + [body.rows.stacked(value) for value in results[1 + len(states) :]]


def _trips(body: LoopBody, condition: str, limit: Size | None) -> Size:
    """How often the Loop runs."""
    known = constant(body.b, body.env[condition])
    if known is not None:
        if not known.reshape(-1)[0]:
            if limit is not None and not body.b.filled(limit):
                raise Decline("the Loop may run zero times")
            return 1
        if limit is None:
            raise Decline("the Loop has neither a limit nor a condition that ends it")
        return limit
    op, left, right = body.conditions.get(condition, ("", 0, 0))
    holds = row(op).holds
    if holds == {1}:
        left, right = right, left
    if holds not in ({-1}, {1}) or left != Dim.symbol(body.symbol) or body.symbol in symbols(right):
        raise Decline("the end of the Loop is computed from data")
    if limit is not None and not body.b.same(limit, right):
        raise Decline("the Loop has both a limit and a condition, and nothing shows that they agree")
    return right


def _sequence(b: Builder, items: Value) -> Value:
    """The stacked elements as a sequence; the tensor is there for operators that look at nothing else."""
    tensor = materialise(b, items)
    proto = helper.make_node("SplitToSequence", [tensor.name], [""], axis=0, keepdims=0)
    (out,) = b._append(proto, [tensor], [tensor.dtype], [None])
    return Value(None, Leaf(out, ()), items.dtype, items=items)


__all__ = ["follow", "loop"]
