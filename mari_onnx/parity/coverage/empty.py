"""Requests without candidates, or with an empty history: tried in a process of its own first.

onnxruntime ends the whole process on some of them (a GRU over nothing), which no exception handler sees. The process is
started once, serves all checks of this one, and is started again where a model ended it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from mari_onnx.parity.requests.request import Request

# Larger models are not copied for this.
_BYTES = 64 * 2**20
Column = tuple[str, int]
ENDS = "ends the process (in onnxruntime)"
DEATHS = 5
"""A process that was ended takes seconds to start again."""


def fragile(models: Iterable[onnx.ModelProto]) -> bool:
    """Whether a model has a recurrence, which over nothing ends the process."""
    from mari_onnx.model.functions import inlined
    from mari_onnx.model.ops import row

    return any(row(node.op_type).gates for model in models for node in inlined(model).graph.node)


def nothing_in(request: Request) -> frozenset[Column]:
    """Inputs, and columns of inputs of two dimensions, without a number of 1 or more: as a length, each says 0."""
    found: set[Column] = set()
    for name, array in (*request.user.items(), *request.rows.items()):
        if array.dtype.kind not in "iuf" or not array.size:
            continue
        if array.ndim == 2:
            found |= {(name, at) for at in range(array.shape[1]) if not (array[:, at] >= 1).any()}
        elif not (array >= 1).any():
            found.add((name, -1))
    return frozenset(found)


def survived(
    models: Mapping[str, onnx.ModelProto], requests: Sequence[Request], threads: int = 1
) -> tuple[list[Request], list[str], list[str]]:
    """Requests that both models run on, and what is wrong with the optimized model on others that the source runs on.

    Args:
        models: "source" and "optimized".
        requests: of which some dimension is 0.

    Returns:
        Requests that can be compared; faults, one line a request with candidates; notes, one line a request without,
        for which no answer is wrong.
    """
    from mari_onnx import runtime

    if any(runtime.weight_bytes(model) > _BYTES for model in models.values()):
        return [], [], []
    kept, faults, notes = [], [], []
    for request, (source, optimized) in zip(requests, tried(models, requests, threads), strict=True):
        if source != "ran":
            continue
        if optimized == "ran":
            kept.append(request)
            continue
        what = "fails" if optimized == "failed" else ENDS
        if request.n:
            faults.append(f"the optimized model {what} on an empty history, the source does not")
        else:
            notes.append(f"the optimized model {what} without candidates (N = 0), the source does not")
    return kept, list(dict.fromkeys(faults)), list(dict.fromkeys(notes))


def survivors(model: onnx.ModelProto, requests: Sequence[Request]) -> list[Request]:
    """Those on which a model with a recurrence runs, tried in another process until it was ended `DEATHS` times; of
    other models all.
    """
    from mari_onnx.model.signature import signature

    if not fragile([model]):
        return [*requests]
    found, deaths, inputs = [], 0, signature(model).inputs
    for request in requests:
        answer = ran(model, request.feed(inputs))
        found += [request] if answer == "ran" else []
        deaths += answer == "died"
        if deaths == DEATHS:
            break
    return found


def tried(
    models: Mapping[str, onnx.ModelProto], requests: Sequence[Request], threads: int = 1
) -> list[tuple[str, str]]:
    """What source and optimized model make of each request: "ran", "failed" or "died"; where the source does not run,
    the optimized model is not tried and has the same."""
    from mari_onnx import runtime
    from mari_onnx.model.signature import signature

    found = []
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder, ExitStack() as stack:
        paths = {name: Path(folder, f"{name}.onnx") for name in models}
        for name, model in models.items():
            made = stack.enter_context(runtime.as_file(model))
            if isinstance(made, bytes):
                paths[name].write_bytes(made)
            else:
                paths[name] = Path(made)
        data = Path(folder, "request.npz")
        for request in requests:
            source, optimized = (
                (paths[name], request.feed(signature(models[name]).inputs)) for name in ("source", "optimized")
            )
            answer = _helper.answer(*source, data, threads)
            found.append((answer, _helper.answer(*optimized, data, threads) if answer == "ran" else answer))
    return found


def ran(model: onnx.ModelProto, feed: Mapping[str, np.ndarray], threads: int = 1) -> str:
    """What one run of a model comes to: "ran", "failed" or "died"; "ran" for one that is too large to be tried."""
    from mari_onnx import runtime

    if runtime.weight_bytes(model) > _BYTES:
        return "ran"
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder, runtime.as_file(model) as made:
        path = Path(folder, "model.onnx")
        if isinstance(made, bytes):
            path.write_bytes(made)
        else:
            path = Path(made)
        return _helper.answer(path, feed, Path(folder, "request.npz"), threads)


class _Helper:
    """The other end of `main`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def answer(self, path: Path, feed: Mapping[str, np.ndarray], data: Path, threads: int) -> str:
        """What a run of a model comes to, with onnxruntime's optimizations off and on: "ran", "failed" or "died".

        Args:
            data: where the feed is written for the other process.
        """
        import numpy as np

        np.savez(data, **{f"_{name}": value for name, value in feed.items()})  # type: ignore[arg-type]
        from mari_onnx.runtime import custom_ops_in_use

        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, *custom_ops_in_use()], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps([str(path), str(data), threads]), file=self._process.stdin, flush=True)
            return self._process.stdout.readline().strip() or self._died()
        except OSError:
            return self._died()

    def _died(self) -> str:
        if self._process is not None:
            self._process.wait()
        self._process = None
        return "died"


_helper = _Helper()


def main() -> None:
    """Reads one job a line, `[model, feeds, threads]`, and answers each with a line; ends with its input. Its arguments
    are libraries of custom operators."""
    from mari_onnx import runtime

    with runtime.custom_ops(sys.argv[1:]):
        _answer_jobs()


def _answer_jobs() -> None:
    import numpy as np

    from mari_onnx import runtime
    from mari_onnx.errors import MariError

    sessions: dict[str, list[Any]] = {}
    for line in sys.stdin:
        path, data, threads = json.loads(line)
        try:
            if path not in sessions:
                sessions = {k: v for k, v in sessions.items() if Path(k).exists()}
                sessions[path] = [runtime.session(path, optimize=on, threads=threads) for on in (False, True)]
            with np.load(data, allow_pickle=True) as arrays:
                feed = {name[1:]: arrays[name] for name in arrays.files}
            for made in sessions[path]:
                runtime.run(made, feed, path)
            print("ran", flush=True)
        except MariError:
            print("failed", flush=True)


if __name__ == "__main__":
    main()
