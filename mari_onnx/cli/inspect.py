"""`mari-onnx inspect MODEL`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mari_onnx.cli.options import (
    WithJson,
    check_beside,
    common_options,
    custom_ops_option,
    html_option,
    side_options,
    sides_from,
    weighted_numbers,
)
from mari_onnx.cli.streams import write_json

if TYPE_CHECKING:
    from mari_onnx.model.load import Source


@click.command(cls=WithJson)
@click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@side_options
@click.option(
    "--candidates",
    callback=weighted_numbers,
    metavar="N | N:WEIGHT,...",
    help="Numbers of candidates for which rewrites are chosen, as for `optimize`.  [default: 16, 64 and 500 alike]",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="[FILE.json]",
    help="Write the report as JSON (docs/report.md); without a file to standard output, in place of the tables.",
)
@click.option(
    "--measure",
    is_flag=True,
    help="Run MODEL and its rewrite, compare every tensor between candidates, and show how much work "
    "still gives the same result for all of them (the residual); with DIR, how much work of score.onnx depends on the "
    "item alone.",
)
@click.option(
    "--what-if",
    "what_if",
    type=click.Choice(["separation"]),
    help="Count what a retrained model would save if the user's tokens (or columns) did not read the candidate, for "
    "each layer at which the two mix for good.",
)
@html_option
@common_options
@custom_ops_option
def inspect(
    model: Path,
    folder: Path | None,
    candidates: int | dict[int, float] | None,
    json_file: Path | None,
    measure: bool,
    what_if: str | None,
    html_file: Path | None,
    **sides: Any,
) -> None:
    """Show the side of every input, and what `optimize` would do with every matrix product.

    A product is split (its user part runs once per request), lifted (all of it does) or kept
    (computed for each candidate, as in MODEL).

    MODEL may be a source or an output of `optimize`. With DIR, a folder that `split` made of MODEL, show what runs
    once per user, once per item and for each request, and what is handed over. No model is written.
    """
    from mari_onnx.api import rewritten, with_given_shapes
    from mari_onnx.choices import options_for
    from mari_onnx.errors import SidesUnknown
    from mari_onnx.model.load import read
    from mari_onnx.report import summary
    from mari_onnx.report.terminal import console, inputs_table

    for file in (html_file, json_file):
        if file is not None and str(file) != "-":
            check_beside(file, {"MODEL": model})
    source = read(model)
    out = console()
    out.quiet = str(json_file) == "-"
    if folder is not None:
        if html_file is not None:
            raise click.UsageError("--html is for a model, not for the folder of a split one")
        if what_if is not None:
            raise click.UsageError("--what-if is for a model, not for the folder of a split one: leave DIR out")
        _inspect_split(source, folder, json_file, measure)
        return
    try:
        found = sides_from(sides, source.model, model)
        source = with_given_shapes(source, found)
        done = rewritten(source, found, options_for(candidates, assume=True))
    except SidesUnknown:
        summary.write(out, [inputs_table(_untagged(source.model))])
        raise
    report = done.report
    if measure:
        done.measure()
    if what_if is not None:
        done.what_if_separated()
    if html_file is not None:
        from mari_onnx.model.save import write_text

        write_text(html_file, done.html())
    if json_file is not None:
        write_json(json_file, report.to_dict())
    blocks = summary.of_inspect(report)
    summary.write(out, [*blocks, *(f"wrote {file}" for file in (html_file, json_file) if file is not None)])


def _inspect_split(source: Source, folder: Path, json_file: Path | None, measure: bool) -> None:
    from mari_onnx.report import summary
    from mari_onnx.report.terminal import console
    from mari_onnx.splitting import describe

    found = describe.rates(source, folder, measure)
    if json_file is not None:
        write_json(json_file, found)
    if str(json_file) != "-":
        summary.write(console(), describe.blocks(found))


def _untagged(model: Any) -> Any:
    from mari_onnx.model.signature import signature
    from mari_onnx.report import Input

    return [Input(each.name, str(each.dtype), each.shape, None) for each in signature(model).inputs]
