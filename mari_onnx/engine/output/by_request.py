"""Products of candidates with a matrix of their user's as one product per request, where candidates stand in any order.

In a graph whose rows are the candidates of all requests, ``x[p] M[index[p]]`` with a matrix ``M[r]`` for each request
(attention to a history) would gather a matrix for each candidate. Instead the candidates' rows are put in a grid of R
requests of as many candidates as the largest has,

    y[r, j] = x[slots[r, j]] M[r],     x[p] M[index[p]] = y[index[p], j],  j the place of p among its request's,

so that rows of x and of y are gathered, and no matrices. Places that a request does not need hold other candidates.
A candidate of S tokens is S rows of one request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto

from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Tensor
from mari_onnx.model.dims import Dim, Size

N, R = Dim.symbol("N"), Dim.symbol("R")
NODES = 20
"""About so many nodes find out where each candidate stands."""
Write = Callable[..., list[Tensor]]
"""Writes a node: operator, inputs, shapes of its outputs, element type; attributes by name."""


@dataclass(frozen=True)
class Standing:
    """Which candidate stands where in the grid.

    Attributes:
        slots: int64 `[R, M]`, the candidate in each place.
        back: int64 `[P, 2]`, the request of each candidate and its place among that request's.
    """

    slots: Tensor
    back: Tensor


class Nodes:
    """Writes nodes by `write`, with axes as the opset wants them."""

    def __init__(self, b: Builder, write: Write):
        self.b, self._write = b, write

    def __call__(
        self, op: str, inputs: Sequence[Tensor], shape: Sequence[Size], dtype: int | None = None, **attrs: Any
    ) -> Tensor:
        return self._write(op, inputs, [tuple(shape)], dtype, **attrs)[0]

    def with_axes(self, op: str, t: Tensor, axes: Sequence[int], shape: Sequence[Size], **attrs: Any) -> Tensor:
        """Squeeze, Unsqueeze or ReduceSum."""
        if self.b.opset >= 13:
            return self(op, [t, self.b.ints(axes)], shape, **attrs)
        return self(op, [t], shape, axes=[*axes], **attrs)

    def range(self, stop: Tensor, size: Size) -> Tensor:
        """0, 1, .. up to a number that is known at run time."""
        zero, one = (self.b.const(k, TensorProto.INT64) for k in (0, 1))
        return self("Range", [zero, stop, one], (size,), TensorProto.INT64)

    def length(self, t: Tensor) -> Tensor:
        """The first dimension, as one number."""
        return self("Gather", [self.lengths(t), self.b.const(0, TensorProto.INT64)], (), axis=0)

    def lengths(self, t: Tensor) -> Tensor:
        """The first dimension `[1]`."""
        if self.b.opset >= 15:
            return self("Shape", [t], (1,), TensorProto.INT64, start=0, end=1)
        shape = self("Shape", [t], (len(t.known),), TensorProto.INT64)
        return self("Slice", [shape, *(self.b.ints([k]) for k in (0, 1, 0))], (1,), TensorProto.INT64)

    def sorted(self, t: Tensor, many: Tensor) -> tuple[Tensor, Tensor]:
        """The elements in ascending order, and the place at which each of them was."""
        size = self.with_axes("Unsqueeze", many, [0], (1,))
        shapes, attrs = [t.known, t.known], {"axis": 0, "largest": 0, "sorted": 1}
        values, places = self._write("TopK", [t, size], shapes, TensorProto.INT64, **attrs)  # both are int64
        return values, places


def standing(write: Nodes, index: Tensor, users: Tensor, together: bool) -> Standing:
    """Where the candidates stand.

    Args:
        index: the request of each candidate, int32 or int64 `[P]`; a negative one counts from the last.
        users: a tensor with a row for each request, on axis 0.
        together: the candidates of a request stand behind each other, in the order of the requests.
    """
    b, p, n = write.b, R * N, N
    zero = b.const(0, TensorProto.INT64)
    many, requests = write.length(index), write.length(users)
    whole = write("Cast", [index], (p,), TensorProto.INT64, to=TensorProto.INT64)
    negative = write("Less", [whole, zero], (p,), TensorProto.BOOL)
    whole = write("Where", [negative, write("Add", [whole, requests], (p,)), whole], (p,), TensorProto.INT64)
    order = None
    if not together:
        whole, order = write.sorted(whole, many)
    column = write.with_axes("Unsqueeze", write.range(requests, R), [1], (R, 1))
    same = write("Equal", [column, whole], (R, p), TensorProto.BOOL)
    ones = write("Cast", [same], (R, p), TensorProto.INT32, to=TensorProto.INT32)
    counts = write.with_axes("ReduceSum", ones, [1], (R,), keepdims=0)
    lengths = write("Cast", [counts], (R,), TensorProto.INT64, to=TensorProto.INT64)
    one_more = write("Concat", [lengths, b.ints([0])], (R + 1,), axis=0)  # there may be no request
    most = write("ReduceMax", [one_more], (), keepdims=0)
    starts = write("CumSum", [lengths, zero], (R,), exclusive=1)
    at = write("Add", [write.with_axes("Unsqueeze", starts, [1], (R, 1)), write.range(most, n)], (R, n))
    last = write("Sub", [many, b.const(1, TensorProto.INT64)], ())
    within = write("Less", [at, last], (R, n), TensorProto.BOOL)
    slots = write("Where", [within, at, last], (R, n), TensorProto.INT64)
    place = write("Sub", [write.range(many, p), write("Gather", [starts, whole], (p,), axis=0)], (p,))
    both = [write.with_axes("Unsqueeze", each, [1], (p, 1)) for each in (whole, place)]
    back = write("Concat", both, (p, 2), axis=1)
    if order is not None:
        slots = write("Gather", [order, slots], (R, n), axis=0)
        back = write("ScatterND", [back, write.with_axes("Unsqueeze", order, [1], (p, 1)), back], (p, 2))
    return Standing(slots, back)


class Standings:
    """Where candidates stand, and tokens of candidates, each found when it is first asked for.

    index: the request of each candidate; users: a tensor with a row for each request; together: as in `standing`.
    """

    def __init__(self, write: Nodes, index: Tensor, users: Tensor, together: bool):
        self._write, self._index, self._users, self._together = write, index, users, together
        self._found: dict[int, Standing] = {}

    def __contains__(self, tokens: Size) -> bool:
        return tokens in self._found

    def of(self, tokens: int) -> Standing:
        """Where each candidate stands, or each of so many tokens of it."""
        if tokens not in self._found:
            index = self._index
            if tokens > 1:
                write, b = self._write, self._write.b
                wide = write.with_axes("Unsqueeze", index, [1], (R * N, 1))
                wide = write("Expand", [wide, b.ints([1, tokens])], (R * N, tokens))
                index = write("Reshape", [wide, b.ints([-1])], (R * N * tokens,))
            self._found[tokens] = standing(self._write, index, self._users, self._together)
        return self._found[tokens]


def saves(b: Builder, x: Tensor, matrix: Tensor, result: Tensor, found: bool) -> bool:
    """Whether a product per request takes less time than matrices that are gathered. found: where candidates stand is
    known.
    """

    def elements(t: Tensor) -> float:
        return math.prod(max(1, b.time.length(size)) for size in t.known)

    candidates = b.time.length(R * N)
    gathered = elements(matrix) / max(1, b.time.length(R)) * candidates
    rows = elements(x) + elements(result)
    nodes = 5 + (0 if found else NODES)
    return b.time.copy * (gathered - rows) + b.time.call * candidates > nodes * b.time.node


def fits(x: Tensor, matrix: Tensor, rows: Size) -> bool:
    """Whether x `[P, .., S, K]` times a matrix `[R, .., K, H]` for each request can be one product per request."""
    if x.shape is None or matrix.shape is None or not 3 <= len(x.shape) == len(matrix.shape) <= 4:
        return False
    if x.shape[0] != rows or matrix.shape[0] != R or x.shape[1:-2] != matrix.shape[1:-2]:
        return False
    fixed = all(isinstance(size, int) and size > 0 for size in (*x.shape[1:], matrix.shape[-1]))
    return x.shape[-2] == 1 or fixed


def multiplied(write: Nodes, standing: Standing, x: Tensor, matrix: Tensor) -> Tensor:
    """The products `[R, .., M, H]`, of rows x `[P, .., K]`."""
    heads, k = x.known[1:-1], x.known[-1]
    grid = write("Gather", [x, standing.slots], (R, N, *heads, k), axis=0)
    if heads:
        grid = write("Transpose", [grid], (R, *heads, N, k), perm=[0, 2, 1, 3])
    return write("MatMul", [grid, matrix], (R, *heads, N, matrix.known[-1]))


def tokens_multiplied(write: Nodes, standings: Standings, x: Tensor, matrix: Tensor) -> Tensor:
    """The products `[P, .., S, H]` of tokens x `[P, .., S, K]` that `fits`; a token is a row of its request."""
    p, *heads, tokens, k = x.known
    columns, fixed = matrix.known[-1], [size for size in heads if isinstance(size, int)]
    assert isinstance(tokens, int)
    assert isinstance(k, int)
    assert isinstance(columns, int)
    if heads:
        x = write("Transpose", [x], (p, tokens, *heads, k), perm=[0, 2, 1, 3])
    rows = write("Reshape", [x, write.b.ints([-1, *fixed, k])], (p * tokens, *heads, k))
    found = rows_of(write, standings.of(tokens), multiplied(write, standings.of(tokens), rows, matrix))
    back = write.b.ints([-1, tokens, *fixed, columns])
    found = write("Reshape", [found, back], (p, tokens, *heads, columns))
    return write("Transpose", [found], (p, *heads, tokens, columns), perm=[0, 2, 1, 3]) if heads else found


def rows_of(write: Nodes, standing: Standing, grid: Tensor) -> Tensor:
    """The row of each candidate `[P, .., H]` in a grid `[R, .., M, H]`."""
    heads, columns = grid.known[1:-2], grid.known[-1]
    if heads:
        grid = write("Transpose", [grid], (R, N, *heads, columns), perm=[0, 2, 1, 3])
    return write("GatherND", [grid, standing.back], (standing.back.known[0], *heads, columns))
