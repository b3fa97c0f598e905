"""Nothing of the source is lost: what a rewritten model carries on, and what it must not change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from mari_onnx.model.signature import signature

if TYPE_CHECKING:
    import onnx

_MODEL_FIELDS = ("producer_name", "producer_version", "domain", "model_version", "doc_string")


def carry_over(source: onnx.ModelProto, output: onnx.ModelProto) -> None:
    """Adds to `output` what `source` says about itself and about tensors that both have."""
    for name in _MODEL_FIELDS:
        _fill(source, output, name)
    output.ir_version = max(source.ir_version, output.ir_version)
    _merge(source, output)
    graph, new = source.graph, output.graph
    for name in ("name", "doc_string"):
        _fill(graph, new, name)
    _merge(graph, new)
    for olds, news in ((graph.input, new.input), (graph.output, new.output)):
        before = {value.name: value for value in olds}
        for value in news:
            if (old := before.get(value.name)) is not None:
                _fill(old, value, "doc_string")
                _merge(old, value)
                _fill(old.type, value.type, "denotation")
    tensors = {name for node in new.node for name in (*node.input, *node.output)}
    noted = {note.tensor_name for note in new.quantization_annotation}
    for note in graph.quantization_annotation:
        if note.tensor_name in tensors and note.tensor_name not in noted:
            new.quantization_annotation.add().CopyFrom(note)


def _fill(source: Any, output: Any, name: str) -> None:
    if getattr(source, name) and not getattr(output, name):
        setattr(output, name, getattr(source, name))


def _merge(source: Any, output: Any) -> None:
    have = {entry.key for entry in output.metadata_props}
    for entry in source.metadata_props:
        if entry.key not in have:
            output.metadata_props.add(key=entry.key, value=entry.value)


def set_metadata(model: onnx.ModelProto, entries: Mapping[str, str]) -> None:
    """Sets properties of the model, in place where they are there already."""
    have = {entry.key: entry for entry in model.metadata_props}
    for key, value in entries.items():
        if key in have:
            have[key].value = value
        else:
            model.metadata_props.add(key=key, value=value)


def differences(source: onnx.ModelProto, output: onnx.ModelProto, added: Collection[str] = ()) -> list[str]:
    """What a caller would notice: names, order and types of inputs and outputs, operator sets.

    An empty list is the promise that `optimize` makes; anything else is a defect of the rewrite. added: inputs that the
    output alone has.
    """
    found = []
    before, after = signature(source), signature(output)
    for what, olds, news in (
        ("inputs", before.inputs, after.inputs),
        ("outputs", before.outputs, after.outputs),
    ):
        old, new = ([(e.name, e.dtype) for e in values if e.name not in added] for values in (olds, news))
        if old != new:
            found.append(f"{what} were {old}, are {new}")
    opsets = {entry.domain or "ai.onnx": entry.version for entry in output.opset_import}
    used = {node.domain or "ai.onnx" for node in output.graph.node}
    for entry in source.opset_import:
        domain = entry.domain or "ai.onnx"
        if domain in used and opsets.get(domain, 0) < entry.version:
            found.append(f"operator set {domain} was {entry.version}, is {opsets.get(domain)}")
    functions = {(f.domain, f.name, f.overload) for f in output.functions}
    called = {(n.domain, n.op_type, n.overload) for n in output.graph.node}
    for function in source.functions:
        key = (function.domain, function.name, function.overload)
        if key in called and key not in functions:
            found.append(f"function {'.'.join(key[:2])} is called and gone")
    return found
