"""Graphs whose faults show on few requests alone: of ids beyond some number, of strings put together, of large numbers.

Every output is one idiom, as in `reacting.py`. What is right is the source itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.sides.resolve import Sides
from tests.parity.mutants import Fault, after, attribute, inputs, kind, node, put, weight
from tests.parity.pairs import Graph, Pair, _random
from tests.parity.reacting import ML, _graph, _pair, _score
from tests.parity.reacting_mutants import listed


def _row(g: Graph, table: str, rows: int, ids: str) -> None:
    g.op("Gather", [g.weight(f"{table}_table", _random(len(table), rows, 4)), ids], f"{table}_row")
    _score(g, f"{table}_row", 4, f"by_{table}")


def parts_of_ids() -> Pair:
    """Ids of which the small ones share a row, that count in tens, or of which a remainder is taken."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    g.input("rare", TensorProto.INT64, ["N"])
    g.op("Less", ["rare", g.weight("least", np.array(5))], "is_rare")
    g.op("Where", ["is_rare", g.weight("other", np.array(99)), "rare"], "rare_id")
    _row(g, "rare", 100, "rare_id")
    g.input("word", TensorProto.INT64, ["N"])
    g.op("Mul", ["word", g.weight("prime", np.array(2654435761))], "mixed")
    g.op("Mod", ["mixed", g.weight("buckets", np.array(509))], "word_id")
    _row(g, "word", 509, "word_id")
    return _pair(g, Sides({"level": "item", "rare": "item", "word": "item"}))


def joined_texts() -> Pair:
    """Strings that are put together and then known, and strings that a pattern matches."""
    g = _graph(opset=20, ml=4)
    g.input("level", TensorProto.FLOAT, ["N", 1])
    for name in ("tier", "land", "tongue", "title", "month"):
        g.input(name, TensorProto.STRING if name != "month" else TensorProto.INT64, ["N", 1])
    g.op("StringConcat", ["tier", "land"], "tier_land")
    g.op("Equal", ["tier_land", g.weight("gold", np.array([["gold_no"]], object))], "is_gold")
    g.op("Cast", ["is_gold"], "gold_row", to=TensorProto.FLOAT)
    _score(g, "gold_row", 1, "by_tier")
    g.op("StringConcat", ["land", g.weight("dash", np.array("-", object))], "land_dash")
    g.op("StringConcat", ["land_dash", "tongue"], "pair")
    keys = [f"{land}-{tongue}" for land in ("no", "se", "dk", "fi") for tongue in ("nb", "sv", "da", "fi", "en", "de")]
    g.op("LabelEncoder", ["pair"], "pair_row", domain=ML, keys_strings=keys, default_float=-1.0,
         values_floats=[0.1 * k for k in range(len(keys))])  # fmt: skip
    _score(g, "pair_row", 1, "by_pair")
    g.op("RegexFullMatch", ["title"], "is_offer", pattern=r"(sale|offer) [0-9]+%.*")
    g.op("Cast", ["is_offer"], "offer_row", to=TensorProto.FLOAT)
    _score(g, "offer_row", 1, "by_title")
    g.op("Cast", ["month"], "month_text", to=TensorProto.STRING)
    g.op("StringConcat", [g.weight("m", np.array("m", object)), "month_text"], "month_name")
    g.op("Equal", ["month_name", g.weight("july", np.array([["m70"]], object))], "is_july")
    g.op("Cast", ["is_july"], "july_row", to=TensorProto.FLOAT)
    _score(g, "july_row", 1, "by_month")
    users = dict.fromkeys(("land", "month"), "user")
    return _pair(g, Sides({**users, **dict.fromkeys(("level", "tier", "tongue", "title"), "item")}))


