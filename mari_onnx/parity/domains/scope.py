"""A graph and what it sees of the graphs around it: who writes what, small constants, static dimensions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.model.ops import Fact, having

if TYPE_CHECKING:
    import onnx

# Operators that move elements and keep their values.
PASSING = having(Fact.MOVES) - having(Fact.PICKS) - having(Fact.FILLS) | having(Fact.SAME) | having(Fact.CONVERTS)
# Constants above this many elements are not looked into.
SMALL = 4096


@dataclass
class Scope:
    """A graph with what it sees of the graphs around it."""

    graph: onnx.GraphProto
    dims: Mapping[str, Sequence[int | None]]
    constants: dict[str, np.ndarray]
    # A formal input of a body -> the tensors around it that it may be.
    outer: Mapping[str, str] = field(default_factory=dict)
    parent: Scope | None = None

    def __post_init__(self) -> None:
        self.producer = {o: n for n in self.graph.node for o in n.output if o}
        if self.parent is not None:
            self.dims = {**self.parent.dims, **self.dims}
            self.constants = {**self.parent.constants, **self.constants}


def sources(
    tensor: str, scope: Scope, follow: Callable[[onnx.NodeProto], Sequence[str]], constant: bool = False
) -> Iterator[str]:
    """Where the data of a tensor comes from: inputs, tensors of the graphs around, and what `follow` does not see
    through.

    Args:
        follow: the inputs of a node to go on with; none where it ends the search.
        constant: small constants are among the answers.
    """
    seen: set[str] = set()
    stack = [tensor]
    while stack:
        name = stack.pop()
        if name in seen or not name:
            continue
        seen.add(name)
        if name in scope.constants:
            if constant:
                yield name
            continue
        node = scope.producer.get(name)
        further = follow(node) if node is not None and name not in scope.outer else ()
        stack.extend(further)
        if not further:
            yield name


def dims(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Static dimensions of tensors, as far as shape inference knows them."""
    import onnx

    from mari_onnx.runtime import skeleton

    light = skeleton(model)
    for tensor in model.graph.initializer:
        if (
            np.prod(tensor.dims, dtype=np.int64) <= SMALL
            and tensor.data_location == onnx.TensorProto.DEFAULT
        ):
            light.graph.initializer.append(tensor)
        elif tensor.name not in {i.name for i in light.graph.input}:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    # Shapes are a help, not a must: without them fewer tables are known.
    with suppress(Exception):
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    found: dict[str, list[int | None]] = {}
    for value in [*light.graph.value_info, *light.graph.input]:
        if value.type.tensor_type.HasField("shape"):
            shape = value.type.tensor_type.shape.dim
            found[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in shape]
    found.update((t.name, list(t.dims)) for t in model.graph.initializer)
    return found


def constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    import onnx
    from onnx import numpy_helper

    tensors = [
        (t.name, t) for t in graph.initializer if t.data_location == onnx.TensorProto.DEFAULT
    ]
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensors.append((node.output[0], node.attribute[0].t))
    small = {
        k: numpy_helper.to_array(t) for k, t in tensors if np.prod(t.dims, dtype=np.int64) <= SMALL
    }
    for node in graph.node:
        if (
            node.op_type == "Constant"
            and node.attribute
            and node.attribute[0].name in ("value_int", "value_ints")
        ):
            each = node.attribute[0]
            small[node.output[0]] = np.array(
                each.i if each.name == "value_int" else list(each.ints)
            )
    return small
