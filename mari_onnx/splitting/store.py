"""Rows of many items, and scoring with the gathering of some of them: what a service does for each request.

In: a `Ranker` and requests. Out: callables to time. Rows are gathered from a store of many items, in no order, into
memory that is kept, since memory that is freed and taken again has to be mapped again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from mari_onnx.splitting.ranker import Ranker
from mari_onnx.splitting.rows import Arrays, ItemRows

ITEMS = 20_000
"""Items in the store: more than the caches of a core hold, as in a service."""
Run = Callable[[int], object]


class Store:
    """Rows of `ITEMS` items, those of one request among them, in no order.

    Args:
        rows: of the request's candidates. seed: of the order. names: of the tensors that are needed.
    """

    def __init__(self, rows: ItemRows, seed: int, names: Collection[str]):
        rng = np.random.default_rng(seed)
        size = max(ITEMS, rows.count)
        self._at = rng.permutation(size)[: rows.count]
        others = rng.integers(0, max(1, rows.count), size)
        others[self._at] = np.arange(rows.count)
        self._axes = {name: axis for name, axis in rows.axes.items() if axis is not None and name in names}
        fill = others if rows.count else others[:0]
        self._arrays = {name: np.take(rows.arrays[name], fill, axis=axis) for name, axis in self._axes.items()}
        self._rows = {name: np.array(rows.arrays[name], order="C") for name in self._axes}

    def gather(self) -> Mapping[str, np.ndarray]:
        """The rows of the request's candidates; in the same memory each time."""
        for name, axis in self._axes.items():
            np.take(self._arrays[name], self._at, axis=axis, out=self._rows[name], mode="clip")
        return self._rows


def scoring(ranker: Ranker, feeds: Sequence[Arrays]) -> tuple[Run, Run]:
    """score.onnx by itself, and with the gathering of its rows. Each takes a number that picks the request.

    Args:
        feeds: for each request the inputs of all parts, the user's with one row.
    """
    session, reads = ranker.sessions["score"], ranker.manifest.parts["score"].inputs
    rows = [ranker.items(feed) for feed in feeds]
    whole = []
    for feed, row in zip(feeds, rows, strict=True):
        given = {name: feed[name] for name in ranker.manifest.cross if name in feed}
        given |= {**ranker.user(feed).arrays, **row.arrays}
        whole.append({name: given[name] for name in reads if name in given})
    stores = [Store(row, seed, reads) for seed, row in enumerate(rows)]

    def score(turn: int) -> object:
        return session.run(None, whole[turn % len(whole)])

    def gather_and_score(turn: int) -> object:
        place = turn % len(whole)
        return session.run(None, {**whole[place], **stores[place].gather()})

    return score, gather_and_score
