"""Softmax, masks, LayerNormalization and BatchNormalization, along a Cat and beside it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.engine import rewrite
from mari_onnx.engine.analysis import magnitude
from mari_onnx.engine.analysis.norm_patterns import standardized, standardized_rows
from mari_onnx.engine.rules.batch_norm import MIXES
from tests.engine.checks import actions, check, lifted, macs_each, reasons, unweighed
from tests.engine.drawing import shapes, starts, tensor
from tests.engine.graphs import Draw, Graph, N, R, Shape

SEEN = 5
"""Columns of masked scores."""


def last(shape: Shape) -> int:
    return int(shape[-1])


def _softmax(draw: Draw, g: Graph, x: str, shape: Shape) -> str:
    op, rank = draw(st.sampled_from(("Softmax", "Softmax", "LogSoftmax"))), len(shape)
    axis = draw(st.integers(-rank, rank - 1)) if g.opset >= 13 else rank - 1
    return getattr(g, op)(x, axis=axis)


def _masked(draw: Draw, g: Graph, x: str, shape: Shape) -> str:
    """Scores plus or replaced by a mask, before the softmax along the last axis."""
    low = draw(st.sampled_from((-np.inf, -1e9, -3.0)))
    scores = g.MatMul(x, g.weight(last(shape), SEEN))
    keep = g.rng.random(SEEN) > 0.5
    keep[draw(st.integers(0, SEEN - 1))] = True
    if draw(st.booleans()):
        scores = g.Add(scores, g.const(np.where(keep, 0.0, low)))
    else:
        scores = g.Where(g.const(keep), scores, g.const(np.array(low)))
    return g.Softmax(scores, axis=-1 if g.opset >= 13 else len(shape) - 1)


def _layer_norm(draw: Draw, g: Graph, x: str, shape: Shape) -> str:
    if g.opset < 17:
        return _written_out(draw, g, x, shape)
    d = last(shape)
    bias = [g.weight(d)] if draw(st.booleans()) else []
    return g.LayerNormalization(
        x,
        g.weight(d),
        *bias,
        epsilon=draw(st.sampled_from((1e-5, 0.1))),
        axis=draw(st.sampled_from((-1, len(shape) - 1))),
    )


def _written_out(draw: Draw, g: Graph, x: str, shape: Shape) -> str:
    """The same in small operators, as older exporters write it."""
    centred = g.Sub(x, g.reduce("Mean", x, [-1]))
    squares = (
        g.Mul(centred, centred) if draw(st.booleans()) else g.Pow(centred, g.const(np.array(2.0)))
    )
    spread = g.Sqrt(g.Add(g.reduce("Mean", squares, [-1]), g.const(np.array(1e-3))))
    return g.Mul(g.Div(centred, spread), g.weight(last(shape)))


def _lp(draw: Draw, g: Graph, x: str, shape: Shape) -> str:
    if draw(st.booleans()):
        return g.LpNormalization(
            g.Add(x, g.const(np.array(0.3))),
            axis=draw(st.integers(-len(shape), len(shape) - 1)),
            p=2,
        )
    return g.Div(x, g.Add(g.reduce("L2", x, [-1]), g.const(np.array(0.1))))


def _batch(draw: Draw, g: Graph, x: str, shape: Shape) -> str:
    if g.opset < 14:  # there onnx's reference evaluator mixes in the statistics of the batch
        return _written_out(draw, g, x, shape)
    c = int(shape[1])
    statistics = [
        g.weight(c),
        g.weight(c),
        g.weight(c),
        g.const(np.abs(g.rng.standard_normal(c)) + 0.5),
    ]
    return g.BatchNormalization(x, *statistics, epsilon=1e-3)


ROOTS = [_softmax, _softmax, _masked, _layer_norm, _layer_norm, _written_out, _lp, _batch]


@st.composite
def norms(draw: Draw) -> Graph:
    """Normalized, and multiplied by weights in half of the graphs."""
    g = draw(starts())
    shape = shapes(draw)
    root = draw(st.sampled_from(ROOTS))
    y = root(draw, g, tensor(draw, g, shape, 3), shape)
    if draw(st.booleans()):
        y = g.MatMul(y, g.weight(SEEN if root is _masked else last(shape), 3))
    return g.output(g.Sin(y))


@given(norms(), st.sampled_from((2, 500, 50_000)))
def test_norms_are_the_same(g: Graph, candidates: int) -> None:
    check(g, candidates=candidates, tolerance=1e-8)


# ---- attention --------------------


@st.composite
def attentions(
    draw: Draw, masks: tuple[str, ...] = ("none", "causal", "block", "finite", "padding")
) -> Graph:
    """Self-attention over [user tokens | item tokens], one to two layers, with a mask."""
    g = draw(starts(opsets=(13, 17, 18)))
    users, items, d = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(2, 4))
    return attention(
        g,
        users,
        items,
        d,
        draw(st.sampled_from(masks)),
        draw(st.integers(1, 2)),
        draw(st.booleans()),
    )


def attention(
    g: Graph,
    users: int,
    items: int,
    d: int,
    mask: str,
    layers: int,
    heads: bool = False,
    every: bool = False,
) -> Graph:
    """mask: causal and block keep the user's rows from the item's columns with -inf, finite
    with -1e9; padding masks positions by an input. every: all positions are padding."""
    tokens = g.Concat(g.user(users, d), g.item(items, d), axis=1)
    total = users + items
    rows, columns = np.indices((total, total))
    seen = {"causal": columns <= rows, "block": (columns < users) | (rows >= users)}.get(
        mask, columns < users
    )
    if mask == "padding":
        pads = [g.user(users, high=1 if every else 2), g.item(items, high=1 if every else 2)]
        valid = g.Concat(*(g.Cast(p, to=9) for p in pads), axis=1)
    for _ in range(layers):
        q, k, v = (g.MatMul(tokens, g.weight(d, d)) for _ in range(3))
        if heads:
            q, k, v = (
                g.Transpose(g.reshape(t, -1, total, 1, d), perm=[0, 2, 1, 3]) for t in (q, k, v)
            )
        turned = g.Transpose(k, perm=[0, 1, 3, 2] if heads else [0, 2, 1])
        scores = g.Div(g.MatMul(q, turned), g.const(np.array(np.sqrt(d))))
        if mask in ("causal", "block"):
            scores = g.Where(g.const(seen), scores, g.const(np.array(-np.inf)))
        elif mask == "finite":
            scores = g.Add(scores, g.const(np.where(seen, 0.0, -1e9)))
        elif mask == "padding":
            wide = g.unsqueeze(valid, 1, 2) if heads else g.unsqueeze(valid, 1)
            scores = g.Where(wide, scores, g.const(np.array(-1e9)))
        out = g.MatMul(g.Softmax(scores, axis=-1), v)
        if heads:
            out = g.reshape(g.Transpose(out, perm=[0, 2, 1, 3]), -1, total, d)
        tokens = g.Add(tokens, out)
        if g.opset >= 17:
            tokens = g.LayerNormalization(tokens, g.weight(d), g.weight(d))
    return g.output(g.slice(tokens, total - 1, total, 1))


@given(attentions(), st.sampled_from((2, 500)))
def test_attention_is_the_same(g: Graph, candidates: int) -> None:
    check(g, candidates=candidates, tolerance=1e-8)


@pytest.mark.parametrize("mask", ["causal", "block"])
@pytest.mark.parametrize("heads", [False, True])
def test_user_rows_stay_the_users_layer_after_layer(mask: str, heads: bool) -> None:
    users, items, d, layers = 12, 2, 8, 2
    result = lifted(g := attention(Graph(), users, items, d, mask, layers, heads))
    total = users + items
    exact = items * 3 * d * d + 2 * items * total * d
    assert macs_each(g, result) <= layers * exact


def test_a_finite_mask_with_a_wholly_padded_user() -> None:
    """A row whose columns are all masked with -1e9 attends to everything, the item's too."""
    for every in (False, True):
        check(attention(Graph(), 4, 2, 4, "padding", 2, every=every), tolerance=1e-8)
    check(attention(Graph(), 4, 2, 4, "finite", 2), tolerance=1e-8)


