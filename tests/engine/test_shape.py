"""Shapes inside the graph: read from either side's tensor, computed with, and used as targets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.engine.ir import emit
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.model.dims import Dim
from tests.engine.checks import check, lifted, macs_each
from tests.engine.drawing import starts, tensor
from tests.engine.graphs import Draw, Graph, N


def _rows(draw: Draw, g: Graph, like: str) -> str:
    """N as a tensor [1], by one of the ways of exporters, maybe with arithmetic that cancels."""
    which = draw(st.integers(0, 6))
    if which == 1 and g.opset >= 15:
        return g.Shape(like, start=0, end=1)
    if which == 2:
        return g.slice(g.Shape(like), 0, 1, 0)
    n = g.size(like, 0)
    if which == 3:
        return g.Div(g.Mul(n, g.const([6])), g.const([6]))
    if which == 4:
        return g.Sub(g.Add(n, g.const([3])), g.const([3]))
    if which == 5:
        return g.Cast(g.Cast(n, to=6), to=7)
    if which == 6:
        return g.Where(g.Equal(n, g.const([-1])), g.const([1]), n)
    return n


def _target(draw: Draw, g: Graph, like: str, *sizes: int) -> str:
    return g.Concat(_rows(draw, g, like), *(g.const([s]) for s in sizes), axis=0)


def _like(draw: Draw, g: Graph) -> str:
    """A tensor whose first dimension is N: an input or something computed."""
    x = g.input(draw(st.sampled_from(("user", "item"))), N, 2)
    return g.MatMul(x, g.weight(2, 3)) if draw(st.booleans()) else x


def _reshape(draw: Draw, g: Graph) -> str:
    """Batch read from another tensor: a Reshape of mixed data by the user's rows."""
    a, b = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    x = tensor(draw, g, (N, a * b), 2)
    return g.Reshape(
        x,
        _target(
            draw,
            g,
            _like(draw, g),
            *draw(st.sampled_from(((a, b), (b, a), (-1, b), (a, -1), (a * b,)))),
        ),
    )


def _merge(draw: Draw, g: Graph) -> str:
    """[N, T, D] to [N*T, D] and back by computed sizes."""
    t, d = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    x = tensor(draw, g, (N, t, d), 2)
    rows = _rows(draw, g, _like(draw, g))
    flat = g.Reshape(x, g.Concat(g.Mul(rows, g.const([t])), g.const([d]), axis=0))
    return g.Reshape(
        g.MatMul(flat, g.weight(d, 2)), g.Concat(rows, g.const([t]), g.const([2]), axis=0)
    )


def _expand(draw: Draw, g: Graph) -> str:
    """A parameter, or a token, expanded to a batch."""
    d = draw(st.integers(1, 3))
    x = g.weight(1, d) if draw(st.booleans()) else g.weight(d)
    wide = g.Expand(x, _target(draw, g, _like(draw, g), d))
    return g.Concat(wide, tensor(draw, g, (N, 2), 1), axis=1)


def _filled(draw: Draw, g: Graph) -> str:
    d = draw(st.integers(1, 3))
    value = g.const(np.array([0.5])) if draw(st.booleans()) else None
    shape = _target(draw, g, _like(draw, g), d)
    filled = g.Expand(value, shape) if value else g.Cast(g.ConstantOfShape(shape), to=11)
    return g.Add(g.Concat(filled, tensor(draw, g, (N, 2), 1), axis=1), g.weight(d + 2))


def _range(draw: Draw, g: Graph) -> str:
    """Row numbers times candidates, as an index or a position."""
    n = g.squeeze(_rows(draw, g, _like(draw, g)), [0])
    rows = g.Range(g.const(0), n, g.const(1))
    return g.Mul(g.unsqueeze(g.Cast(rows, to=11), 1), tensor(draw, g, (N, 3), 2))


def _tile(draw: Draw, g: Graph) -> str:
    """A row repeated N times by Tile."""
    row = g.weight(1, 2, 3)
    repeats = g.Concat(_rows(draw, g, _like(draw, g)), g.const([1]), g.const([1]), axis=0)
    return g.MatMul(
        g.Tile(row, repeats), g.Transpose(tensor(draw, g, (N, 1, 3), 2), perm=[0, 2, 1])
    )


