"""Exports a sample model with either PyTorch exporter, the candidate axis dynamic."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from feeds import as_fed, rows_of
from torch import Tensor, nn
from zoo import Entry
from zoo.schema import SEQUENCE, USER, Arrays, Schema

# Where in the sources a node came from: paths of the building machine, most of a small file.
_STACK_TRACE = "pkg.torch.onnx.stack_trace"


class Positional(nn.Module):
    """The model with one positional input a feature, as both exporters want it."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.model(dict(zip(self.names, inputs, strict=True)))


def dynamic_axes(names: list[str], entry: Entry, schema: Schema) -> list[dict[int, str]]:
    """Names of the free dimensions of each input."""
    users = {f.name for f in schema.pick(USER)}
    sequences = {f.name for f in schema.pick(kind=SEQUENCE)}
    axes = []
    for name in names:
        free = {0: "N"}
        if entry.layout == "grid":
            free = {0: "R"} if name in users else {0: "R", 1: "N"}
        if entry.layout == "sequence" and name in users:
            free = {}
        if entry.free_history and name in sequences:
            free[1] = "T"
        axes.append(free)
    return axes


def export(
    model: nn.Module,
    request: Arrays,
    entry: Entry,
    schema: Schema,
    path: Path,
    *,
    dynamo: bool,
) -> None:
    """Writes `model`, traced on `request`, to `path`."""
    example = as_fed(request, entry)
    names = list(example)
    axes = dynamic_axes(names, entry, schema)
    args = tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in example.values())
    wrapped = Positional(model, names).eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    common = {"input_names": names, "output_names": list(entry.outputs)}
    with contextlib.redirect_stdout(io.StringIO()):
        if dynamo:
            shapes = tuple({i: torch.export.Dim(s) for i, s in free.items()} for free in axes)
            torch.onnx.export(
                wrapped,
                args,
                path,
                dynamo=True,
                dynamic_shapes={"inputs": shapes},
                external_data=False,
                verbose=False,
                **common,
            )
        else:
            free_axes = dict(zip(names, axes, strict=True))
            torch.onnx.export(
                wrapped,
                args,
                path,
                dynamo=False,
                opset_version=17,
                dynamic_axes=free_axes,
                **common,
            )
    _strip(path, shapes=not entry.free_history)


def verify(path: Path, model: nn.Module, requests: list[Arrays], entry: Entry) -> float:
    """Largest difference between file and torch, over `requests` whole and cut to 1 and 2 rows."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for request in requests:
        count = rows_of(request)
        for rows in (count,) if entry.layout == "grid" else (1, 2, count):
            feeds = as_fed(request, entry)
            if entry.layout != "grid":
                feeds = {name: a[:rows] for name, a in feeds.items()}
            with torch.no_grad():
                answer = model({name: torch.from_numpy(a) for name, a in feeds.items()})
            wanted = answer if isinstance(answer, tuple) else (answer,)
            for got, want in zip(session.run(None, feeds), wanted, strict=True):
                if got.shape != tuple(want.shape):
                    raise SystemExit(f"{path.name}: {got.shape}, torch says {tuple(want.shape)}")
                worst = max(worst, float(np.abs(got - want.numpy()).max()))
    return worst


def _strip(path: Path, shapes: bool) -> None:
    """Takes the building machine out of the file; the rest stays as the exporter wrote it.

    Without `shapes` the types of inner tensors go too: behind a GRU the dynamo exporter writes the
    traced history length as a constant there, which onnxruntime believes and then fails on.
    """
    model = onnx.load(path)
    for node in model.graph.node:
        kept = [p for p in node.metadata_props if p.key != _STACK_TRACE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    if not shapes:
        del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
