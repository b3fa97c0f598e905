"""What is said of elements holds: without the candidate, or without the user, they are the same for other inputs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.engine import Options, rewrite
from mari_onnx.engine.dependence import CANDIDATE, USER, dependence
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Leaf, Value
from tests.engine.checks import traced
from tests.engine.graphs import Draw, Graph

D = 4


@st.composite
def models(draw: Draw) -> Graph:
    """Tokens of both sides, mixed by exchange of columns, masks, attention, norms and columns that are interleaved."""
    g = Graph(18, seed=draw(st.integers(0, 3)))
    users, items = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    total = users + items
    parts = [g.user(users, D), g.item(items, D)]
    h = g.Concat(*(parts if draw(st.booleans()) else parts[::-1]), axis=1)
    for _ in range(draw(st.integers(1, 3))):
        which = draw(st.sampled_from(("mask", "attention", "norm", "ffn", "turn", "mean")))
        if which == "mask":
            mask = np.outer(np.arange(total) < draw(st.integers(1, total)), np.arange(D) < draw(st.integers(1, D)))
            h = g.Where(g.const(mask), h, g.const(np.array(0.5)))
        elif which == "attention":
            scores = g.MatMul(h, g.Transpose(h, perm=[0, 2, 1]))
            h = g.Add(h, g.MatMul(g.Softmax(scores, axis=-1), h))
        elif which == "norm":
            h = g.LayerNormalization(h, g.weight(D), g.weight(D), axis=-1)
        elif which == "ffn":
            h = g.Relu(g.MatMul(h, g.weight(D, D)))
        elif which == "turn":
            h = g.reshape(g.Transpose(h, perm=[0, 2, 1]), -1, total, D)
        else:
            h = g.Add(h, g.reduce("Mean", h, [draw(st.sampled_from((1, 2)))]))
    return g.output(g.Tanh(h))


@given(models())
def test_elements_that_do_not_depend_on_it_are_the_same(g: Graph) -> None:
    model = g.model()
    found = rewrite(model, g.sides, Options(depends=True)).depends
    first, second = g.feeds(3), g.feeds(3, request=1)
    runs = {
        CANDIDATE: ({**first, "x1": second["x1"]}, "candidate"),
        USER: ({**first, "u0": second["u0"]}, "user"),
    }
    before = traced(model, first)
    for bit, (feeds, what) in runs.items():
        after = traced(model, feeds)
        for name, bits in found.items():
            if name in before:
                same = np.broadcast_to(bits & bit == 0, before[name].shape)
                np.testing.assert_array_equal(before[name][same], after[name][same], err_msg=f"{name}: {what}")
    assert any((bits == USER).any() for bits in found.values())


def test_a_tensor_of_unknown_rank_or_of_many_elements_is_not_told_apart() -> None:
    b = Builder(18)
    tensor = b.input("x", 1, None, frozenset({"item"}))
    assert dependence(Value(None, Leaf(tensor, ()), 1)) is None
    axis = Axis(1 << 23)
    wide = b.input("y", 1, (1 << 23,), frozenset({"user"}))
    assert dependence(Value(((axis,),), Leaf(wide, (axis,)), 1)) is None
