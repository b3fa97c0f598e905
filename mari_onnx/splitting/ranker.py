"""Runs a split model in a service: a user's state, items' rows, and scores from both.

In: features as arrays by input name. Out: arrays by output name. A `Ranker` holds one onnxruntime session per part.
States and rows carry the hash of the model that made them; `Ranker.score` refuses those of another model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mari_onnx import runtime
from mari_onnx.errors import BadFeatures, OtherModel
from mari_onnx.splitting import manifest as manifests
from mari_onnx.splitting.manifest import InputInfo, Manifest, TensorInfo

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class UserState:
    """What score.onnx reads of one user. arrays: as the manifest's `state` says. key: `Manifest.state_key`."""

    arrays: Arrays
    key: str


@dataclass(frozen=True)
class ItemRows:
    """What score.onnx reads of some items, one row per item.

    arrays: as the manifest's `rows` says. axes: name -> the axis of the rows, None where a tensor has none.
    count: how many items. key: `Manifest.rows_key`.
    """

    arrays: Arrays
    axes: Mapping[str, int | None]
    count: int
    key: str

    def take(self, places: Sequence[int] | np.ndarray, out: ItemRows | None = None) -> ItemRows:
        """The rows of some items, in that order; a place may come several times.

        Args:
            out: an earlier answer for as many places, which is no longer needed: its memory is filled anew. For large
                rows that is faster, since memory that is freed and taken again has to be mapped again.

        Raises:
            BadFeatures: a place that is not there; `out` has another shape.
        """
        at = np.asarray(places, np.int64)
        # Where score.onnx reads nothing of the item, there are no rows, and any place will do.
        if self.arrays and at.size and not (at.min() >= 0 and at.max() < self.count):
            raise BadFeatures(f"there are rows of {self.count} items, not of item {int(at.max())}", "count from 0")
        into: Arrays = out.arrays if out is not None else {}
        found = {}
        for name, array in self.arrays.items():
            axis, room = self.axes[name], into.get(name)
            if axis is None:
                found[name] = array
                continue
            try:
                # Places are in range, so "clip" changes none; with "raise" numpy would fill a copy of `out` first.
                found[name] = np.take(array, at, axis=axis, out=room, mode="clip")
            except (TypeError, ValueError) as error:
                raise BadFeatures(f"out: {name} is no room for the rows of {len(at)} items: {error}") from error
        return ItemRows(found, self.axes, len(at), self.key)