def test_a_finite_mask_over_the_whole_users_row() -> None:
    g = Graph()
    scores = g.Concat(g.user(3), g.item(2), axis=1)
    mask = g.const(np.array([-1e9, -1e9, -1e9, 0.0, 0.0]))
    all_masked = g.const(np.full(5, -1e9))
    g.output(g.Softmax(g.Add(scores, mask), axis=1), g.Softmax(g.Add(scores, all_masked), axis=1))
    check(g)


def test_minus_infinity_over_user_or_item_columns() -> None:
    for dead in ([0, 1, 2], [3, 4], [0, 3], [4]):
        g = Graph()
        scores = g.Concat(g.user(3), g.item(2), axis=1)
        mask = np.zeros(5)
        mask[dead] = -np.inf
        g.output(g.MatMul(g.Softmax(g.Add(scores, g.const(mask)), axis=1), g.weight(5, 2)))
        lifted(g, check(g))


def test_a_row_of_minus_infinity_alone_is_nan_as_in_the_source() -> None:
    g = Graph()
    grid = g.Add(
        g.MatMul(g.Concat(g.user(3, 2), g.item(2, 2), axis=1), g.weight(2, 4)), g.item(5, 4)
    )
    keep = np.ones((5, 4), bool)
    keep[0] = False
    g.output(g.Softmax(g.Where(g.const(keep), grid, g.const(np.array(-np.inf))), axis=-1))
    check(g)


