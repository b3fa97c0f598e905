"""Runs of rows, each sorted by id, merged into one sorted file.

In: files of runs. Out: one file. Of each run only a few rows are in memory at a time, and at most `WIDTH` runs are
merged at once, so memory does not grow with the number of items.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from mari_onnx.serving.row_format import ID, RowFormat, ids_from_arrow, ids_to_arrow, shown

WIDTH = 64
"""Runs that are merged at once."""
STEP = 256
"""Rows of a batch in a run."""
BLOCK = 16_384
"""Rows of a batch in the store."""
DUPLICATES = 20
"""Ids that are named."""
ROW = "row"
"""The column of a run that says which row of the catalogue it was: of equal ids the first one stays."""


@dataclass
class Merged:
    """rows: in the file. duplicates: rows left out since their id came before; some of these ids."""

    rows: int
    duplicates: int
    duplicate_ids: list[int | str]


def write_run(
    path: Path,
    format: RowFormat,
    ids: np.ndarray,
    hashes: np.ndarray,
    rows: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    said: Mapping[str, Any],
) -> None:
    """Sorts rows by id and writes them; the file is there when all of it is.

    Args:
        ids, hashes, rows: `[n]`. arrays: tensor -> `[n, ..]`. said: is kept with them.
    """
    order = np.argsort(ids, kind="stable")
    schema = format.schema(ids_to_arrow(ids).type, {"said": dict(said)})
    with _written(path, schema.append(pa.field(ROW, pa.int64(), False))) as writer:
        for start in range(0, len(ids), STEP):
            some = order[start : start + STEP]
            part = format.batch(schema, ids[some], hashes[some], {k: v[some] for k, v in arrays.items()})
            writer.write_batch(part.append_column(ROW, pa.array(rows[some])))


def said_of_run(path: Path) -> dict[str, Any]:
    """What was kept with a run."""
    with pa.OSFile(str(path)) as file:
        found: dict[str, Any] = RowFormat.read(pa.ipc.open_file(file).schema, path)[1]["said"]
    return found


def merge(runs: Sequence[Path], path: Path, format: RowFormat) -> Merged:
    """Writes the rows of all runs to `path`, sorted by id; of equal ids the first row of the catalogue.

    Args:
        runs: files of `write_run`, which stay.
    """
    left, level, duplicates, names = list(runs), 0, 0, []
    while len(left) > WIDTH:
        groups = [left[at : at + WIDTH] for at in range(0, len(left), WIDTH)]
        left = [path.with_name(f"level-{level}-{at}.tmp") for at in range(len(groups))]
        for group, out in zip(groups, left, strict=True):
            merged = _merge(group, out, format, last=False)
            duplicates += merged.duplicates
            names += merged.duplicate_ids
            if level:
                for file in group:
                    file.unlink()
        level += 1
    done = _merge(left, path, format, last=True)
    for file in left if level else ():
        file.unlink()
    return Merged(done.rows, done.duplicates + duplicates, [*names, *done.duplicate_ids][:DUPLICATES])


def _merge(runs: Sequence[Path], path: Path, format: RowFormat, last: bool) -> Merged:
    files = [pa.OSFile(str(run)) for run in runs]
    readers = [pa.ipc.open_file(file) for file in files]
    kinds = {reader.schema.field(ID).type for reader in readers if reader.num_record_batches}
    widest = max(kinds, key=lambda kind: getattr(kind, "byte_width", 8)) if kinds else pa.int64()
    done = Merged(0, 0, [])
    schema = format.schema(widest, {})
    if not last:
        schema = schema.append(pa.field(ROW, pa.int64(), False))
    with _written(path, schema) as writer:
        pending: list[pa.Table] = []
        for table in _sorted([_Cursor(reader, widest) for reader in readers], done):
            pending.append(table if not last else table.drop_columns([ROW]))
            done.rows += table.num_rows
            size = BLOCK if last else STEP
            while sum(t.num_rows for t in pending) >= size:
                whole = pa.concat_tables(pending)
                writer.write_batch(_one_batch(whole.slice(0, size)))
                pending = [whole.slice(size)]
        rest = pa.concat_tables(pending) if pending else None
        if rest is not None and rest.num_rows:
            writer.write_batch(_one_batch(rest))
    for file in files:
        file.close()
    return done


def _sorted(cursors: list[_Cursor], done: Merged) -> Iterator[pa.Table]:
    """Rows of all runs in order, without those whose id came before; `done` counts these."""
    before: np.ndarray | None = None
    while cursors := [cursor for cursor in cursors if cursor.fill()]:
        # Every run has read all its rows up to this id, or at least the first one with it.
        bound = min(cursor.ids[-1] for cursor in cursors)
        table = pa.concat_tables([cursor.up_to(bound) for cursor in cursors])
        ids = np.concatenate([ids_from_arrow(chunk) for chunk in table.column(ID).chunks])
        order = np.lexsort((table.column(ROW).to_numpy(), ids))
        ids = ids[order]
        fresh = np.ones(len(ids), bool)
        fresh[1:] = ids[1:] != ids[:-1]
        fresh[0] = before is None or ids[0] != before[0]
        before = ids[-1:]
        if not fresh.all():
            done.duplicates += int((~fresh).sum())
            done.duplicate_ids += shown(ids[~fresh][: DUPLICATES - len(done.duplicate_ids)])
        if fresh.any():
            yield table.take(order[fresh])


class _Cursor:
    """A run from some row on: `ids` and rows of the batch that was read last and is not used up."""

    def __init__(self, reader: Any, kind: pa.DataType):
        self._reader, self._kind, self._next = reader, kind, 0
        self.ids = np.zeros(0, np.int64)
        self._table: pa.Table | None = None

    def fill(self) -> bool:
        """Reads the next batch where the last one is used up; False at the end of the run."""
        while not len(self.ids):
            if self._next == self._reader.num_record_batches:
                return False
            batch = self._reader.get_batch(self._next)
            self._next += 1
            self.ids = ids_from_arrow(batch.column(ID))
            if self.ids.dtype.kind == "S":
                self.ids = self.ids.astype(f"S{self._kind.byte_width}")
            columns = [ids_to_arrow(self.ids), *batch.columns[1:]]
            self._table = pa.table(columns, names=batch.schema.names)
        return True

    def up_to(self, bound: Any) -> pa.Table:
        """The rows whose id is at most `bound`; they count as used."""
        count = int(np.searchsorted(self.ids, bound, side="right"))
        assert self._table is not None
        some, self._table = self._table.slice(0, count), self._table.slice(count)
        self.ids = self.ids[count:]
        return some


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    columns = [column.combine_chunks() if column.num_chunks != 1 else column.chunk(0) for column in table.columns]
    return pa.record_batch([pa.concat_arrays([c]) for c in columns], names=table.column_names)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file that is under its name when all of it is on the disk."""
    half = path.with_name(path.name + ".tmp")
    with open(half, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, path)


@contextmanager
def _written(path: Path, schema: pa.Schema) -> Iterator[_Writer]:
    """A writer of a file of record batches."""
    with whole_file(path) as file, pa.ipc.new_file(file, schema) as writer:
        yield _Writer(writer, schema)


@dataclass
class _Writer:
    """Gives each batch the schema of the file, which holds what is kept with the rows."""

    writer: Any
    schema: pa.Schema

    def write_batch(self, batch: pa.RecordBatch) -> None:
        self.writer.write_batch(pa.record_batch(batch.columns, schema=self.schema))
