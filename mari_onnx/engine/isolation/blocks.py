"""The source, with tensors that have history and candidates in one sequence written as blocks.

A tensor ``[.., T + N, ..]`` is two blocks, ``[.., T, ..]`` of the history and ``[.., N, ..]`` of the candidates; one
that has the sequence twice, as scores have, is four. Each block holds the source's own numbers. Of candidates by
candidates only the diagonal is computed, each candidate with itself, and stored as ``[.., N, .., 1, ..]``: so it may be
used only where all else in that block is known to be 0 (`facts`), and a rule that cannot tell refuses.

Nodes of the source stay, so that a node without a rule can read what it did before; what no output needs is dropped at
the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from mari_onnx.engine.ir.value import Decline
from mari_onnx.engine.isolation.facts import Facts
from mari_onnx.engine.isolation.layout import Key, Layouts, N
from mari_onnx.engine.isolation.sizes import Sizes
from mari_onnx.model.dims import Dim, Size

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Block:
    """name: the tensor; None where all elements are 0 and nothing was written. at: the dimension that has the
    candidates, of a block that has them twice; else None."""

    name: str | None
    at: int | None = None


@dataclass(frozen=True)
class Blocks:
    """A tensor of the source: its dimensions, and its blocks."""

    dims: tuple[Size, ...]
    of: Mapping[Key, Block]


Rule = Callable[["Writer", NodeProto], Sequence[Blocks | None]]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Registers the function that writes the blocks of these operators' outputs. It raises `Decline` to refuse."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def written(name: str | None) -> str:
    """The tensor of a block that is read. Refuses one that is 0 and was not written."""
    if name is None:
        raise Decline("weights of 0 are read by an operator that does not keep them 0")
    return name


class Writer:
    """What has been written so far.

    told: sizes of the source's tensors. dtypes: their element types.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        told: Sizes,
        dtypes: Mapping[str, int],
        layouts: Layouts,
        facts: Facts,
        opset: int,
    ):
        self.told, self.shapes, self.numbers, self.dtypes = told, told.shapes, told.numbers, dtypes
        self.dims, self.listed, self.slices = told.dims, told.listed, told.slices
        self.layouts, self.facts, self.opset = layouts, facts, opset
        self.inputs = {info.name: told.shapes[info.name] for info in graph.input if info.name in told.shapes}
        self.nodes: list[NodeProto] = []
        self.origins: dict[str, str] = {}
        """Nodes written, and their outputs -> the node of the source that they are of."""
        self.known: dict[str, Blocks] = {}
        self.renamed: dict[str, str] = {}
        """Tensors of the source without blocks that were written anew."""
        self.turned: dict[str, tuple[str, list[int]]] = {}
        """Tensors that are one of the source's with its dimensions in another order."""
        self.origin = ""
        self._memo: dict[object, str] = {}
        self._count = 0

    # ---- writing
    def add(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node on these tensors; equal ones are one. Answers its output."""
        key = (op, tuple(inputs), repr(sorted(attributes.items())))
        if key not in self._memo:
            self._count += 1
            name = f"{self.origin}/blocks/{op}_{self._count}"
            self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
            self.origins[name] = self.origin
            self._memo[key] = name
        return self._memo[key]

    def copy(self, node: NodeProto, inputs: Sequence[str], count: int = 1) -> list[str]:
        """The node on other inputs, with its attributes."""
        key = (node.domain, node.op_type, tuple(inputs), b"".join(a.SerializeToString() for a in node.attribute), count)
        if key not in self._memo:
            made = NodeProto()
            made.CopyFrom(node)
            self._count += 1
            made.name = f"{self.origin}/blocks/{node.op_type}_{self._count}"
            del made.input[:], made.output[:]
            made.input.extend(inputs)
            made.output.extend(made.name if count == 1 else f"{made.name}.{i}" for i in range(count))
            self.nodes.append(made)
            self.origins.update(dict.fromkeys([made.name, *made.output], self.origin))
            self._memo[key] = "\n".join(made.output)
        return self._memo[key].split("\n")

    def constant(self, array: np.ndarray) -> str:
        """A constant; equal ones are one."""
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._memo:
            self._count += 1
            name = f"blocks/const_{self._count}"
            self.nodes.append(helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(array)))
            self._memo[key] = name
        return self._memo[key]

    def ints(self, *values: int) -> str:
        """A constant of int64, [len(values)]."""
        return self.constant(np.asarray(values, np.int64))

    def size(self, size: Size) -> str:
        """A size as a tensor of shape [1]. Refuses one that no input has."""
        if not isinstance(size, Dim):
            return self.ints(size)
        total = None
        for monomial, factor in size.terms.items():
            term = None
            for symbol in monomial:
                found = self._symbol(symbol)
                term = found if term is None else self.add("Mul", [term, found])
            if term is None:
                term = self.ints(factor)
            elif factor != 1:
                term = self.add("Mul", [term, self.ints(factor)])
            total = term if total is None else self.add("Add", [total, term])
        assert total is not None
        return total

    def _symbol(self, symbol: str) -> str:
        for name, dims in self.inputs.items():
            if Dim.symbol(symbol) in dims:
                at = dims.index(Dim.symbol(symbol))
                return self.add("Gather", [self.add("Shape", [name]), self.ints(at)], axis=0)
        raise Decline(f"no input has the size {symbol}")

    def sizes(self, sizes: Sequence[Size], free: bool = False) -> str:
        """Sizes as a tensor. free: one that is not a number may be -1."""
        open_ = [i for i, size in enumerate(sizes) if isinstance(size, Dim)]
        if free and len(open_) == 1 and 0 not in sizes:
            return self.ints(*(-1 if isinstance(size, Dim) else size for size in sizes))
        if not open_:
            return self.ints(*(int(size) for size in sizes if not isinstance(size, Dim)))
        return self.add("Concat", [self.size(size) for size in sizes], axis=0)

    def cut(self, name: str, axis: int, start: Size, end: Size) -> str:
        """Positions from `start` to `end` of a dimension."""
        return self.add("Slice", [name, self.size(start), self.size(end), self.ints(axis)])

    def reshape(self, name: str, dims: Sequence[Size]) -> str:
        """The tensor in other dimensions, of which at most one is not a number if no input tells them."""
        return self.add("Reshape", [name, self.sizes(dims, free=True)])

    # ---- reading
    def value(self, name: str, key: Key, off: bool = False) -> float | None:
        """`Facts.value`, of a tensor in another order of dimensions too."""
        if name in self.turned:
            old, order = self.turned[name]
            by = dict(zip(self.layouts.at(self.dims(name)), key, strict=True))
            key = tuple(by[order.index(i)] for i in self.layouts.at(self.dims(old)))
            return self.value(old, key, off)
        return self.facts.value(name, self.dims(name), key, off)

    def zero(self, name: str, key: Key) -> bool:
        """Whether a block is 0 throughout."""
        pair = len(self.layouts.candidates(self.dims(name), key)) > 1
        return self.value(name, key) == 0 and (not pair or self.value(name, key, True) == 0)

    def counts(self, name: str) -> bool:
        """Whether a dimension of the tensor counts candidates, or its shape is not known."""
        return name not in self.shapes or any(map(self.layouts.counts, self.shapes[name]))

    def plain(self, name: str) -> bool:
        """Whether the tensor is its own only block."""
        if name not in self.shapes:
            return False
        sizes = [size for size in self.shapes[name] if self.layouts.counts(size)]
        return sizes in ([], [N]) and name not in self.known

    def whole(self, name: str) -> str:
        """The tensor as the source has it."""
        found = self.known.get(name)
        if found is None:
            return self.renamed.get(name, name)
        at = self.layouts.at(found.dims)
        parts = [found.of[key].name for key in self.layouts.keys(found.dims)]
        if len(at) > 1 or None in parts:
            return name
        return self.add("Concat", [x for x in parts if x is not None], axis=at[0])

    def blocks(self, name: str) -> Blocks:
        """The blocks of a tensor that counts candidates; cut from it if it was not written in blocks."""
        if name not in self.known:
            dims = self.dims(name)
            keys = self.layouts.keys(dims)
            self.known[name] = Blocks(dims, {key: self._cut(name, dims, key) for key in keys})
            if len(keys) == 1 and len(self.layouts.at(dims)) == 1:
                return self.known.pop(name)
        return self.known[name]

    def _cut(self, name: str, dims: tuple[Size, ...], key: Key) -> Block:
        found = self.renamed.get(name, name)
        at, twice = self.layouts.at(dims), self.layouts.candidates(dims, key)
        if len(twice) > 2:
            raise Decline(f"{name} has the candidates three times")
        for i, s in zip(at, key, strict=True):
            offsets = self.layouts.offsets(dims[i])
            if len(offsets) > 2 and not (twice[1:] and i in twice):
                found = self.cut(found, i, offsets[s], offsets[s + 1])
        if not twice[1:]:
            return Block(found)
        # the diagonal of a matrix laid out as one row
        i, j = twice
        if j != i + 1:
            raise Decline(f"{name} has the candidates in dimensions {i} and {j}")
        starts = [self.layouts.offsets(dims[k])[key[at.index(k)]] for k in twice]
        flat = self.reshape(found, (*dims[:i], dims[i] * dims[j], *dims[j + 1 :]))
        step = dims[j] + 1
        first = starts[0] * dims[j] + starts[1]
        picked = self.add(
            "Add", [self.add("Mul", [self.places(N), self.size(step)]), self.size(first)]
        )
        flat = self.add("Gather", [flat, picked], axis=i)
        return Block(self.add("Unsqueeze", [flat, self.ints(j)]), i)

    def places(self, size: Size) -> str:
        """``0, 1, ..`` up to a size, as a tensor of shape [size]."""
        scalar = self.add("Squeeze", [self.size(size)] if self.opset < 13 else [self.size(size), self.ints(0)])
        zero, one = (self.constant(np.asarray(v, np.int64)) for v in (0, 1))
        return self.add("Range", [zero, scalar, one])

    def block(self, name: str, dims: Sequence[Size], key: Key, at: int | None) -> str | None:
        """The block of an operand that is broadcast to one of a tensor of dimensions `dims`; None: all 0.

        at: where that block has the candidates, if it has them twice. Refuses dimensions that do not match.
        """
        if not self.counts(name):
            return self.renamed.get(name, name)
        here = self.blocks(name)
        short = len(dims) - len(here.dims)
        if short < 0:
            raise Decline(f"{name} has more dimensions than the result")
        outer = dict(zip(self.layouts.at(dims), key, strict=True))
        mine = self.layouts.at(here.dims)
        if any(here.dims[i] != dims[i + short] for i in mine):
            raise Decline(f"{name} {list(here.dims)} does not match {list(dims)}")
        own = tuple(outer[i + short] for i in mine)
        found = here.of[own]
        twice = self.layouts.candidates(here.dims, own)
        if found.name is None or at is None or not twice:
            return found.name
        stands = found.at if found.at is not None else twice[0]
        return self.moved(found.name, len(here.dims), stands, at - short)

    def moved(self, name: str, rank: int, old: int, new: int) -> str:
        """A block of so many dimensions with the candidates in another dimension, where it has size 1."""
        if old == new:
            return name
        if new < 0:
            name = self.add("Unsqueeze", [name, self.ints(*range(-new))])
            rank, old, new = rank - new, old - new, 0
        order = list(range(rank))
        order[old], order[new] = new, old
        return self.add("Transpose", [name], perm=order)

    def alone(self, name: str, key: Key) -> None:
        """Refuses a tensor unless, in this block of candidates by candidates, all but the diagonal is 0."""
        if self.value(name, key, off=True) != 0:
            raise Decline(f"{name} is not known to be 0 between a candidate and another")
