"""Single faults put into right optimized models: what `check` has to find.

`MUTANTS` maps a name to the pair it is made from and the fault, a function that changes the
optimized model in place. docs/parity-mutants.md lists them; a test keeps the list there in step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Fault = Callable[[onnx.ModelProto], None]


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    """Changes a copy of one weight's numbers."""

    def fault(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        before = numpy_helper.to_array(tensor)
        after = np.asarray(change(before.copy())).astype(before.dtype)
        tensor.CopyFrom(numpy_helper.from_array(after, name))

    return fault


def put(name: str, at: Any, value: Any) -> Fault:
    """Overwrites some numbers of a weight."""

    def change(array: np.ndarray) -> np.ndarray:
        array[at] = value
        return array

    return weight(name, change)


def attribute(name: str, key: str, value: object) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        found = node(model, name)
        kept = [a for a in found.attribute if a.name != key]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(key, value)])

    return fault


def inputs(name: str, *names: str) -> Fault:
    """Other inputs for a node."""

    def fault(model: onnx.ModelProto) -> None:
        found = node(model, name)
        del found.input[:]
        found.input.extend(names)

    return fault


def kind(name: str, op_type: str) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        node(model, name).op_type = op_type

    return fault


def after(name: str, steps: Sequence[tuple[str, Sequence[object], dict[str, object]]]) -> Fault:
    """Puts nodes behind one: `@` is the value before a step; arrays become weights."""

    def fault(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        place = next(i for i, n in enumerate(nodes) if n.name == name)
        value = f"{name}/0"
        nodes[place].output[0] = value
        made = []
        for index, (op_type, given, attributes) in enumerate(steps):
            names = []
            for position, each in enumerate(given):
                if isinstance(each, str):
                    names.append(value if each == "@" else each)
                    continue
                names.append(f"{name}/w{index}_{position}")
                model.graph.initializer.append(numpy_helper.from_array(np.asarray(each), names[-1]))
            value = name if index == len(steps) - 1 else f"{name}/{index + 1}"
            made.append(
                helper.make_node(op_type, names, [value], name=f"{name}/{index}", **attributes)
            )
        nodes[place + 1 : place + 1] = made
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return fault


def only_where(
    name: str, condition: Sequence[tuple[str, Sequence[object], dict[str, object]]]
) -> Fault:
    """Adds 1 to a tensor where a condition on something else holds; it is computed from `@`'s
    own steps, the last of which writes a boolean."""

    def fault(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        place = next(i for i, n in enumerate(nodes) if n.name == name)
        nodes[place].output[0] = f"{name}/right"
        value, made = f"{name}/right", []
        for index, (op_type, given, attributes) in enumerate(condition):
            names = []
            for position, each in enumerate(given):
                if isinstance(each, str):
                    names.append({"@": value, "right": f"{name}/right"}.get(each, each))
                    continue
                names.append(f"{name}/c{index}_{position}")
                model.graph.initializer.append(numpy_helper.from_array(np.asarray(each), names[-1]))
            value = f"{name}/if{index}"
            made.append(helper.make_node(op_type, names, [value], **attributes))
        made.append(helper.make_node("Cast", [value], [f"{name}/extra"], to=TensorProto.FLOAT))
        made.append(helper.make_node("Add", [f"{name}/right", f"{name}/extra"], [name]))
        nodes[place + 1 : place + 1] = made
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return fault


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "liked"
    node(model, "like").output[0] = "liked"


def drop_output(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def extra_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N", 16]))


def exchange_outputs(model: onnx.ModelProto) -> None:
    node(model, "like").output[0], node(model, "love").output[0] = "love", "like"


def reorder_outputs(model: onnx.ModelProto) -> None:
    first, second = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend([second, first])


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "uid"
    node(model, "u").input[1] = "uid"


def output_in_double(model: onnx.ModelProto) -> None:
    after("like", [("Cast", ["@"], {"to": TensorProto.DOUBLE})])(model)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def output_without_its_last_axis(model: onnx.ModelProto) -> None:
    after("like", [("Squeeze", ["@", np.array([1])], {})])(model)
    del model.graph.output[0].type.tensor_type.shape.dim[1]


def fixed_batch(model: onnx.ModelProto) -> None:
    """A traced batch of 64 left in a Reshape."""
    after("like", [("Reshape", ["@", np.array([64, 1])], {})])(model)


def _swapped(array: np.ndarray) -> np.ndarray:
    array[[0, 1]] = array[[1, 0]]
    return array


def _n_is(comparison: str, n: int) -> list[tuple[str, Sequence[object], dict[str, object]]]:
    return [
        ("Shape", ["right"], {"start": 0, "end": 1}),
        (comparison, ["@", np.array([n])], {}),
    ]


def _first_row(*shape: int) -> list[tuple[str, Sequence[object], dict[str, object]]]:
    """All requests get the first one's row."""
    return [("Slice", ["@", np.array([0]), np.array([1]), np.array([0])], {})]


# Neighbours in the history are the same valid id.
_REPEATED: list[tuple[str, Sequence[object], dict[str, object]]] = [
    ("Slice", ["clicks", np.array([1]), np.array([20]), np.array([1])], {}),
    ("Slice", ["clicks", np.array([0]), np.array([19]), np.array([1])], {}),
    ("Equal", ["p/if0", "@"], {}),
    ("Slice", ["seen", np.array([1]), np.array([20]), np.array([1])], {}),
    ("And", ["p/if2", "@"], {}),
    ("Cast", ["@"], {"to": TensorProto.FLOAT}),
    ("ReduceMax", ["@"], {"axes": [1]}),
    ("Cast", ["@"], {"to": TensorProto.BOOL}),
]
# One valid entry, and it is not the first.
_LAST_ALONE: list[tuple[str, Sequence[object], dict[str, object]]] = [
    ("Equal", ["count", np.float32(1)], {}),
    ("Slice", ["padded", np.array([0]), np.array([1]), np.array([1])], {}),
    ("And", ["p/if0", "@"], {}),
]


MUTANTS: dict[str, tuple[str, Fault]] = {
    # weights
    "two rows of the user's weight swapped": ("coarse", weight("w_user", _swapped)),
    "two rows of the item's weight swapped": ("coarse", weight("w_item", _swapped)),
    "one user embedding row zeroed": ("coarse", put("user_table", 33, 0.0)),
    "one item embedding row zeroed": ("coarse", put("item_table", 299, 0.0)),
    "all embedding rows but the first zeroed": ("coarse", put("item_table", slice(1, None), 0.0)),
    "two user embedding rows exchanged": ("coarse", weight("user_table", _swapped)),
    "bias dropped": ("coarse", weight("bias", np.zeros_like)),
    "bias added twice": ("coarse", weight("bias", lambda b: 2 * b)),
    "bias wrong in one channel by 1e-3": (
        "coarse",
        weight("bias", lambda b: b + 1e-3 * (b == b[3])),
    ),
    "weights off by 1e-4 relative": (
        "coarse",
        weight("w_item", lambda w: w * np.float32(1 + 1e-4)),
    ),
    "user's weights off by 1e-4 relative": (
        "coarse",
        weight("w_user", lambda w: w * np.float32(1 + 1e-4)),
    ),
    "weights rounded to float16": (
        "coarse",
        weight("w_item", lambda w: w.astype(np.float16).astype(np.float32)),
    ),
    "weights rounded to bfloat16": (
        "coarse",
        weight("w_user", lambda w: (w.view(np.uint32) & 0xFFFF0000).view(np.float32)),
    ),
    "one weight's sign flipped": ("coarse", put("w_like", 5, 0.25)),
    "one weight of the second output wrong": (
        "coarse",
        weight("w_love", lambda w: w + (w == w[2])),
    ),
    "running variance ignored": ("coarse", put("norm_v", slice(None), 1.0)),
    "one channel's running mean wrong": ("coarse", put("norm_m", 7, 0.0)),
    # structure
    "wrong epsilon in BatchNormalization": ("coarse", attribute("n", "epsilon", 1e-5)),
    "wrong epsilon in LayerNormalization": ("history", attribute("norm", "epsilon", 1e-5)),
    "activation dropped": ("coarse", kind("r", "Identity")),
    "leaky activation for a plain one": ("coarse", kind("r", "LeakyRelu")),
    "user part not added": ("coarse", inputs("h", "x_all", "w_item")),
    "user part scaled": ("coarse", attribute("h", "beta", 0.999)),
    "parts of a Concat in another order": ("coarse", inputs("x_all", "item_dense", "x")),
    "second task reads the first's weight": ("coarse", inputs("love_logit", "n", "w_like")),
    "lookup in the wrong table": ("coarse", inputs("x", "user_table", "item_id")),
    "softmax over candidates, not over the history": ("history", attribute("weights", "axis", 0)),
    "LogSoftmax for Softmax": ("large_ids", kind("share", "LogSoftmax")),
    "padding mask ignored": ("history", inputs("masked", "every", "scores", "low")),
    "branches of the padding mask exchanged": (
        "history",
        inputs("masked", "hist_mask", "low", "scores"),
    ),
    "mask value too near to zero": ("history", weight("low", lambda v: np.float32(-1.0))),
    "history reversed under its mask": (
        "history",
        after("keys", [("Gather", ["@", np.arange(5, -1, -1)], {"axis": 1})]),
    ),
    "residual dropped": ("history", inputs("sum", "pooled", "pooled")),
    "axis of a reduction off by one": ("large_ids", weight("axes", lambda a: a - 1)),
    "id offset of the third field off by one": ("packed", put("offsets", 2, 99)),
    "wrong column sliced from a packed input": ("packed", put("ids_at", 1, 3)),
    "wrong dense column of a packed input": ("packed", put("dense_at", 0, 0)),
    # broadcasts and requests
    "first candidate's row used for all": (
        "coarse",
        after("x", [*_first_row(), ("Expand", ["@", "x_shape"], {})]),
    ),
    "user row 0 used for all of several requests": ("grid", after("user_part", _first_row())),
    "candidates of the first request used for all": ("grid", after("item_part", _first_row())),
    "user part dropped in the grid": ("grid", inputs("h", "item_part", "item_part")),
    "stale broadcast: one candidate's score for all": (
        "packed",
        after("x", [*_first_row(), ("Expand", ["@", "x_shape"], {})]),
    ),
    "batch of the trace left in a Reshape": ("coarse", fixed_batch),
    # names, types, shapes
    "an output missing": ("coarse", drop_output),
    "an output too many": ("coarse", extra_output),
    "an output renamed": ("coarse", rename_output),
    "two outputs exchanged": ("coarse", exchange_outputs),
    "outputs in another order": ("coarse", reorder_outputs),
    "an input renamed": ("coarse", rename_input),
    "an output in float64": ("coarse", output_in_double),
    "an output without its last axis": ("coarse", output_without_its_last_axis),
    # only somewhere
    "wrong at N=1 only": ("coarse", only_where("like_logit", _n_is("Equal", 1))),
    "wrong at N>64 only": ("coarse", only_where("like_logit", _n_is("Greater", 64))),
    "wrong in the second output only": ("coarse", only_where("love_logit", _n_is("Greater", 0))),
    "wrong for item ids above 10,000": ("large_ids", put("item_table", slice(10_001, None), 0.5)),
    "wrong for user ids above 10,000": ("large_ids", put("user_table", slice(10_001, None), 0.5)),
    "ids cut to 14 bits": (
        "large_ids",
        after("item_row", [("Mod", ["@", np.array(2**14)], {})]),
    ),
    "Mod dropped: ids beyond the table": ("large_ids", inputs("u", "user_table", "user_id")),
    "wrong in the last candidate only": (
        "coarse",
        only_where(
            "like_logit",
            [
                ("Shape", ["right"], {"start": 0, "end": 1}),
                ("Squeeze", ["@"], {}),
                ("Range", [np.array(0), "@", np.array(1)], {}),
                ("Sub", ["like_logit/if1", np.array(1)], {}),
                ("Equal", ["like_logit/if2", "@"], {}),
                ("Unsqueeze", ["@", np.array([1])], {}),
            ],
        ),
    ),
    # users at the edge
    "wrong for a history of padding alone": ("bag", only_where("p", [("Equal", ["count", np.float32(0)], {})])),
    "wrong for a history of one entry": ("bag", weight("least", lambda v: np.float32(2))),
    "wrong where the last entry alone is valid": ("bag", only_where("p", _LAST_ALONE)),
    "wrong where a history repeats an id": ("bag", only_where("p", _REPEATED)),
    "a repeated id counted once": ("bag", after("times", [("Min", ["@", np.float32(1)], {})])),
    "the target not looked for in the history": ("bag", weight("bonus", np.zeros_like)),
    "wrong where the mask is false throughout": (
        "history",
        only_where(
            "score",
            [
                ("Cast", ["hist_mask"], {"to": TensorProto.FLOAT}),
                ("ReduceMax", ["@"], {"axes": [1]}),
                ("Equal", ["@", np.float32(0)], {}),
            ],
        ),
    ),
    "wrong for a length of 0": ("lengths", only_where("score", [("Equal", ["length_col", np.array(0)], {})])),
    "wrong for a length of 1": ("lengths", only_where("score", [("Equal", ["length_col", np.array(1)], {})])),
    # numbers that the graph tells apart
    "one of three codes wrong": ("codes", weight("scene_302_gain", lambda g: 2 * g)),
    "one of sixteen domains wrong": ("codes", put("domain_weight", 12, 3.0)),
    "a large code of the items wrong": ("codes", weight("style_7001_gain", lambda g: 2 * g)),
    "threshold of a whole number off by one": ("codes", weight("adult", lambda a: a + 1)),
    "threshold itself on the wrong side": ("codes", kind("old", "Greater")),
    "threshold of a float off by a little": ("codes", weight("limit", lambda v: v * np.float32(1.0005))),
    "bound of a Clip off by a little": ("codes", weight("most", lambda v: v * np.float32(1.001))),
    "a number that is divided compared with the next": ("codes", weight("noon", lambda h: h + 1)),
    "wrong for lengths above 12, counted down": ("counted_down", put("w_clicks", slice(0, 8), 0.9)),
    "wrong for lengths above 12, counted down over a shape": ("counted_down", put("w_views", slice(0, 8), 0.9)),
    "a length that counts one too many": ("counted_down", kind("clicks_seen", "LessOrEqual")),
    "wrong for a length of 13 alone": (
        "counted_down",
        only_where("h", [("Equal", ["click_col", np.array(13)], {})]),
    ),
    "small column off beside a large one": ("bag", weight("w_tasks", lambda w: w * np.float32([1, 1.0005]))),
    "small column shifted beside a large one": (
        "bag",
        after("p", [("Add", ["@", np.array([[0, 2e-4]], np.float32)], {})]),
    ),
    # numbers
    "float16 overflow": ("half", weight("w_item", lambda w: w * np.float16(3e4))),
    "NaN for large scores": (
        "coarse",
        after("like_logit", [("Sqrt", ["@"], {}), ("Mul", ["@", "@"], {})]),
    ),
    "infinity where the source is finite": (
        "history",
        after("masked", [("Exp", ["@"], {}), ("Log", ["@"], {})]),
    ),
    "float16 in between": (
        "coarse",
        after(
            "h",
            [
                ("Cast", ["@"], {"to": TensorProto.FLOAT16}),
                ("Cast", ["@"], {"to": TensorProto.FLOAT}),
            ],
        ),
    ),
    "one part left in lower precision (half)": (
        "half",
        weight("w_user", lambda w: (np.round(w * 32) / 32).astype(np.float16)),
    ),
    "scores shifted by a constant": (
        "history",
        after("score", [("Add", ["@", np.float32(1e-4)], {})]),
    ),
    "scores scaled": ("history", after("score", [("Mul", ["@", np.float32(1.0001)], {})])),
}


def mutate(model: onnx.ModelProto, fault: Fault) -> onnx.ModelProto:
    """A copy with the fault; helper tensors that faults refer to are there."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    fault(copy)
    used = {t for n in copy.graph.node for t in n.input}
    extra = []
    if "every" in used:
        copy.graph.initializer.append(numpy_helper.from_array(np.ones((1, 6), bool), "every"))
    if "x_shape" in used:
        extra.append(helper.make_node("Shape", ["x/0"], ["x_shape"]))
    nodes = list(copy.graph.node)
    place = next((i for i, n in enumerate(nodes) if "x/0" in n.output), -1) + 1 if extra else 0
    nodes[place:place] = extra
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
