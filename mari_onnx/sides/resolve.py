"""Which input belongs to whom: from flags, a side file, the model's metadata, the graph, or names.

A tag `user` promises that all N rows of the input are equal, so a wrong tag is a wrong model:
nothing is tagged from names alone unless the caller asks for it. `cross` is right for every input
that has one row per candidate, `item` for those that do not depend on the user.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mari_onnx.errors import UntaggedInput, UsageError
from mari_onnx.model.signature import Input, Signature
from mari_onnx.sides.patterns import (
    BATCHED,
    METADATA_KEY,
    SIDES,
    Layer,
    Shape,
    Unit,
    as_lists,
    column_text,
    fnmatch_escape,
    listed,
    read_file,
    read_metadata,
)
from mari_onnx.sides.shapes import given_for, merged, with_shapes

INDEX_NAMES = {"index": "request_index", "offsets": "request_offsets"}
"""The inputs that these forms of `BATCHED` add."""
__all__ = ["BATCHED", "INDEX_NAMES", "METADATA_KEY", "SIDES", "Sides", "fnmatch_escape", "resolve", "side_file_beside"]


@dataclass(frozen=True)
class Sides:
    """Sides of a model's inputs.

    Attributes:
        inputs: input name -> "user", "item" or "cross".
        columns: packed input `X[N, F]` -> side -> its column indices; together they cover all F.
        candidate_axis: the axis of length N of the item and cross inputs.
        axes: input name -> its own candidate axis, where the caller said so or it was looked into
            (`sides.candidates`); None for an input that keeps its own dimensions, such as a history `[T]`.
        shapes: input name -> dimensions of the source that its file lacks or fixes (`sides.shapes.reshaped`).
        counts: inputs whose value is the number of candidates; they have no side.
        bags: offsets `[N]` -> the inputs whose first axis they cut into N bags (`sides.bags`).
        batched: how the output takes several requests in one run (`BATCHED`); None for one request.
        indices: inputs that say, for each candidate, which row of the user inputs is its user's; they have no side.
        index_name: the input that `batched` adds, where it has another name than `INDEX_NAMES`.

    An input in neither mapping is taken as the graph says (a scalar, or the `[R, N, ...]` layout).
    """

    inputs: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    candidate_axis: int = 0
    axes: Mapping[str, int | None] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    counts: tuple[str, ...] = ()
    bags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    batched: str | None = None
    indices: tuple[str, ...] = ()
    index_name: str | None = None

    @property
    def several(self) -> str | None:
        """How the output takes several requests: as `batched` says, or by an index that the source has itself."""
        return "index" if self.indices else self.batched

    @property
    def added(self) -> str | None:
        """The name of the input that the output has and the source has not."""
        return None if self.batched is None or self.indices else self.index_name or INDEX_NAMES.get(self.batched)

    @property
    def listed(self) -> frozenset[str]:
        """Inputs that hold the ids of bags, one bag behind the other."""
        return frozenset(name for ids in self.bags.values() for name in ids)

    def axis_of(self, name: str) -> int | None:
        """The axis of a tagged input that counts candidates, if it has so many; None: no axis of it does."""
        return self.axes.get(name, self.candidate_axis)

    def surely_counts(self, name: str) -> bool:
        """Whether an axis behind the first of a user's input counts candidates, whatever its dimension is called."""
        return self.side(name) == "user" and bool(self.axes.get(name))

    @property
    def own(self) -> tuple[str, ...]:
        """Inputs that keep their own dimensions."""
        return tuple(name for name, axis in self.axes.items() if axis is None)

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
                f"{fnmatch_escape(name)}[:, {column_text(parts[side])}]"
                for name, parts in self.columns.items()
                if parts.get(side)
            ]
            for side in SIDES
        }
        found["candidate_axis"] = self.candidate_axis
        axes = {
            fnmatch_escape(name): axis
            for name, axis in self.axes.items()
            if axis is not None and (axis != self.candidate_axis or self.surely_counts(name))
        }
        if axes:
            found["candidate_axes"] = axes
        if self.own:
            found["own_dimensions"] = [fnmatch_escape(name) for name in self.own]
        if self.shapes:
            found["shapes"] = as_lists(self.shapes)
        if self.counts:
            found["count"] = [fnmatch_escape(name) for name in self.counts]
        if self.bags:
            found["bags"] = {fnmatch_escape(n): [fnmatch_escape(i) for i in ids] for n, ids in self.bags.items()}
        if self.batched:
            found["batched"] = self.batched
        if self.indices:
            found["index"] = [fnmatch_escape(name) for name in self.indices]
        if self.index_name:
            found["index_name"] = self.index_name
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
    candidate_axes: Mapping[str, int] | None = None,
    guess: bool = False,
    shapes: Mapping[str, Shape] | None = None,
    count: Iterable[str] = (),
    indices: Collection[str] = (),
    batched: str | None = None,
    index: Iterable[str] = (),
    index_name: str | None = None,
) -> Sides:
    """Sides of the inputs of `signature`. Flags beat the file, the file beats the metadata.

    Args:
        user, item, cross: shell patterns on input names; `X[:, 0:12]`, `X[:, [0, 3]]` for columns.
        rest: the side of whatever nothing else tags.
        file: a TOML side file with the same words as keys, and `candidate_axis`.
        metadata: the value of the model's `mari_onnx.sides` property.
        candidate_axis: the axis of length N of item and cross inputs; 0 where nobody says otherwise.
        candidate_axes: shell pattern on input names -> the axis of length N of these, of whatever side.
        guess: tag what is left by what its name looks like.
        shapes: input name -> dimensions, where the file lacks or fixes them.
        count: shell patterns on names of inputs whose value is the number of candidates.
        batched: one of `BATCHED`.
        index: shell patterns on names of inputs that say which row of the user inputs a candidate belongs to.
        index_name: the name of the input that `batched` adds.
        indices: inputs that pick rows of other inputs (`sides.row_index`), whose names are not asked.

    Returns:
        `Sides()` without tags where nothing was said and no dimension tells.

    Raises:
        UntaggedInput, TaggedTwice, NoSuchInput, SideFileError, UsageError.
    """
    flags = {"user": [*user], "item": [*item], "cross": [*cross]}
    flagged = Layer("the flags", flags, rest, shapes=shapes or {}, count=[*count], batched=batched)
    layers = [replace(flagged, candidate_axes=candidate_axes or {}, index=[*index], index_name=index_name)]
    if file is not None:
        layers.append(read_file(Path(file)))
    if metadata is not None:
        layers.append(read_metadata(metadata))
    given = merged(layer.shapes for layer in layers)
    signature = with_shapes(signature, given_for(given, metadata))
    axes = [candidate_axis, *(layer.candidate_axis for layer in layers)]
    axis = next((a for a in axes if a is not None), 0)
    deepest = max((len(each.shape) for each in signature.inputs), default=0)
    if axis < 0 or (axis and axis >= deepest):
        raise UsageError(
            f"there is no candidate axis {axis}: no input has more than {deepest} dimensions",
            "axes count from 0: --candidate-axis 0 is the first",
        )
    rests = [layer.rest for layer in layers if layer.rest is not None]
    if rests and rests[0] not in SIDES:
        raise UsageError(f"rest is {rests[0]!r}", f"one of {', '.join(SIDES)}")

    counts = tuple(dict.fromkeys(name for layer in layers for name in layer.count_names(signature)))
    for name in counts:
        _check_count(signature.input(name))
    chosen = tuple(dict.fromkeys(name for layer in layers for name in layer.index_names(signature)))
    for name in chosen:
        _check_index(signature.input(name))
    several = next((layer.batched for layer in layers if layer.batched is not None), None)
    named = next((layer.index_name for layer in layers if layer.index_name is not None), None)
    batch = Sides(indices=chosen, batched=several, index_name=named)
    sideless = {*counts, *chosen, batch.added}
    units = [unit for unit in _units(signature, layers, axis) if unit[0] not in sideless]
    tagged: dict[Unit, str] = {}
    for layer in layers:
        for unit, side in layer.apply(signature, units).items():
            tagged.setdefault(unit, side)
    said = bool(tagged or rests)
    own: dict[str, int | None] = {name: None for layer in layers for name in layer.own_names(signature)}
    bags = {name: ids for layer in reversed(layers) for name, ids in layer.bag_names(signature).items()}
    own |= {name: None for ids in bags.values() for name in ids}
    by_name = _axes_by_name(layers, signature)
    for name in _single_rows(signature, lambda name: by_name.get(name, axis)):
        if (name, None) in units:
            tagged.setdefault((name, None), "user")

    left = [u for u in units if u not in tagged and _has_candidates(signature.input(u[0]), by_name.get(u[0], axis))]
    if rests:
        tagged.update((unit, rests[0]) for unit in left)
    elif guess:
        from mari_onnx.sides.guess import guess_side

        # `cross` is never wrong for an input with one row per candidate.
        looks = {unit: None if unit[0] in indices else guess_side(unit[0]) for unit in left}
        tagged.update((unit, side or "cross") for unit, side in looks.items())
    elif left and said:
        raise _untagged(left, units)
    elif left and tagged:
        # One row against N says who is the user; the others have a row per candidate.
        tagged.update((unit, "cross") for unit in left)
    found = _collect(units, tagged, axis)
    found = replace(batch, inputs=found.inputs, columns=found.columns, candidate_axis=axis)
    return replace(found, shapes=given, counts=counts, bags=bags, axes=own | by_name)


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


