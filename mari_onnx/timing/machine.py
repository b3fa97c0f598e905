"""What a measurement was taken on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mari_onnx.timing.peers import TOOLS

_LIBRARIES = ("mari-onnx", "numpy", "onnx", "onnxruntime-gpu", "onnxruntime", *TOOLS)
_QUERY = "name,driver_version,memory.total"


def machine(provider: str = "cpu") -> dict[str, Any]:
    """Processor, cores, system and library versions; on CUDA also device and driver."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": _versions(_LIBRARIES),
    }
    if provider == "cuda":
        found["device"] = _device()
        found["libraries"] |= _versions(_cuda_wheels())
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cuda_wheels() -> tuple[str, ...]:
    from importlib.metadata import distributions

    names = {str(each.metadata["Name"]) for each in distributions()}
    return tuple(sorted(name for name in names if name.startswith("nvidia-")))


def _device() -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = done.stdout.strip().splitlines()[0].split(", ")
    return dict(zip(_QUERY.split(","), values, strict=False))
