"""A catalogue of items in Parquet files, read piece by piece as the inputs of item.onnx.

In: files with a column of ids and a column per input of the item (lists for inputs of a higher rank, or `input_0`,
`input_1`, .. side by side). Out: pieces of ids and arrays; rows that are no item are left out and named.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mari_onnx.errors import UsageError
from mari_onnx.serving.row_format import ids_to_numpy
from mari_onnx.splitting.manifest import InputInfo, Manifest

ID_COLUMN = "item_id"
INTEGERS, TEXTS = "integers", "texts"
"""What ids are."""
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)


@dataclass(frozen=True)
class BadRow:
    """A row that is no item. row: counted from 0 over all files. why: which column, and what is wrong."""

    row: int
    id: str
    why: str


@dataclass(frozen=True)
class Part:
    """Where a piece of the catalogue is: rows of one file.

    Attributes:
        number: of the piece. file: which of `Catalogue.files`.
        start: its first row in the file. count: rows. first: its first row in the catalogue.
    """

    number: int
    file: int
    start: int
    count: int
    first: int


@dataclass
class Piece:
    """Some rows of the catalogue.

    Attributes:
        ids: of `row_format.ids_to_numpy`. features: input -> `[n, ..]`, the axis of the rows first.
        rows: the row in the catalogue of each. hashes: of each item's features, uint64. All `[n]`.
        bad: rows that were left out.
    """

    ids: np.ndarray
    features: dict[str, np.ndarray]
    rows: np.ndarray
    hashes: np.ndarray
    bad: list[BadRow] = field(default_factory=list)


class Catalogue:
    """Files of items.

    Args:
        path: a Parquet file, or a folder of them (in the order of their names).
        manifest: of the split, which says what the inputs are.
        id_column: the column of ids, integers or texts.

    Raises:
        UsageError: there is no such file, a column is missing, or ids are not of one kind.
    """

    def __init__(self, path: str | Path, manifest: Manifest, id_column: str = ID_COLUMN):
        self.path, self.id_column = Path(path), id_column
        part = manifest.parts.get("item")
        passed = [t.name for t in manifest.rows if not t.made]
        needed = dict.fromkeys([*(part.inputs if part else ()), *passed])
        self.inputs = [each for each in manifest.inputs if each.name in needed and each.side != "count"]
        for each in self.inputs:
            if not all(isinstance(d, int) for d in _row_shape(each)):
                raise UsageError(
                    f"{each.name} has the shape {list(each.shape)}: a table needs one length for all items"
                )
        self.files = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
        if not self.files:
            raise UsageError(f"the folder {path} has no .parquet file")
        self._rows: list[int] = []
        self._columns: dict[str, list[str]] = {}
        kind: str | None = None
        for file in self.files:  # one after the other: there may be more than a process may have open
            with _reading(path), pq.ParquetFile(file) as opened:
                schema = opened.schema_arrow
                self._rows.append(opened.metadata.num_rows)
            if not self._columns:
                self._columns = {each.name: _columns_of(each, set(schema.names)) for each in self.inputs}
            self._check(file, schema)
            own = _kind(schema.field(id_column).type) if self._rows[-1] else None
            if own and kind and own != kind:
                raise UsageError(f"the column {id_column} holds {own} in {file}, and {kind} in files before it")
            kind = kind or own
        self.count = sum(self._rows)

    def _check(self, file: Path, schema: pa.Schema) -> None:
        """Raises UsageError where a file lacks a column."""
        there = set(schema.names)
        missing = [name for name, columns in self._columns.items() if not columns or not set(columns) <= there]
        missing += [self.id_column] if self.id_column not in there else []
        if missing:
            hint = f"there are: {', '.join(sorted(there))}; --id-column names that of the ids"
            raise UsageError(f"{file} has no column {', '.join(missing)}", hint)

    def stamp(self) -> list[list[Any]]:
        """Name, size and time of each file: another stamp is another catalogue."""
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in self.files]

    def parts(self, rows: int) -> list[Part]:
        """The catalogue in pieces of at most `rows` rows, each in one file; the same ones each time."""
        found: list[Part] = []
        first = 0
        for file, total in enumerate(self._rows):
            for start in range(0, total, rows):
                count = min(rows, total - start)
                found.append(Part(len(found), file, start, count, first))
                first += count
        return found

    def read(self, parts: Sequence[Part]) -> Iterator[pa.RecordBatch]:
        """A batch for each of some parts that follow one another in one file."""
        if not parts:
            return
        path = self.files[parts[0].file]
        wanted = dict.fromkeys([self.id_column, *(c for columns in self._columns.values() for c in columns)])
        with _reading(path), pq.ParquetFile(path) as file:
            ends = np.cumsum([file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)])
            rows = [parts[0].start, parts[-1].start + parts[-1].count - 1]
            begin, last = (int(group) for group in np.searchsorted(ends, rows, "right"))
            groups = list(range(begin, last + 1))
            batches = file.iter_batches(parts[0].count, row_groups=groups, columns=list(wanted))
            at, left = int(ends[begin - 1]) if begin else 0, list[pa.RecordBatch]()
            for part in parts:
                while at + sum(b.num_rows for b in left) < part.start + part.count:
                    left.append(next(batches))
                whole = pa.Table.from_batches(left)
                yield _one_batch(whole.slice(part.start - at, part.count))
                left, at = whole.slice(part.start - at + part.count).to_batches(), part.start + part.count

    def convert(self, batch: pa.RecordBatch, first: int) -> Piece:
        """A batch as the model takes it. first: the row of the catalogue that the batch begins with."""
        good = np.ones(batch.num_rows, bool)
        why: dict[int, str] = {}

        def refuse(where: np.ndarray, reason: str) -> None:
            for row in np.flatnonzero(where & good):
                why.setdefault(int(row), reason)
            good[where] = False

        raw = _plain(batch.column(self.id_column))
        refuse(_nulls(raw), f"{self.id_column} is null")
        kind = _kind(raw.type)
        if kind is None:
            raw_ids = np.zeros(batch.num_rows, np.int64)
        elif kind == TEXTS:
            refuse(np.asarray(pc.ends_with(raw, "\0").fill_null(False)), f"{self.id_column} ends in a NUL character")
            raw_ids = np.array(raw.fill_null("").to_pylist(), object)
            raw_ids[~good] = ""
        else:
            if pa.types.is_uint64(raw.type):
                refuse(
                    np.asarray(pc.greater(raw, (1 << 63) - 1).fill_null(False)), f"{self.id_column} is above 2^63 - 1"
                )
            raw_ids = np.where(good, raw.fill_null(0).to_numpy(zero_copy_only=False), 0)
        features = {}
        for each in self.inputs:
            columns = [batch.column(name) for name in self._columns[each.name]]
            features[each.name] = _array(each, columns, refuse)
        places = np.flatnonzero(good)
        bad = [BadRow(first + row, str(raw[row].as_py()), reason) for row, reason in sorted(why.items())]
        chosen = {name: array[places] for name, array in features.items()}
        return Piece(ids_to_numpy(raw_ids[places]), chosen, first + places, _hashes(chosen, len(places)), bad)


def _kind(type: pa.DataType) -> str | None:
    """What ids of this type are; None where all of them are null.

    Raises:
        UsageError: they are something else than integers or texts.
    """
    type = getattr(type, "value_type", type) if pa.types.is_dictionary(type) else type
    if pa.types.is_integer(type):
        return INTEGERS
    if pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type):
        return TEXTS
    if pa.types.is_null(type):
        return None
    raise UsageError(f"the column of the ids is {type}; ids are integers or texts")


@contextlib.contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"cannot read the items in {path}: {str(error).splitlines()[0]}") from error


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    (batch,) = table.combine_chunks().to_batches()
    return batch


def _array(each: InputInfo, columns: Sequence[pa.Array], refuse: Any) -> np.ndarray:
    """An input's rows, `[n, ..]`; rows that cannot be one are refused and hold zeros."""
    shape = _row_shape(each)
    flat = [_flat(column, int(np.prod(shape)) // len(columns), each, refuse) for column in columns]
    array = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
    if each.dtype == "string":
        return array.reshape(len(array), *shape)
    want = np.dtype(each.dtype)
    with np.errstate(all="ignore"):
        cast = array.astype(want)
        if want.kind in "biu":
            differs = cast.astype(array.dtype) != array
            refuse(differs.any(axis=1), f"{each.name} holds a value that {want} cannot hold")
        elif want.kind == "f" and array.dtype.kind == "f":
            over = np.isinf(cast) & np.isfinite(array)
            refuse(over.any(axis=1), f"{each.name} holds a value that {want} cannot hold")
    return cast.reshape(len(array), *shape)


def _flat(column: pa.Array, size: int, each: InputInfo, refuse: Any) -> np.ndarray:
    """`[n, size]` of a column of numbers, or of lists (of lists) with `size` elements in all."""
    count, column = len(column), _plain(column)
    refuse(_nulls(column), f"{each.name} is null")
    place = np.arange(count)
    values = column
    while (
        pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type)
    ):
        parents = np.asarray(pc.list_parent_indices(values))
        values = _plain(values.flatten())
        place = place[parents]
    lengths = np.bincount(place, minlength=count) if values is not column else np.full(count, 1)
    wrong = lengths != size
    refuse(wrong & ~_nulls(column), f"{each.name} has not {size} elements")
    inner = _nulls(values)
    if inner.any():
        refuse(np.isin(np.arange(count), place[inner]), f"{each.name} holds a null")
    if pa.types.is_null(values.type):
        flat = np.full(len(values), "" if each.dtype == "string" else 0, object if each.dtype == "string" else np.int64)
    elif each.dtype == "string":
        flat = np.array(values.fill_null("").to_pylist(), object)
        if flat.size and not all(isinstance(x, str) for x in flat):
            raise UsageError(f"the column {each.name} holds {values.type}, and the model takes texts")
    else:
        if not any(is_kind(values.type) for is_kind in _NUMBERS):
            raise UsageError(f"the column {each.name} holds {values.type}, and the model takes {each.dtype}")
        numbers = values.fill_null(False if pa.types.is_boolean(values.type) else 0) if inner.any() else values
        flat = numbers.to_numpy(zero_copy_only=False)
    if not wrong.any():
        return flat.reshape(count, size)
    made = np.full((count, size), "" if each.dtype == "string" else 0, flat.dtype)
    made[~wrong] = flat[~wrong[place]].reshape(-1, size)
    return made


def _hashes(features: dict[str, np.ndarray], count: int) -> np.ndarray:
    """uint64 `[count]`: a hash of each item's features."""
    numbers, texts = [], []
    for name in sorted(features):
        array = features[name]
        flat = np.ascontiguousarray(array).reshape(count, int(np.prod(array.shape[1:])))
        if array.dtype == object:
            texts.append(flat)
        else:
            numbers.append(flat.view(np.uint8))
    joined = np.concatenate(numbers, axis=1) if numbers else np.zeros((count, 0), np.uint8)
    width, data = joined.shape[1], joined.tobytes()
    made = np.empty(count, np.uint64)
    for at in range(count):
        digest = hashlib.blake2b(data[at * width : (at + 1) * width], digest_size=8)
        for block in texts:
            digest.update(json.dumps(block[at].tolist()).encode())
        made[at] = int.from_bytes(digest.digest(), "little")
    return made


def _plain(column: pa.Array) -> pa.Array:
    """Without the encodings that a writer may choose, such as a dictionary of the texts (pandas' categories)."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string()) if pa.types.is_string_view(column.type) else column


def _nulls(column: pa.Array) -> np.ndarray:
    if not column.null_count:
        return np.zeros(len(column), bool)
    return np.asarray(column.is_null())


def _row_shape(each: InputInfo) -> tuple[Any, ...]:
    return tuple(d for at, d in enumerate(each.shape) if at != each.axis)


def _columns_of(each: InputInfo, there: set[str]) -> list[str]:
    if each.name in there:
        return [each.name]
    shape = _row_shape(each)
    side_by_side = [f"{each.name}_{i}" for i in range(shape[0])] if len(shape) == 1 else []
    return side_by_side if side_by_side and set(side_by_side) <= there else []
