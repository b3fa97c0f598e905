"""`mari-onnx triton IN_OR_DIR REPOSITORY`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mari_onnx.cli.options import common_options, custom_ops_option

if TYPE_CHECKING:
    from mari_onnx.serving.triton.repository import Served


@click.command()
@click.argument("source", metavar="IN_OR_DIR", type=click.Path(path_type=Path))
@click.argument("repository", metavar="REPOSITORY", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="What clients call the model.  [default: the name of IN_OR_DIR]")
@click.option("--force", is_flag=True, help="Replace a model of that name in REPOSITORY.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@custom_ops_option
@common_options
def triton(source: Path, repository: Path, name: str | None, force: bool, quiet: bool) -> None:
    """Write a model of a repository for NVIDIA Triton Inference Server: config.pbtxt, the files, and a README.md with a
    client's call.

    IN_OR_DIR is a model file, or the folder of a split (mari-onnx split), which becomes a model for each part and an
    ensemble with the source's inputs and outputs. docs/triton.md says what is served how.
    """
    from mari_onnx.errors import needs
    from mari_onnx.report import summary
    from mari_onnx.report.terminal import console

    with needs("serving,triton"):
        from mari_onnx.serving.triton.repository import model_name, write

    served = _served(source, model_name(name or Path(source).resolve().name.removesuffix(".onnx")))
    written = write(repository, served, force)
    if not quiet:
        lines = [f"wrote {folder}" for folder in written]
        summary.write(console(), [*lines, f"clients call {served[-1].config.name}: see {written[-1] / 'README.md'}"])


def _served(source: Path, name: str) -> list[Served]:
    from mari_onnx.errors import ModelNotFound
    from mari_onnx.serving.triton.onnx_backend import ensemble, one_file
    from mari_onnx.splitting.manifest import is_split

    if is_split(source):
        return ensemble(source, name)
    if source.is_dir():
        raise ModelNotFound(f"{source} is a folder without manifest.json", "mari-onnx split IN DIR makes a split")
    return [one_file(source, name)]
