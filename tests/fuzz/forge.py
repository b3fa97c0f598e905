"""A graph grown forward: a pool of tensors of known shape, and steps that add one made from others.

Tensors stay in the pool, so they are read several times, by several outputs, or by nobody.
A dimension is an integer, a symbol ("N" candidates, "T" a history, "R" requests) or ``(symbol, k)``, k times it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.engine import drawing, graphs
from tests.engine.graphs import Draw, N, R

Size: TypeAlias = int | str | tuple[str, int]
Shape: TypeAlias = tuple[Size, ...]
Made: TypeAlias = "tuple[str, Shape] | None"
LARGEST = 160
"""Elements for each candidate up to which a tensor is used further."""


class Graph(graphs.Graph):
    """Constants as initializers, as overridable ones and as Constant nodes of every kind; functions; dead nodes."""

    def __init__(self, draw: Draw, opset: int, **how: Any):
        super().__init__(opset, **how)
        self.draw = draw
        self.functions: dict[str, onnx.FunctionProto] = {}
        self.replaceable: list[onnx.ValueInfoProto] = []
        self.plain_constants = False
        self.some = False  # a candidate is taken out: there must be one

    def const(self, value: Any, dtype: type | None = None) -> str:
        array = np.asarray(value)
        if dtype is not None or array.dtype.kind == "f":
            array = array.astype(dtype or self.dtype)
        how = "initializer"
        if not self.plain_constants:
            how = self.draw(st.sampled_from(("initializer",) * 6 + ("node", "node", "typed", "input", "sparse")))
        if how == "initializer":
            return super().const(value, dtype)
        if how == "input":
            name = super().const(value, dtype)
            if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
                return name  # a shape that the caller may replace says nothing of the graph
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            self.replaceable.append(helper.make_tensor_value_info(name, kind, array.shape))
            return name
        if how == "typed" and self.opset >= 12 and array.ndim <= 1 and array.dtype.name in ("float32", "int64"):
            key = ("value_int" if array.dtype.kind == "i" else "value_float") + "s" * array.ndim
            plain = array.tolist()
            return self.nodes_of("Constant", [], 1, **{key: plain})[0]
        if how == "sparse" and array.dtype.name in ("float32", "float64") and array.ndim == 2 and array.size:
            return self.nodes_of("Constant", [], 1, sparse_value=_sparse(array))[0]
        return self.nodes_of("Constant", [], 1, value=numpy_helper.from_array(array))[0]

    def _made(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        model = super()._made(inputs, outputs)
        model.graph.input.extend(self.replaceable)
        model.functions.extend(self.functions.values())
        if self.functions:
            model.opset_import.append(helper.make_opsetid("fuzz", 1))
        if any(node.domain == "com.microsoft" for node in self.nodes):
            model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        if self.opset > 18:
            model.ir_version = 10
        model.graph.doc_string = "drawn"
        return model


def _sparse(array: np.ndarray) -> onnx.SparseTensorProto:
    """The array in coordinates, its diagonal left out so that it is sparse."""
    array[np.arange(min(array.shape)), np.arange(min(array.shape))] = 0
    flat = np.flatnonzero(array)
    values = numpy_helper.from_array(array.reshape(-1)[flat], "")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(flat.astype(np.int64), ""), list(array.shape))


def numel(shape: Shape) -> int:
    """Elements for one candidate."""
    total = 1
    for s in shape:
        total *= s if isinstance(s, int) else s[1] if isinstance(s, tuple) else 4 if s == "T" else 1
    return total


def known(size: Size, least: int = 2) -> bool:
    return isinstance(size, int) and size >= least


class Unfit(Exception):
    """The step needs tensors that are not to be had here."""


class Forge:
    """The pool and the ways to add to it."""

    def __init__(self, draw: Draw, g: Graph, front: tuple[Size, ...], smooth: bool):
        self.draw, self.g, self.front, self.smooth = draw, g, front, smooth
        self.pool: list[tuple[str, Shape]] = []
        self.weights: dict[tuple[int, ...], list[str]] = {}

    # ---- choosing --------------------------------------------------------------------------------------------------
    def one(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def int(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def put(self, name: str, shape: Shape) -> tuple[str, Shape]:
        made = (name, tuple(shape))
        if numel(shape) <= LARGEST and len(shape) <= 5:
            self.pool.append(made)
        return made

    def find(self, wanted: Callable[[Shape], bool]) -> Made:
        found = [p for p in self.pool if wanted(p[1])]
        return self.draw(st.sampled_from(found)) if found else None

    def axis(self, shape: Shape, wanted: Callable[[Size], bool] = lambda s: True) -> int | None:
        found = [i for i, s in enumerate(shape) if wanted(s)]
        return self.draw(st.sampled_from(found)) if found else None

    def sign(self, axis: int, rank: int) -> int:
        return axis - rank if self.flag() else axis

    def weight(self, *shape: int) -> str:
        """A parameter, at times one that other nodes read too."""
        have = self.weights.setdefault(shape, [])
        if have and self.int(0, 2) == 0:
            return self.draw(st.sampled_from(have))
        have.append(self.g.const(self.g.rng.standard_normal(shape) / max(1, shape[0] if shape else 1) ** 0.5))
        return have[-1]

    # ---- leaves ----------------------------------------------------------------------------------------------------
    def leaf(self, *own: Size) -> tuple[str, Shape]:
        """A tensor of the inputs: [N, own...], or [R, N, own...]."""
        g, shape = self.g, (*self.front, *own)
        plain = all(isinstance(s, int | str) for s in own) and "T" not in own
        if plain and (R in self.front or self.int(0, 4) == 0):
            return self.put(drawing.tensor(self.draw, g, shape, self.int(0, 2)), shape)  # type: ignore[arg-type]
        side = self.one("user", "user", "item", "item", "cross")
        if len(own) <= 2 and own and isinstance(own[-1], int) and self.int(0, 2) == 0:
            rows = self.int(2, 7)
            ids = g.input(side, *self.front, *own[:-1], high=rows)  # type: ignore[arg-type]
            return self.put(g.Gather(self.weight(rows, own[-1]), ids, axis=0), shape)
        if len(own) == 1 and isinstance(own[0], int) and own[0] >= 3 and self.int(0, 3) == 0:
            places = self.draw(st.permutations(range(own[0])))
            first = self.int(1, own[0] - 1)
            return self.put(g.packed(user=sorted(places[:first]), item=sorted(places[first:])), shape)
        return self.put(g.input(side, *shape), shape)  # type: ignore[arg-type]

    def get(self, shape: Shape, again: int = 1) -> str:
        """A tensor of this shape: one of the pool, or a new one."""
        found = [n for n, s in self.pool if s == shape]
        if found and self.int(0, 2) >= again:
            return self.draw(st.sampled_from(found))
        front = len(self.front)
        if shape[:front] == self.front and all(isinstance(s, int | str) for s in shape):
            return self.leaf(*shape[front:])[0]
        if found:
            return self.draw(st.sampled_from(found))
        return self.weight(*(s if isinstance(s, int) else 1 for s in shape))

    def broad(self, shape: Shape) -> str:
        """A tensor that broadcasts to the shape."""
        found = [n for n, s in self.pool if _fits(s, shape)]
        if found and self.int(0, 3):
            return self.draw(st.sampled_from(found))
        small = [s if isinstance(s, int) and self.int(0, 2) else 1 for s in shape]
        return self.weight(*small[self.int(0, len(small)) :])

    def x(self, wanted: Callable[[Shape], bool] = lambda s: True) -> tuple[str, Shape]:
        found = self.find(wanted)
        return found if found is not None else self.leaf(*self.own())

    def own(self) -> tuple[int, ...]:
        return tuple(self.draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)))

    def tokens(self) -> tuple[str, Shape]:
        """[N, L, D]. Raises `Unfit` where inputs are [R, N, ...]."""
        if self.front != (N,):
            raise Unfit
        found = self.find(lambda s: len(s) == 3 and s[0] == N and s[1] != N and known(s[2]))
        if found is not None and self.int(0, 2):
            return found
        d, parts = self.int(2, 3), self.int(1, 3)
        sizes = [self.int(1, 3) for _ in range(parts)]
        made = [self.get((N, size, d)) for size in sizes]
        if parts == 1:
            return made[0], (N, sizes[0], d)
        return self.put(self.g.Concat(*made, axis=1), (N, sum(sizes), d))

    def rows(self) -> tuple[str, Shape]:
        """[N, D]. Raises `Unfit` where inputs are [R, N, ...]."""
        if self.front != (N,):
            raise Unfit
        return self.find(lambda s: len(s) == 2 and s[0] == N and known(s[1])) or self.leaf(self.int(2, 4))

    def linear(self, x: str, inner: int, out: int) -> str:
        return self.g.MatMul(x, self.weight(inner, out))

    def ints(self, values: Sequence[int]) -> str:
        return self.g.const(list(values), np.int64)

    def infinite(self) -> float:
        """What masks are filled with."""
        if self.g.dtype in (np.float64, np.float32):
            return self.one(-np.inf, -np.inf, -1e9, -3.4e38, -1e4)
        return self.one(-np.inf, -1e4)

    def kind(self) -> int:
        return helper.np_dtype_to_tensor_dtype(np.dtype(self.g.dtype))

    def info(self, name: str, shape: Shape | None = None, kind: int | None = None) -> onnx.ValueInfoProto:
        dims = None if shape is None else [s if isinstance(s, int | str) else None for s in shape]
        return helper.make_tensor_value_info(name, kind or self.kind(), dims)


def _fits(small: Shape, shape: Shape) -> bool:
    return len(small) <= len(shape) and all(a in (1, b) for a, b in zip(small[::-1], shape[::-1], strict=False))


BOOL = TensorProto.BOOL
