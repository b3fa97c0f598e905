"""What the requests of a check reached, and what not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mari_onnx.parity.coverage.goals import KINDS, Goal

# Of each node at most so many things that were not reached are named.
_NAMED = 20


@dataclass
class Coverage:
    """Coverage of one check.

    Attributes:
        counts: kind of goal (`goals.KINDS`) -> (met, in all), over both models; a node that both have counts once, a
            table once for all its lookups.
        missed: one a node where something was not reached: `model`, `node`, `op`, `kind`, `met`, `of` and `what`.
        candidates, lengths: smallest and largest N, and size of free dimensions, that were fed; None where there is
            none.
        tries: requests that were tried to reach more; `kept` those of them that did, which were compared.
        digest: SHA-256 of all requests that were compared, by which two checks can be told to have fed the same.
    """

    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    missed: list[dict[str, Any]] = field(default_factory=list)
    candidates: tuple[int, int] | None = None
    lengths: tuple[int, int] | None = None
    tries: int = 0
    kept: int = 0
    digest: str = ""

    def __str__(self) -> str:
        parts = [f"{met:,} of {of:,} {KINDS[kind]}" for kind, (met, of) in self.counts.items()]
        for symbol, sizes in (("T", self.lengths), ("N", self.candidates)):
            if sizes is not None:
                low, high = sizes
                parts.append(f"{symbol} {low}" if low == high else f"{symbol} {low}..{high}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "text": str(self),
            **{kind: {"met": met, "of": of} for kind, (met, of) in self.counts.items()},
            "candidates": self.candidates,
            "lengths": self.lengths,
            "tries": self.tries,
            "kept": self.kept,
            "digest": self.digest,
            "missed": self.missed,
        }


def summed(goals: Mapping[str, Iterable[Goal]]) -> tuple[dict[str, tuple[int, int]], list[dict[str, Any]]]:
    """Counts by kind, and what was missed.

    Args:
        goals: model -> its goals; the first model's stand for those of the others at the same tensors.
    """
    merged: dict[tuple[Any, ...], tuple[str, list[Goal]]] = {}
    for model, each in goals.items():
        for goal in each:
            known = merged.setdefault(goal.same, (model, []))
            if known[0] == model:
                known[1].append(goal)
    counts: dict[str, tuple[int, int]] = {}
    missed = []
    for kind in KINDS:
        for model, same in merged.values():
            if same[0].kind != kind:
                continue
            reached = np.logical_or.reduce([goal.met for goal in same])
            met, of = counts.get(kind, (0, 0))
            counts[kind] = (met + int(np.count_nonzero(reached)), of + reached.size)
            if not reached.all():
                texts = [same[0].text(int(at)) for at in np.flatnonzero(~reached)[:_NAMED]]
                missed.append(
                    {"model": model, "node": same[0].node, "op": same[0].op, "kind": kind,
                     "met": int(np.count_nonzero(reached)), "of": reached.size, "what": texts}
                )  # fmt: skip
    return counts, missed


def digest(arrays: Sequence[Mapping[str, np.ndarray]]) -> str:
    """SHA-256 over names, types, shapes and values of all inputs of all requests."""
    import hashlib

    found = hashlib.sha256()
    for each in arrays:
        for name in sorted(each):
            value = np.ascontiguousarray(each[name])
            found.update(f"{name} {value.dtype.str} {value.shape}".encode())
            found.update(repr(value.tolist()).encode() if value.dtype.kind == "O" else value.tobytes())
    return found.hexdigest()
