"""Old operator sets: converted by onnx's own converter to one that the engine has rules for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mari_onnx.model.functions import inlined
from mari_onnx.model.nodes import all_nodes
from mari_onnx.model.ops import Fact, having

if TYPE_CHECKING:
    import onnx

OLDEST = 11
"""The oldest operator set that the engine reads: before it, Slice and Pad had their positions as attributes."""
TARGET = 13


@dataclass(frozen=True)
class Upgraded:
    """A model of an operator set that the engine reads.

    Attributes:
        model: the converted model; the given one where nothing had to be done, or where the converter failed.
        note: what was done, in words; None where nothing was.
        failed: why the converter gave no model, None where it did.
    """

    model: onnx.ModelProto
    note: str | None = None
    failed: str | None = None


def upgraded(model: onnx.ModelProto) -> Upgraded:
    """The model at operator set 13, where its own is older than 11; the given model is only read.

    `onnx.version_converter` drops model-local functions without a word, so they are inlined first.
    """
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=OLDEST)
    if opset >= OLDEST:
        return Upgraded(model)
    cannot = f"onnx's converter cannot bring operator set {opset} to {TARGET}"
    wrong = having(Fact.MISCONVERTED)
    met = sorted({node.op_type for g in (model.graph, *model.functions) for node in all_nodes(g.node)} & wrong)
    if met:
        return Upgraded(model, failed=f"{cannot}: it would change what {met[0]} means")
    from onnx import version_converter

    try:
        converted = version_converter.convert_version(inlined(model), TARGET)
    except Exception as error:  # of the converter, many kinds
        text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        return Upgraded(model, failed=f"{cannot}: {text}")
    converted.metadata_props.extend(model.metadata_props)
    note = f"operator set {opset} was converted to {TARGET} by onnx's converter; the output needs {TARGET}"
    return Upgraded(converted, note=note)
