"""Recorded requests: `.npz`, `.parquet` with a request-id column, or a folder of such files.

A user input may come as one row or as N rows; N rows must be equal, else it is tagged wrongly and
no optimized model could be right.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx.errors import UsageError
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.requests.bags import one
from mari_onnx.parity.requests.request import Request
from mari_onnx.parity.requests.runs_of_users import by_user

if TYPE_CHECKING:
    from mari_onnx.model.signature import Input, Signature
    from mari_onnx.sides.resolve import Sides

REQUEST_ID = "request_id"


class Reader:
    """Makes requests of what was recorded.

    Args:
        signature, sides: of the source model. If that has an index of user rows (`Sides.indices`), a recorded run may
            have several users, and each of them is a request; a run without the index is one user's.
    """

    def __init__(self, signature: Signature, sides: Sides):
        self.whole = self._layout = Layout(signature, sides)
        if sides.indices:
            single = replace(signature, inputs=tuple(i for i in signature.inputs if i.name not in sides.indices))
            self._layout = Layout(single, replace(sides, indices=()))

    def requests(self, arrays: Mapping[str, np.ndarray], label: str) -> list[Request]:
        """The requests of one recorded run, one for each of its users.

        Raises:
            UsageError: an input is missing or of another type or shape, N differs between inputs, or a user input's
                rows differ.
        """
        indices = self.whole.sides.indices
        several = by_user(arrays, indices[0], self._layout, label) if indices else [(label, arrays)]
        return [_request(each, self._layout, name) for name, each in several]

    def columns(self, table: Any) -> dict[str, np.ndarray]:
        """The inputs of one run as arrays, of a pandas table with a row for each candidate."""
        found = {each.name: _columns(each, table) for each in self.whole.signature.inputs}
        return {name: array for name, array in found.items() if array is not None}


def load(
    path: str | Path, signature: Signature, sides: Sides, request_id: str = REQUEST_ID
) -> list[Request]:
    """The requests of a file or folder.

    Args:
        path: an `.npz` with one array an input, or keys `<request>/<input>` for several requests; a
            `.parquet` with one row per candidate, one column an input (lists for inputs of higher rank;
            `input_0`, `input_1`, ... for the columns of `[N, F]`); or a folder of files of one of these kinds.
        signature, sides: of the source model; see `Reader`.
        request_id: the parquet column whose equal values make a request.

    Raises:
        UsageError: the file cannot be read, an input is missing or of another type or shape, N
            differs between inputs, or a user input's rows differ within a request.
    """
    path, reader = Path(path), Reader(signature, sides)
    found = [made for label, arrays in _read(path, reader, request_id) for made in reader.requests(arrays, label)]
    if not found:
        raise UsageError(f"{path} contains no request")
    return found


def as_requests(
    requests: str | os.PathLike[str] | Iterable[Request] | None, signature: Signature, sides: Sides
) -> list[Request]:
    """Requests as they are, or those of a file."""
    if isinstance(requests, str | os.PathLike):
        return load(os.fspath(requests), signature, sides)
    return list(requests or ())


def files_of(path: Path) -> list[Path]:
    """The recorded files of a path, all of one kind.

    Raises:
        UsageError: there are none, or they are no recorded requests.
    """
    if path.is_dir():
        found = sorted(path.glob("*.npz")) or sorted(path.glob("*.parquet"))
        if not found:
            raise UsageError(f"the folder {path} has no .npz and no .parquet file")
        return found
    if not path.is_file():
        raise UsageError(f"there is no file {path} of recorded requests", "--data takes .npz, .parquet or a folder")
    if path.suffix not in (".npz", ".parquet"):
        raise UsageError(f"{path} is not a file of recorded requests", "give an .npz, a .parquet, or a folder of them")
    return [path]


def _read(path: Path, reader: Reader, request_id: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    files = files_of(path)
    if files[0].suffix == ".parquet":
        yield from _parquet(path, files, reader, request_id)
        return
    names = {i.name for i in reader.whole.signature.inputs}
    for file in files:
        yield from npz(file, names)


def npz(path: Path, names: Collection[str]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The runs in an .npz with arrays by input name, or by `<request>/<input>`; names: of all inputs."""
    requests: dict[str, dict[str, np.ndarray]] = {}
    try:
        with np.load(path, allow_pickle=False) as data:
            for key in data.files:
                request, slash, name = key.partition("/")
                if key in names or not slash or name not in names:
                    request, name = "", key
                requests.setdefault(request, {})[name] = data[key]
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"cannot read the requests in {path}: {error}") from error
    for request, arrays in requests.items():
        yield f"{path.name} {request}".strip(), arrays


