"""Bounds of elements: what a graph computes lies within them, and they tell what a mask hides."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mari_onnx.engine.analysis.intervals import INTERVALS, PLACED, span
from mari_onnx.engine.analysis.magnitude import bound
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Tensor
from mari_onnx.engine.output.assemble import live
from mari_onnx.model.dims import Dim
from tests.engine.graphs import Draw

DOUBLE, BOOL, INT64 = TensorProto.DOUBLE, TensorProto.BOOL, TensorProto.INT64
MOST = 3.0
"""What the inputs are at most, as far as the bounds know."""
OF_NUMBERS = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Neg", "Where", "Identity", "Cast")
OF_BOOLEANS = ("And", "Or", "Not", "Identity", "Cast")
MOVING = ("Transpose", "Unsqueeze", "Reshape", "Slice", "Gather", "Expand", "Concat")


class Writer:
    """Writes nodes on inputs whose bound is known, and runs them on numbers within it."""

    def __init__(self, seed: int) -> None:
        self.b, self.rng, self.feeds = Builder(17), np.random.default_rng(seed), dict[str, np.ndarray]()

    def input(self, shape: tuple[int, ...], dtype: int = DOUBLE) -> Tensor:
        """An input: booleans, or numbers of at most `MOST`, whole ones for INT64."""
        tensor = self.b.input(f"x{len(self.feeds)}", dtype, shape, frozenset({"item"}))
        numbers = self.rng.uniform(-MOST, MOST, shape)
        self.feeds[tensor.name] = numbers if dtype == DOUBLE else numbers > 0 if dtype == BOOL else numbers.astype(int)
        if dtype != BOOL:
            tensor.bound = MOST
        return tensor

    def node(self, op: str, *inputs: Tensor, dtype: int | None = None, **attrs: Any) -> Tensor:
        """A node, its shape told by running it."""
        made = self.b.emit(op, inputs, None, dtype, attrs)
        made.shape = self.run(made).shape
        return made

    def run(self, tensor: Tensor) -> np.ndarray:
        """What a tensor is for the inputs that were drawn."""
        if tensor.const or tensor.node is None:
            return tensor.array if tensor.const else self.feeds[tensor.name]
        nodes = live([tensor])
        read = {t.name: t for node in nodes for t in node.inputs if t is not None}
        graph = helper.make_graph(
            [node.proto for node in nodes],
            "g",
            [helper.make_tensor_value_info(t.name, t.dtype, None) for t in read.values() if t.name in self.feeds],
            [helper.make_tensor_value_info(tensor.name, tensor.dtype, None)],
            [numpy_helper.from_array(t.array, t.name) for t in read.values() if t.const],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        given = {name: array for name, array in self.feeds.items() if name in read}
        (found,) = ReferenceEvaluator(model).run(None, given)
        return np.asarray(found)

    def check(self, tensor: Tensor) -> None:
        """Every element lies within its bounds, which broadcast to the tensor's shape."""
        got, (low, high) = self.run(tensor), span(tensor)
        assert low.ndim == high.ndim == got.ndim
        wide = [np.broadcast_to(side, got.shape) for side in (low, high)]
        inside = (got >= wide[0] - 1e-9) & (got <= wide[1] + 1e-9)
        assert inside.all(), f"{tensor.node.proto.op_type if tensor.node else ''}: {got} not within {low} .. {high}"


