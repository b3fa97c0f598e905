"""OpenVINO beside onnxruntime: environments of their own, and models that run there.

`openvino` is OpenVINO's own runtime, `onnxruntime-openvino` onnxruntime with its provider.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parents[1] / "build" / "environments"
# What is installed -> what worker.py runs it as.
BACKENDS = {"openvino": "openvino", "onnxruntime-openvino": "onnxruntime"}


class NotThere(Exception):
    """A package cannot be installed, or a model cannot run with it; the message says why."""


def environment(package: str) -> tuple[Path, str]:
    """The Python of an environment with `package` alone, made on first use, and its version.

    Raises:
        NotThere: it cannot be installed here.
    """
    folder = FOLDER / package
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python), "-m", "pip", "install", "-q", package, "numpy"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
                raise NotThere(f"{package} cannot be installed here: {lines[-1][:200]}")
        (folder / "ready").touch()
    show = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(python), "-c", show], capture_output=True, text=True, check=True)
    return python, done.stdout.strip()


class Remote:
    """A model in a process of its own environment.

    Attributes:
        outputs: of the one request that it is given.
        nodes: provider -> nodes that ran there.
    """

    def __init__(self, package: str, model: Path, feed: Mapping[str, np.ndarray], outputs: Sequence[str]):
        """Raises NotThere where the package or the model does not load."""
        python, self.version = environment(package)
        worker = [str(python), str(Path(__file__).with_name("worker.py")), BACKENDS[package]]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(worker, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
            np.savez(Path(folder, "feed.npz"), *feed.values())
            asked = {"do": "load", "model": str(model), "feed": folder, "inputs": [*feed], "outputs": [*outputs]}
            try:
                self.nodes: dict[str, int] = self._ask(asked)["nodes"]
            except NotThere:
                self.close()
                raise
            with np.load(Path(folder, "outputs.npz")) as arrays:
                self.outputs = [arrays[f"arr_{i}"] for i in range(len(outputs))]

    def run(self) -> float:
        """Seconds of one run, in thread time."""
        return float(self._ask({"do": "run"})["seconds"])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise NotThere(f"the process ended ({self._process.poll()})") from error
        if "error" in answer:
            raise NotThere(answer["error"])
        return answer
