"""What a graph reacts to: numbers and categories that it compares elements with, ends of its tables of categories,
splits of its trees, bounds, NaN.

Each reaction names elements of a local tensor and what they should be at least once; `thresholds.py` turns that back
into what is fed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.model.ops import Fact, having, mirrored, row
from mari_onnx.parity.domains.texts import matching

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.domains.trace import Trace

# How a tree goes left: by name before ai.onnx.ml 5, by number since.
_MODES = {"BRANCH_LEQ": "LessOrEqual", "BRANCH_LT": "Less", "BRANCH_GTE": "GreaterOrEqual", "BRANCH_GT": "Greater",
          "BRANCH_EQ": "Equal", "BRANCH_NEQ": "Equal"}  # fmt: skip
_BY_NUMBER = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
ROUNDED = "rounded"
# Where a rounding takes another step: between whole numbers, or at them; of either sign, even and odd.
_HALVES = np.array([0.5, 1.5, 2.5, 4.5, -0.5, -1.5, -2.5, -3.5])
_WHOLES = np.array([0.0, 1.0, 2.0, 3.0, -1.0, -2.0, -3.0])
_TRIED = 4
# Multiples of one over this, up to this, have few digits.
_SHORT = 2.0**6
# Comparisons of more elements than this are not looked into.
_ELEMENTS = 2**16


@dataclass(frozen=True)
class Reaction:
    """Elements of one tensor and numbers, or strings, that they are told apart by.

    Attributes:
        tensor: a local one.
        op: `Equal`, `Less`, .. as if the tensor stood on its left; `ROUNDED` where it is a step of a rounding.
        elements: in C order; `numbers` has as many.
        node: the operator that reacts, for messages.
        bound: of a Clip, Min or Max, which often stands there as a guard.
        closed: no other numbers than these may be fed.
    """

    tensor: str
    op: str
    elements: np.ndarray
    numbers: np.ndarray
    node: str
    bound: bool = False
    closed: bool = False


def reactions(trace: Trace) -> Iterator[Reaction]:
    """All of a graph's."""
    for node in trace.parts.nodes:
        for tensor, op, number, bound in _compared(node, trace):
            curve = trace.curves.get(tensor)
            if curve is None:
                continue
            shape = trace.shape_of(tensor)
            try:
                if np.prod(np.broadcast_shapes(shape, number.shape)) > _ELEMENTS:
                    continue
                elements, numbers = np.broadcast_arrays(np.arange(curve.origin.size).reshape(shape), number)
            except ValueError:
                continue
            yield Reaction(tensor, op, elements.reshape(-1), numbers.reshape(-1), label(node), bound)
        steps = _rounded(node, trace)
        if steps.size:
            places = np.arange(trace.curves[node.input[0]].origin.size)
            if places.size * steps.size <= _ELEMENTS:
                pairs = np.repeat(places, steps.size), np.tile(steps, places.size)
                yield Reaction(node.input[0], ROUNDED, *pairs, label(node))
        for tensor, column, op, several in _of_columns(node):
            if tensor not in trace.curves:
                continue
            shape = trace.shape_of(tensor)
            places = np.arange(trace.curves[tensor].origin.size).reshape(shape or (1,))
            if column is not None and not -places.shape[-1] <= column < places.shape[-1]:
                continue
            mine = (places if column is None else places[..., column]).reshape(-1)
            text = bool(len(several)) and isinstance(several[0], str)
            array = np.array(several, object if text else np.float64)
            pairs = np.repeat(mine, array.size), np.tile(array, mine.size)
            if pairs[0].size <= 4 * _ELEMENTS:
                closed = node.op_type == "OneHotEncoder" and not attributes(node).get("zeros", 1)
                yield Reaction(tensor, op, *pairs, label(node), closed=closed)


def _rounded(node: onnx.NodeProto, trace: Trace) -> np.ndarray:
    """Floats of a node's first input at which it rounds otherwise; none where it rounds nothing."""
    kind = trace.type_of(node.input[0]).kind if node.input and node.input[0] in trace.curves else ""
    if kind != "f":
        return np.zeros(0)
    if node.op_type == "QuantizeLinear":
        step = trace.constants.get(node.input[1], np.zeros(2))
        return _HALVES * float(step.reshape(-1)[0]) if step.size == 1 else np.zeros(0)
    if node.op_type == "Round":
        return _HALVES
    return _WHOLES if node.op_type in having(Fact.WHOLE) else np.zeros(0)


