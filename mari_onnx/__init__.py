"""Makes ONNX ranking models compute the user's part once per request, not once per candidate.

The Python API (docs/python.md); each name loads what it needs when it is first used:

    optimize(model, ...) -> Optimized             rewrite and check; the model and the report of it
    inspect(model, ...) -> Report                 what would be rewritten, and why not more
    check(source, optimized, ...) -> CheckResult  compare two models on the same requests
    bench(model, *others, ...) -> Bench           time models against each other, in turns
    split(model, ...) -> Split                    the models of the user's part, the item's part and of scoring
    Ranker(folder)                                runs these
    Sides                                         whose the inputs of a model are

All of them take `sides=`, or `user=`, `item=`, `cross=`, `rest=`, and mean the same by them as the command line. Errors
are classes of `mari_onnx.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mari_onnx.version import __version__

if TYPE_CHECKING:
    from mari_onnx.api import Optimized, inspect, optimize
    from mari_onnx.comparison import check
    from mari_onnx.parity import CheckResult
    from mari_onnx.report import Report
    from mari_onnx.sides.resolve import Sides
    from mari_onnx.splitting.make import Split, split
    from mari_onnx.splitting.ranker import Ranker
    from mari_onnx.timing.answer import Bench
    from mari_onnx.timing.bench import bench

__all__ = [
    "Bench",
    "CheckResult",
    "Optimized",
    "Ranker",
    "Report",
    "Sides",
    "Split",
    "__version__",
    "bench",
    "check",
    "inspect",
    "optimize",
    "split",
]

_HOMES = {
    "Bench": "mari_onnx.timing.answer",
    "CheckResult": "mari_onnx.parity",
    "Optimized": "mari_onnx.api",
    "Ranker": "mari_onnx.splitting.ranker",
    "Report": "mari_onnx.report",
    "Sides": "mari_onnx.sides.resolve",
    "Split": "mari_onnx.splitting.make",
    "bench": "mari_onnx.timing.bench",
    "check": "mari_onnx.comparison",
    "inspect": "mari_onnx.api",
    "optimize": "mari_onnx.api",
    "split": "mari_onnx.splitting.make",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
