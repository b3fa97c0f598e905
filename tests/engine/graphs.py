"""Small test graphs, written node by node, and how to run them.

`Graph` writes a model and knows what its inputs hold. Random expressions are in `drawing.py`, the comparison of a graph
with its rewrite in `checks.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
from hypothesis import strategies as st
from onnx import helper, numpy_helper, printer
from onnx.reference import ReferenceEvaluator

from mari_onnx.sides.resolve import Sides
from tests.engine.foreign import FOREIGN

Size = int | str
Shape = tuple[Size, ...]
Draw = Callable[[st.SearchStrategy[Any]], Any]
N, R = "N", "R"
LENGTHS = {"R": 2, "T": 4}
"""What free dimensions are at run time."""


@dataclass(frozen=True)
class Input:
    """An input of a test graph: "N" in the shape is the candidate axis.

    high: integers from 0 up to below it, as text where dtype is `object`; None: floats.
    """

    side: str | None
    shape: Shape
    dtype: type
    high: int | None = None


class Graph:
    """A model being written: ``g.MatMul(a, b)`` is a node, its result the name of the first output.

    fixed: the literal batch of the export, None for a symbolic one. apart: every tagged input has a batch symbol of
    its own. tag: whether inputs of
    [R, N, ...] graphs are tagged. pool: what was drawn, by shape.
    """

    def __init__(
        self,
        opset: int = 18,
        dtype: type = np.float64,
        axis: int = 0,
        fixed: int | None = None,
        seed: int = 0,
    ):
        self.opset, self.dtype, self.axis, self.fixed = opset, dtype, axis, fixed
        self.rng = np.random.default_rng(seed)
        self.inputs: dict[str, Input] = {}
        self.columns: dict[str, dict[str, tuple[int, ...]]] = {}
        self.initializers: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.outputs: list[str] = []
        self.pool: dict[Shape, list[str]] = {}
        self.tag: bool = True
        self.apart: bool = False
        self._names = itertools.count()

    def __repr__(self) -> str:
        return f"{self.sides}\n{printer.to_text(self.model())}"

    def name(self, base: str = "t") -> str:
        return f"{base}{next(self._names)}"

    # ---- inputs --------------------
    def input(
        self, side: str | None, *shape: Size, high: int | None = None, dtype: type | None = None
    ) -> str:
        name = self.name({"user": "u", "item": "x", "cross": "c"}.get(side or "", "p"))
        kind = dtype or (self.dtype if high is None else np.int64)
        self.inputs[name] = Input(side, shape, kind, high)
        return name

    def user(self, *shape: Size, **how: Any) -> str:
        return self.input("user", N, *shape, **how)

    def item(self, *shape: Size, **how: Any) -> str:
        return self.input("item", N, *shape, **how)

    def packed(self, **columns: Sequence[int]) -> str:
        name = self.input("packed", N, sum(len(c) for c in columns.values()))
        self.columns[name] = {side: tuple(places) for side, places in columns.items()}
        return name

    def const(self, value: Any, dtype: type | None = None) -> str:
        """A constant: integers are of int64, floats of the graph's type, unless a type is given."""
        array = np.asarray(value)
        if dtype is not None or array.dtype.kind == "f":
            array = array.astype(dtype or self.dtype)
        name = self.name("w")
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        return self.const(self.rng.standard_normal(shape))

    # ---- nodes --------------------
    def nodes_of(
        self, op: str, inputs: Sequence[str], outputs: int | Sequence[str], **attrs: Any
    ) -> list[str]:
        names = [self.name() for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self.nodes.append(
            helper.make_node(op, list(inputs), names, name=self.name(f"{op}_"), **attrs)
        )
        return names

    def __getattr__(self, op: str) -> Callable[..., str]:
        if not op[0].isupper():
            raise AttributeError(op)
        return lambda *inputs, **attrs: self.nodes_of(op, inputs, 1, **attrs)[0]

    def _axes(
        self,
        op: str,
        since: int,
        x: str,
        axes: Sequence[int] | None,
        name: str = "axes",
        **attrs: Any,
    ) -> str:
        """An operator whose axes became an input in opset ``since``."""
        if axes is None:
            return getattr(self, op)(x, **attrs)
        if self.opset < since:
            return getattr(self, op)(x, **{name: list(axes)}, **attrs)
        return getattr(self, op)(x, self.const(list(axes), np.int64), **attrs)

    def squeeze(self, x: str, axes: Sequence[int] | None = None) -> str:
        return self._axes("Squeeze", 13, x, axes)

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self._axes("Unsqueeze", 13, x, axes)

    def reduce(
        self, op: str, x: str, axes: Sequence[int] | None, keepdims: int = 1, **attrs: Any
    ) -> str:
        return self._axes(
            f"Reduce{op}", 13 if op == "Sum" else 18, x, axes, keepdims=keepdims, **attrs
        )

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        if self.opset < 13:
            return self.nodes_of("Split", [x], len(sizes), axis=axis, split=list(sizes))
        return self.nodes_of("Split", [x, self.const(list(sizes), np.int64)], len(sizes), axis=axis)

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
        return self.Slice(x, *(self.const([v], np.int64) for v in (start, end, axis, step)))

    def reshape(self, x: str, *sizes: int) -> str:
        return self.Reshape(x, self.const(list(sizes), np.int64))

    def expand(self, x: str, *sizes: int) -> str:
        return self.Expand(x, self.const(list(sizes), np.int64))

    def size(self, x: str, axis: int) -> str:
        """A dimension as an exporter reads it: Shape, Gather, Unsqueeze."""
        return self.unsqueeze(self.Gather(self.Shape(x), self.const(axis, np.int64), axis=0), 0)

    def output(self, *names: str) -> Graph:
        self.outputs += names
        return self

    # ---- the model --------------------
    @property
    def sides(self) -> Sides:
        tagged = {n: i.side for n, i in self.inputs.items() if i.side not in (None, "packed")}
        return Sides(tagged, self.columns, self.axis)  # type: ignore[arg-type]

    def model(self) -> onnx.ModelProto:
        infos = []
        for name, given in self.inputs.items():
            own = f"s_{name}" if self.apart and given.side is not None else N
            shape = [self.fixed or own if d == N else d for d in given.shape]
            infos.append(
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(np.dtype(given.dtype)), shape
                )
            )
        made = self._made(infos, [onnx.ValueInfoProto(name=o) for o in self.outputs])
        made_runner = runner(made)
        runs = [made_runner(self.feeds(n)) for n in ((self.fixed,) * 2 if self.fixed else (3, 7))]
        outputs = []
        for name, a, b in zip(self.outputs, *runs, strict=True):
            dims = [
                p if p == q else f"{name}_{i}"
                for i, (p, q) in enumerate(zip(a.shape, b.shape, strict=True))
            ]
            outputs.append(
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), dims)
            )
        return self._made(infos, outputs)

    def _made(
        self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.initializers)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )

    def feeds(
        self, n: int, once: bool = False, loud: int | None = None, spoilt: int | None = None, request: int = 0
    ) -> dict[str, np.ndarray]:
        """Inputs for n candidates; ``once``: as the new model takes them, one row of the user's.

        loud: the seed of scales up to 1e6 around a number that inputs have in common. spoilt: the seed of a NaN
        in one float input, in the row of a single candidate, or of the user. request: its number, for other values.
        """
        out = {}
        for k, (name, given) in enumerate(self.inputs.items()):
            rng = np.random.default_rng((k, n, request) if request else (k, n))
            user = (
                given.side == "user"
                and self.axis < len(given.shape)
                and given.shape[self.axis] == N
            )
            at = [
                1 if user and i == self.axis else n if d == N else LENGTHS.get(str(d), d)
                for i, d in enumerate(given.shape)
            ]
            shape = [int(d) for d in at]
            if given.high is None:
                values = rng.standard_normal(shape)
                if loud is not None:
                    values = _louder(values, np.random.default_rng((loud, k)), 10.0 ** (loud % 7))
                if spoilt is not None and spoilt % len(self.inputs) == k:
                    values = _spoilt(values, np.random.default_rng(spoilt), min(self.axis, values.ndim - 1))
                array = values.astype(given.dtype)
            else:
                array = rng.integers(0, given.high, shape)
                array = array.astype(str if given.dtype is object else given.dtype).astype(given.dtype)
            if user and not once:
                array = np.repeat(array, n, axis=self.axis)
            if name in self.columns:
                places = list(self.columns[name].get("user", ()))
                array[:, places] = array[:1, places]
            out[name] = array
        return out


