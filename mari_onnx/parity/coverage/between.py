"""Requests on both sides of where the outcome of a comparison turns, and near to it.

A threshold that is wrong by a little shows only between the right one and the wrong one. What is compared is mostly
calculated from many inputs, so no input tells where that is: it is found by halving the way between two requests of
different outcomes, for many candidates at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.parity.domains.domains import Domains

if TYPE_CHECKING:
    from mari_onnx.parity.coverage.observe import Observer
    from mari_onnx.parity.requests.plan import Plan
    from mari_onnx.parity.requests.request import Request

# Candidates of a request: a number that no other dimension is likely to have.
_CANDIDATES = 61
# Relative to what is compared: no nearer than rounding reaches, in float16 too; and near enough.
_NEAREST, _NEAR = 2.0**-9, 2.0**-7
# Where a number is compared with 0: relative to what is usual there.
_USUAL = 2.0**-3
_HALVINGS = 16
# Rounds of halving for many candidates at once; turns that are looked for alone, each between so many pairs; requests
# that reached something.
_ROUNDS, _SINGLE, _PAIRS, _KNOWN = 24, 32, 3, 16
# Floats are so many times as large in requests between which the way is halved.
_LARGER = (4.0, -4.0, 32.0, 256.0, 2048.0)

Arrays = dict[str, np.ndarray]
_Margins = dict[int, tuple[np.ndarray, np.ndarray]]


@dataclass
class _Target:
    """A turn of a goal, and the element that is to come near to it."""

    goal: int
    turn: int
    candidate: int
    element: int

    def of(self, margins: _Margins) -> float:
        """How far above the turn an element is, as a part of what is compared; NaN where that is not known."""
        if self.goal not in margins:
            return np.nan
        over, size = margins[self.goal]
        at = (self.turn, self.candidate if over.shape[1] > 1 else 0, self.element)
        if over.shape[2] <= self.element:
            return np.nan
        return float(over[at] / max(size[at], 1e-30))


class Between:
    """Looks for such requests, in one model.

    Args:
        plan: whose other drawer draws the requests to begin with.
        observer: of one model.
        known: requests that reached something.
        afford: whether one more run of the model on a request is paid for.
    """

    def __init__(self, plan: Plan, observer: Observer, known: Sequence[Request], afford: Callable[[Request], bool]):
        self._layout, self._drawer, self._observer, self._afford = plan.layout, plan.other, observer, afford
        self._n = plan.layout.fixed_n or _CANDIDATES
        self._known = [r for r in known if 0 < r.n <= 64 and r.edge is None and not r.empty]
        # goal -> [side, turn]: whether a request was near to it on that side; and what is usually compared
        self._met: dict[int, np.ndarray] = {}
        self._usual: dict[int, np.ndarray] = {}

    def requests(self) -> Iterator[Request]:
        """Pairs of requests, on both sides of turns that none before was near to; a run of the model each step."""
        first = self._drawer.request(self._n)
        self._look(first)  # of which it is taken what is usual
        for request in self._known[-_KNOWN:]:
            self._look(request, compared=True)
        if not self._observer.goals or all(met.all() for met in self._met.values()):
            return
        pool = self._pool(first)
        yield from self._of_items(pool)
        yield from self._singly(pool)

    def _pool(self, first: Request) -> list[tuple[Request, _Margins]]:
        """Requests of one shape to go between, the first of them as usual."""
        made = [first, self._drawer.request(self._n, free=first.free)]
        made += [self._drawer.request(self._n, free=first.free, extreme=by) for by in _LARGER]
        made += [tiled for r in self._known[-_KNOWN:] if r.n and (tiled := self._tiled(r, first)) is not None]
        found = []
        for request in made:
            margins = self._look(request)
            if margins is not None:
                found.append((request, margins))
        return found

    def _tiled(self, request: Request, like: Request) -> Request | None:
        """A request with its rows repeated; None where it is of other lengths, or has a bag per candidate."""
        if request.bags.keys() & request.rows:
            return None
        rows = {
            k: np.take(v, np.arange(self._n) % request.n, axis=axis) if v.ndim > (axis := request.axis_of(k)) else v
            for k, v in request.rows.items()
        }
        made = replace(request, rows=rows, n=self._n, counts=like.counts)
        same = all(v.shape == like.arrays()[k].shape for k, v in made.arrays().items())
        return made if same else None

    def _look(self, request: Request, compared: bool = False) -> _Margins | None:
        if not self._afford(request):
            return None
        try:
            margins = self._observer.margins(request)
        except MariError:
            return None
        for goal, (over, size) in margins.items():
            if goal not in self._met:
                self._met[goal] = np.zeros((2, over.shape[0]), bool)
                with np.errstate(all="ignore"):
                    usual = np.abs(np.where(np.isfinite(over), over, 0)).mean(axis=(1, 2))
                self._usual[goal] = np.where(usual > 0, usual, 1.0)
            size[:] = np.maximum(size, _USUAL * self._usual[goal][:, None, None])
            with np.errstate(all="ignore"):
                part = over / size
            for side, sign in enumerate((-1, 1) if compared else ()):
                near = (part * sign >= 0) & (np.abs(part) <= _NEAR)
                self._met[goal][side] |= near.any(axis=(1, 2))
        return margins

    def _open(self) -> Iterator[tuple[int, int]]:
        for goal, met in self._met.items():
            yield from ((goal, int(turn)) for turn in np.flatnonzero(~met.all(axis=0)))

    def _of_items(self, pool: Sequence[tuple[Request, _Margins]]) -> Iterator[Request]:
        """Of one user: each candidate goes its own way."""
        if len(pool) < 2:
            return
        first, at_first = pool[0]
        for other, _ in pool[1:]:
            other = self._of_same_user(other, first)
            for ids_of in (first, other):
                begin, end = (self._mixed(first, other, np.full(self._n, part), ids_of) for part in (0.0, 1.0))
                low, high = at_first if ids_of is first else self._look(begin), self._look(end)
                if low is None or high is None:
                    continue
                for _ in range(_ROUNDS):
                    targets = self._assigned(low, high)
                    if not targets:
                        break
                    yield from self._halved(first, other, ids_of, targets, low)

    def _of_same_user(self, request: Request, first: Request) -> Request:
        """A request with the user of another, whose columns of a packed input are his too."""
        rows = dict(request.rows)
        for name, sides in self._layout.sides.columns.items():
            mine = list(sides.get("user", ()))
            if name in rows:
                rows[name] = rows[name].copy()
                rows[name][:, mine] = first.rows[name][:1, mine]
        return replace(request, user=first.user, rows=rows, literal=first.literal, whole=first.whole)

    def _assigned(self, low: _Margins, high: _Margins) -> list[_Target]:
        """For each candidate one turn that lies between two requests; each turn once."""
        found: dict[int, _Target] = {}
        for goal, met in self._met.items():
            if goal not in low or goal not in high or low[goal][0].shape != high[goal][0].shape:
                continue
            a, b = low[goal][0], high[goal][0]
            if a.shape[1] != self._n or len(found) == self._n:
                continue
            between = ((a < 0) != (b < 0)) & np.isfinite(a) & np.isfinite(b)
            for turn in np.flatnonzero(~met.all(axis=0) & between.any(axis=(1, 2))).tolist():
                for candidate, element in np.argwhere(between[turn])[: 4 * self._n].tolist():
                    if candidate not in found:
                        found[candidate] = _Target(goal, turn, candidate, element)
                        break
                if len(found) == self._n:
                    break
        return list(found.values())

    def _singly(self, pool: Sequence[tuple[Request, _Margins]]) -> Iterator[Request]:
        """The user's numbers too: one turn at a time."""
        for goal, turn in list(self._open())[:_SINGLE]:
            if self._met[goal][:, turn].all():
                continue
            for low, at_low, high in islice(self._apart(pool, goal, turn), _PAIRS):
                whole = list(self._ways(low, high, at_low, goal, turn))
                if whole:
                    yield from whole
                    break

    def _apart(
        self, pool: Sequence[tuple[Request, _Margins]], goal: int, turn: int
    ) -> Iterator[tuple[Request, _Margins, Request]]:
        """Pairs of requests of which some element is on different sides; the most ordinary ones first."""
        for k, (high, at_high) in enumerate(pool):
            for low, at_low in pool[:k]:
                if goal in at_low and goal in at_high and at_low[goal][0].shape == at_high[goal][0].shape:
                    a, b = at_low[goal][0][turn], at_high[goal][0][turn]
                    if ((a < 0) != (b < 0)).any():
                        yield low, at_low, high

    def _ways(self, low: Request, high: Request, at_low: _Margins, goal: int, turn: int) -> Iterator[Request]:
        for ids_of in (low, high):
            begin = at_low if ids_of is low else self._look(self._mixed(low, high, 0.0, ids_of))
            end = self._look(self._mixed(low, high, 1.0, ids_of))
            if begin is None or end is None or goal not in begin or goal not in end:
                continue
            a, b = begin[goal][0][turn], end[goal][0][turn]
            if a.shape != b.shape:
                continue
            for candidate, element in np.argwhere(((a < 0) != (b < 0)) & np.isfinite(a) & np.isfinite(b))[:1].tolist():
                yield from self._halved(low, high, ids_of, [_Target(goal, turn, candidate, element)], begin, True)
                return

    def _halved(
        self,
        low: Request,
        high: Request,
        ids_of: Request,
        targets: Sequence[_Target],
        begin: _Margins,
        alone: bool = False,
    ) -> Iterator[Request]:
        """Halves the way between two requests, and answers both sides of the turns, no nearer than rounding reaches.

        Args:
            begin: margins at `low`, with the ids of `ids_of`.
            alone: the user goes the way too, and so all candidates go the same one.
        """
        size = 1 if alone else self._n
        places = np.array([0 if alone else t.candidate for t in targets])
        below = np.array([t.of(begin) < 0 for t in targets])
        start, end = np.zeros(size), np.ones(size)
        kept = [np.zeros(size), np.ones(size)]
        for _ in range(_HALVINGS):
            middle = (start + end) / 2
            margins = self._look(self._mixed(low, high, middle[0] if alone else middle, ids_of))
            if margins is None:
                return
            part = np.array([t.of(margins) for t in targets])
            same = (part < 0) == below
            far = np.abs(part) >= _NEAREST
            for side, mine in ((kept[0], same & far), (kept[1], ~same & far)):
                side[places[mine]] = middle[places[mine]]
            start[places[same]], end[places[~same]] = middle[places[same]], middle[places[~same]]
            if not far.any():
                break
        for target in targets:  # near or not: no second time
            self._met[target.goal][:, target.turn] = True
        for side in kept:
            yield self._mixed(low, high, side[0] if alone else side, ids_of)

    def _mixed(self, low: Request, high: Request, part: np.ndarray | float, ids_of: Request) -> Request:
        """A request on the way: numbers that are no ids and no masks lie between, all else is of one of the two."""
        alone = np.ndim(part) == 0

        def mixed(a: Arrays, b: Arrays, others: Arrays) -> Arrays:
            return {name: self._between(name, a[name], b[name], others[name], part) for name in a}

        return replace(
            low,
            user=mixed(low.user, high.user, ids_of.user) if alone else dict(low.user),
            rows=mixed(low.rows, high.rows, ids_of.rows),
            literal=mixed(low.literal, high.literal, ids_of.literal) if alone else dict(low.literal),
            label=f"between two requests (N={self._n})",
            further="",
        )

    def _between(
        self, name: str, low: np.ndarray, high: np.ndarray, ids: np.ndarray, part: np.ndarray | float
    ) -> np.ndarray:
        domain, axis = self._drawer.domains[name], self._layout.axis_at(name)
        values = domain.role in ("plain", "positive") and domain.levels is None
        closed = domain.values is not None and domain.values.closed
        fixed = isinstance(self._drawer.domains, Domains) and name in self._drawer.domains.sizing
        if low.dtype.kind not in "iuf" or low.shape != high.shape or not values or closed or fixed:
            return ids
        by = np.asarray(part, np.float64)
        if by.ndim:
            by = by.reshape([-1 if k == axis else 1 for k in range(low.ndim)]) if low.ndim > axis else by[:1]
        with np.errstate(invalid="ignore"):
            value = low + by * (high.astype(np.float64) - low)
        if low.dtype.kind != "f":
            value = np.round(value)
        rows = np.zeros(()) if domain.rows is None else domain.rows
        rows = rows.reshape((1,) * (value.ndim - rows.ndim) + rows.shape)
        return np.where(rows > 0, ids, value).astype(low.dtype)
