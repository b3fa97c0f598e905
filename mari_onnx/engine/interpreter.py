"""Goes through the source graph once, in order: every tensor gets a `Value`, every node is given to its operator's
rule.

In: a node, and the Values of its inputs. Out: the Values of its outputs, nodes of the new graph, and a report of what
became of the node. The source is only read. A node without a rule is copied on written-out inputs, which is always
correct; so is one whose rule declines, and the report says why.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from onnx import NodeProto

from mari_onnx.engine.assumptions import Assumptions
from mari_onnx.engine.axes.unread import only_read
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import settle
from mari_onnx.engine.ir.nodes import RANDOM
from mari_onnx.engine.ir.value import Decline, Value
from mari_onnx.engine.outcome import NodeReport, outcome, partial
from mari_onnx.engine.rule import RULES, Context
from mari_onnx.engine.rules import shape as shape_rules
from mari_onnx.engine.rules.control import loop as loop_rules
from mari_onnx.engine.rules.definition import by_definition
from mari_onnx.engine.rules.read_columns import by_columns
from mari_onnx.engine.session import Session
from mari_onnx.model.nodes import domain
from mari_onnx.model.ops import Fact, having

FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Exceptions of a rule on an unexpected graph, after which the node is copied."""
NARROW = frozenset({17, 18, 19, 20, 21, 22, 23, 24, 25, 26})
"""float8, float4 and integers of 4 and 2 bits: no operator repeats or joins them, so they keep their N rows."""
MOVING = having(Fact.MOVES) | having(Fact.JOINS) | having(Fact.SIZES)
"""What only moves elements keeps positions that nobody reads: the next operator leaves them out."""
SLOWER = "left as it is: rewritten, it or what follows takes longer, by the prices of kernels"
STRICT = bool(os.environ.get("MARI_ONNX_STRICT"))
"""For tests: exceptions of rules are raised, and not turned into copies of the node."""


@dataclass
class Interpreter:
    """One run through a source graph, or through a subgraph of it: what has been computed so far."""

    b: Builder
    session: Session
    env: dict[str, Value]
    assumptions: Assumptions | None = None
    """What may be assumed, and what was; None in a subgraph, which a run may not reach."""
    reports: list[NodeReport] = field(default_factory=list)


def visit(state: Interpreter, node: NodeProto) -> None:
    """Computes the Values of one node's outputs, by its rule or by copying it, and adds its report."""

    def within(inner: NodeProto, env: dict[str, Value]) -> None:
        visit(state if env is state.env else replace(state, env=env, assumptions=None, reports=[]), inner)

    before = len(state.reports)
    state.b.origin = node.name or next((o for o in node.output if o), "")
    state.b.label = next((o for o in node.output if o), node.name)
    state.b.notes.clear()
    whole = [state.env[name] if name else None for name in node.input]
    inputs = whole if _left_alone(state, node) else _read(state, node, whole)
    ctx = Context(state.b, state.session, node, list(inputs), state.env, within, state.assumptions)
    reason: str | None = None
    outputs: Sequence[Value | None] | None = None
    name, splits = "default", False
    owner = domain(node.domain)
    if _left_alone(state, node) & state.session.options.skip:
        reason = "skipped: the check found that this rewrite changes the outputs"
    elif _left_alone(state, node) & state.session.options.asked:
        reason = "skipped, as you asked for it"
    elif _left_alone(state, node):
        reason = SLOWER
    elif node.op_type in RANDOM:
        reason = "it is random: two runs differ, so it is always copied"
    else:
        try:
            outputs = shape_rules.fold(ctx)
            name = "shape"
            if outputs is None:
                name, outputs = "read_columns", by_columns(ctx.on(node, whole))
            if outputs is None:
                found = RULES.get((owner, node.op_type))
                if found is None:
                    name, outputs = "definition", by_definition(ctx)
                else:
                    name, splits = found.name, found.splits
                    outputs = found.answer(ctx)
        except Decline as decline:
            reason, name, outputs = str(decline), "default", None
        except FAILURES as error:
            if STRICT:
                raise
            # an unexpected graph: the node is copied
            reason, name, outputs = f"the rule failed ({type(error).__name__}: {error})", "default", None
    if outputs is not None and any(v is not None and v.dtype in NARROW and partial(v) for v in outputs):
        reason, name, outputs = "Expand and Concat do not take its element type", "default", None
    if outputs is None:
        del state.reports[before:]
        inputs = whole
        outputs = ctx.on(node, whole).write_out()
    loop_rules.follow(ctx, outputs)
    for output, value in zip(node.output, outputs, strict=False):
        if output and value is not None:
            state.env[output] = value
            if output in state.session.several:
                settle(value.body)
    report = outcome(node, inputs, outputs, name, splits, reason)
    if len(state.reports) > before:  # nodes of a subgraph replaced it, and have reports of their own
        report.action = "folded"
    else:
        report.reason = reason or "; ".join(dict.fromkeys(state.b.notes)) or None
    state.reports.append(report)


def _left_alone(state: Interpreter, node: NodeProto) -> frozenset[str]:
    """The names under which the node is to be copied as it is."""
    options = state.session.options
    return frozenset({node.name, state.b.label}) & (options.skip | options.asked | (options.slower or frozenset()))


def _read(state: Interpreter, node: NodeProto, inputs: Sequence[Value | None]) -> list[Value | None]:
    """The inputs, without positions of which no output reads what the node makes of them."""
    read, found = state.session.read, list(inputs)
    if node.op_type in MOVING or not read.found:
        return found
    for i, value in enumerate(inputs):
        masks = read.of(node, i) if value is not None else None
        if value is not None and masks is not None:
            found[i] = only_read(state.b, value, read.sizes, masks)
    return found
