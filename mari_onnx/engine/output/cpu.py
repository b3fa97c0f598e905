"""Rewrites what onnxruntime's CPU kernels are slow at. The operators compute the same numbers in another layout or
order.

    LN(x + y)        onnxruntime fuses it to SkipLayerNormalization, which takes five times as long as an Add and a
                     LayerNormalization (except for short rows). The fusion looks for an Add, so a Sum of two is written
    Softmax(x)       computed in place it takes two to three times as long, where a row is no multiple of a vector
                     register: the load of each row waits for the store of the one before. It is put behind a Reshape
                     whose size onnxruntime cannot infer, because it then gets a buffer of its own
    x W + b          in more than two dimensions it is a MatMul and an Add, which reads the result once more. As rows it
                     is one Gemm, and onnxruntime fuses the activation that follows into it
    float(a + c) s   of products of integers that were added up: one DequantizeLinear takes two thirds of the time.
                     (Cast and Mul of a single product are fused with it)
    Transpose(x) y   onnxruntime moves a Transpose of batch dimensions into the product, which ends the process where x
                     is empty, as an empty history. A Reshape keeps them apart
    Transpose(x)     two blocks of axes that are swapped are copied by moving one outwards, row by row. With a dimension
                     of 1 between the blocks, one is moved inwards, which is up to four times as fast
    Transpose(x)     of many small matrices: with several threads, onnxruntime starts a parallel loop for each matrix,
                     which takes many times as long as transposing it. An Einsum transposes them on one thread
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

from onnx import NodeProto, TensorProto, helper

from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Node, Tensor
from mari_onnx.model.dims import Size, product
from mari_onnx.model.nodes import attribute, is_standard
from mari_onnx.model.ops import row
from mari_onnx.model.tensors import FROM_32_BITS, WITHOUT_BFLOAT16

VECTOR = 16
"""Elements in a vector register."""
LONG = 160
"""A Softmax over rows of at least this length is hardly slower in place."""
WIDE = 64
"""With at least this many elements behind the swapped axes, both ways to move them are equally fast."""
NARROW = 8
"""SkipLayerNormalization is slower from this width on; at 4 columns it takes half as long."""
MIN_ELEMENTS = 8192
"""For tensors of fewer elements, the two Reshapes cost more than they save."""
SMALL_MATRIX = 1024
"""Elements of a matrix up to which starting a parallel loop takes longer than transposing it."""
EINSUM = 12
"""The opset that brought Einsum."""
CACHED = 1 << 18
"""An Einsum copies its result once more, which takes too long for tensors of more elements."""


def for_cpu(b: Builder, nodes: list[Node], outputs: Sequence[Tensor], most: int) -> list[Node]:
    """The nodes rewritten for onnxruntime's CPU kernels, as long as there are no more than ``most`` nodes."""
    readers: dict[str, list[Node | None]] = {t.name: [None] for t in outputs}
    for node in nodes:
        for t in [*node.inputs, *node.captured]:
            if t is not None:
                readers.setdefault(t.name, []).append(node)
    nodes = _scaled_integers(_as_rows(b, nodes, readers, most), readers)
    out: list[Node] = []
    room = most - len(nodes)
    for node in nodes:
        if _normalized(node, readers.get(node.outputs[0].name, [])):
            node.proto.op_type = "Sum"
        if node.proto.op_type == "Softmax" and is_standard(node.proto):
            assert node.inputs[0] is not None
            if room >= 2 and len(readers[node.inputs[0].name]) == 1 and _slow_in_place(b, node):
                out += _not_in_place(b, node)
                room -= 2
                continue
        if node.proto.op_type == "Transpose" and is_standard(node.proto):
            swap = _swap(b, node)
            if room >= 2 and swap is not None and not _fused(node, readers.get(node.outputs[0].name, [])):
                out += _inwards(b, node, swap)
                room -= 2
                continue
            if _ends_the_process(b, node, readers.get(node.outputs[0].name, [])):
                out += _kept_apart(b, node)
                continue
            if _many_matrices(b, node) and not _with_a_product(node, readers.get(node.outputs[0].name, [])):
                _as_einsum(node)
        out.append(node)
    return out


