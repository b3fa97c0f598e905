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
    """

    def __init__(self, graph: onnx.GraphProto, shapes: Shapes, options: Options, prices: Prices):
        self.graph, self.weights, self.prices = graph, options.weighted, prices
        self.caution = CAUTION if options.cautious else 0.0
        self.inputs = run_seconds(len(graph.input), prices)
        self.times = {n: _times(graph, shapes, n, prices) for n in self.weights}

    def worth(self, made: Rewrite) -> Worth:
        """What a rewrite saves."""
        whole = sum(self.weights.values())
        total, ratios, loss = 0.0, {}, dict[str, float]()
        loaded: Loaded | None = None
        for n, weight in self.weights.items():
            was = self.inputs + sum(seconds for _, seconds in self.times[n])
            concrete = _concrete(made.out_shapes, TimeModel(n))
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


def _times(graph: onnx.GraphProto, shapes: Shapes, n: int, prices: Prices) -> list[tuple[str, float]]:
    return [(label(node), seconds) for node, seconds in node_seconds(graph, _concrete(shapes, TimeModel(n)), prices)]


def label(node: onnx.NodeProto) -> str:
    """How a source node is called: by its name, or by its first output."""
    return node.name or next((o for o in node.output if o), "")


def _concrete(shapes: Shapes, sizes: TimeModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(map(sizes.length, shape)) for name, shape in shapes.items()}
