"""Writing files whole or not at all.

A model is written into a hidden folder beside its target, synced, and renamed into place. A data
file (external data) is named by its hash, `out.onnx.0123456789abcdef.data`: the old model keeps its
own data until the new one is in place, so a kill at any moment leaves one of the two.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mari_onnx.errors import OutputInTheWay, WriteError
from mari_onnx.model import protobuf_wire
from mari_onnx.model import tensors as tensors_

if TYPE_CHECKING:
    import onnx

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# A protobuf message ends at 2 GiB; above this, weights go to a data file.
LARGEST_FILE = 1_900_000_000
# Smaller tensors stay in the model file, so that shapes can be read from it alone.
EXTERNAL_FROM = 1024
# Pages, so that a runtime can map the weights.
_ALIGN = 4096

# Folders of this process that are not removed yet.
_working: set[Path] = set()


@dataclass
class Staged:
    """A model written in full beside its target, not yet in place.

    Attributes:
        path: the model file, loadable (with its data beside it).
        target: where `commit` puts it.
    """

    path: Path
    target: Path
    _folder: Path
    _lock: int | None

    @property
    def size(self) -> int:
        """Bytes of the staged model with its data."""
        return sum(each.stat().st_size for each in self._folder.iterdir())

    def commit(self) -> None:
        """Puts the model in place of whatever is at the target; raises WriteError."""
        parent = self.target.parent
        with write_errors(self.target), _locked(parent):
            before = _own_data(self.target)
            data = [each for each in self._folder.iterdir() if each != self.path]
            for each in data:
                os.replace(each, parent / each.name)
            os.replace(self.path, self.target)
            sync_folder(parent)
            for old in before - {parent / each.name for each in data}:
                old.unlink(missing_ok=True)
        self.discard()

    def discard(self) -> None:
        """Removes what was staged; the target is not touched."""
        shutil.rmtree(self._folder, ignore_errors=True)
        _working.discard(self._folder)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


def save(model: onnx.ModelProto, path: str | Path, *, external: bool = False) -> None:
    """Writes `model` to `path` atomically; see `stage`."""
    with stage(model, path, external=external) as staged:
        staged.commit()


def stage(model: onnx.ModelProto, path: str | Path, *, external: bool = False) -> Staged:
    """Writes `model` beside `path`, synced to disk; `commit` or `discard` follows.

    Args:
        model: is not changed; large tensors may be on disk (see `mari_onnx.model.tensors`).
        path: the target. A link is followed, so the link stays.
        external: put weights into a data file, as is done anyway where one file cannot hold them.

    Raises:
        WriteError, OutputInTheWay.
    """
    target = check_target(path)
    with _staging(target) as staged:
        lazy = False
        if external or _full_size(model) > LARGEST_FILE:
            model = _externalized(model, staged.path)
        elif any(map(tensors_.is_external, tensors_.tensors(model))):
            model, lazy = _with_initializers_alone_on_disk(model), True
        with create(staged.path) as file:
            if lazy:
                protobuf_wire.write(model, file)
            else:
                file.write(model.SerializeToString(deterministic=True))
    return staged


def stage_copy(source: str | Path, path: str | Path) -> Staged:
    """Stages the very bytes of `source` (a model without external data) for `path`."""
    target = check_target(path)
    with _staging(target) as staged, open(source, "rb") as read, create(staged.path) as file:
        shutil.copyfileobj(read, file, 1 << 20)
    return staged


def write_text(path: str | Path, text: str) -> None:
    """Writes a report atomically, UTF-8, or straight into a device or a pipe; raises WriteError."""
    target, given = Path(os.path.realpath(path)), Path(path)  # /dev/stdout may lead to a name that is nowhere
    if given.exists() and not given.is_file() and not given.is_dir():
        # Whoever reads a pipe may go when it has enough.
        with write_errors(target), contextlib.suppress(BrokenPipeError), open(path, "wb") as stream:
            stream.write(text.encode())
        return
    target = check_target(path)
    with _staging(target) as staged, create(staged.path) as file:
        file.write(text.encode())
    with staged:
        staged.commit()


def discard_all() -> None:
    """Removes everything that this process has staged, for an end without unwinding."""
    for folder in list(_working):
        shutil.rmtree(folder, ignore_errors=True)


def check_target(path: str | Path) -> Path:
    """Where a file named `path` would be written, links followed; raises what stands in the way."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputInTheWay(f"{path} is a folder", "name a file in it")
    if target.exists() and not target.is_file():
        raise OutputInTheWay(f"{path} is a device or a pipe, which a rename would replace", "name a file")
    if not target.parent.is_dir():
        raise WriteError(f"cannot write {path}: no folder {target.parent}", "create the folder first")
    return target


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Staged]:
    """A fresh hidden folder beside the target, removed again where the body fails."""
    with write_errors(target):
        staged = _begun(target)
        try:
            yield staged
            if target.exists():
                shutil.copymode(target, staged.path)
        except BaseException:
            staged.discard()
            raise


