"""`mari-onnx triton IN_OR_DIR REPOSITORY`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mari_onnx.cli.options import common_options, custom_ops_option, json_option
from mari_onnx.cli.streams import write_json

if TYPE_CHECKING:
    from mari_onnx.serving.triton.batched import Waiting
    from mari_onnx.serving.triton.repository import Served


@click.command()
@click.argument("source", metavar="IN_OR_DIR", type=click.Path(path_type=Path))
@click.argument("repository", metavar="REPOSITORY", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="What clients call the model.  [default: the name of IN_OR_DIR]")
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "python"]),
    default="onnxruntime",
    show_default=True,
    help="python: a split as a service, with users' states in its cache and items' rows from --store.",
)
@click.option(
    "--store", metavar="STORE", help="A file of mari-onnx precompute, or the URL of a Redis server (--backend python)."
)
@click.option("--text-ids", is_flag=True, help="Items' ids are texts. Only for Redis: a file says so itself.")
@click.option(
    "--cache-bytes",
    type=click.IntRange(min=0),
    default=256 << 20,
    show_default=True,
    metavar="BYTES",
    help="Of users' states that are kept (--backend python).",
)
@click.option(
    "--cache-seconds",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a user's state is kept (--backend python).",
)
@click.option(
    "--most",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="R",
    help="At most so many requests are put together.",
)
@click.option(
    "--delay",
    type=click.IntRange(min=0),
    default=500,
    show_default=True,
    metavar="MICROSECONDS",
    help="How long a request waits for others.",
)
@click.option("--force", is_flag=True, help="Replace a model of that name in REPOSITORY.")
@json_option("what was written")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@custom_ops_option
@common_options
def triton(
    source: Path,
    repository: Path,
    name: str | None,
    backend: str,
    store: str | None,
    text_ids: bool,
    cache_bytes: int,
    cache_seconds: float,
    most: int,
    delay: int,
    force: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Write a model of a repository for NVIDIA Triton Inference Server: config.pbtxt, the files, and a README.md with a
    client's call.

    IN_OR_DIR is a model file, or the folder of a split (mari-onnx split), which becomes a model for each part and an
    ensemble with the source's inputs and outputs. Requests of a file that optimize --batched offsets wrote, and those
    of --backend python, are put together by the server. docs/triton.md says what is served how.
    """
    from mari_onnx.errors import UsageError, needs
    from mari_onnx.report import summary
    from mari_onnx.report.terminal import console

    if store is not None and backend != "python":
        raise UsageError("--store is read by --backend python", "add --backend python, or leave --store out")
    with needs("serving,triton"):
        from mari_onnx.serving.triton.batched import Waiting
        from mari_onnx.serving.triton.repository import model_name, write

    model = model_name(name or Path(source).resolve().name.removesuffix(".onnx"))
    waiting = Waiting(most, delay)
    if backend == "python":
        served = [_service(source, model, store, text_ids, cache_bytes, cache_seconds, waiting)]
    else:
        served = _served(source, model, waiting)
    written = write(repository, served, force)
    if json_file is not None:
        write_json(json_file, {"repository": repository, "models": written, "called": served[-1].config.name})
    if not quiet and str(json_file) != "-":
        lines = [f"wrote {folder}" for folder in written]
        summary.write(console(), [*lines, f"clients call {served[-1].config.name}: see {written[-1] / 'README.md'}"])


def _served(source: Path, name: str, waiting: Waiting) -> list[Served]:
    from mari_onnx.errors import ModelNotFound
    from mari_onnx.model.load import load
    from mari_onnx.serving.triton import batched
    from mari_onnx.serving.triton.onnx_backend import ensemble, one_file
    from mari_onnx.splitting.manifest import is_split

    if is_split(source):
        return ensemble(source, name)
    if source.is_dir():
        raise ModelNotFound(f"{source} is a folder without manifest.json", "mari-onnx split IN DIR makes a split")
    model = load(source)
    if batched.said_sides(model).get("batched") == "offsets":
        return [batched.served(source, name, *batched.form_of(model), waiting)]
    return [one_file(source, name)]


def _service(
    source: Path,
    name: str,
    store: str | None,
    text_ids: bool,
    cache_bytes: int,
    cache_seconds: float,
    waiting: Waiting,
) -> Served:
    from mari_onnx.errors import UsageError
    from mari_onnx.serving import ArrowStore, Ranker, Service, open_store
    from mari_onnx.serving.triton.python_backend import Settings, service
    from mari_onnx.splitting import manifest as manifests

    if not manifests.is_split(source):
        raise UsageError(f"--backend python serves a split, and {source} is none", "mari-onnx split IN DIR makes one")
    if store is not None:
        opened = open_store(store)
        Service(Ranker(source), opened)  # refuses rows of another model
        if isinstance(opened, ArrowStore):
            store = str(Path(store).resolve())
            first = next(opened.blocks(), None)
            text_ids = first is not None and first[0].dtype.kind == "S"
    ids = "STRING" if text_ids else "INT64"
    return service(source, name, Settings(store, ids, cache_bytes, cache_seconds, waiting))
