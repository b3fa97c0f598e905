"""Gather and its kin: constant positions, looked-up ids, tables of either side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import actions, check, lifted, repeated
from tests.engine.drawing import shapes, signed, starts, tensor
from tests.engine.graphs import Draw, Graph, N


def _ids(draw: Draw, g: Graph, shape: tuple, rows: int, depth: int = 2) -> str:
    """Integer ids: inputs, Concats of them, with an offset, cast there and back."""
    which = draw(st.integers(0, 4 if depth else 1))
    if which <= 1:
        return g.input(draw(st.sampled_from(("user", "item", "cross"))), *shape, high=rows)
    wide = [i for i, s in enumerate(shape) if isinstance(s, int) and s > 1]
    if which <= 3 and wide:
        axis = draw(st.sampled_from(wide))
        left = draw(st.integers(1, shape[axis] - 1))
        parts = [
            _ids(draw, g, (*shape[:axis], n, *shape[axis + 1 :]), rows, depth - 1)
            for n in (left, shape[axis] - left)
        ]
        return g.Concat(*parts, axis=axis)
    low = g.Mod(_ids(draw, g, shape, rows, depth - 1), g.const(max(1, rows // 2)))
    return g.Cast(
        g.Cast(g.Add(low, g.const(draw(st.integers(0, rows - max(1, rows // 2))))), to=11), to=7
    )


def _lookup(draw: Draw, g: Graph) -> str:
    rows = draw(st.integers(1, 5))
    ids = _ids(draw, g, shapes(draw, 1, 3), rows)
    return g.Gather(g.weight(rows, *draw(st.lists(st.integers(1, 3), max_size=1))), ids, axis=0)


def _lookup_beside(draw: Draw, g: Graph) -> str:
    """Ids along another axis of a constant table."""
    rows = draw(st.integers(1, 4))
    return g.Gather(
        g.weight(2, rows, 3),
        _ids(draw, g, shapes(draw, 1, 2), rows),
        axis=draw(st.sampled_from((1, -2))),
    )


def _positions(draw: Draw, g: Graph) -> str:
    """Constant positions of any rank, negative and repeated ones."""
    shape = shapes(draw)
    axis = draw(st.integers(1, len(shape) - 1))
    size = int(shape[axis])
    index = draw(st.sampled_from(((), (1,), (3,), (2, 2))))
    count = int(np.prod(index))
    places = draw(st.lists(st.integers(-size, size - 1), min_size=count, max_size=count))
    return g.Gather(
        tensor(draw, g, shape, 3),
        g.const(np.array(places, np.int64).reshape(index)),
        axis=signed(draw, axis, len(shape)),
    )


def _unfolded(draw: Draw, g: Graph) -> str:
    """Windows over fields of both sides by constant positions of two or three dimensions."""
    sides = draw(st.text("uxc", min_size=2, max_size=7))
    kinds = {"u": g.user, "x": g.item}
    x = g.Concat(*(kinds[s](1, 2) if s in kinds else tensor(draw, g, (N, 1, 2), 1) for s in sides), axis=1)
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    places = draw(st.lists(st.integers(-len(sides), len(sides) - 1), min_size=1, max_size=12))
    return g.Gather(x, g.const(np.resize(places, shape), np.int64), axis=1)


def _of_candidates(draw: Draw, g: Graph) -> str:
    """Positions on the candidate axis: the first, the last."""
    shape = shapes(draw)
    index = draw(st.sampled_from((0, -1, [0], [-1], [0, 0])))
    y = g.Gather(tensor(draw, g, shape, 2), g.const(np.array(index, np.int64)), axis=0)
    return g.Add(g.reduce("Sum", y, None, keepdims=0), g.item(2))


def _nd(draw: Draw, g: Graph) -> str:
    """Upper-triangle pairs, as DLRM picks them: Transpose, GatherND, Transpose."""
    a, b = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    x = g.Transpose(tensor(draw, g, (N, a, b), 3), perm=[1, 2, 0])
    pairs = draw(
        st.lists(st.tuples(st.integers(-a, a - 1), st.integers(-b, b - 1)), min_size=1, max_size=5)
    )
    return g.Transpose(g.GatherND(x, g.const(np.array(pairs, np.int64))), perm=[1, 0])


def _columns(draw: Draw, g: Graph) -> str:
    """`X[:, [list]]`: Transpose, GatherND, Transpose."""
    k = draw(st.integers(1, 4))
    places = draw(st.lists(st.integers(0, k - 1), min_size=1, max_size=5))
    x = g.Transpose(tensor(draw, g, (N, k), 3), perm=[1, 0])
    return g.Transpose(g.GatherND(x, g.const(np.array(places, np.int64)[:, None])), perm=[1, 0])


def _batched(draw: Draw, g: Graph) -> str:
    t = draw(st.integers(1, 4))
    return g.GatherND(
        tensor(draw, g, (N, t, 2), 2),
        _ids(draw, g, (N, draw(st.integers(1, 3)), 1), t, 1),
        batch_dims=1,
    )


def _elements(draw: Draw, g: Graph) -> str:
    t, k = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    return g.GatherElements(tensor(draw, g, (N, t), 2), _ids(draw, g, (N, k), t, 1), axis=1)


def _last_of_dynamic(draw: Draw, g: Graph) -> str:
    """The last of a history of dynamic length."""
    x = g.input(draw(st.sampled_from(("user", "item"))), N, "T", 2)
    if draw(st.booleans()):
        return g.Gather(x, g.const(draw(st.sampled_from((-1, 0, 1)))), axis=1)
    return g.slice(x, draw(st.sampled_from((-1, 0, 1, -2))), 1 << 40, 1)


ROOTS = [
    _lookup,
    _lookup,
    _lookup_beside,
    _positions,
    _positions,
    _of_candidates,
    _nd,
    _columns,
    _batched,
    _elements,
    _last_of_dynamic,
]


@st.composite
def gathers(draw: Draw) -> Graph:
    g = draw(starts(opsets=(13, 17, 18, 20, 21)))
    y = draw(st.sampled_from(ROOTS))(draw, g)
    return g.output(g.Sin(y), g.Sin(g.item(2)))


@given(gathers())
def test_gathers_are_the_same(g: Graph) -> None:
    check(g)


@st.composite
def unfolded(draw: Draw) -> Graph:
    g = draw(starts())
    return g.output(g.Sin(_unfolded(draw, g)), g.Sin(g.item(2)))


@given(unfolded())
def test_windows_by_constant_positions_are_the_same(g: Graph) -> None:
    check(g, candidates=100_000)


# ---- what is lifted --------------------


@pytest.mark.parametrize("turned", [False, True])
def test_windows_of_the_user_alone_are_gathered_once(turned: bool) -> None:
    """As torch's unfold: taps x windows, or the reverse, of a padded history with the candidate last."""
    g = Graph()
    x = g.Pad(g.Concat(g.user(9, 4), g.item(2, 4), axis=1), g.const([0, 2, 0, 0, 0, 0], np.int64))
    index = np.arange(3)[:, None] + np.arange(11)
    y = g.Gather(x, g.const(index.T if turned else index, np.int64), axis=1)
    y = g.reshape(y if turned else g.Transpose(y, perm=[0, 2, 1, 3]), -1, 11, 12)
    g.output(g.MatMul(y, g.weight(12, 5)))
    lifted(g, check(g, candidates=100_000), per_candidate=2 * 12 * 5)


