"""Softmax is invariant to a shift: what is added to all scores of a row alike changes nothing.

    softmax_t(a_t + c) = softmax_t(a_t)             c: without the softmax's axis; LogSoftmax alike
    softmax_t((a_t + c) g) = softmax_t(a_t g)       g: without the axis; as a divisor too
    (A_t + C) W = A_t W + C W                       a linear scorer over the sum of a history and a target

So a scorer that is linear in [history | target] gives weights that are the history's alone. A mask in between,

    softmax_t(Where(m_t, f, a_t + c)) = softmax_t(Where(m_t, f, a_t))

is exact for f = -inf: a row masked throughout is NaN either way. For a finite f (-1e9) it is exact where the scores are
proven to be above f by more than the exponent's range (`bounds`), with c and without: then a masked weight is exactly
0 wherever one of the row is not masked, and a row that is masked throughout is uniform either way.

A mask that is added, a_t + f m_t + c, is one more addend with the axis: nothing is asked of it.

c must be finite: it is not computed from float inputs, which may be NaN (`finite`), nor from constants that are no
weights (-inf, NaN, 1e8 and beyond): masks, with which the source's softmax may be NaN, or lose its scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mari_onnx.engine.algebra.contract import contract, reduce_sum
from mari_onnx.engine.algebra.sums import add, binary, multiply, scaled
from mari_onnx.engine.analysis.finite import given
from mari_onnx.engine.analysis.magnitude import bound
from mari_onnx.engine.analysis.norm_patterns import largest
from mari_onnx.engine.axes.materialize import as_leaf, write
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.emit import broadcast
from mari_onnx.engine.ir.forms import form_of
from mari_onnx.engine.ir.value import Axis, Body, Leaf, Node, Prod, Sum, Tensor, axes_of, is_const, leaves
from mari_onnx.model.dims import Size
from mari_onnx.model.nodes import attribute, is_standard
from mari_onnx.model.ops import Fact, having
from mari_onnx.model.tensors import FLOATS

RANGE = 800.0
"""exp(-RANGE) is 0 in every floating-point type."""
HUGE = 1e8
"""Constants from here on are no weights, but masks."""
STEPS = 4000
"""Nodes looked at for masks; beyond it an addend stays."""
DEPTH = 16
"""Operators followed from the scores backwards."""
VIEWS = having(Fact.VIEW) | {"Transpose"}
ADDS, MULTIPLIES = having(Fact.ADDS), having(Fact.MULTIPLIES)
UNPROVEN = (
    "what all scores of a row have in common stays: a finite number masks some, and nothing shows that the others are "
    "far above it"
)


@dataclass(frozen=True)
class At:
    """The softmax as seen from an operand of the scores.

    scale: the positive constant that the operand is multiplied by; None where it is something else, or where rows of
        the operand are added up, so that it must not be a mask.
    alone: nothing that varies along the row is added to the operand.
    """

    k: Axis
    scale: float | None = 1.0
    alone: bool = True
    depth: int = DEPTH


def unshifted(b: Builder, leaf: Leaf, k: Axis, log: bool = False) -> Leaf:
    """Scores with the same (log-)softmax along ``k``, which vary along fewer axes; else the scores themselves."""
    if k not in axes_of(leaf) or len(axes_of(leaf)) < 2 or leaf.tensor.const:
        return leaf
    # the log of a masked weight is f - log sum exp(a_t + c): finite, and not the same without c
    found = _without(b, leaf, At(k, alone=not log))
    return found if axes_of(found) < axes_of(leaf) else leaf


def _without(b: Builder, leaf: Leaf, at: At) -> Leaf:
    """The leaf, less something that does not vary along ``k``."""
    if at.k not in axes_of(leaf):
        return Leaf(b.const(0, leaf.tensor.dtype), ()) if _finite(b, leaf.tensor) and not given(b, leaf) else leaf
    if not at.depth or leaf.tensor.const:
        return leaf
    at = replace(at, depth=at.depth - 1)
    node = b.nodes[leaf.tensor.node] if leaf.tensor.node is not None else None
    found = leaf
    if node is not None and is_standard(node.proto):
        found = _through(b, node, leaf, at)
    if axes_of(found) < axes_of(leaf):
        return found
    form = _form(b, leaf, at)
    return form if axes_of(form) < axes_of(leaf) else leaf


def _through(b: Builder, node: Node, leaf: Leaf, at: At) -> Leaf:
    """The node that computed the leaf, on operands that have less."""
    op, order = node.proto.op_type, [a for a in leaf.axes if a is not None]
    inputs = [t for t in node.inputs if t is not None]
    if any(t.shape is None for t in [*inputs, leaf.tensor]):
        return leaf
    if op in VIEWS:
        source = _seen(node, inputs[0], leaf)
        return _without(b, source, at) if source is not None else leaf
    if op == "MatMul":
        return _linear(b, inputs, leaf, at)
    if op in having(Fact.REDUCES | Fact.LINEAR):
        return _reduced(b, node, leaf, at)
    if op not in ADDS | MULTIPLIES and op != "Where":
        return leaf
    operands = _operands(inputs, leaf)
    if operands is None:
        return leaf
    if op == "Where":
        return _masked(b, operands, leaf, at)
    if op in MULTIPLIES:
        x, g = operands if op == "Div" or at.k in axes_of(operands[0]) else operands[::-1]
        if at.k in axes_of(g) or not _finite(b, g.tensor):
            return leaf
        return binary(b, op, _without(b, x, _times(at, g, op)), g, order)
    varying = [o for o in operands if at.k in axes_of(o)]
    inside = replace(at, alone=at.alone and len(varying) == 1)
    if op == "Sub":
        x, y = _without(b, operands[0], inside), _without(b, operands[1], replace(inside, scale=None))
        return scaled(b, y, -1) if x.tensor.scalar == 0 else binary(b, "Sub", x, y, order)
    return as_leaf(b, add(b, [_without(b, o, inside) for o in operands], order), order)


def _form(b: Builder, leaf: Leaf, at: At) -> Leaf:
    """The leaf's form without terms that have no axis ``k``."""
    form, order = form_of(leaf), [a for a in leaf.axes if a is not None]
    at = replace(at, scale=None)
    if isinstance(form, Sum):
        return as_leaf(b, add(b, [_flat(b, term, at, order) for term in form.terms], order), order)
    return _flat(b, form, at, order) if isinstance(form, Prod) else leaf


