"""Which axis of each input counts the candidates: by declared shapes, and where these say nothing, by running the
source on a few sizes. An input's axis is the candidates' only if the source demands it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations, islice
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.model.signature import Input, signature
from mari_onnx.parity.bags import with_bags
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.ties import with_ties
from mari_onnx.sides.bags import pairs
from mari_onnx.sides.candidates import Told, axes_within, by_shape, decided
from mari_onnx.sides.row_index import refuse_row_indices, with_picked
from mari_onnx.sides.shapes import reshaped

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from mari_onnx.runtime import ModelLike
    from mari_onnx.sides.resolve import Sides

_N = 3
# Ways to tell doubtful inputs apart that are tried.
_RUNS = 64


def with_axes(model: onnx.ModelProto, sides: Sides, run: ModelLike | None = None) -> Sides:
    """`sides` with the candidate axis of every input, bags, and one symbol for dimensions of one length.

    Args:
        model: the source.
        run: the source, to be run on sizes where shapes do not tell; None: only what shapes say.

    Raises:
        UsageError: the candidates are on another axis than `sides.candidate_axis`, every batch is fixed at 1, an
            index of user rows is tagged user or is none, or nothing tells whether an input of the user's is offsets
            of bags.
    """
    shaped = reshaped(model, sides.shapes)
    told = by_shape(signature(shaped), with_picked(shaped, sides))
    refuse_row_indices(shaped, told.sides)
    graph, declared = shaped.graph, signature(shaped)
    made: onnxruntime.InferenceSession | None = None
    several = len(Layout(declared, told.sides).lengths) > 1
    if run is not None and (told.doubtful or several or pairs(graph, declared, told.sides)):
        from mari_onnx import runtime

        with suppress(MariError):
            made = runtime.session(run if shaped is model else shaped, optimize=False, what="the source")
    sides = told.sides
    if made is not None and told.doubtful:
        with suppress(MariError):
            found = _tried(made, declared.inputs, sides, told.doubtful)
            sides = sides if found is None else decided(told, found)
    if made is not None and sides:
        sides = with_ties(declared, sides, made)
    return with_bags(graph, declared, sides, made)


def _tried(
    made: onnxruntime.InferenceSession, inputs: Sequence[Input], sides: Sides, groups: Sequence[tuple[str, ...]]
) -> list[str] | None:
    """The most inputs of `groups` that may have another length than N; None where the source runs on nothing."""
    from mari_onnx import runtime

    doubtful = [name for group in groups for name in group]
    for own in islice(_subsets(groups), _RUNS):
        here = decided(Told(sides, tuple(groups)), own)
        shapes, n = _shapes(inputs, here, [name for name in doubtful if name in own])
        for fill in (0, 1):  # zeros are in range of every table, ones are what lengths and divisors have to be
            feed = {i.name: np.full(shapes[i.name], _value(i, fill), i.dtype) for i in inputs}
            feed |= {i.name: np.full(shapes[i.name], n, i.dtype) for i in inputs if i.name in sides.counts}
            with suppress(MariError):
                runtime.run(made, feed, "the source")
                return own
    return None


def _value(each: Input, fill: int) -> int | str:
    return str(fill) if each.dtype.kind == "O" else fill


def _subsets(groups: Sequence[tuple[str, ...]]) -> Iterator[list[str]]:
    for size in range(len(groups), -1, -1):
        for chosen in combinations(groups, size):
            yield [name for group in chosen for name in group]


def _shapes(inputs: Sequence[Input], sides: Sides, own: Sequence[str]) -> tuple[dict[str, tuple[int, ...]], int]:
    """Sizes to try, and N: N for the candidates, another length for what is tried to be free of it."""
    lengths, found = dict[str, int](), {}
    rows = axes_within(inputs, sides)
    counting = {name: axis for name, axis in sides.axes.items() if axis is not None}
    axes = axes_within(inputs, replace(sides, axes=counting))
    at = {i.name: i.shape[axes[i.name]] for i in inputs if i.name in axes}
    n = next((d for name in rows if isinstance(d := at[name], int) and d > 1 and sides.side(name) != "user"), _N)
    for name, dim in at.items():
        if isinstance(dim, str) and (name in own or name in rows):
            lengths[dim] = n + 2 if name in own else n
    for each in inputs:
        shape = [d if isinstance(d, int) else lengths.get(d or "", n + 1) for d in each.shape]
        if each.name in at and at[each.name] is None and (each.name in own or each.name in rows):
            shape[axes[each.name]] = n + 2 if each.name in own else n
        found[each.name] = tuple(shape)
    return found, n
