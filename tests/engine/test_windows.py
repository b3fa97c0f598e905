"""Conv, pooling, Pad and CumSum along an axis of user and item positions: the user's windows once, all exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from mari_onnx.engine import Rewrite
from mari_onnx.engine.rules import windows
from tests.engine.checks import check, lifted, repeated, traced
from tests.engine.graphs import Draw, Graph

MANY = 100_000
"""Candidates for which every run of positions pays."""


def fields(g: Graph, sides: str, width: int, channels: int = 1) -> str:
    """[N, channels, fields, width], a field of "u" or "x" each."""
    make = {"u": g.user, "x": g.item}
    one = [make[s](channels, 1, width) for s in sides]
    return g.Concat(*one, axis=2) if len(one) > 1 else one[0]


def computed(g: Graph, result: Rewrite, op: str) -> float:
    """Elements of an operator's results that one more candidate costs."""
    nodes = [n for n in result.model.graph.node if n.op_type == op]
    few, many = (traced(result.model, g.feeds(n, once=result.changed)) for n in (3, 7))
    return sum(many[n.output[0]].size - few[n.output[0]].size for n in nodes) / 4


@st.composite
def sided(draw: Draw, most: int = 12) -> str:
    """Runs of fields of either side."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    start = draw(st.booleans())
    return "".join("ux"[(start + k) % 2] * n for k, n in enumerate(lengths))[:most]


@st.composite
def convolved(draw: Draw) -> Graph:
    """Any kernel, stride, dilation and padding; groups; with and without bias."""
    g = Graph(draw(st.sampled_from((11, 13, 18))), seed=draw(st.integers(0, 3)))
    sides = draw(sided())
    width, channels = draw(st.integers(1, 3)), draw(st.sampled_from((1, 2)))
    how = draw(st.sampled_from(("NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel = draw(st.integers(stride if how.startswith("SAME") else 1, 4))
    reach = (kernel - 1) * dilation + 1
    attrs: dict[str, object] = {"kernel_shape": [kernel, 1], "strides": [stride, 1]}
    total = 0
    if how == "NOTSET":
        before, after = draw(st.integers(0, kernel - 1)), draw(st.integers(0, kernel - 1))
        attrs["pads"] = [before, 0, after, 0]
        total = before + after
    else:
        attrs["auto_pad"] = how
    if how.startswith("SAME"):
        reach = 1
    elif dilation > 1 and len(sides) + total >= reach:
        attrs["dilations"] = [dilation, 1]
    else:
        reach = kernel
    sides += "u" * max(0, reach - len(sides))
    x = fields(g, sides, width, channels)
    # the reference evaluator gets the padding of some pools wrong
    op = draw(st.sampled_from(("Conv", "MaxPool", "AveragePool"))) if how == "NOTSET" else "Conv"
    if op == "Conv":
        group = draw(st.sampled_from((1, channels)))
        bias = [g.weight(2)] if draw(st.booleans()) else []
        y = g.Conv(x, g.weight(2, channels // group, kernel, 1), *bias, group=group, **attrs)
    else:
        attrs.pop("dilations", None)
        if op == "AveragePool":
            attrs["count_include_pad"] = draw(st.integers(0, 1))
        y = getattr(g, op)(x, **attrs)
    g.output(g.Tanh(y), g.Mul(g.user(1, 1, 1), g.item(1, 1, 1)))
    try:
        g.model()
    except (RuntimeError, ValueError):  # the reference evaluator cannot run some pools
        reject()
    return g


@given(convolved())
def test_windows_are_the_same(g: Graph) -> None:
    check(g, candidates=MANY)


@pytest.mark.parametrize(
    ("sides", "pads"),
    [
        ("uuuuuuxxx", [0, 0]),
        ("uuuuuuxxx", [1, 1]),
        ("xxxuuuuuuuu", [1, 1]),
        ("uuuuxxuuuu", [1, 1]),
        ("uuuuuuuu", [1, 1]),
    ],
)
def test_windows_of_the_user_alone_are_computed_once(sides: str, pads: list[int]) -> None:
    """A kernel of 3 touches the item's positions and one to either side of them."""
    g = Graph()
    x = fields(g, sides, 2)
    y = g.Conv(x, g.weight(3, 1, 3, 1), kernel_shape=[3, 1], pads=[pads[0], 0, pads[1], 0])
    g.output(g.Add(y, g.item(1, 1, 1)))
    result = check(g, candidates=MANY)
    items = [k for k, s in enumerate(sides) if s == "x"]
    number = len(sides) + sum(pads) - 2
    mine = sum(any(p - pads[0] <= q <= p - pads[0] + 2 for q in items) for p in range(number))
    assert computed(g, result, "Conv") == mine * 3 * 2
    assert repeated(g, result) == []


def test_layers_stay_apart() -> None:
    """Conv, Tanh, MaxPool, Conv, as feature generation by convolution stacks them."""
    g = Graph()
    x = fields(g, "u" * 16 + "x" * 4, 2)
    x = g.Tanh(g.Conv(x, g.weight(3, 1, 3, 1), g.weight(3), kernel_shape=[3, 1], pads=[1, 0, 1, 0]))
    x = g.MaxPool(x, kernel_shape=[2, 1], strides=[2, 1])
    x = g.Conv(x, g.weight(2, 3, 3, 1), kernel_shape=[3, 1], pads=[1, 0, 1, 0])
    g.output(g.MatMul(g.Flatten(x), g.weight(2 * 10 * 2, 5)))
    result = check(g, candidates=MANY)
    assert computed(g, result, "Conv") == 5 * 3 * 2 + 4 * 2 * 2
    assert computed(g, result, "MaxPool") == 3 * 3 * 2


