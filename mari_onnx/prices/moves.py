"""Operators that move, join, repeat or pick elements, and pools: what their kernels are asked for."""

from __future__ import annotations

import math

from mari_onnx.model.nodes import attribute
from mari_onnx.model.ops import Fact, row
from mari_onnx.prices.use import Call, Use, kernel_of, size

NEAR = 8192
"""Elements that a core has at hand, in its first cache."""


def _copy(kernel: str, elements: float, block: float, parts: int = 1) -> Use:
    """block: elements side by side in source and result."""
    return Use(kernel, {"node": 1, "elements": elements, "runs": elements / max(1.0, block) + parts})


@kernel_of("Transpose")
def _transpose(call: Call) -> list[Use]:
    """As onnxruntime does it: nothing but a copy, one axis moved element by element, other elements, or blocks, in any
    order.

    Dimensions of 1 and axes that stay side by side count as one.
    """
    x = call.shape(0)
    order = list(attribute(call.node, "perm", range(len(x) - 1, -1, -1)))
    if len(order) != len(x):
        return [Use("view", {"node": 1})]
    moved = [k for k in order if x[k] > 1]
    if moved == sorted(moved):
        return [Use("Transpose of nothing", {"node": 1, "elements": float(size(x))})]
    rank = {k: i for i, k in enumerate(sorted(moved))}
    sizes, places = [x[k] for k in sorted(moved)], [rank[k] for k in moved]
    block = 1
    while places and places[-1] == len(places) - 1:
        block *= sizes[places.pop()]
    rest = [p for k, p in enumerate(places) if p != k]
    low, high = min(rest), max(rest)
    span = [p for p in places if low <= p <= high]
    one_axis = span[1:] == sorted(span[1:]) or span[:-1] == sorted(span[:-1])
    runs = size(x) / max(1, block)
    plane = block * math.prod(sizes[low : high + 1])  # what is read along one axis and written along another
    far = float(size(x)) if plane > NEAR else 0.0
    if not one_axis and block <= 2:
        return [Use("Transpose in any order", {"node": 1, "runs": runs, "elements": float(size(x))})]
    kernel = "Transpose of one axis" if block <= 2 else "Transpose of blocks"
    return [Use(kernel, {"node": 1, "runs": runs, "elements": float(size(x)), "far": far})]


@kernel_of("Concat")
def _concat(call: Call) -> list[Use]:
    out = call.out
    if not out:
        return [Use("view", {"node": 1})]
    axis = int(attribute(call.node, "axis", 0)) % len(out)
    outer = size(out[:axis])
    single = sum(shape is not None and size(shape[axis:]) == 1 for shape in call.ins)
    amounts = {"runs": float(outer * (len(call.ins) - single)), "singles": float(outer * single)}
    return [Use("Concat", {"node": 1, "elements": float(size(out)), **amounts})]


@kernel_of("Split")
def _split(call: Call) -> list[Use]:
    x = call.shape(0)
    if not x:
        return [Use("view", {"node": 1})]
    axis = int(attribute(call.node, "axis", 0)) % len(x)
    stretches = size(x[:axis]) * len(call.node.output)
    return [Use("Split", {"node": 1, "elements": float(size(x)), "runs": float(stretches)})]


@kernel_of("Slice", "Pad", "Trilu")
def _slice(call: Call) -> list[Use]:
    x, out = call.shape(0), call.out
    if len(x) != len(out):
        return [Use("Slice", {"node": 1, "elements": float(size(out)), "runs": 1})]
    block = 1
    for a, b in zip(reversed(x), reversed(out), strict=True):
        block *= min(a, b)
        if a != b:
            break
    return [_copy("Slice", float(size(out)), block)]


@kernel_of("ConstantOfShape")
def _filled(call: Call) -> list[Use]:
    return [Use("ConstantOfShape", {"node": 1, "elements": float(size(call.out))})]


@kernel_of("Tile")
def _tile(call: Call) -> list[Use]:
    """Rows of the input are copied as often as its last axis is repeated; then what is there, axis by axis outwards."""
    x, out = call.shape(0), call.out
    if not x or len(x) != len(out):
        return [Use("view", {"node": 1})]
    copies = size(x[:-1]) + sum((b // max(1, a) - 1) * size(x[:k]) for k, (a, b) in enumerate(zip(x, out, strict=True)))
    return [Use("Tile", {"node": 1, "elements": float(size(out)), "runs": float(max(0, copies))})]


@kernel_of("Expand")
def _expand(call: Call) -> list[Use]:
    """Stretches of the input are copied once each, and then what is written already, twice as much each time."""
    x, out = call.shape(0), call.out
    if len(x) > len(out):
        return [Use("view", {"node": 1})]
    block, padded = 1, (1,) * (len(out) - len(x)) + x
    for a, b in zip(reversed(padded), reversed(out), strict=True):
        if a != b:
            break
        block *= b
    repeats = size(out) / max(1, size(x))
    stretches = size(x) / max(1, block) * (1 + math.log2(max(1.0, repeats)))
    return [Use("Expand", {"node": 1, "elements": float(size(out)), "runs": stretches})]


@kernel_of("Gather", "GatherBlockQuantized")
def _gather(call: Call) -> list[Use]:
    x, out = call.shape(0), call.out
    if not x:
        return [Use("gather", {"node": 1, "elements": float(size(out)), "runs": float(size(out))})]
    axis = int(attribute(call.node, "axis", 0)) % len(x)
    block = size(x[axis + 1 :])
    return [Use("gather", {"node": 1, "elements": float(size(out)), "runs": size(out) / max(1, block)})]


@kernel_of("NonZero", "Compress")
def _searched(call: Call) -> list[Use]:
    """Half of the elements are taken to be found, where nothing is known."""
    x, out = size(call.shape(0)), call.out
    found = out[-1] if out else x / 2
    return [Use(call.node.op_type, {"node": 1, "elements": float(x), "runs": float(found)})]


@kernel_of("GatherND", "ScatterND")
def _by_index(call: Call) -> list[Use]:
    index = call.shape(1)
    return [Use(call.node.op_type, {"node": 1, "runs": float(size(index[:-1])), "elements": float(size(call.out))})]


@kernel_of("GatherElements", "ScatterElements", "Scatter", "OneHot", "Unique", "ReverseSequence", "DepthToSpace",
           "SpaceToDepth", "Range")  # fmt: skip
def _indexed(call: Call) -> list[Use]:
    return [Use("pick", {"node": 1, "elements": float(max(size(call.out), size(call.shape(1))))})]


@kernel_of("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")
def _pool(call: Call) -> list[Use]:
    window = size(tuple(attribute(call.node, "kernel_shape", ()))) if Fact.POOL in row(call.node.op_type).facts else 1
    elements = max(size(call.out) * window, size(call.shape(0)))
    return [Use("pool", {"node": 1, "rows": float(size(call.out)), "elements": float(elements)})]
