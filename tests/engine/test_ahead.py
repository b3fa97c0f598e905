"""Squeezes without axes: what the source does at N = 1, as onnxruntime runs it, decides whether they keep the axis."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from mari_onnx.engine import Rewrite, rewrite
from mari_onnx.engine.rules.structure import MAY_BE_ONE
from tests.engine.graphs import LENGTHS, Draw, Graph, check, lifted, ort, same, traced

D = 3


def claimed(g: Graph) -> onnx.ModelProto:
    """With shapes for many candidates beside all tensors, as torch writes them; onnxruntime builds on them."""
    model = g.model()
    known = {i.name for i in [*model.graph.input, *model.graph.output]}
    few, many = (traced(model, g.feeds(n)) for n in (3, 7))
    for name in {o for node in model.graph.node for o in node.output} & set(few) - known:
        a, b = few[name], many[name]
        if a.ndim != b.ndim:
            continue
        dims = [p if p == q else "N" for p, q in zip(a.shape, b.shape, strict=True)]
        model.graph.value_info.append(
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), dims)
        )
    return model


def rewritten(g: Graph) -> Rewrite:
    """Checked for many candidates, and at N = 1 against onnxruntime, in each way in which it runs the source.

    As it is written, the new model runs too. A source that runs only as it is optimized, or as it claims to be, may
    have answers of more dimensions than what stayed a Squeeze.
    """
    result = check(g, counts=(2, 3, 7), tolerance=1e-4)
    written = runs(g)
    for optimized in (False, True):
        have = ort(result.model, g.feeds(1, once=result.changed), optimized)
        for source in (g.model(), claimed(g)):
            want = ort(source, g.feeds(1), optimized)
            if want is None or (written and source.graph.value_info):
                continue
            assert have is not None or not written
            for name, a, b in zip(g.outputs, want, have or want, strict=True):
                same(a.reshape(b.shape) if b.ndim < a.ndim and not written else a, b, 1e-4, f"{name} at N=1")
    return result


def runs(g: Graph) -> bool:
    return ort(g.model(), g.feeds(1)) is not None


def _squeezed(g: Graph) -> list[str]:
    """[N, D] in several ways, of both sides."""
    user, item = g.user(1, D), g.item(D, 1)
    return [g.Squeeze(user), g.Squeeze(g.MatMul(user, g.weight(D, D))), g.Squeeze(item), g.user(D), g.item(D)]


STEPS: dict[str, Callable[[Graph, str, str, int], str]] = {
    "gemm": lambda g, x, y, axis: g.Gemm(x, g.weight(D, D), g.weight(D)),
    "matmul": lambda g, x, y, axis: g.MatMul(x, g.weight(D, D)),
    "linear": lambda g, x, y, axis: g.Add(g.MatMul(x, g.weight(D, D)), g.weight(D)),
    "add": lambda g, x, y, axis: g.Add(x, y),
    "relu": lambda g, x, y, axis: g.Relu(x),
    "softmax": lambda g, x, y, axis: g.Softmax(x, axis=axis),
    "concat": lambda g, x, y, axis: g.MatMul(g.Concat(x, y, axis=axis), g.weight(2 * D, D)),
    "sum": lambda g, x, y, axis: g.Mul(y, g.reduce("Sum", x, [axis])),
    "field": lambda g, x, y, axis: g.Squeeze(g.unsqueeze(x, axis)),
    "fields": lambda g, x, y, axis: g.reduce(
        "Sum", g.Concat(g.unsqueeze(x, 1), g.unsqueeze(y, 1), axis=1), [1 if axis > 0 else -2], 0),
    "reshape": lambda g, x, y, axis: g.reshape(x, -1, D),
    "flatten": lambda g, x, y, axis: g.Flatten(x, axis=axis),
    "turned": lambda g, x, y, axis: g.Transpose(g.Relu(g.Transpose(x, perm=[1, 0])), perm=[1, 0]),
    "all": lambda g, x, y, axis: g.slice(x, 0, 2**63 - 1, axis),
    "pieces": lambda g, x, y, axis: g.Concat(*g.split(x, [1, D - 1], axis), axis=axis),
    "column": lambda g, x, y, axis: g.Mul(g.Gather(x, g.const([1], np.int64), axis=axis), y),
    "expand": lambda g, x, y, axis: g.expand(x, 1, D),
    "batch": lambda g, x, y, axis: g.BatchNormalization(
        g.MatMul(x, g.weight(D, D)), *(g.const(g.rng.random(D) + 0.5) for _ in range(4))),
}  # fmt: skip


@st.composite
def graphs(draw: Draw) -> Graph:
    g = Graph(draw(st.sampled_from((11, 13, 17))), dtype=np.float32)
    pool = _squeezed(g)
    for _ in range(draw(st.integers(1, 5))):
        x, y = draw(st.sampled_from(pool)), draw(st.sampled_from(pool))
        # before opset 14 onnx's evaluator takes statistics of the batch
        steps = sorted(STEPS if g.opset > 13 else set(STEPS) - {"batch"})
        pool.append(STEPS[draw(st.sampled_from(steps))](g, x, y, draw(st.sampled_from((1, -1)))))
    ends = draw(st.lists(st.sampled_from(pool[5:]), min_size=1, max_size=2, unique=True))
    for end in ends:
        g.output(end if draw(st.booleans()) else g.Gemm(end, g.weight(D, 2)))
    return g


@given(graphs())
def test_a_graph_does_at_one_candidate_what_the_source_does(g: Graph) -> None:
    rewritten(g)


def _open(result: Rewrite) -> list[str | None]:
    return [n.reason for n in result.nodes if n.op == "Squeeze"]


def test_a_concat_with_rows_fails_at_one_candidate() -> None:
    """As PEPNet is exported: the user's layer runs once."""
    g = Graph(17, dtype=np.float32)
    hidden = g.Relu(g.Gemm(g.Squeeze(g.user(1, 8)), g.weight(8, 6)))
    g.output(g.MatMul(g.Concat(g.Softmax(g.Squeeze(g.user(1, 4)), axis=1), hidden, g.item(2), axis=1), g.weight(12, 2)))
    lifted(g, rewritten(g), per_candidate=2 * 2)
    assert not runs(g)


