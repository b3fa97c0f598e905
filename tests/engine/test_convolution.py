"""Conv as a linear operator: the user's channels and the user's taps of a window are summed once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from mari_onnx.engine import Rewrite
from tests.engine.checks import check, repeated, traced
from tests.engine.drawing import tensor
from tests.engine.graphs import Draw, Graph, N
from tests.engine.test_windows import MANY, fields


def each(g: Graph, result: Rewrite) -> float:
    """Multiply-adds of Convs and products that one more candidate costs."""
    few, many = (traced(result.model, g.feeds(n, once=result.changed)) for n in (3, 7))
    total = 0
    for node in result.model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            inner = few[node.input[1]][0].size if node.op_type == "Conv" else few[node.input[0]].shape[-1]
            if any(a.name == "transA" and a.i for a in node.attribute):
                inner = few[node.input[0]].shape[0]
            total += (many[node.output[0]].size - few[node.output[0]].size) * inner
    return total / 4


def channels(g: Graph, sides: str, *rest: int) -> str:
    """[N, channels, ..], a channel of "u" or "x" each."""
    one = [(g.user if s == "u" else g.item)(1, *rest) for s in sides]
    return g.Concat(*one, axis=1) if len(one) > 1 else one[0]


def also(g: Graph, *names: str) -> Graph:
    return g.output(*names, g.Mul(g.user(1), g.item(1)))


@st.composite
def convolved(draw: Draw) -> Graph:
    """Of any expression, with Cats along channels and space and tensors that lack them; any window."""
    g = Graph(draw(st.sampled_from((11, 17, 21))), seed=draw(st.integers(0, 3)))
    spatial = draw(st.integers(1, 2))
    size = draw(st.lists(st.integers(1, 6), min_size=spatial, max_size=spatial))
    group = draw(st.sampled_from((1, 1, 1, 2, 3)))
    number = group * draw(st.integers(1, 3))
    which = draw(st.integers(0, 4))
    if which == 0:
        sides = draw(st.text("ux", min_size=number, max_size=number))
        x = channels(g, sides, *size)
    elif which == 1:
        u, x = (tensor(draw, g, (N, number, *s), 1) for s in ([1] * spatial, [1, *size[1:]]))
        v = tensor(draw, g, (N, number, *size), 2)
        x = g.Concat(g.expand(u, 1, 1, *size), v, g.expand(x, 1, 1, *size), axis=1)
        number *= 3
    elif which == 2:
        x = g.expand(tensor(draw, g, (N, number, *[1] * spatial), 2), 1, 1, *size)
    else:
        x = tensor(draw, g, (N, number, *size), 3)
    kernel = draw(st.lists(st.integers(1, 4), min_size=spatial, max_size=spatial))
    kernel = [k + draw(st.sampled_from((0, 0, 0, 9))) for k in kernel]
    how: dict[str, object] = {"group": group, "strides": [draw(st.integers(1, 3)) for _ in kernel]}
    auto = draw(st.sampled_from(("NOTSET", "NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")))
    if draw(st.booleans()):
        kernel = [draw(st.sampled_from((k, s))) for k, s in zip(kernel, size, strict=True)]
    if auto == "NOTSET":
        how["pads"] = [draw(st.integers(0, k)) for k in kernel * 2]
        how["dilations"] = [draw(st.integers(1, 2)) for _ in kernel]
    else:
        how["auto_pad"] = auto
    if auto.startswith("SAME"):
        how["strides"] = [min(k, s) for k, s in zip(kernel, how["strides"], strict=True)]  # type: ignore[call-overload]
    total = [s + sum(how.get("pads", [0] * 2 * spatial)[i::spatial]) for i, s in enumerate(size)]  # type: ignore[index]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, how.get("dilations", [1] * spatial), strict=True)]  # type: ignore[call-overload]
    if not auto.startswith("SAME") and any(t < r for t, r in zip(total, reach, strict=True)):
        reject()
    out = group * draw(st.integers(1, 2))
    bias = [g.weight(out)] if draw(st.booleans()) else []
    y = g.Conv(x, g.weight(out, number // group, *kernel), *bias, **how)
    try:
        also(g, g.Tanh(y)).model()
    except (RuntimeError, ValueError):  # the reference evaluator cannot run some of them
        reject()
    return g


@given(convolved(), st.sampled_from((30, MANY)))
def test_convolutions_are_the_same(g: Graph, candidates: int) -> None:
    check(g, candidates=candidates)


@pytest.mark.parametrize("shape", [(7,), (3, 4)])
def test_channels_of_the_user_once(shape: tuple[int, ...]) -> None:
    g = Graph(17)
    x, weight = channels(g, "uuuuuuuuuuuxxu", *shape), g.weight(5, 14, *[3] * len(shape))
    y = g.Conv(x, weight, g.weight(5), pads=[1] * 2 * len(shape))
    result = check(also(g, y), candidates=MANY)
    assert each(g, result) == 5 * 2 * int(np.prod(shape)) * 3 ** len(shape)
    assert repeated(g, result) == []


@pytest.mark.parametrize(
    ("sides", "group", "channels_of_items"),
    [("u" * 10 + "xx", 12, 2), ("uuuuuuxxuuuu", 6, 2), ("uuuuuxuuuuux", 2, 2), ("uuxx" + "uuuu" * 2, 3, 4)],
)
def test_channels_in_groups_of_the_user_once(sides: str, group: int, channels_of_items: int) -> None:
    """Groups of one side each, depthwise or not; the user's channels of every group; one group of both sides."""
    g = Graph(17)
    x, per = channels(g, sides, 20), len(sides) // group
    y = g.Conv(x, g.weight(2 * group, per, 5), g.weight(2 * group), pads=[2, 2], group=group)
    result = check(also(g, y), candidates=MANY)
    assert each(g, result) == (channels_of_items if group != 3 else 12) * 20 * 5 * 2
    assert repeated(g, result) == []


