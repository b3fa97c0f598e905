"""The floor: a rewritten model with its user part cut away, the values at the cut fed ready made.

What is left is what depends on candidates, so no lossless rewrite of the same operators can run in
less. A tensor of the user alone that was expanded to N rows is fed with its N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx import runtime
from mari_onnx.errors import MariError
from mari_onnx.model.dims import symbols
from mari_onnx.model.nodes import all_graphs, all_nodes
from mari_onnx.model.ops import Fact, having
from mari_onnx.model.signature import Input, signature

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from mari_onnx.engine import Rewrite
    from mari_onnx.sides.resolve import Sides

# onnx-graphsurgeon holds every weight in memory, and protobuf ends at 2 GiB.
_LARGEST = 1_800_000_000


class NoFloor(MariError):
    """The model cannot be cut; the message says why."""


@dataclass
class Floor:
    """A model without its user part.

    Attributes:
        model: what depends on candidates; its inputs are the candidates' and the cut tensors.
        cut: tensors of the rewritten model that are fed to `model`.
        probe: the user's part alone: the inputs of the rewritten model, the cut tensors as outputs.
    """

    model: onnx.ModelProto
    cut: tuple[str, ...]
    probe: onnx.ModelProto
    _session: onnxruntime.InferenceSession | None = field(default=None, repr=False)

    @property
    def inputs(self) -> Sequence[Input]:
        """The inputs of the rewritten model, which `feed` expects."""
        return signature(self.probe).inputs

    def feed(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `model` takes, from what the rewritten model takes."""
        if self.cut and self._session is None:
            self._session = runtime.session(self.probe, what="the model with its cut exposed")
        values: list[Any] = []
        if self._session is not None:
            known = {each.name for each in self._session.get_inputs()}
            fed = {name: array for name, array in feed.items() if name in known}
            values = runtime.run(self._session, fed, "the model with its cut exposed")
        ready = dict(zip(self.cut, values, strict=True))
        wanted = {value.name for value in self.model.graph.input}
        return {name: array for name, array in {**feed, **ready}.items() if name in wanted}


def floor(rewrite: Rewrite, sides: Sides) -> Floor:
    """Cuts the user part off a rewritten model.

    Raises:
        NoFloor: nothing was rewritten, or onnx-graphsurgeon would not carry the graph faithfully.
    """
    if not rewrite.changed:
        raise NoFloor(f"mari-onnx changed nothing: {rewrite.reason}")
    _check_safe(rewrite.model)
    model = _in_memory(rewrite.model)
    parts = _parts(rewrite, sides)
    probe = _with_outputs(model, parts.cut)
    return Floor(_without_user(model, probe, parts, rewrite), parts.cut, probe)


