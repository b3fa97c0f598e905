"""Models side by side on the same requests: one `Variant` a model, one `Measured` a setting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx import runtime
from mari_onnx.parity.judge.values import parts
from mari_onnx.prices import table as tables
from mari_onnx.timing.clock import LARGE, Timing, clock_for, interleaved
from mari_onnx.timing.floor import Floor, NoFloor, floor
from mari_onnx.timing.peers import peers

if TYPE_CHECKING:
    import onnxruntime

    from mari_onnx.model.load import Source
    from mari_onnx.parity.requests.draw import Request
    from mari_onnx.prices.table import Prices
    from mari_onnx.sides.resolve import Sides

    Progress = Callable[[str, int, int], None]

OURS = "mari-onnx"
FLOOR = "floor"
REQUESTS = 2


@dataclass(frozen=True)
class Variant:
    """One model to be timed.

    Attributes:
        name: how tables call it.
        path: the model.
        floor: where the model is a floor, what makes its feed.
    """

    name: str
    path: Path
    floor: Floor | None = None

    def feed(self, request: Request, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        """The request as this model takes it, from its session's inputs."""
        if self.floor is None:
            return request.feed(inputs)
        return self.floor.feed(request.feed(self.floor.inputs))


@dataclass
class Measured:
    """Times for one number of candidates and threads.

    Attributes:
        n, threads: the setting.
        clock: what `timing` was measured by, "thread" or "wall"; see `clock_for`.
        timing: seconds of each variant in turns, without transfers on a device.
        transfers: seconds of moving inputs to the device and outputs back, None on the CPU.
        memory: peak bytes of a process that loads and runs the variant, where asked for.
        work: FLOPs and bytes per candidate, None where shapes are not known.
        predicted: seconds by prices of the CPU's kernels (`mari_onnx.prices`), None where shapes are not known.
        apart: largest absolute difference of any output to the first variant's; nan without one in common.
    """

    n: int
    threads: int
    timing: Timing
    clock: str = "wall"
    transfers: Timing | None = None
    memory: dict[str, int | None] = field(default_factory=dict)
    work: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    predicted: dict[str, float | None] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The documented form: one entry a variant."""
        first = self.timing.names[0]
        figures = self.timing.to_dict(first)
        for name, entry in figures.items():
            flops = self.work.get(name)
            entry["flops_per_candidate"] = None if flops is None else round(flops[0], 1)
            entry["bytes_per_candidate"] = None if flops is None else round(flops[1], 1)
            seconds, base = self.predicted.get(name), self.predicted.get(first)
            entry["predicted_ms"] = None if seconds is None else seconds * 1e3
            entry["predicted_speedup"] = base / seconds if seconds and base is not None else None
            apart = self.apart.get(name)
            entry["max_difference"] = None if apart is None or np.isnan(apart) else apart
            entry["peak_memory_bytes"] = self.memory.get(name)
            if self.transfers is not None:
                entry["transfer_median_ms"] = self.transfers.median(name) * 1e3
            if FLOOR in self.timing.names:
                entry["of_floor_speed"] = self.timing.ratio(FLOOR, name)
        return {"candidates": self.n, "threads": self.threads, "clock": self.clock, "variants": figures}

    def warnings(self) -> list[str]:
        """Which ratios to the first variant vary too much to be relied on."""
        first, *others = self.timing.names
        found = []
        for name in others:
            if (spread := self.timing.ratio_spread(first, name)) > LARGE:
                low, high = self.timing.quartiles(first, name)
                found.append(
                    f"N = {self.n}, {name}: the ratio has a spread of {spread:.0%} (middle half {low:.2f}x to "
                    f"{high:.2f}x); measure longer (--seconds) or on a quieter machine"
                )
        return found


def variants_of(
    source: Source,
    sides: Sides,
    folder: Path,
    *,
    candidates: int | Mapping[int, float] | None = 500,
    target: str = "cpu",
    with_peers: bool = False,
    with_floor: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Variant], list[str]]:
    """The source, what peers and mari-onnx make of it, and the floor; notes on what is missing.

    Args:
        folder: where models are written; it has to outlive the variants.
        candidates, target: as for `optimize`; its parity check is not run, and what it would
            verify is assumed.
        progress: called with (phase, done, total).
    """
    from mari_onnx import api
    from mari_onnx.choices import options_for
    from mari_onnx.model.save import stage

    given = as_given(source, sides, folder)
    found, notes = [Variant("source", given)], []
    if with_peers:
        for peer in peers(given, folder, progress=progress):
            if peer.path is None:
                notes.append(f"{peer.tool}: {peer.reason}")
            else:
                found.append(Variant(peer.tool, peer.path))
    if progress is not None:
        progress("optimizing", 0, 1)
    done = api.rewritten(source, sides, options_for(candidates, target=target, assume=True))
    if done.changed:
        done.save(folder / "mari-onnx.onnx")
        found.append(Variant(OURS, folder / "mari-onnx.onnx"))
    else:
        notes.append(f"mari-onnx does not change the model: {done.report.reason}")
    if with_floor:
        try:
            cut = floor(done.rewrite, sides)
            with stage(cut.model, folder / "floor.onnx", external=False) as staged:
                staged.commit()
            found.append(Variant(FLOOR, folder / "floor.onnx", cut))
        except NoFloor as error:
            notes.append(f"--floor was skipped: {error}")
    return found, notes


def as_given(source: Source, sides: Sides, folder: Path) -> Path:
    """The source's file, or one in `folder` if it has none, or dimensions were given that the file lacks or fixes."""
    from mari_onnx.api import with_given_shapes
    from mari_onnx.model.save import stage

    if not sides.shapes and source.path.name:
        return source.path
    with stage(with_given_shapes(source, sides).model, folder / "source.onnx", external=source.external) as staged:
        staged.commit()
    return folder / "source.onnx"


