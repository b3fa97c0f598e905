"""What a node asks of the machine: the class of its kernel, and how much of each thing that takes that kernel time.

A kernel's time is taken for a sum of amounts times prices: ``seconds = sum(price * amount)``. Amounts follow from the
node and its shapes alone (this module); prices are measured (`mari_onnx.timing.calibrate`) and read from a table
(`mari_onnx.prices.table`). Classes are those of onnxruntime's CPU kernels: where one kernel takes different ways
for different shapes (a Gemm of one row, a broadcast in short runs), each way is a class or an amount of its own.

Amounts:
    node: 1, what starting the kernel takes.
    mults: multiply-adds of products, their columns filled up to whole registers.
    elements: of the result; of what is read, where that is more (reductions, Softmax).
    singles: stretches of one element each, which a Concat moves without a call.
    runs: stretches of memory that are read or written in one go; an element-wise operator whose operands broadcast,
        and what moves elements, take time for each.
    calls: products of matrices within one batched MatMul or Conv; blocks that are reduced one after the other.
    weights: elements of a second operand that is read for few rows, or of a Conv's for each image.
    packed: elements of a second operand that is not constant, so that it is packed at each run.
    moved: elements of an Einsum's result that the product leaves in another order.
    far: elements that a Transpose moves across more than the first cache holds.
    rows, steps, visits: of Softmax and norms, of recurrences, of nodes of trees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from mari_onnx.model.einsum import einsum_sizes
from mari_onnx.model.nodes import attribute
from mari_onnx.model.ops import Fact, row

Shape = tuple[int, ...]
VECTOR = 16
"""Elements of a vector register. Softmax in place is slow on rows that are no multiple of it."""
NEAR = 8192
"""Elements that a core has at hand, in its first cache."""
FEW = 16
"""Rows up to which reading the weights is what a product takes time for."""


@dataclass(frozen=True)
class Use:
    """The class of a kernel, and amounts by name."""

    kernel: str
    amounts: dict[str, float]


@dataclass(frozen=True)
class Call:
    """A node with the shapes of its inputs and outputs (None: absent or not known), and which inputs are constant.

    in_place: whether the first input's memory may become the result's.
    """

    node: onnx.NodeProto
    ins: Sequence[Shape | None]
    outs: Sequence[Shape | None]
    constant: Sequence[bool] = ()
    in_place: bool = True

    def shape(self, k: int) -> Shape:
        """Of input k; () where it is not known."""
        return (self.ins[k] if k < len(self.ins) else None) or ()

    @property
    def out(self) -> Shape:
        """Shape of the first output; () where it is not known."""
        return (self.outs[0] if self.outs else None) or ()

    def fixed(self, k: int) -> bool:
        """Whether input k is a constant."""
        return k < len(self.constant) and self.constant[k]


def uses(call: Call) -> list[Use]:
    """What the node asks for; more than one kernel where onnxruntime computes it in steps."""
    op = call.node.op_type
    facts = row(op).facts
    if op in KERNELS:
        return KERNELS[op](call)
    if Fact.SIZES in facts or (Fact.FREE in facts and call.in_place):
        return [Use("view", {"node": 1})]
    if Fact.FREE in facts:
        return [Use("Transpose of nothing", {"node": 1, "elements": float(_size(call.out))})]
    if Fact.ELEMENT in facts or Fact.PLACEWISE in facts:
        return [elementwise(call)]
    if Fact.REDUCES in facts:
        return [_reduction(call)]
    if facts & (Fact.SOFTMAX | Fact.NORM):
        return _by_rows(call)
    return [Use(op, {"node": 1, "elements": float(max(_size(call.out), _size(call.shape(0))))})]


KERNELS: dict[str, Callable[[Call], list[Use]]] = {}


def kernel_of(*ops: str) -> Callable[[Callable[[Call], list[Use]]], Callable[[Call], list[Use]]]:
    """Registers what these operators ask for."""

    def register(function: Callable[[Call], list[Use]]) -> Callable[[Call], list[Use]]:
        KERNELS.update(dict.fromkeys(ops, function))
        return function

    return register


def _size(shape: Shape) -> int:
    return math.prod(shape)


# ---- products


def whole(columns: int) -> int:
    """Columns that a product computes: full registers."""
    return -(-columns // VECTOR) * VECTOR


def gemm(rows: int, inner: int, columns: int, fixed: bool) -> Use:
    """One product ``[rows, inner] x [inner, columns]``. fixed: the second operand is constant."""
    if rows == 1:
        return Use("gemm of 1 row", {"node": 1, "weights": float(inner * columns)})
    mults, weights = float(rows * inner * whole(columns)), float(inner * whole(columns))
    packed = 0.0 if fixed else weights
    if rows < FEW:
        return Use("gemm of few rows", {"node": 1, "mults": mults, "weights": weights, "packed": packed})
    elements = float(rows * (inner + columns))
    return Use("gemm", {"node": 1, "mults": mults, "elements": elements, "packed": packed})


def batched(calls: int, rows: int, inner: int, columns: int) -> Use:
    """``calls`` products of both operands' own matrices."""
    if rows == 1 or columns == 1:
        elements = float(calls * rows * inner * columns)
        return Use("batched gemm of 1 row or column", {"node": 1, "calls": calls, "elements": elements})
    amounts = {
        "mults": float(calls * rows * inner * whole(columns)),
        "elements": float(calls * rows * (inner + columns)),
        "packed": float(calls * inner * whole(columns)),
    }
    return Use("batched gemm", {"node": 1, "calls": calls, **amounts})


