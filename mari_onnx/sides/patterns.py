"""What flags, side files and metadata say: patterns on input names and on columns."""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from mari_onnx.errors import NoSuchInput, SideFileError, TaggedTwice, UsageError
from mari_onnx.model.signature import Signature

SIDES = ("user", "item", "cross")
METADATA_KEY = "mari_onnx.sides"
BATCHED = ("grid", "index", "offsets")
"""Forms of an output for several requests."""
_AXES = ("candidate_axis", "candidate_axes", "own_dimensions")
_FILE_KEYS = (*SIDES, "rest", *_AXES, "shapes", "count", "bags", "columns", "batched", "index", "index_name")
_PACKED = re.compile(r"^(?P<name>.+?)\[\s*:\s*,(?P<columns>.*)\]\s*$", re.DOTALL)
_SLICE = re.compile(r"^(-?\d+)?\s*:\s*(-?\d+)?\s*(?::\s*(-?\d+)?)?$")

# One thing to tag: a whole input (column None) or one column of a packed input.
Unit: TypeAlias = tuple[str, int | None]
# Dimensions of an input: sizes, symbols, None for an unknown one.
Shape: TypeAlias = tuple[int | str | None, ...]


def dimensions(given: Sequence[object], name: str) -> Shape:
    """Dimensions from a list of numbers and symbols. Raises `UsageError`, which names the input."""
    found: list[int | str | None] = []
    for each in given:
        text = str(each)
        if text.isdecimal():
            found.append(int(text))
        elif text in ("?", "-1"):
            found.append(None)
        elif text.isidentifier() and isinstance(each, str):
            found.append(text)
        else:
            raise UsageError(
                f"the shape of {name!r} has the dimension {text!r}", "a dimension is a number, a name such as N, or ?"
            )
    return tuple(found)


def as_lists(shapes: Mapping[str, Shape]) -> dict[str, list[int | str]]:
    """Shapes as a side file and the metadata have them."""
    return {name: ["?" if d is None else d for d in shape] for name, shape in shapes.items()}


