"""`mari-onnx check A B`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mari_onnx.cli.options import (
    common_options,
    custom_ops_option,
    flags_from,
    json_option,
    provider_option,
    request_id_option,
    side_options,
    writable,
)
from mari_onnx.cli.streams import write_json

if TYPE_CHECKING:
    from mari_onnx.model.signature import Signature
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.parity.result import CheckResult
    from mari_onnx.parity.settings import Settings
    from mari_onnx.sides.resolve import Sides

_SEVERAL = 7
"""Candidates of a request that is drawn for inner tensors: with one, a row that is broadcast cannot be told."""


class _Numbers(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """Comma-separated positive whole numbers."""

    name = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(int(part) for part in str(value).split(",") if part.strip())
        except ValueError:
            found = ()
        if not found or min(found) < 1:
            self.fail(f"{value!r} is not a comma-separated list of positive integers, such as 1,2,7", param, ctx)
        return found


@click.command()
@click.argument("source", metavar="ORIGINAL", type=click.Path(path_type=Path))
@click.argument("optimized", metavar="OPTIMIZED", type=click.Path(path_type=Path))
@side_options
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Recorded requests instead of drawn ones: .npz, a folder of them, or .parquet.",
)
@request_id_option
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: compare recorded requests (--data) on the machines of the cluster that RAY_ADDRESS names, by Ray Data; "
    "without one, on all processors. --dump then lists the requests that are the furthest apart.",
)
@click.option(
    "--requests",
    "count",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    metavar="K",
    help="How many requests to draw for each number of candidates.",
)
@click.option(
    "--candidates",
    type=_Numbers(),
    metavar="N,...",
    help="Numbers of candidates in drawn requests; ORIGINAL must run with each.  [default: those of 1,2,7,64,500 "
    "that it runs at]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed of the drawn requests.")
@click.option(
    "--coverage",
    type=click.IntRange(min=0),
    default=10_000,
    show_default=True,
    metavar="K",
    help="Maximum number of extra requests. They are drawn to reach table rows and branches that the first ones "
    "did not.",
)
@click.option("--extremes", is_flag=True, help="Also draw floats at scales 0, 1e-6, 1e3 and 1e4.")
@provider_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads per operator.  [default: 1, or 2 beyond 256 MiB of weights]",
)
@click.option("--rtol", type=click.FloatRange(min=0), help="Relative tolerance, instead of the measured one.")
@click.option("--atol", type=click.FloatRange(min=0), help="Absolute tolerance, instead of the measured one.")
@click.option(
    "--multiple",
    type=click.FloatRange(min=0),
    default=4.0,
    show_default=True,
    help="Allowed error against the float64 run, as a multiple of the source's own float32 error.",
)
@click.option(
    "--top-k",
    type=_Numbers(),
    default="10,50",
    show_default=True,
    metavar="K,...",
    help="Report how many of ORIGINAL's best K candidates are among OPTIMIZED's best K.",
)
@click.option(
    "--dump",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="For each output that differs, write the inputs of its worst request; --data reads them.",
)
@click.option(
    "--bisect",
    type=click.Path(path_type=Path),
    metavar="REPORT.json",
    help="If outputs differ, find the first tensor that differs. Needs the report that "
    "`optimize --report` wrote.",
)
@click.option(
    "--layers",
    is_flag=True,
    help="Also compare inner tensors that have the same name in both models, on one request, and name those that "
    "differ. Tensors of equal value keep their names in what `optimize` writes.",
)
@json_option("the result (docs/parity-details.md)")
@click.option(
    "--junit",
    type=click.Path(path_type=Path),
    callback=writable,
    metavar="FILE.xml",
    help="Write the result as JUnit XML, with one test case per output.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but the reasons of a failure.")
@common_options
@custom_ops_option
def check(
    source: Path,
    optimized: Path,
    data: Path | None,
    request_id: str,
    engine: str,
    bisect: Path | None,
    layers: bool,
    json_file: Path | None,
    junit: Path | None,
    quiet: bool,
    **rest: Any,
) -> None:
    """Compare ORIGINAL and OPTIMIZED on the same requests; exit with 1 if outputs differ, with 8 if they cannot be
    compared. OPTIMIZED may be the folder of a split model: its parts are run together, one request at a time, and if
    it has score.batched.onnx several.

    The sides are those of ORIGINAL's inputs: from the flags, from the side file beside either
    model, or from either model's metadata.
    """
    from mari_onnx.api.given import sides_of_pair
    from mari_onnx.comparison import Pair
    from mari_onnx.errors import UsageError
    from mari_onnx.model.signature import signature
    from mari_onnx.parity.settings import Settings
    from mari_onnx.report import summary
    from mari_onnx.report.terminal import console
    from mari_onnx.sides.shapes import reshaped

    if layers and optimized.is_dir():
        raise UsageError("--layers compares two files, and not the parts of a split", "leave it out")
    report = None if bisect is None else _report(bisect)
    pair = Pair(source, optimized)
    sides = sides_of_pair([source, optimized], [pair.model, pair.other], **flags_from(rest))
    requests, inputs = None, signature(reshaped(pair.model, sides.shapes))
    if data is not None and engine == "local":
        from mari_onnx.parity.requests.recorded import load

        requests = load(data, inputs, sides, request_id)
    known = set(Settings.__dataclass_fields__)
    settings = Settings(**{k: v for k, v in rest.items() if k in known and v is not None})
    with progress_bar(quiet) as progress:
        if engine == "ray":
            result = _on_ray(source, optimized, data, inputs, sides, settings, request_id, progress)
            requests = [far.request for far in result.furthest]
        else:
            result = pair.check(sides, requests=requests, settings=settings, progress=progress)
        if report is not None and not result.ok:
            _bisect(result, source, optimized, *report)
        if layers:
            _layers(result, source, optimized, sides, requests)
    if json_file is not None:
        write_json(json_file, result.to_dict())
        quiet = quiet or str(json_file) == "-"
    if junit is not None:
        _write(junit, result.to_junit())
    if not quiet:
        summary.write(console(), summary.of_check(result))
    result.raise_if_different()


def _on_ray(
    source: Path,
    optimized: Path,
    data: Path | None,
    inputs: Signature,
    sides: Sides,
    settings: Settings,
    request_id: str,
    progress: Callable[[str, int, int], None] | None,
) -> CheckResult:
    from mari_onnx.errors import UsageError, needs

    if data is None:
        raise UsageError("--engine ray compares recorded requests", "give --data FOLDER")
    with needs("serving,ray"):
        from mari_onnx.serving.offline.parity import check_on_ray

    return check_on_ray(source, optimized, data, inputs, sides, settings, request_id=request_id, progress=progress)


def _write(path: Path, text: str) -> None:
    from mari_onnx.model.save import write_text

    write_text(path, text)


def _report(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """The tensors and nodes of a report that `optimize` wrote."""
    from mari_onnx.errors import UsageError

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return dict(data["tensors"]), list(data.get("nodes", ()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not a report that mari-onnx optimize wrote: {error}",
            "write one with mari-onnx optimize IN OUT --report FILE.json",
        ) from error


def _bisect(result: CheckResult, source: Path, optimized: Path, tensors: dict[str, Any], nodes: list[Any]) -> None:
    from mari_onnx.parity.bisect import first_divergence

    if result.worst_request is None:
        result.notes.append("--bisect was skipped: no output could be compared")
        return
    result.divergence = first_divergence(source, optimized, tensors, result.worst_request, nodes)
    if result.divergence is None:
        result.notes.append("--bisect found nothing: all tensors that both models have agree")


def _layers(
    result: CheckResult, source: Path, optimized: Path, sides: Sides, requests: Sequence[Request] | None
) -> None:
    """Compares inner tensors on the worst request, or on the first one."""
    from mari_onnx.model.load import read
    from mari_onnx.parity import bisect
    from mari_onnx.timing.measure import draw

    request = result.worst_request or next(iter(requests or draw(read(source), sides, _SEVERAL, 1)))
    result.layers = list(bisect.layers(source, optimized, request))


@contextlib.contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar on standard error for `check(progress=...)`; None where nobody looks at one."""
    import sys

    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def progress(phase: str, done: int, total: int) -> None:
            bar.update(task, description=phase, completed=done, total=total)

        yield progress
