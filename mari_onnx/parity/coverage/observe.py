"""Runs the part of a model that goals look at, with the tensors that they look at as outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError
from mari_onnx.parity.coverage.goals import Goal
from mari_onnx.parity.domains.dependence import reads

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.requests.request import Request

# A part of a model that reads more bytes of weights than this is not run a second time to look into it.
WEIGHTS = 64 * 2**20
_OUTPUT, _TRIPS = "mari_onnx.seen/", "mari_onnx.trips/"
_WHAT = "the part of the model that coverage is measured in"


class Observer:
    """Looks at one model; its goals keep what was seen.

    Args:
        model: only read.
        goals: of this model.
        threads: of onnxruntime.

    Attributes:
        goals: those that can be looked at; others would run too many weights, or do not run.
    """

    def __init__(self, model: onnx.ModelProto, goals: Sequence[Goal], threads: int = 1):
        from mari_onnx import runtime

        kept = _affordable(model, goals)
        self.goals, self._session = kept, None
        if not kept:
            return
        names = list(dict.fromkeys(t for goal in kept for t in goal.tensors))
        try:
            self._session = runtime.session(_part(model, names), optimize=False, threads=threads, what=_WHAT)
        except MariError:
            self.goals = []
            return
        types = {o.name: o.type for o in self._session.get_outputs()}
        self.goals = [g for g in kept if not any("bfloat16" in types[_OUTPUT + t] for t in g.tensors)]
        self._names = list(dict.fromkeys(t for goal in self.goals for t in goal.tensors))

    def look(self, request: Request) -> int:
        """How many things a request met for the first time.

        Raises:
            MariError: the model does not run on it.
        """
        return sum(goal.look(values) for goal, values in self._seen(request))

    def margins(self, request: Request) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """`Goal.margins` of the goals that have them, by their number.

        Raises:
            MariError: the model does not run on the request.
        """
        several = ((k, goal.margins(values, request.n)) for k, (goal, values) in enumerate(self._seen(request)))
        return {k: each for k, each in several if each is not None}

    def _seen(self, request: Request) -> Iterator[tuple[Goal, list[np.ndarray]]]:
        """Goals, each with the tensors that it looks at."""
        from mari_onnx import runtime

        if self._session is None or not self.goals:
            return
        feed = request.feed(self._session.get_inputs())
        found = runtime.run(self._session, feed, _WHAT, [_OUTPUT + t for t in self._names])
        values = dict(zip(self._names, map(np.asarray, found), strict=True))
        for goal in self.goals:
            yield goal, [values[t] for t in goal.tensors]

    @property
    def closer(self) -> bool:
        """Whether the last run came closer to something that is not met."""
        return any(goal.closer for goal in self.goals)

    @property
    def done(self) -> bool:
        return all(goal.done for goal in self.goals)


def _affordable(model: onnx.ModelProto, goals: Sequence[Goal]) -> list[Goal]:
    """Goals whose tensors are computed from few enough weights."""
    sizes = {t.name: int(np.prod(t.dims, dtype=np.int64)) * 4 for t in model.graph.initializer}
    if sum(sizes.values()) <= WEIGHTS:
        return list(goals)
    producer = {o: n for n in model.graph.node for o in n.output if o}
    cones: dict[str, frozenset[str]] = {}
    for node in model.graph.node:  # in topological order: what a tensor is made of is known when it is met
        weights = frozenset().union(
            *(cones.get(t, frozenset((t,)) if t in sizes else frozenset()) for t in reads(node))
        )
        cones.update((o, weights) for o in node.output if o)

    def heavy(tensor: str) -> bool:
        if tensor.startswith(_TRIPS):
            node = next((n for n in model.graph.node if n.op_type == "Loop" and tensor.endswith(n.name)), None)
            return node is None or heavy(node.output[0])
        return tensor in producer and sum(sizes[w] for w in cones[tensor]) > WEIGHTS

    return [goal for goal in goals if not any(map(heavy, goal.tensors))]


def _part(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The nodes that compute tensors, which are its outputs."""
    import onnx

    from mari_onnx.model import tensors as tensors_
    from mari_onnx.parity.coverage.sites import trips_of

    graph = model.graph
    weights = {t.name: t for t in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "Loop" and trips_of(node) in names:
            node = _with_trips(node, trips_of(node))
        nodes.append(node)
    producer = {o: n for n in nodes for o in n.output if o}
    needed: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in needed:
            needed.add(name)
            stack.extend(reads(producer[name]) if name in producer else ())
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = "seen"
    part.graph.node.extend(n for n in nodes if any(o in needed for o in n.output))
    part.graph.input.extend(i for i in graph.input if i.name in needed and i.name not in weights)
    part.graph.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in needed)
    for name in sorted(needed & weights.keys()):
        tensor = part.graph.initializer.add()
        tensor.CopyFrom(weights[name])
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensors_.inline(tensor)
    for name in names:  # what is looked at may be an input: an output must be written by a node
        part.graph.node.append(onnx.helper.make_node("Identity", [name], [_OUTPUT + name]))
        part.graph.output.append(onnx.ValueInfoProto(name=_OUTPUT + name))
    return part


def _with_trips(node: onnx.NodeProto, name: str) -> onnx.NodeProto:
    """A Loop that hands out the number of each trip as well."""
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    body = next(a.g for a in copy.attribute if a.name == "body")
    body.node.append(onnx.helper.make_node("Identity", [body.input[0].name], [name + "/trip"]))
    body.output.append(onnx.helper.make_tensor_value_info(name + "/trip", onnx.TensorProto.INT64, body_shape(body)))
    copy.output.append(name)
    return copy


def body_shape(body: onnx.GraphProto) -> list[int]:
    """The shape that a body declares for the number of its trip: none, or one element."""
    shape = body.input[0].type.tensor_type.shape
    return [1] if len(shape.dim) == 1 else []
