"""Peak memory of a model at work, seen from a process of its own.

`python -m mari_onnx.timing.memory MODEL FOLDER THREADS [LIBRARY...]` prints bytes beyond what the process had
before the model was loaded.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

TIME_LIMIT = 300
RUNS = 3


def resident(peak: bool) -> int:
    """Bytes that this process has in memory now, or had at most since it was started."""
    try:
        # ru_maxrss would count what the parent had when it forked.
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    key = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def peak_bytes(model: str | Path, feed: Mapping[str, np.ndarray], threads: int = 1) -> int | None:
    """Peak memory of loading `model` on the CPU and running `feed`; None where that fails."""
    from mari_onnx.runtime import custom_ops_in_use

    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        file = Path(folder, "feed.npz")
        # Positions for names: an archive cannot hold every name.
        np.savez(file, *feed.values())
        names = Path(folder, "names.txt")
        names.write_text("\n".join(feed), encoding="utf-8")
        command = [sys.executable, "-m", __name__, str(model), folder, str(threads), *custom_ops_in_use()]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIME_LIMIT, check=True
            )
            return int(done.stdout.split()[-1])
        except (subprocess.SubprocessError, ValueError, IndexError):
            return None


def _main(model: str, folder: str, threads: str, *libraries: str) -> None:
    from mari_onnx import runtime

    names = Path(folder, "names.txt").read_text(encoding="utf-8").split("\n")
    with np.load(Path(folder, "feed.npz")) as arrays:
        feed = {name: arrays[f"arr_{index}"] for index, name in enumerate(names)}
    import onnxruntime  # noqa: F401  its own size is not the model's

    before = resident(peak=False)
    with runtime.custom_ops(libraries):
        session = runtime.session(model, threads=int(threads))
    for _ in range(RUNS):
        session.run(None, feed)
    print(max(resident(peak=True) - before, 0))


if __name__ == "__main__":
    _main(*sys.argv[1:])
