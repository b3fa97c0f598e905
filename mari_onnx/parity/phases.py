"""Runs of one check: a model, a provider, and all requests through one session that is then let go.

So a large model is never in memory more than once (in float64: twice).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx import runtime
from mari_onnx.errors import MariError, ModelError, first_line, without_room
from mari_onnx.parity import float64
from mari_onnx.parity.coverage.budget import Budget, Price
from mari_onnx.parity.judge import metrics, values
from mari_onnx.parity.judge.verdict import FLOOR_BLIND_ULPS

if TYPE_CHECKING:
    import onnx

    from mari_onnx.model.signature import Signature
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.parity.result import CheckResult
    from mari_onnx.runtime import ModelLike

    Progress = Callable[[str, int, int], None]

# Multiply-adds (about 0.03 ns each on a CPU core) that the second runs of requests may cost in one phase.
_AGAIN = 4e10
# Threads of onnxruntime for large models, unless a number is given; always as many, so that the last bits are the same
# on every machine.
_THREADS = 2


@dataclass
class Runs:
    """Outputs of one session.

    Attributes:
        outputs: for each request its arrays (`judge.values.arrays`), or the error that it ended with.
        differing: outputs that were another one when the same request was run again, by more than rounding.
    """

    outputs: list[list[np.ndarray] | MariError]
    differing: list[str] = field(default_factory=list)


class Phases:
    """Runs the source and the optimized model; notes and failures go into the result."""

    def __init__(
        self,
        models: Mapping[str, ModelLike],
        loaded: Mapping[str, onnx.ModelProto],
        names: Mapping[str, str],
        signatures: Mapping[str, Signature],
        result: CheckResult,
        progress: Progress | None,
    ):
        self.price = Price(loaded["source"])
        large = any(runtime.weight_bytes(model) > runtime.STAGE_BYTES for model in loaded.values())
        self.threads = result.settings.threads or (_THREADS if large else 1)
        self.models, self.names, self.signatures, self.result = models, names, signatures, result
        self.progress: Progress = progress or (lambda *_: None)

    def run(
        self, which: str, provider: str, optimize: bool, requests: Sequence[Request], once: int = 0
    ) -> Runs:
        """All requests through one session, and all but the last `once` again in the opposite order; of these only the
        cheapest where they are dear.

        What an operator left unwritten shows the second time, as the memory then holds another request's numbers.
        """
        model, name = self.models[which], self.names[which]
        try:
            made = runtime.session(model, provider, optimize, self.threads, what=name)
        except ModelError as error:
            if which == "source":
                raise
            self.result.failures.append(first_line(error))
            return Runs([])
        has = {o.name for o in self.signatures[which].outputs}
        outputs = [o for o in self.signatures["source"].outputs if o.name in has]
        names = [o.name for o in outputs]
        phase = f"{which}, {provider}, optimizations {'on' if optimize else 'off'}"

        def answer(request: Request, what: str) -> list[np.ndarray] | MariError:
            try:
                return values.arrays(runtime.run(made, request.feed(made.get_inputs()), what, names), outputs)
            except MariError as error:
                if provider != "cpu" and not isinstance(error, ModelError):
                    raise
                return error

        found: list[list[np.ndarray] | MariError] = []
        for index, request in enumerate(requests):
            self.progress(phase, index, len(requests))
            found.append(answer(request, f"{name} at N={request.n}"))
        bits: set[str] = set()
        more: set[str] = set()
        for index in reversed(self._cheap(requests[: len(requests) - once])):
            first = found[index]
            if isinstance(first, MariError):
                continue
            again = answer(requests[index], name)
            if isinstance(again, MariError):
                found[index] = again
                continue
            for each, place in zip(outputs, values.places(outputs), strict=True):
                pairs = list(zip(first[place], again[place], strict=True))
                if not all(metrics.same_bits(a, b) for a, b in pairs):
                    bits.add(each.name)
                if not all(metrics.same_but_for_rounding(a, b, FLOOR_BLIND_ULPS) for a, b in pairs):
                    more.add(each.name)
        self.progress(phase, len(requests), len(requests))
        if bits - more:
            self.result.notes.append(
                f"{name} is not deterministic: two runs ({phase}) differ in the last bits of {', '.join(sorted(bits))}"
            )
        return Runs(found, [n for n in names if n in more])

    def _cheap(self, requests: Sequence[Request]) -> list[int]:
        """Places of requests that cost at most `_AGAIN` together, the cheapest first, and one at least."""
        prices = [self.price.of(request) for request in requests]
        budget, found = Budget(_AGAIN), list[int]()
        for place in sorted(range(len(requests)), key=prices.__getitem__):
            if not budget.spend(prices[place]) and found:
                break
            found.append(place)
        return sorted(found)

    def exact(self, requests: Sequence[Request]) -> list[list[np.ndarray] | None]:
        """The float64 outputs of the source; None where there are none."""
        found: list[list[np.ndarray] | None] = []
        outputs = self.signatures["source"].outputs
        try:
            with float64.float64(self.models["source"], threads=self.threads) as model:
                self.result.reference = model.text
                for index, request in enumerate(requests):
                    self.progress("source, float64", index, len(requests))
                    feed = request.feed(self.signatures["source"].inputs)
                    answer = model.run(feed)
                    found.append([_wide(a) for a in values.arrays(answer, outputs)])
        except Exception as error:
            if without_room(error):
                raise
            # No verdict hangs on it alone: the source's own answers are what is left
            # to compare with.
            self.result.reference = "none"
            self.result.notes.append(
                f"the source cannot be run in float64 ({first_line(error)}): compared with its "
                f"own answers, within {FLOOR_BLIND_ULPS:g} units in the last place of their scale"
            )
            found = [None] * len(requests)
        return found


def _wide(array: np.ndarray) -> np.ndarray:
    return metrics.wide(array) if array.dtype.kind == "f" else array
