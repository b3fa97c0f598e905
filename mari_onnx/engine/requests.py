"""Several requests in one run (`--batched`, `--index`): what the new graph takes and gives.

In: a source for one user. A user input `[N, ..]`, `[1, ..]` or `[T]` of the source is `[R, ..]` or `[R, T]` in the new
graph. The source's rows are the axes (R, N) of the Values: N candidates of each of R requests behind each other, and a
user's leaf has R alone. So nothing is computed on repeated rows, and no rule has to know of requests.

grid: inputs of items are `[R, N, ..]`, and outputs get R in front. index, offsets: inputs of items and outputs are
`[P, ..]` as in the source, P candidates of all requests, and one more input says whose they are. Such a graph is made
as a grid in which every candidate is a request of its own (`output/per_candidate.py`). So is one of a source that takes
several users and has the index itself: there an index entry names its own row, `u[index][n] = u[index[n]]`.

A user input without rows has R in its leaf and not in the groups of its Value: its dimensions are those of one request.
Ids of bags have no dimension of requests: they are those of all requests behind each other, and the offsets beside them
say where the bag of each request, or of each candidate, begins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, helper, numpy_helper

from mari_onnx.engine.axes.align import split
from mari_onnx.engine.axes.materialize import materialise, write
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Cat, Decline, Group, Leaf, Part, Tensor, Value, axes_of, depends
from mari_onnx.engine.rule import from_sizes, from_tensor
from mari_onnx.model.dims import Dim, Size, symbols
from mari_onnx.model.nodes import captures
from mari_onnx.sides.resolve import Sides

N, R = Dim.symbol("N"), Dim.symbol("R")
ROWS = R * N
"""The source's rows: the candidates of all requests."""
ROWED = ("item", "cross", "packed")
"""Inputs with a row for each candidate."""
DEPS = {"user": {"user"}, "item": {"item"}, "cross": {"user", "item"}, "packed": {"user", "item"}}


def enter(
    b: Builder, info: onnx.ValueInfoProto, side: str | None, sides: Sides, shape: tuple[Size, ...] | None
) -> tuple[Value, Tensor]:
    """The Value of an input, with the rows of all requests, and the tensor that the new graph takes.

    shape: the source's, in which `ROWS` is the candidates' dimension. Refuses an unknown rank, a batch that the file
    fixes, and an input of an item without candidates, unless it holds the ids of bags.
    """
    name, dtype = info.name, info.type.tensor_type.elem_type
    if shape is None:
        raise Decline(f"the file does not say how many dimensions {name} has; --shape does")
    begin(b, sides)
    if name in sides.listed:
        return _ids(b, info, side, shape)
    if name in sides.counts:
        return _count(b, info, shape)
    if name in sides.indices:
        return _own_rows(b, info)
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
        body, tensor = _of_user(b, info, axes, at or _one_row(shape, side, sides, name), bool(at or not sides.indices))
        if at:
            groups[at[0]] = (_requests(b), Axis(N))
        return Value(tuple(groups), body, dtype), tensor
    if not at:
        raise Decline(f"the {side} input {name} has no dimension of candidates, so nothing says whose it is")
    candidates = Axis(N)
    groups[at[0]] = (_requests(b), candidates)
    tensor, body = _of_items(b, info, side, axes, at[0], candidates)
    if side == "packed":
        told = sides.added is not None
        return Value(tuple(groups), _packed(b, body.tensor, body.axes, sides.columns[name], told), dtype), tensor
    return Value(tuple(groups), body, dtype), tensor


def begin(b: Builder, sides: Sides) -> None:
    """The axis of the requests, and the input that tells every candidate its request."""
    if b.requests is not None:
        return
    b.requests = Axis(R, only=True)
    b.rows = set()  # a request may have no candidates, where others have some
    if sides.several in ("index", "offsets"):
        b.flat, b.sources["R"] = True, (Tensor("number of requests", TensorProto.INT64, (R,), frozenset()), 0)
    if sides.added is not None:
        given = b.input(sides.added, TensorProto.INT32, (Dim.symbol(f"?{sides.added}"),), frozenset({"item"}))
        b.index, b.lengths = (given, None) if sides.batched == "index" else _from_offsets(b, given)


