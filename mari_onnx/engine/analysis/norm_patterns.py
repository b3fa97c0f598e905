"""Recognizes normalizations that are written as several operators, because their results are bounded whatever x is:

    |x / sqrt(mean(x^2) + eps)| <= sqrt(D)        RMSNorm and L2 normalization, written as primitives
    |x k + (c - m k)| <= sqrt(D) |g| + |c|        LayerNormalization as TensorFlow writes it, k = g / sqrt(var + eps)
    |BN(x, g, c, m, var)| <= sqrt(D) |g| + |c|    as Keras fuses it: a BatchNormalization of rows as channels

In: a node. Out: a bound of its elements, infinity where it is no normalization. D is the length of a row, g and c are
scale and bias.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from mari_onnx.engine.ir.value import Node, Tensor
from mari_onnx.model.dims import Size, product
from mari_onnx.model.nodes import attribute, attributes, is_standard
from mari_onnx.model.ops import Fact, having

VIEWS, UNIT_DIMS = having(Fact.VIEW), having(Fact.UNIT_DIMS)


def normalized(node: Node) -> float:
    """sqrt(D) for ``x / sqrt(mean(x^2) + eps)``, however it is written; infinity for anything else."""
    if node.proto.op_type not in having(Fact.MULTIPLIES):
        return math.inf
    pairs = [node.inputs] if node.proto.op_type == "Div" else [node.inputs, node.inputs[::-1]]
    for x, scale in pairs:
        if x is None or scale is None:
            continue
        tensor: Tensor | None = scale
        if node.proto.op_type == "Mul":
            tensor = _through(tensor, "Reciprocal")
        tensor = _through(tensor, "Sqrt")
        mean = _through(tensor, "Add") if _adds_positive(tensor) else None
        square = _source(_through(mean, "ReduceMean"))
        if mean is None or square is None or x.shape is None:
            continue
        op, inputs = square.proto.op_type, square.inputs
        itself = inputs[0] is x and ((op == "Mul" and inputs[1] is x) or (op == "Pow" and _scalar(inputs[1]) == 2))
        width = x.known[-1] if x.known else None
        reduced = product(mean.known) == product(x.known[:-1])
        if itself and reduced and isinstance(width, int):
            return math.sqrt(width)
    return math.inf


def standardized(node: Node) -> float:
    """sqrt(D) |g| + |c| for ``x k + (c - m k)``, k = g / sqrt(mean((x - m)^2) + eps), as TensorFlow normalizes.

    What the two products lose to rounding grows with x, which therefore must be bounded itself.
    """
    if node.proto.op_type != "Add" or len(node.inputs) != 2:
        return math.inf
    for left, right in (node.inputs, node.inputs[::-1]):
        scaled, rest = _inputs(left, "Mul"), _inputs(right, "Sub")
        if not scaled or not rest or not rest[0].const:
            continue
        shift = _inputs(rest[1], "Mul")
        for (x, k), (m, again) in itertools.product(_both(scaled), _both(shift)):
            gain = next(((r, g) for r, g in _both(_inputs(k, "Mul")) if g.const), None)
            if k is not again or gain is None or x.bound is None or x.bound == math.inf:
                continue
            (root,) = _inputs(gain[0], "Reciprocal", _slim) or (None,)
            (sum_,) = _inputs(root, "Sqrt", _slim) or (None,)
            spread, epsilon = _inputs(sum_, "Add", _slim) or (None, None)
            spread = _slim(spread) if spread is not None else None
            square = _inputs(spread, "ReduceMean")
            factors = _inputs(square[0], "Mul") if square else ()
            if not factors or factors[0] is not factors[1] or epsilon is None or not epsilon.const:
                continue
            of, mean, least = _inputs(factors[0], "Sub"), _inputs(m, "ReduceMean"), float(np.min(epsilon.array))
            if len(of) != 2 or of[0] is not x or of[1] is not m or not mean or mean[0] is not x or least <= 0:
                continue
            assert spread is not None
            width = x.known[-1]
            if not spread.known or spread.known[-1] != 1 or not isinstance(width, int):
                continue
            if product(spread.known) * width != product(x.known) or _behind(gain[0]) != _behind(spread):
                continue
            lost = 1e-5 * x.bound / math.sqrt(least)
            return (math.sqrt(width) + lost) * largest(gain[1]) + largest(rest[0])
    return math.inf


def standardized_rows(node: Node) -> float:
    """sqrt(D) |g| + |c| for BatchNormalization of [1, R, D, 1] whose mean and variance are those of its own R rows.

    As for `standardized`, x must be bounded.
    """
    if node.proto.op_type != "BatchNormalization" or len(node.outputs) > 1 or len(node.inputs) < 5:
        return math.inf
    x, gain, shift, mean, variance = node.inputs[:5]
    if any(t is None or t.shape is None for t in (x, gain, shift, mean, variance)):
        return math.inf
    assert x is not None and gain is not None and shift is not None  # noqa: PT018
    given = attributes(node.proto)
    epsilon = float(given.get("epsilon", 1e-5))
    width = product(x.known[2:])
    if given.get("training_mode", 0) or x.known[0] != 1 or not isinstance(width, int) or epsilon <= 0:
        return math.inf
    rows = _reduced_rows(mean, "ReduceMean", width)
    squares = _divided(variance, width)
    deviations = _reduced_rows(squares, "ReduceSum", width) if squares is not None else None
    product_ = _made(deviations, "Mul")
    deviation = _made(product_.inputs[0], "Sub") if product_ is not None else None
    if rows is None or product_ is None or deviation is None or product_.inputs[0] is not product_.inputs[1]:
        return math.inf
    taken, away = deviation.inputs
    if _flat(rows) is not _flat(x) or taken is not rows or _flat(away) is not _flat(mean):
        return math.inf
    if away is None or away.known[-1] != 1 or len(away.known) != len(rows.known):
        return math.inf
    most, scale, offset = (math.inf if t.bound is None else t.bound for t in (x, gain, shift))
    return (math.sqrt(width) + 1e-5 * most / math.sqrt(epsilon)) * scale + offset


def _reduced_rows(tensor: Tensor | None, op: str, width: int) -> Tensor | None:
    """What a reduction over the last ``width`` elements was taken of, however its result is shaped now."""
    node = _made(tensor, op)
    x = node.inputs[0] if node is not None else None
    if node is None or x is None or x.shape is None or not x.known or x.known[-1] != width:
        return None
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is not None:
        axes = given.array.reshape(-1).tolist() if given.const else []
    else:
        axes = attribute(node.proto, "axes", [])
    over = {int(a) % len(x.known) for a in axes}
    return x if {i for i in over if x.known[i] != 1} == {len(x.known) - 1} and width > 1 else None


def _divided(tensor: Tensor | None, width: int) -> Tensor | None:
    """The tensor of which another is a ``width``-th."""
    node = _made(tensor, "Div")
    if node is None or node.inputs[1] is None or not node.inputs[1].const:
        return None
    divisor = node.inputs[1].array
    return node.inputs[0] if divisor.size and bool(np.all(divisor == width)) else None


def _made(tensor: Tensor | None, op: str) -> Node | None:
    """The node of this operator that made a tensor, before it was given its shape."""
    tensor = _flat(tensor)
    node = tensor.node if tensor is not None else None
    return node if node is not None and node.proto.op_type == op and is_standard(node.proto) else None


def _flat(tensor: Tensor | None) -> Tensor | None:
    """The tensor before its elements, which stay in order, were given another shape."""
    while tensor is not None and tensor.node is not None:
        node = tensor.node
        if node.proto.op_type not in VIEWS or not is_standard(node.proto):
            break
        tensor = node.inputs[0]
    return tensor


def largest(tensor: Tensor) -> float:
    """The largest absolute value in a constant; infinite for strings, an empty tensor, NaN or infinity."""
    array = tensor.array
    if array.dtype == object or array.size == 0:
        return math.inf
    value = float(np.max(np.abs(array.astype(np.float64)))) if array.dtype != bool else 1.0
    return value if math.isfinite(value) else math.inf


def _inputs(
    tensor: Tensor | None, op: str, strip: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, ...]:
    """The operands of a tensor that this operator made, as `_bare` (or ``strip``) gives them; nothing for any other."""
    strip = strip or _bare
    tensor = strip(tensor) if tensor is not None else None
    node = tensor.node if tensor is not None else None
    if node is None or node.proto.op_type != op:
        return ()
    return tuple(_bare(t) for t in node.inputs if t is not None)


def _bare(tensor: Tensor) -> Tensor:
    """The tensor before a dimension of 1 in front went or came, which broadcasting does not see."""
    while tensor.node is not None:
        node = tensor.node
        if node.proto.op_type not in UNIT_DIMS or len(node.inputs) < 2 or node.inputs[0] is None:
            break
        axes = node.inputs[1]
        if axes is None or not axes.const or axes.array.reshape(-1).tolist() != [0]:
            break
        tensor = node.inputs[0]
    return tensor


def _slim(tensor: Tensor) -> Tensor:
    """The tensor before any dimensions of 1 went or came: where these are is for the caller to compare."""
    while tensor.node is not None:
        node = tensor.node
        before = node.inputs[0] if node.inputs else None
        if node.proto.op_type not in VIEWS or before is None:
            break
        if [d for d in before.known if d != 1] != [d for d in tensor.known if d != 1]:
            break
        tensor = before
    return tensor


def _behind(tensor: Tensor) -> list[Size]:
    """The shape as broadcasting sees it: without dimensions of 1 in front."""
    shape = list(tensor.known)
    while shape and shape[0] == 1:
        del shape[0]
    return shape


def _both(pair: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    return [(pair[0], pair[1]), (pair[1], pair[0])] if len(pair) == 2 else []


def _adds_positive(tensor: Tensor | None) -> bool:
    """Whether a tensor is another plus a constant that is not negative: the epsilon under the root."""
    node = _source(tensor)
    constants = [t for t in node.inputs if t is not None and t.const] if node is not None else []
    return len(constants) == 1 and bool(np.all(constants[0].array >= 0))


def _through(tensor: Tensor | None, op: str) -> Tensor | None:
    """The input of the operator that made a tensor; of an Add the one that is not a constant."""
    node = _source(tensor)
    if node is not None and op == "Reciprocal" and node.proto.op_type == "Div" and _scalar(node.inputs[0]) == 1:
        return node.inputs[1]
    if node is None or node.proto.op_type != op:
        return None
    inputs = [t for t in node.inputs if t is not None and not t.const]
    return inputs[0] if inputs else None


def _source(tensor: Tensor | None) -> Node | None:
    """The node that computed a tensor, behind dimensions of 1 that come and go."""
    while tensor is not None and tensor.node is not None:
        node = tensor.node
        if node.proto.op_type not in UNIT_DIMS:
            return node
        tensor = node.inputs[0]
    return None


def _scalar(tensor: Tensor | None) -> object:
    return tensor.scalar if tensor is not None else None


NORMALIZED = (normalized, standardized, standardized_rows)
