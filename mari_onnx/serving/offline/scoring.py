"""Scores of recorded requests on many machines.

In: a split, or a model file, and recorded requests. Out: a Ray dataset with a row for each candidate.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from mari_onnx import runtime
from mari_onnx.errors import MariError, UsageError, first_line
from mari_onnx.model.load import load
from mari_onnx.model.signature import Input, Signature, signature
from mari_onnx.parity.check import find_sides
from mari_onnx.parity.requests.recorded import REQUEST_ID, Reader
from mari_onnx.parity.requests.request import Request
from mari_onnx.serving.offline import cluster, requests
from mari_onnx.serving.protocol import read_by
from mari_onnx.serving.service import Answer, Service
from mari_onnx.serving.service import Request as Asked
from mari_onnx.sides.resolve import Sides
from mari_onnx.splitting.assembly import Assembly
from mari_onnx.splitting.manifest import Manifest, is_split
from mari_onnx.splitting.ranker import Ranker

BATCH = 64
"""Requests that a worker takes at a time."""


def score(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    request_id: str = REQUEST_ID,
    sides: Sides | None = None,
    provider: str = "cpu",
    threads: int = 1,
) -> ray.data.Dataset:
    """The outputs of a model for recorded requests, computed when the dataset is read.

    Args:
        model: the folder of a split, or a model file. data: as `mari-onnx check --data` takes it.
        request_id: the column of a .parquet whose equal values make a request.
        sides: of a file's inputs; by default from its metadata or the side file beside it.
        provider, threads: of each worker's sessions.

    Returns:
        A row for each candidate: `request`, `candidate` (its place in the request), and a column for each output, a
        number or a list of them. A request that the model fails on has one row with `error`, and nothing else.

    Raises:
        UsageError: there are no such requests, or an output is no tensor with a row for each candidate.
    """
    path = Path(model).resolve()
    loaded = Assembly(path).model if is_split(path) else load(path)
    known = find_sides([path], [loaded]) if sides is None else sides
    mine = signature(loaded)
    for output in mine.outputs:
        if "(" in output.type or not output.rank_known:
            raise UsageError(f"the output {output.name} is {output.type} {output.text}: only tensors make a table")
    given = {
        "model": str(path), "sides": known, "signature": mine, "provider": provider, "threads": threads,
        "libraries": runtime.custom_ops_in_use(),
    }  # fmt: skip
    return requests.read(Path(data), mine, request_id).map_batches(
        Scorer, batch_size=BATCH, compute=cluster.workers(threads), num_cpus=threads, fn_constructor_kwargs=given
    )


class Scorer:
    """Scores requests, in a process of Ray; the model is opened once."""

    def __init__(
        self, model: str, sides: Sides, signature: Signature, provider: str, threads: int, libraries: tuple[str, ...]
    ):
        self._reader, self._outputs = Reader(signature, sides), signature.outputs
        whole = self._reader.whole
        self._axes = [_axis(output, whole.axis, whole.fixed_n) for output in signature.outputs]
        self._given = model, provider, threads
        self._libraries = libraries

    @cached_property
    def _model(self) -> _File | _Split:
        with runtime.custom_ops(self._libraries):
            return _Split(*self._given) if is_split(Path(self._given[0])) else _File(*self._given)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """A row for each candidate."""
        asked = list(requests.requests_of(batch, self._reader))
        tables = [self._table(*pair) for pair in zip(asked, self._model.answers(asked), strict=True)]
        return pa.concat_tables(tables)

    def _table(self, request: Request, answer: list[np.ndarray] | MariError) -> pa.Table:
        failed = isinstance(answer, MariError)
        count = 1 if failed else request.n
        columns: dict[str, pa.Array] = {
            "request": pa.array([request.label] * count, pa.string()),
            "candidate": pa.nulls(count, pa.int64()) if failed else pa.array(np.arange(count)),
        }
        for at, (output, axis) in enumerate(zip(self._outputs, self._axes, strict=True)):
            kind = _kind(output, axis)
            columns[output.name] = (
                pa.nulls(count, kind) if isinstance(answer, MariError) else _column(answer[at], axis, count, kind)
            )
        why = first_line(answer) if isinstance(answer, MariError) else None
        columns["error"] = pa.array([why] * count, pa.string())
        return pa.table(columns)


def _axis(output: Input, axis: int, fixed: int | None) -> int | None:
    """The axis of the candidates in an output; None where it has another size, such as a vector of the user.

    Args:
        axis: of the candidates in inputs. fixed: their number, where the model takes one alone.
    """
    if len(output.shape) <= axis:
        return None
    size = output.shape[axis]
    return None if isinstance(size, int) and size != fixed else axis


def _column(array: np.ndarray, axis: int | None, count: int, kind: pa.DataType) -> pa.Array:
    """An output's rows; one for all candidates is repeated."""
    along = axis is not None and array.ndim > axis and array.shape[axis] == count
    rows = np.moveaxis(array, axis, 0) if along else np.repeat(array[None], count, 0)  # type: ignore[arg-type]
    flat = rows.reshape(count, int(np.prod(rows.shape[1:])))
    if flat.dtype.kind == "V" or flat.dtype.name == "bfloat16":
        flat = flat.astype(np.float32)
    if not pa.types.is_list(kind):
        return pa.array(flat[:, 0].tolist() if flat.dtype == object else flat[:, 0], kind)
    return pa.array(list(flat) if flat.dtype != object else flat.tolist(), kind)


def _kind(output: Input, axis: int | None) -> pa.DataType:
    """The type of an output's column. axis: of the candidates."""
    if output.dtype == object:
        element = pa.string()
    else:
        own = output.dtype.kind in "biuf" and output.dtype.name != "bfloat16"
        element = pa.from_numpy_dtype(output.dtype) if own else pa.float32()
    one = all(size == 1 for at, size in enumerate(output.shape) if at != axis)
    return element if one else pa.list_(element)


class _File:
    """A model in one file."""

    def __init__(self, path: str, provider: str, threads: int):
        self._session = runtime.session(path, provider, threads=threads)
        self._path = path

    def answers(self, asked: Sequence[Request]) -> list[list[np.ndarray] | MariError]:
        """The outputs of each request, or what is wrong with it."""
        return [self._answer(each) for each in asked]

    def _answer(self, request: Request) -> list[np.ndarray] | MariError:
        try:
            return [*runtime.run(self._session, request.feed(self._session.get_inputs()), self._path)]
        except MariError as error:
            return error


class _Split:
    """The folder of a split, as a service without a store and a cache."""

    def __init__(self, folder: str, provider: str, threads: int):
        self._service = Service(Ranker(folder, provider, threads))
        self._manifest = self._service.ranker.manifest

    def answers(self, asked: Sequence[Request]) -> list[list[np.ndarray] | MariError]:
        """The outputs of each request, or what is wrong with it."""
        answers = self._service.score_many([_asked(each, self._manifest) for each in asked])
        names = [each.name for each in self._manifest.outputs]
        return [[a.outputs[name] for name in names] if isinstance(a, Answer) else a for a in answers]


def _asked(request: Request, manifest: Manifest) -> Asked:
    """A recorded request as the service takes it."""
    found: dict[str, dict[str, np.ndarray]] = {"user": {}, "item": {}, "cross": {}}
    sides = {each.name: each.side for each in manifest.inputs}
    for name, array in request.arrays().items():
        for each in read_by(sides[name], False):
            found[each][name] = array
    return Asked(None, None, found["user"], found["item"], found["cross"])
