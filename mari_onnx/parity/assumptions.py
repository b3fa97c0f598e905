"""Verifies what a rewrite assumes: source and output are run at the N in question; what does not hold is declined."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mari_onnx.model.functions import inlined
from mari_onnx.model.nodes import captures

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Options, Rewrite
    from mari_onnx.engine.assumptions import Assumption


@dataclass(frozen=True)
class Refuted:
    """What a run says against an assumption.

    Attributes:
        reason: in words.
        outputs: the outputs that differ; None where that cannot be told, and all assumptions are in question.
    """

    reason: str
    outputs: Collection[str] | None = None


def settle(
    model: onnx.ModelProto,
    options: Options,
    engine: Callable[[Options], Rewrite],
    verify: Callable[[Rewrite], Refuted | None],
) -> tuple[Rewrite, Options]:
    """The rewrite whose assumptions hold, and the options that make it: `declined` grows by what does not.

    Where outputs differ, the last assumption before each of them is declined and all is done again. So a Squeeze at an
    output that drops the axis does not take the others with it.

    Args:
        model: the source.
        engine: the rewrite for options.
        verify: runs source and rewrite where assumptions are to be verified; None where both agree. Called for each
            rewrite, the one that is answered last.
    """
    while True:
        made = engine(options)
        refuted = verify(made)
        if refuted is None:
            return made, options
        names = _to_decline(model, made.assumptions, refuted.outputs)
        options = replace(options, declined={**options.declined, **dict.fromkeys(names, refuted.reason)})


def _to_decline(
    model: onnx.ModelProto, assumptions: Collection[Assumption], outputs: Collection[str] | None
) -> set[str]:
    """Names of the nodes: the last assumption before each of the outputs; all of them where none is before any."""
    if outputs is None:
        return {each.node for each in assumptions}
    graph = inlined(model).graph if model.functions else model.graph
    last = set()
    for output in outputs:
        before = _before(graph, output)
        last |= set([each.node for each in assumptions if each.output in before][-1:])
    return last or {each.node for each in assumptions}


def _before(graph: onnx.GraphProto, output: str) -> set[str]:
    """The tensors that an output is computed from, itself included."""
    found = {output}
    for node in reversed(graph.node):
        if found & set(node.output):
            found |= {*node.input, *captures(node)}
    return found
