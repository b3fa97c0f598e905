"""Operators that move elements: nested, interleaved Concats, Slices, Reshapes, broadcasts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.checks import actions, check, lifted, macs_each
from tests.engine.drawing import shapes, signed, starts, tensor
from tests.engine.graphs import LENGTHS, Draw, Graph, N, Shape

Moved = tuple[str, Shape]


@st.composite
def moves(draw: Draw) -> Graph:
    """An expression through one to three moves; what comes out may have any rank."""
    g = draw(starts())
    shape = shapes(draw)
    y = tensor(draw, g, shape, 2)
    for _ in range(draw(st.integers(1, 3))):
        y, shape = draw(st.sampled_from(MOVES))(draw, g, y, shape)
    return g.output(g.Sin(y))


def _axis(draw: Draw, shape: Shape) -> int | None:
    axes = [i for i, s in enumerate(shape) if isinstance(s, int)]
    return draw(st.sampled_from(axes)) if axes else None


def _slice(draw: Draw, g: Graph, y: str, shape: Shape) -> Moved:
    axis = _axis(draw, shape)
    if axis is None:
        return y, shape
    size = shape[axis]
    start, end = (
        draw(st.integers(-size, size)),
        draw(st.sampled_from((-1, size, 1 << 40, -(1 << 40), 1))),
    )
    step = draw(st.sampled_from((1, 2, -1, -2)))
    stop = None if step < 0 and end < -(1 << 30) else end
    places = list(range(size))[slice(start, stop, step)]
    if not places:
        return y, shape
    return g.slice(y, start, end, signed(draw, axis, len(shape)), step), (
        *shape[:axis],
        len(places),
        *shape[axis + 1 :],
    )


def _split(draw: Draw, g: Graph, y: str, shape: Shape) -> Moved:
    axis = _axis(draw, shape)
    if axis is None or shape[axis] < 2:
        return y, shape
    cut = draw(st.integers(1, shape[axis] - 1))
    parts = g.split(y, [cut, shape[axis] - cut], signed(draw, axis, len(shape)))
    return g.Concat(*reversed(parts), axis=axis), shape


def _reshape(draw: Draw, g: Graph, y: str, shape: Shape) -> Moved:
    """Any other row-major factorisation of what lies beside N."""
    if N not in shape:
        return y, shape
    at = shape.index(N)
    left, right = int(np.prod(shape[:at])), int(np.prod(shape[at + 1 :]))
    rest = []
    for side in (left, right):
        divisors = [d for d in range(1, side + 1) if side % d == 0]
        first = draw(st.sampled_from(divisors))
        rest.append([s for s in (first, side // first) if s != 1 or draw(st.booleans())])
    new = (*rest[0], N, *rest[1])
    zero = at == len(rest[0]) and draw(st.booleans())
    return g.reshape(y, *((0 if zero else -1) if s == N else s for s in new)), new


def _flatten(draw: Draw, g: Graph, y: str, shape: Shape) -> Moved:
    """Flatten and back; the axis may cut on either side of N."""
    axis = draw(st.integers(0, len(shape)))
    flat = g.Flatten(y, axis=signed(draw, axis, len(shape)) if axis < len(shape) else axis)
    return g.reshape(flat, *(-1 if s == N else s for s in shape)), shape


def _squeeze(draw: Draw, g: Graph, y: str, shape: Shape) -> Moved:
    at = draw(st.integers(0, len(shape)))
    wide = g.unsqueeze(y, signed(draw, at, len(shape) + 1))
    if draw(st.booleans()):
        return wide, (*shape[:at], 1, *shape[at:])
    return g.squeeze(wide, [signed(draw, at, len(shape) + 1)]), shape


def _transpose(draw: Draw, g: Graph, y: str, shape: Shape) -> Moved:
    if draw(st.integers(0, 3)) == 0:
        return g.Transpose(y), shape[::-1]
    perm = draw(st.permutations(range(len(shape))))
    return g.Transpose(y, perm=perm), tuple(shape[p] for p in perm)


def _tile(draw: Draw, g: Graph, y: str, shape: Shape) -> Moved:
    repeats = [1 if s == N else draw(st.integers(1, 2)) for s in shape]
    return g.Tile(y, g.const(repeats, np.int64)), tuple(
        s if s == N else s * r for s, r in zip(shape, repeats, strict=True)
    )


def _join(draw: Draw, g: Graph, y: str, shape: Shape) -> Moved:
    axis = _axis(draw, shape)
    if axis is None:
        return y, shape
    other = (*shape[:axis], draw(st.integers(1, 3)), *shape[axis + 1 :])
    parts = [y, tensor(draw, g, other, 1)]
    size = shape[axis] + other[axis]
    return g.Concat(*draw(st.permutations(parts)), axis=signed(draw, axis, len(shape))), (
        *shape[:axis],
        size,
        *shape[axis + 1 :],
    )


def _candidates_apart(draw: Draw, g: Graph, y: str, shape: Shape) -> Moved:
    """Positions of the candidate axis are no one's to lift: reversed, repeated, shifted."""
    if N not in shape:
        return y, shape
    at = shape.index(N)
    which = draw(st.integers(0, 2))
    if which == 0:
        return g.slice(y, -1, -(1 << 40), at, -1), shape
    if which == 1:
        return g.Concat(g.slice(y, 0, 1, at), g.slice(y, 1, 1 << 40, at), axis=at), shape
    return g.Add(y, g.Gather(y, g.const([0], np.int64), axis=at)), shape


