"""The sample models at industrial width, with random weights and requests, for benchmarks.

    python models/industrial.py NAME DIR [--candidates N]

A user part ten times the item part, a history of 200, fully connected layers of 1024, 512, 256.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from export import export, verify
from feeds import as_taken, sides_toml, write_requests
from zoo import ZOO
from zoo.schema import CROSS, DENSE, ID, ITEM, SEQUENCE, USER, Arrays, Feature, Schema

HISTORY = 200
TOLERANCE = 2e-5


def industrial_schema() -> Schema:
    """User columns 1920 wide, item columns 192, cross columns 8."""
    users = [Feature(f"user_{i:02}", USER, ID, 1000) for i in range(56)]
    users.append(Feature("user_stats", USER, DENSE, width=64))
    for column in ("id", "category"):
        users.append(
            Feature(f"hist_{column}", USER, SEQUENCE, width=HISTORY, table=f"item_{column}")
        )
    items = [Feature("item_id", ITEM, ID, 10_000), Feature("item_category", ITEM, ID, 500)]
    items += [Feature(f"item_{i:02}", ITEM, ID, 1000) for i in range(3)]
    items.append(Feature("item_stats", ITEM, DENSE, width=32))
    cross = Feature("cross_stats", CROSS, DENSE, width=8)
    return Schema(
        (*users, *items, cross),
        dim=32,
        hidden=(1024, 512, 256),
        token=128,
        tokens=(14, 2),
        attention=(80, 40),
        heads=4,
    )


def random_request(schema: Schema, candidates: int, rng: np.random.Generator) -> Arrays:
    """User inputs `[1, ...]`, the others `[candidates, ...]`; a quarter of the history is empty."""
    vocabulary = {f.name: f.vocab for f in schema.features}
    arrays: Arrays = {}
    for f in schema.features:
        rows = 1 if f.side == USER else candidates
        if f.kind == DENSE:
            arrays[f.name] = rng.standard_normal((rows, f.width), dtype=np.float32)
        elif f.kind == SEQUENCE:
            arrays[f.name] = rng.integers(1, vocabulary[f.table], (rows, f.width))
            arrays[f.name][:, f.width * 3 // 4 :] = 0
        else:
            arrays[f.name] = rng.integers(1, f.vocab, rows)
    return arrays


def build_industrial(
    name: str, out_dir: str | Path, candidates: int = 500, dynamo: bool = True
) -> Path:
    """Writes NAME.onnx, NAME.sides.toml and NAME.npz (two requests) into `out_dir`.

    name: a key of `zoo.ZOO`; dynamo: which of PyTorch's exporters. Answers the model's path.
    Raises KeyError for another name, RuntimeError where the export does not agree with torch.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    entry = ZOO[name]
    full = industrial_schema()
    schema = entry.schema(full)
    torch.manual_seed(2026)
    rng = np.random.default_rng(2026)
    model = entry.build(schema).eval()
    requests = [
        as_taken(entry, schema, model, [random_request(full, n, rng)]) for n in (candidates, 32)
    ]
    path = out / f"{name}.onnx"
    export(model, requests[-1], entry, schema, path, dynamo=dynamo)
    worst = verify(path, model, requests[1:], entry)
    if worst > TOLERANCE:
        raise RuntimeError(f"{path.name}: {worst:.1e} away from torch")
    (out / f"{name}.sides.toml").write_text(sides_toml(entry, schema), encoding="utf-8")
    write_requests(out / f"{name}.npz", requests)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a sample model at industrial width.")
    parser.add_argument("name", choices=list(ZOO))
    parser.add_argument("dir", type=Path)
    parser.add_argument("--candidates", type=int, default=500, metavar="N")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print(build_industrial(options.name, options.dir, options.candidates))


if __name__ == "__main__":
    main()