@kernel_of("MatMul", "FusedMatMul", "TransposeMatMul", "MatMulInteger")
def _matmul(call: Call) -> list[Use]:
    a, b, out = call.shape(0), call.shape(1), call.out
    if not a or not b:
        return [Use("view", {"node": 1})]
    if attribute(call.node, "transA", 0) and len(a) > 1:
        a = (*a[:-2], a[-1], a[-2])
    if attribute(call.node, "transB", 0) and len(b) > 1:
        b = (*b[:-2], b[-1], b[-2])
    inner, columns = a[-1], b[-1] if len(b) > 1 else 1
    rows = a[-2] if len(a) > 1 else 1
    if _size(b[:-2]) == 1:  # all leading dimensions of the first operand are rows
        return [gemm(_size(a[:-1]), inner, columns, call.fixed(1))]
    calls = _size(out) // max(1, rows * columns)
    if calls == 1:
        return [gemm(rows, inner, columns, call.fixed(1))]
    return [batched(calls, rows, inner, columns)]


@kernel_of("Gemm", "FusedGemm")
def _gemm(call: Call) -> list[Use]:
    a, out = call.shape(0), call.out
    if len(a) != 2 or len(out) != 2:
        return [Use("view", {"node": 1})]
    inner = a[0 if attribute(call.node, "transA", 0) else 1]
    found = [gemm(out[0], inner, out[1], call.fixed(1))]
    third = call.shape(2)
    if third and _size(third) == _size(out) and _size(out) > out[1]:
        found.append(Use("Expand", {"elements": float(_size(out))}))
    return found


@kernel_of("Einsum")
def _einsum(call: Call) -> list[Use]:
    """onnxruntime transposes operands and result, and calls a batched product."""
    operands, output, sizes = einsum_sizes(str(attribute(call.node, "equation", "")), call.ins)
    if len(operands) != 2:
        elements = float(math.prod(sizes.values()))
        return [Use("Transpose of one axis", {"node": 2, "elements": elements})]
    left, right = map(set, operands)
    shared, wanted = left & right, set(output)

    def extent(labels: set[str]) -> int:
        return math.prod(sizes.get(x, 1) for x in labels)

    calls, inner = extent(shared & wanted), extent(shared - wanted)
    rows, columns = extent(left - right), extent(right - left)
    kinds = [0 if x in shared else 1 if x in left else 2 for x in output]
    amounts = {
        "calls": float(calls),
        "mults": float(calls * rows * inner * whole(columns)),
        "elements": float(sum(_size(s or ()) for s in call.ins) + _size(call.out)),
        "moved": float(_size(call.out)) if kinds != sorted(kinds) else 0.0,
    }
    return [Use("Einsum", {"node": 1, **amounts})]


