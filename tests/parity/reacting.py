"""Graphs that react to what is fed in one way each: categories, trees, masks, missing values, scales, equality.

Every output is one idiom, so that a fault in one shows in no other. What is right is the source itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from mari_onnx.sides.resolve import Sides
from tests.parity.pairs import Graph, Pair, _random

ML = "ai.onnx.ml"
STEPS = 8
ROWS = 50


def _graph(opset: int = 19, ml: int = 3) -> Graph:
    g = Graph(opsets={"": opset, ML: ml})
    g.weight("axis1", np.array([1]))
    g.weight("axis2", np.array([2]))
    g.weight("last", np.array([-1]))
    return g


def _pair(g: Graph, sides: Sides) -> Pair:
    model = g.model()
    return Pair(model, model, sides)


def _score(g: Graph, tensor: str, width: int, name: str) -> None:
    """[N, width] to an output [N, 1] of its own."""
    g.op("MatMul", [tensor, g.weight(f"{name}_w", _random(len(name), width, 1) + np.float32(0.5))], f"{name}_raw")
    g.op("Add", [f"{name}_raw", "level"], name)
    g.output(name, ["N", 1])


def categories() -> Pair:
    """Strings and numbers that are looked up, told apart, normalized and compared with constants."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    g.input("city", TensorProto.STRING, ["N"])
    keys = ["rome", "oslo", "lima", "bern"]
    g.op("LabelEncoder", ["city"], "city_id", domain=ML, keys_strings=keys, values_int64s=[1, 2, 3, 4], default_int64=0)
    g.op("Gather", [g.weight("city_table", _random(1, 5, 4)), "city_id"], "city_row")
    _score(g, "city_row", 4, "by_city")
    g.input("device", TensorProto.STRING, ["N", 1])
    g.op("OneHotEncoder", ["device"], "device_hot", domain=ML, cats_strings=["ios", "android", "tv"], zeros=1)
    g.op("Squeeze", ["device_hot", "axis1"], "device_row")
    _score(g, "device_row", 3, "by_device")
    g.input("genre", TensorProto.STRING, ["N"])
    g.op("CategoryMapper", ["genre"], "genre_id", domain=ML, cats_strings=["jazz", "folk", "rock"],
         cats_int64s=[2, 1, 0], default_int64=3)  # fmt: skip
    g.op("Gather", [g.weight("genre_table", _random(2, 4, 4)), "genre_id"], "genre_row")
    _score(g, "genre_row", 4, "by_genre")
    g.input("kind", TensorProto.STRING, ["N", 1])
    g.op("Equal", ["kind", g.weight("kinds", np.array([["new", "used"]], object))], "is_kind")
    g.op("Cast", ["is_kind"], "kind_row", to=TensorProto.FLOAT)
    _score(g, "kind_row", 2, "by_kind")
    g.input("brand", TensorProto.INT64, ["N", 1])
    g.op("LabelEncoder", ["brand"], "brand_row", domain=ML, keys_int64s=[1001, 20077, 5, 300_000],
         values_floats=[0.3, -0.7, 0.9, 0.2], default_float=0.0)  # fmt: skip
    _score(g, "brand_row", 1, "by_brand")
    g.input("tier", TensorProto.FLOAT, ["N", 1])
    g.op("LabelEncoder", ["tier"], "tier_row", domain=ML, keys_floats=[0.5, 1.5, 120.0], values_floats=[0.4, -0.6, 0.8],
         default_float=-0.1)  # fmt: skip
    _score(g, "tier_row", 1, "by_tier")
    g.input("word", TensorProto.STRING, ["N"])
    g.op("StringNormalizer", ["word"], "lower", case_change_action="LOWER", locale="C")
    g.op(
        "LabelEncoder",
        ["lower"],
        "word_id",
        domain=ML,
        keys_strings=["sale", "gift"],
        values_int64s=[1, 2],
        default_int64=0,
    )
    g.op("Gather", [g.weight("word_table", _random(3, 3, 4)), "word_id"], "word_row")
    _score(g, "word_row", 4, "by_word")
    users = dict.fromkeys(("city", "device"), "user")
    items = dict.fromkeys(("level", "genre", "kind", "brand", "tier", "word"), "item")
    return _pair(g, Sides({**users, **items}))  # type: ignore[dict-item]


