"""Runs a split model in a service: a user's state, items' rows, and scores from both.

In: features as arrays by input name. Out: arrays by output name. A `Ranker` holds one onnxruntime session per part.
States and rows carry the hash of the model that made them; `Ranker.score` refuses those of another model. Several
requests are scored in one run where the split has a file for that (`together`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mari_onnx import runtime
from mari_onnx.errors import BadFeatures, MariError, ModelError, OtherModel
from mari_onnx.splitting import manifest as manifests
from mari_onnx.splitting import together
from mari_onnx.splitting.manifest import InputInfo, Manifest, TensorInfo
from mari_onnx.splitting.packed import user_columns
from mari_onnx.splitting.rows import Arrays, ItemRows, UserState, of_zeros


class Ranker:
    """The models of a split, loaded.

    Args:
        folder: that `mari-onnx split` wrote.
        provider, threads, optimize: see `mari_onnx.runtime.session`.

    Attributes:
        manifest: of the split. sessions: part -> onnxruntime's session.
        user_columns: packed input -> which of its columns are the user's.

    Raises:
        ModelError: the folder is no split, or a model in it cannot be loaded.
        ProviderError: the provider is not there.
    """

    def __init__(self, folder: str | Path, provider: str = "cpu", threads: int = 1, optimize: bool = True):
        self.manifest: Manifest = manifests.read(folder)
        manifests.verify(Path(folder), self.manifest)
        self.sessions = {
            name: runtime.session(Path(folder, part.file), provider, optimize, threads)
            for name, part in self.manifest.parts.items()
        }
        self._inputs = {each.name: each for each in self.manifest.inputs}
        self.user_columns = user_columns(self.manifest)

    def user(self, features: Arrays) -> UserState:
        """The state of one user, which scores any number of requests of that user.

        Args:
            features: the user's inputs by name, in the source's element types and shapes, but `[1, ..]` where the
                source has a row per candidate. Further arrays are not read.

        Returns:
            Tensors as `Manifest.state` describes them, which share no memory with `features`.

        Raises:
            BadFeatures: an input is missing, or has another element type or shape. ModelError: user.onnx fails.
        """
        made = self._run("user", features, 1)
        # Copied: a state is kept, and the caller's array may be a buffer that the next request fills.
        passed = {t.name: self._given(features, t.name, "user").copy() for t in self.manifest.state if not t.made}
        return UserState({t.name: {**made, **passed}[t.name] for t in self.manifest.state}, self.manifest.state_key)

    def items(self, features: Arrays) -> ItemRows:
        """One row per item, in the order of the features; the items of one call do not influence each other.

        Args:
            features: the item's inputs by name, in the source's element types and shapes, `[n, ..]` with any n (along
                the candidate axis, if that is another). Further arrays are not read.

        Returns:
            Tensors as `Manifest.rows` describes them. Inputs that score.onnx reads as they are may share memory with
            `features`.

        Raises:
            BadFeatures: an input is missing, has another element type or shape, or inputs differ in their number of
                rows. ModelError: item.onnx fails, as on an id that is in no table.
        """
        part = self.manifest.parts.get("item")
        passed_on = [t.name for t in self.manifest.rows if not t.made]
        names = list(dict.fromkeys([*(part.inputs if part else ()), *passed_on]))
        count = self._count(features, names)
        axes = {name: self._inputs[name].axis for name in names}
        if not count and any(axis is not None for axis in axes.values()):  # see `score`
            given = {name: self._given(features, name, "item", 0) for name in names}
            return self.items({name: of_zeros(given[name], axis, 1) for name, axis in axes.items()}).between(0, 0)
        made = self._run("item", features, count)
        passed = {t.name: self._given(features, t.name, "items") for t in self.manifest.rows if not t.made}
        arrays = {t.name: {**made, **passed}[t.name] for t in self.manifest.rows}
        return ItemRows(arrays, {t.name: t.axis for t in self.manifest.rows}, count, self.manifest.rows_key)

    def score(self, state: UserState, rows: ItemRows, cross: Arrays | None = None) -> dict[str, np.ndarray]:
        """All outputs of the source for one request: one user and the candidates in `rows`, in their order.

        Without candidates, outputs have no rows. No part is run on empty tensors then, because onnxruntime ends the
        process on some of them.

        Args:
            rows: of n candidates.
            cross: the inputs that `Manifest.cross` names, `[n, ..]`. An input whose value is the number of candidates
                need not be there.

        Returns:
            Output -> array, in the source's element types and shapes, with the n candidates in the order of `rows`.

        Raises:
            OtherModel: the state or the rows were made by another model.
            BadFeatures: a tensor is missing, or has another element type, shape or number of rows.
            ModelError: score.onnx fails.
        """
        part = self.manifest.parts["score"]
        given = dict(cross or {})
        feed = {**self._state(state), **self._rows(rows)}
        count = self.count_of(rows, given)
        feed |= self._cross(given, count)
        self._count(rows.arrays, list(rows.arrays), count)
        if not count and (rows.arrays or any(self._inputs[name].axis is not None for name in self.manifest.cross)):
            return self._without_candidates(state, rows, given)
        answers = runtime.run(self.sessions["score"], {name: feed[name] for name in part.inputs}, part.file)
        return dict(zip(part.outputs, answers, strict=True))

    def _without_candidates(self, state: UserState, rows: ItemRows, cross: Arrays) -> dict[str, np.ndarray]:
        """`score` for none: where an output's size differs for one and two candidates is its axis without rows."""
        axes = {name: self._inputs[name].axis for name in self.manifest.cross if self._inputs[name].side != "count"}
        one, two = (
            self.score(
                state,
                ItemRows({k: of_zeros(v, rows.axes[k], n) for k, v in rows.arrays.items()}, rows.axes, n, rows.key),
                {name: of_zeros(cross[name], axis, n) for name, axis in axes.items()},
            )
            for n in (1, 2)
        )
        found = {}
        for name, array in one.items():
            sizes = zip(array.shape, two[name].shape, strict=True)
            axis = next((at for at, (a, b) in enumerate(sizes) if a != b), None)
            found[name] = array if axis is None else np.take(array, [], axis)
        return found

    def score_many(self, requests: Sequence[tuple[UserState, ItemRows, Arrays | None]]) -> list[dict[str, np.ndarray]]:
        """`score` for several requests: in one run, if the split has score.batched.onnx (`mari-onnx split --batched`).

        Args:
            requests: for each the state, the rows `[n, ..]` of its candidates, and cross inputs `[n, ..]`. Requests may
                have different n, and none.

        Raises:
            OtherModel, BadFeatures: of the first request that is wrong; see `score`.
        """
        if self.manifest.batched is None or len(requests) < 2:
            return [self.score(*request) for request in requests]
        for _, rows, _ in requests:
            self._rows(rows)
        given = [dict(cross or {}) for _, _, cross in requests]
        counts = [self.count_of(rows, cross) for (_, rows, _), cross in zip(requests, given, strict=True)]
        try:
            whole = ItemRows.joined([rows for _, rows, _ in requests])
        except ValueError:  # they differ in another dimension
            return [self.score(*request) for request in requests]
        answers = self.score_together([state for state, _, _ in requests], whole, counts, given)
        for answer in answers:
            if isinstance(answer, MariError):
                raise answer
        return [answer for answer in answers if not isinstance(answer, MariError)]

    def score_together(
        self, states: Sequence[UserState], rows: ItemRows, counts: Sequence[int], cross: Sequence[Arrays]
    ) -> list[dict[str, np.ndarray] | MariError]:
        """`score_many` for rows that were gathered for all requests at once. What is wrong with a request is its own
        answer, and the others get their outputs.

        Args:
            states, cross: for each request. counts: its number of candidates.
            rows: of the candidates of all requests, those of a request together, in the order of the requests.

        Raises:
            OtherModel, BadFeatures: all rows are those of another model, or are not as many as `counts` says.
        """
        self._rows(rows)
        if rows.arrays and rows.count != sum(counts):
            raise BadFeatures(f"there are rows of {rows.count} items for {sum(counts)} candidates")
        self._count(rows.arrays, list(rows.arrays), sum(counts) if rows.arrays else None)
        found: dict[int, dict[str, np.ndarray] | MariError] = {}
        ready: dict[int, tuple[Arrays, Arrays]] = {}
        groups: dict[Any, list[int]] = {}
        for at, (state, given, count) in enumerate(zip(states, cross, counts, strict=True)):
            try:
                ready[at] = self._state(state), self._cross(given, count)
                groups.setdefault(together.alike(self.manifest, *ready[at]), []).append(at)
            except MariError as error:
                found[at] = error
        ends = np.cumsum([0, *counts])
        for run in [run for group in groups.values() for run in self._runs(group, counts)]:
            mine, first, last = [ready[at] for at in run], run[0], run[-1]
            if len(run) > 1 and any(counts[at] for at in run):
                if last - first == len(run) - 1:
                    own = rows.between(ends[first], ends[last + 1])
                else:
                    own = rows.take(np.concatenate([np.arange(ends[at], ends[at + 1]) for at in run]))
                with suppress(ModelError):  # whose id is in no table is found by running each alone
                    answers = self.in_one_run(
                        [of for of, _ in mine], own.arrays, [of for _, of in mine], [counts[at] for at in run]
                    )
                    found.update(zip(run, answers, strict=True))
            for at in run:
                if at not in found:
                    found[at] = self._answer(states[at], rows.between(ends[at], ends[at + 1]), cross[at])
        return [found[at] for at in range(len(counts))]

    def _runs(self, requests: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
        """Which requests are scored in one run: as many as pay, in their order."""
        batched = self.manifest.batched
        if batched is None:
            return [[at] for at in requests]
        found: list[list[int]] = [[]]
        for at in requests:
            if batched.most is not None and found[-1] and sum(counts[k] for k in [*found[-1], at]) > batched.most:
                found.append([])
            found[-1].append(at)
        return found

    def count_of(self, rows: ItemRows, cross: Arrays) -> int:
        """How many candidates a request has.

        Raises:
            BadFeatures: cross inputs differ in how many rows they have, where score.onnx reads nothing of items.
        """
        return rows.count if rows.arrays else self._count(cross, [n for n in self.manifest.cross if n in cross])

    def _answer(self, state: UserState, rows: ItemRows, cross: Arrays) -> dict[str, np.ndarray] | MariError:
        try:
            return self.score(state, rows, cross)
        except MariError as error:
            return error

    def in_one_run(
        self, states: Sequence[Arrays], rows: Arrays, cross: Sequence[Arrays], counts: Sequence[int]
    ) -> list[dict[str, np.ndarray]]:
        """The outputs of several requests, by one run of score.batched.onnx, which the split has.

        The arguments are those of `mari_onnx.splitting.together.joined`, and are not checked.

        Raises:
            ModelError: the run fails.
        """
        part = self.manifest.parts["batched"]
        feed = together.joined(self.manifest, states, rows, cross, counts)
        answers = runtime.run(self.sessions["batched"], feed, part.file)
        outputs = dict(zip(part.outputs, answers, strict=True))
        return together.apart(self.manifest, outputs, states, rows, counts)

    def _state(self, state: UserState) -> dict[str, np.ndarray]:
        """What score.onnx reads of the user."""
        _same("the user's state was", state.key, self.manifest.state_key)
        return {t.name: _checked(state.arrays, t, "score") for t in self.manifest.state}

    def _rows(self, rows: ItemRows) -> dict[str, np.ndarray]:
        """What score.onnx reads of items."""
        _same("the items' rows were", rows.key, self.manifest.rows_key)
        read = self.manifest.parts["score"].inputs
        return {t.name: _checked(rows.arrays, t, "score") for t in self.manifest.rows if t.name in read}

    def _cross(self, cross: Arrays, count: int) -> dict[str, np.ndarray]:
        """The further inputs of score.onnx, for so many candidates."""
        found = {name: self._given(cross, name, "score", count) for name in self.manifest.cross}
        self._count(found, list(found), count)
        return found

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
        axis = self._inputs[name].axis
        if self._inputs[name].side != "packed" or axis is None:
            return array
        if not array.shape[axis]:
            raise BadFeatures(f"user: {name} has no row, and its first one has the user's columns")
        return np.take(array, [0], axis)

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
        given = {n: (np.shape(arrays[n]), axes.get(n)) for n in names if n in arrays}
        found = {n: shape[axis] for n, (shape, axis) in given.items() if axis is not None and axis < len(shape)}
        counts = set(found.values()) | ({known} if known is not None else set())
        if len(counts) > 1:
            rows = ", ".join(f"{name} {count}" for name, count in found.items())
            rows += f" for {known} candidates" if known is not None else ""
            raise BadFeatures(f"inputs differ in how many rows they have: {rows}", "each has one for every item")
        return counts.pop() if counts else 0


def _same(what: str, key: str, mine: str) -> None:
    """Refuses what was made by another model. Raises OtherModel."""
    if key != mine:
        raise OtherModel(
            f"{what} made by the model {key[:12]}, and this one reads those of {mine[:12]}",
            "make them anew with the models of this folder",
        )


def _checked(arrays: Arrays, info: InputInfo | TensorInfo, to: str) -> np.ndarray:
    """An array as `info` says.

    Raises:
        BadFeatures: it is missing, or is not.
    """
    if info.name not in arrays:
        near = ", ".join(arrays) or "none"
        raise BadFeatures(f"{to}: {info.name} is missing ({info.dtype} {_text(info.shape)})", f"there are: {near}")
    array: Any = arrays[info.name]
    if info.dtype != "string" and not hasattr(array, "dtype"):
        hint = "give an array of numpy; nothing is converted silently"
        raise BadFeatures(f"{to}: {info.name} is of the type {type(array).__name__}, not {info.dtype}", hint)
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
