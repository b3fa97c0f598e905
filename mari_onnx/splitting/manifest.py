"""`manifest.json`: which tensors the models of a split hand over, and the hashes under which they may be kept.

In: a plan and the files of its parts. Out: a `Manifest`, to and from JSON; `schemas/manifest.json`
describes it for other languages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mari_onnx.errors import ModelError, ModelNotFound
from mari_onnx.model.load import load
from mari_onnx.model.signature import signature
from mari_onnx.parity.settings import MULTIPLE
from mari_onnx.sides.resolve import BATCHED
from mari_onnx.splitting.choices import Stored
from mari_onnx.version import __version__

FILE = "manifest.json"
FORMAT = 1
SCHEMA = Path(__file__).parents[1] / "schemas/manifest.json"
Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the interface.

    Attributes:
        dtype: as numpy calls it, or "string". shape: a number, a symbol, or None where only a run can tell.
        axis: along which it has a row per item or candidate; None without one.
        bytes: for one item, or one user; symbols but the candidates' count as 50.
        made: by item.onnx or user.onnx; else it is an input that is passed as it is.
    """

    name: str
    dtype: str
    shape: Shape
    axis: int | None
    bytes: int
    made: bool


@dataclass(frozen=True)
class InputInfo:
    """An input of the source. side: "user", "item", "cross", "packed" (columns of several), or "count" (its value is
    the number of candidates). axis: that of the candidates, None without one.
    """

    name: str
    dtype: str
    shape: Shape
    axis: int | None
    side: str


@dataclass(frozen=True)
class OutputInfo:
    """An output of the source. depends_on: "user", "item", "cross" or "constant"."""

    name: str
    dtype: str
    shape: Shape
    depends_on: str


@dataclass(frozen=True)
class PartInfo:
    """A model of the split. sha256: of the file and of its external data. inputs, outputs: names, in order."""

    file: str
    sha256: str
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class BatchedInfo:
    """How score.batched.onnx takes several requests in one run (docs/batching.md).

    Tensors of a user have the requests in front: `[1, H]` is `[R, 1, H]`.

    Attributes:
        form: "grid", "index" or "offsets".
        index: the input that says whose candidates are whose; None in a grid.
        axes: output -> the axis of the candidates in the source; None where there is one output for each request, which
            has the requests in front.
        most: candidates of one run, up to which it was measured to be faster than a run for each request; None where
            no number is too large, or none was measured.
    """

    form: str
    index: str | None
    axes: Mapping[str, int | None]
    most: int | None = None


@dataclass(frozen=True)
class Contract:
    """How near the parts come to the source.

    Attributes:
        state: "float32", or "float16" where states and rows are handed over in half precision.
        multiple: outputs are at most so many times farther from the source in float64 than the source itself is
            (docs/parity.md).
        max_error: the largest absolute difference that the check met; None without a check.
    """

    state: Stored = "float32"
    multiple: float = MULTIPLE
    max_error: float | None = None


@dataclass(frozen=True)
class Manifest:
    """A split. docs/splitting.md describes the fields.

    Attributes:
        source: "file" and "sha256". sides: as in a side file.
        inputs, outputs: of the source, in order.
        parts: "user", "item", "score" and "batched"; the first two only where they compute something, the last one
            where it was asked for: score for several requests in one run.
        state: what score reads of the user. rows: what it reads of the item, and outputs of the item alone.
        cross: inputs that score reads for each request.
        candidates: the N that the cut was chosen for. seconds: estimated, of score and of handing over, at that N.
        batched: how the part "batched" is fed; None without it.
    """

    source: Mapping[str, str]
    sides: Mapping[str, Any]
    inputs: tuple[InputInfo, ...]
    outputs: tuple[OutputInfo, ...]
    parts: Mapping[str, PartInfo]
    state: tuple[TensorInfo, ...]
    rows: tuple[TensorInfo, ...]
    cross: tuple[str, ...]
    candidates: int
    seconds: float
    contract: Contract = Contract()
    version: str = __version__
    batched: BatchedInfo | None = None

    @property
    def state_key(self) -> str:
        """The hash under which a user's state may be kept: that of the model that made it."""
        return (self.parts.get("user") or self.parts["score"]).sha256

    @property
    def rows_key(self) -> str:
        """The hash under which items' rows may be kept."""
        return (self.parts.get("item") or self.parts["score"]).sha256

    @property
    def bytes_per_user(self) -> int:
        """Of the state of one user."""
        return sum(t.bytes for t in self.state)

    @property
    def bytes_per_item(self) -> int:
        """Of the row of one item."""
        return sum(t.bytes for t in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """As `schemas/manifest.json` describes it."""
        found: dict[str, Any] = {"format": FORMAT, "mari_onnx": self.version}
        found |= {k: v for k, v in asdict(self).items() if k != "version"}
        found["bytes_per_user"], found["bytes_per_item"] = self.bytes_per_user, self.bytes_per_item
        found["state_key"], found["rows_key"] = self.state_key, self.rows_key
        return found

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"


def read(folder: str | Path) -> Manifest:
    """The manifest of a split.

    Raises:
        ModelNotFound: there is none. ModelError: it is no manifest, or of another format.
    """
    path = Path(folder, FILE)
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "is a file, and a split model is a folder" if Path(folder).is_file() else f"has no {FILE}"
        raise ModelNotFound(f"{folder} is no split model: it {what}", "mari-onnx split IN DIR makes one") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "split the source again") from error
    try:
        if said["format"] != FORMAT:
            raise ValueError(f"format {said['format']}, not {FORMAT}")
        found = Manifest(
            dict(said["source"]),
            dict(said["sides"]),
            tuple(InputInfo(**_shaped(each)) for each in said["inputs"]),
            tuple(OutputInfo(**_shaped(each)) for each in said["outputs"]),
            {k: PartInfo(**{**v, "inputs": tuple(v["inputs"]), "outputs": tuple(v["outputs"])})
             for k, v in said["parts"].items()},
            tuple(TensorInfo(**_shaped(each)) for each in said["state"]),
            tuple(TensorInfo(**_shaped(each)) for each in said["rows"]),
            tuple(said["cross"]),
            int(said["candidates"]),
            float(said["seconds"]),
            Contract(**said["contract"]),
            str(said["mari_onnx"]),
            _batched(said.get("batched")),
        )  # fmt: skip
        again = json.loads(found.to_json())
        wrong = [key for key in {**said, **again} if said.get(key) != again.get(key)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} contradict the rest")
        return found
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(
            f"{path} is damaged, or no manifest of this version of mari-onnx: {why}", "split the source again"
        ) from error