def _tree(splits: list[tuple[int, str, float, int]], leaves: list[float]) -> dict[str, object]:
    """A chain: each split's true branch is a leaf, its false branch the next split. (feature, mode, number, whether
    missing values go to the leaf)."""
    count = len(splits)
    nodes = 2 * count + 1
    first_leaf = count
    found: dict[str, list[object]] = {k: [] for k in ("featureids", "modes", "values", "truenodeids", "falsenodeids")}
    for k in range(nodes):
        inner = k < count
        found["featureids"].append(splits[k][0] if inner else 0)
        found["modes"].append(splits[k][1] if inner else "LEAF")
        found["values"].append(float(splits[k][2]) if inner else 0.0)
        found["truenodeids"].append(first_leaf + k if inner else 0)
        found["falsenodeids"].append((k + 1 if k + 1 < count else nodes - 1) if inner else 0)
    made: dict[str, object] = {f"nodes_{k}": v for k, v in found.items()}
    made["nodes_missing_value_tracks_true"] = [splits[k][3] if k < count else 0 for k in range(nodes)]
    made["nodes_hitrates"] = [1.0] * nodes
    made["nodes_nodeids"] = list(range(nodes))
    made["nodes_treeids"] = [0] * nodes
    ids = list(range(first_leaf, nodes))
    made |= {"target_nodeids": ids, "target_treeids": [0] * len(ids), "target_ids": [0] * len(ids)}
    made["target_weights"] = leaves
    made["n_targets"] = 1
    return made


