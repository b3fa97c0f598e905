"""Bodies against numpy: what regroups, picks, joins or multiplies them gives the same arrays."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mari_onnx.engine.algebra.contract import contract
from mari_onnx.engine.algebra.reduce import reduce_sum
from mari_onnx.engine.algebra.sums import add, multiply
from mari_onnx.engine.axes.align import align, flatten, segments, single, split
from mari_onnx.engine.axes.materialize import as_block, as_leaf, write
from mari_onnx.engine.axes.select import coalesce, take
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.ir.value import Axis, Body, Cat, Decline, Leaf, Part, Tensor, Value, axes_of, fresh, rename
from mari_onnx.engine.output.assemble import live
from mari_onnx.model.dims import Dim, Size, product
from tests.engine.graphs import Draw

COUNT = 3
"""What N is at run time."""
N = Dim.symbol("N")


class Bench:
    """A builder, and the arrays its inputs have."""

    def __init__(self, seed: int):
        self.b = Builder(18)
        self.rng = np.random.default_rng(seed)
        self.feeds: dict[str, np.ndarray] = {}
        anchor = self.input((N,), frozenset({"item"}))
        self.b.sources["N"] = (anchor, 0)

    def input(self, shape: Sequence[Size], deps: frozenset[str]) -> Tensor:
        name = f"i{len(self.feeds)}"
        self.feeds[name] = self.rng.standard_normal([run(s) for s in shape])
        return self.b.input(name, TensorProto.DOUBLE, tuple(shape), deps)

    def array(self, tensor: Tensor) -> np.ndarray:
        """What a tensor is at run time."""
        if tensor.const:
            return tensor.array
        if tensor.node is None:
            return self.feeds[tensor.name]
        nodes, weights = [], {}
        for node in live([tensor]):
            proto = NodeProto()
            proto.CopyFrom(node.proto)
            nodes.append(proto)
            weights.update({t.name: t.array for t in node.inputs if t is not None and t.const})
        infos = [onnx.ValueInfoProto(name=n) for n in self.feeds]
        inits = [numpy_helper.from_array(a, n) for n, a in weights.items()]
        graph = helper.make_graph(nodes, "g", infos, [onnx.ValueInfoProto(name=tensor.name)], inits)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        return np.asarray(ReferenceEvaluator(model).run(None, self.feeds)[0])

    def values(self, body: Body, axes: Sequence[Axis]) -> np.ndarray:
        """The body over all these axes."""
        tensor = write(self.b, body, [(a,) for a in axes], frozenset(axes))
        assert tuple(run(s) for s in tensor.known) == self.array(tensor).shape, (
            "the shape that is known is not the one at run time"
        )
        return self.array(tensor)


def run(size: Size) -> int:
    return size.evaluate({"N": COUNT}) if isinstance(size, Dim) else size


def axes(draw: Draw, low: int = 1, high: int = 3) -> list[Axis]:
    return [
        Axis(s) for s in draw(st.lists(st.sampled_from((2, 3, 4, N)), min_size=low, max_size=high))
    ]


def body(draw: Draw, bench: Bench, over: Sequence[Axis], depth: int = 2) -> tuple[Body, np.ndarray]:
    """A random body that varies along some of the axes, and its values over all of them."""
    wide = [a for a in over if isinstance(a.size, int)]
    if depth and wide and draw(st.integers(0, 3)):
        return _cat(draw, bench, over, draw(st.sampled_from(wide)), depth)
    own = draw(st.permutations([a for a in over if draw(st.booleans())]))
    stored: list[Axis | None] = list(own)
    if draw(st.integers(0, 3)) == 0:
        stored.insert(draw(st.integers(0, len(stored))), None)
    shape = [1 if a is None else a.size for a in stored]
    which = draw(st.sampled_from(("const", "user", "item", "mixed")))
    if which == "const" and all(isinstance(s, int) for s in shape):
        tensor = bench.b.const(bench.rng.standard_normal([run(s) for s in shape]))
    else:
        tensor = bench.input(shape, frozenset({"user"} if which == "user" else {"item"}))
    array = bench.array(tensor).reshape([run(a.size) for a in own])
    array = array.transpose([own.index(a) for a in over if a in own])
    full = array.reshape([run(a.size) if a in own else 1 for a in over])
    return Leaf(tensor, tuple(stored)), np.broadcast_to(full, [run(a.size) for a in over])


def _cat(
    draw: Draw, bench: Bench, over: Sequence[Axis], axis: Axis, depth: int
) -> tuple[Body, np.ndarray]:
    size, at = run(axis.size), list(over).index(axis)
    owner = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    parts, whole = [], np.zeros([run(a.size) for a in over])
    for k in sorted(set(owner)):
        places = [i for i, o in enumerate(owner) if o == k]
        sub = Axis(len(places)) if len(places) > 1 else None
        inner, values = body(
            draw, bench, [*over[:at], *([sub] if sub else []), *over[at + 1 :]], depth - 1
        )
        parts.append(Part(tuple(places), sub, inner))
        whole[(*[slice(None)] * at, places)] = values if sub else np.expand_dims(values, at)
    return Cat(axis, tuple(parts)), whole


def same(have: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(have, want, rtol=1e-9, atol=1e-9)


SEEDS = st.integers(0, 5).map(Bench)


@given(st.data(), SEEDS)
def test_written_out_in_any_order_and_grouping(data: st.DataObject, bench: Bench) -> None:
    over = axes(data.draw)
    x, values = body(data.draw, bench, over)
    order = data.draw(st.permutations(over))
    cut = data.draw(st.integers(0, len(order)))
    groups = [g for g in (tuple(order[:cut]), tuple(order[cut:])) if g]
    have = bench.array(write(bench.b, x, groups, frozenset(over)))
    turned = values.transpose([over.index(a) for a in order])
    same(have, turned.reshape([int(np.prod([run(a.size) for a in g])) for g in groups]))


@given(st.data(), SEEDS)
def test_neat_leaf_and_block_are_the_same_values(data: st.DataObject, bench: Bench) -> None:
    over = axes(data.draw)
    x, values = body(data.draw, bench, over)
    order = data.draw(st.permutations(over))
    same(bench.values(as_leaf(bench.b, x, order), over), values)
    if isinstance(x, Cat):
        joined = coalesce(bench.b, x, order)
        same(bench.values(joined, over), values)
        same(bench.values(as_block(bench.b, x, order), over), values)
        if isinstance(joined, Cat) and joined.axis is x.axis:
            kinds = [
                axes_of(p.body) - {p.axis}
                for p in joined.parts
                if isinstance(p.body, Leaf) and not p.body.tensor.const
            ]
            assert len(kinds) == len(set(kinds)), "at most one part for each set of axes"


@given(st.data(), SEEDS)
def test_positions_are_taken(data: st.DataObject, bench: Bench) -> None:
    over = axes(data.draw)
    wide = [i for i, a in enumerate(over) if isinstance(a.size, int)]
    if not wide:
        return
    x, values = body(data.draw, bench, over)
    i = data.draw(st.sampled_from(wide))
    places = data.draw(st.lists(st.integers(0, run(over[i].size) - 1), min_size=1, max_size=5))
    new = Axis(len(places)) if len(places) > 1 else None
    have = bench.values(
        take(bench.b, x, over[i], places, new), [*over[:i], *([new] if new else []), *over[i + 1 :]]
    )
    want = values.take(places, axis=i)
    same(have, want if new else want.squeeze(i))


@given(st.data(), SEEDS)
def test_axes_become_one_and_are_cut_again(data: st.DataObject, bench: Bench) -> None:
    over = axes(data.draw, 2, 3)
    x, values = body(data.draw, bench, over)
    start = data.draw(st.integers(0, len(over) - 2))
    group = tuple(over[start : start + 2])
    whole = Axis(product(a.size for a in group))
    flat = flatten(bench.b, x, group, whole)
    left = [*over[:start], whole, *over[start + 2 :]]
    same(bench.values(flat, left), values.reshape([run(a.size) for a in left]))
    again = tuple(Axis(a.size) for a in group)
    same(
        bench.values(
            split(bench.b, flat, whole, again), [*over[:start], *again, *over[start + 2 :]]
        ),
        values,
    )


@given(st.data(), SEEDS)
def test_an_axis_is_cut_in_any_way(data: st.DataObject, bench: Bench) -> None:
    factors = data.draw(st.sampled_from(((2, 2), (3, 2), (2, 3), (2, 2, 2), (4, 2))))
    axis = Axis(int(np.prod(factors)))
    over = [axis, *axes(data.draw, 0, 2)]
    x, values = body(data.draw, bench, over)
    new = [Axis(f) for f in factors]
    have = bench.values(split(bench.b, x, axis, new), [*new, *over[1:]])
    same(have, values.reshape([*factors, *values.shape[1:]]))


@given(st.data(), SEEDS)
def test_sums_and_products_of_bodies(data: st.DataObject, bench: Bench) -> None:
    over = axes(data.draw)
    pairs = [body(data.draw, bench, over) for _ in range(data.draw(st.integers(2, 3)))]
    bodies, arrays = [x for x, _ in pairs], [v for _, v in pairs]
    same(bench.values(add(bench.b, bodies, over), over), sum(arrays[1:], arrays[0]))
    same(bench.values(multiply(bench.b, *bodies[:2], over), over), arrays[0] * arrays[1])


@given(st.data(), SEEDS)
def test_reductions_of_bodies(data: st.DataObject, bench: Bench) -> None:
    over = axes(data.draw)
    x, values = body(data.draw, bench, over)
    gone = {i for i in range(len(over)) if data.draw(st.booleans())}
    left = [a for i, a in enumerate(over) if i not in gone]
    have = reduce_sum(bench.b, x, frozenset(over[i] for i in gone), left)
    same(bench.values(have, left), values.sum(axis=tuple(gone)))


@given(st.data(), SEEDS)
def test_contractions_of_bodies(data: st.DataObject, bench: Bench) -> None:
    """sum over k of x y, with batch axes, rows, columns and several contracted ones."""
    shared, rows, columns, inner = (
        axes(data.draw, low, high) for low, high in ((0, 1), (0, 2), (0, 2), (1, 2))
    )
    left, right = [*shared, *rows, *inner], [*shared, *inner, *columns]
    x, a = body(data.draw, bench, left)
    y, c = body(data.draw, bench, right)
    if data.draw(st.booleans()) and isinstance(x, Leaf):
        gate, g = body(data.draw, bench, left, 0)
        x, a = multiply(bench.b, x, gate, left), a * g
    order = [*shared, *rows, *columns]
    k = frozenset(inner) & (axes_of(x) | axes_of(y))
    lost = np.prod([run(i.size) for i in inner if i not in k] or [1])
    letters = dict(zip([*order, *inner], string.ascii_letters, strict=False))
    words = ["".join(letters[t] for t in term) for term in (left, right, order)]
    want = np.einsum(f"{words[0]},{words[1]}->{words[2]}", a, c) / lost
    done = contract(bench.b, x, y, k, order) if k else multiply(bench.b, x, y, order)
    same(bench.values(done, order), want)


@pytest.mark.parametrize("nested", [False, True])
def test_a_sum_over_an_axis_that_turns_out_not_to_vary(nested: bool) -> None:
    """c over (2, 2): neither operand has the first axis, and writing that factor shows that none has the second."""
    bench = Bench(0)
    first, second = Axis(2), Axis(2)
    c: Body = Leaf(bench.b.const(1.5), ())
    for axis in (first, second) if nested else (second,):
        c = Cat(axis, (Part((0, 1), Axis(2), c),))
    y = Leaf(bench.b.const(3.0), ())
    for pair in ((c, y), (y, c)):
        done = contract(bench.b, *pair, frozenset({first, second}), [])
        same(bench.values(done, []), np.asarray(1.5 * 3.0 * 4))


@given(st.data(), SEEDS)
def test_values_of_different_factorisations_align(data: st.DataObject, bench: Bench) -> None:
    """[4, 6] as (2, 2), (6,) beside (4,), (2, 3): broadcast as numpy does."""
    factors = {4: ((4,), (2, 2)), 6: ((6,), (2, 3), (3, 2)), 1: ((),), 3: ((3,),)}
    logical = data.draw(st.lists(st.sampled_from((4, 6, 3)), min_size=1, max_size=2))
    values, arrays = [], []
    for _ in range(2):
        own = [s if data.draw(st.integers(0, 3)) else 1 for s in logical][
            data.draw(st.integers(0, 1)) if len(logical) > 1 else 0 :
        ]
        groups = tuple(tuple(Axis(f) for f in data.draw(st.sampled_from(factors[s]))) for s in own)
        x, array = body(data.draw, bench, [a for g in groups for a in g])
        values.append(Value(groups, x, TensorProto.DOUBLE))
        arrays.append(array.reshape(own))
    try:
        bodies, groups = align(bench.b, values)
    except Decline:
        return  # (2, 3) beside (3, 2) has no common refinement
    over = [a for g in groups for a in g]
    want = np.broadcast_arrays(*arrays)
    for x, array in zip(bodies, want, strict=True):
        same(bench.values(x, over), array.reshape([run(a.size) for a in over]))


@given(
    st.lists(st.sampled_from((1, 2, 3, 4, 6, N)), max_size=4),
    st.lists(st.sampled_from((1, 2, 3, 4, 6, N)), max_size=4),
)
def test_segments_refine_both_sides(left: list[Size], right: list[Size]) -> None:
    found = segments(Builder(18), left, right)
    if found is None:
        return
    for side, sizes in ((1, left), (2, right)):
        for n, size in enumerate(sizes):
            assert product(s[0] for s in found if s[side] == n) == size
        assert [s[side] for s in found] == sorted(s[side] for s in found)


def test_factorisations_that_cannot_be_refined() -> None:
    assert segments(Builder(18), [2, 3], [3, 2]) is None
    assert segments(Builder(18), [N, 2], [2, N]) is None
    assert segments(Builder(18), [N], [4]) is None
    assert segments(Builder(18), [N, 6], [N, 3, 2]) == [(N, 0, 0), (3, 1, 1), (2, 1, 2)]


@given(st.data(), SEEDS)
def test_fresh_axes_and_single_groups(data: st.DataObject, bench: Bench) -> None:
    over = axes(data.draw, 2, 3)
    x, values = body(data.draw, bench, over)
    value = fresh(Value((tuple(over[:2]), tuple(over[2:])), x, TensorProto.DOUBLE))
    assert not set(value.axes) & set(over)
    one, axis = single(bench.b, value, 0)
    assert axis is not None
    left = [axis, *value.known[1]]
    same(bench.values(one.body, left), values.reshape([run(a.size) for a in left]))


def test_renaming_exchanges_axes_all_at_once() -> None:
    bench = Bench(0)
    a, c = Axis(3), Axis(3)
    x = Leaf(bench.b.const(np.arange(9.0).reshape(3, 3)), (a, c))
    swapped = rename(x, {a: c, c: a})
    same(bench.values(swapped, [a, c]), np.arange(9.0).reshape(3, 3).T)


def test_equal_nodes_and_constants_are_one() -> None:
    bench = Bench(0)
    b = bench.b
    x = bench.input((N, 2), frozenset({"item"}))
    assert b.emit("Relu", [x], x.known) is b.emit("Relu", [x], x.known)
    assert b.const(np.ones(3)) is b.const(np.ones(3))
    assert b.const(np.ones(3)) is not b.const(np.ones((3, 1)))
    assert b.const(0.0, 11) is not b.const(0.0, 1)
    assert b.const(np.array(0.0)) is not b.const(np.array(-0.0))


@pytest.mark.parametrize("size", [N, N * 2 + 1, N * N, 5])
def test_sizes_are_computed_from_the_inputs(size: Size) -> None:
    bench = Bench(0)
    assert bench.array(bench.b.size(size)).tolist() == [run(size)]
    assert bench.array(bench.b.sizes([size, 2])).tolist() == [run(size), 2]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_axes_on_which_nothing_varies_are_counted_though_the_body_has_them(nested: bool, flip: bool) -> None:
    """A Cat of equal parts loses its axis where it is tidied on the way: the sum over it still is a multiplication."""
    b, first, second = Builder(18), Axis(2), Axis(3)
    leaf = Leaf(b.const(np.array(3.0)), ())
    inside: Body = Cat(second, (Part((0, 1, 2), Axis(3), leaf),)) if nested else leaf
    pair = (Cat(first, (Part((0, 1), Axis(2), inside),)), Leaf(b.const(np.array(5.0)), ()))
    done = contract(b, *(pair[::-1] if flip else pair), frozenset({first, second}))
    assert isinstance(done, Leaf)
    assert done.tensor.array == 3 * 5 * 6
