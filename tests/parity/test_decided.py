"""Conditions that decide together, and numbers at which a rounding turns: that requests get to them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from mari_onnx.model.signature import signature
from mari_onnx.parity.coverage import sites
from mari_onnx.parity.coverage.decisions import Decisions
from mari_onnx.parity.coverage.goals import Goal
from mari_onnx.parity.domains.domains import domains
from mari_onnx.parity.layout import Layout
from mari_onnx.sides.resolve import Sides
from tests.parity.pairs import Graph
from tests.parity.test_coverage import looked, missed


def rule(op: str, through: str = "") -> Graph:
    """`x > 3` and `z == 7`, combined; of floats that are 0 or 1 where they go through a Cast."""
    g = Graph()
    g.op("Greater", [g.input("x", TensorProto.INT64, ["N"]), g.weight("three", np.array(3))], "large")
    g.op("Equal", [g.input("z", TensorProto.INT64, ["N"]), g.weight("seven", np.array(7))], "is_seven")
    parts = ["large", "is_seven"]
    if through == "cast":
        parts = [g.op("Cast", [t], f"{t}_float", to=TensorProto.FLOAT) for t in parts]
    elif through == "view":
        parts = [g.op("Unsqueeze", [t, g.weight("axis", np.array([1]))], f"{t}_column") for t in parts[:1]] + parts[1:]
    elif through == "not":
        parts[0] = g.op("Not", ["large"], "small")
    g.op(op, parts, "out")
    g.outputs.append(onnx.ValueInfoProto(name="out"))
    return g


def decision(g: Graph, x: list[int], z: list[int]) -> Goal:
    (goal,) = [each for each in looked(g.model(), x=np.array(x), z=np.array(z)) if isinstance(each, Decisions)]
    return goal


@pytest.mark.parametrize(("op", "through"), [("And", ""), ("Mul", "cast"), ("Min", "cast"), ("And", "view")])
def test_of_two_that_must_hold_one_decides_where_the_other_holds(op: str, through: str) -> None:
    goal = decision(rule(op, through), [3, 9, 4], [7, 8, 1])
    left = missed(goal)
    if through == "view":  # of all pairs
        assert "large is false where it decides" not in left
        assert "large is just above where it turns where it decides" not in left
        return
    assert "large is true where it decides" in left
    assert "large is just above where it turns where it decides" in left
    assert "large is false where it decides" not in left
    assert "large is where it turns where it decides" not in left
    assert "is_seven is false where it decides" not in left
    assert "is_seven is just above where it turns where it decides" not in left


def test_of_two_of_which_one_must_hold_one_decides_where_the_other_does_not() -> None:
    for op, through in (("Or", ""), ("Max", "cast")):
        left = missed(decision(rule(op, through), [3, 4, 9], [8, 1, 7]))
        assert "large is false where it decides" not in left
        assert "large is just above where it turns where it decides" not in left
        assert "is_seven is true where it decides" in left


def test_of_two_that_differ_each_decides() -> None:
    assert not [t for t in missed(decision(rule("Xor"), [2, 3, 4], [6, 7, 8])) if "is_seven" in t]


def test_a_negation_is_looked_through() -> None:
    left = missed(decision(rule("And", "not"), [3, 9], [7, 7]))
    assert "large is true where it decides" not in left
    assert "is_seven is true where it decides" not in left


def test_a_where_in_a_where() -> None:
    g = rule("And")
    g.nodes.pop()
    one, two, three = (g.weight(f"n{n}", np.float32(n)) for n in range(3))
    g.op("Where", ["is_seven", one, two], "inner")
    g.op("Where", ["large", three, "inner"], "out")
    goal = decision(g, [3, 5], [7, 8])
    assert "is_seven is true where it decides" not in missed(goal)  # where x is not large
    assert "is_seven is false where it decides" in missed(goal)


def test_one_condition_decides_nothing_together() -> None:
    g = rule("And")
    g.nodes[-1].input[1] = g.weight("always", np.array(True))
    assert not [each for each in sites.goals(g.model()) if isinstance(each, Decisions)]


def test_a_request_that_comes_nearer_to_a_turn_that_decides_is_a_step() -> None:
    goal = decision(rule("And"), [40], [7])
    given = [np.array(v) for v in ([True], [20], 3, [True], [7], 7)]
    goal.look(given)
    assert goal.closer
    goal.look([np.array(v) for v in ([True], [10], 3, [False], [8], 7)])
    assert not goal.closer  # nearer, but it does not decide


def rounded(op: str, scale: float = 1.0) -> list[float]:
    """What an input should be that is rounded, multiplied by a number before."""
    g = Graph()
    g.input("x", TensorProto.FLOAT, ["N"])
    given = "x" if scale == 1 else g.op("Mul", ["x", g.weight("scale", np.float32(scale))], "scaled")
    if op == "QuantizeLinear":
        g.op(op, [given, g.weight("step", np.float32(0.25)), g.weight("zero", np.uint8(3))], "out")
    else:
        g.op(op, [given], "out")
    g.outputs.append(onnx.ValueInfoProto(name="out"))
    model = g.model()
    values = domains(model, Layout(signature(model), Sides({"x": "item"})))[0]["x"].values
    return [] if values is None else sorted(float(n) for n in values.numbers[0])


def test_numbers_at_which_a_rounding_turns() -> None:
    assert {-2.5, -0.5, 0.5, 1.5, 2.5} <= set(rounded("Round"))
    assert {-2.0, -1.0, 0.0, 1.0, 2.0} <= set(rounded("Floor"))
    assert set(rounded("Ceil")) == set(rounded("Floor"))
    assert {0.125, 0.375, -0.125} <= set(rounded("QuantizeLinear"))
    assert {1.0, 3.0, -1.0} <= set(rounded("Round", 0.5))


def test_where_a_rounding_turns_by_the_last_bits_nothing_is_fed() -> None:
    assert not rounded("Round", 0.1)
    assert not rounded("Round", 1 / 3)
    assert not rounded("Relu")