def large_numbers() -> Pair:
    """Whole numbers that are no ids, and ids of which a hash is taken."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    g.input("since", TensorProto.INT64, ["N", 1])
    g.op("Cast", ["since"], "since_float", to=TensorProto.FLOAT)
    g.op("Mul", ["since_float", g.weight("small", np.float32(1e-12))], "since_row")
    _score(g, "since_row", 1, "by_since")
    g.input("word", TensorProto.INT64, ["N"])
    g.op("Mod", ["word", g.weight("buckets", np.array(101))], "word_id")
    _row(g, "word", 101, "word_id")
    return _pair(g, Sides({"level": "item", "since": "user", "word": "item"}))


def bodies() -> Pair:
    """Comparisons in a Scan, in a Loop, in a branch of an If and in a function, of what each of them is given."""
    text = """<ir_version: 9, opset_import: ["": 18, "own": 1]>
    graph (float[N,6] spent, float[N,6] paid, int64[N] kind, float[1] total, float[N] price, float[N] level)
      => (float[N] by_spent, float[N] by_paid, float[N] by_price, float[N] by_kind)
      <float zero = {0}, float b_large = {300}, float b_weight = {2}, float p_large = {7000}, float p_weight = {0.5},
       float t_large = {400}, float x_large = {90}, float x_weight = {3}, int64 six = {6}, bool true = {1},
       int64 k_one = {77}, float k_weight = {4}> {
      start = Mul(level, zero)
      seen, last = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
        body = scanned (float[N] before, float[N] now) => (float[N] next, float[N] out) {
          more = Greater(now, b_large) more_float = Cast <to = 1> (more) more_weight = Mul(more_float, b_weight)
          next = Add(before, more_weight) out = Identity(now) }> (start, spent)
      by_spent = Add(seen, level)
      paid_sum = Loop <body = looped (int64 i, bool go, float[N] sum) => (bool going, float[N] sum_next) {
          now = Gather <axis = 1> (paid, i) much = GreaterOrEqual(now, p_large) much_float = Cast <to = 1> (much)
          much_weight = Mul(much_float, p_weight) sum_next = Add(sum, much_weight) going = Identity(go) }>
        (six, true, start)
      by_paid = Add(paid_sum, level)
      is_rich = Greater(total, t_large)
      is_rich_0 = Squeeze(is_rich)
      by_price = If (is_rich_0) <
        then_branch = rich () => (float[N] of_rich) {
          dear = Greater(price, x_large) dear_float = Cast <to = 1> (dear) dear_weight = Mul(dear_float, x_weight)
          of_rich = Add(level, dear_weight) },
        else_branch = poor () => (float[N] of_poor) { of_poor = Identity(level) }>
      by_kind = own.known(kind, level, k_one, k_weight)
    }
    <domain: "own", opset_import: ["": 18]> known (ids, level, one, weight) => (out) {
      is_one = Equal(ids, one) one_float = Cast <to = 1> (is_one) extra = Mul(one_float, weight) out = Add(level, extra)
    }"""
    model = onnx.parser.parse_model(text)
    users = dict.fromkeys(("paid", "total"), "user")
    return Pair(model, model, Sides({**users, **dict.fromkeys(("spent", "kind", "price", "level"), "item")}))


def five() -> Pair:
    """Operators of ai.onnx.ml as they are since its version 5: keys as a tensor, a tree by numbers, with a set."""
    g = _graph(opset=20, ml=5)
    g.input("level", TensorProto.FLOAT, ["N", 1])
    g.input("brand", TensorProto.INT64, ["N", 1])
    g.op("LabelEncoder", ["brand"], "brand_row", domain=ML, default_tensor=numpy_helper.from_array(np.float32([-1])),
         keys_tensor=numpy_helper.from_array(np.array([70012, 90, 4000])),
         values_tensor=numpy_helper.from_array(np.float32([0.5, 1.5, 2.5])))  # fmt: skip
    _score(g, "brand_row", 1, "by_brand")
    g.input("features", TensorProto.FLOAT, ["N", 3])
    member = 6
    g.op("TreeEnsemble", ["features"], "tree_row", domain=ML, n_targets=1, aggregate_function=1, post_transform=0,
         tree_roots=[0], nodes_modes=numpy_helper.from_array(np.uint8([0, 4, member])), nodes_featureids=[0, 1, 2],
         nodes_splits=numpy_helper.from_array(np.float32([250.5, 12, 0])),
         nodes_truenodeids=[1, 0, 2], nodes_trueleafs=[0, 1, 1], nodes_falsenodeids=[2, 1, 3],
         nodes_falseleafs=[0, 1, 1], leaf_targetids=[0, 0, 0, 0],
         membership_values=numpy_helper.from_array(np.float32([33, 44, np.nan])),
         leaf_weights=numpy_helper.from_array(np.float32([0.1, 0.7, -0.6, 0.4])))  # fmt: skip
    _score(g, "tree_row", 1, "by_tree")
    return _pair(g, Sides(dict.fromkeys(("level", "brand", "features"), "item")))


def thresholds() -> Pair:
    """Comparisons of what is calculated from many inputs, of which nothing but the outcome comes out."""
    g = _graph()
    g.input("u", TensorProto.FLOAT, ["N", 8])
    g.input("x", TensorProto.FLOAT, ["N", 4])
    g.op("Concat", ["u", "x"], "all", axis=1)
    g.op("MatMul", ["all", g.weight("w", _random(3, 12, 6))], "h")
    g.op("Greater", ["h", g.weight("rare", np.float32(40))], "is_rare")
    g.output("is_rare", ["N", 6], TensorProto.BOOL)
    g.op("Less", ["h", g.weight("edges", np.float32([-1, -0.3, 0.2, 0, 0.7, 1.5]))], "below")
    g.output("below", ["N", 6], TensorProto.BOOL)
    g.op("MatMul", ["u", g.weight("v", _random(4, 8, 1))], "of_user")
    g.op("GreaterOrEqual", ["of_user", g.weight("most", np.float32(2.5))], "is_most")
    g.output("is_most", ["N", 1], TensorProto.BOOL)
    return _pair(g, Sides({"u": "user", "x": "item"}))


def added_mask() -> Pair:
    """A mask that is added to scores as it is fed: 0, or far below."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    g.input("keys", TensorProto.FLOAT, ["N", 6, 4])
    g.input("low", TensorProto.FLOAT, ["N", 6])
    g.op("ReduceSum", ["keys", "axis2"], "scores", keepdims=0)
    g.op("Add", ["scores", "low"], "masked")
    g.op("Softmax", ["masked"], "weights", axis=-1)
    g.op("Unsqueeze", ["weights", "axis2"], "weights_3d")
    g.op("Mul", ["keys", "weights_3d"], "weighted")
    g.op("ReduceSum", ["weighted", "axis1"], "pooled", keepdims=0)
    _score(g, "pooled", 4, "by_history")
    return _pair(g, Sides({"level": "item", "keys": "user", "low": "user"}))


