"""Whether a rewrite saves time, and which of its parts do not.

Source and output are priced (`prices.table`) at several numbers of candidates, and what each source node took is
set against what the nodes take that its rule wrote. A time is a share of the source's at that number, so that few
candidates count as many do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.model.dims import Size
from mari_onnx.prices.fusions import Loaded
from mari_onnx.prices.table import Prices, node_seconds, run_seconds

if TYPE_CHECKING:
    from mari_onnx.engine.outcome import Rewrite
    from mari_onnx.engine.session import Options

CAUTION = 4.0
"""How many times more a loss counts than a gain."""
Shapes = Mapping[str, tuple[Size, ...]]


@dataclass(frozen=True)
class Worth:
    """Times as shares of the source's time, weighted over numbers of candidates.

    Attributes:
        total: of the output; below 1 it is faster. Of a cautious choice, what is above 1 at a number of candidates
            counts `CAUTION` times more.
        ratios: N -> source's time / output's time.
        loss: source node (its name, or its first output) -> what its nodes take more than it took.
    """

    total: float
    ratios: dict[int, float]
    loss: dict[str, float]


class Source:
    """A source whose rewrites are compared: what it takes at each number of candidates, in all and by node.

    Args:
        shapes: sizes of its tensors. options: have the numbers of candidates. All rewrites are priced by `prices`.
        several: the candidates are of several requests, whose number is R; then N is that of a request.
    """

    def __init__(
        self, graph: onnx.GraphProto, shapes: Shapes, options: Options, prices: Prices, several: bool = False
    ):
        self.graph, self.weights, self.prices, self.several = graph, options.weighted, prices, several
        self.caution = CAUTION if options.cautious else 0.0
        self.inputs = run_seconds(len(graph.input), prices)
        self.times = {n: self._times(shapes, n) for n in self.weights}

    def _times(self, shapes: Shapes, n: int) -> list[tuple[str, float]]:
        concrete = self._concrete(shapes, n)
        return [(label(node), seconds) for node, seconds in node_seconds(self.graph, concrete, self.prices)]

    def _concrete(self, shapes: Shapes, n: int) -> dict[str, tuple[int, ...]]:
        """The shapes at n candidates in all."""
        sizes = TimeModel(n).of_several() if self.several else TimeModel(n)
        return {name: tuple(map(sizes.length, shape)) for name, shape in shapes.items()}

    def worth(self, made: Rewrite) -> Worth:
        """What a rewrite saves."""
        whole = sum(self.weights.values())
        total, ratios, loss = 0.0, {}, dict[str, float]()
        loaded: Loaded | None = None
        for n, weight in self.weights.items():
            was = self.inputs + sum(seconds for _, seconds in self.times[n])
            concrete = self._concrete(made.out_shapes, n)
            loaded = loaded or Loaded(made.model.graph, concrete)
            times = [seconds for _, seconds in node_seconds(made.model.graph, concrete, self.prices, loaded)]
            now = self.inputs + sum(times)
            share = weight / whole / was
            total += now * share + self.caution * max(0.0, now / was - 1) * weight / whole
            ratios[n] = was / now
            for name, seconds in self.times[n]:
                loss[name] = loss.get(name, 0.0) - seconds * share
            for origin, seconds in zip(made.origins, times, strict=True):
                loss[origin] = loss.get(origin, 0.0) + seconds * share
        return Worth(total, ratios, loss)


def label(node: onnx.NodeProto) -> str:
    """How a source node is called: by its name, or by its first output."""
    return node.name or next((o for o in node.output if o), "")
