"""Softmax over a row of blocks, and masks.

A row [a_1 | a_2]: blocks of constant -inf take no part (their weights are exactly 0). Otherwise

    P_p = exp(a_p - m_p),  l_p = sum P_p,  m = max m_p,  g_p = exp(m_p - m) / sum_q l_q exp(m_q - m)

and the weights of block p are g_p P_p: where a_p is the user's alone, P_p and its product with the values are too.

A block of a large finite constant c (-1e9) has weights of exactly 0 too where its row provably has another score above c
by more than the range of exp: `bounds` says how large scores can be, the constant mask of the block beside it which
of a row's scores count. A row without such a score (all of it masked: its weights are all equal) is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ml_dtypes import finfo
from onnx import helper

from mari_onnx.engine import emit
from mari_onnx.engine.algebra import add, binary, multiply, reduce_sum, thin
from mari_onnx.engine.blocks import (
    Decline,
    as_block,
    as_leaf,
    neat,
    opened,
    take,
    with_form,
    zip_bodies,
)
from mari_onnx.engine.bounds import bound
from mari_onnx.engine.builder import Builder, Tensor, evaluate
from mari_onnx.engine.context import Context, normal, rule
from mari_onnx.engine.rules.mapped import MAPPED, run
from mari_onnx.engine.rules.reduce import extreme, unary
from mari_onnx.engine.value import (
    Axis,
    Body,
    Cat,
    Leaf,
    Part,
    Prod,
    Value,
    axes_of,
    is_const,
    leaves,
    rename,
)

RANGE = 800.0
"""exp(-RANGE) is 0 in every floating-point type."""

def _finite(b: Builder, leaf: Leaf) -> Leaf:
    dtype = leaf.tensor.dtype
    lowest = b.const(float(finfo(helper.tensor_dtype_to_np_dtype(dtype)).min), dtype)
    return Leaf(emit.binary(b, "Max", leaf.tensor, lowest), leaf.axes)


@rule("Softmax")
def softmax(ctx: Context) -> list[Value | None]:
    x = ctx.input(0)
    if ctx.opset < 13:
        axis = normal(ctx.attr("axis", 1), x.rank)
        if axis != x.rank - 1:
            return run(ctx, MAPPED["", "Softmax"](ctx))
    axis = normal(ctx.attr("axis", -1), x.rank)
    if len(x.known[axis]) != 1:
        return run(ctx, MAPPED["", "Softmax"](ctx))
    (k,) = x.known[axis]
    order = list(x.axes)
    body = _rows(ctx.b, x.body, k, order)
    return [ctx.value(x.known, body, x.dtype)]


def _rows(b: Builder, body: Body, k: Axis, order: list[Axis]) -> Body:
    """Softmax along ``k``: row blocks apart, then the blocks within a row."""
    if isinstance(body, Cat):
        tidy = neat(b, body, order)
        if not isinstance(tidy, Cat):
            return _rows(b, tidy, k, order)
        if len(tidy.parts) == 1 and tidy.axis is k and tidy.parts[0].sub is not None:
            (p,) = tidy.parts
            inner = [p.sub if a is k else a for a in order if a is not None]
            return Cat(k, (Part(p.at, p.sub, _rows(b, p.body, p.sub, inner)),), True)  # type: ignore[arg-type]
        if tidy.axis is not k:
            parts = []
            for p in tidy.parts:
                inner = [a for a in (p.sub if a is tidy.axis else a for a in order) if a is not None]
                parts.append(Part(p.at, p.sub, _rows(b, p.body, k, inner)))
            return Cat(tidy.axis, tuple(parts), True)
        return _row(b, tidy, order)
    assert isinstance(body, Leaf)
    return _plain(b, body, k)


def _plain(b: Builder, leaf: Leaf, k: Axis) -> Leaf:
    """Softmax of one tensor, in the layout it has."""
    if k not in leaf.axes:
        if not isinstance(k.size, int):
            raise Decline("softmax along a dynamic axis on which nothing varies")
        return Leaf(b.const(1.0 / k.size, leaf.tensor.dtype), ())
    at = leaf.axes.index(k)
    tensor, axes = leaf.tensor, leaf.axes
    if at != len(axes) - 1:
        perm = [i for i in range(len(axes)) if i != at] + [at]
        tensor = emit.transpose(b, tensor, perm)
        axes = tuple(axes[i] for i in perm)
    return Leaf(b.emit("Softmax", [tensor], tensor.shape, attrs={"axis": len(axes) - 1}), axes)


def _row(b: Builder, cat: Cat, order: list[Axis]) -> Body:
    """Softmax along the Cat's own axis."""
    cat = opened(cat)
    masked = {id(p): value for p in cat.parts if (value := _upper(b, p.body)) < -RANGE}
    if any(np.isfinite(value) for value in masked.values()) and len(masked) < len(cat.parts):
        rows = _alive(b, [p for p in cat.parts if id(p) not in masked], max(masked.values()))
        if rows is not None and rows[0] is not None:
            return _by_rows(b, cat, rows[0], rows[1], order)
        if rows is None:
            masked = {id(p): -np.inf for p in cat.parts if masked.get(id(p)) == -np.inf and p.body.tensor.const}
    dead = [p for p in cat.parts if id(p) in masked]
    live = [p for p in cat.parts if id(p) not in masked]
    zero = None
    if dead and live:
        zero = Leaf(b.const(0, next(leaves(live[0].body)).tensor.dtype), ())
        if len(live) == 1:
            part = live[0]
            if part.sub is None:
                return Cat(cat.axis, (Part(part.at, None, Leaf(b.const(1, zero.tensor.dtype), ())), *_zeros(dead, zero)))
            inner = [a for a in (part.sub if a is cat.axis else a for a in order)]
            return Cat(cat.axis, (Part(part.at, part.sub, _rows(b, part.body, part.sub, inner)), *_zeros(dead, zero)))
        size = sum(len(p.at) for p in live)
        sub = Axis(size)
        places = sorted(q for p in live for q in p.at)
        index = {q: i for i, q in enumerate(places)}
        rest = Cat(sub, tuple(Part(tuple(index[q] for q in p.at), p.sub, p.body) for p in live))
        inner = [sub if a is cat.axis else a for a in order]
        return Cat(cat.axis, (Part(tuple(places), sub, _row(b, rest, inner)), *_zeros(dead, zero)))
    if any(isinstance(p.body, Cat) for p in cat.parts):
        other = next(p.body.axis for p in cat.parts if isinstance(p.body, Cat))
        if all(p.sub is not other for p in cat.parts):
            return _turned(b, cat, other, order)
    block = as_block(b, cat, order)
    (part,) = block.parts
    assert isinstance(part.body, Leaf) and part.sub is not None
    whole = _plain(b, part.body, part.sub)
    full = axes_of(whole) - {part.sub}
    if any(axes_of(p.body) - {p.sub} != full for p in cat.parts):
        places = [p.at for p in cat.parts]
        starts = [sum(len(at) for at in places[:i]) for i in range(len(places))]
        laid = [
            Part(tuple(range(i, i + len(p.at))), p.sub, p.body) for i, p in zip(starts, cat.parts, strict=True)
        ]
        form = _blocks(b, Cat(part.sub, tuple(laid), True), [part.sub if a is cat.axis else a for a in order])
        if form is not None:
            whole = with_form(whole, form)
    if part.at == tuple(range(len(part.at))):
        return rename(whole, {part.sub: cat.axis})
    return Cat(cat.axis, (Part(part.at, part.sub, whole),), True)