def _from_offsets(b: Builder, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The request of each candidate `[P]`, and the number of candidates of each request `[R]`, from offsets `[R + 1]`:
    rows of the entries that are below a request's number of candidates, `NonZero(0..most-1 < length)`, one row for each
    request.
    """
    unknown, many = Dim.symbol("?length"), Dim.symbol("?P")
    wide = b.emit("Cast", [offsets], offsets.shape, TensorProto.INT64, {"to": TensorProto.INT64})
    ends = b.emit("Slice", [wide, b.ints([1]), b.ints([1 << 62]), b.ints([0])], (unknown,))
    starts = b.emit("Slice", [wide, b.ints([0]), b.ints([-1]), b.ints([0])], (unknown,))
    lengths = b.emit("Sub", [ends, starts], (unknown,))
    one_more = b.emit("Concat", [lengths, b.ints([0])], (unknown,), attrs={"axis": 0})  # there may be no request
    most = b.emit("ReduceMax", [one_more], (), attrs={"keepdims": 0})
    zero, one = (b.const(np.asarray(k, np.int64)) for k in (0, 1))
    places = b.emit("Range", [zero, most, one], (many,))
    column = emit._axes(b, "Unsqueeze", lengths, [1], (unknown, 1))
    there = b.emit("Less", [places, column], (unknown, many), TensorProto.BOOL)
    where = b.emit("NonZero", [there], (2, many), TensorProto.INT64)
    return b.emit("Gather", [where, zero], (many,), attrs={"axis": 0}), lengths


def _requests(b: Builder) -> Axis:
    assert b.requests is not None
    return b.requests


def _of_user(
    b: Builder, info: onnx.ValueInfoProto, axes: Sequence[Axis | None], gone: Sequence[int], several: bool
) -> tuple[Leaf, Tensor]:
    """A user's input, with the requests in front of the dimensions that are left. several: it differs by request."""
    stored = [a for i, a in enumerate(axes) if i not in gone] if several else list(axes)
    if several:
        stored.insert(0, b.requests)
    tensor = _input(b, info, stored, DEPS["user"])
    if several:
        b.users = b.users or tensor
    _sources(b, tensor)
    return Leaf(tensor, tuple(stored)), tensor


def _of_items(
    b: Builder, info: onnx.ValueInfoProto, side: str, axes: Sequence[Axis | None], at: int, candidates: Axis
) -> tuple[Tensor, Leaf]:
    """An input with candidates, at dimension ``at`` of the source. The leaf has the requests and their candidates."""
    rest = [candidates if i == at else a for i, a in enumerate(axes)]
    if b.flat:
        flat = [b.requests if i == at else a for i, a in enumerate(axes)]
        tensor = _input(b, info, flat, DEPS[side])
        stored = [*flat[: at + 1], candidates, *flat[at + 1 :]]
        shape = tuple(a.size if a is not None else 1 for a in stored)
        rows = emit._axes(b, "Unsqueeze", tensor, [at + 1], shape)
        b.sources.setdefault("N", (rows, at + 1))
        _sources(b, tensor)
        return tensor, Leaf(rows, tuple(stored))
    stored = [b.requests, *rest]
    tensor = _input(b, info, stored, DEPS[side])
    _sources(b, tensor)
    return tensor, Leaf(tensor, tuple(stored))


def _input(b: Builder, info: onnx.ValueInfoProto, axes: Sequence[Axis | None], deps: Iterable[str]) -> Tensor:
    shape = tuple(a.size if a is not None else 1 for a in axes)
    return b.input(info.name, info.type.tensor_type.elem_type, shape, frozenset(deps))


def _sources(b: Builder, tensor: Tensor) -> None:
    for i, size in enumerate(tensor.known):
        if isinstance(size, Dim) and len(size.symbols) == 1:
            b.sources.setdefault(next(iter(size.symbols)), (tensor, i))


def _own_rows(b: Builder, info: onnx.ValueInfoProto) -> tuple[Value, Tensor]:
    """An index of user rows, where every candidate is taken for a user of his own: 0, 1, 2, .. for all rows."""
    dims = info.type.tensor_type.shape.dim
    tensor = b.input(info.name, info.type.tensor_type.elem_type, (R, *([1] * (len(dims) - 1))), frozenset({"item"}))
    b.index = tensor if len(dims) == 1 else emit.reshape(b, tensor, (R,))
    counted = b.emit("Squeeze", [b.size(ROWS)], (), attrs={"axes": None})
    rows = b.emit("Range", [b.const(np.int64(0)), counted, b.const(np.int64(1))], (ROWS,))
    if tensor.dtype != rows.dtype:
        rows = b.emit("Cast", [rows], rows.known, tensor.dtype, {"to": tensor.dtype})
    value = from_tensor(emit.reshape(b, rows, (R, N)))
    value.groups = (tuple(a for group in value.known for a in group), *([()] * (len(dims) - 1)))
    value.own_row, value.series = True, (0, 1) if len(dims) == 1 else None
    return value, tensor


def _ids(b: Builder, info: onnx.ValueInfoProto, side: str | None, shape: tuple[Size, ...]) -> tuple[Value, Tensor]:
    """The ids of the bags of all requests, behind each other. Refuses a number of ids that the file fixes."""
    if isinstance(shape[0], int):
        raise Decline(f"the file fixes the number of ids in {info.name} at {shape[0]}; --shape frees it")
    tensor = b.input(info.name, info.type.tensor_type.elem_type, shape, frozenset(DEPS[side or "cross"]))
    _sources(b, tensor)
    return from_tensor(tensor), tensor


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
    b: Builder,
    tensor: Tensor,
    axes: Sequence[Axis | None],
    columns: Mapping[str, Sequence[int]],
    told: bool,
) -> Cat:
    """A packed input ``X[R, N, F]``: of each request row 0 of the user's columns, all rows of the others.

    told: X is ``[P, F]``, and the graph has an input that tells the request of each candidate.
    """
    if len(axes) != 3 or axes[2] is None:
        raise Decline("only an input of shape [N, F] can have columns of several sides")
    first = tensor if told else emit.cut(b, tensor, 1, 0, 1, 1)
    if not told:
        first.deps = frozenset({"user"})
    parts = []
    for side, places in columns.items():
        if places:
            piece = emit.pick(b, first if side == "user" else tensor, 2, list(places))
            if side == "user" and told:
                piece = _gathered_up(b, piece, len(places))
            piece.deps = frozenset(DEPS[side])
            sub = Axis(len(places)) if len(places) > 1 else None
            own = (axes[0], None if side == "user" else axes[1], sub)
            parts.append(Part(tuple(places), sub, Leaf(piece, own)))
    return Cat(axes[2], tuple(parts))


