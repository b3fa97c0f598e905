"""Products of small tables at build time: the same numbers, what it refuses, and where it pays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx import engine
from mari_onnx.engine import Options, choose, rewrite
from mari_onnx.engine.ir.builder import Builder
from mari_onnx.engine.output import tables
from mari_onnx.parity.guard import optimize_checked
from mari_onnx.prices.table import load
from tests.engine.checks import check
from tests.engine.drawing import starts, tensor
from tests.engine.graphs import Draw, Graph, N


@pytest.fixture
def always() -> Iterator[None]:
    """Everything that can be done pays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "GAIN", -np.inf)
        patch.setattr(choose, "EQUAL", np.inf)
        yield


def _look_up(draw: Draw, g: Graph, side: str, width: int) -> str:
    """Rows of a table, [N, width], with views on the way."""
    rows = draw(st.integers(1, 5))
    column = draw(st.booleans())
    index = g.input(side, N, *([1] if column else []), high=rows)
    if draw(st.booleans()):
        index = g.Sub(index, g.const(rows, np.int64))  # counted from the end
    found = g.Gather(g.weight(rows, width), index, axis=0)
    if not column:
        return found
    return g.squeeze(found, [1]) if draw(st.booleans()) else g.reshape(found, -1, width)


@st.composite
def layers(draw: Draw) -> Graph:
    g = draw(starts())
    widths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    kinds = draw(st.lists(st.sampled_from(("user", "item", "dense")), min_size=len(widths), max_size=len(widths)))
    pieces = [
        tensor(draw, g, (N, width), depth=1) if kind == "dense" else _look_up(draw, g, kind, width)
        for width, kind in zip(widths, kinds, strict=True)
    ]
    if draw(st.booleans()):
        pieces.append(pieces[0])
        widths.append(widths[0])
    x = g.Concat(*pieces, axis=draw(st.sampled_from((1, -1)))) if len(pieces) > 1 else pieces[0]
    columns = draw(st.integers(1, 3))
    for _ in range(draw(st.integers(1, 2))):
        way = draw(st.sampled_from(("Gemm", "turned", "MatMul", "rank 3")))
        if way == "Gemm":
            g.output(g.Gemm(x, g.weight(sum(widths), columns), g.weight(columns)))
        elif way == "turned":
            g.output(g.Gemm(x, g.weight(columns, sum(widths)), transB=1))
        elif way == "MatMul":
            y = g.MatMul(x, g.weight(sum(widths), columns))
            other = draw(st.sampled_from(("nothing", "bias", "user", "item")))
            added = {"bias": g.weight, "user": g.user, "item": g.item}
            g.output(y if other == "nothing" else g.Add(y, added[other](columns)))
        else:
            g.output(g.MatMul(g.unsqueeze(x, draw(st.sampled_from((0, 1)))), g.weight(sum(widths), columns)))
    if draw(st.booleans()):
        g.output(g.Relu(pieces[0]))
    return g


@pytest.mark.usefixtures("always")
@given(layers())
def test_multiplied_tables_are_the_same(g: Graph) -> None:
    check(g, counts=(0, 1, 3, 7), prices=load())


def _model(rows: int = 50, width: int = 64, columns: int = 64, side: str = "item", **product: float) -> Graph:
    """A user of 32 columns, three dense columns of the item, and a table's rows, into one layer."""
    g = Graph(18, dtype=np.float32)
    index = g.input(side, N, 1, high=rows)
    row = g.reshape(g.Gather(g.weight(rows, width), index), -1, width)
    x = g.Concat(g.user(32), row, g.item(3), axis=1)
    return g.output(g.Relu(g.Gemm(x, g.weight(35 + width, columns), g.weight(columns), **product)))


def _rewritten(g: Graph, **options: object) -> engine.Rewrite:
    given_ = {"prices": load(), "weights": {16: 1.0, 64: 1.0, 500: 1.0}, **options}
    return rewrite(g.model(), g.sides, Options(**given_))  # type: ignore[arg-type]


def _multiplied(made: engine.Rewrite) -> list[str]:
    return [r.reason for r in made.nodes if r.reason and "multiplied at build time" in r.reason]


def _shapes(model: onnx.ModelProto) -> set[tuple[int, ...]]:
    return {tuple(t.dims) for t in model.graph.initializer}


