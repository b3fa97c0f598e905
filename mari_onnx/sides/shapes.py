"""Dimensions that the caller gives, where a file lacks or fixes them: `--shape NAME=N,32`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mari_onnx.errors import NoSuchInput, UsageError
from mari_onnx.model.signature import Input, Signature, dimension
from mari_onnx.sides.patterns import METADATA_KEY, Shape, as_lists, dimensions, listed

if TYPE_CHECKING:
    import onnx

def read(text: str) -> tuple[str, Shape]:
    """Name and dimensions of `NAME=N,32`; `?` is an unknown dimension, nothing behind `=` is a scalar.

    Raises:
        UsageError: it is no such text.
    """
    name, equals, dims = text.rpartition("=")
    if not equals or not name:
        raise UsageError(f"--shape {text} is not of the form NAME=DIMS", "write it as --shape item_id=N,32")
    return name, dimensions([d.strip() for d in dims.split(",")] if dims.strip() else [], name)


def text_of(shape: Shape) -> str:
    """The dimensions as `N,32`."""
    return ",".join("?" if d is None else str(d) for d in shape)


def given_for(shapes: Mapping[str, Shape], metadata: str | None) -> Mapping[str, Shape]:
    """`shapes` for a model with this `mari_onnx.sides`: an output of `optimize` has those of its source already."""
    if metadata is None or not shapes:
        return shapes
    try:
        own = json.loads(metadata).get("shapes", {})
    except (ValueError, AttributeError):
        return shapes
    return {} if own == as_lists(shapes) else shapes


def with_shapes(signature: Signature, shapes: Mapping[str, Shape]) -> Signature:
    """The signature with these dimensions.

    Raises:
        NoSuchInput: there is no input of a name.
        UsageError: an input has another number of dimensions, or another size that is not 1.
    """
    names = [each.name for each in signature.inputs]
    for name in shapes:
        if name not in names:
            raise NoSuchInput(f"there is no input {name!r} to give a shape", f"inputs are: {listed(names)}")
    inputs = [_with_shape(each, shapes[each.name]) if each.name in shapes else each for each in signature.inputs]
    return replace(signature, inputs=tuple(inputs))


def _with_shape(each: Input, shape: Shape) -> Input:
    if each.rank_known and len(shape) != len(each.shape):
        raise UsageError(
            f"--shape {each.name}={text_of(shape)} has {len(shape)} dimensions, the file says {each.text}",
            f"give {len(each.shape)} of them",
        )
    for old, new in zip(each.shape, shape, strict=False):
        if isinstance(old, int) and isinstance(new, int) and old != new:
            raise UsageError(
                f"--shape {each.name}={text_of(shape)} says {new} where the file fixes {old}: {each.text}",
                "only a symbol such as N can take the place of a fixed number",
            )
    return replace(each, shape=tuple(shape), rank_known=True)


def reshaped(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> onnx.ModelProto:
    """The model with these dimensions of its inputs; the given one, which is only read, where nothing differs.

    What the file says of inner tensors and of outputs is dropped where it has a number that has become a symbol.
    Raises as `with_shapes`.
    """
    import onnx

    from mari_onnx.model.signature import signature

    metadata = next((p.value for p in model.metadata_props if p.key == METADATA_KEY), None)
    shapes = given_for(shapes, metadata)
    declared = signature(model)
    wanted = with_shapes(declared, shapes)
    if wanted == declared:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    freed: set[int] = set()
    for info in made.graph.input:
        if info.name not in shapes:
            continue
        old = [dimension(d) for d in info.type.tensor_type.shape.dim]
        freed |= {a for a, b in zip(old, shapes[info.name], strict=False) if isinstance(a, int) and a != b}
        info.type.tensor_type.ClearField("shape")
        info.type.tensor_type.shape.SetInParent()
        for size in shapes[info.name]:
            dim = info.type.tensor_type.shape.dim.add()
            if isinstance(size, int):
                dim.dim_value = size
            elif size is not None:
                dim.dim_param = size
    for info in (*made.graph.output, *made.graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value in freed:
                dim.Clear()
    return made


def merged(layers: Iterable[Mapping[str, Shape]]) -> dict[str, Shape]:
    """The shapes of several sources, of which the first counts."""
    found: dict[str, Shape] = {}
    for layer in layers:
        for name, shape in layer.items():
            found.setdefault(name, shape)
    return found
