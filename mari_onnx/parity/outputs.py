"""Are the outputs of both models equal on one provider? One verdict for each output, over all requests."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mari_onnx.errors import MariError, WriteError, first_line
from mari_onnx.model.signature import Input
from mari_onnx.parity.judge import metrics, values
from mari_onnx.parity.judge.order import OrderVerdict
from mari_onnx.parity.judge.rounding import Rounding, rounding
from mari_onnx.parity.judge.verdict import Verdict
from mari_onnx.parity.phases import Phases, Runs
from mari_onnx.parity.requests import draw
from mari_onnx.parity.result import FURTHEST, CheckResult, Far
from mari_onnx.parity.settings import Settings

# Requests that only complete the coverage: so many of them are run in float64 too.
_SETTLED = 32


@dataclass
class Outputs:
    """Compares runs of both models.

    Attributes:
        outputs: of the source's signature.
        axis: the candidate axis.
        result: where verdicts, failures and notes go.
        refused: identities of requests that the source itself refuses, on which the optimized model may fail.
    """

    settings: Settings
    outputs: Sequence[Input]
    axis: int
    phases: Phases
    result: CheckResult
    refused: set[int]

    def compare(
        self,
        provider: str,
        requests: Sequence[draw.Request],
        drawn: int,
        exact: Sequence[list[np.ndarray] | None],
        sources: Sequence[Runs],
        optimized: dict[str, Runs],
    ) -> None:
        """Adds to the result a verdict for each output, and a failure for each N at which the optimized model fails.

        Args:
            drawn: how many of the requests are compared one by one; the others only reach something further.
            exact: outputs of the float64 run for each request, None where there is none.
            sources: runs of the source on the provider, with onnxruntime's optimizations off and on.
            optimized: runs of the optimized model, by "off" and "on".
        """
        failed = set()
        for mode, runs in optimized.items():
            for request, outputs in zip(requests, runs.outputs, strict=False):
                if isinstance(outputs, MariError) and request.n not in failed and id(request) not in self.refused:
                    failed.add(request.n)
                    self.result.failing.append(request)
                    self.result.failures.append(
                        f"the optimized model fails at N={request.n} (optimizations {mode}): "
                        f"{first_line(outputs)}"
                    )
        all_outputs = self.outputs
        for output, place in zip(all_outputs, values.places(all_outputs), strict=True):
            result = self._judged(output, place, provider, requests, drawn, exact, sources, optimized)
            answers = [o[place.start] for s in sources for o in s.outputs if isinstance(o, list)]
            if not self.result.providers and len(requests) > 1 and metrics.constant(answers):
                self.result.notes.append(
                    f"output {output.name} is the same for all candidates of all requests: nothing that is fed moves "
                    "it, so little of it is checked"
                )
            if not result.ok and result.worst is not None:
                worst = requests[result.worst.request]
                if all(worst is not each for each in self.result.failing):
                    self.result.failing.append(worst)
                if self.settings.dump is not None:
                    result.dumped = self._dump(worst, output.name)
            self.result.outputs.append(result)

    def _judged(
        self,
        output: Input,
        place: slice,
        provider: str,
        requests: Sequence[draw.Request],
        drawn: int,
        exact: Sequence[list[np.ndarray] | None],
        sources: Sequence[Runs],
        optimized: Mapping[str, Runs],
    ) -> metrics.OutputResult:
        """The verdict on one output, whose arrays are at `place`.

        One that is rounded is judged with its steps taken out: the source's own steps against float64 would excuse
        any of the optimized model's. One that may lose something is judged by the order of candidates alone.
        """
        if self.settings.max_tau_loss is not None:
            order = OrderVerdict(output.name, output.type, provider, self.settings, self.axis)
            for index in range(place.start, place.stop):
                order.judge(index, requests, [s.outputs for s in sources], [r.outputs for r in optimized.values()])
            return order.result

        def judged(rounded: Rounding | None) -> metrics.OutputResult:
            verdict = Verdict(output.name, output.type, provider, self.settings, self.axis, drawn, rounded)
            for index in range(place.start, place.stop):
                verdict.judge(
                    index,
                    requests,
                    exact,
                    [s.outputs for s in sources],
                    [r.outputs for r in optimized.values()],
                    index > place.start,
                )
            most = sorted(verdict.errors.items(), key=lambda each: -each[1])[:FURTHEST]
            far[:] = [Far(requests[at], output.name, provider, error) for at, error in most if error > 0]
            return verdict.result

        rounded, far = None, list[Far]()
        if place.stop - place.start == 1:
            rounded = rounding(self.phases.models["source"], output.name, output.dtype, self.axis)
        result = judged(rounded)
        self.result.furthest += far
        if rounded is not None and result.ok and result.stepped:
            self.result.notes.append(
                f"output {output.name} ({provider}): {result.stepped} of {rounded.rows} rows are one step of the "
                f"rounding away"
            )
        return result

    def settle(
        self,
        requests: Sequence[draw.Request],
        exact: list[list[np.ndarray] | None],
        source: Runs,
        optimized: Runs,
    ) -> None:
        """Runs those requests in float64 too that only complete the coverage of ids and are the
        furthest apart: where the source itself errs as much, nothing is wrong."""
        if all(e is None for e in exact):
            return
        apart = []
        for place, (mine, theirs) in enumerate(
            zip(source.outputs, optimized.outputs, strict=False)
        ):
            if requests[place].empty:  # onnxruntime may end the process; nothing of it was tried in float64
                continue
            if exact[place] is None and isinstance(mine, list) and isinstance(theirs, list):
                apart.append((metrics.furthest(mine, theirs), place))
        places = [place for far, place in sorted(apart, reverse=True)[:_SETTLED] if far > 0]
        if places:
            found = self.phases.exact([requests[place] for place in places])
            for place, outputs in zip(places, found, strict=True):
                exact[place] = outputs

    def _dump(self, request: draw.Request, output: str) -> str:
        folder = Path(os.fspath(self.settings.dump or "."))
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in output)
        path = folder / f"{safe}-N{request.n}.npz"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(path, **request.arrays())  # type: ignore[arg-type]
        except OSError as error:
            raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
        return str(path)
