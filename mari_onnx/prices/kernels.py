"""What a node asks of the machine: `uses`. Here: operators on elements, rows and axes; others in their modules."""

from __future__ import annotations

import math

from mari_onnx.model.nodes import attribute
from mari_onnx.model.ops import Fact, row
from mari_onnx.prices import ml, moves  # noqa: F401  they fill the table
from mari_onnx.prices.products import VECTOR
from mari_onnx.prices.use import KERNELS, Call, Shape, Use, kernel_of, size

LARGE = 2**18
"""Elements beyond which a kernel's operands and result are more than a core's own cache holds."""


def uses(call: Call) -> list[Use]:
    """What the node asks for; more than one kernel where onnxruntime computes it in steps."""
    found = []
    for use in _uses(call):
        many = use.amounts.get("elements", 0.0)
        found.append(Use(use.kernel, {**use.amounts, "large": many}) if many > LARGE else use)
    return found


def _uses(call: Call) -> list[Use]:
    op = call.node.op_type
    facts = row(op).facts
    if op in KERNELS:
        return KERNELS[op](call)
    if Fact.SIZES in facts or (Fact.FREE in facts and call.in_place):
        return [Use("view", {"node": 1})]
    if Fact.FREE in facts:
        return [Use("Transpose of nothing", {"node": 1, "elements": float(size(call.out))})]
    if Fact.ELEMENT in facts or Fact.PLACEWISE in facts:
        return [elementwise(call)]
    if Fact.REDUCES in facts:
        return [_reduction(call)]
    if facts & (Fact.SOFTMAX | Fact.NORM):
        return _by_rows(call)
    return [Use(op, {"node": 1, "elements": float(max(size(call.out), size(call.shape(0))))})]


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
    elements = float(size(out))
    if Fact.PLACEWISE in row(op).facts or len(data) < 2 or row(op).facts & Fact.CONVERTS or op == "Clip":
        return Use(op, {"node": 1, "elements": elements})
    if op == "Where":
        stretches = runs(data[0], data[1]) + runs(data[0], data[2]) + runs(data[1], data[2])
        return Use(op, {"node": 1, "elements": elements, "runs": stretches})
    if len(data) > 2:
        return Use(op, {"node": 1, "elements": elements * (len(data) - 1), "runs": sum(runs(out, s) for s in data)})
    stretches = runs(data[0], data[1])
    if op == "Pow" and call.second in (2, 3):
        op = "Pow of 2"  # a product
    return Use(op, {"node": 1, "elements": elements, "runs": stretches if stretches > 1 else 0.0})


# ---- over rows and axes


def _by_rows(call: Call) -> list[Use]:
    """Softmax, and norms: each row by itself; a Softmax over another axis than the last is turned and turned back."""
    x = call.shape(0)
    facts = row(call.node.op_type).facts
    kernel = "softmax" if Fact.SOFTMAX in facts else "norm"
    axis = int(attribute(call.node, "axis", -1)) % max(1, len(x))
    width = x[axis] if x and Fact.SOFTMAX in facts else size(x[axis:])
    if kernel == "softmax" and call.in_place and width % VECTOR:
        kernel = "softmax in place"
    found = [Use(kernel, {"node": 1, "rows": size(x) / max(1, width), "elements": float(size(x))})]
    if Fact.SOFTMAX in facts and size(x[axis + 1 :]) > 1:
        moved = {"node": 1.0, "elements": float(size(x)), "runs": float(size(x))}
        found += [Use("Transpose of one axis", moved)] * 2
    return found


@kernel_of("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def _norm_of_sum(call: Call) -> list[Use]:
    x = call.shape(0)
    width = x[-1] if x else 1
    return [Use("norm of a sum", {"node": 1, "rows": size(x) / max(1, width), "elements": float(size(x))})]


def _reduction(call: Call) -> Use:
    """The last axes, or others: the former reads stretches of memory, the latter block by block."""
    x, out = call.shape(0), call.out
    kept = [1] * len(x)
    if len(x) == len(out):
        kept = [a == b for a, b in zip(x, out, strict=True)]
    elif call.second is not None or attribute(call.node, "axes", None):
        axes = attribute(call.node, "axes", None) or [int(call.second or 0)]
        kept = [k not in axes and k - len(x) not in axes for k in range(len(x))]
    elif out:  # without keepdims: dimensions of the result, in order, are those that are left
        rest = list(out)
        kept = [bool(rest) and a == rest[0] and rest.pop(0) == a for a in x]
    amounts = {"node": 1.0, "rows": float(size(out)), "elements": float(size(x))}
    if not kept or not kept[-1] or all(kept):
        return Use(f"{call.node.op_type} of rows", amounts)
    first = kept.index(False)
    return Use(f"{call.node.op_type} over outer axes", {**amounts, "calls": float(size(x[:first]))})


@kernel_of("CumSum", "CumProd", "ArgMax", "ArgMin", "TopK")
def _scan(call: Call) -> list[Use]:
    x = call.shape(0)
    axis = int(attribute(call.node, "axis", -1 if call.node.op_type == "TopK" else 0)) % max(1, len(x))
    rows = size(x) / max(1, x[axis]) if x else 0.0
    return [Use(call.node.op_type, {"node": 1, "rows": rows, "elements": float(size(x))})]
