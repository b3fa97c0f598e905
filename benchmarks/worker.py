"""Runs models for another process, in an environment of its own: `PYTHON benchmarks/worker.py openvino|onnxruntime`.

OpenVINO's packages overwrite onnxruntime's files, so they are never in one environment with it; nothing but numpy and
the package itself is imported here. A request is a line of JSON on standard input, an answer one on standard output:

    {"do": "load", "model": PATH, "feed": FOLDER, "inputs": [NAME, ..], "outputs": [NAME, ..]}
                     -> {"nodes": {PROVIDER: NUMBER}} or {"error": TEXT}
    {"do": "run"}    -> {"seconds": thread time of one run}

FOLDER holds feed.npz (arr_0, .. in the order of `inputs`); outputs.npz is written there, in the order of `outputs`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[], list[np.ndarray]]


def openvino(path: str, feed: dict[str, np.ndarray], outputs: list[str]) -> tuple[Run, dict[str, int]]:
    """On OpenVINO's own runtime, one thread, float32."""
    from openvino import Core

    hints: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 by default where the processor has it
    }
    compiled = Core().compile_model(path, "CPU", hints)
    request = compiled.create_infer_request()
    names = {name for port in compiled.inputs for name in port.names}
    fed = {name: array for name, array in feed.items() if name in names}

    def run() -> list[np.ndarray]:
        answer = request.infer(fed, share_inputs=True, share_outputs=True)
        return [answer[name] for name in outputs]

    return run, {"OpenVINO": len(compiled.get_runtime_model().get_ops())}


def onnxruntime(path: str, feed: dict[str, np.ndarray], outputs: list[str]) -> tuple[Run, dict[str, int]]:
    """On onnxruntime's OpenVINO provider, one thread, float32."""
    import tempfile

    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = os.path.join(folder, "profile")
        name = "OpenVINOExecutionProvider"
        how = {"device_type": "CPU", "precision": "FP32", "num_of_threads": "1"}
        session = ort.InferenceSession(path, options, providers=[(name, how), "CPUExecutionProvider"])
        if session.get_providers()[0] != name:
            raise RuntimeError(f"{name} did not load")
        session.run(outputs, feed)
        with open(session.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
    nodes: dict[str, int] = {}
    for event in events:
        if event.get("cat") == "Node" and event.get("name", "").endswith("_kernel_time"):
            where = event["args"].get("provider", "?")
            nodes[where] = nodes.get(where, 0) + 1
    return lambda: session.run(outputs, feed), nodes


def main(backend: str) -> None:
    load = {"openvino": openvino, "onnxruntime": onnxruntime}[backend]
    run: Run | None = None
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any]
        try:
            if asked["do"] == "load":
                with np.load(os.path.join(asked["feed"], "feed.npz")) as arrays:
                    feed = {name: arrays[f"arr_{i}"] for i, name in enumerate(asked["inputs"])}
                run, nodes = load(asked["model"], feed, asked["outputs"])
                np.savez(os.path.join(asked["feed"], "outputs.npz"), *run())
                answer = {"nodes": nodes}
            else:
                assert run is not None
                started = time.thread_time()
                run()
                answer = {"seconds": time.thread_time() - started}
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
