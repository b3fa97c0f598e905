"""What a rule sees of its node (`Context`), and the table in which rules are registered (`rule`).

`Steps`, from `lowered(ctx)`, writes an operator as several other operators, each by its own rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from mari_onnx.engine.assumptions import IN_A_BODY, Assumption, Assumptions
from mari_onnx.engine.axes.materialize import materialise
from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.infer import Inferred, infer
from mari_onnx.engine.ir.value import Axis, Body, Decline, Group, Leaf, Tensor, Value, is_const, leaves
from mari_onnx.engine.session import Session
from mari_onnx.model.dims import Dim, Size
from mari_onnx.model.nodes import attributes, captures
from mari_onnx.model.tensors import EXACT

MAX_SYMBOLIC = 1024
"""Integer tensors of up to this many elements are followed as symbols."""

Answer = Callable[["Context"], "Sequence[Value | None]"]
AnswerT = TypeVar("AnswerT", bound=Answer)


@dataclass(frozen=True)
class Rule:
    """How the outputs of an operator are computed.

    splits: the rule takes operands apart though its result is one tensor, so reports call such a node split.
    general: a more specific rule of the same operator replaces it (`mapped`).
    """

    answer: Answer
    splits: bool = False
    general: bool = False

    @property
    def name(self) -> str:
        """The name in reports: that of the rule's module, which is the family of operators."""
        return self.answer.__module__.rsplit(".", 1)[-1]


RULES: dict[tuple[str, str], Rule] = {}
"""The rules, by (domain, operator)."""


def rule(*ops: str, domain: str = "", splits: bool = False) -> Callable[[AnswerT], AnswerT]:
    """Registers a function as the rule of some operators. It replaces a general one (`mapped`) of the same operator."""

    def register(answer: AnswerT) -> AnswerT:
        for op in ops:
            assert (domain, op) not in RULES or RULES[domain, op].general, f"two rules for {op}"
            RULES[domain, op] = Rule(answer, splits)
        return answer

    return register


