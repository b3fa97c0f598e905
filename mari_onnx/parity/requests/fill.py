"""Fills the inputs of a request.

Ids come from a shuffled deck of the rows of the table they index, so that no row is met twice
before all were met once; lengths, masks and padding of one side agree with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx.parity.domains.domains import Domains
from mari_onnx.parity.requests import elements
from mari_onnx.parity.requests.coverage import Meeting
from mari_onnx.parity.requests.edge_users import Edge
from mari_onnx.parity.requests.id_deck import Deck

if TYPE_CHECKING:
    from mari_onnx.model.signature import Input
    from mari_onnx.parity.domains.domains import Domain
    from mari_onnx.parity.layout import Layout


@dataclass
class State:
    """What the inputs of one request share."""

    lengths: dict[tuple[bool, int, str], np.ndarray]
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
    # Inputs that are lengths have one each.
    apart: bool = False
    large: tuple[int, int] | None = None
    # Large whole numbers lie no further than this power of two beyond one of them.
    apart_by: int | None = None
    # Floats that are rounded together are multiples of a half.
    halves: bool = False


class Filler:
    """Fills inputs one by one, in the order of the signature.

    Args:
        positive: floats are.
        ordinary: as in `Meeting`.

    Attributes:
        decks: input and place -> ids that are left to deal; `meeting` has the numbers that a graph tells apart.
    """

    def __init__(
        self,
        layout: Layout,
        domains: Mapping[str, Domain],
        rng: np.random.Generator,
        positive: bool,
        ordinary: bool,
    ):
        self.layout, self.domains, self.rng = layout, domains, rng
        self.positive, self.ordinary = positive, ordinary
        self.decks: dict[tuple[str, int], Deck] = {}
        self.meeting = Meeting(layout, domains, ordinary)

    def array(
        self,
        each: Input,
        shape: tuple[int, ...],
        user: bool,
        state: State,
        columns: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Values of an input.

        Args:
            shape: concrete.
            user: they are the user's.
            state: what the inputs of one request share.
            columns: of a packed input the only ones that are filled as they should be.
        """
        value = self._filled(each, shape, user, state, columns)
        if state.large is not None and isinstance(self.domains, Domains) and each.name not in self.domains.sizing:
            value = self._larger(each, value, state.large, state.apart_by)
        if state.halves and isinstance(self.domains, Domains) and each.name in self.domains.halves:
            value = (np.round(2 * value) / 2).astype(value.dtype)
        if not state.alike:
            self.meeting.seen(each, value, columns)
        return value

    def _filled(
        self,
        each: Input,
        shape: tuple[int, ...],
        user: bool,
        state: State,
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
                deck = self.decks[each.name, place] = Deck(count, self.rng, first, beyond=True)
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

    def _larger(
        self, each: Input, value: np.ndarray, powers: tuple[int, int], apart_by: int | None = None
    ) -> np.ndarray:
        """Whole numbers in place of those that may be anything, or that are ids once a hash was taken of them.

        Args:
            apart_by: no further than this power of two beyond a number in the middle between `powers`.
        """
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
        if apart_by is not None:
            first = 2.0 ** (sum(powers) / 2)
            drawn = (first + np.floor(2.0 ** self.rng.uniform(0, apart_by, value.shape))).astype(each.dtype)
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

    def _lengths(
        self, shape: Sequence[int], longest: int, user: bool, state: State, name: str = ""
    ) -> np.ndarray:
        """Lengths from 0 to `longest`, the same for all inputs of a side in a request, but where they are apart."""
        key = (user, longest, name if state.apart else "")
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

    def _addend(self, shape: tuple[int, ...], user: bool, state: State) -> np.ndarray:
        """What a mask that is added to scores lets through: the first entries, in some requests any."""
        if len(shape) < 2 or state.scattered:
            return self.rng.random(shape) < 0.6
        return np.arange(shape[-1]) < self._lengths(shape[:-1], shape[-1], user, state)[..., None]

    def _plain(
        self, each: Input, domain: Domain, shape: tuple[int, ...], user: bool, state: State
    ) -> np.ndarray:
        """Everything but ids."""
        rng, dtype = self.rng, each.dtype
        if dtype.kind == "O":
            return elements.strings(domain.values, shape, rng)
        if domain.values is not None and domain.values.closed and dtype.kind in "iuf":
            return elements.closed(domain.values, shape, rng).astype(dtype)
        if domain.role == "length":
            longest = domain.size or state.free_length or 1
            column = len(shape) > 1 and shape[-1] == 1
            drawn = self._lengths(shape[:-1] if column else shape, longest, user, state, each.name)
            drawn = drawn[..., None] if column else drawn
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
