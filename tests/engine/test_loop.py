"""Loops: the bags of both PyTorch exporters are computed for all iterations at once; what is no map stays a Loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import GraphProto, TensorProto, ValueInfoProto, helper

from mari_onnx.engine import Options, Rewrite, rewrite
from tests.engine.checks import check, lifted, unweighed
from tests.engine.graphs import Draw, Graph, N, run

INT, BOOL, HUGE = np.int64, np.bool_, (1 << 63) - 1
OPS = ("Sum", "Mean", "Max")


def subgraph(g: Graph, write: Callable[[], Sequence[str]], inputs: Sequence[ValueInfoProto] = ()) -> GraphProto:
    """What ``write`` adds to the graph, as a graph of its own."""
    outer, g.nodes = g.nodes, []
    try:
        outputs = write()
        return helper.make_graph(g.nodes, g.name("sub"), list(inputs), [ValueInfoProto(name=o) for o in outputs])
    finally:
        g.nodes = outer


def scalars(g: Graph) -> list[ValueInfoProto]:
    kinds = (TensorProto.INT64, TensorProto.BOOL)
    return [helper.make_tensor_value_info(g.name("i"), kind, []) for kind in kinds]


def progression(g: Graph, ids: str, size: int, end: bool = True) -> str:
    """Offsets: 0, size, 2 size, .. and, with ``end``, the number of ids."""
    number = g.Gather(g.Shape(ids), g.const(0, INT), axis=0)
    starts = g.Mul(g.Range(g.const(0, INT), number, g.const(1, INT)), g.const(size, INT))
    if not end:
        return starts
    return g.Concat(starts, g.unsqueeze(g.Mul(number, g.const(size, INT)), 0), axis=0)


def scripted(g: Graph, ids: str, table: str, op: str, offsets: str, weights: str | None = None, trips: int = 0) -> str:
    """An EmbeddingBag as the older exporter writes it: neighbouring offsets, a scan output. trips: more or fewer."""
    flat = g.reshape(ids, -1)
    ends = g.slice(offsets, 1, HUGE, 0)
    count = g.Add(g.Gather(g.Shape(ends), g.const(0, INT), axis=0), g.const(trips, INT))
    scales = g.unsqueeze(g.reshape(weights, -1), 1) if weights else None
    going, zero = g.const(True, BOOL), g.const([0], INT)
    head = scalars(g)

    def body() -> list[str]:
        start, end = (g.unsqueeze(g.Gather(o, head[0].name, axis=0), 0) for o in (offsets, ends))
        rows = g.Gather(table, g.Slice(flat, start, end, zero), axis=0)
        if scales:
            rows = g.Mul(rows, g.Slice(scales, start, end, zero))
        return [g.Cast(going, to=TensorProto.BOOL), g.reduce(op, rows, [0], keepdims=0)]

    return g.Loop(count, going, body=subgraph(g, body, head))


def traced(g: Graph, ids: str, table: str, op: str, offsets: str, bags: str, new_axis: int = 0) -> str:
    """As the newer exporter does: a carried index and sequence, empty bags and the last bag apart."""
    rows = g.Gather(table, g.reshape(ids, -1))
    total, count = g.Shape(g.reshape(ids, -1)), g.Size(bags)
    zeros = g.const(np.zeros((1, 4)))
    one, two, minus = (g.const(v, INT) for v in (1, 2, [-1]))
    head = [*scalars(g), ValueInfoProto(name=g.name("s")), ValueInfoProto(name=g.name("k"))]
    sequence, index = head[2].name, head[3].name

    def body() -> list[str]:
        place = g.Reshape(index, minus)
        start = g.Slice(offsets, place, g.Add(place, one))
        end = g.Slice(offsets, g.Add(place, one), g.Add(place, two))

        def last() -> list[str]:
            own = g.Slice(rows, start, total)
            if op != "Mean":
                return [g.reduce(op, own, [0])]
            number = g.Sub(total, start)
            return [g.Div(g.reduce("Sum", own, [0]), g.Cast(number, to=TensorProto.DOUBLE))]

        def some() -> list[str]:
            return [g.reduce(op, g.Slice(rows, start, end), [0])]

        def full() -> list[str]:
            at_end = g.Equal(index, g.Sub(count, one))
            return [g.If(at_end, then_branch=subgraph(g, last), else_branch=subgraph(g, some))]

        def empty() -> list[str]:
            return [g.Identity(zeros)]

        row = g.If(g.Equal(start, end), then_branch=subgraph(g, empty), else_branch=subgraph(g, full))
        more = g.Add(index, g.CastLike(one, index))
        return [g.Less(more, count), g.SequenceInsert(sequence, row), more]

    first = g.SequenceEmpty(dtype=TensorProto.DOUBLE)
    states = ["", g.Less(g.const(0, INT), count), first, g.const(0, INT)]
    found, _ = g.nodes_of("Loop", states, 2, body=subgraph(g, body, head))
    return g.ConcatFromSequence(found, axis=0, **({"new_axis": 1} if new_axis else {}))


def padded(g: Graph, ids: str, table: str, op: str, offsets: str, bags: str) -> str:
    """As the newer exporter does where an id is padding: a Loop inside collects the positions of the others."""
    flat = g.reshape(ids, -1)
    rows, count, zeros = g.Gather(table, flat), g.Size(bags), g.const(np.zeros((1, 4)))
    zero, one, minus, rank = (g.const(v, INT) for v in (0, 1, [-1], 7))
    head = [*scalars(g), ValueInfoProto(name=g.name("k")), ValueInfoProto(name=g.name("s"))]
    index, sequence = head[2].name, head[3].name

    def body() -> list[str]:
        start, end = g.Gather(offsets, index), g.Gather(offsets, g.Add(index, one))
        inner = [*scalars(g), ValueInfoProto(name=g.name("f")), ValueInfoProto(name=g.name("j"))]
        found, place = inner[2].name, inner[3].name

        def search() -> list[str]:
            own = g.Gather(flat, place)
            up = subgraph(g, lambda: [g.Add(own, rank)])
            own = g.If(g.Less(own, zero), then_branch=up, else_branch=subgraph(g, lambda: [g.Identity(own)]))
            more = subgraph(g, lambda: [g.Concat(found, g.Reshape(place, minus), axis=0)])
            kept = g.If(
                g.Not(g.Equal(own, one)), then_branch=more, else_branch=subgraph(g, lambda: [g.Identity(found)])
            )
            after = g.Add(place, one)
            return [g.Less(after, end), kept, after]

        states = ["", g.Less(start, end), g.const(np.zeros(0), INT), start]
        positions, _ = g.nodes_of("Loop", states, 2, body=subgraph(g, search, inner))
        none = subgraph(g, lambda: [g.Identity(zeros)])
        some = subgraph(g, lambda: [g.reduce(op, g.Gather(rows, positions), [0])])
        row = g.If(g.Equal(g.Size(positions), zero), then_branch=none, else_branch=some)
        more = g.Add(index, one)
        return [g.Less(more, count), more, g.SequenceInsert(sequence, row)]

    states = ["", g.Less(zero, count), zero, g.SequenceEmpty(dtype=TensorProto.DOUBLE)]
    _, found = g.nodes_of("Loop", states, 2, body=subgraph(g, body, head))
    return g.ConcatFromSequence(found, axis=0)


def loops(result: Rewrite) -> int:
    return sum(node.op_type == "Loop" for node in result.model.graph.node)


def mixed(g: Graph, bags: str) -> Graph:
    """Something of the user's that is worth a rewrite."""
    return g.output(g.MatMul(g.Concat(bags, g.user(5), g.item(3), axis=1), g.weight(12, 6)))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("opset", [11, 13, 18])
