"""Operators on rows of blocks: softmax over a sequence, normalizations, sums."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from mari_onnx.engine.ir.value import Decline
from mari_onnx.engine.isolation.blocks import Block, Blocks, Writer, rule, written
from mari_onnx.engine.isolation.layout import Key
from mari_onnx.engine.isolation.rules import LAST, twice
from mari_onnx.model.dims import Dim, Size
from mari_onnx.model.nodes import attribute
from mari_onnx.model.ops import Fact, having


@rule(*having(Fact.ROWS), *having(Fact.PLACEWISE), "Dropout")
def by_row(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """Each row by itself; a softmax over a sequence is `softmax`. Refuses others over a sequence."""
    old = w.blocks(node.input[0])
    across = w.layouts.at(old.dims)
    axis = attribute(node, "axis", -1) % len(old.dims)
    if node.op_type == "Softmax" and axis in across:
        return softmax(w, node, axis)
    if node.op_type in having(Fact.ROWS) and any(i >= axis for i in across) and not _one_axis(w, node, axis, across):
        raise Decline("it goes over a sequence")
    if node.op_type == "BatchNormalization" and 1 in across:
        raise Decline("it has parameters for each position of a sequence")
    if attribute(node, "training_mode", 0):
        raise Decline("its statistics are of all rows")
    found = {}
    for key, block in old.of.items():
        rest = [w.whole(x) if x else "" for x in node.input[1:]]
        found[key] = Block(w.copy(node, [written(block.name), *rest])[0], block.at)
    return [Blocks(old.dims, found), *[None] * (len(node.output) - 1)]


def _one_axis(w: Writer, node: NodeProto, axis: int, across: Sequence[int]) -> bool:
    return node.op_type in having(Fact.SOFTMAX) and w.opset >= 13 and axis not in across


def _length(w: Writer, dims: Sequence[Size], key: Key, axis: int) -> Size:
    """What a block adds to the length of a row: 1 for a candidate with itself."""
    pair = twice(w, dims, key)
    return w.layouts.sizes(dims, key, next((i for i in pair if i != axis), None))[axis]


def softmax(w: Writer, node: NodeProto, axis: int) -> list[Blocks | None]:
    """Over a sequence: of the blocks whose weights are not all 0, side by side. Refuses weights between candidates."""
    if w.opset < 13:
        raise Decline("a softmax of opset 12 over a sequence")
    name = node.output[0]
    old = w.blocks(node.input[0])
    place = w.layouts.at(old.dims).index(axis)
    found: dict[Key, Block] = {}
    for key in old.of:
        if key in found:
            continue
        row = [(*key[:place], s, *key[place + 1 :]) for s in range(len(w.layouts.known[old.dims[axis]]))]
        live = [k for k in row if w.value(name, k) != 0]
        # numbers first: then all cuts are known
        live.sort(key=lambda k: isinstance(_length(w, old.dims, k, axis), Dim))
        for k in row:
            pair = twice(w, old.dims, k)
            if pair:
                w.alone(name, k)
            found[k] = Block(None, next((i for i in pair if i != axis), None))
        parts = []
        for k in live:
            name_of, at, new = written(old.of[k].name), old.of[k].at, found[k].at
            parts.append(name_of if at is None or new is None else w.moved(name_of, len(old.dims), at, new))
        if not parts:
            raise Decline("a row of weights is 0")
        joined = parts[0] if len(parts) == 1 else w.add("Concat", parts, axis=axis)
        weights = w.copy(node, [joined])[0]
        start: Size = 0
        for k in live:
            end = start + _length(w, old.dims, k, axis)
            last = LAST if k is live[-1] else end
            piece = weights if len(live) == 1 else w.cut(weights, axis, start, last)
            found[k] = Block(piece, found[k].at)
            start = end
    return [Blocks(old.dims, found)]


@rule(*having(Fact.REDUCES))
def reduced(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """Block by block; a sum over a sequence adds up its segments. Refuses other reductions of a sequence."""
    old, dims = w.blocks(node.input[0]), w.dims(node.output[0])
    listed = attribute(node, "axes")
    if listed is None and len(node.input) > 1 and node.input[1]:
        listed = [int(str(x)) for x in w.listed(node.input[1])]
    axes = [a % len(old.dims) for a in listed or range(len(old.dims))]
    keep = attribute(node, "keepdims", 1)
    across = w.layouts.at(old.dims)
    over = [i for i in across if i in axes]
    if over and (node.op_type != "ReduceSum" or len(over) > 1):
        raise Decline("it goes over a sequence")

    def after(i: int) -> int:
        return i if keep else i - sum(a < i for a in axes)

    parts: dict[Key, list[Block]] = {}
    for key, block in old.of.items():
        by = dict(zip(across, key, strict=True))
        out = tuple(s for i, s in by.items() if i not in over)
        here = parts.setdefault(out, [])
        pair = twice(w, old.dims, key)
        if over and w.zero(node.input[0], key):
            continue
        name, at = written(block.name), block.at
        if at is not None and over and over[0] in pair:
            w.alone(node.input[0], key)
            kept = next(i for i in pair if i != over[0])
            name, at = w.moved(name, len(old.dims), at, kept), None
        here.append(Block(w.copy(node, [name, *map(w.whole, node.input[1:])])[0], None if at is None else after(at)))
    found = {}
    for out, blocks in parts.items():
        names = [b.name for b in blocks if b.name is not None]
        if not names:
            raise Decline("a sum of nothing")
        total = names[0]
        for name in names[1:]:
            total = w.add("Add", [total, name])
        found[out] = Block(total, blocks[0].at)
    return [Blocks(dims, found)]
