"""What an operator makes of an operand that lacks dimensions of 1, as onnxruntime 1.31 runs it.

Each operand has two shapes over the same elements in the same order: as the new model keeps it (``k``), and as the
source has it (``s``). An answer is a list of shapes, the source's outputs, of which the same holds; `FAILS` where the
source's node raises; None where neither is certain. None as a dimension is one that is not known.

Tried on onnxruntime, on operands of one dimension for [1, D] and two for [1, T, D]:

    Gemm                  takes A of one dimension as a row: [1, M]; of none or three, or B of one, raises
    MatMul                drops the row: [M]; a scalar raises
    Concat                raises on different ranks, scalars, an axis out of range
    Squeeze, Unsqueeze, Gather, Split, Softmax, LayerNormalization, Flatten    raise on an axis out of range
    Reduce.., ArgMax      raise too, but not on a scalar
    Reshape               raises where a 0 has no dimension to copy, and on another number of elements
    BatchNormalization    raises where dimension 1 (of a vector: 1) is not the number of channels
    element-wise          broadcast from the right; raise on dimensions that differ
    Transpose, Slice      raise on another rank; but optimizations drop two Transposes, and a Slice of all
    Expand                broadcasts; but optimizations drop one that changes nothing by the file's claims
    Einsum                ends the process: nothing is said of it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import NodeProto

from mari_onnx.engine.lookahead.peek_axes import (
    FAILS,
    Found,
    Operand,
    Peek,
    alike,
    along,
    flatten,
    reduce,
    reshape,
    rows,
    slice_,
    squeeze,
    unsqueeze,
    wide,
)
from mari_onnx.engine.lookahead.shapes import Shape
from mari_onnx.model.nodes import is_standard

ELEMENTWISE = {
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish",
    "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor", "Dropout",
}  # fmt: skip
HOW = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
REDUCE = {"ArgMax", "ArgMin", *(f"Reduce{how}" for how in HOW)}


def peek(
    node: NodeProto,
    operands: Sequence[Operand | None],
    kept: Sequence[Shape | None],
    constants: Mapping[str, np.ndarray],
    opset: int,
) -> Found:
    """The shapes of the node's outputs in the source. kept: those of the new model."""
    op = node.op_type
    given = [o for name, o in zip(node.input, operands, strict=True) if name]
    if not is_standard(node) or not given:
        return None
    p = Peek(node, operands, kept, constants, opset)
    if op == "Concat":
        return _concat(p, given)
    if None in given or None in kept:
        return None
    if op in ELEMENTWISE:
        found = _broadcast([o for o in given if o is not None], kept[0])
        return found if len(node.output) == 1 or found == FAILS else None
    rule = RULES.get(op) or (reduce if op in REDUCE else None)
    # of all but products only data may lack dimensions
    if rule is None or (op not in ("MatMul", "Gemm") and any(p.tainted(i) for i in range(1, len(operands)))):
        return None
    return rule(p)


def _differ(a: int | None, b: int | None) -> bool:
    return a is not None and b is not None and a != b


def _broadcast(operands: Sequence[Operand], kept: Shape | None) -> Found:
    if kept is None:
        return None
    maps: list[list[list[int]]] = []  # dimensions of each operand that are not 1, counted in the result
    ranks = []
    for side in (0, 1):
        rank = max(len(o[side]) for o in operands)
        ranks.append(rank)
        maps.append([[i + rank - len(o[side]) for i in wide(o[side])] for o in operands])
    for j in range(ranks[1]):
        sizes = {s[j - ranks[1] + len(s)] for _, s in operands if j - ranks[1] + len(s) >= 0} - {1, None}
        if len(sizes) > 1:
            return FAILS
    (there, here) = [sorted({i for m in side for i in m}) for side in maps]
    if ranks[0] != len(kept) or len(there) != len(here):
        return None
    if [[there.index(i) for i in m] for m in maps[0]] != [[here.index(i) for i in m] for m in maps[1]]:
        return None  # dimensions meet others than they do in the new model
    out: list[int | None] = [1] * ranks[1]
    for i, j in zip(there, here, strict=True):
        out[j] = kept[i]
    return [tuple(out)]


