"""Which dimension of which input is the candidates', and which are free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mari_onnx.model.signature import Input, Signature
    from mari_onnx.sides.resolve import Sides


class Layout:
    """Which dimension of which input is N, and which are free.

    Attributes:
        axis: the candidate axis of inputs that have none of their own in `axes`; 1 where nothing is tagged and the
            graph has the `[R, N, ...]` layout.
        fixed_n: the only N that the graph takes, or None.
        whole: user-side inputs without a candidate axis, or with a dimension of their own in its place.
        free: names of free dimensions; `lengths` those of them that are no number of requests, which is `requests`
            (before the candidates, as in the `[R, N, ...]` layout), or None.
    """

    def __init__(self, signature: Signature, sides: Sides):
        self.signature = signature
        self.sides = sides
        self.axis = sides.candidate_axis
        self._candidates: set[str] = set()
        untagged = [i for i in signature.inputs if not self.tagged(i.name)]
        if len(untagged) == len(signature.inputs):
            self._untagged_axis()
        else:
            at = [
                i.shape[self.axis_at(i.name)]
                for i in signature.inputs
                # Behind axis 0 a user's input may have a dimension of its own there, such as its history.
                if self._has_axis(i) and not self._by_name_alone(i.name)
            ]
            self._candidates = {d for d in at if isinstance(d, str)}
        self.fixed_n = self._fixed()
        self.free = self._free_symbols()
        first = [i.shape[0] for i in signature.inputs if self.axis == 1 and i.shape]
        self.requests = next((name for name in self.free if name in first), None)
        self.whole = frozenset(
            i.name for i in signature.inputs if self.is_user(i.name) and not self.has_candidates(i)
        )
        self.lengths = [name for name in self.free if name != self.requests]

    @property
    def candidate_names(self) -> frozenset[str]:
        """What the graph calls N."""
        return frozenset(self._candidates)

    def tagged(self, name: str) -> bool:
        return name in self.sides.inputs or name in self.sides.columns

    def axis_of(self, name: str) -> int | None:
        """The candidate axis of an input that has a side; None where it keeps its own dimensions."""
        return self.sides.axis_of(name) if self.tagged(name) else None

    def axis_at(self, name: str) -> int:
        """The axis of an input that counts candidates, where one does."""
        axis = self.axis_of(name)
        return self.axis if axis is None else axis

    @property
    def axes(self) -> dict[str, int]:
        """Candidate axes other than `axis`, by input name."""
        return {n: at for n, at in self.sides.axes.items() if at is not None and at != self.axis and self.tagged(n)}

    def _by_name_alone(self, name: str) -> bool:
        """Whether only the name of its dimension tells that a user's input has the candidate axis."""
        return bool(self.axis_at(name)) and self.is_user(name) and not self.sides.surely_counts(name)

    def _has_axis(self, each: Input) -> bool:
        axis = self.axis_of(each.name)
        return axis is not None and len(each.shape) > axis

    def bags(self, user: bool) -> dict[str, tuple[str, ...]]:
        """Offsets of bags and the inputs that they cut, of the user or of candidates."""
        return {name: ids for name, ids in self.sides.bags.items() if self.is_user(name) == user}

    def is_count(self, name: str) -> bool:
        """Whether an input's value is N."""
        return name in self.sides.counts

    def is_user(self, name: str) -> bool:
        return self.sides.side(name) == "user"

    def is_user_at(self, name: str, column: int) -> bool:
        """Whether a column of an input is the user's; of an input that is not packed, any."""
        packed = self.sides.columns.get(name)
        return column in packed.get("user", ()) if packed is not None else self.is_user(name)

    def of_user(self, name: str) -> bool:
        """Whether an input has no candidates: tagged so, or without a side and without N."""
        if self.tagged(name) or self.is_count(name):
            return self.is_user(name)
        shape = next(i.shape for i in self.signature.inputs if i.name == name)
        named = any(d in self._candidates for d in shape) or (len(shape) > self.axis and shape[self.axis] is None)
        return bool(shape) and self.fixed_n is None and not named

    def has_candidates(self, each: Input) -> bool:
        """Whether the candidate axis of a tagged input is the candidates'. In the `[R, N, ...]` layout only its name
        tells that of a user's input, as in the engine."""
        if not self._has_axis(each):
            return False
        return not self._by_name_alone(each.name) or each.shape[self.axis_at(each.name)] in self._candidates

    def shape(self, each: Input, n: int, free: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape of an input for N = n; user inputs have one row."""
        found, axis = [], self.axis_at(each.name)
        for index, dim in enumerate(each.shape):
            if index == axis and self.has_candidates(each):
                found.append(1 if self.is_user(each.name) else n)
            elif isinstance(dim, int):
                found.append(dim)
            elif dim in self._candidates or (dim is None and index == axis and not self.tagged(each.name)):
                found.append(n)
            else:
                found.append(free[symbol_of(each, index)])
        return tuple(found)

    def concrete(self, n: int, free: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Shapes of all inputs with n rows each, the user's too where they are declared so."""
        found = {}
        for each in self.signature.inputs:
            shape, axis = list(self.shape(each, n, free)), self.axis_at(each.name)
            if self.is_user(each.name) and self.has_candidates(each) and each.shape[axis] != 1:
                shape[axis] = n
            found[each.name] = tuple(shape)
        return found

    def candidates_of(self, each: Input, array: np.ndarray) -> int | None:
        """The N that an untagged input has, by the names of its dimensions."""
        places = [p for p, dim in enumerate(each.shape) if dim in self._candidates]
        return int(array.shape[places[0]]) if places else None

    def _untagged_axis(self) -> None:
        inputs, outputs = self.signature.inputs, self.signature.outputs
        first = {i.shape[0] for i in inputs if i.shape and isinstance(i.shape[0], str)}
        second = [i.shape[1] for i in inputs if len(i.shape) > 1 and isinstance(i.shape[1], str)]
        of_outputs = {o.shape[1] for o in outputs if len(o.shape) > 1}
        both = [s for s in second if s in of_outputs and s not in first]
        if (
            not both
        ):  # outputs may call it otherwise; a history's length is on one input, N mostly on several
            both = [s for s in second if s not in first and second.count(s) > 1]
        if both:
            self.axis, self._candidates = 1, {str(both[0])}
        elif self.axis == 0:
            self._candidates = {str(s) for s in first}

    def _fixed(self) -> int | None:
        literal = [
            i.shape[self.axis_at(i.name)]
            for i in self.signature.inputs
            if len(i.shape) > self.axis_at(i.name)
            and (self.has_candidates(i) if self.tagged(i.name) else len(i.shape) > 1)
        ]
        numbers = [d for d in literal if isinstance(d, int)]
        tagged = [
            i.shape[self.axis_at(i.name)]
            for i in self.signature.inputs
            if self._has_axis(i) and not self.is_user(i.name)
        ]
        own = [d for d in tagged if isinstance(d, int)]
        if own:
            return int(own[0])
        if any(not isinstance(d, int) for d in literal):
            return None
        return int(max(numbers)) if numbers else None

    def _free_symbols(self) -> list[str]:
        found: dict[str, None] = {}
        for each in self.signature.inputs:
            for index, dim in enumerate(each.shape):
                free = dim is None and not self.tagged(each.name)
                at_axis = index == self.axis_at(each.name) and (self.has_candidates(each) or free)
                if not isinstance(dim, int) and dim not in self._candidates and not at_axis:
                    found[symbol_of(each, index)] = None
        return list(found)


def symbol_of(each: Input, index: int) -> str:
    dim = each.shape[index]
    return str(dim) if dim is not None else f"{each.name}:{index}"