def test_scripted_bags_of_the_user_are_computed_once(op: str, size: int, opset: int) -> None:
    g = Graph(opset)
    ids = g.user(size, high=9)
    bags = scripted(g, ids, g.weight(9, 4), op, progression(g, ids, size))
    result = lifted(mixed(g, bags))
    assert loops(result) == 0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", [1, 3])
def test_traced_bags_of_the_user_are_computed_once(op: str, size: int) -> None:
    g = Graph(20)
    ids = g.user(size, high=9)
    bags = traced(g, ids, g.weight(9, 4), op, progression(g, ids, size), progression(g, ids, size, end=False))
    result = lifted(mixed(g, bags))
    assert loops(result) == 0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("opset", [17, 20])
def test_bags_with_padding_are_masked(op: str, size: int, side: str, opset: int) -> None:
    """A bag of padding alone is zero, whatever is reduced."""
    g = Graph(opset)
    ids = g.input(side, N, size, high=3)
    table = g.weight(7, 4)
    bags = padded(g, ids, table, op, progression(g, ids, size), progression(g, ids, size, end=False))
    result = lifted(mixed(g, bags))
    assert loops(result) == 0


@st.composite
def several(draw: Draw) -> Graph:
    """Bags of both sides, of either exporter, of all lengths (the dynamic too), with weights or not."""
    g = Graph(draw(st.sampled_from((17, 18, 20))))
    for _ in range(draw(st.integers(1, 2))):
        size = draw(st.integers(1, 4))
        side, op = draw(st.sampled_from(("user", "item", "cross"))), draw(st.sampled_from(OPS))
        dynamic = draw(st.booleans())
        ids = g.input(side, N, "T" if dynamic else size, high=7)
        if dynamic:
            number, width = g.size(ids, 0), g.size(ids, 1)
            squeezed = [g.squeeze(v, [0]) for v in (g.Mul(number, width), width)]
            starts = g.Range(g.const(0, INT), *squeezed)
            offsets = g.Concat(starts, g.Mul(number, width), axis=0)
        else:
            offsets, starts = (progression(g, ids, size, end) for end in (True, False))
        if draw(st.booleans()):
            weights = (
                None if draw(st.booleans()) else g.input(draw(st.sampled_from(("user", "item"))), *g.inputs[ids].shape)
            )
            g.output(scripted(g, ids, g.weight(7, 4), op, offsets, weights))
        else:
            g.output(traced(g, ids, g.weight(7, 4), op, offsets, starts))
    return mixed(g, g.outputs[0])


