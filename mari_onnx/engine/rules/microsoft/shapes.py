"""Element types and shapes of com.microsoft's operators, which onnx's own inference does not know.

Without them the rank of the result would be unknown, and nothing behind the operator could be split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps

from onnx import NodeProto, TensorProto

from mari_onnx.engine.batching import Through, mapped
from mari_onnx.engine.ir.infer import OTHERS, Inferred, Known, infer
from mari_onnx.engine.ir.value import Decline, Tensor
from mari_onnx.engine.rule import Context
from mari_onnx.model.dims import Size
from mari_onnx.model.nodes import attribute

MICROSOFT = "com.microsoft"
Shape = tuple[Size, ...]
Shapes = Sequence[Shape | None]
Tensors = Sequence[Tensor | None]


def shape_of(*ops: str, domain: str = MICROSOFT) -> Callable[[Known], Known]:
    """Registers a function that tells the types and shapes of outputs of `ops`. If it fails on a shape, nothing is
    known.
    """

    def register(known: Known) -> Known:
        @wraps(known)
        def infer_fallback(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred | None:
            try:
                return known(node, shapes, inputs)
            except (AttributeError, LookupError, TypeError, ValueError):
                return None

        for op in ops:
            OTHERS[domain, op] = infer_fallback
        return known

    return register


def first(shapes: Shapes, i: int = 0) -> Shape:
    """The shape of input ``i``. Raises ValueError where the rank is not known."""
    shape = shapes[i]
    if shape is None:
        raise ValueError("the rank is not known")
    return shape


def dtype_of(inputs: Tensors, i: int = 0) -> int:
    """The ONNX element type of input ``i``. Raises ValueError where it is left out."""
    tensor = inputs[i]
    if tensor is None:
        raise ValueError("the input is missing")
    return tensor.dtype


def outputs(node: NodeProto, *found: tuple[int, tuple[Size | None, ...] | None]) -> Inferred:
    """The types and shapes of the first outputs; of the others nothing is known."""
    more = len(node.output) - len(found)
    return [*found, *[(TensorProto.FLOAT, None)] * max(more, 0)][: len(node.output)]


@shape_of(
    "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "BiasSoftmax", "BiasAdd", "LayerNormalization", "RotaryEmbedding",
    "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax",
)  # fmt: skip
def _same(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    return outputs(node, (dtype_of(inputs), first(shapes)))


@shape_of("QLinearAdd", "QLinearMul")
def _broadcast(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    return outputs(node, (dtype_of(inputs), _joined(first(shapes), first(shapes, 3))))


@shape_of("QGemm")
def _qgemm(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    a, b = first(shapes), first(shapes, 3)
    rows = a[1 if attribute(node, "transA", 0) else 0]
    columns = b[0 if attribute(node, "transB", 0) else 1]
    whole = len(inputs) > 8 and inputs[8] is not None
    return outputs(node, (dtype_of(inputs, 8) if whole else TensorProto.FLOAT, (rows, columns)))


@shape_of("QLinearConcat")
def _qconcat(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    shape = list(first(shapes, 2))
    axis = int(str(attribute(node, "axis"))) % len(shape)
    for i in range(5, len(shapes), 3):
        shape[axis] = shape[axis] + first(shapes, i)[axis]
    return outputs(node, (dtype_of(inputs, 2), tuple(shape)))


@shape_of("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def _skip(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    shape, dtype = first(shapes), dtype_of(inputs)
    rows = (TensorProto.FLOAT, (*shape[:-1], 1))
    return outputs(node, (dtype, shape), rows, rows, (dtype, shape))


@shape_of("SimplifiedLayerNormalization", domain="")
def _simplified(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    shape = first(shapes)
    axis = int(str(attribute(node, "axis", -1))) % len(shape)
    rows = (*shape[:axis], *[1] * (len(shape) - axis))
    return outputs(node, (dtype_of(inputs, 1), shape), (TensorProto.FLOAT, rows))


@shape_of("BiasSplitGelu")
def _half(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    *rows, last = first(shapes)
    if not isinstance(last, int):
        raise ValueError("the width is not a constant")
    return outputs(node, (dtype_of(inputs), (*rows, last // 2)))


@shape_of("MatMulNBits")
def _nbits(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    return outputs(node, (dtype_of(inputs), (*first(shapes)[:-1], int(str(attribute(node, "N"))))))


@shape_of("DynamicQuantizeMatMul", "MatMulIntegerToFloat")
def _quantized_matmul(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    return outputs(node, (TensorProto.FLOAT, (*first(shapes)[:-1], first(shapes, 1)[-1])))


@shape_of("FusedMatMul", "FusedMatMulActivation")
def _matmul(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    x, y = (first(shapes, i) for i in (0, 1))
    x, y = (tuple(s[p] for p in permutation(node, len(s), side)) for s, side in ((x, "A"), (y, "B")))
    if not x or not y:
        raise ValueError("an operand is a scalar")
    if len(x) == 1 or len(y) == 1:
        batch: tuple[Size | None, ...] = (x if len(y) == 1 else y)[:-2]
    else:
        batch = _joined(x[:-2], y[:-2])
    return outputs(node, (dtype_of(inputs), (*batch, *x[-2:-1], *(y[-1:] if len(y) > 1 else ()))))


def permutation(node: NodeProto, rank: int, side: str) -> list[int]:
    """The permutation that FusedMatMul applies to an operand: axis 0 behind the other batch axes, then the last two
    swapped.
    """
    perm = list(range(rank))
    if rank > 2 and attribute(node, f"transBatch{side}", 0):
        perm = [*perm[1:-1], 0, perm[-1]]
    if rank > 1 and attribute(node, f"trans{side}", 0):
        perm[-2:] = perm[:-3:-1]
    return perm


def _joined(x: Shape, y: Shape) -> tuple[Size | None, ...]:
    """The shape of two shapes that broadcast; None where it is not known before the run."""
    rank = max(len(x), len(y))
    left, right = (1,) * (rank - len(x)) + x, (1,) * (rank - len(y)) + y
    return tuple(a if a == b or b == 1 else b if a == 1 else None for a, b in zip(left, right, strict=True))


@shape_of("FusedGemm")
def _gemm(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    x, y = (first(shapes, i) for i in (0, 1))
    rows, columns = x[1 if attribute(node, "transA", 0) else 0], y[0 if attribute(node, "transB", 0) else 1]
    return outputs(node, (dtype_of(inputs), (rows, columns)))


@shape_of("FusedConv")
def _conv(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    plain = NodeProto(op_type="Conv", input=node.input[:3], output=node.output)
    plain.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
    return infer(plain, shapes[:3], inputs[:3], {"": 11})


@shape_of("Attention")
def _attention(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    sizes = attribute(node, "qkv_hidden_sizes")
    width = first(shapes, 1)[1]
    if isinstance(sizes, list):
        last: Size = int(sizes[2])
    elif isinstance(width, int):
        last = width // 3
    else:
        raise ValueError("the width is not a constant")
    return outputs(node, (dtype_of(inputs), (*first(shapes)[:2], last)))


@shape_of("MultiHeadAttention")
def _heads(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    q, v = first(shapes), first(shapes, 2)
    if len(q) != 3 or len(v) not in (3, 4):
        raise ValueError("packed operands")
    return outputs(node, (dtype_of(inputs), (*q[:2], v[2] if len(v) == 3 else v[1] * v[3])))


@shape_of("EmbedLayerNormalization")
def _embed(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    ids, table = first(shapes), first(shapes, 2)
    whole = (dtype_of(inputs, 2), (*ids, table[1]))
    return outputs(node, whole, (TensorProto.INT32, ids[:1]), whole)


@mapped("RotaryEmbedding", domain=MICROSOFT)
def _rotary(ctx: Context) -> list[Through]:
    """Batch and heads; tokens where each has its position. Refuses batches that are packed."""
    x, at = ctx.input(0), ctx.input(1)
    if ctx.attr("is_packed_batching", 0) or x.rank not in (3, 4) or at.rank not in (1, 2):
        raise Decline("the sequences of the batch are packed into one")
    tokens, each = x.rank - 2, at.rank == 2
    if each and not all(ctx.b.same(p, x.shape[a]) for p, a in zip(at.shape, (0, tokens), strict=True)):
        raise Decline("there is not one position per token")
    found = [Through((0, 0 if each else None, None, None), (0,))]
    found += [Through((1, None, None, None), (1,))] if x.rank == 4 else []
    return found + ([Through((tokens, 1, None, None), (tokens,))] if each else [])
