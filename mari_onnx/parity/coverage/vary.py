"""Variations of requests: one input drawn anew, values copied between inputs, values worth meeting, other sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.parity.coverage.sites import compared
from mari_onnx.parity.domains.domains import Domains

if TYPE_CHECKING:
    import onnx

    from mari_onnx.model.signature import Input
    from mari_onnx.parity.requests.plan import Plan
    from mari_onnx.parity.requests.request import Request

# Floats are moved no further than so many times what is usual: beyond, a difference is mostly rounding.
_LARGEST = 1000.0
# Requests of more candidates are not varied: fewer tell as much.
_CANDIDATES = 64
# Whole numbers of this many bytes or more may be times; powers of two that they are less than.
_WIDE, _MAGNITUDES_32, _MAGNITUDES = 4, 29.0, 36.0
# One of so many gets what several elements have to be together, where a graph asks for that.
_JOINED = 0.25


class Varied:
    """Makes variations, the same for the same seed and the same requests.

    Args:
        plan: its other drawer draws what is drawn anew.
        requests: to begin with.
        models: whose constants are tried as values.
    """

    def __init__(self, plan: Plan, requests: Sequence[Request], models: Iterable[onnx.ModelProto] = ()):
        self._plan, self._drawer = plan, plan.other
        self._choices = np.random.default_rng([plan.settings.seed, 2])
        self._rng = self._choices
        self._seeds: list[int] = []
        self._joined = False
        self._corpus: list[Request] = []
        self._inputs = {i.name: i for i in plan.layout.signature.inputs}
        for request in requests:
            self.add(request)
        self._made = 0
        self._dictionary = sorted({n for model in models for n in compared(model)})

    def add(self, request: Request) -> None:
        """A request that reached something new."""
        if 0 < request.n <= _CANDIDATES and request.edge is None:
            self._corpus.append(request)

    def next(self, again: bool = False) -> Request | None:
        """A variation of a request; None where there is none to vary.

        Args:
            again: the last one was a step forward: what was changed is changed so once more.
        """
        if not self._corpus:
            return None
        rng, self._made = self._choices, self._made + 1
        # Late ones are varied as often as all before them: what they reached is news.
        late = self._corpus[-1 - int(rng.integers(0, min(8, len(self._corpus))))]
        parent = late if rng.random() < 0.5 else self._corpus[int(rng.integers(0, len(self._corpus)))]
        if again:
            parent = self._corpus[-1]
        else:
            self._seeds = rng.integers(0, 2**63, int(rng.integers(1, 4))).tolist()
            if rng.random() < 0.1:
                parent = self._other_sizes(parent)
        label = f"varied request {self._made} (N={parent.n})"
        user, rows, literal = dict(parent.user), dict(parent.rows), dict(parent.literal)
        child = replace(parent, user=user, rows=rows, literal=literal, label=label, further="")
        if not again:
            self._joined = rng.random() < _JOINED
        if self._joined:
            for part in (child.user, child.rows, child.literal):
                part.update({name: value.copy() for name, value in part.items()})
            self._drawer.join(child)
        for seed in self._seeds:
            self._rng = np.random.default_rng(seed)
            self._change(child)
        return child

    def _other_sizes(self, parent: Request) -> Request:
        layout, rng = self._plan.layout, self._choices
        n = layout.fixed_n or int(rng.choice([1, 2, 3, parent.n, 2 * parent.n]))
        free = {name: int(rng.choice([1, 2, length, length + 1, 2 * length])) for name, length in parent.free.items()}
        return self._drawer.request(min(n, layout.fixed_n or _CANDIDATES), free=free)

    def _change(self, child: Request) -> None:
        names = sorted(child.arrays().keys() - child.counts - child.bags.keys())
        name = names[int(self._rng.integers(0, len(names)))]
        each = self._inputs[name]
        where = next(d for d in (child.user, child.rows, child.literal) if name in d)
        domain = self._drawer.domains[name]
        movable = domain.role in ("plain", "positive")
        ways = [self._anew]
        if movable:
            ways += [self._copied, self._worth_meeting]
        if movable and each.dtype.kind == "f":
            ways += [self._moved, self._moved]
        if movable and each.dtype.kind in "iu" and each.dtype.itemsize >= _WIDE and self._is_free(name):
            ways += [self._grown]
        if name in child.rows:
            ways.append(self._one_for_all)
        way = ways[int(self._rng.integers(0, len(ways)))]
        value = way(each, np.array(where[name]), child)
        columns = self._plan.layout.sides.columns.get(name)
        if columns is not None and value.shape[0]:
            mine = list(columns.get("user", ()))
            value[:, mine] = value[:1, mine]
        where[name] = value

    def _anew(self, each: Input, value: np.ndarray, child: Request) -> np.ndarray:
        return np.array(self._drawer.request(child.n, free=child.free).arrays()[each.name])

    def _copied(self, each: Input, value: np.ndarray, child: Request) -> np.ndarray:
        """Some elements from another input of the same kind; ids stay inside their table."""
        others = [v for k, v in sorted(child.arrays().items()) if k != each.name and v.dtype.kind == value.dtype.kind]
        others = [v for v in others if v.size]
        if not others or not value.size:
            return value
        other = others[int(self._rng.integers(0, len(others)))].reshape(-1)
        taken = self._rng.choice(other, value.shape).astype(value.dtype)
        rows = self._rows(each, value)
        if value.dtype.kind in "iuf":
            with np.errstate(invalid="ignore"):
                taken = np.where(rows > 0, taken % np.maximum(rows, 1), taken)
            taken = np.where((rows > 0) & ~np.isfinite(taken), 0, taken).astype(value.dtype)
        return np.where(self._rng.random(value.shape) < self._rng.random(), taken, value)

    def _worth_meeting(self, each: Input, value: np.ndarray, child: Request) -> np.ndarray:
        rng = self._rng
        if not self._dictionary or rng.random() < 0.5:
            self._drawer.meeting.mix(each, value, rng)
            return value
        number = self._dictionary[int(rng.integers(0, len(self._dictionary)))]
        near = number + float(rng.choice([0, 1, -1])) * (1 if value.dtype.kind in "iu" else max(abs(number), 1) / 64)
        rows = self._rows(each, value)
        if value.dtype.kind not in "iuf" or (value.dtype.kind == "u" and near < 0):
            return value
        allowed = (rows == 0) | ((near >= 0) & (near < rows))
        some = allowed & (rng.random(value.shape) < rng.choice([0.2, 1.0]))
        return np.where(some, np.array(near).astype(value.dtype), value)

    def _moved(self, each: Input, value: np.ndarray, child: Request) -> np.ndarray:
        """Floats that are no ids: all of one kind, of the other sign, larger, or shifted."""
        rng = self._rng
        usual = max(float(np.median(np.abs(value))), 1.0) if value.size and np.isfinite(value).all() else 1.0
        step = usual * float(rng.choice([0.5, 1.0, 4.0, 16.0])) * float(rng.choice([-1, 1]))
        ways = [np.zeros_like(value), -value, 3 * value, value + step, np.full_like(value, step)]
        moved = np.clip(np.asarray(ways[int(rng.integers(0, len(ways)))]), -_LARGEST * usual, _LARGEST * usual)
        if self._drawer.domains[each.name].role == "positive" or self._drawer.positive:
            moved = np.abs(moved) + 1e-3
        some = rng.random(value.shape) < rng.choice([0.2, 1.0])
        return np.where((self._rows(each, value) > 0) | ~some, value, moved).astype(value.dtype)

    def _is_free(self, name: str) -> bool:
        """Whether numbers of an input may be of any size: they decide on no size and no trips."""
        domains = self._drawer.domains
        values = domains[name].values
        closed = values is not None and values.closed
        return not closed and not (isinstance(domains, Domains) and name in domains.sizing)

    def _grown(self, each: Input, value: np.ndarray, child: Request) -> np.ndarray:
        """Whole numbers of another magnitude, as times and differences between them have; ids stay what they are."""
        rng = self._rng
        most = _MAGNITUDES if each.dtype.itemsize > _WIDE else _MAGNITUDES_32
        size = np.full(value.shape, rng.uniform(0, most)) if rng.random() < 0.5 else rng.uniform(0, most, value.shape)
        grown = np.floor(2.0**size * rng.uniform(1, 2, value.shape)).astype(each.dtype)
        some = rng.random(value.shape) < rng.choice([0.2, 1.0])
        return np.where((self._rows(each, value) > 0) | ~some, value, grown).astype(each.dtype)

    def _one_for_all(self, each: Input, value: np.ndarray, child: Request) -> np.ndarray:
        axis = self._plan.layout.axis_at(each.name)
        if value.ndim <= axis or not value.shape[axis]:
            return value
        one = np.take(value, [int(self._rng.integers(0, value.shape[axis]))], axis=axis)
        return np.array(np.broadcast_to(one, value.shape))

    def _rows(self, each: Input, value: np.ndarray) -> np.ndarray:
        rows = self._drawer.domains[each.name].rows
        if rows is None:
            return np.zeros((1,) * value.ndim, np.int64)
        return rows.reshape((1,) * (value.ndim - rows.ndim) + rows.shape)