def _gathered_up(b: Builder, rows: Tensor, width: int) -> Tensor:
    """The user's columns `[R, 1, width]`, from rows of candidates, of which those of a request are equal.

    Each candidate writes his row to that of his request; a request without candidates has zeros, which nothing reads.
    """
    assert b.index is not None
    index = b.emit("Cast", [b.index], b.index.known, TensorProto.INT64, {"to": TensorProto.INT64})
    places = emit._axes(b, "Unsqueeze", index, [1], (*index.known, 1))
    shape = b.emit("Concat", [b.size(R), b.ints([1, width])], (3,), attrs={"axis": 0})
    zero = numpy_helper.from_array(np.zeros(1, helper.tensor_dtype_to_np_dtype(rows.dtype)))
    empty = b.emit("ConstantOfShape", [shape], (R, 1, width), rows.dtype, {"value": zero})
    found = b.emit("ScatterND", [empty, places, rows], (R, 1, width))
    b.gathered_up.add(found.name)
    return found


def row_per_request(b: Builder) -> Tensor:
    """A tensor with a row for each request, where no input of the user has one: the numbers of candidates, or
    `0, 1, .., max(index)`.
    """
    assert b.index is not None
    if b.lengths is not None:
        return b.lengths
    many = Dim.symbol("?requests")
    index = b.emit("Cast", [b.index], b.index.known, TensorProto.INT64, {"to": TensorProto.INT64})
    one_more = b.emit("Concat", [index, b.ints([-1])], (many,), attrs={"axis": 0})
    last = b.emit("ReduceMax", [one_more], (), attrs={"keepdims": 0})
    zero, one = (b.const(np.asarray(k, np.int64)) for k in (0, 1))
    return b.emit("Range", [zero, b.emit("Add", [last, one], ()), one], (many,))


