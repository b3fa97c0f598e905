"""The new graph while it is being written: tensors, nodes, constants, and the run-time values of symbolic sizes.

The same operator on the same inputs is one node, nodes on constants are computed at once, and nodes that no output
needs are dropped at the end. So rules may write alternatives freely.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.engine.ir.nodes import RANDOM, evaluate, is_random
from mari_onnx.engine.ir.value import Axis, Node, Tensor
from mari_onnx.model.dims import Dim, Size, product, static, symbols
from mari_onnx.model.nodes import attribute, graphs, is_standard, rename_captures
from mari_onnx.model.ops import Fact, row

FOLD_LIMIT = 1 << 16
"""A node on constants is computed at build time if its result has no more elements; a large Expand stays a node."""


@dataclass(frozen=True)
class Quantized:
    """A constant as ``(codes - zero) * scale``. scale, zero: one number, or one for each position along ``axis``."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    axis: int | None


class Builder:
    """Writes the new graph.

    reserved: names of the source graph, subgraphs included, which new tensors must not have by accident.
    time: estimates costs, to choose between two ways to write the same thing.
    """

    def __init__(self, opset: int, reserved: Iterable[str] = (), time: TimeModel | None = None):
        self.opset, self.time = opset, time or TimeModel()
        self.nodes: list[Node] = []
        self.sources: dict[str, tuple[Tensor, int]] = {}
        self.fixed: dict[str, int] = {}
        self.origin = ""
        self.label = "t"
        self.rows = {"N"}
        """Symbols of the candidates, and in the layout [R, N, ..] of the requests."""
        self.requests: Axis | None = None
        """The requests of a run for several; a body may have this axis where its Value has not."""
        self.flat = False
        """Whether the new graph takes the candidates of all requests as the rows of one axis."""
        self.index: Tensor | None = None
        """For each candidate its request, in such a graph."""
        self.few: Tensor | None = None
        """The same, cut to its first entry if there is one request."""
        self.lengths: Tensor | None = None
        """How many candidates each request has, where those of a request stand behind each other, in the order of the
        requests."""
        self.users: Tensor | None = None
        """A tensor with a row for each request: an input, or what tells how many there are."""
        self.gathered_up: set[str] = set()
        """Columns of packed inputs that have a row for each request, put together from rows of candidates."""
        self.of_bags: set[str] = set()
        """Tensors within what is computed from bags of several requests: their rows are not those of bags alone."""
        self.shortest = 0
        """What a dimension of an input, other than the candidates', is at least."""
        self.notes: list[str] = []
        """Why the rule at work left something as it is, though it did not decline."""
        # whether tensors are computed from float inputs (see `finite`)
        self.given: dict[str, bool] = {}
        self.carried = False
        """Whether a NaN of an input stays one up to the outputs."""
        # why a sum is not multiplied term by term (see `cancellation`)
        self.closed: dict[str, str] = {}
        # the tensor that a tensor is a reshape, transposition, range or choice of, so that chains become one node
        self.reshaped: dict[str, Tensor] = {}
        self.transposed: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
        self.cuts: dict[str, tuple[Tensor, int, int]] = {}
        self.picked: dict[str, tuple[Tensor, int, tuple[int, ...]]] = {}
        self.quantized: dict[str, Quantized] = {}
        """Constants of floats that the source has as integers and a scale."""
        self._reserved = set(reserved)
        self._used: set[str] = set()
        self._nodes_used: set[str] = set()
        # how far each base was counted, so that the next name is not looked for from 1 on
        self._counted: dict[tuple[bool, str], int] = {}
        self._memo: dict[object, list[Tensor]] = {}
        self._consts: dict[Any, Tensor] = {}

    # ---- names -----------------------------------------------------------------------------------------------------
    @contextmanager
    def named(self) -> Iterator[None]:
        """A context in which other source nodes may be interpreted; after it, nodes are named after the present one
        again.
        """
        origin, label = self.origin, self.label
        try:
            yield
        finally:
            self.origin, self.label = origin, label

    def unique(self, base: str) -> str:
        """A tensor name that is not in use: `base`, or `base_1`, `base_2`, .."""
        k = self._counted.get((False, base), 0)
        name = f"{base}_{k}" if k else base
        while name in self._used or name in self._reserved:
            k += 1
            name = f"{base}_{k}"
        self._counted[False, base] = k
        self._used.add(name)
        return name

    def _node_name(self, op: str) -> str:
        base = f"{self.origin or self.label}/{op}"
        k = self._counted.get((True, base), 0)
        name = f"{base}_{k}" if k else base
        while name in self._nodes_used:
            k += 1
            name = f"{base}_{k}"
        self._counted[True, base] = k
        self._nodes_used.add(name)
        return name

    # ---- tensors ---------------------------------------------------------------------------------------------------
    def input(self, name: str, dtype: int, shape: tuple[Size, ...] | None, deps: frozenset[str]) -> Tensor:
        """An input of the new graph. deps: the sides that it depends on, of {"user", "item"}."""
        self._used.add(name)
        return Tensor(name, dtype, shape, deps)

    def initializer(self, proto: TensorProto) -> Tensor:
        """A constant of the source, under its own name."""
        self._used.add(proto.name)
        return Tensor(proto.name, proto.data_type, tuple(proto.dims), frozenset(), proto=proto)

    def const(self, array: np.ndarray | Any, dtype: int | None = None) -> Tensor:
        """A constant; equal ones are one tensor. dtype: ONNX element type, where numpy's does not say it."""
        if dtype is not None:
            array = np.asarray(array, dtype=helper.tensor_dtype_to_np_dtype(dtype))
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        elem = dtype if dtype is not None else helper.np_dtype_to_tensor_dtype(array.dtype)
        content: object
        if array.dtype == object:
            content = tuple(array.reshape(-1).tolist())
        else:
            data = array.view(np.uint8).data if array.ndim and array.size else array.tobytes()
            content = hashlib.sha1(data).digest()
        key = (elem, array.shape, content)
        if key not in self._consts:
            name = self.unique(f"{self.label}/const")
            self._consts[key] = Tensor(name, elem, array.shape, frozenset(), array=array)
        return self._consts[key]

    def ints(self, values: Sequence[int]) -> Tensor:
        """A constant of int64, shape [len(values)]."""
        return self.const(np.asarray(values, dtype=np.int64))

    # ---- nodes -----------------------------------------------------------------------------------------------------
    def emit(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        shape: tuple[Size, ...] | None,
        dtype: int | None = None,
        attrs: dict[str, Any] | None = None,
        domain: str = "",
    ) -> Tensor:
        """Writes one node with one output of the given shape (None: unknown rank). dtype: default is the first
        input's.
        """
        attrs = {k: v for k, v in (attrs or {}).items() if v is not None}
        if dtype is None:
            assert inputs[0] is not None
            dtype = inputs[0].dtype
        key = (domain, op, tuple(t.name if t else None for t in inputs), repr(sorted(attrs.items())), dtype)
        if key in self._memo:
            return self._memo[key][0]
        proto = helper.make_node(op, [t.name if t else "" for t in inputs], [""], domain=domain, **attrs)
        out = self._fold(proto, inputs, dtype) or self._append(proto, inputs, [dtype], [shape])[0]
        self._memo[key] = [out]
        return out

    def emit_many(
        self, op: str, inputs: Sequence[Tensor], shapes: Sequence[tuple[Size, ...]], attrs: dict[str, Any]
    ) -> list[Tensor]:
        """Writes one node with an output for each shape, all of the first input's element type."""
        key = (op, tuple(t.name for t in inputs), repr(sorted(attrs.items())), len(shapes))
        if key not in self._memo:
            proto = helper.make_node(op, [t.name for t in inputs], [""] * len(shapes), **attrs)
            self._memo[key] = self._append(proto, inputs, [inputs[0].dtype] * len(shapes), shapes)
        return self._memo[key]

    def copy(
        self,
        node: NodeProto,
        inputs: Sequence[Tensor | None],
        dtypes: Sequence[int],
        shapes: Sequence[tuple[Size, ...] | None],
        captured: Sequence[Tensor] = (),
        renamed: dict[str, str] | None = None,
    ) -> list[Tensor]:
        """Writes the source node on other inputs; attributes, doc string and metadata are kept.

        renamed: new names of the tensors that its subgraphs read, by source name.
        """
        key = None
        if not is_random(node) and not captured and not renamed:
            attributes = b"".join(sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
            names = tuple(t.name if t else None for t in inputs)
            key = (node.domain, node.op_type, node.overload, names, attributes, tuple(bool(o) for o in node.output))
            if key in self._memo:
                return self._memo[key]
        proto = NodeProto()
        proto.CopyFrom(node)
        proto.name = ""
        del proto.input[:]
        proto.input.extend(t.name if t else "" for t in inputs)
        if renamed:
            rename_captures(proto, renamed)
        folded = self._fold(proto, inputs, dtypes[0]) if len(node.output) == 1 and key is not None else None
        outs = [folded] if folded else self._append(proto, inputs, dtypes, shapes, captured)
        if key is not None:
            self._memo[key] = outs
        return outs

    def _append(
        self,
        proto: NodeProto,
        inputs: Sequence[Tensor | None],
        dtypes: Sequence[int],
        shapes: Sequence[tuple[Size, ...] | None],
        captured: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        deps: frozenset[str] = frozenset().union(*(t.deps for t in [*inputs, *captured] if t))
        had = list(proto.output) if any(proto.output) else [self.label] * len(dtypes)
        node = Node(proto, list(inputs), [], self.origin, list(captured), len(self.nodes))
        for i, (dtype, shape) in enumerate(zip(dtypes, shapes, strict=True)):
            name = self.unique(f"{self.label}/{proto.op_type}") if had[i] else ""
            node.outputs.append(Tensor(name, dtype, shape, deps, node=node))
        del proto.output[:]
        proto.output.extend(t.name for t in node.outputs)
        proto.name = proto.name or self._node_name(proto.op_type)
        self.nodes.append(node)
        return node.outputs

    def _fold(self, proto: NodeProto, inputs: Sequence[Tensor | None], dtype: int) -> Tensor | None:
        """The constant that a node on constants computes; None where it is too large, random, or cannot be
        evaluated.
        """
        if not inputs or not dtype or not all(t is None or t.const for t in inputs) or proto.op_type in RANDOM:
            return None
        if not is_standard(proto) or any(graphs(proto)):
            return None
        facts = row(proto.op_type)
        if Fact.DOUBTFUL in facts.facts or self.opset < facts.evaluated_since:
            return None
        limit = max(FOLD_LIMIT, sum(static(product(t.known)) for t in inputs if t))
        if Fact.GROWS in facts.facts:
            limit = FOLD_LIMIT
        try:
            array = evaluate(proto, [t.array if t else None for t in inputs], self.opset)
        except Exception:  # the reference evaluator lacks the operator or element type: it stays a node
            return None
        if array.size > limit:
            return None
        out = self.const(array, dtype)
        if proto.op_type == "DequantizeLinear" or (inputs[0] is not None and inputs[0].name in self.quantized):
            self._remember(proto, inputs, out)
        return out

    def _remember(self, proto: NodeProto, inputs: Sequence[Tensor | None], out: Tensor) -> None:
        """What a constant is as integers, where its node is a DequantizeLinear or moves elements of another one."""
        first = inputs[0]
        assert first is not None
        if proto.op_type == "DequantizeLinear":
            given = [t for t in inputs[1:] if t is not None]
            if all(len(t.known) < 2 for t in given) and not attribute(proto, "block_size", 0):
                one = all(product(t.known) == 1 for t in given)
                axis = None if one else attribute(proto, "axis", 1) % max(1, len(first.known))
                self.quantized[out.name] = Quantized(first, given[0], given[1] if len(given) > 1 else None, axis)
            return
        source = self.quantized[first.name]
        if Fact.MOVES not in row(proto.op_type).facts or len(proto.output) != 1:
            return
        codes = self._fold(proto, [source.codes, *inputs[1:]], source.codes.dtype)
        if codes is None:
            return
        if source.axis is None:
            self.quantized[out.name] = replace(source, codes=codes)
            return
        # which position of the axis each element comes from
        shape = [1] * len(first.known)
        shape[source.axis] = -1
        at = np.arange(static(first.known[source.axis])).reshape(shape)
        places = evaluate(proto, [np.broadcast_to(at, source.codes.array.shape).copy(),
                                  *(t.array if t else None for t in inputs[1:])], self.opset)  # fmt: skip
        for axis in range(places.ndim):
            along = places[tuple(slice(None) if i == axis else slice(0, 1) for i in range(places.ndim))]
            if places.size and np.array_equal(np.broadcast_to(along, places.shape), places):
                chosen = [t if t is None or t.known == (1,) else self.const(t.array[along.reshape(-1)], t.dtype)
                          for t in (source.scale, source.zero)]  # fmt: skip
                assert chosen[0] is not None
                self.quantized[out.name] = Quantized(codes, chosen[0], chosen[1], axis)
                return

    # ---- axes ------------------------------------------------------------------------------------------------------
    def axis(self, size: Size, used: Iterable[Axis] = ()) -> Axis:
        """A new axis; of as many positions as there are requests, the axis of the requests, unless that is used."""
        several = self.requests is not None and size == self.requests.size and self.requests not in used
        return self.requests if several and self.requests is not None else Axis(size)

    # ---- sizes at run time -----------------------------------------------------------------------------------------
    def size(self, size: Size) -> Tensor:
        """A dimension as an int64 tensor of shape [1]; a symbolic one is computed from the shapes of inputs."""
        if isinstance(size, int):
            return self.ints([size])
        total: Tensor | None = None
        for monomial, factor in size.terms.items():
            term: Tensor | None = None
            for name in monomial:
                term = self._times(term, self._symbol(name))
            if term is None or factor != 1:
                term = self._times(term, self.ints([factor]))
            total = term if total is None else self.emit("Add", [total, term], (1,))
        assert total is not None
        return total

    def _times(self, a: Tensor | None, b: Tensor) -> Tensor:
        return b if a is None else self.emit("Mul", [a, b], (1,))

    def _symbol(self, name: str) -> Tensor:
        if name in self.fixed:
            return self.ints([self.fixed[name]])
        tensor, axis = self.sources[name]
        if self.opset >= 15:
            return self.emit("Shape", [tensor], (1,), TensorProto.INT64, {"start": axis, "end": axis + 1})
        shape = self.emit("Shape", [tensor], (len(tensor.known),), TensorProto.INT64)
        return self.emit("Slice", [shape, self.ints([axis]), self.ints([axis + 1]), self.ints([0])], (1,))

    def sizes(self, sizes: Sequence[Size]) -> Tensor:
        """A shape as an int64 tensor of shape [rank]."""
        if all(isinstance(s, int) for s in sizes):
            return self.ints([int(s) for s in sizes if isinstance(s, int)])
        return self.emit("Concat", [self.size(s) for s in sizes], (len(sizes),), attrs={"axis": 0})

    def computable(self, size: Size) -> bool:
        """Whether the run-time values of all symbols in a size can be computed."""
        return all(name in self.sources or name in self.fixed for name in symbols(size))

    def fresh(self, tensor: Tensor, axis: int) -> Dim:
        """A new symbol for a dimension of ``tensor`` that only a run can tell."""
        name = f"?{tensor.name}.{axis}"
        self.sources.setdefault(name, (tensor, axis))
        return Dim.symbol(name)

    def same(self, a: Size, b: Size) -> bool:
        """Whether two dimensions are equal, also by the fixed batch size of the export."""
        if a == b:
            return True
        if not self.fixed:
            return False
        return self.literal(a) == self.literal(b)

    def literal(self, size: Size) -> Size:
        """The size with all symbols of fixed value replaced; an integer where no other is left."""
        return size.substitute(self.fixed) if isinstance(size, Dim) else size

    def least(self, size: Size) -> int | None:
        """The smallest value of a size. The symbols in `rows` are at least 1; a history length or an unknown size
        may be 0.
        """
        size = self.literal(size)
        if isinstance(size, int):
            return size
        total = size.terms.get((), 0)
        for monomial, factor in size.terms.items():
            if not monomial:
                continue
            if factor < 0:
                return None
            unknown = any(name.startswith("?") for name in monomial)
            total += factor if set(monomial) <= self.rows else 0 if unknown else factor * self.shortest
        return total

    def filled(self, size: Size) -> bool:
        """Whether a dimension has at least one position in every run."""
        low = self.least(size)
        return low is not None and low > 0
