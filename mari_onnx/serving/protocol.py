"""Requests and answers on the wire: JSON of the Open Inference Protocol (v2), and Arrow IPC.

In: the body of `POST v2/models/NAME/infer`. Out: a `service.Request`; and an `Answer` as a body. Inputs are the
source's, by name, and `item_ids`; `parameters.user_key` names the user. The user's inputs have one row, the others one
per candidate.

As Arrow, a request and an answer are a stream with one row per tensor: `name`, `datatype`, `shape`, `data` (the
elements in C order, little endian; texts with four bytes of length before each), and `id` and `user_key` in the
schema's metadata.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mari_onnx.errors import BadFeatures
from mari_onnx.serving.service import Answer, Request
from mari_onnx.splitting.manifest import Manifest

JSON, ARROW = "application/json", "application/vnd.mari-onnx.arrow"
ITEM_IDS, USER_KEY = "item_ids", "user_key"
TYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    "BYTES": "string",
}  # fmt: skip
_NAMES = {v: k for k, v in TYPES.items()}
_SCHEMA = pa.schema(
    [("name", pa.string()), ("datatype", pa.string()), ("shape", pa.list_(pa.int64())), ("data", pa.binary())]
)
_LARGE = {
    "name": pa.large_string(), "datatype": pa.large_string(), "shape": pa.large_list(pa.int64()),
    "data": pa.large_binary(),
}  # fmt: skip


class BadRequest(BadFeatures):
    """A body that is no request."""


@dataclass(frozen=True)
class Read:
    """A body. id: of the request, for its answer. outputs: that are asked for; None: all."""

    request: Request
    id: str | None
    outputs: list[str] | None


def from_json(body: bytes, manifest: Manifest, most: int) -> Read:
    """A request.

    Args:
        most: candidates that a request may have.

    Raises:
        BadRequest: what is wrong, with the input's name.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON: {error}") from error
    if not isinstance(said, dict) or not isinstance(said.get("inputs"), list):
        raise BadRequest("the body is no request: an object with a list `inputs` is needed")
    arrays: dict[str, np.ndarray] = {}
    for each in said["inputs"]:
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise BadRequest("an input is no object with a `name`")
        name = each["name"]
        if name in arrays:
            raise BadRequest(f"{name} is there twice")
        arrays[name] = _array(name, each.get("datatype"), each.get("shape"), each.get("data"))
    parameters = said.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise BadRequest("`parameters` is no object")
    made = said.get("id")
    request = _request(arrays, parameters.get(USER_KEY), manifest, most)
    return Read(request, None if made is None else str(made), _outputs(said.get("outputs"), manifest))


def from_arrow(body: bytes, manifest: Manifest, most: int) -> Read:
    """The same for Arrow, without compression: a small body must not become a large one."""
    try:
        if any(map(_is_packed, pa.ipc.MessageReader.open_stream(body))):
            raise BadRequest("the Arrow stream is compressed, or has dictionaries: send it without")
        with pa.ipc.open_stream(body) as stream:
            for each in _SCHEMA:  # rows of other types, such as null, take no bytes, so any number of them fits
                if stream.schema.field(each.name).type not in (each.type, _LARGE[each.name]):
                    raise BadRequest(f"the column {each.name} is not {each.type}")
            table = stream.read_all()
        table.validate(full=True)
        meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        rows = table.select(_SCHEMA.names).cast(_SCHEMA).to_pylist()
    except (pa.ArrowException, KeyError, ValueError, UnicodeDecodeError, OSError, struct.error) as error:
        raise BadRequest(f"the body is no Arrow stream of tensors: {str(error).splitlines()[0]}") from error
    arrays: dict[str, np.ndarray] = {}
    for row in rows:
        name = row["name"]
        if not isinstance(name, str) or name in arrays:
            raise BadRequest(f"{name} is there twice" if name else "a tensor has no name")
        arrays[name] = _array(name, row["datatype"], row["shape"], row["data"])
    return Read(_request(arrays, meta.get(USER_KEY), manifest, most), meta.get("id"), None)


