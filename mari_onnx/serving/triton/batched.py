"""A file that `--batched offsets` wrote, as a served model.

In: the file, whose metadata says which input is what. Out: a `Served` folder, in which requests wait for others.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from mari_onnx.errors import CannotServe
from mari_onnx.model.load import read
from mari_onnx.model.save import save
from mari_onnx.model.signature import signature
from mari_onnx.serving.triton import ragged, readme
from mari_onnx.serving.triton.config import ports
from mari_onnx.serving.triton.ragged import Form
from mari_onnx.serving.triton.readme import Call, calls_of
from mari_onnx.serving.triton.repository import Served
from mari_onnx.sides.resolve import METADATA_KEY, resolve

FILE = "model.onnx"


@dataclass(frozen=True)
class Waiting:
    """most: requests of one run. delay: microseconds that a request waits for others."""

    most: int = 64
    delay: int = 500


def said_sides(model: onnx.ModelProto) -> dict[str, Any]:
    """The sides that a model's metadata has; empty where it has none."""
    said = next((p.value for p in model.metadata_props if p.key == METADATA_KEY), "{}")
    try:
        found = json.loads(said)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def form_of(model: onnx.ModelProto) -> tuple[Form, list[Call]]:
    """Which input is what, by the metadata of a file that `--batched offsets` wrote.

    Raises:
        CannotServe: candidates are not the first dimension of an input, or there are bags of ids.
        SideFileError: the metadata cannot be read.
    """
    known = signature(model)
    sides = resolve(known, metadata=json.dumps(said_sides(model)))
    for offsets, ids in sides.bags.items():
        raise CannotServe(
            f"{offsets} says where bags of {', '.join(ids)} begin among those of all requests, and Triton puts the "
            "offsets of requests behind each other as they are",
            "serve one request at a time",
        )
    rows = {*sides.of("item"), *sides.of("cross"), *sides.columns}
    if turned := [name for name in rows if sides.axis_of(name) != 0]:
        raise CannotServe(
            f"candidates are not the first dimension of {turned[0]}, and Triton puts requests together along that",
            "transpose it in the source, or serve one request at a time",
        )
    names = [each.name for each in known.inputs]
    form = Form(tuple(name for name in names if name in rows), sides.added or "", sides.counts)
    return form, calls_of(sides, [name for name in names if name != form.offsets])


def served(path: Path, name: str, form: Form, calls: Sequence[Call], waiting: Waiting) -> Served:
    """The model, whose requests Triton puts together.

    Raises:
        CannotServe: see `ragged.checked`, `ragged.reshaped`, `ragged.configured`, `ragged.rows_of_outputs`.
    """
    found = ports(path)
    ragged.checked(found, form)
    made = ragged.reshaped(read(path).model, found, form)
    per_candidate = ragged.rows_of_outputs(path, found, form)
    config = ragged.configured(name, FILE, found, form, per_candidate, made)
    config.max_batch_size = waiting.most
    config.dynamic_batching.max_queue_delay_microseconds = waiting.delay
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:  # whether onnxruntime takes it
        save(made.model, Path(folder, FILE))
        ports(Path(folder, FILE))
    return Served(config, {FILE: made.model}, readme.together(config, found, form, calls, path.name))