def _in_memory(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or a copy whose weights are all read from disk."""
    import onnx

    from mari_onnx.model.tensors import inline, is_external, tensors

    if not any(map(is_external, tensors(model))):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in filter(is_external, tensors(copy)):
        inline(tensor)
    return copy


def _check_safe(model: onnx.ModelProto) -> None:
    """Refuses what onnx-graphsurgeon loses or changes."""
    from onnx import AttributeProto, TensorProto

    if runtime.weight_bytes(model) > _LARGEST:
        raise NoFloor("the weights are too large to cut the model in memory")
    kinds = {AttributeProto.TYPE_PROTO, AttributeProto.TYPE_PROTOS}
    kinds |= {AttributeProto.GRAPHS, AttributeProto.TENSORS}
    plain = {TensorProto.DataType.Value(name) for name in _PLAIN_TYPES}
    for graph in all_graphs(model.graph):
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type in kinds:
                    raise NoFloor(f"node {node.name!r} has an attribute that onnx-graphsurgeon would lose")
        for tensor in graph.initializer:
            if tensor.data_type not in plain:
                raise NoFloor(f"initializer {tensor.name!r} has a type that onnx-graphsurgeon would change")
    if model.functions:
        raise NoFloor("the model has local functions, which onnx-graphsurgeon does not keep")


_PLAIN_TYPES = (
    *("FLOAT", "FLOAT16", "DOUBLE", "INT8", "INT16", "INT32", "INT64"),
    *("UINT8", "UINT16", "UINT32", "UINT64", "BOOL", "STRING"),
)


@dataclass(frozen=True)
class _Parts:
    """`rows`: tensors that depend on candidates; `cut`: others that those are made of."""

    rows: frozenset[str]
    cut: tuple[str, ...]


def _parts(rewrite: Rewrite, sides: Sides) -> _Parts:
    graph = rewrite.model.graph
    rows = {value.name for value in graph.input if _has_rows(rewrite, sides, value.name)}
    users = {value.name for value in graph.input} - rows
    cut: dict[str, None] = {}
    for node in graph.node:
        inputs = _inputs(node)
        # How many candidates there are is known without looking at one.
        mixed = node.op_type not in having(Fact.SIZES) and any(name in rows for name in inputs)
        if mixed and not _takes_user_row(node, rewrite, sides):
            rows.update(node.output)
            cut.update((name, None) for name in inputs if name in users)
        elif any(name in users or name in rows for name in inputs):
            users.update(node.output)
    return _Parts(frozenset(rows), tuple(cut))


def _inputs(node: onnx.NodeProto) -> list[str]:
    """What a node reads, its subgraphs included."""
    return [name for each in all_nodes([node]) for name in each.input if name]


def _takes_user_row(node: onnx.NodeProto, rewrite: Rewrite, sides: Sides) -> bool:
    """The one row of a packed input from which the user's columns are read."""
    shape = rewrite.out_shapes.get(node.output[0], ())
    return node.op_type == "Slice" and node.input[0] in sides.columns and shape[:1] == (1,)


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """What computes these tensors, as outputs whose types are left to the runtime."""
    import onnx

    needed, nodes = {*names, *(value.name for value in model.graph.input)}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(_inputs(node))
            nodes.append(node)
    probe = runtime.skeleton(model)
    probe.graph.initializer.extend(each for each in model.graph.initializer if each.name in needed)
    del probe.graph.node[:], probe.graph.output[:]
    probe.graph.node.extend(reversed(nodes))
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return probe


def _without_user(
    model: onnx.ModelProto, probe: onnx.ModelProto, parts: _Parts, rewrite: Rewrite
) -> onnx.ModelProto:
    import onnx_graphsurgeon as gs

    graph = gs.import_onnx(model)
    tensors = graph.tensors()
    graph.inputs = [each for each in graph.inputs if each.name in parts.rows]
    for name, dtype in _types(probe, parts.cut).items():
        tensor = tensors[name]
        tensor.inputs.clear()
        tensor.dtype = dtype
        shape = rewrite.out_shapes.get(name)
        if shape is not None:
            tensor.shape = [d if isinstance(d, int) else str(d) for d in shape]
        graph.inputs.append(tensor)
    graph.outputs = [each for each in graph.outputs if each.name in parts.rows]
    if not graph.outputs:
        raise NoFloor("no output depends on candidates")
    graph.cleanup(remove_unused_graph_inputs=True)
    cut: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    return cut


def _has_rows(rewrite: Rewrite, sides: Sides, name: str) -> bool:
    """An input that may differ between candidates; untagged, it is one whose shape counts them."""
    if name in sides.columns:
        return True
    side = sides.side(name)
    if side is not None:
        return side != "user"
    return any("N" in symbols(size) for size in rewrite.shapes.get(name, ()))


def _types(probe: onnx.ModelProto, cut: Sequence[str]) -> dict[str, Any]:
    """Element types of the cut tensors, as onnxruntime infers them."""
    if not cut:
        return {}
    found = {}
    made = runtime.session(probe, what="the model with its cut exposed")
    for each in made.get_outputs():
        name = each.type.removeprefix("tensor(").removesuffix(")")
        try:
            found[each.name] = np.dtype(_NUMPY_NAMES.get(name, name))
        except TypeError as error:
            raise NoFloor(f"tensor {each.name!r}, where the model would be cut, is a {each.type}") from error
    return found


_NUMPY_NAMES = {"float": "float32", "double": "float64"}
