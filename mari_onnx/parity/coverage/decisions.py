"""Goals where several conditions decide together: `age > 65 and country == 302`, a product of two masks, a Where in a
Where.

A condition that is wrong shows only where it decides: of an And where all others are true. Each condition should be
true and false there, and what it compares should be just below, at, and just above where it turns.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import reduce

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto

from mari_onnx.model.nodes import attribute
from mari_onnx.model.ops import Fact, having, row
from mari_onnx.parity.coverage.goals import Goal

# Decisions of more conditions, or on more elements, are not looked into; of larger ones the first rows are.
_CONDITIONS, _ELEMENTS = 16, 2**18
# Relative to what is compared: as near to a threshold as this, and no nearer, for the last bits of right models differ.
_NEAR, _NEAREST = 2.0**-6, 2.0**-9
# Where numbers are compared with 0: relative to this part of what they are on average.
_USUAL = 2.0**-3
# Requests in a row that met nothing and came no closer: then no more are looked at.
_VAIN = 500
_TURNS = ("just below where it turns", "where it turns", "just above where it turns")
_SMALLEST = 1e-30


@dataclass(frozen=True)
class Condition:
    """One of those that a decision is made of.

    Attributes:
        tensor: boolean, or of the numbers 0 and 1.
        operands: the two numbers that are compared; none where it is no comparison of numbers.
        name: for people.
    """

    tensor: str
    operands: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class Rule:
    """How conditions are combined: by a logical function of numpy, of rules, or of conditions by their number."""

    function: Callable[..., np.ndarray]
    parts: tuple[Rule | int, ...]

    def holds(self, given: Sequence[np.ndarray]) -> np.ndarray:
        """The decision, for boolean arrays of the conditions."""
        several = [part.holds(given) if isinstance(part, Rule) else given[part] for part in self.parts]
        return np.asarray(self.function(several[0]) if len(several) == 1 else reduce(self.function, several))


class Decisions(Goal):
    """Each condition true and false where it decides, and its numbers on both sides of where it turns.

    Of a kind that is not counted, as nobody can tell which combinations are possible.

    Args:
        conditions: at least two; `rule` has their numbers.
    """

    def __init__(self, node: str, op: str, conditions: Sequence[Condition], rule: Rule):
        self._conditions, self._rule = conditions, rule
        tensors = [t for each in conditions for t in (each.tensor, *each.operands)]
        self._size = 2 + len(_TURNS)
        super().__init__("decisions", node, op, tensors, self._size * len(conditions))
        self._without = np.tile(np.arange(self._size) >= 2, len(conditions))
        for number, each in enumerate(conditions):
            self._without[number * self._size : (number + 1) * self._size] &= not each.operands
        self.met |= self._without  # nothing to meet
        self.left = int(np.count_nonzero(~self.met))
        self._last: tuple[Sequence[np.ndarray], np.ndarray, np.ndarray] | None = None
        self._vain = 0

    @property
    def done(self) -> bool:
        return not self.left or self._vain >= _VAIN

    def look(self, values: Sequence[np.ndarray]) -> int:
        found = super().look(values)
        self._vain = 0 if found or self.closer else self._vain + 1
        return found

    def _found(self, values: Sequence[np.ndarray]) -> np.ndarray:
        return self._measured(values)[0]

    def _distances(self, values: Sequence[np.ndarray]) -> np.ndarray | None:
        return self._measured(values)[1]

    def _measured(self, values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Which things a run reached, and how far it was from each."""
        if self._last is not None and self._last[0] is values:
            return self._last[1:]
        found, distances = np.zeros(self.met.size, bool), np.full(self.met.size, np.inf)
        given, operands, start = [], [], 0
        for each in self._conditions:
            mine = values[start : start + 1 + len(each.operands)]
            given.append(np.asarray(mine[0]) != 0)
            operands.append(mine[1:])
            start += len(mine)
        try:
            shape = np.broadcast_shapes(*(value.shape for value in given))
        except ValueError:
            return found, distances
        if 0 < np.prod(shape) <= _ELEMENTS:
            for number, (value, numbers) in enumerate(zip(given, operands, strict=True)):
                at = slice(number * self._size, (number + 1) * self._size)
                decides = self._decides(given, number) if not self.met[at].all() else np.zeros(shape, bool)
                if not decides.any():
                    continue
                found[at][:2] = [bool((decides & ~value).any()), bool((decides & value).any())]
                if numbers and not self.met[at][2:].all():
                    found[at][2:], distances[at][2:] = _turns(numbers, value.shape, decides)
        self._last = (values, found, distances)
        return found, distances

    def _decides(self, given: Sequence[np.ndarray], number: int) -> np.ndarray:
        """Where the decision would be another one if a condition came out otherwise."""
        both = [
            self._rule.holds([np.full_like(each, way) if k == number else each for k, each in enumerate(given)])
            for way in (False, True)
        ]
        return np.asarray(both[0] != both[1])

    def text(self, at: int) -> str:
        what = ("false", "true", *_TURNS)[at % self._size]
        return f"{self._conditions[at // self._size].name} is {what} where it decides"