def test_shapes_behind_sizes_that_inference_does_not_follow() -> None:
    """As dynamo writes views: the size of the batch as a number, and as a vector again, in the target of a Reshape."""
    g = Graph(17, dtype=np.float32)
    x = g.user(8)
    size = g.Reshape(g.Squeeze(g.Shape(x, start=0, end=1)), g.const([-1], np.int64))
    rows = g.Reshape(x, g.Concat(size, g.const([1, 8], np.int64), axis=0))
    hidden = g.Relu(g.Gemm(g.Squeeze(rows), g.weight(8, 6)))
    g.output(g.MatMul(g.Concat(hidden, g.item(2), axis=1), g.weight(8, 2)))
    lifted(g, rewritten(g), per_candidate=2 * 2)


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_a_gemm_takes_the_vector_for_a_row(opset: int) -> None:
    g = Graph(opset, dtype=np.float32)
    hidden = g.Gemm(g.Relu(g.Squeeze(g.user(1, 8))), g.weight(8, 6), g.weight(6))
    lifted(g.output(g.Add(hidden, g.item(6))), rewritten(g))
    assert runs(g)


def test_a_vector_and_a_row_are_a_row() -> None:
    g = Graph(17, dtype=np.float32)
    both = g.Add(g.Squeeze(g.MatMul(g.user(1, 8), g.weight(8, 6))), g.item(6))
    lifted(g.output(g.Gemm(both, g.weight(6, 2))), rewritten(g))
    assert runs(g)


def test_a_literal_batch_is_never_one() -> None:
    g = Graph(17, fixed=5)
    hidden = g.Tanh(g.MatMul(g.Squeeze(g.user(1, 8)), g.weight(8, 6)))
    lifted(g.output(g.Add(hidden, g.item(6))), check(g))


def test_a_batch_without_a_name() -> None:
    g = Graph(17, dtype=np.float32)
    g.output(g.Gemm(g.Squeeze(g.user(1, 8)), g.weight(8, 6)), g.Relu(g.item(6)))
    model = g.model()
    for info in model.graph.input:
        info.type.tensor_type.shape.dim[0].ClearField("dim_param")
    assert MAY_BE_ONE not in _open(rewrite(model, g.sides))