def _parquet(
    path: Path, files: Sequence[Path], reader: Reader, request_id: str
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    try:
        import pandas
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"reading {path} needs pandas and pyarrow", "pip install 'mari-onnx[parquet]'"
        ) from error
    try:
        tables = [pandas.read_parquet(file) for file in files]
        table = pandas.concat(tables) if len(tables) > 1 else tables[0]
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the requests in {path}: {error}") from error
    if request_id not in table.columns:
        raise UsageError(
            f"{path} has no column {request_id!r}", f"--request-id, one of {list(table.columns)}"
        )
    for value, rows in table.groupby(request_id, sort=False):
        yield f"{path.name} {request_id}={value}", reader.columns(rows)


def _columns(each: Input, rows: Any) -> np.ndarray | None:
    """An input's rows from a table: its own column, or `name_0`, `name_1`, ... side by side."""
    if each.name in rows.columns:
        parts = [np.asarray(cell) for cell in rows[each.name]]
        try:
            array = np.stack(parts)
        except ValueError as error:
            what = f"in column {each.name!r} the rows have different lengths"
            raise UsageError(what, "pad them to one length") from error
        if array.dtype == object and array.ndim > 1:  # lists of lists
            array = np.array([[list(x) for x in part] for part in parts])
        width = each.shape[-1] if each.shape else None
        if array.ndim + 1 == len(each.shape) and width == 1:
            array = array[..., None]
        return array
    width = each.shape[1] if len(each.shape) == 2 else None
    names = [f"{each.name}_{i}" for i in range(width)] if isinstance(width, int) else []
    if names and all(name in rows.columns for name in names):
        return np.stack([rows[name].to_numpy() for name in names], axis=1)
    return None


def _request(arrays: Mapping[str, np.ndarray], layout: Layout, label: str) -> Request:
    names = [i.name for i in layout.signature.inputs]
    for name in arrays:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UsageError(f"{label}: the model has no input {name!r}", f"{hint}inputs are: {', '.join(names)}")
    missing = [name for name in names if name not in arrays]
    if missing:
        what = f"{label}: there are no values for the inputs {', '.join(missing)}"
        raise UsageError(what, "add an array per input, under its name")
    made = Request({}, {}, 0, {}, layout.axis, label, whole=layout.whole, axes=layout.axes, bags=layout.sides.bags)
    arrays = {**arrays, **one(arrays, layout.bags(user=True), label)}
    counts: dict[str, int] = {}
    for each in layout.signature.inputs:
        array = _typed(each, arrays[each.name], label)
        axis = layout.axis_of(each.name)
        if layout.is_count(each.name):
            made.counts[each.name] = array
            counts[each.name] = int(array.reshape(-1)[0])
            continue
        if layout.is_user(each.name):
            once = each.name in layout.whole
            made.user[each.name] = array if once else _one_row(each.name, array, layout.axis_at(each.name), label)
            continue
        if axis is not None:
            made.rows[each.name] = array
            counts[each.name] = array.shape[axis]
        else:
            made.literal[each.name] = array
            n = layout.candidates_of(each, array)
            if n is not None:
                counts[each.name] = n
        packed = layout.sides.columns.get(each.name, {}).get("user", ())
        if packed:
            _one_row(f"{each.name}[:, {list(packed)}]", array[:, list(packed)], 0, label)
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise UsageError(f"{label}: the inputs differ in their number of candidates: {text}")
    made.n = next(iter(counts.values()), 1)
    return made


def _typed(each: Input, array: np.ndarray, label: str) -> np.ndarray:
    where = f"{label}: input {each.name!r}"
    if len(array.shape) != len(each.shape) and each.rank_known:
        raise UsageError(f"{where} has shape {list(array.shape)}, the model takes {each.text}")
    if each.dtype == object:
        return array.astype(object)
    if array.dtype == each.dtype:
        return array
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{where} has type {array.dtype}, the model takes {each.dtype}")
    with np.errstate(invalid="ignore"):
        cast = array.astype(each.dtype)
    if each.dtype.kind in "biu" and not np.array_equal(cast.astype(array.dtype), array):
        raise UsageError(f"{where} holds values that {each.dtype} cannot hold")
    return cast


def _one_row(name: str, array: np.ndarray, axis: int, label: str) -> np.ndarray:
    if array.shape[axis] == 0:  # no candidates: the optimized model takes a row all the same, and any will do
        shape = [1 if at == axis else size for at, size in enumerate(array.shape)]
        return np.full(shape, "" if array.dtype.kind in "OU" else 0, array.dtype)
    first = array.take([0], axis=axis)
    same = array == first
    if array.dtype.kind == "f":
        same = same | (np.isnan(array) & np.isnan(first))
    if not np.all(same):
        others = tuple(i for i in range(array.ndim) if i != axis)
        row = int(np.argmin(np.all(same, axis=others)))
        raise UsageError(
            f"{label}: input {name} is tagged user, but its row {row} differs from row 0",
            "if an input differs between the candidates of a request, tag it --item or --cross",
        )
    return first
