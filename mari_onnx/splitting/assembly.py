"""The models of a split as one model, for the check and for timing.

In: the folder of a split. Out: an `Assembly`. It runs the three models as a service would, and worse: item rows are
made in a batch with rows of another request, in another order, and a user's state is made once however often the user
comes. What depends on other rows of the batch is then not what the source computes, and the check finds it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, helper

from mari_onnx import runtime
from mari_onnx.model.load import load
from mari_onnx.model.nodes import rename_captures
from mari_onnx.model.provenance import set_metadata
from mari_onnx.sides.resolve import METADATA_KEY
from mari_onnx.splitting import manifest as manifests
from mari_onnx.splitting.manifest import InputInfo, Manifest
from mari_onnx.splitting.ranker import Ranker
from mari_onnx.splitting.rows import ItemRows, UserState

FOREIGN = 64
"""Rows of another request in a batch of items, at most."""
KEPT = 256
"""States of users that are kept."""


class Assembly(runtime.Assembly):
    """A split as a stand-in for its source: same inputs, the user's with one row, and same outputs.

    Args:
        batched: score by score.batched.onnx, which the split has, also a single request; and take several in a run.
    """

    def __init__(self, folder: str | Path, batched: bool = False):
        self.folder, self.batched = Path(folder), batched
        self.manifest = manifests.read(folder)
        manifests.verify(self.folder, self.manifest)
        self.model = merged(self.folder, self.manifest)
        if batched:
            assert self.manifest.batched is not None
            said = {**self.manifest.sides, "batched": self.manifest.batched.form}
            set_metadata(self.model, {METADATA_KEY: json.dumps(said, ensure_ascii=False)})

    @property
    def metadata(self) -> str:
        """The sides that the source was split by, as a model's metadata has them."""
        return json.dumps(self.manifest.sides, ensure_ascii=False)

    def open(self, provider: str, optimize: bool, threads: int) -> Any:
        """See `mari_onnx.runtime.session`."""
        return Session(Ranker(self.folder, provider, threads, optimize), self.model, self.batched)


