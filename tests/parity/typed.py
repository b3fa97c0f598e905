"""Pairs and mutants whose outputs are rounded, or are no plain tensors: sequences, maps and text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from mari_onnx.sides.resolve import Sides
from tests.parity.mutants import Fault, after, attribute, inputs, kind, node, put, weight
from tests.parity.pairs import Graph, Pair

SIDES = Sides({"user_x": "user", "item_x": "item"})
ML = "ai.onnx.ml"


def _hidden(g: Graph, rows: int | str, split: bool, width: int) -> None:
    """`h = Relu([user_x|item_x] W + b)` of 48 channels, as `Concat` and one product or as two products."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((48, width)) / 5).astype(np.float32)
    bias = g.weight("bias", rng.standard_normal(width).astype(np.float32))
    g.input("user_x", TensorProto.FLOAT, [rows, 32])
    g.input("item_x", TensorProto.FLOAT, ["N", 16])
    if split:
        g.op("Gemm", ["user_x", g.weight("w_user", w[:32]), bias], "user_part")
        g.op("Gemm", ["item_x", g.weight("w_item", w[32:]), "user_part"], "z")
    else:
        g.op("Concat", ["user_x", "item_x"], "both", axis=1)
        g.op("Gemm", ["both", g.weight("w", w), bias], "z")
    g.op("Relu", ["z"], "h")


def rounded() -> Pair:
    """Scores to four digits, as bytes, as bytes made floats again, embeddings in int8, and whole tenths."""

    def build(rows: int | str, split: bool) -> onnx.ModelProto:
        g = Graph()
        _hidden(g, rows, split, 24)
        rng = np.random.default_rng(1)
        g.op("MatMul", ["h", g.weight("head", (rng.standard_normal((24, 1)) / 3).astype(np.float32))], "logit")
        g.op("Sigmoid", ["logit"], "p")
        ten_thousand = g.weight("digits", np.float32(1e4))
        g.op("Mul", ["p", ten_thousand], "scaled")
        g.op("Round", ["scaled"], "whole")
        g.op("Div", ["whole", g.weight("digits_back", np.float32(1e4))], "score")
        g.op("QuantizeLinear", ["p", g.weight("step", np.float32(1 / 255)), g.weight("zero", np.uint8(0))], "byte")
        g.op("DequantizeLinear", ["byte", g.weight("step_back", np.float32(1 / 255)), "zero"], "float_again")
        g.op("Sigmoid", ["float_again"], "level")
        g.op("MatMul", ["h", g.weight("to_embedding", (rng.standard_normal((24, 8)) / 4).astype(np.float32))], "e")
        names = [g.weight("step_e", np.float32(0.02)), g.weight("zero_e", np.int8(3))]
        g.op("QuantizeLinear", ["e", *names], "embedding")
        g.op("Mul", ["logit", g.weight("ten", np.float32(10))], "tenths")
        g.op("Cast", [g.op("Floor", ["tenths"], "floor")], "bucket", to=TensorProto.INT64)
        g.output("score", ["N", 1])
        g.output("byte", ["N", 1], TensorProto.UINT8)
        g.output("level", ["N", 1])
        g.output("embedding", ["N", 8], TensorProto.INT8)
        g.output("bucket", ["N", 1], TensorProto.INT64)
        return g.model()

    return Pair(build("N", False), build(1, True), SIDES)