MOVES = [
    _slice,
    _split,
    _reshape,
    _flatten,
    _squeeze,
    _transpose,
    _tile,
    _join,
    _join,
    _reshape,
    _candidates_apart,
]


@given(moves())
def test_moves_are_the_same(g: Graph) -> None:
    check(g)


@pytest.mark.parametrize("nested", [False, True])
def test_an_interleaved_concat_is_one_product_a_kind(nested: bool) -> None:
    g = Graph()
    parts = [g.user(2), g.item(3), g.user(1), g.item(2), g.user(4)]
    if nested:
        parts = [g.Concat(*parts[:2], axis=1), g.Concat(*parts[2:4], axis=-1), parts[4]]
    g.output(g.MatMul(g.Concat(*parts, axis=1), g.weight(12, 8)))
    result = lifted(g, per_candidate=5 * 8)
    assert len([n for n in result.model.graph.node if n.op_type in ("MatMul", "Gemm")]) == 2


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_slices_and_splits_of_a_concat_cost_nothing(opset: int) -> None:
    g = Graph(opset)
    u, x = g.user(6), g.item(4)
    both = g.Concat(u, x, axis=1)
    mine, theirs = g.split(both, [6, 4], 1)
    again = g.Concat(g.slice(both, 8, 10, -1), g.slice(mine, 5, -7, -1, -1), theirs, axis=1)
    g.output(g.MatMul(again, g.weight(12, 3)))
    result = lifted(g, per_candidate=6 * 3)
    assert actions(result)["Concat"] == ["split", "split"]


def test_folded_candidates_keep_the_users_part_once() -> None:
    g = Graph()
    u, x = g.user(4, 3), g.item(4, 5)
    flat = g.reshape(g.Concat(u, x, axis=2), -1, 8)
    g.output(g.reshape(g.MatMul(flat, g.weight(8, 6)), -1, 4, 6))
    lifted(g, per_candidate=4 * 5 * 6)


def test_stacked_fields_then_reshape() -> None:
    g = Graph()
    fields = [g.user(3), g.item(3), g.user(3), g.item(3)]
    stacked = g.Concat(*(g.unsqueeze(f, 1) for f in fields), axis=1)
    g.output(g.MatMul(g.reshape(stacked, -1, 12), g.weight(12, 5)))
    lifted(g, per_candidate=6 * 5)


def test_a_transposed_batch_is_followed() -> None:
    g = Graph()
    tokens = g.Concat(g.user(3, 4), g.item(2, 4), axis=1)
    first = g.Transpose(tokens, perm=[1, 0, 2])
    g.output(g.Transpose(g.MatMul(first, g.weight(4, 6)), perm=[1, 0, 2]))
    lifted(g, per_candidate=2 * 4 * 6)


def test_requests_by_candidates_without_tags() -> None:
    """[R, N, ...]: Expand in the graph says it all."""
    g = Graph()
    u, x = g.input(None, "R", 6), g.input(None, "R", N, 3)
    sizes = g.Concat(g.size(x, 0), g.size(x, 1), g.const([6], np.int64), axis=0)
    wide = g.Expand(g.unsqueeze(u, 1), sizes)
    g.output(g.MatMul(g.Concat(wide, x, axis=2), g.weight(9, 4)))
    result = check(g)
    assert actions(result)["Expand"] == ["lifted"]
    assert next(node.kind for node in result.nodes if node.op == "Expand") == "Shared"
    assert macs_each(g, result) == LENGTHS["R"] * 3 * 4