class Session:
    """Runs a split; its methods are those of onnxruntime's session that the check calls."""

    def __init__(self, ranker: Ranker, model: onnx.ModelProto, batched: bool = False):
        self.ranker, self.manifest, self.batched = ranker, ranker.manifest, batched
        self._infos = [
            SimpleNamespace(name=i.name, shape=[d.dim_value if d.HasField("dim_value") else d.dim_param or None
                                                for d in i.type.tensor_type.shape.dim])
            for i in model.graph.input
        ]  # fmt: skip
        self._states: dict[Any, UserState] = {}
        self._foreign: dict[Any, dict[str, np.ndarray]] = {}

    def get_inputs(self) -> list[Any]:
        """Name and shape of each input."""
        return self._infos

    def run(self, names: Sequence[str] | None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs `names` of one request, by default all."""
        state, rows, cross = self._state(feed), self._rows(feed), self._cross(feed)
        count = self.ranker.count_of(rows, cross)
        if self.batched and count:
            (answers,) = self.ranker.in_one_run([state.arrays], rows.arrays, [cross], [count])
        else:
            answers = self.ranker.score(state, rows, cross)
        return [answers[name] for name in names or answers]

    def run_several(
        self, names: Sequence[str] | None, feeds: Sequence[Mapping[str, np.ndarray]]
    ) -> list[list[np.ndarray]]:
        """For each request its outputs `names`, by default all, of one run."""
        answers = self.ranker.score_many([(self._state(feed), self._rows(feed), self._cross(feed)) for feed in feeds])
        return [[answer[name] for name in names or answer] for answer in answers]

    def _cross(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {n: feed[n] for n in self.manifest.cross if n in feed}

    def _state(self, feed: Mapping[str, np.ndarray]) -> UserState:
        """The user's state; made once."""
        part, feed = self.manifest.parts.get("user"), self._with_a_row(feed)
        read = [*(part.inputs if part else ()), *(t.name for t in self.manifest.state if not t.made)]
        key = tuple(_identity(feed[name]) for name in read)
        if key not in self._states:
            if len(self._states) >= KEPT:
                self._states.clear()
            self._states[key] = self.ranker.user(feed)
        return self._states[key]

    def _with_a_row(self, feed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """A request with a row of zeros in packed inputs that have none: without candidates they say nothing of the
        user, and there is nothing to score that could tell users apart.
        """
        empty = {
            i.name: tuple(1 if k == i.axis else d for k, d in enumerate(np.shape(feed[i.name])))
            for i in self.manifest.inputs
            if i.side == "packed" and i.axis is not None and i.name in feed and not np.shape(feed[i.name])[i.axis]
        }
        nothing = {name: "" if feed[name].dtype.kind in "OUS" else 0 for name in empty}
        return {**feed, **{name: np.full(shape, nothing[name], feed[name].dtype) for name, shape in empty.items()}}

    def _rows(self, feed: Mapping[str, np.ndarray]) -> ItemRows:
        """The candidates' rows, made in a foreign batch and in another order."""
        inputs = {i.name: i for i in self.manifest.inputs}
        part = self.manifest.parts.get("item")
        passed_on = [t.name for t in self.manifest.rows if not t.made]
        read = {n: feed[n] for n in [*(part.inputs if part else ()), *passed_on]}
        along = {n: inputs[n].axis for n in read if inputs[n].axis is not None}
        counts = {np.shape(read[n])[axis] for n, axis in along.items() if axis is not None}
        if part is None or len(counts) != 1:
            return self.ranker.items(feed)
        (n,) = counts
        if not n:
            return self.ranker.items(read)
        others = self._foreign.setdefault(_alike(read, inputs), read)
        more = min(FOREIGN, *(np.shape(others[k])[axis] for k, axis in along.items() if axis is not None))
        order = np.random.default_rng(n).permutation(n + more)
        batch = {
            k: v if k not in along else np.take(np.concatenate(
                [v, np.take(others[k], range(more), axis=along[k])], axis=along[k] or 0), order, axis=along[k])
            for k, v in read.items()
        }  # fmt: skip
        return self.ranker.items(batch).take(np.argsort(order)[:n])


def _alike(arrays: Mapping[str, np.ndarray], inputs: Mapping[str, InputInfo]) -> Any:
    """What batches must have in common to be joined: other dimensions than the items', and what has no rows."""
    found = []
    for name, array in arrays.items():
        axis = inputs[name].axis
        if axis is None:
            found.append(_identity(array))
        else:
            found.append((name, str(array.dtype), array.shape[:axis], array.shape[axis + 1 :]))
    return tuple(found)


def _identity(array: np.ndarray) -> Any:
    content = tuple(array.reshape(-1).tolist()) if array.dtype.kind in "OUS" else array.tobytes()
    return array.shape, str(array.dtype), content


def merged(folder: Path, manifest: Manifest) -> onnx.ModelProto:
    """The models of a split as one graph, with the source's inputs and outputs; inner names get their part's prefix."""
    parts = {name: load(folder / part.file) for name, part in manifest.parts.items() if name != "batched"}
    score = parts["score"]
    model = onnx.ModelProto(ir_version=score.ir_version)
    model.opset_import.extend(score.opset_import)
    model.functions.extend(score.functions)
    model.graph.name = "split"
    infos = {i.name: i for part in parts.values() for i in part.graph.input}
    for each in manifest.inputs:
        if each.name in infos:
            model.graph.input.append(infos[each.name])
        elif each.dtype:
            dtype = np.dtype(object if each.dtype == "string" else each.dtype)
            shape = [1 if each.side == "user" and i == each.axis else d for i, d in enumerate(each.shape)]
            kind = helper.np_dtype_to_tensor_dtype(dtype)
            model.graph.input.append(helper.make_tensor_value_info(each.name, kind, shape))
    keep = {i.name for i in manifest.inputs} | {t.name for t in (*manifest.state, *manifest.rows)}
    for name, part in parts.items():
        _add(model.graph, part.graph, "" if name == "score" else f"{name}/", keep)
    optional = [i for i in score.graph.input if i.name in {t.name for t in score.graph.initializer}]
    model.graph.input.extend(optional)
    model.graph.output.extend(score.graph.output)
    set_metadata(model, {METADATA_KEY: json.dumps(manifest.sides, ensure_ascii=False)})
    return model


def _add(to: GraphProto, graph: GraphProto, prefix: str, keep: set[str]) -> None:
    """Adds the nodes and weights of a graph; names that are not in `keep` get the prefix."""
    made = {o for node in graph.node for o in node.output if o} | {t.name for t in graph.initializer}
    made |= {t.values.name for t in graph.sparse_initializer}
    renamed = {name: prefix + name for name in made if prefix and name not in keep}
    for node in graph.node:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        copy.input[:] = [renamed.get(x, x) for x in node.input]
        copy.output[:] = [renamed.get(x, x) for x in node.output]
        rename_captures(copy, renamed)
        to.node.append(copy)
    for tensor in graph.initializer:
        to.initializer.append(tensor)
        to.initializer[-1].name = renamed.get(tensor.name, tensor.name)
    for sparse in graph.sparse_initializer:
        to.sparse_initializer.append(sparse)
        to.sparse_initializer[-1].values.name = renamed.get(sparse.values.name, sparse.values.name)
