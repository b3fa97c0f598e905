"""Ways to split a source: what is handed over, and what that takes; and a way with its models, a plan."""

from __future__ import annotations

from dataclasses import dataclass

from mari_onnx.engine.ir.value import Tensor
from mari_onnx.engine.outcome import Rewrite
from mari_onnx.splitting.choices import Cut
from mari_onnx.splitting.parts import Part
from mari_onnx.splitting.rates import Rates


@dataclass(frozen=True)
class Budget:
    """How many bytes may be handed over for an item and for a user; None for as many as pay."""

    item: int | None = None
    user: int | None = None


@dataclass(frozen=True)
class Point:
    """What another number of bytes per item would bring: seconds of score and of handing over, and score's FLOPs for
    each candidate.
    """

    item_bytes: int
    seconds: float
    flops: float


@dataclass(frozen=True)
class Way:
    """One way to split, without the models: there are many ways, and weights may be large.

    Attributes:
        rewrite: whose draft is cut. rates: of its tensors.
        state: what score reads of the user: tensors that user.onnx makes, and inputs that are passed as they are.
        rows: likewise of the item.
        given: names of the tensors that score need not compute.
        seconds: estimated, of score and of handing over, at the planner's N. flops: of score, for each candidate.
        graph: a hash of score's nodes.
        cut: where, for a record.
    """

    rewrite: Rewrite
    rates: Rates
    state: tuple[Tensor, ...]
    rows: tuple[Tensor, ...]
    given: frozenset[str]
    seconds: float
    flops: float
    item_bytes: int
    user_bytes: int
    graph: str
    cut: Cut

    @property
    def point(self) -> Point:
        """Its bytes, time and work."""
        return Point(self.item_bytes, self.seconds, self.flops)

    @property
    def makes_rows(self) -> bool:
        """Whether there is an item model."""
        return any(t.node is not None for t in self.rows)


@dataclass(frozen=True)
class Plan:
    """A way to split, with its models. user, item: None where nothing is left to compute beforehand."""

    way: Way
    user: Part | None
    item: Part | None
    score: Part
