"""How an output of `--batched` takes several requests: the inputs of all in one feed, and the outputs apart again.

grid: every input and output has the requests in front. A user's `[N, ..]` or `[1, ..]` is `[R, ..]`, his `[T]` is
`[R, T]`; what has candidates, `[N, ..]`, is `[R, N, ..]`, so that all requests of a run have equally many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from mari_onnx.model.nodes import all_names, rename_captures
from mari_onnx.model.signature import signature
from mari_onnx.parity.layout import Layout

if TYPE_CHECKING:
    from mari_onnx.parity.requests.request import Request


class Form:
    """Joins requests and takes outputs apart. layout: of the source, whose sides say how the output is batched."""

    def __init__(self, layout: Layout):
        self.layout, self.sides = layout, layout.sides
        self.kind = layout.sides.batched

    def feed(self, requests: Sequence[Request], like: Request | None = None) -> dict[str, np.ndarray]:
        """The inputs of one run for all of these requests, which have the same free dimensions and the same N.

        Args:
            like: what no request at all has the shapes of.
        """
        given = [*requests] or ([like] if like is not None else [])
        found = {}
        for each in self.layout.signature.inputs:
            arrays = [self._of(request, each.name) for request in given]
            found[each.name] = arrays[0] if each.name in self.sides.counts else np.stack(arrays)[: len(requests)]
        return found

    def apart(self, outputs: Sequence[np.ndarray], requests: Sequence[Request]) -> list[list[np.ndarray]]:
        """For each request its outputs. Raises ValueError where an output has another number of requests."""
        for output in outputs:
            if output.ndim < 1 or len(output) != len(requests):
                raise ValueError(f"an output of shape {list(output.shape)} is not one of {len(requests)} requests")
        return [[output[k] for output in outputs] for k in range(len(requests))]

    def _of(self, request: Request, name: str) -> np.ndarray:
        """An input of one request as the output has it, but for the dimension of the requests."""
        value = request.arrays()[name]
        axis = self.row_axis(name)
        return value if axis is None else np.take(value, 0, axis=axis)

    def row_axis(self, name: str) -> int | None:
        """The dimension in which a request has the user's one row, which the output does not have."""
        axis = self.layout.axis_of(name)
        if axis is None or not self.layout.is_user(name) or name in self.layout.whole:
            return None
        return axis if len(self.layout.signature.input(name).shape) > axis else None


def for_one(model: onnx.ModelProto, form: Form) -> onnx.ModelProto:
    """An output of `--batched` with the inputs and outputs of its source, for one request per run."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph, taken = made.graph, all_names(model.graph)
    opset = next(o.version for o in made.opset_import if o.domain in ("", "ai.onnx"))
    constants = {p.name for p in graph.initializer}
    renamed = {i.name: _free(f"{i.name}/several", taken) for i in graph.input if i.name not in constants}
    renamed |= {o.name: _free(f"{o.name}/several", taken) for o in graph.output}
    for name in form.sides.counts:
        renamed.pop(name, None)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        rename_captures(node, renamed)
    before: list[onnx.NodeProto] = []
    declared = {i.name: i for i in signature(model).inputs}
    for info in graph.input:
        if info.name not in renamed:
            continue
        axis = form.row_axis(info.name)
        shape = list(declared[info.name].shape[1:])
        name = info.name
        if axis is not None:
            shape.insert(axis, 1)
            if axis:
                name = _free(f"{info.name}/row", taken)
                before += _reshaped(made, "Squeeze", info.name, name, axis, opset)
        _declare(info, shape)
        last = "Identity" if axis == 0 else "Unsqueeze"
        before += _reshaped(made, last, name, renamed[info.name], 0, opset)
    after = []
    for info in graph.output:
        shape = [d.dim_value or d.dim_param or None for d in info.type.tensor_type.shape.dim][1:]
        if info.type.tensor_type.HasField("shape"):
            _declare(info, shape)
        after += _reshaped(made, "Squeeze", renamed[info.name], info.name, 0, opset)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return made


def _reshaped(
    model: onnx.ModelProto, op: str, source: str, target: str, axis: int, opset: int
) -> list[onnx.NodeProto]:
    """A node that drops or adds one dimension, or none."""
    if op == "Identity":
        return [helper.make_node(op, [source], [target], name=target)]
    if opset < 13:
        return [helper.make_node(op, [source], [target], name=target, axes=[axis])]
    axes = f"{target}/axis"
    model.graph.initializer.append(helper.make_tensor(axes, TensorProto.INT64, [1], [axis]))
    return [helper.make_node(op, [source, axes], [target], name=target)]


def _declare(info: onnx.ValueInfoProto, shape: Sequence[int | str | None]) -> None:
    kind = helper.make_tensor_type_proto(info.type.tensor_type.elem_type, list(shape))
    info.type.CopyFrom(kind)


def _free(base: str, taken: set[str]) -> str:
    name, k = base, 0
    while name in taken:
        k += 1
        name = f"{base}_{k}"
    taken.add(name)
    return name
