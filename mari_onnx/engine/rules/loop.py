"""Loops that are maps over their iterations: the body is interpreted once, for all of them.

    [f(x[i], y[L i : L i + L]) for i < N]   =   f over the rows of x and of y as [N, L], stacked

An EmbeddingBag is exported so: offsets are ``Range(0, N L, L)``, and iteration i looks up, and reduces, the ids between
two neighbouring offsets. The iteration number is a symbol in here. A row of a tensor is a Value that varies along an
axis which is in none of its groups; element-wise operators, look-ups and reductions carry such an axis along, and what
is left at the end is stacked along it. A bag of the user's ids has no such axis: it is computed once.

Refused (the Loop is copied): anything that needs a real iteration number, carried state other than a counter and a
sequence that grows by one element, a trip count that is not known to be the number of rows, offsets that are data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count as numbers

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from mari_onnx.engine.builder import RANDOM, Builder, Node, Tensor
from mari_onnx.engine.context import INTS, Context, constant, from_sizes, from_tensor, normal, rule, symbolic
from mari_onnx.engine.rules.elementwise import ARITHMETIC, BOOLEAN, PLAIN
from mari_onnx.engine.rules.reduce import SUMS
from mari_onnx.engine.rules.structure import positions, regroup
from mari_onnx.engine.value import Axis, Decline, Group, Leaf, Value, axes_of, leaves, rename
from mari_onnx.engine.write import materialise
from mari_onnx.model.dims import Dim, Size, divide, product, static, symbols

COMPARISONS = {"Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"}
CARRY = {
    *PLAIN, *BOOLEAN, *ARITHMETIC, *SUMS, "ReduceMax", "ReduceMin", "ReduceProd", "Where", "Cast", "CastLike", "Clip",
    "Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Slice", "Shape", "Size", "Gather",
}  # fmt: skip
"""Operators whose rules leave alone an axis that no group has."""
ITERATION = numbers()


# ---- arithmetic progressions ---------------------------------------------------------------------------------------


def follow(ctx: Context, outputs: Sequence[Value | None]) -> None:
    """Note on an output that it is the progression ``first, first + step, ...``, where that follows from the inputs."""
    op, out = ctx.node.op_type, outputs[0] if outputs else None
    if out is None or out.groups is None or out.rank != 1 or out.series is not None or out.dtype not in INTS:
        return
    values = [v for v in ctx.inputs if v is not None]
    if op == "Range":
        start, _, step = (_element(ctx.b, v) for v in values)
        if start is not None and step is not None:
            out.series = start, step
    elif any(v.series is not None for v in values) and op in ("Mul", "Add", "Sub", "Slice", "Concat", "Cast"):
        out.series = _series(ctx, op, values)


def _series(ctx: Context, op: str, values: Sequence[Value]) -> tuple[Size, Size] | None:
    b, x = ctx.b, values[0]
    if op == "Cast":
        return x.series
    if op in ("Mul", "Add", "Sub"):
        y = values[1]
        if x.series is None and op != "Sub":
            x, y = y, x
        by = _element(b, y)
        if x.series is None or by is None:
            return None
        first, step = x.series
        if op == "Mul":
            return first * by, step * by
        return (first + by if op == "Add" else first - by), step
    if x.series is None:
        return None
    first, step = x.series
    if op == "Slice":
        start = _element(b, values[1]) if len(values) > 1 else None
        by = _element(b, values[4]) if len(values) > 4 else 1
        return (first + step * start, step) if isinstance(start, int) and start >= 0 and by == 1 else None
    if len(values) == 2 and _element(b, values[1]) == first + step * x.shape[0]:
        return x.series
    return None


def _element(b: Builder, value: Value) -> Size | None:
    """The one element of a small integer tensor, where it is known."""
    if value.groups is None or product(value.shape) != 1:
        return None
    found = symbolic(b, value)
    return None if found is None else found.reshape(-1)[0]


def _progression(b: Builder, value: Value) -> tuple[Size, Size] | None:
    """The progression that a vector is, noted or constant."""
    if value.series is not None or value.groups is None or value.rank != 1 or value.dtype not in INTS:
        return value.series
    array = constant(b, value)
    if array is None or array.size < 2 or len(set(np.diff(array).tolist())) != 1:
        return None
    return int(array[0]), int(array[1] - array[0])


# ---- sizes ---------------------------------------------------------------------------------------------------------


def _substitute(size: Size, name: str, by: Size) -> Size:
    if not isinstance(size, Dim):
        return size
    total: Size = 0
    for monomial, factor in size.terms.items():
        total = total + factor * product(by if s == name else Dim.symbol(s) for s in monomial)
    return total


def _linear(size: Size, name: str) -> tuple[Size, Size] | None:
    """``size`` as (c, k) of ``c + k * (name - 1)``, k free of the symbol."""
    at = [_substitute(size, name, k) for k in (1, 2)]
    step = at[1] - at[0]
    return (at[0], step) if size == at[0] + step * (Dim.symbol(name) - 1) else None


def _solved(difference: Size, fixed: str) -> tuple[str, Size] | None:
    """A symbol other than ``fixed`` and what it is where the difference is zero."""
    if not isinstance(difference, Dim):
        return None
    for name in sorted(difference.symbols - {fixed}):
        factor = difference.terms.get((name,), 0)
        rest = difference - factor * Dim.symbol(name)
        if factor in (1, -1) and name not in symbols(rest):
            return name, rest * -factor
    return None


# ---- the body, once ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Body:
    """The body of a Loop for all iterations.

    symbol: the iteration number plus one (a size is at least 1). tensor: stands for what only a run could tell; no
    result may depend on it. group: the axes of the iterations, of length ``count``, once a row has been taken.
    """

    ctx: Context
    symbol: str
    tensor: Tensor
    env: dict[str, Value]
    count: Size | None = None
    group: Group | None = None
    swap: tuple[str, Size] | None = None
    """A symbol and what it is in this branch."""

    def __post_init__(self) -> None:
        self.b = self.ctx.b
        self.conditions: dict[str, tuple[str, Size, Size]] = {}
        self.reach: list[tuple[Size, Size]] = []
        self._rows: dict[tuple[int, int, Size, bool], tuple[Value, Value]] = {}

    # ---- nodes
    def run(self, graph: GraphProto) -> list[Value]:
        for proto in graph.initializer:
            self.env[proto.name] = from_tensor(self.b.const(numpy_helper.to_array(proto), proto.data_type))
        for node in graph.node:
            self.visit(node)
        return [self.env[o.name] for o in graph.output]

    def visit(self, node: NodeProto) -> None:
        if node.op_type in RANDOM:
            raise Decline("the body of the Loop draws random numbers")
        values = [self.input(name) for name in node.input if name]
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        found: Value | None = None
        if op == "If":
            self.choose(node)
            return
        if op == "SequenceInsert" and len(values) == 2:
            found = self.inserted(*values)
        elif op in ("Gather", "Slice"):
            inner = Context(self.b, node, values, self.ctx.opsets, {})
            found = self.gathered(inner) if op == "Gather" else self.sliced(inner)
        if found is not None:
            self.env[node.output[0]] = found
            return
        hidden = [v for v in values if v.groups is not None and axes_of(v.body) - set(v.axes)]
        if hidden and (op not in CARRY or (op == "Gather" and len(hidden) > 1)):
            raise Decline(f"{op} of the rows of a Loop")
        assert self.ctx.visit is not None
        self.ctx.visit(node, self.env)
        if op in COMPARISONS and constant(self.b, self.env[node.output[0]]) is None:
            left, right = (_element(self.b, v) for v in values)
            if left is not None and right is not None:
                self.conditions[node.output[0]] = op, left, right

    def input(self, name: str) -> Value:
        value = self.env[name]
        if self.swap is not None and value.sym is not None:
            symbol, by = self.swap
            changed = np.frompyfunc(lambda s: _substitute(s, symbol, by), 1, 1)(value.sym)
            value = replace(value, sym=np.asarray(changed, dtype=object).reshape(value.sym.shape))
            self.env[name] = value
        return value

    def choose(self, node: NodeProto) -> None:
        """One branch where the condition is known; both, and they must agree, where one iteration takes another."""
        branches = {a.name: a.g for a in node.attribute}
        known = constant(self.b, self.input(node.input[0]))
        if known is not None:
            results = self.branch(branches["then_branch" if known.reshape(-1)[0] else "else_branch"], self.swap)
        else:
            op, left, right = self.conditions.get(node.input[0], ("", 0, 0))
            swap = _solved(left - right, self.symbol) if op == "Equal" and self.swap is None else None
            if swap is None:
                raise Decline("an If in the body of the Loop depends on data")
            single = self.branch(branches["then_branch"], swap)
            results = self.branch(branches["else_branch"], None)
            if not all(_alike(self.b, x, y) for x, y in zip(single, results, strict=True)):
                raise Decline("one iteration of the Loop differs from the others")
        self.env.update(zip(node.output, results, strict=True))

    def branch(self, graph: GraphProto, swap: tuple[str, Size] | None) -> list[Value]:
        outer, self.env, before, self.swap = self.env, dict(self.env), self.swap, swap
        try:
            return self.run(graph)
        finally:
            self.env, self.swap = outer, before

    # ---- rows
    def gathered(self, ctx: Context) -> Value | None:
        """A row, or an element of a progression, at the iteration number."""
        x, index = ctx.input(0), ctx.input(1)
        place = _element(self.b, index)
        if place is None or self.symbol not in symbols(place) or index.rank > 1:
            return None
        element = self.element(x, place, index.rank)
        if element is not None:
            return element
        return self.row(x, normal(ctx.attr("axis", 0), x.rank), place, 1, index.rank == 0)

    def sliced(self, ctx: Context) -> Value | None:
        """``x[L i : L i + L]`` along one axis."""
        if len(ctx.inputs) < 3:
            return None
        x, start, end = ctx.input(0), _element(self.b, ctx.input(1)), _element(self.b, ctx.input(2))
        if start is None or end is None or self.symbol not in symbols(start) | symbols(end):
            return None
        axes = ctx.ints(3) if len(ctx.inputs) > 3 else [0]
        steps = ctx.ints(4) if len(ctx.inputs) > 4 else [1]
        if axes is None or len(axes) != 1 or steps != [1] or self.symbol in symbols(end - start):
            raise Decline("a Slice in the body of the Loop has another length in each iteration")
        if end - start == 1:
            element = self.element(x, start, 1)
            if element is not None:
                return element
        return self.row(x, normal(axes[0], x.rank), start, end - start, False)

    def element(self, x: Value, place: Size, rank: int) -> Value | None:
        """Element ``i + k`` of a progression."""
        series, at = _progression(self.b, x), _linear(place, self.symbol)
        if series is None or at is None or at[1] != 1 or not isinstance(at[0], int) or at[0] < 0:
            return None
        self.reach.append((x.shape[0], at[0]))
        sym = np.empty((1,) * rank, dtype=object)
        sym[...] = series[0] + series[1] * place
        return from_sizes(self.b, sym, x.dtype)

    def row(self, x: Value, at: int, start: Size, length: Size, drop: bool) -> Value:
        """``x[i L : i L + L]`` as a Value over L; the axis of the iterations is in none of its groups."""
        key = (id(x.body), at, length, drop)
        if key in self._rows and self._rows[key][0].known == x.known:
            return self._rows[key][1]
        b = self.b
        found = _linear(start, self.symbol)
        if found is None or found[0] != 0 or not b.same(found[1], length):
            raise Decline("a Slice in the body of the Loop is not one of equal rows")
        size = x.shape[at]
        rows = divide(size, length)
        if rows is None and b.fixed:
            rows = divide(b.literal(size), b.literal(length))
        if rows is None or (self.count is not None and not b.same(self.count, rows)):
            raise Decline(f"{size} is not known to be a row of {length} for each iteration of the Loop")
        if self.group is not None and set(self.group) & axes_of(x.body):
            raise Decline("a row of the rows of a Loop")
        y = regroup(self.ctx, x, [*x.shape[:at], rows, length, *x.shape[at + 1 :]])
        if self.group is None:
            self.count, self.group = rows, tuple(Axis(a.size) for a in y.known[at])
        if [a.size for a in self.group] != [a.size for a in y.known[at]]:
            raise Decline("rows of a Loop are counted along different axes")
        body = rename(y.body, dict(zip(y.known[at], self.group, strict=True)))
        inner = [] if drop else [y.known[at + 1]]
        value = Value((*y.known[:at], *inner, *y.known[at + 2 :]), body, x.dtype)
        self._rows[key] = x, value
        return value

    def inserted(self, sequence: Value, element: Value) -> Value:
        if sequence.items is not None or not _empty(self.b, sequence):
            raise Decline("the Loop inserts into a sequence more than once")
        return replace(sequence, items=element)

    # ---- results
    def finish(self, trips: Size) -> None:
        """Check what was assumed about the number of iterations."""
        if self.count is not None and not self.b.same(self.count, trips):
            raise Decline(f"{trips} iterations of the Loop, over {self.count} rows")
        if self.group is None:
            self.count, self.group = trips, (Axis(trips),) if trips != 1 else ()
        for size, offset in self.reach:
            left = self.b.literal(size) - self.b.literal(trips) - offset
            if isinstance(left, Dim) or left < 0:
                raise Decline("the Loop reads past the end of its offsets")

    def stacked(self, value: Value) -> Value:
        """The value of each iteration, the iterations first."""
        if value.groups is None or self.group is None:
            raise Decline("the rank of an output of the Loop's body is not known")
        if axes_of(value.body) - set(value.axes) - set(self.group):
            raise Decline("an output of the Loop's body varies along an axis that it lacks")
        named = {s for size in value.shape for s in symbols(size)}
        sources = [self.b.sources[s][0] for s in named if s in self.b.sources]
        if self.symbol in named or self.depends([*sources, *(leaf.tensor for leaf in leaves(value.body))]):
            raise Decline("the Loop computes with the number of the iteration")
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
                node = self.b.nodes[top.node]
                stack += [t for t in [*node.inputs, *node.captured] if t is not None]
        return False


def _empty(b: Builder, value: Value) -> bool:
    """Whether a sequence is known to have no elements."""
    tensor = value.body.tensor if isinstance(value.body, Leaf) else None
    return tensor is not None and tensor.node is not None and b.nodes[tensor.node].proto.op_type == "SequenceEmpty"


def _alike(b: Builder, x: Value, y: Value) -> bool:
    """Whether two Values are equal: the same tensor, or a sum over the number of its terms and a mean."""
    if x.groups != y.groups or not isinstance(x.body, Leaf) or not isinstance(y.body, Leaf):
        return False
    if [a for a in x.body.axes if a is not None] != [a for a in y.body.axes if a is not None]:
        return False
    if x.body.tensor is y.body.tensor:
        return True
    div, mean = _maker(b, x.body.tensor), _maker(b, y.body.tensor)
    if div is None or mean is None or (div.proto.op_type, mean.proto.op_type) != ("Div", "ReduceMean"):
        return False
    total, by = div.inputs
    assert total is not None
    assert by is not None
    source = _maker(b, total)
    if source is None or source.proto.op_type != "ReduceSum" or mean.inputs[0] is not source.inputs[0]:
        return False
    left, terms = product(source.outputs[0].known), product(mean.inputs[0].known)  # type: ignore[union-attr]
    number = divide(terms, left)
    return left == product(y.body.tensor.known) and number is not None and _is_size(b, by, number)


MOVES = {"Reshape", "Squeeze", "Unsqueeze"}


def _maker(b: Builder, tensor: Tensor) -> Node | None:
    """The node that made a tensor, but for moves."""
    node = b.nodes[tensor.node] if tensor.node is not None else None
    while node is not None and node.proto.op_type in MOVES and node.inputs[0] is not None:
        node = b.nodes[node.inputs[0].node] if node.inputs[0].node is not None else None
    return node


def _is_size(b: Builder, tensor: Tensor, size: Size) -> bool:
    """Whether a scalar is a dimension, converted."""
    if isinstance(size, int):
        return bool(tensor.scalar == size)
    want = b.size(size)
    while tensor is not want and tensor.node is not None:
        node = b.nodes[tensor.node]
        inputs = [t for t in node.inputs if t is not None]
        single = node.proto.op_type == "Concat" and len(inputs) == 1
        if not single and node.proto.op_type not in {*MOVES, "Cast"}:
            break
        tensor = inputs[0]
    return tensor is want


# ---- the rules -----------------------------------------------------------------------------------------------------


@rule("Loop")
def loop(ctx: Context) -> list[Value | None]:
    """A Loop whose iterations do not read each other's results."""
    b, graph = ctx.b, ctx.attrs["body"]
    if ctx.visit is None:
        raise Decline("no way to look into the Loop")
    keep = constant(b, ctx.input(1)) if ctx.has(1) else np.asarray(True)
    if keep is None or not keep.reshape(-1)[0]:
        raise Decline("whether the Loop begins is computed from data")
    limit = ctx.sizes(0)[0] if ctx.has(0) else None
    if ctx.has(0) and limit is None:
        raise Decline("the number of iterations is computed from data")
    body = _start(ctx)
    origin, label = b.origin, b.label
    try:
        outputs = _map(body, graph, limit)
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError) as error:
        # a rule met the axis of the iterations where it could not carry it along
        raise Decline(f"the body of the Loop is not a map ({type(error).__name__})") from error
    finally:
        b.origin, b.label = origin, label
    return [value if name else None for name, value in zip(ctx.node.output, outputs, strict=True)]