def rounded_together(trace: Trace) -> set[str]:
    """Inputs several elements of which make a number that is rounded, with no loss of digits on the way: sums of halves
    are where it turns, and the last bits cannot decide."""
    found: set[str] = set()
    rng = np.random.default_rng(0)
    for node in trace.parts.nodes:
        if not _rounded(node, trace).size or not trace.curves[node.input[0]].several.any():
            continue
        with suppress(MariError):
            tried = [trace.answer(rng.integers(-20, 20, trace.total) / 2)[node.input[0]] for _ in range(_TRIED)]
            if all(is_short(float(n)) for each in tried for n in each.reshape(-1)):
                found |= trace.parts.local[node.input[0]]
    return found


def is_short(number: float) -> bool:
    """Whether a number has so few digits that sums and products of a few such are exact in float32, in any order."""
    return abs(number) <= _SHORT and (number * _SHORT).is_integer()


def normalized(trace: Trace) -> Iterator[tuple[str, str]]:
    """Inputs whose letters are made small or large, and the node."""
    for node in trace.parts.nodes:
        if node.op_type == "StringNormalizer" and node.input[0] in trace.curves:
            if attributes(node).get("case_change_action", "NONE") == "NONE":
                continue
            yield from ((name, label(node)) for name in sorted(trace.parts.local[node.input[0]]))


def label(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or (node.output[0] if node.output else '')}".strip()


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    found = {}
    for each in node.attribute:
        value = onnx.helper.get_attribute_value(each)
        if each.type == onnx.AttributeProto.TENSOR:
            value = onnx.numpy_helper.to_array(value)
        if isinstance(value, list | tuple) and value and isinstance(value[0], bytes):
            value = [v.decode("utf-8", "replace") for v in value]
        elif isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        found[each.name] = value
    return found


def _compared(node: onnx.NodeProto, trace: Trace) -> Iterator[tuple[str, str, np.ndarray, bool]]:
    """Tensors that are compared, how, with what that no input moves, and whether it is a bound."""
    import onnx

    given = [t for t in node.input if t]
    known = trace.constants
    if row(node.op_type).holds:
        for one, other, op in ((*given, node.op_type), (*given[::-1], mirrored(node.op_type))):
            if one in trace.curves and other in known and known[other].dtype.kind in "iufO":
                yield one, op, known[other], False
    elif node.op_type == "Cast" and attributes(node).get("to") == onnx.TensorProto.BOOL:
        yield given[0], "Equal", np.zeros(()), False
    elif row(node.op_type).acts_where:  # the bound itself is the first number that is cut, or counts anew
        for one in given if node.op_type in having(Fact.COMMUTES) else given[:1]:
            for other in given:
                if other != one and one in trace.curves and other in known and known[other].dtype.kind in "iuf":
                    yield one, row(node.op_type).acts_where, known[other], node.op_type != "Mod"
        own = attributes(node)
        if node.op_type == "Clip" and len(given) == 1:  # bounds were attributes before opset 11
            yield from ((given[0], "Less", np.array(own[k]), True) for k in ("min", "max") if k in own)
    elif row(node.op_type).kinks and given[0] in trace.curves and trace.type_of(given[0]).kind == "i":
        yield from ((given[0], "Less", np.array(kink), True) for kink in row(node.op_type).kinks)
    elif node.op_type == "IsNaN":
        yield given[0], "Equal", np.array(np.nan), False
    elif node.op_type == "IsInf":
        own = attributes(node)
        ends = [sign for key, sign in (("detect_positive", np.inf), ("detect_negative", -np.inf)) if own.get(key, 1)]
        yield from ((given[0], "Equal", np.array(each), False) for each in ends)


def _of_columns(node: onnx.NodeProto) -> Iterator[tuple[str, int | None, str, Sequence[Any]]]:
    """Tensors, their column or None for all, how they are compared, and with what."""
    own = attributes(node)
    if row(node.op_type).categories:
        for key in row(node.op_type).categories:
            if key in own and len(own[key]):
                yield node.input[0], None, "Equal", np.asarray(own[key]).reshape(-1).tolist()
    elif node.op_type == "OneHot":
        yield node.input[0], None, "Equal", [-1]  # counts from the end
    elif node.op_type == "RegexFullMatch":
        yield node.input[0], None, "Equal", matching(str(own.get("pattern", "")))
    elif node.op_type == "Binarizer":
        yield node.input[0], None, "Greater", [own.get("threshold", 0.0)]
    elif node.op_type == "Imputer":
        for key in ("replaced_value_float", "replaced_value_int64"):
            if key in own:
                yield node.input[0], None, "Equal", [own[key]]
        if "replaced_value_float" not in own and "replaced_value_int64" not in own:
            yield node.input[0], None, "Equal", [0.0]
    elif node.op_type.startswith("TreeEnsemble"):
        yield from _splits(node, own)