@kernel_of("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose")
def _conv(call: Call) -> list[Use]:
    weight, out = call.shape(1), call.out
    window = _size(weight[1:])
    positions = _size(out) / max(1, out[1] if len(out) > 1 else 1)
    calls = (out[0] if out else 1) * int(attribute(call.node, "group", 1))
    amounts = {
        "node": 1.0,
        "calls": float(calls),
        "mults": float(_size(out[:2]) * whole(_size(out[2:])) * window),
        "elements": positions * window,
        "weights": float((out[0] if out else 1) * _size(weight)),
    }
    return [Use("conv", amounts)]


@kernel_of("GRU", "LSTM", "RNN", "DynamicQuantizeLSTM")
def _recurrence(call: Call) -> list[Use]:
    x, w, r = call.shape(0), call.shape(1), call.shape(2)
    if len(x) != 3 or len(w) != 3 or len(r) != 3:
        return [Use("view", {"node": 1})]
    steps, batch = x[0], x[1]
    mults = steps * batch * (_size(w) + _size(r))
    return [Use("recurrence", {"node": 1, "steps": steps, "mults": mults, "elements": steps * batch * w[0] * w[1]})]


@kernel_of("Attention", "MultiHeadAttention", "GroupQueryAttention")
def _attention(call: Call) -> list[Use]:
    q, k = call.shape(0), call.shape(1)
    heads = int(attribute(call.node, "num_heads", 0) or attribute(call.node, "q_num_heads", 0) or 1)
    if len(q) == 4 and len(k) == 4:
        batch, heads, rows, width, keys = q[0], q[1], q[2], q[3], k[2]
    elif len(q) == 3 and len(k) == 3:
        batch, rows, width, keys = q[0], q[1], q[2] // heads, k[1]
    else:
        return [Use("view", {"node": 1})]
    scores = batch * heads * rows
    soft = Use("softmax in place", {"node": 1, "rows": scores, "elements": scores * keys})
    return [batched(batch * heads, rows, width, keys), soft, batched(batch * heads, rows, keys, width)]


# ---- element-wise


