"""Which free dimensions have to be of one length, such as those of two histories: found by running the source.

Equal symbols say so already. Where dimensions have no symbol, or one each, the source is run with different lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.parity.layout import Layout, symbol_of

if TYPE_CHECKING:
    import onnxruntime

    from mari_onnx.model.signature import Signature
    from mari_onnx.sides.resolve import Sides

_N, _ONE, _OTHER = 3, 4, 5
# Free dimensions of which it is found which belong together; of more, all do.
_MOST = 8


def with_ties(declared: Signature, sides: Sides, made: onnxruntime.InferenceSession) -> Sides:
    """`sides` with one symbol for dimensions that have to be of one length, among its `shapes`.

    Args:
        declared: inputs of the source.
        made: the source.
    """
    layout = Layout(declared, sides)
    names = layout.lengths
    if len(names) < 2 or layout.fixed_n is not None:
        return sides
    runs = _Runs(made, layout)
    if runs.run({name: _ONE + i for i, name in enumerate(names)}) or not runs.run(dict.fromkeys(names, _ONE)):
        return sides
    symbols = {d for i in declared.inputs for d in i.shape if isinstance(d, str)}
    found: dict[str, str] = {}
    for group in _groups(names, runs):
        if len(group) > 1:
            own = [name for name in group if name in symbols and name.isidentifier()]
            symbol = own[0] if own else next(t for k in range(len(names)) if (t := f"T{k or ''}") not in symbols)
            symbols.add(symbol)
            found |= dict.fromkeys(group, symbol)
    shapes = dict(sides.shapes)
    for each in declared.inputs:
        at = layout.axis_at(each.name) if layout.has_candidates(each) else None
        dims = tuple(
            d if isinstance(d, int) or index == at else found.get(symbol_of(each, index), d)
            for index, d in enumerate(each.shape)
        )
        if dims != each.shape:
            shapes[each.name] = dims
    return replace(sides, shapes=shapes)


def _groups(names: Sequence[str], runs: _Runs) -> Iterator[tuple[str, ...]]:
    """The least sets of dimensions such that the source runs with another length for all of a set."""
    left = list(names)
    while left:
        first, *others = left
        sizes = range(len(others) + 1) if len(left) <= _MOST else (len(others),)
        group = next(
            (first, *more)
            for size in sizes
            for more in combinations(others, size)
            if size == len(others) or runs.run({name: _OTHER if name in (first, *more) else _ONE for name in names})
        )
        yield group
        left = [name for name in left if name not in group]


class _Runs:
    """Runs of the source with lengths to try."""

    def __init__(self, made: onnxruntime.InferenceSession, layout: Layout):
        self._made, self._layout = made, layout

    def run(self, lengths: Mapping[str, int]) -> bool:
        """Whether the source runs with these lengths."""
        from mari_onnx import runtime

        layout = self._layout
        shapes = layout.concrete(_N, {**dict.fromkeys(layout.free, 2), **lengths})
        for fill in (0, 1):
            feed = {}
            for each in layout.signature.inputs:
                number = _N if layout.is_count(each.name) else fill
                value = np.full(shapes[each.name], str(number) if each.dtype.kind == "O" else number)
                feed[each.name] = value.astype(each.dtype)
            try:
                runtime.run(self._made, feed, "the source")
                return True
            except MariError:
                continue
        return False