def _zeros(dead: list[Part], zero: Leaf) -> list[Part]:
    return [Part(p.at, p.sub, zero) for p in dead]


def _upper(b: Builder, body: Body) -> float:
    """What no element of a block exceeds: the constant that it is, or a masked score at its largest."""
    if not isinstance(body, Leaf):
        return np.inf
    if body.tensor.const:
        array = body.tensor.array
        return float(array.max()) if array.size and array.dtype != object else np.inf
    node = b.nodes[body.tensor.node] if body.tensor.node is not None else None
    if node is not None and node.proto.op_type == "Add":
        for mask, scores in (node.inputs, node.inputs[::-1]):
            if mask is not None and scores is not None and mask.const and not scores.const:
                return float(mask.array.astype(np.float64).max()) + bound(b, scores)
    return np.inf


def _alive(b: Builder, parts: Sequence[Part], masked: float) -> tuple[Axis | None, np.ndarray] | None:
    """For which rows some score is provably far above the value of masked ones: (axis of the rows, or None for all)."""
    found: tuple[Axis, np.ndarray] | None = None
    for part in parts:
        if not isinstance(part.body, Leaf) or part.body.tensor.const:
            continue
        counts = _counts(b, part.body.tensor, masked)
        if counts is None:
            continue
        if counts.ndim and part.sub in part.body.axes:
            counts = counts.any(axis=part.body.axes.index(part.sub), keepdims=True)
        if counts.all():
            return None, counts
        counts = _settled(counts)
        varying = [i for i, size in enumerate(counts.shape) if size > 1]
        if len(varying) == 1 and part.body.axes[varying[0]] is not None:
            axis, rows = part.body.axes[varying[0]], counts.reshape(-1)
            if found is not None and found[0] is axis:
                rows = rows | found[1]
            if axis is not None and rows.any():
                found = (axis, rows)
    if found is not None and found[1].all():
        return None, found[1]
    return found


