"""MatMul, Gemm, Einsum and 1x1 Conv: weights on either side, batched; two activations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import actions, check, lifted, macs_each, reasons, traced
from tests.engine.drawing import starts, tensor
from tests.engine.graphs import Draw, Graph, N


def _right(draw: Draw, g: Graph) -> str:
    """x W, with a matrix, a vector or a batch of matrices."""
    lead = draw(st.lists(st.integers(1, 3), max_size=2))
    k, n = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    x = tensor(draw, g, (N, *lead, k), 3)
    batch = [s if draw(st.booleans()) else 1 for s in lead[:-1]] if draw(st.booleans()) else []
    w = g.weight(k) if draw(st.integers(0, 4)) == 0 else g.weight(*batch, k, n)
    return g.MatMul(x, w)


def _left(draw: Draw, g: Graph) -> str:
    """A x: weights on the left, as AFN and CIN."""
    k, d, m = (draw(st.integers(1, 4)) for _ in range(3))
    x = tensor(draw, g, (N, k, d), 3)
    return g.MatMul(g.weight(k) if draw(st.integers(0, 4)) == 0 else g.weight(m, k), x)


def _pairs(draw: Draw, g: Graph) -> str:
    """Tokens against tokens, one of them transposed."""
    a, b, d = (draw(st.integers(1, 4)) for _ in range(3))
    x = tensor(draw, g, (N, a, d), 3)
    same = draw(st.booleans())
    y = x if same else tensor(draw, g, (N, b, d), 2)
    return g.MatMul(x, g.Transpose(y, perm=[0, 2, 1]))


def _gemm(draw: Draw, g: Graph) -> str:
    k, n = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    turned, wide = draw(st.booleans()), draw(st.booleans())
    x = tensor(draw, g, (k, N) if turned else (N, k), 3)
    attrs = {"transA": int(turned), "transB": int(wide)}
    for name in ("alpha", "beta"):
        if draw(st.booleans()):
            attrs[name] = draw(st.sampled_from((0.0, 0.5, -2.0)))
    w = g.weight(n, k) if wide else g.weight(k, n)
    bias = draw(st.sampled_from((None, (), (1,), (n,), (1, n), (1, 1), "N1", "Nn")))
    if bias is None:
        return g.Gemm(x, w, **attrs)
    c = (
        g.weight(*bias)
        if isinstance(bias, tuple)
        else tensor(draw, g, (N, 1 if bias == "N1" else n), 1)
    )
    return g.Gemm(x, w, c, **attrs)


def _gemm_swapped(draw: Draw, g: Graph) -> str:
    """The activation as B: W x' with candidates as columns."""
    k, m = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    wide = draw(st.booleans())
    x = tensor(draw, g, (N, k) if wide else (k, N), 3)
    return g.Gemm(g.weight(m, k), x, transB=int(wide))


EQUATIONS = (
    ("nk,kh->nh", (N, 3), (3, 2)), ("hk,nk->nh", (2, 3), (N, 3)),
    ("nfd,fdh->nfh", (N, 2, 3), (2, 3, 4)), ("...d,dh->...h", (N, 2, 3), (3, 2)),
    ("ntd,nsd->nts", (N, 2, 3), (N, 4, 3)), ("nfd,de->nef", (N, 2, 3), (3, 2)),
    ("nd,nd->n", (N, 3), (N, 3)), ("nd,ne->nde", (N, 3), (N, 2)), ("nd,h->nh", (N, 3), (2,)),
    ("nfd,ngd->nfgd", (N, 2, 3), (N, 2, 3)), ("ij,jk", (N, 3), (3, 2)),
    ("ntd,nt->nd", (N, 4, 3), (N, 4)),
    ("n...d,nd->n...", (N, 2, 3), (N, 3)), ("nd,md->nm", (N, 3), (N, 3)),
    ("nii,ni->n", (N, 3, 3), (N, 3)), ("njj,jk->nk", (N, 3, 3), (3, 2)), ("nd,nd,dk->nk", (N, 3), (N, 3), (3, 2)),
    ("ni,nj,nk,ijk->n", (N, 2), (N, 3), (N, 2), (2, 3, 2)), ("nfd,ngd,fg->nd", (N, 2, 3), (N, 2, 3), (2, 2)),
    ("...i,...i,ij->...j", (N, 2, 3), (N, 2, 3), (3, 2)), ("ni,mi,k->nmk", (N, 2), (3, 2), (2,)),
)  # fmt: skip


