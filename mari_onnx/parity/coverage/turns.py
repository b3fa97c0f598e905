"""Goals where a graph turns from one thing to another: outcomes of comparisons, ties, sides of bounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mari_onnx.parity.coverage.goals import Goal


class Outcomes(Goal):
    """True and false of a boolean tensor, for each constant that is compared.

    Args:
        constant: shape of the constant operand; dimensions above 1 are kept apart.
        operands: numbers that are compared, whose difference is how far an outcome is; none, or two.
        most: no more constants than this are kept apart.
    """

    def __init__(
        self,
        kind: str,
        node: str,
        op: str,
        tensor: str,
        constant: Sequence[int] = (),
        operands: Sequence[str] = (),
        most: int = 256,
    ):
        apart = int(np.prod(constant)) if constant else 1
        self._kept = [k - len(constant) for k, d in enumerate(constant) if d > 1] if 1 < apart <= most else []
        self._apart = apart if self._kept else 1
        super().__init__(kind, node, op, [tensor, *operands], 2 * self._apart)
        self.same = (kind, op, tensor, 2 * self._apart)

    def _found(self, values: Sequence[np.ndarray]) -> np.ndarray:
        value = values[0].astype(bool)
        if not self._kept:
            return np.array([(~value).any(), value.any()])
        others = tuple(k for k in range(value.ndim) if k - value.ndim not in self._kept)
        found = [v.any(axis=others).reshape(-1) for v in (~value, value)]
        if found[0].size != self._apart:
            return np.zeros(self.met.size, bool)
        return np.concatenate(found)

    def _distances(self, values: Sequence[np.ndarray]) -> np.ndarray | None:
        if len(values) < 3 or not all(v.size for v in values) or values[1].dtype.kind not in "iuf":
            return None
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(values[1].astype(np.float64) - values[2].astype(np.float64))
        apart = np.where(np.isnan(apart), np.inf, apart)
        others = tuple(k for k in range(apart.ndim) if k - apart.ndim not in self._kept)
        nearest = apart.min(axis=others).reshape(-1) if self._kept else np.array([apart.min()])
        return np.tile(nearest, 2) if nearest.size == self._apart else None

    def margins(self, values: Sequence[np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray] | None:
        if len(values) < 3 or not values[0].size or values[1].dtype.kind != "f":
            return None
        one, other = np.broadcast_arrays(*(v.astype(np.float64) for v in values[1:3]))
        kept = [k + one.ndim for k in self._kept]
        if (int(np.prod([one.shape[k] for k in kept])) if kept else 1) != self._apart:
            return None
        rest = [k for k in range(one.ndim) if k not in kept]
        candidates = next(([k] for k in rest if one.shape[k] == n), [])
        order = [*kept, *candidates, *(k for k in rest if k not in candidates)]
        shape = (self._apart, n if candidates else 1, -1)
        with np.errstate(invalid="ignore"):
            over, size = one - other, np.maximum(np.abs(one), np.abs(other))
        return over.transpose(order).reshape(shape), size.transpose(order).reshape(shape)

    def text(self, at: int) -> str:
        outcome, place = ("false", "true")[at // self._apart], at % self._apart
        return outcome if self._apart == 1 else f"{outcome} for constant {place}"


class Ties(Outcomes):
    """Whole numbers that are equal where it is asked which is the larger: there `>` and `>=` differ.

    Of a kind that is not counted: nobody can tell whether a tie is possible.
    """

    def __init__(self, node: str, op: str, constant: Sequence[int], operands: Sequence[str]):
        super().__init__("ties", node, op, operands[0], constant, operands)

    def _found(self, values: Sequence[np.ndarray]) -> np.ndarray:
        whole = all(v.dtype.kind in "iuf" and bool((v == np.round(v)).all()) for v in values[1:3])
        return super()._found([np.equal(*values[1:3]) & whole])

    def _distances(self, values: Sequence[np.ndarray]) -> np.ndarray | None:
        whole = all(v.dtype.kind in "iuf" and bool((v == np.round(v)).all()) for v in values[1:3])
        return super()._distances(values) if whole else None

    def margins(self, values: Sequence[np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray] | None:
        return None


class Peaks(Goal):
    """Two largest, or two smallest, elements along an axis: there it matters which is taken. Not counted, as `Ties`."""

    def __init__(self, node: str, op: str, tensor: str, axis: int):
        super().__init__("ties", node, op, [tensor], 2)
        self._axis = axis

    def _found(self, values: Sequence[np.ndarray]) -> np.ndarray:
        value = values[0]
        if not value.size or not -value.ndim <= self._axis < value.ndim:
            return np.zeros(2, bool)
        ends = (value.max(axis=self._axis, keepdims=True), value.min(axis=self._axis, keepdims=True))
        return np.array([bool(((value == end).sum(axis=self._axis) > 1).any()) for end in ends])

    def text(self, at: int) -> str:
        return ("two largest", "two smallest")[at]


class Picks(Goal):
    """Places along an axis that are picked as the largest or smallest: experts of a gate, rows of a router.

    Args:
        indices: output that says which places are picked; empty where the largest is.
        axis: counted from the end; `size` of it.
        sign: -1 where the smallest are picked.
    """

    def __init__(self, node: str, op: str, tensor: str, indices: str, axis: int, size: int, sign: int = 1):
        super().__init__("picks", node, op, [tensor, *([indices] if indices else [])], size)
        self._axis, self._sign = axis, sign

    def _found(self, values: Sequence[np.ndarray]) -> np.ndarray:
        rows = self._rows(values[0])
        picked = values[1].reshape(-1) if len(values) > 1 else rows.argmax(axis=1)
        return np.isin(np.arange(self.met.size), picked) & bool(len(rows))

    def _distances(self, values: Sequence[np.ndarray]) -> np.ndarray | None:
        rows = self._rows(values[0])
        if not len(rows):
            return None
        apart = (rows.max(axis=1, keepdims=True) - rows).min(axis=0)
        return np.where(np.isnan(apart), np.inf, apart)

    def _rows(self, value: np.ndarray) -> np.ndarray:
        if not value.size or value.ndim < -self._axis or value.shape[self._axis] != self.met.size:
            return np.zeros((0, self.met.size))
        with np.errstate(invalid="ignore"):
            return self._sign * np.moveaxis(value.astype(np.float64), self._axis, -1).reshape(-1, self.met.size)

    def text(self, at: int) -> str:
        return f"place {at}"


class Inner(Goal):
    """True and false of a comparison inside of a body.

    Args:
        tensor: [.., 2], how often it was true and how often false (`bodies`); its name says which comparison.
    """

    def __init__(self, tensor: str):
        op, name = tensor.split("/")[1:3]
        super().__init__("outcomes", name, op, [tensor], 2)

    def _found(self, values: Sequence[np.ndarray]) -> np.ndarray:
        counts = values[0].reshape(-1, 2)
        return np.array([bool((counts[:, 1] > 0).any()), bool((counts[:, 0] > 0).any())])

    def text(self, at: int) -> str:
        return ("false", "true")[at]


class Sides(Goal):
    """Both sides of a bound, for each unit along the last axis.

    Args:
        bound: a number, or an array that broadcasts against the tensor.
        units: length of the last axis where units are kept apart, else None.
        most: of more units so many are looked at, spread evenly.
    """

    def __init__(
        self, kind: str, node: str, op: str, tensor: str, bound: np.ndarray, units: int | None, most: int = 256
    ):
        self._bound, self._units = bound, units
        self._step = 1 if units is None else -(-units // most)
        self._places = np.arange(0, units or 1, self._step)
        super().__init__(kind, node, op, [tensor], 2 * self._places.size)
        self.same = (*self.same, bound.tobytes())

    def _found(self, values: Sequence[np.ndarray]) -> np.ndarray:
        value = values[0]
        found: list[np.ndarray] = []
        for side in map(np.asarray, (value < self._bound, value > self._bound)):
            if self._units is None or not side.ndim or side.shape[-1] != self._units:
                found.append(np.full(self._places.size, bool(side.any())))
            else:
                by_unit = side[..., :: self._step].reshape(-1, self._places.size)
                found.append(np.asarray(by_unit.any(axis=0)))
        return np.concatenate(found)

    def _distances(self, values: Sequence[np.ndarray]) -> np.ndarray | None:
        value = values[0]
        if not value.size or value.dtype.kind not in "iuf":
            return None
        over = value.astype(np.float64) - self._bound
        if self._units is not None and over.shape[-1] == self._units:
            over = over[..., :: self._step].reshape(-1, self._places.size)
            nearest = np.concatenate([over.min(axis=0), -over.max(axis=0)])
        else:
            nearest = np.repeat([over.min(), -over.max()], self._places.size)
        return np.where(np.isfinite(nearest), np.maximum(nearest, 0), np.inf)

    def text(self, at: int) -> str:
        side = ("below", "above")[at // self._places.size]
        bound = f"{float(self._bound.reshape(-1)[0]):g}" if self._bound.size == 1 else "the bound"
        if self.kind == "units":
            side = ("never off", "never on")[at // self._places.size]
            return f"unit {self._places[at % self._places.size]} is {side}"
        unit = "" if self._units is None else f" in place {self._places[at % self._places.size]}"
        return f"{side} {bound}{unit}"
