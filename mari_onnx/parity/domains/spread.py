"""Where the numbers of a feature lie and how far apart they are, by what the graph does with them.

A feature is drawn so that what is computed from it with constants alone is of order one: statistics of a
BatchNormalization, offset and scale of a Scaler, `(x - mean) / std`, `log(1 + x)`; or among the splits of trees and the
edges of buckets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.parity.domains.inverse import invert
from mari_onnx.parity.domains.reactions import attributes
from mari_onnx.parity.domains.trace import folded

if TYPE_CHECKING:
    from mari_onnx.parity.domains.thresholds import Values
    from mari_onnx.parity.domains.trace import Trace
    from mari_onnx.parity.layout import Layout

# Of a normal distribution: as much lies between each two.
NORMAL = (-2.2, -1.15, -0.67, -0.32, 0.0, 0.32, 0.67, 1.15, 2.2)
# What is behind a logarithm.
_LOGARITHMS = (0.0, 0.3, 0.7, 1.4, 2.0, 3.0, 5.0, 8.0)
# Scales and offsets of this size are met by numbers around 0 as well.
_USUAL_SCALE, _USUAL_OFFSET = (0.2, 5.0), 2.5
_MOST = 1e12
# Distributions of a place: a number that a matrix of weights multiplies may have as many as weights.
_OPTIONS = 64
# Splits of a column that numbers are drawn between.
_KNOTS = 64

Knots = tuple[float, ...]


@dataclass(frozen=True)
class Spread:
    """Distributions of the elements of an input.

    Attributes:
        shape: broadcastable to the input.
        options: for each place of `shape`, in C order, distributions, each as numbers between which equal shares lie.
    """

    shape: tuple[int, ...]
    options: tuple[tuple[Knots, ...], ...]


def spreads(trace: Trace) -> dict[str, dict[int, list[Knots]]]:
    """Input -> place -> distributions that are not those around 0."""
    found: dict[str, dict[int, list[Knots]]] = {}
    explained: set[int] = set()
    for tensor, wanted in [*_stated(trace), *_ends(trace)]:
        curve = trace.curves[tensor]
        stated = wanted is not None
        jobs, straight = [], []
        for element in np.flatnonzero(curve.origin >= 0).tolist():
            origin = int(curve.origin[element])
            if trace.kinds[origin] not in "iuf" or (not stated and origin in explained):
                continue
            slope, base = curve.slope[element], curve.base[element]
            numbers = wanted[element] if wanted is not None else NORMAL
            if not np.isnan(slope):
                straight.append((origin, tuple(sorted(float((n - base) / slope) for n in numbers))))
            else:
                numbers = numbers if stated else _reached(curve.y[:, element])
                jobs.append((origin, [(tensor, element, float(n), False) for n in numbers]))
            if stated:
                explained.add(origin)
        answers = invert(trace, [job for _, each in jobs for job in each])
        for origin, each in jobs:
            pairs = [next(answers) for _ in each]
            straight.append((origin, tuple(sorted((low + high) / 2 for low, high in filter(None, pairs)))))
        for origin, knots in straight:
            if len(knots) > 1 and _unusual(knots) and np.isfinite(knots).all() and max(map(abs, knots)) < _MOST:
                name, place = trace.owner(origin)
                mine = found.setdefault(name, {}).setdefault(place, [])
                if len(mine) < _OPTIONS and not any(_close(knots, other) for other in mine):
                    mine.append(knots)
    return found


def _close(knots: Knots, other: Knots) -> bool:
    pairs = zip(knots, other, strict=False)
    return len(knots) == len(other) and all(abs(a - b) <= 1e-8 + 1e-3 * abs(b) for a, b in pairs)


def made(
    layout: Layout, found: dict[int, list[Knots]], name: str, values: Values | None, rows: np.ndarray | None
) -> Spread | None:
    """The spread of one input; numbers that the graph tells apart are distributions of their own, ids have none."""
    kept = folded(layout, name)
    if values is not None and values.shape not in ((), kept):
        values = None
    options: list[tuple[Knots, ...]] = []
    for place in range(int(np.prod(kept))):
        if rows is not None and rows.reshape(-1)[place if rows.size > 1 else 0]:
            options.append(())
            continue
        mine = list(found.get(place, ()))
        numbers = () if values is None else values.numbers[place if values.shape else 0]
        between = _between([n for n in numbers if not isinstance(n, str)])
        options.append((*mine, between) if between else tuple(mine))
    if not any(options):
        return None
    return Spread((), (options[0],)) if len(set(options)) == 1 else Spread(kept, tuple(options))


def _between(numbers: list[float]) -> Knots:
    """Equal shares between numbers that are told apart, and beyond them."""
    known = np.unique([n for n in numbers if np.isfinite(n) and abs(n) < _MOST])
    if not known.size or np.abs(known).max() <= 2 * _USUAL_OFFSET:
        return ()
    # what is only beside a number is no place of its own
    apart = np.concatenate([[True], np.diff(known) > 2.0**-6 * np.maximum(np.abs(known[1:]), 1)])
    known = known[apart]
    if known.size > _KNOTS:
        known = known[np.linspace(0, known.size - 1, _KNOTS).round().astype(int)]
    margin = max(float(np.ptp(known)) / max(known.size - 1, 1), float(np.abs(known).max()) / 4, 1.0)
    return (float(known[0]) - margin, *map(float, known), float(known[-1]) + margin)


def _unusual(knots: Knots) -> bool:
    middle = float(np.median(knots))
    width = (knots[-1] - knots[0]) / (NORMAL[-1] - NORMAL[0])
    return not _USUAL_SCALE[0] <= width <= _USUAL_SCALE[1] or abs(middle) > _USUAL_OFFSET


def _reached(y: np.ndarray) -> Knots:
    """Numbers that an element comes to, of order one, or of a logarithm."""
    finite = y[np.isfinite(y)]
    if not finite.size or finite.size == y.size:
        return ()  # for every number: a bound, a sigmoid, a step
    return _LOGARITHMS


def _stated(trace: Trace) -> Iterator[tuple[str, dict[int, Knots]]]:
    """Tensors of which the graph states location and scale: element -> numbers of its distribution."""
    for node in trace.parts.nodes:
        tensor = node.input[0] if node.input else ""
        curve = trace.curves.get(tensor)
        if curve is None or not curve.origin.size:
            continue
        shape = trace.shape_of(tensor)
        own = attributes(node)
        if node.op_type == "BatchNormalization" and all(t in trace.constants for t in node.input[3:5]):
            mean, variance = (trace.constants[t].astype(np.float64) for t in node.input[3:5])
            if len(shape) < 2 or shape[1] != mean.size:
                continue
            to = (1, mean.size, *(1,) * (len(shape) - 2))
            mean, scale = mean.reshape(to), np.sqrt(np.maximum(variance, 0) + 1e-12).reshape(to)
        elif node.op_type == "Scaler":
            mean = np.asarray(own.get("offset", [0.0]), np.float64)
            scale = np.asarray(own.get("scale", [1.0]), np.float64)
            scale = 1 / np.where(scale == 0, 1, scale)
        elif node.op_type == "Imputer" and (own.get("imputed_value_floats") or own.get("imputed_value_int64s")):
            mean = np.asarray(own.get("imputed_value_floats") or own["imputed_value_int64s"], np.float64)
            scale = np.maximum(np.abs(mean) / 2, 1)
        else:
            continue
        try:
            mean, scale = (np.broadcast_to(each, shape).reshape(-1) for each in (mean, scale))
        except ValueError:
            continue
        yield tensor, {e: tuple(float(mean[e] + scale[e] * z) for z in NORMAL) for e in range(mean.size)}


def _ends(trace: Trace) -> Iterator[tuple[str, None]]:
    """Tensors behind which elements are no longer computed from one input element and constants, or are bent: by a
    Relu, a Sigmoid, a comparison."""
    for tensor, curve in trace.curves.items():
        outputs = [o for n in trace.parts.readers.get(tensor, []) for o in n.output if o]
        if curve.origin.size and (not outputs or not all(_goes_on(trace, o) for o in outputs)):
            yield tensor, None


def _goes_on(trace: Trace, tensor: str) -> bool:
    curve = trace.curves.get(tensor)
    if curve is None or curve.several.any():
        return False
    mine = curve.origin >= 0
    # a logarithm or a root is no straight line, but not a number everywhere either
    return bool((~np.isnan(curve.slope[mine]) | ~np.isfinite(curve.y[:, mine]).all(axis=0)).all())
