"""Right pairs, and single faults in them that show only where a request gets to: a length, a number of candidates, a
unit that is rarely on or off, a branch, a number of trips, a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.sides.resolve import Sides
from tests.parity.mutants import Fault, after, only_where, put, weight
from tests.parity.pairs import Graph, Pair, _random

Steps = Sequence[tuple[str, Sequence[object], dict[str, object]]]
USERS, ITEMS, CLICKS, WIDTH = 150, 3000, 400, 24
INFINITE = np.float32(np.inf)


def stream() -> Pair:
    """A history of any length that is summed up, two tables, and units that are rarely on or rarely off."""

    def build(rows: int | str, split: bool) -> onnx.ModelProto:
        g = Graph()
        g.input("clicks", TensorProto.INT64, [rows, "T"])
        g.input("user_id", TensorProto.INT64, [rows])
        g.input("item_id", TensorProto.INT64, ["N"])
        g.input("price", TensorProto.FLOAT, ["N", 1])
        g.op("Gather", [g.weight("click_table", _random(1, CLICKS, 4) / 8), "clicks"], "click_rows")
        one = g.weight("one", np.array([1]))
        g.op("ReduceSum", ["click_rows", one], "past", keepdims=0)
        g.op("Gather", [g.weight("user_table", _random(2, USERS, 4)), "user_id"], "u")
        g.op("Gather", [g.weight("item_table", _random(3, ITEMS, 4)), "item_id"], "x")
        w = _random(4, 13, WIDTH)
        # About 6 and 10 standard deviations apart: the first units are hardly ever on, the last hardly ever off.
        bias = g.weight("bias", np.linspace(-6, 6, WIDTH).astype(np.float32))
        if split:
            g.op("Concat", ["past", "u"], "of_user", axis=1)
            g.op("Gemm", ["of_user", g.weight("w_user", w[:8]), bias], "user_part")
            g.op("Concat", ["x", "price"], "of_item", axis=1)
            g.op("Gemm", ["of_item", g.weight("w_item", w[8:]), "user_part"], "h")
        else:
            g.op("Concat", ["past", "u", "x", "price"], "all", axis=1)
            g.op("Gemm", ["all", g.weight("w", w), bias], "h")
        g.op("Relu", ["h"], "r")
        g.op("MatMul", ["r", g.weight("w_out", _random(5, WIDTH, 1))], "score")
        g.output("score", ["N", 1])
        return g.model()

    sides = {"clicks": "user", "user_id": "user", "item_id": "item", "price": "item"}
    return Pair(build("N", False), build(1, True), Sides(sides))


def turns() -> Pair:
    """Branches by what a user and the number of candidates are, and a loop whose trips the user says."""

    def branch(g: Graph, condition: str, tensor: str, output: str, gains: tuple[float, float]) -> str:
        bodies = {}
        for name, gain in zip(("then_branch", "else_branch"), gains, strict=True):
            out, constant = f"{output}_{name}", f"{output}_{name}_gain"
            value = numpy_helper.from_array(np.float32(gain), constant)
            bodies[name] = helper.make_graph(
                [helper.make_node("Mul", [tensor, constant], [out])], out, [],
                [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)], [value],
            )  # fmt: skip
        return g.op("If", [condition], output, **bodies)

    def build(rows: int | str) -> onnx.ModelProto:
        g = Graph()
        g.input("mode", TensorProto.INT64, [rows])
        g.input("mood", TensorProto.FLOAT, [rows, 3])
        g.input("times", TensorProto.INT64, [rows])
        g.input("item", TensorProto.FLOAT, ["N", 2])
        g.op("MatMul", ["item", g.weight("w", _random(1, 2, 1))], "base")
        g.op("ReduceMax", ["mode"], "mode_one", keepdims=0)
        g.op("Equal", ["mode_one", g.weight("special", np.array(41))], "is_special")
        branch(g, "is_special", "base", "by_mode", (1.5, 0.75))
        g.op("ReduceMax", ["mood"], "mood_one", keepdims=0)
        g.op("Greater", ["mood_one", g.weight("high", np.float32(4.5))], "is_high")
        branch(g, "is_high", "by_mode", "by_mood", (2.0, 1.25))
        g.op("Gather", [g.op("Shape", ["item"], "shape"), g.weight("zero", np.array(0))], "n")
        g.op("Greater", ["n", g.weight("many", np.array(600))], "is_many")
        branch(g, "is_many", "by_mood", "by_n", (0.8, 1.1))
        g.op("ReduceMax", ["times"], "trips", keepdims=0)
        body = helper.make_graph(
            [
                helper.make_node("Mul", ["before", "rate"], ["scaled"]),
                helper.make_node("Add", ["scaled", "step"], ["later"]),
                helper.make_node("Identity", ["go_on"], ["still"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("trip", TensorProto.INT64, []),
                helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info("still", TensorProto.BOOL, []),
                helper.make_tensor_value_info("later", TensorProto.FLOAT, None),
            ],
            [
                numpy_helper.from_array(np.float32(0.9), "rate"),
                numpy_helper.from_array(np.float32(0.3), "step"),
            ],
        )
        g.op("Loop", ["trips", "", "by_n"], "looped", body=body)
        g.op("Tanh", ["looped"], "score")
        g.output("score", ["N", 1])
        return g.model()

    return Pair(build("N"), build(1), Sides({"mode": "user", "mood": "user", "times": "user", "item": "item"}))


def _size(tensor: str, axis: int, comparison: str, number: int) -> Steps:
    """Whether a dimension compares so with a number."""
    return [
        ("Shape", [tensor], {"start": axis, "end": axis + 1}),
        (comparison, ["@", np.array([number])], {}),
    ]


def _cut(start: int, end: int) -> Fault:
    """A history of clicks that is only looked at from one place to another."""
    return after("click_rows", [("Slice", ["@", *(np.array([n]) for n in (start, end, 1))], {})])


def _of_length(comparison: str, number: int) -> Fault:
    return only_where("past", _size("clicks", 1, comparison, number))


def _of_candidates(comparison: str, number: int, tensor: str = "score") -> Fault:
    return only_where(tensor, _size("item_id", 0, comparison, number))


def _place(comparison: str, number: int) -> Fault:
    """Candidates at certain places of the request."""
    return only_where(
        "score",
        [
            ("Shape", ["item_id"], {}),
            ("Squeeze", ["@"], {}),
            ("Range", [np.array(0), "@", np.array(1)], {}),
            (comparison, ["@", np.array(number)], {}),
            ("Unsqueeze", ["@", np.array([1])], {}),
        ],
    )


def _unit(unit: int, value: float) -> np.ndarray:
    """One number a unit: `value` for one, infinity for the others."""
    found = np.full(WIDTH, INFINITE)
    found[unit] = value
    return found


def _slope(unit: int, slope: float) -> Fault:
    """One unit does not stop at zero but goes on with a slope."""
    slopes = np.zeros(WIDTH, np.float32)
    slopes[unit] = slope

    def fault(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.name == "r")
        node.op_type = "PRelu"
        node.input.append("slopes")
        model.graph.initializer.append(numpy_helper.from_array(slopes, "slopes"))

    return fault


def _ids(name: str, position: int, op: str, number: int) -> Fault:
    """Ids that are bounded before their lookup."""

    def fault(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        place = next(i for i, n in enumerate(nodes) if n.name == name)
        model.graph.initializer.append(numpy_helper.from_array(np.array(number), f"{name}/bound"))
        bounded = helper.make_node(op, [nodes[place].input[position], f"{name}/bound"], [f"{name}/ids"])
        nodes[place].input[position] = f"{name}/ids"
        nodes.insert(place, bounded)
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return fault


def _exchanged(table: str, one: int, other: int) -> Fault:
    def change(array: np.ndarray) -> np.ndarray:
        array[[one, other]] = array[[other, one]]
        return array

    return weight(table, change)


def _inside(node: str, body: str, tensor: str, value: float) -> Fault:
    """Another number in a body."""

    def fault(model: onnx.ModelProto) -> None:
        of = next(n for n in model.graph.node if n.name == node)
        graph = next(a.g for a in of.attribute if a.name == body)
        found = next(t for t in graph.initializer if t.name == tensor)
        found.CopyFrom(numpy_helper.from_array(np.float32(value), tensor))

    return fault


def _branch(name: str, way: str, gain: float) -> Fault:
    return _inside(name, f"{way}_branch", f"{name}_{way}_branch_gain", gain)


def _number(tensor: str, op: str, comparison: str, number: float, on: str = "score") -> Fault:
    """Where a number of the user compares so."""
    dtype = np.float32 if tensor == "mood_one" else np.int64
    return only_where(on, [(op, [tensor], {}), (comparison, ["@", np.array(number, dtype)], {})])


REACH_PAIRS = {"stream": stream, "turns": turns}

REACH_MUTANTS: dict[str, tuple[str, Fault]] = {
    # lengths of a history of any length
    "a history cut at 24": ("stream", _cut(0, 24)),
    "a history cut at 150": ("stream", _cut(0, 150)),
    "only the last 24 of a history": ("stream", _cut(-24, 10_000)),
    "only the last 180 of a history": ("stream", _cut(-180, 10_000)),
    "wrong for a history of 57 alone": ("stream", _of_length("Equal", 57)),
    "wrong for a history of 1 alone": ("stream", _of_length("Equal", 1)),
    "wrong for an empty history": ("stream", _of_length("Equal", 0)),
    "wrong for a history above 100": ("stream", _of_length("Greater", 100)),
    "wrong for a history above 256": ("stream", _of_length("Greater", 256)),
    # numbers of candidates
    "wrong at N=3 only": ("stream", _of_candidates("Equal", 3)),
    "wrong at N=640 only": ("stream", _of_candidates("Equal", 640)),
    "wrong at N>501 only": ("stream", _of_candidates("Greater", 501)),
    "wrong at N>1,500 only": ("stream", _of_candidates("Greater", 1500)),
    "hidden layer wrong at N=65 only": ("stream", _of_candidates("Equal", 65, "h")),
    "wrong for candidates from the 600th": ("stream", _place("GreaterOrEqual", 600)),
    "wrong for the 900th candidate alone": ("stream", _place("Equal", 900)),
    "candidates from the 128th get the 128th's row": ("stream", _place("Greater", 127)),
    # units that are rarely on, and rarely off
    "weight of a unit that is hardly ever on": ("stream", put("w_out", 0, 2.0)),
    "weight of a unit that is seldom on": ("stream", put("w_out", 3, 2.0)),
    "a unit that is hardly ever on is dropped": ("stream", after("r", [("Min", ["@", _unit(1, 0)], {})])),
    "a unit that is hardly ever off does not stop at 0": ("stream", _slope(WIDTH - 1, 1.0)),
    "a unit that is hardly ever off goes on below 0 with a slope": ("stream", _slope(WIDTH - 2, 0.1)),
    "a unit that is seldom off goes on below 0 with a slope": ("stream", _slope(WIDTH - 5, 0.01)),
    "a unit is cut at 6": ("stream", after("r", [("Min", ["@", _unit(12, 6)], {})])),
    # branches
    "branch of a special user wrong": ("turns", _branch("by_mode", "then", 1.4)),
    "branch of all other users wrong": ("turns", _branch("by_mode", "else", 0.76)),
    "branch of a user beyond a threshold wrong": ("turns", _branch("by_mood", "then", 2.1)),
    "branch of a user below a threshold wrong": ("turns", _branch("by_mood", "else", 1.2)),
    "branch of many candidates wrong": ("turns", _branch("by_n", "then", 0.9)),
    "branch of few candidates wrong": ("turns", _branch("by_n", "else", 1.0)),
    "special user is the next one": ("turns", put("special", (), 42)),
    "threshold of many candidates off by one": ("turns", put("many", (), 601)),
    "threshold of many candidates half as large": ("turns", put("many", (), 300)),
    # loops
    "start of a loop wrong": ("turns", _inside("looped", "body", "step", 0.31)),
    "rate of a loop wrong": ("turns", _inside("looped", "body", "rate", 0.91)),
    "wrong where a loop makes no trip": ("turns", _number("trips", "Identity", "Equal", 0)),
    "wrong where a loop makes one trip": ("turns", _number("trips", "Identity", "Equal", 1)),
    "wrong where a loop makes several trips": ("turns", _number("trips", "Identity", "Greater", 1)),
    "a loop makes one trip at least": ("turns", after("trips", [("Max", ["@", np.array(1)], {})])),
    "a loop makes five trips at most": ("turns", after("trips", [("Min", ["@", np.array(5)], {})])),
    # rows of tables
    "first row of a user table wrong": ("stream", put("user_table", 0, 0.0)),
    "last row of a user table wrong": ("stream", put("user_table", USERS - 1, 0.0)),
    "one number in a row of a user table wrong": ("stream", put("user_table", (77, 2), 0.5)),
    "first row of an item table wrong": ("stream", put("item_table", 0, 0.0)),
    "last row of an item table wrong": ("stream", put("item_table", ITEMS - 1, 0.0)),
    "a row in the middle of an item table wrong": ("stream", put("item_table", 1234, 0.0)),
    "two rows of an item table exchanged": ("stream", _exchanged("item_table", 2001, 2002)),
    "a row of a history's table wrong": ("stream", put("click_table", 333, 0.0)),
    "two rows of a history's table exchanged": ("stream", _exchanged("click_table", 7, 8)),
    "ids of items bounded one too low": ("stream", _ids("x", 1, "Min", ITEMS - 2)),
    "ids of users bounded one too high": ("stream", _ids("u", 1, "Max", 1)),
    "ids of a history cut to 8 bits": ("stream", _ids("click_rows", 1, "Mod", 256)),
}
