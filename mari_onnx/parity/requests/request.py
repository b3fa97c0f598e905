"""One request: a user and N candidates, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx.parity.requests import bags

if TYPE_CHECKING:
    from mari_onnx.parity.requests.edge_users import Edge


@dataclass
class Request:
    """One run's inputs.

    Attributes:
        user: user-side inputs, one row on the candidate axis; those in `whole` as they are.
        rows: inputs with N rows (item, cross, packed).
        n: number of candidates.
        literal: inputs without a side, as they are, and those of items that keep their own dimensions.
        axis: the candidate axis.
        axes: candidate axes of inputs that have another one, by name.
        bags: offsets and the inputs that they cut; of the user's there is one bag.
        label: where it comes from, for messages.
        edge: what is out of the ordinary about its user, or None.
        whole: user-side inputs without a candidate axis, or with a dimension of their own in its place.
        free: sizes of free dimensions.
        counts: inputs whose value is n.
        further: why it was drawn beside the check's own: "size", "ids" or "varied"; "" for the check's own.
    """

    user: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    n: int
    literal: dict[str, np.ndarray] = field(default_factory=dict)
    axis: int = 0
    label: str = ""
    edge: Edge | None = None
    free: dict[str, int] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    further: str = ""
    axes: Mapping[str, int] = field(default_factory=dict)
    bags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def axis_of(self, name: str) -> int:
        """The candidate axis of an input, if it has one."""
        return self.axes.get(name, self.axis)

    def feed(self, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        """Arrays for a graph's inputs (anything with `name` and `shape`): a user input gets its one
        row where the graph declares length 1 on the candidate axis, else N equal rows."""
        found: dict[str, np.ndarray] = {}
        several = {i.name for i in inputs if i.name in self.user and list(i.shape[:1]) != [1]} & self.bags.keys()
        repeated = bags.repeated(self.user, {name: self.bags[name] for name in several}, self.n)
        for each in inputs:
            if each.name in repeated:
                found[each.name] = repeated[each.name]
            elif each.name in self.user:
                row, axis = self.user[each.name], self.axis_of(each.name)
                # one row where the graph takes one, or where there are no rows, as of a scalar or a history
                of_graph = each.shape[axis] if len(each.shape) > axis else None
                once = of_graph == 1 or row.ndim <= axis or each.name in self.whole
                found[each.name] = row if once else np.repeat(row, self.n, axis=axis)
            elif each.name in self.rows:
                found[each.name] = self.rows[each.name]
            elif each.name in self.literal:
                found[each.name] = self.literal[each.name]
            elif each.name in self.counts:
                found[each.name] = self.counts[each.name]
        return found

    def alone(self, place: int) -> Request:
        """The same for one of the candidates alone."""
        made = self.of_candidates([place])
        counts = {k: np.full_like(v, 1) for k, v in self.counts.items()}
        return replace(made, counts=counts, n=1, label=f"candidate {place} of {self.label}", further="")

    def of_candidates(self, places: Sequence[int]) -> Request:
        """The same with the rows of these candidates, in this order; `n` and `counts` are left as they are."""
        rows = {k: np.take(v, places, axis=self.axis_of(k)) for k, v in self.rows.items()}
        mine = {name: ids for name, ids in self.bags.items() if name in self.rows}
        cut = bags.picked({**self.rows, **self.literal}, mine, places)
        literal = {k: cut.get(k, v) for k, v in self.literal.items()}
        return replace(self, rows={k: cut.get(k, v) for k, v in rows.items()}, literal=literal)

    @property
    def empty(self) -> bool:
        """Whether it has no candidate, or a free dimension of 0."""
        return self.n == 0 or 0 in self.free.values()

    def arrays(self) -> dict[str, np.ndarray]:
        """All inputs by name, user inputs with one row: what `--dump` writes and `--data` reads."""
        return {**self.user, **self.rows, **self.literal, **self.counts}
