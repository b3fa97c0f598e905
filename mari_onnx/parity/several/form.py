"""How an output of `--batched` takes several requests: the inputs of all in one feed, and the outputs apart again.

grid: every input and output has the requests in front. A user's `[N, ..]` or `[1, ..]` is `[R, ..]`, his `[T]` is
`[R, T]`; what has candidates, `[N, ..]`, is `[R, N, ..]`, so that all requests of a run have equally many.
index, offsets: what has candidates has those of all requests, `[P, ..]`, and one more input says whose they are. So
does a source that takes several users and has the index itself (`--index`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from mari_onnx.model.nodes import all_names, free_name, rename_captures
from mari_onnx.model.signature import Input, signature
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.requests.bags import joined, picked

if TYPE_CHECKING:
    from mari_onnx.parity.requests.request import Request
    from mari_onnx.sides.resolve import Sides


class Form:
    """Joins requests and takes outputs apart. layout: of the source for one user, whose sides say how it is batched.

    index: the input that says whose candidates are whose; once: outputs with a row for each request.
    """

    def __init__(self, layout: Layout, model: onnx.ModelProto | None = None, index: Input | None = None):
        self.layout, self.sides = layout, layout.sides
        self.kind = layout.sides.several
        self.flat, self.index = self.kind in ("index", "offsets"), index
        self.once: frozenset[str] = frozenset()
        self.outputs: tuple[Input, ...] = ()
        if model is not None:
            self._declared(model)

    def _declared(self, model: onnx.ModelProto) -> None:
        """What an output model declares: its index, and which outputs have a row for each request."""
        found = signature(model)
        self.outputs = found.outputs
        if self.flat and self.index is None:
            self.index = found.input(self.sides.added or "")
        mine = [i for i in found.inputs if self.layout.is_user(i.name) and i.name not in self.sides.listed]
        requests = {i.shape[0] for i in mine if i.shape}
        self.once = frozenset(o.name for o in found.outputs if o.shape and o.shape[0] in requests - {None})

    def feed(self, requests: Sequence[Request], like: Request | None = None) -> dict[str, np.ndarray]:
        """The inputs of one run for all of these requests, which have the same free dimensions, and in a grid the same
        N.

        Args:
            like: what no request at all has the shapes of.
        """
        given = [*requests] or ([like] if like is not None else [])
        found = {}
        for each in self.layout.signature.inputs:
            arrays = [self._of(request, each.name) for request in given]
            if each.name in self.sides.counts:
                found[each.name] = np.asarray(sum(arrays), arrays[0].dtype) if self.flat else arrays[0]
            elif each.name in self.sides.listed or each.name in self.sides.bags:
                continue
            elif self.flat and each.name in given[0].rows:
                at = self.layout.axis_at(each.name)
                rows = np.concatenate(arrays, at)
                found[each.name] = np.take(rows, self._order(requests), at)
            else:
                found[each.name] = np.stack(arrays)[: len(requests)]
        found |= self._bags(requests, given)
        if self.flat and self.index is not None:
            counts = [r.n for r in requests]
            if self.kind == "offsets":
                value = np.cumsum([0, *counts])
            else:
                value = np.repeat(np.arange(len(counts)), counts)[self._order(requests)]
            found[self.index.name] = value.astype(self.index.dtype).reshape(-1, *self.index.shape[1:])
        return found

    def _bags(self, requests: Sequence[Request], given: Sequence[Request]) -> dict[str, np.ndarray]:
        """Bags of all requests behind each other. given: the requests, or what they would look like if there were."""
        arrays = [request.arrays() for request in given]
        found = joined(arrays, self.layout.bags(user=True))
        of_candidates = self.layout.bags(user=False)
        rows = joined(arrays, of_candidates)
        if self.flat:
            rows = picked(rows, of_candidates, self._order(requests).tolist())
        else:
            rows |= {name: rows[name].reshape(len(given), -1) for name in of_candidates}
        found |= rows
        return found if requests else {name: value[:0] for name, value in found.items()}

    def _order(self, requests: Sequence[Request]) -> np.ndarray:
        """Which of all candidates, request behind request, stand where in a run: with an index, in turns."""
        counts = [r.n for r in requests]
        if self.kind == "offsets":
            return np.arange(sum(counts))
        within = np.concatenate([np.arange(0), *(np.arange(n) for n in counts)])
        return np.argsort(within, kind="stable")

    def apart(self, outputs: Sequence[np.ndarray], requests: Sequence[Request]) -> list[list[np.ndarray]]:
        """For each request its outputs. Raises ValueError where an output has another number of requests, or of
        candidates.
        """
        found: list[list[np.ndarray]] = [[] for _ in requests]
        total = sum(r.n for r in requests)
        back = np.argsort(self._order(requests), kind="stable") if self.flat else np.arange(0)
        ends = np.cumsum([r.n for r in requests])
        for place, output in enumerate(outputs):
            if not self.flat or (self.outputs and self.outputs[place].name in self.once):
                if output.ndim < 1 or len(output) != len(requests):
                    raise ValueError(f"an output of shape {list(output.shape)} is not one of {len(requests)} requests")
                parts = list(output)
            else:
                axis = self._axis(output, place, total)
                each = output.shape[axis] // total
                rows = output.reshape(*output.shape[:axis], total, each, *output.shape[axis + 1 :])
                cut = np.split(np.take(rows, back, axis), ends[:-1], axis)
                shapes = [(*output.shape[:axis], -1, *output.shape[axis + 1 :]) for _ in cut]
                parts = [part.reshape(shape) for part, shape in zip(cut, shapes, strict=True)]
            for mine, part in zip(found, parts, strict=True):
                mine.append(part)
        return found

    def _axis(self, output: np.ndarray, place: int, total: int) -> int:
        """The dimension of an output that has all candidates."""
        names = self.layout.candidate_names
        declared = self.outputs[place].shape if self.outputs else ()
        likely: list[int] = [axis for axis, dim in enumerate(declared) if dim in names]
        likely += [self.layout.axis, *range(output.ndim)]
        for axis in likely:
            if total and output.ndim > axis and output.shape[axis] and output.shape[axis] % total == 0:
                return axis
        raise ValueError(f"an output of shape {list(output.shape)} has not {total} candidates")

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
    """An output of `--batched` with the inputs and outputs of its source, for one request per run; likewise a source
    that takes several users and an index, as one for one user.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph, taken = made.graph, all_names(model.graph)
    opset = next(o.version for o in made.opset_import if o.domain in ("", "ai.onnx"))
    constants = {p.name for p in graph.initializer}
    rowed = form.sides.several != "grid"
    names = {i.name for i in graph.input if i.name not in constants and not (rowed and _has_rows(form, i.name))}
    outer = form.once if rowed else {o.name for o in graph.output}
    names -= {*form.sides.counts, *form.sides.listed, *([form.index.name] if form.index is not None else [])}
    if form.sides.indices:  # inputs that the index does not pick from are as they are
        names = {name for name in names if form.row_axis(name) is not None}
    before: list[onnx.NodeProto] = []
    if form.index is not None:
        before += _all_of_one(made, form, opset, taken)
    renamed = {name: free_name(f"{name}/several", taken) for name in (*sorted(names), *sorted(outer))}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        rename_captures(node, renamed)
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
                name = free_name(f"{info.name}/row", taken)
                before += _reshaped(made, "Squeeze", info.name, name, axis, opset)
        _declare(info, shape)
        last = "Identity" if axis == 0 else "Unsqueeze"
        before += _reshaped(made, last, name, renamed[info.name], 0, opset)
    after = []
    for info in graph.output:
        if info.name not in renamed:
            continue
        shape = [d.dim_value or d.dim_param or None for d in info.type.tensor_type.shape.dim][1:]
        if info.type.tensor_type.HasField("shape"):
            _declare(info, shape)
        after += _reshaped(made, "Squeeze", renamed[info.name], info.name, 0, opset)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return made


