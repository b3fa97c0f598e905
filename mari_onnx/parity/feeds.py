"""Requests: one user against N candidates, drawn so that every input looks as the graph expects it.

Ids come from a shuffled deck of the rows of the table they index, so that no row is met twice
before all were met once; lengths, masks and padding of one side agree with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx.parity.ranges import Domain

if TYPE_CHECKING:
    from mari_onnx.model.signature import Input, Signature
    from mari_onnx.sides import Sides

# A deck of more rows than this is not shuffled whole; its ids are drawn at random.
_SHUFFLED_ROWS = 2**21
_FREE_LENGTHS = (5, 1, 12, 2, 20, 3)
_SEQUENCE_WORDS = ("hist", "seq", "behav", "recent", "past")


@dataclass
class Request:
    """One run's inputs.

    Attributes:
        user: user-side inputs, one row on the candidate axis.
        rows: inputs with N rows (item, cross, packed).
        n: number of candidates.
        literal: inputs without a side, as they are.
        axis: the candidate axis.
        label: where it comes from, for messages.
    """

    user: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    n: int
    literal: dict[str, np.ndarray] = field(default_factory=dict)
    axis: int = 0
    label: str = ""

    def feed(self, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        """Arrays for a graph's inputs (anything with `name` and `shape`): a user input gets its one
        row where the graph declares length 1 on the candidate axis, else N equal rows."""
        found: dict[str, np.ndarray] = {}
        for each in inputs:
            if each.name in self.user:
                row = self.user[each.name]
                single = len(each.shape) > self.axis and each.shape[self.axis] == 1
                found[each.name] = row if single else np.repeat(row, self.n, axis=self.axis)
            elif each.name in self.rows:
                found[each.name] = self.rows[each.name]
            elif each.name in self.literal:
                found[each.name] = self.literal[each.name]
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """All inputs by name, user inputs with one row: what `--dump` writes and `--data` reads."""
        return {**self.user, **self.rows, **self.literal}


class Layout:
    """Which dimension of which input is N, and which are free.

    Attributes:
        axis: the candidate axis; 1 where nothing is tagged and the graph has the `[R, N, ...]`
            layout.
        fixed_n: the only N that the graph takes, or None.
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
                i.shape[self.axis]
                for i in signature.inputs
                if self.tagged(i.name) and len(i.shape) > self.axis
            ]
            self._candidates = {d for d in at if isinstance(d, str)}
        self.fixed_n = self._fixed()
        self.free = self._free_symbols()

    def tagged(self, name: str) -> bool:
        return name in self.sides.inputs or name in self.sides.columns

    def is_user(self, name: str) -> bool:
        return self.sides.side(name) == "user"

    def shape(self, each: Input, n: int, free: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape of an input for N = n; user inputs have one row."""
        found = []
        for index, dim in enumerate(each.shape):
            if index == self.axis and self.tagged(each.name):
                found.append(1 if self.is_user(each.name) else n)
            elif isinstance(dim, int):
                found.append(dim)
            elif dim in self._candidates or (dim is None and index == self.axis):
                found.append(n)
            else:
                found.append(free[_symbol(each, index)])
        return tuple(found)

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
            i.shape[self.axis]
            for i in self.signature.inputs
            if len(i.shape) > self.axis and (self.tagged(i.name) or len(i.shape) > 1)
        ]
        numbers = [d for d in literal if isinstance(d, int)]
        tagged = [
            i.shape[self.axis]
            for i in self.signature.inputs
            if self.tagged(i.name) and not self.is_user(i.name) and len(i.shape) > self.axis
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
                at_axis = index == self.axis and (self.tagged(each.name) or dim is None)
                if not isinstance(dim, int) and dim not in self._candidates and not at_axis:
                    found[_symbol(each, index)] = None
        return list(found)


def _symbol(each: Input, index: int) -> str:
    dim = each.shape[index]
    return str(dim) if dim is not None else f"{each.name}:{index}"


class Deck:
    """Ids 0 to rows-1 in random order, dealt without repetition until all are out."""

    def __init__(self, rows: int, rng: np.random.Generator):
        self.rows, self.dealt, self._rng = rows, 0, rng
        self._cards = np.empty(0, np.int64)
        self._ends = [rows - 1, 0] if rows > _SHUFFLED_ROWS else []

    def deal(self, count: int) -> np.ndarray:
        self.dealt += count
        if self.rows > _SHUFFLED_ROWS:
            found = self._rng.integers(0, self.rows, count)
            while self._ends and count:  # both ends are met first
                count -= 1
                found[count] = self._ends.pop()
            return found
        while len(self._cards) < count:
            self._cards = np.concatenate([self._cards, self._rng.permutation(self.rows)])
        found, self._cards = self._cards[:count], self._cards[count:]
        return found

    @property
    def covered(self) -> int:
        """Rows met at least once (an upper bound where the deck is too large to shuffle)."""
        return min(self.dealt, self.rows)


class Drawer:
    """Draws requests for one model; the same seed draws the same requests."""

    def __init__(
        self, layout: Layout, domains: Mapping[str, Domain], seed: int = 0, positive: bool = False
    ):
        self.layout, self.domains, self.positive = layout, domains, positive
        self.rng = np.random.default_rng(seed)
        self.decks: dict[tuple[str, int], Deck] = {}
        self._drawn = 0

    def request(self, n: int, *, extreme: float | None = None, full: bool = False) -> Request:
        """One request of n candidates.

        Args:
            extreme: floats are multiplied by this.
            full: no padding, all lengths at their longest (for coverage of ids).
        """
        free = {
            name: int(_FREE_LENGTHS[(self._drawn + i) % len(_FREE_LENGTHS)]) if not full else 20
            for i, name in enumerate(self.layout.free)
        }
        if (
            self.layout.axis == 1 and self.layout.free
        ):  # the first free symbol is the number of requests R
            free[self.layout.free[0]] = 32 if full else 1 + self._drawn % 3
        self._drawn += 1
        made = Request({}, {}, n, {}, self.layout.axis, f"seed request {self._drawn} (N={n})")
        lengths: dict[tuple[bool, int], np.ndarray] = {}
        for each in self.layout.signature.inputs:
            columns = self.layout.sides.columns.get(each.name)
            shape = self.layout.shape(each, n, free)
            state = _State(lengths, extreme, full, max(free.values(), default=0))
            if columns is not None:
                mine = columns.get("user", ())
                row = self._array(each, (1, *shape[1:]), True, state, mine)
                rest = [c for c in range(shape[1]) if c not in set(mine)]
                value = self._array(each, shape, False, state, rest)
                value[:, list(mine)] = row[:, list(mine)]
                made.rows[each.name] = value
            elif self.layout.is_user(each.name):
                made.user[each.name] = self._array(each, shape, True, state)
            else:
                value = self._array(each, shape, False, state)
                (made.rows if self.layout.tagged(each.name) else made.literal)[each.name] = value
        return made

    def coverage(self, user: bool | None = None) -> dict[str, tuple[int, int]]:
        """Input (or `input[:, column]`) -> (rows met, rows in all), of one side or all."""
        return {
            self._deck_label(name, column): (deck.covered, deck.rows)
            for (name, column), deck in self.decks.items()
            if user is None or user == self._deck_is_user(name, column)
        }

    def _deck_is_user(self, name: str, column: int) -> bool:
        packed = self.layout.sides.columns.get(name)
        return column in packed.get("user", ()) if packed is not None else self.layout.is_user(name)

    def _deck_label(self, name: str, column: int) -> str:
        several = sum(other == name for other, _ in self.decks) > 1
        return f"{name}[:, {column}]" if several else name

    def _array(
        self,
        each: Input,
        shape: tuple[int, ...],
        user: bool,
        state: _State,
        columns: Sequence[int] | None = None,
    ) -> np.ndarray:
        domain = self.domains[each.name]
        # numpy answers a scalar for no dimensions, which onnxruntime does not take
        value = np.asarray(self._plain(each, domain, shape, user, state), each.dtype)
        if domain.rows is None:
            return value
        valid = np.ones(shape, bool)
        if not state.full and len(shape) >= 2 and self._is_sequence(each, domain):
            seen = (
                np.arange(shape[-1]) < self._lengths(shape[:-1], shape[-1], user, state)[..., None]
            )
            # The deck deals to places that are not padded.
            valid = np.broadcast_to(seen, shape)
            value = np.where(valid, value, np.zeros((), value.dtype))
        rows = domain.rows.reshape((1,) * (len(shape) - domain.rows.ndim) + domain.rows.shape)
        places = (
            [(0, int(rows.flat[0]))] if rows.size == 1 else list(enumerate(rows.ravel().tolist()))
        )
        for place, count in places:
            if not count or (columns is not None and rows.size > 1 and place not in columns):
                continue
            deck = self.decks.get((each.name, place))
            if deck is None:
                deck = self.decks[each.name, place] = Deck(count, self.rng)
            where: tuple[Any, ...] = (...,)
            if rows.size > 1:
                at = np.unravel_index(place, rows.shape)
                where = tuple(
                    slice(None) if size == 1 else i for i, size in zip(at, rows.shape, strict=True)
                )
            part, mask = value[where], valid[where]
            dealt = deck.deal(int(mask.sum()))
            if part.ndim:
                part[mask] = dealt.astype(value.dtype)
            elif mask:
                value[where] = dealt[0]
        return value

    def _is_sequence(self, each: Input, domain: Domain) -> bool:
        last = each.shape[-1]
        if domain.rows is not None and domain.rows.size > 1:
            return False
        if not isinstance(last, int) or any(w in each.name.lower() for w in _SEQUENCE_WORDS):
            return True
        return any(
            (d.role == "mask" and s.shape and s.shape[-1] == last)
            or (d.role == "length" and d.size == last)
            for s, d in ((s, self.domains[s.name]) for s in self.layout.signature.inputs)
        )

    def _lengths(self, shape: Sequence[int], longest: int, user: bool, state: _State) -> np.ndarray:
        """Lengths from 0 to `longest`, the same for all inputs of a side in a request."""
        key = (user, longest)
        if key not in state.lengths or state.lengths[key].shape != tuple(shape):
            drawn = self.rng.integers(0, longest + 1, shape)
            drawn = np.where(self.rng.random(shape) < 0.3, longest, drawn)
            state.lengths[key] = np.full(shape, longest) if state.full else drawn
        return state.lengths[key]

    def _plain(
        self, each: Input, domain: Domain, shape: tuple[int, ...], user: bool, state: _State
    ) -> np.ndarray:
        """Everything but ids."""
        rng, dtype = self.rng, each.dtype
        if dtype.kind == "O":
            return rng.choice(np.array(["a", "b", "c", ""], object), shape)
        if domain.role == "length":
            longest = domain.size or state.free_length or 1
            if len(shape) > 1 and shape[-1] == 1:
                drawn = self._lengths(shape[:-1], longest, user, state)[..., None]
            else:
                drawn = self._lengths(shape, longest, user, state)
            return np.maximum(drawn, domain.low).astype(dtype)
        if domain.role == "mask" and len(shape) > 1:
            seen = (
                np.arange(shape[-1]) < self._lengths(shape[:-1], shape[-1], user, state)[..., None]
            )
            return np.broadcast_to(seen, shape).astype(dtype)
        if dtype.kind == "b" or domain.role == "mask":
            return (rng.random(shape) < 0.6).astype(dtype)
        if dtype.kind in "iu":
            return np.asarray(rng.integers(0, 10, shape)).astype(dtype)
        drawn = rng.standard_normal(shape)
        if self.positive or domain.role == "positive":
            drawn = np.abs(drawn) + 1e-3
        else:
            drawn = np.where(rng.random(shape) < 0.1, 0.0, drawn)
        if state.extreme is not None:
            drawn = drawn * state.extreme
        return np.asarray(drawn).astype(dtype)


@dataclass
class _State:
    """What the inputs of one request share."""

    lengths: dict[tuple[bool, int], np.ndarray]
    extreme: float | None
    full: bool
    free_length: int