@contextlib.contextmanager
def working_folder(target: Path) -> Iterator[Path]:
    """A path of the target's name in a fresh hidden folder beside it, which is removed when the body ends, or by the
    next run on this target where the process was killed. Raises WriteError for an OSError of the body.
    """
    with write_errors(target):
        staged = _begun(target)
        try:
            yield staged.path
        finally:
            staged.discard()


def _begun(target: Path) -> Staged:
    _sweep(target)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    _working.add(folder)
    return Staged(folder / target.name, target, folder, _lock_folder(folder))


@contextlib.contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """An OSError of the body becomes a WriteError that says what to do."""
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "free some space on that disk; nothing was left behind",
            errno.EDQUOT: "free some space in your quota; nothing was left behind",
            errno.EROFS: "the disk is read-only; write somewhere else",
            errno.EACCES: "you may not write in that folder",
            errno.ENAMETOOLONG: "choose a shorter name",
        }
        reason = error.strerror or str(error)
        raise WriteError(f"cannot write {target}: {reason}", hints.get(error.errno or 0)) from error


@contextlib.contextmanager
def create(path: Path) -> Iterator[BinaryIO]:
    """A new file with the user's usual permissions, on the disk when the body ends."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _full_size(model: onnx.ModelProto) -> int:
    outside = sum(
        int(tensors_.external_entries(tensor)["length"])
        for tensor in tensors_.tensors(model)
        if tensors_.is_external(tensor)
    )
    return int(model.ByteSize()) + outside


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def _with_initializers_alone_on_disk(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose other tensors (attributes, subgraphs) are in memory, as `protobuf_wire.write` wants."""
    copy = _copied(model)
    del copy.graph.initializer[:]
    for tensor in tensors_.tensors(copy):
        tensors_.inline(tensor)
    copy.graph.initializer.extend(model.graph.initializer)
    return copy


def _externalized(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """A copy of `model` whose weights are in a data file beside `path`, written one by one."""
    copy = _copied(model)
    digest = hashlib.sha256()
    known: dict[tuple[str, ...], tuple[int, int]] = {}
    moved: list[tuple[onnx.TensorProto, int, int]] = []
    data_path = path.with_name("data")
    position = 0
    with create(data_path) as file:
        for tensor in tensors_.tensors(copy):
            key: tuple[str, ...] | None = None
            if tensors_.is_external(tensor):
                entries = tensors_.external_entries(tensor)
                key = tuple(entries.get(k, "") for k in ("location", "offset", "length"))
                if key in known:
                    moved.append((tensor, *known[key]))
                    continue
                pieces: Iterable[bytes] = tensors_.external_chunks(tensor)
            elif len(tensor.raw_data) >= EXTERNAL_FROM:
                pieces = (tensor.raw_data,)
            else:
                continue
            padding = bytes(-position % _ALIGN)
            position += len(padding)
            start = position
            file.write(padding)
            digest.update(padding)
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                position += len(piece)
            moved.append((tensor, start, position - start))
            if key is not None:
                known[key] = (start, position - start)
    if not moved:
        data_path.unlink()
        return copy
    name = f"{path.name}.{digest.hexdigest()[:16]}.data"
    for tensor, offset, length in moved:
        tensors_.set_external(tensor, name, offset, length)
    os.replace(data_path, path.with_name(name))
    return copy


def _own_data(target: Path) -> set[Path]:
    """Data files that a model at `target` uses and that `commit` made for it alone."""
    pattern = re.compile(re.escape(target.name) + r"\.[0-9a-f]{16}\.data")
    found = {p for p in target.parent.glob("*.data") if pattern.fullmatch(p.name)}
    if not found:
        return set()
    import onnx

    try:
        old = onnx.load(target, load_external_data=False)
        used = {
            tensors_.external_entries(tensor).get("location", "")
            for tensor in tensors_.tensors(old)
            if tensors_.is_external(tensor)
        }
    except Exception:  # whatever is there is no model of ours, so no data of it is ours
        return set()
    return {each for each in found if each.name in used}


def _lock_folder(folder: Path) -> int | None:
    """Holds a lock as long as this process works in `folder`; None where there are no locks."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two runs on one target put their files in place one after the other."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network disks have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sweep(target: Path) -> None:
    """Removes what earlier runs on this target left when they were killed."""
    for folder in target.parent.glob(f".{_glob_escape(target.name)}.*.tmp"):
        if fcntl is None or not folder.is_dir():
            continue
        handle = _lock_folder(folder)
        if handle is not None:  # nobody works in it any more
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _glob_escape(name: str) -> str:
    import glob

    return glob.escape(name)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Whether no other process holds `folder`; it is this one's until the body ends."""
    handle = _lock_folder(folder)
    try:
        yield handle is not None or fcntl is None
    finally:
        if handle is not None:
            os.close(handle)


def sync_folder(folder: Path) -> None:
    """Names of files in a folder, on the disk; nothing where the system has no such thing."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