def test_windows_that_all_read_both_sides_are_one_gather() -> None:
    g = Graph()
    x = g.Concat(*(side(1, 4) for side in (g.user, g.item) * 4), axis=1)
    g.output(g.Sin(g.Gather(x, g.const([[0, 1, 2], [3, 2, 7]], np.int64), axis=1)))
    result = check(g, candidates=100_000)
    assert sum(n.op_type == "Gather" for n in result.model.graph.node) == 1


def test_windows_that_save_less_than_their_nodes_are_one_gather() -> None:
    g = Graph()
    x = g.Concat(g.user(9, 4), g.item(2, 4), axis=1)
    g.output(g.Sin(g.Gather(x, g.const(np.arange(3)[:, None] + np.arange(9), np.int64), axis=1)))
    result = check(g, candidates=10)
    assert sum(n.op_type == "Gather" for n in result.model.graph.node) == 1


def test_ids_concatenated_before_the_lookup() -> None:
    """Concat, Add(offsets), Gather(table), Reshape, product: the item's columns alone."""
    g = Graph()
    ids = g.Concat(g.user(4, high=10), g.item(2, high=10), axis=1)
    ids = g.Add(ids, g.const(np.arange(6) * 10))
    rows = g.reshape(g.Gather(g.weight(60, 8), ids, axis=0), -1, 48)
    g.output(g.MatMul(rows, g.weight(48, 16)))
    lifted(g, per_candidate=2 * 8 * 16)


