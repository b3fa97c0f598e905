"""Chooses what user.onnx and item.onnx hand over: by prices of kernels and of bytes, within budgets.

In: rewrites of a source, each with its draft. Out: a `Plan`, the three parts and what they hand over. Cuts are found at
several prices per byte; each is made, and the score model that results is priced as it is, after operators are joined.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

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
from mari_onnx.prices.table import Prices, graph_seconds, node_seconds, run_seconds
from mari_onnx.prices.use import Use
from mari_onnx.splitting.choices import Cut
from mari_onnx.splitting.cut import cut
from mari_onnx.splitting.half import is_half
from mari_onnx.splitting.parts import Part, part
from mari_onnx.splitting.rates import Rates, row_axis
from mari_onnx.splitting.ways import Budget, Plan, Point, Way

GATHER = 0.08e-9
"""Seconds per byte that a caller takes to gather rows of a store, or to fetch a state: measured were 0.05 where the
caches have the rows, and 0.2 where they have not."""
CALL = 5e-6
"""Seconds that a caller takes to gather 500 rows of one more tensor, however few bytes: measured were 3 to 10."""
FETCH = 0.2e-6
"""The same for a tensor of a user's state, which is there as it is read: a look-up."""
FACTORS = (1.0, 0.25, 0.5, 2.0, 4.0, 8.0, 16.0, 64.0, 1e4, 0.0)
"""Multiples of the price of bytes at which cuts are looked for; at 0 all of the item's work is done beforehand."""
EQUAL = 0.02
"""Ways whose times differ by this share count as equally fast: then fewer bytes per item decide."""


class Planner:
    """Plans for one source.

    Args:
        model: the source. prices: of kernels. candidates: N, at which time counts.
        items: whether an item model may be made; without, only the user's part is cut off.
        half: states and rows are handed over in half precision.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
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
        least_time = min(way.seconds for way in fit)
        equal = [way for way in fit if way.seconds <= (1 + EQUAL) * least_time]
        best = min(equal, key=lambda way: (way.item_bytes, way.seconds))
        points: dict[int, float] = {}
        for way in made:
            points[way.item_bytes] = min(way.seconds, points.get(way.item_bytes, way.seconds))
        others = sorted((way for way in fit if way is not best), key=lambda way: way.seconds)
        return [best, *others], _pareto(points)

    def exactly(self, rewrite: Rewrite, cut: Cut) -> Way | None:
        """The way that hands over these tensors; None where the rewrite has others."""
        draft = rewrite.draft
        assert draft is not None
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

    def flops(self, each: Part, candidates: int) -> float:
        """FLOPs of a run with so many candidates, or items."""
        time = TimeModel(candidates)
        shapes = {t.name: tuple(t.dims) for t in each.model.graph.initializer}
        shapes |= {name: tuple(map(time.length, shape)) for name, shape in each.shapes.items()}
        return graph_cost(each.model.graph, shapes).flops

    def _fits(self, made: Way) -> bool:
        pairs = ((made.item_bytes, self.budget.item), (made.user_bytes, self.budget.user))
        return all(limit is None or size <= limit for size, limit in pairs)

    def _ways(self, rewrite: Rewrite) -> list[Way]:
        draft = rewrite.draft
        assert draft is not None
        rates = Rates(draft)
        seconds = self._seconds(draft)
        states = self._cuts(draft, rates.is_user, seconds, self._price_of_state)
        states = [s for s in states if self.budget.user is None or self.bytes_of(s) <= self.budget.user] or states[-1:]
        if not self.items or "N" in draft.b.fixed:
            return [self._way(rewrite, rates, states[0], None)]
        rows = self._cuts(draft, rates.is_item, seconds, self._price_of_row)
        if [] not in rows:
            rows.append([])  # the user's part alone is cut off
        return [self._way(rewrite, rates, states[0], each) for each in rows]

    def _seconds(self, draft: Draft) -> dict[Node, float]:
        shapes = {name: tuple(map(self.time.length, shape)) for name, shape in draft.shapes.items()}
        times = node_seconds(draft.model.graph, shapes, self.prices)
        return dict(zip(draft.nodes, (seconds for _, seconds in times), strict=True))

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
        seconds = sum(handing_seconds(self._size(t), row_axis(t) is not None) for t in handed)
        casts = [self._size(t) / self.width(t) for t in handed if self.is_half(t)]
        return seconds + sum(self.prices.seconds(Use("Cast", {"node": 1, "elements": size})) for size in casts)

    def is_half(self, t: Tensor) -> bool:
        """Whether a tensor is handed over in half precision."""
        return self.half and is_half(t, self._outputs)

    def width(self, t: Tensor) -> int:
        """Bytes of an element as it is handed over."""
        return 2 if self.is_half(t) else int(np.dtype(helper.tensor_dtype_to_np_dtype(t.dtype)).itemsize)

    def _one_more_input(self, factor: float) -> float:
        if not factor:
            return 0.0
        return run_seconds(1, self.prices) - run_seconds(0, self.prices)

    def _size(self, t: Tensor) -> int:
        """Bytes of a tensor at N."""
        return math.prod(map(self.time.length, t.shape or ())) * self.width(t)

    def bytes_of(self, handed: Sequence[Tensor]) -> int:
        """Bytes for one user, or one item."""
        return sum(self.elements(t) * self.width(t) for t in handed)

    def elements(self, t: Tensor) -> int:
        """Elements of a tensor for one user, or one item."""
        return math.prod(map(TimeModel(1).length, t.shape or ()))

    def _way(self, rewrite: Rewrite, rates: Rates, state: Sequence[Tensor], rows: Sequence[Tensor] | None) -> Way:
        draft = rewrite.draft
        assert draft is not None
        more = [t for t in draft.outputs if rows is not None and rates.is_item(t) and row_axis(t) is not None]
        given = frozenset(t.name for t in [*state, *(rows or ()), *more])
        score = self._part(draft, draft.outputs, given)
        handed = tuple(t for t in score.inputs if rates.is_user(t))
        read = tuple(t for t in score.inputs if rates.is_item(t))
        shapes = {name: tuple(map(self.time.length, shape)) for name, shape in score.shapes.items()}
        seconds = graph_seconds(score.model.graph, shapes, self.prices) + self.handing([*handed, *read])
        nodes = hashlib.sha256(b"".join(n.SerializeToString(deterministic=True) for n in score.model.graph.node))
        flops = self.flops(score, self.time.candidates) / self.time.candidates
        return Way(
            rewrite, rates, handed, read, given, seconds, flops,
            self.bytes_of(read), self.bytes_of(handed), nodes.hexdigest(),
            Cut("apart" if draft.b.time.apart else "joined", _names(handed), _names(read)),
        )  # fmt: skip

    def _part(self, draft: Draft, wanted: Sequence[Tensor], given: frozenset[str]) -> Part:
        return part(self.model, draft, wanted, given, self.target)


def handing_seconds(size: int, rows: bool) -> float:
    """Seconds that a caller takes to gather the rows of a tensor of so many bytes; without rows, to fetch it."""
    return GATHER * size + (CALL if rows else FETCH)


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


def _pareto(points: dict[int, float]) -> list[Point]:
    """The points that no other beats in both bytes and time, fewest bytes first."""
    found: list[Point] = []
    for size in sorted(points):
        if not found or points[size] < found[-1].seconds:
            found.append(Point(size, points[size]))
    return found