def ties() -> Pair:
    """Counts that are compared, the place of the largest of several, and codes that end."""
    g = _graph()
    g.input("level", TensorProto.FLOAT, ["N", 1])
    g.input("seen", TensorProto.BOOL, ["N", 20])
    g.op("Cast", ["seen"], "seen_float", to=TensorProto.FLOAT)
    g.op("ReduceSum", ["seen_float", "axis1"], "seen_count")
    g.op("Greater", ["seen_count", g.weight("much", np.float32(18))], "is_much")
    g.op("Cast", ["is_much"], "much_row", to=TensorProto.FLOAT)
    _score(g, "much_row", 1, "by_count")
    g.input("x", TensorProto.FLOAT, ["N", 6])
    g.op("Relu", ["x"], "on")
    g.op("ArgMax", ["on"], "largest", axis=1, keepdims=0)
    g.output("largest", ["N"], TensorProto.INT64)
    g.op("QuantizeLinear", ["x", g.weight("step", np.float32(0.5)), g.weight("zero", np.int8(0))], "codes")
    g.op("DequantizeLinear", ["codes", "step", "zero"], "rounded")
    g.output("rounded", ["N", 6])
    return _pair(g, Sides({"level": "item", "seen": "user", "x": "item"}))


HIDDEN: dict[str, Callable[[], Pair]] = {
    "parts_of_ids": parts_of_ids,
    "joined_texts": joined_texts,
    "large_numbers": large_numbers,
    "bodies": bodies,
    "five": five,
    "thresholds": thresholds,
    "added_mask": added_mask,
    "ties": ties,
}


def _through(name: str, given: str, to: int) -> Fault:
    """An input of a node passes through another type."""

    def fault(model: onnx.ModelProto) -> None:
        found = node(model, name)
        place = list(model.graph.node).index(found)
        made = [
            helper.make_node("Cast", [given], [f"{name}/low"], to=to),
            helper.make_node("Cast", [f"{name}/low"], [f"{name}/back"], to=TensorProto.INT64),
        ]
        found.input[:] = [f"{name}/back" if t == given else t for t in found.input]
        for each in reversed(made):
            model.graph.node.insert(place, each)

    return fault


def _before(name: str, given: str, op_type: str, number: np.float32) -> Fault:
    """An input of a node is combined with a number."""

    def fault(model: onnx.ModelProto) -> None:
        found = node(model, name)
        place = list(model.graph.node).index(found)
        found.input[:] = [f"{name}/changed" if t == given else t for t in found.input]
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(number), f"{name}/number"))
        model.graph.node.insert(place, helper.make_node(op_type, [given, f"{name}/number"], [f"{name}/changed"]))

    return fault