def _start(ctx: Context) -> Body:
    symbol = f"iteration {next(ITERATION)}"
    tensor = Tensor(symbol, TensorProto.INT64, (Dim.symbol(symbol),), frozenset({"user", "item"}))
    ctx.b.sources[symbol] = tensor, 0
    body = Body(ctx, symbol, tensor, dict(ctx.captured))
    number, going, *states = (i.name for i in ctx.attrs["body"].input)
    body.env[number] = _scalar(ctx.b, Dim.symbol(symbol) - 1)
    body.env[going] = from_tensor(ctx.b.const(np.asarray(True)))
    for k, name in enumerate(states):
        value = ctx.inputs[k + 2]
        assert value is not None
        first = _element(ctx.b, value) if value.groups is not None and value.rank == 0 else None
        body.env[name] = value if first is None else _scalar(ctx.b, first + Dim.symbol(symbol) - 1, value.dtype)
    return body


def _scalar(b: Builder, size: Size, dtype: int = TensorProto.INT64) -> Value:
    sym = np.empty((), dtype=object)
    sym[()] = size
    return from_sizes(b, sym, dtype)


def _map(body: Body, graph: GraphProto, limit: Size | None) -> list[Value]:
    ctx, b = body.ctx, body.b
    states = [i.name for i in graph.input][2:]
    entered = [body.env[name] for name in states]
    results = body.run(graph)
    body.finish(_trips(body, graph.output[0].name, limit))
    assert body.count is not None
    outputs: list[Value] = []
    for k, (before, after) in enumerate(zip(entered, results[1 : 1 + len(states)], strict=True)):
        given = ctx.inputs[k + 2]
        assert given is not None
        if after.items is not None and _empty(b, given):
            outputs.append(_sequence(b, body.stacked(after.items)))
        elif before is given and after is given:
            outputs.append(given)
        elif before is not given and _element(b, after) == _element(b, before) + 1:  # type: ignore[operator]
            first = _element(b, given)
            assert first is not None
            outputs.append(_scalar(b, first + body.count, given.dtype))
        else:
            raise Decline("an iteration of the Loop reads what the one before it computed")
    return outputs + [body.stacked(value) for value in results[1 + len(states) :]]