def test_packed_columns() -> None:
    g = Graph()
    x = g.packed(user=[0, 3, 4], item=[1, 5], cross=[2])
    g.output(g.MatMul(g.Relu(x), g.weight(6, 4)))
    lifted(g, per_candidate=3 * 4)


def test_candidate_axis_one() -> None:
    g = Graph(axis=1)
    u, x = g.input("user", 2, N, 4), g.input("item", 2, N, 3)
    g.output(g.MatMul(g.Concat(u, x, axis=-1), g.weight(7, 5)))
    lifted(g, per_candidate=2 * 3 * 5)


# ---- what must stay --------------------


def test_a_reshape_that_mixes_candidates_is_left() -> None:
    """[N, 4] to [4, N] without Transpose puts candidates where columns were."""
    g = Graph()
    u, x = g.user(2), g.item(2)
    mixed = g.reshape(g.Concat(u, x, axis=1), 4, -1)
    g.output(g.CumSum(mixed, g.const(1, np.int64)))
    check(g)


def test_a_reshape_of_the_user_that_mixes_candidates() -> None:
    g = Graph()
    g.output(g.Add(g.Sin(g.reshape(g.user(4), 4, -1)), g.Transpose(g.item(4))))
    check(g)


def test_candidates_concatenated_along_their_axis() -> None:
    """A token before the candidates: the axis is N + 1."""
    g = Graph()
    first = g.const(np.ones((1, 3)))
    both = g.Concat(first, g.MatMul(g.Concat(g.user(2), g.item(2), axis=1), g.weight(4, 3)), axis=0)
    g.output(g.MatMul(both, g.weight(3, 2)))
    check(g)


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from((2, 3)), st.booleans())
def test_heads_cut_across_fields(users: int, items: int, heads: int, first: bool) -> None:
    """[N, F, heads * d] read as [heads * N, F, d]: a row of d is of one field, but a head has fields of both sides."""
    g = Graph(18)
    parts = [g.user(users, 2 * heads), g.item(items, 2 * heads)]
    both = g.Concat(*(parts if first else parts[::-1]), axis=1)
    cut = g.reshape(both, -1, users + items, 2)
    g.output(g.Relu(g.MatMul(cut, g.weight(2, 3))))
    check(g)
    lifted(g, per_candidate=items * heads * 2 * 3)


@given(st.permutations([0, 1, 2]))
def test_parts_of_a_concat_agree_with_a_size_that_the_run_tells(order: list[int]) -> None:
    """Rows picked by NonZero are as many as the user's, or the source itself does not run."""
    g = Graph(18)
    rows = g.squeeze(g.NonZero(g.Add(g.Abs(g.item()), g.const(1.0))), [0])
    parts = [g.Gather(g.item(3), rows, axis=0), g.user(4), g.Gather(g.item(2), rows, axis=0)]
    both = g.Concat(*(parts[k] for k in order), axis=1)
    g.output(g.Relu(g.MatMul(both, g.weight(9, 5))))
    check(g)
    lifted(g, per_candidate=5 * 5)


@pytest.mark.parametrize("opset", [11, 18])
def test_squeeze_without_axes_of_a_dynamic_dimension(opset: int) -> None:
    """At N=1 the candidates are squeezed too."""
    g = Graph(opset)
    y = g.MatMul(g.Concat(g.user(3), g.item(2), axis=1), g.weight(5, 1))
    g.output(g.Identity(g.squeeze(y)))
    assert actions(check(g, counts=(1, 3, 7)))["Squeeze"] in (["kept"], ["barrier"])


def test_only_the_user_reaches_an_output() -> None:
    """An output of the user's alone still has N rows."""
    g = Graph()
    u, x = g.user(3), g.item(2)
    g.output(g.Relu(g.MatMul(u, g.weight(3, 4))), g.Relu(x))
    lifted(g, per_candidate=0)


