"""What a report lists: inputs, nodes, operators that stop a lift, and totals of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Input:
    """One model input: `side` is user, item, cross, packed (then `columns` says), or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]
    side: str | None
    columns: Mapping[str, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Node:
    """One node of the source, in order.

    Attributes:
        name, op, kind, action, rule: see docs/report.md.
        reason: why not more was done with it.
        stopped_by: of a node left without a reason of its own, the name of the nearest operator
            before it that has one; from there on everything has N rows.
        flops, bytes: a candidate's share, None where unknown.
        why: why it still runs per candidate (`report/why.py`), None where it does not.
    """

    name: str
    op: str
    kind: str
    action: str
    rule: str
    reason: str | None
    stopped_by: str | None = None
    flops: float | None = None
    bytes: float | None = None
    why: str | None = None


@dataclass(frozen=True)
class Stop:
    """An operator that no rule could take apart, and how many nodes after it are left for that."""

    name: str
    op: str
    reason: str
    after: int


@dataclass(frozen=True)
class Totals:
    """Size of a graph: nodes, products (MatMul and the like), FLOPs and bytes per candidate.

    `once_nodes` are those that run once per request, on one row; `once_flops` their share of `flops`. `item_nodes`
    depend on the candidate's item alone: `mari-onnx split` runs them once per item. `operators`: operator -> how many
    nodes of it.
    """

    nodes: int
    products: int
    flops: float
    bytes: float
    once_nodes: int = 0
    once_flops: float = 0.0
    item_nodes: int = 0
    item_flops: float = 0.0
    operators: Mapping[str, int] = field(default_factory=dict)
