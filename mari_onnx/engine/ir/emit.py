"""Writes single operators for any opset: each function takes tensors of the new graph and returns one of known
shape.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto, helper

from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Decline, Tensor
from mari_onnx.model.dims import Size, product, symbols

FILLED = {
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.INT8, TensorProto.INT16,
    TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
}  # fmt: skip
"""Element types that ConstantOfShape can write in every opset."""


def transpose(b: Builder, t: Tensor, perm: Sequence[int]) -> Tensor:
    """Transposes ``t`` as numpy does. Two Transposes in a row become one; the identity writes nothing."""
    if t.name in b.transposed:
        t, before = b.transposed[t.name]
        perm = [before[p] for p in perm]
    if list(perm) == list(range(len(perm))):
        return t
    out = b.emit("Transpose", [t], tuple(t.known[p] for p in perm), attrs={"perm": list(perm)})
    if not out.const:
        b.transposed[out.name] = (t, tuple(perm))
    return out


def reshape(b: Builder, t: Tensor, shape: Sequence[Size]) -> Tensor:
    """``t`` in another shape of as many elements: Squeeze or Unsqueeze where that is enough, else Reshape.

    The target is a constant wherever one -1 and zeros can express it.
    """
    shape = tuple(shape)
    t = b.reshaped.get(t.name, t)
    if t.known == shape:
        return t
    out = _reshape(b, t, shape)
    if not out.const:
        b.reshaped[out.name] = t
    return out


def _reshape(b: Builder, t: Tensor, shape: tuple[Size, ...]) -> Tensor:
    """A Reshape to ``shape``; the target is a constant with 0 and -1 where these can express it, else computed."""
    drop, add = _ones(t.known, shape)
    if drop is not None and add is not None and not (drop and add):
        return _axes(b, "Squeeze" if drop else "Unsqueeze", t, drop or add, shape)
    if any(s == 0 and t.known[i : i + 1] != (0,) for i, s in enumerate(shape)):
        # a literal 0 copies a dimension
        if b.opset < 14:
            return _empty(b, t, shape)
        return b.emit("Reshape", [t, b.sizes(shape)], shape, attrs={"allowzero": 1})
    target = [s if isinstance(s, int) else 0 if t.known[i : i + 1] == (s,) else -1 for i, s in enumerate(shape)]
    if drop and add and -1 in target and 0 in target:
        # [N, T, 1] as [N, 1, T]: beside N = 0, -1 could be anything
        fewer = tuple(s for i, s in enumerate(t.known) if i not in drop)
        return _axes(b, "Unsqueeze", _axes(b, "Squeeze", t, drop, fewer), add, shape)
    # before opset 14 nothing can be said where several may be 0, so that histories are taken to have an entry
    bare = [i for i, s in enumerate(shape) if not b.filled(s) and (b.opset >= 14 or _told(s))]
    if target.count(-1) > 1 or (-1 in target and any(target[i] != -1 for i in bare)):
        # beside a dimension of 0 -1 could be anything, and a 0 that is computed may copy another dimension
        sizes = [-1 if bare == [i] else s for i, s in enumerate(shape)]
        zero = 1 if b.opset >= 14 and len(bare) != 1 else None
        return b.emit("Reshape", [t, b.sizes(sizes)], shape, attrs={"allowzero": zero})
    return b.emit("Reshape", [t, b.ints(target)], shape)


def _empty(b: Builder, t: Tensor, shape: tuple[Size, ...]) -> Tensor:
    """A tensor without elements, whatever ``t`` would be."""
    if t.dtype not in FILLED:
        raise Decline("it reshapes to a tensor without elements, of a type that ConstantOfShape cannot write")
    value = helper.make_tensor("value", t.dtype, [1], [0])
    return b.emit("ConstantOfShape", [b.sizes(shape)], shape, t.dtype, {"value": value})


def _told(size: Size) -> bool:
    """Whether only a run tells the size."""
    return any(name.startswith("?") for name in symbols(size))


def _ones(have: Sequence[Size], shape: Sequence[Size]) -> tuple[list[int], list[int]] | tuple[None, None]:
    """Dimensions of 1 to drop (indices in the source) and to add (indices in the target); None if more has to
    change.
    """
    if [s for s in have if s != 1] != [s for s in shape if s != 1]:
        return None, None
    drop, add, i, j = [], [], 0, 0
    while i < len(have) or j < len(shape):
        if i < len(have) and j < len(shape) and have[i] == shape[j]:
            i, j = i + 1, j + 1
        elif j < len(shape) and shape[j] == 1:
            add.append(j)
            j += 1
        else:
            drop.append(i)
            i += 1
    return drop, add


def _axes(b: Builder, op: str, t: Tensor, axes: Sequence[int], shape: tuple[Size, ...]) -> Tensor:
    if b.opset >= 13:
        return b.emit(op, [t, b.ints(axes)], shape)
    return b.emit(op, [t], shape, attrs={"axes": list(axes)})


def expand(b: Builder, t: Tensor, shape: Sequence[Size]) -> Tensor:
    """Repeats dimensions of 1 to a shape of the same rank. The only place where one user row becomes N rows."""
    if t.known == tuple(shape):
        return t
    # A dimension that stays is written as 1: Expand broadcasts both ways, and the graph reads no size it need not.
    target = [1 if have == want else want for have, want in zip(t.known, shape, strict=True)]
    return b.emit("Expand", [t, b.sizes(target)], tuple(shape))


def concat(b: Builder, tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Concatenates tensors of equal rank along an axis; a single tensor is returned unchanged."""
    if len(tensors) == 1:
        return tensors[0]
    shape = list(tensors[0].known)
    for t in tensors[1:]:
        shape[axis] = shape[axis] + t.known[axis]
    return b.emit("Concat", list(tensors), tuple(shape), attrs={"axis": axis})