def _gemm(p: Peek) -> Found:
    (ka, sa), (_, sb) = p.operands[0] or ((), ()), p.operands[1] or ((), ())
    if len(sb) != 2 or len(sa) not in (1, 2):
        return FAILS
    if p.tainted(1) or p.kept[0] is None or len(p.kept[0]) != 2:
        return None
    out = p.kept[0]
    if p.tainted(0):
        inner = sb[1] if p.attrs.get("transB", 0) else sb[0]
        if p.attrs.get("transA", 0) or len(sa) != 1:
            return None
        if _differ(sa[0], inner):
            return FAILS
        if ka != (1, sa[0]) or out[0] != 1:
            return None
    if p.tainted(2):
        bias = p.operands[2]
        assert bias is not None
        return _broadcast([bias, (out, out)], out) if len(bias[1]) <= 2 else None
    return [out]


def _matmul(p: Peek) -> Found:
    (ka, sa), (kb, sb) = p.operands[0] or ((), ()), p.operands[1] or ((), ())
    out = p.kept[0]
    if not sa or not sb:
        return FAILS
    if _differ(sa[-1], sb[-2] if len(sb) > 1 else sb[0]):
        return FAILS
    if out is None or len(kb) < 2 or len(ka) < 2:
        return None
    if not p.tainted(1) and len(kb) == 2 and alike(ka, len(ka) - 1, sa, len(sa) - 1):
        return [(*sa[:-1], out[-1])]
    if min(len(sa), len(sb)) < 2 or any(k[-2:] != s[-2:] for k, s in ((ka, sa), (kb, sb))):
        return None
    if any(len(wide(k[:-2])) != len(wide(s[:-2])) for k, s in ((ka, sa), (kb, sb))):
        return None
    batch = _broadcast([(ka[:-2], sa[:-2]), (kb[:-2], sb[:-2])], out[:-2])
    return [(*batch[0], *out[-2:])] if isinstance(batch, list) else batch


def _concat(p: Peek, given: Sequence[Operand | None]) -> Found:
    known = [o for o in given if o is not None]
    shapes = [s for _, s in known]
    axis = int(p.attrs["axis"])
    if any(not s for s in shapes):
        return FAILS
    full = all(d for s in shapes for d in s)  # empty parts are passed over, whatever their rank
    if len({len(s) for s in shapes}) > 1:
        return FAILS if full else None
    if len(known) < len(given) or p.kept[0] is None:
        return None
    rank = len(shapes[0])
    if not -rank <= axis < rank:
        return FAILS
    i, j = axis % len(p.kept[0]), axis % rank
    for d in range(rank):
        sizes = {s[d] for s in shapes} - {None}
        if d != j and len(sizes) > 1:
            return FAILS if full else None
    if any(k[i] != s[j] or len(wide(k[:i])) != len(wide(s[:j])) for k, s in known):
        return None
    if any(len(wide(k[i + 1 :])) != len(wide(s[j + 1 :])) for k, s in known):
        return None
    return [(*shapes[0][:j], p.kept[0][i], *shapes[0][j + 1 :])]


def _batch_normalization(p: Peek) -> Found:
    k, s = p.operands[0] or ((), ())
    scale = p.operands[1]
    if scale is None or len(scale[0]) != 1 or not s or len(p.node.output) > 1:
        return None
    if _differ(s[1] if len(s) > 1 else 1, scale[0][0]):
        return FAILS
    return [s] if len(s) > 1 and len(k) > 1 and alike(k, 1, s, 1) else None


RULES: dict[str, Callable[[Peek], Found]] = {
    "Gemm": _gemm, "MatMul": _matmul, "Unsqueeze": unsqueeze, "Squeeze": squeeze, "Reshape": reshape,
    "Flatten": flatten, "Softmax": rows, "LogSoftmax": rows, "LayerNormalization": rows, "Gather": along,
    "Split": along, "Slice": slice_, "BatchNormalization": _batch_normalization,
}  # fmt: skip