def _units(signature: Signature, layers: Sequence[Layer], axis: int) -> list[Unit]:
    packed = set().union(*(layer.packed_names(signature) for layer in layers))
    units: list[Unit] = []
    for each in signature.inputs:
        if each.name not in packed:
            units.append((each.name, None))
            continue
        if axis != 0 or len(each.shape) != 2:
            raise UsageError(
                f"columns of input {each.name!r} {each.text} are tagged",
                "columns can be tagged only of an input [N, F], with candidate axis 0",
            )
        width = each.shape[1]
        if not isinstance(width, int):
            raise UsageError(
                f"columns of {each.name!r} {each.text} are tagged, but its width is not fixed",
                "export the model with a fixed number of columns",
            )
        units.extend((each.name, column) for column in range(width))
    return units


def _check_count(each: Input) -> None:
    if each.dtype.kind not in "iu" or any(d != 1 for d in each.shape) or len(each.shape) > 1:
        raise UsageError(
            f"input {each.name!r} ({each.type} {each.text}) cannot be the number of candidates",
            "--count is for one integer, a scalar or [1]; if the file does not say so, give --shape "
            f"{each.name}=1",
        )


def _check_index(each: Input) -> None:
    if each.dtype not in (np.int32, np.int64) or not (len(each.shape) == 1 or each.shape[1:] == (1,)):
        raise UsageError(
            f"input {each.name!r} ({each.type} {each.text}) cannot be an index of user rows",
            "--index is for one int32 or int64 per candidate, of shape [N] or [N, 1]",
        )


