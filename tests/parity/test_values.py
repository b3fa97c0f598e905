"""Numbers that a graph tells apart: which they are, and that requests meet them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from mari_onnx.model.signature import signature
from mari_onnx.parity import check
from mari_onnx.parity.domains.domains import Domain, domains
from mari_onnx.parity.domains.reactions import counts
from mari_onnx.parity.requests.draw import Deck, Drawer, Layout
from mari_onnx.sides.resolve import Sides
from tests.parity.mutants import mutate, weight
from tests.parity.pairs import PAIRS, Graph

USER = Sides({"x": "user"})


def found(g: Graph, sides: Sides = USER, name: str = "x") -> Domain:
    known = {o for n in g.nodes for o in n.output} - {t for n in g.nodes for t in n.input}
    g.outputs += [onnx.ValueInfoProto(name=t) for t in sorted(known)]
    model = g.model()
    return domains(model, Layout(signature(model), sides))[0][name]


def numbers(g: Graph, sides: Sides = USER) -> list[list[float]]:
    """Sorted, of each place."""
    values = found(g, sides).values
    assert values is not None
    return [sorted(each) for each in values.numbers]


@pytest.mark.parametrize(
    ("op", "constant", "expected"),
    [("Equal", 302, [301, 302, 303]), ("Equal", 0, [0, 1]), ("Equal", -1, [-1, 0]), ("Greater", 0, [0, 1]),
     ("GreaterOrEqual", 0, [-1, 0, 1]), ("Less", 0, [-1, 0, 1]), ("LessOrEqual", 5, [4, 5, 6]), ("Mod", 8, [7, 8, 9])],
)  # fmt: skip
def test_whole_numbers_and_what_is_next_to_them(op: str, constant: int, expected: list[int]) -> None:
    g = Graph()
    g.op(op, [g.input("x", TensorProto.INT64, ["N"]), g.weight("c", np.array(constant))], "out")
    assert numbers(g) == [expected]


def test_numbers_that_are_compared_come_before_what_is_next_to_them() -> None:
    g = Graph()
    g.op("Unsqueeze", [g.input("x", TensorProto.INT64, ["N"]), g.weight("axis", np.array([1]))], "col")
    g.op("Equal", ["col", g.weight("c", np.array([[300, 500, 301]]))], "out")
    values = found(g).values
    assert values is not None
    assert set(values.numbers[0][:3]) == {300, 301, 500}
    assert set(values.numbers[0][3:]) == {299, 302, 499, 501}


def test_the_constant_may_stand_on_the_left_and_be_computed() -> None:
    g = Graph()
    g.input("x", TensorProto.INT64, ["N"])
    g.op("Mul", [g.weight("a", np.array(20)), g.weight("b", np.array(15))], "c")
    g.op("Less", ["c", "x"], "out")
    assert numbers(g) == [[299, 300, 301]]


def test_numbers_are_followed_back_through_what_is_calculated_with_constants() -> None:
    g = Graph()
    g.op("Cast", [g.input("x", TensorProto.INT32, ["N"])], "long", to=TensorProto.INT64)
    g.op("Sub", [g.weight("base", np.array(10)), "long"], "turned")
    g.op("Mul", ["turned", g.weight("two", np.array(2))], "twice")
    g.op("Equal", ["twice", g.weight("c", np.array(-8))], "out")
    assert numbers(g) == [[13, 14, 15]]


def test_a_number_that_is_divided() -> None:
    g = Graph()
    g.op("Div", [g.input("x", TensorProto.INT64, ["N"]), g.weight("by", np.array(100))], "part")
    g.op("Equal", ["part", g.weight("c", np.array(3))], "out")
    met = {int(n) // 100 for n in numbers(g)[0]}
    assert met == {2, 3, 4}


def test_a_number_that_is_divided_below_zero() -> None:
    g = Graph()
    g.op("Div", [g.input("x", TensorProto.INT64, ["N"]), g.weight("seven", np.array(7))], "weeks")
    g.op("Less", ["weeks", g.weight("c", np.array(-3))], "out")
    assert -28 in numbers(g)[0]  # the first that is cut to -4


@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.FLOAT])
@pytest.mark.parametrize(("op", "bound", "threshold"), [("Max", 4, 7), ("Min", 50, -20), ("Max", 4, 100)])
def test_a_number_behind_a_bound(dtype: int, op: str, bound: int, threshold: int) -> None:
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    g = Graph()
    g.op(op, [g.input("x", dtype, ["N"]), g.weight("bound", np.array(bound, kind))], "bounded")
    g.op("Sub", [g.weight("ten", np.array(10, kind)), "bounded"], "left")
    g.op("Greater", ["left", g.weight("c", np.array(10 - threshold, kind))], "out")
    (found_,) = numbers(g)
    step = max(abs(threshold), 1) / 128 if dtype == TensorProto.FLOAT else 1
    assert any(threshold - step <= n < threshold for n in found_)
    assert any(threshold < n <= threshold + step for n in found_)


def test_a_number_that_is_scaled_and_rounded() -> None:
    g = Graph()
    g.op("Mul", [g.input("x", TensorProto.FLOAT, ["N"]), g.weight("half", np.float32(-0.5))], "scaled")
    g.op("Floor", ["scaled"], "floor")
    g.op("Greater", ["floor", g.weight("c", np.float32(100))], "out")
    (found_,) = numbers(g)
    cut = np.floor(np.array(found_) * -0.5)
    assert {100, 101} <= set(cut.tolist())


def test_columns_of_a_packed_input_have_their_own_numbers() -> None:
    g = Graph()
    g.input("x", TensorProto.FLOAT, ["N", 3])
    g.op("Gather", ["x", g.weight("at", np.array([0, 2]))], "two", axis=1)
    g.op("Cast", ["two"], "whole", to=TensorProto.INT64)
    g.op("Equal", ["whole", g.weight("c", np.array([[7, 40]]))], "out")
    sides = Sides({}, {"x": {"user": (0,), "item": (1, 2)}})
    assert numbers(g, sides) == [[6, 7, 8], [], [39, 40, 41]]
    layout = Layout(signature(g.model()), sides)
    drawer = Drawer(layout, {"x": found(g, sides)})
    rows = np.concatenate([drawer.request(4, full=True, meet=True).rows["x"] for _ in range(3)])
    assert {6, 7, 8} <= set(rows[:, 0].tolist())
    assert {39, 40, 41} <= set(rows[:, 2].tolist())
    assert not {6, 7, 8, 39, 40, 41} & set(rows[:, 1].tolist())
    assert drawer.meeting.report() == {"x": (6, 6)}


@pytest.mark.parametrize("calculated", [False, True])
def test_a_float_is_drawn_at_its_threshold_only_where_nothing_is_calculated(calculated: bool) -> None:
    g = Graph()
    x = g.input("x", TensorProto.FLOAT, ["N"])
    if calculated:
        x = g.op("Mul", [x, g.weight("two", np.float32(2))], "scaled")
    g.op("Greater", [x, g.weight("c", np.float32(75 if calculated else 37.5))], "out")
    below, above = numbers(g)[0][0], numbers(g)[0][-1]
    assert 36 < below < 37.5 < above < 39
    assert (37.5 in numbers(g)[0]) is not calculated


def test_what_two_inputs_make_together_has_no_numbers() -> None:
    g = Graph()
    g.op("Add", [g.input("x", TensorProto.INT64, ["N"]), g.input("y", TensorProto.INT64, ["N"])], "sum")
    g.op("Equal", ["sum", g.weight("c", np.array(3))], "out")
    assert found(g, Sides({"x": "user", "y": "user"})).values is None


def test_numbers_of_ids_are_ids_and_dealt_first() -> None:
    g = Graph()
    g.input("x", TensorProto.INT64, ["N"])
    g.op("Gather", [g.weight("table", np.zeros((1000, 2), np.float32)), "x"], "rows")
    for name, code in (("inside", 700), ("last", 999), ("beyond", 1000)):
        g.op("Equal", ["x", g.weight(f"c_{name}", np.array(code))], name)
    assert numbers(g) == [[699, 700, 701, 998, 999]]
    drawer = Drawer(Layout(signature(g.model()), USER), {"x": found(g)})
    assert sorted(int(drawer.request(1, meet=True).user["x"][0]) for _ in range(5)) == [699, 700, 701, 998, 999]
    drawer = Drawer(Layout(signature(g.model()), USER), {"x": found(g)})
    assert {699, 700, 701, 998, 999} < {int(drawer.request(1).user["x"][0]) for _ in range(40)}
    deck = Deck(9, np.random.default_rng(0), [4, 12, 2])
    assert set(deck.deal(2, eager=True).tolist()) == {2, 4}
    assert sorted(deck.deal(7).tolist()) == [0, 1, 3, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("values", "size"),
    [([0, 1, 2], 3), ([2, 1, 0], 3), ([1, 2, 3], 3), ([3, 2, 1], 3), ([2, 0, 1], 3), ([[2, 1, 0], [2, 1, 0]], 3),
     ([0], None), ([0, 2, 4], None), ([0, 0, 1], None), ([5, 6], None)],
)  # fmt: skip
def test_what_counts(values: list[int], size: int | None) -> None:
    assert counts(np.array(values)) == size


@pytest.mark.parametrize("places", [20, "T"])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("down", [False, True])
def test_a_range_over_a_shape_counts(places: int | str, first: int, down: bool) -> None:
    g = Graph()
    g.input("hist", TensorProto.FLOAT, ["N", places])
    g.op("Unsqueeze", [g.input("x", TensorProto.INT64, ["N"]), g.weight("axis", np.array([1]))], "x_col")
    g.op("Gather", [g.op("Shape", ["hist"], "shape"), g.weight("at", np.array(1))], "places")
    ends = [g.weight("first", np.array(first)), g.op("Add", ["places", "first"], "end"), g.weight("step", np.array(1))]
    if down:
        one = g.weight("one", np.array(1))
        ends = [g.op("Sub", ["end", one], "top"), g.op("Sub", ["first", one], "stop"), g.weight("back", np.array(-1))]
    g.op("Range", ends, "steps")
    g.op("Less", ["steps", "x_col"], "out")
    domain = found(g, Sides({"x": "user", "hist": "user"}))
    assert domain.role == "length"
    assert domain.size == (20 if places == 20 else None)


@pytest.mark.parametrize(("places", "met"), [(12, 13), (500, 64)])
@pytest.mark.parametrize("side", ["user", "item"])
def test_every_length_is_met_or_as_many_of_a_long_history(side: str, places: int, met: int) -> None:
    g = Graph()
    g.op("Unsqueeze", [g.input("x", TensorProto.INT64, ["N"]), g.weight("axis", np.array([1]))], "x_col")
    g.op("Less", [g.weight("steps", np.arange(places)[None, ::-1]), "x_col"], "seen")
    g.op("Cast", ["seen"], "mask", to=TensorProto.FLOAT)
    g.op("ReduceSum", ["mask", "axis"], "sum", keepdims=0)
    g.op("Mul", ["sum", g.input("z", TensorProto.FLOAT, ["N"])], "out")
    g.output("out", ["N"])
    result = check(g.model(), g.model(), Sides({"x": side, "z": "item"}))  # type: ignore[dict-item]
    assert result.values == {"x": (met, met)}


@pytest.mark.parametrize("name", ["codes", "counted_down"])
def test_a_check_meets_all_numbers_unless_it_may_not(name: str) -> None:
    pair = PAIRS[name]()
    result = check(pair.source, pair.optimized, pair.sides)
    assert result.values
    assert all(met == of for met, of in result.values.values())
    assert not result.notes
    short = check(pair.source, pair.optimized, pair.sides, coverage=1)
    missed = [each for each, (met, of) in short.values.items() if met < of]
    assert missed
    assert any(f"of {missed[0]}" in note for note in short.notes)
    assert short.to_dict()["values"][missed[0]]["met"] < short.to_dict()["values"][missed[0]]["of"]


def refusing(code: int) -> onnx.ModelProto:
    """A whole number is divided by what is 0 for one code."""
    g = Graph()
    g.op("Sub", [g.input("x", TensorProto.INT64, ["N"]), g.weight("code", np.array(code))], "left")
    g.op("Equal", ["x", "code"], "is_code")
    g.op("Div", [g.weight("many", np.array(1_000_000)), "left"], "share")
    g.op("Cast", ["share"], "scale", to=TensorProto.FLOAT)
    g.op("Mul", ["scale", g.input("z", TensorProto.FLOAT, ["N"])], "y")
    g.op("Where", ["is_code", "z", "y"], "out")
    g.output("out", ["N"])
    return g.model()


@pytest.mark.parametrize("code", [302, 30_000])
def test_a_number_that_the_source_refuses_is_not_blamed_on_the_output(code: int) -> None:
    model = refusing(code)
    result = check(model, model, Sides({"x": "user", "z": "item"}))
    assert result.ok, result.reasons
    assert len(result.notes) == 1
    assert "the source itself fails on 1 of 3 requests" in result.notes[0]
    assert result.candidates == [1, 2, 7, 64, 500]


def test_an_output_that_nothing_moves_is_said() -> None:
    pair = PAIRS["counted_down"]()
    model = mutate(pair.source, weight("scale", np.zeros_like))
    result = check(model, mutate(pair.optimized, weight("scale", np.zeros_like)), pair.sides)
    assert result.ok
    assert [note for note in result.notes if "output score is the same for all candidates" in note]
    assert not check(pair.source, pair.optimized, pair.sides).notes


def test_negative_numbers_are_drawn_where_nan_comes_of_a_code() -> None:
    def build(kind: str) -> onnx.ModelProto:
        g = Graph()
        g.op("Equal", [g.input("x", TensorProto.INT64, ["N"]), g.weight("code", np.array(302))], "is_code")
        g.op(kind, [g.input("z", TensorProto.FLOAT, ["N"])], "y")
        g.op("Where", ["is_code", g.weight("nan", np.float32(np.nan)), "y"], "out")
        g.output("out", ["N"])
        return g.model()

    result = check(build("Identity"), build("Relu"), Sides({"x": "user", "z": "item"}), coverage=0)
    assert "the source outputs NaN on some requests" in result.notes
    assert not result.ok


def test_columns_of_one_table_do_not_all_begin_with_the_same() -> None:
    decks = [Deck(1000, np.random.default_rng(seed), [1]) for seed in range(30)]
    begin = [int(deck.deal(1)[0]) for deck in decks]
    assert 1 in begin
    assert len(set(begin)) > 10


def test_a_deck_deals_each_once() -> None:
    deck = Deck(7, np.random.default_rng(0), [3, 5])
    assert sorted(n for _ in range(7) for n in deck.deal(1).tolist()) == list(range(7))
