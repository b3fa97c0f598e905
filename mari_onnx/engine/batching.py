"""Operators that handle each position of some axes by itself: computed once for all positions that are equal.

`MAPPED` lists, for each operator, the mapped axes: which axis of each input is which axis of each output. For those

    f(broadcast(x)) = broadcast(f(x))    and    f([x_1 | x_2]) = [f(x_1) | f(x_2)]

whatever f does on its other axes: a GRU over the user's history runs on one row, TopK on the rows that differ. An axis
whose positions read each other is not listed; the operator gets it as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps

from onnx import NodeProto

from mari_onnx.engine.axes.align import align
from mari_onnx.engine.axes.blockwise import MAX_CELLS, cells_of, interchange
from mari_onnx.engine.axes.materialize import as_leaf, write
from mari_onnx.engine.axes.select import coalesce, take
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.infer import infer
from mari_onnx.engine.ir.value import Axis, Body, Cat, Decline, Group, Leaf, Part, Tensor, Value, axes_of, fresh
from mari_onnx.engine.rule import RULES, Context, Rule
from mari_onnx.model.dims import Size, product
from mari_onnx.model.ops import Fact, row


@dataclass(frozen=True)
class Through:
    """One mapped axis: its index in each input (None: the input lacks it) and in each output."""

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]

    def moved(self, by: int) -> Through:
        """The same axis where input 0 and the outputs have ``by`` more dimensions in front."""
        first = self.inputs[0]
        inputs = (None if first is None else first + by, *self.inputs[1:])
        return Through(inputs, tuple(None if d is None else d + by for d in self.outputs))


Spec = Callable[[Context], "list[Through]"]
MAPPED: dict[tuple[str, str], Spec] = {}


def mapped(*ops: str, domain: str = "") -> Callable[[Spec], Spec]:
    """Registers a function that lists the mapped axes of `ops`; it is their rule where they have no other."""

    def register(spec: Spec) -> Spec:
        @wraps(spec, assigned=("__doc__", "__module__"))
        def answer(ctx: Context) -> list[Value | None]:
            return run(ctx, spec(ctx))

        for op in ops:
            MAPPED[domain, op] = spec
            RULES.setdefault((domain, op), Rule(answer, general=True))
        return spec

    return register


def run(ctx: Context, through: Sequence[Through]) -> list[Value | None]:
    """The outputs of the node, with each mapped axis only at positions that differ. Refuses outputs of unknown
    shape.
    """
    b = ctx.b
    rows = _row_axes(ctx, through)
    node = _from_the_end(ctx) if rows else ctx.node
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
        """One block: ``groups`` are the mapped axes here. Refuses an output whose shape is not known."""
        varies = frozenset().union(*(axes_of(leaf) for leaf in inputs))
        live = [tuple(a for a in group if a in varies) for group in groups]
        lead = _stored(inputs[0], live[:rows], values[0].known[rows:]) if rows else []
        shift = len(lead) - rows
        here = [Through((d, *([None] * (len(ctx.inputs) - 1))), (d,) * len(node.output)) for d in range(len(lead))]
        here += [t.moved(shift) for t in through[rows:]]
        live = [*lead, *live[rows:]]
        tensors: list[Tensor | None] = [None] * len(ctx.inputs)
        for i, leaf in zip(present, inputs, strict=True):
            mine = {t.inputs[i]: k for k, t in enumerate(here) if i < len(t.inputs)}
            extra = shift if i == 0 else 0
            order = [live[mine[d]] if d in mine else values[i].known[d - extra] for d in range(values[i].rank + extra)]
            tensors[i] = write(b, leaf, order, frozenset(a for g in order for a in g))
        found = infer(node, [t.shape if t is not None else None for t in tensors], tensors, ctx.session.opsets)
        sizes: list[tuple[Size | None, ...]] = []
        for o, (_, shape) in enumerate(found):
            if not node.output[o]:
                sizes.append(())  # left out by the exporter
                continue
            if shape is None:
                raise Decline(f"the shape of output {o} of {node.op_type} is not known")
            size = list(shape)
            for k, t in enumerate(here):
                place = t.outputs[o] if o < len(t.outputs) else None
                if place is not None:
                    size[place] = product(a.size for a in live[k])
            sizes.append(tuple(size))
        outs = b.copy(node, tensors, [d for d, _ in found], [None] * len(found))
        result = []
        for o, out in enumerate(outs):
            if not node.output[o]:
                result.append(Leaf(out, ()))
                continue
            known = tuple(s if s is not None else b.fresh(out, d) for d, s in enumerate(sizes[o]))
            out.shape = known
            place_of = {t.outputs[o]: k for k, t in enumerate(here) if o < len(t.outputs)}
            logical = {t.outputs[o]: k for k, t in enumerate(through) if o < len(t.outputs)}
            whole: list[Size] = []
            leaf_axes: list[Axis | None] = []
            for d, length in enumerate(known):
                if d in place_of:
                    group = live[place_of[d]]
                    whole += [a.size for a in group] or [1]
                    leaf_axes += list(group) or [None]
                else:
                    whole.append(length)
                    own = _own(outputs, o, d - shift, length, len(known) - shift, logical, canon, out.dtype)
                    leaf_axes.append(own)
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


def _row_axes(ctx: Context, through: Sequence[Through]) -> int:
    """The number of leading mapped axes that may be stored as one dimension or several, as the operator treats all
    as rows.
    """
    facts = row(ctx.node.op_type)
    if ctx.node.domain or Fact.ROWS not in facts.facts or ctx.opset < facts.flattened_before:
        return 0
    count = 0
    while count < len(through) and through[count].inputs[0] == count and set(through[count].outputs) == {count}:
        count += 1
    # a scale with axes of its own is aligned to those of x
    most = max((v.rank for v in ctx.inputs[1:] if v is not None and v.groups is not None), default=0)
    return count if most <= ctx.input(0).rank - count else 0


def _from_the_end(ctx: Context) -> NodeProto:
    """The node with its axis attribute counted from the last dimension."""
    axis = ctx.attr("axis", -1)
    if axis < 0:
        return ctx.node
    node = NodeProto()
    node.CopyFrom(ctx.node)
    for attribute in node.attribute:
        if attribute.name == "axis":
            attribute.i = axis - ctx.input(0).rank
    return node


def _stored(leaf: Leaf, rows: Sequence[Group], rest: Sequence[Group]) -> list[Group]:
    """The rows as the leaf has them stored, where the other axes follow as the operator wants them: no node."""
    last = [a for group in rest for a in group]
    cut = len(leaf.axes) - len(rest)
    if len(last) == len(rest) and cut >= 0 and list(leaf.axes[cut:]) == last:
        return [(a,) if a is not None else () for a in leaf.axes[:cut]]
    return [(a,) for group in rows for a in group]


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
    bodies = [coalesce(b, body) if isinstance(body, Cat) else body for body in bodies]
    bodies = [interchange(b, x, axes) if isinstance(x, Cat) else x for x in bodies]
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
