"""What a ranking model is fed with: features, their sides, and how wide the model above them is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

Arrays = dict[str, np.ndarray]
USER, ITEM, CROSS = "user", "item", "cross"
ID, SEQUENCE, DENSE = "id", "sequence", "dense"


@dataclass(frozen=True)
class Feature:
    """One model input.

    kind     dtype    shape       meaning
    id       int64    [N]         one category out of `vocab` (0: unknown)
    sequence int64    [N, width]  the user's history of ids of the feature `table`, 0: no event
    dense    float32  [N, width]  numbers
    """

    name: str
    side: str
    kind: str
    vocab: int = 0
    width: int = 0
    table: str = ""


@dataclass(frozen=True)
class Schema:
    """The features of a model in input order, and its sizes.

    dim: width of an embedding; hidden: widths of the fully connected layers; token: width of a
    token of the causal transformer and the mixer; tokens: how many (user, item) tokens the fields
    are cut into; attention: widths of DIN's unit.
    """

    features: tuple[Feature, ...]
    dim: int = 8
    hidden: tuple[int, ...] = (64, 32)
    token: int = 16
    tokens: tuple[int, int] = (6, 2)
    attention: tuple[int, ...] = (32, 16)
    layers: int = 2
    heads: int = 2

    def pick(self, side: str | None = None, kind: str | None = None) -> list[Feature]:
        """The features of a side and a kind, in input order."""
        return [f for f in self.features if side in (None, f.side) and kind in (None, f.kind)]

    def keep(self, kinds: Iterable[str], cross: bool) -> Schema:
        """The schema with the features of `kinds` alone, and with or without the cross side."""
        wanted = set(kinds)
        chosen = [f for f in self.features if f.kind in wanted and (cross or f.side != CROSS)]
        return replace(self, features=tuple(chosen))

    def width(self, features: Iterable[Feature]) -> int:
        """Columns of `features` side by side, a sequence pooled to one embedding."""
        return sum(f.width if f.kind == DENSE else self.dim for f in features)


def interleave(first: list[Feature], second: list[Feature]) -> list[Feature]:
    """Both lists in one, spread evenly: the order that feature lists get as they grow."""
    ranked = [((i + 0.5) / len(part), f) for part in (first, second) for i, f in enumerate(part)]
    return [f for _, f in sorted(ranked, key=lambda pair: pair[0])]
