"""Positions of a tensor whose elements were moved there, as positions of the tensor that they came from.

    reshape(slice(reshape(x)))[p]  =  x[q]       where these elements are a block of x: Slices of x
    (x W)[i, c_i]  =  x_i W[:, c_i]              where each row i has columns c_i of its own: a product for each row

In: a tensor, and the positions that are picked. Out: a tensor of the same elements. Attention by distance (XLNet,
Funnel) scores every query at all distances, and moves row i by i so that each key gets its own. It does so by Reshapes
that do not line up with rows: ``[q, 2 k] -> [2 k, q]``, less the first row, ``-> [q, 2 k - 1]``, the first k columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Node, Tensor
from mari_onnx.model.dims import Size, product, static
from mari_onnx.model.nodes import attributes, is_standard
from mari_onnx.model.ops import Fact, having

MAX_STEPS = 12
MAX_MOVED = 1 << 16
"""Elements of a candidate up to which positions are followed, and weights that are written for each row."""
VIEWS = having(Fact.VIEW)
REGROUPS = VIEWS - having(Fact.UNIT_DIMS)
FOLLOWED = VIEWS | having(Fact.PICKS) | having(Fact.REPEATS)


def moved(b: Builder, t: Tensor, dim: int, at: Sequence[int]) -> Tensor | None:
    """Some positions of a tensor along a dimension. None where they are neither of a block nor of a product, or were
    not cut between two Reshapes: elsewhere a Slice or Gather of the tensor itself is as good.
    """
    lead = max((i + 1 for i, size in enumerate(t.known) if not isinstance(size, int)), default=0)
    inner = _inner(t, lead)
    count = int(np.prod(inner))
    if dim < lead or not 0 < count <= MAX_MOVED or not _regrouped_twice(t):
        return None
    places = np.arange(count).reshape(inner).take(list(at), axis=dim - lead)
    shape = (*t.known[:lead], *places.shape)
    block = None
    for _ in range(MAX_STEPS):
        found = _before(t, places, lead)
        if found is None:
            break
        t, places = found
        block = _block(t, places, lead) or block
    out = _by_rows(b, t, places, lead)
    if out is None and block is not None:
        out, ranges = block
        for i, some in enumerate(ranges):
            out = emit.pick(b, out, lead + i, some)
    return emit.reshape(b, out, shape) if out is not None else None


def _inner(t: Tensor, lead: int) -> tuple[int, ...]:
    return tuple(static(size) for size in t.known[lead:])


def _regrouped_twice(t: Tensor) -> bool:
    """Whether a Reshape made a tensor, of what was picked or repeated, of what another Reshape made."""
    turns = [False]
    for _ in range(MAX_STEPS):
        if t.node is None or t.node.proto.op_type not in FOLLOWED or t.node.inputs[0] is None:
            break
        regroups = t.node.proto.op_type in REGROUPS
        turns += [regroups] if regroups != turns[-1] else []
        t = t.node.inputs[0]
    return len(turns) > 3


def _before(t: Tensor, at: np.ndarray, lead: int) -> tuple[Tensor, np.ndarray] | None:
    """What the tensor's node moved, and where that has the elements ``at``; None where it did something else.

    at: row-major positions behind the first ``lead`` dimensions, which the node leaves as they are.
    """
    node = t.node
    if node is None or not is_standard(node.proto) or not node.inputs or node.inputs[0] is None:
        return None
    op, x, inner = node.proto.op_type, node.inputs[0], _inner(t, lead)
    if op == "Concat":
        return _joined(node, inner, at, lead)
    if x.shape is None or x.known[:lead] != t.known[:lead] or not all(isinstance(n, int) for n in x.known[lead:]):
        return None
    if op in VIEWS:
        return x, at
    places = np.arange(int(np.prod(_inner(x, lead)))).reshape(_inner(x, lead))
    if op == "Expand" and len(x.known) == len(t.known):
        return x, np.broadcast_to(places, inner).reshape(-1)[at]
    if op == "Slice" and len(node.inputs) > 3 and all(i is not None and i.const for i in node.inputs[1:]):
        given = [i.array.reshape(-1).tolist() for i in node.inputs[1:] if i is not None]
        for k, axis in enumerate(given[2]):
            i, step = axis % len(t.known) - lead, given[3][k] if len(given) > 3 else 1
            if i < 0 or step < 0:
                return None
            places = places[(*[slice(None)] * i, slice(given[0][k], given[1][k], step))]
        return (x, places.reshape(-1)[at]) if places.shape == inner else None
    return None


def _joined(node: Node, inner: tuple[int, ...], at: np.ndarray, lead: int) -> tuple[Tensor, np.ndarray] | None:
    """The operand of a Concat that has all of the elements, and where."""
    axis = attributes(node.proto)["axis"] - lead
    coordinates = list(np.unravel_index(at, inner))
    start = 0
    for part in node.inputs if axis >= 0 else ():
        assert part is not None
        size = static(part.known[lead + axis])
        if start <= coordinates[axis].min() and coordinates[axis].max() < start + size:
            coordinates[axis] = coordinates[axis] - start
            return part, np.asarray(np.ravel_multi_index(coordinates, _inner(part, lead)))
        start += size
    return None


def _block(t: Tensor, at: np.ndarray, lead: int) -> tuple[Tensor, list[range]] | None:
    """The ranges of a tensor's dimensions that the elements are, in their order; None for other elements."""
    inner = _inner(t, lead)
    ranges = [range(int(c.min()), int(c.max()) + 1) for c in np.unravel_index(at, inner)] if inner else []
    block = np.arange(int(np.prod(inner))).reshape(inner)[np.ix_(*ranges)] if inner else np.zeros(1, np.int64)
    return (t, ranges) if np.array_equal(block.reshape(-1), at.reshape(-1)) else None


