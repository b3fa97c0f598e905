"""Small graphs between user and item tensors: written or drawn, rewritten, compared in float64.

`Graph` writes a model and knows how its inputs are drawn; `tensor` draws a random expression of a
given shape; `check` rewrites a graph and compares it with its source by onnx's reference evaluator.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
from hypothesis import strategies as st
from onnx import helper, numpy_helper, printer
from onnx.reference import ReferenceEvaluator

from mari_onnx import engine
from mari_onnx.engine import Options, Rewrite, rewrite
from mari_onnx.engine.cost.flops import Cost
from mari_onnx.sides.resolve import Sides

Size = int | str
Shape = tuple[Size, ...]
Draw = Callable[[st.SearchStrategy[Any]], Any]
N, R = "N", "R"
OPSETS = (11, 13, 17, 18, 20, 21)
COUNTS = (1, 3, 7)
LENGTHS = {"R": 2, "T": 4}
"""What free dimensions are at run time."""


@dataclass(frozen=True)
class Input:
    """An input of a test graph: "N" in the shape is the candidate axis. high: integers below it; None: floats."""

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
        runs = [run(made, self.feeds(n)) for n in ((self.fixed,) * 2 if self.fixed else (3, 7))]
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
        self, n: int, once: bool = False, loud: int | None = None, spoilt: int | None = None
    ) -> dict[str, np.ndarray]:
        """Inputs for n candidates; ``once``: as the new model takes them, one row of the user's.

        loud: the seed of scales up to 1e6 around a number that inputs have in common. spoilt: the seed of a NaN
        in one float input, in the row of a single candidate, or of the user.
        """
        out = {}
        for k, (name, given) in enumerate(self.inputs.items()):
            rng = np.random.default_rng((k, n))
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
                array = rng.integers(0, given.high, shape).astype(given.dtype)
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


# ---- running and comparing --------------------


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    wanted = {i.name for i in model.graph.input}
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(plain(model)).run(None, {k: v for k, v in feeds.items() if k in wanted})


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


@contextmanager
def unweighed() -> Iterator[None]:
    """Rewrites are kept though they save nothing, so the source is not compared with itself."""
    costs = itertools.cycle((Cost(1.0), Cost(0.0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_cost", lambda *_: next(costs))
        patch.setattr(engine, "GROWTH", float("inf"))
        yield


def check(
    g: Graph,
    counts: Sequence[int] = COUNTS,
    candidates: int = 500,
    weighed: bool = False,
    tolerance: float = 1e-9,
    skip: frozenset[str] = frozenset(),
    expect: Expected | None = None,
) -> Rewrite:
    """Rewrite, and compare with the source at each N. Answers the rewrite.

    expect: what has to have become of every node beside, so that a rule that only ever declines fails the test:
        "batched": no node was merely copied on inputs that are written out
        "split": the same, and an operator was taken apart into the user's part and the candidates'
        "lifted": the same as "batched", and nothing of the user's part is computed for each candidate
    """
    source = g.model()
    onnx.checker.check_model(source)
    before = source.SerializeToString(deterministic=True)
    options = Options(candidates=candidates, skip=skip)
    if weighed:
        result = rewrite(source, g.sides, options)
    else:
        with unweighed():
            result = rewrite(source, g.sides, options)
    assert source.SerializeToString(deterministic=True) == before, "the source was written to"
    onnx.checker.check_model(result.model)
    for what, was, new in (
        ("inputs", source.graph.input, result.model.graph.input),
        ("outputs", source.graph.output, result.model.graph.output),
    ):
        before_, after = ([(i.name, i.type.tensor_type.elem_type) for i in each] for each in (was, new))
        assert before_ == after, f"names, order or types of the {what} changed: {before_} -> {after}"
    for n in (g.fixed,) if g.fixed else counts:
        want = run(source, g.feeds(n))
        have = run(result.model, g.feeds(n, once=result.changed))
        for name, a, b in zip(g.outputs, want, have, strict=True):
            same(a, b, tolerance, f"output {name!r} at N={n}")
    if expect is not None:
        expected(g, result, expect)
    return result


Expected = Literal["batched", "split", "lifted"]


def expected(g: Graph, result: Rewrite, expect: Expected) -> None:
    """Fails, with a line for each node that is not what `check` was told to expect."""
    copied = [r for r in result.nodes if r.rule == "default" or r.action == "barrier"]
    lines = [f"  {r.op} {r.name!r} was only copied: {r.reason or 'no reason given'}" for r in copied]
    assert not lines, "\n".join([f"expected {expect}, but", *lines])
    if expect == "split":
        found = [f"  {r.op} {r.name!r}: {r.action}, rule {r.rule}" for r in result.nodes]
        assert any(r.action == "split" for r in result.nodes), "\n".join(["no operator was split:", *found])
    if expect == "lifted":
        lifted(g, result)


def same(want: np.ndarray, have: np.ndarray, tolerance: float, where: str) -> None:
    """Fails where shapes, types or values differ by more than the tolerance, and says where and by how much."""
    assert want.shape == have.shape, f"{where}: the rewrite has shape {have.shape}, the source {want.shape}"
    assert want.dtype == have.dtype, f"{where}: the rewrite has type {have.dtype}, the source {want.dtype}"
    scale = (
        max(1.0, float(np.abs(want[np.isfinite(want)]).max(initial=0)))
        if want.dtype.kind == "f"
        else 0
    )
    np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance * scale, err_msg=where)


# ---- what is left to do for each candidate --------------------


def traced(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of a run."""
    open_ = onnx.ModelProto()
    open_.CopyFrom(model)
    del open_.graph.output[:]
    names = [o for node in model.graph.node for o in node.output if o]
    open_.graph.output.extend(onnx.ValueInfoProto(name=o) for o in names)
    found = dict(zip(names, run(open_, feeds), strict=True))
    found.update({i.name: numpy_helper.to_array(i) for i in model.graph.initializer})
    return found | dict(feeds)