# ---- LayerNormalization --------------------


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_over_the_concat_then_a_product(bias: bool) -> None:
    g = Graph()
    both = g.Concat(g.user(600), g.item(20), axis=1)
    normal = g.LayerNormalization(both, g.weight(620), *([g.weight(620)] if bias else []))
    g.output(g.MatMul(normal, g.weight(620, 64)))
    result = lifted(g)
    assert macs_each(g, result) <= 21 * 64


def test_layer_norm_beside_the_concat() -> None:
    g = Graph()
    tokens = g.Concat(g.user(5, 8), g.item(2, 8), axis=1)
    g.output(g.MatMul(g.LayerNormalization(tokens, g.weight(8), g.weight(8)), g.weight(8, 4)))
    lifted(g, per_candidate=2 * 8 * 4)


def test_layer_norm_over_several_axes() -> None:
    g = Graph()
    tokens = g.Concat(g.user(3, 4), g.item(2, 4), axis=1)
    y = g.LayerNormalization(tokens, g.weight(5, 4), g.weight(5, 4), axis=1)
    g.output(g.MatMul(g.reshape(y, -1, 20), g.weight(20, 3)), g.MatMul(y, g.weight(4, 2)))
    check(g)


def test_layer_norm_with_statistics_asked_for() -> None:
    g = Graph(dtype=np.float32)
    both = g.Concat(g.user(3), g.item(2), axis=1)
    g.output(*g.nodes_of("LayerNormalization", [both, g.weight(5), g.weight(5)], 3))
    check(g, tolerance=1e-5)


def test_layer_norm_over_the_candidates_is_left() -> None:
    g = Graph()
    turned = g.Transpose(g.Concat(g.user(3), g.item(2), axis=1))
    g.output(
        g.Softmax(turned, axis=-1), g.LogSoftmax(turned, axis=1), g.LpNormalization(turned, axis=-1)
    )
    check(g)


# ---- BatchNormalization --------------------


def _statistics(g: Graph, n: int) -> list[str]:
    return [g.weight(n), g.weight(n), g.weight(n), g.const(np.abs(g.rng.standard_normal(n)) + 0.5)]


def test_batch_norm_between_concat_and_product() -> None:
    g = Graph()
    both = g.Concat(g.user(6), g.item(3), axis=1)
    g.output(g.MatMul(g.BatchNormalization(both, *_statistics(g, 9)), g.weight(9, 4)))
    lifted(g, per_candidate=3 * 4)


@st.composite
def trained(draw: Draw) -> Graph:
    """BatchNormalizations by their own statistics, which may be outputs too."""
    requests = draw(st.booleans())
    g = draw(starts(opsets=(14, 15, 18), requests=requests))
    width, rest = draw(st.integers(1, 4)), draw(st.lists(st.integers(1, 3), max_size=2))
    x = tensor(draw, g, (R, N, width, *rest) if requests else (N, width, *rest), 3)
    if requests:
        x = g.Transpose(x, perm=[0, 2, 1, *range(3, 3 + len(rest))])
    outs = draw(st.sampled_from((1, 3)))
    y = g.nodes_of("BatchNormalization", [x, *_statistics(g, width)], outs, training_mode=1, epsilon=0.1)
    return g.output(g.Tanh(y[0]), *y[1 : draw(st.integers(1, outs))])


@given(trained())
def test_batch_norm_in_training_mode_is_the_same(g: Graph) -> None:
    check(g)


@pytest.mark.parametrize("outs", [1, 3])
def test_channels_of_the_user_have_statistics_of_their_own(outs: int) -> None:
    g = Graph(18)
    both = g.Concat(g.user(6, 4), g.item(3, 4), axis=1)
    y = g.nodes_of("BatchNormalization", [both, *_statistics(g, 9)], outs, training_mode=1)
    g.output(g.MatMul(g.reshape(y[0], -1, 36), g.weight(36, 5)), *y[2:])
    lifted(g, check(g), per_candidate=3 * 4 * 5)


