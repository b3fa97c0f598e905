"""Recorded requests as a Ray dataset.

In: what `--data` takes: .npz, .parquet, or a folder of them. Out: a dataset with a row for each recorded run: `request`
(its id), `kind`, and `data` (its arrays as they were recorded); and in a worker the requests of such rows.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from mari_onnx.errors import UsageError
from mari_onnx.parity.requests.recorded import REQUEST_ID, Reader, files_of, npz
from mari_onnx.serving.offline import cluster

if TYPE_CHECKING:
    from mari_onnx.model.signature import Signature
    from mari_onnx.parity.requests.request import Request

TABLE, ARRAYS = "table", "arrays"
PLACE = "mari_onnx_place"
PART = 64 << 20
"""Bytes of files whose requests are sorted by their ids in one process."""


def read(data: str | Path, signature: Signature, request_id: str = REQUEST_ID) -> ray.data.Dataset:
    """The dataset. Rows of a .parquet are put together by their request's id, in whichever file they are.

    Args:
        signature: of the source. request_id: the column of a .parquet whose equal values make a request.

    Raises:
        UsageError: there are no such files, or the column is missing.
    """
    path = Path(data).resolve()
    files = [str(file) for file in files_of(path)]
    cluster.start()
    if Path(files[0]).suffix == ".npz":
        names = tuple(each.name for each in signature.inputs)
        return ray.data.from_items([{"path": file} for file in files]).flat_map(_of_file, fn_args=(names,))
    return _of_tables(path, files, signature, request_id)


def _of_tables(path: Path, files: Sequence[str], signature: Signature, request_id: str) -> ray.data.Dataset:
    """Ray puts rows of equal ids together and says nothing of their order, so each row is read with its place."""
    wanted: list[str] = []
    groups, first = [], 0
    for file in files:  # one after the other: there may be more than a process may have open
        try:
            with pq.ParquetFile(file) as opened:
                there, known = opened.schema_arrow.names, opened.metadata
        except (OSError, pa.ArrowInvalid) as error:
            raise UsageError(f"cannot read the requests in {path}: {str(error).splitlines()[0]}") from error
        if request_id not in there:
            raise UsageError(f"{file} has no column {request_id!r}", f"--request-id, one of {there}")
        wanted = wanted or [name for name in there if name == request_id or _is_read(name, signature)]
        if lacking := [name for name in wanted if name not in there]:
            raise UsageError(f"{file} has no column {lacking[0]!r}, which {files[0]} has")
        for number in range(known.num_row_groups):
            groups.append({"path": file, "number": number, "first": first})
            first += known.row_group(number).num_rows
    dataset = ray.data.from_items(groups)
    dataset.context.target_max_block_size = None  # a request is in one block
    rows = dataset.map_batches(_rows_of, batch_size=1, fn_args=(wanted,))
    # Some parts for each worker, and none of much memory.
    parts = max(2 * (cluster.workers(1).max_size or 1), sum(Path(file).stat().st_size for file in files) // PART)
    return rows.groupby(request_id, parts).map_groups(
        _of_group, batch_format="pyarrow", fn_args=(path.name, request_id)
    )


def requests_of(batch: Mapping[str, Any], reader: Reader) -> Iterator[Request]:
    """The requests of some rows of the dataset, as numpy hands them over.

    Raises:
        UsageError: one is wrong.
    """
    for label, kind, data in zip(batch["request"], batch["kind"], batch["data"], strict=True):
        if kind == TABLE:
            with pa.ipc.open_stream(data) as stream:
                arrays = reader.columns(stream.read_pandas())
        else:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name[1:]: file[name] for name in file.files}
        yield from reader.requests(arrays, str(label))


def _is_read(column: str, signature: Signature) -> bool:
    names = {each.name for each in signature.inputs}
    return column in names or column.rpartition("_")[0] in names


def _of_file(row: dict[str, Any], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The requests in an .npz."""
    found = []
    for label, arrays in npz(Path(row["path"]), names):
        file = io.BytesIO()
        np.savez(file, **{f"_{name}": array for name, array in arrays.items()})  # type: ignore[arg-type]
        found.append({"request": label, "kind": ARRAYS, "data": file.getvalue()})
    return found


def _rows_of(group: dict[str, np.ndarray], columns: list[str]) -> pa.Table:
    """The rows of a group of rows of a .parquet, each with its place among all."""
    table = pq.ParquetFile(str(group["path"][0])).read_row_group(int(group["number"][0]), columns=columns)
    return table.append_column(PLACE, pa.array(int(group["first"][0]) + np.arange(len(table))))


def _of_group(table: pa.Table, name: str, request_id: str) -> dict[str, list[Any]]:
    """One request: the rows of a .parquet with one id."""
    table, sink = table.sort_by(PLACE).drop_columns([PLACE]), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    label = f"{name} {request_id}={table.column(request_id)[0].as_py()}"
    return {"request": [label], "kind": [TABLE], "data": [sink.getvalue().to_pybytes()]}
