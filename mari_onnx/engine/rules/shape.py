"""Shapes computed inside the graph: followed as symbols, and written anew where a tensor of them is needed.

In: nodes on integers that are sizes or constants (Shape, Gather, Mul, ..). Out: Values with known symbolic elements. A
user tensor counts with the source's N rows here, although the new graph has one; so a Reshape or an Expand whose batch
was read from a user tensor is right, and no shape arithmetic of the source is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

import numpy as np
from onnx import TensorProto, numpy_helper

from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.value import Axis, Decline, Group, Leaf, Value
from mari_onnx.engine.rule import (
    MAX_SYMBOLIC,
    Context,
    from_array,
    from_sizes,
    from_tensor,
    normal,
    rule,
    symbolic,
)
from mari_onnx.model.dims import Dim, Size, divide, product, static
from mari_onnx.model.nodes import is_standard
from mari_onnx.model.ops import Fact, having, row
from mari_onnx.model.tensors import EXACT


@rule("Shape")
def shape(ctx: Context) -> list[Value]:
    """The sizes as the source counts them, from `start` to `end`; nothing is read at run time."""
    x = ctx.input(0)
    dims = list(x.shape)[ctx.attr("start", 0) : ctx.attr("end", None)]
    return [from_sizes(ctx.b, np.array([*dims, None], dtype=object)[:-1], TensorProto.INT64)]


@rule("Size")
def size(ctx: Context) -> list[Value]:
    """The number of elements: the product of `shape`."""
    total = np.empty((), dtype=object)
    total[()] = product(ctx.input(0).shape)
    return [from_sizes(ctx.b, total, TensorProto.INT64)]


@rule("Constant")
def constant(ctx: Context) -> list[Value]:
    """The array of the attribute. Refuses strings and sparse tensors, which are copied as they are."""
    for name, kind in (("value_float", 1), ("value_int", 7), ("value_floats", 1), ("value_ints", 7)):
        if name in ctx.attrs:
            return [from_array(ctx.b, np.asarray(ctx.attrs[name]), kind)]
    if "value" not in ctx.attrs or ctx.attrs["value"].data_type == TensorProto.STRING:
        raise Decline("the constant has strings, or is sparse")
    tensor = ctx.attrs["value"]
    return [from_array(ctx.b, numpy_helper.to_array(tensor), tensor.data_type)]


@rule("ConstantOfShape")
def constant_of_shape(ctx: Context) -> list[Value]:
    """One element, broadcast to the shape. Refuses a shape that is computed from data."""
    sizes = ctx.sizes(0)
    if any(s is None for s in sizes):
        raise Decline("the shape is computed from data")
    tensor = ctx.attrs.get("value")
    array = np.zeros((1,), np.float32) if tensor is None else numpy_helper.to_array(tensor)
    dtype = TensorProto.FLOAT if tensor is None else tensor.data_type
    scalar = ctx.b.const(array.reshape(()), dtype)
    groups: list[Group] = [(Axis(s),) if s != 1 else () for s in sizes if s is not None]
    value = ctx.value(groups, Leaf(scalar, ()), dtype)
    fixed = [s for s in sizes if isinstance(s, int)]
    if dtype in EXACT and len(fixed) == len(sizes) and static(product(fixed)) <= MAX_SYMBOLIC:
        value.sym = np.full(fixed, int(array.reshape(())), dtype=object)
    return [value]


@rule("Range")
def range_(ctx: Context) -> list[Value]:
    """Range over sizes or constants: its length is (stop - start) / step. Refuses bounds computed from data."""
    bounds = [ctx.sizes(i)[0] if ctx.inputs[i] is not None else None for i in range(3)]
    start, stop, step = bounds
    if start is not None and stop is not None and step is not None and _dims(np.array([*bounds, None], dtype=object)):
        length = divide(stop - start, step)
        low = None if length is None else ctx.b.least(length)
        if length is None or low is None or low < 0 or not all(ctx.b.computable(s) for s in (start, stop, step)):
            raise Decline("the length of the range is not known")
        dtype = ctx.input(0).dtype
        scalars = [emit.reshape(ctx.b, ctx.b.size(s), ()) for s in (start, stop, step)]
        if dtype != TensorProto.INT64:
            scalars = [ctx.b.emit("Cast", [t], (), dtype, {"to": dtype}) for t in scalars]
        return [from_tensor(ctx.b.emit("Range", scalars, (length,), dtype))]
    if all(isinstance(s, int) for s in bounds):
        array = np.arange(*[int(s) for s in bounds])  # type: ignore[arg-type]
        return [from_array(ctx.b, array, ctx.input(0).dtype)]
    raise Decline("the bounds of the range are computed from data")


# ---- symbolic elements ----------------------------------------------------------------------------------------------


def fold(ctx: Context) -> list[Value] | None:
    """The node computed on symbolic elements, where all inputs have them and at least one is no plain constant; else
    None.
    """
    op = ctx.node.op_type
    if not is_standard(ctx.node) or not ctx.inputs:
        return None
    if any(v is None or v.groups is None or v.dtype not in EXACT for v in ctx.inputs):
        return None
    if not any(v is not None and v.sym is not None and _dims(v.sym) for v in ctx.inputs):
        return None
    arrays = [symbolic(ctx.b, v) for v in ctx.inputs if v is not None]
    if any(a is None for a in arrays):
        return None
    try:
        results = _compute(ctx, op, [a for a in arrays if a is not None])
    except (Decline, IndexError, ValueError, TypeError):
        return None
    if results is None or any(x is None for r in results for x in r.reshape(-1)):
        return None
    dtype = ctx.inputs[-1].dtype if op == "Where" else ctx.inputs[0].dtype  # type: ignore[union-attr]
    if op == "Cast":
        dtype = int(ctx.attr("to"))
        if dtype not in EXACT:
            return None
    if op in having(Fact.BOOLEAN):
        dtype = TensorProto.BOOL
    try:
        return [from_sizes(ctx.b, np.asarray(r, dtype=object), dtype) for r in results]
    except Decline:
        return None


def _dims(array: np.ndarray) -> bool:
    return any(isinstance(x, Dim) for x in array.reshape(-1))


def _map(function: Callable[..., object], *arrays: np.ndarray) -> np.ndarray:
    return np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays), dtype=object)


def _compute(ctx: Context, op: str, a: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """The elements of the operator's result, int, `Dim` or None each; None where the operator is not followed."""
    holds, function = row(op).holds, row(op).function
    if op == "Div":
        return [_map(_divide, *a)]
    if op in having(Fact.REDUCES):
        if function is None or a[0].ndim != 1 or ctx.attr("noop_with_empty_axes", 0):
            return None
        return [np.asarray(function(a[0]), dtype=object).reshape((1,) if ctx.attr("keepdims", 1) else ())]
    if holds:
        return [_map(lambda x, y: _compare(ctx, holds, x, y), *a)]
    if function in (max, min):
        return [_map(lambda x, y: _extreme(ctx, function is max, x, y), *a)] if len(a) == 2 else None
    if function is not None:
        return [_map(function, *a)]
    if op == "Where":
        return [_map(lambda c, x, y: x if c or x == y else y, *a)]
    if op == "Concat":
        return [np.concatenate(a, axis=ctx.attr("axis"))]
    if op == "Gather":
        return [np.asarray(np.take(a[0], a[1].astype(np.int64), axis=ctx.attr("axis", 0)), dtype=object)]
    if op == "Slice":
        starts, ends = a[1].reshape(-1), a[2].reshape(-1)
        along = a[3].reshape(-1) if len(a) > 3 else np.arange(len(starts))
        steps = a[4].reshape(-1) if len(a) > 4 else np.ones(len(starts), dtype=object)
        index: list[slice] = [slice(None)] * a[0].ndim
        for s, e, axis, step in zip(starts, ends, along, steps, strict=True):
            index[normal(int(axis), a[0].ndim)] = slice(int(s), int(e) if abs(int(e)) < 1 << 40 else None, int(step))
        return [a[0][tuple(index)]]
    if op == "Squeeze":
        axes = [int(x) for x in a[1].reshape(-1)] if len(a) > 1 else ctx.attr("axes")
        return [np.squeeze(a[0], axis=tuple(axes) if axes is not None else None)]
    if op == "Unsqueeze":
        axes = [int(x) for x in a[1].reshape(-1)] if len(a) > 1 else ctx.attr("axes")
        return [np.expand_dims(a[0], tuple(axes))]
    if op == "Reshape":
        return [a[0].reshape([int(x) for x in a[1].reshape(-1)])]
    if op == "Flatten":
        return [a[0].reshape(int(np.prod(a[0].shape[: ctx.attr("axis", 1)])), -1)]
    if op == "Expand":
        return [np.broadcast_to(a[0], np.broadcast_shapes(a[0].shape, tuple(int(x) for x in a[1].reshape(-1))))]
    if op == "Cast" and int(ctx.attr("to")) == TensorProto.BOOL:
        return [_map(lambda x: _compare(ctx, {-1, 1}, x, 0), a[0])]
    if op in having(Fact.SAME) or op == "Cast":
        return [a[0]]
    if op == "Split":
        sizes = [int(x) for x in a[1].reshape(-1)] if len(a) > 1 else ctx.attr("split")
        n = len(ctx.node.output)
        cuts = np.cumsum(sizes)[:-1] if sizes is not None else n
        return list(np.split(a[0], cuts, axis=ctx.attr("axis", 0)))
    return None


def _divide(x: Size, y: Size) -> Size | None:
    if isinstance(x, int) and isinstance(y, int):
        return int(x / y) if y else None  # Div truncates towards zero
    return divide(x, y)


def _sign(ctx: Context, x: Size, y: Size) -> int | None:
    """The sign of x - y where it is the same for every size; else None."""
    difference = ctx.b.literal(x) - ctx.b.literal(y)
    if isinstance(difference, int):
        return (difference > 0) - (difference < 0)
    low, high = ctx.b.least(difference), ctx.b.least(-difference)
    if low is not None and low > 0:
        return 1
    return -1 if high is not None and high > 0 else None


def _compare(ctx: Context, holds: Set[int], x: Size, y: Size) -> bool | None:
    """Whether the sign of x - y is among those for which a comparison holds."""
    sign = _sign(ctx, x, y)
    return None if sign is None else sign in holds


def _extreme(ctx: Context, largest: bool, x: Size, y: Size) -> Size | None:
    sign = _sign(ctx, x, y)
    if sign is None:
        return None
    return x if (sign >= 0) == largest else y
