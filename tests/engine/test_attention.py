"""The fused operator: in its parts where that saves something, whole where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import actions, check, lifted
from tests.engine.drawing import starts, tensor
from tests.engine.graphs import Draw, Graph, N

HIDDEN = 4


def _mask(draw: Draw, g: Graph, heads: int, queries: int, keys: int) -> str:
    """Boolean or added, of two to four dimensions, of the user's, the item's or constant; rows may be masked whole."""
    shape = draw(
        st.sampled_from(
            [(queries, keys), (heads, queries, keys), (1, 1, queries, keys), (N, 1, 1, keys), (N, heads, queries, keys)]
        )
    )
    values = tensor(draw, g, shape, 1) if N in shape else g.weight(*(int(s) for s in shape))
    seen = g.Greater(values, g.const(np.array(draw(st.sampled_from((-1.0, 0.3, 9.0))))))
    which = draw(st.sampled_from(("bool", "infinite", "added")))
    if which == "bool":
        return seen
    return g.Where(seen, values, g.const(np.array(-np.inf if which == "infinite" else -3.0)))


@st.composite
def graphs(draw: Draw) -> Graph:
    g = draw(starts(opsets=(23, 24)))
    groups, queries, keys = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = groups * draw(st.sampled_from((1, 1, 2)))
    width, out = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    flat = draw(st.booleans())
    inputs = []
    for h, t, d in ((heads, queries, width), (groups, keys, width), (groups, keys, out)):
        inputs.append(tensor(draw, g, (N, t, h * d) if flat else (N, h, t, d), 2))
    past = draw(st.integers(1, 2)) if draw(st.integers(0, 3)) == 0 else 0
    cache = [tensor(draw, g, (N, groups, past, d), 1) for d in (width, out)] if past else []
    mask = _mask(draw, g, heads, queries, past + keys) if draw(st.booleans()) else ""
    attrs: dict[str, object] = {"q_num_heads": heads, "kv_num_heads": groups} if flat else {}
    if draw(st.booleans()):
        attrs["is_causal"] = 1
    if draw(st.integers(0, 3)) == 0:
        attrs["scale"] = draw(st.sampled_from((1.0, 0.25)))
    if draw(st.integers(0, 3)) == 0:
        attrs["softcap"] = 2.0
    outputs = g.nodes_of("Attention", [*inputs, mask, *cache] if cache or mask else inputs, 3 if cache else 1, **attrs)
    return g.output(*outputs)


@given(graphs())
def test_attention_is_the_same(g: Graph) -> None:
    check(g)


def tokens(g: Graph, users: int, items: int) -> str:
    return g.Concat(g.Relu(g.user(users, HIDDEN)), g.item(items, HIDDEN), axis=1)


def kinds(result: object) -> list[str]:
    return [n.op_type for n in result.model.graph.node]  # type: ignore[attr-defined]


HEADS = {"q_num_heads": 2, "kv_num_heads": 2}


@pytest.mark.parametrize("boolean", [False, True])
def test_causal_attention_of_the_user_s_tokens_is_taken_once(boolean: bool) -> None:
    g = Graph(23)
    both = tokens(g, 3, 2)
    q, k, v = (g.MatMul(both, g.weight(HIDDEN, HIDDEN)) for _ in range(3))
    if boolean:
        y = g.Attention(q, k, v, g.const(np.tri(5, dtype=bool)), **HEADS)
    else:
        y = g.Attention(q, k, v, is_causal=1, **HEADS)
    result = lifted(g.output(g.MatMul(y, g.weight(HIDDEN, 1))))
    assert "Attention" not in kinds(result)


def test_a_history_under_the_candidate_s_query_is_not_repeated() -> None:
    g = Graph(23)
    keys = g.Relu(g.user(5, HIDDEN))
    y = g.Attention(g.item(1, HIDDEN), keys, keys, **HEADS)
    lifted(g.output(y), per_candidate=2 * 5 * HIDDEN)


def test_heads_that_share_keys_take_no_copies() -> None:
    g = Graph(23)
    keys = g.Relu(g.user(5, 2))
    y = g.Attention(g.item(1, HIDDEN), keys, keys, q_num_heads=2, kv_num_heads=1)
    lifted(g.output(y), per_candidate=2 * 5 * HIDDEN)


def test_a_cache_of_the_user_s_is_read_once() -> None:
    g = Graph(23)
    past = [g.Relu(g.user(2, 6, 2)) for _ in range(2)]
    x = g.item(1, HIDDEN)
    y, k, v = g.nodes_of("Attention", [x, x, x, "", *past], 3, is_causal=1, **HEADS)
    lifted(g.output(y))
    check(g.output(k, v))


def test_a_history_of_dynamic_length_with_padding() -> None:
    g = Graph(23)
    keys = g.Relu(g.user("T", HIDDEN))
    seen = g.unsqueeze(g.Greater(g.user("T"), g.const(np.array(0.8))), 1, 2)
    lifted(g.output(g.Attention(g.item(1, HIDDEN), keys, keys, seen, **HEADS)))


@pytest.mark.parametrize("how", ["bool", "float"])
def test_a_query_that_sees_no_key_is_zero(how: str) -> None:
    g = Graph(23)
    keys = g.Relu(g.user(5, HIDDEN))
    mask = g.unsqueeze(g.Greater(g.user(5), g.const(np.array(99.0))), 1, 2)
    if how == "float":
        mask = g.Where(mask, g.const(np.array(0.0)), g.const(np.array(-np.inf)))
    y = g.Attention(g.item(2, HIDDEN), keys, keys, mask, **HEADS)
    lifted(g.output(g.Add(y, g.const(np.array(1.0)))))


@pytest.mark.parametrize("precision", [1, 10])
def test_the_softmax_has_a_precision_of_its_own(precision: int) -> None:
    g = Graph(23)
    keys = g.Relu(g.user(5, HIDDEN))
    g.output(g.Attention(g.item(1, HIDDEN), keys, keys, softmax_precision=precision, **HEADS))
    result = check(g, tolerance=1e-5 if precision == 1 else 1e-2)
    assert "Attention" not in kinds(result)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_other_types(dtype: type) -> None:
    g = Graph(23, dtype=dtype)
    keys = g.Relu(g.user(5, HIDDEN))
    g.output(g.Attention(g.item(1, HIDDEN), keys, keys, **HEADS))
    result = check(g, tolerance=1e-5 if dtype is np.float32 else 1e-2)
    assert "Attention" not in kinds(result)


def test_the_user_s_own_attention_stays_whole_and_is_taken_once() -> None:
    g = Graph(23)
    u = g.Relu(g.user(5, HIDDEN))
    y = g.Attention(u, u, u, is_causal=1, **HEADS)
    result = lifted(g.output(g.Concat(y, g.item(1, HIDDEN), axis=1)))
    assert actions(result)["Attention"] == ["lifted"]
    assert kinds(result).count("Attention") == 1


def test_the_item_s_own_attention_stays_whole() -> None:
    g = Graph(23)
    x = g.item(3, HIDDEN)
    seen = g.unsqueeze(g.Greater(g.user(3), g.const(np.array(-0.5))), 1, 2)
    result = check(g.output(g.Attention(x, x, x, seen, **HEADS), g.MatMul(g.Relu(g.user(4)), g.weight(4, 4))))
    assert actions(result)["Attention"] == ["kept"]
    assert kinds(result).count("Attention") == 1
    assert "Softmax" not in kinds(result)


def test_a_few_tokens_of_the_user_s_among_others_save_too_little() -> None:
    g = Graph(23)
    both = tokens(g, 3, 17)
    q, k, v = (g.MatMul(both, g.weight(HIDDEN, HIDDEN)) for _ in range(3))
    result = check(g.output(g.Attention(q, k, v, **HEADS)))
    assert kinds(result).count("Attention") == 1
    assert "Softmax" not in kinds(result)


# ---- what is refused: whole, and still right --------------------


def refused(g: Graph, reason: str) -> None:
    result = check(g)
    assert kinds(result).count("Attention") == 1
    (report,) = (n for n in result.nodes if n.op == "Attention")
    assert reason in str(report.reason)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_scores_as_an_output(mode: int) -> None:
    g = Graph(23)
    keys = g.Relu(g.user(5, HIDDEN))
    names = [g.name(), "", "", g.name()]
    g.nodes_of("Attention", [g.item(1, HIDDEN), keys, keys], names, qk_matmul_output_mode=mode, **HEADS)
    refused(g.output(names[0], names[3]), "outputs the scores")


def test_lengths_of_the_keys() -> None:
    g = Graph(24)
    keys = g.Relu(g.user(5, HIDDEN))
    length = g.Add(g.user(high=4), g.const(np.array(1)))
    y = g.Attention(g.item(1, HIDDEN), keys, keys, "", "", "", length, **HEADS)
    refused(g.output(y), "lengths of the keys")


def test_a_mask_shorter_than_the_keys() -> None:
    g = Graph(24)
    keys = g.Relu(g.user(5, HIDDEN))
    y = g.Attention(g.item(1, HIDDEN), keys, keys, g.const(np.ones((1, 3), bool)), **HEADS)
    refused(g.output(y), "as long as the keys")


def test_a_causal_mask_behind_a_cache_of_dynamic_length() -> None:
    g = Graph(23)
    past = [g.Relu(g.user(2, "T", 2)) for _ in range(2)]
    x = g.item(1, HIDDEN)
    y = g.nodes_of("Attention", [x, x, x, "", *past], 3, is_causal=1, **HEADS)[0]
    refused(g.output(y), "a causal mask and a cache")


def test_a_causal_mask_on_top_of_one_for_all_queries() -> None:
    g = Graph(23)
    keys = g.Relu(g.user(3, HIDDEN))
    mask = g.const(np.array([[True, True, False]]))
    refused(g.output(g.Attention(g.item(3, HIDDEN), keys, keys, mask, is_causal=1, **HEADS)), "without a query axis")


def test_weights_by_blocks_meet_values_that_share_a_part() -> None:
    g = Graph(23)
    one = g.user(1, 1, 2)
    cache = [g.user(2, 1, 1), g.Concat(one, one, axis=1)]
    seen = g.Greater(g.Concat(g.user(1, 1, 1), g.item(1, 1, 1), axis=3), g.const(np.array(-1.0)))
    names = [g.name(), "", ""]
    g.nodes_of("Attention", [g.user(2, 1, 1), g.user(2, 1, 1), g.user(2, 1, 2), seen, *cache], names)
    check(g.output(names[0]))


def test_weights_by_blocks_within_a_grid_meet_values_without_keys() -> None:
    """The values' rows are scores and weights of one Softmax, whose blocks are products by themselves."""
    g = Graph(23)
    query = g.Add(g.weight(1, 1, 1), g.user(2, 2))
    keys = g.Gather(g.user(3, 2), g.const([0, 0]), axis=1)
    scores = g.Concat(g.user(5), g.item(1), axis=1)
    values = g.Concat(g.unsqueeze(scores, 1), g.unsqueeze(g.Softmax(scores, axis=1), 1), axis=1)
    g.output(g.Attention(query, keys, values, q_num_heads=2, kv_num_heads=2, scale=1.0, softcap=2.0))
    check(g)
