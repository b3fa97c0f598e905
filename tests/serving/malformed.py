"""Requests that are wrong, each in one way: every input, every field of it, and every way in turn, with drawn details.

`case(number)` is always the same. A few are not wrong for the model (a flipped bit of a number is another number):
`may` says which statuses are right.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from mari_onnx.serving import protocol
from mari_onnx.serving.service import Request

REFUSED = frozenset({400})
INFER = "/v2/models/ranking/infer"


@dataclass(frozen=True)
class Case:
    """A request on the wire. way: what is wrong. may: the statuses that are right."""

    way: str
    content: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": protocol.JSON})
    method: str = "POST"
    path: str = INFER
    may: frozenset[int] = REFUSED


def tensors(asked: Request) -> dict[str, np.ndarray]:
    """What a right request has."""
    return {"item_ids": np.asarray(asked.item_ids), **asked.user, **asked.cross}


def json_of(arrays: dict[str, np.ndarray], **said: Any) -> dict[str, Any]:
    """A request as JSON has it."""
    names = {"int64": "INT64", "float32": "FP32"}
    inputs = [
        {"name": k, "datatype": names[v.dtype.name], "shape": list(v.shape), "data": v.reshape(-1).tolist()}
        for k, v in arrays.items()
    ]
    return {"inputs": inputs, **said}


class Wrong:
    """Ways to be wrong.

    Args:
        items: ids below it are in the store. most: candidates that are taken. body: bytes that are taken.
    """

    def __init__(self, request: Callable[..., Request], items: int, most: int, body: int):
        self._request, self._items, self._most, self._body = request, items, most, body
        self.ways: list[Callable[[np.random.Generator], Case]] = [
            self._bytes, self._cut, self._top, self._tokens, self._deep,
            self._missing, self._twice, self._unknown, self._datatype, self._other_type, self._shape, self._huge_shape,
            self._no_shape, self._surrogates, self._size, self._elements, self._ragged, self._numbers, self._rank,
            self._candidates, self._count, self._ids, self._ids_and_features, self._table, self._user, self._parameters,
            self._outputs, self._nobody, self._large, self._content_type,
            self._arrow_cut, self._arrow_bits, self._arrow_bytes, self._arrow_schema, self._arrow_nulls,
            self._arrow_size, self._arrow_text, self._arrow_meta,
            self._method, self._path,
        ]  # fmt: skip

    def case(self, number: int) -> Case:
        """The ways in turn."""
        return self.ways[number % len(self.ways)](np.random.default_rng([7, number]))

    # ---- what is changed --------------------------------------------------------------------------------------
    def _right(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return tensors(self._request(int(rng.integers(2, 9)), int(rng.integers(1 << 20))))

    def _said(self, rng: np.random.Generator) -> dict[str, Any]:
        return json_of(self._right(rng), parameters={"user_key": f"wrong {rng.integers(1 << 30)}"})

    def _one(self, rng: np.random.Generator, way: str, **changes: Any) -> Case:
        """A right request in which one input is changed."""
        said = self._said(rng)
        said["inputs"][rng.integers(len(said["inputs"]))].update(changes)
        return Case(way, json.dumps(said).encode())

    # ---- bodies -----------------------------------------------------------------------------------------------
    def _bytes(self, rng: np.random.Generator) -> Case:
        return Case("bytes", rng.bytes(int(rng.integers(0, 400))))

    def _cut(self, rng: np.random.Generator) -> Case:
        whole = json.dumps(self._said(rng)).encode()
        return Case("cut", whole[: rng.integers(len(whole))])

    def _top(self, rng: np.random.Generator) -> Case:
        inputs = [None, {}, [], [[]], [3], [{}], [{"name": 3}], [{"name": None}]]
        some = [None, True, 3, -1.5, "x", [], [1], {}, {"input": []}, *({"inputs": each} for each in inputs)]
        return Case("top", json.dumps(some[rng.integers(len(some))]).encode())

    def _tokens(self, rng: np.random.Generator) -> Case:
        text = json.dumps(self._said(rng))
        at = int(rng.integers(len(text)))
        token = ["}", "]", ",", ":", '"', "\\", "\x00", "nul", "//", "'", "+", "\ud800", "0x1"][rng.integers(13)]
        # Within a text or between elements it may still be right.
        return Case(
            "tokens", (text[:at] + token + text[at:]).encode("utf-8", "surrogatepass"), may=frozenset({200, 400})
        )

    def _deep(self, rng: np.random.Generator) -> Case:
        depth, opens = int(rng.integers(50, 9000)), ["[", '{"a":'][rng.integers(2)]
        return Case("deep", (opens * min(depth, self._body // len(opens) - 1)).encode())

    # ---- fields of inputs -------------------------------------------------------------------------------------
    def _missing(self, rng: np.random.Generator) -> Case:
        said = self._said(rng)
        del said["inputs"][rng.integers(len(said["inputs"]))]
        return Case("missing", json.dumps(said).encode())

    def _twice(self, rng: np.random.Generator) -> Case:
        said = self._said(rng)
        said["inputs"].append(said["inputs"][rng.integers(len(said["inputs"]))])
        return Case("twice", json.dumps(said).encode())

    def _unknown(self, rng: np.random.Generator) -> Case:
        said = self._said(rng)
        name = ["v", "", "U", "u ", "item_id", "\u0000", "x" * 1000, "score", "__class__"][rng.integers(9)]
        said["inputs"].append({"name": name, "datatype": "FP32", "shape": [1], "data": [1.0]})
        return Case("unknown", json.dumps(said).encode())

    def _datatype(self, rng: np.random.Generator) -> Case:
        kinds = [None, 3, "", "FP31", "fp32", "INT65", "object", [], {}, "FP32 ", "float32", True, "BF16"]
        return self._one(rng, "datatype", datatype=kinds[rng.integers(len(kinds))])

    def _other_type(self, rng: np.random.Generator) -> Case:
        said = self._said(rng)
        each = said["inputs"][rng.integers(1, len(said["inputs"]))]  # not the ids, which may have any integer type
        other = [t for t in protocol.TYPES if t != each["datatype"]]
        kind = each["datatype"] = other[rng.integers(len(other))]
        value = {"BYTES": "a", "BOOL": True}.get(kind, 1 if "INT" in kind else 0.5)
        each["data"] = [value] * len(each["data"])
        return Case("other type", json.dumps(said).encode())

    def _shape(self, rng: np.random.Generator) -> Case:
        kinds = [None, [], [-1], [0], [1.5], ["1"], [True], 3, "3", {}, [[1]], [None], [10**30], [2, -3], [1] * 40]
        return self._one(rng, "shape", shape=kinds[rng.integers(len(kinds))])

    def _huge_shape(self, rng: np.random.Generator) -> Case:
        sizes = [2**31 - 1, 2**31, 2**40, 2**62, 2**63, 2**64, 10**18, 10**400]
        shape = [sizes[rng.integers(len(sizes))] for _ in range(rng.integers(1, 5))]
        return self._one(rng, "huge shape", shape=shape, data=[] if rng.integers(2) else [1])

    def _no_shape(self, rng: np.random.Generator) -> Case:
        """The right number of elements, and a shape that no array of numpy has."""
        said = self._said(rng)
        each = said["inputs"][rng.integers(len(said["inputs"]))]
        if rng.integers(2):
            each["shape"] = [len(each["data"]), *[1] * int(rng.integers(64, 200))]
        else:
            each.update(shape=[0, *[2**31 - 1] * int(rng.integers(2, 6))], data=[])
        return Case("no shape", json.dumps(said).encode())

    def _surrogates(self, rng: np.random.Generator) -> Case:
        """Half of a surrogate pair, which JSON can say and UTF-8 cannot."""
        said = self._said(rng)
        each = said["inputs"][rng.integers(len(said["inputs"]))]
        each.update(datatype="BYTES", data=["a"] * len(each["data"]))
        each["data"][rng.integers(len(each["data"]))] = "a\ud800"
        return Case("surrogates", json.dumps(said).encode())

    def _size(self, rng: np.random.Generator) -> Case:
        said = self._said(rng)
        each = said["inputs"][rng.integers(len(said["inputs"]))]
        more = int(rng.integers(1, 5))
        each["data"] = each["data"][:-more] if rng.integers(2) else each["data"] + each["data"][:1] * more
        return Case("size", json.dumps(said).encode())

    def _elements(self, rng: np.random.Generator) -> Case:
        said = self._said(rng)
        each = said["inputs"][rng.integers(len(said["inputs"]))]
        odd = [None, "1", True, [], {}, [1], "NaN", ""]
        odd += [1.5] if each["datatype"] == "INT64" else []
        each["data"][rng.integers(len(each["data"]))] = odd[rng.integers(len(odd))]
        return Case("elements", json.dumps(said).encode())

    def _ragged(self, rng: np.random.Generator) -> Case:
        data = [[[1.0], 2.0], [[1, 2], [3]], [[[[]]]], [{"a": 1}], "123", 5, None, {}][rng.integers(8)]
        return self._one(rng, "ragged", data=data)

    def _numbers(self, rng: np.random.Generator) -> Case:
        said = self._said(rng)
        each = said["inputs"][rng.integers(len(said["inputs"]))]
        large: list[Any] = [2**63, -(2**63) - 1, 2**64, 10**40, -(10**100), 10**5000 if rng.integers(2) else 10**400]
        if each["datatype"] == "FP32":
            large = [1e39, -1e308, 10**40, -(10**400)]
        text = json.dumps(said)
        at = json.dumps(each["data"])
        each["data"][rng.integers(len(each["data"]))] = "@"
        with_hole = json.dumps(each["data"]).replace('"@"', _text(large[rng.integers(len(large))]))
        return Case("numbers", text.replace(at, with_hole, 1).encode())

    def _rank(self, rng: np.random.Generator) -> Case:
        said = self._said(rng)
        each = said["inputs"][rng.integers(len(said["inputs"]))]
        size = len(each["data"])
        shapes = [[size, 1, 1], [1, 1, size], [1, size, 1, 1], [1, 1, 1, 1, size]]
        each["shape"] = shapes[rng.integers(len(shapes))]
        return Case("rank", json.dumps(said).encode())

    # ---- the request as a whole -------------------------------------------------------------------------------
    def _candidates(self, rng: np.random.Generator) -> Case:
        many = self._most + int(rng.integers(1, 30))
        asked = self._request(many, int(rng.integers(1 << 20)))
        if rng.integers(2):
            return Case("candidates", json.dumps(json_of({"item_ids": np.zeros(many, np.int64)})).encode())
        packed = protocol.tensors_to_arrow(tensors(asked), {})
        return Case("candidates", packed, {"content-type": protocol.ARROW})

    def _count(self, rng: np.random.Generator) -> Case:
        arrays = self._right(rng)
        name = ["item_ids", "c"][rng.integers(2)]
        arrays[name] = arrays[name][:-1] if rng.integers(2) else np.concatenate([arrays[name], arrays[name][:1]])
        return Case("count", json.dumps(json_of(arrays)).encode())

    def _ids(self, rng: np.random.Generator) -> Case:
        arrays = self._right(rng)
        ids = arrays["item_ids"]
        kind = rng.integers(4)
        if kind == 0:
            ids[rng.integers(len(ids))] = [self._items, -1, 2**62, -(2**63)][rng.integers(4)]
        elif kind == 1:
            arrays["item_ids"] = ids[:, None]
        elif kind == 2:
            arrays["item_ids"] = ids.astype(np.float32)
        said = json_of(arrays)
        if kind == 3:
            said["inputs"][0].update(datatype="BYTES", data=[str(x) for x in ids.tolist()])
        return Case("ids", json.dumps(said).encode())

    def _ids_and_features(self, rng: np.random.Generator) -> Case:
        arrays = self._right(rng)
        arrays["x"] = np.zeros((len(arrays["item_ids"]), 16), np.float32)
        return Case("ids and features", json.dumps(json_of(arrays)).encode())

    def _table(self, rng: np.random.Generator) -> Case:
        """Features of items, one of which is in no row of the model's table."""
        arrays = self._right(rng)
        count = len(arrays.pop("item_ids"))
        arrays |= {"x": np.zeros((count, 16), np.float32), "genre": np.ones(count, np.int64)}
        arrays["genre"][rng.integers(count)] = [10**9, 50, -(10**9), 2**62, -(2**63)][rng.integers(5)]
        return Case("table", json.dumps(json_of(arrays)).encode())

    def _user(self, rng: np.random.Generator) -> Case:
        arrays = self._right(rng)
        u = arrays["u"]
        arrays["u"] = [np.concatenate([u, u]), u[:0], u[:, :-1], u[0], u.T, u[None]][rng.integers(6)]
        return Case("user", json.dumps(json_of(arrays)).encode())

    def _parameters(self, rng: np.random.Generator) -> Case:
        odd = [[1], "x", 3, True, {"user_key": []}, {"user_key": {}}, {"user_key": 1.5}, {"user_key": [None]}]
        return Case("parameters", json.dumps({**self._said(rng), "parameters": odd[rng.integers(len(odd))]}).encode())

    def _outputs(self, rng: np.random.Generator) -> Case:
        odd = [[{"name": "click"}], [{"name": None}], [{}], [3], "score", 3, {"name": "score"}, [{"name": ["score"]}]]
        return Case("outputs", json.dumps({**self._said(rng), "outputs": odd[rng.integers(len(odd))]}).encode())

    def _nobody(self, rng: np.random.Generator) -> Case:
        """A user whose state is not kept, without features."""
        arrays = self._right(rng)
        del arrays["u"]
        said = json_of(arrays, parameters={"user_key": f"nobody {rng.integers(1 << 60)}"})
        return Case("nobody", json.dumps(said).encode())

    def _large(self, rng: np.random.Generator) -> Case:
        content = json.dumps(self._said(rng)).encode() + b" " * self._body
        return Case("large", content, may=frozenset({413}))

    def _content_type(self, rng: np.random.Generator) -> Case:
        arrays = self._right(rng)
        if rng.integers(2):
            return Case("content type", json.dumps(json_of(arrays)).encode(), {"content-type": protocol.ARROW})
        kinds = [protocol.JSON, "", "text/html", "application/octet-stream", "multipart/form-data; boundary=x"]
        return Case("content type", protocol.tensors_to_arrow(arrays, {}), {"content-type": kinds[rng.integers(5)]})

    # ---- Arrow ------------------------------------------------------------------------------------------------
    def _packed(self, rng: np.random.Generator) -> bytes:
        return protocol.tensors_to_arrow(self._right(rng), {"user_key": f"wrong {rng.integers(1 << 30)}"})

    def _arrow(self, way: str, content: bytes, may: frozenset[int] = REFUSED) -> Case:
        return Case(way, content, {"content-type": protocol.ARROW}, may=may)

    def _arrow_cut(self, rng: np.random.Generator) -> Case:
        whole = self._packed(rng)
        # The end of a stream may be missing: its last 8 bytes say no more than that.
        return self._arrow("arrow cut", whole[: rng.integers(len(whole) - 8)])

    def _arrow_bits(self, rng: np.random.Generator) -> Case:
        content = bytearray(self._packed(rng))
        for _ in range(rng.integers(1, 6)):
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        return self._arrow("arrow bits", bytes(content), frozenset({200, 400}))

    def _arrow_bytes(self, rng: np.random.Generator) -> Case:
        content = self._packed(rng)[: rng.integers(16)] + rng.bytes(int(rng.integers(0, 600)))
        return self._arrow("arrow bytes", content)

    def _arrow_schema(self, rng: np.random.Generator) -> Case:
        table = pa.ipc.open_stream(self._packed(rng)).read_all()
        name = table.column_names[rng.integers(4)]
        changed = [
            table.drop_columns([name]),
            table.rename_columns([f"{n}_" if n == name else n for n in table.column_names]),
            table.set_column(table.column_names.index(name), name, pa.array([1.5] * len(table))),
            table.set_column(table.column_names.index(name), name, pa.array([{"a": 1}] * len(table))),
            table.slice(0, 0),
        ][rng.integers(5)]
        return self._arrow("arrow schema", _stream(changed))

    def _arrow_nulls(self, rng: np.random.Generator) -> Case:
        table = pa.ipc.open_stream(self._packed(rng)).read_all()
        at, rows = int(rng.integers(4)), table.to_pylist()
        rows[rng.integers(len(rows))][table.column_names[at]] = None
        return self._arrow("arrow nulls", _stream(pa.Table.from_pylist(rows, schema=table.schema)))

    def _arrow_size(self, rng: np.random.Generator) -> Case:
        table = pa.ipc.open_stream(self._packed(rng)).read_all()
        rows = table.to_pylist()
        row = rows[rng.integers(len(rows))]
        shapes = [[-1], [2**62], [2**31, 2**31, 2**31], [], [len(row["data"])], [0], [-3, -8]]
        if rng.integers(2):
            row["shape"] = shapes[rng.integers(len(shapes))]
        else:
            row["data"] = row["data"][: -int(rng.integers(1, len(row["data"])))]
        return self._arrow("arrow size", _stream(pa.Table.from_pylist(rows, schema=table.schema)))

    def _arrow_text(self, rng: np.random.Generator) -> Case:
        """Ids as texts of a wrong length, not in UTF-8, or not in this store."""
        table = pa.ipc.open_stream(self._packed(rng)).read_all()
        rows = table.to_pylist()
        data = [b"\xff\xff\xff\xff", b"\1\0\0\0", b"\1\0\0\0\xff", b"\1\0\0\0a", b"\0\0\0\0", b"abc"][rng.integers(6)]
        rows[0] = {"name": "item_ids", "datatype": "BYTES", "shape": [1], "data": data}
        return self._arrow("arrow text", _stream(pa.Table.from_pylist(rows, schema=table.schema)))

    def _arrow_meta(self, rng: np.random.Generator) -> Case:
        table = pa.ipc.open_stream(self._packed(rng)).read_all()
        key = [b"\xff", b"user_key", b"id"][rng.integers(3)]
        return self._arrow("arrow meta", _stream(table.replace_schema_metadata({key: b"\xff\xfe"})))

    # ---- HTTP -------------------------------------------------------------------------------------------------
    def _method(self, rng: np.random.Generator) -> Case:
        method = ["GET", "PUT"][rng.integers(2)]
        return Case("method", b"", {}, method, may=frozenset({405}))

    def _path(self, rng: np.random.Generator) -> Case:
        paths = ["/", "/v2/models/other/infer", "/v2/models/ranking", "/v2/models/ranking/infer/x", "/v2/models//infer"]
        path = paths[rng.integers(len(paths))]
        return Case("path", json.dumps(self._said(rng)).encode(), path=path, may=frozenset({404}))


def _text(number: float) -> str:
    if isinstance(number, float):
        return repr(number)
    digits, sign, number = "", "-" * (number < 0), abs(number)
    while number:  # Python prints no integer of more than 4,300 digits
        number, rest = divmod(number, 10**4000)
        digits = f"{rest:04000d}" + digits
    return sign + (digits.lstrip("0") or "0")


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())
