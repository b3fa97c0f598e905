"""Folders of a model repository, each whole or not at all.

In: models to serve. Out: `REPOSITORY/NAME/config.pbtxt`, `REPOSITORY/NAME/1/..` and `REPOSITORY/NAME/README.md`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclient.grpc import model_config_pb2 as triton

from mari_onnx.errors import OutputInTheWay, UsageError, WriteError
from mari_onnx.model.save import create, save, sync_folder, working_folder
from mari_onnx.serving.triton.config import text
from mari_onnx.splitting.folder import put_in_place

if TYPE_CHECKING:
    import onnx

CONFIG, README, VERSION = "config.pbtxt", "README.md", "1"


@dataclass(frozen=True)
class Served:
    """A folder of the repository.

    Attributes:
        files: copied or written into the folder of the version: path in it -> a file, a text, or a model.
        readme: None where no client calls this model.
        named_by_content: its name has the hash of its files, so where it is there already it stays.
    """

    config: triton.ModelConfig
    files: Mapping[str, Path | str | onnx.ModelProto] = field(default_factory=dict)
    readme: str | None = None
    named_by_content: bool = False


def model_name(given: str) -> str:
    """A name that is good for a folder and a URL: anything else than letters, digits, `_`, `.` and `-` becomes `_`.

    Raises:
        UsageError: nothing is left.
    """
    found = re.sub(r"[^A-Za-z0-9_.-]+", "_", given).strip("._")
    if not found:
        raise UsageError(f"{given!r} is no name of a model", "give one with --name, of letters and digits")
    return found


def write(repository: Path, served: Sequence[Served], force: bool) -> list[Path]:
    """Writes the folders, in this order, and answers them. What is of another name in the repository stays.

    Args:
        force: folders of these names are replaced.

    Raises:
        OutputInTheWay: a folder is there. WriteError: it cannot be written.
    """
    root = Path(os.path.realpath(repository))
    if root.exists() and not root.is_dir():
        raise OutputInTheWay(f"{repository} is no folder", "name a new folder, or a model repository")
    targets = [root / each.config.name for each in served]
    for target, each in zip(targets, served, strict=True):
        if target.exists() and not (target.is_dir() and (target / CONFIG).is_file()):
            raise OutputInTheWay(f"{target} is there and is no model of a repository", "give another --name")
        if target.exists() and not force and not each.named_by_content:
            raise OutputInTheWay(f"{target} is there", "give --force to replace it, or another --name")
    try:
        root.mkdir(exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot write {repository}: {error.strerror}", "create the folder around it first") from error
    for target, each in zip(targets, served, strict=True):
        if each.named_by_content and target.exists() and not force:
            continue
        with working_folder(target) as new:
            _fill(new, each)
            put_in_place(new, target)
    return targets


def _fill(new: Path, served: Served) -> None:
    version = new / VERSION
    version.mkdir(parents=True)
    for name, content in served.files.items():
        path = version / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, str):
            _write(path, content)
        elif isinstance(content, Path):
            with content.open("rb") as read, create(path) as copy:
                shutil.copyfileobj(read, copy, 1 << 20)
        else:
            save(content, path)
    _write(new / CONFIG, text(served.config))
    if served.readme is not None:
        _write(new / README, served.readme)
    for folder in {version, *(path.parent for path in version.rglob("*")), new}:
        sync_folder(folder)


def _write(path: Path, content: str) -> None:
    with create(path) as file:
        file.write(content.encode())
