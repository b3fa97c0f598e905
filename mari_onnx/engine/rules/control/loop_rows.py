"""Rows that the iterations of a Loop read, as one tensor with an axis for the iterations.

In: `x[i]` and `x[L i : L i + L]` of the Loop's body, where i is the iteration number. Out: a Value for all iterations,
which varies along an axis that is in none of its groups; `stacked` puts that axis first when the body is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mari_onnx.engine.ir.value import Axis, Decline, Group, Tensor, Value, axes_of, leaves, rename
from mari_onnx.engine.rule import Context, from_sizes, normal
from mari_onnx.engine.rules.index_series import linear, only, progression
from mari_onnx.engine.rules.structure import regroup
from mari_onnx.model.dims import Dim, Size, divide, symbols


@dataclass(eq=False)
class Rows:
    """The iterations of a Loop, and the rows that they read.

    symbol: the iteration number plus one (a size is at least 1). tensor: stands for what only a run could tell; no
    result may depend on it. group: the axes of the iterations, of length ``count``; None until a row has been taken.
    """

    ctx: Context
    symbol: str
    tensor: Tensor
    count: Size | None = None
    group: Group | None = None
    reach: list[tuple[Size, int]] = field(default_factory=list)
    """Progressions that are read: their length, and how far beyond the iteration number."""
    _rows: dict[tuple[int, int, Size, bool], tuple[Value, Value]] = field(default_factory=dict)

    def gathered(self, ctx: Context) -> Value | None:
        """What a Gather at the iteration number reads: a row of its data, or an element of an arithmetic progression.

        None where its indices are something else.
        """
        x, index = ctx.input(0), ctx.input(1)
        place = only(ctx.b, index)
        if place is None or self.symbol not in symbols(place) or index.rank > 1:
            return None
        element = self.element(x, place, index.rank)
        if element is not None:
            return element
        return self.row(x, normal(ctx.attr("axis", 0), x.rank), place, 1, index.rank == 0)

    def sliced(self, ctx: Context) -> Value | None:
        """What a Slice ``x[L i : L i + L]`` along one axis reads; None where its bounds do not depend on the iteration.

        Refuses a length that differs between iterations.
        """
        if len(ctx.inputs) < 3:
            return None
        x, start, end = ctx.input(0), only(self.ctx.b, ctx.input(1)), only(self.ctx.b, ctx.input(2))
        if start is None or end is None or self.symbol not in symbols(start) | symbols(end):
            return None
        axes = ctx.ints(3) if len(ctx.inputs) > 3 else [0]
        steps = ctx.ints(4) if len(ctx.inputs) > 4 else [1]
        if axes is None or len(axes) != 1 or steps != [1] or self.symbol in symbols(end - start):
            raise Decline("a Slice in the body of the Loop differs in length between iterations")
        if end - start == 1:
            element = self.element(x, start, 1)
            if element is not None:
                return element
        return self.row(x, normal(axes[0], x.rank), start, end - start, False)

    def element(self, x: Value, place: Size, rank: int) -> Value | None:
        """Element ``i + k`` of an arithmetic progression x, of the given rank; None where x is none."""
        series, at = progression(self.ctx.b, x), linear(place, self.symbol)
        if series is None or at is None or at[1] != 1 or not isinstance(at[0], int) or at[0] < 0:
            return None
        self.reach.append((x.shape[0], at[0]))
        sym = np.empty((1,) * rank, dtype=object)
        sym[...] = series[0] + series[1] * place
        return from_sizes(self.ctx.b, sym, x.dtype)

    def row(self, x: Value, at: int, start: Size, length: Size, drop: bool) -> Value:
        """``x[i L : i L + L]`` along dimension ``at``, for all iterations i.

        start, length: i L and L. drop: L is 1, and the result lacks the dimension. The axis of the iterations is in
        none of the result's groups. Refuses rows of unequal length, and rows of rows.
        """
        key = (id(x.body), at, length, drop)
        if key in self._rows and self._rows[key][0].known == x.known:
            return self._rows[key][1]
        b = self.ctx.b
        found = linear(start, self.symbol)
        if found is None or found[0] != 0 or not b.same(found[1], length):
            raise Decline("a Slice in the body of the Loop does not take rows of one length")
        size = x.shape[at]
        rows = divide(size, length)
        if rows is None and b.fixed:
            rows = divide(b.literal(size), b.literal(length))
        if rows is None or (self.count is not None and not b.same(self.count, rows)):
            raise Decline(f"nothing shows that {size} is one row of {length} per iteration of the Loop")
        if self.group is not None and set(self.group) & axes_of(x.body):
            raise Decline("it takes rows of a tensor that already is one row per iteration of the Loop")
        y = regroup(self.ctx, x, [*x.shape[:at], rows, length, *x.shape[at + 1 :]])
        if self.group is None:
            self.count, self.group = rows, tuple(Axis(a.size) for a in y.known[at])
        if [a.size for a in self.group] != [a.size for a in y.known[at]]:
            raise Decline("the Loop takes rows along different axes")
        body = rename(y.body, dict(zip(y.known[at], self.group, strict=True)))
        inner = [] if drop else [y.known[at + 1]]
        value = Value((*y.known[:at], *inner, *y.known[at + 2 :]), body, x.dtype)
        self._rows[key] = x, value
        return value

    def finish(self, trips: Size) -> None:
        """Checks what was assumed about the number of iterations, ``trips``. Refuses a Loop for which it does not
        hold.
        """
        if self.count is not None and not self.ctx.b.same(self.count, trips):
            raise Decline(f"the Loop runs {trips} times over {self.count} rows")
        if self.group is None:
            self.count, self.group = trips, (Axis(trips),) if trips != 1 else ()
        for size, offset in self.reach:
            left = self.ctx.b.literal(size) - self.ctx.b.literal(trips) - offset
            if isinstance(left, Dim) or left < 0:
                raise Decline("the Loop reads past the end of its offsets")

    def stacked(self, value: Value) -> Value:
        """The Values of all iterations as one Value, the iterations as its first dimension.

        Refuses a value of unknown rank, and one that depends on the iteration number.
        """
        if value.groups is None or self.group is None:
            raise Decline("an output of the Loop's body has an unknown rank")
        if axes_of(value.body) - set(value.axes) - set(self.group):
            raise Decline("an output of the Loop's body depends on an axis that is not among its dimensions")
        named = {s for size in value.shape for s in symbols(size)}
        sources = [self.ctx.b.sources[s][0] for s in named if s in self.ctx.b.sources]
        if self.symbol in named or self.depends([*sources, *(leaf.tensor for leaf in leaves(value.body))]):
            raise Decline("the result depends on the iteration number")
        return Value((self.group, *value.known), value.body, value.dtype)

    def depends(self, tensors: Sequence[Tensor]) -> bool:
        """Whether any of them was computed from the iteration number."""
        stack, seen = list(tensors), set()
        while stack:
            top = stack.pop()
            if top is self.tensor:
                return True
            if top.node is not None and top.node not in seen:
                seen.add(top.node)
                node = top.node
                stack += [t for t in [*node.inputs, *node.captured] if t is not None]
        return False