def _einsum(draw: Draw, g: Graph) -> str:
    if g.opset < 12:
        return _right(draw, g)
    equation, *operands = draw(st.sampled_from(EQUATIONS))
    args = [tensor(draw, g, s, 2) if N in s else g.weight(*s) for s in operands]
    return g.Einsum(*args, equation=equation)


def _einsum_one(draw: Draw, g: Graph) -> str:
    if g.opset < 12:
        return _left(draw, g)
    equation = draw(st.sampled_from(("nfd->nd", "nfd->ndf", "nfd->n", "nfd->fd", "...d->d...")))
    return g.Einsum(tensor(draw, g, (N, 2, 3), 3), equation=equation)


def _conv(draw: Draw, g: Graph) -> str:
    c, t, f = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    x = tensor(draw, g, (N, c, t), 3)
    bias = [g.weight(f)] if draw(st.booleans()) else []
    return g.Conv(x, g.weight(f, c, 1), *bias)


def _chain(draw: Draw, g: Graph) -> str:
    """Gate, then product, then product: forms are looked through."""
    k = draw(st.integers(2, 5))
    x, gate = tensor(draw, g, (N, k), 3), tensor(draw, g, (N, draw(st.sampled_from((1, k)))), 2)
    hidden = g.MatMul(g.Mul(x, gate), g.weight(k, 3))
    if draw(st.booleans()):
        hidden = g.Add(hidden, tensor(draw, g, (N, 3), 1))
    return g.MatMul(hidden, g.weight(3, 2))


ROOTS = [
    _right,
    _left,
    _pairs,
    _gemm,
    _gemm_swapped,
    _einsum,
    _einsum_one,
    _conv,
    _chain,
    _right,
    _gemm,
]


@st.composite
def products(draw: Draw) -> Graph:
    g = draw(starts())
    return g.output(
        *(draw(st.sampled_from(ROOTS))(draw, g) for _ in range(draw(st.integers(1, 2))))
    )


@given(products(), st.sampled_from((1, 500, 50_000)))
def test_products_are_the_same(g: Graph, candidates: int) -> None:
    check(g, candidates=candidates)


# ---- what is lifted --------------------


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0)])
def test_gemm_over_a_concat(trans: int, alpha: float, beta: float) -> None:
    g = Graph()
    both = g.Concat(g.user(6), g.item(3), axis=1)
    w = g.weight(4, 9) if trans else g.weight(9, 4)
    g.output(g.Gemm(both, w, g.weight(4), transB=trans, alpha=alpha, beta=beta))
    lifted(g, per_candidate=3 * 4)


def test_the_product_from_the_left() -> None:
    g = Graph()
    fields = g.Concat(g.user(5, 4), g.item(3, 4), axis=1)
    g.output(g.MatMul(g.weight(6, 8), fields))
    lifted(g, per_candidate=3 * 4 * 6)


def test_candidates_as_columns() -> None:
    g = Graph()
    both = g.Concat(g.user(5), g.item(3), axis=1)
    g.output(g.Gemm(g.weight(6, 8), both, transB=1))
    lifted(g, per_candidate=3 * 6)


def test_batched_weights() -> None:
    g = Graph()
    fields = g.Concat(g.user(2, 1, 5), g.item(2, 1, 3), axis=-1)
    g.output(g.MatMul(fields, g.weight(2, 8, 4)))
    lifted(g, per_candidate=2 * 3 * 4)


def test_several_experts_over_one_concat() -> None:
    g = Graph()
    both = g.Concat(g.user(8), g.item(3), axis=1)
    g.output(*(g.MatMul(both, g.weight(11, 4)) for _ in range(3)))
    lifted(g, per_candidate=3 * 3 * 4)


