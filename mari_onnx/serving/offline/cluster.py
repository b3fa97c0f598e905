"""Ray Data as this package uses it: started if it is not running; rows one after the other; errors as they were raised.

In: a dataset. Out: its rows, while the workers make the next ones.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayError

from mari_onnx.errors import MariError, UsageError, first_line


def start() -> None:
    """Connects to the cluster that RAY_ADDRESS names, or starts Ray on this machine; nothing where it is running.

    Raises:
        UsageError: no cluster answers there. MariError: Ray does not start.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        address = os.environ.get("RAY_ADDRESS")
        if address is None:
            raise MariError(f"Ray does not start on this machine: {first_line(error)}") from error
        raise UsageError(
            f"no cluster of Ray answers at {address} (RAY_ADDRESS): {first_line(error)}",
            "start one (ray start --head), or unset RAY_ADDRESS to use this machine alone",
        ) from error


def workers(threads: int) -> ActorPoolStrategy:
    """As many workers as the cluster has room for, each with so many threads."""
    most = max(1, int(ray.cluster_resources().get("CPU", 1) // threads))
    return ActorPoolStrategy(min_size=1, max_size=most)


def rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a dataset in their order.

    Raises:
        MariError: that a worker ended with, or in one line what else went wrong there.
    """
    options = dataset.context
    options.enable_progress_bars = False
    options.execution_options.preserve_order = True
    try:
        yield from dataset.iter_rows()
    except RayError as error:
        raise cause_of(error) from error


def cause_of(error: BaseException) -> MariError:
    """What a worker raised, without what Ray says around it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MariError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__ or seen.__context__
    text = str(error).strip().splitlines()
    return MariError(f"a worker of Ray failed: {text[-1][:300] if text else first_line(error)}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ray Data's own log lines and bars are not printed."""
    import logging

    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
