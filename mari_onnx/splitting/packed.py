"""Packed inputs `[N, F]`, whose columns are features of the user and of others.

In: the manifest of a split, and what a request feeds. Out: what of it says who the user is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from mari_onnx.model.signature import Input, Signature
from mari_onnx.sides.resolve import resolve
from mari_onnx.splitting.manifest import Manifest
from mari_onnx.splitting.rows import Arrays

Columns = Mapping[str, tuple[int, ...]]


def user_columns(manifest: Manifest) -> Columns:
    """Packed input -> which of its columns are the user's."""
    if not any(each.side == "packed" for each in manifest.inputs):
        return {}
    inputs = tuple(Input(each.name, np.dtype(object), each.shape, True, each.dtype) for each in manifest.inputs)
    sides = resolve(Signature(inputs, ()), metadata=json.dumps(manifest.sides))
    return {name: tuple(parts.get("user", ())) for name, parts in sides.columns.items()}


def of_user(features: Arrays, columns: Columns) -> Arrays:
    """The user's features: of a packed input its columns of the user in the first row, which are equal in all rows. An
    array of another shape stays as it is, to be refused by who reads it.
    """

    def of(name: str, array: np.ndarray) -> np.ndarray:
        mine = columns.get(name)
        fits = mine is not None and np.ndim(array) == 2 and np.shape(array)[1] > max(mine, default=-1)
        return np.asarray(array)[:1, mine] if fits else array

    return {name: of(name, array) for name, array in features.items()}
