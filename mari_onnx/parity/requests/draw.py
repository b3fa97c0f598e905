"""Requests: one user against N candidates, drawn so that every input looks as the graph expects it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.parity.domains.domains import Domains
from mari_onnx.parity.layout import Layout, symbol_of
from mari_onnx.parity.requests import bags, elements
from mari_onnx.parity.requests.edge_users import Edge, start
from mari_onnx.parity.requests.fill import Filler, State
from mari_onnx.parity.requests.id_deck import Deck
from mari_onnx.parity.requests.joints import Joints
from mari_onnx.parity.requests.request import Request

if TYPE_CHECKING:
    from mari_onnx.model.signature import Input
    from mari_onnx.parity.domains.domains import Domain

__all__ = ["Deck", "Drawer", "Layout", "Request"]

_FREE_LENGTHS = (5, 1, 12, 2, 20, 3)


class Drawer:
    """Draws requests for one model; the same seed draws the same requests.

    Args:
        positive: floats are.
        ordinary: as in `Meeting`.
    """

    def __init__(
        self,
        layout: Layout,
        domains: Mapping[str, Domain],
        seed: int | Sequence[int] = 0,
        positive: bool = False,
        ordinary: bool = True,
    ):
        self.layout, self.domains, self.positive, self.ordinary = layout, domains, positive, ordinary
        self.rng = np.random.default_rng(seed)
        self._filler = Filler(layout, domains, self.rng, positive, ordinary)
        self.decks, self.meeting = self._filler.decks, self._filler.meeting
        several = domains.joints if isinstance(domains, Domains) else ()
        self.joints = Joints(several, layout) if several else None
        self._drawn = 0

    def request(
        self,
        n: int,
        *,
        extreme: float | None = None,
        full: bool = False,
        meet: bool = False,
        edge: Edge | None = None,
        alike: bool = False,
        free: Mapping[str, int] | None = None,
        large: tuple[int, int] | None = None,
        apart_by: int | None = None,
        halves: bool = False,
    ) -> Request:
        """One request of n candidates.

        Args:
            extreme: floats are multiplied by this.
            full: no padding, all lengths at their longest (for coverage of ids).
            meet: all else gives way to numbers that the graph tells apart.
            edge: what is out of the ordinary about the user.
            alike: some elements equal those of other inputs that the graph compares them with.
            free: sizes of free dimensions, where they are not as usual.
            large: whole numbers that may be anything lie between these powers of two, and with `apart_by` no further
                than this power of two from each other.
            halves: floats that are rounded together are multiples of a half.
        """
        given = free or {}
        free = {
            name: int(_FREE_LENGTHS[(self._drawn + i) % len(_FREE_LENGTHS)]) if not full else 20
            for i, name in enumerate(self.layout.free)
        }
        if self.layout.requests is not None:
            free[self.layout.requests] = 32 if full else 1 + self._drawn % 3
        self._drawn += 1
        label = f"seed request {self._drawn} (N={n}{', ' + edge.label if edge else ''})"
        layout = self.layout
        made = Request({}, {}, n, {}, layout.axis, label, edge, whole=layout.whole, axes=layout.axes)
        made.bags = layout.sides.bags
        lengths: dict[tuple[bool, int, str], np.ndarray] = {}
        if edge is not None:  # long enough to have a first, a last and some in between
            free = {name: max(length, 4) for name, length in free.items()}
        for each in self._cut_by_candidates():
            free[symbol_of(each, 0)] = max(n, 1) * (1 + self._drawn % 3)
        made.free = free = {**free, **given}
        pool = start(self.domains, self.rng) if edge is not None and edge.repeats else 0
        for each in self.layout.signature.inputs:
            columns = self.layout.sides.columns.get(each.name)
            shape = self.layout.shape(each, n, free)
            state = State(lengths, extreme, full, max(free.values(), default=0), edge, pool, meet, alike)
            state.large, state.apart_by, state.halves = large, apart_by, halves
            # A mask beside a length says the same as it; lengths beside each other need not.
            roles = ["" if d.real else d.role for d in (self.domains[i.name] for i in self.layout.signature.inputs)]
            several = roles.count("length") > 1 and "mask" not in roles
            state.scattered, state.real = self._drawn % 4 == 3 and "length" not in roles, self._drawn % 2 == 0
            state.apart = self._drawn % 4 == 2 and edge is None and several
            if columns is not None:
                mine = columns.get("user", ())
                row = self._filler.array(each, (1, *shape[1:]), True, state, mine)
                rest = [c for c in range(shape[1]) if c not in set(mine)]
                value = self._filler.array(each, shape, False, state, rest)
                value[:, list(mine)] = row[:, list(mine)]
                made.rows[each.name] = value
            elif self.layout.is_count(each.name):
                made.counts[each.name] = np.full(shape, n, each.dtype)
            elif self.layout.is_user(each.name):
                made.user[each.name] = self._filler.array(each, shape, True, state)
            else:
                value = self._filler.array(each, shape, self.layout.of_user(each.name), state)
                (made.literal if self.layout.axis_of(each.name) is None else made.rows)[each.name] = value
        if alike and isinstance(self.domains, Domains):
            elements.link(made.arrays(), self.layout.is_user_at, self.domains, self.domains.links, self.rng)
            self.join(made)
        self._cut(made)
        return made

    def _cut_by_candidates(self) -> list[Input]:
        """Inputs with a bag per candidate, whose length is free."""
        names = {name for ids in self.layout.bags(user=False).values() for name in ids}
        return [i for i in self.layout.signature.inputs if i.name in names and not isinstance(i.shape[0], int)]

    def _cut(self, request: Request) -> None:
        """Gives offsets of bags the values that they have to have."""
        for name in self.layout.bags(user=True):
            request.user[name][...] = 0
        for name, ids in self.layout.bags(user=False).items():
            rows = request.rows[name]
            rows[...] = bags.drawn(len(request.arrays()[ids[0]]), len(rows), self.rng)

    def join(self, request: Request) -> None:
        """Gives elements of several inputs what they have to be together."""
        if self.joints is not None:
            self.joints.some(request.arrays(), self.rng)

    def coverage(self, user: bool | None = None) -> dict[str, tuple[int, int]]:
        """Input (or `input[:, column]`) -> (rows met, rows in all), of one side or all."""
        return {
            self._deck_label(name, column): (deck.covered, deck.rows)
            for (name, column), deck in self.decks.items()
            if user is None or user == self.layout.is_user_at(name, column)
        }

    def _deck_label(self, name: str, column: int) -> str:
        several = sum(other == name for other, _ in self.decks) > 1
        return f"{name}[:, {column}]" if several else name
