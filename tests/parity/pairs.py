"""Right pairs of models, built by hand: a source and what a right optimizer makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.sides.resolve import Sides

OPSET = 17
USERS, ITEMS, DIM = 50, 300, 8
MANY = 20_000


@dataclass
class Pair:
    source: onnx.ModelProto
    optimized: onnx.ModelProto
    sides: Sides


@dataclass
class Graph:
    """Collects nodes and weights; every node is named after its first output."""

    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=lambda: {"": OPSET})

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def weight(self, name: str, value: np.ndarray) -> str:
        self.weights[name] = np.asarray(value)
        return name

    def op(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def model(self) -> onnx.ModelProto:
        tensors = [numpy_helper.from_array(v, k) for k, v in self.weights.items()]
        graph = helper.make_graph(self.nodes, "graph", self.inputs, self.outputs, tensors)
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def _random(seed: int, *shape: int, dtype: type = np.float32) -> np.ndarray:
    scale = 1 / np.sqrt(shape[0]) if len(shape) == 2 and shape[0] < 100 else 1.0
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def coarse() -> Pair:
    """Two ids and dense features of both sides, a normalized hidden layer, two outputs."""

    def build(rows: int | str, split: bool) -> onnx.ModelProto:
        g = Graph()
        g.input("user_id", TensorProto.INT64, [rows])
        g.input("user_dense", TensorProto.FLOAT, [rows, 3])
        g.input("item_id", TensorProto.INT64, ["N"])
        g.input("item_dense", TensorProto.FLOAT, ["N", 2])
        g.op("Gather", [g.weight("user_table", _random(1, USERS, DIM)), "user_id"], "u")
        g.op("Gather", [g.weight("item_table", _random(2, ITEMS, DIM)), "item_id"], "x")
        w, bias = _random(3, 21, 16), g.weight("bias", _random(4, 16))
        # Fragmented in the source: user id, item id, user dense, item dense.
        user_rows, item_rows = [*range(8), *range(16, 19)], [*range(8, 16), 19, 20]
        if split:
            g.op("Concat", ["u", "user_dense"], "u_all", axis=1)
            g.op("Concat", ["x", "item_dense"], "x_all", axis=1)
            g.op("Gemm", ["u_all", g.weight("w_user", w[user_rows]), bias], "user_part")
            g.op("Gemm", ["x_all", g.weight("w_item", w[item_rows]), "user_part"], "h")
        else:
            g.op("Concat", ["u", "x", "user_dense", "item_dense"], "all", axis=1)
            g.op("Gemm", ["all", g.weight("w", w), bias], "h")
        g.op("Relu", ["h"], "r")
        norm = [_random(6, 16), _random(7, 16), _random(8, 16), np.abs(_random(9, 16)) + 0.5]
        names = [g.weight(f"norm_{k}", v) for k, v in zip("sbmv", norm, strict=True)]
        g.op("BatchNormalization", ["r", *names], "n", epsilon=1e-3)
        for task, seed in (("like", 10), ("love", 11)):
            g.weight(f"w_{task}", _random(seed, 16, 1))
            g.op("MatMul", ["n", f"w_{task}"], f"{task}_logit")
            g.op("Sigmoid", [f"{task}_logit"], task)
            g.output(task, ["N", 1])
        return g.model()

    sides = {"user_id": "user", "user_dense": "user", "item_id": "item", "item_dense": "item"}
    return Pair(build("N", False), build(1, True), Sides(sides))


def history() -> Pair:
    """Attention of the candidate over a masked history, then LayerNormalization and a product."""

    def build(rows: int | str, split: bool) -> onnx.ModelProto:
        g = Graph()
        g.input("hist", TensorProto.INT64, [rows, 6])
        g.input("hist_mask", TensorProto.BOOL, [rows, 6])
        g.input("item_id", TensorProto.INT64, ["N"])
        table = g.weight("table", _random(1, ITEMS, DIM))
        g.op("Gather", [table, "hist"], "keys")  # [rows, 6, D]
        g.op("Gather", [table, "item_id"], "x")
        last = g.weight("last", np.array([2]))
        one = g.weight("one", np.array([1]))
        low = g.weight("low", np.float32(-1e4))
        if split:
            g.op("Squeeze", ["keys", g.weight("zero", np.array([0]))], "keys_2d")
            g.op("Transpose", ["keys_2d"], "keys_t", perm=[1, 0])
            g.op("MatMul", ["x", "keys_t"], "scores")  # [N, 6]
            g.op("Where", ["hist_mask", "scores", low], "masked")
            g.op("Softmax", ["masked"], "weights", axis=-1)
            g.op("MatMul", ["weights", "keys_2d"], "pooled")
        else:
            g.op("Unsqueeze", ["x", last], "x_col")
            g.op("MatMul", ["keys", "x_col"], "scores_3d")
            g.op("Squeeze", ["scores_3d", last], "scores")
            g.op("Where", ["hist_mask", "scores", low], "masked")
            g.op("Softmax", ["masked"], "weights", axis=-1)
            g.op("Unsqueeze", ["weights", one], "weights_row")
            g.op("MatMul", ["weights_row", "keys"], "pooled_3d")
            g.op("Squeeze", ["pooled_3d", one], "pooled")
        g.op("Add", ["pooled", "x"], "sum")
        g.weight("scale", _random(2, DIM))
        g.weight("shift", _random(3, DIM))
        g.op("LayerNormalization", ["sum", "scale", "shift"], "norm", axis=-1, epsilon=1e-3)
        g.op("MatMul", ["norm", g.weight("w", _random(4, DIM, 1))], "score")
        g.output("score", ["N", 1])
        return g.model()

    sides = {"hist": "user", "hist_mask": "user", "item_id": "item"}
    return Pair(build("N", False), build(1, True), Sides(sides))


def packed() -> Pair:
    """One input X[N, 6]: two user ids and one item id as floats, and a dense column of each."""

    def build(split: bool) -> onnx.ModelProto:
        g = Graph()
        g.input("X", TensorProto.FLOAT, ["N", 6])
        offsets = g.weight("offsets", np.array([0, 40, 100]))
        g.op("Gather", ["X", g.weight("ids_at", np.array([0, 2, 4]))], "ids_float", axis=1)
        g.op("Cast", ["ids_float"], "ids_int", to=TensorProto.INT64)
        g.op("Add", ["ids_int", offsets], "ids")
        table, w = g.weight("table", _random(1, 150, 4)), _random(2, 15, 8)
        g.op("Gather", ["X", g.weight("dense_at", np.array([1, 3, 5]))], "dense", axis=1)
        flat = g.weight("flat", np.array([-1, 12]))
        if split:
            first = g.weight("first", np.array([0, 1]))
            begin, two = g.weight("begin", np.array([0, 0])), g.weight("two", np.array([1, 2]))
            g.op("Slice", ["ids", begin, two, first], "user_ids")
            g.op("Gather", ["ids", g.weight("third", np.array([2]))], "item_ids", axis=1)
            g.op("Gather", [table, "user_ids"], "u3")
            g.op("Reshape", ["u3", g.weight("eight", np.array([-1, 8]))], "u")
            g.op("Gather", [table, "item_ids"], "x3")
            g.op("Reshape", ["x3", g.weight("four", np.array([-1, 4]))], "x")
            g.op("Concat", ["x", "dense"], "rest", axis=1)
            g.op("MatMul", ["u", g.weight("w_user", w[:8])], "user_part")
            g.op("Gemm", ["rest", g.weight("w_item", w[8:]), "user_part"], "h")
        else:
            g.op("Gather", [table, "ids"], "e3")
            g.op("Reshape", ["e3", flat], "e")
            g.op("Concat", ["e", "dense"], "all", axis=1)
            g.op("MatMul", ["all", g.weight("w", w)], "h")
        g.op("Tanh", ["h"], "t")
        g.op("ReduceSum", ["t", g.weight("axes", np.array([1]))], "score", keepdims=0)
        g.output("score", ["N"])
        return g.model()

    sides = Sides({}, {"X": {"user": (0, 1, 2), "item": (3, 4, 5)}})
    return Pair(build(False), build(True), sides)


def large_ids() -> Pair:
    """Tables of 20,000 rows, ids beyond them brought back by Mod, a softmax over candidates."""

    def build(rows: int | str) -> onnx.ModelProto:
        g = Graph()
        g.input("user_id", TensorProto.INT64, [rows])
        g.input("item_id", TensorProto.INT32, ["N"])
        g.op("Mod", ["user_id", g.weight("many", np.array(MANY))], "user_row")
        g.op("Cast", ["item_id"], "item_row", to=TensorProto.INT64)
        g.op("Gather", [g.weight("user_table", _random(1, MANY, 4)), "user_row"], "u")
        g.op("Gather", [g.weight("item_table", _random(2, MANY, 4)), "item_row"], "x")
        g.op("Mul", ["u", "x"], "ux")
        g.op("ReduceSum", ["ux", g.weight("axes", np.array([1]))], "logit", keepdims=0)
        g.op("Softmax", ["logit"], "share", axis=0)
        g.output("logit", ["N"])
        g.output("share", ["N"])
        return g.model()

    return Pair(build("N"), build(1), Sides({"user_id": "user", "item_id": "item"}))


def half() -> Pair:
    """float16 throughout."""

    def build(rows: int | str, split: bool) -> onnx.ModelProto:
        g = Graph()
        g.input("user", TensorProto.FLOAT16, [rows, 8])
        g.input("item", TensorProto.FLOAT16, ["N", 4])
        w = _random(1, 12, 16, dtype=np.float16)
        if split:
            g.op("MatMul", ["user", g.weight("w_user", w[:8])], "user_part")
            g.op("MatMul", ["item", g.weight("w_item", w[8:])], "item_part")
            g.op("Add", ["item_part", "user_part"], "h")
        else:
            g.op("Concat", ["user", "item"], "all", axis=1)
            g.op("MatMul", ["all", g.weight("w", w)], "h")
        g.op("Relu", ["h"], "r")
        g.op("MatMul", ["r", g.weight("w2", _random(2, 16, 1, dtype=np.float16))], "score")
        g.output("score", ["N", 1], TensorProto.FLOAT16)
        return g.model()

    return Pair(build("N", False), build(1, True), Sides({"user": "user", "item": "item"}))


def grid() -> Pair:
    """R requests of N candidates, the user part expanded in the graph; nothing is tagged."""

    def build(split: bool) -> onnx.ModelProto:
        g = Graph()
        g.input("user", TensorProto.FLOAT, ["R", 5])
        g.input("item", TensorProto.FLOAT, ["R", "N", 3])
        one = g.weight("one", np.array([1]))
        w = _random(1, 8, 6)
        if split:
            g.op("MatMul", ["user", g.weight("w_user", w[:5])], "up")
            g.op("Unsqueeze", ["up", one], "user_part")
            g.op("MatMul", ["item", g.weight("w_item", w[5:])], "item_part")
            g.op("Add", ["item_part", "user_part"], "h")
        else:
            g.op("Unsqueeze", ["user", one], "user_3d")
            g.op("Shape", ["item"], "shape")
            at = g.weight("at", np.array([1]))
            g.op("Gather", ["shape", at], "n")
            g.op("Concat", [one, "n", one], "target", axis=0)
            g.op("Expand", ["user_3d", "target"], "user_all")
            g.op("Concat", ["user_all", "item"], "all", axis=2)
            g.op("MatMul", ["all", g.weight("w", w)], "h")
        g.op("Relu", ["h"], "r")
        g.op("MatMul", ["r", g.weight("w2", _random(2, 6, 1))], "score")
        g.output("score", ["R", "N", 1])
        return g.model()

    return Pair(build(False), build(True), Sides())


def bag() -> Pair:
    """The mean of a bag of ids that is masked by comparing them with the padding id, how often the target is in it,
    and an output whose two columns are 1e4 apart."""
    padding, places = ITEMS - 1, 20

    def build(rows: int | str, split: bool) -> onnx.ModelProto:
        g = Graph()
        g.input("clicks", TensorProto.INT64, [rows, places])
        g.input("item_id", TensorProto.INT64, ["N"])
        table = g.weight("table", _random(1, ITEMS, DIM))
        last, one = g.weight("last", np.array([2])), g.weight("one", np.array([1]))
        g.op("Gather", [table, "item_id"], "x")
        g.op("Gather", [table, "clicks"], "rows")
        g.op("Equal", ["clicks", g.weight("padding", np.array(padding))], "padded")
        g.op("Not", ["padded"], "seen")
        g.op("Cast", ["seen"], "valid", to=TensorProto.FLOAT)
        g.op("Unsqueeze", ["valid", last], "valid_col")
        g.op("Mul", ["rows", "valid_col"], "kept")
        g.op("ReduceSum", ["kept", one], "sum", keepdims=0)
        g.op("ReduceSum", ["valid", one], "count", keepdims=1)
        g.op("Max", ["count", g.weight("least", np.float32(1))], "divisor")
        g.op("Div", ["sum", "divisor"], "mean")
        g.op("Unsqueeze", ["item_id", one], "item_col")
        g.op("Equal", ["clicks", "item_col"], "same")
        g.op("Cast", ["same"], "hits", to=TensorProto.FLOAT)
        g.op("ReduceSum", ["hits", one], "times", keepdims=1)
        w = _random(2, 2 * DIM, 6)
        if split:
            g.op("MatMul", ["mean", g.weight("w_user", w[:DIM])], "user_part")
            g.op("Gemm", ["x", g.weight("w_item", w[DIM:]), "user_part"], "h")
        else:
            g.op("Expand", ["mean", g.op("Shape", ["x"], "x_shape")], "mean_all")
            g.op("Concat", ["mean_all", "x"], "all", axis=1)
            g.op("MatMul", ["all", g.weight("w", w)], "h")
        g.op("Relu", ["h"], "r")
        # Seconds watched, and a score.
        g.op("MatMul", ["r", g.weight("w_tasks", _random(3, 6, 2) * np.array([1e4, 1], np.float32))], "p")
        g.op("Mul", ["times", g.weight("bonus", np.array([[1e3, 0.1]], np.float32))], "extra")
        g.op("Add", ["p", "extra"], "tasks")
        g.output("tasks", ["N", 2])
        return g.model()

    return Pair(build("N", False), build(1, True), Sides({"clicks": "user", "item_id": "item"}))


def lengths() -> Pair:
    """The mean of a history of 40 whose length is an input."""
    places = 40

    def build(rows: int | str, split: bool) -> onnx.ModelProto:
        g = Graph()
        g.input("seen", TensorProto.FLOAT, [rows, places, 4])
        g.input("length", TensorProto.INT64, [rows])
        g.input("item", TensorProto.FLOAT, ["N", 4])
        one = g.weight("one", np.array([1]))
        g.op("Unsqueeze", ["length", one], "length_col")
        g.op("Less", [g.weight("steps", np.arange(places)), "length_col"], "mask")
        g.op("Unsqueeze", ["mask", g.weight("last", np.array([2]))], "mask_col")
        g.op("Where", ["mask_col", "seen", g.weight("nothing", np.float32(0))], "kept")
        g.op("ReduceSum", ["kept", one], "sum", keepdims=0)
        g.op("Cast", ["length_col"], "count", to=TensorProto.FLOAT)
        g.op("Add", ["count", g.weight("little", np.float32(1e-3))], "divisor")
        g.op("Div", ["sum", "divisor"], "mean")
        w = _random(2, 8, 6)
        if split:
            g.op("MatMul", ["mean", g.weight("w_user", w[:4])], "user_part")
            g.op("Gemm", ["item", g.weight("w_item", w[4:]), "user_part"], "h")
        else:
            g.op("Concat", ["mean", "item"], "all", axis=1)
            g.op("MatMul", ["all", g.weight("w", w)], "h")
        g.op("Tanh", ["h"], "t")
        g.op("MatMul", ["t", g.weight("w2", _random(3, 6, 1))], "score")
        g.output("score", ["N", 1])
        return g.model()

    return Pair(build("N", False), build(1, True), Sides({"seen": "user", "length": "user", "item": "item"}))


def codes() -> Pair:
    """Branches by what numbers are equal to or above: codes, 16 domains, thresholds, a bound, a number divided."""

    def build(rows: int | str) -> onnx.ModelProto:
        g = Graph()
        for name in ("scene", "domain", "age", "time"):
            g.input(name, TensorProto.INT64, [rows])
        g.input("style", TensorProto.INT32, ["N"])
        g.input("price", TensorProto.FLOAT, ["N"])
        g.input("dense", TensorProto.FLOAT, ["N", 4])
        one = g.weight("one", np.array([1]))
        g.op("MatMul", ["dense", g.weight("w", _random(1, 4, 1))], "base_col")
        score = g.op("Squeeze", ["base_col", one], "base")

        def plus(condition: str, gain: float) -> None:
            nonlocal score
            g.weight(f"{condition}_gain", np.float32(gain))
            none = g.weight("none", np.float32(0))
            chosen = g.op("Where", [condition, f"{condition}_gain", none], f"{condition}_part")
            score = g.op("Add", [score, chosen], f"{condition}_score")

        for code in (301, 302, 303):
            plus(g.op("Equal", ["scene", g.weight(f"code_{code}", np.array(code))], f"scene_{code}"), code / 300)
        for code in (70, 7001):
            plus(g.op("Equal", ["style", g.weight(f"code_{code}", np.int32(code))], f"style_{code}"), code / 5000)
        plus(g.op("GreaterOrEqual", ["age", g.weight("adult", np.array(65))], "old"), 0.5)
        plus(g.op("Greater", ["price", g.weight("limit", np.float32(37.5))], "dear"), 0.7)
        g.op("Div", ["time", g.weight("hour", np.array(100))], "hours")
        plus(g.op("Equal", ["hours", g.weight("noon", np.array(12))], "at_noon"), 0.6)
        # As exporters write a one-hot: the domain against 0, 1, 2, ...
        g.op("Unsqueeze", ["domain", one], "domain_col")
        g.op("Equal", ["domain_col", g.weight("domains", np.arange(16)[None])], "domain_is")
        g.op("Cast", ["domain_is"], "domain_hot", to=TensorProto.FLOAT)
        g.op("MatMul", ["domain_hot", g.weight("domain_weight", _random(2, 16, 1))], "domain_part")
        g.op("Add", [score, g.op("Squeeze", ["domain_part", one], "domain_row")], "sum")
        g.op("Clip", ["price", g.weight("least", np.float32(0)), g.weight("most", np.float32(80))], "paid")
        g.op("Mul", ["paid", g.weight("rate", np.float32(0.01))], "cost")
        g.op("Sub", ["sum", "cost"], "score")
        g.output("score", ["N"])
        return g.model()

    users, items = ("scene", "domain", "age", "time"), ("style", "price", "dense")
    return Pair(build("N"), build(1), Sides(dict.fromkeys(users, "user") | dict.fromkeys(items, "item")))


def counted_down() -> Pair:
    """Histories of 20 whose places are counted from their end: by a weight, and by a Range over the history's shape."""

    def build(rows: int | str) -> onnx.ModelProto:
        g = Graph()
        g.input("clicks", TensorProto.FLOAT, [rows, 20])
        g.input("views", TensorProto.FLOAT, [rows, 20])
        g.input("click_count", TensorProto.INT64, [rows])
        g.input("view_count", TensorProto.INT32, [rows])
        g.input("item", TensorProto.FLOAT, ["N", 1])
        one, minus = g.weight("one", np.array([1])), g.weight("minus", np.array(-1))
        g.op("Unsqueeze", ["click_count", one], "click_col")
        g.op("Less", [g.weight("steps", np.arange(19, -1, -1)[None]), "click_col"], "clicks_seen")
        g.op("Cast", ["view_count"], "view_long", to=TensorProto.INT64)
        g.op("Unsqueeze", ["view_long", one], "view_col")
        g.op("Gather", [g.op("Shape", ["views"], "shape"), g.weight("at", np.array(1))], "places")
        g.op("Range", [g.op("Add", ["places", minus], "last"), minus, minus], "view_steps")
        g.op("Less", ["view_steps", "view_col"], "views_seen")
        parts = []
        for name, seed in (("clicks", 1), ("views", 2)):
            g.op("Where", [f"{name}_seen", name, g.weight("none", np.float32(0))], f"{name}_kept")
            g.op("MatMul", [f"{name}_kept", g.weight(f"w_{name}", _random(seed, 20, 1))], f"{name}_part")
            parts.append(f"{name}_part")
        g.op("Add", parts, "history")
        g.op("Mul", [g.op("Add", ["item", "history"], "both"), g.weight("scale", np.float32(0.5))], "h")
        g.op("Tanh", ["h"], "score")
        g.output("score", ["N", 1])
        return g.model()

    users = ("clicks", "views", "click_count", "view_count")
    return Pair(build("N"), build(1), Sides({**dict.fromkeys(users, "user"), "item": "item"}))


PAIRS = {
    "coarse": coarse,
    "history": history,
    "packed": packed,
    "large_ids": large_ids,
    "half": half,
    "grid": grid,
    "bag": bag,
    "lengths": lengths,
    "codes": codes,
    "counted_down": counted_down,
}