@pytest.mark.parametrize("end", [10**9, 2**31 - 1, 2**63 - 1])
def test_a_slice_to_the_end_as_exporters_write_it(end: int) -> None:
    g = Graph()
    u = g.Relu(g.user(4))
    axes = g.const([0, 1, 2])
    whole = g.Slice(g.unsqueeze(u, 2), g.const([0, 0, 0]), g.const([end] * 3), axes)
    both = g.Concat(g.squeeze(whole, [2]), g.item(2), axis=1)
    g.output(g.MatMul(both, g.weight(6, 3)))
    lifted(g, per_candidate=2 * 3)


def test_an_axis_taken_apart_and_stacked_leaves_the_fields_in_order() -> None:
    """tf.split of the embeddings into columns, stacked in front: the outer product of fields, as a CIN has it."""
    g = Graph()
    fields = [g.unsqueeze(g.user(2) if k % 2 else g.item(2), 1) for k in range(14)]
    columns = g.split(g.Concat(*fields, axis=1), [1, 1], 2)
    stacked = g.Concat(*(g.unsqueeze(c, 0) for c in columns), axis=0)
    across = g.reshape(stacked, 2, -1, 1, 14)
    pairs = g.reshape(g.MatMul(stacked, across), 2, -1, 14 * 14)
    g.output(g.MatMul(pairs, g.weight(14 * 14, 5)))
    result = lifted(g)
    assert macs_each(g, result) < 2 * 14 * 14 * 5


