"""What a process of its own does for the demo. It loads what it needs when it has something to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.demo.model import Row, Times


def measured(path: Path, output: Path, only: int | None) -> Row | str:
    """See `model.measured`; the text of an error, as the error itself need not pass between processes."""
    from benchmarks.demo import model
    from mari_onnx.errors import MariError

    try:
        return model.measured(path, output, only)
    except MariError as error:
        return str(error)


def again(path: Path, output: Path, only: int | None) -> Times:
    """See `model.again`."""
    from benchmarks.demo import model

    return model.again(path, output, only)
