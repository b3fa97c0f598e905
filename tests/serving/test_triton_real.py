"""The Python backend on a real `tritonserver`, which the wheel of nvidia-pytriton brings (`make triton-server`).

`MARI_ONNX_TRITON` names a Python environment that has the wheel and what a service needs; without it, nothing is run.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient")

from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from mari_onnx.serving.triton.batched import Waiting
from mari_onnx.serving.triton.python_backend import Settings, service
from mari_onnx.serving.triton.repository import write
from tests.serving.test_service import ITEMS, close, expected, request, source, store_of

ROOT = Path(__file__).resolve().parents[2]
PLACE = os.environ.get("MARI_ONNX_TRITON")
pytestmark = pytest.mark.skipif(PLACE is None, reason="MARI_ONNX_TRITON names no environment with nvidia-pytriton")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def server(batched_folder, ranker, tmp_path_factory):
    """A client of a server that has the model."""
    folder = tmp_path_factory.mktemp("triton")
    store_of(ranker, folder / "items.arrow")
    settings = Settings(str(folder / "items.arrow"), waiting=Waiting(16, 5000))
    write(folder / "repository", [service(batched_folder, "ranking", settings)], force=False)
    (packages,) = Path(str(PLACE)).resolve().glob("lib/python3.*/site-packages")
    triton, version = packages / "pytriton/tritonserver", packages.parent.name.removeprefix("python")
    shutil.copytree(triton / "backends", folder / "backends")
    shutil.copy(triton / f"python_backend_stubs/{version}/triton_python_backend_stub", folder / "backends/python")
    ports = {"http": free_port(), "grpc": free_port(), "metrics": free_port()}
    command = [
        str(triton / "bin/tritonserver"), "--model-repository", str(folder / "repository"),
        "--backend-directory", str(folder / "backends"), "--cache-directory", str(triton / "caches"),
        *(f"--{name}-port={port}" for name, port in ports.items()),
    ]  # fmt: skip
    libraries = [str(packages / "nvidia_pytriton.libs"), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {
        **os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PYTHONPATH": f"{packages}:{ROOT}", "PATH": f"{packages.parents[2]}/bin:{os.environ['PATH']}",
    }  # fmt: skip
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            client = InferenceServerClient(f"127.0.0.1:{ports['grpc']}")
            for _ in range(600):
                if process.poll() is not None:
                    break
                try:
                    if client.is_server_ready() and client.is_model_ready("ranking"):
                        break
                except InferenceServerException:  # it does not listen yet
                    pass
                time.sleep(0.2)
            else:
                process.kill()
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            yield client
        finally:
            process.terminate()
            process.wait(30)


def infer(client, asked, with_user=True):
    """The scores of a request, or what the server says is wrong."""
    arrays = {
        "user_key": np.array([[asked.user_key.encode()]], object), "item_ids": np.asarray(asked.item_ids)[None],
        "c": asked.cross["c"][None], **(asked.user if with_user else {}),
    }  # fmt: skip
    kinds = {"O": "BYTES", "i": "INT64", "f": "FP32"}
    inputs = []
    for name, array in arrays.items():
        inputs.append(InferInput(name, list(array.shape), kinds[array.dtype.kind]))
        inputs[-1].set_data_from_numpy(array)
    try:
        return client.infer("ranking", inputs).as_numpy("score")[0]
    except InferenceServerException as error:
        return str(error)


def test_requests_of_several_clients(server):
    """Each is answered as the source does, or refused by itself; some are merged."""
    asked = [request(1 + seed % 20, seed) for seed in range(120)]
    for bad in range(0, 120, 6):
        asked[bad].item_ids[0] = ITEMS + bad
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda each: infer(server, each), asked))
    session = source()
    for number, answer in enumerate(answers):
        if number % 6:
            close(answer, expected(asked[number], session))
        else:
            assert f"no rows of the items {ITEMS + number}" in answer
    (statistics,) = server.get_inference_statistics("ranking").model_stats
    assert statistics.execution_count < 120


def test_a_state_that_is_kept(server):
    asked = request(5, 900)
    close(infer(server, asked), expected(asked, source()))
    close(infer(server, asked, with_user=False), expected(asked, source()))
    assert "no state of the user nobody" in infer(server, request(5, 901, user_key="nobody"), with_user=False)