def cut(b: Builder, t: Tensor, axis: int, start: int, stop: int, size: Size, step: int = 1) -> Tensor:
    """A Slice along one axis; ``size`` is the size of the result there."""
    shape = (*t.known[:axis], size, *t.known[axis + 1 :])
    inputs = [t, b.ints([start]), b.ints([stop]), b.ints([axis])]
    if step != 1:
        inputs.append(b.ints([step]))
    return b.emit("Slice", inputs, shape)


def split(b: Builder, t: Tensor, axis: int, sizes: Sequence[int]) -> list[Tensor]:
    """Consecutive parts of the given sizes along an axis."""
    if len(sizes) == 1:
        return [t]
    shapes = [(*t.known[:axis], n, *t.known[axis + 1 :]) for n in sizes]
    if t.const:
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [cut(b, t, axis, s, s + n, n) for s, n in zip(starts, sizes, strict=True)]
    base, _, start = b.cuts.get(t.name, (t, axis, 0)) if b.cuts.get(t.name, (t, axis, 0))[1] == axis else (t, axis, 0)
    if b.opset >= 13:
        outs = b.emit_many("Split", [t, b.ints(sizes)], shapes, {"axis": axis})
    else:
        outs = b.emit_many("Split", [t], shapes, {"axis": axis, "split": list(sizes)})
    for out, size in zip(outs, sizes, strict=True):
        b.cuts[out.name] = (base, axis, start)
        start += size
    return outs


def pieces(b: Builder, t: Tensor, axis: int, sizes: Sequence[int]) -> list[list[Tensor]]:
    """Consecutive parts along an axis, each as a list of tensors to concatenate. A Concat or Expand behind ``t`` is
    undone.
    """
    node = t.node if t.node is not None and len(sizes) > 1 else None
    x = node.inputs[0] if node is not None else None
    repeated = node is not None and x is not None and node.proto.op_type == "Expand" and len(x.known) == len(t.known)
    if repeated and x is not None and x.known[axis] == t.known[axis]:
        shapes = [(*t.known[:axis], n, *t.known[axis + 1 :]) for n in sizes]
        return [[expand(b, part, shape)] for part, shape in zip(split(b, x, axis, sizes), shapes, strict=True)]
    if node is not None and node.proto.op_type == "Concat" and node.proto.attribute[0].i == axis:
        found: list[list[Tensor]] = [[]]
        left = list(sizes)
        for part in node.inputs:
            assert part is not None
            size = part.known[axis]
            if not isinstance(size, int) or size > left[0]:
                break
            found[-1].append(part)
            left[0] -= size
            if not left[0] and len(left) > 1:
                left.pop(0)
                found.append([])
        else:
            return found
    return [[part] for part in split(b, t, axis, sizes)]


def pick(b: Builder, t: Tensor, axis: int, positions: Sequence[int]) -> Tensor:
    """Positions along an axis, in that order: ``t`` itself, a Slice or a Gather."""
    out = _pick(b, t, axis, positions)
    if not out.const and t.deps < out.deps:
        out.deps = t.deps  # columns of one side of a packed input, read from the whole
    return out


