"""Chooses what user.onnx and item.onnx hand over: by prices of kernels and of bytes, within budgets.

In: rewrites of a source, each with its draft. Out: a `Plan`, the three parts and what they hand over. Cuts are found at
several prices per byte; each is made, and the score model that results is priced as it is, after operators are joined.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from mari_onnx.engine.cost.flops import graph_cost
from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.engine.ir.value import Node, Tensor
from mari_onnx.engine.outcome import Draft, Rewrite
from mari_onnx.errors import UsageError
from mari_onnx.model.dims import symbols
from mari_onnx.model.ops import Fact, row
from mari_onnx.prices.table import Prices, graph_seconds, node_seconds
from mari_onnx.prices.use import Use
from mari_onnx.splitting.caller import handing_seconds, one_more_input
from mari_onnx.splitting.choices import Cut
from mari_onnx.splitting.cut import cut
from mari_onnx.splitting.half import is_half
from mari_onnx.splitting.left import Left, Rest
from mari_onnx.splitting.parts import Part, part
from mari_onnx.splitting.rates import Rates, row_axis
from mari_onnx.splitting.sizes import Sizes, is_told
from mari_onnx.splitting.ways import Budget, Plan, Point, Way

if TYPE_CHECKING:
    from mari_onnx.sides.resolve import Sides

FACTORS = (1.0, 0.25, 0.5, 2.0, 4.0, 8.0, 16.0, 64.0, 1e4, 0.1, 0.0)
"""Multiples of the price of bytes at which cuts are looked for; at 0 all of the item's work is done beforehand."""
EQUAL = 0.05
"""Ways whose times differ by this share count as equally fast, as prices are no nearer: then the one that leaves least
work is taken, unless the clock says that another is faster.
"""
AS_LITTLE = 0.005
"""Scoring whose FLOPs differ by this share counts as equally little work: then fewer bytes per item decide."""


