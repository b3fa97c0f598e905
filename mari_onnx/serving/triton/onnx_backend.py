"""Models for Triton's onnxruntime backend that run one request at a time: one file, or the parts of a split.

In: a model file, or the folder of a split. Out: `Served` folders. A split becomes a model for each part and an ensemble
with the source's inputs and outputs, in which Triton hands the tensors from part to part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tritonclient.grpc import model_config_pb2 as triton

from mari_onnx.errors import CannotServe
from mari_onnx.model.load import read
from mari_onnx.model.signature import signature
from mari_onnx.serving.triton import config as configs
from mari_onnx.serving.triton import readme
from mari_onnx.serving.triton.batched import said_sides
from mari_onnx.serving.triton.config import Port, Ports, ports
from mari_onnx.serving.triton.readme import Call, calls_of
from mari_onnx.serving.triton.repository import Served
from mari_onnx.sides.resolve import resolve
from mari_onnx.splitting import manifest as manifests
from mari_onnx.splitting.manifest import Manifest

if TYPE_CHECKING:
    import onnx

FILE = "model.onnx"


def one_file(path: Path, name: str) -> Served:
    """A model file as it is.

    Raises:
        CannotServe: see `config.ports` and `config.unbatched`.
    """
    source = read(path)
    found = ports(path)
    config = configs.unbatched(name, found, FILE)
    content = source.model if source.external else path
    return Served(config, {FILE: content}, readme.single(config, found, _calls(source.model), path.name))


def _calls(model: onnx.ModelProto) -> list[Call]:
    """Whose each input is, where the model's metadata says so; nothing of a file for several requests."""
    said = said_sides(model)
    if not said or said.get("batched"):
        return []
    known = signature(model)
    return calls_of(resolve(known, metadata=json.dumps(said)), [each.name for each in known.inputs])


def ensemble(folder: Path, name: str) -> list[Served]:
    """The parts of a split and, last, the ensemble that clients call.

    A part has the hash of its file in its name: Triton's cache of answers goes by names and versions alone, so a part
    of another model must have another name.

    Raises:
        CannotServe: see `config.ports`; or a part depends on the number of candidates, where it should not.
    """
    manifest = manifests.read(folder)
    manifests.verify(folder, manifest)
    parts: list[Served] = []
    found: dict[str, Ports] = {}
    read_by_score = {*manifest.parts["score"].inputs}
    for part, info in manifest.parts.items():
        if part != "score" and not read_by_score & {*info.outputs}:
            continue  # it makes outputs of the source that score.onnx has, too
        found[part] = ports(folder / info.file)
        config = configs.unbatched(f"{name}.{part}.{info.sha256[:8]}", found[part], info.file)
        if part == "user":
            _once_per_user(manifest)
            config.response_cache.enable = not any(i.side == "packed" for i in _read(manifest, "user"))
        files = {file.name: file for file in manifests.files(folder, info.file)}
        parts.append(Served(config, dict(files), named_by_content=True))
    outer = Ports(_outer(manifest, found), found["score"].outputs)
    whole = _ensemble(name, outer, found, {p: s.config.name for p, s in zip(found, parts, strict=True)})
    return [*parts, Served(whole, {"README": _EMPTY}, readme.split(whole, outer, manifest))]


_EMPTY = "Triton wants a folder for the version of an ensemble, which has no files of its own.\n"


def _ensemble(name: str, outer: Ports, found: dict[str, Ports], models: dict[str, str]) -> triton.ModelConfig:
    """The ensemble with the inputs and outputs `outer`. found, models: part -> its tensors, its model's name."""
    config = triton.ModelConfig(name=name, platform="ensemble", max_batch_size=0)
    for port in outer.inputs:
        configs.declare(config.input.add(), port, port.dims)
    for port in outer.outputs:
        configs.declare(config.output.add(), port, port.dims)
    if both := sorted({p.name for p in outer.inputs} & {p.name for p in outer.outputs}):
        raise CannotServe(f"{both[0]} is an input and an output of the model, and an ensemble has one tensor of a name")
    needed = {port.name for port in found["score"].inputs}
    inner: dict[str, str] = {}
    for part, model in models.items():
        step = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        for port in found[part].inputs:
            step.input_map[port.name] = inner.get(port.name, port.name)
        for port in found[part].outputs:
            if part == "score":
                step.output_map[port.name] = port.name
            elif port.name in needed:
                inner[port.name] = f"{part}.onnx:{port.name}"
                step.output_map[port.name] = inner[port.name]
    return config


def _outer(manifest: Manifest, found: dict[str, Ports]) -> tuple[Port, ...]:
    """The source's inputs that a part reads; a dimension that one part fixes is fixed."""
    made = {t.name for t in (*manifest.state, *manifest.rows) if t.made}
    read: dict[str, Port] = {}
    for port in (p for part in found.values() for p in part.inputs if p.name not in made):
        other = read.get(port.name, port)
        shape = tuple(a if a is not None else b for a, b in zip(other.shape, port.shape, strict=True))
        read[port.name] = Port(port.name, port.type, shape)
    return tuple(read[i.name] for i in manifest.inputs if i.name in read)


def _read(manifest: Manifest, part: str) -> list[manifests.InputInfo]:
    info = manifest.parts.get(part)
    return [i for i in manifest.inputs if info is not None and i.name in info.inputs]


def _once_per_user(manifest: Manifest) -> None:
    counts = [i.name for i in _read(manifest, "user") if i.side == "count"]
    if counts:
        raise CannotServe(
            f"user.onnx reads the number of candidates ({counts[0]}), which is 1 for a user's state and which an "
            "ensemble cannot tell it",
            "serve the split with --backend python",
        )
