"""How much faster an output is than its source, by the clock, and what is taken back where it is not.

Both run in turns on the same requests; the ratio is the median of the pairs'. One thread is timed in thread time, which
leaves out what other processes take; several by the clock.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mari_onnx import runtime
from mari_onnx.engine.cost.time_model import users_of
from mari_onnx.errors import ModelError, Slower
from mari_onnx.parity.blame import guilty
from mari_onnx.parity.coverage.empty import fragile, nothing_in, survived
from mari_onnx.parity.domains.domains import domains
from mari_onnx.parity.requests.draw import Drawer, Layout, Request
from mari_onnx.parity.several.form import Form, with_index
from mari_onnx.timing.clock import clock_for, interleaved

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from mari_onnx.engine import Options
    from mari_onnx.parity.guard import Checked
    from mari_onnx.runtime import ModelLike
    from mari_onnx.sides.resolve import Sides

LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256, 500)
"""Numbers of candidates at which the break-even is looked for."""
SECONDS = 0.1
"""Spent on each number of candidates, about."""
SLOW_PAIR = 0.2
"""Seconds of a run of source and output from which a model counts as one that runs long."""
LEAST, MOST = 5, 60
"""Pairs of runs at each number of candidates."""
MARGIN = 0.97
"""Source's time over output's below which the output is slower, not just measured so."""
UNDONE_RUNS = 12
"""Rewrites that are timed to find what to take back."""


@dataclass(frozen=True)
class Speed:
    """Source and output timed against each other.

    Attributes:
        ratios: N -> source's time / output's, above 1 where the output is faster.
        spread: N -> half the distance between the quartiles of the pairs' ratios, as a share of the ratio.
        threads: of onnxruntime.
        typical: the N that is named first.
        users: how many users the typical number of candidates are of.
    """

    ratios: Mapping[int, float]
    spread: Mapping[int, float]
    threads: int
    typical: int
    users: int = 1

    @property
    def faster_from(self) -> int | None:
        """The least N timed from which on the output is no slower; None where it is slower at the largest."""
        found = None
        for n in sorted(self.ratios, reverse=True):
            if self.ratios[n] < 1:
                break
            found = n
        return found

    def slower_at(self, numbers: Sequence[int]) -> list[int]:
        """Of these numbers of candidates, those at which the output is slower."""
        return [n for n in numbers if self.ratios.get(n, 1.0) < MARGIN]

    def __str__(self) -> str:
        threads = "one CPU thread" if self.threads == 1 else f"{self.threads} CPU threads"
        users = f" of {self.users} users" if self.users > 1 else ""
        text = f"{self.ratios[self.typical]:.2g}x at {self.typical} candidates{users}, {threads}"
        start = self.faster_from
        if start is None:
            return f"{text}: slower than the source"
        from_there = "at any number" if start == min(self.ratios) else f"from {start} candidates on"
        return f"{text}; faster {from_there}"

    def to_dict(self) -> dict[str, Any]:
        """The form of the report."""
        return {
            "threads": self.threads,
            "speedup": {str(n): round(r, 3) for n, r in sorted(self.ratios.items())},
            "spread": {str(n): round(r, 3) for n, r in sorted(self.spread.items())},
            "faster_from": self.faster_from,
            "text": str(self),
        }


class Stopwatch:
    """Times outputs against one source, always on the same requests."""

    def __init__(self, model: onnx.ModelProto, sides: Sides, source: ModelLike, threads: int, typical: int):
        from mari_onnx.model.signature import signature

        self.form: Form | None = None
        layout = Layout(signature(model), sides)
        if sides.indices:
            self.form, model = with_index(model, sides, model)
            layout = self.form.layout
        ranges, _ = domains(model, layout)
        self.threads, self.fixed = threads, layout.fixed_n
        self.typical = self.fixed or typical
        self.source = runtime.session(source, "cpu", threads=threads)
        self.layout, self.ranges = layout, ranges
        _, self.clock = clock_for(threads)
        self._model, self._fragile = model, fragile([model])

    def speed(self, output: ModelLike, numbers: Sequence[int], always: Sequence[int] = ()) -> Speed:
        """The output's, at each of these numbers of candidates that the source runs with; of models that run long, at
        the typical one and those in `always`.
        """
        session = runtime.session(output, "cpu", threads=self.threads)
        ratios, spread, pair = {}, {}, 0.0
        wanted = [self.fixed] if self.fixed else sorted(set(numbers), key=lambda n: (n != self.typical, n))
        for n in wanted:
            if n not in always and pair > SLOW_PAIR:
                continue
            found = self._feeds(n, session)
            if found is None:
                if n == self.typical:
                    raise ModelError(f"what was drawn for {n} candidates ends the process in onnxruntime")
                continue
            feeds = list(zip((self.source, session), found, strict=True))
            runs = {str(k): partial(_run, *each) for k, each in enumerate(feeds)}
            try:
                timing = interleaved(
                    runs, seconds=SECONDS, least=LEAST, most=MOST, warm_up=2, clock=self.clock, wall=time.perf_counter,
                    threads=self.threads,
                )  # fmt: skip
            except Exception as error:
                if n == self.typical:
                    raise ModelError(f"source or output cannot run with {n} candidates: {error}") from error
                continue
            pair = max(pair, timing.median("0") + timing.median("1"))
            ratios[n] = timing.ratio("0", "1")
            low, high = timing.quartiles("0", "1")
            spread[n] = (high - low) / 2 / ratios[n]
        return Speed(ratios, spread, self.threads, self.typical, 1 if self.form is None else users_of(self.typical))

    def _feeds(self, n: int, output: onnxruntime.InferenceSession) -> list[dict[str, Any]] | None:
        """What source and output take for n candidates; those of a source with an index are of several users."""
        if self.form is None:
            request = self._request(n)
            return None if request is None else [request.feed(each.get_inputs()) for each in (self.source, output)]
        users = users_of(n)
        requests = [self._request(n // users + (k < n % users), 2 + 5 * k) for k in range(users)]
        given = [request for request in requests if request is not None]
        return [self.form.feed(given)] * 2 if len(given) == users else None

    def _request(self, n: int, first: int = 2) -> Request | None:
        """A request of n candidates; None where each that was drawn, of the seeds from `first` on, would end the
        process.
        """
        for seed in range(first, first + 5):
            request = Drawer(self.layout, self.ranges, seed).request(n, full=self.layout.axis == 0)
            both = {"source": self._model, "optimized": self._model}
            if not (self._fragile and nothing_in(request)) or survived(both, [request])[0]:
                return request
        return None


def settled(
    model: onnx.ModelProto,
    sides: Sides,
    source: ModelLike,
    answer: Checked,
    output: Path,
    again: Callable[[Options], Checked],
    *,
    if_slower: str = "warn",
    threads: int = 1,
    progress: Any = None,
) -> tuple[Checked, dict[str, Any] | None]:
    """The answer, or one with less rewritten, and its speed as the report has it (None where nothing is timed).

    Args:
        model, source: the source, and its path where it has one. output: what `answer` wrote of it.
        again: rewrites and checks with other options.
        if_slower: "warn" leaves the answer; "undo" leaves alone the fewest source nodes without whose rewrite it is not
            slower; "fail" raises.

    Raises:
        Slower: as said.
    """
    if progress is not None:
        progress("timing", 0, 1)
    options = answer.options
    wanted = sorted(options.weighted)
    try:
        watch = Stopwatch(model, sides, source, threads, options.candidates)
        speed = watch.speed(output, [*LADDER, *wanted, options.candidates], wanted)
    except ModelError:
        return answer, None
    slow = speed.slower_at(wanted)
    if slow and if_slower == "fail":
        raise Slower(
            f"the output is slower than the source at {', '.join(map(str, slow))} candidates: {speed}",
            "nothing was written. --if-slower undo takes back what makes it slower",
        )
    if not slow or if_slower != "undo":
        return answer, speed.to_dict()

    def fast(more: frozenset[str]) -> bool:
        how = dataclasses.replace(options, slower=(options.slower or frozenset()) | more)
        made = _rewrite(model, sides, how)
        return made is None or not watch.speed(made, wanted, wanted).slower_at(wanted)

    touched = [n.name for n in answer.rewrite.nodes if n.action in ("lifted", "split")]
    undone = guilty(touched[::-1], fast, UNDONE_RUNS)
    slower = (options.slower or frozenset()) | undone
    answer = again(dataclasses.replace(options, slower=slower))
    answer.incidents.append(f"the rewrite of {', '.join(sorted(undone))} was undone: slower by the clock ({speed})")
    if answer.result is None:
        return answer, None
    return answer, watch.speed(answer.rewrite.model, [*LADDER, *wanted], wanted).to_dict()


def _run(session: onnxruntime.InferenceSession, feed: dict[str, Any], _: int) -> object:
    return session.run(None, feed)


def _rewrite(model: onnx.ModelProto, sides: Sides, options: Options) -> onnx.ModelProto | None:
    from mari_onnx.engine import rewrite
    from mari_onnx.model.upgrade import upgraded

    made = rewrite(upgraded(model).model, sides, options)
    return made.model if made.changed else None