def _as_rows(b: Builder, nodes: list[Node], readers: dict[str, list[Node | None]], most: int) -> list[Node]:
    """MatMul and Add of a bias in more than two dimensions as one Gemm on rows, between two Reshapes. So is the Add of
    rows that are gathered by the index of requests.
    """
    made = {t.name: node for node in nodes for t in node.outputs}
    instead: dict[int, list[Node]] = {}
    room = most - len(nodes)
    for node in nodes:
        if node.proto.op_type != "Add" or not is_standard(node.proto) or room < 1:
            continue
        for product_, bias in (node.inputs, node.inputs[::-1]):
            source = made.get(product_.name) if product_ is not None else None
            if source is None or source.proto.op_type != "MatMul" or len(readers[source.outputs[0].name]) != 1:
                continue
            if bias is None or bias.shape is None or not _is_layer(source, bias):
                continue
            if len(bias.shape) != 1 and not (bias.shape == node.outputs[0].shape and _gathered(b, bias)):
                continue
            after = readers[node.outputs[0].name]
            last = after[0] if len(after) == 1 and after[0] is not None else node
            if row(last.proto.op_type).activation is None or not is_standard(last.proto):
                last = node
            room -= 1
            instead[id(source)] = []
            instead[id(node)] = _gemm_of_rows(b, source, node, bias, last)
            if last is not node:
                instead[id(last)] = instead.pop(id(node))
                instead[id(node)] = []
            break
    return [new for node in nodes for new in instead.get(id(node), [node])]


def _scaled_integers(nodes: list[Node], readers: dict[str, list[Node | None]]) -> list[Node]:
    """Cast of a sum of 32-bit integers and Mul by one number as one DequantizeLinear."""
    made = {t.name: node for node in nodes for t in node.outputs}
    instead: dict[int, list[Node]] = {}
    for node in nodes:
        if node.proto.op_type != "Mul" or not is_standard(node.proto):
            continue
        for whole, scale in (node.inputs, node.inputs[::-1]):
            cast = made.get(whole.name) if whole is not None else None
            if cast is None or cast.proto.op_type != "Cast" or len(readers[cast.outputs[0].name]) != 1:
                continue
            x = cast.inputs[0]
            added = x is not None and x.node is not None and x.node.proto.op_type == "Add"
            if not added or x is None or x.dtype != TensorProto.INT32 or scale is None or scale.shape != ():
                continue
            if node.outputs[0].dtype != TensorProto.FLOAT:
                continue
            names = [x.name, scale.name]
            proto = NodeProto(op_type="DequantizeLinear", name=node.proto.name, input=names, output=node.proto.output)
            instead[id(cast)] = []
            instead[id(node)] = [Node(proto, [x, scale], node.outputs, node.origin, [])]
            break
    return [new for node in nodes for new in instead.get(id(node), [node])]


def _is_layer(node: Node, bias: Tensor) -> bool:
    """Whether a MatMul [.., K] x [K, H] with a bias [H] can be a Gemm on rows: three dimensions or more, one of them
    dynamic.
    """
    x, w = node.inputs
    if x is None or w is None or x.shape is None or w.shape is None or x.dtype not in FROM_32_BITS:
        return False
    free = sum(not isinstance(s, int) for s in x.shape)
    if len(x.shape) < 3 or len(w.shape) != 2 or free != 1 or not isinstance(x.shape[-1], int):
        return False
    if 0 in (*x.shape, *w.shape):  # a Reshape to 0 takes what was there
        return False
    return bias.known[-1:] == w.shape[1:] and bias.dtype == x.dtype and isinstance(w.shape[1], int)


def _gathered(b: Builder, t: Tensor) -> bool:
    """Whether these are rows of requests, one for each candidate; or one alone, which a Gemm repeats."""
    if b.index is None or t.node is None:
        return False
    one = t.node.inputs[-1] is b.few and all(size == 1 for size in t.known[1:-1])
    return t.node.inputs[-1] is b.index or one


def _gemm_of_rows(b: Builder, source: Node, add: Node, bias: Tensor, last: Node) -> list[Node]:
    """The MatMul ``source`` and the Add of its bias as Reshape, Gemm, Reshape. last: the Add, or the activation
    after it.
    """
    x, w = source.inputs
    y = last.outputs[0]
    assert x is not None
    assert w is not None
    count = product(x.known[:-1])
    rows = Tensor(b.unique(f"{y.name}/rows"), x.dtype, (count, x.known[-1]), x.deps)
    gemm = Tensor(b.unique(f"{y.name}/gemm"), y.dtype, (count, y.known[-1]), y.deps)
    there = b.const([-1, x.known[-1]], TensorProto.INT64)
    back = b.const([s if isinstance(s, int) else -1 for s in y.known], TensorProto.INT64)
    found = [_reshape(add, x, there, rows, "rows")]
    if len(bias.known) > 1:
        added = Tensor(b.unique(f"{y.name}/added"), bias.dtype, gemm.shape, bias.deps)
        found.append(_reshape(add, bias, b.const([-1, bias.known[-1]], TensorProto.INT64), added, "added"))
        bias = added  # one row, if there is one request
    proto = NodeProto(op_type="Gemm", name=add.proto.name, input=[rows.name, w.name, bias.name], output=[gemm.name])
    found.append(Node(proto, [rows, w, bias], [gemm], add.origin, []))
    if last is not add:
        active = Tensor(b.unique(f"{y.name}/active"), y.dtype, gemm.shape, y.deps)
        copy = NodeProto()
        copy.CopyFrom(last.proto)
        copy.input[:], copy.output[:] = [gemm.name], [active.name]
        found.append(Node(copy, [gemm], [active], last.origin, []))
        gemm = active
    return [*found, _reshape(last, gemm, back, y, "back")]


