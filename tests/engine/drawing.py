"""Random expressions of user, item, cross and constant tensors, drawn by hypothesis.

`starts` draws an empty graph, `shapes` a shape [N, ...], `tensor` an expression of that shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from hypothesis import strategies as st

from tests.engine.graphs import Draw, Graph, N, R, Shape, Size

OPSETS = (11, 13, 17, 18, 20, 21)


@st.composite
def starts(
    draw: Draw, opsets: Sequence[int] = OPSETS, requests: bool = False, dtype: type = np.float64
) -> Graph:
    """An empty graph. dtype: of its float tensors.

    requests: tensors are [R, N, ...], the candidate axis is 1, and inputs are tagged or not.
    """
    g = Graph(draw(st.sampled_from(opsets)), dtype, seed=draw(st.integers(0, 3)), axis=int(requests))
    g.tag = not requests or draw(st.booleans())
    return g


def shapes(draw: Draw, low: int = 2, high: int = 4) -> Shape:
    """[N, ...] of some rank, small."""
    return (N, *draw(st.lists(st.integers(1, 4), min_size=low - 1, max_size=high - 1)))


def tensor(draw: Draw, g: Graph, shape: Shape, depth: int = 2) -> str:
    """A random expression of this shape; N may stand on any axis."""
    known = g.pool.get(shape)
    if known and draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(known))
    makers = LEAVES if depth == 0 else LEAVES + INNER
    made = draw(st.sampled_from(makers))(draw, g, shape, depth)
    g.pool.setdefault(shape, []).append(made)
    return made


def _fixed(shape: Shape) -> list[int]:
    """The shape with 1 where a size is only known at run time."""
    return [1 if isinstance(s, str) else s for s in shape]


def _constant(draw: Draw, g: Graph, shape: list[int]) -> str:
    """Weights, a mask of zeros and ones, or one number throughout."""
    which = draw(st.integers(0, 3))
    if which < 2:
        return g.weight(*shape)
    mask = g.rng.random(shape) < 0.5
    return g.const(
        mask.astype(float) if which == 2 else np.full(shape, draw(st.integers(-1, 2)), float)
    )


def _leaf(side: str) -> Callable[[Draw, Graph, Shape, int], str]:
    def make(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
        if R in shape:
            return _request(g, side, shape)
        if N not in shape:
            return _constant(draw, g, _fixed(shape))
        at = shape.index(N)
        own = [s for s in shape if s != N]
        if side == "const":  # a parameter expanded to the batch that is read from a tensor
            like = g.input(None if g.axis else draw(st.sampled_from(("user", "item"))), N, 1)
            return g.Expand(
                _constant(draw, g, _fixed(shape)), _sizes(g, shape, {N: g.size(like, 0)})
            )
        x = g.input(None if g.axis else side, N, *own)
        if at == 0:
            return x
        return g.Transpose(x, perm=[*range(1, at + 1), 0, *range(at + 1, len(shape))])

    return make


def _request(g: Graph, side: str, shape: Shape) -> str:
    """R requests of N candidates: [R, ...] of the user, expanded in the graph, or [R, N, ...]."""
    own = [s for s in shape if s not in (R, N)]
    front = [i for s in (R, N) for i in range(len(shape)) if shape[i] == s]
    order = front + [i for i in range(len(shape)) if i not in front]
    perm = [order.index(i) for i in range(len(shape))]
    if N not in shape:
        x = g.input("user" if g.tag else None, R, *own)
    elif side in ("user", "const"):
        like = g.input("item" if g.tag else None, R, N, 1)
        u = (
            g.unsqueeze(g.input("user" if g.tag else None, R, *own), 1)
            if side == "user"
            else g.weight(1, 1, *_fixed(tuple(own)))
        )
        x = g.Expand(u, _sizes(g, (R, N, *own), {R: g.size(like, 0), N: g.size(like, 1)}))
    else:
        x = g.input(side if g.tag else None, R, N, *own)
    return x if perm == list(range(len(shape))) else g.Transpose(x, perm=perm)


def _sizes(g: Graph, shape: Shape, known: Mapping[str, str]) -> str:
    return g.Concat(
        *(known[s] if isinstance(s, str) else g.const([s], np.int64) for s in shape), axis=0
    )


def _wide(shape: Shape, least: int = 2) -> list[int]:
    return [i for i, s in enumerate(shape) if isinstance(s, int) and s >= least]


def _with(shape: Shape, axis: int, size: Size) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def signed(draw: Draw, axis: int, rank: int) -> int:
    """The axis counted from the front or from the back."""
    return axis - rank if draw(st.booleans()) else axis


def _concat(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    axes = _wide(shape)
    if not axes:
        return tensor(draw, g, shape, depth - 1)
    axis = draw(st.sampled_from(axes))
    left = int(shape[axis])
    parts = []
    while left:
        size = draw(st.integers(1, left))
        parts.append(tensor(draw, g, _with(shape, axis, size), depth - 1))
        left -= size
    return g.Concat(*parts, axis=signed(draw, axis, len(shape)))


def _stack(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    axes = [a for a in _wide(shape) if int(shape[a]) <= 3]
    if not axes:
        return tensor(draw, g, shape, depth - 1)
    axis = draw(st.sampled_from(axes))
    slim = (*shape[:axis], *shape[axis + 1 :])
    return g.Concat(
        *(g.unsqueeze(tensor(draw, g, slim, depth - 1), axis) for _ in range(int(shape[axis]))),
        axis=axis,
    )


def _picked(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    axes = _wide(shape, 1)
    if not axes:
        return tensor(draw, g, shape, depth - 1)
    axis = draw(st.sampled_from(axes))
    size = int(shape[axis])
    wide = size + draw(st.integers(0, 3))
    x = _concat(draw, g, _with(shape, axis, wide), depth)
    if draw(st.booleans()):
        start = draw(st.integers(0, wide - size))
        return g.slice(x, start, start + size, signed(draw, axis, len(shape)))
    places = draw(st.lists(st.integers(-wide, wide - 1), min_size=size, max_size=size))
    return g.Gather(x, g.const(places, np.int64), axis=signed(draw, axis, len(shape)))


UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Identity", "Sin", "Softplus", "Erf", "LeakyRelu")


def _unary(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    return getattr(g, draw(st.sampled_from(UNARY)))(tensor(draw, g, shape, depth - 1))


def _binary(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    x = tensor(draw, g, shape, depth - 1)
    other = broadcastable(draw, g, shape, depth - 1)
    op = draw(st.sampled_from(("Add", "Sub", "Mul", "Div", "Max")))
    if op == "Div":
        other = g.Add(g.Abs(other), g.const(np.array(1.5)))
    pair = (x, other) if op == "Div" or draw(st.booleans()) else (other, x)
    return getattr(g, op)(*pair)


def broadcastable(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    """A tensor that broadcasts to the shape: some dimensions 1, some leading ones left out."""
    kept = [1 if draw(st.integers(0, 3)) == 0 else s for s in shape]
    first = draw(st.integers(0, len(shape)))
    small = tuple(kept[first:])
    if N in shape[first:] and N not in small and draw(st.booleans()):
        small = shape
    return tensor(draw, g, small, depth) if {N, R} & set(small) else g.weight(*_fixed(small))


def _linear(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    if len(shape) < 2 or isinstance(shape[-1], str):
        return tensor(draw, g, shape, depth - 1)
    inner = draw(st.integers(1, 4))
    x = tensor(draw, g, _with(shape, len(shape) - 1, inner), depth - 1)
    return g.MatMul(x, g.weight(inner, int(shape[-1])))


def _turned(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    perm = draw(st.permutations(range(len(shape))))
    back = [perm.index(i) for i in range(len(perm))]
    return g.Transpose(tensor(draw, g, tuple(shape[p] for p in perm), depth - 1), perm=back)


def _regrouped(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    """From a tensor with neighbours merged, or with one dimension cut in two."""
    axes = [i for i in range(len(shape) - 1) if all(isinstance(s, int) for s in shape[i : i + 2])]
    if sum(isinstance(s, str) for s in shape) > 1:
        axes = [i for i in axes if all(isinstance(s, int) for s in shape[i:])]
    if axes and draw(st.booleans()):
        i = draw(st.sampled_from(axes))
        source: Shape = (*shape[:i], int(shape[i]) * int(shape[i + 1]), *shape[i + 2 :])
    else:
        wide = [i for i in _wide(shape, 4) if int(shape[i]) % 2 == 0]
        if not wide or sum(isinstance(s, str) for s in shape) > 1:
            return tensor(draw, g, shape, depth - 1)
        i = draw(st.sampled_from(wide))
        source = (*shape[:i], 2, int(shape[i]) // 2, *shape[i + 1 :])
    before = draw(st.booleans()) or sum(isinstance(s, str) for s in shape) > 1
    target = [
        s if isinstance(s, int) else 0 if before and j < i else -1 for j, s in enumerate(shape)
    ]
    return g.reshape(tensor(draw, g, source, depth - 1), *target)


def _folded(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    """Through [N*T, D] and back, with a product on the way."""
    if len(shape) != 3 or shape[0] != N or not all(isinstance(s, int) for s in shape[1:]):
        return tensor(draw, g, shape, depth - 1)
    t, d = int(shape[1]), int(shape[2])
    flat = g.reshape(tensor(draw, g, shape, depth - 1), -1, d)
    if draw(st.booleans()):
        flat = (
            g.Gemm(flat, g.weight(d, d), g.weight(d))
            if draw(st.booleans())
            else g.MatMul(flat, g.weight(d, d))
        )
    return g.reshape(flat, -1, t, d)


def _expanded(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    axes = _wide(shape)
    if not axes:
        return tensor(draw, g, shape, depth - 1)
    axis = draw(st.sampled_from(axes))
    x = tensor(draw, g, _with(shape, axis, 1), depth - 1)
    if draw(st.booleans()):
        return g.expand(x, *_fixed(shape))
    return g.Tile(
        x, g.const([s if i == axis else 1 for i, s in enumerate(_fixed(shape))], np.int64)
    )


def _reduced(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    axis = draw(st.integers(0, len(shape)))
    x = tensor(draw, g, (*shape[:axis], draw(st.integers(1, 3)), *shape[axis:]), depth - 1)
    op = draw(st.sampled_from(("Sum", "Mean", "Max")))
    return g.reduce(op, x, [signed(draw, axis, len(shape) + 1)], keepdims=0)


def _softmax(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    return g.Softmax(tensor(draw, g, shape, depth - 1), axis=len(shape) - 1)


def _where(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    condition = g.Greater(broadcastable(draw, g, shape, depth - 1), g.const(np.array(0.1)))
    return g.Where(condition, tensor(draw, g, shape, depth - 1), broadcastable(draw, g, shape, 0))


LEAVES = [_leaf("user"), _leaf("item"), _leaf("user"), _leaf("cross"), _leaf("const")]
INNER = [
    _concat, _concat, _concat, _stack, _picked, _unary, _binary, _binary, _linear, _turned,
    _regrouped, _folded, _expanded, _reduced, _softmax, _where,
]  # fmt: skip
