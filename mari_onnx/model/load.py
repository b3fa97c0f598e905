"""Reading a model file, however large or broken, with weights left on disk where they are large.

A file is data: nothing in it is executed, and nothing outside its folder is read.
"""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mari_onnx.errors import ExternalDataError, ModelNotFound, NotAModel
from mari_onnx.model import protobuf_wire
from mari_onnx.model import tensors as tensors_
from mari_onnx.model.topological_sort import put_in_order
from mari_onnx.model.validate import check_structure

if TYPE_CHECKING:
    import onnx

# From this size of a file on, tensors of LAZY_TENSOR bytes or more stay on disk.
LAZY_FILE = 256 << 20
LAZY_TENSOR = 1 << 20

_MAGIC = {
    b"PK\x03\x04": "a zip archive (a PyTorch checkpoint?)",
    b"\x89HDF": "an HDF5 file (a Keras model?)",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
    b"\x1f\x8b": "a gzip archive",
    b"\x80\x02": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"<": "an HTML or XML page (a download that failed?)",
}
_EXPORT_HINT = "give an .onnx file, as torch.onnx.export writes it"


@dataclass(frozen=True)
class Source:
    """A model and where it came from.

    Attributes:
        model: with large tensors still on disk (see `mari_onnx.model.tensors`).
        path: as given.
        sha256: of the model file, without its external data.
        external: the file kept weights in other files.
        size: bytes of the model file and of the tensors outside it.
    """

    model: onnx.ModelProto
    path: Path
    sha256: str
    external: bool
    size: int


def load(path: str | Path) -> onnx.ModelProto:
    """The model at `path`; see `read`."""
    return read(path).model


def read(path: str | Path) -> Source:
    """Reads and checks the model at `path`.

    Raises:
        ModelNotFound, NotAModel, InvalidModel, ExternalDataError: with what is wrong and where.
    """
    path = Path(path)
    size, digest = _fingerprint(path)
    model = _parse_lazily(path) if size >= LAZY_FILE else _parse(path.read_bytes(), path)
    if not model.HasField("graph") or not model.opset_import:
        missing = "operator set" if model.HasField("graph") else "graph"
        raise NotAModel(f"{path} holds no ONNX {missing}", _EXPORT_HINT)
    outside = _resolve_external(model, path)
    model = put_in_order(model, copy=False)
    check_structure(model)
    return Source(model, path, digest, outside is not None, size + (outside or 0))


