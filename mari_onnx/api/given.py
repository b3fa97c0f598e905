"""What a caller gives: a model, and whose its inputs are. One meaning for the command line and for Python."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mari_onnx.errors import UsageError
from mari_onnx.model.load import Source, read
from mari_onnx.model.signature import signature
from mari_onnx.parity.candidates import with_axes
from mari_onnx.sides.resolve import METADATA_KEY, SIDES, Sides, fnmatch_escape, resolve, side_file_beside
from mari_onnx.sides.row_index import row_indices
from mari_onnx.sides.shapes import reshaped

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Options

Model: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto"
"""A path, or a model as an object, which is only read."""
Names: TypeAlias = str | Iterable[str]
"""A shell pattern on input names, or several: `"user_*"`, `["user_*", "X[:, 0:12]"]`."""
Dimensions: TypeAlias = Mapping[str, Sequence[int | str | None]]
"""Input -> its dimensions: sizes, symbols such as "N", None for an unknown one."""
Axes: TypeAlias = int | Mapping[str, int] | None
"""The axis of item and cross inputs that counts candidates, or input -> its own; None: axis 0."""
SidesLike: TypeAlias = "Sides | Mapping[str, str] | str | os.PathLike[str] | None"
"""`Sides`, a mapping input -> "user", "item" or "cross", or the path of a side file; None: nothing is said."""


def as_source(model: Model) -> Source:
    """The model with its origin; one given as an object has no path.

    Raises:
        ModelError: it cannot be read, or is not whole.
    """
    if isinstance(model, str | os.PathLike):
        return read(Path(model))
    from mari_onnx.model.topological_sort import put_in_order
    from mari_onnx.model.validate import check_structure

    model = put_in_order(model, copy=True)
    check_structure(model)
    data = model.SerializeToString(deterministic=True)
    return Source(model, Path(), hashlib.sha256(data).hexdigest(), False, len(data))


def with_given_shapes(source: Source, sides: Sides) -> Source:
    """The source with the dimensions that `sides.shapes` gives; its file is as it was.

    Raises:
        UsageError: see `mari_onnx.sides.shapes.with_shapes`.
    """
    return dataclasses.replace(source, model=reshaped(source.model, sides.shapes))


def at_its_number(options: Options, model: onnx.ModelProto, sides: Sides) -> Options:
    """The options with the only number of candidates that a model takes which was exported with a fixed batch.

    A batch of 1 is not taken for a number of candidates: with one there would be nothing to save.
    """
    from mari_onnx.parity.layout import Layout

    fixed = Layout(signature(model), sides).fixed_n
    if fixed is None or fixed < 2:
        return options
    return dataclasses.replace(options, candidates=fixed, weights={fixed: 1.0})


def tags(
    user: Names = (),
    item: Names = (),
    cross: Names = (),
    rest: str | None = None,
    shapes: Dimensions | None = None,
    count: Names = (),
    candidate_axis: Axes = None,
    guess: bool = False,
) -> dict[str, Any]:
    """What the arguments of these names say in every function of the Python API, as arguments of `resolve`: those that
    say something.

    Args:
        user, item, cross: whose these inputs are. `user` promises that all rows of a request are equal.
        rest: the side of every input that nothing else names.
        shapes: dimensions that the file lacks or fixes.
        count: inputs whose value is the number of candidates: one integer, `[]` or `[1]`. They have no side.
        candidate_axis: see `Axes`.
        guess: take what the names of the other inputs look like.
    """
    named = {"user": user, "item": item, "cross": cross, "count": count}
    found: dict[str, Any] = {name: _listed(given) for name, given in named.items()}
    found |= {"rest": rest, "guess": guess}
    found["shapes"] = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    if isinstance(candidate_axis, Mapping):
        found["candidate_axes"] = dict(candidate_axis)
    elif candidate_axis is not None:
        found["candidate_axis"] = candidate_axis
    return {name: value for name, value in found.items() if value or name == "candidate_axis"}


def _listed(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def sides_of(source: Source, sides: SidesLike, run: bool = True, **flags: Any) -> Sides:
    """The sides of a source.

    What `flags` say comes first, then `sides`; where `sides` is not a `Sides`, which is complete, then the side file
    beside the model, its metadata, and its dimensions.

    Args:
        run: the source may be run to find out what shapes do not tell.
        flags: of `mari_onnx.sides.resolve.resolve`; see `tags`.

    Raises:
        UsageError, UntaggedInput, TaggedTwice, NoSuchInput, SideFileError: see `resolve`; or `sides` is a `Sides` and
            `flags` have tags too.
    """
    path = source.path if source.path.is_file() else None
    return resolved(source.model, path, sides=sides, run=run, **flags)


def resolved(
    model: onnx.ModelProto,
    path: str | os.PathLike[str] | None = None,
    outputs: Mapping[Path, onnx.ModelProto] | None = None,
    *,
    sides: SidesLike = None,
    run: bool = True,
    **flags: Any,
) -> Sides:
    """As `sides_of`, of a model that was read from `path`.

    Args:
        outputs: models that were made of it, by their paths, whose side files and metadata count after its own.
    """
    if isinstance(sides, Sides):
        return with_axes(model, _complete(sides, flags), model if run else None)
    file = sides if isinstance(sides, str | os.PathLike) else None
    if isinstance(sides, Mapping):
        flags |= _of_mapping(sides, flags)
    beside = map(side_file_beside, map(Path, [*([path] if path is not None else []), *(outputs or {})]))
    file = Path(file) if file else next(filter(None, beside), None)
    models = [model, *(outputs or {}).values()]
    metadata = [entry.value for each in models for entry in each.metadata_props if entry.key == METADATA_KEY]
    if flags.get("guess"):
        flags["indices"] = row_indices(model)
    found = resolve(signature(model), file=file, metadata=next(iter(metadata), None), **flags)
    return with_axes(model, found, model if run else None)


def sides_of_pair(models: Sequence[Any], loaded: Sequence[onnx.ModelProto], sides: SidesLike, **flags: Any) -> Sides:
    """The sides of the first of several models, of which the others were made.

    Where nothing else says, inputs of one row in the second tell whose they are.

    Args:
        models: their paths, or objects. loaded: the same, read. sides, flags: see `sides_of`.

    Raises:
        UsageError: see `sides_of`.
    """
    from mari_onnx.parity.check import find_sides

    first, *others = [Path(each) if isinstance(each, str | os.PathLike) else None for each in models]
    outputs = {path: each for path, each in zip(others, loaded[1:], strict=True) if path is not None}
    found = resolved(loaded[0], first, outputs, sides=sides, **flags)
    return found if found or isinstance(sides, Sides) else find_sides(models, loaded)


def _complete(sides: Sides, flags: dict[str, Any]) -> Sides:
    """Sides that say all, with the form for several requests, which is no side. Raises UsageError: see `sides_of`."""
    tagged = [name for name in flags if flags[name] and name not in ("batched", "index", "index_name")]
    if tagged:
        raise UsageError(
            f"sides is a Sides, which is complete, and {', '.join(f'{name}=' for name in tagged)} says more",
            "give one of the two; dataclasses.replace(sides, ..) changes a Sides",
        )
    given = {name: flags[name] for name in ("batched", "index_name") if flags.get(name)}
    return dataclasses.replace(sides, indices=tuple(flags.get("index", ())) or sides.indices, **given)


def _of_mapping(sides: Mapping[str, str], flags: Mapping[str, Any]) -> dict[str, list[str]]:
    """The patterns of `flags` with the inputs of a mapping. Raises UsageError where it has another side."""
    for name, side in sides.items():
        if side not in SIDES:
            raise UsageError(f"the side of {name!r} is {side!r}", f"one of {', '.join(SIDES)}")
    return {
        side: [*flags.get(side, ()), *(fnmatch_escape(name) for name, each in sides.items() if each == side)]
        for side in SIDES
    }
