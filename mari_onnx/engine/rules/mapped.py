"""Operators that work on each position of some axes by itself: run once for all positions that are equal.

`MAPPED` says for each operator which input axes go through to which output axes untouched. For those axes

    f(broadcast(x)) = broadcast(f(x))    and    f([x_1 | x_2]) = [f(x_1) | f(x_2)]

whatever f does on its other axes: a GRU over the user's history runs on one row, TopK on the rows that differ. An
operator that mixes positions of an axis does not list it, and sees it whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps

from mari_onnx.engine import emit
from mari_onnx.engine.blocks import MAX_CELLS, cells_of
from mari_onnx.engine.builder import Tensor
from mari_onnx.engine.context import Context, normal, rule
from mari_onnx.engine.positions import neat, take
from mari_onnx.engine.regroup import align
from mari_onnx.engine.value import Axis, Body, Cat, Decline, Group, Leaf, Part, Value, axes_of, fresh
from mari_onnx.engine.write import as_leaf, write
from mari_onnx.model.dims import Size, product


@dataclass(frozen=True)
class Through:
    """One mapped axis: its place in each input (None: the input lacks it) and in each output."""

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]


Spec = Callable[[Context], "list[Through]"]
MAPPED: dict[tuple[str, str], Spec] = {}


def mapped(*ops: str, domain: str = "") -> Callable[[Spec], Spec]:
    """Registers the axes that `ops` leave apart."""

    def register(spec: Spec) -> Spec:
        for op in ops:
            MAPPED[domain, op] = spec

        @rule(*ops, domain=domain)
        @wraps(spec, assigned=("__doc__", "__module__"))
        def answer(ctx: Context) -> list[Value | None]:
            return run(ctx, spec(ctx))

        return spec

    return register


def run(ctx: Context, through: Sequence[Through]) -> list[Value | None]:
    """The node, with each mapped axis at the positions that differ."""
    b = ctx.b
    present = [i for i, v in enumerate(ctx.inputs) if v is not None]
    values = {i: ctx.input(i) if i == present[0] else fresh(ctx.input(i)) for i in present}
    canon, bodies = _common(ctx, through, values)
    private: dict[int, list[Group]] = {}
    for i, value in values.items():
        mine = {t.inputs[i]: k for k, t in enumerate(through) if i < len(t.inputs)}
        private[i] = [canon[mine[a]] if a in mine else value.known[a] for a in range(value.rank)]
    axes = frozenset(a for group in canon for a in group)
    outputs: list[tuple[tuple[Group, ...], int] | None] = []

    def cell(inputs: list[Leaf], groups: list[Group]) -> list[Leaf]:
        """One block: ``groups`` are the mapped axes here."""
        varies = frozenset().union(*(axes_of(leaf) for leaf in inputs))
        live = [tuple(a for a in group if a in varies) for group in groups]
        tensors: list[Tensor | None] = [None] * len(ctx.inputs)
        for i, leaf in zip(present, inputs, strict=True):
            mine = {t.inputs[i]: k for k, t in enumerate(through) if i < len(t.inputs)}
            order = [live[mine[a]] if a in mine else values[i].known[a] for a in range(values[i].rank)]
            tensors[i] = write(b, leaf, order, frozenset(a for g in order for a in g))
        shapes = [t.shape if t is not None else None for t in tensors]
        found = ctx.infer(shapes, tensors)
        sizes: list[tuple[Size | None, ...]] = []
        for o, (_, shape) in enumerate(found):
            if not ctx.node.output[o]:
                sizes.append(())  # left out by the exporter
                continue
            if shape is None:
                raise Decline(f"the shape of output {o} of {ctx.node.op_type} is not known")
            here = list(shape)
            for k, t in enumerate(through):
                place = t.outputs[o] if o < len(t.outputs) else None
                if place is not None:
                    here[place] = product(a.size for a in live[k])
            sizes.append(tuple(here))
        outs = b.copy(ctx.node, tensors, [d for d, _ in found], [None] * len(found))
        result = []
        for o, out in enumerate(outs):
            if not ctx.node.output[o]:
                result.append(Leaf(out, ()))
                continue
            known = tuple(s if s is not None else b.fresh(out, d) for d, s in enumerate(sizes[o]))
            out.shape = known
            place_of = {t.outputs[o]: k for k, t in enumerate(through) if o < len(t.outputs)}
            whole: list[Size] = []
            leaf_axes: list[Axis | None] = []
            for d, size in enumerate(known):
                if d in place_of:
                    group = live[place_of[d]]
                    whole += [a.size for a in group] or [1]
                    leaf_axes += list(group) or [None]
                else:
                    whole.append(size)
                    leaf_axes.append(_own(outputs, o, d, size, len(known), place_of, canon, out.dtype))
            result.append(Leaf(emit.reshape(b, out, whole), tuple(leaf_axes)))
        return result

    results = _cells(ctx, [bodies[i] for i in present], axes, list(canon), cell)
    out: list[Value | None] = []
    for o, body in enumerate(results):
        entry = outputs[o] if o < len(outputs) else None
        if not ctx.node.output[o]:
            out.append(None)
            continue
        if entry is None:
            # every axis is mapped
            place_of = {t.outputs[o]: k for k, t in enumerate(through)}
            groups: tuple[Group, ...] = tuple(canon[place_of[d]] for d in range(len(place_of)))
            dtype = _first(body).tensor.dtype
        else:
            groups, dtype = entry
        out.append(ctx.value(groups, body, dtype))
    return out


def _first(body: Body) -> Leaf:
    while isinstance(body, Cat):
        body = body.parts[0].body
    assert isinstance(body, Leaf)
    return body


def _own(
    outputs: list[tuple[tuple[Group, ...], int] | None],
    o: int,
    d: int,
    size: Size,
    rank: int,
    place_of: dict[int | None, int],
    canon: Sequence[Group],
    dtype: int,
) -> Axis | None:
    """The axis of an output dimension that is not mapped, the same in every block."""
    while len(outputs) <= o:
        outputs.append(None)
    entry = outputs[o]
    if entry is None:
        groups: list[Group] = [canon[place_of[i]] if i in place_of else () for i in range(rank)]
        outputs[o] = entry = (tuple(groups), dtype)
    if size == 1:
        return None
    groups = list(entry[0])
    if not groups[d]:
        groups[d] = (Axis(size),)
        outputs[o] = (tuple(groups), dtype)
    return groups[d][0]


def _common(
    ctx: Context, through: Sequence[Through], values: dict[int, Value]
) -> tuple[list[Group], dict[int, Body]]:
    """The mapped axes with the same atoms in every input."""
    order = list(values)
    slim = []
    for i in order:
        value = values[i]
        mine = {t.inputs[i]: k for k, t in enumerate(through) if i < len(t.inputs)}
        groups: list[Group] = [()] * len(through)
        for a in range(value.rank):
            if a in mine:
                groups[mine[a]] = value.known[a]
        # the private axes ride along under axes of their own
        slim.append(Value(tuple(groups), value.body, value.dtype))
    bodies, canon = align(ctx.b, slim)
    return list(canon), dict(zip(order, bodies, strict=True))


def _cells(
    ctx: Context,
    bodies: Sequence[Body],
    axes: frozenset[Axis],
    groups: list[Group],
    cell: Callable[[list[Leaf], list[Group]], list[Leaf]],
) -> list[Body]:
    """`zip_bodies` for operators with several outputs."""
    b = ctx.b
    bodies = [neat(b, body) if isinstance(body, Cat) else body for body in bodies]
    bodies = [as_leaf(b, x) if isinstance(x, Cat) and x.axis not in axes else x for x in bodies]
    top = next((body for body in bodies if isinstance(body, Cat)), None)
    if top is None:
        return list(cell([x for x in bodies if isinstance(x, Leaf)], groups))
    axis = top.axis
    cells = cells_of(bodies, axis)
    if len(cells) > MAX_CELLS:
        return _cells(ctx, [as_leaf(b, x) for x in bodies], axes, groups, cell)
    columns: list[list[Part]] = []
    for at in cells.values():
        sub = Axis(len(at)) if len(at) > 1 else None
        inner = [take(b, body, axis, at, sub) for body in bodies]
        swapped = [
            tuple(s for s in (sub if a is axis else a for a in group) if s is not None) for group in groups
        ]
        found = _cells(ctx, inner, axes | ({sub} if sub else frozenset()), swapped, cell)
        columns.append([Part(tuple(at), sub, body) for body in found])
    return [Cat(axis, tuple(column[o] for column in columns), True) for o in range(len(columns[0]))]


# ---- which axes go through ----------------------------------------------------------------------------------------


def _all_but(ctx: Context, axes: Sequence[int], outs: int = 1, keep: bool = True) -> list[Through]:
    """All axes of input 0 but these; with ``keep`` false the others close up in the outputs."""
    rank = ctx.input(0).rank
    gone = {normal(a, rank) for a in axes}
    out = []
    for a in range(rank):
        if a not in gone:
            place = a if keep else a - sum(1 for g in gone if g < a)
            inputs = (a, *([None] * (len(ctx.inputs) - 1)))
            out.append(Through(inputs, (place,) * outs))
    return out


@mapped("Softmax", "LogSoftmax", "Hardmax")
def _softmax(ctx: Context) -> list[Through]:
    """All axes but the one that is normalized; before opset 13 all from `axis` on are one row."""
    if ctx.opset < 13:
        axis = normal(ctx.attr("axis", 1), ctx.input(0).rank)
        return _all_but(ctx, range(axis, ctx.input(0).rank))
    return _all_but(ctx, [ctx.attr("axis", -1)])


@mapped("CumSum")
def _cumsum(ctx: Context) -> list[Through]:
    """All axes but the one that is summed along. Refuses a computed axis."""
    axis = ctx.ints(1)
    if axis is None:
        raise Decline("the axis is computed at run time")
    return _all_but(ctx, axis)


@mapped("LpNormalization")
def _lp(ctx: Context) -> list[Through]:
    """All axes but the one that is normalized."""
    return _all_but(ctx, [ctx.attr("axis", -1)])


@mapped("TopK")
def _topk(ctx: Context) -> list[Through]:
    """All axes but the one that is ranked. Refuses a computed k."""
    if ctx.ints(1) is None:
        raise Decline("k is computed at run time")
    return _all_but(ctx, [ctx.attr("axis", -1)], outs=2)


@mapped("ArgMax", "ArgMin")
def _arg(ctx: Context) -> list[Through]:
    """All axes but the one that is searched, which the output lacks with keepdims 0."""
    return _all_but(ctx, [ctx.attr("axis", 0)], keep=bool(ctx.attr("keepdims", 1)))


@mapped("LayerNormalization", "RMSNormalization")
def _norm(ctx: Context) -> list[Through]:
    """The axes before `axis`: mean and variance are taken over all others."""
    rank = ctx.input(0).rank
    axis = normal(ctx.attr("axis", -1), rank)
    return _all_but(ctx, range(axis, rank), outs=len(ctx.node.output))


@mapped("LayerNormalization", "SimplifiedLayerNormalization", domain="com.microsoft")
def _ms_norm(ctx: Context) -> list[Through]:
    """As the standard operator."""
    return _norm(ctx)


@mapped(
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalLpPool",
    "InstanceNormalization", "GroupNormalization", "LRN", "DepthToSpace", "SpaceToDepth", "Upsample",
)  # fmt: skip
def _batch_first(ctx: Context) -> list[Through]:
    """Axis 0 alone: inputs are [N, C, ..], and windows or statistics mix the rest."""
    inputs = (0, *([None] * (len(ctx.inputs) - 1)))
    return [Through(inputs, (0,) * len(ctx.node.output))]


@mapped("GRU", "LSTM", "RNN")
def _recurrent(ctx: Context) -> list[Through]:
    """The batch: each sequence is run by itself, with the state and the length of its own."""
    # X [T, N, I], W, R, B, sequence_lens [N], initial_h [dirs, N, H], initial_c, P; layout 1 puts N first
    first = ctx.attr("layout", 0) == 1
    state = 0 if first else 1
    places = (0 if first else 1, None, None, None, 0, state, state, None)
    outs = (0 if first else 2, state, state)
    return [Through(places[: len(ctx.inputs)], outs[: len(ctx.node.output)])]


@mapped("GatherElements")
def _gather_elements(ctx: Context) -> list[Through]:
    """Axes but `axis` of equal size in data and indices: where indices are fewer, they are not position by position."""
    data, index = ctx.input(0), ctx.input(1)
    axis = normal(ctx.attr("axis", 0), data.rank)
    return [
        Through((a, a), (a,))
        for a in range(data.rank)
        if a != axis and ctx.b.same(data.shape[a], index.shape[a])
    ]


@mapped("ScatterElements", "Scatter")
def _scatter_elements(ctx: Context) -> list[Through]:
    """As GatherElements, of equal size in the updates too."""
    data, index, updates = ctx.input(0), ctx.input(1), ctx.input(2)
    axis = normal(ctx.attr("axis", 0), data.rank)
    return [
        Through((a, a, a), (a,))
        for a in range(data.rank)
        if a != axis and ctx.b.same(data.shape[a], index.shape[a]) and ctx.b.same(data.shape[a], updates.shape[a])
    ]


@mapped("OneHot")
def _one_hot(ctx: Context) -> list[Through]:
    """All axes of the indices; the output has one more at `axis`."""
    rank = ctx.input(0).rank
    axis = normal(ctx.attr("axis", -1), rank + 1)
    return [Through((a, None, None), (a if a < axis else a + 1,)) for a in range(rank)]


@mapped("Trilu")
def _trilu(ctx: Context) -> list[Through]:
    """All but the last two, whose positions decide what is kept."""
    return _all_but(ctx, [-1, -2])


@mapped("Det")
def _det(ctx: Context) -> list[Through]:
    """All but the last two, which the output lacks."""
    return _all_but(ctx, [-1, -2], keep=False)


@mapped("ReverseSequence")
def _reverse(ctx: Context) -> list[Through]:
    """All axes but time; the lengths have the batch axis."""
    batch, time = ctx.attr("batch_axis", 1), ctx.attr("time_axis", 0)
    rank = ctx.input(0).rank
    return [Through((a, 0 if a == batch else None), (a,)) for a in range(rank) if a != time]


@mapped("Pad")
def _pad(ctx: Context) -> list[Through]:
    """All axes that get no padding. Refuses computed pads, and wrapping around."""
    rank = ctx.input(0).rank
    pads = ctx.ints(1) if ctx.opset >= 11 else ctx.attr("pads")
    axes = ctx.ints(3) if ctx.has(3) else list(range(rank))
    if pads is None or axes is None:
        raise Decline("the padding is computed at run time")
    if ctx.attr("mode", "constant") == "wrap":
        raise Decline("padding wraps around")
    half = len(pads) // 2
    touched = {normal(a, rank) for k, a in enumerate(axes) if pads[k] or pads[k + half]}
    return _all_but(ctx, sorted(touched))


@mapped("Resize")
def _resize(ctx: Context) -> list[Through]:
    """Axis 0, where its scale is a constant 1."""
    scales = ctx.array(2)
    if scales is None or scales.size == 0 or scales[0] != 1 or "axes" in ctx.attrs:
        raise Decline("the batch is resized, or sizes are computed at run time")
    return _batch_first(ctx)


@mapped("DFT")
def _dft(ctx: Context) -> list[Through]:
    """All but the transformed axis and the last, which holds real and imaginary parts. Refuses a computed axis."""
    rank = ctx.input(0).rank
    axis = ctx.attr("axis", 1)
    if ctx.has(2):
        found = ctx.ints(2)
        if found is None:
            raise Decline("the axis is computed at run time")
        axis = found[0]
    return _all_but(ctx, [normal(axis, rank), rank - 1])


@mapped("MatMulNBits", domain="com.microsoft")
def _nbits(ctx: Context) -> list[Through]:
    """All but the last axis, which is contracted with the packed weights."""
    return _all_but(ctx, [-1])


@mapped("MatMulInteger")
def _matmul_integer(ctx: Context) -> list[Through]:
    """All but the contracted axis. Refuses zero points of each row, and weights that are not a constant matrix."""
    zeros = ctx.has(2) and ctx.input(2).rank > 0 and ctx.input(2).shape != (1,)
    if ctx.array(1) is None or ctx.input(1).rank != 2 or zeros:
        raise Decline("the right operand or the zero point is not one for all rows")
    return _all_but(ctx, [-1])