def _fingerprint(path: Path) -> tuple[int, str]:
    try:
        with path.open("rb") as file:
            head = file.read(64)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
    except IsADirectoryError:
        hint = "name the .onnx file in it; the folder of a split model comes after its source: inspect IN DIR"
        raise ModelNotFound(f"{path} is a folder", hint) from None
    except FileNotFoundError:
        raise ModelNotFound(f"there is no file {path}", _nearby(path)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelNotFound(f"cannot read {path}: {reason}") from error
    if size == 0:
        raise NotAModel(f"{path} is empty", _EXPORT_HINT)
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise NotAModel(f"{path} is not an ONNX model but {what}", _EXPORT_HINT)
    return size, digest


def _nearby(path: Path) -> str | None:
    import difflib

    try:
        names = [each.name for each in path.parent.iterdir() if each.suffix == ".onnx"]
    except OSError:
        return f"there is no folder {path.parent} either"
    close = difflib.get_close_matches(path.name, names, n=2)
    return f"did you mean {' or '.join(str(path.parent / c) for c in close)}?" if close else None


def _parse(data: bytes, path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        if "MaxDepth" in str(error):
            raise NotAModel(
                f"{path} nests graphs deeper than protobuf can read (about 30 levels; onnxruntime has the same limit)",
                "export the model anew with less nesting",
            ) from error
        head = data[:512]
        text = not any(byte < 9 or 13 < byte < 32 for byte in head)
        what = "is text, not an ONNX model" if text else "is cut off, or is not an ONNX model"
        again = "" if text else "if the file was copied, compare its size with the original's; otherwise "
        raise NotAModel(f"{path} {what}", again + _EXPORT_HINT) from error
    return model


def _resolve_external(model: onnx.ModelProto, path: Path) -> int | None:
    """Checks external tensors, makes their locations absolute, reads them unless they are large.

    Returns:
        bytes outside the model file, or None where all weights are in it.
    """
    own = str(path.resolve())
    sizes: dict[str, tuple[Path, int]] = {}
    lengths: list[int] = []
    found: list[onnx.TensorProto] = []
    for tensor in tensors_.tensors(model):
        if not tensors_.is_external(tensor):
            continue
        location = tensors_.external_entries(tensor).get("location", "")
        if location == own:  # left in the model file by _parse_lazily
            continue
        if location not in sizes:
            where = _data_file(path, tensor.name, location)
            sizes[location] = (where, where.stat().st_size)
        where, size = sizes[location]
        offset, length = tensors_.external_range(tensor, size)
        wanted = tensors_.byte_size(tensor)
        if wanted is not None and wanted != length:
            raise ExternalDataError(
                f"tensor {tensor.name!r} {list(tensor.dims)} needs {wanted} bytes, "
                f"its external data in {location!r} has {length}",
                "the data file belongs to another model, or was cut off; copy it anew",
            )
        tensors_.set_external(tensor, str(where), offset, length)
        found.append(tensor)
        lengths.append(length)
    all_fit = sum(lengths) < LAZY_FILE
    for tensor, length in zip(found, lengths, strict=True):
        if all_fit or length < LAZY_TENSOR:
            tensors_.inline(tensor)
    return sum(lengths) if found else None


def _data_file(path: Path, tensor: str, location: str) -> Path:
    """The data file of a tensor, which has to be inside the model's folder."""
    relative = Path(location)
    outside = ExternalDataError(
        f"tensor {tensor!r} of {path} has its data in {location!r}, outside the model's folder",
        "such a path is refused, as it could name any file; put the data beside the model",
    )
    if not location or relative.is_absolute() or relative.drive or ".." in relative.parts:
        raise outside
    # A model that is a link may have its data beside the link or beside what it points to.
    folders = list(dict.fromkeys([path.parent.resolve(), path.resolve().parent]))
    for folder in folders:
        found = (folder / relative).resolve()
        if not found.is_file():
            continue
        if not any(found.is_relative_to(allowed) for allowed in folders):
            raise outside
        return found
    raise ExternalDataError(
        f"tensor {tensor!r} of {path} has its data in {location!r}, and there is no such file",
        f"copy it to {path.parent / relative}",
    )


def _parse_lazily(path: Path) -> onnx.ModelProto:
    """Parses a large file without its large initializers, which then point into the file itself.

    Parsing it whole would hold every weight twice, as file and as message.
    """
    own = str(path.resolve())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            pieces = []
            graph: list[bytes] = []
            for number, start, body, end in protobuf_wire.fields(data, 0, len(data)):
                if number != protobuf_wire.MODEL_GRAPH:
                    pieces.append(data[start:end])
                    continue
                for sub, sub_start, sub_body, sub_end in protobuf_wire.fields(data, body, end):
                    if sub == protobuf_wire.GRAPH_INITIALIZER:
                        tensor = _tensor_without_data(data, sub_body, sub_end, own)
                        graph.append(
                            protobuf_wire.tagged(protobuf_wire.GRAPH_INITIALIZER, tensor.SerializeToString())
                        )
                    else:
                        graph.append(data[sub_start:sub_end])
            if graph:
                pieces.append(protobuf_wire.tagged(protobuf_wire.MODEL_GRAPH, b"".join(graph)))
        except (IndexError, ValueError) as error:
            raise NotAModel(
                f"{path} is cut off, or is not an ONNX model: {error}", _EXPORT_HINT
            ) from error
    return _parse(b"".join(pieces), path)


def _tensor_without_data(data: mmap.mmap, start: int, end: int, own: str) -> onnx.TensorProto:
    import onnx

    raw: tuple[int, int] | None = None
    pieces = []
    for number, field, body, stop in protobuf_wire.fields(data, start, end):
        if number == protobuf_wire.TENSOR_RAW_DATA and stop - body >= LAZY_TENSOR:
            raw = (body, stop - body)
        else:
            pieces.append(data[field:stop])
    tensor: onnx.TensorProto = onnx.TensorProto.FromString(b"".join(pieces))
    if raw is not None:
        tensors_.set_external(tensor, own, *raw)
    return tensor
