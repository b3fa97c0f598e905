"""Sums of large terms that cancel stay sums: in float32 the output is as near to float64 as the source is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.engine import Rewrite, rewrite
from mari_onnx.parity.float64 import float64
from tests.engine.checks import unweighed
from tests.engine.graphs import Graph, ort

TIMES = 8
"""How many times the source's own error an output may have."""
Scaled = Callable[[Graph, np.random.Generator], str]


def errors(g: Graph, n: int = 7, **values: np.ndarray) -> tuple[float, float, float, Rewrite]:
    """The largest errors of source and output against a float64 run of the source, and the outputs' scale.

    values: of inputs, with one row for the user's.
    """
    source = g.model()
    with unweighed():
        result = rewrite(source, g.sides)
    feeds, once = g.feeds(n), g.feeds(n, once=True)
    for name, value in values.items():
        once[name] = value.astype(once[name].dtype)
        feeds[name] = np.broadcast_to(once[name], feeds[name].shape).copy()
    with float64(source) as precise:
        exact = precise.run(feeds)
    worst = [0.0, 0.0, 0.0]
    was, new = ort(source, feeds), ort(result.model, once if result.changed else feeds)
    assert was is not None
    assert new is not None
    for e, a, b in zip(exact, was, new, strict=True):
        found = np.abs(a - e).max(), np.abs(b - e).max(), np.abs(e).max()
        worst = [max(x, float(y)) for x, y in zip(worst, found, strict=True)]
    return worst[0], worst[1], worst[2], result


def precise(g: Graph, **values: np.ndarray) -> Rewrite:
    own, new, scale, result = errors(g, **values)
    assert new <= TIMES * own + 1e-7 * scale, f"error {new:.2g} where the source has {own:.2g} at scale {scale:.2g}"
    return result


def apart(result: Rewrite, op: str = "Sub") -> bool:
    """Whether the user's and the candidates' terms are multiplied each by itself: the sum is taken behind them."""
    nodes = [n.op_type for n in result.model.graph.node]
    return op not in nodes or nodes.index(op) > min(nodes.index(p) for p in ("MatMul", "Gemm") if p in nodes)


SUMS = ("Sub", "Add", "Sum", "ReduceSum", "scaled")


@given(st.sampled_from(SUMS), st.sampled_from((1.0, 1e3, 1e5, 1e6)), st.booleans(), st.booleans(), st.integers(0, 9))
def test_sums_of_raw_inputs(how: str, scale: float, history: bool, relu: bool, seed: int) -> None:
    """Values of one scale around one number, added or subtracted in every spelling before a layer."""
    g = Graph(dtype=np.float32, seed=seed)
    t = 6 if history else 1
    u, x = g.user(t, 8), g.item(1, 8)
    rng = np.random.default_rng(seed)
    sign = -1 if how == "Sub" else 1
    values = {u: -sign * (scale + rng.standard_normal((1, t, 8))), x: scale + rng.standard_normal((7, 1, 8))}
    if how in ("Sub", "Add", "Sum"):
        d = getattr(g, how)(x, u)
    elif how == "scaled":
        d = g.Add(g.Mul(x, g.const(np.array(0.5))), g.Mul(u, g.const(np.array(0.5))))
    else:
        d = g.reduce("Sum", g.Concat(g.expand(x, 1, t, 8), u, axis=1), [1])
    y = g.MatMul(d, g.weight(8, 5))
    g.output(g.MatMul(g.Relu(y), g.weight(5, 2)) if relu else y)
    precise(g, **values)


@pytest.mark.parametrize("raw", [False, True])
def test_a_table_that_lies_far_from_zero(raw: bool) -> None:
    """Years against years: of a table, or as they are."""
    g = Graph(dtype=np.float32)
    table = g.const(2020 + g.rng.standard_normal((50, 8)))
    u = g.user(6, 8) if raw else g.Gather(table, g.user(6, high=50))
    d = g.Sub(g.Gather(table, g.item(1, high=50)), u)
    g.output(g.MatMul(d, g.weight(8, 5)))
    result = precise(g, **({u: 2020 + g.rng.standard_normal((1, 6, 8))} if raw else {}))
    assert not apart(result)
    reason = next(r.reason for r in result.nodes if r.op == "MatMul")
    assert reason is not None
    assert "may be large and cancel" in reason


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_embeddings_of_any_scale_are_opened(scale: float) -> None:
    """A table around 0 has no digits in common with another: DIN's q - k is lifted."""
    g = Graph(dtype=np.float32)
    table = g.const(scale * g.rng.standard_normal((50, 8)))
    d = g.Sub(g.Gather(table, g.item(1, high=50)), g.Gather(table, g.user(6, high=50)))
    g.output(g.MatMul(d, g.weight(8, 5)))
    assert apart(precise(g))


