"""Standard output and error that outlive whoever reads them, and the disk that they are written to.

What a command does, and its exit code, must not depend on whether `| head` is still there.
"""

from __future__ import annotations

import errno
import io
import math
import os
import sys
from pathlib import Path
from typing import TextIO


class _Outlet(io.FileIO):
    """A file descriptor; from the first write that fails on, what is written to it is dropped.

    Attributes:
        lost: why writing failed; None if it did not, or if the reader has closed its end of a pipe.
    """

    lost: OSError | None = None
    _broken = False

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        if not self._broken:
            try:
                return super().write(data) or 0
            except OSError as error:
                self._broken = True
                # Windows says EINVAL for a closed pipe
                if error.errno not in (errno.EPIPE, errno.EINVAL):
                    self.lost = error
        return memoryview(data).nbytes


def outlast() -> list[_Outlet]:
    """Puts such streams in place of the process's own, and something in place of those that are closed."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(spare, True)  # a model's file must not become standard output
    os.close(spare)
    outlets = []
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
            continue
        try:
            stream.flush()
            outlet = _Outlet(stream.fileno(), "wb", closefd=False)
        except (OSError, ValueError):  # replaced by something that is no file
            continue
        by_line = stream.isatty() or name == "stderr"
        made = io.TextIOWrapper(io.BufferedWriter(outlet), stream.encoding, stream.errors, line_buffering=by_line)
        setattr(sys, name, made)
        outlets.append(outlet)
    return outlets


def write_json(file: str | Path, said: object) -> None:
    """Writes a result as JSON to a file, or to standard output where `file` is "-"; raises WriteError."""
    import json

    import click

    from mari_onnx.model.save import write_text

    text = json.dumps(_finite(said), indent=1, ensure_ascii=False, default=str, allow_nan=False)
    if str(file) == "-":
        click.echo(text)
    else:
        write_text(file, text + "\n")


def _finite(said: object) -> object:
    """JSON has no NaN and no infinity: they are texts, as in the result of a check."""
    if isinstance(said, dict):
        return {key: _finite(value) for key, value in said.items()}
    if isinstance(said, list | tuple):
        return [_finite(value) for value in said]
    return said if not isinstance(said, float) or math.isfinite(said) else str(said)