def _tensor(name: str, key: str, at: int, value: float) -> Fault:
    """Overwrites one number of an attribute that is a tensor."""

    def fault(model: onnx.ModelProto) -> None:
        mine = next(a for a in node(model, name).attribute if a.name == key)
        array = numpy_helper.to_array(mine.t).copy()
        array[at] = value
        mine.t.CopyFrom(numpy_helper.from_array(array))

    return fault


HIDDEN_MUTANTS: dict[str, tuple[str, Fault]] = {
    "row of one id where small ids share a row": ("parts_of_ids", put("rare_table", 50, 9.0)),
    "row that small ids share wrong": ("parts_of_ids", put("rare_table", 99, 9.0)),
    "one id more shares the row of small ids": ("parts_of_ids", weight("least", lambda v: v + 1)),
    "row of one remainder wrong": ("parts_of_ids", put("word_table", 77, 9.0)),
    "one more string than was put together": ("joined_texts", put("gold", (0, 0), "gold_dk")),
    "weight of strings put together wrong": ("joined_texts", put("by_tier_w", 0, 9.0)),
    "value of one pair of strings wrong": ("joined_texts", listed("pair_row", "values_floats", 17, 7.0)),
    "a pair of strings in the other order": ("joined_texts", inputs("pair", "tongue", "land_dash")),
    "weight of a matched pattern wrong": ("joined_texts", put("by_title_w", 0, 9.0)),
    "a pattern that lacks a branch": ("joined_texts", attribute("is_offer", "pattern", r"(sale) [0-9]+%.*")),
    "a number in a string compared with another": ("joined_texts", put("july", (0, 0), "m71")),
    "large whole numbers cut to 32 bits": ("large_numbers", _through("since_float", "since", TensorProto.INT32)),
    "large whole numbers bounded": (
        "large_numbers", after("since_float", [("Min", ["@", np.float32(1e12)], {})])),
    "ids in float32 before their hash": ("large_numbers", _through("word_id", "word", TensorProto.FLOAT)),
    "threshold in a Scan wrong": ("bodies", put("b_large", (), 310)),
    "weight in a Scan wrong": ("bodies", put("b_weight", (), 3)),
    "threshold in a Loop wrong": ("bodies", put("p_large", (), 7001)),
    "weight in a Loop wrong": ("bodies", put("p_weight", (), 3)),
    "threshold in a branch wrong": ("bodies", put("x_large", (), 91)),
    "weight in a branch wrong": ("bodies", put("x_weight", (), 2)),
    "number in a function wrong": ("bodies", put("k_one", (), 78)),
    "weight in a function wrong": ("bodies", put("k_weight", (), 2)),
    "value of a key in a tensor wrong": ("five", _tensor("brand_row", "values_tensor", 0, 3.0)),
    "a key in a tensor off by one": ("five", _tensor("brand_row", "keys_tensor", 2, 4001)),
    "leaf of a tree by numbers wrong": ("five", _tensor("tree_row", "leaf_weights", 0, 3.0)),
    "split of a tree by numbers wrong": ("five", _tensor("tree_row", "nodes_splits", 0, 251.5)),
    "one number of a set at a split wrong": ("five", _tensor("tree_row", "membership_values", 1, 45)),
    "threshold of what is calculated wrong": ("thresholds", put("rare", (), 50)),
    "threshold of what is calculated off by a little": ("thresholds", put("rare", (), 41)),
    "one threshold of several off by a little": ("thresholds", put("edges", 5, 1.53)),
    "threshold of what is calculated of a user off by a little": ("thresholds", put("most", (), 2.55)),
    "mask that is added stops at -6": ("added_mask", _before("masked", "low", "Max", np.float32(-6))),
    "mask that is added taken for a condition": (
        "added_mask", _before("masked", "low", "Min", np.float32(0))),
    "mask that is added is infinite and gets bounded": (
        "added_mask", _before("masked", "low", "Mul", np.float32(0.001))),
    "more than a count turned into at least": ("ties", kind("is_much", "GreaterOrEqual")),
    "the last of equal largest ones": ("ties", attribute("largest", "select_last_index", 1)),
    "codes end too early": ("ties", after("rounded", [("Min", ["@", np.float32(60)], {})])),
    "ids cut to 32 bits before their hash": ("large_numbers", _through("word_id", "word", TensorProto.INT32)),
}  # fmt: skip