def leave(b: Builder, name: str, value: Value, declared: tuple[Size | None, ...] | None = None) -> Tensor:
    """An output with the requests in front: `[R, N, ..]` where the source has `[N, ..]`.

    declared: the shape that the file says it has, which is believed where nothing else tells the rank.

    Refuses one whose rank is not known, and one in which the requests cannot be told apart, as in a mean over rows.
    """
    if value.groups is None and declared is not None and value.items is None and value.listed is None:
        tensor = materialise(b, value)
        tensor.shape = tuple(b.fresh(tensor, i) if size is None else size for i, size in enumerate(declared))
        value = from_tensor(tensor)
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
    if sum(any(symbols(a.size) & {"N", "R"} for a in g) for g in groups) > 1:
        raise Decline(f"the output {name} has more than one dimension of candidates")
    if any("R" in symbols(a.size) and a.size != R for g in groups for a in g):
        raise Decline(f"the output {name} has a dimension in which requests and something else are one")
    if not found and depends(body):
        raise Decline(f"nothing shows which part of the output {name} is that of one request")
    first = next(iter(found), b.requests)
    if b.flat and any(a.size == N for g in groups for a in g):
        return write(b, body, groups, frozenset(a for g in groups for a in g))
    rest: list[Group] = [tuple(a for a in group if a is not first) for group in groups]
    return write(b, body, [(first,), *rest], frozenset({first, *(a for g in rest for a in g)}))


def for_requests(outputs: Iterable[Tensor]) -> set[str]:
    """Names of the outputs that have a row for each request, and none for each candidate."""
    return {t.name for t in outputs if not any("N" in symbols(size) for size in t.known)}


def of_users(graph: onnx.GraphProto, sides: Sides) -> set[str]:
    """Tensors of a source that takes several users which are computed of these, before the index picks rows."""
    found = {name for name in sides.inputs if sides.side(name) == "user"}
    rowed = {i.name for i in graph.input} - found - {p.name for p in graph.initializer}
    for node in graph.node:
        read = {*node.input, *captures(node)}
        (rowed if read & rowed else found if read & found else set()).update(node.output)
    return found


def by_user(shape: tuple[Size, ...]) -> tuple[Size, ...]:
    """The shape that such a tensor has in the source: a row for each user, not for each candidate."""
    return tuple(size.substitute({"N": 1}) if isinstance(size, Dim) else size for size in shape)


def declare(model: onnx.ModelProto, sides: Sides, source: onnx.GraphProto, once: Collection[str]) -> None:
    """Puts the requests into the declared shapes of inputs and outputs of the new graph, and adds the input that says
    whose candidates are whose.

    What the source says of inner tensors is about one request, and is dropped. once: outputs with a row per request.
    """
    del model.graph.value_info[:]
    if sides.indices:
        return
    constants = {p.name for p in source.initializer}
    symbol = free_symbol(source)
    for info in model.graph.input:
        side = "packed" if info.name in sides.columns else sides.inputs.get(info.name)
        if info.name in constants or info.name in sides.counts or (sides.batched != "grid" and side in ROWED):
            continue
        if info.name in sides.listed:
            continue
        _in_front(info.type, symbol, (sides.axis_of(info.name),) if side == "user" else ())
    for info in model.graph.output:
        if sides.batched == "grid" or info.name in once:
            _in_front(info.type, symbol)
    if sides.added is not None:
        info = model.graph.input.add(name=sides.added)
        info.type.tensor_type.elem_type = TensorProto.INT32
        dim = info.type.tensor_type.shape.dim.add()
        if sides.batched == "index":
            dim.dim_param = next(filter(None, _candidates(source, sides)), "")


def _candidates(source: onnx.GraphProto, sides: Sides) -> Iterator[str]:
    """What the source calls the number of candidates."""
    for info in source.input:
        at, dims = sides.axis_of(info.name), info.type.tensor_type.shape.dim
        if sides.inputs.get(info.name) in ("item", "cross") and at is not None and len(dims) > at:
            yield dims[at].dim_param


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