def _flat(b: Builder, term: Body, at: At, order: Sequence[Axis]) -> Leaf:
    if isinstance(term, Prod):
        inside = [f for f in term.factors if at.k in axes_of(f)]
        sure = all(_finite(b, leaf.tensor) for f in term.factors for leaf in leaves(f))
        factors = list(term.factors)
        if not inside and sure and not given(b, term):
            return Leaf(b.const(0, next(leaves(term)).tensor.dtype), ())
        if len(inside) == 1 and isinstance(inside[0], Leaf) and sure:
            factors = [_without(b, inside[0], at) if f is inside[0] else f for f in factors]
        return as_leaf(b, multiply(b, Prod(tuple(factors[1:])), factors[0], order), order)
    if isinstance(term, Leaf):
        return _without(b, term, at)
    return as_leaf(b, term, order)


def _masked(b: Builder, operands: Sequence[Leaf], leaf: Leaf, at: At) -> Leaf:
    """Where(m, f, a + c) as Where(m, f, a), in either order of the branches."""
    condition, x, y = operands
    if at.scale is None:
        return leaf
    for fill, scores, second in ((x, y, True), (y, x, False)):
        value = _constant(fill.tensor)
        if value is None or is_const(scores):
            continue
        infinite = np.isneginf(value)
        if not infinite and not at.alone:
            continue
        rest = _without(b, scores, replace(at, scale=None) if not infinite else at)
        if not axes_of(rest) < axes_of(scores):
            continue
        most = max(bound(b, t) for t in (scores.tensor, rest.tensor))
        if not infinite and not (np.isfinite(most) and value * at.scale + RANGE < -most * at.scale):
            b.notes.append(UNPROVEN)
            continue
        pair = (fill, rest) if second else (rest, fill)
        return _where(b, [condition, *pair], leaf)
    return leaf


def _where(b: Builder, operands: Sequence[Leaf], leaf: Leaf) -> Leaf:
    has = frozenset().union(*(axes_of(o) for o in operands))
    axes = [a for a in leaf.axes if a in has and a is not None]
    tensors = [write(b, o, [(a,) for a in axes] if axes_of(o) else []) for o in operands]
    shape: tuple[Size, ...] = ()
    for t in tensors:
        shape = broadcast(shape, t.known)
    return Leaf(b.emit("Where", tensors, shape, leaf.tensor.dtype), tuple(axes))