def test_a_users_tower_runs_on_one_row() -> None:
    g = Graph()
    hidden = g.user(8)
    for _ in range(3):
        hidden = g.Relu(g.Gemm(hidden, g.weight(8, 8), g.weight(8)))
    g.output(g.reduce("Sum", g.Mul(hidden, g.item(8)), [1], keepdims=0))
    lifted(g)


def test_pairwise_dots_keep_the_users_block_once() -> None:
    """T T' over [u | x]: u u' is per request."""
    g = Graph()
    tokens = g.Concat(g.user(6, 16), g.item(2, 16), axis=1)
    g.output(g.MatMul(tokens, g.Transpose(tokens, perm=[0, 2, 1])))
    result = lifted(g)
    assert macs_each(g, result) <= 8 * 8 * 16 - 6 * 6 * 16


def test_a_difference_of_raw_inputs_is_taken_before_the_product() -> None:
    """(t - s) W over times in seconds: t W - s W would cancel."""
    g = Graph()
    times = g.Sub(g.expand(g.item(1, 8), 1, 10, 8), g.user(10, 8))
    g.output(g.MatMul(times, g.weight(8, 4)))
    result = check(g)
    assert [n.op_type for n in result.model.graph.node].count("Sub") == 1


def test_dins_unit_reads_the_target_and_the_history_once() -> None:
    """[q, k, q-k, q*k] W: only q*k is per candidate and position."""
    g = Graph()
    history, target = g.Tanh(g.user(10, 8)), g.Tanh(g.item(1, 8))
    q = g.expand(target, 1, 10, 8)
    unit = g.Concat(q, history, g.Sub(q, history), g.Mul(q, history), axis=2)
    g.output(g.Relu(g.MatMul(unit, g.weight(32, 36))))
    result = lifted(g)
    assert macs_each(g, result) <= 10 * 8 * 36 + 8 * 36


def test_einsum_over_a_concat() -> None:
    g = Graph()
    fields = g.Concat(g.user(5, 4), g.item(3, 4), axis=1)
    g.output(g.Einsum(fields, g.weight(8, 4, 2), equation="nfd,fdh->nfh"))
    lifted(g, per_candidate=3 * 4 * 2)


def test_conv_of_width_one() -> None:
    g = Graph()
    channels = g.Concat(g.user(5, 4), g.item(3, 4), axis=1)
    g.output(g.Conv(channels, g.weight(2, 8, 1), g.weight(2)))
    lifted(g, per_candidate=3 * 4 * 2)


# ---- what must stay --------------------


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_an_integer_product_is_left(op: str) -> None:
    g = Graph()
    both = g.Concat(g.user(3, high=9), g.item(2, high=9), axis=1)
    g.output(getattr(g, op)(both, g.const(np.arange(10).reshape(5, 2))))
    result = check(g)
    assert actions(result)[op] in (["kept"], ["barrier"])


def test_attention_among_candidates() -> None:
    """Every candidate sees every other: N x N."""
    g = Graph()
    both = g.Concat(g.user(4), g.item(3), axis=1)
    scores = g.MatMul(both, g.Transpose(both))
    g.output(g.MatMul(g.Softmax(scores, axis=-1), both))
    check(g)


def test_a_product_summed_over_candidates() -> None:
    g = Graph()
    both = g.Concat(g.user(4), g.item(3), axis=1)
    g.output(g.Gemm(both, both, transA=1), g.MatMul(g.Transpose(g.user(2)), both))
    check(g)


@pytest.mark.parametrize("pads", [[1, 1], [0, 1]])
def test_a_padded_conv_of_width_one(pads: list[int]) -> None:
    g = Graph()
    channels = g.Concat(g.user(2, 4), g.item(3, 4), axis=1)
    g.output(g.Conv(channels, g.weight(2, 5, 1), g.weight(2), pads=pads))
    check(g)


