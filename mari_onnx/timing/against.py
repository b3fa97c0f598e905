"""A source against what was made of it: which models are timed, on which requests.

In: a source that was read, its sides, and paths. Out: a `Bench`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mari_onnx import api
from mari_onnx.choices import options_for
from mari_onnx.errors import UsageError
from mari_onnx.model.load import Source, read
from mari_onnx.model.signature import signature
from mari_onnx.parity.several.check import form_in
from mari_onnx.splitting.manifest import is_split
from mari_onnx.timing.answer import Bench
from mari_onnx.timing.measure import OURS, Measured, Variant, as_given, draw, measure, variants_of
from mari_onnx.timing.several import MOST, Together, measure_together
from mari_onnx.timing.stages import measure_merging, measure_split

if TYPE_CHECKING:
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.sides.resolve import Sides
    from mari_onnx.timing.measure import Progress


def timed(
    source: Source,
    sides: Sides,
    others: Sequence[Path],
    *,
    candidates: Sequence[int],
    users: Sequence[int] = (),
    recorded: str | os.PathLike[str] | Iterable[Request] | None = None,
    threads: Sequence[int] = (1,),
    provider: str = "cpu",
    seconds: float = 2.0,
    peers: bool = False,
    with_floor: bool = False,
    memory: bool = False,
    progress: Progress | None = None,
) -> Bench:
    """`mari_onnx.bench` of a source that was read. Raises as that does."""
    parts = _split(others, provider, peers)
    source = api.with_given_shapes(source, sides)
    if users and (recorded is not None or provider != "cpu" or peers or with_floor):
        raise UsageError("--users-per-run takes no --data, --peers and --floor, and the CPU only", "leave these out")
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        place, typical = Path(folder), sorted(candidates)[len(candidates) // 2]
        if users and parts is None:
            return _several(source, sides, others, users, candidates, typical, threads, seconds, place, progress)
        variants, notes = _variants(
            source, sides, others if parts is None else [], place, typical, provider, peers, with_floor, progress
        )
        results: list[Measured | Together] = []
        if users and parts is not None:
            sizes, more = _sizes(users, candidates)
            for count in threads:
                results += measure_merging(
                    variants, parts, source.model, sides, sizes, threads=count, seconds=seconds, progress=progress
                )
            return Bench(str(source.path), provider, results, [*more, *notes])
        requests = _requests(source, sides, candidates, recorded)
        for count in threads:
            how: dict[str, Any] = {"threads": count, "seconds": seconds, "progress": progress}
            results += (
                measure(variants, requests, provider=provider, memory=memory, **how)
                if parts is None
                else measure_split(variants, parts, requests, **how)
            )
    notes += [warning for each in results if isinstance(each, Measured) for warning in each.warnings()]
    return Bench(str(source.path), provider, results, notes)


def _several(
    source: Source,
    sides: Sides,
    others: Sequence[Path],
    users: Sequence[int],
    candidates: Sequence[int],
    typical: int,
    threads: Sequence[int],
    seconds: float,
    folder: Path,
    progress: Progress | None,
) -> Bench:
    """Several requests in one run, against the source and its output for one request. folder: for models."""
    if len(others) > 1:
        raise UsageError(
            "--users-per-run takes the source, and at most one output of --batched", "name these two models alone"
        )
    sizes, notes = _sizes(users, candidates)
    form = _form_of(others[0]) if others else sides.batched or "grid"
    batched = replace(sides, batched=form)
    one = api.rewritten(source, replace(sides, batched=None), options_for(typical, assume=True))
    one.save(folder / "single.onnx")
    single = {
        f"{OURS}, one request per run": folder / "single.onnx",
        "source, one request per run": as_given(source, sides, folder),
    }
    if others:
        path = others[0]
    else:
        path = folder / "several.onnx"
        with api.checked(source, batched, path) as (done, staged):
            notes += done.report.notes
            staged.commit()
    several = {f"all requests in one run ({form})": path}
    results: list[Measured | Together] = []
    for count in threads:
        results += measure_together(
            source.model, batched, single, several, sizes, threads=count, seconds=seconds, progress=progress
        )
    return Bench(str(source.path), "cpu", results, notes)


def _sizes(users: Sequence[int], candidates: Sequence[int]) -> tuple[list[tuple[int, int]], list[str]]:
    """(requests, candidates) to time, and a note where some are left out."""
    sizes = [(count, n) for count in users for n in candidates if count * n <= MOST]
    left = len(sizes) < len(users) * len(candidates)
    return sizes, [f"runs of more than {MOST} rows are left out"] if left else []


def _form_of(path: Path) -> str:
    """How an output takes several requests, by its metadata. Raises UsageError where it does not."""
    form = form_in(read(path).model)
    if form is None:
        raise UsageError(f"{path} takes one request per run: it is no output of `optimize --batched`")
    return form


def _split(others: Sequence[Path], provider: str, peers: bool) -> Path | None:
    """The folder of a split model among the models; None where there is none."""
    if not any(map(is_split, others)):
        return None
    if len(others) != 1 or provider != "cpu":
        raise UsageError("a split model is timed beside its source, on the CPU", "mari-onnx bench IN DIR")
    if peers:
        raise UsageError("--peers does not go with the folder of a split model", "leave one of the two out")
    return others[0]


def source_of(path: Path) -> Source:
    """Reads the model that others are compared with. Raises UsageError for the folder of a split."""
    if is_split(path):
        raise UsageError("a split model is timed beside its source, which comes first", "mari-onnx bench IN DIR")
    return read(path)


def readable(path: Path) -> Any:
    """What stands for a model when its sides are looked for: the parts of a split as one, or the path itself."""
    if not is_split(path):
        return path
    from mari_onnx.splitting.assembly import Assembly

    return Assembly(path)


def _variants(
    source: Source,
    sides: Sides,
    others: Sequence[Path],
    folder: Path,
    candidates: int,
    provider: str,
    peers: bool,
    with_floor: bool,
    progress: Progress | None,
) -> tuple[list[Variant], list[str]]:
    """Everything to be timed, the baseline first, and notes on what is missing."""
    made: list[Variant] = []
    notes: list[str] = []
    if not others or peers or with_floor:
        made, notes = variants_of(
            source, sides, folder, candidates=candidates, target=provider, with_peers=peers, with_floor=with_floor,
            progress=progress,
        )  # fmt: skip
    if not others:
        return made, notes
    paths = [as_given(source, sides, folder), *others]
    named = [Variant(name, path) for name, path in zip(_names([source.path, *others]), paths, strict=True)]
    return [*named, *(each for each in made[1:] if each.name != OURS)], notes


def _names(models: Sequence[Path]) -> list[str]:
    """Short names that tell the files apart."""
    for short in ([path.name or "source" for path in models], [str(path) for path in models]):
        if len(set(short)) == len(short):
            return short
    return [f"{index} {path}" for index, path in enumerate(models, 1)]


def _requests(
    source: Source,
    sides: Sides,
    candidates: Sequence[int],
    recorded: str | os.PathLike[str] | Iterable[Request] | None,
) -> dict[int, list[Request]]:
    """N -> requests."""
    from mari_onnx.parity.requests.recorded import as_requests

    if recorded is None:
        drawn = [draw(source, sides, n) for n in candidates]
        return {requests[0].n: requests for requests in drawn}
    found: dict[int, list[Request]] = {}
    for request in as_requests(recorded, signature(source.model), sides):
        found.setdefault(request.n, []).append(request)
    return dict(sorted(found.items()))
