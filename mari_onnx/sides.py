"""Which input belongs to whom: from flags, a side file, the model's metadata, the graph, or names.

A tag `user` promises that all N rows of the input are equal, so a wrong tag is a wrong model:
nothing is tagged from names alone unless the caller asks for it. `cross` is right for every input
that has one row a candidate, `item` for those that do not depend on the user.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mari_onnx.errors import NoSuchInput, SideFileError, TaggedTwice, UntaggedInput, UsageError
from mari_onnx.model.signature import Input, Signature

SIDES = ("user", "item", "cross")
METADATA_KEY = "mari_onnx.sides"
_FILE_KEYS = (*SIDES, "rest", "candidate_axis")
_PACKED = re.compile(r"^(?P<name>.+?)\[\s*:\s*,(?P<columns>.*)\]\s*$", re.DOTALL)
_SLICE = re.compile(r"^(-?\d+)?\s*:\s*(-?\d+)?\s*(?::\s*(-?\d+)?)?$")

# One thing to tag: a whole input (column None) or one column of a packed input.
_Unit = tuple[str, int | None]


@dataclass(frozen=True)
class Sides:
    """Sides of a model's inputs.

    Attributes:
        inputs: input name -> "user", "item" or "cross".
        columns: packed input `X[N, F]` -> side -> its column indices; together they cover all F.
        candidate_axis: the axis of length N of the inputs.

    An input in neither mapping is taken as the graph says (a scalar, or the `[R, N, ...]` layout).
    """

    inputs: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    candidate_axis: int = 0

    def side(self, name: str) -> str | None:
        """The side of a whole input; None for packed and for untagged ones."""
        return self.inputs.get(name)

    def of(self, side: str) -> tuple[str, ...]:
        """Names of the whole inputs of one side, in the order they were given."""
        return tuple(name for name, each in self.inputs.items() if each == side)

    def __bool__(self) -> bool:
        return bool(self.inputs or self.columns)

    def to_dict(self) -> dict[str, Any]:
        """The form of a side file; names that read as patterns are escaped."""
        found: dict[str, Any] = {
            side: [fnmatch_escape(name) for name in self.of(side)]
            + [
                f"{fnmatch_escape(name)}[:, {_column_text(parts[side])}]"
                for name, parts in self.columns.items()
                if parts.get(side)
            ]
            for side in SIDES
        }
        found["candidate_axis"] = self.candidate_axis
        return found

    def to_json(self) -> str:
        """One line for `metadata_props`; `resolve(metadata=...)` reads it back."""
        return json.dumps(self.to_dict(), ensure_ascii=False)


def resolve(
    signature: Signature,
    *,
    user: Iterable[str] = (),
    item: Iterable[str] = (),
    cross: Iterable[str] = (),
    rest: str | None = None,
    file: str | Path | None = None,
    metadata: str | None = None,
    candidate_axis: int | None = None,
    guess: bool = False,
) -> Sides:
    """Sides of the inputs of `signature`. Flags beat the file, the file beats the metadata.

    Args:
        user, item, cross: shell patterns on input names; `X[:, 0:12]`, `X[:, [0, 3]]` for columns.
        rest: the side of whatever nothing else tags.
        file: a TOML side file with the same words as keys, and `candidate_axis`.
        metadata: the value of the model's `mari_onnx.sides` property.
        candidate_axis: the axis of length N; 0 where nobody says otherwise.
        guess: tag what is left by what its name looks like.

    Returns:
        `Sides()` without tags where nothing was said and no dimension tells.

    Raises:
        UntaggedInput, TaggedTwice, NoSuchInput, SideFileError, UsageError.
    """
    layers = [_Layer("the flags", {"user": [*user], "item": [*item], "cross": [*cross]}, rest)]
    if file is not None:
        layers.append(_read_file(Path(file)))
    if metadata is not None:
        layers.append(_read_metadata(metadata))
    axes = [candidate_axis, *(layer.candidate_axis for layer in layers)]
    axis = next((a for a in axes if a is not None), 0)
    rests = [layer.rest for layer in layers if layer.rest is not None]
    if rests and rests[0] not in SIDES:
        raise UsageError(f"rest is {rests[0]!r}", f"one of {', '.join(SIDES)}")

    units = _units(signature, layers, axis)
    tagged: dict[_Unit, str] = {}
    for layer in layers:
        for unit, side in layer.apply(signature, units).items():
            tagged.setdefault(unit, side)
    said = bool(tagged or rests)
    for name in _single_rows(signature, axis):
        if (name, None) in units:
            tagged.setdefault((name, None), "user")

    left = [u for u in units if u not in tagged and _has_candidates(signature.input(u[0]), axis)]
    if rests:
        tagged.update((unit, rests[0]) for unit in left)
    elif guess:
        from mari_onnx.guess import guess_side

        # `cross` is never wrong for an input with one row a candidate.
        tagged.update((unit, guess_side(unit[0]) or "cross") for unit in left)
    elif left and said:
        raise _untagged(left, units)
    elif left and tagged:
        # One row against N says who is the user; the others have a row a candidate.
        tagged.update((unit, "cross") for unit in left)
    return _collect(units, tagged, axis)


def side_file_beside(model: str | Path) -> Path | None:
    """The side file next to a model: for `a.b.onnx`, `a.b.sides.toml`, then `a.sides.toml`."""
    path = Path(model)
    stem = path.name.removesuffix(path.suffix)
    while stem:
        candidate = path.with_name(f"{stem}.sides.toml")
        if candidate.is_file():
            return candidate
        stem, dot, _ = stem.rpartition(".")
        if not dot:
            return None
    return None


def fnmatch_escape(name: str) -> str:
    """A pattern that matches `name` alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)


