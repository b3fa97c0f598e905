"""Tensors whose elements are computed one by one from elements of the inputs and from constants.

Between an input and what reacts to it (a comparison, a tree, a mask) lie operators that move elements or calculate with
constants. They are cut out of the graph, so that `trace.py` can run them alone, without weights and look-ups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.model.nodes import attribute, graphs
from mari_onnx.model.ops import Fact, having
from mari_onnx.parity.domains.scope import SMALL

if TYPE_CHECKING:
    import onnx

# Their first operand is moved, the others are shapes and indices that no input may move.
_MOVING = having(Fact.MOVES) | having(Fact.SAME)
_ONE_BY_ONE = having(Fact.ELEMENT) | having(Fact.PLACEWISE) | having(Fact.TEXT)
# A static tensor of more numbers, or computed by more nodes, is no constant that elements are compared with.
_NUMBERS, _NODES = 2**16, 200
# Trips of a Scan that are looked into.
_TRIPS = 32


class Locals:
    """A graph, flattened, and which of its tensors are local.

    Args:
        model: its large weights may be unloaded external data.
        shapes: concrete shapes of the inputs.

    Attributes:
        nodes: of the main graph and of bodies within it, each after what it reads.
        local: tensors that inputs move, element by element, in the graph's order, inputs first; each with the inputs
            that it is computed from so.
        static: tensors that no input moves, and that can be computed without look-ups.
        foreign: operands of a Concat that are not local, to their concrete shapes.
        known: shapes that shape inference finds.
        readers: tensor -> the nodes that read it.
    """

    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]):
        self.model, self.shapes = model, shapes
        bodies: list[onnx.GraphProto] = []
        self.known, self._types = _inferred(model, shapes)
        self.nodes = list(_flattened(model.graph, bodies, {}, self.known))
        self.weights = {t.name: t for g in [model.graph, *bodies] for t in g.initializer}
        self.inputs = [k for k in shapes if k not in self.weights]
        self.static: set[str] = set(self.weights)
        self.local: dict[str, set[str]] = {name: {name} for name in self.inputs}
        self.foreign: dict[str, tuple[tuple[int, ...], int]] = {}
        # Shapes of what is not local, for they are known all the same.
        self.shapes_of: dict[str, str] = {}
        self.producer: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            self.producer.update((o, node) for o in node.output if o)
            for name in dict.fromkeys(t for t in node.input if t):
                self.readers.setdefault(name, []).append(node)
            self._place(node)

    def _place(self, node: onnx.NodeProto) -> None:
        given = [t for t in node.input if t]
        bodies = any(a.HasField("g") or a.graphs for a in node.attribute)
        if node.op_type in having(Fact.SIZES):
            if given[0] in self.local or given[0] in self.static:
                self.static.update(node.output)
            elif given[0] in self.known:
                self.shapes_of[node.output[0]] = given[0]
                self.static.update(node.output)
            return
        if bodies or node.op_type in having(Fact.RANDOM):
            return
        if all(t in self.static for t in given):
            self.static.update(o for o in node.output if o)
        elif node.op_type in having(Fact.JOINS):
            mine = [t for t in given if t not in self.local and t not in self.static]
            if any(t in self.local for t in given) and all(t in self.known and t in self._types for t in mine):
                self.foreign.update((t, (self.known[t], self._types[t])) for t in mine)
                self._is_local(node)
        elif node.op_type in _MOVING:
            if given[0] in self.local and all(t in self.static for t in given[1:]):
                self._is_local(node)
        elif node.op_type in _ONE_BY_ONE and all(t in self.local or t in self.static for t in given):
            self._is_local(node)

    def _is_local(self, node: onnx.NodeProto) -> None:
        met = set().union(*(self.local[t] for t in node.input if t in self.local))
        self.local.update((o, met) for o in node.output if o)

    def components(self) -> list[set[str]]:
        """Inputs whose elements meet somewhere in the local part, together with those that they meet."""
        groups: list[set[str]] = []
        for met in {frozenset(names) for names in self.local.values()}:
            joined = [group for group in groups if group & met]
            groups = [g for g in groups if not g & met] + [set(met).union(*joined)]
        order = {name: place for place, name in enumerate(self.inputs)}
        return sorted(groups, key=lambda group: min(order[name] for name in group))

    @property
    def computed(self) -> set[str]:
        """Static tensors that a node writes, Constants aside."""
        return {t for t in self.static if t in self.producer and self.producer[t].op_type != "Constant"}

    def cut(self, tensors: list[str]) -> onnx.ModelProto:
        """The part that computes local and static tensors; each is written by an Identity to `mari_onnx/NUMBER`."""
        import onnx
        from onnx import numpy_helper

        from mari_onnx.model import tensors as tensors_

        needed: set[str] = set()
        stack = list(tensors)
        while stack:
            name = stack.pop()
            if name in needed:
                continue
            needed.add(name)
            if name in self.producer and name not in self.foreign and name not in self.shapes_of:
                stack.extend(t for t in self.producer[name].input if t)
        made = onnx.ModelProto(ir_version=self.model.ir_version)
        made.opset_import.extend(self.model.opset_import)
        made.graph.name = "local"
        stopped = self.foreign.keys() | self.shapes_of.keys()
        made.graph.node.extend(n for n in self.nodes if any(o in needed and o not in stopped for o in n.output if o))
        made.graph.input.extend(i for i in self.model.graph.input if i.name in needed and i.name in self.inputs)
        for name in needed & self.foreign.keys():
            shape, dtype = self.foreign[name]
            made.graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, shape))
        for name in needed & self.shapes_of.keys():
            sizes = np.array(self.known[self.shapes_of[name]], np.int64)
            node = self.producer[name]
            if node.op_type == "Size":
                sizes = np.array(sizes.prod())
            else:
                bounds = {a.name: a.i for a in node.attribute}
                sizes = sizes[bounds.get("start", 0) : bounds.get("end")]
            made.graph.initializer.append(numpy_helper.from_array(sizes, name))
        for name in needed & self.weights.keys():
            tensor = made.graph.initializer.add()
            tensor.CopyFrom(self.weights[name])
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                tensors_.inline(tensor)
        for number, name in enumerate(tensors):
            made.graph.node.append(onnx.helper.make_node("Identity", [name], [f"mari_onnx/{number}"]))
            made.graph.output.append(onnx.ValueInfoProto(name=f"mari_onnx/{number}"))
        return made

    def small(self, name: str) -> bool:
        """Whether a static tensor is made of small weights alone, and by few nodes."""
        seen: set[str] = set()
        stack = [name]
        while stack:
            each = stack.pop()
            if each in seen:
                continue
            seen.add(each)
            if len(seen) > _NODES or (
                each in self.weights and np.prod(self.weights[each].dims, dtype=np.int64) > _NUMBERS
            ):
                return False
            if each in self.producer and each not in self.shapes_of:
                stack.extend(t for t in self.producer[each].input if t)
        return True

    def zeros(self) -> dict[str, np.ndarray]:
        """For inputs, and for what stands beside local tensors in a Concat."""
        import onnx

        given = {i.name: i.type.tensor_type.elem_type for i in self.model.graph.input}
        wanted = {**self.foreign, **{name: (self.shapes[name], given[name]) for name in self.inputs}}
        found = {}
        for name, (shape, dtype) in wanted.items():
            kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
            found[name] = np.full(shape, "" if kind.kind == "O" else 0, kind)
        return found


def _flattened(
    graph: onnx.GraphProto,
    bodies: list[onnx.GraphProto],
    scope: Mapping[str, str],
    known: Mapping[str, tuple[int, ...]],
) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the bodies in it, whose own tensors get names of their own; those of a Loop or Scan
    once for each of the first trips."""
    import onnx

    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [scope.get(t, t) for t in node.input]
        copy.output[:] = [scope.get(t, t) for t in node.output]
        for body in graphs(node):
            prefix = f"{node.name or node.output[0]}/body{len(bodies)}/"
            weights = {t.name: prefix + t.name for t in body.initializer}
            renamed = onnx.GraphProto()
            for tensor in body.initializer:
                made = renamed.initializer.add()
                made.CopyFrom(tensor)
                made.name = prefix + tensor.name
            bodies.append(renamed)
            own = [*(i.name for i in body.input), *(o for n in body.node for o in n.output if o)]
            before: dict[str, str] = {}
            for trip in range(trips(copy, known)):
                inner = {**scope, **{t: f"{prefix}{trip}/{t}" for t in own}, **weights}
                yield from _given(copy, body, inner, before, trip)
                yield from _flattened(body, bodies, inner, known)
                before = inner
        yield copy


