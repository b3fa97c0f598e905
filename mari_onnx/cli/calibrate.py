"""`mari-onnx calibrate FILE`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mari_onnx.cli.options import common_options


@click.command()
@click.argument("output", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--threads",
    default="1",
    show_default=True,
    metavar="T,...",
    help="Numbers of onnxruntime's threads to measure with.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=0.03,
    show_default=True,
    metavar="S",
    help="Seconds to measure each of about 1,900 small graphs.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@common_options
def calibrate(output: Path, threads: str, seconds: float, quiet: bool) -> None:
    """Measure how long onnxruntime's kernels take on this machine, and write the prices to FILE.

    `optimize --prices FILE` then chooses rewrites by them instead of by the prices that come with mari-onnx. Run it
    on a machine like the one that serves, with nothing else running.
    """
    from mari_onnx.cli.check import progress_bar
    from mari_onnx.model.save import check_target, write_text
    from mari_onnx.timing.calibrate import calibrate as measured

    check_target(output)
    try:
        counts = tuple(dict.fromkeys(int(part) for part in threads.split(",")))
        if min(counts) < 1:
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{threads!r} is not a list of numbers such as 1,8", param_hint="--threads") from None
    with progress_bar(quiet) as progress:
        table = measured(counts, seconds=seconds, progress=progress)
    write_text(output, json.dumps(table, indent=1) + "\n")
    if not quiet:
        for count, errors in table["provenance"]["median_error"].items():
            worst = sorted(errors.items(), key=lambda kv: -kv[1])[:3]
            shown = ", ".join(f"{kernel} {error:.0%}" for kernel, error in worst)
            click.echo(f"{count} thread{'s' * (count != '1')}: least exact are {shown}")
        click.echo(f"wrote {output}")