def trees() -> Pair:
    """Trees over a Concat of both sides, over scaled and packed columns, over casts of whole numbers, with missing
    values."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    g.input("user", TensorProto.FLOAT, ["N", 3])
    g.input("item", TensorProto.FLOAT, ["N", 2])
    g.op("Concat", ["user", "item"], "both", axis=1)
    splits = [(0, "BRANCH_LEQ", 300.0, 0), (3, "BRANCH_LT", -40.0, 0), (4, "BRANCH_GT", 7.5, 0)]
    g.op("TreeEnsembleRegressor", ["both"], "plain_row", domain=ML, **_tree(splits, [0.1, 0.9, -0.4, 0.5]))
    _score(g, "plain_row", 1, "plain")
    g.op("Scaler", ["item"], "scaled", domain=ML, offset=[1000.0, 50.0], scale=[0.001, 0.1])
    splits = [(0, "BRANCH_GTE", 2.0, 0), (1, "BRANCH_LEQ", -3.0, 0)]
    g.op("TreeEnsembleRegressor", ["scaled"], "scaled_row", domain=ML, **_tree(splits, [0.7, -0.8, 0.2]))
    _score(g, "scaled_row", 1, "behind_scaler")
    g.input("X", TensorProto.FLOAT, ["N", 4])
    g.op("Gather", ["X", g.weight("order", np.array([3, 1]))], "turned", axis=1)
    splits = [(0, "BRANCH_LEQ", 77.0, 0), (1, "BRANCH_GT", 4000.0, 0)]
    g.op("TreeEnsembleRegressor", ["turned"], "packed_row", domain=ML, **_tree(splits, [0.3, -0.9, 0.6]))
    _score(g, "packed_row", 1, "packed")
    g.input("age", TensorProto.INT64, ["N", 1])
    g.op("Cast", ["age"], "age_float", to=TensorProto.FLOAT)
    splits = [(0, "BRANCH_LT", 18.0, 0), (0, "BRANCH_LT", 65.0, 0), (0, "BRANCH_EQ", 99.0, 0)]
    g.op("TreeEnsembleRegressor", ["age_float"], "age_row", domain=ML, **_tree(splits, [0.2, -0.3, 0.8, 0.5]))
    _score(g, "age_row", 1, "whole")
    g.input("income", TensorProto.FLOAT, ["N", 1])
    splits = [(0, "BRANCH_LEQ", 20.0, 1), (0, "BRANCH_LEQ", 60.0, 0)]
    g.op("TreeEnsembleRegressor", ["income"], "income_row", domain=ML, **_tree(splits, [0.9, -0.2, 0.4]))
    _score(g, "income_row", 1, "with_missing")
    sides = {"level": "item", "user": "user", "item": "item", "age": "user", "income": "item"}
    return _pair(g, Sides(sides, {"X": {"user": (0, 1), "item": (2, 3)}}))  # type: ignore[dict-item]


def _pooled(g: Graph, name: str, weights: str) -> None:
    g.op("Unsqueeze", [weights, "axis2"], f"{name}_col")
    g.op("Mul", [f"{name}_col", "keys"], f"{name}_weighted")
    g.op("ReduceSum", [f"{name}_weighted", "axis1"], f"{name}_pooled", keepdims=0)
    g.op("Mul", [f"{name}_pooled", "query"], f"{name}_met")
    _score(g, f"{name}_met", 4, name)


def masks() -> Pair:
    """A masked history, once for each way to mask it; no input is called a mask."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    g.input("hist", TensorProto.INT64, ["N", STEPS])
    g.input("item", TensorProto.INT64, ["N"])
    table = g.weight("table", _random(1, ROWS, 4))
    g.op("Gather", [table, "hist"], "keys")
    g.op("Gather", [table, "item"], "query")
    g.op("Unsqueeze", ["query", "axis1"], "query_row")
    g.op("Mul", ["keys", "query_row"], "products")
    g.op("ReduceSum", ["products", "axis2"], "scores", keepdims=0)
    one, low = g.weight("one", np.float32(1)), g.weight("low", np.float32(-1e9))
    g.weight("zero_f", np.float32(0))

    g.input("seen", TensorProto.FLOAT, ["N", STEPS])
    _pooled(g, "factor", "seen")

    g.op("Sub", [one, g.input("kept", TensorProto.FLOAT, ["N", STEPS])], "lost")
    g.op("Mul", ["lost", low], "lost_low")
    g.op("Add", ["scores", "lost_low"], "addend_masked")
    g.op("Softmax", ["addend_masked"], "addend_shares", axis=1)
    _pooled(g, "addend", "addend_shares")

    g.op("Cast", [g.input("tokens", TensorProto.INT32, ["N", STEPS])], "tokens_float", to=TensorProto.FLOAT)
    g.op("Sub", [one, "tokens_float"], "no_tokens")
    g.op("Mul", ["no_tokens", g.weight("bert", np.float32(-10_000))], "bert_low")
    g.op("Add", ["scores", "bert_low"], "bert_masked")
    g.op("Softmax", ["bert_masked"], "bert_shares", axis=1)
    _pooled(g, "as_bert", "bert_shares")

    g.op("Equal", [g.input("flags", TensorProto.INT64, ["N", STEPS]), g.weight("zero", np.array(0))], "is_padding")
    g.op("Where", ["is_padding", low, "scores"], "equal_masked")
    g.op("Softmax", ["equal_masked"], "equal_shares", axis=1)
    _pooled(g, "by_equal", "equal_shares")

    g.op("Greater", [g.input("level_of", TensorProto.FLOAT, ["N", STEPS]), g.weight("half", np.float32(0.5))], "is_on")
    g.op("Where", ["is_on", "scores", g.weight("minus_inf", np.float32(-1e4))], "greater_masked")
    g.op("Softmax", ["greater_masked"], "greater_shares", axis=1)
    _pooled(g, "by_greater", "greater_shares")

    g.op("Not", [g.input("gone", TensorProto.BOOL, ["N", STEPS])], "here")
    g.op("Cast", ["here"], "here_float", to=TensorProto.FLOAT)
    _pooled(g, "by_not", "here_float")

    g.op("Cast", [g.input("bits", TensorProto.UINT8, ["N", STEPS])], "bits_bool", to=TensorProto.BOOL)
    g.op("Where", ["bits_bool", "scores", g.weight("nothing", np.float32(0))], "bits_masked")
    _pooled(g, "by_cast", "bits_masked")

    g.op("Unsqueeze", [g.input("weights", TensorProto.FLOAT, ["N", STEPS]), "axis1"], "weights_row")
    g.op("MatMul", ["weights_row", "keys"], "summed_3d")
    g.op("Squeeze", ["summed_3d", "axis1"], "summed")
    g.op("ReduceSum", ["weights", "axis1"], "counted", keepdims=1)
    g.op("Max", ["counted", one], "count")
    g.op("Div", ["summed", "count"], "mean")
    g.op("Mul", ["mean", "query"], "mean_met")
    _score(g, "mean_met", 4, "by_product")

    g.op("Add", [g.input("alive", TensorProto.FLOAT, ["N", STEPS]), g.weight("tiny", np.float32(1e-9))], "alive_tiny")
    g.op("Log", ["alive_tiny"], "alive_log")
    g.op("Add", ["scores", "alive_log"], "log_masked")
    g.op("Softmax", ["log_masked"], "log_shares", axis=1)
    _pooled(g, "by_log", "log_shares")
    names = ("hist", "seen", "kept", "tokens", "flags", "level_of", "gone", "bits", "weights", "alive")
    return _pair(g, Sides({**dict.fromkeys(names, "user"), "item": "item", "level": "item"}))  # type: ignore[dict-item]