def trips(node: onnx.NodeProto, known: Mapping[str, tuple[int, ...]]) -> int:
    """How many trips of a Loop or Scan are looked into: of a Scan those that there are for sure, up to a limit."""
    if node.op_type != "Scan":
        return 1
    count = attribute(node, "num_scan_inputs", 0)
    axes = attribute(node, "scan_input_axes") or [0] * count
    lengths = [known[t][axis] for t, axis in zip(list(node.input)[-count:], axes, strict=True) if t in known]
    return max(1, min([_TRIPS, *lengths])) if lengths else 1


def _given(
    node: onnx.NodeProto, body: onnx.GraphProto, inner: Mapping[str, str], before: Mapping[str, str], trip: int
) -> Iterator[onnx.NodeProto]:
    """Nodes that write what a body is given in one trip, as far as that is known."""
    from onnx import helper, numpy_helper

    formal = [inner[i.name] for i in body.input]
    if node.op_type == "Scan":
        scanned = attribute(node, "num_scan_inputs", 0)
        axes = attribute(node, "scan_input_axes") or [0] * scanned
        backwards = attribute(node, "scan_input_directions") or [0] * scanned
        carried, given, results = formal[:-scanned], list(node.input)[:-scanned], list(body.output)
        for name, source, axis, back in zip(formal[-scanned:], node.input[-scanned:], axes, backwards, strict=True):
            at = numpy_helper.from_array(np.array(-1 - trip if back else trip))
            yield helper.make_node("Constant", [], [f"{name}/at"], value=at)
            yield helper.make_node("Gather", [source, f"{name}/at"], [name], axis=axis)
    elif node.op_type in having(Fact.ITERATES):
        for name, number in zip(formal[:2], (np.array(trip), np.array(True)), strict=True):
            yield helper.make_node("Constant", [], [name], value=numpy_helper.from_array(number))
        carried, given, results = formal[2:], list(node.input)[2:], list(body.output)[1:]
    else:
        return
    for name, source, result in zip(carried, given, results, strict=False):
        yield helper.make_node("Identity", [before[result.name] if before else source], [name])


def _inferred(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Shapes and types of tensors, by shape inference from concrete inputs."""
    import onnx

    from mari_onnx.runtime import skeleton

    light = skeleton(model)
    del light.graph.value_info[:]
    for each in light.graph.input:
        if each.name in shapes:
            each.CopyFrom(
                onnx.helper.make_tensor_value_info(each.name, each.type.tensor_type.elem_type, shapes[each.name])
            )
    given = {i.name for i in light.graph.input}
    for tensor in model.graph.initializer:
        inside = tensor.data_location == onnx.TensorProto.DEFAULT
        if inside and np.prod(tensor.dims, dtype=np.int64) <= SMALL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in given:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for each in light.graph.output:  # declared shapes may be symbols that are not concrete now
        each.type.tensor_type.ClearField("shape")
    with suppress(Exception):
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    found, types = {}, {}
    for value in [*light.graph.input, *light.graph.value_info, *light.graph.output]:
        type_ = value.type.tensor_type
        if type_.elem_type:
            types[value.name] = type_.elem_type
        if type_.HasField("shape") and all(d.HasField("dim_value") for d in type_.shape.dim):
            found[value.name] = tuple(d.dim_value for d in type_.shape.dim)
    return found, types