def _trips(body: Body, condition: str, limit: Size | None) -> Size:
    """How often the Loop runs."""
    known = constant(body.b, body.env[condition])
    if known is not None:
        if not known.reshape(-1)[0]:
            return 1
        if limit is None:
            raise Decline("the Loop does not end")
        return limit
    op, left, right = body.conditions.get(condition, ("", 0, 0))
    if op == "Greater":
        left, right = right, left
    if op not in ("Less", "Greater") or left != Dim.symbol(body.symbol) or body.symbol in symbols(right):
        raise Decline("when the Loop ends is computed from data")
    if limit is not None and not body.b.same(limit, right):
        raise Decline("the Loop has two ends")
    return right


def _sequence(b: Builder, items: Value) -> Value:
    """The stacked elements as a sequence; the tensor is there for operators that look at nothing else."""
    tensor = materialise(b, items)
    proto = helper.make_node("SplitToSequence", [tensor.name], [""], axis=0, keepdims=0)
    (out,) = b._append(proto, [tensor], [tensor.dtype], [None])
    return Value(None, Leaf(out, ()), items.dtype, items=items)


def _items(ctx: Context) -> Value:
    value = ctx.inputs[0]
    if value is None or value.items is None:
        raise Decline("the elements of the sequence are not known to have one shape")
    return value.items


@rule("ConcatFromSequence")
def concat_from_sequence(ctx: Context) -> list[Value]:
    """Elements of one shape behind each other: their number is the outer part of the axis."""
    items = _items(ctx)
    group, *rest = items.known
    new = bool(ctx.attr("new_axis", 0))
    at = normal(ctx.attr("axis"), len(rest) + new)
    groups = [*rest[:at], group, *rest[at:]] if new else [*rest[:at], (*group, *rest[at]), *rest[at + 1 :]]
    return [ctx.value(groups, items.body, items.dtype)]


@rule("SequenceAt")
def sequence_at(ctx: Context) -> list[Value]:
    items, place = _items(ctx), ctx.ints(1)
    if place is None or (place[0] < 0 and not isinstance(items.shape[0], int)):
        raise Decline("which element of the sequence is computed at run time")
    return [positions(ctx, items, 0, [place[0] % static(items.shape[0]) if place[0] < 0 else place[0]], drop=True)]


@rule("SequenceLength")
def sequence_length(ctx: Context) -> list[Value]:
    return [_scalar(ctx.b, _items(ctx).shape[0])]


__all__ = ["follow", "loop"]
