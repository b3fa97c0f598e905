"""Products of matrices, convolutions, recurrences and attention: what their kernels are asked for."""

from __future__ import annotations

import math
from dataclasses import replace

from onnx import helper

from mari_onnx.model.einsum import einsum_sizes
from mari_onnx.model.nodes import attribute
from mari_onnx.prices.use import KERNELS, Call, Use, kernel_of, size

VECTOR = 16
"""Elements of a vector register. Softmax in place is slow on rows that are no multiple of it."""
FEW = 16
"""Rows up to which reading the weights is what a product takes time for."""


def whole(columns: int) -> int:
    """Columns that a product computes: full registers."""
    return -(-columns // VECTOR) * VECTOR


def gemm(rows: int, inner: int, columns: int, fixed: bool) -> Use:
    """One product ``[rows, inner] x [inner, columns]``. fixed: the second operand is constant."""
    if rows == 1:
        return Use("gemm of 1 row", {"node": 1, "weights": float(inner * columns)})
    mults, weights = float(rows * inner * whole(columns)), float(inner * whole(columns))
    packed = 0.0 if fixed else weights
    if rows < FEW:
        return Use("gemm of few rows", {"node": 1, "mults": mults, "weights": weights, "packed": packed})
    elements = float(rows * (inner + columns))
    return Use("gemm", {"node": 1, "mults": mults, "elements": elements, "packed": packed})


def batched(calls: int, rows: int, inner: int, columns: int) -> Use:
    """``calls`` products of both operands' own matrices."""
    if rows == 1 or columns == 1:
        elements = float(calls * rows * inner * columns)
        return Use("batched gemm of 1 row or column", {"node": 1, "calls": calls, "elements": elements})
    amounts = {
        "mults": float(calls * rows * inner * whole(columns)),
        "elements": float(calls * rows * (inner + columns)),
        "packed": float(calls * inner * whole(columns)),
    }
    return Use("batched gemm", {"node": 1, "calls": calls, **amounts})


INTEGER = 0.3
"""Time of a multiply-add of 8-bit integers, and of a weight of 8 bits that is read, as a share of that of floats
(0.24 to 0.4 with AVX-512 VNNI)."""


@kernel_of("MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
def _integers(call: Call) -> list[Use]:
    """As of floats, with less time per multiply-add; what is fused with it goes through the result once."""
    return [replace(u, amounts={k: v * INTEGER if k in ("mults", "weights") else v for k, v in u.amounts.items()})
            for u in _matmul(call)]  # fmt: skip


@kernel_of("QLinearMatMul", "QGemm")
def _quantized(call: Call) -> list[Use]:
    """As of floats, with less time per multiply-add. A third operand, of integers, is where the sums start from."""
    plain = replace(call, ins=[call.ins[k] if k < len(call.ins) else None for k in (0, 3)],
                    constant=[call.fixed(0), call.fixed(3)])  # fmt: skip
    found = _integers(plain)
    if call.shape(6):
        found.append(Use("Expand", {"elements": float(size(call.out))}))
    return found


@kernel_of("MatMul", "FusedMatMul", "TransposeMatMul")
def _matmul(call: Call) -> list[Use]:
    a, b, out = call.shape(0), call.shape(1), call.out
    if not a or not b:
        return [Use("view", {"node": 1})]
    turned = bool(attribute(call.node, "transA", 0)) and len(a) > 1
    if turned:
        a = (*a[:-2], a[-1], a[-2])
    if attribute(call.node, "transB", 0) and len(b) > 1:
        b = (*b[:-2], b[-1], b[-2])
    inner, columns = a[-1], b[-1] if len(b) > 1 else 1
    rows = a[-2] if len(a) > 1 else 1
    if size(b[:-2]) == 1 and not (turned and len(a) > 2):  # all leading dimensions of the first operand are rows
        return [gemm(size(a[:-1]), inner, columns, call.fixed(1))]
    calls = size(out) // max(1, rows * columns)
    if calls == 1:
        return [gemm(rows, inner, columns, call.fixed(1))]
    return [batched(calls, rows, inner, columns)]


@kernel_of("Gemm", "FusedGemm")
def _gemm(call: Call) -> list[Use]:
    a, out = call.shape(0), call.out
    if len(a) != 2 or len(out) != 2:
        return [Use("view", {"node": 1})]
    inner = a[0 if attribute(call.node, "transA", 0) else 1]
    found = [gemm(out[0], inner, out[1], call.fixed(1))]
    third = call.shape(2)
    if third and size(third) == size(out) and size(out) > out[1]:
        found.append(Use("Expand", {"elements": float(size(out))}))
    return found


@kernel_of("Einsum")
def _einsum(call: Call) -> list[Use]:
    """onnxruntime transposes operands and result, and calls a batched product. One operand alone, whose axes are
    ordered, is transposed and copied.
    """
    operands, output, sizes = einsum_sizes(str(attribute(call.node, "equation", "")), call.ins)
    if len(operands) == 1 and output and sorted(output) == sorted(operands[0]) and len(set(output)) == len(output):
        order = [operands[0].index(x) for x in output]
        transpose = replace(call, node=helper.make_node("Transpose", ["x"], ["y"], perm=order))
        return [*KERNELS["Transpose"](transpose), Use("Transpose of nothing", {"elements": float(size(call.out))})]
    if len(operands) != 2:
        elements = float(math.prod(sizes.values()))
        return [Use("Transpose of one axis", {"node": 2, "elements": elements})]
    left, right = map(set, operands)
    shared, wanted = left & right, set(output)

    def extent(labels: set[str]) -> int:
        return math.prod(sizes.get(x, 1) for x in labels)

    calls, inner = extent(shared & wanted), extent(shared - wanted)
    rows, columns = extent(left - right), extent(right - left)
    kinds = [0 if x in shared else 1 if x in left else 2 for x in output]
    amounts = {
        "calls": float(calls),
        "mults": float(calls * rows * inner * whole(columns)),
        "elements": float(sum(size(s or ()) for s in call.ins) + size(call.out)),
        "moved": float(size(call.out)) if kinds != sorted(kinds) else 0.0,
    }
    return [Use("Einsum", {"node": 1, **amounts})]


@kernel_of("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose")
def _conv(call: Call) -> list[Use]:
    weight, out = call.shape(1), call.out
    window = size(weight[1:])
    positions = size(out) / max(1, out[1] if len(out) > 1 else 1)
    calls = (out[0] if out else 1) * int(attribute(call.node, "group", 1))
    amounts = {
        "node": 1.0,
        "calls": float(calls),
        "mults": float(size(out[:2]) * whole(size(out[2:])) * window),
        "elements": positions * window,
        "weights": float((out[0] if out else 1) * size(weight)),
    }
    return [Use("conv", amounts)]


@kernel_of("GRU", "LSTM", "RNN", "DynamicQuantizeLSTM")
def _recurrence(call: Call) -> list[Use]:
    x, w, r = call.shape(0), call.shape(1), call.shape(2)
    if len(x) != 3 or len(w) != 3 or len(r) != 3:
        return [Use("view", {"node": 1})]
    steps, batch = x[0], x[1]
    mults = steps * batch * (size(w) + size(r))
    return [Use("recurrence", {"node": 1, "steps": steps, "mults": mults, "elements": steps * batch * w[0] * w[1]})]


@kernel_of("Attention", "MultiHeadAttention", "GroupQueryAttention")
def _attention(call: Call) -> list[Use]:
    q, k = call.shape(0), call.shape(1)
    heads = int(attribute(call.node, "num_heads", 0) or attribute(call.node, "q_num_heads", 0) or 1)
    if len(q) == 4 and len(k) == 4:
        batch, heads, rows, width, keys = q[0], q[1], q[2], q[3], k[2]
    elif len(q) == 3 and len(k) == 3:
        batch, rows, width, keys = q[0], q[1], q[2] // heads, k[1]
    else:
        return [Use("view", {"node": 1})]
    scores = batch * heads * rows
    soft = Use("softmax in place", {"node": 1, "rows": scores, "elements": scores * keys})
    return [batched(batch * heads, rows, width, keys), soft, batched(batch * heads, rows, keys, width)]
