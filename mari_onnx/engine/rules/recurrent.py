"""GRU, LSTM and RNN over time steps of which the first ones are the user's: the history, and the candidate after it.

    rnn([u | x], s) = [rnn(u, s) | rnn(x, s')],   s' the state after u

The state after the user's steps is the user's too, so these steps run on one row; only the steps from the candidate's
first one on have N rows. A reverse direction starts at the other end of time, where its first steps are the last ones.
Two directions become two nodes, each with its rows of W, R, B, P and the states, where one of them gains by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from mari_onnx.engine.axes.align import align, single
from mari_onnx.engine.axes.select import coalesce
from mari_onnx.engine.batching import MAPPED, run
from mari_onnx.engine.ir.value import Axis, Cat, Value, axes_of, fresh, is_const, leaves
from mari_onnx.engine.rule import Context, rule
from mari_onnx.engine.rules.slices import positions
from mari_onnx.engine.rules.windows import joined, kinds_of
from mari_onnx.model.ops import row

GATE = 60.0
"""The price of one element of a gate: its activation, additions and multiplications."""
X, W, R, B, LENGTHS, STATE_H, STATE_C, PEEPHOLES = range(8)
"""Indices of the inputs."""
FORWARD, REVERSE = "forward", "reverse"
FIRST = "the first step already depends on the candidate, and every later state depends on it"
FEW = "running the user's leading steps once would save less than its extra nodes cost"
PIECES = 2
"""Dividing the steps costs as much as this many pieces: a node, two Slices, and a part of a Concat."""


@dataclass
class Steps:
    """x as a sequence. ``at``: its time axis; kinds: per step, the batch axes along which it varies, initial states
    included.
    """

    x: Value
    at: int
    kinds: list[frozenset[Axis]]
    unit: float


@rule("GRU", "LSTM", "RNN")
def recurrent(ctx: Context) -> Sequence[Value | None]:
    """The first steps once per request and the others from the state after them; else whole, over the batch.

    The steps are not divided where lengths of sequences are given, unless all are known to be full, where the number of
    steps is dynamic, or where two directions have activations with parameters, which are one list for both.
    """
    steps = _steps(ctx)
    if steps is None:
        return run(ctx, MAPPED["", ctx.node.op_type](ctx))
    how = ctx.attr("direction", FORWARD)
    names = [FORWARD, REVERSE] if how == "bidirectional" else [how]
    leads = [_lead(ctx, steps, name) for name in names]
    apart = len(names) > 1 and any(ctx.attr(a) for a in ("activation_alpha", "activation_beta"))
    if not any(leads) or apart:
        return run(ctx, MAPPED["", ctx.node.op_type](ctx))
    each = enumerate(zip(names, leads, strict=True))
    found = [_direction(ctx, steps, d, name, lead, len(names)) for d, (name, lead) in each]
    first = ctx.attr("layout", 0)
    out: list[Value | None] = []
    for o, name in enumerate(ctx.node.output):
        if not name:
            out.append(None)
            continue
        at = (2 if first else 1) if o == 0 else (1 if first else 0)
        values = [value for one in found if (value := one[o]) is not None]
        out.append(values[0] if len(values) == 1 else joined(ctx, values, at))
    return out


def _steps(ctx: Context) -> Steps | None:
    """The steps, where x is a Cat along a static time axis and all sequences have all steps; else None."""
    x, weights = ctx.input(X), ctx.input(R)
    at = 1 if ctx.attr("layout", 0) else 0
    size = x.shape[at] if x.rank == 3 else 1
    if not isinstance(size, int) or size < 2 or not _full(ctx, size):
        return None
    x, axis = single(ctx.b, x, at)
    body = coalesce(ctx.b, x.body) if isinstance(x.body, Cat) else x.body
    if not isinstance(body, Cat) or body.axis is not axis:
        return None
    x = Value(x.groups, body, x.dtype)
    # the batch of the states over the axes of that of x
    states = [ctx.input(i) for i in (STATE_H, STATE_C) if ctx.has(i)]
    sides = [Value((x.known[1 - at],), x.body, x.dtype)]
    sides += [Value((s.known[1 - at],), s.body, s.dtype) for s in map(fresh, states)]
    (own, *others), (batch,) = align(ctx.b, sides)
    base = frozenset().union(*(axes_of(body) for body in others)) & frozenset(batch)
    same = Value((((body.axis,), batch) if at == 0 else (batch, (body.axis,))), own, x.dtype)
    if not isinstance(own, Cat) or own.axis is not axis:
        return None
    kinds = [kind | base for kind in kinds_of(same, at, frozenset(batch))]
    hidden, width = weights.shape[-1], x.shape[-1]
    if not isinstance(hidden, int) or not isinstance(width, int):
        return None
    return Steps(x, at, kinds, row(ctx.node.op_type).gates * hidden * (width + hidden + GATE))


def _full(ctx: Context, steps: int) -> bool:
    """Whether every sequence is known to have all steps."""
    if not ctx.has(LENGTHS):
        return True
    lengths = ctx.input(LENGTHS)
    if not is_const(lengths.body):
        return False
    return all(np.min(leaf.tensor.array, initial=steps) >= steps for leaf in leaves(lengths.body))


def _lead(ctx: Context, steps: Steps, direction: str) -> int:
    """How many first steps of a direction are computed separately."""
    kinds = steps.kinds if direction == FORWARD else steps.kinds[::-1]
    full = frozenset().union(*kinds)
    if all(kind == full for kind in kinds):
        return 0
    lead = 0
    while frozenset().union(*kinds[: lead + 1]) != full:
        lead += 1
    small = frozenset().union(*kinds[:lead])
    if lead * steps.unit * (ctx.b.time.volume(full) - ctx.b.time.volume(small)) > PIECES * ctx.b.time.piece:
        return lead
    ctx.b.notes.append(FEW if lead else FIRST)
    return 0


def _direction(
    ctx: Context, steps: Steps, d: int, name: str, lead: int, directions: int
) -> list[Value | None]:
    """Y, Y_h (and Y_c) of direction ``d``, as far as the node's outputs are in use."""
    inputs: list[Value | None] = [*ctx.inputs, *[None] * (8 - len(ctx.inputs))]
    inputs[LENGTHS] = None
    if directions > 1:
        for i, value in enumerate(inputs):
            if i != X and value is not None:
                inputs[i] = positions(ctx, value, steps.at if i in (STATE_H, STATE_C) else 0, [d])
    outputs = [*ctx.node.output, "", ""][: 3 if ctx.node.op_type == "LSTM" else 2]
    asked = [bool(name) for name in outputs]
    if not lead:
        inputs[X] = steps.x
        return _piece(ctx, inputs, _node(ctx, name, d, directions, asked))
    size = len(steps.kinds)
    first, rest = range(lead), range(lead, size)
    if name == REVERSE:
        first, rest = range(size - lead, size), range(size - lead)
    inputs[X] = positions(ctx, steps.x, steps.at, first)
    begun = _piece(ctx, inputs, _node(ctx, name, d, directions, [asked[0], *[True] * len(asked[1:])]))
    inputs[X] = positions(ctx, steps.x, steps.at, rest)
    inputs[STATE_H : STATE_H + len(asked[1:])] = begun[1 : len(asked)]
    done = _piece(ctx, inputs, _node(ctx, name, d, directions, asked))
    in_time = [y for y in ((done[0], begun[0]) if name == REVERSE else (begun[0], done[0])) if y is not None]
    return [joined(ctx, in_time, steps.at) if in_time else None, *done[1:]]


def _node(ctx: Context, name: str, d: int, directions: int, asked: Sequence[bool]) -> NodeProto:
    """The node for one direction, with the outputs that are in use."""
    node = NodeProto()
    node.CopyFrom(ctx.node)
    del node.output[:]
    node.output.extend(f"o{o}" if on else "" for o, on in enumerate(asked))
    while not node.output[-1]:
        node.output.pop()
    kept = [a for a in ctx.node.attribute if a.name not in ("direction", "activations")]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.append(helper.make_attribute("direction", name))
    functions = ctx.attr("activations")
    if functions:
        each = len(functions) // directions
        node.attribute.append(helper.make_attribute("activations", functions[d * each : (d + 1) * each]))
    return node


def _piece(ctx: Context, inputs: Sequence[Value | None], node: NodeProto) -> list[Value | None]:
    """The node on some steps."""
    last = max(i for i, value in enumerate(inputs) if value is not None)
    del node.input[:]
    node.input.extend(f"i{i}" if value is not None else "" for i, value in enumerate(inputs[: last + 1]))
    piece = ctx.on(node, inputs[: last + 1])
    found = run(piece, MAPPED["", node.op_type](piece))
    return [*found, *[None] * (3 - len(found))]