def test_projections_of_embeddings_are_opened() -> None:
    g = Graph(dtype=np.float32)
    table = g.weight(50, 8)
    q, k = (g.MatMul(g.Gather(table, ids), g.weight(8, 8)) for ids in (g.item(1, high=50), g.user(6, high=50)))
    g.output(g.MatMul(g.Sub(q, k), g.weight(8, 5)))
    assert apart(precise(g))


def test_the_split_of_a_concat_needs_no_bound() -> None:
    """[u|x] W = u W_u + x W_x: sums of the same terms, a layer later too."""
    g = Graph(dtype=np.float32)
    u, x = g.user(8), g.item(8)
    half = g.rng.standard_normal((8, 5))
    g.output(g.MatMul(g.MatMul(g.Concat(u, x, axis=1), g.const(np.concatenate([half, half]))), g.weight(5, 3)))
    far = 1e5 + np.arange(8)
    result = precise(g, **{u: -far[None], x: far + g.rng.standard_normal((7, 8))})
    assert any(r.op == "MatMul" and r.action == "split" for r in result.nodes)


@pytest.mark.parametrize("far", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("exp", [False, True])
def test_batch_normalization_of_values_far_from_zero(far: float, exp: bool) -> None:
    """x a + c with x a near -c: behind weights as precise as before them; means near 0 go into the weights."""
    g = Graph(dtype=np.float32)
    u, x = g.user(8), g.item(8)
    both = g.Concat(u, x, axis=1)
    values = {u: far + g.rng.standard_normal((1, 8)), x: far + g.rng.standard_normal((7, 8))}
    mean, var = np.full(16, far), np.full(16, 1.0)
    if exp:  # e^z near 1, as a logarithmic network has it
        values = {k: 0.01 * v / max(1.0, far) for k, v in values.items()}
        both, mean, var = g.Exp(both), np.full(16, 1.0), np.full(16, 1e-4)
    scale, bias = 1 + 0.1 * g.rng.standard_normal(16), 0.1 * g.rng.standard_normal(16)
    y = g.BatchNormalization(both, *(g.const(v) for v in (scale, bias, mean, var)))
    g.output(g.MatMul(y, g.weight(16, 5)))
    result = precise(g, **values)
    kept = any(n.op_type == "BatchNormalization" for n in result.model.graph.node)
    assert kept == (exp or far > 4)


def test_a_square_stays_one() -> None:
    """|a - b|^2 is no a^2 - 2 a b + b^2, which may be below 0 and has no root."""
    g = Graph(dtype=np.float32)
    table = g.weight(5, 8)
    a, b = g.Gather(table, g.item(1, high=5)), g.Gather(table, g.user(64, high=5))
    d = g.Sub(a, b)
    g.output(g.Sqrt(g.reduce("Sum", g.Mul(d, d), [2])))
    result = precise(g)
    assert [n.op_type for n in result.model.graph.node].count("Sub") == 1


def test_a_small_term_is_not_added_to_one_that_cancels() -> None:
    """(x - u) + c is no x + (c - u)."""
    g = Graph(dtype=np.float32)
    u, x, c = g.user(1, 8), g.item(1, 8), g.user(1, 8)
    total = g.reduce("Sum", g.Concat(u, x, axis=1), [1])
    g.output(g.Add(total, c))
    precise(g, **{u: np.full((1, 1, 8), -1e6), x: 1e6 + g.rng.standard_normal((7, 1, 8)), c: np.full((1, 1, 8), 1e-2)})


@pytest.mark.parametrize("op", ["LayerNormalization", "Dropout"])
def test_a_second_output_has_no_bound(op: str) -> None:
    """LayerNormalization's mean and inverse deviation are not normalized: a mask of -1e9 is not below every score."""
    g = Graph(17)
    u, x = g.user(4, 8), g.item(1, 8)
    z = g.Concat(u, x, axis=1)
    scale = g.const(np.ones(8))
    many = g.nodes_of(op, [z, scale, scale], 3, axis=-1) if op == "LayerNormalization" else None
    names = many or g.nodes_of(op, [z], 2)
    b, tensors = _bounds(g, names)
    assert b[0] == (np.inf if op == "Dropout" else pytest.approx(8**0.5 + 1))
    assert all(bound == np.inf for bound in b[1:]), tensors


def _bounds(g: Graph, names: list[str]) -> tuple[list[float], list[str]]:
    from mari_onnx.engine.analysis.magnitude import bound
    from mari_onnx.engine.ir.value import Node, Tensor

    proto: onnx.NodeProto = g.nodes[-1]
    x = Tensor("x", 1, (7, 5, 8), frozenset())
    ones = Tensor("w", 1, (8,), frozenset(), array=np.ones(8))
    node = Node(proto, [x, ones, ones][: len(proto.input)], [], "", [])
    node.outputs.extend(Tensor(name, 1, (7, 5, 8), frozenset(), node) for name in names)
    return [bound(t) for t in node.outputs], names
