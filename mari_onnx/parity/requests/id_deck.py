"""Ids of one table, dealt like cards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A deck of more rows than this is not shuffled whole; its ids are drawn at random.
_SHUFFLED_ROWS = 2**21
# One of so many that are dealt is of those that come first.
_AMONG = 3


class Deck:
    """Ids 0 to rows-1 in random order, those of `first` before long, dealt without repetition until all are out.

    Args:
        first: ids, or -1 where a graph tells what is below 0 apart.
        beyond: numbers that are no smaller than `rows` may be among them.
    """

    def __init__(self, rows: int, rng: np.random.Generator, first: Sequence[float] = (), beyond: bool = False):
        self.rows, self.dealt, self._rng = rows, 0, rng
        self._shuffled = rows <= _SHUFFLED_ROWS
        # Both ends of what is not shuffled.
        ends = [] if self._shuffled else [0, rows - 1]
        kept = [int(n) for n in first if n >= -1 and (beyond or n < rows)]
        self._first = np.array(list(dict.fromkeys([*kept, *ends])), np.int64)
        self._cards = np.empty(0, np.int64)
        if self._shuffled and self._first.size:
            cards = rng.permutation(rows)
            self._cards = cards[~np.isin(cards, self._first)]

    def deal(self, count: int, eager: bool = False) -> np.ndarray:
        """So many ids. Of `first` one among few, so that not all columns of a row begin with them.

        Args:
            eager: all of `first` that there is room for.
        """
        self.dealt += count
        room = min(count, self._first.size)
        if room and not eager:
            room = min(room, int(self._rng.binomial(min(count, _AMONG * self._first.size), 1 / _AMONG)))
        early, self._first = self._first[:room], self._first[room:]
        left = count - room
        if not self._shuffled:
            found = self._rng.integers(0, self.rows, left)
        else:
            while len(self._cards) < left:
                # What has not been dealt of `first` is dealt yet.
                self._cards = np.concatenate([self._cards, self._first, self._rng.permutation(self.rows)])
                self._first = self._first[:0]
            found, self._cards = self._cards[:left], self._cards[left:]
        # Which place of a history gets them is chance.
        return self._rng.permutation(np.concatenate([early, found])) if room else found

    @property
    def covered(self) -> int:
        """Rows met at least once (an upper bound where the deck is too large to shuffle)."""
        return min(self.dealt, self.rows)