def _splits(node: onnx.NodeProto, own: dict[str, Any]) -> Iterator[tuple[str, int, str, Sequence[Any]]]:
    features = own.get("nodes_featureids", [])
    modes = own.get("nodes_modes", [])
    numbers = own.get("nodes_values_as_tensor", own.get("nodes_splits", own.get("nodes_values", [])))
    modes = [_BY_NUMBER[int(m)] if not isinstance(m, str) else m for m in modes]
    missing = own.get("nodes_missing_value_tracks_true", [])
    found: dict[tuple[int, str], dict[float, None]] = {}
    members = iter(_members(own.get("membership_values")))
    for place, (feature, mode, number) in enumerate(zip(features, modes, numbers, strict=False)):
        if mode == "BRANCH_MEMBER":
            found.setdefault((int(feature), "Equal"), {}).update(dict.fromkeys(next(members, [])))
        elif mode in _MODES:
            found.setdefault((int(feature), _MODES[mode]), {})[float(number)] = None
        if mode != "LEAF" and place < len(missing) and missing[place]:
            found.setdefault((int(feature), "Equal"), {})[float("nan")] = None
    for (feature, op), several in found.items():
        yield node.input[0], feature, op, list(several)


def by_name(own: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a TreeEnsemble of ai.onnx.ml 5 as those of a TreeEnsembleRegressor, but for its leaves' weights.

    Leaves come after the inner nodes; `nodes_members` has the set of each node that asks for one.
    """
    modes = [_BY_NUMBER[int(m)] for m in np.asarray(own["nodes_modes"]).reshape(-1)]
    inner, leaves = len(modes), 0
    to: dict[str, list[int]] = {}
    for way in ("true", "false"):
        ids, leaf = own[f"nodes_{way}nodeids"], own[f"nodes_{way}leafs"]
        leaves = max([leaves, *(int(i) + 1 for i, is_leaf in zip(ids, leaf, strict=True) if is_leaf)])
        to[way] = [int(i) + (inner if is_leaf else 0) for i, is_leaf in zip(ids, leaf, strict=True)]
    none, count = [0] * leaves, inner + leaves
    members = iter(_members(own.get("membership_values")))
    return {
        "nodes_treeids": [0] * count,
        "nodes_nodeids": list(range(count)),
        "nodes_truenodeids": to["true"] + none,
        "nodes_falsenodeids": to["false"] + none,
        "nodes_featureids": [*map(int, own["nodes_featureids"]), *none],
        "nodes_values": [*np.asarray(own["nodes_splits"], np.float64).reshape(-1).tolist(), *none],
        "nodes_modes": modes + ["LEAF"] * leaves,
        "nodes_missing_value_tracks_true": [*own.get("nodes_missing_value_tracks_true", [0] * inner), *none],
        "nodes_members": {k: next(members, []) for k, mode in enumerate(modes) if mode == "BRANCH_MEMBER"},
    }


def _members(values: Any) -> list[list[float]]:
    """Sets of numbers, each ended by NaN."""
    found: list[list[float]] = [[]]
    for number in [] if values is None else np.asarray(values, np.float64).reshape(-1).tolist():
        if np.isnan(number):
            found.append([])
        else:
            found[-1].append(number)
    return found


def counts(numbers: np.ndarray) -> int | None:
    """T where an array, or each of its rows, holds 0 to T-1 or 1 to T in any order; None else. T is at least 2."""
    if numbers.size < 2 or numbers.dtype.kind not in "iuf":
        return None
    flat = numbers.reshape(-1)
    if numbers.ndim > 1 and numbers.shape[-1] > 1 and (numbers == numbers.reshape(-1, numbers.shape[-1])[0]).all():
        flat = numbers.reshape(-1, numbers.shape[-1])[0]
    steps = np.arange(flat.size)
    return int(flat.size) if any((np.sort(flat) == steps + first).all() for first in (0, 1)) else None
