"""TfIdfVectorizer runs once for the user's tokens; of [user tokens | item tokens] each part is counted by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mari_onnx
from tests.engine.checks import actions, check, lifted, reasons
from tests.engine.drawing import starts
from tests.engine.graphs import Draw, Graph

WORDS = {"pool_int64s": [1, 2, 5], "ngram_counts": [0], "ngram_indexes": [2, 0, 3]}
"""Three tokens that are counted one by one, into 4 columns."""
PAIRS = {"pool_int64s": [1, 2, 1, 2, 0, 3], "ngram_counts": [0, 2], "ngram_indexes": [0, 1, 2, 3]}
"""Two tokens, and two pairs of tokens that follow each other."""


FLOATS = 1e-6
"""The counts are of float32."""
DEAR = "counting the user's tokens once would save less than adding the counts costs"
ONE_ROW = "its input is one row of tokens, not a matrix with a row per candidate"


def single_tokens(mode: str = "TF", **attrs: Any) -> dict[str, Any]:
    weights = {} if mode == "TF" else {"weights": [0.5, -2.0, 3.0, 1.25]}  # the evaluator has no default for them
    lengths = {"min_gram_length": 1, "max_gram_length": 1, "max_skip_count": 0}
    return {**WORDS, **lengths, **weights, "mode": mode, **attrs}


def of_user_and_item(history: int, **attrs: Any) -> Graph:
    g = Graph(18, np.float32)
    tokens = g.Concat(g.user(history, high=6), g.item(2, high=6), axis=1)
    return g.output(g.MatMul(g.TfIdfVectorizer(tokens, **attrs), g.weight(4, 5)))


@st.composite
def graphs(draw: Draw) -> Graph:
    """Tokens of user, item and both, numbers or text, in any order; n-grams of one token or two, in each mode."""
    g = draw(starts(dtype=np.float32))
    text = draw(st.booleans())
    sides = draw(st.lists(st.sampled_from(("user", "item", "cross")), min_size=1, max_size=4))
    kind = object if text else np.int64
    parts = [g.input(side, "N", draw(st.integers(1, 3)), high=6, dtype=kind) for side in sides]
    tokens = g.Concat(*parts, axis=draw(st.sampled_from((1, -1)))) if len(parts) > 1 else parts[0]
    if draw(st.booleans()):
        tokens = g.Gather(tokens, g.const([0, -1, 0, -2 if len(parts) > 1 else 0]), axis=1)
        if draw(st.booleans()):
            tokens = g.reshape(tokens, -1, 2)
    attrs = single_tokens(draw(st.sampled_from(("TF", "IDF", "TFIDF"))))
    if draw(st.booleans()):
        attrs |= {**PAIRS, "min_gram_length": draw(st.integers(1, 2)), "max_gram_length": 2}
        attrs["max_skip_count"] = draw(st.integers(0, 2))
    if text:
        attrs["pool_strings"] = [str(token) for token in attrs.pop("pool_int64s")]
    return g.output(g.Sin(g.TfIdfVectorizer(tokens, **attrs)))


@given(graphs())
def test_tfidf_is_the_same(g: Graph) -> None:
    check(g, tolerance=FLOATS, expect="batched")


@pytest.mark.parametrize("mode", ["TF", "TFIDF"])
def test_the_users_tokens_are_counted_once(mode: str) -> None:
    g = of_user_and_item(3, **single_tokens(mode))
    result = check(g, expect="split", tolerance=FLOATS)
    lifted(g, result, per_candidate=4 * 5)
    assert actions(result)["TfIdfVectorizer"] == ["split"]


def test_a_long_history_is_counted_once_by_flops_too() -> None:
    result = check(of_user_and_item(50, **single_tokens()), weighed=True, tolerance=FLOATS)
    assert result.changed, result.reason


def test_optimize_finds_that_it_saves_time() -> None:
    g = of_user_and_item(50, **single_tokens())
    done = mari_onnx.optimize(g.model(), user=["u*"], item=["x*"], check=False)
    assert done.report.changed, done.report.reason


def test_a_row_of_the_users_tokens_alone_is_counted_once_whatever_the_ngrams() -> None:
    g = Graph(18, np.float32)
    attrs = single_tokens("IDF") | {**PAIRS, "max_gram_length": 2}
    counts = g.TfIdfVectorizer(g.user(5, high=6), **attrs)
    check(g.output(g.Mul(counts, g.item(4))), expect="lifted", tolerance=FLOATS)


@pytest.mark.parametrize(
    ("attrs", "why"),
    [
        ({**PAIRS, "max_gram_length": 2}, "its n-grams of several tokens may lie across user and item tokens"),
        (single_tokens("IDF"), "in mode IDF the results of parts do not add up"),
        ({"ngram_indexes": [2, 0, 999]}, DEAR),
    ],
)
def test_rows_of_both_are_counted_as_a_whole(attrs: dict[str, Any], why: str) -> None:
    g = Graph(18, np.float32)
    tokens = g.Concat(g.user(3, high=6), g.item(2, high=6), axis=1)
    result = check(g.output(g.TfIdfVectorizer(tokens, **(single_tokens() | attrs))), tolerance=FLOATS)
    assert reasons(result)["TfIdfVectorizer"] == [why]


def test_tokens_without_an_axis_of_rows_are_copied() -> None:
    g = Graph(18, np.float32)
    one = g.reduce("Max", g.item(3, high=6), [1], keepdims=0)
    result = check(g.output(g.TfIdfVectorizer(one, **single_tokens())), tolerance=FLOATS)
    assert reasons(result)["TfIdfVectorizer"] == [ONE_ROW]
