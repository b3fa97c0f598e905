"""Requests: one user against N candidates, drawn so that every input looks as the graph expects it.

Ids come from a shuffled deck of the rows of the table they index, so that no row is met twice
before all were met once; lengths, masks and padding of one side agree with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx.parity.domains.domains import Domains
from mari_onnx.parity.domains.trace import folded
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.requests import elements
from mari_onnx.parity.requests.coverage import Meeting
from mari_onnx.parity.requests.edge_users import Edge, start
from mari_onnx.parity.requests.id_deck import Deck

if TYPE_CHECKING:
    from mari_onnx.model.signature import Input
    from mari_onnx.parity.domains.domains import Domain
    from mari_onnx.parity.domains.texts import Joint

__all__ = ["Deck", "Drawer", "Layout", "Request"]

_FREE_LENGTHS = (5, 1, 12, 2, 20, 3)


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

    def axis_of(self, name: str) -> int:
        """The candidate axis of an input, if it has one."""
        return self.axes.get(name, self.axis)

    def feed(self, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        """Arrays for a graph's inputs (anything with `name` and `shape`): a user input gets its one
        row where the graph declares length 1 on the candidate axis, else N equal rows."""
        found: dict[str, np.ndarray] = {}
        for each in inputs:
            if each.name in self.user:
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
        rows = {k: np.take(v, [place], axis=self.axis_of(k)) for k, v in self.rows.items()}
        counts = {k: np.full_like(v, 1) for k, v in self.counts.items()}
        return replace(self, rows=rows, counts=counts, n=1, label=f"candidate {place} of {self.label}", further="")

    @property
    def empty(self) -> bool:
        """Whether it has no candidate, or a free dimension of 0."""
        return self.n == 0 or 0 in self.free.values()

    def arrays(self) -> dict[str, np.ndarray]:
        """All inputs by name, user inputs with one row: what `--dump` writes and `--data` reads."""
        return {**self.user, **self.rows, **self.literal, **self.counts}


class Drawer:
    """Draws requests for one model; the same seed draws the same requests.

    Args:
        positive: floats are.
        ordinary: as in `Meeting`.
    """

    def __init__(
        self,
        layout: Layout,
        domains: Mapping[str, Domain],
        seed: int | Sequence[int] = 0,
        positive: bool = False,
        ordinary: bool = True,
    ):
        self.layout, self.domains, self.positive, self.ordinary = layout, domains, positive, ordinary
        self.rng = np.random.default_rng(seed)
        self.decks: dict[tuple[str, int], Deck] = {}
        self.meeting = Meeting(layout, domains, ordinary)
        self._drawn = 0
        # What a user is in several joints -> these.
        self._agreeing: dict[frozenset[tuple[str, int, float | str]], list[Joint]] = {}

    def request(
        self,
        n: int,
        *,
        extreme: float | None = None,
        full: bool = False,
        meet: bool = False,
        edge: Edge | None = None,
        alike: bool = False,
        free: Mapping[str, int] | None = None,
        large: tuple[int, int] | None = None,
    ) -> Request:
        """One request of n candidates.

        Args:
            extreme: floats are multiplied by this.
            full: no padding, all lengths at their longest (for coverage of ids).
            meet: all else gives way to numbers that the graph tells apart.
            edge: what is out of the ordinary about the user.
            alike: some elements equal those of other inputs that the graph compares them with.
            free: sizes of free dimensions, where they are not as usual.
            large: whole numbers that may be anything lie between these powers of two.
        """
        given = free or {}
        free = {
            name: int(_FREE_LENGTHS[(self._drawn + i) % len(_FREE_LENGTHS)]) if not full else 20
            for i, name in enumerate(self.layout.free)
        }
        if self.layout.requests is not None:
            free[self.layout.requests] = 32 if full else 1 + self._drawn % 3
        self._drawn += 1
        label = f"seed request {self._drawn} (N={n}{', ' + edge.label if edge else ''})"
        layout = self.layout
        made = Request({}, {}, n, {}, layout.axis, label, edge, whole=layout.whole, axes=layout.axes)
        lengths: dict[tuple[bool, int], np.ndarray] = {}
        if edge is not None:  # long enough to have a first, a last and some in between
            free = {name: max(length, 4) for name, length in free.items()}
        made.free = free = {**free, **given}
        pool = start(self.domains, self.rng) if edge is not None and edge.repeats else 0
        for each in self.layout.signature.inputs:
            columns = self.layout.sides.columns.get(each.name)
            shape = self.layout.shape(each, n, free)
            state = _State(lengths, extreme, full, max(free.values(), default=0), edge, pool, meet, alike)
            state.large = large
            # A mask beside a length says the same as it.
            lengths_too = any(self.domains[i.name].role == "length" for i in self.layout.signature.inputs)
            state.scattered, state.real = self._drawn % 4 == 3 and not lengths_too, self._drawn % 2 == 0
            if columns is not None:
                mine = columns.get("user", ())
                row = self._array(each, (1, *shape[1:]), True, state, mine)
                rest = [c for c in range(shape[1]) if c not in set(mine)]
                value = self._array(each, shape, False, state, rest)
                value[:, list(mine)] = row[:, list(mine)]
                made.rows[each.name] = value
            elif self.layout.is_count(each.name):
                made.counts[each.name] = np.full(shape, n, each.dtype)
            elif self.layout.is_user(each.name):
                made.user[each.name] = self._array(each, shape, True, state)
            else:
                value = self._array(each, shape, self.layout.of_user(each.name), state)
                (made.literal if self.layout.axis_of(each.name) is None else made.rows)[each.name] = value
        if alike and isinstance(self.domains, Domains):
            elements.link(made.arrays(), self.layout.is_user_at, self.domains, self.domains.links, self.rng)
            self.join(made)
        return made

    def join(self, request: Request, first: int | None = None) -> None:
        """Gives elements of several inputs what they have to be together (`elements.join`)."""
        joints = self.domains.joints if isinstance(self.domains, Domains) else ()
        if not joints:
            return
        if not self._agreeing:
            for joint in joints:
                self._agreeing.setdefault(self._of_user(joint), []).append(joint)
        at = joints[int(self.rng.integers(0, len(joints))) if first is None else first % len(joints)]
        user = self._of_user(at)
        same, free = self._agreeing[user], self._agreeing.get(frozenset(), []) if user else []
        start, shapes = same.index(at), {i.name: folded(self.layout, i.name) for i in self.layout.signature.inputs}
        elements.join(request.arrays(), shapes, user, [*same[start:], *same[:start], *free], self.rng)

    def _of_user(self, joint: Joint) -> frozenset[tuple[str, int, float | str]]:
        return frozenset(part for part in joint.parts if self.layout.is_user_at(*part[:2]))

    def coverage(self, user: bool | None = None) -> dict[str, tuple[int, int]]:
        """Input (or `input[:, column]`) -> (rows met, rows in all), of one side or all."""
        return {
            self._deck_label(name, column): (deck.covered, deck.rows)
            for (name, column), deck in self.decks.items()
            if user is None or user == self.layout.is_user_at(name, column)
        }

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
        value = self._filled(each, shape, user, state, columns)
        if state.large is not None and isinstance(self.domains, Domains) and each.name not in self.domains.sizing:
            value = self._larger(each, value, state.large)
        if not state.alike:
            self.meeting.seen(each, value, columns)
        return value

    def _filled(
        self,
        each: Input,
        shape: tuple[int, ...],
        user: bool,
        state: _State,
        columns: Sequence[int] | None,
    ) -> np.ndarray:
        domain = self.domains[each.name]
        # numpy answers a scalar for no dimensions, which onnxruntime does not take
        value = np.asarray(self._plain(each, domain, shape, user, state), each.dtype)
        if domain.levels is not None and not (domain.real and state.real and state.edge is None):
            value = elements.levels(domain.levels, value, self.rng)
        padding = np.zeros((), np.int64) if domain.padding is None else domain.padding
        edge = state.edge if user else None
        usual = state.edge is None and state.extreme is None and not (domain.values and domain.values.closed)
        if domain.values is not None and usual and (domain.role != "mask" or state.real or state.meet):
            value = np.array(value, order="C")
            self.meeting.deal(each, value, columns, self.rng, state.meet)
        if domain.rows is None:
            if edge is not None and each.dtype.kind in "iu" and domain.role == "plain":
                value = np.where(edge.valid(shape, None, columns), value, padding).astype(each.dtype)
            return value
        valid = np.ones(shape, bool)
        if edge is not None:
            valid = edge.valid(shape, domain.rows, columns)
            value = np.where(valid, value, padding if edge.padding else 0).astype(each.dtype)
        elif not state.full and len(shape) >= 2 and self._is_sequence(each, domain):
            seen = (
                np.arange(shape[-1]) < self._lengths(shape[:-1], shape[-1], user, state)[..., None]
            )
            # The deck deals to places that are not padded.
            valid = np.broadcast_to(seen, shape)
            value = np.where(valid, value, padding).astype(each.dtype)
        rows = domain.rows.reshape((1,) * (len(shape) - domain.rows.ndim) + domain.rows.shape)
        places = (
            [(0, int(rows.flat[0]))] if rows.size == 1 else list(enumerate(rows.ravel().tolist()))
        )
        for place, count in places:
            if not count or (columns is not None and rows.size > 1 and place not in columns):
                continue
            deck = self.decks.get((each.name, place))
            if deck is None:
                known = [] if domain.values is None else domain.values.numbers[place]
                first = [n for n in known if not isinstance(n, str)]
                if len(shape) > 1 and shape[-1] > 1:  # a history should not begin with what stands for no entry
                    first = [n for n in first if n not in padding]
                deck = self.decks[each.name, place] = Deck(count, self.rng, first)
            where: tuple[Any, ...] = (...,)
            if rows.size > 1:
                at = np.unravel_index(place, rows.shape)
                where = tuple(
                    slice(None) if size == 1 else i for i, size in zip(at, rows.shape, strict=True)
                )
            part, mask = value[where], valid[where]
            size = int(mask.sum())
            if state.edge is not None and state.edge.repeats:
                dealt = state.edge.deal(self.rng, state.pool, count, size, user)
            elif state.alike:
                dealt = self.rng.integers(0, count, size)
            else:
                dealt = deck.deal(size, state.meet)
            if part.ndim:
                part[mask] = dealt.astype(value.dtype)
            elif mask:
                value[where] = dealt[0]
        return value

    def _larger(self, each: Input, value: np.ndarray, powers: tuple[int, int]) -> np.ndarray:
        """Whole numbers in place of those that may be anything, or that are ids once a hash was taken of them."""
        domain = self.domains[each.name]
        closed = domain.values is not None and domain.values.closed
        if each.dtype.kind not in "iu" or each.dtype.itemsize < 4 or domain.role != "plain" or closed:
            return value
        free = np.array(domain.levels is None)
        if domain.rows is not None:
            free = free & ((domain.rows == 0) | (False if domain.hashed is None else domain.hashed))
        most = float(np.iinfo(each.dtype).max) / 2
        drawn = np.minimum(2.0 ** self.rng.uniform(*powers, value.shape), most).astype(each.dtype)
        drawn |= self.rng.integers(0, 2**16, value.shape).astype(each.dtype)  # a float has zeros there
        free = free.reshape((1,) * (value.ndim - free.ndim) + free.shape)
        return np.where(free, drawn, value).astype(each.dtype)

    def _is_sequence(self, each: Input, domain: Domain) -> bool:
        last = each.shape[-1]
        if domain.rows is not None and domain.rows.size > 1:
            return False
        if not isinstance(last, int) or domain.padding is not None:
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
            if state.full:
                drawn = np.full(shape, longest)
            elif state.meet and not user:
                wanted = self.meeting.lengths(False)[: drawn.size]
                drawn.reshape(-1)[: len(wanted)] = np.minimum(wanted, longest)
            elif user and state.edge is not None:
                drawn = np.full(shape, longest if state.edge.length is None else min(state.edge.length, longest))
            state.lengths[key] = drawn
        return state.lengths[key]

    def _addend(self, shape: tuple[int, ...], user: bool, state: _State) -> np.ndarray:
        """What a mask that is added to scores lets through: the first entries, in some requests any."""
        if len(shape) < 2 or state.scattered:
            return self.rng.random(shape) < 0.6
        return np.arange(shape[-1]) < self._lengths(shape[:-1], shape[-1], user, state)[..., None]

    def _plain(
        self, each: Input, domain: Domain, shape: tuple[int, ...], user: bool, state: _State
    ) -> np.ndarray:
        """Everything but ids."""
        rng, dtype = self.rng, each.dtype
        if dtype.kind == "O":
            return elements.strings(domain.values, shape, rng)
        if domain.values is not None and domain.values.closed and dtype.kind in "iuf":
            return elements.closed(domain.values, shape, rng).astype(dtype)
        if domain.role == "length":
            longest = domain.size or state.free_length or 1
            if len(shape) > 1 and shape[-1] == 1:
                drawn = self._lengths(shape[:-1], longest, user, state)[..., None]
            else:
                drawn = self._lengths(shape, longest, user, state)
            lengths: np.ndarray = np.maximum(drawn, domain.low).astype(dtype)
            return lengths
        if domain.role == "addend" and not state.real:
            return elements.addend(dtype, self._addend(shape, user, state), rng)
        mask = domain.role == "mask" and not (domain.real and state.real and state.edge is None)
        if mask and len(shape) > 1 and not (state.scattered and state.edge is None):
            if user and state.edge is not None:
                seen = state.edge.seen(np.arange(shape[-1]), shape[-1])
                seen = seen if state.edge.masks is None else np.full(seen.shape, state.edge.masks)
                return np.broadcast_to(seen, shape).astype(dtype)
            seen = (
                np.arange(shape[-1]) < self._lengths(shape[:-1], shape[-1], user, state)[..., None]
            )
            return np.broadcast_to(seen, shape).astype(dtype)
        if dtype.kind == "b" or mask:
            return (rng.random(shape) < 0.6).astype(dtype)
        if dtype.kind in "iu":
            whole = np.asarray(rng.integers(0, 10, shape))
            if domain.spread is not None and self.ordinary and state.edge is None:
                ends = np.iinfo(dtype)
                whole = np.clip(np.round(elements.spread(domain.spread, whole, rng)), ends.min, ends.max)
            return whole.astype(dtype)
        drawn = rng.standard_normal(shape)
        if self.positive or domain.role == "positive":
            drawn = np.abs(drawn) + 1e-3
        else:
            drawn = np.where(rng.random(shape) < 0.1, 0.0, drawn)
        if domain.spread is not None:
            drawn = elements.spread(domain.spread, drawn, rng)
        if domain.values is not None and self.ordinary and state.extreme is None:
            drawn = elements.told_apart(domain.values, drawn, rng)
        if domain.positive is not None:
            drawn = np.where(domain.positive, np.abs(drawn) + 1e-3, drawn)
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
    edge: Edge | None = None
    # The first id that repeats.
    pool: int = 0
    meet: bool = False
    alike: bool = False
    # Masks are no prefix; what may be a mask holds other numbers.
    scattered: bool = False
    real: bool = False
    large: tuple[int, int] | None = None
