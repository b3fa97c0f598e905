"""Steps that multiply: layers, pairs of fields, crosses, experts, gates."""

from __future__ import annotations

import numpy as np

from tests.engine.graphs import N
from tests.fuzz.forge import Forge, Made, known


def linear(f: Forge) -> Made:
    x, shape = f.x(lambda s: len(s) > 1 and isinstance(s[-1], int))
    if len(shape) < 2 or not isinstance(shape[-1], int):
        return None
    inner, out = shape[-1], f.int(1, 4)
    if len(shape) == 2 and f.flag():
        trans = f.int(0, 1)
        w = f.weight(out, inner) if trans else f.weight(inner, out)
        bias = [f.one(f.weight(out), f.weight(), f.weight(1, out))] if f.flag() else []
        how = {"alpha": 0.5, "beta": f.one(0.0, 2.0)} if f.int(0, 3) == 0 else {}
        return f.put(f.g.Gemm(x, w, *bias, transB=trans, **how), (shape[0], out))
    made = f.linear(x, inner, out)
    if f.flag():
        made = f.g.Add(made, f.weight(out))
    if f.flag():
        made = f.g.Relu(made)
    return f.put(made, (*shape[:-1], out))


def left(f: Forge) -> Made:
    """A [u|x]."""
    x, shape = f.x(lambda s: len(s) > 1 and isinstance(s[-2], int))
    if len(shape) < 2 or not isinstance(shape[-2], int):
        return None
    out = f.int(1, 3)
    return f.put(f.g.MatMul(f.weight(out, shape[-2]), x), (*shape[:-2], out, shape[-1]))


def both(f: Forge) -> Made:
    """A product of two activations; over the candidates at times."""
    x, shape = f.x(lambda s: len(s) > 1)
    if len(shape) < 2:
        return None
    other = f.get(shape)
    perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    if f.flag():
        return f.put(f.g.MatMul(x, f.g.Transpose(other, perm=perm)), (*shape[:-1], shape[-2]))
    return f.put(f.g.MatMul(f.g.Transpose(x, perm=perm), other), (*shape[:-2], shape[-1], shape[-1]))


def einsum(f: Forge) -> Made:
    if f.g.opset < 12:
        return None
    x, shape = f.x(lambda s: len(s) == 3 and isinstance(s[2], int) and isinstance(s[1], int))
    if len(shape) != 3 or not isinstance(shape[2], int) or not isinstance(shape[1], int):
        return None
    how = f.one("bld,de->ble", "bld,bmd->blm", "bld,bld->bl", "bld,le->bde", "bld->bdl", "bld,bmd->bd", "...d,de->...e",
                "bld,bld,d->bl", "bld,bld,le->bde")  # fmt: skip
    if how == "bld,bld,d->bl":
        return f.put(f.g.Einsum(x, f.get(shape), f.weight(shape[2]), equation=how), shape[:2])
    if how == "bld,bld,le->bde":
        made = f.g.Einsum(x, f.get(shape), f.weight(shape[1], 2), equation=how)
        return f.put(made, (shape[0], shape[2], 2))
    if how in ("bld,de->ble", "...d,de->...e"):
        return f.put(f.g.Einsum(x, f.weight(shape[2], 2), equation=how), (*shape[:2], 2))
    if how == "bld,le->bde":
        return f.put(f.g.Einsum(x, f.weight(shape[1], 2), equation=how), (shape[0], shape[2], 2))
    if how == "bld->bdl":
        return f.put(f.g.Einsum(x, equation=how), (shape[0], shape[2], shape[1]))
    if how == "bld,bld->bl":
        return f.put(f.g.Einsum(x, f.get(shape), equation=how), shape[:2])
    m = f.int(1, 3)
    other = f.get((shape[0], m, shape[2]))
    return f.put(
        f.g.Einsum(x, other, equation=how), (shape[0], shape[1], m) if how.endswith("blm") else (shape[0], shape[2])
    )


