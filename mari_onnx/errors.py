"""What can go wrong for a user. Each class owns its exit code; `docs/errors.md` lists every class.

A message says what is wrong and where (file, input, node by name); the hint what to do about it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence


class MariError(Exception):
    """Base of every error that a user can meet.

    Args:
        message: what is wrong and where, one or more lines, without a trailing full stop.
        hint: what to do about it, or None where the message says it all.
    """

    exit_code: int = 3

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class OutputsDiffer(MariError):
    """The optimized model's outputs differ from the source's; nothing was written."""

    exit_code = 1


class UsageError(MariError):
    """A flag, an argument or a side file is wrong."""

    exit_code = 2


class SidesUnknown(UsageError):
    """Nothing says which inputs belong to the user, and the graph does not show it either."""


class UntaggedInput(UsageError):
    """Some inputs (or columns of a packed input) are tagged, but others are left."""


class TaggedTwice(UsageError):
    """An input or a column was given two different sides."""


class NoSuchInput(UsageError):
    """A pattern matches no input of the model, or a column that the input does not have."""


class SideFileError(UsageError):
    """The side file, or the model's own side metadata, cannot be read or says something unknown."""


class CannotBatch(UsageError):
    """An output for several requests (--batched) cannot be made of the model, or its candidates would mix."""


class CannotServe(UsageError):
    """A server cannot serve a model as asked: it has no such tensors, or would mix requests."""


class OutputInTheWay(UsageError):
    """OUT is the input itself (or a folder), and --force was not given."""


class BadFeatures(UsageError):
    """What a split model is given is missing, or has another element type or shape than it takes."""


class OtherModel(UsageError):
    """A user's state or items' rows were made by another model than the one that shall score them."""


class MissingItems(UsageError):
    """A store of item rows does not have some of the items asked for. ids: those items."""

    def __init__(self, message: str, hint: str | None = None, ids: Sequence[int | str] = ()):
        super().__init__(message, hint)
        self.ids = tuple(ids)


class ModelError(MariError):
    """The model cannot be read, is invalid, or cannot be run."""

    exit_code = 3


class ModelNotFound(ModelError):
    """There is no such model file, it is a folder, or it may not be read."""


class NotAModel(ModelError):
    """The file is empty, text, another format, cut off, or holds no graph."""


class InvalidModel(ModelError):
    """The file is an ONNX model, but breaks the ONNX specification."""


class ExternalDataError(ModelError):
    """External data is missing, too short, or its path leaves the model's folder."""


class Unchanged(MariError):
    """There was nothing to lift, and --fail-unchanged was given."""

    exit_code = 4


class ProviderError(MariError):
    """The execution provider that was asked for is not there."""

    exit_code = 5


class BrokenRuntime(ProviderError):
    """onnxruntime cannot be imported: not installed, half removed, or overwritten by another of its packages."""


class WriteError(MariError):
    """The output cannot be written (no folder, read-only, disk full); nothing was left behind."""

    exit_code = 6


class TimeLimit(MariError):
    """The time given with --timeout ran out; nothing was written."""

    exit_code = 7


class CannotCompare(MariError):
    """The source gives nothing to compare with: it fails, or answers the same request differently each time."""

    exit_code = 8


class Slower(MariError):
    """The output is slower than the source, and --if-slower fail was given."""

    exit_code = 9


class StoreUnavailable(MariError):
    """The server that keeps the items' rows does not answer."""

    exit_code = 10


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Imports of what the extra `mari-onnx[extra]` installs; raises UsageError where a library is not there."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("mari_onnx"):
            raise
        raise UsageError(f"this needs {error.name}", f"pip install 'mari-onnx[{extra}]'") from error


def first_line(error: BaseException) -> str:
    """What went wrong in one line, for a message that has more to say."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def without_room(error: BaseException) -> bool:
    """Whether a disk, a quota or a limit on file size had no room for what was written."""
    if not isinstance(error, OSError):
        return False
    # How Python says that no folder for temporary files could take one.
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No usable temporary directory" in str(error)


def no_room(error: BaseException) -> WriteError:
    """The error to raise where `without_room` and the file was a temporary one."""
    reason = getattr(error, "strerror", None) or str(error)
    return WriteError(
        f"cannot write {getattr(error, 'filename', None) or 'a temporary file'}: {reason}",
        "free some space on that disk, or set TMPDIR to a folder that has more; nothing was left behind",
    )
