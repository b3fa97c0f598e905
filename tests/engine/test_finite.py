"""A NaN in one candidate, or in the user: the output is finite exactly where the source is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.engine import Rewrite, rewrite
from mari_onnx.engine.algebra.contract import TIMES_ZERO
from mari_onnx.engine.analysis.finite import carried
from tests.engine.checks import actions, check, unweighed
from tests.engine.graphs import Graph, ort, run

Build = Callable[[Graph, str, str], str]
"""What reads the user's tokens [N, 3, 4] and the candidate's [N, 2, 4]."""


def same_places(g: Graph, n: int = 5, runs: bool = False) -> Rewrite:
    """runs: by onnxruntime as well, whose maximum of a row takes NaN for what it is only in some places."""
    source = g.model()
    with unweighed():
        result = rewrite(source, g.sides)
    sound, moved = run(source, g.feeds(n)), False
    for spoilt in range(3 * len(g.inputs)):
        feeds, once = g.feeds(n, spoilt=spoilt), g.feeds(n, once=result.changed, spoilt=spoilt)
        pairs = [(run(source, feeds), run(result.model, once))]
        if runs:
            pairs.append((ort(source, feeds) or [], ort(result.model, once) or []))
        for want, have in pairs:
            assert len(want) == len(have) == len(g.outputs)
            for name, a, b in zip(g.outputs, want, have, strict=True):
                where = f"{name}, spoilt={spoilt}"
                np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b), err_msg=where)
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=where)
            moved |= not all(np.array_equal(a, b) for a, b in zip(want, sound, strict=True))
    assert moved, "nothing was spoilt"
    return result


def guarded(g: Graph, x: str) -> str:
    """Numbers in place of NaN, as models write it that expect some."""
    return g.Where(g.IsNaN(x), g.const(np.array(0.25)), x)


def no_weight(g: Graph, u: str, x: str) -> str:
    """Weights of zeros for all that is the candidate's."""
    weight = g.rng.standard_normal((5, 3))
    weight[3:] = 0
    both = g.Transpose(g.Concat(u, x, axis=1), perm=[0, 2, 1])
    return g.Concat(guarded(g, g.MatMul(both, g.const(weight))), g.Transpose(x, perm=[0, 2, 1]), axis=2)


def some_weights(g: Graph, u: str, x: str) -> str:
    """A block of zeros, as groups have that see one side."""
    weight = g.rng.standard_normal((5, 4))
    weight[3:, :2] = 0
    weight[0, :] = 0
    return guarded(g, g.MatMul(g.Transpose(g.Concat(u, x, axis=1), perm=[0, 2, 1]), g.const(weight)))


def times_zero(g: Graph, u: str, x: str) -> str:
    mask = np.array([1.0, 1, 1, 0, 0]).reshape(1, 5, 1)
    kept = g.Mul(g.Concat(u, x, axis=1), g.const(mask))
    return guarded(g, g.reduce("Sum", g.MatMul(kept, g.weight(4, 2)), [1]))


def attention(g: Graph, u: str, x: str, mask: str) -> str:
    """Causal: the user's tokens do not see the candidate's."""
    tokens = g.Concat(u, x, axis=1)
    q, k, v = (g.MatMul(tokens, g.weight(4, 4)) for _ in range(3))
    scores = g.MatMul(q, g.Transpose(k, perm=[0, 2, 1]))
    hidden = np.triu(np.ones((5, 5), bool), 1)[None]
    if mask == "bounded":
        scores, mask = g.Tanh(scores), "-1e9"
    if mask == "where":
        scores = g.Where(g.const(hidden), g.const(np.array(-np.inf)), scores)
    elif mask == "min":
        scores = g.Min(scores, g.const(np.where(hidden, -np.inf, 1e30)))
    else:
        scores = g.Add(scores, g.const(np.where(hidden, float(mask), 0.0)))
    return g.Add(tokens, g.MatMul(g.Softmax(scores, axis=-1), v))


def seen(mask: str) -> Build:
    return lambda g, u, x: g.MatMul(guarded(g, attention(g, u, x, mask)), g.weight(4, 2))


