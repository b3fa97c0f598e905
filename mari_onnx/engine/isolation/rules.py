"""Operators on blocks."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto, TensorProto

from mari_onnx.engine.ir.value import Decline
from mari_onnx.engine.isolation.blocks import Block, Blocks, Writer, rule, written
from mari_onnx.engine.isolation.layout import Key, N
from mari_onnx.engine.isolation.sizes import never_negative, place
from mari_onnx.model.dims import Size, product
from mari_onnx.model.nodes import attribute
from mari_onnx.model.ops import Fact, having, row

LAST = (1 << 63) - 1
"""An end of a Slice beyond every dimension."""


def twice(w: Writer, dims: Sequence[Size], key: Key) -> list[int]:
    """The two dimensions in which a block has the candidates; none where it has them once at most. Refuses three."""
    found = w.layouts.candidates(dims, key)
    if len(found) > 2:
        raise Decline("the candidates stand in three dimensions")
    return found if len(found) == 2 else []


def stands(w: Writer, names: Sequence[str], dims: Sequence[Size], key: Key) -> int | None:
    """Where a result has the candidates that would have them twice: as most operands have it."""
    found = twice(w, dims, key)
    if not found:
        return None
    outer = dict(zip(w.layouts.at(dims), key, strict=True))
    for name in names:
        if w.counts(name):
            here = w.blocks(name)
            short = len(dims) - len(here.dims)
            own = tuple(outer[i + short] for i in w.layouts.at(here.dims))
            at = here.of[own].at
            if at is not None:
                return at + short
    return found[0]


@rule(*(having(Fact.ELEMENT) - {"CastLike"}), "CastLike")
def element(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """Element by element. A mask that is known in all of a block is not applied. Refuses to read blocks of 0 else."""
    dims = w.dims(node.output[0])
    found = {}
    for key in w.layouts.keys(dims):
        at = stands(w, [x for x in node.input if x], dims, key)
        given = [w.block(x, dims, key, at) if x else "" for x in node.input]
        if None in given and w.zero(node.output[0], key):
            found[key] = Block(None, at)
            continue
        kept = _untouched(w, node, dims, key)
        if kept is not None:
            found[key] = Block(given[kept], at)
            continue
        found[key] = Block(w.copy(node, list(map(written, given)))[0], at)
    return [Blocks(dims, found)]


def _untouched(w: Writer, node: NodeProto, dims: Sequence[Size], key: Key) -> int | None:
    """The operand that is the result itself, as the mask is 1 or lets all through in this block."""
    op = node.op_type
    facts = row(op)
    neutral = facts.neutral
    if Fact.LOGIC in facts.facts and facts.function in (min, max):
        neutral = 1 if facts.function is min else 0
    if op != "Where" and (neutral is None or Fact.COMMUTES not in facts.facts):
        return None
    outer = dict(zip(w.layouts.at(dims), key, strict=True))
    for i, mask in enumerate(node.input[:1] if op == "Where" else node.input[:2]):
        if not w.counts(mask):
            continue
        here = w.dims(mask)
        short = len(dims) - len(here)
        value = w.value(mask, tuple(outer[j + short] for j in w.layouts.at(here)))
        if value is None or (op != "Where" and value != neutral):
            continue
        other = (1 if value else 2) if op == "Where" else 1 - i
        if w.dims(node.input[other]) == tuple(dims):
            return other
    return None


@rule("Transpose")
def transpose(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """Dimensions in another order, in each block."""
    old = w.blocks(node.input[0])
    order = attribute(node, "perm", list(range(len(old.dims)))[::-1])
    at = w.layouts.at(old.dims)
    dims = w.dims(node.output[0])
    found = {}
    for key, block in old.of.items():
        by = dict(zip(at, key, strict=True))
        moved = tuple(by[i] for i in order if i in by)
        name = None if block.name is None else w.add("Transpose", [block.name], perm=order)
        found[moved] = Block(name, None if block.at is None else order.index(block.at))
    return [Blocks(dims, found)]


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def view(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """Dimensions that count candidates stay; others are regrouped between them. Refuses to regroup those."""
    old, dims = w.blocks(node.input[0]), w.dims(node.output[0])
    was, now = w.layouts.at(old.dims), w.layouts.at(dims)
    same = len(was) == len(now) and all(
        old.dims[i] == dims[j] and product(old.dims[:i]) == product(dims[:j]) for i, j in zip(was, now, strict=True)
    )
    if not same:
        raise Decline(f"{list(old.dims)} is regrouped as {list(dims)}")
    found = {}
    for key, block in old.of.items():
        at = None if block.at is None else now[was.index(block.at)]
        name = None if block.name is None else w.reshape(block.name, w.layouts.sizes(dims, key, at))
        found[key] = Block(name, at)
    return [Blocks(dims, found)]


@rule("Expand", "Tile")
def repeat(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """Each block repeated by itself. Refuses a Tile of several elements."""
    dims = w.dims(node.output[0])
    old = w.dims(node.input[0])
    if node.op_type == "Tile" and any(a not in (1, b) for a, b in zip(old, dims, strict=True)):
        raise Decline("a Tile of several elements")
    found = {}
    for key in w.layouts.keys(dims):
        at = stands(w, node.input[:1], dims, key)
        name = written(w.block(node.input[0], dims, key, at))
        found[key] = Block(w.add("Expand", [name, w.sizes(w.layouts.sizes(dims, key, at))]), at)
    return [Blocks(dims, found)]


@rule("ConstantOfShape")
def fill(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """Blocks of one number."""
    dims = w.dims(node.output[0])
    found = {}
    for key in w.layouts.keys(dims):
        at = next(iter(twice(w, dims, key)), None)
        found[key] = Block(w.copy(node, [w.sizes(w.layouts.sizes(dims, key, at))])[0], at)
    return [Blocks(dims, found)]


@rule("Range")
def count(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """Positions of a sequence, counted by ones. Refuses other steps."""
    (size,), (start,), (step,) = w.dims(node.output[0]), *(w.listed(node.input[i]) for i in (0, 2))
    if step != 1 or start != 0 or w.dtypes.get(node.output[0]) != TensorProto.INT64:
        raise Decline("it does not count from 0 by ones")
    return [Blocks((size,), {(s,): Block(positions(w, size, s)) for s in range(len(w.layouts.known[size]))})]


def positions(w: Writer, size: Size, segment: int) -> str:
    """Where the elements of a segment stand, as a tensor of shape [its size]."""
    if not w.layouts.counts(size):
        return w.places(size)
    places, offset = w.places(w.layouts.known[size][segment]), w.layouts.offsets(size)[segment]
    return places if offset == 0 else w.add("Add", [places, w.size(offset)])


def _difference(w: Writer, dims: Sequence[Size], key: Key, at: int | None) -> str:
    """Column less row of the elements of a block of matrices: [rows, columns], or on the diagonal [rows, 1]."""
    of = dict(zip(w.layouts.at(dims), key, strict=True))
    rank = len(dims)
    sides = [positions(w, dims[i], of.get(i, 0)) for i in (rank - 2, rank - 1)]
    if at is None:
        rows, columns = w.add("Unsqueeze", [sides[0], w.ints(1)]), w.add("Unsqueeze", [sides[1], w.ints(0)])
    else:
        rows, columns = (w.add("Unsqueeze", [x, w.ints(1 if at == rank - 2 else 0)]) for x in sides)
    return w.add("Sub", [columns, rows])


@rule("Trilu", "EyeLike")
def triangle(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """By the positions of rows and columns."""
    dims = w.dims(node.output[0])
    eye = node.op_type == "EyeLike"
    shift = w.ints(attribute(node, "k", 0)) if eye else w.ints(0)
    if not eye and len(node.input) > 1 and node.input[1]:
        shift = w.whole(node.input[1])
    found = {}
    for key in w.layouts.keys(dims):
        at = stands(w, node.input[:1], dims, key)
        off = w.add("Sub", [_difference(w, dims, key, at), shift])
        zero = w.ints(0)
        if eye:
            to = attribute(node, "dtype", 1)
            found[key] = Block(w.add("Cast", [w.add("Equal", [off, zero])], to=to), at)
            continue
        data = written(w.block(node.input[0], dims, key, at))
        outside = w.add("Less", [off, zero]) if attribute(node, "upper", 1) else w.add("Greater", [off, zero])
        to = w.dtypes.get(node.input[0], 0)
        if to == TensorProto.BOOL:
            found[key] = Block(w.add("And", [w.add("Not", [outside]), data]), at)
        else:
            found[key] = Block(w.add("Where", [outside, w.add("Cast", [zero], to=to), data]), at)
    return [Blocks(dims, found)]


@rule("Concat")
def concat(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """Along a sequence, what it joins are the segments; else block by block. Refuses to join blocks of 0."""
    dims = w.dims(node.output[0])
    axis = attribute(node, "axis") % len(dims)
    across = w.layouts.at(dims)
    found = {}
    for key in w.layouts.keys(dims):
        by = dict(zip(across, key, strict=True))
        if axis not in by:
            at = stands_of(w, node.input, dims, key)
            parts = [w.block(x, dims, key, at) for x in node.input]
        else:
            segment = by[axis]
            start, end = w.layouts.offsets(dims[axis])[segment : segment + 2]
            parts, at = [], None
            here: Size = 0
            for name in node.input:
                own = w.dims(name)
                if w.counts(name) and not {axis, *by} >= set(w.layouts.at(own)):
                    raise Decline("a sequence is joined with rows of another")
                for s, size in enumerate(w.layouts.known.get(own[axis], (own[axis],))):
                    if _within(start, here, here + size, end):
                        mine = tuple(s if i == axis else by[i] for i in w.layouts.at(own)) if w.counts(name) else ()
                        block = w.blocks(name).of[mine] if w.counts(name) else Block(w.renamed.get(name, name))
                        parts.append(block.name)
                        at = block.at
                    here = here + size
        names = list(map(written, parts))
        found[key] = Block(names[0] if len(names) == 1 else w.add("Concat", names, axis=axis), at)
    return [Blocks(dims, found)]


def stands_of(w: Writer, names: Sequence[str], dims: Sequence[Size], key: Key) -> int | None:
    """As `stands`, of operands whose other dimensions may have other sizes."""
    if not twice(w, dims, key):
        return None
    return next((b.at for x in names if w.counts(x) and (b := w.blocks(x).of.get(key)) and b.at is not None), None)


def _within(start: Size, first: Size, last: Size, end: Size) -> bool:
    """Whether a piece of a sequence lies within a segment of it; pieces lie in one segment as a whole."""
    before, after = first + start * -1, end + last * -1
    return never_negative(before) and never_negative(after) and first != last


@rule("Slice")
def cut(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """Cuts a sequence between segments, or a constant to the length of a sequence. Refuses to cut within segments."""
    data, dims = node.input[0], w.dims(node.output[0])
    old = w.dims(data)
    starts, ends, axes, steps = w.slices(node)
    cuts = {}
    for start, end, i, step in zip(starts, ends, axes, steps, strict=True):
        if (w.layouts.counts(old[i]) or w.layouts.counts(dims[i])) and old[i] != dims[i]:
            if step != 1:
                raise Decline("a Slice of every so many positions")
            cuts[i] = (place(start, old[i]), place(end, old[i]))
    others = [k for k, i in enumerate(axes) if i not in cuts]
    others = [k for k in others if (starts[k], steps[k]) != (0, 1) or not _reaches(ends[k])]
    found = {}
    for key in w.layouts.keys(dims):
        by = dict(zip(w.layouts.at(dims), key, strict=True))
        own = []
        for i in w.layouts.at(old):
            own.append(by[i] if i not in cuts else _segment(w, old[i], dims[i], cuts[i], by.get(i, 0)))
        if not w.counts(data) or any(not w.layouts.counts(old[i]) for i in cuts):
            found[key] = _of_constant(w, data, old, dims, cuts, key)
        else:
            found[key] = w.blocks(data).of[tuple(own)]
        block = found[key]
        if others and block.name is not None:
            rest = [w.sizes([x[k] for k in others]) for x in (starts, ends, axes, steps)]
            found[key] = Block(w.add("Slice", [block.name, *rest]), block.at)
    return [Blocks(dims, found)]


def _reaches(end: Size) -> bool:
    return isinstance(end, int) and end >= 1 << 31


def _segment(w: Writer, old: Size, new: Size, cut: tuple[Size, Size], which: int) -> int:
    """Which segment of the old sequence a segment of the new one is."""
    offsets = w.layouts.offsets(old)
    if cut[0] not in offsets or cut[1] not in offsets:
        raise Decline(f"positions {cut[0]} to {cut[1]} of a sequence of {old} are cut, not whole segments")
    first, last = offsets.index(cut[0]), offsets.index(cut[1])
    kept = w.layouts.known[old][first:last]
    if w.layouts.known.get(new, (new,)) != kept:
        raise Decline(f"segments {kept} are not a sequence of {new}")
    return first + which


def _of_constant(
    w: Writer, data: str, old: Sequence[Size], dims: Sequence[Size], cuts: dict[int, tuple[Size, Size]], key: Key
) -> Block:
    """A block of what is cut from a tensor that is longer than the sequence."""
    if w.counts(data):
        raise Decline("a tensor that counts candidates is cut to their number")
    pair = twice(w, dims, key)
    by = dict(zip(w.layouts.at(dims), key, strict=True))
    name = w.renamed.get(data, data)
    bounds = {}
    for i, (start, _) in cuts.items():
        offsets = w.layouts.offsets(dims[i])
        bounds[i] = (start + offsets[by[i]], start + offsets[by[i] + 1])
        if i not in pair:
            name = w.cut(name, i, *bounds[i])
    if not pair:
        return Block(name)
    i, j = pair
    if j != i + 1 or i not in bounds or j not in bounds:
        raise Decline("candidates by candidates of a constant stand apart")
    flat = w.reshape(name, (*old[:i], old[i] * old[j], *old[j + 1 :]))
    rows, columns = (w.add("Add", [w.places(N), w.size(bounds[k][0])]) for k in pair)
    picked = w.add("Add", [w.add("Mul", [rows, w.size(old[j])]), columns])
    return Block(w.add("Unsqueeze", [w.add("Gather", [flat, picked], axis=i), w.ints(j)]), i)


@rule("Split")
def split(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """Along a dimension that does not count candidates. Refuses to split a sequence."""
    old = w.blocks(node.input[0])
    axis = attribute(node, "axis", 0) % len(old.dims)
    if axis in w.layouts.at(old.dims):
        raise Decline("a sequence is split")
    outs = [dict[Key, Block]() for _ in node.output]
    for key, block in old.of.items():
        made = w.copy(node, [written(block.name), *map(w.whole, node.input[1:])], len(node.output))
        for out, name in zip(outs, made, strict=True):
            out[key] = Block(name, block.at)
    return [Blocks(w.dims(o), out) for o, out in zip(node.output, outs, strict=True)]


def _of_segment(
    w: Writer, x: Blocks, axis: int, indices: Sequence[Size], at: Size, dims: tuple[Size, ...]
) -> Blocks:
    """One position of a sequence, which is a segment. Refuses positions within segments, and several."""
    offsets = w.layouts.offsets(x.dims[axis])
    if product(indices) != 1 or at not in offsets[:-1] or w.layouts.known[x.dims[axis]][offsets.index(at)] != 1:
        raise Decline("positions of a sequence are looked up")
    across = w.layouts.at(x.dims)
    found = {}
    for key, block in x.of.items():
        by = dict(zip(across, key, strict=True))
        if by.pop(axis) == offsets.index(at):
            name = written(block.name)
            stands_at = block.at
            if len(indices) != 1:
                stands_at = None if stands_at is None else stands_at - (stands_at > axis)
                axes = w.ints(axis)
                name = w.add("Squeeze", [name, axes]) if w.opset >= 13 else w.add("Squeeze", [name], axes=[axis])
            found[tuple(by.values())] = Block(name, stands_at)
    return Blocks(dims, found)


@rule("Gather")
def gather(w: Writer, node: NodeProto) -> list[Blocks | None]:
    """Rows of a table by indices in blocks, or of blocks by plain indices. Refuses positions of a sequence that are no
    segment.
    """
    data, indices = node.input[:2]
    dims = w.dims(node.output[0])
    axis = attribute(node, "axis", 0) % len(w.dims(data))
    if w.counts(data) and w.counts(indices):
        raise Decline("rows of candidates are looked up by candidates")
    which, here = (0, w.blocks(data)) if w.counts(data) else (1, w.blocks(indices))
    if which == 0 and axis in w.layouts.at(here.dims):
        return [_of_segment(w, here, axis, w.dims(indices), place(w.listed(indices)[0], here.dims[axis]), dims)]
    grown = len(w.dims(indices)) - 1
    found = {}
    for key, block in here.of.items():
        mine, other = written(block.name), w.whole(node.input[1 - which])
        name = w.copy(node, [mine, other] if which == 0 else [other, mine])[0]
        at = block.at
        if at is not None:
            at = at + axis if which else at + (grown if at > axis else 0)
        found[key] = Block(name, at)
    return [Blocks(dims, found)]
