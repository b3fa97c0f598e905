"""Operators without a rule of their own, by the function body that the standard ships."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.engine.rule import RULES
from tests.engine.checks import check, lifted, repeated
from tests.engine.graphs import Draw, Graph


def mixed(draw: Draw, g: Graph, *shape: int) -> str:
    """Users' and items' rows joined on one of the axes, in any order."""
    axis = draw(st.integers(1, len(shape)))
    sides = draw(st.permutations(("user", "item")))
    parts = []
    for side in sides:
        own = [*shape]
        own[axis - 1] = draw(st.integers(1, 3)) if axis < len(shape) else shape[-1]
        parts.append(getattr(g, side)(*own))
    return g.Concat(*parts, axis=axis) if axis < len(shape) else parts[0]


@st.composite
def normalizations(draw: Draw) -> Graph:
    g = Graph(draw(st.sampled_from((13, 18, 21))), np.float32)  # the definition has float32 constants
    x = mixed(draw, g, draw(st.integers(1, 3)), draw(st.integers(2, 3)), 2)
    axes = draw(st.sampled_from(([0, 2, 3], [2, 3], [1], [-1])))
    # along the candidates' axis candidates mix, which is for the operator to say
    return g.output(g.MeanVarianceNormalization(x, axes=axes))


@given(normalizations())
def test_a_mean_variance_normalization_is_the_same(g: Graph) -> None:
    check(g, tolerance=1e-5)


@st.composite
def rotations(draw: Draw) -> Graph:
    """RotaryEmbedding of tokens of both sides: [N, heads, T, width], or [N, T, heads * width]."""
    g = Graph(23)
    heads, tokens, half = draw(st.integers(1, 2)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    users = draw(st.integers(1, tokens - 1))
    four = draw(st.booleans())
    attrs: dict[str, int] = {"interleaved": draw(st.integers(0, 1))}
    if four:
        x = g.Concat(g.user(heads, users, 2 * half), g.item(heads, tokens - users, 2 * half), axis=2)
    else:
        attrs["num_heads"] = heads
        x = g.Concat(g.user(users, heads * 2 * half), g.item(tokens - users, heads * 2 * half), axis=1)
    angles = g.const(np.random.default_rng(0).random((16, half)))
    cos, sin = g.Cos(angles), g.Sin(angles)
    positions = g.const(np.arange(tokens)[None], np.int64)
    positions = g.Expand(positions, g.Concat(g.size(x, 0), g.const([tokens], np.int64), axis=0))
    return g.output(g.RotaryEmbedding(x, cos, sin, positions, **attrs))


@given(rotations())
def test_a_rotary_embedding_is_the_same(g: Graph) -> None:
    check(g)


@given(st.sampled_from(([3, 5], [2, 2], [4, 1])), st.sampled_from(([2, 3], [1, 2], [-2, -1])), st.booleans())
def test_a_crop_or_pad_around_the_center_is_the_same(size: list[int], axes: list[int], both: bool) -> None:
    g = Graph(18)
    x = g.user(3, 4, 2) if not both else g.Concat(g.user(3, 4, 2), g.item(3, 4, 2), axis=1)
    check(g.output(g.CenterCropPad(x, g.const(size, np.int64), axes=axes)))


def test_what_is_the_user_s_alone_is_computed_once() -> None:
    """The node leaves align_corners to its default, which the body refers to."""
    g = Graph(20, np.float32)
    theta = g.reshape(g.user(12), -1, 3, 4)
    size = g.Concat(g.size(theta, 0), g.const([1, 2, 3, 4], np.int64), axis=0)
    x = g.Concat(g.reshape(g.AffineGrid(theta, size), -1, 72), g.item(4), axis=1)
    g.output(g.MatMul(x, g.weight(76, 8)))
    result = lifted(g, check(g, tolerance=1e-5))
    assert repeated(g, result) == []
    assert {r.op: r.rule for r in result.nodes}["AffineGrid"] == "definition"


def test_a_definition_that_subtracts_squares_is_declined() -> None:
    """E[x^2] - E[x]^2 of a user whose values lie around 1000 is noise, and of equal values it may be less than 0."""
    g = Graph(18, np.float32)
    u = g.MeanVarianceNormalization(g.user(8, 16, 16), axes=[2, 3])
    x = g.Concat(g.reshape(u, -1, 8 * 256), g.item(4), axis=1)
    result = check(g.output(g.MatMul(x, g.weight(8 * 256 + 4, 8))), tolerance=1e-5)
    (node,) = (r for r in result.nodes if r.op == "MeanVarianceNormalization")
    assert node.rule == "default"
    assert "E[x^2] - E[x]^2" in (node.reason or "")


def test_what_is_the_candidates_alone_keeps_its_kernel() -> None:
    g = Graph(18, np.float32)
    x = g.Concat(g.item(2, 4), g.item(2, 4), axis=1)
    result = check(g.output(g.MeanVarianceNormalization(x, axes=[2])), tolerance=1e-5)
    assert [n.op_type for n in result.model.graph.node].count("MeanVarianceNormalization") == 1


def test_a_definition_that_costs_more_than_the_kernel_is_declined() -> None:
    """One user token of 64: the kernel passes over memory once, the definition several times."""
    g = Graph(23, np.float32)
    x = g.Concat(g.user(2, 1, 8), g.item(2, 63, 8), axis=2)
    size = g.Concat(g.size(x, 0), g.const([64], np.int64), axis=0)
    positions = g.Expand(g.const(np.arange(64)[None], np.int64), size)
    angles = g.const(np.random.default_rng(0).random((64, 4)))
    result = check(g.output(g.RotaryEmbedding(x, g.Cos(angles), g.Sin(angles), positions)), tolerance=1e-5)
    (node,) = (r for r in result.nodes if r.op == "RotaryEmbedding")
    assert node.rule == "default"
    assert "more than its kernel" in (node.reason or "")


@pytest.mark.parametrize("op", ["MeanVarianceNormalization", "RotaryEmbedding", "CenterCropPad"])
def test_they_have_no_rule_of_their_own(op: str) -> None:
    assert ("", op) not in RULES


def test_an_operator_that_the_standard_does_not_define_is_copied_and_says_so() -> None:
    g = Graph(18)
    x = g.Concat(g.user(3), g.item(2), axis=1)
    result = check(g.output(g.Unique(x)))
    (node,) = (r for r in result.nodes if r.op == "Unique")
    assert node.reason == "no rule for Unique, and no definition by other operators"