def _counted(draw: Draw, g: Graph) -> str:
    """The count itself among the values."""
    count = g.Cast(
        g.Size(_like(draw, g)) if draw(st.booleans()) else _rows(draw, g, _like(draw, g)), to=11
    )
    return g.Div(tensor(draw, g, (N, 3), 2), count)


def _dynamic(draw: Draw, g: Graph) -> str:
    """A history of dynamic length with the target behind it."""
    h = g.input(draw(st.sampled_from(("user", "item"))), N, "T", 2)
    if draw(st.booleans()):
        h = g.Concat(h, g.unsqueeze(g.input("item", N, 2), 1), axis=1)
    flat = g.Reshape(h, g.Concat(g.const([-1]), g.const([2]), axis=0))
    back = g.Reshape(
        g.MatMul(flat, g.weight(2, 3)),
        g.Concat(_rows(draw, g, _like(draw, g)), g.const([-1]), g.const([3]), axis=0),
    )
    return g.reduce(draw(st.sampled_from(("Sum", "Mean", "Max"))), back, [1], 0)


ROOTS = [_reshape, _merge, _expand, _filled, _range, _tile, _counted, _dynamic]


@st.composite
def sized(draw: Draw) -> Graph:
    g = draw(starts())
    for _ in range(draw(st.integers(1, 2))):
        g.output(g.Sin(draw(st.sampled_from(ROOTS))(draw, g)))
    return g.output(g.Sin(g.item(2)))


@given(sized())
def test_computed_shapes_are_the_same(g: Graph) -> None:
    check(g)


def test_mixed_data_reshaped_by_the_users_rows() -> None:
    g = Graph()
    u, x = g.user(6), g.item(4)
    both = g.Concat(u, x, axis=1)
    wide = g.Reshape(both, g.Concat(g.size(u, 0), g.const([5]), g.const([2]), axis=0))
    g.output(g.MatMul(wide, g.weight(2, 8)))
    lifted(g, per_candidate=2 * 2 * 8)


def test_a_parameter_expanded_to_the_users_batch() -> None:
    """A class token before the user's: no part of it is per candidate."""
    g = Graph()
    u, x = g.user(3, 4), g.item(1, 4)
    token = g.Expand(g.weight(1, 1, 4), g.Concat(g.size(u, 0), g.const([1]), g.const([4]), axis=0))
    g.output(g.MatMul(g.Concat(token, u, x, axis=1), g.weight(4, 8)))
    lifted(g, per_candidate=4 * 8)


def test_no_shape_arithmetic_is_copied() -> None:
    g = Graph()
    u, x = g.user(5), g.item(5)
    rows = g.Div(g.Mul(g.size(x, 0), g.const([6])), g.const([3]))
    flat = g.Reshape(g.Concat(u, x, axis=1), g.Concat(rows, g.const([5]), axis=0))
    y = g.Reshape(g.MatMul(flat, g.weight(5, 8)), g.Concat(g.const([-1]), g.const([16]), axis=0))
    g.output(g.Relu(y))
    result = check(g)
    assert not {"Div", "Mul"} & {n.op_type for n in result.model.graph.node}


def test_an_output_of_sizes() -> None:
    g = Graph()
    u, x = g.user(6), g.item(4)
    both = g.Relu(g.Concat(g.Relu(u), x, axis=1))
    g.output(g.Shape(both), g.Size(u), both)
    check(g)


def test_the_users_own_size_is_the_sources() -> None:
    """Size of the user's tensor is N rows' worth, though the new graph has one."""
    g = Graph()
    u, x = g.user(3), g.item(2)
    mean = g.Div(g.reduce("Sum", u, None, keepdims=0), g.Cast(g.Size(u), to=11))
    g.output(g.Add(x, mean))
    check(g)


# ---- exports of a fixed batch --------------------