def draw(source: Source, sides: Sides, n: int, count: int = REQUESTS) -> list[Request]:
    """Requests of n candidates that suit the model, the same ones every time."""
    from mari_onnx.model.signature import signature
    from mari_onnx.parity.domains.domains import domains as domains_of
    from mari_onnx.parity.requests import draw

    layout = draw.Layout(signature(source.model), sides)
    domains = domains_of(source.model, layout)[0]
    # In the layout [R, N, ...] a drawer's first request that is not full is a single one.
    full = layout.axis == 0
    drawers = [draw.Drawer(layout, domains, seed) for seed in range(count)]
    return [drawer.request(layout.fixed_n or n, full=full) for drawer in drawers]


def measure(
    variants: Sequence[Variant],
    requests: Mapping[int, Sequence[Request]],
    *,
    threads: int = 1,
    provider: str = "cpu",
    seconds: float = 2.0,
    least: int = 5,
    memory: bool = False,
    progress: Progress | None = None,
) -> Iterator[Measured]:
    """Times the variants against each other for each N in `requests`, by the clock of `clock_for`.

    Args:
        seconds, least: see `interleaved`; for each N.
        memory: also peak memory, at the largest N, on the CPU.
        progress: called with (phase, done, total).

    Raises:
        ModelError: a variant cannot be loaded or run.
        ProviderError: the provider is not there.
    """
    tell = progress or (lambda *_: None)
    kind, clock = clock_for(threads, provider)
    table = tables.load(threads=threads) if provider == "cpu" else None
    sessions = {}
    for index, each in enumerate(variants):
        tell(f"loading {each.name}", index, len(variants))
        sessions[each.name] = runtime.session(
            each.path, provider, threads=threads, what=f"{each.name} ({each.path.name})"
        )
    for index, (n, drawn) in enumerate(requests.items()):
        tell(f"N = {n}", index, len(requests))
        feeds = {each.name: [each.feed(r, sessions[each.name].get_inputs()) for r in drawn] for each in variants}
        result = Measured(n, threads, Timing((), np.zeros((0, 0))), kind)
        result.apart = _apart(variants, sessions, feeds)
        runs, moves = {}, {}
        for each in variants:
            runs[each.name], moves[each.name] = prepared(sessions[each.name], feeds[each.name], provider)
        result.timing = interleaved(
            runs, seconds=seconds, least=least, clock=clock, wall=time.perf_counter, threads=threads
        )
        if provider != "cpu":
            result.transfers = interleaved(moves, seconds=seconds / 4, least=least)
        for each in variants:
            result.work[each.name], result.predicted[each.name] = _counted(each, feeds[each.name][0], n, table)
        if memory and provider == "cpu" and n == max(requests):
            from mari_onnx.timing.memory import peak_bytes

            for each in variants:
                tell(f"memory of {each.name}", index, len(requests))
                result.memory[each.name] = peak_bytes(each.path, feeds[each.name][0], threads)
        yield result