@dataclass
class Context:
    """One source node with the Values of its inputs (None where an optional input is left out).

    env: Values by name around the node. Nodes that are interpreted with it replace the node, in reports too.
    visit: interprets one node of a subgraph; reads its inputs from the environment given and puts its outputs there.
    assumptions: what may be assumed, and what was; None in a subgraph, which a run may not reach.
    """

    b: Builder
    session: Session
    node: NodeProto
    inputs: list[Value | None]
    env: dict[str, Value]
    visit: Callable[[NodeProto, dict[str, Value]], None]
    assumptions: Assumptions | None = None

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """The node's attributes by name."""
        return attributes(self.node)

    @cached_property
    def captured(self) -> dict[str, Value]:
        """Values, by name, that the node's subgraphs read from outside."""
        return {name: self.env[name] for name in captures(self.node) if name in self.env}

    def on(self, node: NodeProto, inputs: Sequence[Value | None]) -> Context:
        """The same context for another node and other inputs; what it writes is named after the present node."""
        return replace(self, node=node, inputs=list(inputs))

    def interpret(self, graph: GraphProto, env: dict[str, Value]) -> list[Value]:
        """The outputs of a subgraph, whose nodes are answered. env: what it reads; all of its tensors are added.

        Refuses sparse constants.
        """
        if graph.sparse_initializer:
            raise Decline("its subgraph has sparse constants")
        for proto in graph.initializer:
            env[proto.name] = from_tensor(self.b.const(numpy_helper.to_array(proto), proto.data_type))
        for node in graph.node:
            self.visit(node, env)
        return [env[o.name] for o in graph.output]

    def assume(self, what: str, why: str) -> None:
        """Assumes a fact that a run at one candidate can verify. Raises `Decline`, with the reason, where nobody
        verifies it.
        """
        if self.assumptions is None:
            raise Decline(f"{why}: {IN_A_BODY}")
        output = next((o for o in self.node.output if o), "")
        self.assumptions.make(Assumption(self.node.name or output, output, what, why))

    def write_out(self) -> list[Value | None]:
        """The outputs of the node copied as it is, on inputs that are written out as tensors with all N rows."""
        b, node = self.b, self.node
        tensors = [materialise(b, v) if v is not None else None for v in self.inputs]
        captured = {name: materialise(b, v) for name, v in self.captured.items()}
        shapes = [t.shape if t is not None else None for t in tensors]
        found = self._believed(self.infer(shapes, tensors))
        renamed = {name: t.name for name, t in captured.items()} or None
        outs = b.copy(node, tensors, [d for d, _ in found], [None] * len(found), list(captured.values()), renamed)
        values: list[Value | None] = []
        for o, (out, (_, shape)) in enumerate(zip(outs, found, strict=True)):
            if not node.output[o]:
                values.append(None)
                continue
            if shape is not None and not out.const:
                out.shape = tuple(s if s is not None else b.fresh(out, i) for i, s in enumerate(shape))
            values.append(from_tensor(out))
        return values

    @property
    def opset(self) -> int:
        """The opset of the standard's operators in the source."""
        return self.b.opset

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default where the node has none."""
        return self.attrs.get(name, default)

    def has(self, i: int) -> bool:
        """Whether input ``i`` is given: optional ones may be left out."""
        return i < len(self.inputs) and self.inputs[i] is not None

    def input(self, i: int) -> Value:
        """Input i. Raises `Decline` where it is missing or of unknown rank."""
        value = self.inputs[i] if i < len(self.inputs) else None
        if value is None:
            raise Decline(f"input {i} is missing")
        if value.groups is None:
            raise Decline(f"input {i} has an unknown rank")
        return value

    def array(self, i: int) -> np.ndarray | None:
        """Input i as a numpy array where it is a constant, else None."""
        value = self.inputs[i] if i < len(self.inputs) else None
        return None if value is None else constant(self.b, value)

    def ints(self, i: int) -> list[int] | None:
        """Input i as a list of integers where it is a constant or known sizes, else None."""
        array = self.array(i)
        return None if array is None else [int(x) for x in array.reshape(-1)]

    def sizes(self, i: int) -> list[Size | None]:
        """The elements of input i as dimensions, an integer or a polynomial each; None for one that is not known.

        Raises `Decline` where the whole input is computed from data.
        """
        value = self.inputs[i] if i < len(self.inputs) else None
        found = None if value is None else symbolic(self.b, value)
        if found is None:
            raise Decline(f"input {i} ({self.node.input[i]}) is computed from data")
        return list(found.reshape(-1))

    def axes_arg(self, i: int, name: str = "axes") -> list[int] | None:
        """Axes, an attribute in older opsets and an input in newer ones. Raises `Decline` where they are computed."""
        if name in self.attrs:
            return [int(a) for a in self.attrs[name]]
        if not self.has(i):
            return None
        found = self.ints(i)
        if found is None:
            raise Decline(f"its {name} are computed at run time")
        return found

    def value(self, groups: Sequence[Group], body: Body, dtype: int | None = None) -> Value:
        """A Value of these groups, one per dimension, and this body. dtype: an ONNX element type; else the leaves'."""
        return Value(tuple(groups), body, dtype if dtype is not None else next(iter(leaves(body))).tensor.dtype)

    def infer(self, shapes: Sequence[tuple[Size, ...] | None], inputs: Sequence[Tensor | None]) -> Inferred:
        """Element type and shape of each output of the node, for inputs of these shapes."""
        return infer(self.node, shapes, inputs, self.session.opsets)

    def _believed(self, found: Inferred) -> Inferred:
        """The inferred types and shapes; where the type is not known, what the file declares."""
        declared = [self.session.declared.get(name) for name in self.node.output]
        pairs = zip(found, declared, strict=True)
        return [said if said is not None and kind == TensorProto.UNDEFINED else (kind, s) for (kind, s), said in pairs]


def constant(b: Builder, value: Value) -> np.ndarray | None:
    """The elements as a numpy array where the Value is a constant of static shape, else None."""
    if value.groups is None or not is_const(value.body):
        return None
    if not all(isinstance(size, int) for size in value.shape):
        return None
    tensor = materialise(b, value)
    return tensor.array if tensor.const else None


