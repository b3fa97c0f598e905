"""`Value`: what the interpreter knows of a tensor of the source graph, which need not exist in the new graph.

A Value has the *logical* shape of the source tensor, as a list of groups of atomic axes (`[N*T, D]` is
``((N, T), (D,))``; a dimension of size 1 is the empty group), and a *body* that says what the new graph has of it:

    Leaf(tensor, axes)      one tensor of the new graph; ``axes`` names its stored dimensions. An axis of the Value that
                            the leaf does not have is broadcast: the leaf is computed once for all its positions. A body
                            without the candidate axis is computed once per request.
    Cat(axis, parts)        a concatenation that has not been written out: each part has positions along ``axis``
    Sum(terms), Prod(factors)   a broadcast sum or product that has not been written out. Found only as the ``form`` of
                            a written tensor (another way to compute it), where contractions look for something cheaper.

Transpose, Reshape, Expand, Squeeze and Unsqueeze only regroup axes; no body changes and no node is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from onnx import NodeProto, TensorProto

from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.model import tensors
from mari_onnx.model.dims import Size, product


class Axis:
    """An atomic axis: an identity with a size (never the integer 1). Two axes of equal size are different axes.

    number: counts axes as they are made, so that a set of them has the same order in every run (`in_order`).
    only: there is no other axis of its kind, in any value: the requests (`engine/requests.py`).
    """

    __slots__ = ("__weakref__", "number", "only", "size")
    _numbers = itertools.count()

    def __init__(self, size: Size, only: bool = False):
        self.size, self.only, self.number = size, only, next(Axis._numbers)

    def __repr__(self) -> str:
        return f"<{self.size}:{id(self) & 0xFFF:x}>"


def in_order(axes: Iterable[Axis]) -> list[Axis]:
    """Axes in the order in which they were made; code that writes nodes for a set of axes uses this order."""
    return sorted(axes, key=lambda axis: axis.number)


@dataclass(frozen=True)
class Alternatives:
    """Other ways to compute a tensor than the one that was written; `ir.forms` puts them there and takes them away.

    form: a Sum, a Prod or a Cat over template axes of the tensor's dimensions, or what tells it.
    cheaper: whether the form has parts that vary less (`forms.has_cheaper_form`), once that is known.
    price: of an element of the written one, where it differs from its operator's usual one.
    add_later: for a sum, the same sum with one more small term, which then is added to the other small ones first.
    rescale: for a product with constants, the same product with its columns scaled at build time.
    """

    form: Form | Callable[[], Form | None] | None = None
    cheaper: bool | None = None
    price: float | None = None
    add_later: Again | None = None
    rescale: Again | None = None


class Tensor:
    """A tensor of the new graph, or of the source as `engine.lookahead` reads it.

    node: what computes it; None for inputs and constants. source: the source tensor whose name it has.
    bound, spans: what `engine.analysis` has found out about its elements.
    """

    __slots__ = (
        "_array", "_proto", "alternatives", "bound", "deps", "dtype", "name", "node", "shape", "source", "spans",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        dtype: int,
        shape: tuple[Size, ...] | None,
        deps: frozenset[str],
        node: Node | None = None,
        array: np.ndarray | None = None,
        proto: TensorProto | None = None,
    ):
        self.name, self.dtype, self.shape, self.deps, self.node = name, dtype, shape, deps, node
        self._array, self._proto = array, proto
        self.alternatives = WRITTEN
        self.source: str | None = None
        self.bound: float | None = None
        self.spans: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def const(self) -> bool:
        """Whether its elements are known at build time."""
        return self._array is not None or self._proto is not None

    @property
    def array(self) -> np.ndarray:
        """The elements of a constant. Fails for any other tensor."""
        if self._array is None:
            assert self._proto is not None
            self._array = tensors.array(self._proto)
        return self._array

    @property
    def known(self) -> tuple[Size, ...]:
        """The shape. Fails where the rank is not known."""
        assert self.shape is not None
        return self.shape

    @property
    def scalar(self) -> Any:
        """The value of a constant of one element, else None."""
        if self.const and product(self.known) == 1:
            return self.array.reshape(())[()]
        return None

    def __repr__(self) -> str:
        return f"{self.name}{list(self.shape) if self.shape is not None else '?'}"


@dataclass(eq=False)
class Node:
    """A node of the new graph, or of the source. index: its place in the order in which the Builder wrote them."""

    proto: NodeProto
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    origin: str
    """The source node whose rule wrote this one."""
    captured: list[Tensor]
    """Tensors that subgraphs of the node read."""
    index: int = -1
    product: str = ""
    """Of a Gemm that was a MatMul and an Add: the source node whose rule wrote the MatMul."""


@dataclass(frozen=True)
class Leaf:
    """One tensor. ``axes[i]`` is the axis of its stored dimension i; None is a stored dimension of size 1."""

    tensor: Tensor
    axes: tuple[Axis | None, ...]


@dataclass(frozen=True)
class Part:
    """Some positions along a Cat's axis, and the body that has their values.

    axis: the body's own axis along these positions; None for a single position.
    """

    positions: tuple[int, ...]
    axis: Axis | None
    body: Body

    def with_body(self, body: Body) -> Part:
        """The same positions with another body."""
        return Part(self.positions, self.axis, body)


@dataclass(frozen=True)
class Cat:
    """A concatenation of parts along ``axis``. ``keep_split``: the parts were computed separately; joining parts that
    vary along the same axes would only copy them.
    """

    axis: Axis
    parts: tuple[Part, ...]
    keep_split: bool = False


@dataclass(frozen=True)
class Sum:
    """The sum of its terms, which broadcast to each other's axes."""

    terms: tuple[Body, ...]


