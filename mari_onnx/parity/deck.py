"""Ids of one table, dealt like cards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A deck of more rows than this is not shuffled whole; its ids are drawn at random.
_SHUFFLED_ROWS = 2**21


class Deck:
    """Ids 0 to rows-1 in random order, those of `first` before others, dealt without repetition until all are out."""

    def __init__(self, rows: int, rng: np.random.Generator, first: Sequence[float] = ()):
        self.rows, self.dealt, self._rng = rows, 0, rng
        shuffled = rows <= _SHUFFLED_ROWS
        # Both ends of what is not shuffled.
        ends = [] if shuffled else [0, rows - 1]
        self._first = np.array(list(dict.fromkeys([*(int(n) for n in first if 0 <= n < rows), *ends])), np.int64)
        self._cards = np.empty(0, np.int64)
        if shuffled and self._first.size:
            cards = rng.permutation(rows)
            self._cards = np.concatenate([self._first, cards[~np.isin(cards, self._first)]])

    def deal(self, count: int) -> np.ndarray:
        self.dealt += count
        early, self._first = self._first[:count], self._first[count:]
        if self.rows > _SHUFFLED_ROWS:
            found = self._rng.integers(0, self.rows, count)
            found[: early.size] = early
        else:
            while len(self._cards) < count:
                self._cards = np.concatenate([self._cards, self._rng.permutation(self.rows)])
            found, self._cards = self._cards[:count], self._cards[count:]
        # Which place of a history gets them is chance.
        return self._rng.permutation(found) if early.size else found

    @property
    def covered(self) -> int:
        """Rows met at least once (an upper bound where the deck is too large to shuffle)."""
        return min(self.dealt, self.rows)