def macs(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> int:
    """Multiply-adds of the products of a run."""
    seen = traced(model, feeds)
    total = 0
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            inner = seen[node.input[0]].shape[
                0 if any(a.name == "transA" and a.i for a in node.attribute) else -1
            ]
            total += seen[node.output[0]].size * inner
        assert node.op_type not in ("Einsum", "Conv"), "not counted here"
    return total


def macs_each(g: Graph, result: Rewrite) -> float:
    """Multiply-adds of products that one more candidate costs."""
    few, many = (macs(result.model, g.feeds(n, once=result.changed)) for n in (3, 7))
    return (many - few) / 4


MOVES = {
    "Expand",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Concat",
    "Split",
    "Identity",
    "Flatten",
}


def repeated(g: Graph, result: Rewrite) -> list[str]:
    """Operators on the user's data alone that compute the more, the more candidates there are."""
    mine = {n for n, i in g.inputs.items() if i.side != "user"}
    few, many = (traced(result.model, g.feeds(n, once=result.changed)) for n in (3, 7))
    free: set[str] = {n for n, i in g.inputs.items() if i.side == "user"}
    found = []
    for node in result.model.graph.node:
        if node.op_type in ("Shape", "Size"):
            continue
        if any(i in mine for i in node.input):
            mine.update(node.output)
        elif any(i in free for i in node.input):
            free.update(node.output)
            if node.op_type not in MOVES and any(
                few[o].shape != many[o].shape for o in node.output if o
            ):
                shape = list(many[node.output[0]].shape)
                found.append(f"{node.op_type} {node.name!r} {shape} at 7 candidates")
    return found


def lifted(g: Graph, result: Rewrite | None = None, per_candidate: int | None = None) -> Rewrite:
    """Checked, and nothing of the user's part is computed again for each candidate."""
    result = result or check(g)
    assert result.changed, f"the model was left as it is: {result.reason}"
    again = repeated(g, result)
    why = "".join(f"\n  {r.op} {r.name!r} was only copied: {r.reason}" for r in result.nodes if r.rule == "default")
    assert not again, f"computed again for each candidate, though they read user inputs only: {', '.join(again)}{why}"
    if per_candidate is not None:
        each = macs_each(g, result)
        assert each == per_candidate, (
            f"one more candidate costs {each:g} multiply-adds in products, and {per_candidate} were expected:\n"
            f"{products(g, result)}"
        )
    return result


def products(g: Graph, result: Rewrite) -> str:
    """The products of a rewrite, a line each: operator, name, shapes at N = 7."""
    seen = traced(result.model, g.feeds(7, once=result.changed))
    rows = [n for n in result.model.graph.node if n.op_type in ("MatMul", "Gemm")]
    shown = [(n, *(list(seen[x].shape) for x in (n.input[0], n.input[1], n.output[0]))) for n in rows]
    return "\n".join(f"  {n.op_type} {n.name!r}: {a} x {b} -> {out}" for n, a, b, out in shown) or "  none"


def actions(result: Rewrite) -> dict[str, list[str]]:
    """Actions by operator of the source."""
    found: dict[str, list[str]] = {}
    for report in result.nodes:
        found.setdefault(report.op, []).append(report.action)
    return found


def reasons(result: Rewrite) -> dict[str, list[str]]:
    """Reasons by operator of the source; "" for a node that has none."""
    found: dict[str, list[str]] = {}
    for report in result.nodes:
        found.setdefault(report.op, []).append(report.reason or "")
    return found


# ---- drawing --------------------


@st.composite
def starts(draw: Draw, opsets: Sequence[int] = OPSETS, requests: bool = False) -> Graph:
    """requests: tensors are [R, N, ...], the candidate axis is 1, and inputs are tagged or not."""
    g = Graph(draw(st.sampled_from(opsets)), seed=draw(st.integers(0, 3)), axis=int(requests))
    g.tag = not requests or draw(st.booleans())
    return g


def shapes(draw: Draw, low: int = 2, high: int = 4) -> Shape:
    """[N, ...] of some rank, small."""
    return (N, *draw(st.lists(st.integers(1, 4), min_size=low - 1, max_size=high - 1)))


def tensor(draw: Draw, g: Graph, shape: Shape, depth: int = 2) -> str:
    """A random expression of this shape; N may stand on any axis."""
    known = g.pool.get(shape)
    if known and draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(known))
    makers = LEAVES if depth == 0 else LEAVES + INNER
    made = draw(st.sampled_from(makers))(draw, g, shape, depth)
    g.pool.setdefault(shape, []).append(made)
    return made


