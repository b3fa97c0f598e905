"""Numbers that a graph tells apart, for each input element: what it is compared with, and what is next to that.

A model may choose a branch by `domain == 302`, and be wrong in that branch alone; numbers drawn at random do not get
there. `sites.py` finds the comparisons, `probe.py` which input element each looks at, and by which factor and offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.parity.domains.comparisons import Site
from mari_onnx.parity.domains.dependence import Probe

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.layout import Layout

# Beside a float threshold, relative: more than rounding of what is calculated from it, in float16 too; and where
# nothing is calculated.
_BESIDE, _NEXT = 2.0**-8, 2.0**-20
# Numbers above these are limits of a type rather than values, or would drown all else in the output's scale.
_MOST_WHOLE, _MOST_FLOAT = 2.0**53, 1e6
# Further apart than every division by a constant, and exact in float32 and int32.
_FAR = 2**20
# What a bound on one side lets through moves by more than this on so long a way; a modulo, as a rule, does not.
_BOUNDED = 1000
# Of so many units is a step, where numbers are rounded; a number of every type.
_STEPS = 100
# Comparisons of more elements than this are not looked into.
_ELEMENTS = 2**16


@dataclass(frozen=True)
class Values:
    """What the elements of an input should be at least once.

    Attributes:
        shape: broadcastable to the input.
        numbers: for each place of `shape`, in C order, the numbers; what is only next to one comes last.
    """

    shape: tuple[int, ...]
    numbers: tuple[tuple[float, ...], ...]

    def within(self, rows: np.ndarray) -> Values:
        """Of an input whose elements are ids, of so many rows (as in `Domain`): those that are ids, in their shape."""
        if rows.size == 1:
            together = dict.fromkeys(n for numbers in self.numbers for n in numbers)
            return Values((), (tuple(n for n in together if 0 <= n < rows.flat[0]),))
        numbers = self.numbers if self.shape else self.numbers * rows.size
        kept = zip(numbers, rows.reshape(-1).tolist(), strict=True)
        return Values(rows.shape, tuple(tuple(n for n in own if not count or 0 <= n < count) for own, count in kept))


def values(model: onnx.ModelProto, layout: Layout, sites: Sequence[Site]) -> dict[str, Values]:
    """Of inputs whose elements a graph compares with numbers.

    Args:
        model: the source; its large weights may be unloaded external data.
        sites: its comparisons.
    """
    found: dict[str, dict[int, dict[float, int]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    left = list(sites)
    for unit in (1, _FAR, -_FAR):  # numbers that are divided, or bounded from one side, move only if they move far
        probe = _probed(model, layout, left, unit)
        if probe is None:
            continue
        left = [site for site in left if not _gather(site, probe, unit, layout, found, shapes)]
        if not left:
            break
    return {name: _folded(layout, name, shapes[name], places) for name, places in found.items()}


def _probed(model: onnx.ModelProto, layout: Layout, sites: Sequence[Site], unit: int) -> Probe | None:
    tensors = [site.tensor for site in sites]
    narrow = any(i.dtype.itemsize < 4 for i in layout.signature.inputs if i.dtype.kind in "iuf")
    unsigned = any(i.dtype.kind == "u" for i in layout.signature.inputs)
    if not tensors or (narrow and unit != 1) or (unsigned and unit < 0):
        return None
    for length in (5, 1):  # of free dimensions: a graph may refuse one
        try:
            probe = Probe(model, layout, tensors, length, unit, whole=False)
        except MariError:
            continue
        return probe if probe.names else None
    return None


def _gather(
    site: Site,
    probe: Probe,
    unit: int,
    layout: Layout,
    found: dict[str, dict[int, dict[float, int]]],
    shapes: dict[str, tuple[int, ...]],
) -> bool:
    """Adds what one site compares to `found`; False where no input element moves it, or not as its first step does.

    Args:
        found: input -> its element, in C order -> number -> 0, or 1 where it is only next to one that is compared.
        shapes: of the inputs in `found`.
    """
    if site.tensor not in probe.names:
        return True
    known = probe.moved(site.tensor)
    if not known.any():
        return False
    even = np.ones(1, bool)
    base = probe.zeros[site.tensor]
    slope = (probe.ones[site.tensor] - base) / unit
    if unit != 1:
        try:  # no modulo, no bound: what moves twice as far is twice as much
            second, third = (probe.answer(k * unit)[site.tensor] for k in (2, 3))
        except MariError:
            return True
        first = probe.ones[site.tensor]
        straight = np.abs((second - base) / (2 * unit) - slope) <= 1e-4 * np.abs(slope)
        # a bound on the side of 0 alone: the line is that of what is beyond it
        beyond = (second - first) / unit
        offset = first - beyond * unit
        bounded = np.abs(third - second - beyond * unit) <= 1e-4 * np.abs(beyond * unit)
        bounded &= np.abs(beyond * unit) > _BOUNDED
        bounded &= (beyond == np.round(beyond)) | (np.abs(offset - base) > 1 + 1e-6 * np.abs(beyond * unit))
        known &= straight | bounded
        slope, base = np.where(bounded, beyond, slope), np.where(bounded, offset, base)
        if not known.any():
            return False
    elif any(i.dtype.kind == "f" for i in layout.signature.inputs):
        try:  # what is rounded or bounded moves in another way further on
            even = (np.abs((probe.answer(_STEPS)[site.tensor] - base) / _STEPS - slope) <= 1e-4 * np.abs(slope))[known]
        except MariError:
            even = np.ones(1, bool)
    try:
        size = int(np.prod(np.broadcast_shapes(base.shape, site.numbers.shape)))
        if size > _ELEMENTS:
            return True
        parts = np.broadcast_arrays(probe.origin[site.tensor], base, slope, known, site.numbers.astype(np.float64))
    except ValueError:
        return True
    origin, base, slope, known, number = (p.reshape(-1) for p in parts)
    known = known & np.isfinite(number)
    rows = np.stack([origin[known] - 1, (number[known] - base[known]) / slope[known], slope[known]], axis=1)
    for place, at, each in np.unique(rows, axis=0):
        name, index = probe.element(int(place))
        dtype = next(i.dtype for i in layout.signature.inputs if i.name == name)
        shapes[name] = probe.shape(name)
        wanted = _wanted(site, float(at), float(each), dtype, unit != 1)
        mine = found.setdefault(name, {}).setdefault(index, {})
        for order, each_wanted in enumerate(wanted):
            mine[each_wanted] = min(mine.get(each_wanted, 1), int(site.op == "Equal" and order > 0))
    return bool(even.all())


def _wanted(site: Site, at: float, slope: float, dtype: np.dtype, divided: bool) -> list[float]:
    """Numbers of an element that a comparison turns at `at`; those first that the graph names."""
    if dtype.kind in "iu" or (site.whole and abs(slope) == 1):
        return _whole(site.op, at, slope, dtype, divided)
    if abs(at) > min(_MOST_FLOAT, float(np.finfo(dtype).max) / 4):
        return []
    if site.whole:  # the middle of what becomes the number, and of what is beside it
        return [at + k / (2 * slope) for k in (1, -1, 3)]
    beside = [max(abs(at), 1.0) * part for part in (_BESIDE, _NEXT)]
    if not site.moved_only:  # so near to it the answer hangs on rounding, and two right models may differ
        return [at - beside[0], at + beside[0]]
    return [at, *(at + sign * part for part in beside for sign in (1, -1))]


def _whole(op: str, at: float, slope: float, dtype: np.dtype, divided: bool) -> list[float]:
    step = max(round(1 / abs(slope)), 1) if divided else 1
    most = min(_MOST_WHOLE, np.iinfo(dtype).max) if dtype.kind in "iu" else 2.0 ** (np.finfo(dtype).nmant + 1)
    if abs(at) + step > most:
        return []
    at = round(at) if divided else at
    first, last = int(np.floor(at)), int(np.ceil(at))
    if op == "Equal" and first != last:
        return []  # never equal
    turns_below = op != "Equal" and (op in ("Less", "GreaterOrEqual")) == (slope > 0)
    # Below 0 only where the comparison turns there: a negative number may be no valid input.
    least = first - (op != "Equal") * step if at < 0 or (at == 0 and turns_below) else 0
    least = max(least, 0) if dtype.kind == "u" else least
    near = dict.fromkeys([first, last, last + 1, first - 1, first + step, first - step])
    return [float(n) for n in near if n >= least]


def _folded(layout: Layout, name: str, shape: tuple[int, ...], places: dict[int, dict[float, int]]) -> Values:
    """Along the candidate axis and free axes numbers are put together; all places, where they have the same."""
    each = next(i for i in layout.signature.inputs if i.name == name)
    axis = layout.axis if layout.tagged(name) else None
    kept = tuple(
        1 if not isinstance(declared, int) or index == axis else size
        for index, (declared, size) in enumerate(zip(each.shape, shape, strict=True))
    )
    together: dict[int, dict[float, int]] = {}
    for index, numbers in places.items():
        at = [min(int(i), size - 1) for i, size in zip(np.unravel_index(index, shape), kept, strict=True)]
        place = int(np.ravel_multi_index(at, kept)) if kept else 0
        mine = together.setdefault(place, {})
        for number, rank in numbers.items():
            mine[number] = min(mine.get(number, 1), rank)
    ordered = {place: tuple(sorted(numbers, key=lambda n: numbers[n])) for place, numbers in together.items()}
    found = tuple(ordered.get(place, ()) for place in range(int(np.prod(kept))))
    if len(set(found)) == 1 and name not in layout.sides.columns:
        return Values((), found[:1])
    return Values(kept, found)
