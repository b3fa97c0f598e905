"""Several requests in one run (`--batched grid`): inputs and outputs with one more dimension in front, R requests.

In: a source for one user. A user input `[N, ..]`, `[1, ..]` or `[T]` of the source is `[R, ..]` or `[R, T]` in the new
graph, one of an item `[R, N, ..]`; outputs get R in front. The source's rows are the axes (R, N) of the Values: N
candidates of each of R requests behind each other, and a user's leaf has R alone. So nothing is computed on repeated
rows, and no rule has to know of requests.

A user input without rows has R in its leaf and not in the groups of its Value: its dimensions are those of one request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TypeProto

from mari_onnx.engine.axes.align import split
from mari_onnx.engine.axes.materialize import write
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Cat, Decline, Group, Leaf, Part, Tensor, Value, axes_of, depends
from mari_onnx.engine.rule import from_sizes
from mari_onnx.model.dims import Dim, Size, symbols
from mari_onnx.sides.resolve import Sides

N, R = Dim.symbol("N"), Dim.symbol("R")
ROWS = R * N
"""The source's rows: the candidates of all requests."""
DEPS = {"user": {"user"}, "item": {"item"}, "cross": {"user", "item"}, "packed": {"user", "item"}}


def enter(
    b: Builder, info: onnx.ValueInfoProto, side: str | None, sides: Sides, shape: tuple[Size, ...] | None
) -> tuple[Value, Tensor]:
    """The Value of an input, with the rows of all requests, and the tensor that the new graph takes.

    shape: the source's, in which `ROWS` is the candidates' dimension. Refuses an unknown rank, a batch that the file
    fixes, bags, and an input of an item without candidates.
    """
    name, dtype = info.name, info.type.tensor_type.elem_type
    if shape is None:
        raise Decline(f"the file does not say how many dimensions {name} has; --shape does")
    if name in {*sides.bags, *(each for ids in sides.bags.values() for each in ids)}:
        raise Decline(f"{name} belongs to bags of ids, which are cut by offsets of one request")
    if name in sides.counts:
        return _count(b, info, shape)
    if b.requests is None:
        b.requests = Axis(R)
        b.rows = set()  # a request may have no candidates, where others have some
    at = [i for i, size in enumerate(shape) if size == ROWS]
    fixed = [size for i in at if (size := info.type.tensor_type.shape.dim[i].dim_value) > 0]
    if fixed:
        raise Decline(f"the file fixes the number of candidates at {fixed[0]} ({name}); --shape frees it")
    if len(at) > 1 or any({"N", "R"} & symbols(size) for i, size in enumerate(shape) if i not in at):
        raise Decline(f"{name} has more than one dimension with the number of candidates")
    axes = [Axis(size) if size != 1 else None for size in shape]
    groups: list[Group] = [(a,) if a is not None else () for a in axes]
    if side in ("user", None):
        if side is None and at:
            raise Decline(f"{name} has candidates, but no side")
        gone = at or _one_row(shape, side, sides, name)
        rest = [a for i, a in enumerate(axes) if i not in gone]
        deps = DEPS["user"]
        if at:
            groups[at[0]] = (b.requests, Axis(N))
    else:
        if not at:
            raise Decline(f"the {side} input {name} has no dimension of candidates, so nothing says whose it is")
        candidates = Axis(N)
        groups[at[0]] = (b.requests, candidates)
        rest = [candidates if i in at else a for i, a in enumerate(axes)]
        deps = DEPS[side]
    stored = [b.requests, *rest]
    tensor = b.input(name, dtype, tuple(a.size if a is not None else 1 for a in stored), frozenset(deps))
    for i, size in enumerate(tensor.known):
        if isinstance(size, Dim) and len(size.symbols) == 1:
            b.sources.setdefault(next(iter(size.symbols)), (tensor, i))
    if side == "packed":
        return Value(tuple(groups), _packed(b, tensor, stored, sides.columns[name]), dtype), tensor
    return Value(tuple(groups), Leaf(tensor, tuple(stored)), dtype), tensor


def _one_row(shape: Sequence[Size], side: str | None, sides: Sides, name: str) -> list[int]:
    """The dimension of 1 in which the source has the user's only row."""
    at = sides.axis_of(name) if side == "user" else None
    return [at] if at is not None and len(shape) > at and shape[at] == 1 else []