class Planner:
    """Plans for one source.

    Args:
        model, sides: the source. prices: of kernels. candidates: N, at which time counts.
        items: whether an item model may be made; without, only the user's part is cut off.
        half: states and rows are handed over in half precision.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        sides: Sides,
        prices: Prices,
        candidates: int,
        budget: Budget,
        target: str,
        items: bool = True,
        half: bool = False,
    ):
        self.model, self.prices, self.budget, self.target, self.items = model, prices, budget, target, items
        self.half, self._outputs = half, {info.name for info in model.graph.output}
        self.time = TimeModel(candidates)
        self._sizes, self._met = Sizes(model, sides, self.time), dict[Tensor, tuple[int, ...]]()

    def ways(self, rewrites: Sequence[Rewrite]) -> tuple[list[Way], list[Point]]:
        """Ways within the budget, that which takes least time first, and what others would take.

        Raises:
            UsageError: the budget is too small for any cut.
        """
        made = [way for rewrite in rewrites for way in self._ways(rewrite)]
        fit = [way for way in made if self._fits(way)]
        if not fit:
            least = {"item": min(p.item_bytes for p in made), "user": min(p.user_bytes for p in made)}
            flags = [
                f"--{side}-bytes {limit} ({least[side]} at least)"
                for side, limit in (("item", self.budget.item), ("user", self.budget.user))
                if limit is not None and least[side] > limit
            ]
            raise UsageError(
                f"no split hands over so few bytes: {' and '.join(flags) or 'both budgets together'}",
                "inputs that score.onnx reads as they are count too; give a larger budget, or leave the flag out",
            )
        best = _best(fit)
        others = sorted((way for way in fit if way is not best), key=lambda way: way.seconds)
        return [best, *others], _points(made)

    def exactly(self, rewrite: Rewrite, cut: Cut) -> Way | None:
        """The way that hands over these tensors; None where the rewrite has others."""
        draft = rewrite.draft
        assert draft is not None
        self._learn(draft)
        tensors = {t.name: t for node in draft.nodes for t in [*node.inputs, *node.outputs] if t is not None}
        tensors |= draft.stored
        if not tensors.keys() >= {*cut.state, *cut.rows}:
            return None
        way = self._way(rewrite, Rates(draft), *([tensors[n] for n in names] for names in (cut.state, cut.rows)))
        return replace(way, cut=replace(way.cut, by=cut.by))

    def made(self, way: Way) -> Plan:
        """The models of a way."""
        users = [t for t in way.state if t.node is not None]
        items = [t for t in way.rows if t.node is not None]
        draft = way.rewrite.draft
        assert draft is not None
        user, item = (self._part(draft, made, frozenset()) if made else None for made in (users, items))
        return Plan(way, user, item, self._part(draft, draft.outputs, way.given))

    def left(self, plan: Plan) -> list[Left]:
        """What score.onnx still computes of the item alone."""
        names, shapes = {t.name for t in plan.way.rows}, self.shapes(plan.score)
        return Rest(plan.score.model, names, shapes, self.prices, self.time.candidates, self.half).left

    def flops(self, each: Part) -> float:
        """FLOPs of a run with N candidates, or items."""
        return graph_cost(each.model.graph, self.shapes(each)).flops

    def shapes(self, each: Part) -> dict[str, tuple[int, ...]]:
        """Sizes at N of a part's tensors, where they are known."""
        found = {t.name: self._shape(t) for t in each.tensors}
        return {name: shape for name, shape in found.items() if shape is not None}

    def _shape(self, t: Tensor) -> tuple[int, ...] | None:
        if t in self._met:
            return self._met[t]
        return tuple(map(self.time.length, t.shape)) if t.shape is not None else None

    def _learn(self, draft: Draft) -> dict[str, tuple[int, ...]]:
        """Sizes of a draft's tensors by name; those that symbols do not tell are kept for its parts."""
        found = self._sizes.of(draft)
        made = [t for node in draft.nodes for t in node.outputs if t.name in found]
        self._met |= {t: found[t.name] for t in made if not is_told(t)}
        return found

    def _fits(self, made: Way) -> bool:
        pairs = ((made.item_bytes, self.budget.item), (made.user_bytes, self.budget.user))
        return all(limit is None or size <= limit for size, limit in pairs)

    def _ways(self, rewrite: Rewrite) -> list[Way]:
        draft = rewrite.draft
        assert draft is not None
        rates = Rates(draft)
        times = node_seconds(draft.model.graph, self._learn(draft), self.prices)
        seconds = dict(zip(draft.nodes, (each for _, each in times), strict=True))
        states = self._cuts(draft, rates.is_user, seconds, self._price_of_state)
        states = [s for s in states if self.budget.user is None or self.bytes_of(s) <= self.budget.user] or states[-1:]
        if not self.items or "N" in draft.b.fixed:
            return [self._way(rewrite, rates, states[0], None)]
        rows = self._cuts(draft, rates.is_item, seconds, self._price_of_row)
        if [] not in rows:
            rows.append([])  # the user's part alone is cut off
        return [self._way(rewrite, rates, states[0], each) for each in rows]

    def _cuts(
        self,
        draft: Draft,
        mine: Callable[[Tensor], bool],
        seconds: dict[Node, float],
        price: Callable[[Tensor, float], float | None],
    ) -> list[list[Tensor]]:
        """Different cuts, at the price of bytes and at multiples of it."""
        found: dict[tuple[str, ...], list[Tensor]] = {}
        for factor in FACTORS:
            handed = cut(draft, mine, seconds, lambda t, f=factor: price(t, f))  # type: ignore[misc]
            handed = handed if _works(handed) else []
            found.setdefault(tuple(sorted(t.name for t in handed)), handed)
        return list(found.values())

    def _price_of_row(self, t: Tensor, factor: float) -> float | None:
        if row_axis(t) is None or not _plain(t):
            return None
        return factor * self.handing([t]) + self._one_more_input(factor)

    def _price_of_state(self, t: Tensor, factor: float) -> float | None:
        if t.shape is None or any("N" in symbols(size) for size in t.shape) or not _plain(t):
            return None
        return factor * self.handing([t]) + self._one_more_input(factor)

    def handing(self, handed: Sequence[Tensor]) -> float:
        """Seconds that a caller takes to gather rows of these tensors, and to fetch those without rows, at N; and that
        score.onnx takes to make float32 of half precision.
        """
        rows, others = list[int](), list[int]()
        for t in handed:
            (others if row_axis(t) is None else rows).append(self._size(t))
        seconds = handing_seconds(rows, others, self.time.candidates)
        casts = [self._size(t) / self.width(t) for t in handed if self.is_half(t)]
        return seconds + sum(self.prices.seconds(Use("Cast", {"node": 1, "elements": size})) for size in casts)

    def is_half(self, t: Tensor) -> bool:
        """Whether a tensor is handed over in half precision."""
        return self.half and is_half(t, self._outputs)

    def width(self, t: Tensor) -> int:
        """Bytes of an element as it is handed over."""
        return 2 if self.is_half(t) else int(np.dtype(helper.tensor_dtype_to_np_dtype(t.dtype)).itemsize)

    def _one_more_input(self, factor: float) -> float:
        return one_more_input(self.prices) if factor else 0.0

    def _size(self, t: Tensor) -> int:
        """Bytes of a tensor at N."""
        return math.prod(self._shape(t) or ()) * self.width(t)

    def bytes_of(self, handed: Sequence[Tensor]) -> int:
        """Bytes for one user, or one item."""
        return sum(self.elements(t) * self.width(t) for t in handed)

    def elements(self, t: Tensor) -> int:
        """Elements of a tensor for one user, or one item."""
        if t not in self._met:
            return math.prod(map(TimeModel(1).length, t.shape or ()))
        return math.prod(size for i, size in enumerate(self._met[t]) if i != row_axis(t))

    def _way(self, rewrite: Rewrite, rates: Rates, state: Sequence[Tensor], rows: Sequence[Tensor] | None) -> Way:
        draft = rewrite.draft
        assert draft is not None
        more = [t for t in draft.outputs if rows is not None and rates.is_item(t) and row_axis(t) is not None]
        given = frozenset(t.name for t in [*state, *(rows or ()), *more])
        score = self._part(draft, draft.outputs, given)
        handed = tuple(t for t in score.inputs if rates.is_user(t))
        read = tuple(t for t in score.inputs if rates.is_item(t))
        seconds = graph_seconds(score.model.graph, self.shapes(score), self.prices) + self.handing([*handed, *read])
        nodes = hashlib.sha256(b"".join(n.SerializeToString(deterministic=True) for n in score.model.graph.node))
        flops = self.flops(score) / self.time.candidates
        return Way(
            rewrite, rates, handed, read, given, seconds, flops,
            self.bytes_of(read), self.bytes_of(handed), nodes.hexdigest(),
            Cut("apart" if draft.b.time.apart else "joined", _names(handed), _names(read)),
        )  # fmt: skip

    def _part(self, draft: Draft, wanted: Sequence[Tensor], given: frozenset[str]) -> Part:
        return part(self.model, draft, wanted, given, self.target)