def symbolic(b: Builder, value: Value) -> np.ndarray | None:
    """The elements as an object array of int, Dim or None, for an integer tensor of up to `MAX_SYMBOLIC` elements."""
    if value.sym is not None:
        return value.sym
    if value.dtype not in EXACT or value.groups is None:
        return None
    size = 1
    for s in value.shape:
        if not isinstance(s, int):
            return None
        size *= s
    if size > MAX_SYMBOLIC:
        return None
    array = constant(b, value)
    if array is None:
        return None
    value.sym = np.frompyfunc(int, 1, 1)(array) if array.size else array.astype(object)
    value.sym = np.asarray(value.sym, dtype=object).reshape(array.shape)
    return value.sym


def from_sizes(b: Builder, sym: np.ndarray, dtype: int) -> Value:
    """A Value with these elements, an array of int or `Dim`; a constant where all are int. Raises `Decline` for
    None.
    """
    flat = list(sym.reshape(-1))
    if any(s is None for s in flat):
        raise Decline("an element of the shape is computed from data")
    if all(not isinstance(s, Dim) for s in flat):
        return from_array(b, np.asarray(sym.tolist()).reshape(sym.shape), dtype)
    if not all(b.computable(s) for s in flat):
        raise Decline("a dimension cannot be computed from the inputs at run time")
    tensor = b.sizes(flat)
    if dtype != TensorProto.INT64:
        tensor = b.emit("Cast", [tensor], tensor.shape, dtype, {"to": dtype})
    tensor = emit.reshape(b, tensor, sym.shape)
    value = from_tensor(tensor)
    value.sym = sym
    return value


def from_array(b: Builder, array: np.ndarray, dtype: int) -> Value:
    """A constant as a Value; each dimension longer than 1 is an axis. dtype: an ONNX element type."""
    return from_tensor(b.const(array, dtype))


def from_tensor(tensor: Tensor) -> Value:
    """A Value of a tensor in which each dimension is an axis of its own."""
    if tensor.shape is None:
        return Value(None, Leaf(tensor, ()), tensor.dtype)
    axes = [None if size == 1 else Axis(size) for size in tensor.shape]
    groups = tuple((a,) if a is not None else () for a in axes)
    return Value(groups, Leaf(tensor, tuple(axes)), tensor.dtype)


def normal(axis: int, rank: int) -> int:
    """The axis counted from the front. Raises `Decline` where it is out of range."""
    if not -rank <= axis < rank:
        raise Decline(f"axis {axis} is out of range for rank {rank}")
    return axis % rank if rank else 0


class Steps:
    """Writes nodes by the rules of their operators, under the name of the source node."""

    def __init__(self, ctx: Context):
        self.ctx, self._count = ctx, 0
        self.env: dict[str, Value] = {}
        self._base = next(o for o in ctx.node.output if o)

    def __call__(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        return self.several(op, 1, *inputs, **attrs)[0]

    def several(self, op: str, count: int, *inputs: Value | None, **attrs: Any) -> list[Value]:
        """The outputs of an operator that has so many. An input that is None is left out."""
        names = []
        for value in inputs:
            names.append(self._name("in") if value is not None else "")
            if value is not None:
                self.env[names[-1]] = value
        outs = [self._name(op) for _ in range(count)]
        node = helper.make_node(op, names, outs, name=self.ctx.node.name or self._base, **attrs)
        self.ctx.visit(node, self.env)
        return [self.env[out] for out in outs]

    def const(self, array: object, dtype: int = TensorProto.INT64) -> Value:
        """A constant as a Value. dtype: an ONNX element type."""
        return from_array(self.ctx.b, np.asarray(array), dtype)

    def ints(self, *values: int) -> Value:
        """Integers as a constant of shape [len(values)]."""
        return self.const(list(values))

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._base}/{what}_{self._count}"


@contextmanager
def lowered(ctx: Context) -> Iterator[Steps]:
    """`Steps` that write operators in place of the node, under its name."""
    with ctx.b.named():
        yield Steps(ctx)
