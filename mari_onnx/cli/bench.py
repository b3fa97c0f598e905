"""`mari-onnx bench MODEL [MODEL...]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mari_onnx.cli.options import common_options, custom_ops_option, flags_from, json_option, side_options, writable
from mari_onnx.cli.streams import write_json


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
    callback=writable,
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
    from mari_onnx.api.given import sides_of_pair
    from mari_onnx.cli.check import progress_bar
    from mari_onnx.parity.float64 import light
    from mari_onnx.report import summary
    from mari_onnx.report.terminal import console
    from mari_onnx.timing.against import readable, source_of, timed

    if plot_file is not None:
        from mari_onnx.timing.plot import check_format

        check_format(plot_file)
    if users and plot_file is not None:
        raise click.UsageError("--users-per-run takes no --plot")
    source = source_of(models[0])
    loaded = [source.model, *(light(readable(path)) for path in models[1:])]
    found = sides_of_pair(models, loaded, **flags_from(sides))
    del loaded
    out = console()
    out.quiet = quiet or str(json_file) == "-"
    with progress_bar(quiet) as progress:
        done = timed(
            source, found, models[1:], candidates=candidates, users=users, recorded=data, threads=threads,
            provider=provider, seconds=seconds, peers=peers, with_floor=with_floor, memory=memory, progress=progress,
        )  # fmt: skip
    summary.write(out, summary.of_bench(done.to_dict()))
    if json_file is not None:
        write_json(json_file, done.to_dict())
    if plot_file is not None:
        from mari_onnx.timing.measure import Measured
        from mari_onnx.timing.plot import plot

        plot([each for each in done.results if isinstance(each, Measured)], plot_file, models[0].name)
        summary.write(out, [f"wrote {plot_file}"])