def test_batch_norm_in_training_mode_is_left() -> None:
    g = Graph(18)
    both = g.Mul(g.user(9), g.item(9))
    y, *_ = g.nodes_of("BatchNormalization", [both, *_statistics(g, 9)], 3, training_mode=1)
    result = check(g.output(y), counts=(3, 7))
    assert actions(result)["BatchNormalization"] in (["barrier"], ["kept"])
    assert reasons(result)["BatchNormalization"] == [MIXES]


@pytest.mark.parametrize("dtypes", [(np.float64, np.float64), (np.float32, np.float64), (np.float64, np.float32)])
def test_batch_norm_in_training_mode_with_parameters_of_another_type_is_left(dtypes: tuple[type, type]) -> None:
    g = Graph(15, np.float32)
    both = g.Concat(g.user(2, 3), g.item(2, 3), axis=1)
    first, second = (g.const(np.ones(4), dtype) for dtype in dtypes)
    y = g.nodes_of("BatchNormalization", [both, first, first, second, second], 3, training_mode=1)
    with unweighed():
        made = rewrite(g.output(g.Cast(y[0], to=1)).model(), g.sides)
    onnx.checker.check_model(made.model, full_check=True)


def test_positions_that_nobody_reads_count_in_statistics() -> None:
    g = Graph(18)
    x = g.MatMul(g.Concat(g.user(2, 5), g.item(2, 5), axis=1), g.weight(5, 5))
    y = g.BatchNormalization(x, *_statistics(g, 4), training_mode=1)
    check(g.output(g.MatMul(g.Gather(y, g.const(0), axis=2), g.weight(4, 3))))


@pytest.mark.parametrize("axis", [0, -2])
def test_softmax_over_the_candidates_is_a_barrier(axis: int) -> None:
    g = Graph()
    both = g.Concat(g.user(3), g.item(2), axis=1)
    g.output(g.Softmax(both, axis=axis))
    check(g)


def test_softmax_of_the_users_column_over_the_candidates() -> None:
    """N equal rows: 1/N each, which only the run knows."""
    g = Graph()
    g.output(g.Mul(g.Softmax(g.user(3), axis=0), g.item(3)))
    check(g)


@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_of_old_opsets_flattens(axis: int) -> None:
    """Before opset 13 all axes from ``axis`` on are one; here that is the last axis alone."""
    g = Graph(11)
    tokens = g.Concat(g.user(3, 2), g.item(2, 2), axis=1)
    g.output(g.Softmax(tokens if axis == 2 else g.reshape(tokens, -1, 10), axis=axis))
    check(g)


def test_softmax_by_blocks_then_a_product_over_another_axis() -> None:
    g = Graph(13)
    u, x = g.user(1, 2), g.item(1, 2)
    weights = g.Softmax(g.Concat(u, x, u, u, axis=1), axis=1)
    g.output(g.MatMul(weights, g.weight(2, 3)))
    check(g, candidates=2)


def _rows_as_channels(g: Graph, x: str, width: int, other: str = "") -> str:
    """tf.keras' LayerNormalization by tf2onnx: BatchNormalization over [1, rows, width, 1] with computed statistics.

    other: what is not as it should be for the result to be normalized.
    """
    rows = g.reshape(x, 1, -1, width, 1)
    of = g.Mul(rows, g.const(2.0)) if other == "rows" else rows
    mean = g.reduce("Mean", of, [0, 2, 3])
    off = g.Sub(of, g.Mul(mean, g.const(0.5)) if other == "mean" else mean)
    spread = g.reduce("SumSquare", off, [0, 2, 3], keepdims=0)
    size = g.Shape(g.squeeze(mean, [0, 2, 3]))
    one, zero = g.Expand(g.const(1.0), size), g.Expand(g.const(0.0), size)
    mean = g.squeeze(mean, [0, 2, 3])
    variance = g.Div(spread, g.const(width * (2.0 if other == "width" else 1.0)))
    normal = g.BatchNormalization(rows, one, zero, mean, variance, epsilon=1e-3)
    return g.Mul(g.Reshape(normal, g.Shape(x)), g.weight(width))


@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_layer_norm_with_rows_as_channels_of_the_user_runs_once(shape: tuple[int, ...]) -> None:
    g = Graph()
    mine = g.reshape(_rows_as_channels(g, g.Relu(g.user(*shape)), 4), -1, int(np.prod(shape)))
    both = g.Concat(mine, g.item(2), axis=1)
    g.output(g.MatMul(both, g.weight(2 + int(np.prod(shape)), 3)))
    lifted(g, per_candidate=2 * 3)


