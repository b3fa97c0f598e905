"""Which operator stopped the rewrite: the nearest one before a node that runs on all N rows.

A node that no rule could take apart takes N rows of everything, and gives N rows to whatever comes
after it. The nodes after it have no reason of their own; theirs is that node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import onnx

    from mari_onnx.report.records import Node

NOT_WORTH = "splitting it would not save time"
LEFT = frozenset({"kept", "barrier"})


class Done(Protocol):
    """What became of one source node (`engine.NodeReport`)."""

    @property
    def kind(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def reason(self) -> str | None: ...


def flat(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph whose nodes the engine reports on: functions are inlined, in a copy."""
    from mari_onnx.model.functions import inlined

    return inlined(model).graph


def label(node: onnx.NodeProto) -> str:
    """What a node goes by: its name, or its first output."""
    return node.name or next((x for x in node.output if x), "")


def stops_here(done: Done) -> bool:
    """Whether the node has a reason of its own and depends on the user."""
    return bool(done.reason) and done.action in LEFT and done.kind in ("Shared", "Mixed")


def stopped_by(nodes: Iterable[onnx.NodeProto], done: Mapping[str, Done]) -> dict[str, str]:
    """For nodes left without a reason of their own: the label of the operator that stopped them.

    Args:
        nodes: of the source, in order.
        done: by the node's first output.
    """
    # Tensor -> (steps from the operator that wrote it out, that operator's label).
    near: dict[str, tuple[int, str]] = {}
    found: dict[str, str] = {}
    for node in nodes:
        first = next((x for x in node.output if x), "")
        one = done.get(first)
        if one is None or one.kind in ("Const", "Item") or one.action in ("folded", "lifted"):
            continue
        if stops_here(one):
            nearest = (0, label(node))
        else:
            before = [near[x] for x in node.input if x in near]
            if not before:
                continue
            steps, name = min(before)
            nearest = (steps + 1, name)
            if one.action in LEFT:
                found[first] = name
        near.update(dict.fromkeys(node.output, nearest))
    return found


def source_of(name: str, sources: Iterable[str] | Mapping[str, Any]) -> str | None:
    """The source node that an output node computes, by its name; None where there is none."""
    known = sources if isinstance(sources, Mapping) else set(sources)
    while name:
        if name in known:
            return name
        name = name.rpartition("/")[0]
    return None


def written_out(stop: Node) -> str:
    """The reason of a node that comes after `stop`."""
    return f"{stop.op} {stop.name!r} before it runs on all N rows: {stop.reason or NOT_WORTH}"
