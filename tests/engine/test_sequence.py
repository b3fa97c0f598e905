"""Sequences whose elements are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.engine.checks import actions, check, lifted
from tests.engine.graphs import Draw, Graph


@st.composite
def sequences(draw: Draw) -> Graph:
    g = Graph(draw(st.sampled_from((13, 18, 20))))
    width = draw(st.integers(1, 3))
    parts = [draw(st.sampled_from((g.user, g.item)))(width) for _ in range(draw(st.integers(1, 4)))]
    seq = g.SequenceConstruct(*parts)
    count = len(parts)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(-count, count - 1)) if count else 0
        if draw(st.booleans()) or count < 2:
            more = g.Sin(draw(st.sampled_from(parts)))
            place = [g.const(np.asarray(at))] if draw(st.booleans()) and count else []
            seq, count = g.SequenceInsert(seq, more, *place), count + 1
        else:
            place = [g.const(np.asarray(at))] if draw(st.booleans()) else []
            seq, count = g.SequenceErase(seq, *place), count - 1
    picked = g.SequenceAt(seq, g.const(np.asarray(draw(st.integers(-count, count - 1)))))
    new = draw(st.booleans())
    both = g.ConcatFromSequence(seq, axis=draw(st.integers(0 if not new else 1, 1)), new_axis=int(new))
    return g.output(g.Sin(both), g.Relu(picked), g.Cast(g.SequenceLength(seq), to=7))


@given(sequences())
def test_sequences_of_known_elements_are_the_same(g: Graph) -> None:
    check(g)


@given(
    st.integers(2, 5),
    st.integers(1, 4),
    st.sampled_from(("none", "squeezed", "chunks", "lengths")),
    st.booleans(),
    st.data(),
)
def test_a_split_into_a_sequence(users: int, items: int, how: str, joined: bool, data: st.DataObject) -> None:
    g = Graph(18)
    both = g.Concat(g.Sin(g.user(users)), g.item(items), axis=1)
    total = users + items
    if how == "chunks":
        seq = g.SplitToSequence(both, g.const(np.asarray(data.draw(st.integers(1, total)))), axis=1)
    elif how == "lengths":
        cut = data.draw(st.integers(1, total - 1))
        seq = g.SplitToSequence(both, g.const(np.asarray([cut, total - cut])), axis=1)
    else:
        seq = g.SplitToSequence(both, axis=1, keepdims=int(how == "none"))
    if joined:
        g.output(g.Relu(g.ConcatFromSequence(seq, axis=1, new_axis=int(how == "squeezed"))))
    else:
        g.output(g.Relu(g.SequenceAt(seq, g.const(np.asarray(0)))), g.Relu(g.SequenceAt(seq, g.const(np.asarray(-1)))))
    check(g)


def mapped(g: Graph, seq: str, *more: str) -> str:
    """x -> x + y, of each element x; y is a tensor, or the element beside it."""
    x, *others = names = [g.name("e") for _ in (seq, *more)]
    out = g.name("e")
    info: Any = helper.make_tensor_value_info
    node = helper.make_node("Add", [x, others[0] if others else x], [out])
    body = helper.make_graph(
        [node], "f", [info(n, TensorProto.DOUBLE, None) for n in names], [info(out, TensorProto.DOUBLE, None)]
    )
    return g.SequenceMap(seq, *more, body=body)


@pytest.mark.parametrize("second", ["none", "tensor", "sequence"])
def test_a_function_of_each_element(second: str) -> None:
    g = Graph(18)
    u, x = g.user(3), g.item(3)
    more = {"none": [], "tensor": [g.weight(3)], "sequence": [g.SequenceConstruct(g.item(3), g.weight(1, 3))]}[second]
    done = mapped(g, g.SequenceConstruct(u, x), *more)
    g.output(g.MatMul(g.ConcatFromSequence(done, axis=1), g.weight(6, 4)))
    check(g)
    lifted(g, per_candidate=3 * 4 if second != "sequence" else 6 * 4)


def test_an_element_chosen_at_run_time_is_left() -> None:
    g = Graph(18)
    seq = g.SequenceConstruct(g.user(3), g.user(3))
    at = g.Cast(g.reduce("Max", g.item(high=2), None, keepdims=0), to=7)
    g.output(g.Add(g.SequenceAt(seq, at), g.item(3)))
    result = check(g)
    assert actions(result)["SequenceAt"] == ["kept"]