REFUSED: dict[str, Callable[[Graph, str], str]] = {
    "an output": lambda g, x: x,
    "an output behind a product": lambda g, x: g.MatMul(x, g.weight(D, 2)),
    "another Squeeze": lambda g, x: g.Gemm(g.Add(x, g.Squeeze(g.item(1, D))), g.weight(D, 2)),
    "a sum over the last axis": lambda g, x: g.reduce("Sum", x, [-1], keepdims=0),
    "a transposition without perm": lambda g, x: g.Add(g.Transpose(x), g.weight(D, 1)),
    "its shape": lambda g, x: g.Gemm(g.reshape(x, -1, D), g.Expand(g.weight(1, 1), g.Concat(
        g.const([D], np.int64), g.size(x, -1), axis=0))),
    "its rank": lambda g, x: g.Mul(g.Gemm(x, g.weight(D, 2)), g.Cast(g.Size(g.Shape(x)), to=1)),
    "an operator that is not known": lambda g, x: g.Gemm(g.CumSum(x, g.const(-1, np.int64)), g.weight(D, 2)),
    "Transposes that optimizations drop": lambda g, x: g.Transpose(g.Transpose(x, perm=[1, 0]), perm=[1, 0]),
    "a Slice that optimizations drop": lambda g, x: g.slice(x, 0, 2**63 - 1, 1),
    "an Expand that optimizations drop": lambda g, x: g.expand(x, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("where", sorted(REFUSED))
def test_a_squeeze_that_may_matter_stays(where: str) -> None:
    g = Graph(17, dtype=np.float32)
    x = g.Squeeze(g.Relu(g.user(1, D)))
    g.output(REFUSED[where](g, x), g.Relu(g.item(D)))
    result = rewritten(g)
    assert MAY_BE_ONE in _open(result)


def test_a_failing_node_that_no_output_needs_says_nothing() -> None:
    g = Graph(17, dtype=np.float32)
    x = g.Squeeze(g.Relu(g.user(1, D)))
    g.Concat(x, g.item(D), axis=1)
    g.output(g.Neg(x), g.Relu(g.item(D)))
    assert MAY_BE_ONE in _open(rewritten(g))


def test_a_failure_elsewhere_says_nothing() -> None:
    """With shapes in the file onnxruntime runs MatMul and Add as a Gemm, and the Concat does not fail."""
    g = Graph(17, dtype=np.float32)
    x = g.Add(g.MatMul(g.Squeeze(g.user(1, D)), g.weight(D, 4)), g.weight(4))
    score = g.Squeeze(g.MatMul(g.item(D), g.weight(D, 1)))
    g.output(g.Concat(x, g.item(4), axis=1), score)
    assert not runs(g)
    assert ort(claimed(g), g.feeds(1), optimized=True) is not None
    assert _open(rewritten(g)) == [None, MAY_BE_ONE]


OTHERS: dict[str, Callable[[Graph], str]] = {
    "a history": lambda g: g.user("T", D),
    "candidates and a history": lambda g: g.reshape(g.MatMul(g.user("T", D), g.weight(D, D)), -1, 1, D),
    "all candidates but the first": lambda g: g.slice(g.item(1, D), 1, 2**31, 0),
    "every other candidate": lambda g: g.slice(g.item(1, D), 0, 2**31, 0, 2),
    "a length that an input tells": lambda g: g.Slice(
        g.user(D, D), g.const([0], np.int64), g.input("user", 1, high=4), g.const([1], np.int64)),
}  # fmt: skip


@pytest.mark.parametrize("where", sorted(OTHERS))
def test_other_dimensions_may_be_one_too(where: str) -> None:
    g = Graph(17, dtype=np.float32)
    x = g.Squeeze(OTHERS[where](g))
    g.output(g.reduce("Sum", x, None, 0), g.Relu(g.item(D)))
    assert MAY_BE_ONE in _open(rewritten(g))


def test_one_position_of_a_history_is_dropped_as_in_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    g = Graph(17, dtype=np.float32)
    g.output(g.Gemm(g.Squeeze(g.user("T", D)), g.weight(D, 2)), g.Relu(g.item(D)))
    monkeypatch.setitem(LENGTHS, "T", 1)
    assert MAY_BE_ONE in _open(rewritten(g))


@pytest.mark.parametrize("op", ["If", "Loop"])
def test_a_squeeze_in_a_body_stays(op: str) -> None:
    """What a body does at N = 1 is not looked at, nor is what comes out of it."""
    g = Graph(17, dtype=np.float32)
    x, big = g.user(1, D), g.Greater(g.reduce("Sum", g.user(1), None, 0), g.const(0.0))
    squeeze = helper.make_node("Squeeze", [x], ["inner"])
    result = helper.make_tensor_value_info("inner", 1, None)
    if op == "If":
        other = helper.make_graph([helper.make_node("Flatten", [x], ["outer"])], "b",
                                  [], [helper.make_tensor_value_info("outer", 1, None)])  # fmt: skip
        made = g.If(big, then_branch=helper.make_graph([squeeze], "a", [], [result]), else_branch=other)
    else:
        ins = [helper.make_tensor_value_info(n, t, s) for n, t, s in (("i", 7, []), ("go", 9, []), ("was", 1, None))]
        keep = helper.make_node("Identity", ["go"], ["on"])
        body = helper.make_graph([squeeze, keep], "a", ins, [helper.make_tensor_value_info("on", 9, []), result])
        made = g.Loop(g.const(1, np.int64), "", g.Flatten(x), body=body)
    g.output(made, g.Relu(g.item(D)))
    rewritten(g)
    h = Graph(17, dtype=np.float32)
    y = h.Squeeze(h.user(1, D))
    inside = helper.make_graph([helper.make_node("Neg", [y], ["inner"])], "a", [], [result])
    as_is = helper.make_graph([helper.make_node("Identity", [y], ["outer"])], "b",
                              [], [helper.make_tensor_value_info("outer", 1, None)])  # fmt: skip
    cond = h.Greater(h.reduce("Sum", h.user(1), None, 0), h.const(0.0))
    h.output(h.Gemm(h.If(cond, then_branch=inside, else_branch=as_is), h.weight(D, 2)), h.Relu(h.item(D)))
    assert MAY_BE_ONE in _open(rewritten(h))


def _by_length(g: Graph, x: str, axis: int) -> str:
    """x.squeeze(axis) as torch exports it where the dimension is not known: a Squeeze if it is 1."""
    one = g.Equal(g.Gather(g.Shape(x), g.const(axis, np.int64), axis=0), g.const(1, np.int64))
    then = helper.make_node("Squeeze", [x, g.const([axis], np.int64)], [g.name("s")])
    other = helper.make_node("Identity", [x], [g.name("s")])
    branches = [
        helper.make_graph([node], "b", [], [helper.make_tensor_value_info(node.output[0], 1, None)])
        for node in (then, other)
    ]
    return g.If(one, then_branch=branches[0], else_branch=branches[1])


def test_a_squeeze_if_the_dimension_is_1() -> None:
    """Folded where it is known."""
    g = Graph(17, dtype=np.float32)
    hidden = g.Relu(g.MatMul(_by_length(g, g.user(1, 8), 1), g.weight(8, 6)))
    lifted(g.output(g.Add(hidden, g.item(6))), rewritten(g))


@pytest.mark.parametrize("length", [1, 4])
def test_a_squeeze_if_the_history_is_of_one(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g = Graph(17, dtype=np.float32)
    monkeypatch.setitem(LENGTHS, "T", length)
    g.output(_by_length(g, g.user("T", D), 1), g.Relu(g.item(D)))
    rewritten(g)


def test_a_squeeze_if_there_is_one_candidate() -> None:
    g = Graph(17, dtype=np.float32)
    g.output(_by_length(g, g.Relu(g.user(D)), 0), g.Relu(g.item(D)))
    rewritten(g)


def test_it_runs_only_where_it_may_help(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("mari_onnx.engine.lookahead.squeeze.shapes", never)
    g = Graph(17)
    g.output(g.MatMul(g.squeeze(g.user(1, D), [1]), g.weight(D, 2)), g.Squeeze(g.const([[1.0]])), g.Relu(g.item(D)))
    check(g)


def test_many_squeezes_behind_and_beside_each_other() -> None:
    """Time and memory grow with the graph, not with its square."""
    g = Graph(17, dtype=np.float32)
    x = g.user(1, D)
    rows = [g.Squeeze(x) for _ in range(400)]
    total = rows[0]
    for row in rows[1:]:
        total = g.Add(total, row)
    for _ in range(20):
        total = g.Squeeze(g.unsqueeze(g.Relu(total), -1))
    g.output(total, g.Relu(g.item(D)))
    assert MAY_BE_ONE in _open(rewrite(g.model(), g.sides))