class Ranker:
    """The models of a split, loaded.

    Args:
        folder: that `mari-onnx split` wrote.
        provider, threads, optimize: see `mari_onnx.runtime.session`.

    Raises:
        ModelError: the folder is no split, or a model in it cannot be loaded.
    """

    def __init__(self, folder: str | Path, provider: str = "cpu", threads: int = 1, optimize: bool = True):
        self.manifest: Manifest = manifests.read(folder)
        manifests.verify(Path(folder), self.manifest)
        self.sessions = {
            name: runtime.session(Path(folder, part.file), provider, optimize, threads)
            for name, part in self.manifest.parts.items()
        }
        self._inputs = {each.name: each for each in self.manifest.inputs}

    def user(self, features: Arrays) -> UserState:
        """The state of one user, which scores any number of requests of that user.

        Args:
            features: the user's inputs, with one row where the source has a row per candidate.

        Raises:
            BadFeatures: an input is missing or has another element type.
        """
        made = self._run("user", features, 1)
        passed = {t.name: self._given(features, t.name, "user") for t in self.manifest.state if not t.made}
        return UserState({t.name: {**made, **passed}[t.name] for t in self.manifest.state}, self.manifest.state_key)

    def items(self, features: Arrays) -> ItemRows:
        """One row per item, in the order of the features; the items of one call do not influence each other.

        Args:
            features: the item's inputs, with any number of rows.

        Raises:
            BadFeatures: an input is missing or has another element type, or inputs differ in their number of rows.
        """
        part = self.manifest.parts.get("item")
        passed_on = [t.name for t in self.manifest.rows if not t.made]
        names = list(dict.fromkeys([*(part.inputs if part else ()), *passed_on]))
        count = self._count(features, names)
        made = self._run("item", features, count)
        passed = {t.name: self._given(features, t.name, "items") for t in self.manifest.rows if not t.made}
        arrays = {t.name: {**made, **passed}[t.name] for t in self.manifest.rows}
        return ItemRows(arrays, {t.name: t.axis for t in self.manifest.rows}, count, self.manifest.rows_key)

    def score(self, state: UserState, rows: ItemRows, cross: Arrays | None = None) -> dict[str, np.ndarray]:
        """All outputs of the source for one request: one user and the candidates in `rows`, in their order.

        Args:
            cross: the inputs that `Manifest.cross` names, with a row for each candidate. An input whose value is the
                number of candidates need not be there.

        Raises:
            OtherModel: the state or the rows were made by another model.
            BadFeatures: a tensor is missing, or has another element type or number of rows.
        """
        for what, key, mine in (
            ("the user's state was", state.key, self.manifest.state_key),
            ("the items' rows were", rows.key, self.manifest.rows_key),
        ):
            if key != mine:
                raise OtherModel(
                    f"{what} made by the model {key[:12]}, and this one reads those of {mine[:12]}",
                    "make them anew with the models of this folder",
                )
        part, cross = self.manifest.parts["score"], dict(cross or {})
        handed = {t.name: t for t in (*self.manifest.state, *self.manifest.rows)}
        count = rows.count if rows.arrays else self._count(cross, [n for n in self.manifest.cross if n in cross])
        feed = {}
        for name in part.inputs:
            if name in handed:
                feed[name] = _checked(state.arrays if name in state.arrays else rows.arrays, handed[name], "score")
            else:
                feed[name] = self._given(cross, name, "score", count)
        self._count({**rows.arrays, **cross}, [n for n in part.inputs if n not in state.arrays], count)
        answers = runtime.run(self.sessions["score"], feed, part.file)
        return dict(zip(part.outputs, answers, strict=True))

    def score_each(self, requests: Sequence[tuple[UserState, ItemRows, Arrays | None]]) -> list[dict[str, np.ndarray]]:
        """`score` for several requests, one after the other."""
        return [self.score(*request) for request in requests]

    def _run(self, name: str, features: Arrays, count: int) -> dict[str, np.ndarray]:
        part = self.manifest.parts.get(name)
        if part is None:
            return {}
        feed = {each: self._given(features, each, name, count) for each in part.inputs}
        if name == "user":
            feed = {k: self._first(k, v) for k, v in feed.items()}
        return dict(zip(part.outputs, runtime.run(self.sessions[name], feed, part.file), strict=True))

    def _first(self, name: str, array: np.ndarray) -> np.ndarray:
        """The first row of an input that has columns of the user among others."""
        each = self._inputs[name]
        whole = each.side != "packed" or each.axis is None
        return array if whole else np.take(array, range(min(1, array.shape[each.axis or 0])), axis=each.axis)

    def _given(self, features: Arrays, name: str, to: str, count: int | None = None) -> np.ndarray:
        each = self._inputs[name]
        if each.side == "count" and count is not None and (to != "score" or name not in features):
            shape = tuple(d if isinstance(d, int) else 1 for d in each.shape)
            return np.full(shape, count, dtype=each.dtype)
        return _checked(features, each, to)

    def _count(self, arrays: Arrays, names: Sequence[str], known: int | None = None) -> int:
        """How many rows the tensors have."""
        axes: dict[str, int | None] = {t.name: t.axis for t in self.manifest.rows}
        axes |= {i.name: i.axis for i in self.manifest.inputs if i.side != "user"}
        found = {n: np.shape(arrays[n])[axes[n]] for n in names if axes.get(n) is not None and n in arrays}  # type: ignore[index]
        counts = set(found.values()) | ({known} if known is not None else set())
        if len(counts) > 1:
            rows = ", ".join(f"{name} {count}" for name, count in found.items())
            raise BadFeatures(f"inputs differ in how many rows they have: {rows}", "each has one for every item")
        return counts.pop() if counts else 0


def _checked(arrays: Arrays, info: InputInfo | TensorInfo, to: str) -> np.ndarray:
    """An array as `info` says.

    Raises:
        BadFeatures: it is missing, or is not.
    """
    if info.name not in arrays:
        near = ", ".join(arrays) or "none"
        raise BadFeatures(f"{to}: {info.name} is missing ({info.dtype} {_text(info.shape)})", f"there are: {near}")
    array: Any = arrays[info.name]
    kind = "string" if getattr(array, "dtype", np.dtype(object)).kind in "OUS" else str(np.asarray(array).dtype)
    if kind != info.dtype:
        raise BadFeatures(f"{to}: {info.name} is {kind}, not {info.dtype}", "convert it; nothing is converted silently")
    shape = np.shape(array)
    fits = len(shape) == len(info.shape) and all(
        not isinstance(want, int) or have == want or i == info.axis
        for i, (have, want) in enumerate(zip(shape, info.shape, strict=True))
    )
    if not fits:
        raise BadFeatures(f"{to}: {info.name} has the shape {list(shape)}, not {_text(info.shape)}")
    return np.asarray(array)


def _text(shape: manifests.Shape) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"
