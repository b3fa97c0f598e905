"""A ranking model of a size that is served, with random weights, and requests for it; no torch needed.

A user of 255 ids, a history of 100 items and 64 numbers (8,256 columns of the first layer), an item of 5 ids and 32
numbers (192 columns), 8 cross features, layers of 1024, 256 and 64. Scores are near 0.5, as far from 0 and 1 as a
model's that is not trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

USER_IDS, ITEM_IDS, DIM, ROWS, HISTORY = 255, 5, 32, 2000, 100
USER_STATS, ITEM_STATS, CROSS = 64, 32, 8
LAYERS = (1024, 256, 64)
SIDES: Any = {"user": ["user_*"], "item": ["item_*"], "rest": "cross"}


def build(path: Path, seed: int = 0) -> Path:
    """Writes the model."""
    rng = np.random.default_rng(seed)
    nodes, inputs, weights = [], [], {}

    def add(op: str, reads: list[str], **given: object) -> str:
        nodes.append(helper.make_node(op, reads, [f"t{len(nodes)}"], f"{op}_{len(nodes)}", **given))
        return str(nodes[-1].output[0])

    def weight(name: str, *shape: int, scale: float = 1.0) -> str:
        scale /= np.sqrt(shape[0])
        weights[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
        return name

    def take(name: str, kind: int, *shape: int) -> str:
        inputs.append(helper.make_tensor_value_info(name, kind, ["N", *shape]))
        return name

    def looked_up(ids: str, side: str, count: int) -> str:
        rows = add("Gather", [weight(f"{side}_table", ROWS, DIM), take(ids, TensorProto.INT64, count)])
        return add("Flatten", [rows])

    history = add("Gather", [weight("history_table", ROWS, DIM), take("user_history", TensorProto.INT64, HISTORY)])
    weights["history_axis"] = np.array([1], np.int64)
    columns = [
        looked_up("user_ids", "user", USER_IDS),
        add("ReduceMean", [history, "history_axis"], keepdims=0),
        take("user_stats", TensorProto.FLOAT, USER_STATS),
        looked_up("item_features", "item", ITEM_IDS),
        take("item_stats", TensorProto.FLOAT, ITEM_STATS),
        take("cross_stats", TensorProto.FLOAT, CROSS),
    ]
    at = add("Concat", columns, axis=1)
    width = (USER_IDS + 1 + ITEM_IDS) * DIM + USER_STATS + ITEM_STATS + CROSS
    for number, size in enumerate(LAYERS):
        at = add("Relu", [add("Gemm", [at, weight(f"W{number}", width, size), weight(f"b{number}", size)])])
        width = size
    head = [at, weight("W", width, 1, scale=0.1), weight("b", 1, scale=0.1)]
    nodes.append(helper.make_node("Gemm", head, ["logit"], "head"))
    nodes.append(helper.make_node("Sigmoid", ["logit"], ["score"], "sigmoid"))
    graph = helper.make_graph(
        nodes,
        "served",
        inputs,
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def items(count: int, seed: int = 1) -> dict[str, np.ndarray]:
    """The item's inputs."""
    rng = np.random.default_rng(seed)
    stats = rng.standard_normal((count, ITEM_STATS), np.float32)
    return {"item_features": rng.integers(0, ROWS, (count, ITEM_IDS)), "item_stats": stats}


def catalogue(path: Path, count: int) -> Path:
    """A Parquet file of items, whose ids are their places."""
    columns = {"item_id": pa.array(np.arange(count))}
    for name, array in items(count).items():
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
    pq.write_table(pa.table(columns), path)
    return path


def user(number: int) -> dict[str, np.ndarray]:
    """A user's inputs, one row."""
    rng = np.random.default_rng([2, number])
    return {
        "user_history": rng.integers(0, ROWS, (1, HISTORY)),
        "user_ids": rng.integers(0, ROWS, (1, USER_IDS)),
        "user_stats": rng.standard_normal((1, USER_STATS), np.float32),
    }


def candidates(number: int, count: int, catalogue_size: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The candidates of a request, and the inputs that depend on user and item."""
    rng = np.random.default_rng([3, number])
    return rng.integers(0, catalogue_size, count), {"cross_stats": rng.standard_normal((count, CROSS), np.float32)}
