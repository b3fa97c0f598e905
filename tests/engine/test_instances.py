"""InstanceNormalization by channels and GroupNormalization by groups, where these lie on one side."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.engine import Rewrite
from tests.engine.checks import check, lifted, repeated, traced
from tests.engine.drawing import tensor
from tests.engine.graphs import Draw, Graph, N

NORM = "InstanceNormalization"


def channels(g: Graph, sides: str, *rest: int) -> str:
    """[N, channels, ..], a channel of "u" or "x" each."""
    one = [(g.user if s == "u" else g.item)(1, *rest) for s in sides]
    return g.Concat(*one, axis=1) if len(one) > 1 else one[0]


def normalized(g: Graph, result: Rewrite) -> float:
    """Elements that one more candidate has normalized."""
    nodes = [n for n in result.model.graph.node if n.op_type in (NORM, "GroupNormalization")]
    few, many = (traced(result.model, g.feeds(n, once=result.changed)) for n in (3, 7))
    return sum(many[n.output[0]].size - few[n.output[0]].size for n in nodes) / 4


def checked(g: Graph) -> Rewrite:
    """onnx's checker refuses the GroupNormalization of opset 18, which its authors took back, and files still have."""
    with pytest.MonkeyPatch.context() as patch:
        if g.opset < 21:
            patch.setattr(onnx.checker, "check_model", lambda _: None)
        return check(g, tolerance=1e-8)


@st.composite
def instances(draw: Draw) -> Graph:
    g = Graph(draw(st.sampled_from((11, 17, 20))), seed=draw(st.integers(0, 3)))
    number = draw(st.integers(1, 5))
    rest = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    x = tensor(draw, g, (N, number, *rest), 3)
    scale, bias = g.weight(number), g.weight(number)
    if draw(st.integers(0, 4)) == 0:
        scale = g.squeeze(g.reduce("Mean", g.user(number), [0]), [0])
    y = g.InstanceNormalization(x, scale, bias, epsilon=draw(st.sampled_from((1e-5, 0.1))))
    return g.output(g.Sin(g.Flatten(y)), g.Mul(g.user(1), g.item(1)))


@given(instances())
def test_instances_are_the_same(g: Graph) -> None:
    check(g, tolerance=1e-8)


@st.composite
def groups(draw: Draw) -> Graph:
    """Before opset 21 with a scale for each group, from then on for each channel."""
    g = Graph(draw(st.sampled_from((18, 20, 21))), seed=draw(st.integers(0, 3)))
    number, each = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rest = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    if draw(st.booleans()):
        sides = "".join(draw(st.sampled_from("ux")) * each for _ in range(number))
        if draw(st.booleans()):
            sides = "x" + sides[1:]
        x = channels(g, sides, *rest)
    else:
        x = tensor(draw, g, (N, number * each, *rest), 2)
    how = {"epsilon": draw(st.sampled_from((1e-5, 0.1))), "num_groups": number}
    if g.opset >= 21:
        how["stash_type"] = 11
    size = number * each if g.opset >= 21 else number
    y = g.GroupNormalization(x, g.weight(size), g.weight(size), **how)
    return g.output(g.Sin(y), g.Mul(g.user(1), g.item(1)))


@given(groups())
def test_groups_are_the_same(g: Graph) -> None:
    checked(g)


def test_channels_of_the_user_once() -> None:
    g = Graph(17)
    x = g.Concat(g.Relu(g.user(5, 4)), g.item(3, 4), axis=1)
    y = g.InstanceNormalization(x, g.weight(8), g.weight(8))
    result = lifted(g.output(g.MatMul(g.Flatten(y), g.weight(32, 6))), per_candidate=12 * 6)
    assert normalized(g, result) == 12


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize(("sides", "each"), [("uuuuxx", 2), ("uuuxxx", 4), ("xxuuuu", 2), ("uxuxux", 6)])
def test_groups_of_the_user_once(opset: int, sides: str, each: int) -> None:
    """Three groups of two channels; one that has both sides has the candidates."""
    g = Graph(opset)
    how = {"stash_type": 11} if opset >= 21 else {}
    size = 6 if opset >= 21 else 3
    g.output(g.GroupNormalization(channels(g, sides, 5), g.weight(size), g.weight(size), num_groups=3, **how))
    result = checked(g)
    assert normalized(g, result) == each * 5
    assert repeated(g, result) == []


def test_a_norm_over_both_sides_is_left() -> None:
    """Of a Cat along what is normalized there is one operator, over the batch."""
    g = Graph(17)
    x = g.Concat(g.user(3, 4), g.item(3, 2), axis=2)
    result = check(g.output(g.InstanceNormalization(x, g.weight(3), g.weight(3))))
    assert normalized(g, result) == 18


def test_statistics_in_another_precision_are_left() -> None:
    g = Graph(21)
    x = channels(g, "uuxx", 3)
    g.output(g.GroupNormalization(x, g.weight(4), g.weight(4), num_groups=2))
    result = check(g, tolerance=1e-6)
    assert any(n.op_type == "GroupNormalization" for n in result.model.graph.node)


def test_channels_that_are_the_candidates_are_apart_as_well() -> None:
    """[1, N, ..]: each candidate is a channel; its scale is a number for each of them."""
    g = Graph(17)
    x = g.unsqueeze(g.Concat(g.user(4), g.item(2), axis=1), 0)
    one = g.Expand(g.const(np.array([1.0])), g.size(x, 1))
    check(g.output(g.InstanceNormalization(x, one, one), g.InstanceNormalization(g.unsqueeze(g.user(4), 0), one, one)))
