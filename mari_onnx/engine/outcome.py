"""What became of one source node, as the report shows it: lifted, split, folded, kept or barrier.

In: the Values of a node's inputs and outputs, and the rule that computed them. Out: a `NodeReport`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto

from mari_onnx.engine.assumptions import Assumption
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Cat, Node, Tensor, Value, axes_of, is_const, kind
from mari_onnx.model.dims import Size


@dataclass
class NodeReport:
    """What became of one source node."""

    name: str
    op: str
    kind: str
    action: str
    """lifted (once per request), split (parts of it once per request), folded (at build time), kept, or barrier."""
    rule: str
    reason: str | None = None
    outputs: tuple[str, ...] = ()


def outcome(
    node: NodeProto,
    inputs: Sequence[Value | None],
    outputs: Sequence[Value | None],
    rule: str,
    splits: bool,
    reason: str | None,
) -> NodeReport:
    """The report of a node. rule: the rule's name. splits: whether the rule takes operands apart though its result
    is whole.
    """
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
    return NodeReport(node.name or (node.output[0] if node.output else ""), node.op_type, kinds, action, rule, reason,
                      tuple(node.output))  # fmt: skip


def partial(value: Value) -> bool:
    """Whether the new graph has the value as several parts, or as a tensor that lacks one of its axes."""
    return value.groups is not None and (isinstance(value.body, Cat) or axes_of(value.body) != frozenset(value.axes))


def _saves(value: Value) -> bool:
    """Whether the new graph computes some of the value once for several positions that are equal."""
    if is_const(value.body):
        return False
    axes = frozenset(value.axes)
    if isinstance(value.body, Cat):
        return any(axes_of(p.body) - {p.axis} != axes - {value.body.axis} for p in value.body.parts)
    return axes_of(value.body) != axes


def _split_inputs(value: Value | None) -> bool:
    return value is not None and isinstance(value.body, Cat) and _saves(value)


@dataclass
class Draft:
    """A new graph before operators are joined into larger ones, for a caller that cuts it into parts (`splitting`).

    model: the graph. nodes: those of it, in order. outputs: the source's outputs, under their names. stored: the
    source's inputs. shapes: of all tensors of known rank. Names are final.
    """

    model: ModelProto

    b: Builder
    nodes: list[Node]
    outputs: list[Tensor]
    stored: dict[str, Tensor]
    shapes: dict[str, tuple[Size, ...]]


@dataclass
class Rewrite:
    """What `rewrite` answers; docs/report.md describes the same as JSON."""

    model: ModelProto
    changed: bool
    nodes: list[NodeReport]
    kinds: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[Size, ...]] = field(default_factory=dict)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    """Of the source's small integer tensors, the elements as far as they are known: object arrays of int, Dim or None.
    """
    dtypes: dict[str, int] = field(default_factory=dict)
    """Element types of the source's tensors."""
    out_shapes: dict[str, tuple[Size, ...]] = field(default_factory=dict)
    tensor_map: dict[str, str] = field(default_factory=dict)
    reason: str | None = None
    """Why nothing was changed."""
    flops: float = 0.0
    """Of the new graph, for `Options.candidates`."""
    assumptions: list[Assumption] = field(default_factory=list)
    """What the new graph assumes, to be verified by running both models. Empty where nothing was changed."""
    origins: list[str] = field(default_factory=list)
    """For each node of the new graph the source node whose rule wrote it."""
    multiplied: frozenset[str] = frozenset()
    """Source nodes whose products of tables are computed at build time."""
    left_for_time: frozenset[str] = frozenset()
    """Source nodes that were left alone because their rewrite takes longer than they do."""
    estimated: dict[int, float] = field(default_factory=dict)
    """N -> the source's time over the output's, by the prices of kernels; empty without prices."""
    alone: tuple[int, float] | None = None
    """The typical N, and how many times faster than the source another choice is for it alone; None if not much."""

    depends: dict[str, np.ndarray] = field(default_factory=dict)
    """With `Options.depends`: what the elements of the source's tensors depend on (`engine.dependence`)."""
    draft: Draft | None = None
    """With `Options.split`, also where nothing was changed."""
    of_requests: int = 0
    """Nodes that tell candidates their requests, which no node of the source does."""

    @property
    def grown(self) -> float:
        """Nodes of the new graph per node of the source; source nodes that are computed at build time are not
        counted.
        """
        mine = len(self.model.graph.node) - self.of_requests
        return mine / max(1, sum(report.action != "folded" for report in self.nodes))
