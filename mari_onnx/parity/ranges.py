"""What values an input may have, read from the graph: which elements are ids and of how many rows.

A Gather, GatherElements, GatherND or OneHot (in the main graph or in the body of a Loop, Scan or
If) is a *sink*: its indices must stay inside its table. The part of the graph between inputs and
indices is cut out and run on a few probes of zeros and ones: which input element moves which index,
by how much and from which offset. So Cast, Slice, Split, Concat, Add, Mod, Reshape, GatherND and
whatever else lies between need no rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from mari_onnx.errors import MariError

if TYPE_CHECKING:
    import onnx

    from mari_onnx.parity.feeds import Layout

_PASSING = {
    "Cast",
    "Identity",
    "Unsqueeze",
    "Squeeze",
    "Reshape",
    "Expand",
    "Flatten",
    "Transpose",
    "Tile",
}
_COMPARING = {"Less", "LessOrEqual", "Greater", "GreaterOrEqual"}
# Larger than any table, exact in float32, and odd.
_BIG = 16_000_001
# Constants above this many elements are not looked into.
_SMALL = 4096
_OUTPUT = "mari_onnx.ids/"


@dataclass(frozen=True)
class Domain:
    """What an input's elements may be.

    Attributes:
        role: "plain", "length" (of a sequence), "mask", or "positive" (under a logarithm or root).
        rows: int64, broadcastable to the input: the number of ids an element may have, 0 where it
            is no id; None where none is.
        size: for a length: its upper bound, where known.
        low: for a length: its lower bound.
    """

    role: str = "plain"
    rows: np.ndarray | None = None
    size: int | None = None
    low: int = 0


@dataclass(frozen=True)
class _Sink:
    """A tensor of the main graph whose elements index `rows` rows."""

    tensor: str
    rows: int


@dataclass
class _Scope:
    """A graph with what it sees of the graphs around it."""

    graph: onnx.GraphProto
    dims: Mapping[str, Sequence[int | None]]
    constants: dict[str, np.ndarray]
    # A formal input of a body -> the tensors around it that it may be.
    outer: Mapping[str, str] = field(default_factory=dict)
    parent: _Scope | None = None

    def __post_init__(self) -> None:
        self.producer = {o: n for n in self.graph.node for o in n.output if o}
        if self.parent is not None:
            self.dims = {**self.parent.dims, **self.dims}
            self.constants = {**self.parent.constants, **self.constants}


def domains(model: onnx.ModelProto, layout: Layout) -> tuple[dict[str, Domain], list[str]]:
    """Domain of every input, and notes on what could not be found out.

    Args:
        model: the source; its large weights may be unloaded external data.
        layout: shapes of the inputs.
    """
    main = _Scope(model.graph, _dims(model), _constants(model.graph))
    found = {each.name: _role(each.name, each.dtype, main) for each in layout.signature.inputs}
    sinks = list(dict.fromkeys(_sinks(main)))
    notes: list[str] = []
    if not sinks:
        return found, notes
    rows = None
    for length in (5, 1):  # of free dimensions: a graph may refuse one
        try:
            rows = _probe(model, layout, sinks, length)
            break
        except MariError as error:
            reason = str(error).splitlines()[0]
    if rows is None:
        notes.append(f"the range of ids could not be found out ({reason}); 0 and 1 are drawn")
        rows = {i.name: np.array(2) for i in layout.signature.inputs if i.dtype.kind in "iu"}
    for name, count in rows.items():
        if found[name].role in ("plain", "positive"):
            found[name] = replace(found[name], rows=count)
    return found, notes


def _dims(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Static dimensions of tensors, as far as shape inference knows them."""
    import onnx

    from mari_onnx.runtime import skeleton

    light = skeleton(model)
    for tensor in model.graph.initializer:
        if (
            np.prod(tensor.dims, dtype=np.int64) <= _SMALL
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


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    import onnx
    from onnx import numpy_helper

    tensors = [
        (t.name, t) for t in graph.initializer if t.data_location == onnx.TensorProto.DEFAULT
    ]
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensors.append((node.output[0], node.attribute[0].t))
    small = {
        k: numpy_helper.to_array(t) for k, t in tensors if np.prod(t.dims, dtype=np.int64) <= _SMALL
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


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _sinks(scope: _Scope) -> Iterator[_Sink]:
    for node in scope.graph.node:
        rows = _table_rows(node, scope)
        if rows is not None:
            yield from (
                _Sink(t, rows)
                for t in _in_main(node.input[0 if node.op_type == "OneHot" else 1], scope)
            )
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            for body in graphs:
                yield from _sinks(_body(node, body, scope))


def _body(node: onnx.NodeProto, body: onnx.GraphProto, scope: _Scope) -> _Scope:
    formal = [i.name for i in body.input]
    actual = list(node.input) if node.op_type in ("Loop", "Scan") else []
    dims = {t.name: list(t.dims) for t in body.initializer}
    return _Scope(body, dims, _constants(body), dict(zip(formal, actual, strict=False)), scope)


def _table_rows(node: onnx.NodeProto, scope: _Scope) -> int | None:
    """Rows of the table that a node looks up in; None where it is no lookup or its size is not
    known."""
    if node.op_type == "OneHot":
        depth = scope.constants.get(node.input[1])
        return None if depth is None else int(depth.reshape(-1)[0])
    if (
        node.op_type not in ("Gather", "GatherElements", "GatherND")
        or node.input[1] in scope.constants
    ):
        return None
    dims = scope.dims.get(node.input[0])
    if dims is None:
        return None
    if node.op_type == "GatherND":
        last = scope.dims.get(node.input[1]) or [None]
        return dims[0] if last[-1] == 1 and _attribute(node, "batch_dims", 0) == 0 else None
    return dims[_attribute(node, "axis", 0)] if dims else None


def _in_main(tensor: str, scope: _Scope) -> Iterator[str]:
    """The tensors of the main graph whose values reach `tensor` of a body, along the data path."""
    if scope.parent is None:
        yield tensor
        return
    seen, stack = set(), [tensor]
    while stack:
        name = stack.pop()
        if name in seen or name in scope.constants:
            continue
        seen.add(name)
        node = scope.producer.get(name)
        if name in scope.outer:
            yield from _in_main(scope.outer[name], scope.parent)
        elif node is None:
            if name not in {i.name for i in scope.graph.input}:
                yield from _in_main(name, scope.parent)
        elif node.op_type in ("Concat", "Add", "Sub", "Where", "Mod"):
            stack.extend(node.input)
        else:  # Slice, Gather, Cast, Reshape, ...: their first input is the data
            stack.append(node.input[0])


def _probe(
    model: onnx.ModelProto, layout: Layout, sinks: Sequence[_Sink], length: int
) -> dict[str, np.ndarray]:
    from mari_onnx.runtime import run, session

    cut, tensors = _cut(model, [s.tensor for s in sinks])
    sinks = [s for s in sinks if s.tensor in tensors]
    used = {i.name for i in cut.graph.input}
    inputs = [i for i in layout.signature.inputs if i.name in used]
    numbers = [i for i in inputs if i.dtype.kind in "iuf"]
    if not sinks or not numbers:
        return {}
    n = layout.fixed_n or 2
    free = dict.fromkeys(layout.free, length)
    shapes = {}
    for each in inputs:
        shape = list(layout.shape(each, n, free))
        if layout.is_user(each.name) and each.shape[layout.axis] != 1:
            shape[layout.axis] = n
        shapes[each.name] = tuple(shape)
    total = sum(int(np.prod(shapes[i.name])) for i in numbers)
    made = session(cut, optimize=False, what="the part of the model that computes ids")
    names = list(dict.fromkeys(s.tensor for s in sinks))

    def answer(elements: np.ndarray) -> dict[str, np.ndarray]:
        feed, start = {}, 0
        for each in inputs:
            shape = shapes[each.name]
            if each.dtype.kind in "iuf":
                size = int(np.prod(shape))
                feed[each.name] = elements[start : start + size].reshape(shape).astype(each.dtype)
                start += size
            else:
                feed[each.name] = np.zeros(shape, each.dtype)
        outputs = [_OUTPUT + name for name in names]
        found = run(made, feed, "the part of the model that computes ids", outputs)
        return {k: np.asarray(v).astype(np.int64) for k, v in zip(names, found, strict=True)}

    zeros = answer(np.zeros(total))
    ones = answer(np.ones(total))
    codes = np.arange(1, total + 1)
    origin = {name: np.zeros(v.shape, np.int64) for name, v in zeros.items()}
    for bit in range(int(total).bit_length()):
        moved = answer((codes >> bit) & 1)
        for name in names:
            origin[name] |= (moved[name] != zeros[name]).astype(np.int64) << bit
    try:
        big, bigger = answer(np.full(total, _BIG)), answer(np.full(total, _BIG + 1))
    except MariError:
        big = bigger = {}
    rows = np.zeros(total, np.int64)
    for sink in sinks:
        at, base = origin[sink.tensor], zeros[sink.tensor]
        slope = ones[sink.tensor] - base
        known = (at > 0) & (at <= total) & (slope != 0)
        offsets = np.unique(base[known])
        following = np.append(offsets[1:], sink.rows)
        limit = np.minimum(
            following[np.searchsorted(offsets, base.clip(None, offsets[-1]))]
            if len(offsets)
            else 0,
            sink.rows,
        )
        high = np.where(slope > 0, (limit - 1 - base) // np.where(slope > 0, slope, 1) + 1, 1)
        if sink.tensor in big:
            far, farther = big[sink.tensor], bigger[sink.tensor]
            inside = (
                (far >= -sink.rows)
                & (far < sink.rows)
                & (farther >= -sink.rows)
                & (farther < sink.rows)
            )
            # Modulo: any id will do; a clip: a little beyond the end.
            high = np.where(
                inside, np.where(far != farther, 3 * sink.rows + 1, sink.rows + 2), high
            )
        for place, count in zip(at[known] - 1, np.maximum(high, 1)[known], strict=True):
            rows[place] = count if rows[place] == 0 else min(rows[place], count)
    found, start = {}, 0
    for each in numbers:
        size = int(np.prod(shapes[each.name]))
        part = rows[start : start + size].reshape(shapes[each.name])
        start += size
        if part.any():
            found[each.name] = _folded(
                part, each.shape, layout.axis if layout.tagged(each.name) else None
            )
    return found


def _folded(rows: np.ndarray, shape: Sequence[int | str | None], axis: int | None) -> np.ndarray:
    """One number where all elements agree, else one along each axis of fixed length."""
    for index, dim in enumerate(shape):
        if not isinstance(dim, int) or index == axis:
            most = np.where(rows > 0, rows, np.iinfo(np.int64).max).min(axis=index, keepdims=True)
            rows = np.where(rows.any(axis=index, keepdims=True), most, 0)
    return rows.reshape(-1)[:1].reshape(()) if (rows == rows.reshape(-1)[0]).all() else rows


def _cut(model: onnx.ModelProto, tensors: Sequence[str]) -> tuple[onnx.ModelProto, set[str]]:
    """The part of the model that computes `tensors` from inputs, and those of them that depend on
    an input."""
    import onnx

    from mari_onnx.model import tensors as tensors_

    graph = model.graph
    producer = {o: n for n in graph.node for o in n.output if o}
    weights = {t.name: t for t in graph.initializer}
    inputs = {i.name: i for i in graph.input if i.name not in weights}
    fed: set[str] = set()  # tensors that depend on an input
    for name in inputs:
        fed.add(name)
    for node in graph.node:
        if any(t in fed for t in _reads(node)):
            fed.update(node.output)
    wanted = {t for t in tensors if t in fed}
    needed, stack = set(), list(wanted)
    while stack:
        name = stack.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in producer:
            stack.extend(_reads(producer[name]))
    cut = onnx.ModelProto(ir_version=model.ir_version)
    cut.opset_import.extend(model.opset_import)
    cut.functions.extend(model.functions)
    cut.graph.name = "ids"
    cut.graph.node.extend(n for n in graph.node if any(o in needed for o in n.output))
    cut.graph.input.extend(v for k, v in inputs.items() if k in needed)
    for name in needed & weights.keys():
        tensor = cut.graph.initializer.add()
        tensor.CopyFrom(weights[name])
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensors_.inline(tensor)
    for name in wanted:
        # An input may itself be the index: an output must be written by a node.
        cut.graph.node.append(onnx.helper.make_node("Identity", [name], [_OUTPUT + name]))
        cut.graph.output.append(onnx.ValueInfoProto(name=_OUTPUT + name))
    return cut, wanted


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """All tensors that a node reads, in its bodies too."""
    yield from (t for t in node.input if t)
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            own = {i.name for i in body.input} | {t.name for t in body.initializer}
            for each in body.node:
                yield from (t for t in _reads(each) if t not in own)
                own.update(each.output)


def _role(name: str, dtype: np.dtype, scope: _Scope) -> Domain:
    """The role of an input by what is done with it first, else by its name."""
    seen, stack = set(), [name]
    role = Domain()
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in scope.graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    while stack:
        tensor = stack.pop()
        seen.add(tensor)
        for node in readers.get(tensor, ()):
            if node.op_type in _PASSING and node.input[0] == tensor:
                stack.extend(o for o in node.output if o not in seen)
            elif node.op_type in _COMPARING and dtype.kind != "b":
                other = node.input[1 - list(node.input).index(tensor)]
                size = _counts_to(other, scope)
                if size is not None:
                    return Domain("length", size=size or None)
            elif node.op_type in ("GRU", "LSTM", "RNN") and tensor in list(node.input)[4:5]:
                return Domain("length", size=(scope.dims.get(node.input[0]) or [None])[0], low=1)
            elif node.op_type in ("Log", "Sqrt") and dtype.kind == "f":
                role = Domain("positive")
    if "mask" in name.lower() or (dtype.kind == "b" and role.role == "plain"):
        return Domain("mask")
    return role


def _counts_to(tensor: str, scope: _Scope) -> int | None:
    """T where a tensor holds 0 to T-1; 0 where it counts to something not known; None where it does
    not count."""
    while tensor in scope.producer and tensor not in scope.constants:
        node = scope.producer[tensor]
        if node.op_type == "Range":
            return 0
        if node.op_type not in _PASSING:
            return None
        tensor = node.input[0]
    values = scope.constants.get(tensor)
    if values is None or values.size < 2 or values.dtype.kind not in "iuf":
        return None
    flat = values.reshape(-1)
    return int(flat.size) if (flat == np.arange(flat.size)).all() else None