@dataclass(frozen=True)
class Prod:
    """The product of its factors, which broadcast to each other's axes."""

    factors: tuple[Body, ...]


Body: TypeAlias = Leaf | Cat | Sum | Prod
Group: TypeAlias = tuple[Axis, ...]
Form: TypeAlias = tuple[tuple[Axis | None, ...], Body]
"""A form of a tensor: placeholder axes, one per dimension of the tensor, and a body over them."""
Again: TypeAlias = "Callable[[tuple[Axis | None, ...], Leaf], Leaf]"
"""Writes a tensor again, with one more term or factor; takes the axes that the tensor has by now."""
WRITTEN = Alternatives()
"""No other way than the written one."""


@dataclass(frozen=True)
class Places:
    """Coordinates of a mask that is the same at all positions of its first ``free`` axes.

    shape: of the mask. flat: row-major positions within its other axes. across: coordinates are along axis 0.
    merged: the mask was flat, so that there is a single coordinate, of the product of ``shape``.
    rows: for a mask that is one computed bit at all positions, the number of rows that it picks: all or none.
    bit: that bit, a scalar.
    """

    shape: tuple[Size, ...]
    free: int
    flat: tuple[int, ...]
    across: bool
    merged: bool = False
    rows: Size | None = None
    bit: Tensor | None = None