def missing() -> Pair:
    """NaN and infinity that are replaced, counted, imputed or followed by a tree."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    g.op("IsNaN", [g.input("a", TensorProto.FLOAT, ["N", 3])], "a_nan")
    g.op("Where", ["a_nan", g.weight("a_fill", np.float32([0.5, -1, 2])), "a"], "a_full")
    _score(g, "a_full", 3, "replaced")
    g.op("IsInf", [g.input("b", TensorProto.FLOAT, ["N", 2])], "b_inf")
    g.op("Where", ["b_inf", g.weight("b_fill", np.float32(3)), "b"], "b_full")
    _score(g, "b_full", 2, "without_infinity")
    g.op("Imputer", [g.input("c", TensorProto.FLOAT, ["N", 2])], "c_full", domain=ML, imputed_value_floats=[4.0, 5.0],
         replaced_value_float=float("nan"))  # fmt: skip
    _score(g, "c_full", 2, "imputed")
    g.op("Imputer", [g.input("d", TensorProto.FLOAT, ["N", 2])], "d_full", domain=ML, imputed_value_floats=[0.7, 0.2],
         replaced_value_float=-999.0)  # fmt: skip
    _score(g, "d_full", 2, "imputed_code")
    g.input("e", TensorProto.FLOAT, ["N", 2])
    g.op("Equal", ["e", "e"], "e_known")
    g.op("Where", ["e_known", "e", g.weight("e_fill", np.float32(-2))], "e_full")
    _score(g, "e_full", 2, "not_equal_to_itself")
    g.op(
        "Slice", [g.input("X", TensorProto.FLOAT, ["N", 4]), "axis1", g.weight("three", np.array([3])), "axis1"], "mid"
    )
    g.op("IsNaN", ["mid"], "mid_nan")
    g.op("Cast", ["mid_nan"], "mid_flags", to=TensorProto.FLOAT)
    _score(g, "mid_flags", 2, "flagged")
    g.op("IsInf", [g.input("f", TensorProto.FLOAT, ["N", 1])], "f_up", detect_negative=0)
    g.op("Where", ["f_up", g.weight("f_fill", np.float32(6)), "f"], "f_some")
    g.op("Max", ["f_some", g.weight("f_least", np.float32(-8))], "f_full")
    _score(g, "f_full", 1, "infinity_of_one_sign")
    sides = {"level": "item", "a": "item", "b": "user", "c": "item", "d": "user", "e": "item", "f": "user"}
    return _pair(g, Sides(sides, {"X": {"user": (0, 1), "item": (2, 3)}}))  # type: ignore[dict-item]


def scales() -> Pair:
    """Raw features of very different scales, each brought to order one in another way."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    g.input("a", TensorProto.FLOAT, ["N", 3])
    for key, value in (("s", [1, 1, 1]), ("b", [0, 0, 0]), ("m", [1e6, 2e6, 5]), ("v", [1e12, 4e10, 4])):
        g.weight(f"a_{key}", np.float32(value))
    g.op("BatchNormalization", ["a", "a_s", "a_b", "a_m", "a_v"], "a_norm", epsilon=1e-5)
    g.op("Relu", ["a_norm"], "a_row")
    _score(g, "a_row", 3, "by_statistics")
    g.op("Scaler", [g.input("b", TensorProto.FLOAT, ["N", 2])], "b_norm", domain=ML, offset=[5e5, -3e4],
         scale=[1e-5, 1e-3])  # fmt: skip
    g.op("Tanh", ["b_norm"], "b_row")
    _score(g, "b_row", 2, "by_scaler")
    g.op("Sub", [g.input("c", TensorProto.FLOAT, ["N", 2]), g.weight("c_mean", np.float32([7e4, 300]))], "c_moved")
    g.op("Div", ["c_moved", g.weight("c_scale", np.float32([2e4, 40]))], "c_norm")
    g.op("Relu", ["c_norm"], "c_row")
    _score(g, "c_row", 2, "by_mean_and_deviation")
    g.op("Add", [g.input("d", TensorProto.FLOAT, ["N", 2]), g.weight("one", np.float32(1))], "d_more")
    g.op("Log", ["d_more"], "d_log")
    g.op("Relu", ["d_log"], "d_row")
    _score(g, "d_row", 2, "by_logarithm")
    g.op("Cast", [g.input("e", TensorProto.INT64, ["N", 2])], "e_float", to=TensorProto.FLOAT)
    g.op("Mul", ["e_float", g.weight("e_scale", np.float32([1e-4, 1e-6]))], "e_norm")
    g.op("Tanh", ["e_norm"], "e_row")
    _score(g, "e_row", 2, "whole_numbers")
    g.op("Gather", [g.input("X", TensorProto.FLOAT, ["N", 4]), g.weight("at", np.array([1, 2]))], "picked", axis=1)
    g.op("Sub", ["picked", g.weight("x_mean", np.float32([4e6, -2e3]))], "picked_moved")
    g.op("Mul", ["picked_moved", g.weight("x_scale", np.float32([1e-6, 1e-2]))], "picked_norm")
    g.op("Sigmoid", ["picked_norm"], "x_row")
    _score(g, "x_row", 2, "packed")
    g.op("Log", [g.input("f", TensorProto.FLOAT, ["N", 1])], "f_log")
    for key, value in (("s", [1]), ("b", [0]), ("m", [9]), ("v", [4])):
        g.weight(f"f_{key}", np.float32(value))
    g.op("BatchNormalization", ["f_log", "f_s", "f_b", "f_m", "f_v"], "f_norm", epsilon=1e-5)
    g.op("Relu", ["f_norm"], "f_row")
    _score(g, "f_row", 1, "logarithm_and_statistics")
    sides = {"level": "item", "a": "item", "b": "user", "c": "user", "d": "item", "e": "item", "f": "item"}
    return _pair(g, Sides(sides, {"X": {"user": (0, 1), "item": (2, 3)}}))  # type: ignore[dict-item]