def with_index(source: onnx.ModelProto, sides: Sides, output: onnx.ModelProto) -> tuple[Form, onnx.ModelProto]:
    """How a model takes several users whose source has an index of user rows itself, and that source for one user."""
    layout, index = Layout(signature(source), sides), signature(source).input(sides.indices[0])
    form = Form(layout, output, index)
    single = for_one(source, Form(layout, source, index))
    form.layout = Layout(signature(single), replace(sides, indices=()))
    return form, single


def _has_rows(form: Form, name: str) -> bool:
    """Whether an input has a row for each candidate."""
    of_candidates = form.sides.side(name) in ("item", "cross") and name not in form.sides.listed
    return of_candidates or name in form.sides.columns


def _all_of_one(model: onnx.ModelProto, form: Form, opset: int, taken: set[str]) -> list[onnx.NodeProto]:
    """Nodes in the place of the index: all candidates are those of request 0."""
    assert form.index is not None
    graph, index = model.graph, form.index
    (kept,) = [k for k, info in enumerate(graph.input) if info.name == index.name]
    dtype = graph.input[kept].type.tensor_type.elem_type
    del graph.input[kept]
    rows = next(i.name for i in graph.input if _has_rows(form, i.name))
    shape, many = free_name(f"{index.name}/shape", taken), free_name(f"{index.name}/many", taken)
    at, zero = free_name(f"{index.name}/at", taken), free_name(f"{index.name}/zero", taken)
    graph.initializer.append(helper.make_tensor(at, TensorProto.INT64, [1], [form.layout.axis_at(rows)]))
    graph.initializer.append(helper.make_tensor(zero, dtype, [1], [0]))
    nodes = [helper.make_node("Shape", [rows], [shape]), helper.make_node("Gather", [shape, at], [many])]
    if form.kind == "offsets":
        end = free_name(f"{index.name}/end", taken)
        nodes.append(helper.make_node("Cast", [many], [end], to=dtype))
        nodes.append(helper.make_node("Concat", [zero, end], [index.name], axis=0))
        return nodes
    sizes = many
    if len(index.shape) > 1:
        sizes, one = free_name(f"{index.name}/sizes", taken), free_name(f"{index.name}/one", taken)
        graph.initializer.append(helper.make_tensor(one, TensorProto.INT64, [1], [1]))
        nodes.append(helper.make_node("Concat", [many, one], [sizes], axis=0))
    nodes.append(helper.make_node("Expand", [zero, sizes], [index.name]))
    return nodes


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
