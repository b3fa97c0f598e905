"""Runs of one check: a model, a provider, and all requests through one session that is then let go.

So a large model is never in memory more than once (in float64: twice).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx import runtime
from mari_onnx.errors import MariError, ModelError, first_line, without_room
from mari_onnx.parity import float64
from mari_onnx.parity.judge import metrics, values
from mari_onnx.parity.judge.verdict import FLOOR_BLIND_ULPS

if TYPE_CHECKING:
    from mari_onnx.model.signature import Signature
    from mari_onnx.parity.requests.draw import Request
    from mari_onnx.parity.result import CheckResult
    from mari_onnx.runtime import ModelLike

    Progress = Callable[[str, int, int], None]


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
        names: Mapping[str, str],
        signatures: Mapping[str, Signature],
        result: CheckResult,
        progress: Progress | None,
    ):
        self.models, self.names, self.signatures, self.result = models, names, signatures, result
        self.progress: Progress = progress or (lambda *_: None)

    def run(
        self, which: str, provider: str, optimize: bool, requests: Sequence[Request], once: int = 0
    ) -> Runs:
        """All requests through one session, and all but the last `once` again in the opposite order.

        What an operator left unwritten shows the second time, as the memory then holds another request's numbers.
        """
        model, name = self.models[which], self.names[which]
        large = _size(model) > runtime.STAGE_BYTES
        try:
            made = runtime.session(model, provider, optimize, self.result.settings.threads, lean=large, what=name)
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
        for index in reversed(range(len(requests) - once)):
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

    def exact(self, requests: Sequence[Request]) -> list[list[np.ndarray] | None]:
        """The float64 outputs of the source; None where there are none."""
        found: list[list[np.ndarray] | None] = []
        outputs = self.signatures["source"].outputs
        try:
            with float64.float64(self.models["source"], threads=self.result.settings.threads) as model:
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


def _size(model: Any) -> int:
    if not isinstance(model, str | os.PathLike):
        return runtime.weight_bytes(model)
    path = Path(os.fspath(model))
    beside = (
        [p.stat().st_size for p in path.parent.glob(path.name + ".data")] if path.exists() else []
    )
    return (path.stat().st_size if path.exists() else 0) + sum(beside)