@pytest.mark.parametrize(
    ("sides", "how", "taps"),
    [
        ("uuuuuuuux", {"pads": [3, 0]}, 1),  # causal, the candidate last
        ("uuuuuuuux", {"pads": [1, 2]}, 3),
        ("uuuuxuuuu", {"pads": [0, 0]}, 4),
        ("uuuuuuuux", {"pads": [6, 0], "dilations": [2]}, 1),
        ("uuuuxuuuu", {"pads": [6, 0], "dilations": [2]}, 3),
        ("uuuuuuxx", {"pads": [0, 0], "strides": [2]}, 2),
        ("uuux", {}, 1),  # a single window
    ],
)
def test_taps_of_the_candidate(sides: str, how: dict[str, object], taps: int) -> None:
    """A kernel of 4 over 16 channels: what one more candidate costs are the taps that read it."""
    g = Graph(17)
    one = [(g.user if s == "u" else g.item)(16, 1) for s in sides]
    y = g.Conv(g.Concat(*one, axis=2), g.weight(5, 16, 4), g.weight(5), **how)
    result = check(also(g, y), candidates=MANY)
    assert each(g, result) == taps * 16 * 5
    assert repeated(g, result) == []


@pytest.mark.parametrize("sides", ["uuuuuuuuuuxx", "uxuuuuuuuuux", "xuuuuuuuuuuu"])
def test_a_kernel_wider_than_the_axis_is_one_product(sides: str) -> None:
    """Every window lies on all fields, as CCPM's: of the user's, a row for each of its results is summed once."""
    g = Graph(17)
    y = g.Conv(fields(g, sides, 3, 2), g.weight(5, 2, 30, 1), g.weight(5), auto_pad="SAME_UPPER")
    result = check(also(g, y), candidates=MANY)
    assert each(g, result) == sides.count("x") * 3 * 2 * 5 * len(sides)
    assert repeated(g, result) == []


def test_windows_as_wide_as_the_rows() -> None:
    """A horizontal filter over [history | candidate] reads whole rows, a vertical one whole columns."""
    g = Graph(17)
    x = fields(g, "uuuuuuux", 6, 2)
    wide, high = g.Conv(x, g.weight(4, 2, 3, 6)), g.Conv(x, g.weight(2, 2, 8, 1))
    result = check(also(g, wide, high), candidates=MANY)
    assert each(g, result) == 4 * 2 * 6 + 2 * 2 * 6
    assert repeated(g, result) == []


