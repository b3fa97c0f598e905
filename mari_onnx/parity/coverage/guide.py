"""Draws further requests while they reach something new, as a guided fuzzer does.

First sizes, then ids and numbers by the decks that deal them, then variations of requests that reached something. What
is tried is decided by the seed, the models and what earlier requests reached, and never by a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mari_onnx.model.functions import inlined
from mari_onnx.parity.coverage import sizes
from mari_onnx.parity.coverage.between import Between
from mari_onnx.parity.coverage.budget import Budget
from mari_onnx.parity.coverage.empty import Column, fragile, nothing_in, survived
from mari_onnx.parity.coverage.vary import Varied
from mari_onnx.parity.requests.edge_users import Edge

if TYPE_CHECKING:
    from mari_onnx.parity.coverage.budget import Price
    from mari_onnx.parity.coverage.watch import Watch
    from mari_onnx.parity.requests.plan import Plan
    from mari_onnx.parity.requests.request import Request

# Multiply-adds (about 0.03 ns each on a CPU core) that all further requests may cost, in both models.
BUDGET = 1.2e11
# Shares of what is left at each step.
_SIZES, _BULK, _USERS, _TOGETHER, _VARIED, _ALONE = 0.25, 0.35, 0.8, 0.4, 0.7, 0.3
# Runs of a model that a request costs: where it is tried, and where it is then compared.
_TRIED, _COMPARED = 2, 2
# Candidates of a request that are tried alone, and requests of one candidate that are tried.
_SINGLE, _TRIED_ALONE = 8, 1000
# Candidates of a request in which several inputs are what they have to be together.
_CANDIDATES = 64
# Floats are so many times as large, of either sign, in some requests; and candidates of these.
_SCALES, _SCALED = 3 * (4.0, -4.0, 32.0, -32.0, 256.0, -256.0), 64
# Tries in a row without anything new after which no more are made.
_STALE = 128
# Candidates of requests that meet ids in bulk, and of those that are there for the user or for a length.
_MANY, _FEW = 1024, 2
# Ids of the user's times ids of the items up to which most pairs of both are met.
_PAIRS = 4096
# Lengths of free dimensions beside those that numbers in the graph suggest.
_LENGTHS = (1, 2, 33, 65, 129, 200)
# Requests that are tried in another process since they may end this one.
_APART = 24


class Guide:
    """Guides the further requests of one check.

    Args:
        plan: whose `draw` was called.
        watch: says what a request reaches.
        price: of a run of the source.

    Attributes:
        tries: requests that were tried; `kept` those of them that are compared.
        faults: what is wrong with the optimized model on requests that cannot be compared; `notes` what is odd.
    """

    def __init__(self, plan: Plan, watch: Watch, price: Price):
        self._plan, self._watch, self._price = plan, watch, price
        self.tries = 0
        self.faults: list[str] = []
        self.notes: list[str] = []
        self.kept: list[Request] = []
        # A recurrence over nothing ends the process: columns without a number of 1 or more may be its lengths.
        self._fragile = fragile(watch.models.values())
        self._apart = _APART
        self._safe: list[frozenset[Column]] = []
        self._deadly: list[frozenset[Column]] = []

    def explore(self, base: Sequence[Request]) -> list[Request]:
        """Further requests, each of which reaches something that none before it did.

        Args:
            base: requests that are compared anyhow.
        """
        for request in base:
            self._watch.look(request)
            self._safe.append(nothing_in(request))
        budget = Budget(BUDGET if self._plan.settings.coverage else 0.0)
        for step, share in (
            (self._sizes, _SIZES), (self._bulk, _BULK), (self._users, _USERS),
            (self._together, _TOGETHER), (self._vary, _VARIED),
            (self._scaled, _ALONE), (self._alone, _ALONE), (self._between, 1.0),
        ):  # fmt: skip
            part = budget.part(share)
            step(part, base)
            budget.back(part)
        return self.kept

    def _ends(self, request: Request) -> bool:
        """Whether a run of the request may end the process: tried in another one where columns of it are the first that
        hold nothing.
        """
        columns = nothing_in(request)
        if not self._fragile or any(columns <= safe for safe in self._safe):
            return False
        if any(columns >= deadly for deadly in self._deadly) or self._apart == 0:
            return True
        self._apart -= 1
        alive = bool(survived(self._watch.models, [request], self._watch.threads)[0])
        (self._safe if alive else self._deadly).append(columns)
        return not alive

    def _look(self, request: Request) -> int | None:
        """As `Watch.look`; None, too, where the request may end the process."""
        return None if self._ends(request) else self._watch.look(request)

    def _keep(self, request: Request, why: str) -> None:
        request.further = why
        self.kept.append(request)

    def _room(self) -> bool:
        return self.tries < self._plan.settings.coverage

    def _sizes(self, budget: Budget, base: Sequence[Request]) -> None:
        """N and lengths of 0 and 1, the longest, and around every number that a size meets."""
        layout, drawer = self._plan.layout, self._plan.other
        met = sorted({n for model in self._watch.models.values() for n in sizes.met(inlined(model))})
        around = list(dict.fromkeys(m for n in met for m in (n, n + 1)))
        few = layout.fixed_n or _FEW + 1
        for length in dict.fromkeys((*_LENGTHS[:1], *around, *_LENGTHS)) if layout.lengths else ():
            self._size(drawer.request(few, full=True, free=dict.fromkeys(layout.lengths, length)), budget)
        for request in self._empty(few):
            self._size(request, budget)
        drawn = {request.n for request in base}
        for n in dict.fromkeys((1, *around)) if layout.fixed_n is None else ():
            if n not in drawn:
                self._size(drawer.request(n), budget)

    def _empty(self, few: int) -> list[Request]:
        """Requests without a candidate, with an empty history, and with neither, on which the source runs."""
        layout, drawer = self._plan.layout, self._plan.other
        if not self._plan.settings.coverage:
            return []
        numbers = [few] if layout.fixed_n is not None else [few, 0]
        lengths = [dict.fromkeys(layout.lengths, 0), {}] if layout.lengths else [{}]
        found = [drawer.request(n, full=True, free=free) for n in numbers for free in lengths if free or not n]
        kept, self.faults, self.notes = survived(self._watch.models, found, self._watch.threads)
        return kept

    def _size(self, request: Request, budget: Budget) -> None:
        if not self._room() or not budget.spend((_TRIED + _COMPARED) * self._price.of(request)):
            return
        self.tries += 1
        if self._look(request) is not None:
            self._keep(request, "size")

    def _bulk(self, budget: Budget, base: Sequence[Request]) -> None:
        """Ids and numbers of the items, many candidates at once."""
        plan, meeting = self._plan, self._plan.drawer.meeting
        rows = plan.layout.fixed_n or (_MANY if plan.layout.axis == 0 else 32)
        while plan.unmet(False) or meeting.lengths(False):
            full = plan.unmet(False)
            request = plan.drawer.request(rows, full=full, meet=True)
            cost = (_TRIED + _COMPARED) * self._price.of(request)
            while plan.layout.fixed_n is None and rows > 32 and 8 * cost > budget.left:
                rows //= 2  # fewer at once where they are dear
                request = plan.drawer.request(rows, full=full, meet=True)
                cost = (_TRIED + _COMPARED) * self._price.of(request)
            if not self._room() or not budget.spend(cost):
                return
            self.tries += 1
            if not self._ends(request):
                self._watch.look(request)
                self._keep(request, "ids")
            if not full:
                return

    def _users(self, budget: Budget, base: Sequence[Request]) -> None:
        """Lengths, ids and numbers of the user, one request each."""
        plan, drawer = self._plan, self._plan.drawer
        few = plan.layout.fixed_n or _FEW
        for length in drawer.meeting.lengths(True):
            edge = Edge(f"a history of {length} entries", length)
            if not self._user(drawer.request(few, edge=edge), budget, False):
                return
        decks = [(deck.rows, plan.layout.is_user_at(*at)) for at, deck in drawer.decks.items()]
        most = [max((rows for rows, of_user in decks if of_user == user), default=0) for user in (True, False)]
        pairs = 0
        if plan.layout.fixed_n is None and 0 < most[0] * most[1] <= _PAIRS:  # a table may have a row for both
            few, pairs = max(few, min(2 * most[1], _MANY)), 2 * most[0]
        while plan.unmet(True) or pairs > 0:
            if not self._user(drawer.request(few, full=True, meet=True), budget, True):
                return
            pairs -= 1

    def _user(self, request: Request, budget: Budget, front: bool) -> bool:
        if not self._room() or not budget.spend((1 + _COMPARED) * self._price.of(request)):
            return False
        self.tries += 1
        if not self._ends(request):
            self._watch.look(request, front)
            self._keep(request, "ids")
        return True

    def _vary(self, budget: Budget, base: Sequence[Request]) -> None:
        """Variations of requests that reached something, until many in a row reach nothing new."""
        varied = Varied(self._plan, [*base, *self.kept], self._watch.models.values())
        stale, forward = 0, False
        while stale < _STALE and self._room() and not self._watch.done:
            request = varied.next(forward)
            if request is None:
                return
            price = self._price.of(request)
            if not budget.spend(_TRIED * price):
                return
            self.tries += 1
            found = self._look(request)
            forward = found is not None and self._watch.closer
            if found and budget.spend(_COMPARED * price):
                self._keep(request, "varied")
                forward = True
            if forward:
                varied.add(request)
            stale = 0 if forward else stale + 1

    def _together(self, budget: Budget, base: Sequence[Request]) -> None:
        """What several inputs have to be together: strings put together, leaves of trees."""
        plan, joints = self._plan, self._plan.other.joints
        many = joints is not None and not joints.of_user and plan.layout.axis == 0
        rows = plan.layout.fixed_n or (_MANY if many else _CANDIDATES)
        stale = 0
        while joints is not None and joints.left and stale < 4 * _STALE and self._room() and not self._watch.done:
            request = plan.other.request(rows)
            cost = (_TRIED + _COMPARED) * self._price.of(request)
            if plan.layout.fixed_n is None and rows > _CANDIDATES and 32 * cost > budget.left:
                rows //= 2
                continue
            if not budget.spend(cost):
                return
            joints.deal(request.arrays())
            self.tries += 1
            stale += 1
            if self._look(request):
                self._keep(request, "varied")
                stale = 0

    def _scaled(self, budget: Budget, base: Sequence[Request]) -> None:
        """Units and bounds that no variation got to. The last resort: what is large hides what is wrong by little."""
        for by in _SCALES:
            request = self._plan.other.request(self._plan.layout.fixed_n or _SCALED, extreme=by)
            if self._watch.done or not self._room() or not budget.spend((_TRIED + _COMPARED) * self._price.of(request)):
                return
            self.tries += 1
            if self._look(request):
                self._keep(request, "varied")

    def _alone(self, budget: Budget, base: Sequence[Request]) -> None:
        """Outcomes and branches with one candidate: where N is 1 a model may do something else, as a dimension of 1 is
        dropped or broadcast."""
        if self._plan.layout.fixed_n is not None:
            return
        watch = self._watch.alone()
        for request in (r for r in base if r.n == 1):
            watch.look(request)
        tried = 0
        for request in [r for r in (*base, *self.kept) if r.n > 1 and not r.empty]:
            for place in range(min(request.n, _SINGLE)):
                if watch.done or tried > _TRIED_ALONE or not self._room():
                    return
                single = request.alone(place)
                if not budget.spend(_TRIED * self._price.of(single)):
                    return
                self.tries, tried = self.tries + 1, tried + 1
                if watch.look(single) and budget.spend(_COMPARED * self._price.of(single)):
                    self._keep(single, "varied")

    def _between(self, budget: Budget, base: Sequence[Request]) -> None:
        """Both sides of where outcomes turn, as near as rounding allows."""

        def afford(request: Request) -> bool:
            return self._room() and budget.spend(self._price.of(request))

        for observer in self._watch.observers:
            for request in Between(self._plan, observer, [*base, *self.kept], afford).requests():
                cost = (_TRIED + _COMPARED) * self._price.of(request)
                if not self._room() or not budget.spend(cost):
                    return
                self.tries += 1
                if self._look(request) is not None:
                    self._keep(request, "varied")
