"""The packages that install the module `onnxruntime`: which there are, and how to mend what they broke.

They overwrite each other's files, so there should be exactly one.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from mari_onnx.errors import BrokenRuntime, first_line

# onnxruntime's levels of logging.
WARNING, FATAL = 2, 4
# Packages that install the module `onnxruntime`, each over the other's files; the first that is there is kept.
_PACKAGES = (
    "onnxruntime-gpu",
    "onnxruntime",
    *(f"onnxruntime-{kind}" for kind in ("directml", "openvino", "rocm", "migraphx", "qnn", "training")),
)
_silent = False


def load(silent: bool = False) -> Any:
    """The module `onnxruntime`.

    Args:
        silent: its log is not wanted, from here to the end of the process.

    Raises:
        BrokenRuntime: it cannot be imported, with the command that mends it.
    """
    global _silent
    try:
        import onnxruntime

        # What is left of a removed package can be imported, as a folder of that name.
        onnxruntime.InferenceSession, onnxruntime.get_available_providers  # noqa: B018
    except (ImportError, AttributeError, OSError) as error:
        there = installed()
        what = f"{' and '.join(there)} cannot be imported" if there else "onnxruntime is not installed"
        raise BrokenRuntime(f"{what}: {first_line(error)}", mend(there)) from error
    if silent:
        _silent = True
        onnxruntime.set_default_logger_severity(FATAL)
    return onnxruntime


def installed() -> list[str]:
    """The packages of onnxruntime that pip knows of; there should be one."""
    from importlib.metadata import PackageNotFoundError, distribution

    found = []
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            distribution(name)
            found.append(name)
    return found


def mend(there: Sequence[str]) -> str:
    """The command that leaves one whole package of onnxruntime where there are several, a broken one, or none."""
    if not there:
        return f"pip install {_PACKAGES[0] if sys.platform in ('linux', 'win32') else _PACKAGES[1]}"
    return f"pip uninstall -y {' '.join(there)} && pip install {there[0]}"


def conflict() -> str | None:
    """Several packages of onnxruntime at once, in words; None where there is one."""
    there = installed()
    if len(there) < 2:
        return None
    return f"{' and '.join(there)} are both installed and overwrite each other's files; to mend it: {mend(there)}"


def is_silent() -> bool:
    """Whether `load(silent=True)` was called in this process."""
    return _silent