def _heads_behind_each_other(g: Graph, x: str, width: int, heads: int) -> str:
    """tf.concat(tf.split(x W, heads, -1), 0)."""
    x = g.MatMul(x, g.weight(width, width))
    return g.Concat(*g.split(x, [width // heads] * heads, 2), axis=0)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("tokens", ["user", "both", "target"])
def test_heads_on_the_batch_axis(opset: int, tokens: str) -> None:
    """Multi-head attention with the heads behind each other on the batch axis, and a mask tiled alike."""
    g, heads, width = Graph(opset), 2, 4
    u = g.Relu(g.user(3, width))
    keys = {"user": u, "both": g.Concat(u, g.item(2, width), axis=1), "target": u}[tokens]
    queries = g.item(1, width) if tokens == "target" else keys
    q, k, v = (_heads_behind_each_other(g, t, width, heads) for t in (queries, keys, keys))
    scores = g.MatMul(q, g.Transpose(k, perm=[0, 2, 1]))
    mask = g.Slice(g.Cast(g.user(3), to=9), g.const([0]), g.const([3]), g.const([1]))
    mask = g.Concat(mask, g.Cast(g.item(2), to=9), axis=1) if tokens == "both" else mask
    mask = g.Tile(g.unsqueeze(mask, 1), g.const([heads, 1, 1]))
    weights = g.Softmax(g.Where(mask, scores, g.const(-1e9)), axis=-1)
    attrs = {"num_outputs": heads} if opset >= 18 else {}
    parts = g.nodes_of("Split", [g.MatMul(weights, v)], heads, axis=0, **attrs)
    out = g.Concat(*parts, axis=2)
    g.output(g.Add(g.reduce("Sum", out, [1], keepdims=0), g.item(1)))
    result = check(g) if tokens == "both" else lifted(g)
    assert not [n.reason for n in result.nodes if n.op in ("Concat", "Split") and n.reason]


@pytest.mark.parametrize("count", [2, 3])
def test_shares_of_the_candidates(count: int) -> None:
    """Parts of one dynamic length behind each other, and cut again into as many or other shares."""
    g = Graph(13)
    rows = [g.Concat(g.Relu(g.user(2)), g.item(3), axis=1), g.item(5)] * 3
    both = g.Concat(*rows[: 2 * count], axis=0)
    g.output(*g.nodes_of("Split", [both], count, axis=0), *g.nodes_of("Split", [both], 2, axis=0))
    check(g)


def test_candidates_behind_one_row_of_them() -> None:
    g = Graph()
    x = g.Concat(g.Relu(g.user(2)), g.item(3), axis=1)
    g.output(g.Concat(g.slice(x, 0, 1, 0), x, axis=0))
    check(g)


@pytest.mark.parametrize("bounds", [(5, 6), (-6, -5), (-1, -2), (3, 4), (-2, -1), (2, 1 << 62), (6, 1 << 62)])
def test_a_range_that_a_short_history_lacks(bounds: tuple[int, int]) -> None:
    g = Graph(18)
    x, y = g.user("T", 3), g.item(3)
    g.output(g.slice(g.Sin(x), *bounds, 1), g.Relu(y))
    check(g)


@pytest.mark.parametrize("bounds", [(-2, -1), (-2, 1 << 62), (0, 2), (1, 2)])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_range_of_the_candidates_may_be_cut_short(bounds: tuple[int, int], mixed: bool) -> None:
    """At N=1 there are fewer, also where the Slice is left as it is."""
    g = Graph(18)
    x = g.Concat(g.user(3), g.item(2), axis=1) if mixed else g.Sin(g.user(5))
    cut = g.slice(x, *bounds, 0)
    g.output(g.Shape(cut), g.Transpose(cut, perm=[1, 0]), g.Relu(g.item(2)))
    check(g)


def test_an_expand_of_what_may_be_one_row() -> None:
    """Rows up to the first, expanded to all: which of the two is 1 is told by the run."""
    g = Graph(18)
    x = g.item(3)
    rows = g.Gather(x, g.squeeze(g.NonZero(g.item(high=5)), [0]), axis=0)
    g.output(g.Shape(g.Expand(g.slice(rows, 0, 1, 0), g.Shape(rows))), g.Sin(g.user(2)))
    check(g)


def test_parts_that_meet_in_every_row_are_not_cut() -> None:
    """[12, 6] as [3, 3, 8]: each of the nine rows of 8 has columns of both sides."""
    g = Graph(18)
    part = g.Concat(g.user(4, 2), g.item(4, 4), axis=2)
    cut = g.reshape(g.Neg(g.Concat(part, part, part, axis=1)), -1, 3, 3, 8)
    g.output(g.Sub(cut, g.user(3, 3, 8)))
    assert len(check(g).model.graph.node) < 40


def test_a_form_that_is_cut_across_its_parts_is_dropped() -> None:
    """A product whose rows are in parts (a softmax of blocks), read in other rows and multiplied again."""
    g = Graph(17)
    both = g.Concat(g.user(4, 2), g.user(4, 1), g.item(4, 4), axis=2)
    rows = g.reshape(g.Softmax(both, axis=2), -1, 28, 1)
    cut = g.reshape(g.MatMul(rows, g.weight(1, 3)), -1, 12, 7)
    g.output(g.MatMul(cut, g.weight(7, 2)))
    check(g)


def test_a_target_repeated_by_a_concat_is_one_row() -> None:
    """[q, q, .., q] beside the history, as Keras repeats elements: the target's columns are multiplied once."""
    g = Graph()
    target = g.Concat(g.item(1, 4), g.item(1, 3), axis=2)
    rows = g.Concat(*[target] * 6, axis=1)
    both = g.Concat(rows, g.user(6, 7), axis=2)
    lifted(g.output(g.MatMul(both, g.weight(14, 5))), per_candidate=7 * 5)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(0, 2))
def test_parts_that_repeat(which: list[bool], axis: int) -> None:
    g = Graph()
    shape = (2, 3)
    one, two = g.Concat(g.item(2, 1), g.user(2, 2), axis=2), g.item(*shape)
    both = g.Concat(*(one if w else two for w in which), axis=max(axis, 1))
    check(g.output(g.Relu(both)))


def test_a_dimension_that_the_run_tells_to_be_one() -> None:
    """The rows of one code: the source fails where there are more, or none."""
    g = Graph(18)
    code = g.reduce("Max", g.user(high=5), [0], keepdims=0)
    place = g.squeeze(g.NonZero(g.Equal(g.const(np.arange(5)), code)), [0])
    row = g.squeeze(g.Gather(g.Relu(g.user(5, 4)), place, axis=1), [1])
    g.output(g.MatMul(g.Concat(row, g.item(2), axis=1), g.weight(6, 3)))
    lifted(g, per_candidate=2 * 3)


def test_groups_of_fields_in_which_few_sides_meet() -> None:
    """Twelve fields as four groups of three: groups of one side are apart, though each has several fields."""
    g = Graph(18)
    fields = [g.unsqueeze(f(4), 1) for f in [g.user] * 5 + [g.item] * 4 + [g.user] * 3]
    groups = g.reshape(g.Concat(*fields, axis=1), -1, 4, 12)
    y = g.InstanceNormalization(groups, g.weight(4), g.weight(4))
    g.output(g.MatMul(g.reshape(y, -1, 48), g.weight(48, 3)))
    lifted(g, per_candidate=24 * 3)