Run = Callable[[int], object]


def prepared(
    session: onnxruntime.InferenceSession, feeds: Sequence[dict[str, np.ndarray]], provider: str
) -> tuple[Run, Run]:
    """A run, and the transfers that it leaves out where all is on the device already.

    Both take the number of the round, which picks the feed.
    """
    if provider == "cpu":
        return lambda turn: session.run(None, feeds[turn % len(feeds)]), lambda _: None
    import onnxruntime

    outputs = [each.name for each in session.get_outputs()]
    bound = []
    for feed in feeds:
        binding = session.io_binding()
        for name, array in feed.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, "cuda", 0)
        bound.append(binding)

    def run(turn: int) -> None:
        binding = bound[turn % len(bound)]
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    def move(turn: int) -> None:
        for array in feeds[turn % len(feeds)].values():
            onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
        bound[turn % len(bound)].copy_outputs_to_cpu()

    return run, move


def _apart(
    variants: Sequence[Variant],
    sessions: Mapping[str, onnxruntime.InferenceSession],
    feeds: Mapping[str, Sequence[dict[str, np.ndarray]]],
) -> dict[str, float]:
    """Largest difference to the first variant's outputs, for the first request."""
    found: dict[str, float] = {}
    expected: dict[str, Any] = {}
    for each in variants:
        names = [output.name for output in sessions[each.name].get_outputs()]
        answers = runtime.run(sessions[each.name], feeds[each.name][0], each.name)
        outputs = dict(zip(names, answers, strict=True))
        expected = expected or outputs
        found[each.name] = max(
            (_difference(expected[name], outputs[name]) for name in outputs if name in expected),
            default=float("nan"),
        )
    return found


def _difference(a: Any, b: Any) -> float:
    """Between outputs of any type; infinite where their shapes or keys differ."""
    left, right = parts(a), parts(b)
    if not np.array_equal(left[1], right[1]) or left[0].shape != right[0].shape:
        return float("inf")
    if left[0].dtype.kind not in "fiub":
        return float(np.any(left[0] != right[0]))
    mine, theirs = left[0].astype(np.float64), right[0].astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where((mine == theirs) | (np.isnan(mine) & np.isnan(theirs)), 0, mine - theirs)
    return float(np.max(np.abs(apart), initial=0.0))


def _counted(
    variant: Variant, feed: Mapping[str, np.ndarray], n: int, prices: Prices | None
) -> tuple[tuple[float, float] | None, float | None]:
    """FLOPs and bytes per candidate, and the seconds that prices of kernels predict; None where it is not known."""
    from mari_onnx.model.load import load
    from mari_onnx.parity.work import shapes_of, work

    model = load(variant.path)
    cost = work(model, feed)
    if cost is None:
        return None, None
    seconds = None if prices is None else tables.graph_seconds(model.graph, shapes_of(model, feed), prices)
    return (cost.flops / n, cost.bytes / n), seconds