def test_history_and_target_in_one_lookup() -> None:
    g = Graph()
    ids = g.Concat(g.user(9, high=20), g.item(1, high=20), axis=1)
    rows = g.Gather(g.weight(20, 4), ids, axis=0)
    target = g.Gather(rows, g.const(-1), axis=1)
    pooled = g.reduce("Mean", g.slice(rows, 0, 9, 1), [1], keepdims=0)
    g.output(g.MatMul(g.Concat(pooled, target, axis=1), g.weight(8, 8)))
    lifted(g, per_candidate=4 * 8)


def test_upper_triangle_pairs_of_a_grid() -> None:
    g = Graph()
    tokens = g.Concat(g.user(5, 8), g.item(1, 8), axis=1)
    dots = g.MatMul(tokens, g.Transpose(tokens, perm=[0, 2, 1]))
    pairs = np.argwhere(np.triu(np.ones((6, 6)), 1))
    picked = g.Transpose(g.GatherND(g.Transpose(dots, perm=[1, 2, 0]), g.const(pairs)), perm=[1, 0])
    g.output(g.MatMul(picked, g.weight(15, 16)))
    lifted(g)


def test_packed_ids() -> None:
    g = Graph()
    x = g.packed(user=[0, 2], item=[1, 3])
    both = []
    for column in range(4):
        ids = g.Cast(g.Abs(g.slice(x, column, column + 1, 1)), to=7)
        rows = g.Gather(g.weight(16, 4), g.Clip(ids, g.const(0), g.const(15)), axis=0)
        both.append(g.reshape(rows, -1, 4))
    g.output(g.MatMul(g.Concat(*both, axis=1), g.weight(16, 8)))
    lifted(g, per_candidate=8 * 8)


# ---- what must stay --------------------


def test_a_table_that_the_item_makes() -> None:
    """Gather over the candidate axis by the user's ids: there is no batch."""
    g = Graph()
    ids = g.Clip(g.user(2, high=3), g.const(0), g.const(0))
    g.output(
        g.Gather(g.item(3), ids, axis=0),
        g.Gather(g.Concat(g.user(1), g.item(2), axis=1), ids, axis=0),
    )
    check(g)


def test_the_users_table_by_the_items_ids() -> None:
    """GatherElements over the user's history by the item's positions reads N rows of positions."""
    g = Graph()
    g.output(
        g.GatherElements(g.user(4), g.item(2, high=4), axis=1),
        g.GatherElements(g.item(4), g.user(2, high=4), axis=1),
    )
    result = check(g)
    assert repeated(g, result) == []


def test_positions_that_only_the_run_knows() -> None:
    g = Graph()
    where = g.reduce("Max", g.item(1, high=2), [0, 1], keepdims=0)
    both = g.Concat(g.user(1), g.item(2), axis=1)
    g.output(g.Gather(both, where, axis=1))
    check(g)


