"""The few parts of protobuf's wire format that are needed to leave large weights out of memory.

Parsing or writing a model whole holds every weight twice, as message and as bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from mari_onnx.model import tensors as tensors_

if TYPE_CHECKING:
    import onnx

Buffer: TypeAlias = "bytes | mmap.mmap"

# Field numbers of the ONNX messages, and the wire types of protobuf.
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def fields(data: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of one protobuf message: number, start of the field, start of its content, end."""
    while position < end:
        start = position
        key, position = _varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            body = position
            _, position = _varint(data, position)
        elif kind == _BYTES:
            length, body = _varint(data, position)
            position = body + length
        elif kind in (_FIXED32, _FIXED64):
            body = position
            position += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {kind} at byte {start}")
        if position > end:
            raise ValueError(f"a field at byte {start} goes on after the end of the file")
        yield key >> 3, start, body, position


def _varint(data: Buffer, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number at byte {position} does not end")


def tagged(number: int, content: bytes) -> bytes:
    """A field of bytes: its head and its content."""
    return head(number, len(content)) + content


def head(number: int, length: int) -> bytes:
    """What stands before the content of a field of `length` bytes."""
    found = bytearray([number << 3 | _BYTES])
    while length >= 0x80:
        found.append(length & 0x7F | 0x80)
        length >>= 7
    found.append(length)
    return bytes(found)


def write(model: onnx.ModelProto, file: BinaryIO) -> None:
    """Writes `model` with the bytes of its EXTERNAL initializers inside, one after the other.

    The result is what SerializeToString gives for the model with all weights in memory. Tensors in
    other places have to be in memory.
    """
    light = type(model)()
    light.CopyFrom(model)
    lazy: dict[int, onnx.TensorProto] = {}
    for index, tensor in enumerate(light.graph.initializer):
        if tensors_.is_external(tensor):
            lazy[index] = model.graph.initializer[index]
            tensor.ClearField("data_location")
            del tensor.external_data[:]
    data = light.SerializeToString(deterministic=True)
    for number, start, body, end in fields(data, 0, len(data)):
        if number != MODEL_GRAPH:
            file.write(data[start:end])
            continue
        pieces = list(_graph_pieces(data, body, end, lazy))
        file.write(head(MODEL_GRAPH, sum(length for length, _ in pieces)))
        for _, put in pieces:
            put(file)


_Piece: TypeAlias = "tuple[int, Callable[[BinaryIO], object]]"


def _graph_pieces(
    data: bytes, start: int, end: int, lazy: dict[int, onnx.TensorProto]
) -> Iterator[_Piece]:
    index = -1
    for number, field, body, stop in fields(data, start, end):
        index += number == GRAPH_INITIALIZER
        if number != GRAPH_INITIALIZER or index not in lazy:
            yield _fixed(data[field:stop])
            continue
        # Fields are in the order of their numbers, so the weights go before the first later one.
        at = stop
        for inner, inner_start, _, _ in fields(data, body, stop):
            if inner > TENSOR_RAW_DATA:
                at = inner_start
                break
        length = int(tensors_.external_entries(lazy[index])["length"])
        raw = head(TENSOR_RAW_DATA, length)
        yield _fixed(head(GRAPH_INITIALIZER, stop - body + len(raw) + length))
        yield _fixed(data[body:at] + raw)
        yield length, _copier(lazy[index])
        yield _fixed(data[at:stop])


def _fixed(content: bytes) -> _Piece:
    return len(content), lambda file: file.write(content)


def _copier(tensor: onnx.TensorProto) -> Callable[[BinaryIO], object]:
    def put(file: BinaryIO) -> None:
        for chunk in tensors_.external_chunks(tensor):
            file.write(chunk)

    return put
