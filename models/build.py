"""Trains, exports and verifies the sample models.

    python models/build.py [--only NAME] [--out DIR]

Each model gives NAME.onnx (the dynamo exporter), NAME.torchscript.onnx (the older one),
NAME.sides.toml and NAME.npz.

The side file lists shell patterns on input names, or columns of a packed input:

    candidate_axis = 0          # optional
    user = ["user_*", "hist_*"]
    item = ["item_*"]
    cross = ["cross_*"]
    [columns.X]
    user = [0, "3:6"]
    item = ["6:10"]

The .npz has a key `<request>/<input>` an array: user inputs as one row `[1, ...]`, item and cross
inputs `[N, ...]`, a packed input `[N, F]`, the inputs of a grid model as the model takes them.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from export import export, verify
from feeds import as_taken, sides_toml, write_requests
from torch import nn
from zoo import ZOO, Entry
from zoo.movielens import MovieLens
from zoo.schema import SEQUENCE, Arrays, Schema

HERE = Path(__file__).resolve().parent
# (rows of the data, candidates) of each recorded request.
REQUESTS = (((23,), 7), ((61,), 32), ((118,), 64), ((176,), 7))
GRIDS = (((23, 61), 7), ((118,), 32), ((61, 118, 176), 64))
MAX_BYTES = 300_000
ENOUGH = 0.5
TOLERANCE = 2e-6


def train(model: nn.Module, feeds: Arrays, labels: np.ndarray) -> tuple[float, float]:
    """Full-batch Adam on binary cross entropy; the loss before and after.

    It stops early: 200 rows are soon learnt by heart, and scores of 0 or 1 would hide errors.
    """
    x = {k: torch.from_numpy(np.ascontiguousarray(a)) for k, a in feeds.items()}
    targets = torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=1e-5)
    losses: list[float] = []
    model.train()
    while not losses or (losses[-1] > ENOUGH and len(losses) < 200):
        answer = model(x)
        outputs = answer if isinstance(answer, tuple) else (answer,)
        parts = [
            nn.functional.binary_cross_entropy(out.reshape(-1), targets[:, i])
            for i, out in enumerate(outputs)
        ]
        loss = torch.stack(parts).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses[0], losses[-1]


def recorded(entry: Entry, schema: Schema, model: nn.Module, data: MovieLens) -> list[Arrays]:
    """The model's recorded requests, as the .npz holds them."""
    rng = np.random.default_rng(7)
    requests = []
    for rows, count in GRIDS if entry.layout == "grid" else REQUESTS:
        parts = [data.request(row, data.candidates(row, count, rng)) for row in rows]
        arrays = as_taken(entry, schema, model, parts)
        if entry.free_history:
            # 10 events with 7 candidates, all 16 with more.
            for f in schema.pick(kind=SEQUENCE):
                arrays[f.name] = arrays[f.name][:, : 3 + count]
        requests.append(arrays)
    return requests


def build(name: str, out: Path, data: MovieLens) -> str:
    """Builds one model into `out`; answers a line of report."""
    entry = ZOO[name]
    schema = entry.schema(data.schema())
    torch.manual_seed(2026)
    model = entry.build(schema)
    rows = data.training()
    if entry.layout == "grid":
        parts = [{k: a[i : i + 1] for k, a in rows.items()} for i in range(len(data.rows))]
        feeds = as_taken(entry, schema, model, parts)
    else:
        feeds = as_taken(entry, schema, model, [rows])
    before, after = train(model, feeds, data.labels())
    requests = recorded(entry, schema, model, data)
    report = f"{name:16} loss {before:.3f} -> {after:.3f}"
    for suffix, dynamo in ((".onnx", True), (".torchscript.onnx", False)):
        path = out / (name + suffix)
        # Traced on one request: the sizes of the others must follow from the dynamic axes.
        export(model, requests[-1], entry, schema, path, dynamo=dynamo)
        worst = verify(path, model, requests, entry)
        if worst > TOLERANCE:
            raise SystemExit(f"{path.name}: {worst:.1e} away from torch")
        size = path.stat().st_size
        if size >= MAX_BYTES:
            raise SystemExit(f"{path.name}: {size} bytes, {MAX_BYTES} are allowed")
        report += f"  {suffix} {size / 1000:.0f} kB, {worst:.0e} off"
    (out / f"{name}.sides.toml").write_text(sides_toml(entry, schema), encoding="utf-8")
    write_requests(out / f"{name}.npz", requests)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, export and verify the sample models.")
    parser.add_argument("--only", metavar="NAME", choices=list(ZOO), action="append")
    parser.add_argument("--out", metavar="DIR", type=Path, default=HERE)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    warnings.filterwarnings("ignore")
    data = MovieLens()
    for name in options.only or ZOO:
        print(build(name, options.out, data), flush=True)


if __name__ == "__main__":
    main()
