"""A rewrite that is checked: where outputs differ, the rewrites to blame are undone and all is
done again.

So a user gets a right model, or none; never a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mari_onnx.errors import MariError
from mari_onnx.parity.assumptions import Refuted, settle
from mari_onnx.parity.bisect import first_divergence
from mari_onnx.parity.blame import guilty
from mari_onnx.parity.result import CANNOT_COMPARE, DIFFERENT, CheckResult
from mari_onnx.parity.settings import Settings
from mari_onnx.parity.several.check import check

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Options, Rewrite
    from mari_onnx.engine.assumptions import Assumption
    from mari_onnx.parity.phases import Progress
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.runtime import ModelLike
    from mari_onnx.sides.resolve import Sides

ATTEMPTS = 4
# Rewrites that the search for what is to blame may make and check in each attempt: on the requests that have shown a
# difference, and on all of them.
RUNS, FULL_RUNS = 60, 20
_REWRITTEN = ("lifted", "split", "folded")


@dataclass
class Checked:
    """A rewrite and the check of it.

    Attributes:
        rewrite: the last one made.
        result: of its check; None where nothing was changed, so that nothing can differ.
        incidents: one line for each time that rewrites were undone, and why.
        options: as given, with the nodes of those in `skip`, and in `declined` what was assumed and does not hold.
    """

    rewrite: Rewrite
    result: CheckResult | None
    options: Options
    incidents: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.result is None or self.result.ok


def optimize_checked(
    model: onnx.ModelProto,
    sides: Sides,
    options: Options | None = None,
    *,
    source: ModelLike | None = None,
    settings: Settings | None = None,
    attempts: int = ATTEMPTS,
    engine: Callable[..., Rewrite] | None = None,
    place: Callable[[Rewrite], ModelLike] | None = None,
    requests: Sequence[Request] = (),
    progress: Progress | None = None,
    **changes: Any,
) -> Checked:
    """Rewrites and checks. Where outputs differ, finds the fewest rewrites to undo, up to `attempts` times, as a full
    check may show what the last search had no request for; then undoes all.

    What a rewrite assumes is verified first, by a check at N = 1 alone, and declined where it does not hold.

    Args:
        model: the source; `source` is its path where it has one (less memory for large models).
        options: the engine's; `skip` grows by what is undone.
        settings, changes: of the check.
        engine: the engine's `rewrite`, or a stand-in.
        place: what to check of a rewrite, by default its model; a path is better for large ones.
        requests: recorded requests, compared on in addition to drawn ones.

    Raises:
        ModelError: the source cannot be run.
    """
    if engine is None:
        from mari_onnx.engine import rewrite

        engine = rewrite
    if options is None:
        from mari_onnx.engine import Options

        options = Options()
    work = _Work(model, sides, replace(options, assume=True), source if source is not None else model, engine, place)
    work.settings, work.progress = replace(settings or Settings(), **changes), progress
    incidents: list[str] = []
    made, output = work.settled()
    options = work.options
    for attempt in range(attempts + 1):
        if attempt:
            made, output = work.rewritten(options.skip)
        if output is None:
            return Checked(made, None, options, incidents)
        result = work.check(output, requests, True)
        if result.verdict != DIFFERENT:
            return Checked(made, result, options, incidents)
        done = {n.name for n in made.nodes if n.action in _REWRITTEN} | made.multiplied
        left = [n.name for n in made.nodes if n.name in done - options.skip]
        if not left or attempt == attempts:
            return Checked(made, result, options, incidents)
        reason, undone = result.reasons[0], frozenset(left)
        if attempt < attempts - 1:
            undone = work.to_blame(made, output, result, requests, options.skip, left)
        if len(undone) == len(left):
            incidents.append(f"all {len(left)} rewrites were undone: {reason}")
        else:
            where = "" if result.divergence is None else f"; {result.divergence}"
            names = ", ".join(n for n in left if n in undone)
            incidents.append(f"the rewrite of {names} was undone: {reason}{where}")
        options = replace(options, skip=options.skip | undone)
    raise AssertionError("the last attempt answers")


@dataclass
class _Work:
    """Rewrites of one source, each with its check."""

    model: onnx.ModelProto
    sides: Sides
    options: Options
    source: ModelLike
    engine: Callable[..., Rewrite]
    place: Callable[[Rewrite], ModelLike] | None
    settings: Settings = field(default_factory=Settings)
    progress: Progress | None = None
    # Requests that have shown a difference.
    telling: list[Request] = field(default_factory=list)

    def settled(self) -> tuple[Rewrite, ModelLike | None]:
        """The first rewrite, whose assumptions hold, and what to check of it; `options` have what does not hold."""
        output: ModelLike | None = None

        def verify(made: Rewrite) -> Refuted | None:
            nonlocal output
            output = self.written(made)
            return None if output is None else self._refuted(output, made.assumptions)

        made, self.options = settle(self.model, self.options, partial(self.engine, self.model, self.sides), verify)
        counts = dict.fromkeys(each.candidates for each in made.assumptions)
        if self.options.prices is not None:
            self.options = replace(self.options, slower=made.left_for_time)  # chosen once
        missing = [n for n in counts if n not in self.settings.counts]
        if missing:
            self.settings = replace(self.settings, candidates=(*missing, *self.settings.counts))
        return made, output

    def _refuted(self, output: ModelLike, assumptions: Sequence[Assumption]) -> Refuted | None:
        """What source and rewrite say of assumptions where these are to be verified.

        An assumption is declined where the source itself fails there: then no run tells whether it holds.
        """
        for n in sorted({each.candidates for each in assumptions}):
            there = replace(self.settings, candidates=(n,), coverage=0, dump=None)
            result = check(self.source, output, self.sides, settings=there, progress=self.progress)
            if result.verdict == DIFFERENT:
                outputs = {each.name for each in result.outputs if not each.ok}
                reason = f"outputs differ there ({result.reasons[0]})"
                return Refuted(reason, outputs if not result.failures else None)
            if result.candidates not in ([], [n]):
                return Refuted(f"the source runs only with N = {result.candidates[0]}, so no run shows if that matters")
            if result.verdict == CANNOT_COMPARE or not result.candidates:
                return Refuted(f"the source itself fails at N = {n}, so no run shows if that matters")
        return None

    def rewritten(self, skip: frozenset[str]) -> tuple[Rewrite, ModelLike | None]:
        """A rewrite, and what to check of it: nothing where it is the source."""
        made = self.engine(self.model, self.sides, replace(self.options, skip=skip))
        return made, self.written(made)

    def written(self, made: Rewrite) -> ModelLike | None:
        """What to check of a rewrite: nothing where it is the source."""
        if not made.changed:
            return None
        return self.place(made) if self.place is not None else made.model

    def check(self, output: ModelLike, requests: Sequence[Request], drawing: bool) -> CheckResult:
        return check(
            self.source,
            output,
            self.sides,
            requests=requests,
            drawing=drawing,
            settings=self.settings,
            progress=self.progress,
        )

    def to_blame(
        self,
        made: Rewrite,
        output: ModelLike,
        result: CheckResult,
        requests: Sequence[Request],
        skip: frozenset[str],
        nodes: Sequence[str],
    ) -> frozenset[str]:
        """The fewest of `nodes` that have to be left alone beside `skip`; all where that does not help either.

        Asked of the requests that have shown a difference; of all where these alone do not show it, as what is
        allowed depends on all.
        """
        self.telling += [r for r in result.failing if all(r is not known for known in self.telling)]
        suspect = self._suspect(made, output, result)
        every = False

        def equal(more: frozenset[str]) -> bool:
            _, written = self.rewritten(skip | more)
            if written is None:
                return True
            return self.check(written, requests if every else self.telling, every).verdict != DIFFERENT

        if not equal(frozenset(nodes)):
            return frozenset(nodes)
        every = not self.telling or equal(frozenset())
        # Later nodes first: with an early one, as the Concat of all inputs, all that follows from it is lost.
        return guilty(nodes[::-1], equal, FULL_RUNS if every else RUNS, suspect)

    def _suspect(self, made: Rewrite, output: ModelLike, result: CheckResult) -> str | None:
        """The source node with the first tensor that diverges, if that can be told."""
        if result.worst_request is None or result.worst_request.empty:  # that may end the process
            return None
        try:
            result.divergence = first_divergence(
                self.source, output, made.tensor_map, result.worst_request, made.nodes
            )
        except MariError:
            return None
        return None if result.divergence is None else result.divergence.node
