"""A graph like the source, in which some positions of some tensors do not read the candidate. It is counted, never
written as a model.

What such positions hold instead is what they would hold if the candidate's inputs were 0: a second copy of the nodes
that lead there, fed with zeros, of which the other positions are set to 0 behind each mix. So the copy depends on the
user alone, as the user's stream of a separated model does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mari_onnx.engine.ir.value import Decline
from mari_onnx.model.nodes import captures, rename_captures
from mari_onnx.separation.mixes import Mix

ALONE, WHOLE = "/without candidates", "/as it was"
"""Behind names: of a tensor of the copy, and of a tensor of the source before positions of it are replaced."""


def separated(graph: onnx.GraphProto, candidates: Iterable[str], apart: Sequence[Mix]) -> onnx.GraphProto:
    """The graph in which the positions of each mix do not read the candidate.

    candidates: inputs that depend on the candidate.

    Refuses an input of strings.
    """
    return _Copy(graph, frozenset(candidates), apart).made()


class _Copy:
    def __init__(self, graph: onnx.GraphProto, candidates: frozenset[str], apart: Sequence[Mix]):
        self.graph, self.candidates = graph, candidates
        self.apart = {mix.tensor: mix for mix in apart}
        self.dtypes = {i.name: i.type.tensor_type.elem_type for i in graph.input}
        self.nodes: list[NodeProto] = []
        self.differs = set(candidates)
        """Tensors that depend on the candidate, all of which have a counterpart that does not."""

    def made(self) -> onnx.GraphProto:
        for name in sorted(self.candidates):
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
        others = sorted(set(range(mix.size)) - set(mix.positions))
        order = np.argsort([*mix.positions, *others])
        own = self._add("Gather", mix, "own", [mix.tensor + ALONE + WHOLE, self._ints(mix.positions)])
        rest = self._add("Gather", mix, "rest", [mix.tensor + WHOLE, self._ints(others)])
        zeros = self._zeros(rest, f"{mix.tensor}/zeros")
        for end, part in (("", rest), (ALONE, zeros)):
            joined = self._add("Concat", mix, "joined" + end, [own, part])
            self.nodes.append(helper.make_node("Gather", [joined, self._ints(order)], [mix.tensor + end],
                                               name=f"{mix.tensor}{end}/ordered", axis=mix.axis))  # fmt: skip

    def _add(self, op: str, mix: Mix, what: str, inputs: Sequence[str]) -> str:
        name = f"{mix.tensor}/{what}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, axis=mix.axis))
        return name

    def _ints(self, values: Iterable[int]) -> str:
        array = np.asarray(list(values), np.int64)
        name = f"positions {' '.join(map(str, array))}"
        if not any(name in node.output for node in self.nodes):
            value = numpy_helper.from_array(array)
            self.nodes.append(helper.make_node("Constant", [], [name], name=name, value=value))
        return name

    def _zeros(self, like: str, name: str, dtype: int = TensorProto.FLOAT) -> str:
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
