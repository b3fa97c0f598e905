"""A limit on time, and cleaning up when a run is ended from outside."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from mari_onnx.errors import TimeLimit

# How long a library call may go on past the limit before the process is ended around it.
_GRACE_SECONDS = 3.0


class _TimeIsUp(BaseException):
    """No Exception: code that goes on after any of those must not go on after this."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises TimeLimit in the body after `seconds`; None is no limit.

    A call into a library that does not come back is cut off by ending the process, its temporary
    files removed.
    """
    if seconds is None:
        yield
        return
    error = TimeLimit(f"not done after {seconds:g} s (--timeout)", "nothing was written; give it more time")

    def over(_: int, __: FrameType | None) -> None:
        raise _TimeIsUp

    def end() -> None:
        from mari_onnx.model.save import discard_all

        discard_all()
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)

    has_alarm = hasattr(signal, "setitimer")
    watchdog = threading.Timer(seconds + (_GRACE_SECONDS if has_alarm else 0), end)
    watchdog.daemon = True
    watchdog.start()
    before = None
    if has_alarm:
        before = signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TimeIsUp:
        raise error from None
    finally:
        watchdog.cancel()
        if has_alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


_asked: list[int] = []


def load_libraries(*names: str) -> None:
    """Imports libraries with signals held back: an exception within their C++ would abort the process.

    What they write to standard error meanwhile is dropped: onnxruntime warns of machines without a GPU. One that is
    missing or broken is left to whoever needs it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with _unheard():
            for name in names:
                with contextlib.suppress(ImportError, OSError):
                    importlib.import_module(name)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Standard error goes nowhere, also what C++ writes to it."""
    before = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def end_on_signals() -> None:
    """Ctrl-C and SIGTERM unwind like exceptions, so that temporary files are removed; both are remembered."""

    def interrupt(number: int, _: FrameType | None) -> None:
        _asked.append(number)
        raise KeyboardInterrupt

    def end(number: int, _: FrameType | None) -> None:
        _asked.append(number)
        raise SystemExit(128 + number)

    with contextlib.suppress(ValueError, AttributeError):  # not the main thread
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, end)


def asked_to_end() -> int | None:
    """The exit code of a signal that came; a library may have made another exception of it."""
    return 128 + _asked[0] if _asked else None
