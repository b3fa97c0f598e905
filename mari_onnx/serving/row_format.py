"""How rows of items are kept: which tensors, of what type and shape, under which ids.

In: the manifest of a split. Out: Arrow record batches of rows, one row per item, and arrays back from them. A tensor
is a column of lists of one length, so its elements lie side by side in memory and are read without a copy. Element
types that Arrow does not have (bool as bytes, bfloat16, float8) are kept as the unsigned integers of their bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mari_onnx.errors import ModelError, UsageError
from mari_onnx.splitting.manifest import Manifest
from mari_onnx.splitting.rows import ItemRows

FORMAT = 1
ID, HASH = "id", "features"
"""Columns beside the tensors': the item's id; a hash of its features (uint64), which tells whether they changed."""
_META = b"mari_onnx"
_ARROW_HAS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
Id = int | str


@dataclass(frozen=True)
class Column:
    """A tensor. dtype: as numpy calls it, or "string". shape: of one row. axis: that of the rows in the tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    axis: int

    @property
    def size(self) -> int:
        """Elements of one row."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def stored(self) -> np.dtype[Any]:
        """The element type in the file."""
        if self.dtype in _ARROW_HAS:
            return np.dtype(self.dtype)
        return np.dtype(f"u{self.element.itemsize}")

    @property
    def element(self) -> np.dtype[Any]:
        """The element type of the tensor; object for strings."""
        if self.dtype == "string":
            return np.dtype(object)
        import ml_dtypes  # noqa: F401  numpy learns the names of bfloat16 and float8 from it

        return np.dtype(self.dtype)


@dataclass(frozen=True)
class RowFormat:
    """The rows of one model. key: `Manifest.rows_key`."""

    key: str
    columns: tuple[Column, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> RowFormat:
        """That of a split.

        Raises:
            UsageError: a row's size is known only when it is made, so rows do not fit into a table.
        """
        columns = []
        for t in manifest.rows:
            shape = [d for at, d in enumerate(t.shape) if at != t.axis]
            if t.axis is None or not all(isinstance(d, int) and d > 0 for d in shape):
                raise UsageError(
                    f"rows cannot be stored: {t.name} has the shape {list(t.shape)} for {t.axis=} and not one size for "
                    "each item",
                    "split with a smaller --item-bytes, so that another tensor is handed over",
                )
            columns.append(Column(t.name, t.dtype, tuple(int(d) for d in shape if d is not None), t.axis))
        return cls(manifest.rows_key, tuple(columns))

    def schema(self, ids: pa.DataType, said: Mapping[str, Any]) -> pa.Schema:
        """The schema of a file of rows. said: what else is to be kept with them."""
        fields = [pa.field(ID, ids, False), pa.field(HASH, pa.uint64(), False)]
        for c in self.columns:
            element = pa.string() if c.dtype == "string" else pa.from_numpy_dtype(c.stored)
            fields.append(pa.field(c.name, pa.list_(element, c.size), False))
        meta = {"format": FORMAT, "key": self.key, "columns": [asdict(c) for c in self.columns], **said}
        return pa.schema(fields, {_META: json.dumps(meta).encode()})

    @classmethod
    def read(cls, schema: pa.Schema, path: object) -> tuple[RowFormat, dict[str, Any]]:
        """The format of a file, and what else was kept with it.

        Raises:
            ModelError: the file is none of ours.
        """
        try:
            said = json.loads(schema.metadata[_META])
            if said["format"] != FORMAT:
                raise ValueError(f"format {said['format']}, not {FORMAT}")
            columns = tuple(Column(**{**c, "shape": tuple(c["shape"])}) for c in said["columns"])
            return cls(said["key"], columns), said
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path} is no store of item rows: {error}", "mari-onnx precompute writes one") from error

    def batch(self, schema: pa.Schema, ids: np.ndarray, hashes: np.ndarray, arrays: Mapping[str, np.ndarray]) -> Any:
        """A record batch. arrays: tensor -> rows `[n, ..]`, the axis of the rows first."""
        made = [ids_to_arrow(ids), pa.array(hashes)]
        for c in self.columns:
            flat = np.ascontiguousarray(arrays[c.name]).reshape(-1)
            values = pa.array(list(flat), pa.string()) if c.dtype == "string" else pa.array(flat.view(c.stored))
            made.append(pa.FixedSizeListArray.from_arrays(values, c.size))
        return pa.record_batch(made, schema=schema)

    def rows_first(self, rows: ItemRows) -> dict[str, np.ndarray]:
        """The tensors of rows with the axis of the rows first."""
        return {c.name: np.moveaxis(np.asarray(rows.arrays[c.name]), c.axis, 0) for c in self.columns}

    def item_rows(self, arrays: Mapping[str, np.ndarray], count: int) -> ItemRows:
        """The other way: rows as `Ranker.score` takes them."""
        placed = {c.name: np.moveaxis(arrays[c.name], 0, c.axis) for c in self.columns}
        return ItemRows(placed, {c.name: c.axis for c in self.columns}, count, self.key)

    def empty(self, count: int) -> dict[str, np.ndarray]:
        """Tensor -> zeros for `count` rows, the axis of the rows first."""
        return {c.name: np.full((count, *c.shape), "" if c.dtype == "string" else 0, c.element) for c in self.columns}


def ids_to_numpy(ids: Sequence[Id] | np.ndarray) -> np.ndarray:
    """Ids as they are compared: int64, or bytes of UTF-8 of one width.

    Raises:
        UsageError: ids are neither integers of 64 bits nor texts, a text ends in a NUL character or is not Unicode, or
            they are one text instead of a list.
    """
    if isinstance(ids, str | bytes):
        raise UsageError(f"ids are one text, {ids!r}, and not several", "give a list of ids")
    array = np.asarray(ids)
    if isinstance(ids, np.ndarray) and array.dtype.kind == "S":  # as this function answers them
        return array.reshape(-1)
    if array.dtype.kind in "iu" or (array.size == 0 and array.dtype.kind not in "OUS"):
        if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
            raise UsageError("an id is above 2^63 - 1", "give such ids as texts")
        return array.astype(np.int64).reshape(-1)
    given = ids if not isinstance(ids, np.ndarray) else array.reshape(-1).tolist()
    if not all(isinstance(x, str | bytes) for x in given):
        raise UsageError("ids are integers of 64 bits or texts, all of one kind", "convert them to one kind")
    try:
        texts = [x if isinstance(x, bytes) else str(x).encode() for x in given]  # numpy's texts lose a NUL at their end
    except UnicodeEncodeError as error:
        raise UsageError(f"an id is not Unicode: {error.reason}", "leave it out") from error
    if any(x.endswith(b"\0") for x in texts):
        raise UsageError("an id ends in a NUL character", "leave it out")
    return np.array(texts, f"S{max(1, *map(len, texts))}" if texts else "S1")


def ids_to_arrow(ids: np.ndarray) -> pa.Array:
    """Ids as a column without a copy."""
    if ids.dtype.kind == "i":
        return pa.array(ids)
    ids = np.ascontiguousarray(ids)
    return pa.Array.from_buffers(pa.binary(ids.dtype.itemsize), len(ids), [None, pa.py_buffer(ids)])


def ids_from_arrow(column: pa.Array) -> np.ndarray:
    """A column of ids without a copy."""
    if pa.types.is_int64(column.type):
        return column.to_numpy()  # type: ignore[no-any-return]
    width = column.type.byte_width
    return np.frombuffer(column.buffers()[1], f"S{width}", len(column), column.offset * width)


def shown(ids: np.ndarray) -> list[Id]:
    """Ids as they were given."""
    return [x.decode(errors="replace") if isinstance(x, bytes) else x for x in ids.tolist()]
