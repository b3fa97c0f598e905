"""Steps that move elements: they regroup axes, pick positions, put tensors behind each other."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tests.engine.graphs import N
from tests.fuzz.forge import Forge, Made, Shape, Size, known, numel


def concat(f: Forge) -> Made:
    x, shape = f.x()
    axis = f.axis(shape, lambda s: isinstance(s, int))
    if axis is None:
        return None
    parts, total = [x], int(shape[axis])  # type: ignore[arg-type]
    for _ in range(f.int(1, 3)):
        size = f.int(1, 3)
        parts.append(f.get((*shape[:axis], size, *shape[axis + 1 :])))
        total += size
    if f.flag():
        parts.append(parts[0])
        total += int(shape[axis])  # type: ignore[arg-type]
    order = f.one(parts, parts[::-1])
    return f.put(f.g.Concat(*order, axis=f.sign(axis, len(shape))), (*shape[:axis], total, *shape[axis + 1 :]))


def candidates_concat(f: Forge) -> Made:
    """Behind each other along the candidate axis."""
    x, shape = f.x(lambda s: N in s)
    at = shape.index(N) if N in shape else None
    if at is None:
        return None
    other = f.get(shape)
    return f.put(f.g.Concat(x, other, axis=at), (*shape[:at], (N, 2), *shape[at + 1 :]))


def stack(f: Forge) -> Made:
    x, shape = f.x(lambda s: len(s) < 4)
    axis, parts = f.int(0, len(shape)), [x]
    for _ in range(f.int(1, 2)):
        parts.append(f.get(shape))
    made = f.g.Concat(*(f.g.unsqueeze(p, axis) for p in parts), axis=axis)
    return f.put(made, (*shape[:axis], len(parts), *shape[axis:]))


def cut(f: Forge) -> Made:
    x, shape = f.x(lambda s: any(known(d) for d in s))
    axis = f.axis(shape, known)
    if axis is None:
        return None
    size, step = int(shape[axis]), f.one(1, 1, 2, -1)  # type: ignore[arg-type]
    start = f.int(-size, size - 1)
    end = f.one(f.int(-size, size), 2**31 - 1) if step > 0 else f.one(f.int(-size, size), -(2**31))
    left = len(range(size)[slice(start, end if end > -(2**31) else None, step)])
    if left == 0:
        return None
    made = f.g.slice(x, start, end, f.sign(axis, len(shape)), step)
    return f.put(made, (*shape[:axis], left, *shape[axis + 1 :]))


def split(f: Forge) -> Made:
    x, shape = f.x(lambda s: any(known(d) for d in s))
    axis = f.axis(shape, known)
    if axis is None:
        return None
    size = int(shape[axis])  # type: ignore[arg-type]
    first = f.int(1, size - 1)
    names = f.g.split(x, [first, size - first], f.sign(axis, len(shape)))
    f.put(names[0], (*shape[:axis], first, *shape[axis + 1 :]))
    return f.put(names[1], (*shape[:axis], size - first, *shape[axis + 1 :]))


def pick(f: Forge) -> Made:
    x, shape = f.x(lambda s: any(known(d) for d in s))
    axis = f.axis(shape, known)
    if axis is None:
        return None
    size = int(shape[axis])  # type: ignore[arg-type]
    how = f.int(0, 2)
    if how == 0:
        index = f.g.const(np.array(f.int(-size, size - 1)), np.int64)
        return f.put(f.g.Gather(x, index, axis=axis), (*shape[:axis], *shape[axis + 1 :]))
    n = f.int(1, 4)
    places = [f.int(-size, size - 1) for _ in range(n)]
    if how == 1 or n % 2:
        return f.put(
            f.g.Gather(x, f.ints(places), axis=f.sign(axis, len(shape))), (*shape[:axis], n, *shape[axis + 1 :])
        )
    grid = f.g.const(np.array(places).reshape(2, -1), np.int64)
    return f.put(f.g.Gather(x, grid, axis=axis), (*shape[:axis], 2, n // 2, *shape[axis + 1 :]))


def turn(f: Forge) -> Made:
    x, shape = f.x(lambda s: len(s) > 1)
    perm = list(f.draw(st.permutations(range(len(shape)))))
    return f.put(f.g.Transpose(x, perm=perm), tuple(shape[p] for p in perm))


def merge(f: Forge) -> Made:
    """Neighbours merged, the candidate axis at times: [N, T, D] -> [N*T, D]."""
    x, shape = f.x(lambda s: len(s) > 1)
    if len(shape) < 2 or not all(isinstance(s, int) or s == N for s in shape):
        return None
    i = f.int(0, len(shape) - 2)
    pair = shape[i : i + 2]
    if pair == (N, N):
        return None
    size: Size = (N, int(pair[1] if pair[0] == N else pair[0])) if N in pair else int(pair[0]) * int(pair[1])  # type: ignore[arg-type]
    if size == (N, 1):
        size = N
    target = [s if isinstance(s, int) else -1 for s in (*shape[:i], size, *shape[i + 2 :])]
    name = f.g.reshape(x, *target) if target.count(-1) < 2 else None
    if name is None:
        return None
    return f.put(name, (*shape[:i], size, *shape[i + 2 :]))


def unfold(f: Forge) -> Made:
    """[N*T, D] back to [N, T, D], its target read from shapes or not; or [N*T, D] to [T, N, D], which mixes rows."""
    x, shape = f.x(lambda s: any(isinstance(d, tuple) for d in s))
    axis = f.axis(shape, lambda s: isinstance(s, tuple))
    if axis is None or sum(not isinstance(s, int) for s in shape) > 1:
        return None
    size = shape[axis]
    assert isinstance(size, tuple)
    pair: list[Size] = f.one([N, size[1]], [N, size[1]], [size[1], N])
    made: Shape = (*shape[:axis], *pair, *shape[axis + 1 :])
    return f.put(f.g.reshape(x, *(s if isinstance(s, int) else -1 for s in made)), made)


def halve(f: Forge) -> Made:
    x, shape = f.x(lambda s: any(known(d, 4) for d in s))
    axis = f.axis(shape, lambda s: isinstance(s, int) and s >= 4 and s % 2 == 0)
    if axis is None or sum(not isinstance(s, int) for s in shape) > 1:
        return None
    size = int(shape[axis])  # type: ignore[arg-type]
    pair = f.one((2, size // 2), (size // 2, 2))
    made: Shape = (*shape[:axis], *pair, *shape[axis + 1 :])
    return f.put(f.g.reshape(x, *(s if isinstance(s, int) else -1 for s in made)), made)


def reshape_by_shape(f: Forge) -> Made:
    """A target computed in the graph, as exporters write it."""
    x, shape = f.x(lambda s: len(s) > 1 and s[0] == N and all(isinstance(d, int) for d in s[1:]))
    if shape[0] != N or not all(isinstance(d, int) for d in shape[1:]):
        return None
    rows = f.g.size(f.one(x, *[n for n, s in f.pool if s and s[0] == N]), 0)
    target = f.g.Concat(rows, f.ints([numel(shape[1:])]), axis=0)
    return f.put(f.g.Reshape(x, target), (N, numel(shape[1:])))


def one_more(f: Forge) -> Made:
    x, shape = f.x(lambda s: len(s) < 4)
    axis = f.int(0, len(shape))
    return f.put(f.g.unsqueeze(x, axis), (*shape[:axis], 1, *shape[axis:]))


def one_less(f: Forge) -> Made:
    x, shape = f.x(lambda s: 1 in s)
    if 1 not in shape:
        return None
    axis = shape.index(1)
    axes = None if list(shape).count(1) == 1 and f.int(0, 2) == 0 else [f.sign(axis, len(shape))]
    return f.put(f.g.squeeze(x, axes), (*shape[:axis], *shape[axis + 1 :]))


def flatten(f: Forge) -> Made:
    x, shape = f.x(lambda s: all(isinstance(d, int) or d == N for d in s))
    if not all(isinstance(d, int) or d == N for d in shape) or list(shape).count(N) != 1:
        return None
    axis = f.int(0, len(shape))
    sides: list[Size] = []
    for part in (shape[:axis], shape[axis:]):
        n = numel(part)
        sides.append(n if N not in part else N if n == 1 else (N, n))
    return f.put(f.g.Flatten(x, axis=axis), tuple(sides))


def repeat(f: Forge) -> Made:
    x, shape = f.x(lambda s: 1 in s)
    axis = f.axis(shape, lambda s: s == 1)
    if axis is None:
        return None
    n = f.int(2, 3)
    sizes = [n if i == axis else 1 for i in range(len(shape))]
    made = f.g.Tile(x, f.ints(sizes)) if f.flag() else f.g.expand(x, *sizes)
    return f.put(made, (*shape[:axis], n, *shape[axis + 1 :]))


def tile(f: Forge) -> Made:
    x, shape = f.x(lambda s: any(known(d) for d in s))
    axis = f.axis(shape, known)
    if axis is None:
        return None
    sizes = [2 if i == axis else 1 for i in range(len(shape))]
    return f.put(f.g.Tile(x, f.ints(sizes)), (*shape[:axis], 2 * int(shape[axis]), *shape[axis + 1 :]))  # type: ignore[arg-type]


def pad(f: Forge) -> Made:
    x, shape = f.x(lambda s: any(known(d) for d in s))
    axis = f.axis(shape, known)
    if axis is None:
        return None
    before, after = f.int(0, 1), f.int(0, 2)
    pads = [0] * (2 * len(shape))
    pads[axis], pads[axis + len(shape)] = before, after
    mode = f.one("constant", "edge", "reflect") if int(shape[axis]) > 2 else "constant"  # type: ignore[arg-type]
    made = f.g.Pad(x, f.ints(pads), mode=mode)
    return f.put(made, (*shape[:axis], int(shape[axis]) + before + after, *shape[axis + 1 :]))  # type: ignore[arg-type]