@given(several())
def test_bags_are_the_same(g: Graph) -> None:
    assert loops(check(g)) == 0


def test_the_batch_of_a_fixed_export() -> None:
    g = Graph(fixed=4)
    ids = g.user(3, high=9)
    bags = scripted(g, ids, g.weight(9, 4), "Sum", g.const([0, 3, 6, 9, 12], INT))
    assert loops(lifted(mixed(g, bags))) == 0


def test_elements_of_a_sequence_beside_each_other() -> None:
    g = Graph(20)
    ids = g.item(2, high=9)
    bags = traced(g, ids, g.weight(9, 4), "Max", progression(g, ids, 2), progression(g, ids, 2, end=False), new_axis=1)
    assert loops(check(mixed(g, g.squeeze(bags, [1])))) == 0


def stays(g: Graph, bags: str) -> None:
    """Right, and still a Loop."""
    assert loops(check(mixed(g, bags))) == 1


def test_offsets_that_are_data_stay() -> None:
    g = Graph()
    ids = g.user(3, high=9)
    starts = g.Add(progression(g, ids, 3, end=False), g.Cast(g.item(high=2), to=TensorProto.INT64))
    total = g.unsqueeze(g.Size(ids), 0)
    stays(g, scripted(g, ids, g.weight(9, 4), "Sum", g.Concat(starts, total, axis=0)))


def test_another_number_of_iterations_stays() -> None:
    g = Graph()
    ids = g.user(3, high=9)
    fewer = scripted(g, ids, g.weight(9, 4), "Sum", progression(g, ids, 3), trips=-1)
    g.output(fewer)
    assert loops(check(mixed(g, g.reshape(g.item(4), -1, 4)), counts=(3, 7))) == 1


def test_rows_that_overlap_stay() -> None:
    """Offsets 0, 2, 4, .. with rows of 3: x[2 i : 2 i + 3]."""
    g = Graph()
    ids, table = g.user(2, high=9), g.weight(9, 4)
    flat = g.Concat(g.reshape(ids, -1), g.const([1, 2], INT), axis=0)
    count, going, zero = g.Gather(g.Shape(ids), g.const(0, INT), axis=0), g.const(True, BOOL), g.const([0], INT)
    head = scalars(g)

    def body() -> list[str]:
        start = g.unsqueeze(g.Mul(head[0].name, g.const(2, INT)), 0)
        rows = g.Gather(table, g.Slice(flat, start, g.Add(start, g.const([3], INT)), zero))
        return [g.Identity(going), g.reduce("Sum", rows, [0], keepdims=0)]

    stays(g, g.Loop(count, going, body=subgraph(g, body, head)))


def over(g: Graph, step: Callable[[str], str], *states: str, side: str = "user") -> list[str]:
    """A Loop over the rows of x[N, 4], with what a step makes of each."""
    x = g.input(side, N, 4)
    count, going = g.Gather(g.Shape(x), g.const(0, INT), axis=0), g.const(True, BOOL)
    head = [*scalars(g), *(ValueInfoProto(name=g.name("s")) for _ in states)]

    def body() -> list[str]:
        row = g.Gather(x, head[0].name, axis=0)
        carried = [g.Add(h.name, row) for h in head[2:]]
        return [g.Identity(going), *carried, g.Add(step(head[0].name), row)]

    return g.nodes_of("Loop", [count, going, *states], 1 + len(states), body=subgraph(g, body, head))


