"""Positions of a token axis that no output reads are not computed, and what is read stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mari_onnx.engine.lookahead.shapes import grows_large
from tests.engine.checks import check, lifted, macs_each
from tests.engine.drawing import signed
from tests.engine.graphs import Draw, Graph
from tests.engine.test_windows import MANY, computed

D = 4


def tokens(g: Graph, length: int | str, items: int) -> str:
    """[N, length + items, D]."""
    return g.Concat(g.user(length, D), g.item(items, D), axis=1)


def attention(g: Graph, x: str, packed: bool = False, causal: np.ndarray | None = None) -> str:
    if packed:
        q, k, v = g.split(g.Add(g.MatMul(x, g.weight(D, 3 * D)), g.weight(3 * D)), [D] * 3, 2)
    else:
        q, k, v = (g.Add(g.MatMul(x, g.weight(D, D)), g.weight(D)) for _ in range(3))
    scores = g.MatMul(q, g.Transpose(k, perm=[0, 2, 1]))
    if causal is not None:
        scores = g.Where(g.const(causal, bool), scores, g.const(np.array(-1e9)))
    return g.Add(x, g.MatMul(g.Softmax(scores, axis=-1), v))


def relative(g: Graph, x: str, total: int, how: str) -> str:
    """Self-attention with a score for each distance, which a shift brings to its key: Transformer-XL pads, XLNet and
    Funnel turn a table of twice the length, others gather.
    """
    wide = total if "pad" in how else 2 * total
    by_distance = g.MatMul(g.MatMul(x, g.weight(D, D)), g.weight(D, wide))
    places = np.array([[total - q + k for k in range(total)] for q in range(total)])
    if how == "elements":
        index = g.Expand(g.const(places[None]), g.Concat(g.size(x, 0), g.const([1, 1]), axis=0))
        shifted = g.GatherElements(by_distance, index, axis=2)
    elif how == "flat":
        flat = g.reshape(by_distance, 0, total * wide)
        shifted = g.Gather(flat, g.const(places + wide * np.arange(total)[:, None]), axis=1)
    else:
        if how == "pad":
            by_distance = g.Pad(by_distance, g.const([0, 0, 1, 0, 0, 0]), g.const(0.0))
        if how == "torch pad":  # pads of the last dimension first, which torch.onnx turns
            zeros = g.ConstantOfShape(g.const([4]), value=helper.make_tensor("zero", TensorProto.INT64, [1], [0]))
            pads = g.reshape(g.Concat(g.const([1, 0]), zeros, axis=0), -1, 2)
            pads = g.reshape(g.Transpose(g.slice(pads, -1, -(2**31), 0, -1), perm=[1, 0]), -1)
            by_distance = g.Pad(by_distance, pads, g.const(0.0))
        turned = g.Reshape(by_distance, g.Concat(g.size(x, 0), g.size(by_distance, 2), g.size(x, 1), axis=0))
        cut = g.slice(turned, 1, 2**31 - 1, 1)
        shifted = g.reshape(cut, 0, total, -1)
        if how == "range":
            count = g.Gather(g.Shape(x), g.const(1), axis=0)
            shifted = g.Gather(shifted, g.Range(g.const(0), count, g.const(1)), axis=2)
        elif how == "slice":
            shifted = g.Slice(shifted, g.const([0]), g.size(x, 1), g.const([2]))
    scores = g.Add(g.MatMul(g.MatMul(x, g.weight(D, D)), g.Transpose(x, perm=[0, 2, 1])), shifted)
    return g.Add(x, g.MatMul(g.Softmax(scores, axis=-1), x))


SHIFTS = ("range", "slice", "pad", "torch pad", "elements", "flat")


def norm(g: Graph, x: str) -> str:
    return g.LayerNormalization(x, g.weight(D), g.weight(D), axis=-1)


def feed_forward(g: Graph, x: str) -> str:
    hidden = g.Relu(g.Add(g.MatMul(x, g.weight(D, 2 * D)), g.weight(2 * D)))
    return g.Add(x, g.MatMul(hidden, g.weight(2 * D, D)))


def step(draw: Draw, g: Graph, x: str, total: int) -> str:
    """[N, total, D] -> [N, total, D]."""
    kinds = ("attention", "packed", "causal", "norm", "ffn", "rows", "gate", "mix", "turn", "write")
    which = draw(st.sampled_from((*kinds, "windows", "unfold", "relative")))
    if which in ("attention", "packed"):
        return attention(g, x, which == "packed")
    if which == "relative":
        return relative(g, x, total, draw(st.sampled_from(SHIFTS)))
    if which == "causal":
        return attention(g, x, draw(st.booleans()), np.tril(np.ones((total, total), bool)))
    if which == "norm":
        return norm(g, x)
    if which == "ffn":
        return feed_forward(g, x)
    if which == "rows":
        flat = g.Gemm(g.reshape(x, -1, D), g.weight(D, D), g.weight(D), transB=draw(st.integers(0, 1)))
        return g.reshape(flat, -1, total, D)
    if which == "gate":
        mean = g.reduce("Mean", x, [draw(st.sampled_from((1, 2, -1)))])
        return g.Mul(x, g.Sigmoid(g.Sub(mean, g.weight(total, 1))))
    if which == "mix":
        left, right = g.split(x, [1, D - 1], 2)
        return g.Concat(g.Sin(right), left, axis=2)
    if which == "windows":
        return windows(draw, g, x)
    if which == "unfold":
        return unfold(draw, g, x, total)
    if which == "turn":
        turned = g.Einsum(x, g.weight(D, D), equation="ntd,de->etn")
        return g.Transpose(g.Tanh(turned), perm=[2, 1, 0])
    at = draw(st.integers(0, total - 1))
    index = g.const(np.full((1, 1, 1), at), np.int64)
    row = g.Sin(g.slice(x, at, at + 1, 1))
    return g.ScatterElements(x, g.Expand(index, g.Shape(row)), row, axis=1)


def windows(draw: Draw, g: Graph, x: str) -> str:
    """A convolution or a pooling over the tokens, as many as before."""
    y = g.Transpose(x, perm=[0, 2, 1])
    kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    before = draw(st.integers(0, (kernel - 1) * dilation))
    how: dict[str, object] = {"pads": [before, (kernel - 1) * dilation - before], "dilations": [dilation]}
    same = draw(st.sampled_from((None, "SAME_UPPER", "SAME_LOWER")))
    if same:
        how = {"auto_pad": same}
    if draw(st.booleans()):
        group = draw(st.sampled_from((1, 2, D)))
        y = g.Conv(y, g.weight(D, D // group, kernel), group=group, kernel_shape=[kernel], **how)
    else:
        op = draw(st.sampled_from((g.MaxPool, g.AveragePool)))
        y = op(y, kernel_shape=[3], pads=[1, 1])
    return g.Transpose(y, perm=[0, 2, 1])


def unfold(draw: Draw, g: Graph, x: str, total: int) -> str:
    """Windows by indices that are computed from the number of tokens, each with weights of its own token."""
    kernel = draw(st.integers(1, 3))
    padded = g.Pad(x, g.const([0, kernel - 1, 0, 0, 0, 0], np.int64))
    start = g.Range(g.const(0, np.int64), g.Squeeze(g.size(x, 1)), g.const(1, np.int64))
    index = g.Add(g.unsqueeze(start, 1), g.const(np.arange(kernel)[None], np.int64))
    if draw(st.booleans()):
        wide = g.Transpose(g.Gather(padded, index, axis=1), perm=[0, 1, 3, 2])
    else:
        wide = g.Transpose(g.Gather(padded, g.Transpose(index, perm=[1, 0]), axis=1), perm=[0, 2, 3, 1])
    weights = g.Softmax(g.MatMul(x, g.weight(D, kernel)), axis=-1)
    return g.reshape(g.MatMul(wide, g.unsqueeze(weights, 3)), -1, total, D)


def reader(draw: Draw, g: Graph, x: str, total: int) -> str:
    which = draw(st.sampled_from(("one", "some", "range", "split", "mean", "last")))
    axis = signed(draw, 1, 3)
    if which == "one":
        return g.Gather(x, g.const(draw(st.integers(-total, total - 1)), np.int64), axis=axis)
    if which == "last":
        return g.Gather(x, g.const(np.array([-1]), np.int64), axis=axis)
    if which == "some":
        places = draw(st.lists(st.integers(-total, total - 1), min_size=1, max_size=3))
        return g.Gather(x, g.const(places, np.int64), axis=axis)
    start = draw(st.integers(0, total - 1))
    if which == "split":
        return g.split(x, [start, total - start], 1)[1] if start else g.split(x, [1, total - 1], 1)[0]
    part = g.slice(x, start, draw(st.integers(start + 1, total)), 1)
    return g.reduce("Mean", part, [1], 0) if which == "mean" else part


@st.composite
def models(draw: Draw) -> Graph:
    g = Graph(draw(st.sampled_from((18, 20, 23))), seed=draw(st.integers(0, 3)))
    length, items = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    x = tokens(g, length, items)
    for _ in range(draw(st.integers(1, 4))):
        x = step(draw, g, x, length + items)
    readers = [reader(draw, g, x, length + items) for _ in range(draw(st.integers(1, 2)))]
    g.output(*(g.Tanh(r) for r in readers))
    try:
        g.model()
    except (IndexError, RuntimeError, TypeError, ValueError):  # the reference evaluator cannot run some windows
        reject()
    return g


@given(models())
def test_what_is_read_stays_the_same(g: Graph) -> None:
    check(g)


@st.composite
def histories(draw: Draw) -> Graph:
    """A history of a length that is known at run time alone, of which the first or the last position is read."""
    g = Graph(20, seed=draw(st.integers(0, 3)))
    x = g.user("T", D)
    if draw(st.booleans()):
        x = g.Add(x, g.unsqueeze(g.item(D), 1))
    for _ in range(draw(st.integers(1, 3))):
        which = draw(st.sampled_from(("attention", "packed", "norm", "ffn")))
        x = attention(g, x, which == "packed") if which in ("attention", "packed") else x
        x = norm(g, x) if which == "norm" else feed_forward(g, x)
    at = draw(st.sampled_from((0, -1)))
    read = g.Gather(x, g.const(at, np.int64), axis=1)
    if draw(st.booleans()):
        read = g.reshape(g.slice(x, at, 1 if at == 0 else 2**31 - 1, 1), -1, D)
    return g.output(g.MatMul(g.Concat(read, g.item(2), axis=1), g.weight(D + 2, 2)))


@given(histories())
def test_of_a_dynamic_history_too(g: Graph) -> None:
    check(g)


def last_layer(read: int, packed: bool = False) -> Graph:
    """Two layers over 3 user tokens and 2 item tokens, of which one is read."""
    g = Graph(18)
    x = feed_forward(g, norm(g, attention(g, tokens(g, 3, 2))))
    x = feed_forward(g, norm(g, attention(g, x, packed)))
    return g.output(g.MatMul(g.Gather(x, g.const(read, np.int64), axis=1), g.weight(D, 3)))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("read", [0, 4])
def test_the_last_layer_is_computed_for_the_position_that_is_read(read: int, packed: bool) -> None:
    # q, k and v of 2 item tokens; all scores but the user's; all sums
    first_attention = 2 * D * D * 3 + 25 * D * 2 - 9 * D
    first = first_attention + 5 * 2 * D * 2 * D
    last = D * D + 5 * D * D * 2 + 2 * 5 * D + 2 * D * 2 * D + D * 3
    g = last_layer(read, packed)
    result = check(g)
    assert macs_each(g, result) == first + last


@pytest.mark.parametrize("how", SHIFTS)
def test_behind_a_relative_shift_too(how: str) -> None:
    g = Graph(18)
    x = relative(g, feed_forward(g, tokens(g, 3, 2)), 5, how)
    g.output(g.Gather(x, g.const(-1, np.int64), axis=1))
    result = check(g)
    table = 5 if "pad" in how else 10
    assert macs_each(g, result) <= 2 * 2 * D * 2 * D + 2 * D * D + D * table + 2 * 5 * D


@pytest.mark.parametrize(
    ("op", "given", "large"),
    [
        ("Range", [0, 1000, 1], False),
        ("Range", [0, 10**9, 1], True),
        ("ConstantOfShape", [[4, 5]], False),
        ("ConstantOfShape", [[10**5, 10**5]], True),
        ("Expand", [[10**12], [3, 1]], False),
        ("Tile", [[7, 8], [10**6]], True),
        ("Gather", [[10**6], [0]], False),
    ],
)
def test_what_may_be_large_is_not_made_to_find_an_index(op: str, given: list[object], large: bool) -> None:
    node = helper.make_node(op, [f"x{i}" for i in range(len(given))], ["y"])
    assert grows_large(node, [np.asarray(x) for x in given]) is large


def test_all_positions_stay_where_an_output_reads_them() -> None:
    g = Graph(18)
    x = feed_forward(g, tokens(g, 3, 2))
    g.output(g.Gather(x, g.const(0, np.int64), axis=1), x)
    result = check(g)
    assert macs_each(g, result) == 2 * 2 * D * 2 * D


def test_positions_that_are_computed_from_data_count_as_all() -> None:
    g = Graph(18)
    x = feed_forward(g, tokens(g, 1, 2))
    at = g.Mod(g.item(1, high=100), g.const([3]))
    g.output(g.GatherElements(x, g.expand(g.unsqueeze(at, 2), 1, 1, D), axis=1))
    result = check(g)
    assert macs_each(g, result) == 2 * 2 * D * 2 * D


@pytest.mark.parametrize("picked", [D, D - 1])
def test_elements_that_are_picked_by_data_are_read_at_their_own_positions(picked: int) -> None:
    """As DeBERTa picks scores by distance: of the first token, whatever column of it."""
    g = Graph(18)
    x = feed_forward(g, tokens(g, 1, 2))
    moved = g.GatherElements(x, g.Mod(g.item(3, picked, high=100), g.const([D])), axis=2)
    g.output(g.Gather(moved, g.const(0, np.int64), axis=1))
    result = check(g)
    assert macs_each(g, result) <= 2 * D * 2 * D


@pytest.mark.parametrize("group", [1, 2])
def test_a_convolution_of_one_element_reads_what_is_read_of_it(group: int) -> None:
    """As SqueezeBERT writes its layers: a feed-forward layer with channels first, of which one position is read."""
    g = Graph(18)
    x = g.Transpose(tokens(g, 3, 2), perm=[0, 2, 1])
    hidden = g.Relu(g.MatMul(g.weight(2 * D, D), x))
    y = g.Conv(hidden, g.weight(D, 2 * D // group, 1), g.weight(D), kernel_shape=[1], group=group)
    g.output(g.Gather(g.Add(x, y), g.const(-1, np.int64), axis=2))
    result = check(g)
    if group == 1:  # in groups it stays a convolution, which is not counted
        assert macs_each(g, result) <= 2 * D * 2 * D


def _rows(read: int, **how: object) -> float:
    """Rows for one more candidate of a layer over 4 user and 6 item tokens, with a convolution behind it that is read
    at one position.
    """
    g = Graph(18)
    hidden = g.Relu(g.Concat(g.user(4, D), g.item(6, D), axis=1))
    y = g.Conv(g.Transpose(hidden, perm=[0, 2, 1]), g.weight(3, D, 3), **how)
    g.output(g.Gather(y, g.const(read, np.int64), axis=2), g.item(2))
    return computed(g, check(g, candidates=MANY), "Relu") / D


@pytest.mark.parametrize(
    ("read", "how", "rows"),
    [
        (0, {}, 0),
        (-1, {}, 3),
        (4, {"strides": [2], "pads": [1, 1]}, 3),
        (-1, {"dilations": [2]}, 5),
        (3, {"auto_pad": "SAME_UPPER"}, 1),
        (4, {"auto_pad": "SAME_LOWER", "strides": [2]}, 3),
        (4, {"auto_pad": "SAME_UPPER", "strides": [2]}, 2),
    ],
)
def test_windows_read_what_is_read_of_them(read: int, how: dict[str, object], rows: int) -> None:
    """Rows of items before the convolution are those in the one window that is read."""
    assert _rows(read, **how) == rows


def test_the_candidates_are_all_computed_though_one_is_read() -> None:
    """The first of N: it may not be the only one that counts where there are several requests."""
    g = Graph(18)
    x = feed_forward(g, tokens(g, 1, 2))
    g.output(g.Gather(x, g.const(0, np.int64), axis=0), g.item(2))
    check(g)


def test_a_position_counted_with_the_candidates_is_another_one_for_each_number_of_them() -> None:
    """[T, N, D] as [T * N, D]: row 2 is of token 2 at one candidate, and of token 0 at three."""
    g = Graph(18)
    x = g.Transpose(feed_forward(g, tokens(g, 2, 2)), perm=[1, 0, 2])
    g.output(g.Gather(g.reshape(x, -1, D), g.const([2], np.int64), axis=0), g.item(2))
    check(g)


def test_a_rewrite_of_it_pays() -> None:
    result = check(last_layer(0), weighed=True)
    assert result.changed, result.reason
    lifted(last_layer(0), result)
