"""What is refused of a model that shall take several requests in one run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mari_onnx.errors import CannotBatch, UsageError
from mari_onnx.model.signature import signature

if TYPE_CHECKING:
    import onnx

    from mari_onnx.sides.resolve import Sides


def refuse_mixing(model: onnx.ModelProto, sides: Sides) -> None:
    """Raises `CannotBatch` where a candidate's outputs depend on other candidates of the run."""
    if (why := mixing(model, sides)) is not None:
        raise not_batched(sides, why)


def mixing(model: onnx.ModelProto, sides: Sides) -> str | None:
    """Where a candidate's outputs depend on other candidates of the run; also that nothing is tagged."""
    from mari_onnx.parity.domains.domains import domains
    from mari_onnx.parity.layout import Layout
    from mari_onnx.parity.several.mixing import mixes

    if not sides:
        return "no input is tagged, so nothing says which inputs have a row for each request"
    layout = Layout(signature(model), sides)
    return mixes(model, layout, domains(model, layout)[0])


def refuse_taken(model: onnx.ModelProto, sides: Sides) -> None:
    """Raises `UsageError` where the input that the output has and the source has not has a name of the source."""
    from mari_onnx.model.nodes import all_names

    if sides.added is not None and sides.added in all_names(model.graph):
        raise UsageError(
            f"the model has a tensor {sides.added!r} already, and --batched {sides.batched} adds an input of that name",
            "give the new input another name: --index-name NAME",
        )


def not_batched(sides: Sides, reason: str | None) -> CannotBatch:
    return CannotBatch(
        f"no output for several requests (--batched {sides.batched}) can be made: {reason}",
        "leave --batched out and run one request at a time; docs/batching.md says what can be batched",
    )