def _normalized(node: Node, readers: Sequence[Node | None]) -> bool:
    """Whether a LayerNormalization reads a sum: as one operator, or as a mean and the difference from it."""
    if node.proto.op_type != "Add" or not is_standard(node.proto) or node.outputs[0].dtype not in WITHOUT_BFLOAT16:
        return False
    shape = node.outputs[0].shape
    if shape and isinstance(shape[-1], int) and shape[-1] < NARROW:
        return False
    ops = {node.proto.op_type if node is not None else "" for node in readers}
    return "LayerNormalization" in ops or ("ReduceMean" in ops and "Sub" in ops)


def _slow_in_place(b: Builder, node: Node) -> bool:
    """Whether onnxruntime would be slow at a Softmax in place: short rows that are no multiple of a vector, in a
    large tensor.
    """
    shape = node.outputs[0].shape
    if shape is None or len(shape) < 2 or node.outputs[0].dtype not in FROM_32_BITS:
        return False
    axis = attribute(node.proto, "axis", -1)
    width, free = shape[-1], sum(not isinstance(s, int) for s in shape)
    if axis not in (-1, len(shape) - 1) or not isinstance(width, int) or free != 1 or 0 in shape:
        return False
    return width % VECTOR != 0 and 1 < width < LONG and b.time.volume([Axis(s) for s in shape]) > MIN_ELEMENTS