def largest(op: str) -> Build:
    return lambda g, u, x: g.reduce(op, g.Concat(u, x, axis=1), [1], keepdims=0)


BUILDS: dict[str, Build] = {
    "no weight": no_weight,
    "some weights": some_weights,
    "times zero": times_zero,
    **{f"attention, {mask}": seen(mask) for mask in ("where", "-inf", "-1e9", "bounded", "min")},
    "largest": largest("Max"),
    "least": largest("Min"),
}


@given(st.sampled_from(sorted(BUILDS)), st.integers(0, 3))
def test_nan_stays_where_the_source_has_it(build: str, seed: int) -> None:
    g = Graph(18, seed=seed, dtype=np.float32)
    g.output(BUILDS[build](g, g.user(3, 4), g.item(2, 4)))
    same_places(g, runs="attention, min" not in build)


@pytest.mark.parametrize("build", sorted(BUILDS))
def test_each_once(build: str) -> None:
    g = Graph(18, dtype=np.float32)
    g.output(BUILDS[build](g, g.user(3, 4), g.item(2, 4)))
    same_places(g, runs=True)


def embedded(g: Graph) -> tuple[str, str]:
    table = g.weight(20, 4)
    return g.Gather(table, g.user(3, high=20)), g.Gather(table, g.item(2, high=20))


@pytest.mark.parametrize("mask", ["where", "-inf"])
def test_hidden_tokens_that_are_looked_up_are_left_out(mask: str) -> None:
    g = Graph(18)
    g.output(BUILDS[f"attention, {mask}"](g, *embedded(g)))
    assert actions(check(g))["Softmax"] == ["split"]


@pytest.mark.parametrize("mask", ["where", "-inf"])
def test_hidden_tokens_are_left_out_where_a_nan_gets_to_the_output_anyway(mask: str) -> None:
    """The candidate's own row is NaN, and so is what reads it: no operator asks what it is."""
    g = Graph(18, dtype=np.float32)
    made = attention(g, g.user(3, 4), g.item(2, 4), mask)
    g.output(g.Sigmoid(g.MatMul(g.reduce("Mean", made, [1], keepdims=0), g.weight(4, 1))))
    assert actions(same_places(g))["Softmax"] == ["split"]


@pytest.mark.parametrize("kind", ["initializer", "node", "zero", "computed"])
def test_a_power_keeps_a_nan_unless_it_may_be_the_power_0(kind: str) -> None:
    """x ^ 2, of which exporters write normalizations, does; the powers 1, 1, 1, 0, 0 of five tokens do not."""
    g = Graph(18, dtype=np.float32)
    made = attention(g, g.user(3, 4), g.item(2, 4), "where")
    powers = np.array([1.0, 1, 1, 0, 0]).reshape(1, 5, 1)
    exponent = {
        "initializer": lambda: g.const(np.array(2.0)),
        "node": lambda: g.Constant(value_float=2.0),
        "zero": lambda: g.const(powers),
        "computed": lambda: g.Cast(g.const(powers, np.int64), to=1),
    }[kind]()
    y = g.reduce("Mean", g.Pow(made, exponent), [1], keepdims=0)
    g.output(g.MatMul(y, g.weight(4, 2)))
    assert carried(g.model().graph) == (kind in ("initializer", "node"))
    reasons = [node.reason for node in same_places(g, runs=True).nodes]
    assert (TIMES_ZERO in reasons) == (kind not in ("initializer", "node"))


@pytest.mark.parametrize("op", ["IsNaN", "Greater", "Cast", "ReduceMax"])
def test_but_not_where_an_operator_asks(op: str) -> None:
    g = Graph(18, dtype=np.float32)
    made = attention(g, g.user(3, 4), g.item(2, 4), "where")
    if op == "IsNaN":
        made = guarded(g, made)
    elif op == "Greater":
        made = g.Where(g.Greater(made, g.const(np.array(0.0))), made, g.const(np.array(0.0)))
    elif op == "Cast":
        made = g.Cast(g.Cast(made, to=7), to=1)
    else:
        made = g.reduce("Max", made, [1])
    same_places(g.output(made), runs=True)
