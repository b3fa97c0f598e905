"""Elements that follow from what a graph does with them: categories, features at their own scale, equal numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mari_onnx.parity.domains.domains import Domain, Link
    from mari_onnx.parity.domains.spread import Spread
    from mari_onnx.parity.domains.thresholds import Values

# One of so many features is drawn around 0 though its scale is another.
_AROUND_ZERO = 0.1
# One of so many is a number that the graph tells apart.
_TOLD_APART = 0.1
_STRINGS = ("a", "b", "c", "")


def strings(values: Values | None, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Categories that the graph knows, and some that it does not."""
    found = rng.choice(np.array(_STRINGS, object), shape)
    if values is not None:
        for place, where in _places(values.shape, shape):
            if values.numbers[place]:
                part = np.asarray(found[where])
                found[where] = rng.choice(np.array(values.numbers[place], object), part.shape)
    return np.asarray(found, object)


def levels(each: Values, value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Places that hold few numbers: of masks 1 up to some place and 0 from there on, or either by chance."""
    found = np.array(value)
    places = [(place, where) for place, where in _places(each.shape, found.shape) if each.numbers[place]]
    prefix = rng.random() < 0.5
    valid = rng.integers(0, len(places) + 1, found.shape[:1])
    for count, (place, where) in enumerate(places):
        part = found[where]
        drawn = rng.choice(np.array(each.numbers[place]), np.shape(part))
        if prefix and each.numbers[place] == (0.0, 1.0) and np.shape(part)[:1] == valid.shape:
            drawn = np.broadcast_to((count < valid).reshape(-1, *(1,) * (np.ndim(part) - 1)), np.shape(part))
        found[where] = drawn
    return found


def addend(dtype: np.dtype, seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask that is added to scores: 0 where an entry is seen, and far below elsewhere. One entry is seen in any case:
    a softmax of nothing is NaN, or rounding."""
    seen = np.array(seen)
    if seen.ndim and seen.shape[-1]:
        seen[..., 0] |= ~seen.any(axis=-1)
    low = rng.choice([-1e9, -1e4, -1e4, -np.inf]) if dtype.itemsize > 2 else rng.choice([-1e4, -np.inf])
    return np.where(seen, 0.0, low).astype(dtype)


def closed(values: Values, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Numbers of which the graph takes no others."""
    found = np.zeros(shape)
    for place, where in _places(values.shape, shape):
        if values.numbers[place]:
            found[where] = rng.choice(np.array(values.numbers[place], np.float64), np.shape(found[where]))
    return found


def spread(each: Spread, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Numbers at the scale that the graph expects, in place of most of those in `drawn`."""
    found = np.array(drawn, np.float64)
    for place, where in _places(each.shape, found.shape):
        for knots in each.options[place]:
            part = found[where]
            at = rng.random(np.shape(part)) * (len(knots) - 1)
            mine = rng.random(np.shape(part)) < (1 - _AROUND_ZERO) / len(each.options[place])
            # Each option takes its share of what is left: nearly the same for few.
            found[where] = np.where(mine, np.interp(at, np.arange(len(knots)), knots), part)
    return found


def told_apart(values: Values, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Finite numbers that the graph tells apart, in place of some of those in `drawn`: together with others they may
    lead further, as in a tree."""
    found = np.array(drawn, np.float64)
    numbers, counts = values.finite
    kept = (1,) * (found.ndim - len(values.shape)) + values.shape
    counts = np.broadcast_to(counts.reshape(kept), found.shape)
    mine = np.flatnonzero((rng.random(found.shape) < _TOLD_APART) & (counts > 0))
    places = np.broadcast_to(np.arange(len(numbers)).reshape(kept), found.shape).reshape(-1)[mine]
    found.reshape(-1)[mine] = numbers[places, rng.integers(0, counts.reshape(-1)[mine])]
    return found


def link(
    arrays: Mapping[str, np.ndarray],
    of_user: Callable[[str, int], bool],
    domains: Mapping[str, Domain],
    links: Sequence[Link],
    rng: np.random.Generator,
) -> None:
    """Makes a third of the elements equal to those of other inputs that the graph compares them with.

    Args:
        arrays: inputs of a request, changed in place, but for what is the user's.
        of_user: whether a column of an input is.
    """
    for each in links:
        ends = [(each.name, each.column), (each.other, each.other_column)]
        shift = each.shift
        if of_user(ends[1][0], ends[1][1] or 0):
            ends, shift = ends[::-1], -shift
        if of_user(ends[1][0], ends[1][1] or 0) or any(name not in arrays for name, _ in ends):
            continue
        (name, column), (other, other_column) = ends
        columns = (column, other_column)
        mine, theirs = arrays[name], arrays[other]
        source = mine if columns[0] is None else mine[..., columns[0] : columns[0] + 1]
        target = theirs if columns[1] is None else theirs[..., columns[1] : columns[1] + 1]
        if not source.size or not target.size:
            continue
        apart = source.shape != target.shape or of_user(name, column or 0)
        drawn = rng.choice(source.reshape(-1), target.shape) if apart else source
        if theirs.dtype.kind in "iuf" and mine.dtype.kind in "iuf":
            moved = drawn.astype(np.float64) + shift
            # equal, or one beside it
            moved = moved + np.where(rng.random(target.shape) < 0.8, 0, rng.integers(-1, 2, target.shape))
            rows = domains[other].rows
            if rows is not None:
                count = rows.reshape(-1)[columns[1] if rows.size > 1 and columns[1] is not None else 0]
                moved = np.where((moved >= 0) & (moved < max(count, 1)), moved, target)
            drawn = moved.astype(theirs.dtype)
        changed = np.where(rng.random(target.shape) < 1 / 3, drawn, target).astype(theirs.dtype)
        if columns[1] is None:
            theirs[...] = changed
        else:
            theirs[..., columns[1] : columns[1] + 1] = changed


def place_of(kept: tuple[int, ...], place: int) -> Any:
    """What one place of a folded shape is in an array."""
    at = np.unravel_index(place, kept)
    return tuple(slice(None) if size == 1 else int(i) for i, size in zip(at, kept, strict=True)) if kept else (...,)


def _places(kept: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[int, Any]]:
    """Places of a folded shape, and what they are in an array."""
    if not kept:
        yield 0, (...,)
        return
    for place in range(int(np.prod(kept))):
        at = np.unravel_index(place, kept)
        yield place, tuple(slice(None) if size == 1 else int(i) for i, size in zip(at, kept, strict=True))
