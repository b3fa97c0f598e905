"""What the sample models are fed with, their side files and their recorded requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn
from zoo import Entry
from zoo.feature_crossing import PackedPNN, packed_columns
from zoo.schema import CROSS, ITEM, USER, Arrays, Schema


def as_taken(entry: Entry, schema: Schema, model: nn.Module, parts: list[Arrays]) -> Arrays:
    """Requests (user inputs `[1, ...]`, the others `[N, ...]`) in the model's layout and order.

    A grid takes all of `parts`, with the same N; every other layout takes one.
    """
    names = [f.name for f in schema.features]
    if entry.layout == "grid":
        users = {f.name for f in schema.pick(USER)}
        join = {name: np.concatenate if name in users else np.stack for name in names}
        return {name: join[name]([part[name] for part in parts]) for name in names}
    (part,) = parts
    if isinstance(model, PackedPNN):
        return {"X": pack(part, model)}
    return {name: part[name] for name in names}


def pack(arrays: Arrays, model: PackedPNN) -> np.ndarray:
    """`X` `[N, F]` float32: features side by side, one row repeated where there is one."""
    wide = [arrays[f.name].reshape(len(arrays[f.name]), -1) for f in model.order]
    rows = max(map(len, wide))
    return np.concatenate(
        [np.broadcast_to(a, (rows, a.shape[1])) for a in wide], 1, dtype=np.float32
    )


def as_fed(arrays: Arrays, entry: Entry) -> Arrays:
    """What the exported graph takes: a user's row made N where every input has N rows."""
    if entry.layout in ("grid", "sequence"):
        return arrays
    rows = rows_of(arrays)
    return {name: np.repeat(a, rows, 0) if len(a) == 1 else a for name, a in arrays.items()}


def rows_of(arrays: Arrays) -> int:
    """N of a request, or R of a grid."""
    return max(map(len, arrays.values()))


def write_requests(path: Path, requests: list[Arrays]) -> None:
    """The .npz of recorded requests, a key `<request>/<input>` an array."""
    keyed = {f"{i}/{name}": a for i, arrays in enumerate(requests) for name, a in arrays.items()}
    np.savez_compressed(path, **keyed)


def sides_toml(entry: Entry, schema: Schema) -> str:
    """The side file: patterns by prefix, or the columns of a packed input.

    A grid needs no tags, for the Expand in its graph says it all: the candidate axis is enough.
    """
    if entry.layout == "grid":
        return "candidate_axis = 1\n"
    lines = []
    if entry.layout == "packed":
        order = PackedPNN(schema).order
        places = packed_columns(order)
        lines.append("[columns.X]")
        for side in (USER, ITEM):
            spans = [places[f.name] for f in order if f.side == side]
            cells = [str(a) if b == a + 1 else f'"{a}:{b}"' for a, b in spans]
            lines.append(f"{side} = [{', '.join(cells)}]")
    else:
        for side in (USER, ITEM, CROSS):
            patterns = dict.fromkeys(f'"{f.name.split("_")[0]}_*"' for f in schema.pick(side))
            if patterns:
                lines.append(f"{side} = [{', '.join(patterns)}]")
    return "\n".join(lines) + "\n"
