"""Which requests a check draws to compare with float64: some of each size, and users at the edge. Further ones are
`parity.coverage`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mari_onnx.parity.requests.draw import Drawer
from mari_onnx.parity.requests.edge_users import edges
from mari_onnx.parity.requests.request import Request

if TYPE_CHECKING:
    from mari_onnx.parity.domains.domains import Domains
    from mari_onnx.parity.layout import Layout
    from mari_onnx.parity.settings import Settings


# How much larger floats are in requests that drive Exp and its kind beyond the range of the type.
_STEEP = (10.0, 100.0, 1000.0, 1e4)
# Powers of two between which large whole numbers lie: beyond what a float32 holds exactly, what an int32 and what a
# float64 does.
_LARGE = ((20, 31), (31, 40), (40, 53), (53, 62))
# Seconds since 1970, about, as a power of two; and how far apart times are.
_TIMES, _APART = (30, 31), (8, 20)


class Plan:
    """Draws the requests of one check.

    Attributes:
        drawer: deals every id and every number; `other` is for requests that may be dropped again. Both are there
            once `draw` was called.
    """

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
        seed = self.settings.seed
        self.drawer = Drawer(self.layout, self.domains, seed, positive, ordinary)
        self.other = Drawer(self.layout, self.domains, [seed, 1], positive, ordinary)
        found = [self.drawer.request(n) for n in candidates for _ in range(self.settings.count)]
        if candidates:
            # A few candidates will do: what is out of the ordinary is the user.
            few = min((n for n in candidates if n > 2), default=max(candidates))
            found += [self.drawer.request(few, edge=edge) for edge in edges(self.layout, self.domains)]
            if self.domains.links or self.domains.joints:
                more = max((n for n in candidates if n <= 64), default=few)
                found += [self.drawer.request(n, alike=True) for n in (few, few, more)]
            if self.domains.halves:
                found += [self.drawer.request(n, halves=True) for n in (few, few, max(candidates))]
        if self.settings.extremes:
            found += [self.drawer.request(n, extreme=e) for n in candidates[-2:] for e in (0.0, 1e-6, 1e3, 1e4)]
        return found

    def steep(self) -> list[Request]:
        """Requests with floats that are many times as large, where a graph has operators that they drive beyond the
        range of the type, and requests with large whole numbers. A source that fails there, or answers NaN or infinity,
        says nothing."""
        n = self.layout.fixed_n or 7
        found = [self.drawer.request(n, extreme=by) for by in _STEEP] if self.domains.steep else []
        if any(i.dtype.kind in "iu" and i.dtype.itemsize >= 4 for i in self.layout.signature.inputs):
            found += [self.other.request(n, large=powers) for powers in _LARGE]
            found += [self.other.request(n, large=_TIMES, apart_by=by) for by in _APART]
        return found

    def unmet(self, user: bool) -> bool:
        """Whether ids or numbers of one side are left to meet."""
        return self._uncovered(user) or self.drawer.meeting.missing(user) > 0

    def _uncovered(self, user: bool) -> bool:
        return any(
            deck.covered < deck.rows and user == self.layout.is_user_at(*place)
            for place, deck in self.drawer.decks.items()
        )

