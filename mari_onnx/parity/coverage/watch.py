"""What the requests of one check reach in its models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING

from mari_onnx.errors import MariError
from mari_onnx.model.functions import inlined
from mari_onnx.parity.coverage import sites
from mari_onnx.parity.coverage.bodies import opened
from mari_onnx.parity.coverage.observe import Observer
from mari_onnx.parity.coverage.report import Coverage, digest, summed

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.requests.request import Request

# Kinds that are known once inputs are looked up: cheap to look at.
_FRONT = {"rows", "keys"}
# Kinds that are looked at with one candidate too.
_ALONE = {"outcomes", "bounds", "branches", "trips"}
# Requests on which a part of the optimized model fails count as something new, up to so many.
_FAULTS = 4


class Watch:
    """Watches the goals of both models.

    Args:
        models: "source" and then "optimized"; only read.
        threads: of onnxruntime.
        kinds: of goals; all by default.
    """

    def __init__(self, models: Mapping[str, onnx.ModelProto], threads: int = 1, kinds: Set[str] | None = None):
        self.models, self.threads, self._faults = models, threads, 0
        self._observers = {}
        for name, model in ((name, opened(inlined(model))) for name, model in models.items()):
            goals = [g for g in sites.goals(model) if kinds is None or g.kind in kinds]
            for front in (True, False):
                chosen = [g for g in goals if (g.kind in _FRONT) == front]
                self._observers[name, front] = Observer(model, chosen, threads)

    def alone(self) -> Watch:
        """Watches anew, by itself, what a model with one candidate may do otherwise."""
        return Watch(self.models, self.threads, _ALONE)

    def look(self, request: Request, front: bool = False) -> int | None:
        """How much a request reaches that none before it did; None where the source does not run on it.

        Args:
            front: only what is cheap to look at.
        """
        found = 0
        for (name, cheap), observer in self._observers.items():
            if front and not cheap:
                continue
            try:
                found += observer.look(request)
            except MariError:
                if name == "source":
                    return None
                self._faults += 1
                return int(self._faults <= _FAULTS)
        return found

    @property
    def observers(self) -> list[Observer]:
        """Those that look at all that is reached, not only at what is cheap."""
        return [observer for (_, cheap), observer in self._observers.items() if not cheap]

    @property
    def closer(self) -> bool:
        """Whether the last request came closer to something that is not reached than all before it."""
        return any(observer.closer for observer in self._observers.values())

    @property
    def done(self) -> bool:
        """Whether nothing is left to reach."""
        return all(observer.done for observer in self._observers.values())

    def report(self, requests: Sequence[Request], lengths: Iterable[str] = ()) -> Coverage:
        """What was reached.

        Args:
            requests: those that were compared, for their sizes and their digest.
            lengths: free dimensions whose sizes are said.
        """
        watched = {
            name: [goal for (of, _), observer in self._observers.items() if of == name for goal in observer.goals]
            for name in self.models
        }
        counts, missed = summed(watched)
        named = set(lengths)
        free = [size for r in requests for name, size in r.free.items() if name in named]
        n = [r.n for r in requests]
        return Coverage(
            counts,
            missed,
            (min(n), max(n)) if n else None,
            (min(free), max(free)) if free else None,
            digest=digest([r.arrays() for r in requests]),
        )
