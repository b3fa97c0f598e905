"""Operators that work on each position of some axes by itself; barriers along the candidates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import actions, check, lifted, repeated
from tests.engine.drawing import shapes, signed, starts, tensor
from tests.engine.graphs import Draw, Graph, N, Shape


def _axis(draw: Draw, shape: Shape, candidates: bool = True) -> int:
    axis = draw(st.integers(0 if candidates else 1, len(shape) - 1))
    return signed(draw, axis, len(shape))


def _along(op: str, **attrs: object) -> Callable[[Draw, Graph], str]:
    def make(draw: Draw, g: Graph) -> str:
        shape = shapes(draw)
        if g.opset < 13 and op == "Hardmax":
            return getattr(g, op)(tensor(draw, g, shape, 2), axis=len(shape) - 1)
        return getattr(g, op)(tensor(draw, g, shape, 2), axis=_axis(draw, shape), **attrs)

    return make


def _cumulative(draw: Draw, g: Graph) -> str:
    shape = shapes(draw)
    attrs = {k: draw(st.integers(0, 1)) for k in ("exclusive", "reverse")}
    op = g.CumProd if g.opset >= 26 and draw(st.booleans()) else g.CumSum
    return op(tensor(draw, g, shape, 2), g.const(_axis(draw, shape)), **attrs)


def _topk(draw: Draw, g: Graph) -> str:
    shape = shapes(draw)
    axis = _axis(draw, shape, candidates=False)
    k = draw(st.integers(1, int(shape[axis])))
    values, where = g.nodes_of(
        "TopK",
        [tensor(draw, g, shape, 2), g.const([k])],
        2,
        axis=axis,
        largest=draw(st.integers(0, 1)),
    )
    return g.Add(values, g.Cast(where, to=11)) if draw(st.booleans()) else values


def _topk_of_candidates(draw: Draw, g: Graph) -> str:
    values, _ = g.nodes_of("TopK", [tensor(draw, g, (N, 3), 2), g.const([1])], 2, axis=0)
    return values


def _arg(draw: Draw, g: Graph) -> str:
    shape = shapes(draw)
    op = getattr(g, draw(st.sampled_from(("ArgMax", "ArgMin"))))
    return g.Cast(
        op(tensor(draw, g, shape, 2), axis=_axis(draw, shape), keepdims=draw(st.integers(0, 1))),
        to=11,
    )


def _one_hot(draw: Draw, g: Graph) -> str:
    ids = g.Concat(g.user(2, high=4), g.item(1, high=4), axis=1)
    return g.OneHot(ids, g.const(4), g.const(np.array([0.0, 1.0])), axis=draw(st.integers(-3, 2)))


def _trilu(draw: Draw, g: Graph) -> str:
    shape = shapes(draw, 3)
    if g.opset < 14:
        return g.Relu(tensor(draw, g, shape, 2))
    k = [g.const(draw(st.integers(-1, 1)))] if draw(st.booleans()) else []
    return g.Trilu(tensor(draw, g, shape, 2), *k, upper=draw(st.integers(0, 1)))


def _pad(draw: Draw, g: Graph) -> str:
    shape = shapes(draw)
    pads = draw(st.lists(st.integers(0, 2), min_size=2 * len(shape), max_size=2 * len(shape)))
    if draw(st.booleans()):
        pads[0] = pads[len(shape)] = 0
    return g.Pad(tensor(draw, g, shape, 2), g.const(pads), g.const(np.array(0.5)), mode="constant")


def _conv(draw: Draw, g: Graph) -> str:
    c, t = draw(st.integers(1, 3)), draw(st.integers(3, 5))
    return g.Conv(tensor(draw, g, (N, c, t), 2), g.weight(2, c, 3), pads=[1, 1])


def _pool(draw: Draw, g: Graph) -> str:
    x = tensor(draw, g, (N, 2, 4), 2)
    which = draw(st.integers(0, 2))
    if which == 0:
        return g.GlobalAveragePool(x)
    return getattr(g, ("MaxPool", "AveragePool")[which - 1])(x, kernel_shape=[2], strides=[2])


def _recurrent(draw: Draw, g: Graph) -> str:
    """GRU, LSTM or RNN over time; the batch is the candidates."""
    op = draw(st.sampled_from(("GRU", "LSTM", "RNN")))
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[op]
    t, i, h = draw(st.integers(1, 3)), draw(st.integers(1, 2)), 2
    x = g.Transpose(tensor(draw, g, (N, t, i), 2), perm=[1, 0, 2])
    inputs = [x, g.weight(1, gates * h, i), g.weight(1, gates * h, h)]
    if draw(st.booleans()):
        inputs.append(g.weight(1, 2 * gates * h))
        if draw(st.booleans()):
            inputs += ["", g.Transpose(tensor(draw, g, (N, 1, h), 1), perm=[1, 0, 2])]
    outputs = g.nodes_of(op, inputs, 2, hidden_size=h)
    return (
        g.squeeze(outputs[1], [0])
        if draw(st.booleans())
        else g.Transpose(g.squeeze(outputs[0], [1]), perm=[1, 0, 2])
    )


def _det(draw: Draw, g: Graph) -> str:
    n = draw(st.integers(1, 3))
    return g.Det(tensor(draw, g, (N, n, n), 2))


def _elements(draw: Draw, g: Graph) -> str:
    shape = (N, 2, draw(st.integers(1, 3)))
    ids = g.Cast(g.Greater(tensor(draw, g, shape, 1), g.const(np.array(0.0))), to=7)
    return g.GatherElements(tensor(draw, g, (N, 2, 3), 2), ids, axis=2)


ROOTS = [
    _along("Hardmax"), _along("Softmax"), _cumulative, _topk, _topk_of_candidates, _arg, _one_hot,
    _trilu, _pad, _conv, _pool, _recurrent, _det, _elements,
]  # fmt: skip


@st.composite
def mapped(draw: Draw) -> Graph:
    g = draw(starts(opsets=(13, 17, 18, 20, 26)))
    for _ in range(draw(st.integers(1, 2))):
        g.output(g.Sin(draw(st.sampled_from(ROOTS))(draw, g)))
    return g.output(g.Sin(g.item(2)))


@given(mapped())
def test_mapped_operators_are_the_same(g: Graph) -> None:
    check(g)


# ---- what is lifted --------------------


def test_a_recurrent_network_over_the_users_history() -> None:
    g = Graph()
    x = g.Transpose(g.user(4, 3), perm=[1, 0, 2])
    _, last = g.nodes_of("GRU", [x, g.weight(1, 6, 3), g.weight(1, 6, 2)], 2, hidden_size=2)
    g.output(g.MatMul(g.Concat(g.squeeze(last, [0]), g.item(3), axis=1), g.weight(5, 4)))
    lifted(g, per_candidate=3 * 4)


@pytest.mark.parametrize(
    "op",
    ["TopK", "CumSum", "CumProd", "ArgMax", "Conv", "MaxPool", "OneHot", "Trilu", "Pad", "GatherElements"],
)
def test_the_users_part_runs_on_one_row(op: str) -> None:
    g = Graph(26 if op == "CumProd" else 18)
    u = g.Relu(g.user(3, 4))
    y = {
        "TopK": lambda: g.nodes_of("TopK", [u, g.const([2])], 2, axis=-1)[0],
        "CumSum": lambda: g.CumSum(u, g.const(1)),
        "CumProd": lambda: g.CumProd(u, g.const(1)),
        "ArgMax": lambda: g.Cast(g.ArgMax(u, axis=2), to=11),
        "Conv": lambda: g.Cos(g.reshape(g.Transpose(u, perm=[0, 2, 1]), -1, 3, 4)),
        "MaxPool": lambda: g.MaxPool(u, kernel_shape=[2]),
        "OneHot": lambda: g.OneHot(g.Cast(u, to=7), g.const(4), g.const(np.array([0.0, 1.0]))),
        "Trilu": lambda: g.Trilu(u),
        "Pad": lambda: g.Pad(u, g.const([0, 1, 0, 0, 0, 2])),
        "GatherElements": lambda: g.GatherElements(u, g.user(3, 2, high=4), axis=2),
    }[op]()
    g.output(
        g.Add(
            g.reduce("Sum", y, [1, 2] if op != "OneHot" else [1, 2, 3], 0),
            g.reduce("Sum", g.item(2), [1], 0),
        )
    )
    lifted(g)


# ---- barriers --------------------


@pytest.mark.parametrize(
    "op", ["Softmax", "TopK", "CumSum", "CumProd", "ArgMax", "Hardmax", "Pad", "Trilu", "ReverseSequence"]
)
@pytest.mark.parametrize("whole", [True, False])
def test_along_the_candidates_all_rows_are_seen(op: str, whole: bool) -> None:
    """On [u|x] and on u alone: equal rows still count N times."""
    g = Graph(26 if op == "CumProd" else 18)
    u, x = g.Relu(g.user(3)), g.item(2)
    t = g.Concat(u, x, axis=1) if whole else u
    y = {
        "Softmax": lambda: g.Softmax(t, axis=0),
        "TopK": lambda: g.nodes_of("TopK", [t, g.const([1])], 2, axis=0)[0],
        "CumSum": lambda: g.CumSum(t, g.const(-2)),
        "CumProd": lambda: g.CumProd(t, g.const(0)),
        "ArgMax": lambda: g.Cast(g.ArgMax(t, axis=0), to=11),
        "Hardmax": lambda: g.Hardmax(t, axis=0),
        "Pad": lambda: g.Pad(t, g.const([1, 0, 0, 0])),
        "Trilu": lambda: g.Trilu(t),
        "ReverseSequence": lambda: g.ReverseSequence(
            t, g.Expand(g.size(x, 0), g.const([3 + 2 * whole])), batch_axis=1, time_axis=0
        ),
    }[op]()
    g.output(y, g.Sin(x))
    check(g)


def test_sorting_candidates_by_score() -> None:
    """All N, in order: k is a shape."""
    g = Graph()
    scores = g.MatMul(g.Concat(g.user(3), g.item(2), axis=1), g.weight(5, 1))
    values, order = g.nodes_of("TopK", [scores, g.size(scores, 0)], 2, axis=0)
    g.output(values, order)
    check(g)


def test_positions_of_nonzero_elements() -> None:
    g = Graph()
    both = g.Concat(g.Relu(g.user(3)), g.Relu(g.item(2)), axis=1)
    g.output(g.NonZero(both), g.Compress(both, g.const(np.array([True, False, True])), axis=1))
    result = check(g)
    assert actions(result)["NonZero"] == ["barrier"]


def test_unique_over_candidates() -> None:
    g = Graph()
    ids = g.Concat(g.user(2, high=3), g.item(2, high=3), axis=1)
    g.output(*g.nodes_of("Unique", [ids], 1, sorted=1))
    check(g)


def test_a_grid_with_several_mapped_inputs() -> None:
    """Data of one side, indices of the other, updates of both."""
    g = Graph()
    data, where = g.user(4), g.item(1, high=4)
    y = g.ScatterElements(data, where, g.Concat(g.user(1), axis=1), axis=1)
    g.output(
        g.Add(
            y, g.ScatterElements(g.item(4), g.user(1, high=4), g.item(1), axis=1, reduction="add")
        )
    )
    assert repeated(g, check(g)) == []