def _not_in_place(b: Builder, node: Node) -> list[Node]:
    """The Softmax between two Reshapes; the first makes it [-1, width]."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    width = y.known[-1]
    rows = (product(y.known[:-1]), width)
    flat = Tensor(b.unique(f"{y.name}/flat"), x.dtype, rows, x.deps)
    soft = Tensor(b.unique(f"{y.name}/rows"), y.dtype, rows, y.deps)
    there = b.const([-1, width], TensorProto.INT64)
    back = b.const([s if isinstance(s, int) else -1 for s in y.known], TensorProto.INT64)

    node.proto.output[:] = [soft.name]
    node.proto.input[:] = [flat.name]
    del node.proto.attribute[:]
    node.proto.attribute.append(helper.make_attribute("axis", 1))
    node.inputs, node.outputs = [flat], [soft]
    return [_reshape(node, x, there, flat, "flat"), node, _reshape(node, soft, back, y, "back")]


def _reshape(node: Node, x: Tensor, shape: Tensor, y: Tensor, label: str) -> Node:
    name = f"{node.proto.name}/{label}"
    proto: NodeProto = helper.make_node("Reshape", [x.name, shape.name], [y.name], name=name)
    return Node(proto, [x, shape], [y], node.origin, [])


Swap = tuple[Size, Size, Size, Size]
"""Sizes of the axes in front, of the two blocks that are swapped, and of the axes behind."""


def _swap(b: Builder, node: Node) -> Swap | None:
    """The sizes of a Transpose that swaps two neighbouring blocks of axes, where the rows behind them are short;
    else None.
    """
    x = node.inputs[0]
    perm = attribute(node.proto, "perm")
    if x is None or x.shape is None or perm is None or 0 in x.shape:
        return None
    shape = x.known
    kept = [p for p in perm if shape[p] != 1]
    plain = sorted(kept)
    front = next((i for i, (p, q) in enumerate(zip(kept, plain, strict=True)) if p != q), None)
    if front is None:
        return None
    cut = kept.index(plain[front])
    tail = next((i for i in range(cut, len(kept)) if kept[i:] == plain[i:]), len(kept))
    if kept[front:tail] != plain[front + tail - cut : tail] + plain[front : front + tail - cut]:
        return None
    groups = (plain[:front], plain[front : front + tail - cut], plain[front + tail - cut : tail], plain[tail:])
    sizes = tuple(product(shape[p] for p in group) for group in groups)
    o, a, c, i = sizes
    if not isinstance(i, int) or not 1 < i <= WIDE or b.time.volume([Axis(s) for s in shape]) < MIN_ELEMENTS:
        return None
    if sum(not isinstance(s, int) for s in node.outputs[0].known) != 1:
        return None
    return (o, a, c, i) if sum(not isinstance(s, int) for s in sizes) == 1 else None


def _fused(node: Node, readers: Sequence[Node | None]) -> bool:
    """Whether onnxruntime fuses the Transpose into the products that read it."""
    rank = len(node.outputs[0].known)
    perm = attribute(node.proto, "perm")
    rows_first = perm == [*range(1, rank - 1), 0, rank - 1]
    return rows_first and all(reader is not None and reader.proto.op_type == "MatMul" for reader in readers)


def _many_matrices(b: Builder, node: Node) -> bool:
    """Whether onnxruntime would transpose many small matrices one after the other: one axis moves across others, the
    last axis of all among them, and no matrix depends on N.
    """
    x, perm = node.inputs[0], attribute(node.proto, "perm")
    if x is None or x.shape is None or perm is None or b.opset < EINSUM or x.dtype not in FROM_32_BITS:
        return False
    order = [p for p in perm if x.shape[p] != 1]
    plain = sorted(order)
    front = next((i for i, (p, q) in enumerate(zip(order, plain, strict=True)) if p != q), len(plain))
    moved = order[front:]
    if not moved or moved[-1] == plain[-1] or not _one_moved(moved, plain[front:]):
        return False
    matrix, volume = [x.shape[p] for p in moved], b.time.volume([Axis(s) for s in x.shape])
    known = [size for size in matrix if isinstance(size, int)]
    return len(known) == len(matrix) and 0 < math.prod(known) <= min(SMALL_MATRIX, volume // 16) and volume <= CACHED


def _one_moved(moved: list[int], plain: list[int]) -> bool:
    """Whether the axes ``plain`` have become ``moved`` by moving the first to the end or the last to the front."""
    return moved in ([*plain[1:], plain[0]], [plain[-1], *plain[:-1]])


def _with_a_product(node: Node, readers: Sequence[Node | None]) -> bool:
    """Whether onnxruntime fuses the Transpose of the last two axes into the products that read it."""
    rank, perm = len(node.outputs[0].known), attribute(node.proto, "perm")
    last_two = perm == [*range(rank - 2), rank - 1, rank - 2]
    return last_two and all(reader is not None and reader.proto.op_type == "MatMul" for reader in readers)


def _as_einsum(node: Node) -> None:
    """The Transpose as an Einsum that only orders the axes."""
    perm = attribute(node.proto, "perm")
    axes = string.ascii_lowercase[: len(perm)]
    node.proto.op_type = "Einsum"
    del node.proto.attribute[:]
    equation = f"{axes}->{''.join(axes[p] for p in perm)}"
    node.proto.attribute.append(helper.make_attribute("equation", equation))


def _ends_the_process(b: Builder, node: Node, readers: Sequence[Node | None]) -> bool:
    """Whether the Transpose would be moved into a product, of a tensor of the user that may be empty."""
    shape = node.outputs[0].shape
    if shape is None:
        return False
    rank, perm = len(shape), attribute(node.proto, "perm")
    batch = perm in ([*range(1, rank - 1), 0, rank - 1], [*range(1, rank), 0])
    moved = batch and any(reader is not None and reader.proto.op_type == "MatMul" for reader in readers)
    free = [size for size in shape if not isinstance(size, int)]
    return moved and len(free) == 1 and not free[0].symbols & b.rows and not b.filled(free[0])


def _kept_apart(b: Builder, node: Node) -> list[Node]:
    """The Transpose, and a Reshape to the same dimensions."""
    y = node.outputs[0]
    moved = Tensor(b.unique(f"{y.name}/moved"), y.dtype, y.known, y.deps)
    node.proto.output[:], node.outputs = [moved.name], [moved]
    same = b.const([size if isinstance(size, int) else -1 for size in y.known], TensorProto.INT64)
    return [node, _reshape(node, moved, same, y, "apart")]


def _inwards(b: Builder, node: Node, swap: Swap) -> list[Node]:
    """The Transpose on [front, first, second, 1, behind], between two Reshapes."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    o, a, c, i = (s if isinstance(s, int) else -1 for s in swap)
    wide = Tensor(b.unique(f"{y.name}/wide"), x.dtype, (swap[0], swap[1], swap[2], 1, swap[3]), x.deps)
    moved = Tensor(b.unique(f"{y.name}/moved"), y.dtype, (swap[0], swap[2], 1, swap[1], swap[3]), y.deps)
    node.proto.input[:], node.proto.output[:] = [wide.name], [moved.name]
    del node.proto.attribute[:]
    node.proto.attribute.append(helper.make_attribute("perm", [0, 2, 3, 1, 4]))
    node.inputs, node.outputs = [wide], [moved]
    there = b.const([o, a, c, 1, i], TensorProto.INT64)
    back = b.const([s if isinstance(s, int) else -1 for s in y.known], TensorProto.INT64)
    return [_reshape(node, x, there, wide, "wide"), node, _reshape(node, moved, back, y, "back")]
