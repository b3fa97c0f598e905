"""What operators that move or follow axes make of an operand that lacks dimensions of 1; see `peek`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto

from mari_onnx.engine.lookahead.shapes import Shape
from mari_onnx.model.nodes import attributes

Operand = tuple[Shape, Shape]
"""The shape as the new model keeps it (``k``), and as the source has it (``s``)."""
FAILS = "fails"
Found = list[Shape] | str | None
"""Shapes of the outputs in the source; `FAILS`; None where neither is certain."""


class Peek:
    """One node at N = 1."""

    def __init__(
        self,
        node: NodeProto,
        operands: Sequence[Operand | None],
        kept: Sequence[Shape | None],
        constants: Mapping[str, np.ndarray],
        opset: int,
    ):
        self.node, self.operands, self.kept, self.constants, self.opset = node, operands, kept, constants, opset
        self.attrs = attributes(node)

    @property
    def source(self) -> Shape:
        """The first operand in the source."""
        return (self.operands[0] or ((), ()))[1]

    def tainted(self, i: int) -> bool:
        found = self.operands[i] if i < len(self.operands) else None
        return found is not None and found[0] != found[1]

    def ints(self, i: int, name: str) -> list[int] | None:
        """A list of integers, an attribute or a constant input."""
        if name in self.attrs:
            return [int(v) for v in np.reshape(self.attrs[name], -1)]
        array = self.constants.get(self.node.input[i]) if i < len(self.node.input) else None
        return None if array is None else [int(v) for v in array.reshape(-1)]

    def given(self, i: int, name: str) -> bool:
        return name in self.attrs or (i < len(self.node.input) and bool(self.node.input[i]))


def wide(shape: Sequence[int | None]) -> list[int]:
    """Dimensions that are not 1."""
    return [i for i, d in enumerate(shape) if d != 1]


def alike(k: Shape, i: int, s: Shape, j: int) -> bool:
    """Whether dimension i of the one is dimension j of the other: the same elements before it and behind."""
    return k[i] == s[j] and len(wide(k[:i])) == len(wide(s[:j])) and len(wide(k)) == len(wide(s))


def unsqueeze(p: Peek) -> Found:
    s = p.source
    axes = p.ints(1, "axes")
    if axes is None:
        return None
    rank = len(s) + len(axes)
    if any(not -rank <= a < rank for a in axes):
        return FAILS
    at, rest = {a % rank for a in axes}, iter(s)
    return [tuple(1 if i in at else next(rest) for i in range(rank))] if len(at) == len(axes) else None


def squeeze(p: Peek) -> Found:
    s = p.source
    if not p.given(1, "axes"):
        return [tuple(d for d in s if d != 1)] if None not in s else None
    axes = p.ints(1, "axes")
    if axes is None or not s:
        return None
    if any(not -len(s) <= a < len(s) or (s[a] or 1) != 1 for a in axes):
        return FAILS
    gone = {a % len(s) for a in axes}
    return [tuple(d for i, d in enumerate(s) if i not in gone)] if all(s[i] == 1 for i in gone) else None


def reshape(p: Peek) -> Found:
    s = p.source
    target = p.ints(1, "shape")
    if target is None or p.attrs.get("allowzero", 0):
        return None
    if any(t == 0 and i >= len(s) for i, t in enumerate(target)):
        return FAILS
    if None in s:
        return None
    out = [s[i] if t == 0 else t for i, t in enumerate(target)]
    total, rest = math.prod(d or 0 for d in s), math.prod(d or 0 for d in out if d != -1)
    if total == 0 or rest == 0:
        return None
    if total % rest or (-1 not in out and total != rest):
        return FAILS
    return [tuple(total // rest if d == -1 else d for d in out)]


def flatten(p: Peek) -> Found:
    s = p.source
    axis = int(p.attrs.get("axis", 1))
    if not -len(s) <= axis <= len(s):
        return FAILS
    axis = axis + len(s) if axis < 0 else axis
    return [(math.prod(d or 0 for d in s[:axis]), math.prod(d or 0 for d in s[axis:]))] if None not in s else None


def reduce(p: Peek) -> Found:
    k, s = p.operands[0] or ((), ())
    keep, arg = p.attrs.get("keepdims", 1), p.node.op_type.startswith("Arg")
    axes = [int(p.attrs.get("axis", 0))] if arg else p.ints(1, "axes")
    if axes is None and p.given(1, "axes"):
        return None
    if not axes:
        return [(1,) * len(s) if keep else ()] if axes is None and not p.attrs.get("noop_with_empty_axes", 0) else None
    if not s:
        return None
    if any(not -len(s) <= a < len(s) for a in axes):
        return FAILS
    at = [{a % len(shape) for a in axes} for shape in (k, s)]
    lost = [[i for i, d in enumerate(wide(shape)) if d in gone] for shape, gone in zip((k, s), at, strict=True)]
    if lost[0] != lost[1]:
        return None
    return [tuple(1 if i in at[1] else d for i, d in enumerate(s) if keep or i not in at[1])]


def rows(p: Peek) -> Found:
    """Softmax and LayerNormalization: on one axis, or on all from it on."""
    k, s = p.operands[0] or ((), ())
    layer = p.node.op_type == "LayerNormalization"
    axis = int(p.attrs.get("axis", -1 if layer or p.opset >= 13 else 1))
    if layer and not s:
        return None
    if not -len(s) <= axis < len(s):
        return FAILS
    i, j = axis % len(k), axis % len(s)
    if layer and (len(p.node.output) > 1 or len(k) - i != len(s) - j):
        return None
    if layer or p.opset < 13:
        return [s] if len(wide(k[:i])) == len(wide(s[:j])) else None
    return [s] if alike(k, i, s, j) else None


def along(p: Peek) -> Found:
    """Gather and Split: positions of one axis."""
    k, s = p.operands[0] or ((), ())
    axis = int(p.attrs.get("axis", 0))
    if not s:
        return None
    if not -len(s) <= axis < len(s):
        return FAILS
    i, j = axis % len(k), axis % len(s)
    if not alike(k, i, s, j):
        return None
    if p.node.op_type == "Split":
        return [(*s[:j], out[i], *s[j + 1 :]) for out in p.kept if out is not None]
    index = p.operands[1]
    return [(*s[:j], *index[0], *s[j + 1 :])] if index is not None else None


def slice_(p: Peek) -> Found:
    k, s = p.operands[0] or ((), ())
    axes = p.ints(3, "axes")
    if axes is None and not p.given(3, "axes"):
        starts = p.ints(1, "starts")
        axes = None if starts is None else list(range(len(starts)))
    if axes is None or p.kept[0] is None or not s:
        return None
    out = list(s)
    for a in axes:
        if not -len(s) <= a < len(s) or not alike(k, a % len(k), s, a % len(s)):
            return None
        out[a] = p.kept[0][a]
    return [tuple(out)]