def _settled(counts: np.ndarray) -> np.ndarray:
    """Dimensions along which nothing differs, as 1."""
    for i in range(counts.ndim):
        first = counts.take([0], axis=i)
        if np.array_equal(np.broadcast_to(first, counts.shape), counts):
            counts = first
    return counts


def _counts(b: Builder, tensor: Tensor, masked: float, depth: int = 8) -> np.ndarray | None:
    """Which elements are provably above ``masked`` by RANGE, broadcastable to the tensor's dimensions."""
    if bound(b, tensor) < -masked - RANGE:
        return np.ones((1,) * len(tensor.known), dtype=bool)
    if tensor.node is None or depth == 0:
        return None
    node = b.nodes[tensor.node]
    op, inputs = node.proto.op_type, node.inputs
    if op == "Where" and inputs[0] is not None and inputs[0].const and inputs[2] is not None:
        rest = _counts(b, inputs[2], masked, depth - 1)
        if rest is None:
            return None
        unmasked = ~inputs[0].array.astype(bool)
        return np.broadcast_to(_wide(unmasked, tensor) & _wide(rest, tensor), _static(unmasked, rest, tensor))
    if op == "Add":
        for mask, scores in (inputs, inputs[::-1]):
            if mask is not None and scores is not None and mask.const and not scores.const:
                above = mask.array.astype(np.float64) - bound(b, scores) > masked + RANGE
                return _wide(above, tensor)
    if op in ("Slice", "Gather", "Transpose", "Unsqueeze", "Squeeze", "Reshape"):
        source = inputs[0]
        if source is None or not all(isinstance(s, int) for s in source.known):
            return None
        below = _counts(b, source, masked, depth - 1)
        if below is None or not all(t is None or t.const for t in inputs[1:]):
            return None
        whole = np.broadcast_to(below, [int(s) for s in source.known if isinstance(s, int)])
        arrays = [np.ascontiguousarray(whole), *(t.array if t is not None else None for t in inputs[1:])]
        return evaluate(node.proto, arrays, b.opset)
    return None


