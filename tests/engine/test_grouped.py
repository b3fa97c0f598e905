"""Convs of width 1 over groups of channels: experts as one Conv, heads, depthwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.engine import Rewrite
from mari_onnx.engine.rules import groups
from mari_onnx.engine.rules.groups import FEW
from tests.engine.checks import actions, check, lifted, repeated, traced
from tests.engine.drawing import starts, tensor
from tests.engine.graphs import Draw, Graph, N


def _channels(draw: Draw, g: Graph, count: int, per: int, rest: tuple[int, ...]) -> str:
    """[N, count * per, ..]: repeated for each group, in parts of any length, or anything."""
    which = draw(st.integers(0, 3))
    if which == 0:
        one = tensor(draw, g, (N, per, *rest), 2)
        return g.Tile(one, g.const([1, count, *(1 for _ in rest)]))
    if which == 1:
        return g.Concat(*[tensor(draw, g, (N, per, *rest), 1)] * count, axis=1)
    if which == 2:
        return tensor(draw, g, (N, count * per, *rest), 2)
    parts, left = [], count * per
    while left:
        size = draw(st.integers(1, left))
        parts.append(draw(st.sampled_from((g.user, g.item)))(size, *rest))
        left -= size
    return g.Concat(*parts, axis=1)


@st.composite
def graphs(draw: Draw) -> Graph:
    g = draw(starts())
    count, per, out = draw(st.integers(2, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    rest = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    x = _channels(draw, g, count, per, rest)
    bias = [g.weight(count * out)] if draw(st.booleans()) else []
    y = g.Conv(x, g.weight(count * out, per, *(1 for _ in rest)), *bias, group=count)
    if draw(st.booleans()):
        y = g.reduce("Sum", g.reshape(y, -1, count, out, *rest), [1], keepdims=0)
    return g.output(y)


@given(graphs(), st.booleans())
def test_a_grouped_conv_of_width_one_is_the_same(g: Graph, always: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if always:  # graphs as small as these save too little for groups by themselves
            patch.setattr(groups, "_saves", lambda *_: True)
        check(g)


def _conv(g: Graph, x: str, channels: int, count: int, out: int) -> Graph:
    y = g.Conv(g.unsqueeze(x, 2), g.weight(count * out, channels // count, 1), g.weight(count * out), group=count)
    return g.output(y)


def test_experts_as_a_conv_over_repeated_features() -> None:
    g = Graph()
    both = g.Concat(g.user(9), g.item(3), axis=1)
    lifted(_conv(g, g.Tile(both, g.const([1, 4])), 48, 4, 5), per_candidate=4 * 3 * 5)


def test_experts_as_a_conv_over_a_concat_of_repeated_features() -> None:
    g = Graph()
    both = [g.user(9), g.item(3)] * 4
    lifted(_conv(g, g.Concat(*both, axis=1), 48, 4, 5), per_candidate=4 * 3 * 5)


def test_groups_of_one_side_each() -> None:
    g = Graph()
    lifted(_conv(g, g.Concat(g.user(6), g.item(6), axis=1), 12, 2, 5), per_candidate=6 * 5)


@pytest.mark.parametrize("computed", [False, True])
def test_tokens_of_the_user_are_multiplied_once(computed: bool) -> None:
    """[N, channels, tokens], as SqueezeBERT has them: weights of all groups, or weights that are computed."""
    g = Graph()
    x = g.Concat(g.user(6, 9), g.item(6, 2), axis=2)
    weight = g.weight(8, 3, 1)
    if computed:
        weight = g.Mul(weight, g.reduce("Mean", g.user(1, 1), [0]))
    result = check(g.output(g.Conv(x, weight, g.weight(8), group=2), g.item(1)))
    assert repeated(g, result) == []


def test_a_token_that_stands_for_all_is_one_position_of_the_conv() -> None:
    """Mixed channels that do not vary along the tokens."""
    g = Graph()
    x = g.expand(g.unsqueeze(g.Mul(g.user(6), g.item(6)), 2), 1, 1, 9)
    result = check(g.output(g.Conv(x, g.weight(8, 3, 1), g.weight(8), group=2)))
    (node,) = (n for n in result.model.graph.node if n.op_type == "Conv")
    assert traced(result.model, g.feeds(3, once=True))[node.output[0]].shape == (3, 8, 1)


def _ragged() -> Graph:
    """Parts that meet within each of two groups, so that no axis of groups can be cut out of the Cat."""
    g = Graph()
    return _conv(g, g.Concat(g.user(46), g.item(4), g.user(46), axis=1), 96, 2, 5)


def _convs(result: Rewrite) -> int:
    return sum(n.op_type == "Conv" for n in result.model.graph.node)


def test_groups_in_which_parts_meet_are_taken_one_by_one() -> None:
    result = check(_ragged(), candidates=10**6)
    assert _convs(result) == 0
    lifted(_ragged(), result, per_candidate=4 * 5)


def test_groups_that_save_too_little_stay_one_conv() -> None:
    result = check(_ragged(), candidates=10)
    assert _convs(result) == 1
    assert [n.reason for n in result.nodes if n.op == "Conv"] == [FEW.format(2)]


@pytest.mark.parametrize("side", ["item", "cross"])
def test_channels_of_one_tensor_stay_one_conv(side: str) -> None:
    g = Graph()
    result = check(_conv(g, g.Relu(g.input(side, N, 12)), 12, 3, 2))
    assert _convs(result) == 1
    assert actions(result)["Conv"] == ["kept"]


def test_a_user_s_grouped_conv_runs_once() -> None:
    g = Graph()
    u = g.Conv(g.unsqueeze(g.user(12), 2), g.weight(6, 4, 1), group=3)
    result = check(g.output(g.Concat(u, g.item(2, 1), axis=1)))
    assert _convs(result) == 1
    assert actions(result)["Conv"] == ["lifted"]


@pytest.mark.parametrize("attrs", [{"strides": [2]}, {"pads": [1, 1]}])
def test_strided_and_padded_groups_are_a_conv_for_each_side(attrs: dict[str, list[int]]) -> None:
    g = Graph()
    x = g.Concat(g.user(6, 4), g.item(6, 4), axis=1)
    result = check(g.output(g.Conv(x, g.weight(4, 6, 1), group=2, **attrs)))
    assert _convs(result) == 2
    assert repeated(g, result) == []


def test_strided_groups_in_which_sides_meet_differently_stay() -> None:
    g = Graph()
    x = g.Concat(g.user(5, 4), g.item(7, 4), axis=1)
    assert _convs(check(g.output(g.Conv(x, g.weight(4, 6, 1), group=2, strides=[2])))) == 1
