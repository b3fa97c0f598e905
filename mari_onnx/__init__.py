"""Makes ONNX ranking models compute the user's part once per request, not once per candidate.

The Python API; each name loads what it needs when it is first used:

    optimize(model_or_path, ...) -> Optimized    rewrite, check, and the report of it
    check(source, optimized, ...) -> CheckResult compare two models on the same requests
    inspect(model_or_path, ...) -> Inspection    what would be lifted, and why not more
    split(model_or_path, ...) -> Split           the models of the user's part, the item's part and of scoring
    Ranker(folder)                               runs these
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mari_onnx.version import __version__

if TYPE_CHECKING:
    from mari_onnx.api import inspect, optimize
    from mari_onnx.parity.check import check
    from mari_onnx.splitting.make import split
    from mari_onnx.splitting.ranker import Ranker


__all__ = ["Ranker", "__version__", "check", "inspect", "optimize", "split"]

_HOMES = {
    "optimize": "mari_onnx.api",
    "inspect": "mari_onnx.api",
    "check": "mari_onnx.parity",
    "split": "mari_onnx.splitting.make",
    "Ranker": "mari_onnx.splitting.ranker",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
