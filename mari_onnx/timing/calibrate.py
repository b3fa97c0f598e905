"""Prices of kernels, measured on this machine: what `mari-onnx calibrate` writes.

Every sample of `kernel_samples` is timed in a graph of several copies against a graph of one, without onnxruntime's
graph optimizations, which would compute equal nodes once. Prices of a kernel are the nonnegative numbers whose sum
with the amounts is nearest to the measured times, each relative to itself, so that small shapes count as large ones.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from mari_onnx import runtime
from mari_onnx.model.ops import Fact, having
from mari_onnx.prices.table import OTHER, RUN
from mari_onnx.prices.use import Use
from mari_onnx.timing.clock import a_turn, clock_for
from mari_onnx.timing.kernel_samples import samples
from mari_onnx.timing.machine import machine
from mari_onnx.timing.sample import OPSETS, Sample

COPIES = 9
LEAST = 5e-8
"""Seconds that a kernel takes at least; below that a difference of two times is noise."""
START = 1.5e-7
"""Seconds that starting a kernel takes at least; samples of large shapes alone do not show it."""
TYPICAL = having(Fact.ADDS) | having(Fact.MULTIPLIES)
"""Kernels whose prices, the middle of them, are taken for one that was not measured."""


@dataclass(frozen=True)
class Timed:
    """A sample's amounts and the seconds that its node took."""

    use: Use
    seconds: float


def calibrate(
    threads: Sequence[int] = (1,),
    *,
    seconds: float = 0.03,
    which: Iterable[Sample] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The table of prices of this machine, as `mari_onnx.prices.table` reads it.

    Args:
        threads: numbers of onnxruntime's threads to measure with. One is timed in thread time, more by the clock.
        seconds: for each sample and number of threads, about.
        which: samples, by default all.
        progress: called with (phase, done, total).
    """
    wanted = [(sample, use) for sample in (which or samples()) if (use := sample.use()) is not None]
    tables, errors = {}, {}
    for count in threads:
        timed: dict[str, list[Timed]] = defaultdict(list)
        for k, (sample, use) in enumerate(wanted):
            if progress is not None:
                progress(f"timing kernels on {count} thread{'s' * (count > 1)}", k, len(wanted))
            took = seconds_of(sample, count, seconds)
            if took is not None and sample.in_place:
                took = max(LEAST, took - (seconds_of(Sample("Abs", sample.fed), count, seconds) or 0.0))
            if took is not None:
                timed[use.kernel].append(Timed(use, took))
        timed[RUN] = list(_empty_runs(count, seconds))
        fitted = {kernel: fit(found) for kernel, found in sorted(timed.items())}
        tables[str(count)] = {kernel: prices for kernel, (prices, _) in fitted.items()} | {OTHER: _typical(fitted)}
        errors[str(count)] = {kernel: round(error, 2) for kernel, (_, error) in fitted.items()}
    provenance = {**machine(), "samples": len(wanted), "median_error": errors}
    return {"provenance": provenance, "threads": tables}


def seconds_of(sample: Sample, threads: int, budget: float) -> float | None:
    """Seconds that the sample's node takes; None where onnxruntime has no kernel for it."""
    _, clock = clock_for(threads)
    runs: list[Callable[[], object]] = []
    feed = sample.feed()
    try:
        for copies in (1, 1 + COPIES):
            session = runtime.session(sample.model(copies), "cpu", threads=threads, optimize=False)
            runs.append(lambda session=session: session.run(["y0_0"], feed))  # type: ignore[misc]
            runs[-1]()
    except Exception:  # no kernel for the type
        return None
    pairs: list[float] = []
    ends = time.perf_counter() + budget
    took = [0.0, 0.0]
    while len(pairs) < 7 or time.perf_counter() < ends:
        took = [a_turn(run, clock, before, threads) for run, before in zip(runs, took, strict=True)]
        pairs.append((took[1] - took[0]) / COPIES)
    return max(LEAST, float(np.quantile(pairs, 0.3)))  # what slows a run down comes from outside


def _empty_runs(threads: int, budget: float) -> Iterator[Timed]:
    """Runs of graphs that do next to nothing, by their number of inputs."""
    _, clock = clock_for(threads)
    for count in (1, 4, 16, 64):
        names = [f"x{k}" for k in range(count)]
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in names]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])]
        nodes = [helper.make_node("Identity", ["x0"], ["y"])]
        graph = helper.make_graph(nodes, "empty", inputs, outputs)
        model = helper.make_model(graph, opset_imports=OPSETS, ir_version=8)
        session = runtime.session(model, "cpu", threads=threads)
        feed = {name: np.ones((1, 1), np.float32) for name in names}
        found: list[float] = []
        ends = time.perf_counter() + budget
        while len(found) < 20 or time.perf_counter() < ends:
            begun = clock()
            session.run(None, feed)
            found.append(clock() - begun)
        yield Timed(Use(RUN, {"node": 1, "inputs": count}), float(np.quantile(found, 0.3)))


def fit(timed: Sequence[Timed]) -> tuple[dict[str, float], float]:
    """Prices of one kernel, and the median of the relative errors with them; samples lost in noise do not count."""
    timed = [each for each in timed if each.seconds > LEAST] or timed
    names = sorted({name for each in timed for name, amount in each.use.amounts.items() if amount})
    amounts = np.array([[each.use.amounts.get(name, 0.0) for name in names] for each in timed])
    took = np.array([each.seconds for each in timed])
    prices = nonnegative(amounts / took[:, None], np.ones(len(took)))
    if "node" in names:
        prices[names.index("node")] = max(prices[names.index("node")], START)
    error = float(np.median(np.abs(amounts @ prices / took - 1)))
    return {name: float(f"{price:.3g}") for name, price in zip(names, prices, strict=True) if price > 0}, error


def nonnegative(matrix: np.ndarray, wanted: np.ndarray, rounds: int = 20_000) -> np.ndarray:
    """The x >= 0 with the least ``|matrix x - wanted|``, coordinate by coordinate (``[m, n]``, ``[m]`` -> ``[n]``)."""
    scale = np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
    unit = matrix / scale
    gram, target = unit.T @ unit, unit.T @ wanted
    found = np.zeros(len(scale))
    for _ in range(rounds):
        before = found.copy()
        for k in range(len(found)):
            found[k] = max(0.0, found[k] + (target[k] - gram[k] @ found) / max(gram[k, k], 1e-300))
        if np.max(np.abs(found - before), initial=0.0) <= 1e-12 * np.max(found, initial=1e-300):
            break
    result: np.ndarray = found / scale
    return result


def _typical(fitted: Mapping[str, tuple[dict[str, float], float]]) -> dict[str, float]:
    chosen = [fitted[k][0] for k in sorted(TYPICAL) if k in fitted] or [prices for prices, _ in fitted.values()]
    names = {name for prices in chosen for name in prices}
    return {name: float(np.median([prices.get(name, 0.0) for prices in chosen])) for name in sorted(names)}
