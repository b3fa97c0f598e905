"""A graph with look-ups whose rows and categories are calculated, from one input or from two."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from mari_onnx.sides.resolve import Sides
from tests.parity.hidden import _row
from tests.parity.mutants import Fault, put, weight
from tests.parity.pairs import Pair, _random
from tests.parity.reacting import ML, _graph, _pair, _score
from tests.parity.reacting_mutants import listed


def calculated() -> Pair:
    """Rows by a division, a shift, a rounding; by two ids in one number, by two axes, by a key of two numbers."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    for name in ("street", "spot", "device", "hour", "slot", "day"):
        g.input(name, TensorProto.INT64, ["N"])
    g.input("place", TensorProto.UINT64, ["N"])
    g.input("age", TensorProto.FLOAT, ["N"])
    g.op("Div", ["street", g.weight("tens", np.array(10))], "street_id")
    _row(g, "street", 100, "street_id")
    g.op("BitShift", ["place", g.weight("bits", np.array(4, np.uint64))], "place_shifted", direction="RIGHT")
    g.op("Cast", ["place_shifted"], "place_id", to=TensorProto.INT64)
    _row(g, "place", 100, "place_id")
    g.op("Div", ["age", g.weight("years", np.float32(2.5))], "age_part")
    g.op("Floor", ["age_part"], "age_floor")
    g.op("Clip", ["age_floor", g.weight("youngest", np.float32(0)), g.weight("oldest", np.float32(39))], "age_bound")
    g.op("Cast", ["age_bound"], "age_id", to=TensorProto.INT64)
    _row(g, "age", 40, "age_id")
    g.op("Mul", ["spot", g.weight("devices", np.array(30))], "spot_first")
    g.op("Add", ["spot_first", "device"], "both_id")
    _row(g, "both", 600, "both_id")
    for name in ("spot", "slot"):
        g.op("Unsqueeze", [name, "axis1"], f"{name}_column")
    g.op("Concat", ["spot_column", "slot_column"], "pair", axis=1)
    g.op("GatherND", [g.weight("pair_table", _random(4, 20, 25, 4)), "pair"], "pair_row")
    _score(g, "pair_row", 4, "by_pair")
    g.op("Mul", ["hour", g.weight("thousand", np.array(1000))], "hour_first")
    g.op("Add", ["hour_first", "day"], "hour_day")
    g.op("Unsqueeze", ["hour_day", "axis1"], "hour_day_column")
    g.op("LabelEncoder", ["hour_day_column"], "known", domain=ML, keys_int64s=[5077, 12034, 31002], default_float=0.0,
         values_floats=[1.0, 2.0, 3.0])  # fmt: skip
    _score(g, "known", 1, "by_known")
    users = dict.fromkeys(("spot", "hour"), "user")
    items = dict.fromkeys(("level", "street", "place", "device", "slot", "day", "age"), "item")
    return _pair(g, Sides({**users, **items}))


CALCULATED: dict[str, Callable[[], Pair]] = {"calculated": calculated}

CALCULATED_MUTANTS: dict[str, tuple[str, Fault]] = {
    "row of ids divided by ten wrong": ("calculated", put("street_table", 57, 9.0)),
    "last row of ids divided by ten wrong": ("calculated", put("street_table", 99, 9.0)),
    "row of shifted ids wrong": ("calculated", put("place_table", 50, 9.0)),
    "row of a rounded age wrong": ("calculated", put("age_table", 23, 9.0)),
    "row of two ids in one number wrong": ("calculated", put("both_table", 17 * 30 + 23, 9.0)),
    "row of two axes wrong": ("calculated", put("pair_table", (17, 23), 9.0)),
    "value of a key of two numbers wrong": ("calculated", listed("known", "values_floats", 1, 7.0)),
    "key of two numbers off by one": ("calculated", listed("known", "keys_int64s", 2, 31003)),
    "two ids in one number bounded": ("calculated", weight("devices", lambda v: v - 1)),
}