def _louder(values: np.ndarray, rng: np.random.Generator, far: float) -> np.ndarray:
    return values * rng.choice((1.0, 1.0, far)) + rng.choice((0.0, far, -far))


def _spoilt(values: np.ndarray, rng: np.random.Generator, axis: int) -> np.ndarray:
    """One element is no number, in the first row along the axis: of a candidate, or the only one of a user."""
    if values.size:
        at = [int(rng.integers(0, size)) for size in values.shape]
        if values.ndim:
            at[axis] = 0
        values[tuple(at)] = np.nan
    return values


# ---- running --------------------


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a model by onnx's reference evaluator; feeds that the model lacks are ignored."""
    return runner(model)(feeds)


def runner(model: onnx.ModelProto) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
    """`run` of one model, to be called several times: the evaluator is made once."""
    wanted, evaluator = {i.name for i in model.graph.input}, ReferenceEvaluator(plain(model), new_ops=FOREIGN)

    def runs(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with np.errstate(all="ignore"):
            return evaluator.run(None, {k: v for k, v in feeds.items() if k in wanted})

    return runs


def ort(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], optimized: bool = False
) -> list[np.ndarray] | None:
    """What onnxruntime answers, as the model is written or optimized; None where it raises."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {i.name for i in session.get_inputs()}
    try:
        return session.run(None, {name: array for name, array in feeds.items() if name in wanted})
    except Exception:  # of pybind, one class an error
        return None


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what the evaluator cannot run: local functions (inlined), sparse constants (written out)."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if not any(a.name == "sparse_value" for node in model.graph.node for a in node.attribute):
        return model
    dense = onnx.ModelProto()
    dense.CopyFrom(model)
    for node in dense.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "sparse_value":
            sparse = node.attribute[0].sparse_tensor
            values = numpy_helper.to_array(sparse.values)
            array = np.zeros(list(sparse.dims), values.dtype)
            array.reshape(-1)[numpy_helper.to_array(sparse.indices)] = values
            node.attribute[0].CopyFrom(helper.make_attribute("value", numpy_helper.from_array(array)))
    return dense
