"""The sample models of the frontier: what one more candidate takes, against the least by a count by hand.

FLOPs as `engine/cost/flops.py` counts them, where work decides and not time, and of so many candidates that what is
computed once per request does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from benchmarks.demo.model import sides_of
from mari_onnx.engine import Options, rewrite

MODELS = Path(__file__).parents[1] / "models"
EXP, NORM, SOFTMAX = 8, 8, 12
"""FLOPs of an element: of a transcendental function, of LayerNormalization and of Softmax."""
WIDTH, HEADS, INNER, LAYERS, HISTORY = 16, 2, 32, 2, 16
USER, ITEM = 75, 34
"""Columns of all user and item features side by side; two more are of both."""


def linear(width: int, out: int, bias: bool = True) -> int:
    return 2 * width * out + (out if bias else 0)


def ug_sep(gelu: int, square: int) -> int:
    """Two tokens of items; the six of the user are computed once."""
    items, masked, mixed = 2, 6 * 2 * 2, 2 * 2 * 2
    ffn = linear(WIDTH, INNER) + gelu * INNER + linear(INNER, WIDTH) + WIDTH
    # what was masked, what item tokens get of each other (of the user: with the bias), the residual, two norms
    layer = linear(masked, items * WIDTH) + mixed + items * WIDTH + 2 * NORM * items * WIDTH + items * ffn
    head = items * WIDTH + WIDTH + linear(WIDTH, 1) + EXP
    return linear(24, WIDTH) + linear(12, WIDTH) + LAYERS * layer + head


def rocs(gelu: int, square: int) -> int:
    """Columns of items alone: what they get of the user's columns is one row, added with the bias."""
    cross = linear(ITEM, ITEM) + 2 * ITEM
    deep = linear(ITEM, 32) + 32 + linear(32, 16) + 16
    return LAYERS * cross + deep + linear(ITEM + 16, 1) + EXP


def hstu(gelu: int, square: int) -> int:
    """A candidate attends to the user's token, the history and itself; the scale and the mask could go into values."""
    keys = 1 + HISTORY + 1
    scores = HEADS * keys * (1 + EXP + 1)  # the bias, SiLU
    attention = 2 * 2 * WIDTH * keys + scores
    gates = linear(WIDTH, 4 * WIDTH) + (EXP + 1) * 4 * WIDTH
    layer = NORM * WIDTH + gates + attention + NORM * WIDTH + WIDTH + linear(WIDTH, WIDTH) + WIDTH
    return linear(ITEM + 2, WIDTH) + LAYERS * layer + linear(WIDTH, 32) + 32 + linear(32, 1) + EXP


def phoenix(gelu: int, square: int) -> int:
    """The same with softmax. Keys and values are of one head, half as wide as the queries."""
    keys, half = 1 + HISTORY + 1, WIDTH // 2
    norm = (square + 3) * WIDTH + 1 + EXP + 1  # squares, mean, two products; epsilon, root, reciprocal
    turned = (WIDTH + half) * 3 + (WIDTH + half) // 2  # two products, a sum, a negation of half
    scores = HEADS * keys * (1 + 1 + EXP + 1 + 1 + SOFTMAX)  # two scales, tanh, a scale, the mask
    attention = 2 * 2 * WIDTH * keys + scores
    products = linear(WIDTH, WIDTH + 2 * half, False) + linear(WIDTH, WIDTH, False)
    ffn = 3 * linear(WIDTH, INNER, False) + (gelu + 1) * INNER
    layer = 4 * norm + products + turned + attention + ffn + 2 * WIDTH
    return linear(ITEM + 2, WIDTH) + LAYERS * layer + norm + linear(WIDTH, 1) + EXP


def reranker(gelu: int, square: int) -> int:
    """All tokens attend to all, so they are the candidate's from the first layer on; the last one makes position 0."""
    own, items, half = 1 + 7 + HISTORY, 4, WIDTH // HEADS
    tokens, project = own + items, linear(WIDTH, WIDTH)
    ffn = linear(WIDTH, INNER) + gelu * INNER + linear(INNER, WIDTH) + WIDTH + NORM * WIDTH
    behind = project + WIDTH + NORM * WIDTH + ffn
    score = 2 * WIDTH + 2 * HEADS  # the product, a scale, the mask
    row = HEADS * (SOFTMAX * tokens + 2 * half * tokens)
    # a user's row: scores of the items alone; the history's part of the sum is scaled by how much they weigh
    weights = (1 + 1 + EXP + 1) * items + 1 + 2 * (1 + EXP) + 3 + 2
    user_row = HEADS * (weights + half + items + 2 * half * items + half)
    new_scores = score * (tokens**2 - own**2)
    first = 3 * project * items + new_scores + own * user_row + items * row + tokens * behind
    second = tokens * (3 * project + score * tokens + row + behind)
    last = 2 * project * tokens + project + score * tokens + row + behind
    embedded = items * (WIDTH + NORM * WIDTH)
    return embedded + first + second + last + project + EXP * WIDTH + linear(WIDTH, 1) + EXP


BY_HAND: dict[str, Callable[[int, int], int]] = {
    "ug_sep": ug_sep,
    "rocs_dcnv2": rocs,
    "hstu": hstu,
    "phoenix": phoenix,
    "reranker": reranker,
}
# Each exporter's Gelu and square: one operator, a Pow; or Div, Erf, Add and two Mul, a Mul.
EXPORTERS = {".onnx": (EXP, EXP), ".torchscript.onnx": (EXP + 4, 1)}


@pytest.mark.parametrize("suffix", EXPORTERS)
@pytest.mark.parametrize("name", BY_HAND)
def test_a_candidate_takes_what_a_count_by_hand_says(name: str, suffix: str) -> None:
    path = MODELS / f"{name}{suffix}"
    model, sides = onnx.load(path), sides_of(path)
    work = [rewrite(model, sides, Options(assume=True, candidates=n)).flops for n in (100_000, 200_000)]
    each, least = (work[1] - work[0]) / 100_000, BY_HAND[name](*EXPORTERS[suffix])
    assert each <= 1.02 * least
    assert each >= 0.98 * least, "less than the least: the count by hand is wrong"
