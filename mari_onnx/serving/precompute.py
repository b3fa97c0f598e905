"""item.onnx over a catalogue: rows of all items in one file, sorted by id.

In: a split, a catalogue. Out: a store (`store.ArrowStore`) and what was done. Pieces of the catalogue are read, run and
written at the same time, each as a run: a small file sorted by id, in a hidden folder beside the store. A run that is
there is not made again, so after a kill the next call goes on. `merge` then puts the runs together, and a rename puts
the store in place.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mari_onnx.errors import ModelError, OutputInTheWay, UsageError, WriteError
from mari_onnx.model.save import hold, write_errors
from mari_onnx.serving.catalogue import BadRow, Catalogue, Part, Piece
from mari_onnx.serving.merge import merge, said_of_run, write_run
from mari_onnx.serving.row_format import RowFormat, shown
from mari_onnx.serving.store import ArrowStore
from mari_onnx.splitting.ranker import Ranker
from mari_onnx.version import __version__

PIECE = 16_384
"""Items of a run file."""
BATCH = 4096
"""Items of one run of the model."""
NAMED = 20
"""Bad rows and duplicates that are named; all are counted."""
Progress = Callable[[int, int], None]
Said = dict[str, Any]
"""What there is to say of a piece: rows read, kept and made by the model, bad rows."""


@dataclass
class Precomputed:
    """What `precompute` did.

    Attributes:
        read: rows of the catalogue. written: rows of the store. made: rows that the model computed in this call.
        resumed: rows that an earlier call had made. reused: rows taken from `since`.
        gone: items of `since` that the catalogue no longer has; None without `since`.
        bad, duplicates: rows left out, all counted, the first ones named.
    """

    store: str
    read: int = 0
    written: int = 0
    made: int = 0
    resumed: int = 0
    reused: int = 0
    gone: int | None = None
    bad: int = 0
    duplicates: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    duplicate_ids: list[int | str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass
class Made:
    """A piece, its rows by tensor, and what there is to say of it."""

    piece: Piece
    arrays: dict[str, np.ndarray]
    said: Said


@dataclass(frozen=True)
class Job:
    """What is to be made of a catalogue, by this process or others.

    Attributes:
        catalogue: in pieces of `PIECE` rows. since: an earlier store of the same model.
        skip_bad: a piece with bad rows is worth keeping. batch: items of one run of the model.
        runs: the folder of the files that pieces become.
    """

    ranker: Ranker
    catalogue: Catalogue
    format: RowFormat
    since: ArrowStore | None
    skip_bad: bool
    batch: int
    runs: Path

    def run_of(self, part: Part) -> Path:
        """The file of a piece; once it is there, the piece is done."""
        return self.runs / f"run-{part.number:06d}.arrow"

    def make(self, piece: Piece, part: Part) -> Made:
        """The rows of a piece."""
        arrays, made = _rows(self.ranker, piece, self.format, self.since, self.batch)
        bad = sorted(piece.bad, key=lambda each: each.row)
        said = {
            "read": part.count, "rows": len(piece.ids), "made": made, "bad": len(bad),
            "bad_rows": [asdict(b) for b in bad[:NAMED]], "last_bad": bad and piece.bad[-1].why,
        }  # fmt: skip
        return Made(piece, arrays, said)

    def kept(self, said: Said) -> bool:
        """Whether a later call shall find the piece done."""
        return bool(said["rows"]) and (self.skip_bad or not said["bad"])

    def write(self, made: Made, path: Path) -> None:
        """Writes the file of a piece."""
        piece = made.piece
        write_run(path, self.format, piece.ids, piece.hashes, piece.rows, made.arrays, made.said)


Make = Callable[[Job], Generator[Said, None, None]]


def precompute(
    ranker: Ranker,
    catalogue: Catalogue,
    store: str | Path,
    *,
    since: ArrowStore | None = None,
    skip_bad: bool = False,
    force: bool = False,
    batch: int = BATCH,
    progress: Progress | None = None,
    make: Make | None = None,
) -> Precomputed:
    """Writes the rows of all items of a catalogue to the file `store`.

    Args:
        since: an earlier store of the same model; an item whose features have the same hash keeps its row.
        skip_bad: leave out rows that are no item, and all but the first row of an id; else they are an error.
        force: replace a store that is there.
        batch: items of one run of the model.
        progress: is called with how many rows are done, and of how many.
        make: makes the files of all pieces; by default `in_this_process`.

    Raises:
        UsageError: the catalogue, a bad row (without `skip_bad`), or another process writes this store now.
        OutputInTheWay, WriteError: the store cannot be written. ModelError: the model fails on every item.
    """
    target = Path(os.path.realpath(store))
    if target.is_dir():
        raise OutputInTheWay(f"{store} is a folder", "name a file")
    if target.exists() and not force:
        raise OutputInTheWay(f"{store} is there", "give --force to replace it, or name another file")
    if not target.parent.is_dir():
        raise WriteError(f"cannot write {store}: no folder {target.parent}", "create the folder first")
    format, done = RowFormat.of(ranker.manifest), Precomputed(str(store))
    if since is not None and (since.format.key, since.format.columns) != (format.key, format.columns):
        done.notes.append(f"{since.path} has rows of another model, so all rows are made anew")
        since = None
    plan = {
        "version": __version__, "key": format.key, "columns": [c.name for c in format.columns],
        "items": catalogue.stamp(), "id": catalogue.id_column,
        "since": None if since is None else _stamp(since.path), "batch": batch, "piece": PIECE,
    }  # fmt: skip
    folder = target.with_name(f".{target.name}.partial")
    with write_errors(target), _working(folder, plan, store) as runs:
        job = Job(ranker, catalogue, format, since, skip_bad, batch, runs)
        with contextlib.closing((make or in_this_process)(job)) as pieces:
            _count(job, pieces, done, progress)
        merged = merge([runs / f for f in sorted(os.listdir(runs)) if f.endswith(".arrow")], runs / "merged", format)
        done.written, done.duplicates = merged.rows, merged.duplicates
        done.duplicate_ids = merged.duplicate_ids
        if done.duplicates and not skip_bad:
            some = ", ".join(map(str, done.duplicate_ids[:NAMED]))
            raise UsageError(
                f"{catalogue.path} has {done.duplicates} rows of ids that came before: {some}",
                "--bad-rows skip keeps the first row of each id",
            )
        if since is not None:
            done.gone = (since.count or 0) - _still_there(since, runs / "merged")
        os.replace(runs / "merged", target)
    return done


def stretches(job: Job) -> Iterator[tuple[bool, list[Part]]]:
    """The pieces in order: those of one file that follow one another and are all done, or all not done yet."""
    parts = job.catalogue.parts(PIECE)
    there = {part.number for part in parts if job.run_of(part).exists()}
    for (_, done), group in groupby(parts, lambda part: (part.file, part.number in there)):
        yield done, list(group)


def done_before(job: Job, part: Part) -> Said:
    """What there is to say of a piece that an earlier call made."""
    return {**said_of_run(job.run_of(part)), "resumed": True}


def in_this_process(job: Job) -> Generator[Said, None, None]:
    """Makes the files of all pieces, in order, and says what is in each. It reads and writes while the model runs."""

    def read() -> Iterator[tuple[Part, Piece | None]]:
        for done, parts in stretches(job):
            if done:
                yield from ((part, None) for part in parts)
            else:
                for part, raw in zip(parts, job.catalogue.read(parts), strict=True):
                    yield part, job.catalogue.convert(raw, part.first)

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for part, piece in _ahead(read(), reader):
            if piece is None:
                yield done_before(job, part)
                continue
            made = job.make(piece, part)
            if writing is not None:
                writing.result()
            if job.kept(made.said):
                writing = writer.submit(job.write, made, job.run_of(part))
            yield made.said
        if writing is not None:
            writing.result()


def _count(job: Job, pieces: Iterator[Said], done: Precomputed, progress: Progress | None) -> None:
    """Adds up what is said of the pieces.

    Raises:
        UsageError: a bad row (without `skip_bad`). ModelError: the model fails on every item.
    """
    for said in pieces:
        before = done.made + done.resumed + done.reused
        if said.get("resumed"):
            done.resumed += said["rows"]
        else:
            done.made += said["made"]
            done.reused += said["rows"] - said["made"]
        if not before and not said["rows"] and said["read"] > 1:
            raise ModelError(f"none of the first {said['read']} rows is an item: {said['last_bad']}")
        done.read += said["read"]
        done.bad += said["bad"]
        done.bad_rows += [BadRow(**b) for b in said["bad_rows"]][: NAMED - len(done.bad_rows)]
        if done.bad and not job.skip_bad:
            row = done.bad_rows[0]
            raise UsageError(
                f"row {row.row} of {job.catalogue.path} (id {row.id}) is no item: {row.why}",
                "--bad-rows skip leaves such rows out and counts them; what is done is kept",
            )
        if progress is not None:
            progress(done.read, job.catalogue.count)


def _rows(
    ranker: Ranker, piece: Piece, format: RowFormat, since: ArrowStore | None, batch: int
) -> tuple[dict[str, np.ndarray], int]:
    """The rows of a piece, and how many the model made. Items on which the model fails become bad rows of the piece."""
    arrays = format.empty(len(piece.ids))
    make = np.ones(len(piece.ids), bool)
    if since is not None and len(piece.ids):
        before, here = since.hashes(piece.ids)
        make = ~(here & (before == piece.hashes))
        old, _ = since.find(piece.ids[~make])
        for name, rows in old.items():
            arrays[name][~make] = rows
    failed: dict[int, str] = {}
    places = np.flatnonzero(make)
    for start in range(0, len(places), batch):
        _run(ranker, piece, places[start : start + batch], format, arrays, failed)
    if failed:
        keep = np.ones(len(piece.ids), bool)
        keep[list(failed)] = False
        names = shown(piece.ids)
        piece.bad += [BadRow(int(piece.rows[at]), str(names[at]), why) for at, why in failed.items()]
        piece.ids, piece.rows, piece.hashes = piece.ids[keep], piece.rows[keep], piece.hashes[keep]
        arrays = {name: rows[keep] for name, rows in arrays.items()}
    return arrays, len(places) - len(failed)


def _run(
    ranker: Ranker,
    piece: Piece,
    places: np.ndarray,
    format: RowFormat,
    arrays: dict[str, np.ndarray],
    failed: dict[int, str],
) -> None:
    """Runs the model on some items; where it fails, on halves, until the items that it fails on are found."""
    axes = {each.name: each.axis or 0 for each in ranker.manifest.inputs}
    given = {name: np.moveaxis(rows[places], 0, axes[name]) for name, rows in piece.features.items()}
    try:
        made = format.rows_first(ranker.items(given))
    except ModelError as error:
        if len(places) == 1:
            failed[int(places[0])] = error.message.splitlines()[0]
            return
        half = len(places) // 2
        _run(ranker, piece, places[:half], format, arrays, failed)
        _run(ranker, piece, places[half:], format, arrays, failed)
        return
    for name, rows in made.items():
        arrays[name][places] = rows


def _ahead(items: Iterator[Any], pool: ThreadPoolExecutor) -> Iterator[Any]:
    """The items of an iterator, the next one being made while one is used."""
    end = object()
    future = pool.submit(next, items, end)
    while (item := future.result()) is not end:
        future = pool.submit(next, items, end)
        yield item


@contextlib.contextmanager
def _working(folder: Path, plan: dict[str, Any], store: str | Path) -> Iterator[Path]:
    """The folder of the runs, held by this process; emptied where it belongs to another plan, removed at the end."""
    folder.mkdir(exist_ok=True)
    with hold(folder) as mine:
        if not mine:
            raise UsageError(f"another run writes {store} now", "wait for it, or name another file")
        file, text = folder / "plan.json", json.dumps(plan, indent=1)
        if not file.exists() or file.read_text() != text:
            for old in folder.iterdir():
                old.unlink()
            file.write_text(text)
        for half in folder.glob("*.tmp"):
            half.unlink()
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def _stamp(path: Path) -> list[Any]:
    return [str(path), path.stat().st_size, path.stat().st_mtime_ns]


def _still_there(since: ArrowStore, merged: Path) -> int:
    """How many items of `since` the new store has."""
    new = ArrowStore(merged)
    return sum(int(new.hashes(ids)[1].sum()) for ids, _ in since.blocks())