@pytest.mark.parametrize("side", ["user", "item", "cross"])
def test_rows_are_taken_all_at_once(side: str) -> None:
    g = Graph()
    shift = g.weight(4)
    (rows,) = over(g, lambda _: g.Tanh(shift), side=side)
    assert loops(lifted(mixed(g, rows))) == 0


def test_the_number_of_the_iteration_as_a_number_stays() -> None:
    g = Graph()
    (rows,) = over(g, lambda i: g.Cast(i, to=TensorProto.DOUBLE))
    stays(g, rows)


def test_an_element_and_the_number_of_a_sequence() -> None:
    g = Graph(20)
    ids = g.item(2, high=9)
    both = (progression(g, ids, 2, end) for end in (True, False))
    traced(g, ids, g.weight(9, 4), "Sum", *both)
    found = g.nodes[-1].input[0]
    first = g.SequenceAt(found, g.const(0, INT))
    number = g.Cast(g.SequenceLength(found), to=TensorProto.DOUBLE)
    assert loops(check(mixed(g, g.Add(g.item(4), g.Mul(first, number))))) == 0


def test_what_an_if_on_data_must_not_run_stays() -> None:
    """A look-up that is in range only where its branch is taken."""
    g = Graph()
    ids, table = g.item(high=9), g.weight(5, 4)
    count, going, limit = g.Gather(g.Shape(ids), g.const(0, INT), axis=0), g.const(True, BOOL), g.const(5, INT)
    head = scalars(g)

    def body() -> list[str]:
        own = g.Gather(ids, head[0].name, axis=0)
        there = subgraph(g, lambda: [g.Gather(table, own)])
        zeros = subgraph(g, lambda: [g.Identity(g.const(np.zeros(4)))])
        return [g.Identity(going), g.If(g.Less(own, limit), then_branch=there, else_branch=zeros)]

    stays(g, g.Loop(count, going, body=subgraph(g, body, head)))


def test_a_running_sum_stays() -> None:
    g = Graph()
    shift, start = g.weight(4), g.weight(4)
    total, rows = over(g, lambda _: g.Tanh(shift), start)
    g.output(total)
    stays(g, rows)


def test_what_mixes_the_rows_axes_stays() -> None:
    """Softmax has no rule for an axis that its input lacks."""
    g = Graph()
    x = g.item(4)
    count, going = g.Gather(g.Shape(x), g.const(0, INT), axis=0), g.const(True, BOOL)
    head = scalars(g)

    def body() -> list[str]:
        return [g.Identity(going), g.Softmax(g.Gather(x, head[0].name, axis=0), axis=0)]

    stays(g, g.Loop(count, going, body=subgraph(g, body, head)))


def test_random_numbers_are_drawn_in_each_iteration() -> None:
    g = Graph()

    def noise(_: str) -> str:
        return g.Mul(g.RandomNormal(shape=[4], dtype=TensorProto.DOUBLE), g.const(0.0))

    (rows,) = over(g, noise)
    stays(g, rows)


# ---- states that the next iteration reads --------------------


