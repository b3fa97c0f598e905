"""Ranking models whose history and candidates are one sequence, with masks of every kind, written node by node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.sides.resolve import Sides

HEADS, WIDTH = 2, 8


@dataclass(frozen=True)
class Form:
    """What a model is like.

    Attributes:
        length: of the history. free: whether the file leaves it open.
        layers: blocks of attention and a feed-forward layer.
        mask: how the mask is built: "compared" from positions, "constant" cut from a longer one, "triangle" from Trilu
            and EyeLike, "gathered" from a table by the distance of positions, "given" by the caller, who may hide
            candidates from each other or not.
        how: what it does: "where" and "add" with `lowest`, "factor" after SiLU (HSTU), "factor before".
        lowest: the number that masks a score.
        norm: "layer", "rms" or "", before each layer.
        rope, bias: rotary positions; a bias by distance.
        first: whether the candidates come first.
        flat: inputs [T, D] and [N, D], not [1, T, D] and [1, N, D].
        pad: whether the user's input has a mask of padded events. strict: they do not even see themselves, so that a
            row may see nothing.
        leak: what keeps candidates from being isolated: "" nothing, "window" they see the one before, "first" all see
            the first one, "late" they see each other from a position on, "scaled" likewise, by a position times a
            fraction, "little" a mask of -5, "mean" a mean over the sequence is added, "causal" they see those before,
            "second" the last layer's mask hides nothing, "back" the history sees the first one in the last layer,
            "centred" a mean over the sequence is taken off in each layer, "summed" a running sum is added, "zero"
            scores of others are 0 and not hidden, "turned" a softmax over rows, "neighbour" scores of the one before
            are added, "count" scores in a row are divided by the number of positions.
        end: what is done with the scores: "" nothing, "softmax" over candidates, "rank" less their mean.
        places: positions of candidates: "same" or "own".
        heads: of each attention. layout: how heads are made: "apart" from three products, "joined" from one that is
            split, "flat" with heads as the first of three dimensions, "einsum" with labels.
        write: a position that is written over: "" none, "history" the first event, "sequence" the first of both, by
            ScatterElements; "nd" the first event by ScatterND.
        integers: products with weights of 8 bits: "" none, "static" of activations whose range is known, "dynamic" of
            activations whose range is that of the whole sequence, so that candidates are not isolated.
        two: the history's causal mask and the one of candidates are two, one after the other.
    """

    length: int = 6
    free: bool = False
    layers: int = 2
    mask: str = "compared"
    how: str = "where"
    lowest: float = -np.inf
    norm: str = "layer"
    rope: bool = False
    bias: bool = False
    first: bool = False
    flat: bool = False
    pad: bool = False
    strict: bool = False
    leak: str = ""
    end: str = ""
    places: str = "same"
    heads: int = HEADS
    layout: str = "apart"
    write: str = ""
    integers: str = ""
    two: bool = False
    opset: int = 18
    seed: int = 0
    dtype: type = np.float32


@dataclass
class Model:
    """The model being written."""

    form: Form
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initial: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.form.seed)

    def __getattr__(self, op: str) -> Any:
        if not op[0].isupper():
            raise AttributeError(op)

        def write(*inputs: str, **attributes: Any) -> str:
            name = f"{op}_{len(self.nodes)}"
            self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
            return name

        return write

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"c{len(self.initial)}"
        self.initial.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def real(self, value: Any) -> str:
        return self.const(value, self.form.dtype)

    def weight(self, *shape: int) -> str:
        return self.real(self.rng.standard_normal(shape) / np.sqrt(shape[0]))

    def product(self, x: str, width: int, columns: int) -> str:
        """x times weights, of 8 bits where the form says so."""
        form = self.form
        if not form.integers:
            return str(self.MatMul(x, self.weight(width, columns)))
        codes = self.const(self.rng.integers(-90, 90, (width, columns)), np.int8)
        step, none = self.const(2.0**-7, np.float32), self.const(0, np.int8)
        real = x if form.dtype is np.float32 else self.Cast(x, to=TensorProto.FLOAT)
        if form.integers == "static":
            grid = self.const(2.0**-4, np.float32), self.const(3, np.int8)
            inner = self.DequantizeLinear(self.QuantizeLinear(real, *grid), *grid)
            made = self.MatMul(inner, self.DequantizeLinear(codes, step, none))
        else:
            node = helper.make_node("DynamicQuantizeLinear", [real], [f"{x}_{len(self.nodes)}_{i}" for i in range(3)])
            self.nodes.append(node)
            whole = self.Cast(self.MatMulInteger(node.output[0], codes, node.output[2]), to=TensorProto.FLOAT)
            made = self.Mul(whole, self.Mul(node.output[1], step))
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
        return str(made if form.dtype is np.float32 else self.Cast(made, to=kind))

    def model(self, outputs: str) -> onnx.ModelProto:
        form = self.form
        length: int | str = "T" if form.free else form.length
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
        lead = [] if form.flat else [1]
        inputs = [
            helper.make_tensor_value_info("history", kind, [*lead, length, WIDTH]),
            helper.make_tensor_value_info("candidates", kind, [*lead, "N", WIDTH]),
        ]
        if form.mask == "given":
            inputs.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, ["S", "S"]))
        if form.pad:
            inputs.append(helper.make_tensor_value_info("seen", TensorProto.INT64, [1, length]))
        out = helper.make_tensor_value_info(outputs, kind, [*lead, "N", 1])
        graph = helper.make_graph(self.nodes, "sequence", inputs, [out], self.initial)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", form.opset)], ir_version=8)


def sides(form: Form) -> Sides:
    """Whose inputs are whose."""
    tags = {"history": "user", "candidates": "item", **({"seen": "user"} if form.pad else {})}
    own = {"history": None, **({"seen": None} if form.pad else {})}
    if form.mask == "given":
        tags["mask"], own["mask"] = "cross", None
    return Sides(tags, candidate_axis=0 if form.flat else 1, axes=own)


def feeds(form: Form, n: int, length: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """A request of n candidates. length: of the history where it is free."""
    rng = np.random.default_rng(seed)
    length = form.length if length is None or not form.free else length
    lead = [] if form.flat else [1]
    found = {
        "history": rng.standard_normal([*lead, length, WIDTH]).astype(form.dtype),
        "candidates": rng.standard_normal([*lead, n, WIDTH]).astype(form.dtype),
    }
    if form.mask == "given":
        found["mask"] = _isolated(length, n, form.first) | (seed % 2 == 1)
    if form.pad:
        found["seen"] = rng.integers(0, 2, (1, length)).astype(np.int64)
    return found


def _isolated(length: int, n: int, first: bool) -> np.ndarray:
    """Which column each row attends to: [S, S]."""
    of_history = np.arange(length + n) >= n if first else np.arange(length + n) < length
    before = np.tril(np.ones((length + n,) * 2, bool))
    keep = (before & of_history[:, None] & of_history) | (~of_history[:, None] & of_history)
    return np.asarray(keep | np.eye(length + n, dtype=bool))


def build(form: Form) -> onnx.ModelProto:
    """The model."""
    m = Model(form)
    history, candidates = "history", "candidates"
    if form.flat:
        history, candidates = (m.Unsqueeze(x, m.const([0])) for x in (history, candidates))
    if form.write in ("history", "nd"):
        history = _written(m, history)
    zero, one = m.const(0), m.const(1)
    t, n = (m.Gather(m.Shape(x), one, axis=0) for x in (history, candidates))
    size = m.Add(t, n)
    x = m.Concat(*((candidates, history) if form.first else (history, candidates)), axis=1)
    if form.write == "sequence":
        x = _written(m, x)
    place = m.Range(zero, size, one)
    row, column = m.Unsqueeze(place, m.const([1])), m.Unsqueeze(place, m.const([0]))
    keep = _mask(m, size, t, n, row, column)
    if form.pad:
        seen = m.Equal("seen", one)
        shape = m.Concat(m.const([1]), m.Unsqueeze(n, m.const([0])), axis=0)
        parts = [seen, m.Expand(m.const(True, bool), shape)]
        shown = m.Concat(*(parts[::-1] if form.first else parts), axis=1)
        shown = m.Unsqueeze(shown, m.const([1] if form.layout == "flat" else [1, 2]))
        keep = m.And(keep, shown if form.strict else m.Or(shown, m.Equal(row, column)))
    spot = m.Min(place, t) if form.places == "same" and not form.first else place
    if form.first and form.places == "same":
        spot = m.Max(m.Sub(place, n), m.const(-1))
    for layer in range(form.layers):
        shown = keep
        if layer == form.layers - 1 and form.leak in ("second", "back"):
            more = m.Greater(size, zero) if form.leak == "second" else m.Equal(column, zero if form.first else t)
            shown = m.Or(keep, more)
        x = _layer(m, x, shown, row, column, spot)
    if form.leak == "mean":
        x = m.Add(x, m.ReduceMean(x, m.const([1])) if form.opset >= 18 else m.ReduceMean(x, axes=[1]))
    begin, end = (m.Unsqueeze(v, m.const([0])) for v in ((zero, n) if form.first else (t, size)))
    y = m.Slice(x, begin, end, m.const([1]))
    y = m.MatMul(y, m.weight(WIDTH, 1))
    if form.leak == "neighbour":
        far = m.const([2**31 - 1])
        turned = (m.Slice(y, m.const([-1]), far, m.const([1])), m.Slice(y, m.const([0]), m.const([-1]), m.const([1])))
        y = m.Add(y, m.Concat(*turned, axis=1))
    if form.end == "softmax":
        y = m.Softmax(y, axis=1)
    elif form.end == "rank":
        y = m.Sub(y, m.ReduceMean(y, m.const([1])) if form.opset >= 18 else m.ReduceMean(y, axes=[1]))
    if form.flat:
        y = m.Squeeze(y, m.const([0]))
    return m.model(m.Identity(y))


def _mask(m: Model, size: str, t: str, n: str, row: str, column: str) -> str:
    """Which column each row attends to: bool, [S, S]."""
    form = m.form
    of_history = m.GreaterOrEqual(column, n) if form.first else m.Less(column, t)
    rows_of_history = m.GreaterOrEqual(row, n) if form.first else m.Less(row, t)
    itself = m.Equal(row, column)
    if form.mask == "given":
        return "mask"
    if form.mask == "compared":
        before = m.LessOrEqual(column, row)
        keep = m.And(before, m.Or(of_history, itself))
        if form.first:
            of_rows = m.And(m.Not(rows_of_history), m.Or(of_history, itself))
            keep = m.Or(m.And(rows_of_history, m.And(before, of_history)), of_rows)
    elif form.mask == "triangle":
        whole = m.Concat(*[m.Unsqueeze(size, m.const([0]))] * 2, axis=0)
        ones = m.ConstantOfShape(whole, value=numpy_helper.from_array(np.ones(1, np.float32)))
        lower = m.Cast(m.Trilu(ones, upper=0), to=TensorProto.BOOL)
        eye = m.Cast(m.EyeLike(ones), to=TensorProto.BOOL)
        keep = m.And(lower, m.Or(of_history, eye))
    else:
        most = form.length + 700
        places = np.arange(most)
        table = places[None] <= places[:, None]
        table &= (places[None] < form.length) | np.eye(most, dtype=bool)
        if form.mask == "constant":
            ends = m.Concat(*[m.Unsqueeze(size, m.const([0]))] * 2, axis=0)
            keep = m.Slice(m.const(table, bool), m.const([0, 0]), ends, m.const([0, 1]))
        else:
            far = m.Add(m.Sub(row, column), m.const(most))
            lower = m.Gather(m.const(np.arange(2 * most) >= most, bool), far, axis=0)
            keep = m.And(lower, m.Or(of_history, itself))
    if form.leak == "window":
        keep = m.Or(keep, m.Equal(m.Sub(row, m.const(1)), column))
    elif form.leak == "first":
        keep = m.Or(keep, m.And(m.Equal(column, m.const(0) if form.first else t), m.GreaterOrEqual(row, column)))
    elif form.leak == "causal":
        keep = m.Or(keep, m.LessOrEqual(column, row))
    elif form.leak == "scaled":
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
        keep = m.Or(keep, m.Greater(m.Mul(m.Cast(column, to=kind), m.real(0.001)), m.real(0.05)))
    elif form.leak == "late":
        keep = m.Or(keep, m.Greater(m.Add(row, column), m.const(2 * form.length + 40)))
    return keep


def _written(m: Model, x: str) -> str:
    """x with other numbers at its first position, as select_scatter and an assignment to a slice are exported."""
    if m.form.write == "nd":
        return str(m.ScatterND(x, m.const([[0, 0]]), m.weight(1, WIDTH)))
    updates = m.weight(1, 1, WIDTH)
    return str(m.ScatterElements(x, m.Expand(m.const([[[0]]]), m.Shape(updates)), updates, axis=1))


def _heads(m: Model, z: str) -> list[str]:
    """Query, key and value: [1, H, S, d], or [H, S, d] where the layout is flat."""
    form, head = m.form, WIDTH // m.form.heads
    if form.layout == "joined":
        whole = m.Reshape(m.product(z, WIDTH, 3 * WIDTH), m.const([1, -1, 3, form.heads, head]))
        turned = m.Transpose(whole, perm=[2, 0, 3, 1, 4])
        return [m.Gather(turned, m.const(i), axis=0) for i in range(3)]
    split = m.const([-1, form.heads, head] if form.layout == "flat" else [1, -1, form.heads, head])
    perm = [1, 0, 2] if form.layout == "flat" else [0, 2, 1, 3]
    return [m.Transpose(m.Reshape(m.product(z, WIDTH, WIDTH), split), perm=perm) for _ in range(3)]


def _layer(m: Model, x: str, keep: str, row: str, column: str, spot: str) -> str:
    form = m.form
    z = _norm(m, x)
    if form.leak == "centred":
        z = m.Sub(z, m.ReduceMean(z, m.const([1])) if form.opset >= 18 else m.ReduceMean(z, axes=[1]))
    elif form.leak == "summed":
        z = m.Add(z, m.CumSum(z, m.const(1)))
    q, k, v = _heads(m, z)
    flat = form.layout == "flat"
    if form.rope and not flat:
        q, k = (_rope(m, a, spot) for a in (q, k))
    if form.layout == "einsum":
        s = m.Einsum(q, k, equation="bhqd,bhkd->bhqk")
    else:
        s = m.MatMul(q, m.Transpose(k, perm=[0, 2, 1] if flat else [0, 1, 3, 2]))
    s = m.Mul(s, m.real(0.5))
    if form.leak == "count":
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
        s = m.Div(s, m.Cast(m.Gather(m.Shape(x), m.const(1), axis=0), to=kind))
    if form.bias:
        far = m.Sub(m.Unsqueeze(spot, m.const([1])), m.Unsqueeze(spot, m.const([0])))
        far = m.Max(m.Min(far, m.const(8)), m.const(-8))
        s = m.Add(s, m.Gather(m.weight(17), m.Add(far, m.const(8)), axis=0))
    lowest = -5.0 if form.leak == "little" else form.lowest
    if form.how in ("where", "add"):
        if form.two:  # what comes later, and then what is hidden of what came before
            s = m.Where(m.Or(keep, m.LessOrEqual(column, row)), s, m.real(lowest))
        if form.leak == "zero":
            s = m.Where(keep, s, m.real(0))
        elif form.how == "where":
            s = m.Where(keep, s, m.real(lowest))
        else:
            s = m.Add(s, m.Where(keep, m.real(0), m.real(lowest)))
        p = m.Softmax(s, axis=-2 if form.leak == "turned" else -1)
    else:
        factor = m.Cast(keep, to=helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype)))
        if form.how == "factor before":
            s = m.Mul(s, factor)
        p = m.Mul(s, m.Sigmoid(s))
        if form.how == "factor":
            p = m.Mul(p, factor)
        p = m.Mul(p, m.real(1 / (form.length + 1)))
    mixed = m.Einsum(p, v, equation="bhqk,bhkd->bhqd") if form.layout == "einsum" else m.MatMul(p, v)
    o = m.Reshape(m.Transpose(mixed, perm=[1, 0, 2] if flat else [0, 2, 1, 3]), m.const([1, -1, WIDTH]))
    x = m.Add(x, m.product(o, WIDTH, WIDTH))
    inner = m.Relu(m.Add(m.product(_norm(m, x), WIDTH, WIDTH), m.weight(WIDTH)))
    return str(m.Add(x, m.product(inner, WIDTH, WIDTH)))


def _norm(m: Model, x: str) -> str:
    if m.form.norm == "layer":
        return str(m.LayerNormalization(x, m.weight(WIDTH), m.weight(WIDTH), axis=-1))
    if m.form.norm == "rms":
        square = m.Mul(x, x)
        mean = m.ReduceMean(square, m.const([-1])) if m.form.opset >= 18 else m.ReduceMean(square, axes=[-1])
        return str(m.Mul(m.Div(x, m.Sqrt(m.Add(mean, m.real(1e-6)))), m.weight(WIDTH)))
    return x


def _rope(m: Model, x: str, spot: str) -> str:
    """Each half of a head turned by the position: [1, H, S, d]."""
    half = WIDTH // m.form.heads // 2
    angle = m.Mul(
        m.Unsqueeze(m.Cast(spot, to=helper.np_dtype_to_tensor_dtype(np.dtype(m.form.dtype))), m.const([1])),
        m.real(0.5 ** np.arange(half)[None]),
    )
    cos, sin = (m.Concat(f, f, axis=-1) for f in (m.Cos(angle), m.Sin(angle)))
    a = m.Slice(x, m.const([0]), m.const([half]), m.const([3]))
    b = m.Slice(x, m.const([half]), m.const([2 * half]), m.const([3]))
    return str(m.Add(m.Mul(x, cos), m.Mul(m.Concat(m.Neg(b), a, axis=-1), sin)))
