"""Which requests a check draws: some of each size, users at the edge, and as many as it takes to meet every id
and every number that the graph tells apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mari_onnx.parity.requests.draw import Drawer, Request
from mari_onnx.parity.requests.edge_users import Edge, edges

if TYPE_CHECKING:
    from mari_onnx.parity.domains.domains import Domains
    from mari_onnx.parity.layout import Layout
    from mari_onnx.parity.settings import Settings

# Seconds that coverage of user-side ids may take, by the time one run took.
_COVERAGE_SECONDS = 1.0
_COVERAGE_ITEM_ROWS = 1024
# How much larger floats are in requests that drive Exp and its kind beyond the range of the type.
_STEEP = (10.0, 100.0, 1000.0, 1e4)


class Plan:
    """Draws the requests of one check."""

    def __init__(self, layout: Layout, domains: Domains, settings: Settings):
        self.layout, self.domains, self.settings = layout, domains, settings

    def draw(self, positive: bool, ordinary: bool = True) -> list[Request]:
        """Requests that are compared with float64.

        Args:
            positive: floats are.
            ordinary: numbers that the graph tells apart are among them.
        """
        fixed = self.layout.fixed_n
        candidates = [n for n in dict.fromkeys(self.settings.counts) if n > 0] if fixed is None else [fixed]
        self.drawer = Drawer(self.layout, self.domains, self.settings.seed, positive, ordinary)
        found = [self.drawer.request(n) for n in candidates for _ in range(self.settings.count)]
        if candidates:
            # A few candidates will do: what is out of the ordinary is the user.
            few = min((n for n in candidates if n > 2), default=max(candidates))
            found += [self.drawer.request(few, edge=edge) for edge in edges(self.layout, self.domains)]
            if self.domains.links:
                more = max((n for n in candidates if n <= 64), default=few)
                found += [self.drawer.request(n, alike=True) for n in (few, few, more)]
        if self.settings.extremes:
            found += [self.drawer.request(n, extreme=e) for n in candidates[-2:] for e in (0.0, 1e-6, 1e3, 1e4)]
        return found

    def steep(self) -> list[Request]:
        """Requests with floats that are many times as large, where a graph has operators that they drive beyond the
        range of the type. A source that answers NaN or infinity there says nothing."""
        if not self.domains.steep:
            return []
        n = self.layout.fixed_n or 7
        return [self.drawer.request(n, extreme=by) for by in _STEEP]

    def covering(self, seconds: float, row_seconds: float) -> list[Request]:
        """Further requests, so that every id is met, and every number that the graph tells apart: on the user's side
        one request each, on the items' in bulk.

        Args:
            seconds: that a run of the fewest candidates takes; `row_seconds` that a candidate takes.
        """
        # Small tables are met whole on a slow machine too; more as time allows.
        budget = min(self.settings.coverage, _affordable(seconds, 300))
        found: list[Request] = []
        fixed, meeting = self.layout.fixed_n, self.drawer.meeting
        rows = fixed or (_COVERAGE_ITEM_ROWS if self.layout.axis == 0 else 32)
        bulk = min(self.settings.coverage, _affordable(rows * row_seconds, 8))
        while len(found) < bulk and self._unmet(False):
            found.append(self.drawer.request(rows, full=True, meet=True))
        if len(found) < bulk and meeting.lengths(False):
            found.append(self.drawer.request(rows, meet=True))
        for length in meeting.lengths(True)[: max(budget - len(found), 0)]:
            found.append(self.drawer.request(fixed or 2, edge=Edge(f"a history of {length} entries", length)))
        while len(found) < budget and self._unmet(True):
            found.append(self.drawer.request(fixed or 2, full=True, meet=True))
        return found

    def _unmet(self, user: bool) -> bool:
        return self._uncovered(user) or self.drawer.meeting.missing(user) > 0

    def _uncovered(self, user: bool) -> bool:
        return any(met < rows for met, rows in self.drawer.coverage(user).values())


def _affordable(seconds: float, usual: int) -> int:
    """How many runs of two models fit the time for coverage; `usual` may take four times that."""
    runs = _COVERAGE_SECONDS / (2 * seconds)
    return max(int(runs), min(usual, int(4 * runs)), 1)
