"""Graphs that are wrong at single numbers: where a rounding turns, and where several conditions decide together.

Every output is one idiom, as in `reacting.py`. What is right is the source itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.sides.resolve import Sides
from tests.parity.hidden import _row
from tests.parity.mutants import Fault, kind, node, put
from tests.parity.pairs import Pair, _random
from tests.parity.reacting import _graph, _pair, _score


def halves() -> Pair:
    """Numbers that are rounded, of which nobody is at a boundary by chance."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    for name in ("stars", "price", "age", "rank"):
        g.input(name, TensorProto.FLOAT, ["N", 1])
    g.op("Round", ["stars"], "stars_row")
    _score(g, "stars_row", 1, "by_stars")
    g.op("Mul", ["price", g.weight("quarter", np.float32(0.25))], "price_part")
    g.op("Round", ["price_part"], "price_row")
    _score(g, "price_row", 1, "by_price")
    g.op("Floor", ["age"], "age_row")
    _score(g, "age_row", 1, "by_age")
    g.op("QuantizeLinear", ["rank", g.weight("step", np.float32(0.5)), g.weight("zero", np.int8(0))], "rank_code")
    g.op("DequantizeLinear", ["rank_code", "step", "zero"], "rank_row")
    _score(g, "rank_row", 1, "by_rank")
    return _pair(g, Sides({"level": "item", "stars": "item", "price": "user", "age": "user", "rank": "item"}))


def together() -> Pair:
    """Conditions that decide together, each of which shows only where it does."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    for name, width in (("clicks", 10), ("length", 1), ("item", 1), ("age", 1), ("land", 1), ("hour", 1)):
        g.input(name, TensorProto.INT64, ["N", width])
    g.op("Sub", ["length", g.weight("one", np.array(1))], "last_at")
    g.op("GatherElements", ["clicks", "last_at"], "last_click", axis=1)
    g.op("Equal", ["last_click", "item"], "is_last")
    g.op("Greater", ["length", g.weight("some", np.array(3))], "is_long")
    g.op("And", ["is_last", "is_long"], "again")
    g.op("Cast", ["again"], "again_row", to=TensorProto.FLOAT)
    _score(g, "again_row", 1, "by_last")
    g.op("GreaterOrEqual", ["age", g.weight("old", np.array(65))], "is_old")
    g.op("Equal", ["land", g.weight("norway", np.array(302))], "is_norway")
    for name in ("old", "norway"):
        g.op("Cast", [f"is_{name}"], f"{name}_float", to=TensorProto.FLOAT)
    g.op("Mul", ["old_float", "norway_float"], "old_norway")
    _score(g, "old_norway", 1, "by_land")
    g.op("Less", ["hour", g.weight("morning", np.array(6))], "is_early")
    g.op("GreaterOrEqual", ["hour", g.weight("evening", np.array(22))], "is_late")
    g.op("Or", ["is_early", "is_late"], "is_night")
    g.op("Where", ["is_norway", g.weight("a", np.float32(1)), g.weight("b", np.float32(2))], "by_norway")
    g.op("Where", ["is_night", "by_norway", g.weight("c", np.float32(3))], "night_row")
    _score(g, "night_row", 1, "by_hour")
    items = dict.fromkeys(("level", "item", "land"), "item")
    return _pair(g, Sides({**dict.fromkeys(("clicks", "length", "age", "hour"), "user"), **items}))


def routed() -> Pair:
    """An expert that is hardly ever picked, and numbers that nobody would draw by chance."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    g.input("x", TensorProto.FLOAT, ["N", 8])
    g.input("taste", TensorProto.FLOAT, ["N", 8])
    g.op("MatMul", ["taste", g.weight("gates", _random(21, 8, 6))], "gate")
    g.op("Add", ["gate", g.weight("gate_bias", np.float32([0, 0, 0, 0, 0, -9]))], "gated")
    g.weight("two", np.array([2]))
    g.nodes.append(helper.make_node("TopK", ["gated", "two"], ["weights", "picked"], name="top", axis=1))
    g.op("Mul", ["gated", g.weight("nothing", np.float32(0))], "none")
    g.op("ScatterElements", ["none", "picked", "weights"], "routes", axis=1)
    g.op("MatMul", ["x", g.weight("experts", _random(22, 8, 6))], "expert")
    g.op("Mul", ["expert", "routes"], "expert_row")
    _score(g, "expert_row", 6, "by_expert")
    for name in ("now", "seen", "shelf"):
        g.input(name, TensorProto.INT64, ["N", 1] if name != "shelf" else ["N"])
    g.op("Sub", ["now", "seen"], "ago")
    g.op("Cast", ["ago"], "ago_float", to=TensorProto.FLOAT)
    g.op("Div", ["ago_float", g.weight("hour", np.float32(3600))], "hours")
    g.op("Less", ["hours", g.weight("day", np.float32(24))], "is_fresh")
    g.op("Cast", ["is_fresh"], "fresh_row", to=TensorProto.FLOAT)
    _score(g, "fresh_row", 1, "by_age")
    g.op("Mul", ["hours", g.weight("slope", np.float32(0.1))], "hours_row")
    _score(g, "hours_row", 1, "by_hours")
    g.op("Add", ["shelf", g.weight("one", np.array(1))], "shelf_id")
    _row(g, "shelf", 60, "shelf_id")
    g.input("folder", TensorProto.INT64, ["N"])
    g.op("Abs", ["folder"], "folder_size")
    g.op("Mod", ["folder_size", g.weight("folders", np.array(30))], "folder_id")
    _row(g, "folder", 30, "folder_id")
    g.input("temper", TensorProto.FLOAT, ["N"])
    g.op("Mul", ["temper", g.weight("double", np.float32(2))], "temper_part")
    g.op("Cast", ["temper_part"], "temper_whole", to=TensorProto.INT64)
    g.op("Add", ["temper_whole", g.weight("middle", np.array(16))], "temper_place")
    g.op("Clip", ["temper_place", g.weight("least", np.array(0)), g.weight("most", np.array(31))], "temper_id")
    _row(g, "temper", 32, "temper_id")
    g.input("brand", TensorProto.INT64, ["N"])
    g.op("OneHot", ["brand", g.weight("brands", np.array(20)), g.weight("off_on", np.float32([0, 1]))], "brand_one")
    g.op("MatMul", ["brand_one", g.weight("brand_table", _random(23, 20, 4))], "brand_row")
    _score(g, "brand_row", 4, "by_brand")
    for name in ("gift", "wrap"):
        g.input(name, TensorProto.FLOAT, ["N", 1])
    g.op("Add", ["gift", "wrap"], "parcel")
    g.op("Mul", ["parcel", g.weight("a_half", np.float32(0.5))], "parcel_mean")
    g.op("Round", ["parcel_mean"], "parcel_row")
    _score(g, "parcel_row", 1, "by_parcel")
    users = dict.fromkeys(("taste", "now", "gift"), "user")
    items = ("level", "x", "seen", "shelf", "folder", "temper", "brand", "wrap")
    return _pair(g, Sides({**users, **dict.fromkeys(items, "item")}))