def _is_packed(message: pa.Message) -> bool:
    """Whether a message of a stream takes more memory than its bytes: buffers are compressed, or it is a dictionary.

    Its metadata is a flatbuffer (Message.fbs of the Arrow format), of which pyarrow does not say this.
    """
    if message.type == "dictionary":
        return True
    data = message.metadata.to_pybytes()

    def number(kind: str, place: int) -> int:
        return int(struct.unpack_from(kind, data, place)[0])

    def field(table: int, at: int) -> int:
        """Where a field of a table is; 0 where it is left out."""
        fields = table - number("<i", table)
        offset = number("<H", fields + 4 + 2 * at) if 4 + 2 * at < number("<H", fields) else 0
        return table + offset if offset else 0

    if message.type != "record batch":
        return False
    header = field(number("<I", 0), 2)
    return field(header + number("<I", header), 3) != 0  # RecordBatch.compression


def to_json(answer: Answer, name: str, id: str | None, wanted: Sequence[str] | None = None) -> bytes:
    """An answer. wanted: outputs that are asked for; None: all."""
    outputs = [
        {"name": k, "datatype": _type_name(v), "shape": list(v.shape), "data": _listed(v)}
        for k, v in answer.outputs.items()
        if wanted is None or k in wanted
    ]
    said: dict[str, Any] = {"model_name": name, "model_version": answer.version[:12], "outputs": outputs}
    said["parameters"] = {"user_cached": answer.cached, "missing_items": list(answer.missing)}
    return json.dumps({**said, **({} if id is None else {"id": id})}).encode()


def to_arrow(answer: Answer, name: str, id: str | None) -> bytes:
    """The same as Arrow."""
    said = {"model_name": name, "model_version": answer.version[:12], "missing_items": json.dumps(list(answer.missing))}
    return tensors_to_arrow(answer.outputs, {**said, **({} if id is None else {"id": id})})


def tensors_to_arrow(arrays: Mapping[str, np.ndarray], said: Mapping[str, str]) -> bytes:
    """Tensors as an Arrow stream. said: the schema's metadata, such as `user_key`."""
    rows = [
        {"name": k, "datatype": _type_name(v), "shape": list(v.shape), "data": _packed(v)} for k, v in arrays.items()
    ]
    sink = pa.BufferOutputStream()
    schema = _SCHEMA.with_metadata(dict(said))
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_table(pa.Table.from_pylist(rows, schema=schema))
    return bytes(sink.getvalue())


def _outputs(asked: object, manifest: Manifest) -> list[str] | None:
    if not asked:
        return None
    there = [each.name for each in manifest.outputs]
    names = [
        each.get("name") if isinstance(each, dict) else None for each in (asked if isinstance(asked, list) else [None])
    ]
    for name in names:
        if name not in there:
            raise BadRequest(f"there is no output {name}; there are: {', '.join(there)}")
    return [str(name) for name in names]


def _request(arrays: dict[str, np.ndarray], user_key: object, manifest: Manifest, most: int) -> Request:
    inputs = {each.name: each for each in manifest.inputs}
    ids = arrays.pop(ITEM_IDS, None) if ITEM_IDS not in inputs else None
    if user_key is not None and not isinstance(user_key, str | int):
        raise BadRequest(f"{USER_KEY} is a text or an integer")
    if ids is not None and (ids.ndim != 1 or ids.dtype.kind not in "iuO"):
        raise BadRequest(f"{ITEM_IDS} is a list of integers or texts, not {ids.dtype} {list(ids.shape)}")
    sides: dict[str, dict[str, np.ndarray]] = {"user": {}, "item": {}, "cross": {}}
    for name, array in arrays.items():
        if name not in inputs:
            raise BadRequest(f"there is no input {name}; there are: {', '.join([*inputs, ITEM_IDS])}")
        side, axis = inputs[name].side, inputs[name].axis
        if side != "user" and axis is not None and axis < array.ndim and array.shape[axis] > most:
            raise BadRequest(f"{name} has {array.shape[axis]} candidates, and at most {most} are taken")
        for each in read_by(side, ids is not None):
            sides[each][name] = array
    if ids is not None and len(ids) > most:
        raise BadRequest(f"{ITEM_IDS} has {len(ids)} candidates, and at most {most} are taken")
    key = None if user_key is None else str(user_key)
    return Request(key, ids, sides["user"], sides["item"], sides["cross"])


def read_by(side: str, with_ids: bool) -> tuple[str, ...]:
    """Which parts of a request an input belongs to: a packed one has columns of several sides.

    Args:
        with_ids: the request has item ids, so the items' rows come from the store.
    """
    packed = ("user", "cross") if with_ids else ("user", "item", "cross")
    return {"packed": packed, "count": ("cross",)}.get(side, (side,))