@dataclass
class _Layer:
    """What one source (flags, file, metadata) says."""

    origin: str
    patterns: Mapping[str, Sequence[str]]
    rest: str | None = None
    candidate_axis: int | None = None

    def packed_names(self, signature: Signature) -> set[str]:
        found: set[str] = set()
        for pattern in (p for each in self.patterns.values() for p in each):
            if (match := _packed(pattern, signature)) is not None:
                found.update(_names(match["name"], pattern, signature, self.origin))
        return found

    def apply(self, signature: Signature, units: Sequence[_Unit]) -> dict[_Unit, str]:
        chosen: dict[_Unit, tuple[str, str]] = {}
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

    def _expand(
        self, pattern: str, signature: Signature, units: Sequence[_Unit]
    ) -> Iterable[_Unit]:
        match = _packed(pattern, signature)
        if match is None:
            names = set(_names(pattern, pattern, signature, self.origin))
            return [unit for unit in units if unit[0] in names]
        found: list[_Unit] = []
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
            f"{pattern!r} in {origin} matches no input", hint + f"inputs are: {_listed(all_names)}"
        )
    return found


def _columns(text: str, width: int, pattern: str, origin: str) -> list[int]:
    text = text.strip()
    where = f"{pattern!r} in {origin}"
    if (part := _SLICE.match(text)) is not None:
        bounds = [None if g is None else int(g) for g in part.groups()]
        if bounds[2] == 0:
            raise UsageError(f"{where}: the step of a slice is zero")
        for bound in bounds[:2]:
            if bound is not None and not -width <= bound <= width:
                raise NoSuchInput(f"{where}: column {bound} of {width}")
        found = sorted(range(width)[slice(*bounds)])
    else:
        listed = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        try:
            found = [int(each) for each in listed.split(",") if each.strip()]
        except ValueError:
            raise UsageError(
                f"{where}: cannot read the columns {text!r}",
                "write X[:, 0:12], X[:, [0, 3, 7]] or X[:, 5]",
            ) from None
        for column in found:
            if not -width <= column < width:
                raise NoSuchInput(f"{where}: column {column} of {width}")
        found = [column % width for column in found]
    if not found:
        raise NoSuchInput(f"{where}: no column is named", f"the input has columns 0 to {width - 1}")
    return found


def _units(signature: Signature, layers: Sequence[_Layer], axis: int) -> list[_Unit]:
    packed = set().union(*(layer.packed_names(signature) for layer in layers))
    units: list[_Unit] = []
    for each in signature.inputs:
        if each.name not in packed:
            units.append((each.name, None))
            continue
        if axis != 0 or len(each.shape) != 2:
            raise UsageError(
                f"columns of input {each.name!r} {each.text} are tagged",
                "only an input [N, F] with the candidate axis 0 has columns to tag",
            )
        width = each.shape[1]
        if not isinstance(width, int):
            raise UsageError(
                f"columns of {each.name!r} {each.text} are tagged, but its width is not fixed",
                "export the model with a fixed number of columns",
            )
        units.extend((each.name, column) for column in range(width))
    return units


