"""Products of blocks: history by history, candidates by history, and each candidate with itself.

A contraction over a sequence is the sum over its segments. Weights of candidates by candidates are 0 off the diagonal,
so their product with the candidates' values is element by element.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from mari_onnx.engine.ir.value import Decline
from mari_onnx.engine.isolation.blocks import Block, Blocks, Writer, rule, written
from mari_onnx.engine.isolation.layout import Key
from mari_onnx.model.dims import Size, symbols
from mari_onnx.model.nodes import attribute


@rule("MatMul")
def matmul(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """A product of two matrices, or of stacks of them."""
    return [_product(w, node.input[0], node.input[1], w.dims(node.output[0]))]


def _product(w: Writer, x: str, y: str, dims: tuple[Size, ...]) -> Blocks:
    rank, a, b = len(dims), w.dims(x), w.dims(y)
    if min(len(a), len(b)) < 2:
        raise Decline("a product with a vector")
    inner = a[-1]
    segments = range(len(w.layouts.known[inner])) if inner in w.layouts.known else [None]
    if "N" in symbols(inner) and inner not in w.layouts.known:
        raise Decline(f"a contraction over {inner}")
    found: dict[Key, Block] = {}
    for key in w.layouts.keys(dims):
        by = dict(zip(w.layouts.at(dims), key, strict=True))
        terms = []
        for s in segments:
            here = [_place(w, name, by, rank, side, s) for side, name in ((0, x), (1, y))]
            term = _term(w, (x, y), here, rank)
            if term is not None:
                terms.append(term)
        if not terms:
            found[key] = Block(None)
            continue
        at = terms[0].at
        total = terms[0].name
        for term in terms[1:]:
            if term.at != at:
                raise Decline("terms of a product stand apart")
            total = w.add("Add", [written(total), written(term.name)])
        found[key] = Block(total, at)
    return Blocks(dims, found)


def _place(
    w: Writer, name: str, by: dict[int, int], rank: int, side: int, segment: int | None
) -> tuple[Key, tuple[Size, ...]]:
    """The block of an operand that goes into a block of the result, and the operand's dimensions."""
    dims = w.dims(name)
    if not w.counts(name):
        return (), dims
    short = rank - len(dims)
    contracted = len(dims) - 1 - side
    key = []
    for i in w.layouts.at(dims):
        if i == contracted:
            if segment is None:
                raise Decline("a contraction of different sequences")
            key.append(segment)
        elif i + short not in by:
            raise Decline(f"{name} has candidates where the product has none")
        else:
            key.append(by[i + short])
    return tuple(key), dims


def _term(
    w: Writer, names: tuple[str, str], here: Sequence[tuple[Key, tuple[Size, ...]]], rank: int
) -> Block | None:
    """The product of one block of each operand; None where one is 0."""
    blocks, places = [], []
    for name, (key, dims) in zip(names, here, strict=True):
        if not w.counts(name):
            blocks.append(Block(w.renamed.get(name, name)))
            places.append(set[int]())
            continue
        block = w.blocks(name).of[key]
        pair = w.layouts.candidates(dims, key)
        if w.zero(name, key):
            return None
        blocks.append(Block(written(block.name), block.at))
        places.append({i - len(dims) for i in pair})
    (a, b), (at_a, at_b) = blocks, places
    x, y = written(a.name), written(b.name)
    batch = {i for i in (at_a | at_b) if i < -2}
    row, inner_a, inner_b, column = -2 in at_a, -1 in at_a, -2 in at_b, -1 in at_b
    if batch and (row or column or inner_a or inner_b):
        raise Decline("a product for each candidate of candidates")
    if inner_a != inner_b and (inner_a or inner_b):
        raise Decline("a contraction of candidates with others")
    if not inner_a:
        if not (row and column):
            return Block(w.add("MatMul", [x, y]))
        return Block(_by_row(w, x, y, len(here[1][1])), rank - 2)
    if not (row or column):
        return Block(w.add("MatMul", [x, y]))
    if row:
        w.alone(names[0], here[0][0])
        x = w.moved(x, len(here[0][1]), _at(w, a, here[0]), len(here[0][1]) - 2)
    if column:
        w.alone(names[1], here[1][0])
        y = w.moved(y, len(here[1][1]), _at(w, b, here[1]), len(here[1][1]) - (2 if row else 1))
    return Block(w.add("Mul", [x, y]), rank - 2 if row and column else None)


