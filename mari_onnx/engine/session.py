"""What stays the same however often one source graph is interpreted: options, opsets, shapes, and look-aheads.

Made once per call of `rewrite`; rules read it as `ctx.session`. A look-ahead tells a rule about nodes that come later
in the source (`lookahead/`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx

from mari_onnx.engine.cost.flops import Cost
from mari_onnx.engine.lookahead.masked_rows import Unread
from mari_onnx.engine.lookahead.read_positions import ReadPositions
from mari_onnx.model.dims import Size
from mari_onnx.model.nodes import captures, producers
from mari_onnx.model.ops import Fact, having
from mari_onnx.prices.table import Prices

TARGETS = ("cpu", "portable", "cuda")
"""What a graph is written for: onnxruntime's CPU kernels; any runtime, so without the forms that only those kernels are
faster at (`output/cpu.py`); or a GPU. None adds an operator of another domain than ONNX's own."""


@dataclass(frozen=True)
class Options:
    """How to rewrite.

    candidates: the N for which costs are estimated. target: see `TARGETS`. skip: names of source nodes that are
    copied, as the check found that their rewrite changes the outputs. asked: those that are copied because the caller
    wants it. assume: facts may be assumed that a run can verify; the caller then verifies `Rewrite.assumptions`.
    declined: source nodes for which nothing is assumed, with the reason.
    prices: of kernels; with them time decides, not FLOPs: parts whose rewrite takes longer than they do are left as
    they are. weights: N -> how much its time counts, by default `candidates` alone. cautious: being slower at one of
    them counts for more than being as much faster at another. slower: source nodes left alone because of that, chosen
    before; with them no others are looked for. unchanged: chosen before: the source is kept (for the caller of
    `rewrite` to do). split: the graph will be cut into parts (`mari_onnx.splitting`), and `Rewrite.draft` has it before
    operators are joined. "apart": what depends on the item alone stays apart from what depends on the user too;
    "joined": both are joined as in a graph that stays whole. depends: say in `Rewrite.depends` what elements of the
    source's tensors depend on.
    """

    candidates: int = 500
    target: str = "cpu"
    skip: frozenset[str] = frozenset()
    asked: frozenset[str] = frozenset()
    assume: bool = False
    declined: Mapping[str, str] = field(default_factory=dict)
    prices: Prices | None = None
    weights: Mapping[int, float] = field(default_factory=dict)
    cautious: bool = False
    slower: frozenset[str] | None = None
    unchanged: bool = False
    split: Literal["", "apart", "joined"] = ""
    depends: bool = False

    @property
    def weighted(self) -> Mapping[int, float]:
        """`weights`, or those that stand in for them."""
        return self.weights or {self.candidates: 1.0}


class Session:
    """A source graph and what is looked up in it.

    opsets: versions by domain, ai.onnx as "". inputs: shapes of inputs of known rank, with the symbol N.
    declared: element type and shape, as the file has them, of inner tensors and of outputs.
    several: tensors that more than one node reads. made: tensor -> the node that computes it.
    masked: which rows of attentions are masked; nothing is computed until a rule asks.
    read: which positions of the inputs of its nodes are read, likewise.
    before: what the source took before `isolation` rewrote it, if it did; a rewrite has to take less.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        inputs: Mapping[str, tuple[Size, ...]],
        opsets: Mapping[str, int],
        options: Options,
        declared: Mapping[str, tuple[int, tuple[Size | None, ...] | None]] | None = None,
        before: Cost | None = None,
    ):
        self.graph, self.inputs, self.opsets, self.options = graph, inputs, dict(opsets), options
        self.declared, self.before = declared or {}, before
        self.several = _several_readers(graph)
        self.made = producers(graph.node)
        self.masked = Unread(graph, inputs, self.opsets[""])
        self.read = ReadPositions(graph, inputs, self.opsets[""])


def _several_readers(graph: onnx.GraphProto) -> frozenset[str]:
    """Tensors whose elements, not only sizes, more than one node reads on the way to an output."""
    readers = Counter(o.name for o in graph.output)
    for node in reversed(graph.node):
        if node.op_type not in having(Fact.SIZES) and any(o in readers for o in node.output):
            readers.update({name for name in node.input if name} | set(captures(node)))
    return frozenset(name for name, count in readers.items() if count > 1)
