"""The source model in float64: the truth that errors are measured against.

All floating-point types become float64: weights, constants, casts, declared types, in bodies and
functions too. Operators without a float64 kernel run in float32 between two casts, and are named.
Tables that only Gather reads stay as they are, with a cast behind the lookup: the same values without a copy.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.model.ops import Fact, row
from mari_onnx.model.tensors import BELOW_DOUBLE, FLOATS
from mari_onnx.parity.float64_weights import Weights, convert

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from mari_onnx.runtime import ModelLike

_FLOAT, _DOUBLE = 1, 11


@dataclass
class Precise:
    """A float64 model that runs.

    Attributes:
        in_float32: types of the operators that have no float64 kernel.
        by_reference: run by onnx's reference implementation instead of onnxruntime.
    """

    runner: Any
    names: list[str]
    in_float32: list[str] = field(default_factory=list)
    by_reference: bool = False

    def run(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs in float64; floats in `feed` are converted. Raises whatever the runner raises."""
        wide = {k: v.astype(np.float64) if _is_float(v.dtype) else v for k, v in feed.items()}
        outputs: list[np.ndarray] = self.runner.run(self.names, wide)
        return outputs

    @property
    def text(self) -> str:
        """How precise it is, for the report."""
        where = "float64 by onnx's reference implementation" if self.by_reference else "float64"
        return where + (f", float32 for {', '.join(self.in_float32)}" if self.in_float32 else "")


@contextmanager
def float64(
    source: ModelLike, *, threads: int = 1, outputs: list[str] | None = None
) -> Iterator[Precise]:
    """The source in float64, as long as the context lasts.

    Args:
        source: path or ModelProto.
        outputs: tensors to answer instead of the graph's outputs.

    Raises:
        MariError: the model cannot be run in float64.
    """
    from mari_onnx import runtime

    loaded = light(source)
    model = runtime.skeleton(loaded)
    if outputs is not None:
        expose(model, outputs)
    names = [o.name for o in model.graph.output]
    # These have float64 kernels that fail when they run.
    narrow = {n.op_type for n in model.graph.node if row(n.op_type).gates}
    types = _element_types(loaded)
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        weights = convert(loaded.graph.initializer, model, Path(folder))
        del loaded  # a model read from one file is not kept beside its float64 form
        _convert_graph(model.graph, model, weights)
        for function in model.functions:
            _convert_nodes(function.node, function)
        made: onnxruntime.InferenceSession | None = None
        last: MariError | None = None
        for _ in range(40):
            path = _write(model, Path(folder), narrow, types)
            try:
                made = runtime.session(
                    str(path), optimize=False, threads=threads, lean=weights.external, shared=weights.shared
                )
                break
            except MariError as error:
                last = error
                operator = _without_kernel(str(error), model, narrow)
                if operator is None:
                    break
                narrow.add(operator)
        if made is not None:
            yield Precise(made, names, sorted(narrow))
            return
        if weights.external:
            raise last or MariError("the model cannot be run in float64")
        yield _by_reference(_write(model, Path(folder), set(), types), names, last)


def light(source: ModelLike) -> onnx.ModelProto:
    """The model, only to be read; large weights of a file stay on disk (`model.tensors`)."""
    import onnx

    from mari_onnx import runtime
    from mari_onnx.model.load import load

    if isinstance(source, runtime.Assembly):
        return source.model
    return source if isinstance(source, onnx.ModelProto) else load(Path(os.fspath(source)))


def expose(model: onnx.ModelProto, tensors: list[str]) -> None:
    """Makes `tensors` the graph's outputs; types are left to the runtime."""
    import onnx

    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=t) for t in tensors)


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _convert_graph(
    graph: onnx.GraphProto, model: onnx.ModelProto, weights: Weights | None = None
) -> None:
    for value in [*graph.input, *graph.output]:
        _widen_type(value.type)
    del graph.value_info[:]  # inferred anew
    if weights is None:  # a body; the main graph's weights are converted one by one
        for tensor in graph.initializer:
            _widen(tensor)
    for sparse in graph.sparse_initializer:
        _widen(sparse.values)
    _convert_nodes(graph.node, model)
    if weights is not None and weights.tables:
        _cast_behind(graph, weights.tables)


