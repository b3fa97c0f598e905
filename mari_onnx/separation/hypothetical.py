"""A graph like the source, in which some positions of some tensors do not read the candidate. It is counted, never
written as a model.

What such positions hold instead is what they would hold if the candidate's inputs were 0: a second copy of the nodes
that lead there, fed with zeros, of which the other positions are set to 0 behind each mix. So the copy depends on the
user alone, as the user's stream of a separated model does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mari_onnx.engine.ir.value import Decline
from mari_onnx.model.nodes import captures, rename_captures
from mari_onnx.separation.mixes import Mix
from mari_onnx.sides.resolve import Sides

ALONE, WHOLE = "/without candidates", "/as it was"
"""Behind names: of a tensor of the copy, and of a tensor of the source before positions of it are replaced."""


def separated(
    graph: onnx.GraphProto, sides: Sides, apart: Sequence[Mix], dtypes: Mapping[str, int]
) -> onnx.GraphProto:
    """The graph in which the positions of each mix do not read the candidate.

    dtypes: element types of inputs and of the tensors that are mixes.

    Refuses an input of strings.
    """
    return _Copy(graph, sides, apart, dtypes).made()


class _Copy:
    def __init__(self, graph: onnx.GraphProto, sides: Sides, apart: Sequence[Mix], dtypes: Mapping[str, int]):
        self.graph, self.sides, self.dtypes = graph, sides, dtypes
        self.apart = {mix.tensor: mix for mix in apart}
        constants = {p.name for p in graph.initializer}
        names = [i.name for i in graph.input if i.name not in constants]
        self.candidates = [name for name in names if sides.side(name) != "user" and name not in sides.counts]
        self.nodes: list[NodeProto] = []
        self.differs = set(self.candidates)
        """Tensors that depend on the candidate, all of which have a counterpart that does not."""

    def made(self) -> onnx.GraphProto:
        for name in self.candidates:
            columns = self.sides.columns.get(name, {})
            if columns.get("user"):
                size = sum(map(len, columns.values()))
                mix = Mix(name, "", name, 1 - self.sides.candidate_axis, tuple(columns["user"]), size)
                own, rest = self._parts(mix, name, name)
                self._join(mix, own, self._zeros(rest, f"{name}/zeros", self.dtypes[name]), name + ALONE)
            else:
                self._zeros(name, name + ALONE, self.dtypes[name])
        for node in self.graph.node:
            self._node(node)
        found = onnx.GraphProto()
        found.CopyFrom(self.graph)
        del found.node[:], found.value_info[:]
        found.node.extend(self._needed())
        return found

    def _node(self, node: NodeProto) -> None:
        reads = [*node.input, *captures(node)]
        main, alone = NodeProto(), NodeProto()
        main.CopyFrom(node)
        if not self.differs.isdisjoint(reads):
            alone.CopyFrom(node)
            alone.name = (node.name or node.output[0]) + ALONE
            renamed = {name: name + ALONE for name in reads if name in self.differs}
            for i, name in enumerate(node.input):
                alone.input[i] = renamed.get(name, name)
            rename_captures(alone, renamed)
            for i, name in enumerate(node.output):
                alone.output[i] = name and name + ALONE
            self.differs.update(o for o in node.output if o)
            self.nodes.append(alone)
        self.nodes.append(main)
        mix = self.apart.get(node.output[0])
        if mix is not None:
            main.output[0] = mix.tensor + WHOLE
            alone.output[0] = mix.tensor + ALONE + WHOLE
            self._replace(mix)

    def _replace(self, mix: Mix) -> None:
        """Positions of the copy, then the others; in the copy, then zeros."""
        own, rest = self._parts(mix, mix.tensor + ALONE + WHOLE, mix.tensor + WHOLE)
        self._join(mix, own, rest, mix.tensor)
        self._join(mix, own, self._zeros(rest, f"{mix.tensor}/zeros", self.dtypes[mix.tensor]), mix.tensor + ALONE)

    def _parts(self, mix: Mix, own: str, rest: str) -> tuple[str, str]:
        """The positions of one tensor, and the others of another one."""
        others = sorted(set(range(mix.size)) - set(mix.positions))
        return (
            self._add("Gather", mix, f"{mix.tensor}/own", [own, self._ints(mix.positions)]),
            self._add("Gather", mix, f"{mix.tensor}/rest", [rest, self._ints(others)]),
        )

    def _join(self, mix: Mix, own: str, rest: str, name: str) -> None:
        """Both parts in the order of the tensor that they are of."""
        others = sorted(set(range(mix.size)) - set(mix.positions))
        joined = self._add("Concat", mix, f"{name}/joined", [own, rest])
        self._add("Gather", mix, name, [joined, self._ints(np.argsort([*mix.positions, *others]))])

    def _add(self, op: str, mix: Mix, name: str, inputs: Sequence[str]) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{name}/{op}", axis=mix.axis))
        return name

    def _ints(self, values: Iterable[int]) -> str:
        array = np.asarray(list(values), np.int64)
        name = f"positions {' '.join(map(str, array))}"
        if not any(name in node.output for node in self.nodes):
            value = numpy_helper.from_array(array)
            self.nodes.append(helper.make_node("Constant", [], [name], name=name, value=value))
        return name

    def _zeros(self, like: str, name: str, dtype: int) -> str:
        """Zeros of the tensor's shape."""
        if dtype == TensorProto.STRING:
            raise Decline(f"{like} is an input of strings, for which there is no 0")
        value = numpy_helper.from_array(np.zeros(1, helper.tensor_dtype_to_np_dtype(dtype)))
        self.nodes.append(helper.make_node("Shape", [like], [f"{name}/shape"], name=f"{name}/shape"))
        self.nodes.append(helper.make_node("ConstantOfShape", [f"{name}/shape"], [name], name=name, value=value))
        return name

    def _needed(self) -> list[NodeProto]:
        wanted, kept = {o.name for o in self.graph.output}, list[NodeProto]()
        for node in reversed(self.nodes):
            if any(o in wanted for o in node.output):
                kept.append(node)
                wanted.update([*node.input, *captures(node)])
        return kept[::-1]
