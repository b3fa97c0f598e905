"""Comparisons inside of the bodies of If, Loop and Scan, handed out so that it can be seen how they come out.

A body may only hand out what has one shape in each run of it, so each comparison is reduced to how often it was true
and how often it was false. A branch of an If that is not taken hands out zeros.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from mari_onnx.model.nodes import attribute, graphs
from mari_onnx.model.ops import Fact, having

PREFIX = "mari_onnx.inner/"
# A negation says nothing that what it negates does not.
COMPARISONS = having(Fact.BOOLEAN) - {"Not"}
# Scan has other inputs before this opset.
_SCAN = 9
# From here on axes are an input.
_AXES = 13
_SCANNED = ("scan_output_axes", "scan_output_directions")


def opened(model: ModelProto) -> ModelProto:
    """A copy whose Ifs, Loops and Scans hand out, for each comparison inside, [.., 2]: how often true, how often false;
    the model itself where there are none. The outputs' names are `PREFIX`, operator and name of the comparison."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    if not any(list(graphs(node)) for node in model.graph.node) or opset < _SCAN:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    _Opener(opset).nodes(copy.graph)
    return copy


class _Opener:
    def __init__(self, opset: int):
        self._opset, self._used = opset, set[str]()

    def nodes(self, graph: GraphProto) -> list[str]:
        """Opens the nodes of a graph that have bodies; the outputs that these got."""
        found: list[str] = []
        for node in list(graph.node):
            bodies = list(graphs(node))
            inner = [[*self._of_body(body), *self._counted(body)] for body in bodies]
            every = [name for names in inner for name in names]
            for body, own in zip(bodies, inner, strict=True):
                for name in every:
                    if name not in own:
                        body.node.append(_constant(f"{name}/none", np.zeros(2, np.float32)))
                    body.output.append(_flag(name if name in own else f"{name}/none"))
            outer = [f"{name}/out" for name in every]
            node.output.extend(outer)
            for each in node.attribute:
                if each.name in _SCANNED:
                    each.ints.extend([0] * len(outer))
            found += outer
        return found

    def _of_body(self, body: GraphProto) -> Iterator[str]:
        """What the nodes of a body hand out, summed over the trips of a Loop: [2]."""
        for name in self.nodes(body):
            pairs, total, to, axis = (f"{name}/{part}" for part in ("pairs", "total", "to", "axis"))
            body.node.extend([_constant(to, np.array([-1, 2])), helper.make_node("Reshape", [name, to], [pairs])])
            if self._opset >= _AXES:
                body.node.append(_constant(axis, np.array([0])))
                body.node.append(helper.make_node("ReduceSum", [pairs, axis], [total], keepdims=0))
            else:
                body.node.append(helper.make_node("ReduceSum", [pairs], [total], axes=[0], keepdims=0))
            yield total

    def _counted(self, body: GraphProto) -> Iterator[str]:
        """Adds nodes that count how often each comparison of a body is true and false."""
        for node in list(body.node):
            to_bool = node.op_type == "Cast" and attribute(node, "to", 0) == TensorProto.BOOL
            if node.op_type not in COMPARISONS and not to_bool:
                continue
            name = f"{PREFIX}{node.op_type}/{node.name or node.output[0]}"
            while name in self._used:
                name += "'"
            self._used.add(name)
            body.node.append(helper.make_node("Not", [node.output[0]], [f"{name}/not"]))
            body.node.append(_constant(f"{name}/to", np.array([1])))
            for given, part in ((node.output[0], "true"), (f"{name}/not", "false")):
                numbers, total, flat = (f"{name}/{part}/{step}" for step in ("numbers", "total", "flat"))
                body.node.append(helper.make_node("Cast", [given], [numbers], to=TensorProto.FLOAT))
                body.node.append(helper.make_node("ReduceSum", [numbers], [total], keepdims=0))
                body.node.append(helper.make_node("Reshape", [total, f"{name}/to"], [flat]))
            body.node.append(helper.make_node("Concat", [f"{name}/true/flat", f"{name}/false/flat"], [name], axis=0))
            yield name


def _constant(name: str, value: np.ndarray) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def _flag(name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])
