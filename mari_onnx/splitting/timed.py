"""Which of several ways to split is fastest by the clock, where their estimated times are close.

In: ways, the one that prices prefer first, and how to make a folder of one. Out: the fastest. Scoring is timed with
the gathering of its rows, in turns, on drawn requests. The prices' choice stays unless another is clearly faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mari_onnx.errors import MariError
from mari_onnx.model.signature import signature
from mari_onnx.parity.domains.domains import domains
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.requests.draw import Drawer
from mari_onnx.splitting.assembly import Assembly
from mari_onnx.splitting.store import Run, scoring
from mari_onnx.splitting.ways import Way
from mari_onnx.timing.clock import clock_for, interleaved

if TYPE_CHECKING:
    import onnx

    from mari_onnx.sides.resolve import Sides

CLOSE = 0.05
"""Ways that take at most this share longer by the prices than the fastest are timed."""
NOTHING_CLOSE = 0.35
"""The same for cutting off the user's part alone: a split must not be slower than that."""
WAYS = 5
"""Ways that are timed, at most."""
FASTER = 0.03
"""A way has to take this share less time than the prices' choice."""
SECONDS, LEAST, MOST = 0.15, 7, 300
"""For each way about so long; rounds at least and at most."""
LARGEST = 500_000_000
"""Bytes of models above which nothing is timed: several of them would not fit into memory."""


def contenders(ways: Sequence[Way]) -> list[Way]:
    """The ways to time, that which prices prefer first; each score model once."""
    best = ways[0]
    without = [way for way in ways if not way.makes_rows and way.seconds <= (1 + NOTHING_CLOSE) * best.seconds]
    close = [way for way in ways if way.seconds <= (1 + CLOSE) * best.seconds]
    found: dict[str, Way] = {}
    for way in [best, *without[:1], *close]:
        if len(found) < WAYS:
            found.setdefault(way.graph, way)
    return list(found.values())


def fastest(
    ways: Sequence[Way],
    placed: Callable[[Way], Path],
    source: onnx.ModelProto,
    sides: Sides,
    candidates: int,
    threads: int = 1,
) -> Way | None:
    """The way that is fastest by the clock; None where they cannot be timed.

    Args:
        ways: see `contenders`. placed: makes the folder of one. source, sides: from which requests are drawn.
        threads: of onnxruntime.
    """
    layout = Layout(signature(source), sides)
    ranges = domains(source, layout)[0]
    # In the layout [R, N, ..] a drawer's first request that is not full is a single one.
    drawn = [
        Drawer(layout, ranges, seed).request(layout.fixed_n or candidates, full=layout.axis == 0) for seed in (0, 1)
    ]
    _, clock = clock_for(threads)
    runs: dict[str, Run] = {}
    try:
        for k, way in enumerate(ways):
            session = Assembly(placed(way)).open("cpu", True, threads)
            _, runs[str(k)] = scoring(session.ranker, [request.feed(session.get_inputs()) for request in drawn])
        timing = interleaved(
            runs, seconds=SECONDS * len(runs), least=LEAST, most=MOST, clock=clock, wall=time.perf_counter,
            threads=threads,
        )  # fmt: skip
    except (MariError, RuntimeError):  # drawn requests may not suit the model; the check tells
        return None
    ratios = {k: timing.ratio("0", name) for k, name in enumerate(runs)}
    best = max(ratios, key=lambda k: ratios[k])
    return ways[best] if ratios[best] > 1 + FASTER else ways[0]
