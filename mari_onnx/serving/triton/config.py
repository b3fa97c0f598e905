"""`config.pbtxt` of a model: its tensors as Triton wants them declared.

In: inputs and outputs as onnxruntime sees them, since Triton's backend compares the configuration with these. Out: a
`ModelConfig` of Triton's own protocol buffers, and its text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from mari_onnx import runtime
from mari_onnx.errors import CannotServe
from mari_onnx.model.load import load
from mari_onnx.model.signature import signature

TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "STRING",
}
"""onnxruntime's element types -> those that Triton's onnxruntime backend takes."""
FREE = -1
"""A dimension that differs between requests."""


@dataclass(frozen=True)
class Port:
    """An input or output of a model. type: Triton's, such as "FP32". shape: None where a dimension is free."""

    name: str
    type: str
    shape: tuple[int | None, ...]

    @property
    def dims(self) -> list[int]:
        """The shape as Triton writes it."""
        return [FREE if size is None else size for size in self.shape]

    @property
    def wire(self) -> str:
        """The type as clients call it."""
        return "BYTES" if self.type == "STRING" else self.type


@dataclass(frozen=True)
class Ports:
    """What a model takes and gives, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def ports(path: Path) -> Ports:
    """Inputs and outputs of a model file, as onnxruntime and thus Triton sees them.

    Raises:
        CannotServe: one is no tensor, has an element type that Triton lacks, no known rank, or a dimension of 0.
    """
    session = runtime.session(path)
    known = signature(load(path))
    ranked = {each.name for each in (*known.inputs, *known.outputs) if each.rank_known}

    def port(each: Any) -> Port:
        if each.type not in TYPES:
            raise CannotServe(
                f"{path}: {each.name} is {each.type}, which Triton's onnxruntime backend does not take",
                "convert it by an operator in the model (Cast, SequenceAt), or serve the model from Python",
            )
        if not each.shape and each.name not in ranked:
            raise CannotServe(
                f"{path}: nothing says how many dimensions {each.name} has, so Triton would take it for one number",
                "declare its shape in the file; onnx.shape_inference.infer_shapes may know it",
            )
        shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in each.shape)
        if 0 in shape:
            raise CannotServe(f"{path}: {each.name} has a dimension of 0, which Triton refuses")
        return Port(each.name, TYPES[each.type], shape)

    return Ports(tuple(map(port, session.get_inputs())), tuple(map(port, session.get_outputs())))


def numpy_type(kind: str) -> np.dtype:
    """What arrays hold for a type of Triton, such as "FP32"."""
    found = {"FP16": "float16", "FP32": "float32", "FP64": "float64", "STRING": "object"}.get(kind, kind.lower())
    return np.dtype(found)


def declare(io: Any, port: Port, dims: Iterable[int]) -> None:
    """Fills a ModelInput or ModelOutput. Where the model has no dimension beside that of the batch, requests have one
    of 1, since Triton knows no tensor without dimensions.
    """
    io.name, io.data_type = port.name, triton.DataType.Value(f"TYPE_{port.type}")
    sizes = list(dims)
    io.dims.extend(sizes or [1])


def unbatched(name: str, found: Ports, file: str) -> triton.ModelConfig:
    """A model of Triton's onnxruntime backend that runs one request at a time.

    Args:
        file: the model's name in the folder of the version.

    Raises:
        CannotServe: an input is one text, which that backend cannot hand over.
    """
    config = triton.ModelConfig(name=name, backend="onnxruntime", max_batch_size=0, default_model_filename=file)
    for port in found.inputs:
        if port.type == "STRING" and not port.shape:
            raise CannotServe(
                f"the input {port.name} is one text, without a dimension, and Triton's onnxruntime backend cannot "
                "hand it over",
                "give it the shape [1] in the model, and a Squeeze behind it",
            )
        declare(config.input.add(), port, port.dims)
    for port in found.outputs:
        declare(config.output.add(), port, port.dims)
    return config


def text(config: triton.ModelConfig) -> str:
    """The text of config.pbtxt."""
    return str(text_format.MessageToString(config))


def parse(said: str) -> triton.ModelConfig:
    """The configuration that a config.pbtxt says."""
    return text_format.Parse(said, triton.ModelConfig())
