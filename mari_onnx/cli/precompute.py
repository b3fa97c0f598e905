"""`mari-onnx precompute DIR ITEMS STORE`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mari_onnx.cli.options import common_options, custom_ops_option, json_option
from mari_onnx.cli.streams import write_json

if TYPE_CHECKING:
    from mari_onnx.serving.precompute import Precomputed


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("items", metavar="ITEMS", type=click.Path(path_type=Path))
@click.argument("store", metavar="STORE", type=click.Path(path_type=Path))
@click.option("--id-column", default="item_id", show_default=True, metavar="NAME", help="The column of the items' ids.")
@click.option(
    "--bad-rows",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What to do with rows that are no item (a null, a list of another length, an id that a table does not have), "
    "and with an id that came before: end with exit code 2, or leave them out, name and count them.",
)
@click.option(
    "--since",
    type=click.Path(path_type=Path),
    metavar="STORE",
    help="An earlier store of the same model: items whose features have not changed keep their rows, items that ITEMS "
    "no longer has are dropped.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: on the machines of the cluster that RAY_ADDRESS names, by Ray Data; without one, on all processors.",
)
@click.option("--redis", metavar="URL", help="Load the rows into Redis as well, and let servers switch to them.")
@click.option("--redis-name", default="items", show_default=True, metavar="NAME", help="Under which name.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=4096, show_default=True, metavar="B", help="Items of one run."
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, metavar="T", help="onnxruntime's threads."
)
@click.option("--provider", default="cpu", show_default=True, metavar="NAME", help="onnxruntime's execution provider.")
@json_option("what was done")
@click.option("--force", is_flag=True, help="Replace a store that is there.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@common_options
@custom_ops_option
def precompute(
    folder: Path,
    items: Path,
    store: Path,
    id_column: str,
    bad_rows: str,
    since: Path | None,
    engine: str,
    redis: str | None,
    redis_name: str,
    batch: int,
    threads: int,
    provider: str,
    json_file: Path | None,
    force: bool,
    quiet: bool,
) -> None:
    """Run DIR/item.onnx over the items of a Parquet file, and write a row for each item to STORE.

    ITEMS has a column of ids and a column for each input of the item (lists for vectors). STORE is one file, sorted by
    id, which services map into memory. A run that is ended goes on where it stopped when it is called again.
    """
    from mari_onnx.errors import StoreUnavailable, needs
    from mari_onnx.report import summary
    from mari_onnx.report.terminal import console
    from mari_onnx.splitting.ranker import Ranker

    with needs("serving"):
        from mari_onnx.serving.catalogue import Catalogue
        from mari_onnx.serving.precompute import precompute as run
        from mari_onnx.serving.store import ArrowStore

    make = None
    if engine == "ray":
        with needs("serving,ray"):
            from mari_onnx.serving.offline.rows import on_ray

        make = on_ray(folder, provider, threads)
    ranker = Ranker(folder, provider, threads)
    catalogue = Catalogue(items, ranker.manifest, id_column)
    if redis is not None:
        with needs("serving"):
            from mari_onnx.serving import redis_store
            from mari_onnx.serving.row_format import RowFormat

        redis_store.check(redis, RowFormat.of(ranker.manifest))
    with _bar(quiet or str(json_file) == "-") as progress:
        done = run(
            ranker, catalogue, store, since=None if since is None else ArrowStore(since),
            skip_bad=bad_rows == "skip", force=force, batch=batch, progress=progress, make=make,
        )  # fmt: skip
    lines = _lines(done)
    if redis is not None:
        try:
            count = redis_store.load(ArrowStore(store), redis, redis_name)
            lines.append(f"loaded {count} rows into {redis_store.shown(redis)} as {redis_name!r}")
        except StoreUnavailable as error:
            hint = f"{store} is written; with --since {store} --force its rows are loaded without making them again"
            raise StoreUnavailable(error.message, hint) from error
    if json_file is not None:
        write_json(json_file, done.to_dict())
        quiet = quiet or str(json_file) == "-"
    if not quiet:
        summary.write(console(), lines)


def _lines(done: Precomputed) -> list[str]:
    """The summary."""
    lines = [f"note: {note}" for note in done.notes]
    parts = [f"{done.made} made now"]
    parts += [f"{done.resumed} made by an earlier call that was ended"] if done.resumed else []
    parts += [f"{done.reused} kept since their features have not changed"] if done.reused else []
    lines.append(f"wrote {done.store}: {done.written} items ({', '.join(parts)})")
    if done.gone is not None:
        lines.append(f"{done.gone} items of the earlier store are gone")
    if done.bad:
        lines.append(f"{done.bad} of {done.read} rows are no item and were left out:")
        lines += [f"  row {bad.row}, id {bad.id}: {bad.why}" for bad in done.bad_rows]
    if done.duplicates:
        named = ", ".join(map(str, done.duplicate_ids))
        lines.append(f"{done.duplicates} rows have an id that came before and were left out: {named}")
    return lines


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error with items per second and the time that is left; every 5 seconds a line where it is no
    terminal."""
    import sys
    import time

    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        begun = said = time.monotonic()

        def line(done: int, total: int) -> None:
            nonlocal said
            now = time.monotonic()
            if now - said > 5:
                said = now
                rate = done / (now - begun)
                click.echo(
                    f"{done} of {total} items, {rate:.0f} per second, {(total - done) / rate:.0f} s left", err=True
                )

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]} items/s"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, begun = bar.add_task("", total=None, rate="-"), time.monotonic()

        def progress(done: int, total: int) -> None:
            rate = done / max(1e-9, time.monotonic() - begun)
            bar.update(task, completed=done, total=total, rate=f"{rate:.0f}")

        yield progress
