"""Times of models against each other on the same requests: `mari_onnx.bench` and `mari-onnx bench`.

In: a source, alone or with models that were made of it. Out: a `Bench`, whose JSON form is that of the command line.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mari_onnx import api
from mari_onnx.api.given import Axes, Dimensions, Model, Names, SidesLike, sides_of_pair, tags
from mari_onnx.choices import options_for
from mari_onnx.errors import UsageError
from mari_onnx.model.load import Source, read
from mari_onnx.model.signature import signature
from mari_onnx.parity.float64 import light
from mari_onnx.parity.several.check import form_in
from mari_onnx.shown import Rows, Shown
from mari_onnx.splitting.manifest import is_split
from mari_onnx.timing.measure import OURS, Measured, Variant, as_given, draw, measure, variants_of
from mari_onnx.timing.several import MOST, Together, measure_together
from mari_onnx.timing.stages import measure_merging, measure_split

if TYPE_CHECKING:
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.sides.resolve import Sides
    from mari_onnx.timing.measure import Progress

CANDIDATES = (1, 16, 64, 256, 1000, 4000)
SCHEMA, VERSION = "mari-onnx/bench", 2


@dataclass(repr=False)
class Bench(Shown):
    """What models took. Printed, it is a line for each number of candidates and model.

    Attributes:
        source: the first model. provider: "cpu" or "cuda".
        results: one for each number of candidates (and of requests) and of threads, in the order of the measurement.
        notes: what is missing, and which ratios are not to be relied on.
    """

    source: str
    provider: str
    results: list[Measured | Together]
    notes: list[str] = field(default_factory=list)

    @property
    def faster_from(self) -> dict[int, dict[str, int | None]]:
        """Threads -> model -> the least N measured from which on it is no slower than the first model at any larger N
        measured; None where it is slower at the largest. Empty for several requests in one run.
        """
        found: dict[int, dict[str, int | None]] = {}
        for each in sorted(self.results, key=lambda r: -r.n):
            if isinstance(each, Together):
                return {}
            first, *others = each.timing.names
            ends = found.setdefault(each.threads, dict.fromkeys(others))
            for name in others:
                larger = [r for r in self.results if r.threads == each.threads and r.n >= each.n]
                if all(r.timing.ratio(first, name) >= 1 for r in larger):
                    ends[name] = each.n
        return found

    def to_dict(self) -> dict[str, Any]:
        """The documented form (docs/bench.md, schemas/bench.json): that of `mari-onnx bench --json`."""
        from mari_onnx.timing.machine import machine

        return {
            "schema": SCHEMA,
            "version": VERSION,
            "source": self.source,
            "provider": self.provider,
            "machine": machine(self.provider),
            "notes": list(self.notes),
            "faster_from": {str(threads): ends for threads, ends in self.faster_from.items()},
            "results": [each.to_dict() for each in self.results],
        }

    def shown(self) -> tuple[str, Rows]:
        """See `Shown`."""
        rows: list[tuple[str, ...]] = [("N", "model", "median", "spread", "faster", "(middle half)", "predicted")]
        for each in self.results:
            figures = each.to_dict()["variants"]
            setting = f"{each.requests} x {each.n}" if isinstance(each, Together) else str(each.n)
            setting += f", {each.threads} threads" if each.threads > 1 else ""
            for index, (name, one) in enumerate(figures.items()):
                low, high = one["speedup_quartiles"]
                predicted = one.get("predicted_speedup")
                ratios = (f"{one['speedup']:.2f}x", f"{low:.2f}-{high:.2f}") if index else ("", "")
                shown = f"{predicted:.2f}x" if index and predicted is not None else ""
                rows.append((setting, name, f"{one['median_ms']:.3f} ms", f"{one['spread']:.0%}", *ratios, shown))
        for threads, ends in self.faster_from.items():
            with_threads = f", {threads} threads" if threads > 1 else ""
            rows += [("faster from", f"{name}{with_threads}", _from(n)) for name, n in ends.items()]
        return f"Bench: {Path(self.source).name}", [*rows, *(("note", note) for note in self.notes)]


def _from(n: int | None) -> str:
    return "at no number that was measured" if n is None else f"{n} candidates on"


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
    source = api.as_source(model)
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
    """`bench` of a source that was read. Raises as `bench` does."""
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
