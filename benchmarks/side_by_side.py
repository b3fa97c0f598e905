"""Models in memory, timed in turns on the same values."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from mari_onnx import engine, runtime
from mari_onnx.choices import options_for
from mari_onnx.sides.resolve import Sides
from mari_onnx.timing.clock import Timing, clock_for, interleaved
from mari_onnx.timing.floor import Floor, floor
from mari_onnx.timing.measure import prepared


@dataclass(frozen=True)
class Setting:
    """How to time: threads, provider, and for how long; see `mari_onnx.timing.interleaved`."""

    threads: int = 1
    provider: str = "cpu"
    seconds: float = 1.0
    least: int = 5


def optimized(model: onnx.ModelProto, sides: Sides, n: int, target: str = "cpu") -> engine.Rewrite:
    """The rewrite of `model` that is chosen for n candidates; it has to change something."""
    result = engine.rewrite(model, sides, options_for(n, target=target, assume=True))
    if not result.changed:
        raise RuntimeError(f"nothing was rewritten: {result.reason}")
    return result


def cut(result: engine.Rewrite, sides: Sides) -> Floor:
    """The floor of a rewrite."""
    return floor(result, sides)


def timed(
    models: Mapping[str, onnx.ModelProto | Floor],
    user: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    setting: Setting,
) -> tuple[Timing, dict[str, np.ndarray]]:
    """Times of all models, and the first output of each.

    Args:
        user: user inputs with one row; a model that declares more rows is fed N equal ones.
        rows: inputs with N rows.
    """
    n = len(next(iter(rows.values())))
    runs, outputs = {}, {}
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        for name, model in models.items():
            proto = model.model if isinstance(model, Floor) else model
            path = Path(folder, f"{len(runs)}.onnx")
            onnx.save(proto, path)
            session = runtime.session(path, setting.provider, threads=setting.threads, what=name)
            feed = {**user, **rows}
            if isinstance(model, Floor):
                feed = model.feed({each.name: feed[each.name] for each in model.inputs})
            else:
                feed = {each.name: feed[each.name] for each in session.get_inputs()}
                for each in session.get_inputs():
                    if each.name in user and each.shape[0] != 1:
                        feed[each.name] = np.repeat(user[each.name], n, axis=0)
            runs[name], _ = prepared(session, [feed], setting.provider)
            outputs[name] = session.run(None, feed)[0]
        timing = interleaved(
            runs,
            seconds=setting.seconds,
            least=setting.least,
            clock=clock_for(setting.threads, setting.provider)[1],
            wall=time.perf_counter,
        )
    return timing, outputs
