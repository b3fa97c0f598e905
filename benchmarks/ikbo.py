"""A model by the method of Meta's IKBO, written in ONNX: the user's part is computed on one row per request, and
gathered by an index per candidate where candidates meet it.

IKBO (FBGEMM `fbgemm_gpu/experimental/ikbo`) splits a product over features of both sides, `[u|x] W = u W_u + x W_x`,
and reads the user's row of `u W_u` by index, in kernels that are called by hand. Here every MatMul or Gemm right behind
a Concat of both sides (or fields that are joined and flattened) is split so. Any other tensor of the user that
candidates meet is gathered as it is, and all behind it runs on N rows. Nothing is moved through other operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from mari_onnx.model.nodes import all_nodes, attribute
from mari_onnx.parity.work import shapes_of
from mari_onnx.sides.resolve import Sides

Feed = Mapping[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


class NotForThisModel(Exception):
    """IKBO cannot be written for a model; the message says why."""


def ikbo(model: onnx.ModelProto, sides: Sides, few: Feed, more: Feed) -> onnx.ModelProto:
    """The model by IKBO; its user inputs have one row.

    Args:
        few, more: the same request as the source takes it, with different numbers of candidates: what differs in size
            between the two runs is the candidate axis.

    Raises:
        NotForThisModel: no separate user inputs, or they are met within a subgraph.
    """
    if sides.columns or not any(side == "user" for side in sides.inputs.values()):
        raise NotForThisModel("it has no separate user inputs")
    return _Writer(model, sides, shapes_of(model, few), shapes_of(model, more)).written()


class _Writer:
    """A new graph in the making.

    alone: tensors that depend on user inputs and on nothing else of a request. made: nodes of the new graph.
    wide: tensor that is alone -> its name with N rows.
    """

    def __init__(self, model: onnx.ModelProto, sides: Sides, few: Shapes, more: Shapes):
        self.model, self.sides, self.few, self.more = model, sides, few, more
        graph = model.graph
        self.inputs = {i.name for i in graph.input} - {t.name for t in graph.initializer}
        self.users = {name for name in self.inputs if sides.side(name) == "user"}
        self.weights = {t.name: t for t in graph.initializer}
        self.maker = {name: node for node in graph.node for name in node.output}
        self.alone, others = set(self.users), self.inputs - self.users
        for node in graph.node:
            read = _reads(node)
            if read & others:
                others.update(node.output)
            elif read & self.alone:
                self.alone.update(node.output)
        self.made: list[NodeProto] = []
        self.more_weights: list[onnx.TensorProto] = []
        self.wide: dict[str, str] = {}
        self.index, self.n = "", (0, 0)

    def written(self) -> onnx.ModelProto:
        """The whole model."""
        graph = self.model.graph
        if any(o.name in self.alone for o in graph.output):
            raise NotForThisModel("an output is of the user alone")
        self._write_index()
        for node in graph.node:
            if set(node.output) <= self.alone:
                self.made.append(node)
            elif not self._split(node):
                self.made.append(self._on_rows(node, {}))
        new = onnx.ModelProto()
        new.CopyFrom(self.model)
        del new.graph.node[:], new.graph.value_info[:]
        new.graph.node.extend(_live(self.made, {o.name for o in graph.output}))
        new.graph.initializer.extend(self.more_weights)
        for each in new.graph.input:
            if each.name in self.users and (dims := each.type.tensor_type.shape.dim):
                dims[self.sides.candidate_axis].dim_value = 1
        return new

    def _write_index(self) -> None:
        """Which user each candidate belongs to: int64 zeros `[N]`, as there is one user."""
        axis = self.sides.candidate_axis
        rows = next((n for n in self.inputs - self.users if len(self.few.get(n, ())) > axis), None)
        if rows is None:
            raise NotForThisModel("no input has a row per candidate")
        self.n = (self.few[rows][axis], self.more[rows][axis])
        count = self._emit("Shape", [rows], start=axis, end=axis + 1)
        zero = numpy_helper.from_array(np.zeros(1, np.int64))
        self.index = self._emit("ConstantOfShape", [count], value=zero)

    def _on_rows(self, node: NodeProto, renamed: Mapping[str, str]) -> NodeProto:
        """A node that reads tensors with N rows."""
        if any(name in self.alone for name in _reads(node) - set(node.input)):
            raise NotForThisModel("a subgraph reads a tensor of the user")
        copy = NodeProto()
        copy.CopyFrom(node)
        if renamed:
            copy.name += "/wide"
        copy.input[:] = [self._wide(name) if name in self.alone else name for name in node.input]
        copy.output[:] = [renamed.get(name, name) for name in node.output]
        return copy

    def _wide(self, name: str) -> str:
        """A tensor of the user with N rows: gathered, or, where none of its axes is N, computed anew from such."""
        if name not in self.wide:
            axis = self._axis(name)
            if axis is not None:
                self.wide[name] = self._emit("Gather", [name, self.index], axis=axis)
            elif name in self.users:
                self.wide[name] = name
            else:
                node = self.maker[name]
                renamed = {each: f"{each}/wide" for each in node.output}
                self.made.append(self._on_rows(node, renamed))
                self.wide |= renamed
        return self.wide[name]

    def _axis(self, name: str) -> int | None:
        """The axis on which a tensor has as many rows as there are candidates."""
        few, more = self.few.get(name), self.more.get(name)
        if few is None or more is None:
            raise NotForThisModel(f"the shape of {name!r} is not known")
        apart = [i for i, (a, b) in enumerate(zip(few, more, strict=True)) if a != b]
        return apart[0] if len(apart) == 1 and (few[apart[0]], more[apart[0]]) == self.n else None

    def _split(self, node: NodeProto) -> bool:
        """Writes a product over a Concat of both sides as two, the user's gathered; False where `node` is none."""
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in self.weights:
            return False
        if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
            return False
        pieces = self._pieces(node.input[0])
        user = [i for i, name in enumerate(pieces) if name in self.alone]
        axes = {self._axis(pieces[i]) for i in user}
        weight = numpy_helper.to_array(self.weights[node.input[1]])
        if not user or len(user) == len(pieces) or None in axes or len(axes) > 1 or weight.ndim != 2:
            return False
        weight = weight.T if attribute(node, "transB", 0) else weight
        ends = np.cumsum([self.few[name][-1] for name in pieces])
        rows = [np.arange(end - self.few[name][-1], end) for end, name in zip(ends, pieces, strict=True)]
        flat = len(self.few[node.input[0]]) == 2
        bias = list(node.input[2:3])

        def product(picked: Sequence[int], *add: str) -> str:
            x = self._emit("Concat", [pieces[i] for i in picked], axis=-1) if len(picked) > 1 else pieces[picked[0]]
            w = self._weight(weight[np.concatenate([rows[i] for i in picked])])
            if flat:
                return self._emit("Gemm", [x, w, *add])
            y = self._emit("MatMul", [x, w])
            return self._emit("Add", [y, *add]) if add else y

        (axis,) = axes
        once = self._emit("Gather", [product(user, *bias), self.index], axis=axis)
        product([i for i in range(len(pieces)) if i not in user], once)
        self.made[-1].output[0] = node.output[0]
        return True

    def _pieces(self, name: str) -> list[str]:
        """What a Concat on the last axis puts side by side, nested ones taken apart; and fields `[N, F, D]` or
        `[N, 1, D]` that a Concat joins and a Reshape makes `[N, F D]`.
        """
        node = self.maker.get(name)
        if node is None or name in self.alone:
            return [name]
        if node.op_type in ("Reshape", "Flatten") and self._axis(name) == 0 and len(self.few[name]) == 2:
            inner = self.maker.get(node.input[0])
            if inner is not None and inner.op_type == "Concat" and self._axis(node.input[0]) == 0:
                shape = self.few[node.input[0]]
                if all(size == 1 for size in shape[1 : attribute(inner, "axis") % len(shape)]):
                    return [self._flat(each) for each in inner.input]
        if node.op_type != "Concat" or attribute(node, "axis") not in (-1, len(self.few[name]) - 1):
            return [name]
        return [piece for each in node.input for piece in self._pieces(each)]

    def _flat(self, name: str) -> str:
        """A tensor `[N, ..]` with all other axes as one."""
        flat = self._emit("Flatten", [name])
        for shapes in (self.few, self.more):
            n, *rest = shapes[name]
            shapes[flat] = (n, int(np.prod(rest)))
        if name in self.alone:
            self.alone.add(flat)
        return flat

    def _emit(self, op: str, inputs: Sequence[str], **attributes: object) -> str:
        name = f"ikbo/{op.lower()}_{len(self.made)}"
        self.made.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def _weight(self, array: np.ndarray) -> str:
        name = f"ikbo/weight_{len(self.more_weights)}"
        self.more_weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


def _reads(node: NodeProto) -> set[str]:
    """What a node reads, its subgraphs included."""
    return {name for each in all_nodes([node]) for name in each.input if name}


def _live(nodes: Sequence[NodeProto], needed: set[str]) -> list[NodeProto]:
    """The nodes that these tensors need."""
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= _reads(node)
            kept.append(node)
    return kept[::-1]
