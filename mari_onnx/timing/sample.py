"""A small graph of one kernel that is timed, and what its node asks for (`kernel_samples`, `ml_samples`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from mari_onnx.model.ops import MICROSOFT, ML
from mari_onnx.prices.kernels import uses
from mari_onnx.prices.use import Call, Use

OPSET = 17
_MAY_BE_IN_PLACE = {"Softmax"}
OPSETS = [helper.make_opsetid("", OPSET), helper.make_opsetid(ML, 3), helper.make_opsetid(MICROSOFT, 1)]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """A node to be timed.

    Attributes:
        op: the operator.
        fed: shapes of float32 inputs.
        constants: further inputs, known when the model is loaded.
        attributes: of the node.
        domain: of the operator.
        outputs: how many.
        in_place: behind an Abs of its own, whose memory its result may take.
    """

    op: str
    fed: tuple[Shape, ...]
    constants: tuple[np.ndarray, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""
    outputs: int = 1
    in_place: bool = False

    def feed(self) -> dict[str, np.ndarray]:
        """Numbers between 0.1 and 0.9, at which every function is defined; of both signs where a kernel branches."""
        rng, least = np.random.default_rng(0), -0.9 if self.op == "PRelu" else 0.1
        return {f"x{i}": rng.uniform(least, 0.9, shape).astype(np.float32) for i, shape in enumerate(self.fed)}

    def model(self, copies: int) -> onnx.ModelProto:
        """The node that many times, each with constants of its own; only the first's result is an output."""
        nodes, weights = [], []
        for k in range(copies):
            names = [f"x{i}" for i in range(len(self.fed))]
            if self.in_place:
                nodes.append(helper.make_node("Abs", ["x0"], [f"a{k}"]))
                names[0] = f"a{k}"
            for i, array in enumerate(self.constants):
                weights.append(numpy_helper.from_array(array, f"w{k}_{i}"))
                names.append(f"w{k}_{i}")
            made = [f"y{k}_{i}" for i in range(self.outputs)]
            nodes.append(helper.make_node(self.op, names, made, domain=self.domain, **self.attributes))
        inputs = [helper.make_tensor_value_info(f"x{i}", T.FLOAT, s) for i, s in enumerate(self.fed)]
        graph = helper.make_graph(nodes, "sample", inputs, [onnx.ValueInfoProto(name="y0_0")], weights)
        return helper.make_model(graph, opset_imports=OPSETS, ir_version=8)

    def use(self) -> Use | None:
        """What the node asks for; None where that is more than one kernel, or shapes cannot be told."""
        model = self.model(1)
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        except onnx.shape_inference.InferenceError:
            return None
        shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
                  for v in (*inferred.value_info, *inferred.output)}  # fmt: skip
        shapes |= {f"x{i}": s for i, s in enumerate(self.fed)}
        if self.op == "NonZero":
            shapes["y0_0"] = (self.constants[0].ndim, int(np.count_nonzero(self.constants[0])))
        shapes |= {f"w0_{i}": a.shape for i, a in enumerate(self.constants)}
        node = model.graph.node[-1]
        first = self.fed[0] if self.fed else self.constants[0].shape
        shapes[node.output[0]] = shapes.get(node.output[0]) or first  # com.microsoft: no inference
        constant = [x.startswith("w") for x in node.input]
        scalar = next((float(a.reshape(())) for a in self.constants[:1] if a.size == 1 and a.dtype.kind in "fi"), None)
        found = uses(Call(node, [shapes.get(x) for x in node.input], [shapes.get(x) for x in node.output], constant,
                          self.in_place or self.op not in _MAY_BE_IN_PLACE, scalar))  # fmt: skip
        return found[0] if len(found) == 1 else None