def _has_candidates(each: Input, axis: int) -> bool:
    return not each.rank_known or len(each.shape) > axis


def _single_rows(signature: Signature, axis: int) -> list[str]:
    """Inputs of length 1 on the candidate axis, where others have N."""
    with_axis = [i for i in signature.inputs if i.rank_known and len(i.shape) > axis]
    single = [i.name for i in with_axis if i.shape[axis] == 1]
    return single if len(single) < len(with_axis) else []


def _collect(units: Sequence[_Unit], tagged: Mapping[_Unit, str], axis: int) -> Sides:
    inputs: dict[str, str] = {}
    packed: dict[str, dict[str, list[int]]] = {}
    for unit in units:
        if (side := tagged.get(unit)) is None:
            continue
        name, column = unit
        if column is None:
            inputs[name] = side
        else:
            packed.setdefault(name, {}).setdefault(side, []).append(column)
    columns: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, parts in packed.items():
        if len(parts) == 1:
            inputs[name] = next(iter(parts))
        else:
            columns[name] = {side: tuple(parts[side]) for side in SIDES if side in parts}
    return Sides(inputs, columns, axis)


def _untagged(left: Sequence[_Unit], units: Sequence[_Unit]) -> UntaggedInput:
    names = list(dict.fromkeys(name for name, _ in left))
    texts = []
    for name in names:
        columns = [c for n, c in left if n == name and c is not None]
        texts.append(f"{name}[:, {_column_text(columns)}]" if columns else name)
    return UntaggedInput(
        f"{len(left)} of {len(units)} inputs or columns have no side: {_listed(texts)}",
        "tag them with --user, --item or --cross, or all at once with --rest cross "
        "(right for every input with one row a candidate)",
    )


def _read_file(path: Path) -> _Layer:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SideFileError(f"cannot read the side file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SideFileError(f"the side file {path} is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise SideFileError(f"the side file {path} is not TOML: {error}") from error
    return _layer_of(data, f"the side file {path}")


def _read_metadata(text: str) -> _Layer:
    origin = f"the model's metadata {METADATA_KEY}"
    try:
        data = json.loads(text)
    except ValueError as error:
        raise SideFileError(f"{origin} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise SideFileError(f"{origin} is not a JSON object")
    return _layer_of(data, origin)


def _layer_of(data: Mapping[str, Any], origin: str) -> _Layer:
    for key in data:
        if key not in _FILE_KEYS:
            close = difflib.get_close_matches(key, _FILE_KEYS, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise SideFileError(f"{origin}: unknown key {key!r}", hint + _listed(_FILE_KEYS))
    patterns: dict[str, list[str]] = {}
    for side in SIDES:
        given = data.get(side, [])
        given = [given] if isinstance(given, str) else given
        if not isinstance(given, list) or not all(isinstance(p, str) for p in given):
            raise SideFileError(f"{origin}: {side} is not a list of patterns")
        patterns[side] = given
    rest, axis = data.get("rest"), data.get("candidate_axis")
    if rest is not None and rest not in SIDES:
        raise SideFileError(f"{origin}: rest is {rest!r}", f"one of {', '.join(SIDES)}")
    if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool) or axis < 0):
        raise SideFileError(f"{origin}: candidate_axis is {axis!r}", "a number from 0 on")
    return _Layer(origin, patterns, rest, axis)


def _column_text(columns: Sequence[int]) -> str:
    """`0:12` for a run, else `[0, 3, 7]`."""
    if list(columns) == list(range(columns[0], columns[0] + len(columns))):
        return f"{columns[0]}:{columns[0] + len(columns)}"
    return "[" + ", ".join(map(str, columns)) + "]"


def _unit_text(unit: _Unit) -> str:
    name, column = unit
    return f"input {name!r}" if column is None else f"column {column} of input {name!r}"


def _listed(names: Sequence[str], most: int = 30) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
