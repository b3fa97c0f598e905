"""A file for several requests (`--batched offsets`) as a model whose requests Triton's dynamic batcher puts together.

In: a file that takes the candidates of all requests behind each other, and offsets that say where each request begins.
Out: a `Served` folder with a graph that takes what Triton hands over, and computes the same.

Triton hands over inputs of different lengths ("ragged") as one vector, the elements of all requests behind each other,
and counts the elements of each request (`BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO`, int32 `[R + 1]`). So a Reshape is
put behind each such input, and the counts, divided by the elements of a candidate, are the offsets. Outputs with a row
per candidate go back to requests with the length of an input (`BATCH_SCATTER_WITH_INPUT_SHAPE`), others by the batch.

Triton does not compare the lengths of inputs: a request with 7 rows of one input and 5 of another, beside one with 5
and 7, would get scores of other candidates. So all inputs are counted, and where counts differ, or a request has
several users, the run fails: a Reshape gets the size -2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2 as triton

from mari_onnx import runtime
from mari_onnx.errors import CannotServe
from mari_onnx.model.nodes import all_names, captures, rename_captures
from mari_onnx.serving.triton.config import FREE, Port, Ports, declare, numpy_type

_OTHER = 4
"""A free dimension in a trial run."""


@dataclass(frozen=True)
class Form:
    """Which input is what. offsets: the input `[R + 1]`. Inputs that are not named have a row per request, axis 0.

    Attributes:
        ragged: inputs with a row per candidate, axis 0.
        counts: inputs whose value is the number of candidates; no node reads them.
    """

    ragged: tuple[str, ...]
    offsets: str
    counts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ragged:
    """counted: ragged input -> the input of the graph that has its counts."""

    model: onnx.ModelProto
    counted: dict[str, str]


def checked(found: Ports, form: Form) -> None:
    """Whether Triton can put requests together.

    Raises:
        CannotServe: with the input that stands in the way.
    """
    if not form.ragged:
        raise CannotServe(
            "no input has a row per candidate, so nothing tells how many candidates a request has",
            "name the item's inputs when the file is made: --item, --cross",
        )
    for port in found.inputs:
        if port.name == form.offsets:
            if port.type != "INT32":
                raise CannotServe(f"{port.name} is {port.type}, and Triton makes offsets of INT32")
        elif port.name in form.ragged:
            if not port.shape or port.shape[0] is not None or None in port.shape[1:]:
                raise CannotServe(
                    f"{port.name} has the shape {port.dims}: Triton hands it over as one vector, so all its dimensions "
                    "behind the candidates' have to be fixed",
                    "fix them in the source (--shape), or serve one request at a time",
                )
        elif port.name not in form.counts and (not port.shape or port.shape[0] is not None):
            raise CannotServe(f"{port.name} has no dimension of requests in front: {port.dims}")


def reshaped(model: onnx.ModelProto, found: Ports, form: Form) -> Ragged:
    """The model for what Triton hands over: ragged inputs of shape `[-1]`, and their counts instead of offsets.

    Raises:
        CannotServe: a node reads the number of candidates as an input.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, taken = copy.graph, all_names(model.graph)

    def free(base: str) -> str:
        while base in taken:
            base += "_"
        taken.add(base)
        return base

    read = {name for node in graph.node for name in (*node.input, *captures(node))}
    if counts := [name for name in form.counts if name in read]:
        raise CannotServe(f"a node reads {counts[0]}, the number of candidates, which Triton does not make")
    ports = {port.name: port for port in found.inputs}
    ragged = [ports[name] for name in form.ragged]
    counted = {port.name: free(f"{port.name}.counts") for port in ragged}
    head = _Head(free)
    valid = head.offsets(ragged, counted, form.offsets, _per_request(found, form))
    renamed = {}
    for i, port in enumerate(ragged):
        if i == 0 or len(port.shape) > 1:
            renamed[port.name] = head.rows(port, valid if i == 0 else None)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        rename_captures(node, renamed)
    nodes = [*head.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(head.weights)
    _declare_inputs(graph, ragged, counted, form)
    return Ragged(copy, counted)


def _per_request(found: Ports, form: Form) -> str | None:
    """An input with a row per request."""
    others = {*form.ragged, *form.counts, form.offsets}
    return next((port.name for port in found.inputs if port.name not in others), None)


def _declare_inputs(graph: onnx.GraphProto, ragged: Sequence[Port], counted: dict[str, str], form: Form) -> None:
    kept = [info for info in graph.input if info.name not in {form.offsets, *form.counts}]
    for info in kept:
        if info.name in counted:
            del info.type.tensor_type.shape.dim[:]
            info.type.tensor_type.shape.dim.add().dim_param = f"elements of {info.name}"
    made = [helper.make_tensor_value_info(name, TensorProto.INT32, ["R + 1"]) for name in counted.values()]
    del graph.input[:]
    graph.input.extend([*kept, *made])
    del graph.value_info[:]


class _Head:
    """Nodes in front of the graph."""

    def __init__(self, free: Callable[[str], str]):
        self._free = free
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    def _const(self, values: Sequence[int], dtype: type = np.int64) -> str:
        name = self._free("triton.constant")
        self.weights.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def _emit(self, op: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        name = output or self._free(f"triton.{op}")
        node = helper.make_node(op, list(inputs), [name], self._free(f"triton/{op}"), **attributes)
        self.nodes.append(node)
        return name

    def offsets(self, ragged: Sequence[Port], counted: dict[str, str], output: str, user: str | None) -> str:
        """Makes the offsets; answers whether all inputs have the same, and the user's rows are as many as requests."""
        joined = self._emit("Concat", [counted[port.name] for port in ragged], axis=0)
        table = self._emit("Reshape", [joined, self._const([len(ragged), -1])])
        widths = [[prod(size for size in port.shape[1:] if size)] for port in ragged]
        if any(width != [1] for width in widths):
            table = self._emit("Div", [table, self._const(widths, np.int32)])  # type: ignore[arg-type]
        first = self._emit("Slice", [table, self._const([0]), self._const([1]), self._const([0])])
        made = self._emit("Reshape", [first, self._const([-1])], output)
        equal = self._emit("Cast", [self._emit("Equal", [table, first])], to=TensorProto.INT32)
        flags = self._emit("Reshape", [equal, self._const([-1])])
        if user is not None:
            rows = self._emit("Slice", [self._emit("Shape", [user]), self._const([0]), self._const([1])])
            requests = self._emit("Sub", [self._emit("Shape", [made]), self._const([1])])
            as_many = self._emit("Cast", [self._emit("Equal", [rows, requests])], to=TensorProto.INT32)
            flags = self._emit("Concat", [flags, as_many], axis=0)
        return self._emit("Cast", [self._emit("ReduceMin", [flags], keepdims=0)], to=TensorProto.BOOL)

    def rows(self, port: Port, valid: str | None) -> str:
        """An input `[P, ..]` of its vector. valid: where it is false, the run fails."""
        shape = self._const(port.dims)
        if valid is not None:
            shape = self._emit("Where", [valid, shape, self._const([-2] * len(port.dims))])
        return self._emit("Reshape", [port.name, shape], self._free(f"{port.name}.rows"))


def configured(
    name: str, file: str, found: Ports, form: Form, per_candidate: set[str], made: Ragged
) -> triton.ModelConfig:
    """The configuration, without how requests are collected. per_candidate: of `rows_of_outputs`.

    Raises:
        CannotServe: an output cannot be given back to requests.
    """
    config = triton.ModelConfig(name=name, backend="onnxruntime", default_model_filename=file)
    for port in found.inputs:
        if port.name == form.offsets or port.name in form.counts:
            continue
        io = config.input.add()
        if port.name in form.ragged:
            declare(io, port, port.dims)
            io.allow_ragged_batch = True
        else:
            _with_batch(io, port)
    for source, target in made.counted.items():
        config.batch_input.add(
            kind=triton.BatchInput.BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO,
            target_name=[target],
            data_type=triton.TYPE_INT32,
            source_input=[source],
        )
    for port in found.outputs:
        io = config.output.add()
        if port.name not in per_candidate:
            _with_batch(io, port)
            continue
        if None in port.shape[1:] or port.type == "STRING":
            raise CannotServe(
                f"the output {port.name} ({port.wire} {port.dims}) cannot be given back to requests: Triton takes free "
                "dimensions from an input, and cuts no texts",
                "serve one request at a time",
            )
        declare(io, port, [FREE, *port.dims[1:]])
        config.batch_output.add(
            target_name=[port.name],
            kind=triton.BatchOutput.BATCH_SCATTER_WITH_INPUT_SHAPE,
            source_input=[form.ragged[0]],
        )
    return config


def _with_batch(io: triton.ModelInput | triton.ModelOutput, port: Port) -> None:
    declare(io, port, port.dims[1:])
    if len(port.dims) == 1:
        io.reshape.SetInParent()  # of the model's view, without the dimension of 1


def rows_of_outputs(path: Path, found: Ports, form: Form) -> set[str]:
    """Outputs with a row per candidate, axis 0; others have a row per request. Found by two runs on zeros.

    Raises:
        CannotServe: an output has neither. ModelError: the model fails.
    """
    session = runtime.session(path)
    shapes = []
    for counts in ((2, 3), (1, 2, 4)):
        offsets = np.cumsum([0, *counts]).astype(np.int32)
        feed = {}
        for port in found.inputs:
            rows = sum(counts) if port.name in form.ragged else len(counts)
            shape = [_OTHER if size is None else size for size in port.shape]
            if port.name in form.counts:
                feed[port.name] = np.full(shape, sum(counts), numpy_type(port.type))
            elif port.name == form.offsets:
                feed[port.name] = offsets
            else:
                kind = numpy_type(port.type)
                feed[port.name] = np.full([rows, *shape[1:]], "" if kind.kind == "O" else 0, kind)
        answers = runtime.run(session, feed, str(path))
        shapes.append([np.shape(array)[:1] for array in answers])
    found_rows = {}
    for port, one, other in zip(found.outputs, *shapes, strict=True):
        found_rows[port.name] = {((5,), (7,)): True, ((2,), (3,)): False}.get((one, other))
        if found_rows[port.name] is None:
            raise CannotServe(f"the output {port.name} has no row per candidate and none per request")
    return {name for name, per_candidate in found_rows.items() if per_candidate}
