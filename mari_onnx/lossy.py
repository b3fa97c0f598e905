"""`optimize --user-weights int8`: an output that is not equal to its source, judged by the order of candidates.

In: a finished output, staged, and recorded requests. Out: the same with 8-bit weights where they are faster, staged in
its place, with what it lost in its report and its metadata (`mari_onnx.parity.loss`).
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mari_onnx.errors import CannotCompare, MariError, OutputsDiffer, UsageError
from mari_onnx.model.provenance import set_metadata
from mari_onnx.parity.loss import LOSS_KEY, figures

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Rewrite
    from mari_onnx.model.load import Source
    from mari_onnx.model.save import Staged
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.report import Report
    from mari_onnx.sides.resolve import Sides

NOWHERE = "no product that is computed once per request is faster with 8-bit weights, so all weights stay as they are"


class Output(Protocol):
    """What `optimize` answers (`mari_onnx.api.Optimized`)."""

    model: onnx.ModelProto
    changed: bool
    report: Report
    source: Source
    rewrite: Rewrite

    def stage(self, path: Path) -> Staged:
        """Writes the model beside `path`."""


OutputT = TypeVar("OutputT", bound=Output)


def refuse(sides: Sides, target: str, check: bool, recorded: bool) -> None:
    """Raises `UsageError` where 8-bit weights are asked for with something that does not go with them."""
    if not recorded:
        raise UsageError(
            "8-bit weights (--user-weights int8) are not lossless, and only recorded requests tell what they cost",
            "give --data FILE, requests as they were served (docs/quantization.md)",
        )
    if not check:
        what = "--user-weights int8 needs the check: what is lost is measured by running both models"
        raise UsageError(what, "leave --no-check out")
    if sides.several:
        raise UsageError("--user-weights int8 is for one request per run", "leave --batched and --index out")
    if target != "cpu":
        raise UsageError(f"--user-weights int8 is for onnxruntime's CPU kernels, not for --target {target}")


def with_user_weights(
    done: OutputT, staged: list[Staged], path: Path, recorded: Sequence[Request], most: float, threads: int
) -> OutputT:
    """The output with 8-bit weights for the user's products, staged anew; as it is where that is faster nowhere.

    Raises:
        OutputsDiffer: the order of candidates changes by more than `most`.
        CannotCompare: no recorded request tells.
    """
    from mari_onnx.parity import Settings
    from mari_onnx.parity.check import check
    from mari_onnx.parity.result import CANNOT_COMPARE
    from mari_onnx.timing.user_weights import with_8_bits

    source, report = done.source, done.report
    shapes = done.rewrite.out_shapes if done.changed else {}
    model, products = with_8_bits(done.model, shapes, report.candidates, threads)
    if not products:
        report.notes.append(NOWHERE)
        return done
    contract: dict[str, Any] = {"weights": "int8", "max_tau_loss": most, "products": [p.to_dict() for p in products]}
    made = copy.copy(done)
    made.model = model

    def place() -> Path:
        set_metadata(model, {LOSS_KEY: json.dumps(contract)})
        while staged:
            staged.pop().discard()
        staged.append(made.stage(path))
        return staged[0].path

    origin = source.path if source.path.is_file() and not report.sides.shapes else source.model
    settings = Settings(max_tau_loss=most, providers=("cpu",))
    result = check(origin, place(), report.sides, requests=recorded, settings=settings)
    if not result.ok:
        kind = CannotCompare if result.verdict == CANNOT_COMPARE else OutputsDiffer
        raise kind(
            f"with 8-bit weights for the user ({len(products)} products) too much is lost: {result}",
            "nothing was written. Leave --user-weights out for an output that is equal to the source, or allow more "
            "with --max-tau-loss",
        )
    contract |= figures(result)
    report.user_weights = contract
    if report.speed is not None:
        from mari_onnx.timing.speed import Stopwatch

        counts = sorted(int(n) for n in report.speed["speedup"])
        contract["float_speedup"] = report.speed["speedup"]
        with contextlib.suppress(MariError):
            watch = Stopwatch(source.model, report.sides, origin, threads, report.candidates)
            report.speed = watch.speed(place(), counts, counts).to_dict()
    place()
    return made