def _operands(b: Builder, t: Tensor, lead: int) -> tuple[Tensor, Tensor, list[Size]] | None:
    """The operands of a product, and the shape of the right one with as many dimensions as the left one has; a product
    of candidates and rows as one dimension counts as one of both.
    """
    viewed = t.node is not None and t.node.proto.op_type in VIEWS
    made = t.node.inputs[0] if t.node is not None and viewed else t
    if made is None or made.node is None or made.node.proto.op_type != "MatMul":
        return None
    x, w = made.node.inputs
    if x is None or w is None or len(x.known) != len(made.known) or not all(isinstance(n, int) for n in w.known[-2:]):
        return None
    sizes = [*[1] * (len(x.known) - len(w.known)), *w.known]
    if viewed:
        rows, rest = divmod(int(np.prod(_inner(t, lead))), static(w.known[-1]))
        if rest or lead != len(made.known) - 1 or x.known[:-2] != t.known[: lead - 1]:
            return None
        x = emit.reshape(b, x, (*t.known[:lead], rows, x.known[-1]))
        sizes[-2:-2] = [1]
    return x, w, sizes


def _by_rows(b: Builder, t: Tensor, at: np.ndarray, lead: int) -> Tensor | None:
    """Elements of a product with a matrix that is the same for all candidates, other columns of each row: a product
    for each row, with its columns alone. None for others, and where that takes longer.
    """
    found = _operands(b, t, lead) if "item" in t.deps else None
    if found is None:
        return None
    x, w, sizes = found
    rank = len(x.known)
    if any(isinstance(n, int) == (i == lead - 1) for i, n in enumerate(x.known)) or lead > rank - 2:
        return None  # not one dimension of candidates, before that of the rows
    if sizes.pop(lead - 1) != 1 or not all(isinstance(n, int) for n in sizes):
        return None
    count, (depth, width), picked = static(x.known[-2]), map(static, w.known[-2:]), at.shape[-1]
    heads = int(np.prod(_inner(t, lead))) // (count * width)
    if at.size != heads * count * picked:
        return None  # of some rows: the others may need the whole product
    places = at.reshape(heads, count, picked) - np.arange(heads).reshape(-1, 1, 1) * count * width
    columns = places[0] - np.arange(count)[:, None] * width
    if (places != places[0]).any() or columns.min() < 0 or columns.max() >= width or (columns == columns[0]).all():
        return None  # of other rows, or other columns of each head, or the same ones of each row
    n, gathered = b.time.length(x.known[lead - 1]), static(product(sizes[:-1])) * count * picked
    saved = (width - picked) * depth + (width - depth) * b.time.copy  # products; copies of scores, but now of x
    once = 0 if w.const else 2 * b.time.copy * gathered
    if (w.const and gathered > MAX_MOVED) or n * heads * count * saved < heads * count * b.time.call + once:
        return None
    # [.., d, k] -> [.., d, q, k'] -> [.., q, d, k'], times the candidates' rows of each q
    last = len(sizes) - 1
    own = b.emit("Gather", [emit.reshape(b, w, sizes), b.const(columns)],
                 (*sizes[:-1], count, picked), attrs={"axis": last})  # fmt: skip
    own = emit.transpose(b, own, [*range(last - 1), last, last - 1, last + 1])
    perm = [*range(lead - 1), *range(lead, rank - 1), lead - 1, rank - 1]
    out = emit.matmul(b, emit.transpose(b, x, perm), own)
    return emit.transpose(b, out, [int(i) for i in np.argsort(perm)])