def _has_candidates(each: Input, axis: int) -> bool:
    return not each.rank_known or len(each.shape) > axis


def _axes_by_name(layers: Iterable[Layer], signature: Signature) -> dict[str, int]:
    """The candidate axes that are said of single inputs. Raises `UsageError` where an input has fewer dimensions."""
    found: dict[str, int] = {}
    for layer in layers:
        for name, axis in layer.axis_names(signature).items():
            each = signature.input(name)
            if axis < 0 or (each.rank_known and len(each.shape) <= axis):
                raise UsageError(
                    f"input {name!r} {each.text} has no axis {axis} that could count candidates",
                    f"axes count from 0: --candidate-axis {name}=0 is the first",
                )
            found.setdefault(name, axis)
    return found


def _single_rows(signature: Signature, axis_of: Callable[[str], int]) -> list[str]:
    """Inputs of length 1 on the candidate axis, where others have N."""
    with_axis = [i for i in signature.inputs if i.rank_known and len(i.shape) > axis_of(i.name)]
    single = [i.name for i in with_axis if i.shape[axis_of(i.name)] == 1]
    return single if len(single) < len(with_axis) else []


def _collect(units: Sequence[Unit], tagged: Mapping[Unit, str], axis: int) -> Sides:
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


def _untagged(left: Sequence[Unit], units: Sequence[Unit]) -> UntaggedInput:
    names = list(dict.fromkeys(name for name, _ in left))
    texts = []
    for name in names:
        columns = [c for n, c in left if n == name and c is not None]
        texts.append(f"{name}[:, {column_text(columns)}]" if columns else name)
    return UntaggedInput(
        f"{len(left)} of {len(units)} inputs or columns have no side: {listed(texts)}",
        "tag them with --user, --item or --cross, or all at once with --rest cross "
        "(right for every input with one row per candidate)",
    )
