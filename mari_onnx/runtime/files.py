"""A model as onnxruntime takes it, and several models that stand in for one."""

from __future__ import annotations

import abc
import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from mari_onnx.errors import ModelNotFound
from mari_onnx.model.tensors import byte_size, external_bytes, is_external, set_external, tensors

if TYPE_CHECKING:
    import onnx

ModelLike: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | Assembly"

# Above this a model is handed over as a file with external data: protobuf ends at 2 GiB, and a serialized copy
# beside the model and the session would be a third copy in memory.
STAGE_BYTES = 256 * 2**20
# Weights smaller than this stay inside the staged file.
_EXTERNAL_BYTES = 4096


class Assembly(abc.ABC):
    """Several models that together compute what one does, as a stand-in for that one.

    Attributes:
        model: one graph that computes the same, to be read.
    """

    model: onnx.ModelProto

    @abc.abstractmethod
    def open(self, provider: str, optimize: bool, threads: int) -> Any:
        """What `session` opens: it has `get_inputs` and `run`, as onnxruntime's sessions have.

        If the metadata of `model` say that it takes several requests, there is `run_several(names, feeds)`, too: feeds
        of single requests -> for each of them its outputs `names`, all by one run.
        """


@contextlib.contextmanager
def as_file(model: ModelLike) -> Iterator[str | bytes]:
    """What onnxruntime takes: a path as it is, a small model serialized, a large one as a temporary
    file."""
    if isinstance(model, Assembly):
        model = model.model
    if not is_proto(model):
        path = os.fspath(model)
        if not os.path.isfile(path):
            raise ModelNotFound(f"there is no model file {path}")
        yield path
    elif weight_bytes(model) < STAGE_BYTES and not any(map(is_external, tensors(model))):
        yield model.SerializeToString()
    else:
        with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
            yield str(write_external(model, Path(folder)))


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the initializers of the main graph, wherever they sit."""
    return sum(byte_size(t) or 0 for t in model.graph.initializer)


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the initializers of the main graph."""
    import onnx

    copy = onnx.ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    graph = model.graph
    copy.graph.name = graph.name or "graph"
    copy.graph.node.extend(graph.node)
    copy.graph.input.extend(graph.input)
    copy.graph.output.extend(graph.output)
    copy.graph.value_info.extend(graph.value_info)
    copy.graph.sparse_initializer.extend(graph.sparse_initializer)
    return copy


def write_external(model: onnx.ModelProto, folder: Path) -> Path:
    """Writes `model` with its weights beside it, one tensor at a time; answers the path of the
    model file."""
    light = skeleton(model)
    with ExternalWriter(folder / "weights.bin") as weights:
        for tensor in model.graph.initializer:
            light.graph.initializer.append(weights.add(tensor))
    path = folder / "model.onnx"
    path.write_bytes(light.SerializeToString())
    return path


class ExternalWriter:
    """Appends tensors to one external data file."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("wb")

    def __enter__(self) -> ExternalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """The tensor itself where it is small, else a reference to its data in the file."""
        from onnx import numpy_helper

        if is_external(tensor):
            data: Any = external_bytes(tensor)
        elif (byte_size(tensor) or 0) < _EXTERNAL_BYTES:
            return tensor
        else:
            data = tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
        return self.add_bytes(tensor.name, tensor.data_type, tensor.dims, [data])

    def add_bytes(
        self, name: str, data_type: int, dims: Sequence[int], data: Iterable[bytes | memoryview]
    ) -> onnx.TensorProto:
        """Writes little-endian data, piece after piece, and answers the tensor that refers to it."""
        import onnx

        self._file.write(b"\0" * (-self._file.tell() % 4096))  # aligned: onnxruntime can then map it
        offset = self._file.tell()
        for piece in data:
            self._file.write(piece)
        made = onnx.TensorProto(name=name, data_type=data_type, dims=dims)
        set_external(made, self.path.name, offset, self._file.tell() - offset)
        return made


def is_proto(model: object) -> TypeGuard[onnx.ModelProto]:
    """Whether it is a model as an object, not the path of one."""
    return hasattr(model, "SerializeToString")