def _shaped(said: Mapping[str, Any]) -> dict[str, Any]:
    axis, shape = said.get("axis"), said["shape"]
    right = isinstance(shape, list) and all(isinstance(d, int | str | None) for d in shape)
    if not right or not (axis is None or (isinstance(axis, int) and 0 <= axis < len(shape))):
        raise ValueError(f"{said['name']} has the shape {shape} and the axis {axis}")
    return {**said, "shape": tuple(shape)}


def _batched(said: Any) -> BatchedInfo | None:
    if said is None:
        return None
    most = said["most"]
    found = BatchedInfo(said["form"], said["index"], dict(said["axes"]), None if most is None else int(most))
    if found.form not in BATCHED or (found.index is None) != (found.form == "grid"):
        raise ValueError(f"the form {found.form} has the index {found.index}")
    if not all(axis is None or (isinstance(axis, int) and axis >= 0) for axis in found.axes.values()):
        raise ValueError(f"axes of outputs are {found.axes}")
    return found


def files(folder: Path, name: str) -> list[Path]:
    """A model's file and those of its external data."""
    return sorted([folder / name, *folder.glob(f"{name}.*.data")])


def digest(paths: Sequence[Path]) -> str:
    """The sha256 of the bytes of all files, one after the other."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while piece := stream.read(1 << 20):
                found.update(piece)
    return found.hexdigest()


def verify(folder: Path, manifest: Manifest) -> None:
    """Makes sure that the files are those that the manifest names, and have the tensors that it lists.

    Raises:
        ModelError: one is missing, or another.
    """
    again = "the folder was mixed up from several splits, or a file was changed; split the source again"
    for part in manifest.parts.values():
        path = folder / part.file
        try:
            same = digest(files(folder, part.file)) == part.sha256
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror or error}", again) from error
        if not same:
            raise ModelError(f"{path} is not the file that {FILE} names", again)
        found = signature(load(path))
        has = [i.name for i in found.inputs], [o.name for o in found.outputs]
        if has != (list(part.inputs), list(part.outputs)):
            raise ModelError(
                f"{FILE} says that {part.file} has the inputs {', '.join(part.inputs)} and the outputs "
                f"{', '.join(part.outputs)}; it has {', '.join(has[0])} and {', '.join(has[1])}",
                again,
            )
    made = {o for name, part in manifest.parts.items() if name in ("user", "item") for o in part.outputs}
    tensors, inputs = [*manifest.state, *manifest.rows], {i.name for i in manifest.inputs}
    known = {*manifest.cross, *(t.name for t in tensors)}
    wrong = [t.name for t in tensors if t.name not in (made if t.made else inputs)]
    wrong += [n for n in manifest.parts["score"].inputs if n not in known]
    batched, several = manifest.batched, manifest.parts.get("batched")
    if batched is not None and several is not None:
        wrong += [n for n in several.inputs if n not in {*known, batched.index}]
    if (batched is None) != (several is None) or (
        batched is not None and several is not None and {*batched.axes} != {*several.outputs}
    ):
        raise ModelError(f"{FILE} does not say how several requests are scored in one run", again)
    if wrong:
        raise ModelError(f"{FILE} does not say where these tensors come from: {', '.join(wrong)}", again)


def is_split(path: str | Path) -> bool:
    """Whether a path is the folder of a split."""
    return Path(path, FILE).is_file()