def _best(ways: Sequence[Way]) -> Way:
    """Of ways that take about as long the one that leaves least work, and of those the one of fewest bytes per item."""
    least = min(way.seconds for way in ways)
    fast = [way for way in ways if way.seconds <= (1 + EQUAL) * least]
    little = min(way.flops for way in fast)
    return min((w for w in fast if w.flops <= (1 + AS_LITTLE) * little), key=lambda w: (w.item_bytes, w.seconds))


def _names(tensors: Sequence[Tensor]) -> tuple[str, ...]:
    return tuple(t.name for t in tensors)


def _works(handed: Sequence[Tensor]) -> bool:
    """Whether anything is computed before the cut; another shape of an input is no reason for a model of its own."""
    stack, seen = list(handed), set[Node]()
    while stack:
        node = stack.pop().node
        if node is None or node in seen:
            continue
        seen.add(node)
        if not row(node.proto.op_type).facts & (Fact.VIEW | Fact.SIZES):
            return True
        stack += [t for t in node.inputs if t is not None]
    return False


def _plain(t: Tensor) -> bool:
    """Whether a caller can hold it as an array of numbers."""
    return t.dtype != 0 and np.dtype(helper.tensor_dtype_to_np_dtype(t.dtype)).kind in "fiub"


def _points(ways: Sequence[Way]) -> list[Point]:
    """Ways that no other beats in both bytes and time, and the one that leaves least work; fewest bytes first."""
    ordered = sorted(ways, key=lambda way: (way.item_bytes, way.seconds))
    found: list[Way] = []
    for way in ordered:
        if not found or way.seconds < found[-1].seconds:
            found.append(way)
    least = min(ordered, key=lambda way: way.flops)
    if least.flops < (1 - AS_LITTLE) * min(way.flops for way in found):
        found.append(least)
    return [way.point for way in sorted(found, key=lambda way: way.item_bytes)]