def _fixed(shape: Shape) -> list[int]:
    """The shape with 1 where a size is only known at run time."""
    return [1 if isinstance(s, str) else s for s in shape]


def _constant(draw: Draw, g: Graph, shape: list[int]) -> str:
    """Weights, a mask of zeros and ones, or one number throughout."""
    which = draw(st.integers(0, 3))
    if which < 2:
        return g.weight(*shape)
    mask = g.rng.random(shape) < 0.5
    return g.const(
        mask.astype(float) if which == 2 else np.full(shape, draw(st.integers(-1, 2)), float)
    )


def _leaf(side: str) -> Callable[[Draw, Graph, Shape, int], str]:
    def make(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
        if R in shape:
            return _request(g, side, shape)
        if N not in shape:
            return _constant(draw, g, _fixed(shape))
        at = shape.index(N)
        own = [s for s in shape if s != N]
        if side == "const":  # a parameter expanded to the batch that is read from a tensor
            like = g.input(None if g.axis else draw(st.sampled_from(("user", "item"))), N, 1)
            return g.Expand(
                _constant(draw, g, _fixed(shape)), _sizes(g, shape, {N: g.size(like, 0)})
            )
        x = g.input(None if g.axis else side, N, *own)
        if at == 0:
            return x
        return g.Transpose(x, perm=[*range(1, at + 1), 0, *range(at + 1, len(shape))])

    return make


def _request(g: Graph, side: str, shape: Shape) -> str:
    """R requests of N candidates: [R, ...] of the user, expanded in the graph, or [R, N, ...]."""
    own = [s for s in shape if s not in (R, N)]
    front = [i for s in (R, N) for i in range(len(shape)) if shape[i] == s]
    order = front + [i for i in range(len(shape)) if i not in front]
    perm = [order.index(i) for i in range(len(shape))]
    if N not in shape:
        x = g.input("user" if g.tag else None, R, *own)
    elif side in ("user", "const"):
        like = g.input("item" if g.tag else None, R, N, 1)
        u = (
            g.unsqueeze(g.input("user" if g.tag else None, R, *own), 1)
            if side == "user"
            else g.weight(1, 1, *_fixed(tuple(own)))
        )
        x = g.Expand(u, _sizes(g, (R, N, *own), {R: g.size(like, 0), N: g.size(like, 1)}))
    else:
        x = g.input(side if g.tag else None, R, N, *own)
    return x if perm == list(range(len(shape))) else g.Transpose(x, perm=perm)


def _sizes(g: Graph, shape: Shape, known: Mapping[str, str]) -> str:
    return g.Concat(
        *(known[s] if isinstance(s, str) else g.const([s], np.int64) for s in shape), axis=0
    )


def _wide(shape: Shape, least: int = 2) -> list[int]:
    return [i for i, s in enumerate(shape) if isinstance(s, int) and s >= least]


def _with(shape: Shape, axis: int, size: Size) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def signed(draw: Draw, axis: int, rank: int) -> int:
    """The axis counted from the front or from the back."""
    return axis - rank if draw(st.booleans()) else axis


def _concat(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    axes = _wide(shape)
    if not axes:
        return tensor(draw, g, shape, depth - 1)
    axis = draw(st.sampled_from(axes))
    left = int(shape[axis])
    parts = []
    while left:
        size = draw(st.integers(1, left))
        parts.append(tensor(draw, g, _with(shape, axis, size), depth - 1))
        left -= size
    return g.Concat(*parts, axis=signed(draw, axis, len(shape)))


def _stack(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    axes = [a for a in _wide(shape) if int(shape[a]) <= 3]
    if not axes:
        return tensor(draw, g, shape, depth - 1)
    axis = draw(st.sampled_from(axes))
    slim = (*shape[:axis], *shape[axis + 1 :])
    return g.Concat(
        *(g.unsqueeze(tensor(draw, g, slim, depth - 1), axis) for _ in range(int(shape[axis]))),
        axis=axis,
    )


def _picked(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    axes = _wide(shape, 1)
    if not axes:
        return tensor(draw, g, shape, depth - 1)
    axis = draw(st.sampled_from(axes))
    size = int(shape[axis])
    wide = size + draw(st.integers(0, 3))
    x = _concat(draw, g, _with(shape, axis, wide), depth)
    if draw(st.booleans()):
        start = draw(st.integers(0, wide - size))
        return g.slice(x, start, start + size, signed(draw, axis, len(shape)))
    places = draw(st.lists(st.integers(-wide, wide - 1), min_size=size, max_size=size))
    return g.Gather(x, g.const(places, np.int64), axis=signed(draw, axis, len(shape)))


UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Identity", "Sin", "Softplus", "Erf", "LeakyRelu")


def _unary(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    return getattr(g, draw(st.sampled_from(UNARY)))(tensor(draw, g, shape, depth - 1))


def _binary(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    x = tensor(draw, g, shape, depth - 1)
    other = broadcastable(draw, g, shape, depth - 1)
    op = draw(st.sampled_from(("Add", "Sub", "Mul", "Div", "Max")))
    if op == "Div":
        other = g.Add(g.Abs(other), g.const(np.array(1.5)))
    pair = (x, other) if op == "Div" or draw(st.booleans()) else (other, x)
    return getattr(g, op)(*pair)


def broadcastable(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    """A tensor that broadcasts to the shape: some dimensions 1, some leading ones left out."""
    kept = [1 if draw(st.integers(0, 3)) == 0 else s for s in shape]
    first = draw(st.integers(0, len(shape)))
    small = tuple(kept[first:])
    if N in shape[first:] and N not in small and draw(st.booleans()):
        small = shape
    return tensor(draw, g, small, depth) if {N, R} & set(small) else g.weight(*_fixed(small))


def _linear(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    if len(shape) < 2 or isinstance(shape[-1], str):
        return tensor(draw, g, shape, depth - 1)
    inner = draw(st.integers(1, 4))
    x = tensor(draw, g, _with(shape, len(shape) - 1, inner), depth - 1)
    return g.MatMul(x, g.weight(inner, int(shape[-1])))


def _turned(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    perm = draw(st.permutations(range(len(shape))))
    back = [perm.index(i) for i in range(len(perm))]
    return g.Transpose(tensor(draw, g, tuple(shape[p] for p in perm), depth - 1), perm=back)


def _regrouped(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    """From a tensor with neighbours merged, or with one dimension cut in two."""
    axes = [i for i in range(len(shape) - 1) if all(isinstance(s, int) for s in shape[i : i + 2])]
    if sum(isinstance(s, str) for s in shape) > 1:
        axes = [i for i in axes if all(isinstance(s, int) for s in shape[i:])]
    if axes and draw(st.booleans()):
        i = draw(st.sampled_from(axes))
        source: Shape = (*shape[:i], int(shape[i]) * int(shape[i + 1]), *shape[i + 2 :])
    else:
        wide = [i for i in _wide(shape, 4) if int(shape[i]) % 2 == 0]
        if not wide or sum(isinstance(s, str) for s in shape) > 1:
            return tensor(draw, g, shape, depth - 1)
        i = draw(st.sampled_from(wide))
        source = (*shape[:i], 2, int(shape[i]) // 2, *shape[i + 1 :])
    before = draw(st.booleans()) or sum(isinstance(s, str) for s in shape) > 1
    target = [
        s if isinstance(s, int) else 0 if before and j < i else -1 for j, s in enumerate(shape)
    ]
    return g.reshape(tensor(draw, g, source, depth - 1), *target)


def _folded(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    """Through [N*T, D] and back, with a product on the way."""
    if len(shape) != 3 or shape[0] != N or not all(isinstance(s, int) for s in shape[1:]):
        return tensor(draw, g, shape, depth - 1)
    t, d = int(shape[1]), int(shape[2])
    flat = g.reshape(tensor(draw, g, shape, depth - 1), -1, d)
    if draw(st.booleans()):
        flat = (
            g.Gemm(flat, g.weight(d, d), g.weight(d))
            if draw(st.booleans())
            else g.MatMul(flat, g.weight(d, d))
        )
    return g.reshape(flat, -1, t, d)


def _expanded(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    axes = _wide(shape)
    if not axes:
        return tensor(draw, g, shape, depth - 1)
    axis = draw(st.sampled_from(axes))
    x = tensor(draw, g, _with(shape, axis, 1), depth - 1)
    if draw(st.booleans()):
        return g.expand(x, *_fixed(shape))
    return g.Tile(
        x, g.const([s if i == axis else 1 for i, s in enumerate(_fixed(shape))], np.int64)
    )


def _reduced(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    axis = draw(st.integers(0, len(shape)))
    x = tensor(draw, g, (*shape[:axis], draw(st.integers(1, 3)), *shape[axis:]), depth - 1)
    op = draw(st.sampled_from(("Sum", "Mean", "Max")))
    return g.reduce(op, x, [signed(draw, axis, len(shape) + 1)], keepdims=0)


def _softmax(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    return g.Softmax(tensor(draw, g, shape, depth - 1), axis=len(shape) - 1)


def _where(draw: Draw, g: Graph, shape: Shape, depth: int) -> str:
    condition = g.Greater(broadcastable(draw, g, shape, depth - 1), g.const(np.array(0.1)))
    return g.Where(condition, tensor(draw, g, shape, depth - 1), broadcastable(draw, g, shape, 0))


LEAVES = [_leaf("user"), _leaf("item"), _leaf("user"), _leaf("cross"), _leaf("const")]
INNER = [
    _concat, _concat, _concat, _stack, _picked, _unary, _binary, _binary, _linear, _turned,
    _regrouped, _folded, _expanded, _reduced, _softmax, _where,
]  # fmt: skip
