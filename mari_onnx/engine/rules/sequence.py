"""Sequences whose elements are known: a list of Values, or Values of one shape stacked along an axis.

    SequenceAt([s_1, .., s_n], i) = s_i,  ConcatFromSequence = Concat,  SequenceMap(f) = [f(s_1), .., f(s_n)]

The sequence itself is written too, for operators that have no rule for known elements; if no output needs it, it is
dropped. Refused: elements chosen at run time, sequences that a Loop grows by more than one element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import NodeProto, helper

from mari_onnx.engine.ir.nodes import RANDOM
from mari_onnx.engine.ir.value import Decline, Value
from mari_onnx.engine.rule import RULES, Context, normal, rule
from mari_onnx.engine.rules.index_series import scalar
from mari_onnx.engine.rules.slices import positions
from mari_onnx.engine.rules.structure import regroup
from mari_onnx.model.dims import Size, static

MAX_ELEMENTS = 256
"""A function is mapped over the elements of a sequence one by one if there are no more."""


def _listed(ctx: Context, elements: Sequence[Value]) -> list[Value]:
    """The node copied as it is, with a note of its elements."""
    (out,) = ctx.write_out()
    assert out is not None
    return [replace(out, listed=tuple(elements))]


def _elements(ctx: Context, i: int = 0) -> tuple[Value, ...]:
    value = ctx.inputs[i]
    if value is None or value.listed is None:
        raise Decline("it is not known which elements the sequence has")
    return value.listed


def _items(ctx: Context) -> Value:
    value = ctx.inputs[0]
    if value is None or value.items is None:
        raise Decline("nothing shows that the elements of the sequence have one shape")
    return value.items


def _place(ctx: Context, i: int, count: int) -> int:
    """The constant position at input i, of ``count``."""
    place = ctx.ints(i)
    if place is None or not -count <= place[0] < count:
        raise Decline("the position in the sequence is computed at run time, or out of range")
    return place[0] % count


@rule("SequenceConstruct")
def construct(ctx: Context) -> list[Value]:
    """The inputs, one by one."""
    return _listed(ctx, [v for v in ctx.inputs if v is not None])


@rule("SequenceEmpty")
def empty(ctx: Context) -> list[Value]:
    """No elements."""
    return _listed(ctx, [])


@rule("SequenceInsert")
def insert(ctx: Context) -> list[Value]:
    """The elements with one more, at a constant position or at the end. Refuses a position that is computed."""
    elements, new = list(_elements(ctx)), ctx.input(1)
    at = len(elements)
    if ctx.has(2):
        place = ctx.ints(2)
        if place is None or not -at <= place[0] <= at:
            raise Decline("the position to insert at is computed at run time")
        at = place[0] + at if place[0] < 0 else place[0]
    return _listed(ctx, [*elements[:at], new, *elements[at:]])


@rule("SequenceErase")
def erase(ctx: Context) -> list[Value]:
    """The elements without the one at a constant position, or without the last."""
    elements = list(_elements(ctx))
    at = _place(ctx, 1, len(elements)) if ctx.has(1) else len(elements) - 1
    return _listed(ctx, [*elements[:at], *elements[at + 1 :]])


@rule("SequenceMap")
def sequence_map(ctx: Context) -> list[Value]:
    """The function of each element, with the elements of further sequences beside it. Refuses random functions."""
    body, first = ctx.attrs["body"], _elements(ctx)
    if any(node.op_type in RANDOM for node in body.node):
        raise Decline("the function draws random numbers")
    if not 0 < len(first) <= MAX_ELEMENTS or any(v is None or len(v.listed or first) != len(first) for v in ctx.inputs):
        raise Decline("the sequences are empty, too long, or differ in length")
    results: list[list[Value]] = []
    for k in range(len(first)):
        env = dict(ctx.captured)
        for given, value in zip(body.input, ctx.inputs, strict=True):
            assert value is not None
            env[given.name] = value if value.listed is None else value.listed[k]
        results.append(ctx.interpret(body, env))
    outs = ctx.write_out()
    columns = zip(*results, strict=True)
    return [replace(out, listed=column) for out, column in zip(outs, columns, strict=True) if out is not None]


@rule("ConcatFromSequence")
def concat_from_sequence(ctx: Context) -> list[Value]:
    """The elements concatenated; elements stacked along an axis are merged with it.

    Refuses elements of unknown rank.
    """
    new = bool(ctx.attr("new_axis", 0))
    if ctx.inputs[0] is not None and ctx.inputs[0].listed and ctx.inputs[0].items is None:
        elements = ctx.inputs[0].listed
        if any(v.groups is None for v in elements):
            raise Decline("an element has an unknown rank")
        at = normal(ctx.attr("axis"), elements[0].rank + new)
        if new:
            elements = tuple(Value((*v.known[:at], (), *v.known[at:]), v.body, v.dtype) for v in elements)
        names = [f"i{k}" for k in range(len(elements))]
        node: NodeProto = helper.make_node("Concat", names, ["o"], axis=at)
        (value,) = RULES["", "Concat"].answer(ctx.on(node, elements))
        assert value is not None
        return [value]
    items = _items(ctx)
    group, *rest = items.known
    at = normal(ctx.attr("axis"), len(rest) + new)
    groups = [*rest[:at], group, *rest[at:]] if new else [*rest[:at], (*group, *rest[at]), *rest[at + 1 :]]
    return [ctx.value(groups, items.body, items.dtype)]


@rule("SequenceAt")
def sequence_at(ctx: Context) -> list[Value]:
    """[s_1, .., s_n][i] = s_i. Refuses a computed i."""
    if ctx.inputs[0] is not None and ctx.inputs[0].listed is not None:
        elements = ctx.inputs[0].listed
        return [elements[_place(ctx, 1, len(elements))]]
    items, place = _items(ctx), ctx.ints(1)
    if place is None or (place[0] < 0 and not isinstance(items.shape[0], int)):
        raise Decline("the position in the sequence is computed at run time, or out of range")
    return [positions(ctx, items, 0, [place[0] % static(items.shape[0]) if place[0] < 0 else place[0]], drop=True)]


@rule("SequenceLength")
def sequence_length(ctx: Context) -> list[Value]:
    """The number of elements."""
    if ctx.inputs[0] is not None and ctx.inputs[0].listed is not None:
        return [scalar(ctx.b, len(ctx.inputs[0].listed))]
    return [scalar(ctx.b, _items(ctx).shape[0])]


@rule("SplitToSequence")
def split_to_sequence(ctx: Context) -> list[Value]:
    """Ranges of an axis; ranges of equal length are stacked as well. Refuses lengths that are computed at run time."""
    x = ctx.input(0)
    at = normal(ctx.attr("axis", 0), x.rank)
    size, sizes = x.shape[at], _lengths(ctx, x.shape[at])
    drop = not ctx.has(1) and not ctx.attr("keepdims", 1)
    (out,) = ctx.write_out()
    assert out is not None
    if isinstance(size, int) and len(set(sizes)) == 1:
        parts = regroup(ctx, x, [*x.shape[:at], len(sizes), sizes[0], *x.shape[at + 1 :]])
        groups = [parts.known[at], *parts.known[:at], *parts.known[at + 1 + drop :]]
        out.items = ctx.value(groups, parts.body, x.dtype)
    if len(sizes) <= MAX_ELEMENTS:
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        out.listed = tuple(
            positions(ctx, x, at, range(start, start + n), drop) for start, n in zip(starts, sizes, strict=True)
        )
    return [out]


def _lengths(ctx: Context, size: Size) -> list[int]:
    """The length of each part: as given, or of so many that the last may be shorter."""
    given = ctx.array(1) if ctx.has(1) else np.asarray(1)
    if given is None or not isinstance(size, int):
        raise Decline("the lengths of the parts are computed at run time")
    if given.ndim:
        return [int(n) for n in given]
    each = int(given)
    return [min(each, size - start) for start in range(0, size, each)]
