"""The Values from which the interpreter starts: the source's initializers and inputs.

In: the source graph and the side of each input. Out: a Value per input and initializer, and the tensors that the new
graph takes. A user input has size 1 on the candidate axis of the new graph; its Value keeps the source's N, so that
shapes computed from it are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from mari_onnx.engine import requests
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Cat, Decline, Group, Leaf, Part, Tensor, Value
from mari_onnx.engine.rule import from_tensor
from mari_onnx.engine.session import Session
from mari_onnx.model.dims import Dim, Size
from mari_onnx.model.signature import dimension
from mari_onnx.sides.resolve import Sides

N = Dim.symbol("N")


def enter(b: Builder, session: Session, sides: Sides) -> tuple[dict[str, Value], dict[str, Tensor]]:
    """Values of all initializers and inputs, and the new graph's tensors of those that are inputs alone, both by
    name.
    """
    env: dict[str, Value] = {}
    inputs: dict[str, Tensor] = {}
    for proto in session.graph.initializer:
        if proto.data_type == TensorProto.STRING:
            tensor = b.input(proto.name, proto.data_type, tuple(proto.dims), frozenset())
        else:
            tensor = b.initializer(proto)
        env[proto.name] = from_tensor(tensor)
    for sparse in session.graph.sparse_initializer:
        name = sparse.values.name
        env[name] = from_tensor(b.input(name, sparse.values.data_type, tuple(sparse.dims), frozenset()))
    # sizes that a count stands for are read off other inputs, where there are several requests
    last = {*sides.counts, *sides.indices} if sides.several else set()
    for info in sorted(session.graph.input, key=lambda i: i.name in last):
        old = env.get(info.name)
        if old is None:
            env[info.name], inputs[info.name] = _input(b, info, sides, session.inputs.get(info.name))
        else:  # an initializer that the caller may replace is not a constant, but a weight
            b.given[info.name] = False
            env[info.name] = from_tensor(Tensor(info.name, old.dtype, old.shape, frozenset({"item", "user"})))
    return env, inputs


def input_shapes(graph: onnx.GraphProto, sides: Sides) -> dict[str, tuple[Size, ...]]:
    """Shapes of the inputs of known rank, by name; the candidate axis has the symbol N."""
    initialized = {p.name: tuple(p.dims) for p in graph.initializer}
    initialized |= {s.values.name: tuple(s.dims) for s in graph.sparse_initializer}
    inputs = [i for i in graph.input if i.name not in initialized]
    names = batch_names(inputs, sides)
    found: dict[str, tuple[Size, ...]] = {i.name: initialized.get(i.name, ()) for i in graph.input}
    for info in inputs:
        if info.type.tensor_type.HasField("shape"):
            found[info.name] = tuple(_size(info, i, sides, names) for i in range(len(info.type.tensor_type.shape.dim)))
        else:
            del found[info.name]
    return found


def declared(graph: onnx.GraphProto, sides: Sides) -> dict[str, tuple[int, tuple[Size | None, ...] | None]]:
    """Element types and shapes that the file declares of tensors other than inputs, by name.

    A symbol counts if it is the candidate axis' or if an input has it. Other dimensions are None, and so is the shape
    where none is declared.
    """
    constants = {p.name for p in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    inputs = [i for i in graph.input if i.name not in constants]
    names = batch_names(inputs, sides)
    known: dict[int | str | None, Size] = {}
    for info in inputs:
        for i, dim in enumerate(info.type.tensor_type.shape.dim):
            known[dimension(dim)] = _size(info, i, sides, names)
    known = {dim: size for dim, size in known.items() if isinstance(dim, str)}
    found: dict[str, tuple[int, tuple[Size | None, ...] | None]] = {}
    for info in (*graph.value_info, *graph.output):
        kind = info.type.tensor_type
        if kind.elem_type:
            dims = [dimension(dim) for dim in kind.shape.dim]
            shape = tuple(d if isinstance(d, int) else known.get(d) for d in dims)
            found[info.name] = (kind.elem_type, shape if kind.HasField("shape") else None)
    return found


def _size(info: onnx.ValueInfoProto, i: int, sides: Sides, names: set[str | int]) -> Size:
    """Dimension i of an input. It is N also where a model that was exported with a fixed batch has that number."""
    side, at = _side(info.name, sides), sides.axis_of(info.name)
    dim, rows = dimension(info.type.tensor_type.shape.dim[i]), requests.ROWS if sides.several else N
    # in the [R, N, ...] layout the user's inputs are [R, ...]: only a name tells that one has the candidates' axis
    candidate = side is not None and i == at and (side != "user" or not at or sides.surely_counts(info.name))
    if isinstance(dim, int):
        return rows if candidate and dim in names else dim
    if candidate or dim in names:
        return rows
    # beside tagged inputs, a free dimension that the exporter happened to call N is not the candidates'
    name = f"{dim} (free)" if sides and dim in ("N", *(["R"] if sides.several else [])) else dim
    return Dim.symbol(name or f"{info.name}[{i}]")


def batch_names(inputs: Sequence[onnx.ValueInfoProto], sides: Sides) -> set[str | int]:
    """The names that tagged inputs give the candidate axis; its literal size in a model exported with a fixed batch."""
    names: set[str | int] = set()
    for info in inputs:
        side, at = _side(info.name, sides), sides.axis_of(info.name)
        dims = info.type.tensor_type.shape.dim
        if side is None or at is None or len(dims) <= at:
            continue
        if side == "user" and at and not sides.surely_counts(info.name):
            continue
        dim = dimension(dims[at])
        if dim is not None and dim not in (0, 1):
            names.add(dim)
    return names


def _side(name: str, sides: Sides) -> str | None:
    return "packed" if name in sides.columns else sides.inputs.get(name)


_BOTH = {"user", "item"}
# Of an input without a side nobody said that it is the item's alone.
DEPS = {"user": {"user"}, "item": {"item"}, "cross": _BOTH, "packed": _BOTH, None: _BOTH}


def _input(
    b: Builder, info: onnx.ValueInfoProto, sides: Sides, shape: tuple[Size, ...] | None
) -> tuple[Value, Tensor]:
    """The Value of an input, and the tensor that the new graph takes. shape: None if the rank is not known."""
    side, at = _side(info.name, sides), sides.axis_of(info.name)
    if sides.several:
        return requests.enter(b, info, side, sides, shape)
    if shape is None:
        tensor = b.input(info.name, info.type.tensor_type.elem_type, None, frozenset(DEPS[side]))
        return from_tensor(tensor), tensor
    if info.name in sides.counts:
        return _count(b, info, shape)
    for size, dim in zip(shape, info.type.tensor_type.shape.dim, strict=True):
        if size == N and dim.HasField("dim_value"):
            b.fixed["N"] = dim.dim_value
    if N in shape:
        b.rows |= {symbol for size in shape[: shape.index(N)] if isinstance(size, Dim) for symbol in size.symbols}
    axes = [Axis(size) if size != 1 else None for size in shape]
    groups: tuple[Group, ...] = tuple((a,) if a is not None else () for a in axes)
    lifted = side == "user" and at is not None and len(shape) > at and shape[at] == N
    stored = tuple(1 if lifted and i == at else size for i, size in enumerate(shape))
    # an input that no one tagged is the user's where it has no row for each candidate
    once = side is None and not any(isinstance(size, Dim) and "N" in size.symbols for size in shape)
    deps = DEPS["user" if once else side]
    tensor = b.input(info.name, info.type.tensor_type.elem_type, stored, frozenset(deps))
    for i, size in enumerate(stored):
        if isinstance(size, Dim) and len(size.symbols) == 1:
            (symbol,) = size.symbols
            asked = b.sources.get(symbol)
            if b.time.apart and deps == {"item"} and asked is not None and asked[0].deps != deps:
                del b.sources[symbol]  # what is the items' own must not ask a cross input how many they are
            if not (symbol == "N" and side == "user"):
                b.sources.setdefault(symbol, (tensor, i))
    body: Leaf | Cat = Leaf(tensor, tuple(None if lifted and i == at else a for i, a in enumerate(axes)))
    if side == "packed":
        body = _packed(b, tensor, axes, sides.columns[info.name], sides.candidate_axis)
    return Value(groups, body, tensor.dtype), tensor


def _count(b: Builder, info: onnx.ValueInfoProto, shape: tuple[Size, ...]) -> tuple[Value, Tensor]:
    """An input of one element whose value is N; sizes computed from it are known. Refuses more than one element."""
    if any(size != 1 for size in shape):
        raise Decline(f"{info.name} is not one number, and cannot be the number of candidates")
    tensor = b.input(info.name, info.type.tensor_type.elem_type, shape, frozenset())
    value = from_tensor(tensor)
    value.sym = np.full([1] * len(shape), N, dtype=object)
    return value, tensor


def _packed(
    b: Builder, tensor: Tensor, axes: Sequence[Axis | None], columns: Mapping[str, Sequence[int]], at: int
) -> Cat:
    """A packed input ``X[N, F]``: row 0 of the user's columns, all rows of the others. Refuses other layouts."""
    if len(axes) != 2:
        raise Decline("only an input of shape [N, F] can have columns of several sides")
    rows, across = axes[at], axes[1 - at]
    assert across is not None
    parts = []
    first = emit.cut(b, tensor, at, 0, 1, 1)
    first.deps = frozenset({"user"})
    for side, places in columns.items():
        if not places:
            continue
        source = first if side == "user" else tensor
        piece = emit.pick(b, source, 1 - at, list(places))
        piece.deps = frozenset(DEPS[side])
        sub = Axis(len(places)) if len(places) > 1 else None
        own: list[Axis | None] = [sub, sub]
        own[at] = rows if side != "user" else None
        parts.append(Part(tuple(places), sub, Leaf(piece, tuple(own))))
    return Cat(across, tuple(parts))