@pytest.mark.parametrize("axis", [1, 2])
def test_layer_norm_with_rows_as_channels_of_a_concat(axis: int) -> None:
    """Along the tokens it runs by parts; along the width its statistics are the candidate's."""
    g = Graph()
    shapes = ((3, 4), (2, 4)) if axis == 1 else ((3, 4), (3, 2))
    both = g.Concat(g.user(*shapes[0]), g.item(*shapes[1]), axis=axis)
    width = 4 if axis == 1 else 6
    y = _rows_as_channels(g, both, width)
    g.output(g.MatMul(y, g.weight(width, 3)))
    if axis == 1:
        lifted(g, per_candidate=2 * 4 * 3)
    check(g)


def test_a_product_that_several_read_is_not_computed_for_each() -> None:
    """Dice: x sigmoid(norm(x)); the scale goes behind the product, which others want as it is."""
    g = Graph()
    both = g.Concat(g.user(3), g.item(2), axis=1)
    x = g.MatMul(both, g.weight(5, 4))
    gate = g.Sigmoid(g.Add(g.Mul(x, g.weight(4)), g.weight(4)))
    ones = g.Shape(x)
    g.output(g.Mul(x, gate), g.Mul(g.Sub(g.Expand(g.const(1.0), ones), gate), x))
    lifted(g, per_candidate=2 * 4)


@pytest.mark.parametrize("same", [True, False])
def test_scores_of_tokens_normalized_as_tensorflow_does_are_bounded(same: bool) -> None:
    """x k + (c - m k), k = g / sqrt(var + eps), the mean a pool: -1e9 hides the items from the user's tokens.

    With another k for the mean nothing is known of the result, and nothing is claimed.
    """
    g = Graph()
    ids = g.user(12, high=20), g.item(2, high=20)
    tokens = g.Concat(*(g.Gather(g.weight(20, 8), i) for i in ids), axis=1)
    mean = g.GlobalAveragePool(tokens)
    off = g.Sub(tokens, mean)
    root = g.Reciprocal(g.Sqrt(g.Add(g.GlobalAveragePool(g.Mul(off, off)), g.const(1e-6))))
    k = g.Mul(root, g.weight(8))
    shift = g.Sub(g.weight(8), g.Mul(mean, k if same else g.Mul(root, g.weight(8))))
    x = g.Add(g.Mul(tokens, k), shift)
    mask = g.const(np.triu(np.full((14, 14), -1e9), 1))
    scores = g.Add(g.MatMul(x, g.Transpose(x, perm=[0, 2, 1])), mask)
    seen: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(magnitude, "NORMALIZED", (lambda *a: seen.append(standardized(*a)) or seen[-1],))
        g.output(g.MatMul(g.Softmax(scores, axis=-1), x))
        check(g)
    assert any(b < 100 for b in seen) == same


@pytest.mark.parametrize("other", ["", "mean", "rows", "width"])
def test_scores_of_rows_as_channels_are_bounded(other: str) -> None:
    """As Keras normalizes: -1e9 hides the items from the user's tokens.

    With the mean or the variance of something else nothing is known of the result, and nothing is claimed.
    """
    g = Graph()
    ids = g.user(12, high=20), g.item(2, high=20)
    tokens = g.Concat(*(g.Gather(g.weight(20, 14), i) for i in ids), axis=1)
    y = _rows_as_channels(g, tokens, 14, other)
    mask = g.const(np.triu(np.full((14, 14), -1e9), 1))
    scores = g.Add(g.MatMul(y, g.Transpose(y, perm=[0, 2, 1])), mask)
    seen: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(magnitude, "NORMALIZED", (lambda *a: seen.append(standardized_rows(*a)) or seen[-1],))
        g.output(g.MatMul(g.Softmax(scores, axis=-1), y))
        check(g)
    assert any(b < 100 for b in seen) == (not other)


def test_a_normalization_of_tokens_that_share_columns() -> None:
    """[[user tokens / item tokens] | a constant for each]: rows apart, and each row with its own columns."""
    g = Graph()
    tokens = g.Concat(g.Relu(g.user(6, 5)), g.item(3, 5), axis=1)
    shape = g.Concat(g.size(tokens, 0), g.const([9, 2], np.int64), axis=0)
    x = g.Concat(tokens, g.Expand(g.weight(1, 9, 2), shape), axis=2)
    y = g.LayerNormalization(x, g.weight(7), g.weight(7), axis=-1)
    lifted(g.output(g.MatMul(y, g.weight(7, 4))), per_candidate=3 * 7 * 4)