def sizes(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a tensor, all of it numbers."""
    return tuple(size for size in tensor.known if isinstance(size, int))


def _operand(draw: Draw, w: Writer, shape: tuple[int, ...], dtype: int, made: list[Tensor]) -> Tensor:
    """A tensor that broadcasts to a shape: an input, a constant, or what was computed before."""
    fitting = [t for t in made if t.dtype == dtype and t.shape == shape]
    if fitting and draw(st.integers(0, 2)):
        return fitting[-1]
    kept = [size if draw(st.integers(0, 3)) else 1 for size in shape]
    if draw(st.booleans()):
        return w.input(tuple(kept), dtype)
    if dtype == BOOL:
        return w.b.const(w.rng.random(kept) > 0.5)
    numbers = draw(st.sampled_from([[-1e9, 0.0], [2.0, 0.5, -4.0], [1.0], [-7.0, 8.0]]))
    return w.b.const(w.rng.choice(numbers, kept), dtype)


def _arithmetic(draw: Draw, w: Writer, made: list[Tensor]) -> Tensor:
    last = made[-1]
    dtype, shape = last.dtype, sizes(last)
    op = draw(st.sampled_from(OF_BOOLEANS if dtype == BOOL else OF_NUMBERS))
    if op in ("Neg", "Not", "Identity"):
        return w.node(op, last)
    if op == "Cast":
        small = dtype == BOOL or np.abs(w.run(last)).max() < 1e6
        to = draw(st.sampled_from([DOUBLE, BOOL, INT64] if small else [DOUBLE, BOOL]))
        return w.node(op, last, dtype=to, to=to)
    other = _operand(draw, w, shape, dtype, made)
    if op == "Where":
        return w.node(op, _operand(draw, w, shape, BOOL, made), *draw(st.permutations([last, other])), dtype=dtype)
    if op == "Div":
        by = draw(st.sampled_from([2.0, -3.0, 0.5 if dtype == DOUBLE else 5.0]))
        return w.node(op, last, w.b.const(np.array(by), dtype))
    pair = draw(st.permutations([last, other]))
    if op in ("Max", "Min", "Sum") and (dtype == DOUBLE or op != "Sum"):
        pair = [*pair, _operand(draw, w, shape, dtype, made)][: draw(st.integers(1, 3))]
    elif op == "Sum":
        op = "Add"
    return w.node(op, *pair)


def _moved(draw: Draw, w: Writer, x: Tensor) -> Tensor:
    rank = len(x.known)
    axis = draw(st.integers(0, rank - 1))
    size = sizes(x)[axis]
    match draw(st.sampled_from(MOVING)):
        case "Transpose":
            return w.node("Transpose", x, perm=draw(st.sampled_from([None, *itertools.permutations(range(rank))])))
        case "Unsqueeze" if rank < 4:
            y = w.node("Unsqueeze", x, w.b.ints([axis]))
            return y if draw(st.booleans()) else w.node("Squeeze", y, w.b.ints([axis]))
        case "Reshape":
            return w.node("Reshape", x, w.b.ints(draw(st.sampled_from([[1, *sizes(x)], [-1]]))))
        case "Slice":
            ends = [w.b.ints([v]) for v in (draw(st.integers(0, size - 1)), size)]
            return w.node("Slice", x, *ends, w.b.ints([axis - rank if draw(st.booleans()) else axis]))
        case "Gather":
            at = w.rng.integers(-size, size, draw(st.sampled_from([(), (3,), (2, 2)])))
            return w.node("Gather", x, w.b.const(at), axis=axis) if rank + at.ndim in (2, 3, 4) else x
        case "Expand" if rank < 4:
            return w.node("Expand", x, w.b.ints([2, *sizes(x)]))
        case "Concat":
            return w.node("Concat", x, w.input(sizes(x), x.dtype), axis=axis)
    return x


@settings(max_examples=150)
@given(st.data(), st.integers(0, 1000))
def test_elements_lie_within_their_bounds(data: st.DataObject, seed: int) -> None:
    draw, w = data.draw, Writer(seed)
    made = [w.input((2, 3), draw(st.sampled_from([DOUBLE, BOOL, INT64])))]
    for _ in range(draw(st.integers(2, 8))):
        step = _arithmetic(draw, w, made) if draw(st.integers(0, 2)) else _moved(draw, w, made[-1])
        made.append(step)
        w.check(step)


def test_every_operator_with_bounds_is_drawn_above() -> None:
    assert set(INTERVALS) == {*OF_NUMBERS, *OF_BOOLEANS} - {"Cast"}
    assert set(MOVING) - {"Concat"} <= PLACED


@pytest.mark.parametrize("how", ["added", "chosen", "scaled", "moved", "rows"])
def test_what_a_mask_hides_is_far_below(how: str) -> None:
    """-1e9 at position 2 of 3, by a sum, by Where, divided by 4, behind a Gather that turns the row or picks rows."""
    w = Writer(0)
    x, mask = w.input((4, 3)), np.array([False, False, True])
    low = w.b.const(np.where(mask, -1e9, 0.0))
    y = w.node("Add", x, low)
    if how == "chosen":
        y = w.node("Where", w.b.const(mask), w.b.const(np.array(-1e9)), x)
    if how == "scaled":
        y = w.node("Div", y, w.b.const(np.array(4.0)))
    if how == "moved":
        y = w.node("Gather", y, w.b.ints([2, 1, 0]), axis=1)
    if how == "rows":
        y = w.node("Gather", y, w.b.ints([3, 1, 2, 0]), axis=0)
    got, high = w.run(y), np.broadcast_to(span(y)[1], (4, 3))
    assert (high[got < -1e6] < -1e8).all()
    assert (high[got > -1e6] <= MOST).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_quotients_of_integers_are_cut(sign: int) -> None:
    """(x + 7) / 3 of integers from 4 to 10 is 1 to 3, not 4/3 to 10/3."""
    w = Writer(0)
    x = w.node("Add", w.input((50,), INT64), w.b.ints([7]))
    y = w.node("Div", w.node("Mul", x, w.b.ints([sign])), w.b.ints([3]))
    assert sign * w.run(y).min() == 1 or sign * w.run(y).max() == 1
    w.check(y)


@pytest.mark.parametrize("op", ["Div", "Cast", "Concat"])
def test_nothing_is_claimed(op: str) -> None:
    """Of what may be divided by 0, of numbers in a type that may not hold them, of parts of unknown length."""
    w = Writer(0)
    x = w.node("Add", w.input((2, 3)), w.b.const(np.array([0.0, 0.0, -1e9])))
    if op == "Div":
        y = w.b.emit("Div", [x, w.input((2, 3))], (2, 3))
    elif op == "Cast":
        y = w.b.emit("Cast", [x], (2, 3), TensorProto.FLOAT16, {"to": TensorProto.FLOAT16})
    else:
        other = w.b.input("y", DOUBLE, (2, Dim.symbol("T")), frozenset())
        y = w.b.emit("Concat", [x, other], (2, Dim.symbol("T") + 3), attrs={"axis": 1})
    low, high = span(y)
    assert np.isneginf(low).all()
    assert np.isposinf(high).all()


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("weights", [True, False])
def test_a_gemm_is_bounded(turned: int, weights: bool) -> None:
    """By ``alpha |x| max(sum |w|) + beta |c|``, or by the length of the sum where both factors are data."""
    w = Writer(0)
    shape = (4, 3) if turned else (3, 4)
    x = w.input((3, 2) if turned else (2, 3))
    y = w.b.const(w.rng.standard_normal(shape)) if weights else w.input(shape)
    c = w.b.const(np.array([1.0, -2.0, 0.5, 0.0]))
    out = w.node("Gemm", x, y, c, alpha=-0.5, beta=3.0, transA=turned, transB=turned)
    total = np.abs(w.run(y)).sum(axis=1 if turned else 0).max() if weights else 3 * MOST
    assert bound(out) == pytest.approx(0.5 * MOST * total + 3.0 * 2.0)
    assert np.abs(w.run(out)).max() <= bound(out)