def _turns(numbers: Sequence[np.ndarray], shape: tuple[int, ...], decides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether elements that decide are just below, at and just above the number they are compared with, and how far
    they are from there. Whole numbers are one apart there; floats near, and never at it."""
    nothing = np.zeros(len(_TURNS), bool), np.full(len(_TURNS), np.inf)
    if any(each.dtype.kind not in "iuf" for each in numbers):
        return nothing
    whole = all(each.dtype.kind in "iu" or bool((each == np.round(each)).all()) for each in numbers)
    one, other = (each.astype(np.float64) for each in numbers)
    with np.errstate(all="ignore"):
        over = one - other
        size = np.broadcast_to(np.maximum(np.abs(one), np.abs(other)), over.shape)
    if over.size != int(np.prod(shape)):
        return nothing
    over, size = (np.broadcast_to(each.reshape(shape), decides.shape)[decides] for each in (over, size))
    known = np.isfinite(over)
    over, size = over[known], size[known]
    if not over.size:
        return nothing
    if whole:
        wanted = (-1, 0, 1)
        return np.array([bool((over == n).any()) for n in wanted]), np.array([np.abs(over - n).min() for n in wanted])
    part = over / np.maximum(size, _USUAL * max(float(np.abs(over).mean()), _SMALLEST))
    near = (np.abs(part) >= _NEAREST) & (np.abs(part) <= _NEAR)
    found = [bool((near & (part < 0)).any()), True, bool((near & (part > 0)).any())]
    apart = [float(np.abs(part[side]).min(initial=np.inf)) for side in (part < 0, part > 0)]
    return np.array(found), np.array([apart[0], 0.0, apart[1]])


def decisions(graph: GraphProto, live: Set[str]) -> Iterator[Decisions]:
    """Of a main graph: each with two conditions that inputs move, or more.

    Args:
        live: tensors that inputs move.
    """
    return _Reader(graph, live).all()


class _Reader:
    """Reads how booleans, and products of numbers that were booleans, are combined."""

    def __init__(self, graph: GraphProto, live: Set[str]):
        self._nodes, self._live = graph.node, live
        self._producer = {o: n for n in graph.node for o in n.output if o}
        boolean = TensorProto.BOOL
        self._boolean = {i.name for i in graph.input if i.type.tensor_type.elem_type == boolean}
        self._boolean |= {t.name for t in graph.initializer if t.data_type == boolean}
        for node in graph.node:
            if self._is_boolean(node):
                self._boolean.update(node.output)

    def _is_boolean(self, node: NodeProto) -> bool:
        """Whether a node writes booleans, or numbers that are 0 or 1 as they were booleans."""
        facts = row(node.op_type)
        if node.op_type in having(Fact.BOOLEAN) or (node.op_type == "Cast" and _to_boolean(node)):
            return True
        passes = node.op_type == "Cast" or facts.facts & (Fact.VIEW | Fact.SAME)
        data = node.input[:1] if passes else node.input if _combined(node) is not None else []
        return bool(data) and all(t in self._boolean for t in data)

    def all(self) -> Iterator[Decisions]:
        """All decisions, at their last operator; and the conditions of a Where that stands in a Where."""
        inside = {t for n in self._nodes if self._combines(n) for t in n.input}
        for node in self._nodes:
            if self._combines(node) and node.output[0] not in inside:
                yield from self._made(node, node.output[0])
            elif node.op_type == "Where":
                for number, side in enumerate(node.input[1:3]):
                    inner = self._producer.get(side)
                    if inner is not None and inner.op_type == "Where":
                        yield from self._made(node, node.input[0], inner.input[0], bool(number))

    def _combines(self, node: NodeProto) -> bool:
        """Whether a decision goes on in the node's inputs."""
        if not all(t in self._boolean for t in node.input) or not node.input:
            return False
        return _combined(node) is not None or node.op_type == "Cast"

    def _made(self, node: NodeProto, tensor: str, further: str = "", otherwise: bool = False) -> Iterator[Decisions]:
        conditions: dict[str, Condition] = {}
        rule = self._rule(tensor, conditions)
        if further:
            first: Rule | int = Rule(np.logical_not, (rule,)) if otherwise else rule
            rule = Rule(np.logical_and, (first, self._rule(further, conditions)))
        moved = sum(each.tensor in self._live for each in conditions.values())
        if isinstance(rule, Rule) and moved > 1 and len(conditions) <= _CONDITIONS:
            yield Decisions(node.name or node.output[0], node.op_type, list(conditions.values()), rule)

    def _rule(self, tensor: str, conditions: dict[str, Condition]) -> Rule | int:
        node = self._producer.get(tensor)
        if node is not None and self._combines(node):
            parts = tuple(self._rule(t, conditions) for t in node.input)
            function = _combined(node)
            return parts[0] if function is None else Rule(function, parts)
        if tensor not in conditions:
            conditions[tensor] = self._condition(tensor)
        return list(conditions).index(tensor)

    def _condition(self, tensor: str) -> Condition:
        """A condition, with what is compared: in front of what only gives it another shape too."""
        node = self._producer.get(tensor)
        while node is not None and (row(node.op_type).facts & (Fact.VIEW | Fact.SAME) or node.op_type == "Cast"):
            if node.input[0] not in self._boolean:
                break
            node = self._producer.get(node.input[0])
        compares = node is not None and bool(row(node.op_type).holds) and any(t in self._live for t in node.input)
        operands = tuple(node.input) if node is not None and compares else ()
        return Condition(tensor, operands, (node.name or node.output[0]) if node is not None else tensor)


def _combined(node: NodeProto) -> Callable[..., np.ndarray] | None:
    """How an operator combines booleans, and numbers that are 0 or 1 as they were booleans; None where it does not."""
    facts = row(node.op_type)
    if facts.facts & Fact.LOGIC and facts.function is None:
        return np.logical_xor if facts.facts & Fact.RELATES else np.logical_not
    if facts.function is max:
        return np.logical_or
    return np.logical_and if facts.function in (min, operator.mul) else None


def _to_boolean(node: NodeProto) -> bool:
    return bool(attribute(node, "to", 0) == TensorProto.BOOL)
