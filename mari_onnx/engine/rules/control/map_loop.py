"""The body of a Loop, run through the rules once for all iterations (`loop.py` says when that is possible).

In: the body's graph and the Values of what it reads; the iteration number is a symbol. Out: Values for all iterations.
Rows that an iteration reads get an axis for the iterations (`loop_rows.py`). An If in the body becomes a Where, or one
of its branches. A Loop inside that collects the positions at which a mask is true becomes that mask (`Filter`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from mari_onnx.engine.ir.nodes import RANDOM
from mari_onnx.engine.ir.value import Decline, Leaf, Tensor, Value, axes_of
from mari_onnx.engine.rule import Context, constant, from_tensor, normal
from mari_onnx.engine.rules.control.equal_values import equal
from mari_onnx.engine.rules.control.loop_rows import Rows
from mari_onnx.engine.rules.index_series import only, scalar, solved, substitute
from mari_onnx.model.dims import Dim, Size, product, symbols
from mari_onnx.model.nodes import attribute, attributes, operator
from mari_onnx.model.ops import Fact, having, row
from mari_onnx.model.tensors import EXACT, FLOATS

ELEMENTWISE, VIEWS = having(Fact.ELEMENT), having(Fact.VIEW)


@dataclass
class Filter:
    """Positions from ``start``, ``length`` of them, at which a mask is true, as a Loop inside the body finds them.

    symbol: the number of the step, plus one. none, one: stand for the positions found before it, and for those with its
    own. mask: over ``length``, once it is known.
    """

    symbol: str
    start: Size
    length: Size
    none: Value
    one: Value
    mask: Value | None = None

    @property
    def place(self) -> Size:
        """The first position, plus the iteration number."""
        return self.start + Dim.symbol(self.symbol) - 1


@dataclass(eq=False)
class LoopBody:
    """The body of a Loop for all iterations.

    symbol: the iteration number plus one (a size is at least 1). tensor: stands for what only a run could tell; no
    result may depend on it. env: Values by the names of the body's tensors.
    """

    ctx: Context
    symbol: str
    tensor: Tensor
    env: dict[str, Value]
    swap: tuple[str, Size] | None = None
    """A symbol and its value in this branch."""

    def __post_init__(self) -> None:
        self.b = self.ctx.b
        self.conditions: dict[str, tuple[str, Size, Size]] = {}
        self.rows = Rows(self.ctx, self.symbol, self.tensor)
        self.filter: Filter | None = None
        self.guarded = False
        self._found: dict[int, tuple[Value, Filter]] = {}
        self._chosen: dict[int, tuple[Value, Value, Filter]] = {}

    # ---- nodes
    def run(self, graph: GraphProto) -> list[Value]:
        """The outputs of the body, or of a branch in it, for all iterations. Refuses it if a node of it is refused."""
        for proto in graph.initializer:
            self.env[proto.name] = from_tensor(self.b.const(numpy_helper.to_array(proto), proto.data_type))
        # a bag may be written as a Range by its length, which fails at length 0
        before, self.b.shortest = self.b.shortest, 1
        try:
            for node in graph.node:
                self.visit(node)
        finally:
            self.b.shortest = before
        return [self.env[o.name] for o in graph.output]

    def visit(self, node: NodeProto) -> None:
        """Computes one node of the body for all iterations. Refuses random numbers."""
        if node.op_type in RANDOM:
            raise Decline("the body of the Loop draws random numbers")
        values = [self.input(name) for name in node.input if name]
        op = operator(node)
        if op == "If":
            self.choose(node)
            return
        if op == "Loop":
            self.search(node)
            return
        found = self.special(op, node, values)
        if found is not None:
            self.env[node.output[0]] = found
            return
        integers = values and values[0].dtype in EXACT
        if self.guarded and (op not in having(Fact.TOTAL) or (op in having(Fact.NEEDS_NONZERO) and integers)):
            raise Decline(f"only some iterations of the Loop run this {op}, and it could fail in the others")
        hidden = [v for v in values if v.groups is not None and axes_of(v.body) - set(v.axes)]
        if hidden and (op not in having(Fact.CARRIES) or (op == "Gather" and len(hidden) > 1)):
            raise Decline(f"{op} cannot be run on the rows of all iterations of the Loop at once")
        if self.filter is not None and op not in ELEMENTWISE | VIEWS and op != "Constant":
            raise Decline(f"the inner Loop has a {op}, which cannot be run for all its iterations at once")
        self.ctx.visit(node, self.env)
        if row(op).holds:
            left, right = (only(self.b, v) for v in values)
            if left is not None and right is not None:
                self.conditions[node.output[0]] = op, left, right

    def special(self, op: str, node: NodeProto, values: list[Value]) -> Value | None:
        """The result of an operator on the iteration number, a sequence or a `Filter`; None where its rule applies."""
        if op == "SequenceInsert" and len(values) == 2:
            return self.inserted(*values)
        if op == "Slice":
            return self.rows.sliced(self.ctx.on(node, values))
        if op == "Gather":
            inner = self.ctx.on(node, values)
            if id(values[1]) in self._found:
                return self.filtered(values[0], self._found[id(values[1])][1], inner)
            return self.gathered(inner)
        step = self.filter
        if op == "Concat" and step is not None and len(values) == 2 and values[0] is step.none:
            return step.one if only(self.b, values[1]) == step.place else None
        if op == "Size" and id(values[0]) in self._found:
            return self.number(self._found[id(values[0])][1])
        if op.startswith("Reduce") and id(values[0]) in self._chosen:
            _, rows, chosen = self._chosen[id(values[0])]
            return self.reduced(op, node, rows, chosen, values[1:])
        return None

    def input(self, name: str) -> Value:
        """The Value of a tensor that a node reads; within a branch, the iteration number is replaced in its sizes."""
        value = self.env[name]
        if self.swap is not None and value.sym is not None:
            symbol, by = self.swap
            changed = np.frompyfunc(lambda s: substitute(s, symbol, by), 1, 1)(value.sym)
            value = replace(value, sym=np.asarray(changed, dtype=object).reshape(value.sym.shape))
            self.env[name] = value
        return value

    def choose(self, node: NodeProto) -> None:
        """One branch where the condition is known; both, and they must agree, where one iteration takes another.

        Refuses an iteration that differs from the others.
        """
        branches = attributes(node)
        known = constant(self.b, self.input(node.input[0]))
        if known is not None:
            results = self.branch(branches["then_branch" if known.reshape(-1)[0] else "else_branch"], self.swap)
        else:
            op, left, right = self.conditions.get(node.input[0], ("", 0, 0))
            swap = solved(left - right, self.symbol) if op == "Equal" and self.swap is None else None
            if swap is None:
                results = self.either(node, branches)
            else:
                single = self.branch(branches["then_branch"], swap)
                results = self.branch(branches["else_branch"], None)
                if not all(equal(self.b, x, y) for x, y in zip(single, results, strict=True)):
                    raise Decline("one iteration of the Loop takes another branch, with another result")
        self.env.update(zip(node.output, results, strict=True))

    def either(self, node: NodeProto, branches: dict[str, GraphProto]) -> list[Value]:
        """Both branches, and of each element the one that the data asks for.

        Refuses branches that differ in anything but elements.
        """
        condition, before = self.env[node.input[0]], self.guarded
        self.guarded = True
        try:
            pairs = [self.branch(branches[f"{k}_branch"], self.swap) for k in ("then", "else")]
        finally:
            self.guarded = before
        results = []
        for x, y in zip(*pairs, strict=True):
            step = self.filter
            if step is not None and (x is step.one, y is step.none) == (True, True):
                step.mask = condition
                results.append(step.one)
            elif step is not None and (x is step.none, y is step.one) == (True, True):
                step.mask = self.emit("Not", condition)
                results.append(step.one)
            elif (
                x.groups is None
                or y.groups is None
                or x.shape != y.shape
                or x.dtype != y.dtype
                or (step is None and product(condition.shape) != 1)
            ):
                raise Decline("an If in the body of the Loop depends on data")
            else:
                results.append(self.emit("Where", condition, x, y))
        return results

    def emit(self, op: str, *values: Value, **attrs: Any) -> Value:
        """Computes one more operator as if it were a node of the body."""
        names = [f"{self.symbol}/{len(self.env)}/{k}" for k in range(len(values) + 1)]
        self.env.update(zip(names, values, strict=False))
        self.visit(helper.make_node(op, names[:-1], names[-1:], **attrs))
        return self.env[names[-1]]

    def branch(self, graph: GraphProto, swap: tuple[str, Size] | None) -> list[Value]:
        """The outputs of a branch of an If. swap: what the iteration number is within it, as (symbol, size)."""
        outer, self.env, before, self.swap = self.env, dict(self.env), self.swap, swap
        try:
            return self.run(graph)
        finally:
            self.env, self.swap = outer, before

    def gathered(self, ctx: Context) -> Value | None:
        """What a Gather reads at the iteration number, of the Loop or of the Loop inside; None for other indices."""
        x, index, step = ctx.input(0), ctx.input(1), self.filter
        if step is not None and only(self.b, index) == step.place and index.rank == 0 and not ctx.attr("axis", 0):
            return self.rows.row(x, 0, step.start, step.length, False)
        return self.rows.gathered(ctx)

    # ---- a Loop inside that picks positions
    def search(self, node: NodeProto) -> None:
        """``for j in range(start, end): if mask[j]: found = concat(found, j)``: the mask, for all j.

        Refuses any other Loop within a Loop.
        """
        graph = attribute(node, "body")
        _, going, *states = (i.name for i in graph.input)
        op, start, end = self.conditions.get(node.input[1], ("", 0, 0))
        given = [self.input(name) for name in node.input[2:]]
        counters = [k for k, v in enumerate(given) if v.groups is not None and v.rank == 0 and only(self.b, v) == start]
        if node.input[0] or op != "Less" or self.filter or len(given) != 2 or len(counters) != 1:
            raise Decline("the inner Loop does more than collect the positions of a mask")
        (k,) = counters
        empty = constant(self.b, given[1 - k])
        if empty is None or empty.shape != (0,) or given[1 - k].dtype != given[k].dtype:
            raise Decline("the inner Loop does more than collect the positions of a mask")
        mark = [Value(None, Leaf(self.tensor, ()), given[k].dtype) for _ in range(3)]
        step = Filter(f"{self.symbol}.{len(self._found)}", start, end - start, mark[0], mark[1])
        self.b.sources[step.symbol] = self.tensor, 0
        outer, self.env, self.filter = self.env, dict(self.env), step
        self.env[going] = from_tensor(self.b.const(np.asarray(True)))
        self.env[states[k]] = scalar(self.b, step.place, given[k].dtype)
        self.env[states[1 - k]] = step.none
        try:
            results = self.run(graph)
        finally:
            self.env, self.filter = outer, None
        ends = self.conditions.get(graph.output[0].name)
        if ends != ("Less", step.place + 1, end) or only(self.b, results[1 + k]) != step.place + 1:
            raise Decline("the inner Loop does more than collect the positions of a mask")
        if results[2 - k] is not step.one or step.mask is None or self.symbol in symbols(step.length):
            raise Decline("the inner Loop does more than collect the positions of a mask")
        self._found[id(mark[2])] = mark[2], step
        found = [mark[2], mark[2]]
        found[k] = scalar(self.b, end, given[k].dtype)
        self.env.update(zip(node.output, found, strict=True))

    def filtered(self, x: Value, chosen: Filter, ctx: Context) -> Value | None:
        """Stands for the rows at the positions that were found; only a reduction may read it. None along another
        axis than 0.
        """
        if normal(ctx.attr("axis", 0), x.rank) != 0:
            return None
        rows = self.rows.row(x, 0, chosen.start, chosen.length, False)
        mark = Value(None, Leaf(self.tensor, ()), x.dtype)
        self._chosen[id(mark)] = mark, rows, chosen
        return mark

    def number(self, chosen: Filter) -> Value:
        """The number of positions that were found."""
        assert chosen.mask is not None
        mask = self.emit("Cast", chosen.mask, to=TensorProto.INT64)
        return self.emit("ReduceSum", mask, keepdims=0)

    def reduced(self, op: str, node: NodeProto, rows: Value, chosen: Filter, axes: Sequence[Value]) -> Value | None:
        """A reduction over the rows that were found: over all rows, with the operator's neutral value in those not
        found.
        """
        inner = self.ctx.on(node, [rows, *axes])
        over, neutral = inner.axes_arg(1), row(op).neutral
        if over != [0] or neutral is None or chosen.mask is None or rows.dtype not in FLOATS:
            return None
        mask = chosen.mask
        for _ in range(rows.rank - 1):
            shape = from_tensor(self.b.ints([*(int(s) if isinstance(s, int) else -1 for s in mask.shape), 1]))
            mask = self.emit("Reshape", mask, shape)
        rest = from_tensor(self.b.const(neutral, rows.dtype))
        kept = self.emit("Where", mask, rows, rest)
        attrs = attributes(node)
        if op != "ReduceMean":
            return self.emit(op, kept, *axes, **attrs)
        # the mean's axes are an attribute in opsets in which the sum's are an input
        given = [from_tensor(self.b.ints([0]))] if self.ctx.opset >= 13 else []
        attrs = {"keepdims": attrs.get("keepdims", 1)} | ({} if given else {"axes": [0]})
        total = self.emit("ReduceSum", kept, *given, **attrs)
        return self.emit("Div", total, self.emit("Cast", self.number(chosen), to=rows.dtype))

    # ---- sequences
    def inserted(self, sequence: Value, element: Value) -> Value:
        """The sequence with one element per iteration. Refuses a sequence that is not empty before."""
        if sequence.items is not None or not is_empty(sequence):
            raise Decline("the Loop inserts into a sequence more than once")
        return replace(sequence, items=element)


def is_empty(value: Value) -> bool:
    """Whether a sequence is known to have no elements."""
    tensor = value.body.tensor if isinstance(value.body, Leaf) else None
    return tensor is not None and tensor.node is not None and tensor.node.proto.op_type == "SequenceEmpty"
