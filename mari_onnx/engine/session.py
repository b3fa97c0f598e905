"""What holds for all walks over one source graph: how to rewrite it, and what it tells rules about later nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from mari_onnx.engine.lookahead.masked_rows import Unread
from mari_onnx.engine.lookahead.squeeze import Ahead
from mari_onnx.model.dims import Size


@dataclass(frozen=True)
class Options:
    """How to rewrite.

    candidates: N for which the cost model weighs rewrites. target: "cpu" or "cuda". skip: source nodes left alone.
    """

    candidates: int = 500
    target: str = "cpu"
    skip: frozenset[str] = frozenset()


class Session:
    """A source graph and what is looked up in it, once for all walks.

    opsets: versions by domain, ai.onnx as "". inputs: shapes of those of known rank, with the symbol N.
    squeezes, masked: look-aheads; neither computes anything until a rule asks.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        inputs: Mapping[str, tuple[Size, ...]],
        opsets: Mapping[str, int],
        options: Options,
    ):
        self.graph, self.inputs, self.opsets, self.options = graph, inputs, dict(opsets), options
        self.squeezes = Ahead(graph, inputs, self.opsets[""])
        self.masked = Unread(graph, inputs, self.opsets[""])
