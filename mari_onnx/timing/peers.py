"""What other tools make of the same source: onnxsim, onnxslim and onnxscript, where installed.

Each runs in a process of its own, since some of them end it: `python -m mari_onnx.timing.peers TOOL
IN OUT`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TIME_LIMIT = 120
TOOLS = ("onnxsim", "onnxslim", "onnxscript")


@dataclass(frozen=True)
class Peer:
    """One tool's result: `path` of the model it wrote, or `reason` why there is none."""

    tool: str
    version: str
    path: Path | None
    reason: str | None = None


def peers(
    source: str | Path,
    folder: str | Path,
    limit: float = TIME_LIMIT,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Peer]:
    """Runs every tool on `source`, writing into `folder`.

    Args:
        limit: seconds that a tool may take.
        progress: called with (tool, done, total).
    """
    found = []
    for index, tool in enumerate(TOOLS):
        if progress is not None:
            progress(tool, index, len(TOOLS))
        found.append(_peer(tool, Path(source), Path(folder), limit))
    return found


def _peer(tool: str, source: Path, folder: Path, limit: float) -> Peer:
    try:
        which = version(tool)
    except PackageNotFoundError:
        return Peer(tool, "", None, "not installed (pip install 'mari-onnx[peers]')")
    target = folder / f"{tool}.onnx"
    command = [sys.executable, "-m", __name__, tool, str(source.resolve()), str(target.resolve())]
    try:
        # In `folder`: some tools leave files where they are run.
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=folder)
    except subprocess.TimeoutExpired:
        return Peer(tool, which, None, f"took more than {limit:.0f} s")
    if done.returncode or not target.is_file():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no model was written"]
        return Peer(tool, which, None, lines[-1][:200])
    return Peer(tool, which, target)


def _main(tool: str, source: str, target: str) -> None:
    import onnx

    if tool == "onnxsim":
        import onnxsim

        model, _ = onnxsim.simplify(onnx.load(source))
    elif tool == "onnxslim":
        import onnxslim

        model = onnxslim.slim(onnx.load(source))
    else:
        import onnxscript.optimizer

        model = onnxscript.optimizer.optimize(onnx.load(source))
    onnx.save(model, target)


if __name__ == "__main__":
    _main(*sys.argv[1:])
