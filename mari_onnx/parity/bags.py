"""Which inputs are offsets of bags, found by running the source: row n has to be made from bag n alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, islice
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError, UsageError
from mari_onnx.parity.layout import Layout
from mari_onnx.sides.bags import pairs, region

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from mari_onnx.model.signature import Signature
    from mari_onnx.sides.resolve import Sides

# Ids of bags, of which the first and the last differ in sum, mean and largest.
_BAGS = ((0, 1), (1, 1, 0), (1,))
_RUNS = 32


def with_bags(
    graph: onnx.GraphProto, declared: Signature, sides: Sides, made: onnxruntime.InferenceSession | None
) -> Sides:
    """`sides` with the inputs that are bags.

    Args:
        declared: inputs of the source.
        made: the source; None where it is not to be run.

    Raises:
        UsageError: something of the user's is cut by an input that is tagged user, and no run tells that it cuts bags,
            or that it is the same for all candidates.
    """
    found = {name: ids for name, ids in pairs(graph, declared, sides).items() if name not in sides.bags}
    if not found:
        return sides
    bags, plain = None, False
    layout = Layout(declared, sides)
    if made is not None and layout.fixed_n is None:
        runs = _Runs(made, layout)
        bags = next((some for some in islice(_subsets(found), _RUNS) if runs.are_bags(some)), None)
        plain = bags is None and runs.are_plain()
    for name, ids in found.items():
        part = region(graph, name, ids) if sides.side(name) == "user" else None
        if part is not None and part.cuts and not plain and name not in (bags or {}):
            raise UsageError(
                f"nothing tells whether {name!r}, which is tagged user, says where bags of {', '.join(ids)} begin: "
                "then its rows differ between candidates although the bags are equal",
                f"let the check run the source; or write it in the side file, as [bags] and {name} = "
                f"{list(ids)}; or tag these inputs --cross",
            )
    return replace(sides, bags={**sides.bags, **(bags or {})})


def _subsets(found: Mapping[str, tuple[str, ...]]) -> Iterator[dict[str, tuple[str, ...]]]:
    for size in range(len(found), 0, -1):
        for names in combinations(found, size):
            yield {name: found[name] for name in names}


class _Runs:
    """Runs of the source on equal rows, but for what is tried to be bags."""

    def __init__(self, made: onnxruntime.InferenceSession, layout: Layout):
        self._made, self._layout = made, layout
        self._axis = layout.axis

    def are_bags(self, bags: Mapping[str, tuple[str, ...]]) -> bool:
        """Whether row n is made from bag n alone, of all these inputs, and bags with other ids give other rows."""
        for fill in (0, 1):
            together = self._run(bags, _BAGS, fill)
            apart = [self._run(bags, [bag], fill) for bag in _BAGS]
            if together is None or any(one is None for one in apart):
                continue
            rows = [self._row(one or (), 0, 1) for one in apart]
            if all(_same(self._row(together, n, len(_BAGS)), row) for n, row in enumerate(rows)):
                if not _same(rows[0], rows[2]):
                    return True
            else:
                return False
        return False

    def are_plain(self) -> bool:
        """Whether rows are equal where the rows of these inputs are."""
        for fill in (0, 1):
            together, apart = (self._run({}, [()] * n, fill) for n in (len(_BAGS), 1))
            if together is None or apart is None:
                continue
            first = self._row(apart, 0, 1)
            return all(_same(self._row(together, n, len(_BAGS)), first) for n in range(len(_BAGS)))
        return False

    def _run(
        self, bags: Mapping[str, tuple[str, ...]], drawn: Sequence[Sequence[int]], fill: int
    ) -> list[np.ndarray] | None:
        """The outputs on one row per bag; None where the source fails."""
        from mari_onnx import runtime

        n, layout = len(drawn), self._layout
        shapes = layout.concrete(n, dict.fromkeys(layout.free, 4))
        flat = np.concatenate([np.asarray(bag, np.int64) for bag in drawn])
        starts = np.cumsum([0, *map(len, drawn)])[:-1]
        lists = {name for ids in bags.values() for name in ids}
        feed = {}
        for each in layout.signature.inputs:
            if each.name in bags:
                value = starts
            elif each.name in lists:
                shape = (len(flat), *(1 for _ in each.shape[1:]))
                value = np.broadcast_to(flat.reshape(shape), (len(flat), *shapes[each.name][1:]))
            else:
                number = n if layout.is_count(each.name) else fill
                value = np.full(shapes[each.name], str(number) if each.dtype.kind == "O" else number)
            feed[each.name] = np.ascontiguousarray(value).astype(each.dtype)
        try:
            return runtime.run(self._made, feed, "the source")
        except MariError:
            return None

    def _row(self, outputs: Sequence[np.ndarray], n: int, of: int) -> list[np.ndarray]:
        axis = self._axis
        return [o.take(n, axis) for o in outputs if o.dtype.kind in "fiu" and o.ndim > axis and o.shape[axis] == of]


def _same(rows: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return len(rows) == len(others) and all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
        for a, b in zip(rows, others, strict=True)
    )