def _count(b: Builder, info: onnx.ValueInfoProto, shape: tuple[Size, ...]) -> tuple[Value, Tensor]:
    """The number of candidates, in the source the number of its rows. The new graph reads it off other inputs."""
    if any(size != 1 for size in shape):
        raise Decline(f"{info.name} is not one number, and cannot be the number of candidates")
    tensor = b.input(info.name, info.type.tensor_type.elem_type, shape, frozenset())
    return from_sizes(b, np.full([1] * len(shape), ROWS, dtype=object), tensor.dtype), tensor


def _packed(
    b: Builder, tensor: Tensor, axes: Sequence[Axis | None], columns: Mapping[str, Sequence[int]]
) -> Cat:
    """A packed input ``X[R, N, F]``: of each request row 0 of the user's columns, all rows of the others."""
    if len(axes) != 3 or axes[2] is None:
        raise Decline("only an input of shape [N, F] can have columns of several sides")
    first = emit.cut(b, tensor, 1, 0, 1, 1)
    first.deps = frozenset({"user"})
    parts = []
    for side, places in columns.items():
        if places:
            piece = emit.pick(b, first if side == "user" else tensor, 2, list(places))
            piece.deps = frozenset(DEPS[side])
            sub = Axis(len(places)) if len(places) > 1 else None
            own = (axes[0], None if side == "user" else axes[1], sub)
            parts.append(Part(tuple(places), sub, Leaf(piece, own)))
    return Cat(axes[2], tuple(parts))


def leave(b: Builder, name: str, value: Value) -> Tensor:
    """An output with the requests in front: `[R, N, ..]` where the source has `[N, ..]`.

    Refuses one whose rank is not known, and one in which the requests cannot be told apart, as in a mean over rows.
    """
    if value.groups is None or value.items is not None or value.listed is not None:
        raise Decline(f"the number of dimensions of the output {name} is not known, or it is no tensor")
    assert b.requests is not None
    body, groups = value.body, list(value.groups)
    for i, group in enumerate(groups):
        for axis in group:
            if axis.size == ROWS:
                new = (b.axis(R, value.axes), Axis(N))
                body = split(b, body, axis, new)
                groups[i] = tuple(piece for a in groups[i] for piece in (new if a is axis else (a,)))
    found = {a for g in groups for a in g if a.size == R}
    if b.requests in axes_of(body):
        found.add(b.requests)
    if len(found) > 1:
        raise Decline(f"candidates of several requests meet in the output {name}")
    if any("R" in symbols(a.size) and a.size != R for g in groups for a in g):
        raise Decline(f"the output {name} has a dimension in which requests and something else are one")
    if not found and depends(body):
        raise Decline(f"nothing shows which part of the output {name} is that of one request")
    first = next(iter(found), b.requests)
    rest: list[Group] = [tuple(a for a in group if a is not first) for group in groups]
    return write(b, body, [(first,), *rest], frozenset({first, *(a for g in rest for a in g)}))


def declare(model: onnx.ModelProto, sides: Sides, source: onnx.GraphProto) -> None:
    """Puts the requests into the declared shapes of inputs and outputs of the new graph.

    What the source says of inner tensors is about one request, and is dropped.
    """
    constants = {p.name for p in source.initializer}
    symbol = free_symbol(source)
    for info in model.graph.input:
        if info.name not in constants and info.name not in sides.counts:
            gone = () if sides.inputs.get(info.name) != "user" else (sides.axis_of(info.name),)
            _in_front(info.type, symbol, gone)
    for info in model.graph.output:
        _in_front(info.type, symbol)
    del model.graph.value_info[:]


def free_symbol(graph: onnx.GraphProto) -> str:
    """A name for the number of requests that no dimension of the graph's inputs and outputs has."""
    taken = {d.dim_param for i in (*graph.input, *graph.output) for d in i.type.tensor_type.shape.dim}
    names = ["R", "requests", *(f"requests_{k}" for k in range(len(taken)))]
    return next(name for name in names if name not in taken)


def _in_front(kind: TypeProto, symbol: str, gone: Iterable[int | None] = ()) -> None:
    """One more dimension in front of a tensor's declared shape, if it has one; those at ``gone`` are dropped."""
    if not kind.tensor_type.HasField("shape"):
        return
    shape = TypeProto()
    shape.CopyFrom(kind)
    kept = [d for i, d in enumerate(shape.tensor_type.shape.dim) if i not in gone]
    del kind.tensor_type.shape.dim[:]
    kind.tensor_type.shape.dim.add().dim_param = symbol
    kind.tensor_type.shape.dim.extend(kept)