def _pick(b: Builder, t: Tensor, axis: int, positions: Sequence[int]) -> Tensor:
    n, first = len(positions), positions[0]
    size = t.known[axis]
    if list(positions) == list(range(first, first + n)):
        if first == 0 and size == n:
            return t
        if b.picked.get(t.name, (t, -1, ()))[1] == axis:
            base, _, chosen = b.picked[t.name]
            return _pick(b, base, axis, chosen[first : first + n])
        if b.cuts.get(t.name, (t, -1, 0))[1] == axis:
            t, _, before = b.cuts[t.name]
            first += before
        inside = _part_of(t, axis, first, n)
        if inside is not None:
            return _pick(b, inside[0], axis, range(inside[1], inside[1] + n))
        out = cut(b, t, axis, first, first + n, n)
        if not out.const and isinstance(t.known[axis], int):
            b.cuts[out.name] = (t, axis, first)
        return out
    step = positions[1] - first
    if n > 2 and step > 1 and list(positions) == list(range(first, first + n * step, step)):
        return cut(b, t, axis, first, positions[-1] + 1, n, step)
    base, dim, chosen = b.picked.get(t.name, (t, -1, ()))
    if dim == axis and n < len(chosen):
        return _pick(b, base, axis, [chosen[p] for p in positions])  # some of what was picked, not of all of it
    shape = (*t.known[:axis], n, *t.known[axis + 1 :])
    runs = [0] + [i for i in range(1, n) if positions[i] != positions[i - 1] + 1]
    inner = product(t.known[axis + 1 :])
    if not t.const and "item" in t.deps and isinstance(inner, int) and inner < 4 and 4 * len(runs) <= n:
        # a Gather of single elements is several times slower than copying runs
        ends = [*runs[1:], n]
        pieces = [cut(b, t, axis, positions[i], positions[j - 1] + 1, j - i) for i, j in zip(runs, ends, strict=True)]
        return concat(b, pieces, axis)
    out = b.emit("Gather", [t, b.ints(positions)], shape, attrs={"axis": axis})
    if not out.const:
        b.picked[out.name] = (t, axis, tuple(positions))
    return out


def _part_of(t: Tensor, axis: int, first: int, n: int) -> tuple[Tensor, int] | None:
    """The operand of the Concat that ``t`` is, and where in it the ``n`` positions begin; None if in several."""
    if t.node is None or t.node.proto.op_type != "Concat" or t.node.proto.attribute[0].i != axis:
        return None
    for part in t.node.inputs:
        assert part is not None
        size = part.known[axis]
        if not isinstance(size, int):
            return None
        if first < size:
            return (part, first) if first + n <= size else None
        first -= size
    return None


def reduce(b: Builder, op: str, t: Tensor, axes: Sequence[int], keep: bool = True) -> Tensor:
    """A Reduce* operator over dimensions of a tensor. keep: reduced dimensions stay, with size 1."""
    if not axes:
        return t
    shape = tuple(1 if i in axes else s for i, s in enumerate(t.known) if keep or i not in axes)
    behind = range(max(axes) + 1, len(t.known))
    if behind and all(t.known[i] == 1 for i in behind):
        # onnxruntime is some 20 times slower where a dimension of 1 follows, and is kept
        return reshape(b, reduce(b, op, t, [*axes, *behind], keep), shape)
    core = t.known
    while core and core[-1] == 1:
        core = core[:-1]
    inside = [i for i in axes if i < len(core)]
    if len(core) < len(t.known) and inside and len(t.known) - 1 not in axes:
        # behind dimensions of 1 onnxruntime takes single elements for rows
        return reshape(b, reduce(b, op, reshape(b, t, core), inside, keep), shape)
    as_input = b.opset >= 18 or (op == "ReduceSum" and b.opset >= 13)
    attrs: dict[str, object] = {"keepdims": int(keep)}
    if as_input:
        return b.emit(op, [t, b.ints(sorted(axes))], shape, attrs=attrs)
    return b.emit(op, [t], shape, attrs={**attrs, "axes": sorted(axes)})


def broadcast(a: Sequence[Size], c: Sequence[Size]) -> tuple[Size, ...]:
    """The shape of an element-wise result of two shapes of equal rank; dimensions must be equal or 1."""
    rank = max(len(a), len(c))
    left, right = (1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(c)) + tuple(c)
    return tuple(y if x == 1 else x for x, y in zip(left, right, strict=True))


def binary(b: Builder, op: str, x: Tensor, y: Tensor, dtype: int | None = None) -> Tensor:
    """An element-wise operator of two tensors that broadcast as in numpy. dtype: of the result, if not that of x."""
    return b.emit(op, [x, y], broadcast(x.known, y.known), dtype or x.dtype)


def unary(b: Builder, op: str, x: Tensor, **attrs: object) -> Tensor:
    """An element-wise operator: the result has the shape and the element type of ``x``."""
    return b.emit(op, [x], x.known, attrs=attrs)


def matmul(b: Builder, x: Tensor, y: Tensor) -> Tensor:
    """numpy's matmul on tensors of rank 2 or more."""
    batch = broadcast(x.known[:-2], y.known[:-2])
    return b.emit("MatMul", [x, y], (*batch, x.known[-2], y.known[-1]))
