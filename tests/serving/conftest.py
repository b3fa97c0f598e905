"""A split of a model with a table of ids, and catalogues for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.splitting.ranker import Ranker
from tests.splitting.graphs import split

ROWS = 50
"""Of the table that the model looks genres up in."""


def ranking_model(seed: int = 0):
    """`Relu([u | x | table[genre] | c] W) V` with u `[N, 24]`, x `[N, 16]`, genre `[N]` and c `[N, 4]`."""
    rng = np.random.default_rng(seed)
    weights = {"W": (24 + 16 + 8 + 4, 32), "V": (32, 1), "table": (ROWS, 8)}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "genre"], ["e"], "lookup"),
            helper.make_node("Concat", ["u", "x", "e", "c"], ["all"], "join", axis=1),
            helper.make_node("MatMul", ["all", "W"], ["p"], "product"),
            helper.make_node("Relu", ["p"], ["h"], "relu"),
            helper.make_node("MatMul", ["h", "V"], ["score"], "head"),
        ],
        "ranking",
        [
            helper.make_tensor_value_info("u", TensorProto.FLOAT, ["N", 24]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16]),
            helper.make_tensor_value_info("genre", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 4]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), k) for k, s in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


SIDES = {"u": "user", "x": "item", "genre": "item", "c": "cross"}


def make_split(folder: Path, seed: int = 0, batched: str | None = None) -> Path:
    """The folder of a split of `ranking_model`."""
    split(ranking_model(seed), sides=SIDES, counts=(2,), batched=batched).save(folder)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return make_split(tmp_path_factory.mktemp("split") / "model")


@pytest.fixture(scope="session")
def batched_folder(tmp_path_factory):
    """The same split, which scores several requests in one run; rows of one are those of the other."""
    return make_split(tmp_path_factory.mktemp("batched") / "model", batched="offsets")


@pytest.fixture(scope="session")
def ranker(folder):
    return Ranker(folder)


def features(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The item's inputs."""
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((count, 16)).astype(np.float32), "genre": rng.integers(0, ROWS, count)}


def write_catalogue(path: Path, ids, items: dict[str, np.ndarray]) -> Path:
    """Items as a Parquet file."""
    flat = pa.array(items["x"].reshape(-1))
    columns = {"item_id": pa.array(ids), "x": pa.FixedSizeListArray.from_arrays(flat, 16), "genre": items["genre"]}
    pq.write_table(pa.table(columns), path, row_group_size=700)
    return path


@pytest.fixture(scope="session")
def ray_here():
    """Ray on this machine, started once."""
    ray = pytest.importorskip("ray")
    # Its workers are as urgent as other processes: on a busy machine they would take minutes to start.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  that is its name
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    """A Redis server of this test run alone."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    socket = tmp_path_factory.mktemp("redis") / "socket"
    command = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(socket.parent)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if socket.exists():
                break
            time.sleep(0.05)
        yield f"unix://{socket}"
    finally:
        server.kill()
        server.wait()