def fnmatch_escape(name: str) -> str:
    """A pattern that matches `name` alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)


@dataclass
class Layer:
    """What one source (flags, file, metadata) says."""

    origin: str
    patterns: Mapping[str, Sequence[str]]
    rest: str | None = None
    candidate_axis: int | None = None
    own: Sequence[str] = ()
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    count: Sequence[str] = ()
    candidate_axes: Mapping[str, int] = field(default_factory=dict)
    bags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    batched: str | None = None
    index: Sequence[str] = ()
    index_name: str | None = None

    def bag_names(self, signature: Signature) -> dict[str, tuple[str, ...]]:
        """Offsets -> inputs that are cut into bags by them."""
        return {
            name: tuple(i for each in ids for i in _names(each, each, signature, self.origin))
            for pattern, ids in self.bags.items()
            for name in _names(pattern, pattern, signature, self.origin)
        }

    def axis_names(self, signature: Signature) -> dict[str, int]:
        """Inputs with a candidate axis of their own."""
        return {
            name: axis
            for pattern, axis in self.candidate_axes.items()
            for name in _names(pattern, pattern, signature, self.origin)
        }

    def count_names(self, signature: Signature) -> list[str]:
        """Inputs whose value is the number of candidates."""
        return [name for pattern in self.count for name in _names(pattern, pattern, signature, self.origin)]

    def index_names(self, signature: Signature) -> list[str]:
        """Inputs that say which row of the user inputs a candidate belongs to."""
        return [name for pattern in self.index for name in _names(pattern, pattern, signature, self.origin)]

    def own_names(self, signature: Signature) -> list[str]:
        """Inputs that keep their own dimensions."""
        return [name for pattern in self.own for name in _names(pattern, pattern, signature, self.origin)]

    def packed_names(self, signature: Signature) -> set[str]:
        found: set[str] = set()
        for pattern in (p for each in self.patterns.values() for p in each):
            if (match := _packed(pattern, signature)) is not None:
                found.update(_names(match["name"], pattern, signature, self.origin))
        return found

    def apply(self, signature: Signature, units: Sequence[Unit]) -> dict[Unit, str]:
        chosen: dict[Unit, tuple[str, str]] = {}
        for side, patterns in self.patterns.items():
            for pattern in patterns:
                for unit in self._expand(pattern, signature, units):
                    before, by = chosen.setdefault(unit, (side, pattern))
                    if before != side:
                        raise TaggedTwice(
                            f"{_unit_text(unit)} is tagged {before} by {by!r} and {side} by "
                            f"{pattern!r} in {self.origin}",
                            "an input has one side; narrow one of the two patterns",
                        )
        return {unit: side for unit, (side, _) in chosen.items()}

    def _expand(self, pattern: str, signature: Signature, units: Sequence[Unit]) -> Iterable[Unit]:
        match = _packed(pattern, signature)
        if match is None:
            names = set(_names(pattern, pattern, signature, self.origin))
            return [unit for unit in units if unit[0] in names]
        found: list[Unit] = []
        for name in _names(match["name"], pattern, signature, self.origin):
            width = sum(unit[0] == name for unit in units)
            found.extend((name, c) for c in _columns(match["columns"], width, pattern, self.origin))
        return found


def _packed(pattern: str, signature: Signature) -> re.Match[str] | None:
    if any(each.name == pattern for each in signature.inputs):
        return None
    return _PACKED.match(pattern)


def _names(name: str, pattern: str, signature: Signature, origin: str) -> list[str]:
    """Inputs that `name` means: the one of exactly that name, else those that the pattern fits."""
    all_names = [each.name for each in signature.inputs]
    if name in all_names:
        return [name]
    found = [each for each in all_names if fnmatch.fnmatchcase(each, name)]
    if not found:
        plain = re.sub(r"[*?\[\]]", "", name)
        close = difflib.get_close_matches(plain, all_names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise NoSuchInput(
            f"{pattern!r} in {origin} matches no input", hint + f"inputs are: {listed(all_names)}"
        )
    return found


def _columns(text: str, width: int, pattern: str, origin: str) -> list[int]:
    where = f"{pattern!r} in {origin}"
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    found: list[int] = []
    for piece in (each.strip() for each in inner.split(",") if each.strip()):
        if (part := _SLICE.match(piece)) is not None:
            bounds = [None if g is None else int(g) for g in part.groups()]
            if bounds[2] == 0:
                raise UsageError(f"{where}: the step of a slice is zero", "leave it out, or write one that is not 0")
            outside = [b for b in bounds[:2] if b is not None and not -width <= b <= width]
            found.extend(range(width)[slice(*bounds)])
        elif re.fullmatch(r"-?\d+", piece):
            outside = [] if -width <= int(piece) < width else [int(piece)]
            found.append(int(piece) % width)
        else:
            raise UsageError(
                f"{where}: cannot read the columns {text.strip()!r}",
                "write X[:, 0:12], X[:, [0, 3, 7]] or X[:, 5]",
            )
        if outside:
            raise NoSuchInput(
                f"{where}: there is no column {outside[0]}",
                f"the input has columns 0 to {width - 1}",
            )
    if not found:
        raise NoSuchInput(f"{where}: the selection has no columns", f"the input has columns 0 to {width - 1}")
    return found


def read_file(path: Path) -> Layer:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SideFileError(f"cannot read the side file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SideFileError(f"the side file {path} is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        hint = 'write it like this: user = ["user_*"]'
        raise SideFileError(f"the side file {path} is not TOML: {error}", hint) from error
    return _layer_of(data, f"the side file {path}")


def read_metadata(text: str) -> Layer:
    origin = f"the model's metadata {METADATA_KEY}"
    try:
        data = json.loads(text)
    except ValueError as error:
        raise SideFileError(f"{origin} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise SideFileError(f"{origin} is not a JSON object")
    return _layer_of(data, origin)


def _layer_of(data: Mapping[str, Any], origin: str) -> Layer:
    for key in data:
        if key not in _FILE_KEYS:
            close = difflib.get_close_matches(key, _FILE_KEYS, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise SideFileError(f"{origin}: unknown key {key!r}", f"{hint}the keys are: {listed(_FILE_KEYS)}")
    patterns: dict[str, list[str]] = {}
    for side in SIDES:
        patterns[side] = _patterns(data, side, origin)
    for name, table in _column_tables(data, origin).items():
        for side, columns in table.items():
            texts = columns if isinstance(columns, list) else [columns]
            inner = ", ".join(map(str, texts))
            patterns[side].append(f"{fnmatch_escape(name)}[:, [{inner}]]")
    rest, axis, axes = data.get("rest"), data.get("candidate_axis"), data.get("candidate_axes", {})
    if rest is not None and rest not in SIDES:
        raise SideFileError(f"{origin}: rest is {rest!r}, which is no side", f"one of {', '.join(SIDES)}")
    if not isinstance(axes, dict):
        raise SideFileError(
            f"{origin}: candidate_axes is not a table of inputs", "write [candidate_axes] and under it item_ids = 1"
        )
    for each in (axis, *axes.values()):
        if each is not None and (not isinstance(each, int) or isinstance(each, bool) or each < 0):
            what = f"{origin}: candidate_axis is {each!r}, which is no axis"
            raise SideFileError(what, "write an integer, 0 or larger")
    own, count, index = (_patterns(data, key, origin) for key in ("own_dimensions", "count", "index"))
    index_name = data.get("index_name")
    if index_name is not None and not (isinstance(index_name, str) and index_name):
        raise SideFileError(f"{origin}: index_name is {index_name!r}, which is no name", 'write index_name = "rows"')
    batched = data.get("batched")
    if batched is not None and batched not in BATCHED:
        raise SideFileError(f"{origin}: batched is {batched!r}", f"one of {', '.join(BATCHED)}")
    bags = data.get("bags", {})
    if not isinstance(bags, dict):
        raise SideFileError(
            f"{origin}: bags is not a table of inputs", 'write [bags] and under it offsets = ["ids"]'
        )
    ids = {name: _patterns(bags, name, f"{origin}, bags") for name in bags}
    return Layer(origin, patterns, rest, axis, own, _shapes(data, origin), count, axes, ids, batched, index, index_name)


def _shapes(data: Mapping[str, Any], origin: str) -> dict[str, Shape]:
    """`[shapes]` with `item_id = ["N", 32]`."""
    table = data.get("shapes", {})
    if not isinstance(table, dict) or not all(isinstance(shape, list) for shape in table.values()):
        raise SideFileError(
            f"{origin}: shapes is not a table of inputs", 'write [shapes] and under it item_id = ["N", 32]'
        )
    return {name: dimensions(shape, name) for name, shape in table.items()}


def _patterns(data: Mapping[str, Any], key: str, origin: str) -> list[str]:
    given = data.get(key, [])
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(p, str) for p in given):
        raise SideFileError(f"{origin}: {key} is not a list of patterns")
    return [*given]


def _column_tables(data: Mapping[str, Any], origin: str) -> dict[str, dict[str, Any]]:
    """`[columns.X]` with `user = [0, "8:11"]`, which is `user = ["X[:, [0, 8:11]]"]`."""
    tables = data.get("columns", {})
    if isinstance(tables, dict) and all(
        isinstance(table, dict) and set(table) <= set(SIDES) for table in tables.values()
    ):
        return tables
    raise SideFileError(
        f"{origin}: columns is not a table of inputs",
        'write [columns.X] and under it user = [0, 3, "8:11"], item = [...]',
    )


def column_text(columns: Sequence[int]) -> str:
    """`0:12` for a run, else `[0, 3, 7]`."""
    if list(columns) == list(range(columns[0], columns[0] + len(columns))):
        return f"{columns[0]}:{columns[0] + len(columns)}"
    return "[" + ", ".join(map(str, columns)) + "]"


def _unit_text(unit: Unit) -> str:
    name, column = unit
    return f"input {name!r}" if column is None else f"column {column} of input {name!r}"


def listed(names: Sequence[str], most: int = 30) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