def kinds() -> Pair:
    """Maps by number and by name, sequences of equal and of unequal shapes, text, one number for all candidates."""

    def build(rows: int | str, split: bool) -> onnx.ModelProto:
        g = Graph()
        _hidden(g, rows, split, 6)
        g.op("Softmax", ["h"], "p", axis=1)
        g.op("ZipMap", ["p"], "by_number", domain=ML, classlabels_int64s=[0, 1, 2, 3, 4, 7])
        g.op("ZipMap", ["p"], "by_name", domain=ML, classlabels_strings=list("abcdef"))
        g.op("SplitToSequence", ["p", g.weight("halves", np.array([3, 3]))], "equal", axis=1)
        g.op("SplitToSequence", ["p", g.weight("unequal_sizes", np.array([1, 5]))], "unequal", axis=1)
        g.op("ArgMax", ["p"], "at", axis=1, keepdims=0)
        g.op("LabelEncoder", ["at"], "name", domain=ML, keys_int64s=list(range(6)), values_strings=list("uvwxyz"))
        g.op("ReduceMax", ["p"], "top", keepdims=0)
        for name, key in (("by_number", TensorProto.INT64), ("by_name", TensorProto.STRING)):
            of = onnx.TypeProto()
            of.sequence_type.elem_type.map_type.key_type = key
            of.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
            g.outputs.append(helper.make_value_info(name, of))
        sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
        g.outputs += [helper.make_value_info(name, sequence) for name in ("equal", "unequal")]
        g.output("name", ["N"], TensorProto.STRING)
        g.output("top", [])
        model = g.model()
        model.opset_import.append(helper.make_opsetid(ML, 2))
        return model

    return Pair(build("N", False), build(1, True), SIDES)


def where(name: str, side: str, bar: float, step: object, cast: int | None = None) -> Fault:
    """Adds `step` to a tensor where the first column of an input is above a bar; `cast` to the end of that type."""

    def fault(model: onnx.ModelProto) -> None:
        at = next(i for i, n in enumerate(model.graph.node) if name in n.output)
        maker = model.graph.node[at]
        maker.output[list(maker.output).index(name)] = f"{name}/right"
        dtype = np.asarray(step).dtype
        weights = {"from": np.array([0]), "to": np.array([1]), "axis": np.array([1]), "bar": np.float32(bar)}
        weights |= {"step": np.asarray(step), "none": np.zeros((), dtype)}
        for key, value in weights.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, f"{name}/{key}"))
        wide = helper.np_dtype_to_tensor_dtype(dtype)
        made = [
            helper.make_node("Slice", [side, *(f"{name}/{k}" for k in ("from", "to", "axis"))], [f"{name}/column"]),
            helper.make_node("Greater", [f"{name}/column", f"{name}/bar"], [f"{name}/above"]),
            helper.make_node("Where", [f"{name}/above", f"{name}/step", f"{name}/none"], [f"{name}/more"]),
            helper.make_node("Cast", [f"{name}/right"], [f"{name}/wide"], to=wide),
            helper.make_node("Add", [f"{name}/wide", f"{name}/more"], [f"{name}/sum"]),
            helper.make_node("Identity", [f"{name}/sum"], [name]),
        ]
        if cast is not None:
            ends = np.iinfo(helper.tensor_dtype_to_np_dtype(cast))
            for key, value in (("low", ends.min), ("high", ends.max)):
                model.graph.initializer.append(onnx.numpy_helper.from_array(dtype.type(value), f"{name}/{key}"))
            made[-1:] = [
                helper.make_node("Clip", [f"{name}/sum", f"{name}/low", f"{name}/high"], [f"{name}/clipped"]),
                helper.make_node("Cast", [f"{name}/clipped"], [name], to=cast),
            ]
        nodes = list(model.graph.node)
        nodes[at + 1 : at + 1] = made
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return fault


def half_to_even_of_more(model: onnx.ModelProto) -> None:
    """Rounded to five digits before it is rounded to four."""
    more = [("Mul", ["@", np.float32(10)], {}), ("Round", ["@"], {}), ("Div", ["@", np.float32(10)], {})]
    after("scaled", more)(model)


def _both(*faults: Fault) -> Callable[[onnx.ModelProto], None]:
    def fault(model: onnx.ModelProto) -> None:
        for each in faults:
            each(model)

    return fault


def reversed_pieces(model: onnx.ModelProto) -> None:
    """The pieces of a sequence in another order."""
    made = [
        helper.make_node("SequenceAt", ["equal/right", "equal/one"], ["equal/b"]),
        helper.make_node("SequenceAt", ["equal/right", "equal/zero"], ["equal/a"]),
        helper.make_node("SequenceConstruct", ["equal/b", "equal/a"], ["equal"]),
    ]
    for key, at in (("one", 1), ("zero", 0)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(at), f"equal/{key}"))
    node(model, "equal").output[0] = "equal/right"
    model.graph.node.extend(made)


