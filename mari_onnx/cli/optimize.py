"""`mari-onnx optimize IN OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mari_onnx.cli.options import common_options, side_options, sides_from

if TYPE_CHECKING:
    from rich.console import Console

    from mari_onnx.api import Optimized
    from mari_onnx.model.save import Staged


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@side_options
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    metavar="N",
    help="The candidates a request that rewrites have to pay for; the output takes any N.",
)
@click.option(
    "--target",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="The kind of machine that rewrites are chosen for.",
)
@click.option(
    "--check/--no-check",
    default=True,
    help="Run both models on the same requests, and write nothing if outputs differ.  "
    "[default: check]",
)
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Write what was done, node by node (docs/report.md).",
)
@click.option("--dry-run", is_flag=True, help="Do everything but write OUT.")
@click.option("--force", is_flag=True, help="Let OUT be IN itself.")
@click.option("--fail-unchanged", is_flag=True, help="Exit with 4 where there was nothing to lift.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@common_options
def optimize(
    source: Path,
    output: Path,
    candidates: int,
    target: str,
    check: bool,
    report_file: Path | None,
    dry_run: bool,
    force: bool,
    fail_unchanged: bool,
    quiet: bool,
    **sides: Any,
) -> None:
    """Rewrite IN so that what depends on the user alone is computed once a request, into OUT.

    OUT takes user inputs with one row; names, order and types of inputs and outputs stay. The
    sides come from the flags, from IN.sides.toml beside the model, from its metadata, or from
    inputs whose batch dimension is 1.
    """
    from mari_onnx.api import rewritten
    from mari_onnx.model.load import read
    from mari_onnx.report.terminal import console

    _check_paths(source, output, report_file, force)
    loaded = read(source)
    found = sides_from(sides, loaded.model, source)
    done = rewritten(loaded, found, candidates=candidates, target=target)
    out = console()
    out.quiet = quiet
    if sides["guess"]:
        from mari_onnx.report.terminal import print_inputs

        print_inputs(tuple(done.report.inputs), out)
    _summary(done, out)
    with _staged(done, output, dry_run, check) as staged:
        if check and done.changed and staged is not None:
            _verify(done, staged.path, out)
        if staged is not None and not dry_run:
            staged.commit()
            done.report.output = _facts(output)
    if report_file is not None:
        from mari_onnx.model.save import write_text

        write_text(report_file, done.report.to_json())
    if dry_run:
        out.print(f"dry run: {output} was not written", markup=False)
    else:
        size = done.report.output["bytes"] if done.report.output else 0
        out.print(f"wrote {output} ({size / 1e6:.2f} MB)", markup=False)
    if fail_unchanged and not done.changed:
        from mari_onnx.errors import Unchanged

        raise Unchanged(f"there was nothing to lift in {source}")


def _check_paths(source: Path, output: Path, report_file: Path | None, force: bool) -> None:
    """Refuses what would be found out only after minutes of work."""
    from mari_onnx.errors import OutputInTheWay
    from mari_onnx.model.save import check_target

    target = check_target(output)
    original = source.resolve()
    same = target == original or (
        target.exists() and original.exists() and target.samefile(original)
    )
    if same and not force:
        raise OutputInTheWay(f"{output} is the input itself", "name another OUT, or give --force")
    if report_file is not None:
        report = check_target(report_file)
        if report in (target, original):
            raise OutputInTheWay(f"the report would overwrite {report_file}", "name another file")


def _staged(done: Optimized, output: Path, dry_run: bool, check: bool) -> Any:
    """The output written beside OUT; in a folder for temporary files on a dry run."""
    import contextlib
    import tempfile

    if not dry_run:
        return done.stage(output)
    if not (check and done.changed):
        return contextlib.nullcontext(None)

    @contextlib.contextmanager
    def elsewhere() -> Any:
        with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
            staged: Staged
            with done.stage(Path(folder) / output.name) as staged:
                yield staged

    return elsewhere()


def _summary(done: Optimized, out: Console) -> None:
    from mari_onnx.report.terminal import print_reasons, print_summary

    if done.changed:
        print_summary(done.report, out)
        return
    out.print("nothing to lift: the model is written as it is")
    products = done.report.products
    if not any(each in done.sides.inputs.values() for each in ("user",)) and not done.sides.columns:
        out.print("  no input is on the user's side")
    elif all(node.kind in ("Const", "Shared") for node in products):
        out.print(f"  all {len(products)} products run once a request already")
    print_reasons(done.report, out, most=3)


def _verify(done: Optimized, path: Path, out: Console) -> None:
    from mari_onnx.api import verify

    result = verify(done, path)
    sizes = ", ".join(map(str, result.candidates))
    out.print(f"outputs are equal for N = {sizes}", markup=False)


def _facts(path: Path) -> dict[str, Any]:
    import hashlib

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path), "sha256": digest, "bytes": path.stat().st_size}
