"""What a caller of score.onnx takes to hand over what it reads: seconds of gathering rows and of fetching a state."""

from __future__ import annotations

from mari_onnx.prices.table import Prices, run_seconds

GATHER = 0.08e-9
"""Seconds per byte that a caller takes to gather rows of a store, or to fetch a state: measured were 0.05 where the
caches have the rows, and 0.2 where they have not."""
CALL = 5e-6
"""Seconds that a caller takes to gather 500 rows of one more tensor, however few bytes: measured were 3 to 10."""
FETCH = 0.2e-6
"""The same for a tensor of a user's state, which is there as it is read: a look-up."""


def handing_seconds(size: int, rows: bool) -> float:
    """Seconds that a caller takes to gather the rows of a tensor of so many bytes; without rows, to fetch it."""
    return GATHER * size + (CALL if rows else FETCH)


def one_more_input(prices: Prices) -> float:
    """Seconds that onnxruntime takes for one more input."""
    return run_seconds(1, prices) - run_seconds(0, prices)
