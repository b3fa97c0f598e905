"""Tensors of a model wherever they sit, and their numbers, also where those are still on disk.

Large weights stay on disk until somebody reads them: such a tensor is `EXTERNAL`, and its location
is an absolute path to the file that holds its bytes (a data file, or the `.onnx` file itself).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import ExternalDataError, InvalidModel

if TYPE_CHECKING:
    import onnx

# Element types (`TensorProto.DataType`) by what may be done with them.
_FLOAT, _INT32, _INT64, _BOOL, _FLOAT16, _DOUBLE, _BFLOAT16 = 1, 6, 7, 9, 10, 11, 16
FLOATS = frozenset({_FLOAT, _FLOAT16, _DOUBLE, _BFLOAT16})
"""What models compute in; the eight-bit floats and smaller ones only store."""
WITHOUT_BFLOAT16 = FLOATS - {_BFLOAT16}
"""Floats that numpy and onnxruntime's CPU kernels know."""
FROM_32_BITS = frozenset({_FLOAT, _DOUBLE})
"""Floats that onnxruntime's CPU kernels compute in themselves."""
BELOW_DOUBLE = FLOATS - {_DOUBLE}
WIDE_RANGE = FLOATS - {_FLOAT16}
"""Floats that hold the reciprocal of 1e-6."""
INDICES = frozenset({_INT32, _INT64})
"""What indices, ids and sizes are of."""
EXACT = INDICES | {_BOOL}
"""What the engine follows as exact numbers."""


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor, of subgraphs and functions too; a sparse one as its values and indices."""
    from mari_onnx.model.nodes import all_graphs, all_nodes, graphs, held

    inner = [node for function in model.functions for node in function.node]
    yield from held(inner)
    bodies = [graph for node in all_nodes(inner) for graph in graphs(node)]
    for graph in [*all_graphs(model.graph), *bodies]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        yield from held(graph.node)


def is_external(tensor: onnx.TensorProto) -> bool:
    """True where the tensor's bytes are in a file."""
    return tensor.data_location == 1  # TensorProto.EXTERNAL


def external_entries(tensor: onnx.TensorProto) -> dict[str, str]:
    """The tensor's `external_data` as a dictionary: location, offset, length, checksum."""
    return {entry.key: entry.value for entry in tensor.external_data}


def external_range(tensor: onnx.TensorProto, size: int) -> tuple[int, int]:
    """Offset and length in bytes within a file of `size` bytes; ExternalDataError where outside."""
    entries = external_entries(tensor)
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", size - offset))
    except ValueError as error:
        raise ExternalDataError(f"tensor {tensor.name!r}: bad external data: {error}") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise ExternalDataError(
            f"tensor {tensor.name!r} wants bytes {offset} to {offset + length} of "
            f"{entries.get('location', '')!r}, which has {size}",
            "the data file is cut off, or belongs to another model; copy it anew",
        )
    return offset, length


def byte_size(tensor: onnx.TensorProto) -> int | None:
    """Bytes that dims and type ask for; None for strings and unknown types."""
    from onnx.helper import tensor_dtype_to_np_dtype

    name = _TYPE_BITS.get(tensor.data_type)
    count: int = math.prod(tensor.dims)
    if name is not None:
        return (count * name + 7) // 8
    try:
        dtype = tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, TypeError, ValueError):
        return None
    return None if dtype == np.dtype(object) else count * np.dtype(dtype).itemsize


# Types packed below a byte an element: UINT4, INT4, FLOAT4E2M1, UINT2, INT2.
_TYPE_BITS = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}


def external_bytes(tensor: onnx.TensorProto) -> memoryview:
    """The bytes of an EXTERNAL tensor with an absolute location, mapped, not copied."""
    location = external_entries(tensor).get("location", "")
    try:
        with open(location, "rb") as file:
            file.seek(0, 2)
            offset, length = external_range(tensor, file.tell())
            if length == 0:
                return memoryview(b"")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ExternalDataError(
            f"tensor {tensor.name!r}: cannot read {location}: {error.strerror}"
        ) from error
    return memoryview(mapped)[offset : offset + length]


def external_chunks(tensor: onnx.TensorProto, size: int = 1 << 24) -> Iterator[bytes]:
    """The same in pieces of `size` bytes, for copying: mapped pages would count as memory."""
    location = external_entries(tensor).get("location", "")
    with open(location, "rb") as file:
        offset, left = external_range(tensor, file.seek(0, 2))
        file.seek(offset)
        while left > 0:
            chunk = file.read(min(size, left))
            if not chunk:
                raise ExternalDataError(f"tensor {tensor.name!r}: {location} became shorter while it was read")
            left -= len(chunk)
            yield chunk


def array(tensor: onnx.TensorProto) -> np.ndarray:
    """The tensor's numbers, read-only where they are mapped from disk.

    Raises:
        ExternalDataError: the file is gone or too short.
        InvalidModel: bytes and dims do not fit.
    """
    import onnx
    from onnx import numpy_helper
    from onnx.helper import tensor_dtype_to_np_dtype

    try:
        if not is_external(tensor):
            return numpy_helper.to_array(tensor)
        data = external_bytes(tensor)
        if tensor.data_type in _TYPE_BITS:
            inline = onnx.TensorProto(
                data_type=tensor.data_type, dims=tensor.dims, raw_data=bytes(data)
            )
            return numpy_helper.to_array(inline)
        dtype = tensor_dtype_to_np_dtype(tensor.data_type)
        return np.frombuffer(data, dtype=dtype).reshape(tuple(tensor.dims))
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidModel(
            f"tensor {tensor.name!r} {list(tensor.dims)} cannot be read: {error}",
            "its bytes do not fit its type and dimensions; export the model anew",
        ) from error


def inline(tensor: onnx.TensorProto) -> None:
    """Reads an EXTERNAL tensor's bytes into the tensor itself."""
    if is_external(tensor):
        tensor.raw_data = bytes(external_bytes(tensor))
        tensor.ClearField("data_location")
        del tensor.external_data[:]


def set_external(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Makes `tensor` EXTERNAL; whatever data it held is dropped."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = type(tensor).EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