def _array(name: str, datatype: object, shape: object, data: object) -> np.ndarray:
    """A tensor of its parts; data: a list (of lists), or bytes."""
    if not isinstance(datatype, str) or datatype not in TYPES:
        raise BadRequest(f"{name}: datatype {datatype!r} is none of {', '.join(TYPES)}")
    if not isinstance(shape, list) or not all(type(d) is int and 0 <= d < 2**31 for d in shape):
        raise BadRequest(f"{name}: shape {shape!r} is no list of sizes")
    size = 1
    for d in shape:
        size *= d
    kind = TYPES[datatype]
    if isinstance(data, bytes):
        flat = _unpacked(name, kind, data)
    elif isinstance(data, list):
        flat = _of_list(name, kind, data, shape)
    else:
        raise BadRequest(f"{name}: data is no list")
    if flat.size != size:
        raise BadRequest(f"{name}: shape {shape} has {size} elements, and data {flat.size}")
    try:
        return flat.reshape(shape)
    except ValueError as error:  # numpy has at most 64 dimensions, and a limit on their product without those of 0
        raise BadRequest(f"{name}: no array has the shape {shape}") from error


def _of_list(name: str, kind: str, data: list[Any], shape: list[int]) -> np.ndarray:
    """The elements of a flat list, or of lists in lists as `shape` says."""
    flat, inner = data, shape[1:]
    while flat and any(isinstance(x, list) for x in flat):
        if not all(isinstance(x, list) for x in flat):
            raise BadRequest(f"{name}: data has lists and elements side by side")
        if not inner or any(len(x) != inner[0] for x in flat):
            raise BadRequest(f"{name}: data has lists of other lengths than shape {shape}")
        flat, inner = [y for x in flat for y in x], inner[1:]
    if kind == "string":
        if not all(isinstance(x, str) for x in flat):
            raise BadRequest(f"{name}: data holds something that is no text")
        try:
            "".join(flat).encode()
        except UnicodeEncodeError as error:  # "\\ud800": JSON can say half of a surrogate pair
            raise BadRequest(f"{name}: a text is not Unicode: {error.reason}") from error
        return np.array(flat, object)
    allowed = bool if kind == "bool" else (int,) if "int" in kind else (int, float)
    if not all(isinstance(x, allowed) and (kind == "bool" or not isinstance(x, bool)) for x in flat):
        raise BadRequest(f"{name}: data holds something that is no {kind}")
    cannot = f"{name}: data holds a number that {kind} cannot hold"
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, kind) if flat else np.zeros(0, kind)
    except (OverflowError, ValueError) as error:
        raise BadRequest(cannot) from error
    if array.dtype.kind == "f" and any(not math.isinf(flat[at]) for at in np.flatnonzero(np.isinf(array))):
        raise BadRequest(cannot)
    return array


def _unpacked(name: str, kind: str, data: bytes) -> np.ndarray:
    if kind != "string":
        element = np.dtype(kind).newbyteorder("<")
        if len(data) % element.itemsize:
            raise BadRequest(f"{name}: {len(data)} bytes are no whole number of {kind}")
        if kind == "bool" and data.strip(b"\0\1"):
            raise BadRequest(f"{name}: a bool is a byte of 0 or 1")
        return np.frombuffer(data, element).astype(kind)
    texts, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            raise BadRequest(f"{name}: data ends within a text")
        try:
            texts.append(data[at + 4 : end].decode())
        except UnicodeDecodeError as error:
            raise BadRequest(f"{name}: a text is no UTF-8") from error
        at = end
    return np.array(texts, object)


def _packed(array: np.ndarray) -> bytes:
    if array.dtype.kind in "OU":
        texts = [str(x).encode() for x in array.reshape(-1)]
        return b"".join(len(x).to_bytes(4, "little") + x for x in texts)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _type_name(array: np.ndarray) -> str:
    return "BYTES" if array.dtype.kind in "OU" else _NAMES.get(array.dtype.name, array.dtype.name.upper())


def _listed(array: np.ndarray) -> list[Any]:
    """Elements in C order as JSON has them; what it has no number for (NaN, infinity) is null."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array.reshape(-1).tolist()
    return [x if np.isfinite(x) else None for x in array.reshape(-1).tolist()]
