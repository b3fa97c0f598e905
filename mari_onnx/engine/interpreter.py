"""One walk over the source graph: every tensor becomes a `Value`, every node is answered by its operator's rule.

The source is only read. The default rule writes all inputs out and copies the node, so an operator that no rule knows
is still right; it is also what a rule falls back to when it declines, with the reason kept for the report.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from onnx import NodeProto

from mari_onnx.engine.assumptions import Assumptions
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.forms import settle
from mari_onnx.engine.ir.nodes import RANDOM
from mari_onnx.engine.ir.value import Decline, Value
from mari_onnx.engine.outcome import NodeReport, outcome, partial
from mari_onnx.engine.rule import RULES, Context
from mari_onnx.engine.rules import shape as shape_rules
from mari_onnx.engine.rules.control import loop as loop_rules
from mari_onnx.engine.rules.definition import by_definition
from mari_onnx.engine.session import Session
from mari_onnx.model.nodes import domain

FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a rule may raise on a graph that it did not expect."""
NARROW = frozenset({17, 18, 19, 20, 21, 22, 23, 24, 25, 26})
"""float8, float4 and integers of 4 and 2 bits: no operator repeats or joins them, so they keep their N rows."""
STRICT = bool(os.environ.get("MARI_ONNX_STRICT"))
"""Raise what a rule trips over, for tests, instead of leaving the node as it is."""


@dataclass
class Walk:
    """The state of the walk."""

    b: Builder
    session: Session
    env: dict[str, Value]
    assumptions: Assumptions | None = None
    """What may be assumed, and what was; None in a body, which a run may not reach."""
    reports: list[NodeReport] = field(default_factory=list)


def visit(walk: Walk, node: NodeProto) -> None:
    """Answer one node."""

    def within(inner: NodeProto, env: dict[str, Value]) -> None:
        visit(walk if env is walk.env else replace(walk, env=env, assumptions=None, reports=[]), inner)

    inputs = [walk.env[name] if name else None for name in node.input]
    ctx = Context(walk.b, walk.session, node, list(inputs), walk.env, within, walk.assumptions)
    before = len(walk.reports)
    walk.b.origin = node.name or next((o for o in node.output if o), "")
    walk.b.label = next((o for o in node.output if o), node.name)
    walk.b.notes.clear()
    reason: str | None = None
    outputs: Sequence[Value | None] | None = None
    name, splits = "default", False
    owner = domain(node.domain)
    if {node.name, walk.b.label} & walk.session.options.skip:
        reason = "skipped: the check found that this rewrite changes the outputs"
    elif node.op_type in RANDOM:
        reason = "it is random: two runs differ, so it is always copied"
    else:
        try:
            outputs = shape_rules.fold(ctx)
            name = "shape"
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
            # a rule that trips over a graph it did not expect leaves the node as it is
            reason, name, outputs = f"the rule failed ({type(error).__name__}: {error})", "default", None
    if outputs is not None and any(v is not None and v.dtype in NARROW and partial(v) for v in outputs):
        reason, name, outputs = "Expand and Concat do not take its element type", "default", None
    if outputs is None:
        del walk.reports[before:]
        outputs = ctx.write_out()
    loop_rules.follow(ctx, outputs)
    for output, value in zip(node.output, outputs, strict=False):
        if output and value is not None:
            walk.env[output] = value
            if output in walk.session.several:
                settle(value.body)
    report = outcome(node, inputs, outputs, name, splits, reason)
    if len(walk.reports) > before:  # others stand in its place, and have reports of their own
        report.action = "folded"
    else:
        report.reason = reason or "; ".join(dict.fromkeys(walk.b.notes)) or None
    walk.reports.append(report)
