"""`mari-onnx bench MODEL [MODEL...]`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mari_onnx.cli.options import common_options, custom_ops_option, json_option, side_options, sides_from
from mari_onnx.cli.streams import write_json

if TYPE_CHECKING:
    from mari_onnx.model.load import Source
    from mari_onnx.parity.requests.draw import Request
    from mari_onnx.sides.resolve import Sides
    from mari_onnx.timing.measure import Measured, Progress, Variant
    from mari_onnx.timing.several import Together


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(part) for part in value.split(",") if part.strip()))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.BadParameter(f"{value!r} is not a comma-separated list of positive integers, such as 1,16,64")
    return found


def _optional_numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    return () if value is None else _numbers(context, parameter, value)


@click.command()
@click.argument(
    "models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@side_options
@click.option(
    "--candidates",
    callback=_numbers,
    default="1,16,64,256,1000,4000",
    show_default=True,
    metavar="N,...",
    help="Numbers of candidates at which to time.",
)
@click.option(
    "--users-per-run",
    "users",
    callback=_optional_numbers,
    metavar="R,...",
    help="Time R requests in one run (`--batched`) against R runs of one request each. MODEL is the source alone, or "
    "the source and an output of `optimize --batched` or the folder of a split model.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Recorded requests instead of drawn ones (as for `check`); N is then as recorded.",
)
@click.option(
    "--threads",
    callback=_numbers,
    default="1",
    show_default=True,
    metavar="T,...",
    help="Threads per operator (onnxruntime's intra_op_num_threads).",
)
@click.option("--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Seconds to measure at each N, shared by all models.",
)
@click.option(
    "--peers", is_flag=True, help="Also time the model as optimized by onnxsim, onnxslim and onnxscript."
)
@click.option(
    "--floor",
    "with_floor",
    is_flag=True,
    help="Also time the optimized model without its user part: no lossless rewrite can be faster.",
)
@click.option("--memory/--no-memory", default=True, help="Measure peak memory, each model in its own process.")
@json_option("the figures (docs/bench.md)")
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Plot latency and speed-up against N, as .png or .svg.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@common_options
@custom_ops_option
def bench(
    models: tuple[Path, ...],
    candidates: tuple[int, ...],
    users: tuple[int, ...],
    data: Path | None,
    threads: tuple[int, ...],
    provider: str,
    seconds: float,
    peers: bool,
    with_floor: bool,
    memory: bool,
    json_file: Path | None,
    plot_file: Path | None,
    quiet: bool,
    **sides: Any,
) -> None:
    """Time models against each other on the same requests, in turns (A B A B).

    One MODEL is timed against what `optimize` makes of it. Of several, the first is what the
    others are compared with, and the sides are those of its inputs. If the second is the folder of
    a split model, its parts are timed, and scoring together with the gathering of items' rows.
    """
    from mari_onnx.api import with_given_shapes
    from mari_onnx.cli.check import progress_bar
    from mari_onnx.model.load import read
    from mari_onnx.parity.check import find_sides
    from mari_onnx.parity.float64 import light
    from mari_onnx.report import summary
    from mari_onnx.report.terminal import console
    from mari_onnx.timing.measure import measure
    from mari_onnx.timing.stages import measure_split

    if plot_file is not None:
        from mari_onnx.timing.plot import check_format

        check_format(plot_file)
    folder_of_parts = _split(models, provider, peers)
    source = read(models[0])
    others = {path: light(_readable(path)) for path in models[1:]}
    found = sides_from(sides, source.model, models[0], others)
    if not found:
        found = find_sides(list(models), [source.model, *others.values()])
    source = with_given_shapes(source, found)
    out = console()
    out.quiet = quiet or str(json_file) == "-"
    if users:
        if data is not None or provider != "cpu" or peers or with_floor or plot_file is not None:
            raise click.UsageError("--users-per-run takes no --data, --peers, --floor and --plot, and the CPU only")
        with progress_bar(quiet) as progress:
            timed = _together if folder_of_parts is None else _of_parts
            together, notes = timed(source, found, models, users, candidates, threads, seconds, progress)
        summary.write(out, summary.of_bench([each.to_dict() for each in together], notes))
        if json_file is not None:
            _write_json(json_file, together, notes, models[0], provider)
        return
    results: list[Measured] = []
    with (
        tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder,
        progress_bar(quiet) as progress,
    ):
        variants, notes = _variants(
            source,
            found,
            models if folder_of_parts is None else models[:1],
            Path(folder),
            _typical(candidates),
            provider,
            peers,
            with_floor,
            progress,
        )
        requests = _requests(source, found, candidates, data)
        for count in threads:
            if folder_of_parts is not None:
                results += measure_split(
                    variants, folder_of_parts, requests, threads=count, seconds=seconds, progress=progress
                )
                continue
            results += measure(
                variants,
                requests,
                threads=count,
                provider=provider,
                seconds=seconds,
                memory=memory,
                progress=progress,
            )
    notes += [warning for each in results for warning in each.warnings()]
    summary.write(out, summary.of_bench([each.to_dict() for each in results], notes))
    if json_file is not None:
        _write_json(json_file, results, notes, models[0], provider)
    if plot_file is not None:
        from mari_onnx.timing.plot import plot

        plot(results, plot_file, models[0].name)
        summary.write(out, [f"wrote {plot_file}"])


def _together(
    source: Source,
    sides: Sides,
    models: Sequence[Path],
    users: Sequence[int],
    candidates: Sequence[int],
    threads: Sequence[int],
    seconds: float,
    progress: Progress | None,
) -> tuple[list[Together], list[str]]:
    """Times of several requests in one run, and notes on what is left out."""
    from mari_onnx import api
    from mari_onnx.choices import options_for
    from mari_onnx.timing.measure import OURS, as_given
    from mari_onnx.timing.several import measure_together

    if len(models) > 2:
        raise click.UsageError("--users-per-run takes the source, and at most one output of --batched")
    sizes, notes = _sizes(users, candidates)
    form = _form_of(models[1]) if len(models) > 1 else sides.batched or "grid"
    batched, typical = replace(sides, batched=form), _typical(candidates)
    results: list[Together] = []
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        single = {f"{OURS}, one request per run": Path(folder, "single.onnx")}
        one = api.rewritten(source, replace(sides, batched=None), options_for(typical, assume=True))
        one.save(single[f"{OURS}, one request per run"])
        single["source, one request per run"] = as_given(source, sides, Path(folder))
        if len(models) > 1:
            path = models[1]
        else:
            path = Path(folder, "several.onnx")
            with api.checked(source, batched, path) as (done, staged):
                notes += done.report.notes
                staged.commit()
        for count in threads:
            results += measure_together(
                source.model, batched, single, {f"all requests in one run ({form})": path}, sizes, threads=count,
                seconds=seconds, progress=progress,
            )  # fmt: skip
    return results, notes


def _sizes(users: Sequence[int], candidates: Sequence[int]) -> tuple[list[tuple[int, int]], list[str]]:
    """(requests, candidates) to time, and a note where some are left out."""
    from mari_onnx.timing.several import MOST

    sizes = [(count, n) for count in users for n in candidates if count * n <= MOST]
    left = len(sizes) < len(users) * len(candidates)
    return sizes, [f"runs of more than {MOST} rows are left out"] if left else []


def _of_parts(
    source: Source,
    sides: Sides,
    models: Sequence[Path],
    users: Sequence[int],
    candidates: Sequence[int],
    threads: Sequence[int],
    seconds: float,
    progress: Progress | None,
) -> tuple[list[Together], list[str]]:
    """The same for the folder of a split, the second of `models`."""
    from mari_onnx.timing.stages import measure_merging

    sizes, notes = _sizes(users, candidates)
    results: list[Together] = []
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
        typical = _typical(candidates)
        variants, more = _variants(source, sides, models[:1], Path(folder), typical, "cpu", False, False, progress)
        for count in threads:
            results += measure_merging(
                variants, models[1], source.model, sides, sizes, threads=count, seconds=seconds, progress=progress
            )
    return results, [*notes, *more]


def _form_of(path: Path) -> str:
    """How an output takes several requests, by its metadata. Raises UsageError where it does not."""
    from mari_onnx.model.load import read
    from mari_onnx.parity.several.check import form_in

    form = form_in(read(path).model)
    if form is None:
        raise click.UsageError(f"{path} takes one request per run: it is no output of `optimize --batched`")
    return form


def _split(models: Sequence[Path], provider: str, peers: bool) -> Path | None:
    """The folder of a split model among the models; None where there is none."""
    from mari_onnx.splitting.manifest import is_split

    if not any(map(is_split, models)):
        return None
    if len(models) != 2 or is_split(models[0]) or provider != "cpu":
        raise click.UsageError("a split model is timed beside its source, on the CPU: mari-onnx bench IN DIR")
    if peers:
        raise click.UsageError("--peers does not go with the folder of a split model")
    return models[1]


def _readable(path: Path) -> Any:
    """What stands for a model when its sides are looked for: the parts of a split as one, or the path itself."""
    from mari_onnx.splitting.manifest import is_split

    if not is_split(path):
        return path
    from mari_onnx.splitting.assembly import Assembly

    return Assembly(path)


def _typical(candidates: Sequence[int]) -> int:
    """The N that the rewrite has to pay for: the middle one."""
    return sorted(candidates)[len(candidates) // 2]


def _variants(
    source: Source,
    sides: Sides,
    models: Sequence[Path],
    folder: Path,
    candidates: int,
    provider: str,
    peers: bool,
    with_floor: bool,
    progress: Progress | None,
) -> tuple[list[Variant], list[str]]:
    """Everything to be timed, the baseline first, and notes on what is missing."""
    from mari_onnx.timing.measure import OURS, Variant, as_given, variants_of

    made: list[Variant] = []
    notes: list[str] = []
    if len(models) == 1 or peers or with_floor:
        made, notes = variants_of(
            source,
            sides,
            folder,
            candidates=candidates,
            target=provider,
            with_peers=peers,
            with_floor=with_floor,
            progress=progress,
        )
    if len(models) == 1:
        return made, notes
    paths = [as_given(source, sides, folder), *models[1:]]
    named = [Variant(name, path) for name, path in zip(_names(models), paths, strict=True)]
    return [*named, *(each for each in made[1:] if each.name != OURS)], notes


def _names(models: Sequence[Path]) -> list[str]:
    """Short names that tell the files apart."""
    for short in ([path.name for path in models], [str(path) for path in models]):
        if len(set(short)) == len(short):
            return short
    return [f"{index} {path}" for index, path in enumerate(models, 1)]


def _requests(
    source: Source, sides: Sides, candidates: Sequence[int], data: Path | None
) -> dict[int, list[Request]]:
    from mari_onnx.timing.measure import draw

    if data is None:
        drawn = [draw(source, sides, n) for n in candidates]
        return {requests[0].n: requests for requests in drawn}
    from mari_onnx.model.signature import signature
    from mari_onnx.parity.requests.recorded import load

    found: dict[int, list[Request]] = {}
    for request in load(data, signature(source.model), sides):
        found.setdefault(request.n, []).append(request)
    return dict(sorted(found.items()))


def _write_json(
    file: Path, results: Sequence[Measured | Together], notes: Sequence[str], source: Path, provider: str
) -> None:
    from mari_onnx.timing.machine import machine

    answer = {
        "schema": "mari-onnx/bench",
        "version": 2,
        "source": str(source),
        "provider": provider,
        "machine": machine(provider),
        "notes": list(notes),
        "results": [each.to_dict() for each in results],
    }
    write_json(file, answer)