def test_padding_is_a_constant_part() -> None:
    g = Graph()
    x = g.Pad(fields(g, "uuuuuxx", 2), g.const([0, 0, 2, 0, 0, 0, 1, 0], np.int64), g.const(np.array(0.5)))
    g.output(g.Conv(x, g.weight(3, 1, 3, 1), kernel_shape=[3, 1]))
    assert computed(g, check(g, candidates=MANY), "Conv") == 3 * 3 * 2


@pytest.mark.parametrize("mode", ["reflect", "edge", "constant"])
@pytest.mark.parametrize("opset", [11, 18])
def test_other_padding_is_the_same(mode: str, opset: int) -> None:
    g = Graph(opset)
    x = fields(g, "uuuxx", 3)
    g.output(g.Pad(x, g.const([0, 0, 1, 1, 0, 0, 2, 0], np.int64), mode=mode))
    g.output(g.Pad(x, g.const([0, 0, 0, 0, 0, 0, 2, 0], np.int64), mode=mode))
    check(g, candidates=MANY)


def test_a_window_that_saves_less_than_a_node_is_left() -> None:
    g = Graph()
    x = fields(g, "uuuuuuxxx", 2)
    g.output(g.Conv(x, g.weight(3, 1, 3, 1), kernel_shape=[3, 1]))
    result = check(g, candidates=10)
    assert sum(n.op_type == "Conv" for n in result.model.graph.node) == 1


def test_at_most_four_runs() -> None:
    g = Graph()
    x = fields(g, "uuuux" * 6, 2)
    g.output(g.Conv(x, g.weight(3, 1, 3, 1), kernel_shape=[3, 1]))
    result = check(g, candidates=MANY)
    assert sum(n.op_type == "Conv" for n in result.model.graph.node) <= windows.MAX_RUNS


def test_what_counts_from_the_whole_input_is_left() -> None:
    """The indices of a MaxPool, and a last window that hangs over."""
    g = Graph()
    x = fields(g, "uuuuuuxxx", 2)
    y, index = g.nodes_of("MaxPool", [x], 2, kernel_shape=[3, 1])
    over = g.MaxPool(x, kernel_shape=[4, 1], strides=[2, 1], ceil_mode=1)
    g.output(y, index, over)
    result = check(g, candidates=MANY)
    assert sum(n.op_type == "MaxPool" for n in result.model.graph.node) == 2


def test_weights_computed_from_an_input_are_left() -> None:
    g = Graph()
    x = fields(g, "uuuuuuxx", 2)
    g.output(g.Conv(x, g.reduce("Mean", g.item(3, 1, 3, 1), [0], keepdims=0), kernel_shape=[3, 1]))
    check(g, candidates=MANY)


# ---- CumSum --------------------------------------------------------------------------------------------------------


@st.composite
def summed(draw: Draw) -> Graph:
    g = Graph(draw(st.sampled_from((11, 14, 18))))
    sides, width = draw(sided()), draw(st.integers(1, 3))
    x = fields(g, sides, width)
    if draw(st.booleans()):
        x = g.Cast(x, to=7)
    axis = draw(st.sampled_from((2, -2, 3, 1, 0)))
    how = {k: draw(st.integers(0, 1)) for k in ("reverse", "exclusive")} if draw(st.booleans()) else {}
    return g.output(g.CumSum(x, g.const(axis, np.int64), **how), g.Mul(g.user(1, 1, 1), g.item(1, 1, 1)))


@given(summed())
def test_cumulative_sums_are_the_same(g: Graph) -> None:
    check(g, candidates=MANY)


@pytest.mark.parametrize(("sides", "each"), [("uuuuxx", 2), ("uuuuxuu", 3), ("uuuuu", 0), ("xuuu", 4)])
def test_leading_sums_of_the_user_once(sides: str, each: int) -> None:
    """What follows goes on from the last sum, in the source's order: equal to the last bit."""
    g = Graph(dtype=np.float32)
    g.output(g.CumSum(fields(g, sides, 2), g.const(2, np.int64)))
    g.output(g.Add(g.user(2), g.item(2)))
    result = check(g, candidates=MANY, tolerance=0.0)
    assert computed(g, result, "CumSum") == each * 2


def test_places_of_tokens_are_summed_apart_however_few() -> None:
    """Positions as RoBERTa counts them: the look-ups behind them are the user's, and a product of theirs."""
    g = Graph()
    ids = g.Concat(g.user(5, high=3), g.item(2, high=3), axis=1)
    there = g.Cast(g.Not(g.Equal(ids, g.const(0, np.int64))), to=7)
    places = g.Mul(g.CumSum(there, g.const(1, np.int64)), there)
    g.output(g.MatMul(g.Gather(g.weight(8, 4), places, axis=0), g.weight(4, 3)))
    lifted(g, check(g, candidates=16), per_candidate=2 * 4 * 3)


@pytest.mark.parametrize("how", [{"reverse": 1}, {"exclusive": 1}])
def test_reversed_and_exclusive_sums_are_left(how: dict[str, int]) -> None:
    g = Graph()
    g.output(g.CumSum(fields(g, "uuuuxx", 2), g.const(2, np.int64), **how))
    assert computed(g, check(g, candidates=MANY), "CumSum") == 6 * 2
