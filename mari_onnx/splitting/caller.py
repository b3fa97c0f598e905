"""What a caller of score.onnx takes to hand over what it reads: seconds of gathering rows and of fetching a state.

Measured with numpy: 500 rows out of a store of 20,000 items, into memory that is kept, after a run of score.onnx.
"""

from __future__ import annotations

from collections.abc import Sequence

from mari_onnx.prices.table import Prices, run_seconds

GATHER = 0.08e-9
"""Seconds per byte of rows that the caches have, and of a state."""
FAR = 0.2e-9
"""Seconds per byte of rows that have to come from memory."""
CACHED = 800
"""Bytes per item up to which the caches have the store: 16 MB."""
CALL = 5e-6
"""Seconds to gather the rows of one more tensor, however few bytes: measured were 3 to 10."""
FETCH = 0.2e-6
"""The same for a tensor of a user's state, which is there as it is read: a look-up."""


def handing_seconds(rows: Sequence[int], others: Sequence[int], candidates: int) -> float:
    """Seconds to gather rows, and to fetch what has no rows.

    Args:
        rows: bytes of each tensor that has a row for each candidate, of all candidates together. others: of the others.
    """
    far = max(0.0, sum(rows) - CACHED * candidates)
    return GATHER * (sum(rows) + sum(others)) + (FAR - GATHER) * far + CALL * len(rows) + FETCH * len(others)


def one_more_input(prices: Prices) -> float:
    """Seconds that onnxruntime takes for one more input."""
    return run_seconds(1, prices) - run_seconds(0, prices)
