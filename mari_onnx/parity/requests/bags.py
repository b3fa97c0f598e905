"""Bags in a request: offsets beside the ids that they cut into one bag per candidate (`sides.bags`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mari_onnx.errors import UsageError

Arrays = Mapping[str, np.ndarray]
Bags = Mapping[str, tuple[str, ...]]


def drawn(total: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Offsets of n bags over so many ids: none is empty where the ids suffice."""
    if total >= n > 0:
        lengths = 1 + rng.multinomial(total - n, np.full(n, 1 / n))
        return np.cumsum(lengths) - lengths
    starts = np.sort(rng.integers(0, total + 1, n))
    starts[:1] = 0
    return starts


def repeated(arrays: Arrays, bags: Bags, n: int) -> dict[str, np.ndarray]:
    """Offsets and ids of n bags that equal the one given."""
    found: dict[str, np.ndarray] = {}
    for offsets, ids in bags.items():
        size = len(arrays[ids[0]])
        found[offsets] = (np.arange(n) * size).astype(arrays[offsets].dtype)
        found |= {name: np.concatenate([arrays[name]] * n) if n else arrays[name][:0] for name in ids}
    return found


def picked(arrays: Arrays, bags: Bags, places: Sequence[int]) -> dict[str, np.ndarray]:
    """Offsets and ids of these candidates alone, in this order."""
    found: dict[str, np.ndarray] = {}
    for offsets, ids in bags.items():
        starts = arrays[offsets]
        ends = np.append(starts[1:], len(arrays[ids[0]]))
        lengths = np.array([max(int(ends[at] - starts[at]), 0) for at in places], np.int64)
        found[offsets] = (np.cumsum(lengths) - lengths).astype(starts.dtype)
        for name in ids:
            pieces = [arrays[name][starts[at] : ends[at]] for at in places]
            found[name] = np.concatenate([arrays[name][:0], *pieces])
    return found


def joined(arrays: Sequence[Arrays], bags: Bags) -> dict[str, np.ndarray]:
    """Offsets and ids of several lists of bags, behind each other."""
    found: dict[str, np.ndarray] = {}
    for offsets, ids in bags.items():
        before = np.cumsum([0, *(len(each[ids[0]]) for each in arrays)])
        starts = [each[offsets] + at for each, at in zip(arrays, before, strict=False)]
        found[offsets] = np.concatenate(starts).astype(arrays[0][offsets].dtype)
        found |= {name: np.concatenate([each[name] for each in arrays]) for name in ids}
    return found


def one(arrays: Arrays, bags: Bags, label: str) -> dict[str, np.ndarray]:
    """The bag that all candidates share, of recorded offsets and ids.

    Raises:
        UsageError: the bags of two candidates differ.
    """
    found: dict[str, np.ndarray] = {}
    for offsets, ids in bags.items():
        n = len(arrays[offsets])
        found[offsets] = np.zeros(1, arrays[offsets].dtype)
        for name in ids:
            value = arrays[name]
            size = len(value) // n if n else 0
            equal = n <= 1 or (
                n * size == len(value)
                and np.array_equal(arrays[offsets], np.arange(n) * size)
                and all(np.array_equal(value[at * size : (at + 1) * size], value[:size]) for at in range(n))
            )
            if not equal:
                raise UsageError(
                    f"{label}: {offsets} and {name} are tagged user, but they hold bags that differ between candidates",
                    "if the bags of a request differ, tag both --item or --cross",
                )
            found[name] = value[:size] if n else value[:0]
    return found