def pairs(f: Forge) -> Made:
    """Pairwise products of fields: all scores and a gather of pairs, or the pairs' fields and a product."""
    x, shape = f.tokens()
    if not known(shape[1]):
        return None
    n, d = int(shape[1]), int(shape[2])  # type: ignore[arg-type]
    i, j = np.triu_indices(n, f.int(0, 1) if n > 1 else 0)
    if f.flag():
        square = f.g.MatMul(x, f.g.Transpose(x, perm=[0, 2, 1]))
        flat = f.g.reshape(square, -1, n * n)
        return f.put(f.g.Gather(flat, f.ints(list(i * n + j)), axis=1), (N, len(i)))
    product = f.g.Mul(f.g.Gather(x, f.ints(list(i)), axis=1), f.g.Gather(x, f.ints(list(j)), axis=1))
    if f.flag():
        return f.put(product, (N, len(i), d))
    return f.put(f.g.reduce("Sum", product, [2], keepdims=0), (N, len(i)))


def factorized(f: Forge) -> Made:
    """FM: the square of the sum less the sum of squares."""
    x, shape = f.tokens()
    total = f.g.reduce("Sum", x, [1], keepdims=0)
    parts = f.g.reduce("Sum", f.g.Mul(x, x), [1], keepdims=0)
    return f.put(f.g.Sub(f.g.Mul(total, total), parts), (N, shape[2]))


def cross(f: Forge) -> Made:
    """DCNv2: x0 * (W x + b) + x."""
    x0, shape = f.rows()
    d, x = int(shape[1]), x0  # type: ignore[arg-type]
    for _ in range(f.int(1, 2)):
        x = f.g.Add(f.g.Mul(x0, f.g.Add(f.linear(x, d, d), f.weight(d))), x)
    return f.put(x, shape)


def interest(f: Forge) -> Made:
    """DIN: a history against a target, [q, k, q-k, q*k] W."""
    k, shape = f.tokens()
    n, d = shape[1], int(shape[2])  # type: ignore[arg-type]
    if not isinstance(n, int):
        return None
    q = f.g.unsqueeze(f.get((N, d)), 1)
    q = f.g.expand(q, 1, n, 1) if f.flag() else f.g.Tile(q, f.ints([1, n, 1]))
    x = f.g.Concat(q, k, f.g.Sub(q, k), f.g.Mul(q, k), axis=2)
    x = f.g.Relu(f.g.Add(f.linear(x, 4 * d, 3), f.weight(3)))
    score = f.linear(x, 3, 1)
    if f.flag():
        score = f.g.Softmax(score, axis=1) if f.g.opset >= 13 else f.g.Sigmoid(score)
    if f.flag():
        return f.put(f.g.reduce("Sum", f.g.Mul(score, k), [1], keepdims=0), (N, d))
    return f.put(f.g.squeeze(f.g.MatMul(f.g.Transpose(score, perm=[0, 2, 1]), k), [1]), (N, d))


def experts(f: Forge) -> Made:
    """MMoE: experts and gates over one input."""
    x, shape = f.rows()
    d, out, n = int(shape[1]), f.int(1, 3), f.int(2, 3)  # type: ignore[arg-type]
    each = [f.g.unsqueeze(f.g.Relu(f.linear(x, d, out)), 1) for _ in range(n)]
    gate = f.g.Softmax(f.linear(f.one(x, f.get(shape)), d, n), axis=1)
    mixed = f.g.MatMul(f.g.unsqueeze(gate, 1), f.g.Concat(*each, axis=1))
    return f.put(f.g.squeeze(mixed, [1]), (N, out))


def gate(f: Forge) -> Made:
    """PEPNet, LHUC: 2 sigmoid(W [u|x]) * x."""
    x, shape = f.rows()
    d = int(shape[1])  # type: ignore[arg-type]
    other, own = f.rows()
    scale = f.g.Mul(f.g.Sigmoid(f.linear(other, int(own[1]), d)), f.g.const(np.array(2.0)))  # type: ignore[arg-type]
    return f.put(f.g.Mul(x, scale), shape)
