"""`mari_onnx.bench`: times of models against each other on the same requests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mari_onnx import api
from mari_onnx.api.given import Axes, Dimensions, Model, Names, SidesLike, sides_of_pair, tags
from mari_onnx.parity.float64 import light
from mari_onnx.timing.against import readable, source_of, timed
from mari_onnx.timing.answer import Bench

if TYPE_CHECKING:
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.timing.measure import Progress

CANDIDATES = (1, 16, 64, 256, 1000, 4000)


def bench(
    model: Model,
    *others: str | os.PathLike[str],
    sides: SidesLike = None,
    user: Names = (),
    item: Names = (),
    cross: Names = (),
    rest: str | None = None,
    shapes: Dimensions | None = None,
    count: Names = (),
    candidate_axis: Axes = None,
    guess: bool = False,
    candidates: Sequence[int] = CANDIDATES,
    users_per_run: Sequence[int] = (),
    requests: str | os.PathLike[str] | Iterable[Request] | None = None,
    threads: int | Sequence[int] = 1,
    provider: str = "cpu",
    seconds: float = 2.0,
    peers: bool = False,
    floor: bool = False,
    memory: bool = True,
    progress: Progress | None = None,
) -> Bench:
    """Times models against each other on the same requests, in turns (A B A B).

    One model is timed against what `optimize` makes of it, without its check. On one thread times are thread time,
    which leaves out what other processes take; else they are by the clock (`Measured.clock`).

    Args:
        model: the source, a path or a `ModelProto`: what the others are compared with.
        others: models that were made of it, or the folder of a split alone.
        sides, user, item, cross, rest, shapes, count, candidate_axis, guess: as for `optimize`, of the source's inputs.
        candidates: numbers of candidates at which to time.
        users_per_run: time so many requests in one run against one request per run.
        requests: recorded requests, or their file, instead of drawn ones; N is then as recorded.
        threads: per operator; several numbers are timed one after the other.
        provider: "cpu" or "cuda".
        seconds: to measure at each N, shared by all models.
        peers: also time what onnxsim, onnxslim and onnxscript make of the source, where they are installed.
        floor: also time the optimized model without its user part: no lossless rewrite can be faster.
        memory: measure peak memory, in bytes, each model in a process of its own, at the largest N.
        progress: called with (phase, done, total).

    Raises:
        UsageError: a tag is wrong, or arguments do not go together.
        SidesUnknown: nothing says which inputs are the user's.
        ModelError: a model cannot be read or run.
        ProviderError: the provider is not there.
    """
    source = source_of(Path(model)) if isinstance(model, str | os.PathLike) else api.as_source(model)
    paths = [source.path, *map(Path, others)]
    loaded = [source.model, *(light(readable(path)) for path in paths[1:])]
    said = tags(user, item, cross, rest, shapes, count, candidate_axis, guess)
    given = [model if isinstance(model, str | os.PathLike) else source.model, *paths[1:]]
    found = sides_of_pair(given, loaded, sides, **said)
    return timed(
        source, found, paths[1:], candidates=candidates, users=users_per_run, recorded=requests,
        threads=[threads] if isinstance(threads, int) else threads, provider=provider, seconds=seconds, peers=peers,
        with_floor=floor, memory=memory, progress=progress,
    )  # fmt: skip
