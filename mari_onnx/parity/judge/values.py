"""Outputs of every ONNX type as arrays, so that all of them are compared in the same way.

A tensor is itself. A sequence or a map is two arrays: the numbers in it, and how they are arranged (the shapes in the
sequence, the keys of the maps), which must be the same in both models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mari_onnx.model.signature import Input


def places(outputs: Sequence[Input]) -> list[slice]:
    """Where the arrays of each output stand in what `arrays` answers."""
    found: list[slice] = []
    for each in outputs:
        start = found[-1].stop if found else 0
        found.append(slice(start, start + (1 if _is_tensor(each) else 2)))
    return found


def arrays(values: Sequence[Any], outputs: Sequence[Input]) -> list[np.ndarray]:
    """The arrays of all outputs of one run, numbers before their arrangement.

    Args:
        values: what the runtime answered: arrays, lists, dictionaries, None for an empty optional.
        outputs: of the model that was run, in the same order.
    """
    found: list[np.ndarray] = []
    for value, each in zip(values, outputs, strict=True):
        found += [np.asarray(value)] if _is_tensor(each) else parts(value, each.held)
    return found


def parts(value: Any, held: np.dtype | None = None) -> list[np.ndarray]:
    """The numbers and the arrangement of one sequence or map; of a tensor itself the latter is its shape.

    Args:
        held: element type of the numbers, where it is known though there may be none.
    """
    if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
        return _of_maps(value, held)
    return _of_sequence(value, held)


def _is_tensor(output: Input) -> bool:
    return "(" not in output.type


def _of_maps(value: dict[Any, Any] | list[dict[Any, Any]], held: np.dtype | None) -> list[np.ndarray]:
    """Numbers by map and key, and the keys. Maps of the same keys make a matrix with a row per map."""
    alone = isinstance(value, dict)
    maps: list[dict[Any, Any]] = [value] if isinstance(value, dict) else value
    ordered = [sorted(each) for each in maps]
    if all(each == ordered[0] for each in ordered):
        keys = _keys(ordered[0])
        numbers = np.array([[each[k] for k in keys] for each in maps], held)
        return [numbers[0], keys] if alone else [numbers, np.broadcast_to(keys, numbers.shape)]
    flat = [each[k] for each, its in zip(maps, ordered, strict=True) for k in its]
    return [np.array(flat, held), _keys([f"{at}: {k}" for at, its in enumerate(ordered) for k in its])]


def _keys(keys: Sequence[Any]) -> np.ndarray:
    found = np.empty(len(keys), object)
    found[:] = keys
    return found


def _of_sequence(value: Any, held: np.dtype | None) -> list[np.ndarray]:
    """The tensors joined along their last axis where they fit, else end to end; and their shapes."""
    tensors = [np.asarray(each) for each in value] if isinstance(value, list) else [np.asarray(value, held)]
    if value is None or not tensors:
        return [np.zeros(0, held), _keys(["nothing"] if value is None else [])]
    shapes = {each.shape for each in tensors}
    if len(shapes) == 1:  # what has a scale of its own is then a column
        joined = np.stack(tensors, axis=-1)
    elif len({s[:-1] for s in shapes if s}) == 1 and () not in shapes:
        joined = np.concatenate(tensors, axis=-1)
    else:
        joined = np.concatenate([each.reshape(-1) for each in tensors])
    return [joined, _keys([str(list(each.shape)) for each in tensors])]