def one_piece_less(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "unequal/one"))
    node(model, "unequal").output[0] = "unequal/right"
    model.graph.node.append(helper.make_node("SequenceErase", ["unequal/right", "unequal/one"], ["unequal"]))


TYPED_PAIRS = {"rounded": rounded, "kinds": kinds}

TYPED_MUTANTS: dict[str, tuple[str, Fault]] = {
    # quantization
    "a step of the quantization off by 1%": ("rounded", weight("step", lambda w: w * 1.01)),
    "a zero point off by one": ("rounded", weight("zero_e", lambda w: w + 1)),
    "steps of int8 off by 0.2%": ("rounded", weight("step_e", lambda w: w * 1.002)),
    "cut off where it should be rounded": ("rounded", kind("whole", "Floor")),
    "rounded up where it should be cut off": ("rounded", kind("floor", "Ceil")),
    "not rounded at all": ("rounded", kind("whole", "Identity")),
    "rounded to three digits": (
        "rounded",
        _both(weight("digits", lambda w: w / 10), weight("digits_back", lambda w: w / 10)),
    ),
    "rounded to five digits": (
        "rounded",
        _both(weight("digits", lambda w: w * 10), weight("digits_back", lambda w: w * 10)),
    ),
    "rounded twice": ("rounded", half_to_even_of_more),
    "a fifth of a step added before rounding": ("rounded", after("scaled", [("Add", ["@", np.float32(0.2)], {})])),
    "a tenth of a step taken off before int8": ("rounded", after("e", [("Sub", ["@", np.float32(0.002)], {})])),
    "one step off for one candidate in a hundred": ("rounded", where("whole", "item_x", 2.3, np.float32(1))),
    "two steps off for one candidate in two hundred": ("rounded", where("whole", "item_x", 2.6, np.float32(2))),
    "a byte one step off for one candidate in fifty": (
        "rounded",
        where("byte", "item_x", 2.0, np.int32(-1), TensorProto.UINT8),
    ),
    "a byte one step off for some users": ("rounded", where("byte", "user_x", 0.5, np.int32(1), TensorProto.UINT8)),
    "int8 two steps off for some users": (
        "rounded",
        where("embedding", "user_x", 0.5, np.int32(-2), TensorProto.INT8),
    ),
    "int8 that ends at 100": (
        "rounded",
        after("embedding", [("Clip", ["@", np.int8(-128), np.int8(100)], {})]),
    ),
    "bytes made floats with another step": ("rounded", weight("step_back", lambda w: w * 1.001)),
    "one channel of int8 wrong": ("rounded", put("to_embedding", (slice(None), 5), 0.05)),
    "weights of a rounded score in float16": (
        "rounded",
        weight("w_item", lambda w: w.astype(np.float16).astype(np.float32)),
    ),
    "whole tenths of another scale": ("rounded", weight("ten", lambda w: w * 1.01)),
    # sequences, maps, text, scalars
    "a key of the maps is another number": ("kinds", attribute("by_number", "classlabels_int64s", [0, 1, 2, 3, 4, 5])),
    "two keys of the maps exchanged": ("kinds", attribute("by_number", "classlabels_int64s", [1, 0, 2, 3, 4, 7])),
    "a name in the maps in capitals": ("kinds", attribute("by_name", "classlabels_strings", list("abcdeF"))),
    "two names in the maps exchanged": ("kinds", attribute("by_name", "classlabels_strings", list("bacdef"))),
    "maps of other numbers": ("kinds", inputs("by_name", "h")),
    "pieces of a sequence in another order": ("kinds", reversed_pieces),
    "pieces of a sequence of other sizes": ("kinds", weight("unequal_sizes", lambda w: w[::-1])),
    "a piece of a sequence missing": ("kinds", one_piece_less),
    "a sequence split elsewhere": ("kinds", weight("halves", lambda w: w + np.array([1, -1]))),
    "a name wrong for one class": ("kinds", attribute("name", "values_strings", list("uvwxya"))),
    "names of the smallest class": ("kinds", kind("at", "ArgMin")),
    "the mean for the largest": ("kinds", kind("top", "ReduceMean")),
}