def runs(left: Shape, right: Shape) -> float:
    """Stretches in which two operands broadcast: along one, either both have their elements or one of them is fixed.

    Operands of one shape are one stretch. Of ``[.., 1]`` and a shorter ``[1]`` or ``[]`` each element is one: so
    onnxruntime takes it.
    """
    if left == right:
        return 1.0
    rank = max(len(left), len(right))
    short, long = sorted((left, right), key=len)
    left, right = (1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right
    total = math.prod(map(max, zip(left, right, strict=True)))
    if len(short) < rank and max((*short, *long[-max(1, len(short)) :])) == 1:
        return float(total)
    span, kind = 1, None
    for a, b in zip(reversed(left), reversed(right), strict=True):
        if a == b == 1:
            continue
        here = (a > 1) - (b > 1)
        if kind is None:
            kind = here
        if here != kind:
            break
        span *= max(a, b)
    return total / max(1, span)


def elementwise(call: Call) -> Use:
    """An operator on the elements at each place; operands may broadcast."""
    op, out = call.node.op_type, call.out
    data = [s or () for k, s in enumerate(call.ins) if k < len(call.node.input) and call.node.input[k]]
    elements = float(_size(out))
    if Fact.PLACEWISE in row(op).facts or len(data) < 2 or row(op).facts & Fact.CONVERTS or op == "Clip":
        return Use(op, {"node": 1, "elements": elements})
    if op == "Where":
        stretches = runs(data[0], data[1]) + runs(data[0], data[2]) + runs(data[1], data[2])
        return Use(op, {"node": 1, "elements": elements, "runs": stretches})
    if len(data) > 2:
        return Use(op, {"node": 1, "elements": elements * (len(data) - 1), "runs": sum(runs(out, s) for s in data)})
    stretches = runs(data[0], data[1])
    if op == "Pow" and call.fixed(1) and _size(data[1]) == 1:
        op = "Mul"  # an exponent of 2 or 3; others are rare
    return Use(op, {"node": 1, "elements": elements, "runs": stretches if stretches > 1 else 0.0})


# ---- over rows and axes


def _by_rows(call: Call) -> list[Use]:
    """Softmax, and norms: each row by itself; a Softmax over another axis than the last is turned and turned back."""
    x = call.shape(0)
    facts = row(call.node.op_type).facts
    kernel = "softmax" if Fact.SOFTMAX in facts else "norm"
    axis = int(attribute(call.node, "axis", -1)) % max(1, len(x))
    width = x[axis] if x and Fact.SOFTMAX in facts else _size(x[axis:])
    if kernel == "softmax" and call.in_place and width % VECTOR:
        kernel = "softmax in place"
    found = [Use(kernel, {"node": 1, "rows": _size(x) / max(1, width), "elements": float(_size(x))})]
    if Fact.SOFTMAX in facts and _size(x[axis + 1 :]) > 1:
        moved = {"node": 1.0, "elements": float(_size(x)), "runs": float(_size(x))}
        found += [Use("Transpose of one axis", moved)] * 2
    return found


def _reduction(call: Call) -> Use:
    """The last axes, or others: the former reads stretches of memory, the latter block by block."""
    x, out = call.shape(0), call.out
    kept = [1] * len(x)
    if len(x) == len(out):
        kept = [a == b for a, b in zip(x, out, strict=True)]
    elif out:  # without keepdims: dimensions of the result, in order, are those that are left
        rest = list(out)
        kept = [bool(rest) and a == rest[0] and rest.pop(0) == a for a in x]
    amounts = {"node": 1.0, "rows": float(_size(out)), "elements": float(_size(x))}
    if not kept or not kept[-1] or all(kept):
        return Use(f"{call.node.op_type} of rows", amounts)
    first = kept.index(False)
    return Use(f"{call.node.op_type} over outer axes", {**amounts, "calls": float(_size(x[:first]))})


@kernel_of("CumSum", "CumProd", "ArgMax", "ArgMin", "TopK")
def _scan(call: Call) -> list[Use]:
    x = call.shape(0)
    axis = int(attribute(call.node, "axis", -1 if call.node.op_type == "TopK" else 0)) % max(1, len(x))
    rows = _size(x) / max(1, x[axis]) if x else 0.0
    return [Use(call.node.op_type, {"node": 1, "rows": rows, "elements": float(_size(x))})]


# ---- moving elements


def _copy(kernel: str, elements: float, block: float, parts: int = 1) -> Use:
    """block: elements side by side in source and result."""
    return Use(kernel, {"node": 1, "elements": elements, "runs": elements / max(1.0, block) + parts})


@kernel_of("Transpose")
def _transpose(call: Call) -> list[Use]:
    """As onnxruntime does it: nothing but a copy, one axis moved (element by element or block by block), or any order.

    Dimensions of 1 and axes that stay side by side count as one.
    """
    x = call.shape(0)
    order = list(attribute(call.node, "perm", range(len(x) - 1, -1, -1)))
    if len(order) != len(x):
        return [Use("view", {"node": 1})]
    moved = [k for k in order if x[k] > 1]
    if moved == sorted(moved):
        return [Use("Transpose of nothing", {"node": 1, "elements": float(_size(x))})]
    rank = {k: i for i, k in enumerate(sorted(moved))}
    sizes, places = [x[k] for k in sorted(moved)], [rank[k] for k in moved]
    block = 1
    while places and places[-1] == len(places) - 1:
        block *= sizes[places.pop()]
    rest = [p for k, p in enumerate(places) if p != k]
    low, high = min(rest), max(rest)
    span = [p for p in places if low <= p <= high]
    one_axis = span[1:] == sorted(span[1:]) or span[:-1] == sorted(span[:-1])
    runs = _size(x) / max(1, block)
    plane = block * math.prod(sizes[low : high + 1])  # what is read along one axis and written along another
    far = float(_size(x)) if plane > NEAR else 0.0
    if not one_axis:
        return [Use("Transpose in any order", {"node": 1, "runs": runs, "elements": float(_size(x))})]
    kernel = "Transpose of one axis" if block <= 2 else "Transpose of blocks"
    return [Use(kernel, {"node": 1, "runs": runs, "elements": float(_size(x)), "far": far})]


@kernel_of("Concat")
def _concat(call: Call) -> list[Use]:
    out = call.out
    if not out:
        return [Use("view", {"node": 1})]
    axis = int(attribute(call.node, "axis", 0)) % len(out)
    outer = _size(out[:axis])
    single = sum(shape is not None and _size(shape[axis:]) == 1 for shape in call.ins)
    amounts = {"runs": float(outer * (len(call.ins) - single)), "singles": float(outer * single)}
    return [Use("Concat", {"node": 1, "elements": float(_size(out)), **amounts})]


@kernel_of("Split")
def _split(call: Call) -> list[Use]:
    x = call.shape(0)
    if not x:
        return [Use("view", {"node": 1})]
    axis = int(attribute(call.node, "axis", 0)) % len(x)
    stretches = _size(x[:axis]) * len(call.node.output)
    return [Use("Split", {"node": 1, "elements": float(_size(x)), "runs": float(stretches)})]


@kernel_of("Slice", "Pad", "Trilu")
def _slice(call: Call) -> list[Use]:
    x, out = call.shape(0), call.out
    if len(x) != len(out):
        return [Use("Slice", {"node": 1, "elements": float(_size(out)), "runs": 1})]
    block = 1
    for a, b in zip(reversed(x), reversed(out), strict=True):
        block *= min(a, b)
        if a != b:
            break
    return [_copy("Slice", float(_size(out)), block)]


@kernel_of("ConstantOfShape")
def _filled(call: Call) -> list[Use]:
    return [Use("ConstantOfShape", {"node": 1, "elements": float(_size(call.out))})]


@kernel_of("Expand", "Tile")
def _expand(call: Call) -> list[Use]:
    x, out = call.shape(0), call.out
    block, padded = 1, (1,) * (len(out) - len(x)) + x
    for a, b in zip(reversed(padded), reversed(out), strict=True):
        block *= b
        if a != b:
            break
    return [_copy("Expand", float(_size(out)), block)]


@kernel_of("Gather", "ArrayFeatureExtractor", "GatherBlockQuantized")
def _gather(call: Call) -> list[Use]:
    x, out = call.shape(0), call.out
    if not x:
        return [Use("gather", {"node": 1, "elements": float(_size(out)), "runs": float(_size(out))})]
    last = call.node.op_type == "ArrayFeatureExtractor"
    axis = len(x) - 1 if last else int(attribute(call.node, "axis", 0)) % len(x)
    block = _size(x[axis + 1 :])
    return [Use("gather", {"node": 1, "elements": float(_size(out)), "runs": _size(out) / max(1, block)})]


@kernel_of("NonZero", "Compress")
def _searched(call: Call) -> list[Use]:
    return [Use(call.node.op_type, {"node": 1, "elements": float(_size(call.shape(0)))})]


@kernel_of("GatherND", "ScatterND")
def _by_index(call: Call) -> list[Use]:
    index = call.shape(1)
    return [Use(call.node.op_type, {"node": 1, "runs": float(_size(index[:-1])), "elements": float(_size(call.out))})]


@kernel_of("GatherElements", "ScatterElements", "Scatter", "OneHot", "Unique", "ReverseSequence", "DepthToSpace",
           "SpaceToDepth", "Range")  # fmt: skip
def _indexed(call: Call) -> list[Use]:
    return [Use("pick", {"node": 1, "elements": float(max(_size(call.out), _size(call.shape(1))))})]


@kernel_of("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")
def _pool(call: Call) -> list[Use]:
    window = _size(tuple(attribute(call.node, "kernel_shape", ()))) if Fact.POOL in row(call.node.op_type).facts else 1
    elements = max(_size(call.out) * window, _size(call.shape(0)))
    return [Use("pool", {"node": 1, "rows": float(_size(call.out)), "elements": float(elements)})]


# ---- ai.onnx.ml


@kernel_of("TreeEnsembleRegressor", "TreeEnsembleClassifier", "TreeEnsemble")
def _trees(call: Call) -> list[Use]:
    x = call.shape(0)
    owners = attribute(call.node, "nodes_treeids", None)
    count, nodes = (len(set(owners)), len(owners)) if owners else (len(attribute(call.node, "tree_roots", [0])), 100)
    rows = x[0] if len(x) > 1 else 1
    return [Use("trees", {"node": 1, "rows": rows, "visits": rows * count * math.log2(nodes / max(1, count) + 1)})]


@kernel_of("LinearRegressor", "LinearClassifier", "SVMRegressor", "SVMClassifier")
def _linear(call: Call) -> list[Use]:
    x = call.shape(0)
    rows, width = (x[0], _size(x[1:])) if len(x) > 1 else (1, _size(x))
    weights = max((len(a.floats) for a in call.node.attribute), default=1)
    return [gemm(rows, width, max(1, weights // max(1, width)), fixed=True)]