def _wide(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    return array.reshape((1,) * (len(tensor.known) - array.ndim) + array.shape)


def _static(one: np.ndarray, other: np.ndarray, tensor: Tensor) -> tuple[int, ...]:
    return np.broadcast_shapes(_wide(one, tensor).shape, _wide(other, tensor).shape)


def _by_rows(b: Builder, cat: Cat, axis: Axis, alive: np.ndarray, order: list[Axis]) -> Body:
    """Rows with a score that counts apart from those that may be masked throughout."""
    parts = []
    for wanted in (True, False):
        at = [int(i) for i in np.flatnonzero(alive == wanted)]
        if not at:
            continue
        sub = Axis(len(at)) if len(at) > 1 else None
        row = take(b, cat, axis, at, sub)
        inner = [a for a in (sub if a is axis else a for a in order) if a is not None]
        body = _row(b, row, inner) if wanted and isinstance(row, Cat) else _mixed_row(b, row, cat.axis, inner)
        parts.append(Part(tuple(at), sub, body))
    return Cat(axis, tuple(parts), True)


def _mixed_row(b: Builder, row: Body, k: Axis, order: list[Axis]) -> Body:
    """Softmax of rows as they are."""
    if isinstance(row, Cat) and row.axis is k:
        block = as_block(b, row, order)
        (part,) = block.parts
        assert isinstance(part.body, Leaf) and part.sub is not None
        return Cat(k, (Part(part.at, part.sub, _plain(b, part.body, part.sub)),), True)
    return _plain(b, as_leaf(b, row, order), k)


def _turned(b: Builder, cat: Cat, other: Axis, order: list[Axis]) -> Body:
    """The grid with its rows outside: a row's softmax must see all of its columns."""
    cells: dict[tuple[int, ...], list[int]] = {}
    owners: dict[int, list[int]] = {}
    for p in cat.parts:
        if isinstance(p.body, Cat) and p.body.axis is other:
            for i, q in enumerate(p.body.parts):
                for place in q.at:
                    owners.setdefault(place, []).append(i)
    for place, key in sorted(owners.items()):
        cells.setdefault(tuple(key), []).append(place)
    parts = []
    for at in cells.values():
        sub = Axis(len(at)) if len(at) > 1 else None
        row = take(b, cat, other, at, sub)
        inner = [a for a in (sub if a is other else a for a in order) if a is not None]
        row = opened(row) if isinstance(row, Cat) else row
        parts.append(Part(tuple(at), sub, _rows(b, row, cat.axis, inner)))
    return Cat(other, tuple(parts))


def _blocks(b: Builder, cat: Cat, order: list[Axis]) -> Body | None:
    """The weights block by block, as factors; None where no block saves anything."""
    parts = [p for p in cat.parts if p.sub is not None]
    if len(parts) != len(cat.parts) and any(not isinstance(p.body, Leaf) for p in cat.parts):
        return None
    if any(is_const(p.body) for p in cat.parts):
        return None
    outside = [a for a in order if a is not cat.axis]
    tops, sums, weights = [], [], []
    for p in cat.parts:
        inner = frozenset({p.sub} if p.sub is not None and p.sub in axes_of(p.body) else ())
        # a block that is masked throughout must weigh nothing, not be -inf minus -inf
        top = zip_bodies(b, [extreme(b, "Max", p.body, inner)], lambda ls: _finite(b, ls[0]))
        shifted = zip_bodies(b, [p.body, top], lambda ls: binary(b, "Sub", ls[0], ls[1], order), order=order)
        weight = unary(b, "Exp", shifted)
        tops.append(top)
        weights.append(weight)
        count = frozenset({p.sub}) if p.sub is not None else frozenset()
        sums.append(reduce_sum(b, weight, count, outside))
    top = tops[0]
    for other in tops[1:]:
        top = zip_bodies(b, [top, other], lambda ls: binary(b, "Max", ls[0], ls[1], outside), order=outside)
    gains = []
    for t in tops:
        shifted = zip_bodies(b, [t, top], lambda ls: binary(b, "Sub", ls[0], ls[1], outside), order=outside)
        gains.append(unary(b, "Exp", shifted))
    total = add(b, [multiply(b, s, g, outside) for s, g in zip(sums, gains, strict=True)], outside)
    out = []
    for p, weight, gain in zip(cat.parts, weights, gains, strict=True):
        share = zip_bodies(b, [gain, total], lambda ls: binary(b, "Div", ls[0], ls[1], outside), order=outside)
        out.append(Part(p.at, p.sub, Prod((as_leaf(b, share, outside), as_leaf(b, weight, order)))))
    return Cat(cat.axis, tuple(out))