def _linear(b: Builder, inputs: Sequence[Tensor], leaf: Leaf, at: At) -> Leaf:
    """A product of which one operand alone has ``k``."""
    x, y = inputs
    if len(x.known) < 2 or len(y.known) < 2 or len(leaf.axes) != max(len(x.known), len(y.known)):
        return leaf
    inner = Axis(x.known[-1]) if x.known[-1] != 1 else None
    batch = leaf.axes[:-2]
    left = _leaf(x, (*batch[len(batch) - len(x.known) + 2 :], leaf.axes[-2], inner))
    right = _leaf(y, (*batch[len(batch) - len(y.known) + 2 :], inner, leaf.axes[-1]))
    if (at.k in axes_of(left)) == (at.k in axes_of(right)):
        return leaf
    this, other = (left, right) if at.k in axes_of(left) else (right, left)
    if not _finite(b, other.tensor):
        return leaf
    rest = _without(b, this, replace(at, scale=None))
    order = [a for a in leaf.axes if a is not None]
    if not axes_of(rest) < axes_of(this):
        return leaf
    product = contract(b, rest, other, frozenset({inner} if inner else ()), order)
    return as_leaf(b, product, order)


def _reduced(b: Builder, node: Node, leaf: Leaf, at: At) -> Leaf:
    """A sum or mean over other axes."""
    x = node.inputs[0]
    axes = attribute(node.proto, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].const:
        axes = [int(a) for a in node.inputs[1].array]
    keep = attribute(node.proto, "keepdims", 1)
    if axes is None or x is None or len(leaf.axes) != len(x.known) - (0 if keep else len(axes)):
        return leaf
    gone = {a % len(x.known) for a in axes}
    rest = iter(leaf.axes)
    found: list[Axis | None] = []
    for i, size in enumerate(x.known):
        if i not in gone:
            found.append(next(rest))
        else:
            found.append(Axis(size) if size != 1 else None)
            if keep:
                next(rest)
    summed = frozenset(found[i] for i in gone) - {None}
    less = _without(b, Leaf(x, tuple(found)), replace(at, scale=None))
    order = [a for a in leaf.axes if a is not None]
    total = as_leaf(b, reduce_sum(b, less, summed, order), order)
    if node.proto.op_type == "ReduceSum":
        return total
    count = 1
    for a in summed:
        if a is None or not isinstance(a.size, int) or a.size == 0:
            return leaf
        count *= a.size
    return scaled(b, total, 1 / count)


def _seen(node: Node, source: Tensor, leaf: Leaf) -> Leaf | None:
    """What the leaf is a view of, if that has the same dimensions but for those of 1."""
    if len(leaf.axes) != len(leaf.tensor.known):
        return None
    if node.proto.op_type == "Transpose":
        perm = attribute(node.proto, "perm")
        return Leaf(source, tuple(leaf.axes[perm.index(i)] for i in range(len(perm)))) if perm is not None else None
    if [s for s in source.known if s != 1] != [s for s in leaf.tensor.known if s != 1]:
        return None
    own = iter([a for a, s in zip(leaf.axes, leaf.tensor.known, strict=True) if s != 1])
    return Leaf(source, tuple(next(own) if s != 1 else None for s in source.known))


def _operands(inputs: Sequence[Tensor], leaf: Leaf) -> list[Leaf] | None:
    """The inputs of an element-wise node, over the leaf's axes."""
    rank = len(leaf.axes)
    if any(len(t.known) > rank for t in inputs) or len(leaf.tensor.known) != rank:
        return None
    return [_leaf(t, leaf.axes[rank - len(t.known) :]) for t in inputs]


def _leaf(t: Tensor, axes: Sequence[Axis | None]) -> Leaf:
    return Leaf(t, tuple(a if s != 1 else None for a, s in zip(axes, t.known, strict=True)))


def _times(at: At, g: Leaf, op: str) -> At:
    value = _constant(g.tensor)
    if value is None or not value > 0 or at.scale is None:
        return replace(at, scale=None)
    return replace(at, scale=at.scale * value if op == "Mul" else at.scale / value)


def _constant(t: Tensor) -> float | None:
    """The one number that a constant consists of."""
    if not t.const or t.array.dtype.kind != "f" or not t.array.size:
        return None
    first = float(t.array.reshape(-1)[0])
    return first if bool(np.all(t.array == first)) else None


def _finite(b: Builder, tensor: Tensor) -> bool:
    """Whether a tensor is bounded, or at least computed without constants that can be masks."""
    if bound(b, tensor) < HUGE:
        return True
    stack, seen = [tensor], {tensor.name}
    while stack:
        top = stack.pop()
        if top.const:
            if top.dtype in FLOATS and top.array.size and not largest(top) < HUGE:
                return False
        elif top.node is not None:
            more = [t for t in b.nodes[top.node].inputs if t is not None and t.name not in seen]
            seen.update(t.name for t in more)
            stack += more
        if len(seen) > STEPS:
            return False
    return True
