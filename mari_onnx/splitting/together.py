"""Several requests in one run of score.batched.onnx: its inputs, made of those of all requests, and its outputs apart.

In: for each request what score.onnx reads, by name. Out: one feed; and of what that run answers the outputs of each
request. `BatchedInfo` says which form the file takes (docs/batching.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mari_onnx.splitting.manifest import InputInfo, Manifest
from mari_onnx.splitting.rows import Arrays


def joined(
    manifest: Manifest, states: Sequence[Arrays], rows: Arrays, cross: Sequence[Arrays], counts: Sequence[int]
) -> dict[str, np.ndarray]:
    """The inputs of one run.

    Args:
        states, cross: for each request, of equal shapes but for the number of candidates.
        rows: of the candidates of all requests, those of a request together. counts: candidates of each request, of
            which at least one has some.
    """
    batched, part = manifest.batched, manifest.parts["batched"]
    assert batched is not None
    inputs: dict[str, InputInfo] = {i.name: i for i in manifest.inputs}
    axes = {t.name: t.axis for t in manifest.rows}
    users = {t.name for t in manifest.state}
    places = _grid(counts) if batched.form == "grid" else None

    def of_candidates(array: np.ndarray, axis: int) -> np.ndarray:
        """`[R, .., N, ..]` in a grid, else as it is."""
        return array if places is None else np.moveaxis(np.take(array, places, axis), axis, 0)

    found: dict[str, np.ndarray] = {}
    for name in part.inputs:
        if name == batched.index:
            found[name] = _index(batched.form, counts)
        elif name in users:
            found[name] = np.stack([each[name] for each in states])
        elif name in axes:
            axis = axes[name]
            assert axis is not None
            found[name] = of_candidates(rows[name], axis)
        elif inputs[name].side == "count":
            found[name] = np.full_like(cross[0][name], sum(counts) if places is None else places.shape[1])
        elif (axis := inputs[name].axis) is None:
            found[name] = np.stack([each[name] for each in cross])
        else:
            found[name] = of_candidates(np.concatenate([each[name] for each in cross], axis), axis)
    return found


def apart(
    manifest: Manifest, outputs: Arrays, states: Sequence[Arrays], rows: Arrays, counts: Sequence[int]
) -> list[dict[str, np.ndarray]]:
    """All outputs of the source for each request, in its shapes. They share the memory of `outputs` and `rows`.

    Args:
        outputs: of the run; those that are a tensor of the state or of the rows as it is are not among them.
        states, rows, counts: see `joined`.
    """
    batched = manifest.batched
    assert batched is not None
    axes = {**{t.name: t.axis for t in manifest.rows}, **batched.axes}
    ends = np.cumsum(counts)
    found: list[dict[str, np.ndarray]] = [{} for _ in counts]
    for name in manifest.parts["score"].outputs:
        array = outputs.get(name, rows.get(name))
        for at, (mine, count) in enumerate(zip(found, counts, strict=True)):
            axis = axes.get(name)
            if array is None:
                mine[name] = states[at][name].copy()  # a caller may write to it, and the state is kept
            elif axis is None:
                mine[name] = array[at]
            elif batched.form == "grid" and name in outputs:
                mine[name] = array[at][_cut(axis, 0, count)]
            else:
                mine[name] = array[_cut(axis, ends[at] - count, ends[at])]
    return found


def alike(manifest: Manifest, state: Arrays, cross: Arrays) -> Any:
    """What requests of one run have in common: shapes of what is read of the user, and of cross inputs but for the
    number of candidates.
    """
    axes = {i.name: i.axis for i in manifest.inputs}
    found = [(name, array.shape) for name, array in state.items()]
    for name, array in cross.items():
        axis = axes[name]
        found.append((name, array.shape if axis is None else (*array.shape[:axis], *array.shape[axis + 1 :])))
    return tuple(found)


def _index(form: str, counts: Sequence[int]) -> np.ndarray:
    """int32: where the candidates of each request begin, and the last ones end; or for each candidate its request."""
    if form == "offsets":
        return np.cumsum([0, *counts], dtype=np.int32)
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def _grid(counts: Sequence[int]) -> np.ndarray:
    """`[R, N]`: which candidate of all stands where. A request with fewer than N repeats its last one; one without any
    has the first of all.
    """
    ends = np.cumsum(counts)[:, None]
    within = np.minimum(np.arange(max(counts)), np.maximum(np.asarray(counts), 1)[:, None] - 1)
    starts = ends - np.asarray(counts)[:, None]
    return np.where(np.asarray(counts)[:, None] > 0, starts + within, 0)


def _cut(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(start, stop))