def test_a_target_beside_every_step_is_multiplied_once() -> None:
    """[history | target] along the channels: the target is the same for all steps but for the padding."""
    g = Graph(17)
    x = g.Concat(g.user(3, 9), g.expand(g.item(4, 1), 1, 1, 9), axis=1)
    y = g.Conv(x, g.weight(5, 7, 3), g.weight(5), pads=[1, 1])
    result = check(also(g, y), candidates=MANY)
    assert each(g, result) == 4 * 5 * 3


def test_layers_of_dilated_convolutions() -> None:
    """Causal with residuals, as NextItNet: one step of each layer for a candidate."""
    g = Graph(17)
    x = g.Transpose(g.Concat(g.user(12, 4), g.item(1, 4), axis=1), perm=[0, 2, 1])
    for dilation in (1, 2, 4):
        pad = g.Pad(x, g.const([0, 0, 2 * dilation, 0, 0, 0], np.int64))
        x = g.Add(x, g.Relu(g.Conv(pad, g.weight(4, 4, 3), g.weight(4), dilations=[dilation])))
    result = check(also(g, g.slice(x, 12, 13, 2)), candidates=MANY)
    assert each(g, result) == 3 * 4 * 4
    assert repeated(g, result) == []


@pytest.mark.parametrize("how", ["apart", "across", "repeated"])
def test_groups_of_one_element_are_products(how: str) -> None:
    """Groups of one side; columns of both in every group; one row for all groups, gated by constants as DANet does."""
    g = Graph(17)
    weight, bias = g.weight(12, 8, 1), g.weight(12)
    if how == "apart":
        x = channels(g, "u" * 16 + "x" * 8, 5)
    elif how == "across":
        x = g.reshape(g.Concat(g.user(3, 5), g.item(3, 3), axis=2), -1, 24, 1)
    else:
        both = g.unsqueeze(g.Concat(g.user(5), g.item(3), axis=1), 1)
        x = g.reshape(g.Mul(both, g.weight(3, 8)), -1, 24, 1)
    result = check(also(g, g.Conv(x, weight, bias, group=3)), candidates=MANY)
    assert each(g, result) == (4 * 8 * 5 if how == "apart" else 12 * 3)
    assert repeated(g, result) == []


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_what_saves_less_than_a_node_is_left() -> None:
    g = Graph(17)
    y = g.Conv(channels(g, "uuxxx", 4), g.weight(2, 5, 3))
    result = check(also(g, y), candidates=10)
    assert sum(n.op_type == "Conv" for n in result.model.graph.node) == 1
    assert any("channels" in (n.reason or "") for n in result.nodes)


@pytest.mark.parametrize("computed", ["weights", "bias"])
def test_weights_and_biases_that_are_computed_are_left(computed: str) -> None:
    g = Graph(17)
    weight, bias = g.weight(5, 4, 3), g.weight(5)
    if computed == "weights":
        weight = g.Mul(weight, g.reduce("Mean", g.user(1, 1), [0]))
    else:
        bias = g.Mul(bias, g.squeeze(g.reduce("Mean", g.user(1), [0]), [0]))
    result = check(also(g, g.Conv(channels(g, "uuux", 6), weight, bias)), candidates=MANY)
    assert sum(n.op_type == "Conv" for n in result.model.graph.node) == 1


def test_windows_over_both_sides_with_others_that_move_are_left() -> None:
    """A kernel that also moves along the other axis is a Conv on the slice, with its padding."""
    g = Graph(17)
    y = g.Conv(fields(g, "uuuuuuux", 6), g.weight(4, 1, 3, 3), pads=[0, 1, 0, 1])
    result = check(also(g, y), candidates=MANY)
    assert each(g, result) == 4 * 6 * 9


def test_many_windows_over_both_sides_are_left() -> None:
    g = Graph(17)
    result = check(also(g, g.Conv(fields(g, "ux" * 10, 2), g.weight(3, 1, 3, 1))), candidates=MANY)
    assert each(g, result) == 3 * 18 * 2 * 3


def test_a_bias_that_is_computed_leaves_the_windows_of_one_side() -> None:
    g = Graph(17)
    bias = g.Mul(g.weight(3), g.squeeze(g.reduce("Mean", g.user(1), [0]), [0]))
    result = check(also(g, g.Conv(fields(g, "uuuuuuuxx", 2), g.weight(3, 1, 3, 1), bias)), candidates=MANY)
    assert each(g, result) == 3 * 2 * 2 * 3