def test_a_table_of_wide_rows_is_multiplied_and_the_user_joins_it_once() -> None:
    made = _rewritten(_model())
    assert _multiplied(made) == ["50 rows of the table 'w1' are multiplied at build time"]
    assert (50, 64) in _shapes(made.model)
    assert (64, 64) not in _shapes(made.model)
    adds = [node for node in made.model.graph.node if node.op_type == "Add"]
    assert [made.out_shapes[node.output[0]] for node in adds] == [(50, 64)]


def test_narrow_rows_many_rows_and_wide_layers_stay() -> None:
    for g in (_model(width=4), _model(rows=2000), _model(width=8, columns=256)):
        assert not _multiplied(_rewritten(g))


def test_without_prices_or_where_the_caller_or_the_check_leave_the_product_alone_nothing_is_done() -> None:
    name = next(node.name for node in _model().nodes if node.op_type == "Gemm")
    for options in ({"prices": None}, {"asked": frozenset({name})}, {"skip": frozenset({name})}, {"split": "apart"}):
        assert not _multiplied(_rewritten(_model(), **options))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("what", ["scaled", "cut", "moved", "computed", "columns"])
def test_what_is_no_row_of_a_table_stays(what: str) -> None:
    g = Graph(18)
    index = g.item(high=4)
    table = g.weight(4, 6)
    if what == "computed":
        table = g.Mul(table, g.reshape(g.slice(g.reduce("Max", g.item(6), [0]), 0, 1, 1), 1, 1))
    if what == "columns":
        row = g.Transpose(g.Gather(g.weight(6, 4), index, axis=1), perm=[1, 0])
    else:
        row = g.Gather(table, index)
    if what == "scaled":
        row = g.Mul(row, g.item(1))
    if what == "cut":
        row = g.reshape(row, -1, 3)
    if what == "moved":
        row = g.reshape(g.Transpose(g.reshape(row, -1, 2, 3), perm=[0, 2, 1]), -1, 6)
    y = g.MatMul(row, g.weight(3 if what == "cut" else 6, 2))
    if what == "cut":
        y = g.reduce("Sum", g.reshape(y, -1, 2, 2), [1], keepdims=0)
    g.output(g.Add(y, g.MatMul(g.user(5), g.weight(5, 2))))
    assert not _multiplied(check(g, prices=load()))


def _linear() -> Graph:
    """A product of a table's rows that the user has no part in, and its bias as an Add; and a layer of both."""
    g = Graph(18, dtype=np.float32)
    row = g.reshape(g.Gather(g.weight(50, 64), g.item(1, high=50)), -1, 64)
    own = g.Add(g.MatMul(row, g.weight(64, 64)), g.weight(64))
    both = g.MatMul(g.Concat(g.user(256), g.item(3), axis=1), g.weight(259, 64))
    return g.output(g.Sin(g.Add(g.Relu(own), both)))


def test_of_a_matmul_and_an_add_it_is_the_matmul_that_is_multiplied_or_left_alone() -> None:
    g = _linear()
    name = next(node.name for node in g.nodes if node.op_type == "MatMul")
    made = _rewritten(g)
    assert {r.name for r in made.nodes if r.reason in _multiplied(made)} == made.multiplied == {name}
    for how in ("asked", "skip"):
        assert not _rewritten(g, **{how: frozenset({name})}).multiplied


def test_the_check_undoes_a_multiplied_table_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(b: Builder, *given_: object) -> object:
        const = b.const
        with monkeypatch.context() as patch:
            patch.setattr(b, "const", lambda x, *more: const(x * 2 if np.shape(x) == (50, 64) else x, *more))
            return tables.with_multiplied_tables(b, *given_)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "with_multiplied_tables", wrong)
    g = _linear()
    options = Options(prices=load(), weights={16: 1.0, 64: 1.0, 500: 1.0})
    done = optimize_checked(g.model(), g.sides, options, candidates=(1, 7), coverage=0)
    assert done.ok
    assert done.rewrite.changed
    assert done.options.skip == {next(node.name for node in g.nodes if node.op_type == "MatMul")}


@pytest.mark.usefixtures("always")
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_table_with_infinities_is_multiplied_without_a_word() -> None:
    g = Graph(18, dtype=np.float32)
    table = np.ones((4, 3))
    table[1] = np.inf
    row = g.Gather(g.const(table), g.item(high=4))
    g.output(g.Gemm(g.Concat(g.user(2), row, axis=1), g.const([[1.0, -1.0]] * 4 + [[0.0, 2.0]]), g.weight(2)))
    assert _multiplied(check(g, prices=load(), tolerance=1e-5))
