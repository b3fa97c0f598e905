"""Writing the folder of a split, whole or not at all.

The files are copied into a hidden folder beside the target, synced, and renamed into place. An earlier split is
exchanged for the new one in one step where the system can do that (Linux), so a kill at any moment leaves one of the
two; elsewhere the earlier one is moved aside first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
from pathlib import Path

from mari_onnx.errors import OutputInTheWay, WriteError
from mari_onnx.model.save import create, sync_folder, working_folder
from mari_onnx.splitting import manifest as manifests

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of renameat2(2)."""
_OWN = re.compile(r"manifest\.json|(user|item|score|score\.batched)\.onnx(\..*\.data)?")
"""Names of the files of a split."""


def free_folder(folder: str | Path, force: bool) -> Path:
    """Where a split named `folder` would be written.

    Args:
        force: an earlier split may be replaced.

    Raises:
        OutputInTheWay, WriteError: what stands in the way.
    """
    target = Path(os.path.realpath(folder))
    if not target.parent.is_dir():
        raise WriteError(f"cannot write {folder}: no folder {target.parent}", "create the folder first")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    if not target.is_dir() or not manifests.is_split(target):
        raise OutputInTheWay(f"{folder} is there and is no split model", "name a folder that is new")
    if not force:
        raise OutputInTheWay(f"{folder} holds a split model", "give --force to replace it, or name another folder")
    if others := sorted(file.name for file in target.iterdir() if not _OWN.fullmatch(file.name)):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise OutputInTheWay(
            f"{folder} holds a split model, and beside it {others[0]}{more}, which would be lost",
            "move what is no part of the split elsewhere",
        )
    return target


def write(files: Path, target: Path) -> None:
    """Puts copies of all files in the folder `files` at `target`, in place of an earlier split or an empty folder.

    Raises:
        WriteError: they cannot be written.
    """
    with working_folder(target) as new:
        new.mkdir()
        for file in sorted(files.iterdir()):
            with file.open("rb") as read, create(new / file.name) as copy:
                shutil.copyfileobj(read, copy, 1 << 20)
        sync_folder(new)
        put_in_place(new, target)


def put_in_place(new: Path, target: Path) -> None:
    """Moves the folder `new` of `working_folder(target)` to `target`; one that is there goes, in one step if it can."""
    if not target.exists():
        os.replace(new, target)
    elif not _exchanged(new, target):
        os.replace(target, new.with_name("before"))
        os.replace(new, target)
    sync_folder(target.parent)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; False where the system cannot do that."""
    with contextlib.suppress(OSError, AttributeError):
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)
    return False
