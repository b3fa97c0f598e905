"""The pieces of a catalogue on many machines, for `precompute`.

In: a `Job`. Out: the same files of runs that one process would write. Workers read stretches of the catalogue, run
item.onnx, and send each run back as the bytes of its file; this process puts it into the folder. So a run that is there
is not made again, by whichever engine, and the store is the same byte for byte.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import ray

from mari_onnx import runtime
from mari_onnx.serving.catalogue import Catalogue, Part
from mari_onnx.serving.merge import whole_file
from mari_onnx.serving.offline import cluster
from mari_onnx.serving.precompute import Job, Make, Said, done_before, stretches
from mari_onnx.serving.row_format import RowFormat
from mari_onnx.serving.store import ArrowStore
from mari_onnx.splitting.ranker import Ranker

MOST = 16
"""Pieces that a worker takes at a time: it reads a file from the group of rows on in which the first of them begins."""


def on_ray(folder: str | Path, provider: str = "cpu", threads: int = 1) -> Make:
    """What makes the pieces, for `precompute(make=..)`.

    Args:
        folder: of the split. provider, threads: of each worker's sessions.
    """

    def make(job: Job) -> Generator[Said, None, None]:
        cluster.start()
        with cluster.quiet():
            yield from _made(job, str(Path(folder).resolve()), provider, threads)

    return make


def _made(job: Job, folder: str, provider: str, threads: int) -> Generator[Said, None, None]:
    pieces = list(stretches(job))
    todo = [part for done, parts in pieces if not done for part in parts]
    compute = cluster.workers(threads)
    # Enough stretches for all workers, however small the catalogue is.
    most = max(1, min(MOST, len(todo) // (4 * compute.max_size)))
    work = [
        {"parts": json.dumps([asdict(part) for part in parts[at : at + most]])}
        for done, parts in pieces
        if not done
        for at in range(0, len(parts), most)
    ]
    given = {
        "folder": folder, "provider": provider, "threads": threads, "libraries": runtime.custom_ops_in_use(),
        "items": str(job.catalogue.path.resolve()), "id_column": job.catalogue.id_column,
        "since": None if job.since is None else str(job.since.path.resolve()), "skip_bad": job.skip_bad,
        "batch": job.batch,
    }  # fmt: skip
    found: Iterator[dict[str, Any]] = iter(())
    if work:
        dataset = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
            Worker, batch_size=1, compute=compute, num_cpus=threads, fn_constructor_kwargs=given
        )
        found = cluster.rows(dataset)
    for done, parts in pieces:
        for part in parts:
            if done:
                yield done_before(job, part)
                continue
            row = next(found)
            said: Said = json.loads(row["said"])
            if job.kept(said):
                with whole_file(job.run_of(part)) as file:
                    file.write(row["run"])
            yield said


class Worker:
    """Makes pieces, in a process of Ray; see `Job`. The model is opened once, when there is work: an error that is
    raised then reaches the caller as it is, and one of a worker that does not start as text.
    """

    def __init__(self, **given: Any):
        self._given = given

    @cached_property
    def _job(self) -> Job:
        return _job_of(**self._given)

    def __call__(self, stretch: dict[str, np.ndarray]) -> Iterator[dict[str, list[Any]]]:
        """For each piece of a stretch what there is to say of it, and the bytes of its run."""
        parts = [Part(**each) for each in json.loads(str(stretch["parts"][0]))]
        with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
            job = replace(self._job, runs=Path(folder))
            for part, raw in zip(parts, job.catalogue.read(parts), strict=True):
                made, run = job.make(job.catalogue.convert(raw, part.first), part), b""
                if job.kept(made.said):
                    job.write(made, job.run_of(part))
                    run = job.run_of(part).read_bytes()
                    job.run_of(part).unlink()
                yield {"said": [json.dumps(made.said)], "run": [run]}


def _job_of(
    folder: str,
    provider: str,
    threads: int,
    libraries: tuple[str, ...],
    items: str,
    id_column: str,
    since: str | None,
    skip_bad: bool,
    batch: int,
) -> Job:
    with runtime.custom_ops(libraries):
        ranker = Ranker(folder, provider, threads)
    catalogue = Catalogue(items, ranker.manifest, id_column)
    earlier = None if since is None else ArrowStore(since)
    return Job(ranker, catalogue, RowFormat.of(ranker.manifest), earlier, skip_bad, batch, Path())
