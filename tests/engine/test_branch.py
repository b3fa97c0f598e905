"""An If on a user's condition, part by part; each branch by onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

from mari_onnx.engine import Rewrite
from tests.engine.checks import actions
from tests.engine.runtime import check, feeds, model, normal, ops

COUNTS = (1, 2, 3, 4, 5, 7)
TEXT = (
    "(float[N,4] u, bool u_new, float[N,4] x) => (float y) {{ {before} z = If(u_new) <"
    " then_branch = t () => (a) {{ {then} }}, else_branch = e () => (b) {{ {other} }}> {after} }}"
)
WEIGHTS = {"W": normal(8, 4), "V": normal(4, 4)}


def branches(
    then: str, other: str, before: str = "", after: str = "y = MatMul(z, W)", opset: int = 17, **more: bool
) -> Rewrite:
    weights = WEIGHTS | {name: np.array(value) for name, value in more.items()}
    source = model(TEXT.format(before=before, then=then, other=other, after=after), opset, **weights)
    assert {bool(feeds(source, n)["u_new"]) for n in COUNTS} == {True, False}
    return check(source, COUNTS)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_parts_that_both_branches_have_of_the_user(opset: int) -> None:
    result = branches("r = Relu(u) a = Concat<axis=1>(r, x)", "r = Exp(u) b = Concat<axis=1>(r, x)", opset=opset)
    assert actions(result)["If"] == ["split"]
    assert actions(result)["MatMul"] == ["split"]
    (node,) = [n for n in result.model.graph.node if n.op_type == "If"]
    assert len(node.output) == 1  # x is the same in both


def test_a_branch_runs_only_if_it_is_taken() -> None:
    result = branches("r = Relu(u) a = Concat<axis=1>(r, x)", "r = Exp(u) b = Concat<axis=1>(r, x)")
    assert not {"Relu", "Exp"} & set(ops(result.model))


def test_what_is_the_users_in_both_is_lifted() -> None:
    result = branches("a = Relu(u)", "b = MatMul(u, V)", after="m = MatMul(z, V) e = Exp(m) y = Add(e, x)")
    assert actions(result)["If"] == ["lifted"]
    assert actions(result)["Exp"] == ["lifted"]


def test_branches_that_vary_differently() -> None:
    branches("a = Concat<axis=1>(u, x)", "b = Concat<axis=1>(x, u)")
    branches("a = Relu(u)", "b = Relu(x)", after="y = MatMul(z, V)")
    branches("m = Mul(u, x) a = Concat<axis=1>(m, u)", "b = Concat<axis=1>(x, u)")


def test_equal_nodes_inside_and_outside_of_a_branch() -> None:
    after = "r = Relu(u) q = MatMul(r, V) m = MatMul(z, V) s = Add(q, m) y = Exp(s)"
    result = branches("p = Relu(u) a = MatMul(p, V)", "p = Relu(u) b = MatMul(p, V)", after=after)
    assert ops(result.model).count("Relu") == 1


def test_forms_of_tensors_outside() -> None:
    body = "m = MatMul(s, V) {} = Tanh(m)"
    before = "h = Add(u, x) s = Identity(h)"
    branches(body.format("a"), "b = Exp(s)", before, "n = MatMul(s, V) y = Add(n, z)")


def test_constants_and_names_of_the_model() -> None:
    branches("a = Constant<value = float {2.0}>()", "b = Constant<value = float {3.0}>()", after="y = Mul(x, z)")
    branches("a = Identity(x)", "b = Identity(u)", after="y = Identity(z)")


def test_a_branch_in_a_branch() -> None:
    inner = (
        "s = ReduceSum<keepdims=0>(u) zero = Constant<value = float {0.0}>() c = Greater(s, zero)"
        " a = If(c) <then_branch = p () => (f) { f = Relu(u) }, else_branch = q () => (g) { g = Exp(u) }>"
    )
    result = branches(inner, "b = Neg(u)", after="m = MatMul(z, V) e = Exp(m) y = Add(e, x)")
    assert actions(result)["If"] == ["lifted"]


@pytest.mark.parametrize(
    ("then", "other", "after"),
    [
        ("a = Concat<axis=1>(u, x)", "b = Relu(u)", "y = Relu(z)"),  # of other widths
        ("a = ReduceSum<keepdims=0>(u)", "b = Relu(u)", "y = Exp(z)"),  # of other ranks
        ("a = NonZero(u)", "b = NonZero(x)", "y = Neg(z)"),  # that only the run tells
    ],
)
def test_results_that_differ_in_shape_are_left(then: str, other: str, after: str) -> None:
    if "NonZero" in then:
        then, other = (f"q = {t[4:]} {t[0]} = Cast<to=1>(q)" for t in (then, other))
    result = branches(then, other, after=after)
    assert actions(result)["If"] in (["barrier"], ["kept"])
    (report,) = [r for r in result.nodes if r.op == "If"]
    assert report.reason


def test_a_branch_that_a_constant_chooses_stands_in_place_of_the_if() -> None:
    text = (
        "(float[N,4] u, float[N,4] x) => (float y) { r = Relu(u) z = If(yes) < then_branch = t () => (a) "
        "{ c = Concat<axis=1>(r, x) m = MatMul(c, W) a = Tanh(m) }, else_branch = e () => (b) { b = Exp(u) }> "
        "y = MatMul(z, V) }"
    )
    result = check(model(text, 17, **WEIGHTS, yes=np.array(True)), COUNTS)
    assert actions(result)["If"] == ["folded"]
    assert actions(result)["MatMul"] == ["split", "kept"]  # of the branch, and of the graph
    assert "Exp" not in actions(result)
    assert "If" not in ops(result.model)


def test_a_constant_chooses_within_a_branch() -> None:
    inner = "{} = If(yes) < then_branch = t () => (p) {{ p = Tanh(q) }}, else_branch = e () => (o) {{ o = Exp(q) }}>"
    result = branches(
        "q = Relu(u) " + inner.format("a"), "b = MatMul(u, V)", after="m = MatMul(z, V) y = Add(m, x)", yes=True
    )
    assert ops(result.model).count("If") == 1
