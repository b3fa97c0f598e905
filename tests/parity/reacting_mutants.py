"""Single faults in graphs that react to what is fed: a wrong category, leaf, mask, fill value, scale or comparison."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from tests.parity.mutants import Fault, after, attribute, inputs, kind, node, put, weight
from tests.parity.reacting import _tree


def listed(name: str, key: str, at: int, value: object) -> Fault:
    """Overwrites one element of an attribute that is a list."""

    def fault(model: onnx.ModelProto) -> None:
        found = node(model, name)
        mine = next(a for a in found.attribute if a.name == key)
        values = list(helper.get_attribute_value(mine))
        values[at] = value
        found.attribute.remove(mine)
        found.attribute.append(helper.make_attribute(key, values))

    return fault


def exchanged(*names: str) -> Fault:
    """The rows of a weight one further."""

    def change(array: np.ndarray) -> np.ndarray:
        return np.roll(array, 1, axis=0)

    def fault(model: onnx.ModelProto) -> None:
        for name in names:
            weight(name, change)(model)

    return fault


def scorer(name: str) -> Fault:
    """Scores that a softmax of a masked history is taken of are twice as large, for one output."""
    return after(f"{name}_masked", [("Mul", ["@", np.float32(1.5)], {})])


def _turned(given: str, output: str) -> Fault:
    """Two columns of an input exchanged before a node."""

    def fault(model: onnx.ModelProto) -> None:
        found = node(model, output)
        width = next(i for i in model.graph.input if i.name == given).type.tensor_type.shape.dim[1].dim_value
        order = [1, 0, *range(2, width)]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(order), f"{given}_order"))
        place = list(model.graph.node).index(found)
        made = helper.make_node("Gather", [given, f"{given}_order"], [f"{given}_turned"], axis=1)
        found.input[:] = [f"{given}_turned" if t == given else t for t in found.input]
        model.graph.node.insert(place, made)

    return fault


_CHAIN = [(0, "BRANCH_LEQ", 300.0, 0), (3, "BRANCH_LT", -40.0, 0), (4, "BRANCH_GT", 7.5, 0)]


def _modes(at: int, mode: str) -> Fault:
    splits = list(_CHAIN)
    splits[at] = (splits[at][0], mode, *splits[at][2:])
    return attribute("plain_row", "nodes_modes", _tree(splits, [0.1, 0.9, -0.4, 0.5])["nodes_modes"])


REACTING_MUTANTS: dict[str, tuple[str, Fault]] = {
    # categories
    "row of one known string wrong": ("categories", put("city_table", 3, 0.0)),
    "row of the last known string wrong": ("categories", put("city_table", 4, 0.3)),
    "row of unknown strings wrong": ("categories", put("city_table", 0, 0.0)),
    "two known strings exchanged": ("categories", listed("city_id", "keys_strings", 0, "oslo!")),
    "one-hot of strings in another order": (
        "categories", attribute("device_hot", "cats_strings", ["android", "ios", "tv"])),
    "a string missing in a one-hot": ("categories", listed("device_hot", "cats_strings", 2, "radio")),
    "weight of one device wrong": ("categories", put("by_device_w", 1, 5.0)),
    "mapped category wrong": ("categories", attribute("genre_id", "cats_int64s", [1, 2, 0])),
    "default of a mapper wrong": ("categories", attribute("genre_id", "default_int64", 0)),
    "row of a mapped category wrong": ("categories", put("genre_table", 1, 0.0)),
    "string compared with another": ("categories", put("kinds", (0, 1), "usual")),
    "weight of an equal string wrong": ("categories", put("by_kind_w", 0, 9.0)),
    "value of a large key wrong": ("categories", listed("brand_row", "values_floats", 3, 0.7)),
    "a key of whole numbers off by one": ("categories", listed("brand_row", "keys_int64s", 1, 20078)),
    "value of a float key wrong": ("categories", listed("tier_row", "values_floats", 2, 0.1)),
    "a float key off by a little": ("categories", listed("tier_row", "keys_floats", 1, 1.5001)),
    "case of strings not folded": ("categories", attribute("lower", "case_change_action", "NONE")),
    "row of a normalized word wrong": ("categories", put("word_table", 2, 0.0)),
    # trees
    "leaf beyond a large threshold wrong": ("trees", listed("plain_row", "target_weights", 1, 5.0)),
    "leaf of an item's split wrong": ("trees", listed("plain_row", "target_weights", 2, 0.4)),
    "last leaf of a chain wrong": ("trees", listed("plain_row", "target_weights", 3, 5.0)),
    "threshold of a split off by a little": ("trees", listed("plain_row", "nodes_values", 0, 300.2)),
    "split itself on the wrong side": ("trees", _modes(0, "BRANCH_LT")),
    "a split below instead of at most": ("trees", _modes(1, "BRANCH_LEQ")),
    "split by another column": ("trees", listed("plain_row", "nodes_featureids", 1, 4)),
    "offset before a tree wrong": ("trees", listed("scaled", "offset", 0, 1100.0)),
    "leaf behind a Scaler wrong": ("trees", listed("scaled_row", "target_weights", 0, 0.1)),
    "threshold behind a Scaler wrong": ("trees", listed("scaled_row", "nodes_values", 1, -3.2)),
    "packed column of a tree wrong": ("trees", put("order", 0, 2)),
    "leaf of a packed column wrong": ("trees", listed("packed_row", "target_weights", 1, 0.9)),
    "split of whole numbers off by one": ("trees", listed("age_row", "nodes_values", 0, 19.0)),
    "leaf of one whole number wrong": ("trees", listed("age_row", "target_weights", 2, 0.5)),
    "missing values go the other way": ("trees", listed("income_row", "nodes_missing_value_tracks_true", 0, 0)),
    "missing values go along at the next split too": (
        "trees", attribute("income_row", "nodes_missing_value_tracks_true", [0, 1, 0, 0, 0])),
    # masks
    "mask as a factor not applied": ("masks", inputs("factor_weighted", "keys", "keys")),
    "mask as a factor of another history": ("masks", inputs("factor_col", "weights", "axis2")),
    "scorer behind a mask as an addend wrong": ("masks", scorer("addend")),
    "mask as an addend turned around": ("masks", inputs("lost_low", "kept", "low")),
    "mask as an addend left out": ("masks", inputs("addend_masked", "scores", "scores")),
    "scorer behind an integer mask wrong": ("masks", scorer("bert")),
    "integer mask left out": ("masks", inputs("bert_masked", "scores", "zero_f")),
    "scorer behind equality with 0 wrong": ("masks", scorer("equal")),
    "branches of an equality with 0 exchanged": ("masks", inputs("equal_masked", "is_padding", "scores", "low")),
    "scorer behind a threshold wrong": ("masks", scorer("greater")),
    "threshold of a float mask wrong": ("masks", weight("half", lambda h: h + np.float32(0.002))),
    "mask value of a float mask too near": ("masks", weight("minus_inf", lambda v: np.float32(-1))),
    "Not of a mask left out": ("masks", kind("here", "Identity")),
    "scorer behind a cast wrong": ("masks", scorer("bits")),
    "cast to booleans of something else": ("masks", inputs("bits_masked", "bits_bool", "scores", "one")),
    "divided by the length, not by the valid": (
        "masks", after("counted", [("Mul", ["@", np.float32(0)], {}), ("Add", ["@", np.float32(8)], {})])),
    "mask in a product left out": (
        "masks", after("weights_row", [("Mul", ["@", np.float32(0)], {}), ("Add", ["@", np.float32(1)], {})])),
    "a weight counted as present or absent": (
        "masks", after("weights_row", [("Sign", ["@"], {}), ("Abs", ["@"], {})])),
    "scorer behind a logarithm of a mask wrong": ("masks", scorer("log")),
    "logarithm of a mask left out": ("masks", inputs("log_masked", "scores", "zero_f")),
    "one entry of a masked history wrong": (
        "masks", after("factor_col", [("Mul", ["@", np.float32([[[n != 5] for n in range(8)]])], {})])),
    # missing values
    "NaN not replaced": ("missing", inputs("a_full", "a_nan", "a", "a")),
    "NaN replaced by another number": ("missing", put("a_fill", 1, 0.0)),
    "infinity not replaced": ("missing", inputs("b_full", "b_inf", "b", "b")),
    "negative infinity not replaced": ("missing", attribute("b_inf", "detect_negative", 0)),
    "imputed number wrong": ("missing", listed("c_full", "imputed_value_floats", 1, 5.5)),
    "NaN not imputed": ("missing", attribute("c_full", "replaced_value_float", -1.0)),
    "imputed number of a code wrong": ("missing", listed("d_full", "imputed_value_floats", 0, 0.1)),
    "another code imputed": ("missing", attribute("d_full", "replaced_value_float", -998.0)),
    "NaN by x == x not replaced": ("missing", inputs("e_full", "e_known", "e", "e")),
    "flags of NaN exchanged": ("missing", after("mid_flags", [("Gather", ["@", np.array([1, 0])], {"axis": 1})])),
    "weight of a flag of NaN wrong": ("missing", put("flagged_w", 1, 4.0)),
    "infinity of the other sign replaced": ("missing", attribute("f_up", "detect_positive", 0)),
    "number for infinity wrong": ("missing", weight("f_fill", lambda v: v + 1)),
    # scales
    "raw columns exchanged before their statistics": ("scales", _turned("a", "a_norm")),
    "one mean of raw columns wrong": ("scales", put("a_m", 1, 2.1e6)),
    "one variance of raw columns wrong": ("scales", put("a_v", 0, 1.1e12)),
    "raw columns exchanged before a Scaler": ("scales", _turned("b", "b_norm")),
    "offset of a Scaler wrong": ("scales", listed("b_norm", "offset", 0, 5.2e5)),
    "raw columns exchanged before mean and deviation": ("scales", _turned("c", "c_moved")),
    "deviation wrong": ("scales", put("c_scale", 1, 41.0)),
    "large counts bounded": ("scales", after("d_more", [("Min", ["@", np.float32(900)], {})])),
    "another constant in a logarithm": ("scales", weight("one", lambda v: np.float32(1.01))),
    "raw whole numbers bounded": ("scales", after("e_float", [("Min", ["@", np.float32(3000)], {})])),
    "scale of whole numbers wrong": ("scales", put("e_scale", 1, 1.1e-6)),
    "a packed raw column taken for its neighbour": ("scales", put("at", 0, 0)),
    "mean of a packed raw column wrong": ("scales", put("x_mean", 1, -1.9e3)),
    "mean behind a logarithm wrong": ("scales", put("f_m", 0, 9.1)),
    "bounded before a logarithm": ("scales", after("f_log", [("Min", ["@", np.float32(8.0)], {})])),
    # equality
    "equality of two ids never seen": ("equality", after("same_number_row", [("Mul", ["@", np.float32(0)], {})])),
    "two ids equal that are next to each other": ("equality", kind("same", "GreaterOrEqual")),
    "equality of strings never seen": ("equality", after("same_string_row", [("Mul", ["@", np.float32(0)], {})])),
    "the item in the history counted once": ("equality", after("hit_count", [("Min", ["@", np.float32(1)], {})])),
    "the item in the history not looked for": ("equality", put("in_history_w", 0, 0.0)),
    "the last of the history not looked at": (
        "equality", after("hits_float", [("Mul", ["@", np.float32([1, 1, 1, 1, 1, 1, 1, 0])], {})])),
    "an exact difference of 0 not seen": ("equality", weight("zero", lambda v: np.float32(1e30))),
    "at least turned into more than": ("equality", kind("allowed", "Greater")),
    "equality of other packed columns": ("equality", put("x_item_at", 0, 2)),
    "weight of equal packed columns wrong": ("equality", put("same_column_w", 0, 3.0)),
}  # fmt: skip