@contextmanager
def stacked() -> Iterator[None]:
    """What iterations collect is stacked; the reference evaluator's Loop joins what has more than one dimension."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "vstack", np.stack)
        yield


def recurrence(
    g: Graph, x: str, state: str, mask: str | None = None, weight: str | None = None, until: str | None = None
) -> list[str]:
    """h' = tanh(x_t W + h V), where the mask says so, as Keras' RNN with a mask: the last state, and all of them.

    until: a count that ends it; else it runs over all of x [N, T, width].
    """
    width = 3
    steps, masks = g.Transpose(x, perm=[1, 0, 2]), g.Transpose(mask, perm=[1, 0]) if mask else None
    given, back = g.weight(width, width), g.weight(width, width)
    trips, one = g.Gather(g.Shape(steps), g.const(0, INT), axis=0), g.const(1, INT)
    weights = g.Transpose(weight, perm=[1, 0]) if weight else None
    going = g.const(True, BOOL)
    head = [*scalars(g), *(ValueInfoProto(name=g.name("s")) for _ in range(3))]
    time, before, fixed = (i.name for i in head[2:])

    def body() -> list[str]:
        step = g.Gather(steps, time, axis=0)
        after = g.Tanh(g.Add(g.MatMul(step, given), g.MatMul(before, fixed)))
        if weights:
            share = g.unsqueeze(g.Gather(weights, time, axis=0), 1)
            after = g.Add(g.Mul(share, after), g.Mul(g.Sub(g.const(1.0), share), before))
        if masks:
            after = g.Where(g.unsqueeze(g.Gather(masks, time, axis=0), 1), after, before)
        later = g.Add(time, one)
        return [g.Less(later, until or trips), later, after, fixed, g.Identity(after)]

    start = [g.const(0, INT), state, back]
    return g.nodes_of("Loop", ["", going, *start], 4, body=subgraph(g, body, head))


def zeros(g: Graph, x: str, width: int = 3) -> str:
    return g.Expand(g.const(0.0), g.Concat(g.size(x, 0), g.const([width], INT), axis=0))


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("masked", [False, True])
def test_a_recurrence_over_the_users_history_runs_on_one_row(masked: bool, opset: int) -> None:
    g = Graph(opset)
    x, mask = g.Relu(g.user(4, 3)), g.Cast(g.user(4, high=2), to=TensorProto.BOOL) if masked else None
    _, last, _, states = recurrence(g, x, zeros(g, x), mask)
    pooled = g.reduce("Sum", states, [0], keepdims=0)
    g.output(g.MatMul(g.Concat(last, pooled, g.item(2), axis=1), g.weight(8, 2)))
    with stacked():
        result = lifted(g)
    assert loops(result) == 1
    assert {n.action for n in result.nodes if n.op == "Loop"} == {"lifted"}


@st.composite
def recurrences(draw: Draw) -> Graph:
    """Over anybody's rows, from anybody's state, weighed by the candidate, and ended early."""
    g = Graph(draw(st.sampled_from((13, 18, 21))), seed=draw(st.integers(0, 3)))
    side = st.sampled_from(("user", "item", "cross"))
    x = g.input(draw(side), N, 4, 3)
    if draw(st.booleans()):
        x = g.Concat(x, g.input(draw(side), N, draw(st.integers(1, 2)), 3), axis=1)
    start = draw(st.sampled_from(("zeros", "user", "item")))
    state = zeros(g, x) if start == "zeros" else g.input(start, N, 3)
    mask = g.Cast(g.input(draw(side), N, 6, high=2), to=TensorProto.BOOL) if draw(st.booleans()) else None
    weight = g.Sigmoid(g.input(draw(side), N, 6)) if draw(st.booleans()) else None
    until = g.const(draw(st.integers(1, 3)), INT) if draw(st.booleans()) else None
    time, last, _, states = recurrence(g, x, state, mask, weight, until)
    with stacked():
        return g.output(last, states, time, g.Sin(g.item(2)))


@given(recurrences())
def test_recurrences_are_the_same(g: Graph) -> None:
    with stacked():
        check(g)


def test_a_recurrence_over_the_candidates_rows_stays() -> None:
    g = Graph()
    _, last, _, _ = recurrence(g, g.item(4, 3), g.item(3))
    g.output(g.Add(last, g.Relu(g.user(3))))
    with stacked():
        assert {n.action for n in check(g).nodes if n.op == "Loop"} == {"kept"}


def test_a_state_that_mixes_the_candidates_stays() -> None:
    """The sum over the batch of equal rows is N of them: the rows of the next state are equal, and stay right."""
    g = Graph()
    x = g.Relu(g.user(2))
    head = [*scalars(g), ValueInfoProto(name=g.name("s"))]
    going = g.const(True, BOOL)

    def body() -> list[str]:
        total = g.reduce("Sum", g.Mul(head[2].name, g.const(0.1)), [0])
        return [g.Cast(going, to=TensorProto.BOOL), g.Add(total, x), g.CumSum(head[2].name, g.const(0, INT))]

    g.output(*g.nodes_of("Loop", [g.const(3, INT), going, x], 2, body=subgraph(g, body, head)), g.Sin(g.item(2)))
    with stacked():
        check(g)


def test_random_numbers_of_a_recurrence_are_drawn_in_each_iteration() -> None:
    g = Graph()
    x = g.Relu(g.user(2))
    head = [*scalars(g), ValueInfoProto(name=g.name("s"))]
    going = g.const(True, BOOL)

    def body() -> list[str]:
        noise = g.RandomUniform(shape=[1, 2], dtype=TensorProto.DOUBLE)
        return [g.Cast(going, to=TensorProto.BOOL), g.Add(head[2].name, g.Mul(noise, x)), noise]

    last, drawn = g.nodes_of("Loop", [g.const(3, INT), going, x], 2, body=subgraph(g, body, head))
    g.output(g.Add(last, g.item(2)), g.reshape(drawn, 3, 2))
    with unweighed(), stacked():
        result = rewrite(g.model(), g.sides, Options())
        a = run(result.model, g.feeds(3, once=result.changed))[1]
    assert len({tuple(row) for row in a}) == 3
