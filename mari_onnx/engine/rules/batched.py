"""The mapped axes of operators, one function for each family (`mari_onnx.engine.batching` says what they are).

In: a node's `Context`. Out: the axes along which the operator handles each position by itself. An operator without
another rule is computed once for all positions of these that are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

from mari_onnx.engine.batching import Through, mapped
from mari_onnx.engine.ir.value import Decline
from mari_onnx.engine.rule import Context, normal
from mari_onnx.model.dims import product


def _all_but(ctx: Context, axes: Sequence[int], outs: int = 1, keep: bool = True) -> list[Through]:
    """All axes of input 0 except ``axes``. keep: the outputs have these too; otherwise the others move up."""
    rank = ctx.input(0).rank
    gone = {normal(a, rank) for a in axes}
    out = []
    for a in range(rank):
        if a not in gone:
            place = a if keep else a - sum(1 for g in gone if g < a)
            inputs = (a, *([None] * (len(ctx.inputs) - 1)))
            out.append(Through(inputs, (place,) * outs))
    return out


@mapped("Softmax", "LogSoftmax", "Hardmax")
def _softmax(ctx: Context) -> list[Through]:
    """All axes but the one that is normalized; before opset 13 all from `axis` on are one row."""
    if ctx.opset < 13:
        axis = normal(ctx.attr("axis", 1), ctx.input(0).rank)
        return _all_but(ctx, range(axis, ctx.input(0).rank))
    return _all_but(ctx, [ctx.attr("axis", -1)])


@mapped("CumSum", "CumProd")
def _cumulative(ctx: Context) -> list[Through]:
    """All axes except the one along which it adds or multiplies. Refuses an axis that is computed."""
    axis = ctx.ints(1)
    if axis is None:
        raise Decline("the axis is computed at run time")
    return _all_but(ctx, axis)


@mapped("LpNormalization")
def _lp(ctx: Context) -> list[Through]:
    """All axes but the one that is normalized."""
    return _all_but(ctx, [ctx.attr("axis", -1)])


@mapped("TopK")
def _topk(ctx: Context) -> list[Through]:
    """All axes except the ranked one. Refuses a k that is computed."""
    if ctx.ints(1) is None:
        raise Decline("k is computed at run time")
    return _all_but(ctx, [ctx.attr("axis", -1)], outs=2)


@mapped("ArgMax", "ArgMin")
def _arg(ctx: Context) -> list[Through]:
    """All axes except the searched one, which the output lacks with keepdims 0."""
    return _all_but(ctx, [ctx.attr("axis", 0)], keep=bool(ctx.attr("keepdims", 1)))


@mapped("LayerNormalization", "RMSNormalization")
def norm_axes(ctx: Context) -> list[Through]:
    """The axes before `axis`: mean and variance are taken over all others. A scale or bias that has these axes is
    mapped too.
    """
    rank = ctx.input(0).rank
    axis = normal(ctx.attr("axis", -1), rank)
    others = [ctx.input(i) if ctx.has(i) else None for i in range(1, len(ctx.inputs))]
    out = []
    for a in range(axis):
        places = [None if v is None or a - rank + v.rank < 0 else a - rank + v.rank for v in others]
        inputs = (a, *(None if p is None or v.shape[p] == 1 else p for p, v in zip(places, others, strict=True)))  # type: ignore[union-attr]
        out.append(Through(inputs, (a,) * len(ctx.node.output)))
    return out


@mapped("LayerNormalization", "SimplifiedLayerNormalization", domain="com.microsoft")
def _ms_norm(ctx: Context) -> list[Through]:
    """As for the standard's operator."""
    return norm_axes(ctx)


@mapped(
    "Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "MaxPool", "AveragePool", "LpPool", "GlobalLpPool",
    "GroupNormalization", "LRN", "DepthToSpace", "SpaceToDepth", "Upsample",
)  # fmt: skip
def _batch_first(ctx: Context) -> list[Through]:
    """Axis 0 alone: inputs are [N, C, ..], and windows or statistics mix the rest."""
    inputs = (0, *([None] * (len(ctx.inputs) - 1)))
    return [Through(inputs, (0,) * len(ctx.node.output))]


@mapped("InstanceNormalization")
def _instance(ctx: Context) -> list[Through]:
    """Axes 0 and 1: each channel of each instance by itself, with its own scale and bias."""
    return [Through((0, None, None), (0,)), Through((1, 0, 0), (1,))]


@mapped("GRU", "LSTM", "RNN")
def _recurrent(ctx: Context) -> list[Through]:
    """The batch: each sequence is computed by itself, with its own state and length."""
    # X [T, N, I], W, R, B, sequence_lens [N], initial_h [dirs, N, H], initial_c, P; layout 1 puts N first
    first = ctx.attr("layout", 0) == 1
    state = 0 if first else 1
    places = (0 if first else 1, None, None, None, 0, state, state, None)
    outs = (0 if first else 2, state, state)
    return [Through(places[: len(ctx.inputs)], outs[: len(ctx.node.output)])]


