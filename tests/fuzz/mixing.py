"""Attention with its masks, norms, reductions, and what mixes candidates."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tests.engine.graphs import N
from tests.fuzz.forge import Forge, Made, Shape, known


def attention(f: Forge) -> Made:
    x, shape = f.tokens()
    n, d = shape[1], int(shape[2])  # type: ignore[arg-type]
    if not isinstance(n, int):
        return None
    source, m = x, n
    if f.int(0, 2) == 0:
        found = f.find(lambda s: len(s) == 3 and s[0] == N and isinstance(s[1], int) and s[2] == d)
        if found is not None:
            source, m = found[0], int(found[1][1])  # type: ignore[arg-type]
    q, k, v = f.linear(x, d, d), f.linear(source, d, d), f.linear(source, d, d)
    heads = d % 2 == 0 and f.flag()
    if heads:
        q, k, v = (
            f.g.Transpose(f.g.reshape(t, -1, s, 2, d // 2), perm=[0, 2, 1, 3]) for t, s in ((q, n), (k, m), (v, m))
        )
        scores = f.g.MatMul(q, f.g.Transpose(k, perm=[0, 1, 3, 2]))
    else:
        scores = f.g.MatMul(q, f.g.Transpose(k, perm=[0, 2, 1]))
    scores = f.g.Mul(scores, f.g.const(np.array(0.7)))
    for _ in range(f.int(0, 2)):
        scores = _masked(f, scores, n, m, heads)
    weights = f.g.Softmax(scores, axis=3 if heads else 2)
    mixed = f.g.MatMul(weights, v)
    if heads:
        mixed = f.g.reshape(f.g.Transpose(mixed, perm=[0, 2, 1, 3]), -1, n, d)
    if f.flag():
        mixed = f.g.Add(mixed, x)
    return f.put(mixed, (N, n, d))


def _masked(f: Forge, scores: str, n: int, m: int, heads: bool) -> str:
    low = f.infinite()
    fill = f.g.const(np.array(low))
    how = f.one("causal", "constant", "padding", "padding", "two")
    if how in ("causal", "constant"):
        mask = np.triu(np.ones((n, m), bool), 1) if how == "causal" else f.g.rng.integers(0, 2, (n, m)).astype(bool)
        if f.flag():
            return f.g.Add(scores, f.g.const(np.where(mask, low, 0.0)))
        return f.g.Where(f.g.const(mask), fill, scores)
    if how == "two" and m > 1:
        first = f.int(1, m - 1)
        ids = f.g.Concat(f.g.user(first, high=3), f.g.item(m - first, high=3), axis=1)
    else:
        ids = f.g.input(f.one("user", "item"), N, m, high=3)
    pad_ = f.g.unsqueeze(f.g.Equal(ids, f.g.const(np.array(0), np.int64)), *((1, 2) if heads else (1,)))
    if low == -np.inf or f.flag():
        return f.g.Where(pad_, fill, scores)
    return f.g.Add(scores, f.g.Mul(f.g.Cast(pad_, to=f.kind()), fill))


def attention_op(f: Forge) -> Made:
    """The operator of opset 23, [N, heads, L, D]."""
    if f.g.opset < 23 or f.g.dtype is not np.float32:
        return None
    x, shape = f.tokens()
    n, d = shape[1], int(shape[2])  # type: ignore[arg-type]
    if not isinstance(n, int):
        return None
    q, k, v = (f.g.unsqueeze(f.linear(x, d, d), 1) for _ in range(3))
    return f.put(f.g.squeeze(f.g.Attention(q, k, v, is_causal=f.int(0, 1)), [1]), shape)


def norm(f: Forge) -> Made:
    x, shape = f.x(lambda s: len(s) > 1 and known(s[-1]))
    if len(shape) < 2 or not known(shape[-1]):
        return None
    d, opset = int(shape[-1]), f.g.opset  # type: ignore[arg-type]
    how = f.one("layer", "layer", "written", "batch", "instance", "group", "rms")
    if how == "layer" and opset >= 17:
        bias = [f.weight(d)] if f.flag() else []
        axis = f.one(-1, len(shape) - 1)
        return f.put(f.g.LayerNormalization(x, f.weight(d), *bias, axis=axis, epsilon=0.01), shape)
    if how == "rms" and opset >= 23 and f.g.dtype is np.float32:
        return f.put(f.g.RMSNormalization(x, f.weight(d), epsilon=0.01), shape)
    if how == "batch" and opset >= 14 and isinstance(shape[1], int):  # before, the evaluator trains
        c = shape[1]
        var = f.g.const(np.abs(f.g.rng.standard_normal(c)) + 0.5)
        return f.put(f.g.BatchNormalization(x, f.weight(c), f.weight(c), f.weight(c), var), shape)
    if how == "instance" and len(shape) > 2 and isinstance(shape[1], int) and shape[0] == N:
        c = shape[1]
        return f.put(f.g.InstanceNormalization(x, f.weight(c), f.weight(c), epsilon=0.1), shape)
    mean = f.g.reduce("Mean", x, [-1])
    centred = f.g.Sub(x, mean)
    var = f.g.reduce("Mean", f.g.Mul(centred, centred), [-1])
    return f.put(f.g.Div(centred, f.g.Sqrt(f.g.Add(var, f.g.const(np.array(0.01))))), shape)


def reduction(f: Forge) -> Made:
    x, shape = f.x()
    if not shape:
        return None
    axes = sorted(f.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    op = f.one("Sum", "Sum", "Mean", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")
    if op == "L2":
        x = f.g.Add(x, f.g.const(np.array(3.0)))
    keep = f.int(0, 1)
    made = f.g.reduce(op, x, [f.sign(a, len(shape)) for a in axes], keepdims=keep)
    left_ = [1 if i in axes else s for i, s in enumerate(shape) if keep or i not in axes]
    return f.put(made, tuple(left_))


def softmax(f: Forge) -> Made:
    x, shape = f.x(lambda s: bool(s))
    if not shape:
        return None
    # before opset 13 all axes from this one on are one, which onnx's evaluator does not know
    first = 0 if f.g.opset >= 13 else len(shape) - 1
    axis = f.sign(f.int(first, len(shape) - 1), len(shape))
    return f.put(getattr(f.g, f.one("Softmax", "Softmax", "LogSoftmax"))(x, axis=axis), shape)


def cumulative(f: Forge) -> Made:
    x, shape = f.x(lambda s: bool(s))
    if not shape:
        return None
    axis = f.g.const(np.array(f.sign(f.int(0, len(shape) - 1), len(shape))), np.int64)
    return f.put(f.g.CumSum(x, axis, exclusive=f.int(0, 1), reverse=f.int(0, 1)), shape)


def sort(f: Forge) -> Made:
    if f.smooth:
        return None
    x, shape = f.x(lambda s: any(known(d) for d in s))
    axis = f.axis(shape, known)
    if axis is None:
        return None
    k = f.int(1, int(shape[axis]))  # type: ignore[arg-type]
    values, index = f.g.nodes_of("TopK", [x, f.ints([k])], 2, axis=f.sign(axis, len(shape)))
    made: Shape = (*shape[:axis], k, *shape[axis + 1 :])
    if f.flag():
        return f.put(f.g.GatherElements(x, index, axis=axis), made)
    return f.put(values, made)


def some_rows(f: Forge) -> Made:
    """A slice or a gather of the candidates themselves."""
    x, shape = f.x(lambda s: N in s)
    if N not in shape:
        return None
    at = shape.index(N)
    if f.flag():
        row = f.one(0, -1)
        return f.put(f.g.Gather(x, f.g.const(np.array(row), np.int64), axis=at), (*shape[:at], *shape[at + 1 :]))
    f.g.some = True
    return f.put(f.g.slice(x, *f.one((0, 1), (-1, 2**31 - 1)), at), (*shape[:at], 1, *shape[at + 1 :]))


def reverse_rows(f: Forge) -> Made:
    x, shape = f.x(lambda s: N in s)
    if N not in shape:
        return None
    return f.put(f.g.slice(x, -1, -(2**31), shape.index(N), -1), shape)


def convolve(f: Forge) -> Made:
    x, shape = f.tokens()
    c, d = shape[1], shape[2]
    if not isinstance(c, int):
        return None
    out, width = f.int(1, 2), f.int(1, 2)
    bias = [f.weight(out)] if f.flag() else []
    made = f.g.Conv(x, f.weight(out, c, width), *bias, kernel_shape=[width])
    return f.put(made, (N, out, int(d) - width + 1))  # type: ignore[arg-type]


def recurrent(f: Forge) -> Made:
    x, shape = f.tokens()
    d, h = int(shape[2]), 2  # type: ignore[arg-type]
    first = f.g.Transpose(x, perm=[1, 0, 2])
    w, r = f.weight(1, 3 * h, d), f.weight(1, 3 * h, h)
    bias = [f.weight(1, 6 * h)] if f.flag() else []
    _, last = f.g.nodes_of("GRU", [first, w, r, *bias], 2, hidden_size=h, linear_before_reset=f.int(0, 1))
    return f.put(f.g.squeeze(last, [0]), (N, h))
