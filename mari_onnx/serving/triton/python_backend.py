"""A `Service` as a model of Triton's Python backend.

In: the folder of a split, and where the rows of its items are. Out: a `Served` folder with the split, a configuration
whose parameters say how the service is made, and a `model.py`. Triton's dynamic batcher collects requests; each is
answered, or refused, by itself. Triton gives every tensor a first dimension of 1, that of the batch: user inputs have
it already, as their one row, and others get it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as triton

from mari_onnx.errors import CannotServe
from mari_onnx.serving.protocol import ITEM_IDS, USER_KEY
from mari_onnx.serving.triton import readme
from mari_onnx.serving.triton.batched import Waiting
from mari_onnx.serving.triton.config import TYPES, Port, declare
from mari_onnx.serving.triton.repository import Served
from mari_onnx.splitting import manifest as manifests
from mari_onnx.splitting.manifest import InputInfo, Manifest, OutputInfo

MODEL = "from mari_onnx.serving.triton.model import TritonPythonModel  # noqa: F401\n"
FOLDER = "split"
"""Of the split, in the folder of the version."""
_TYPES = {"float16": "FP16", "float32": "FP32", "float64": "FP64"}


@dataclass(frozen=True)
class Settings:
    """How the service is made.

    Attributes:
        store: a file of `mari-onnx precompute`, or the URL of a Redis server; None: requests bring items' features.
        ids: "INT64" or "STRING", what items are called.
        cache_bytes, cache_seconds: of users' states.
        waiting: how many requests are handed over together.
    """

    store: str | None = None
    ids: str = "INT64"
    cache_bytes: int = 256 << 20
    cache_seconds: float = 600.0
    waiting: Waiting = field(default_factory=Waiting)


def service(folder: Path, name: str, settings: Settings) -> Served:
    """The model. Raises CannotServe for an element type that Triton lacks."""
    manifest = manifests.read(folder)
    manifests.verify(folder, manifest)
    config = triton.ModelConfig(name=name, backend="python", max_batch_size=settings.waiting.most)
    config.dynamic_batching.max_queue_delay_microseconds = settings.waiting.delay
    ports = inputs_of(manifest, settings)
    for port in ports:
        given = config.input.add()
        declare(given, port, port.dims)
        # A request may leave out features of a user whose state is kept, and has ids of items or their features.
        given.optional, given.allow_ragged_batch = True, True
    for output in manifest.outputs:
        port = Port(output.name, _type(output), _free(output.shape))
        declare(config.output.add(), port, port.dims)
    said = {
        "folder": FOLDER,
        "store": settings.store or "",
        "cache_bytes": str(settings.cache_bytes),
        "cache_seconds": str(settings.cache_seconds),
    }
    for key, value in said.items():
        config.parameters[key].string_value = value
    files = [folder / manifests.FILE, *(f for p in manifest.parts.values() for f in manifests.files(folder, p.file))]
    content: dict[str, Path | str] = {"model.py": MODEL, **{f"{FOLDER}/{file.name}": file for file in files}}
    return Served(config, dict(content), readme.of_service(config, ports, manifest, settings.store is not None))


def inputs_of(manifest: Manifest, settings: Settings) -> list[Port]:
    """What a request may have: features, and the user's key and items' ids, if no input has these names."""
    names = {i.name for i in manifest.inputs}
    found = [Port(USER_KEY, "STRING", (1,))] if USER_KEY not in names else []
    if settings.store is not None and ITEM_IDS not in names:
        found.append(Port(ITEM_IDS, settings.ids, (None,)))
    return [*found, *(Port(i.name, _type(i), _without_batch(i)) for i in manifest.inputs)]


def _without_batch(info: InputInfo) -> tuple[int | None, ...]:
    rows: int | None = 1 if info.side == "user" else None
    shape = tuple(rows if i == info.axis else size for i, size in enumerate(info.shape))
    return _free(shape[1:] if info.side == "user" and info.axis == 0 else shape)


def _free(shape: manifests.Shape) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) and size > 0 else None for size in shape)


def _type(info: InputInfo | OutputInfo) -> str:
    found = _TYPES.get(info.dtype, info.dtype.upper())
    if found not in TYPES.values():
        raise CannotServe(f"{info.name} is {info.dtype}, which Triton's clients do not send")
    return found
