"""`mari-onnx optimize IN OUT`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mari_onnx.cli.options import (
    check_beside,
    common_options,
    custom_ops_option,
    data_option,
    html_option,
    prices_option,
    provider_option,
    request_id_option,
    side_options,
    sides_from,
    threads_option,
    weighted_numbers,
)
from mari_onnx.cli.streams import write_json

if TYPE_CHECKING:
    from mari_onnx.api import Optimized
    from mari_onnx.engine import Options
    from mari_onnx.model.load import Source
    from mari_onnx.model.save import Staged
    from mari_onnx.sides.resolve import Sides


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@side_options
@click.option(
    "--candidates",
    callback=weighted_numbers,
    metavar="N | N:WEIGHT,...",
    help="The numbers of candidates (N) that your requests have. Rewrites that make these faster are chosen; weights "
    "say how much each N counts. The output runs with any N.  [default: 16,64,500, equally weighted]",
)
@click.option(
    "--target",
    type=click.Choice(["cpu", "portable", "cuda"]),
    default="cpu",
    show_default=True,
    help="What will serve the model: onnxruntime on the CPU, onnxruntime on CUDA, or any runtime (portable: without "
    "the forms that are faster on onnxruntime's CPU kernels alone). Rewrites that are faster there are chosen.",
)
@threads_option
@prices_option
@click.option(
    "--choices",
    "choices_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Which parts were not rewritten because that would be slower. If FILE exists, these choices are used again, "
    "so the same OUT is written on any machine; otherwise they are saved to FILE.",
)
@click.option(
    "--skip",
    multiple=True,
    metavar="PATTERN",
    help="Do not rewrite these nodes: a shell pattern on names of nodes, or on operators. Repeatable.",
)
@click.option(
    "--if-slower",
    type=click.Choice(["warn", "undo", "fail"]),
    default="warn",
    show_default=True,
    help="What to do if OUT is measured to be slower than IN: print a warning, undo the rewrites that make it slower, "
    "or write nothing (exit code 9).",
)
@click.option(
    "--batched",
    type=click.Choice(["grid", "index", "offsets"]),
    help="Write OUT for several requests in one run, with user inputs [R, ..]. grid: item and cross inputs and outputs "
    "are [R, N, ..]. index, offsets: they have the candidates of all requests, [P, ..], and one more input says whose "
    "they are: request_index [P], or request_offsets [R+1] (docs/batching.md).  [default: one request per run]",
)
@click.option(
    "--index-name",
    metavar="NAME",
    help="The name of the input that --batched index and offsets add.  [default: request_index, request_offsets]",
)
@click.option(
    "--check/--no-check",
    default=True,
    help="Run both models on the same requests, and write nothing if outputs differ.  "
    "[default: check]",
)
@data_option
@request_id_option
@provider_option
@click.option(
    "--user-weights",
    type=click.Choice(["int8"]),
    help="Give 8-bit weights to what is computed once per request, where that is faster. OUT is then not equal to IN: "
    "what it loses is measured on the requests in --data (docs/quantization.md).  [default: weights as in IN]",
)
@click.option(
    "--max-tau-loss",
    type=click.FloatRange(min=0, max=1),
    default=0.001,
    show_default=True,
    metavar="LOSS",
    help="With --user-weights: write nothing if the order of candidates changes by more, 1 less the mean of Kendall's "
    "tau.",
)
@click.option(
    "--report",
    "--json",
    "report_file",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE.json",
    help="Write what became of each node, and why, as JSON (docs/report.md); - for standard output, in place of the "
    "summary.",
)
@html_option
@click.option("--dry-run", is_flag=True, help="Do everything except writing OUT.")
@click.option("--force", is_flag=True, help="Allow OUT to be the same file as IN.")
@click.option("--fail-unchanged", is_flag=True, help="Exit with code 4 if nothing could be computed once per request.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Also print every input, every matrix product, counts of operators, and all reasons.",
)
@common_options
@custom_ops_option
def optimize(
    source: Path,
    output: Path,
    candidates: int | dict[int, float] | None,
    target: str,
    threads: int,
    prices: Path | None,
    choices_file: Path | None,
    skip: tuple[str, ...],
    if_slower: str,
    check: bool,
    data: Path | None,
    request_id: str,
    providers: tuple[str, ...],
    user_weights: str | None,
    max_tau_loss: float,
    report_file: Path | None,
    html_file: Path | None,
    dry_run: bool,
    force: bool,
    fail_unchanged: bool,
    quiet: bool,
    verbose: bool,
    **sides: Any,
) -> None:
    """Rewrite IN so that what depends on the user alone is computed once per request, into OUT.

    OUT takes one row for each user input; names, order and types of inputs and outputs stay the
    same. Which side (user, item or cross) an input belongs to comes from the flags, a side file
    beside the model (model.sides.toml for model.onnx), its metadata, or a batch dimension of 1.
    """
    from mari_onnx.api import with_given_shapes
    from mari_onnx.choices import nodes_named, options_for, read_choices
    from mari_onnx.model.load import read
    from mari_onnx.report import summary
    from mari_onnx.report.terminal import console

    _check_paths(source, output, {"the report": report_file, "the page": html_file, "the choices": choices_file}, force)
    loaded = read(source)
    found = sides_from(sides, loaded.model, source)
    loaded = with_given_shapes(loaded, found)
    out = console()
    out.quiet = quiet or str(report_file) == "-"
    if not check and found.several:
        what = "--index" if found.indices else "--batched"
        raise click.UsageError(f"{what} needs the check: only running the model shows whether its requests mix")
    if not check and (data is not None or providers != ("auto",)):
        raise click.UsageError("--data and --provider configure the check, but --no-check skips it")
    if user_weights is not None:
        from mari_onnx import lossy

        lossy.refuse(found, target, check, data is not None)
    requests = None
    if data is not None:
        from mari_onnx.model.signature import signature
        from mari_onnx.parity.requests.recorded import load

        requests = load(data, signature(loaded.model), found, request_id)
    given = read_choices(choices_file, loaded.sha256) if choices_file is not None and choices_file.exists() else None
    asked = nodes_named(loaded.model, skip)
    options = options_for(candidates, target=target, threads=threads, prices=prices, choices=given, skip=asked)
    checking: dict[str, Any] | None = None
    if check:
        timed = if_slower if target == "cpu" else None
        checking = {"requests": requests, "providers": providers, "if_slower": timed, "threads": threads}
        checking["max_tau_loss"] = max_tau_loss if user_weights is not None else None
    with _naming(loaded, output), _staged(loaded, found, output, options, checking, dry_run, quiet) as (done, staged):
        tags = _what_tags_bring(loaded, done, options, output)
        shown = summary.of_optimize(done.report, show_inputs=sides["guess"], target=target, tags=tags, verbose=verbose)
        summary.write(out, shown)
        if not dry_run:
            done.report.output = _facts(staged, output)
            staged.commit()
    from mari_onnx.model.save import write_text

    if report_file is not None:
        write_json(report_file, done.report.to_dict())
    if html_file is not None:
        write_text(html_file, done.html())
    if choices_file is not None and given is None:
        write_text(choices_file, json.dumps(done.report.choices, indent=1, ensure_ascii=False) + "\n")
    if done.report.output is None:
        summary.write(out, [f"dry run: {output} was not written"])
    else:
        sizes = [each["bytes"] / 1e6 for each in (done.report.output, done.report.source)]
        summary.write(out, [f"wrote {output} ({sizes[0]:.2f} MB; IN has {sizes[1]:.2f} MB)"])
    if fail_unchanged and not done.changed:
        from mari_onnx.errors import Unchanged

        raise Unchanged(f"nothing in {source} could be computed once per request instead of once per candidate")


def _check_paths(
    source: Path, output: Path, reports: Mapping[str, Path | None], force: bool
) -> None:
    """Refuses what would be found out only after minutes of work."""
    from mari_onnx.errors import OutputInTheWay
    from mari_onnx.model.save import check_target

    target = check_target(output)
    original = source.resolve()
    same = target == original or (
        target.exists() and original.exists() and target.samefile(original)
    )
    if same and not force:
        raise OutputInTheWay(f"OUT {output} is the input file itself", "name another OUT, or give --force")
    taken = {"IN": source, "OUT": output}
    for name, path in reports.items():
        if path is not None and str(path) != "-":
            check_beside(path, taken)
            taken[name] = path


def _what_tags_bring(source: Source, done: Optimized, options: Options, output: Path) -> str | None:
    """What tags would bring to a model that has none, counted with the sides that its names look like."""
    from mari_onnx.api import rewritten, sides_of
    from mari_onnx.errors import MariError
    from mari_onnx.suggest import what_tags_bring

    report = done.report
    if report.sides or report.sides.candidate_axis or not report.changed:
        return None
    flops = None
    with contextlib.suppress(MariError):
        sides = sides_of(source, None, guess=True)
        if "user" in sides.inputs.values():
            flops = rewritten(source, sides, options).report.after.flops
    return what_tags_bring(source, report.after.flops, flops, str(output))


@contextlib.contextmanager
def _naming(source: Source, output: Path) -> Iterator[None]:
    """A refusal for lack of tags suggests the command with OUT as it was typed."""
    from mari_onnx.errors import SidesUnknown
    from mari_onnx.suggest import unknown_sides

    try:
        yield
    except SidesUnknown:
        raise unknown_sides(source, output=str(output)) from None


@contextlib.contextmanager
def _staged(
    source: Source,
    sides: Sides,
    output: Path,
    options: Options,
    checking: Mapping[str, Any] | None,
    dry_run: bool,
    quiet: bool,
) -> Iterator[tuple[Optimized, Staged]]:
    """The output written beside OUT; in a folder for temporary files on a dry run.

    Args:
        checking: further arguments of `api.checked`; None for no check.
    """
    import tempfile

    from mari_onnx import api
    from mari_onnx.cli.check import progress_bar

    with contextlib.ExitStack() as stack:
        place = output
        if dry_run:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mari-onnx-"))
            place = Path(folder, output.name)
        if checking is None:
            done = api.rewritten(source, sides, options)
            yield done, stack.enter_context(done.stage(place))
            return
        with progress_bar(quiet) as progress:
            answer = stack.enter_context(api.checked(source, sides, place, options, **checking, progress=progress))
        yield answer


def _facts(staged: Staged, path: Path) -> dict[str, Any]:
    import hashlib

    with staged.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path), "sha256": digest, "bytes": staged.size}