def _at(w: Writer, block: Block, here: tuple[Key, tuple[Size, ...]]) -> int:
    return block.at if block.at is not None else w.layouts.candidates(here[1], here[0])[0]


def _by_row(w: Writer, x: str, y: str, rank: int) -> str:
    """Each candidate's row of x with its own column of y: [.., N, 1]."""
    order = [*range(rank - 2), rank - 1, rank - 2]
    both = w.add("Mul", [x, w.add("Transpose", [y], perm=order)])
    if w.opset < 13:
        return w.add("ReduceSum", [both], axes=[-1], keepdims=1)
    return w.add("ReduceSum", [both, w.ints(-1)], keepdims=1)


@rule("Gemm")
def gemm(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """Rows that count candidates, times a matrix. Refuses other forms."""
    x, y, *rest = node.input
    dims = w.dims(node.output[0])
    if w.counts(y) or attribute(node, "transA", 0) or any(r and w.counts(r) for r in rest):
        raise Decline("a Gemm of which not only the rows count candidates")
    found = {}
    for key, block in w.blocks(x).of.items():
        found[key] = Block(w.copy(node, [written(block.name), *map(w.whole, (y, *rest))])[0])
    return [Blocks(dims, found)]


@rule("Einsum")
def einsum(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """As Transpose and MatMul, of two operands with one row, column and contracted label each. Refuses others."""
    left, _, out = attribute(node, "equation").replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2 or not out or "." in left or any(len(set(t)) != len(t) for t in (*terms, out)):
        raise Decline("an Einsum of other than two operands, or with a diagonal")
    a, b = terms
    batch = [c for c in out if c in a and c in b]
    rows, columns = [c for c in out if c not in b], [c for c in out if c not in a]
    inner = [c for c in a if c in b and c not in out]
    if len(rows) != 1 or len(columns) != 1 or len(inner) != 1 or set(a) | set(b) != {*out, *inner}:
        raise Decline("an Einsum that is no product of matrices")
    x = _turned(w, node.input[0], [a.index(c) for c in (*batch, *rows, *inner)])
    y = _turned(w, node.input[1], [b.index(c) for c in (*batch, *inner, *columns)])
    made = (*batch, *rows, *columns)
    by = dict(zip(out, w.dims(node.output[0]), strict=True))
    product = _product(w, x, y, tuple(by[c] for c in made))
    name = f"{node.output[0]}/product"
    w.shapes[name], w.known[name] = product.dims, product
    return [w.blocks(_turned(w, name, [made.index(c) for c in out]))]


def _turned(w: Writer, name: str, order: list[int]) -> str:
    """A tensor of the source with its dimensions in another order, under a name of its own."""
    if order == sorted(order):
        return name
    dims = w.dims(name)
    if not w.counts(name):
        turned = w.add("Transpose", [w.whole(name)], perm=order)
        w.shapes[turned] = tuple(dims[i] for i in order)
        return turned
    turned = f"{name}/{''.join(map(str, order))}"
    old = w.blocks(name)
    found = {}
    for key, block in old.of.items():
        by = dict(zip(w.layouts.at(old.dims), key, strict=True))
        moved = None if block.name is None else w.add("Transpose", [block.name], perm=order)
        at = None if block.at is None else order.index(block.at)
        found[tuple(by[i] for i in order if i in by)] = Block(moved, at)
    w.turned[turned] = name, order
    w.shapes[turned] = tuple(dims[i] for i in order)
    w.known[turned] = Blocks(w.shapes[turned], found)
    return turned