def digits() -> Pair:
    """Numbers of which parts are looked at: bits, and a quotient beside its remainder."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    for name in ("flags", "word"):
        g.input(name, TensorProto.INT64, ["N"])
    g.op("Cast", ["flags"], "flags_unsigned", to=TensorProto.UINT64)
    g.op("Unsqueeze", ["flags_unsigned", "axis1"], "flags_column")
    bits = g.weight("bits", np.arange(20, dtype=np.uint64)[None])
    g.op("BitShift", ["flags_column", bits], "flags_shifted", direction="RIGHT")
    g.op("BitwiseAnd", ["flags_shifted", g.weight("lowest", np.array(1, np.uint64))], "flag_bits")
    g.op("Cast", ["flag_bits"], "flags_row", to=TensorProto.FLOAT)
    _score(g, "flags_row", 20, "by_flags")
    g.weight("thousand", np.array(1000))
    g.op("Div", ["word", "thousand"], "prefix_id")
    _row(g, "prefix", 50, "prefix_id")
    g.op("Mod", ["word", "thousand"], "suffix_id")
    _row(g, "suffix", 1000, "suffix_id")
    return _pair(g, Sides({"level": "item", "flags": "user", "word": "item"}))


DECIDED: dict[str, Callable[[], Pair]] = {"halves": halves, "together": together, "routed": routed, "digits": digits}


def _up(name: str, given: str, step: float = 1.0) -> Fault:
    """Rounds halves up: what is rounded is brought to the next whole step before."""

    def fault(model: onnx.ModelProto) -> None:
        found = node(model, name)
        place = list(model.graph.node).index(found)
        found.input[:] = [f"{name}/floor" if t == given else t for t in found.input]
        for key, number in (("step", step), ("half", 0.5)):
            model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), f"{name}/{key}"))
        made = [
            helper.make_node("Div", [given, f"{name}/step"], [f"{name}/steps"]),
            helper.make_node("Add", [f"{name}/steps", f"{name}/half"], [f"{name}/more"]),
            helper.make_node("Floor", [f"{name}/more"], [f"{name}/whole"]),
            helper.make_node("Mul", [f"{name}/whole", f"{name}/step"], [f"{name}/floor"]),
        ]
        for each in reversed(made):
            model.graph.node.insert(place, each)

    return fault


def _below(name: str, given: str) -> Fault:
    """The largest whole number below, for a Floor."""

    def fault(model: onnx.ModelProto) -> None:
        found = node(model, name)
        place = list(model.graph.node).index(found)
        model.graph.initializer.append(numpy_helper.from_array(np.float32(1), f"{name}/one"))
        model.graph.node.insert(place, helper.make_node("Ceil", [given], [f"{name}/ceil"]))
        found.op_type = "Sub"
        found.input[:] = [f"{name}/ceil", f"{name}/one"]

    return fault


def _apart() -> Fault:
    """A difference of whole numbers as one of floats."""

    def fault(model: onnx.ModelProto) -> None:
        found = node(model, "ago")
        place = list(model.graph.node).index(found)
        made = [helper.make_node("Cast", [t], [f"{t}/float"], to=TensorProto.FLOAT) for t in found.input]
        found.input[:] = [f"{t}/float" for t in found.input]
        for each in reversed(made):
            model.graph.node.insert(place, each)

    return fault


def _floored(name: str, given: str) -> Fault:
    """Rounded down where it is cut off."""

    def fault(model: onnx.ModelProto) -> None:
        found = node(model, name)
        model.graph.node.insert(
            list(model.graph.node).index(found), helper.make_node("Floor", [given], [f"{name}/floor"])
        )
        found.input[0] = f"{name}/floor"

    return fault


def _compared(name: str, depth: int) -> Fault:
    """A comparison with 0, 1, 2, .. for a OneHot, which counts from the end too."""

    def fault(model: onnx.ModelProto) -> None:
        found = node(model, name)
        place = list(model.graph.node).index(found)
        model.graph.initializer.append(numpy_helper.from_array(np.arange(depth)[None], f"{name}/all"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([1]), f"{name}/axis"))
        made = [
            helper.make_node("Unsqueeze", [found.input[0], f"{name}/axis"], [f"{name}/column"]),
            helper.make_node("Equal", [f"{name}/column", f"{name}/all"], [f"{name}/equal"]),
            helper.make_node("Cast", [f"{name}/equal"], [found.output[0]], to=TensorProto.FLOAT),
        ]
        model.graph.node.remove(found)
        for each in reversed(made):
            model.graph.node.insert(place, each)

    return fault


DECIDED_MUTANTS: dict[str, tuple[str, Fault]] = {
    "halves rounded up, not to even": ("halves", _up("stars_row", "stars")),
    "halves of a multiple rounded up, not to even": ("halves", _up("price_row", "price_part")),
    "next whole number below, not this one": ("halves", _below("age_row", "age")),
    "halves of a code rounded up, not to even": ("halves", _up("rank_code", "rank", 0.5)),
    "last click counts from a length of 5": ("together", put("some", (), 4)),
    "last click counts from a length of 3": ("together", put("some", (), 2)),
    "one of two factors turns a year late": ("together", put("old", (), 66)),
    "one of two factors is another land": ("together", put("norway", (), 303)),
    "night begins an hour late": ("together", put("evening", (), 23)),
    "night ends an hour late": ("together", put("morning", (), 7)),
    "an expert that is hardly ever picked is wrong": ("routed", put("experts", (slice(None), 5), 1.0)),
    "a day of 25 hours": ("routed", put("day", (), 25)),
    "a difference of times as floats": ("routed", _apart()),
    "the row before the first id wrong": ("routed", put("shelf_table", 0, 9.0)),
    "a negative number not made positive": ("routed", kind("folder_size", "Identity")),
    "rounded down where it is cut off": ("routed", _floored("temper_whole", "temper_part")),
    "ids from the end are none": ("routed", _compared("brand_one", 20)),
    "another bit of twenty": ("digits", put("bits", (0, 19), 20)),
    "row of a quotient beside its remainder wrong": ("digits", put("prefix_table", 49, 9.0)),
    "halves of a sum rounded up, not to even": ("routed", _up("parcel_row", "parcel_mean")),
}
