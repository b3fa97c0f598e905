"""`mari-onnx split IN DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mari_onnx.cli.options import (
    common_options,
    custom_ops_option,
    data_option,
    json_option,
    prices_option,
    provider_option,
    request_id_option,
    side_options,
    sides_from,
    threads_option,
)
from mari_onnx.cli.streams import write_json

if TYPE_CHECKING:
    from mari_onnx.report.terminal import Block
    from mari_onnx.splitting.choices import Stored
    from mari_onnx.splitting.make import Split

@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@side_options
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    metavar="N",
    help="Number of candidates per request for which the cut is chosen; the parts take any N.",
)
@click.option(
    "--item-bytes",
    type=click.IntRange(min=0),
    metavar="BYTES",
    help="At most so many bytes per item are handed to score.onnx, inputs that it reads as they are included.  "
    "[default: as many as pay]",
)
@click.option(
    "--user-bytes",
    type=click.IntRange(min=0),
    metavar="BYTES",
    help="The same for one user.",
)
@click.option(
    "--state",
    type=click.Choice(["float32", "float16"]),
    help="How states and rows are stored. float16 takes half the bytes; the check measures by how much outputs "
    "differ.  [default: as in --choices FILE, else float32]",
)
@click.option(
    "--batched",
    type=click.Choice(["grid", "index", "offsets"]),
    help="Write DIR/score.batched.onnx, too, which scores several requests in one run, with states of different users. "
    "grid: rows and outputs are [R, N, ..]. index, offsets: they have the candidates of all requests, [P, ..], and one "
    "more input says whose they are: request_index [P], or request_offsets [R+1] (docs/batching.md).",
)
@threads_option
@prices_option
@data_option
@request_id_option
@provider_option
@custom_ops_option
@json_option("the summary (docs/splitting.md)")
@click.option(
    "--choices",
    "choices_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the model was cut. If FILE exists, it is cut there again, so that states and rows in caches stay "
    "valid; else FILE is written.",
)
@click.option(
    "--clock/--no-clock",
    default=True,
    show_default=True,
    help="Where several cuts should take about as long, time them. Without, the same files come out each time.",
)
@click.option("--dry-run", is_flag=True, help="Do everything except writing DIR.")
@click.option("--force", is_flag=True, help="Replace an earlier split in DIR.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@common_options
def split(
    source: Path,
    folder: Path,
    candidates: int,
    item_bytes: int | None,
    user_bytes: int | None,
    state: Stored | None,
    threads: int,
    prices: Path | None,
    data: Path | None,
    request_id: str,
    providers: tuple[str, ...],
    json_file: Path | None,
    choices_file: Path | None,
    clock: bool,
    dry_run: bool,
    force: bool,
    quiet: bool,
    **sides: Any,
) -> None:
    """Split IN into DIR/user.onnx, DIR/item.onnx, DIR/score.onnx and DIR/manifest.json, with --batched also into
    DIR/score.batched.onnx.

    user.onnx computes a user's state from the user's inputs, item.onnx one row per item from the item's inputs, and
    score.onnx all outputs of IN from a state, rows and what is left. The parts are run together and compared with IN
    before anything is written. The sides come from where `optimize` has them; inputs without a side count as cross.
    """
    from mari_onnx.choices import options_for
    from mari_onnx.cli.check import progress_bar
    from mari_onnx.errors import SidesUnknown
    from mari_onnx.model.load import read
    from mari_onnx.report import summary
    from mari_onnx.report.terminal import console
    from mari_onnx.splitting.choices import read as read_choices
    from mari_onnx.splitting.folder import free_folder
    from mari_onnx.splitting.make import split_source
    from mari_onnx.splitting.ways import Budget
    from mari_onnx.suggest import unknown_sides

    free_folder(folder, force)
    loaded = read(source)
    found = sides_from(sides, loaded.model, source)
    requests = None
    if data is not None:
        from mari_onnx.model.signature import signature
        from mari_onnx.parity.requests.recorded import load
        from mari_onnx.sides.shapes import reshaped

        requests = load(data, signature(reshaped(loaded.model, found.shapes)), found, request_id)
    given = read_choices(choices_file, loaded.sha256) if choices_file is not None and choices_file.exists() else None
    options = options_for(candidates, threads=threads, prices=prices, choices=given.choices if given else None)
    try:
        with progress_bar(quiet) as progress:
            done = split_source(
                loaded, found, options, Budget(item_bytes, user_bytes),
                choices=given, clock=threads if clock else None, state=state,
                requests=requests, providers=providers, progress=progress,
            )  # fmt: skip
    except SidesUnknown:
        raise unknown_sides(loaded, "split", str(folder)) from None
    out = console()
    out.quiet = quiet or str(json_file) == "-"
    summary.write(out, _lines(done))
    if dry_run:
        summary.write(out, [f"dry run: {folder} was not written"])
    else:
        done.save(folder, force)
        total = sum(part.bytes for part in done.manifest.parts.values())
        summary.write(out, [f"wrote {folder} ({total / 1e6:.2f} MB)"])
    for file, said in ((json_file, done.to_dict()), (choices_file if given is None else None, done.choices.to_dict())):
        if file is not None:
            write_json(file, said)


def _lines(done: Split) -> list[Block]:
    """The summary."""
    from rich.markup import escape

    from mari_onnx.report import summary
    from mari_onnx.report.figures import quantity
    from mari_onnx.splitting.describe import SHOWN

    said = done.manifest
    lines: list[Block] = [f"note: {note}" for note in done.notes]
    made = {"user": said.state, "item": said.rows}
    for name, what in (("user", "the user"), ("item", "the item")):
        part = said.parts.get(name)
        inputs = [t.name for t in made[name] if not t.made]
        if part is None:
            lines.append(f"{name}.onnx is not written: nothing of {what} alone is worth computing beforehand")
        else:
            size = sum(t.bytes for t in made[name] if t.made)
            count = len(part.outputs)
            tensors = f"{count} tensor{'s' * (count != 1)}"
            lines.append(f"{name}.onnx: {size} bytes per {name}, in {tensors} ({_mb(part.bytes)})")
        if inputs:
            lines.append(f"  score.onnx reads {', '.join(inputs)} as they are")
    lines.append(f"score.onnx: {', '.join(o.name for o in said.outputs)} ({_mb(said.parts['score'].bytes)})")
    if said.cross:
        lines.append(f"  reads {', '.join(said.cross)} for each request")
    lines.append(
        f"an estimated {said.seconds * 1e6:.0f} us for {said.candidates} candidates, one CPU thread: score.onnx, and "
        "gathering what it reads"
    )
    if done.plan.way.cut.by == "clock":
        lines.append("  timed: other cuts should take about as long; --choices FILE keeps this one")
    for point in done.points:
        mark = "  <- this one" if point == done.plan.way.point else ""
        work = f"{quantity(point.flops)} FLOPs per candidate"
        lines.append(f"  {point.item_bytes} bytes per item: {point.seconds * 1e6:.0f} us, {work}{mark}")
    if done.left:
        lines.append(f"{sum(each.share for each in done.left):.1%} of score.onnx's FLOPs depend on the item alone:")
        lines += [f"  {escape(each.text)}" for each in done.left[:SHOWN]]
    if said.batched is not None:
        more = f", with one more input {said.batched.index}" if said.batched.index else ""
        size = said.parts["batched"].bytes
        lines.append(f"score.batched.onnx: several requests in one run ({said.batched.form}{more}) ({_mb(size)})")
    contract = said.contract
    if contract.state != "float32":
        off = f"outputs differ from the source's by at most {contract.max_error:.1e}"
        lines.append(f"states and rows are {contract.state}: {off}")
    if done.check is not None:
        lines += summary.of_equal(done.check.to_dict(), "cpu")
    if done.together is not None:
        lines += [f"score.batched.onnx: {note}" for note in done.together.notes if "in one run" in note]
    return lines


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
