"""What a retrained model would save if the user's tokens, or columns, did not read the candidate.

In: a model, whose inputs are whose, and how it would be rewritten. Out: a `Separation`: for each layer at which user
and candidate mix for good, the work and the predicted time that its separation saves, on top of those before it.
Imports the engine and prices of kernels; nothing is run, and no model is written.

A layer counts only if those before it are separated too: behind a mix no token is the user's own any more.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import onnx

from mari_onnx.engine import Options, Rewrite, rewrite
from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.engine.dependence import CANDIDATE
from mari_onnx.engine.inputs import input_shapes
from mari_onnx.engine.ir.value import Decline
from mari_onnx.model.dims import Dim, symbols
from mari_onnx.model.functions import inlined
from mari_onnx.prices import table
from mari_onnx.separation.hypothetical import separated
from mari_onnx.separation.mixes import Mix, mixes
from mari_onnx.sides.resolve import Sides

MOST = 48
"""Mixes that are looked at."""
LITTLE = 0.002
"""A mix that saves a smaller share of the FLOPs than this is no layer of its own: it counts with the next one."""


@dataclass(frozen=True)
class Work:
    """Of a whole request. flops: operations. seconds: predicted, by the prices of kernels, on one thread."""

    flops: float
    seconds: float


@dataclass(frozen=True)
class Layer:
    """A layer that could be separated.

    Attributes:
        mixes: where user and candidate mix; the last one gives the layer its name.
        before, after: what the model takes without and with its separation, those before it being separated.
    """

    mixes: tuple[Mix, ...]
    before: Work
    after: Work

    @property
    def name(self) -> str:
        """The node at which the user's part reads the candidate."""
        return self.mixes[-1].node

    @property
    def saved(self) -> Work:
        """What its separation saves."""
        return Work(self.before.flops - self.after.flops, self.before.seconds - self.after.seconds)


@dataclass(frozen=True)
class Separation:
    """What separation would save.

    Attributes:
        candidates: N. now: what `optimize` leaves, were time ignored. layers: in the order of the graph.
        reason: why there are none, or no more.
    """

    candidates: int
    now: Work
    layers: list[Layer] = field(default_factory=list)
    reason: str | None = None

    @property
    def ranked(self) -> list[Layer]:
        """The layers, those that save most FLOPs first."""
        return sorted(self.layers, key=lambda layer: -layer.saved.flops)

    def to_dict(self) -> dict[str, Any]:
        """The documented form (docs/report.md)."""
        n, ranks = self.candidates, {id(layer): i + 1 for i, layer in enumerate(self.ranked)}
        return {
            "candidates": n,
            "flops_per_candidate": round(self.now.flops / n, 1),
            "milliseconds": _ms(self.now.seconds),
            "layers": [
                {
                    "node": layer.name,
                    "op": layer.mixes[-1].op,
                    "axis": layer.mixes[-1].axis,
                    "user_positions": list(layer.mixes[-1].positions),
                    "positions": layer.mixes[-1].size,
                    "rank": ranks[id(layer)],
                    "saved_flops_per_candidate": round(layer.saved.flops / n, 1),
                    "saved_milliseconds": _ms(layer.saved.seconds),
                    "flops_per_candidate": round(layer.after.flops / n, 1),
                    "milliseconds": _ms(layer.after.seconds),
                }
                for layer in self.layers
            ],
            "reason": self.reason,
        }


def savings(model: onnx.ModelProto, sides: Sides, options: Options) -> Separation:
    """What separating each layer would save at ``options.candidates``.

    model: is only read. Work decides how it is rewritten here, whatever ``options.prices`` say, so that layers are
    compared by what they take and not by what is left as it is in one graph and not in another.
    """
    prices = options.prices or table.load()
    options = dataclasses.replace(options, prices=None, assume=True, depends=True)
    source = _of_known_lengths(inlined(model), sides)

    made = rewrite(source, sides, options)
    now, dtypes = _work(made, options.candidates, prices), made.dtypes

    def tried(apart: list[Mix]) -> tuple[Rewrite, Work]:
        made = rewrite(_with(source, separated(source.graph, sides, apart, dtypes)), sides, options)
        return made, _work(made, options.candidates, prices)

    layers: list[Layer] = []
    if why := _refused(sides, made):
        return Separation(options.candidates, now, layers, why)
    apart, pending, before, reason = list[Mix](), list[Mix](), now, ""
    while len(apart) < MOST:
        ways = _next(source.graph, made, apart)
        if not ways:
            break
        try:
            tries = [(way, *tried([*apart, way])) for way in ways]
        except Decline as told:
            reason = str(told)
            break
        way, made, after = min(tries, key=lambda each: each[2].flops)
        if not _reads_candidates(source.graph, made):
            break  # an output would be the user's alone
        apart.append(way)
        pending.append(way)
        if before.flops - after.flops >= LITTLE * now.flops:
            layers.append(Layer(tuple(pending), before, after))
            pending, before = [], after
    else:
        reason = f"only the first {MOST} places at which user and candidate mix were looked at"
    if not layers and not reason:
        reason = (
            "no layer brings the candidate to tokens or columns that were the user's own, so there is nothing "
            "that separation would save"
        )
    return Separation(options.candidates, now, layers, reason or None)


def _refused(sides: Sides, made: Rewrite) -> str | None:
    if sides.several:
        return "separation is looked at for one request per run; leave out --batched and --index"
    if not made.depends:
        return f"the model cannot be rewritten: {made.reason}"
    return None


def _next(graph: onnx.GraphProto, made: Rewrite, apart: list[Mix]) -> list[Mix]:
    """The ways to separate the first mix that is left; none behind which all of an output is the user's."""
    done = {mix.tensor for mix in apart} | {o.name for o in graph.output}
    for ways in mixes(graph.node, made.depends):
        if ways[0].tensor not in done:
            return ways
    return []


def _reads_candidates(graph: onnx.GraphProto, made: Rewrite) -> bool:
    found = [made.depends.get(o.name) for o in graph.output]
    return all(bits is None or bool((bits & CANDIDATE).any()) for bits in found)


def _of_known_lengths(model: onnx.ModelProto, sides: Sides) -> onnx.ModelProto:
    """The model with histories of the length that a free one counts as, so that their positions are known."""
    known = {name: shape for name, shape in input_shapes(model.graph, sides).items() if shape is not None}
    free = [(name, i) for name, shape in known.items() for i, size in enumerate(shape)
            if isinstance(size, Dim) and "N" not in symbols(size)]  # fmt: skip
    if not free:
        return model
    found = _with(model, model.graph)
    infos = {info.name: info for info in found.graph.input}
    for name, i in free:
        infos[name].type.tensor_type.shape.dim[i].dim_value = TimeModel().free
    del found.graph.value_info[:]
    return found


def _work(made: Rewrite, n: int, prices: table.Prices) -> Work:
    sizes = TimeModel(n)
    shapes = {name: tuple(map(sizes.length, shape)) for name, shape in made.out_shapes.items()}
    return Work(made.flops, table.graph_seconds(made.model.graph, shapes, prices))


def _with(model: onnx.ModelProto, graph: onnx.GraphProto) -> onnx.ModelProto:
    found = onnx.ModelProto()
    found.ir_version = model.ir_version
    found.opset_import.extend(model.opset_import)
    found.graph.CopyFrom(graph)
    return found


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 4)


__all__ = ["Layer", "Separation", "Work", "savings"]