@pytest.mark.parametrize("index", [0, -1, [0], [0, -1], [-1, 0, 0]])
def test_rows_of_the_candidates(index: int | list[int]) -> None:
    g = Graph()
    both = g.Concat(g.user(2), g.item(2), axis=1)
    y = g.Gather(both, g.const(np.array(index, np.int64)), axis=0)
    g.output(y, g.Gather(g.user(2), g.const(np.array(index, np.int64)), axis=0))
    assert actions(check(g))["Gather"]


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("shared", [False, True])
def test_a_flat_mask_that_is_the_same_for_all_candidates(opset: int, shared: bool) -> None:
    """tf.boolean_mask: mask and grid flattened, NonZero, Transpose, Squeeze, Gather."""
    g = Graph(opset)
    tokens = g.Concat(g.user(3, 4), g.user(2, 4) if shared else g.item(2, 4), axis=1)
    dots = g.MatMul(tokens, g.Transpose(tokens, perm=[0, 2, 1]))
    mask = g.Expand(g.const(np.tril(np.ones((5, 5)), -1).astype(bool)), g.Shape(dots))
    at = g.Transpose(g.NonZero(g.reshape(mask, -1)), perm=[1, 0])
    at = g.squeeze(g.Cast(g.Cast(at, to=6), to=7), [1])
    picked = g.reshape(g.Gather(g.reshape(dots, -1), at, axis=0), -1, 10)
    g.output(g.MatMul(g.Concat(picked, g.item(1), axis=1), g.weight(11, 16)))
    lifted(g)


@pytest.mark.parametrize("columns", [1, 3])
def test_a_flat_mask_of_rows_and_of_coordinates(columns: int) -> None:
    """Rows by a flattened mask over the first two axes, and the same coordinates in a GatherND."""
    g = Graph()
    rows = g.Concat(g.user(2, columns), g.item(2, columns), axis=1)
    mask = g.Expand(g.const([[True, False, True, True]]), g.Slice(g.Shape(rows), g.const([0]), g.const([2])))
    at = g.Transpose(g.NonZero(g.reshape(mask, -1)), perm=[1, 0])
    flat = g.reshape(rows, -1, columns)
    g.output(g.Gather(flat, g.reshape(at, -1), axis=0), g.GatherND(flat, at), at)
    check(g)


def test_a_flat_mask_of_another_length_is_a_look_up() -> None:
    g = Graph()
    mask = g.Expand(g.const([[True, False, True]]), g.Shape(g.item(3)))
    at = g.squeeze(g.NonZero(g.reshape(mask, -1)), [0])
    g.output(g.Gather(g.reshape(g.Concat(g.user(2), g.item(3), axis=1), -1), at, axis=0))
    check(g)


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_one_position_of_each_row_by_a_flat_index(side: str, dynamic: bool, first: bool) -> None:
    """``h[arange(N), i]`` as rows behind each other; negative ones count from the end of the row before."""
    g = Graph()
    h = g.Sin(g.user("T" if dynamic else 4, 3))
    i = g.Sub(g.input(side, N, high=4), g.const(1, np.int64))
    rows = g.Range(g.const(0, np.int64), g.squeeze(g.size(h, 0), [0]), g.const(1, np.int64))
    start = g.Mul(rows, g.squeeze(g.size(h, 1), [0]))
    flat = g.Reshape(h, g.Concat(g.const([-1], np.int64), g.const([3], np.int64), axis=0))
    picked = g.Gather(flat, g.Add(start, i) if first else g.Add(i, start), axis=0)
    result = check(g.output(g.MatMul(g.Concat(picked, g.item(2), axis=1), g.weight(5, 4))))
    if side == "user":
        lifted(g, result)


def test_elements_are_picked_by_indices_of_both_sides_apart() -> None:
    """As token types that RoBERTa picks by position: the user's indices pick the user's values once."""
    g = Graph()
    places = g.Concat(g.user(5, high=6), g.item(2, high=6), axis=1)
    g.output(g.MatMul(g.GatherElements(g.user(6), places, axis=1), g.weight(7, 3)))
    lifted(g, check(g, expect="split"), per_candidate=2 * 3)


@given(st.data())
def test_elements_picked_by_parts_are_the_same(data: st.DataObject) -> None:
    draw = data.draw
    g, axis = Graph(), draw(st.sampled_from((1, 2)))  # the evaluator is wrong about -1
    x = tensor(draw, g, (N, 4, 4), 2)
    sizes = [draw(st.integers(1, 3)) for _ in range(2)]
    shapes = [(size, 4) if axis == 1 else (4, size) for size in sizes]
    given_by = [g.input(draw(st.sampled_from(("user", "item"))), N, *shape, high=4) for shape in shapes]
    g.output(g.GatherElements(x, g.Concat(*given_by, axis=axis), axis=axis))
    check(g)
