"""A rewrite that is checked: where outputs differ, the responsible rewrite is dropped and all is
done again.

So a user gets a right model, or none; never a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mari_onnx.errors import MariError
from mari_onnx.parity.bisect import first_divergence
from mari_onnx.parity.check import check
from mari_onnx.parity.result import DIFFERENT, CheckResult
from mari_onnx.parity.settings import Settings

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Options, Rewrite
    from mari_onnx.parity.phases import Progress
    from mari_onnx.parity.requests.draw import Request
    from mari_onnx.runtime import ModelLike
    from mari_onnx.sides.resolve import Sides

ATTEMPTS = 8
_REWRITTEN = ("lifted", "split", "folded")


@dataclass
class Checked:
    """A rewrite and the check of it.

    Attributes:
        rewrite: the last one made.
        result: of its check; None where nothing was changed, so that nothing can differ.
        incidents: one line for each rewrite that was dropped, and why.
        options: as given, with the dropped nodes in `skip`.
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
    """Rewrites and checks, up to `attempts` times, then once more with every rewrite dropped.

    Args:
        model: the source; `source` is its path where it has one (less memory for large models).
        options: the engine's; `skip` grows by what is dropped.
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
    given = source if source is not None else model
    incidents: list[str] = []
    for attempt in range(attempts + 1):
        made = engine(model, sides, options)
        if not made.changed:
            return Checked(made, None, options, incidents)
        output = place(made) if place is not None else made.model
        result = check(
            given,
            output,
            sides,
            requests=requests,
            drawing=True,
            settings=settings,
            progress=progress,
            **changes,
        )
        if result.verdict != DIFFERENT or attempt == attempts:
            return Checked(made, result, options, incidents)
        dropped = set() if attempt == attempts - 1 else _responsible(given, output, made, result)
        dropped -= options.skip
        reason = result.reasons[0]
        if not dropped:
            dropped = {n.name for n in made.nodes if n.action in _REWRITTEN} - options.skip
            if not dropped:
                return Checked(made, result, options, incidents)
            incidents.append(f"all rewrites were dropped: {reason}")
        else:
            where = "" if result.divergence is None else f"; {result.divergence}"
            names = ", ".join(sorted(dropped))
            incidents.append(f"the rewrite of {names} was dropped: {reason}{where}")
        options = replace(options, skip=frozenset(options.skip | dropped))
    raise AssertionError("the last attempt answers")


def _responsible(
    source: ModelLike, optimized: ModelLike, made: Rewrite, result: CheckResult
) -> set[str]:
    """Names of the source nodes whose rewrite is at fault; empty where that cannot be told."""
    request = result.worst_request
    if request is None:
        return set()
    try:
        found = first_divergence(source, optimized, made.tensor_map, request, made.nodes)
    except MariError:
        return set()
    result.divergence = found
    return set() if found is None else {found.node}