@pytest.mark.parametrize("fixed", [5, 8])
def test_a_fixed_batch(fixed: int) -> None:
    g = Graph(fixed=fixed)
    u, x = g.user(4, 3), g.item(4, 5)
    flat = g.reshape(g.Concat(u, x, axis=2), 4 * fixed, 8)
    g.output(g.reshape(g.MatMul(flat, g.weight(8, 6)), fixed, 24))
    result = check(g)
    assert result.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert len([n for n in result.model.graph.node if n.op_type in ("MatMul", "Gemm")]) == 2


def test_a_fixed_batch_that_equals_other_dimensions() -> None:
    """B is also the width, the number of tokens and the number of classes."""
    g = Graph(fixed=4)
    u, x = g.user(4, 4), g.item(4, 4)
    tokens = g.Concat(u, x, axis=2)
    y = g.reshape(g.MatMul(tokens, g.weight(8, 4)), 4, 16)
    g.output(
        g.reduce("Sum", g.Transpose(g.reshape(y, 4, 4, 4), perm=[1, 0, 2]), [0], 0),
        g.MatMul(y, g.weight(16, 4)),
    )
    check(g)


@given(sized(), st.integers(2, 4))
def test_computed_shapes_of_a_fixed_batch_are_the_same(g: Graph, fixed: int) -> None:
    g.fixed = fixed
    check(g)


def test_a_batch_of_one_written_into_the_export() -> None:
    """[1, ...] is taken literally."""
    g = Graph(fixed=1)
    g.output(g.MatMul(g.Concat(g.user(3), g.item(2), axis=1), g.weight(5, 2)))
    check(g)


def test_no_candidates() -> None:
    g = Graph()
    u, x = g.user(4, 3), g.item(4, 5)
    y = g.MatMul(g.Concat(u, x, axis=2), g.weight(8, 6))
    g.output(
        g.Relu(y), g.reduce("Sum", y, [1], 0), g.Softmax(y, axis=-1), g.MatMul(u, g.weight(3, 2))
    )
    check(g, counts=(0, 1))


def test_two_histories_of_one_dynamic_length() -> None:
    """T of two inputs that share the name is one dimension."""
    g = Graph()
    a, b = g.input("user", N, "T", 2), g.input("item", N, "T", 2)
    y = g.MatMul(g.Concat(a, b, axis=2), g.weight(4, 3))
    g.output(g.reduce("Mean", y, [1], 0))
    assert macs_each(g, lifted(g)) == 4 * 2 * 3


def test_a_size_as_a_truth_value() -> None:
    """`bool(N)` is true, `bool(N - 1)` is not known, and neither is the size itself."""
    g = Graph(18)
    x, y = g.user(3), g.item(3)
    n = g.size(x, 0)
    for size in (n, g.Sub(n, g.const([1]))):
        truth = g.Cast(size, to=9)
        g.output(g.Where(truth, g.const([5]), g.const([7])), g.Cast(truth, to=7))
    g.output(g.Concat(g.Sin(x), y, axis=1))
    check(g)


def test_a_product_over_one_axis_of_stacked_sizes() -> None:
    g = Graph(17)
    x, y = g.user(3), g.item(4, 3)
    sizes = g.reshape(g.Concat(g.Shape(y), g.const([2]), axis=0), 2, 2)
    g.output(*(g.ReduceProd(sizes, axes=[a], keepdims=k) for a in (0, 1) for k in (0, 1)), g.ReduceProd(sizes))
    g.output(g.Concat(g.Sin(x), g.reshape(y, 0, 12), axis=1))
    check(g)


def test_a_free_length_changes_places_with_a_dimension_of_one_without_candidates_too() -> None:
    """[N, T, 1] as [N, 1, T]: where N is 0, a Reshape to [0, 1, -1] could not tell T."""
    n, length = Dim.symbol("N"), Dim.symbol("T")
    b = Builder(18)
    emit.reshape(b, b.input("x", 1, (n, length, 1), frozenset({"item"})), (n, 1, length))
    assert [node.proto.op_type for node in b.nodes] == ["Squeeze", "Unsqueeze"]
