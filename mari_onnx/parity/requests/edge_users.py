"""Users at the edge: without history, with one entry of it, and with a history that repeats itself.

A user drawn at random has such a history rarely or never: of 50 places all are padding once in 50 users, and ids that
are dealt like cards do not come twice. A model divides by the number of entries, takes a softmax of them, or counts
how often the candidate is among them, and may be wrong for these users alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mari_onnx.model.signature import Input
    from mari_onnx.parity.domains.domains import Domain
    from mari_onnx.parity.layout import Layout

# Ids of a history that repeats itself, and of its candidates: some of these are in it and some are not. They follow
# each other, so that inputs that count from 0 and from 1 in one table still meet.
_POOL, _CANDIDATES = 3, 5


@dataclass(frozen=True)
class Edge:
    """What is out of the ordinary about a user.

    Attributes:
        label: for messages.
        length: valid entries of every history; None for all.
        last: they are the last ones, not the first.
        masks: what masks are, where they do not follow the length.
        padding: padding is what the graph compares ids with, else 0.
        repeats: ids come from a small pool, those of candidates too.
    """

    label: str
    length: int | None = None
    last: bool = False
    masks: bool | None = None
    padding: bool = True
    repeats: bool = False

    def seen(self, places: np.ndarray, count: int) -> np.ndarray:
        """Which places of `count` hold valid entries."""
        if self.length is None:
            return np.ones(places.shape, bool)
        return places >= count - self.length if self.last else places < self.length

    def valid(self, shape: Sequence[int], rows: np.ndarray | None, columns: Sequence[int] | None) -> np.ndarray:
        """Which elements of a user's whole numbers are valid entries; what is no history is valid throughout.

        Args:
            rows: as in `Domain`.
            columns: the user's, of a packed input.
        """
        valid = np.ones(shape, bool)
        for places in histories(shape, rows, columns):
            valid[..., places] = self.seen(np.arange(len(places)), len(places))
        return valid

    def deal(self, rng: np.random.Generator, start: int, count: int, size: int, user: bool) -> np.ndarray:
        """Ids of a table of `count` rows from the pool at `start`."""
        return (start + rng.integers(0, _POOL if user else _CANDIDATES, size)) % count


def histories(shape: Sequence[int], rows: np.ndarray | None, columns: Sequence[int] | None) -> list[np.ndarray]:
    """Places along the last axis that are one history: all of it, or those with as many ids."""
    if len(shape) < 2:
        return []
    if rows is None or rows.size == 1:
        given = np.arange(shape[-1]) if columns is None else np.array(columns, int)
        return [given] if len(given) > 1 and (rows is not None or columns is None) else []
    if rows.size != rows.shape[-1]:
        return []
    counts = rows.reshape(-1)
    own = np.isin(np.arange(counts.size), np.arange(counts.size) if columns is None else np.array(columns, int))
    found = [np.flatnonzero((counts == c) & own) for c in np.unique(counts[(counts > 0) & own])]
    return [places for places in found if len(places) > 1]


def edges(layout: Layout, domains: Mapping[str, Domain]) -> list[Edge]:
    """Those that a model can tell apart; none where the user has no history."""
    mine = [(i, domains[i.name]) for i in layout.signature.inputs if layout.of_user(i.name)]
    packed = [(i, domains[i.name]) for i in layout.signature.inputs if layout.sides.columns.get(i.name, {}).get("user")]
    ids = any(_has_history(i, d, None) for i, d in mine) or any(
        _has_history(i, d, layout.sides.columns[i.name]["user"]) for i, d in packed
    )
    masks = any(d.role == "mask" and len(i.shape) > 1 for i, d in mine)
    lengths = any(d.role == "length" for _, d in mine)
    if not (ids or masks or lengths):
        return []
    found = [Edge("no history", 0)]
    if masks:  # some masks say what is valid, others what is padding
        found.append(Edge("no history, masks all true", 0, masks=True))
    if any(d.padding is not None and d.padding.any() for _, d in mine + packed):
        found.append(Edge("a history of zeros", 0, padding=False))
    found.append(Edge("a history of one entry", 1))
    if not lengths:  # a length counts from the first
        found.append(Edge("a history of one entry, the last", 1, last=True))
    if ids:
        found.append(Edge("a history that repeats itself", repeats=True))
    return found


def _has_history(each: Input, domain: Domain, columns: Sequence[int] | None) -> bool:
    if domain.rows is None or domain.role not in ("plain", "positive"):
        return False
    # A free dimension may be long.
    shape = [d if isinstance(d, int) else 2 for d in each.shape]
    return bool(histories(shape, domain.rows, columns))


def start(domains: Mapping[str, Domain], rng: np.random.Generator) -> int:
    """The first id of a pool that is inside every table."""
    counts = [int(d.rows[d.rows > 0].min()) for d in domains.values() if d.rows is not None and (d.rows > 0).any()]
    return 1 + int(rng.integers(0, max(min(counts, default=1) - _CANDIDATES, 1)))
