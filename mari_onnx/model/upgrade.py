"""Old files: weights that are inputs become plain weights, and old operator sets are converted by onnx's own converter
to one that the engine has rules for."""

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
PLAIN_WEIGHTS = 4
"""The first version of the format in which a weight does not have to be an input."""


@dataclass(frozen=True)
class Upgraded:
    """A model of an operator set that the engine reads, whose weights are no inputs.

    Attributes:
        model: the converted model; the given one where nothing had to be done, or where the converter failed.
        notes: what was done, in words.
        failed: why the converter gave no model, None where it did.
    """

    model: onnx.ModelProto
    notes: tuple[str, ...] = ()
    failed: str | None = None


def upgraded(model: onnx.ModelProto) -> Upgraded:
    """The model at operator set 13, where its own is older than 11, with plain weights; the given model is only read.

    `onnx.version_converter` drops model-local functions without a word, so they are inlined first.
    """
    plain = with_plain_weights(model)
    notes: tuple[str, ...] = ()
    if plain is not model:
        many = len(model.graph.input) - len(plain.graph.input)
        notes = (f"{many} weights that are inputs of the file are no inputs of the output, so they cannot be fed",)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=OLDEST)
    if opset >= OLDEST:
        return Upgraded(plain, notes)
    cannot = f"onnx's converter cannot bring operator set {opset} to {TARGET}"
    wrong = having(Fact.MISCONVERTED)
    met = sorted({node.op_type for g in (model.graph, *model.functions) for node in all_nodes(g.node)} & wrong)
    if met:
        return Upgraded(model, failed=f"{cannot}: it would change what {met[0]} means")
    from onnx import version_converter

    try:
        converted = version_converter.convert_version(inlined(plain), TARGET)
    except Exception as error:  # of the converter, many kinds
        text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        return Upgraded(model, failed=f"{cannot}: {text}")
    converted.metadata_props.extend(model.metadata_props)
    note = f"operator set {opset} was converted to {TARGET} by onnx's converter; the output needs {TARGET}"
    return Upgraded(converted, (*notes, note))


def with_plain_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without inputs that are weights; the given one, which is only read, where there is nothing to do.

    Before version 4 of the format every weight had to be an input, and some exporters still write them so. In later
    files where only some weights are inputs these are meant to be fed now and then, and are kept.
    """
    import onnx

    weights = {t.name for t in model.graph.initializer} | {s.values.name for s in model.graph.sparse_initializer}
    inputs = {i.name for i in model.graph.input}
    if not weights & inputs or (model.ir_version >= PLAIN_WEIGHTS and not weights <= inputs):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.ir_version = max(model.ir_version, PLAIN_WEIGHTS)
    kept = [i for i in model.graph.input if i.name not in weights]
    del made.graph.input[:]
    made.graph.input.extend(kept)
    return made
