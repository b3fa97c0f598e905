"""Times of several callables, run in turns: what slows the machine down slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

Clock = Callable[[], float]
LARGE = 0.1
"""A spread above this is worth a warning."""
PAUSE = 0.003
"""Seconds after a run in which the threads of its session may still spin: they take cores from another session."""
WAKE = 3
"""Untimed runs of a session whose threads have slept: the first one waits for each of them to wake up."""
HOT = 8
"""Timed runs at most, one right after the other, of which the median counts, where a session has several threads."""
LONG = 0.02
"""Seconds; a shorter run depends on what is in the caches when it starts."""


def clock_for(threads: int = 1, provider: str = "cpu") -> tuple[str, Clock]:
    """What runs are timed by, and its name in reports.

    "thread": on one thread of the CPU the time that the thread itself ran, so what other processes take of the machine
    is left out. "wall": with several threads, or on a device, where a run ends when the device has finished.
    """
    if provider == "cpu" and threads == 1:
        return "thread", time.thread_time
    return "wall", time.perf_counter


@dataclass(frozen=True)
class Timing:
    """Seconds of runs in turns.

    Attributes:
        names: what was run, k names.
        seconds: float64 `[rounds, k]`; row r holds one run of each, close together in time.
    """

    names: tuple[str, ...]
    seconds: np.ndarray

    @property
    def rounds(self) -> int:
        return len(self.seconds)

    def of(self, name: str) -> np.ndarray:
        """Seconds of each round of one name, `[rounds]`."""
        column: np.ndarray = self.seconds[:, self.names.index(name)]
        return column

    def median(self, name: str) -> float:
        return float(np.median(self.of(name)))

    def fastest(self, name: str) -> float:
        """The run that was disturbed least."""
        return float(np.min(self.of(name)))

    def p99(self, name: str) -> float:
        return float(np.percentile(self.of(name), 99))

    def spread(self, name: str) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        low, middle, high = np.percentile(self.of(name), [25, 50, 75])
        return float((high - low) / 2 / middle)

    def ratios(self, slow: str, fast: str) -> np.ndarray:
        """`slow / fast` pair by pair, `[rounds]`: above 1 where `fast` is the faster."""
        pairs: np.ndarray = self.of(slow) / self.of(fast)
        return pairs

    def ratio(self, slow: str, fast: str) -> float:
        """The median of the pairs' ratios."""
        return float(np.median(self.ratios(slow, fast)))

    def quartiles(self, slow: str, fast: str) -> tuple[float, float]:
        """The middle half of the pairs' ratios."""
        low, high = np.percentile(self.ratios(slow, fast), [25, 75])
        return float(low), float(high)

    def ratio_spread(self, slow: str, fast: str) -> float:
        """Half the distance between the quartiles of the pairs' ratios, as a share of their median."""
        low, high = self.quartiles(slow, fast)
        return (high - low) / 2 / self.ratio(slow, fast)

    def to_dict(self, baseline: str) -> dict[str, dict[str, Any]]:
        """Figures of each name, milliseconds; `speedup` is over `baseline`."""
        return {
            name: {
                "median_ms": self.median(name) * 1e3,
                "p99_ms": self.p99(name) * 1e3,
                "spread": self.spread(name),
                "speedup": self.ratio(baseline, name),
                "speedup_quartiles": list(self.quartiles(baseline, name)),
                "rounds": self.rounds,
            }
            for name in self.names
        }


def interleaved(
    runs: Mapping[str, Callable[[int], object]],
    *,
    seconds: float = 2.0,
    least: int = 5,
    most: int = 2000,
    warm_up: int = 3,
    clock: Clock = time.perf_counter,
    wall: Clock | None = None,
    threads: int = 1,
) -> Timing:
    """Times every callable once a round (A B A B), the order turned by one each round; one time is that of `a_turn`.

    Args:
        runs: name -> callable, which is given the number of the round and returns when done.
        seconds: measured rounds go on until they took this long together...
        least, most: ...but at least and at most so many.
        warm_up: rounds before, not measured; fewer where one alone takes longer than `seconds`.
        clock: what each run is timed by. `time.thread_time` leaves out what other processes take,
            and all that a run does on other threads or devices.
        wall: what `seconds` is measured by; by default `clock`.
        threads: of the sessions that the callables run.
    """
    wall = wall or clock
    names = tuple(runs)
    took = dict.fromkeys(names, 0.0)

    started = wall()
    for turn in range(warm_up):
        for name in names:
            begun = clock()
            runs[name](turn)
            took[name] = clock() - begun
        if wall() - started > seconds:
            break
    rows: list[Sequence[float]] = []
    started = wall()
    while len(rows) < most and (len(rows) < least or wall() - started < seconds):
        turn, row = len(rows), [0.0] * len(names)
        for place in range(len(names)):
            which = (place + turn) % len(names)
            name = names[which]
            row[which] = took[name] = a_turn(partial(runs[name], turn), clock, took[name], threads)
        rows.append(row)
    return Timing(names, np.array(rows, np.float64).reshape(-1, len(names)))


def a_turn(run: Callable[[], object], clock: Clock, before: float, threads: int = 1) -> float:
    """Seconds that `run` takes in a server that runs one model again and again; `before`: what it took the last time.

    On one thread a short run is timed right after an untimed one. Else its time would be that of filling the caches,
    which differs with what ran before, and so with the order.

    On several threads it is the median of some runs one right after the other. The threads of another session must be
    asleep by then, or they take cores from this one; and those of this session awake, or waking them is what is timed
    (0.3 ms in a model of 1 ms).
    """
    hot = max(1, min(HOT, int(LONG / max(before, 1e-9)))) if threads > 1 else 1
    if threads > 1:
        time.sleep(PAUSE)
    for _ in range(min(WAKE, hot) if before < LONG else 0):
        run()
    times = []
    for _ in range(hot):
        begun = clock()
        run()
        times.append(clock() - begun)
    return statistics.median(times)
