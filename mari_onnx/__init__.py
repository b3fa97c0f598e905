"""Makes ONNX ranking models compute the user's part once per request, not once per candidate.

The Python API; each name loads what it needs when it is first used:

    optimize(model_or_path, ...) -> Optimized    rewrite, check, and the report of it
    check(source, optimized, ...) -> CheckResult compare two models on the same requests
    inspect(model_or_path, ...) -> Inspection    what would be lifted, and why not more
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mari_onnx.version import __version__

if TYPE_CHECKING:
    from mari_onnx.api import inspect, optimize
    from mari_onnx.parity.check import check


__all__ = ["__version__", "check", "inspect", "optimize"]

_HOMES = {
    "optimize": "mari_onnx.api",
    "inspect": "mari_onnx.api",
    "check": "mari_onnx.parity",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