def _convert_nodes(nodes: Any, model: Any) -> None:
    from onnx import helper

    for node in nodes:
        for attribute in list(node.attribute):
            if attribute.HasField("t"):
                _widen(attribute.t)
            elif attribute.HasField("g"):
                _convert_graph(attribute.g, model)
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                one = attribute.name == "value_float"
                values = [attribute.f] if one else list(attribute.floats)
                tensor = helper.make_tensor("", _DOUBLE, [] if one else [len(values)], values)
                del node.attribute[:]
                node.attribute.append(helper.make_attribute("value", tensor))
            elif attribute.name == row(node.op_type).type_attribute and attribute.i in BELOW_DOUBLE:
                attribute.i = _DOUBLE
        if row(node.op_type).float_unless_said and not any(a.name == "dtype" for a in node.attribute):
            node.attribute.append(helper.make_attribute("dtype", _DOUBLE))
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(
                helper.make_attribute("value", helper.make_tensor("", _DOUBLE, [1], [0.0]))
            )


def _widen_type(kind: onnx.TypeProto) -> None:
    """In tensors, sequences and optionals."""
    which = kind.WhichOneof("value")
    if which == "tensor_type" and kind.tensor_type.elem_type in BELOW_DOUBLE:
        kind.tensor_type.elem_type = _DOUBLE
    elif which in ("sequence_type", "optional_type"):
        _widen_type(getattr(kind, which).elem_type)


def _widen(tensor: onnx.TensorProto) -> None:
    from onnx import numpy_helper

    if tensor.data_type in BELOW_DOUBLE:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
        )


def _cast_behind(graph: onnx.GraphProto, tables: set[str]) -> None:
    from onnx import helper

    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Gather" and node.input[0] in tables:
            name = node.output[0]
            node.output[0] = name + "/narrow"
            nodes.append(helper.make_node("Cast", [node.output[0]], [name], to=_DOUBLE))
    copied = [type(n).FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copied)


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of the tensors of the main graph, before conversion."""
    import onnx

    from mari_onnx import runtime

    small = runtime.skeleton(model)
    fed = {i.name for i in small.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in fed:
            small.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    # Where it fails, a tensor of unknown type is not cast, and the session says so.
    with suppress(Exception):
        small = onnx.shape_inference.infer_shapes(small)
    values = [*small.graph.value_info, *small.graph.input, *small.graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in values}


def _write(
    model: onnx.ModelProto, folder: Path, narrow: set[str], types: Mapping[str, int]
) -> Path:
    """Writes the converted model, operators in `narrow` between casts to float32 and back."""
    path = folder / "wide.onnx"
    if not narrow:
        path.write_bytes(model.SerializeToString())
        return path
    from onnx import helper

    nodes = list(model.graph.node)
    written = []
    for index, node in enumerate(nodes):
        if node.op_type not in narrow:
            written.append(node)
            continue
        inner = type(node).FromString(node.SerializeToString())
        for attribute in inner.attribute:
            if attribute.HasField("t") and attribute.t.data_type == _DOUBLE:
                from onnx import numpy_helper

                values = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
        for place, name in enumerate(node.input):
            if name and types.get(name, 0) in FLOATS:
                inner.input[place] = f"{name}/f32_{index}_{place}"
                written.append(helper.make_node("Cast", [name], [inner.input[place]], to=_FLOAT))
        after = []
        for place, name in enumerate(node.output):
            if name and types.get(name, 0) in FLOATS:
                inner.output[place] = f"{name}/f32"
                after.append(helper.make_node("Cast", [inner.output[place]], [name], to=_DOUBLE))
        written.extend([inner, *after])
    copy = type(model)(ir_version=model.ir_version)
    copy.CopyFrom(model)
    del copy.graph.node[:]
    copy.graph.node.extend(written)
    path.write_bytes(copy.SerializeToString())
    return path


def _without_kernel(error: str, model: onnx.ModelProto, narrow: set[str]) -> str | None:
    """The operator type that an error of onnxruntime is about, None where it is about something
    else."""
    types = {n.op_type for n in model.graph.node} - narrow
    match = re.search(r"implementation for (\w+)\(\d+\)", error) or re.search(
        r"operator \((\w+)\)", error
    )
    match = match or re.search(r"Op(?:type)? ?\(?(\w+)\)?", error)
    if match is None:
        return None
    if match[1] in types:
        return match[1]
    import onnx

    # The kernel may be missing inside an operator that onnxruntime takes apart (Gelu into Erf).
    for each in sorted(types):
        try:
            schema = onnx.defs.get_schema(each)
        except onnx.defs.SchemaError:
            continue
        if Fact.TAKEN_APART in row(each).facts or match[1] in {
            n.op_type for n in schema.function_body.node
        }:
            return str(each)
    return None


def _by_reference(path: Path, names: list[str], last: MariError | None) -> Precise:
    from onnx.reference import ReferenceEvaluator

    try:
        return Precise(ReferenceEvaluator(str(path)), names, by_reference=True)
    except Exception as error:
        raise last or MariError("the model cannot be run in float64") from error