@pytest.mark.parametrize(
    "attrs",
    [
        {"strides": [2]},
        {"group": 5},
        {"dilations": [2]},
        {"auto_pad": "VALID"},
        {"auto_pad": "SAME_UPPER", "strides": [2]},
    ],
)
def test_convs_with_attributes(attrs: dict) -> None:
    g = Graph()
    channels = g.Concat(g.user(2, 4), g.item(3, 4), axis=1)
    g.output(g.Conv(channels, g.weight(5, 5 // attrs.get("group", 1), 1), **attrs))
    check(g)


def test_the_diagonal_of_the_users_is_taken_once() -> None:
    g = Graph()
    square = g.Sin(g.user(3, 3))
    lifted(g.output(g.Mul(g.Einsum(square, equation="nii->ni"), g.item(3))))


def test_three_operands_are_multiplied_two_at_a_time() -> None:
    """u_i W_ijk once per request, that times x_j for each candidate."""
    g = Graph()
    y = g.Einsum(g.user(3), g.item(2), g.weight(3, 2, 4), equation="ni,nj,ijk->nk")
    lifted(g.output(g.Sin(y)), per_candidate=2 * 4)


def test_the_diagonal_of_a_dynamic_dimension_is_left() -> None:
    g = Graph()
    g.output(g.Mul(g.reduce("Sum", g.Einsum(g.user("T", "T"), equation="ntt->nt"), [1]), g.item(2)))
    assert "dynamic dimension" in str(reasons(check(g))["Einsum"])


def test_pairs_of_pieces_are_one_product() -> None:
    """FFM: each pair of a user's and an item's piece is a Mul in the source."""
    g = Graph(18)
    pairs = [g.Mul(g.Relu(g.user(4)), g.Relu(g.item(4))) for _ in range(6)]
    g.output(g.MatMul(g.Concat(*pairs, axis=1), g.weight(24, 3)))
    result = check(g)
    assert [node.op_type for node in result.model.graph.node].count("Mul") <= 1


def test_a_choice_of_a_choice_is_gathered_once() -> None:
    g = Graph(18)
    fields = g.Concat(g.user(3, 2), g.item(5, 2), axis=1)
    left, right = ([0, 3, 4, 6, 3, 7, 5, 1], [5, 4, 1, 2, 7, 6, 0, 3])
    pairs = g.Mul(
        g.Gather(fields, g.const(np.array(left)), axis=1), g.Gather(fields, g.const(np.array(right)), axis=1)
    )
    check(g.output(g.MatMul(g.reduce("Sum", pairs, [2], 0), g.weight(8, 2))))


@pytest.mark.parametrize("candidates", [2, 500])
def test_a_constant_of_other_groups_is_regrouped(candidates: int) -> None:
    """A gate of [3, 4] repeated beside fields of [4, 3]: the fields keep their axes."""
    g = Graph(18)
    fields = g.reshape(g.Concat(g.user(2, 3), g.item(2, 3), axis=1), -1, 12)
    gate = g.reshape(g.Expand(g.weight(3, 1), g.const(np.array([3, 4]))), 12)
    check(g.output(g.MatMul(g.Mul(fields, gate), g.weight(12, 2))), candidates=candidates)


def test_pairs_that_a_mask_leaves_out_are_not_multiplied() -> None:
    """The lower triangle by a product with zeros and ones (TensorFlow's DotInteraction): its rows of W alone."""
    g = Graph()
    table = g.weight(20, 4)
    x = g.Concat(g.Gather(table, g.user(6, high=20)), g.Gather(table, g.item(6, high=20)), axis=1)
    pairs = g.Mul(g.MatMul(x, g.Transpose(x, perm=[0, 2, 1])), g.const(np.tril(np.ones((12, 12)), -1)))
    g.output(g.MatMul(g.reshape(pairs, -1, 144), g.weight(144, 256)))
    result = check(g, candidates=5000)
    # items x (items + users) for the scores; 15 pairs of items and 36 of both in the product
    assert macs_each(g, result) == 6 * 12 * 4 + (15 + 36) * 256


def test_a_constant_factor_goes_into_the_weights() -> None:
    """The scale and the shift of a BatchNormalization in front of a product are constants of the product."""
    g = Graph()
    x = g.Tanh(g.Concat(g.user(8), g.item(8), axis=1))
    scaled = g.Add(g.Mul(x, g.weight(16)), g.weight(16))
    result = check(g.output(g.MatMul(scaled, g.weight(16, 4))))
    seen = traced(result.model, g.feeds(7, once=True))
    assert [n.op_type for n in result.model.graph.node if seen[n.output[0]].shape[0] == 7] == ["Tanh", "Gemm"]