@mapped("GatherElements")
def _gather_elements(ctx: Context) -> list[Through]:
    """Axes except `axis` that have equal size in data and indices; where indices are fewer, positions do not
    correspond. And that of the indices along `axis`: each of them picks by itself.
    """
    data, index = ctx.input(0), ctx.input(1)
    axis = normal(ctx.attr("axis", 0), data.rank)
    others = [
        Through((a, a), (a,))
        for a in range(data.rank)
        if a != axis and ctx.b.same(data.shape[a], index.shape[a])
    ]
    return [*others, Through((None, axis), (axis,))]


@mapped("ScatterElements", "Scatter")
def _scatter_elements(ctx: Context) -> list[Through]:
    """As GatherElements, of equal size in the updates too."""
    data, index, updates = ctx.input(0), ctx.input(1), ctx.input(2)
    axis = normal(ctx.attr("axis", 0), data.rank)
    return [
        Through((a, a, a), (a,))
        for a in range(data.rank)
        if a != axis and ctx.b.same(data.shape[a], index.shape[a]) and ctx.b.same(data.shape[a], updates.shape[a])
    ]


@mapped("OneHot")
def _one_hot(ctx: Context) -> list[Through]:
    """All axes of the indices; the output has one more at `axis`."""
    rank = ctx.input(0).rank
    axis = normal(ctx.attr("axis", -1), rank + 1)
    return [Through((a, None, None), (a if a < axis else a + 1,)) for a in range(rank)]


@mapped("Trilu")
def _trilu(ctx: Context) -> list[Through]:
    """All but the last two, whose positions decide what is kept."""
    return _all_but(ctx, [-1, -2])


@mapped("Det")
def _det(ctx: Context) -> list[Through]:
    """All but the last two, which the output lacks."""
    return _all_but(ctx, [-1, -2], keep=False)


@mapped("ReverseSequence")
def _reverse(ctx: Context) -> list[Through]:
    """All axes but time; the lengths have the batch axis."""
    batch, time = ctx.attr("batch_axis", 1), ctx.attr("time_axis", 0)
    rank = ctx.input(0).rank
    return [Through((a, 0 if a == batch else None), (a,)) for a in range(rank) if a != time]


@mapped("Pad")
def _pad(ctx: Context) -> list[Through]:
    """All axes that get no padding. Refuses computed pads, and wrapping around."""
    rank = ctx.input(0).rank
    pads = ctx.ints(1) if ctx.opset >= 11 else ctx.attr("pads")
    axes = ctx.ints(3) if ctx.has(3) else list(range(rank))
    if pads is None or axes is None:
        raise Decline("the padding is computed at run time")
    if ctx.attr("mode", "constant") == "wrap":
        raise Decline("it pads by wrapping around")
    half = len(pads) // 2
    touched = {normal(a, rank) for k, a in enumerate(axes) if pads[k] or pads[k + half]}
    return _all_but(ctx, sorted(touched))


@mapped("Resize")
def _resize(ctx: Context) -> list[Through]:
    """Axis 0, where its scale is a constant 1."""
    scales = ctx.array(2)
    if scales is None or scales.size == 0 or scales[0] != 1 or "axes" in ctx.attrs:
        raise Decline("it resizes the batch, or its scales are not constant")
    return _batch_first(ctx)


@mapped("DFT")
def _dft(ctx: Context) -> list[Through]:
    """All but the transformed axis and the last, which holds real and imaginary parts. Refuses a computed axis."""
    rank = ctx.input(0).rank
    axis = ctx.attr("axis", 1) if ctx.opset < 20 else -2
    if ctx.has(2):
        found = ctx.ints(2)
        if found is None:
            raise Decline("the axis is computed at run time")
        axis = found[0]
    return _all_but(ctx, [normal(axis, rank), rank - 1])


@mapped("MatMulNBits", domain="com.microsoft")
def _nbits(ctx: Context) -> list[Through]:
    """All but the last axis, which is contracted with the packed weights."""
    return _all_but(ctx, [-1])


@mapped("MatMulInteger")
def _matmul_integer(ctx: Context) -> list[Through]:
    """All but the contracted axis. Refuses zero points of each row, and weights that are not a constant matrix."""
    zeros = ctx.has(2) and ctx.input(2).rank > 0 and ctx.input(2).shape != (1,)
    if ctx.array(1) is None or ctx.input(1).rank != 2 or zeros:
        raise Decline("the right operand is not a constant matrix, or the zero point differs by row")
    return _all_but(ctx, [-1])


@mapped("QLinearMatMul")
def _qlinear_matmul(ctx: Context) -> list[Through]:
    """All axes of A [.., M, K] except the contracted K, which are those of Y [.., M, N].

    Refuses a B that is not a constant matrix [K, N], and a scale or zero point of A or Y that is not a single number.
    """
    if ctx.array(3) is None or ctx.input(3).rank != 2:
        raise Decline("its right operand is not a constant matrix")
    for i in (1, 2, 6, 7):
        if product(ctx.input(i).shape) != 1:
            raise Decline(f"{ctx.node.input[i]!r}, a scale or zero point, differs by row")
    return _all_but(ctx, [-1])