def equality() -> Pair:
    """Numbers and strings of the user that are compared with the item's."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])

    def scored(tensor: str, name: str) -> None:
        g.op("Cast", [tensor], f"{name}_row", to=TensorProto.FLOAT)
        _score(g, f"{name}_row", 1, name)

    g.op(
        "Equal", [g.input("likes", TensorProto.INT64, ["N", 1]), g.input("genre", TensorProto.INT64, ["N", 1])], "same"
    )
    scored("same", "same_number")
    genres = g.weight("genres", _random(1, 5000, 4))
    g.op("Gather", [genres, "genre"], "genre_3d")
    g.op("Gather", [genres, "likes"], "likes_3d")
    g.op("Mul", ["genre_3d", "likes_3d"], "genres_3d")
    g.op("Squeeze", ["genres_3d", "axis1"], "genres_met")
    _score(g, "genres_met", 4, "of_rows")
    g.op(
        "Equal", [g.input("home", TensorProto.STRING, ["N", 1]), g.input("place", TensorProto.STRING, ["N", 1])], "near"
    )
    scored("near", "same_string")
    g.input("hist", TensorProto.INT64, ["N", STEPS])
    g.op("Unsqueeze", [g.input("item", TensorProto.INT64, ["N"]), "axis1"], "item_col")
    g.op("Equal", ["hist", "item_col"], "hits")
    g.op("Cast", ["hits"], "hits_float", to=TensorProto.FLOAT)
    g.op("ReduceSum", ["hits_float", "axis1"], "hit_count", keepdims=1)
    _score(g, "hit_count", 1, "in_history")
    hist_table = g.weight("hist_table", _random(2, 3000, 4))
    g.op("Gather", [hist_table, "hist"], "hist_rows")
    g.op("ReduceSum", ["hist_rows", "axis1"], "hist_sum", keepdims=0)
    g.op("Gather", [hist_table, "item"], "item_row")
    g.op("Mul", ["hist_sum", "item_row"], "hist_met")
    _score(g, "hist_met", 4, "of_history")
    g.op("Sub", [g.input("budget", TensorProto.FLOAT, ["N", 1]), g.input("price", TensorProto.FLOAT, ["N", 1])], "left")
    g.op("Equal", ["left", g.weight("zero", np.float32(0))], "spent")
    scored("spent", "nothing_left")
    g.op("GreaterOrEqual", [g.input("age", TensorProto.INT64, ["N", 1]), g.input("least", TensorProto.INT64, ["N", 1])],
         "allowed")  # fmt: skip
    scored("allowed", "old_enough")
    for column, name in ((0, "x_user"), (3, "x_item")):
        at = g.weight(f"{name}_at", np.array([column]))
        g.op("Gather", ["X", at], name, axis=1)
    g.input("X", TensorProto.INT64, ["N", 4])
    g.op("Equal", ["x_user", "x_item"], "x_same")
    scored("x_same", "same_column")
    users = dict.fromkeys(("likes", "home", "hist", "budget", "age"), "user")
    items = dict.fromkeys(("level", "genre", "place", "item", "price", "least"), "item")
    return _pair(g, Sides({**users, **items}, {"X": {"user": (0, 1), "item": (2, 3)}}))  # type: ignore[dict-item]


REACTING: dict[str, Callable[[], Pair]] = {
    "categories": categories,
    "trees": trees,
    "masks": masks,
    "missing": missing,
    "scales": scales,
    "equality": equality,
}