@dataclass
class Value:
    """A tensor of the source graph.

    groups: the atomic axes of each logical axis; None where not even the rank is known (then the body is a Leaf
        without axes, and only whole-tensor use is possible).
    sym: for small integer tensors, the elements as far as they are known: an object array of int, Dim or None.
    places: for coordinates of a mask (NonZero, or its transpose), where they point.
    series: for a vector of integers that is an arithmetic progression, its first element and the step.
    strided: for a vector ``n * step + rest[n]``, which picks from rows laid behind each other: the step and the rest.
    items: for a sequence of tensors of one shape, the elements stacked along a first axis.
    listed: for a sequence whose elements are known one by one, these.
    own_row: for integers that name rows, whether each names the row in which it stands itself.
    """

    groups: tuple[Group, ...] | None
    body: Body
    dtype: int
    sym: np.ndarray | None = field(default=None, repr=False)
    places: Places | None = field(default=None, repr=False)
    series: tuple[Size, Size] | None = field(default=None, repr=False)
    strided: tuple[Size, Value] | None = field(default=None, repr=False)
    items: Value | None = field(default=None, repr=False)
    listed: tuple[Value, ...] | None = field(default=None, repr=False)
    own_row: bool = field(default=False, repr=False)

    @property
    def known(self) -> tuple[Group, ...]:
        """The groups, one per dimension. Fails where the rank is not known."""
        assert self.groups is not None
        return self.groups

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.known)

    @property
    def shape(self) -> tuple[Size, ...]:
        """The size of each dimension: the product of the axes in its group, 1 for an empty group."""
        return tuple(product(axis.size for axis in group) for group in self.known)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of all groups, in order."""
        return tuple(axis for group in self.known for axis in group)


def leaves(body: Body) -> Iterator[Leaf]:
    """All leaves of a body, in no particular order."""
    stack: list[Body] = [body]
    while stack:
        top = stack.pop()
        if isinstance(top, Leaf):
            yield top
        elif isinstance(top, Cat):
            stack.extend(part.body for part in top.parts)
        elif isinstance(top, Sum):
            stack.extend(top.terms)
        else:
            stack.extend(top.factors)


def depth(body: Body) -> int:
    """How many Cats are nested within each other."""
    levels, inner = 0, [body]
    while inner := [part.body for cat in inner if isinstance(cat, Cat) for part in cat.parts]:
        levels += 1
    return levels


def axes_of(body: Body) -> frozenset[Axis]:
    """The axes along which the body varies."""
    if isinstance(body, Leaf):
        return frozenset(axis for axis in body.axes if axis is not None)
    if isinstance(body, Cat):
        found = {body.axis}
        for part in body.parts:
            found |= axes_of(part.body) - {part.axis}
        return frozenset(found)
    items = body.terms if isinstance(body, Sum) else body.factors
    return frozenset().union(*(axes_of(item) for item in items))


def rename(body: Body, mapping: dict[Axis, Axis]) -> Body:
    """The body with axes replaced, all at the same time."""
    if not mapping:
        return body
    if isinstance(body, Leaf):
        if not any(axis in mapping for axis in body.axes if axis is not None):
            return body
        return Leaf(body.tensor, tuple(mapping.get(a, a) if a is not None else None for a in body.axes))
    if isinstance(body, Cat):
        parts = tuple(p.with_body(rename(p.body, mapping)) for p in body.parts)
        return Cat(mapping.get(body.axis, body.axis), parts, body.keep_split)
    if isinstance(body, Sum):
        return Sum(tuple(rename(t, mapping) for t in body.terms))
    return Prod(tuple(rename(f, mapping) for f in body.factors))


def fresh(value: Value) -> Value:
    """The same value over new axes, so that it can stand beside another value that has its axes. The requests stay:
    what one value has of a request belongs to what another has of it.
    """
    mapping = {axis: Axis(axis.size) for axis in value.axes if not axis.only}
    groups = tuple(tuple(mapping.get(a, a) for a in group) for group in value.known)
    return Value(groups, _renewed(value.body, mapping), value.dtype, value.sym)


def _renewed(body: Body, mapping: dict[Axis, Axis]) -> Body:
    """The body with axes replaced, and with new axes inside its parts."""
    if not isinstance(body, Cat):
        return rename(body, mapping)
    parts = []
    for p in body.parts:
        sub = Axis(p.axis.size) if p.axis is not None else None
        inside = mapping if p.axis is None or sub is None else {**mapping, p.axis: sub}
        parts.append(Part(p.positions, sub, _renewed(p.body, inside)))
    return Cat(mapping.get(body.axis, body.axis), tuple(parts), body.keep_split)


def is_const(body: Body) -> bool:
    """Whether all leaves of a body are constants."""
    return all(leaf.tensor.const for leaf in leaves(body))


def depends(body: Body) -> frozenset[str]:
    """Which sides the body was computed from: a subset of {"user", "item"}."""
    return frozenset().union(*(leaf.tensor.deps for leaf in leaves(body)))


def offline(time: TimeModel, *bodies: Body) -> bool:
    """Whether all of it depends on the item alone, in a graph that will be split: then it is computed once per item,
    before any request, and must not be joined with what is computed for each candidate.
    """
    return time.apart and frozenset().union(*(depends(body) for body in bodies)) == {"item"}


KINDS = {
    frozenset(): "Const",
    frozenset({"user"}): "Shared",
    frozenset({"item"}): "Item",
    frozenset({"user", "item"}): "Mixed",
}


def kind(body: Body) -> str:
    """What a body was computed from, for reports: Const, Shared, Item or Mixed."""
    return KINDS[depends(body)]


class Decline(Exception):
    """A rule cannot go on; the default rule takes the node. The message is the reason in the report."""


def within(order: Sequence[Axis], axis: Axis, sub: Axis | None) -> list[Axis]:
    """The order of axes inside a part of a Cat along ``axis``: ``sub`` replaces it, or it is left out where sub is
    None.
    """
    return [a for a in (sub if a is axis else a for a in order) if a is not None]


def rows_first(axes: Sequence[Axis]) -> list[Axis]:
    """The axes with the candidate axis moved from the end to the front: rows are computed one by one."""
    dynamic = [a for a in axes if not isinstance(a.size, int)]
    return [axes[-1], *axes[:-1]] if dynamic and dynamic == [axes[-1]] else list(axes)
