"""Models that are easy to break: optimized by the tool as a user would, and run beside their source in onnxruntime.

The engine's own tests compare with onnx's evaluator; what is here has operators that it lacks, or is about files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import mari_onnx
from mari_onnx.cli.main import run
from mari_onnx.errors import CannotCompare
from mari_onnx.model.save import save
from tests import tiny

USER, ITEM, HIDDEN = 256, 64, 32
MICROSOFT = "com.microsoft"
F = TensorProto.FLOAT


def node(op: str, reads: str, writes: str, domain: str = "", **attributes: object) -> onnx.NodeProto:
    """`node("Add", "a b", "c")`"""
    outputs = writes.split()
    return helper.make_node(op, reads.split(), outputs, outputs[0], domain=domain, **attributes)


def model(
    nodes: list[onnx.NodeProto], outputs: dict[str, list] | None = None, **weights: np.ndarray
) -> onnx.ModelProto:
    """A model of `user [N, 256]` and `item [N, 64]`; the first node is their Concat `x`."""
    nodes = [node("Concat", "user item", "x", axis=1), *nodes]
    outputs = outputs or {"score": ["N", HIDDEN]}
    inputs = [helper.make_tensor_value_info(n, F, ["N", w]) for n, w in (("user", USER), ("item", ITEM))]
    infos = [helper.make_tensor_value_info(name, F, shape) for name, shape in outputs.items()]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "semantics", inputs, infos, tensors)
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(d, 1) for d in {n.domain for n in nodes} - {""})]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 16


def outputs(made: onnx.ModelProto | bytes | str, rows: int, once: bool, seed: int = 1) -> list[np.ndarray]:
    data = made.SerializeToString() if isinstance(made, onnx.ModelProto) else made
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    user, item = (rng.standard_normal((n, w)).astype(np.float32) for n, w in ((1, USER), (rows, ITEM)))
    feeds = {"user": user if once else np.repeat(user, rows, axis=0), "item": item}
    return session.run(None, {each.name: feeds[each.name] for each in session.get_inputs()})


def right(source: onnx.ModelProto, tolerance: float = 1e-5) -> mari_onnx.api.Optimized:
    """Optimized with the tool's own check, and compared once more here."""
    done = mari_onnx.optimize(source, {"user": "user", "item": "item"})
    assert not done.report.incidents
    for rows in (1, 2, 7):
        pairs = zip(outputs(source, rows, False), outputs(done.model, rows, done.changed), strict=True)
        for want, have in pairs:
            np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance)
            assert want.dtype == have.dtype
    return done


# Operators that mix candidates

W = "w"
MIXING = {
    "softmax": [node("Softmax", "h", "score", axis=0)],
    "log softmax": [node("LogSoftmax", "h", "score", axis=0)],
    "hardmax": [node("Hardmax", "h", "score", axis=0)],
    "normalization": [node("MeanVarianceNormalization", "h", "score", axes=[0])],
    "cumulative sum": [node("CumSum", "h zero", "score")],
    "mean": [node("ReduceMean", "h first", "m", keepdims=1), node("Sub", "h m", "score")],
    "attention": [
        node("Transpose", "h", "t", perm=[1, 0]),
        node("MatMul", "h t", "scores"),
        node("Softmax", "scores", "p", axis=1),
        node("MatMul", "p h", "score"),
    ],
    "sort": [node("TopK", "h rows", "score places", axis=0)],
}  # fmt: skip


@pytest.mark.parametrize("name", MIXING)
def test_operators_across_candidates_see_all_rows(name: str) -> None:
    """Before them the user's part is lifted; of them nothing is."""
    before = [node("MatMul", "x w", "h")]
    if name == "sort":
        before += [node("Shape", "h", "rows", start=0, end=1)]
    zeros = {"zero": np.array(0), "first": np.array([0])}
    vectors = {n: np.full(HIDDEN, v, np.float32) for n, v in (("one", 1), ("bias", 0.1), ("mean", 0.2))}
    done = right(model([*before, *MIXING[name]], w=weight(USER + ITEM, HIDDEN), **zeros, **vectors), 1e-4)
    assert done.changed


def test_a_batch_normalization_in_training_cannot_be_compared() -> None:
    """onnxruntime goes on from the statistics of the run before, so the source answers differently each time."""
    vectors = {n: np.full(HIDDEN, v, np.float32) for n, v in (("one", 1), ("bias", 0.1), ("mean", 0.2))}
    norm = node("BatchNormalization", "h one bias mean one", "score m2 v2", training_mode=1)
    source = model([node("MatMul", "x w", "h"), norm], w=weight(USER + ITEM, HIDDEN), **vectors)
    with pytest.raises(CannotCompare, match="different results for the same request"):
        mari_onnx.optimize(source, {"user": "user", "item": "item"})


@pytest.mark.parametrize("op", ["Softmax", "CumSum", "TopK", "ReduceMax"])
def test_the_users_column_across_candidates(op: str) -> None:
    """A column that is equal for all candidates: over N of them it is 1/N, a ramp, the same again."""
    across = {
        "Softmax": [node("Softmax", "s", "c", axis=0)],
        "CumSum": [node("CumSum", "s zero", "c")],
        "TopK": [node("TopK", "s one", "c places", axis=0)],
        "ReduceMax": [node("ReduceMax", "s first", "c", keepdims=1)],
    }
    nodes = [node("MatMul", "user a", "s"), *across[op], node("MatMul", "x w", "h"), node("Add", "h c", "score")]
    weights = {"a": weight(USER, 1), W: weight(USER + ITEM, HIDDEN), "zero": np.array(0)}
    right(model(nodes, **weights, one=np.array([1]), first=np.array([0])), 1e-4)


# Random numbers and state


def test_random_numbers_are_drawn_for_each_candidate() -> None:
    nodes = [node("RandomUniformLike", "user", "noise"), node("Add", "user noise", "score")]
    source = model(nodes, {"score": ["N", USER]})
    done = mari_onnx.optimize(source, {"user": "user", "item": "item"}, check=False)
    (drawn,) = outputs(done.model, 5, done.changed)
    assert drawn.shape == (5, USER)
    assert len(np.unique(drawn, axis=0)) == 5


def test_a_loop_carries_its_state_over_candidates() -> None:
    """A running product over rows of the candidates, with the user's tensor captured."""
    body = helper.make_graph(
        [
            node("Gather", "h i", "row", axis=0),
            node("Mul", "state row", "grown"),
            node("Tanh", "grown", "next"),
            node("Identity", "c", "go"),
            node("Identity", "next", "out"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", F, [HIDDEN]),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", F, [HIDDEN]),
            helper.make_tensor_value_info("out", F, [HIDDEN]),
        ],
    )  # fmt: skip
    nodes = [
        node("MatMul", "x w", "h"),
        node("Shape", "h", "rows", start=0, end=1),
        node("Squeeze", "rows", "count"),
        helper.make_node("Loop", ["count", "yes", "start"], ["last", "score"], "loop", body=body),
    ]
    start = np.full(HIDDEN, 1, np.float32)
    right(model(nodes, w=weight(USER + ITEM, HIDDEN), yes=np.array(True), start=start))


# Quantized graphs


def quantized(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(seed).integers(-90, 90, (USER + ITEM, HIDDEN)).astype(np.int8), np.float32(0.01)


def test_quantize_dequantize_around_a_product() -> None:
    weights, scale = quantized()
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq"),
        node("DequantizeLinear", "xq xs xz", "xd"),
        node("DequantizeLinear", "wq ws wz", "wd"),
        node("MatMul", "xd wd", "score"),
    ]
    zeros = {"xz": np.uint8(128), "wz": np.int8(0)}
    done = right(model(nodes, wq=weights, ws=scale, xs=np.float32(0.03), **zeros), 1e-4)
    assert done.changed


def test_products_of_integers() -> None:
    weights, scale = quantized()
    nodes = [
        node("DynamicQuantizeLinear", "x", "xq xs xz"),
        node("MatMulInteger", "xq wq xz", "sum"),
        node("Cast", "sum", "float", to=F),
        node("Mul", "xs ws", "scale"),
        node("Mul", "float scale", "score"),
    ]
    right(model(nodes, wq=weights, ws=scale), 1e-6)


def test_integer_products_that_read_the_user_alone_are_lifted() -> None:
    weights, scale = quantized()
    nodes = [
        node("QuantizeLinear", "user xs xz", "xq"),
        node("MatMulInteger", "xq wq xz", "sum"),
        node("Cast", "sum", "float", to=F),
        node("Mul", "float ws", "u"),
        node("MatMul", "item w", "i"),
        node("Add", "u i", "score"),
    ]
    zero = {"xz": np.uint8(128), "xs": np.float32(0.03)}
    done = right(model(nodes, wq=weights[:USER], ws=scale, w=weight(ITEM, HIDDEN), **zero), 1e-6)
    assert {each.op: each.action for each in done.report.nodes}["MatMulInteger"] == "lifted"


def test_qlinear_products() -> None:
    weights, scale = quantized()
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq"),
        node("QLinearMatMul", "xq xs xz wq ws wz ys yz", "yq"),
        node("DequantizeLinear", "yq ys yz", "score"),
    ]
    small = {"xs": np.float32(0.03), "xz": np.uint8(128), "wz": np.int8(0), "ys": np.float32(0.3), "yz": np.uint8(128)}
    source = model(nodes, wq=weights, ws=scale, **small)
    sides = {"user": "user", "item": "item"}
    # onnxruntime makes the integer kernel of what is written, and it rounds as the source's does. Without its
    # optimizations a few values lie on the next step, so that the check takes the rewrite back where nothing follows.
    for done in (mari_onnx.optimize(source, sides, check=False), mari_onnx.optimize(source, sides)):
        for rows in (1, 2, 7, 500):
            (want,), (have,) = outputs(source, rows, False), outputs(done.model, rows, done.changed)
            np.testing.assert_array_equal(have, want)


def test_products_with_weights_of_four_bits() -> None:
    k, block = USER + ITEM, 32
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, (HIDDEN, k // block, block // 2)).astype(np.uint8)
    scales = rng.uniform(0.001, 0.01, HIDDEN * k // block).astype(np.float32)
    nodes = [node("MatMulNBits", "x packed scales", "score", MICROSOFT, K=k, N=HIDDEN, bits=4, block_size=block)]
    right(model(nodes, packed=packed, scales=scales))


# What is not a dense tensor of numbers


def test_sparse_initializers_stay() -> None:
    dense = weight(USER + ITEM, HIDDEN)
    places = np.flatnonzero(np.random.default_rng(0).random(dense.size) < 0.1)
    values = numpy_helper.from_array(dense.reshape(-1)[places], "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places, "places"), dense.shape)
    source = model([node("MatMul", "x w", "h"), node("MatMul", "x v", "g"), node("Add", "h g", "score")], v=dense)
    source.graph.sparse_initializer.append(sparse)
    done = right(source)
    assert done.changed
    assert [each.values.name for each in done.model.graph.sparse_initializer] == ["w"]
    assert done.model.graph.sparse_initializer[0] == sparse


def test_sequences_and_optionals() -> None:
    nodes = [
        node("MatMul", "user a", "u"),
        node("SequenceConstruct", "u user", "pair"),
        node("SequenceAt", "pair zero", "first"),
        node("Optional", "first", "maybe"),
        node("OptionalGetElement", "maybe", "back"),
        node("MatMul", "x w", "h"),
        node("Add", "h back", "score"),
    ]
    right(model(nodes, w=weight(USER + ITEM, HIDDEN), a=weight(USER, HIDDEN), zero=np.array(0)))


def test_strings() -> None:
    """Categories of candidates as strings, looked up with a label encoder, beside a layer."""
    nodes = [
        node("LabelEncoder", "category", "place", "ai.onnx.ml", keys_strings=["a", "b"], values_int64s=[0, 1],
             default_int64=2),
        node("Gather", "table place", "e", axis=0),
        node("MatMul", "x w", "h"),
        node("Add", "h e", "score"),
    ]  # fmt: skip
    source = model(nodes, w=weight(USER + ITEM, HIDDEN), table=weight(3, HIDDEN))
    source.opset_import[1].version = 2
    source.graph.input.append(helper.make_tensor_value_info("category", TensorProto.STRING, ["N"]))
    done = mari_onnx.optimize(source, {"user": "user", "item": "item", "category": "item"})
    assert done.changed
    rng = np.random.default_rng(0)
    user, item = rng.standard_normal((1, USER)), rng.standard_normal((3, ITEM))
    feed = {"item": item.astype(np.float32), "category": np.array(["b", "?", "a"], object)}
    have, want = (
        onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {**feed, "user": np.repeat(user, rows, axis=0).astype(np.float32)}
        )[0]
        for each, rows in ((done.model, 1), (source, 3))
    )
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_, object])
def test_inputs_without_dimensions(dtype: type) -> None:
    """A flag, a number or a word for the whole request."""
    casts = [node("Cast", "flag", "f", to=F)] if dtype is not object else [
        node("Equal", "flag a", "e"), node("Cast", "e", "f", to=F)
    ]  # fmt: skip
    nodes = [*casts, node("MatMul", "x w", "h"), node("Mul", "h f", "score")]
    source = model(nodes, w=weight(USER + ITEM, HIDDEN))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) if dtype is not object else TensorProto.STRING
    source.graph.input.append(helper.make_tensor_value_info("flag", kind, []))
    source.graph.initializer.append(helper.make_tensor("a", TensorProto.STRING, [], [b"a"]))
    done = mari_onnx.optimize(source, {"user": "user", "item": "item"})
    assert done.changed
    assert done.report.check["ok"]
    assert mari_onnx.inspect(source, done.sides, measure=True).changed


# Operators that nobody knows


def test_operators_of_onnxruntime_are_kept() -> None:
    nodes = [
        node("FusedMatMul", "x w", "h", MICROSOFT, alpha=0.5),
        node("BiasGelu", "h b", "g", MICROSOFT),
        node("QuickGelu", "g", "score", MICROSOFT),
    ]
    right(model(nodes, w=weight(USER + ITEM, HIDDEN), b=weight(HIDDEN)))


def custom() -> onnx.ModelProto:
    """An operator of a domain that no library here has, on a lifted tensor and on a concatenation."""
    nodes = [
        node("MatMul", "user a", "u"),
        node("Relu", "u", "lifted"),
        node("Mystery", "lifted x", "m", "com.example", secret=[1, 2]),
        node("MatMul", "x w", "h"),
        node("Add", "h m", "score"),
    ]
    return model(nodes, w=weight(USER + ITEM, HIDDEN), a=weight(USER, HIDDEN))


def test_a_custom_operator_is_kept_and_sees_all_rows(tmp_path: Path) -> None:
    done = mari_onnx.optimize(custom(), {"user": "user", "item": "item"}, check=False)
    assert done.changed
    (kept,) = [each for each in done.model.graph.node if each.op_type == "Mystery"]
    assert kept.domain == "com.example"
    assert list(kept.attribute[0].ints) == [1, 2]
    writes = {name: each.op_type for each in done.model.graph.node for name in each.output}
    assert [writes[name] for name in kept.input] == ["Expand", "Concat"]
    assert "com.example" in {each.domain for each in done.model.opset_import}


def test_a_custom_operator_that_cannot_be_run_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    save(custom(), path)
    tags = ["--user", "user", "--item", "item"]
    assert run(["optimize", str(path), str(out), *tags]) == 3
    said = capsys.readouterr().err
    assert "Mystery" in said
    assert "--no-check" in said
    assert "Traceback" not in said
    assert not out.exists()
    assert run(["optimize", str(path), str(out), *tags, "--no-check"]) == 0


# Optimized already, by this tool and by others


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("check", [[], ["--no-check"]])
def test_running_the_tool_twice_changes_nothing(tmp_path: Path, external: bool, check: list[str]) -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Relu", "h", "r"),
        node("Concat", "r user", "again", axis=1),
        node("MatMul", "again v", "score"),
    ]
    save(model(nodes, w=weight(USER + ITEM, HIDDEN), v=weight(HIDDEN + USER, HIDDEN)), tmp_path / "0.onnx",
         external=external)  # fmt: skip
    tags = ["--user", "user", "--item", "item", *check]
    for step in range(3):
        assert run(["optimize", str(tmp_path / f"{step}.onnx"), str(tmp_path / f"{step + 1}.onnx"), *tags]) == 0
        tags = check  # the sides are in the output
    first, *others = (onnx.load(tmp_path / f"{step}.onnx") for step in (1, 2, 3))
    assert all(other.SerializeToString() == first.SerializeToString() for other in others)
    if not external:
        assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "3.onnx").read_bytes()


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_models_that_onnxruntime_has_optimized(tmp_path: Path, level: str) -> None:
    """Layers, a normalization and a Gelu, fused by onnxruntime into operators of its own and written to a file."""
    nodes = [
        node("MatMul", "x w", "h"), node("Add", "h b", "hb"),
        node("Div", "hb root", "d"), node("Erf", "d", "e"), node("Add", "e one", "p"),
        node("Mul", "hb p", "q"), node("Mul", "q half", "g"),
        node("Add", "g hb", "skip"), node("LayerNormalization", "skip b b", "n"),
        node("MatMul", "n v", "m"), node("Add", "m b", "mb"), node("Relu", "mb", "score"),
    ]  # fmt: skip
    numbers = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    source = model(nodes, w=weight(USER + ITEM, HIDDEN), v=weight(HIDDEN, HIDDEN), b=weight(HIDDEN), **numbers)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fused = onnx.load(tmp_path / "fused.onnx")
    if level != "ORT_ENABLE_BASIC":
        assert MICROSOFT in {each.domain for each in fused.graph.node}
    done = right(fused)
    for rows in (1, 5):
        (want,), (have,) = outputs(source, rows, False), outputs(done.model, rows, done.changed)
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)


def test_models_with_functions() -> None:
    """Two overloads of one name, called with different attributes."""
    imports = [helper.make_opsetid("", 20)]
    functions = []
    for overload, op in (("a", "Relu"), ("b", "Tanh")):
        inner = [node("MatMul", "p q", "t"), node(op, "t", "r")]
        function = helper.make_function("local", "Layer", ["p", "q"], ["r"], inner, imports, overload=overload)
        functions.append(function)
    calls = [node("Layer", "x w", "h", "local"), node("Layer", "h v", "score", "local")]
    for call, overload in zip(calls, "ab", strict=True):
        call.overload = overload
    source = model(calls, w=weight(USER + ITEM, HIDDEN), v=weight(HIDDEN, HIDDEN))
    source.functions.extend(functions)
    done = right(source)
    assert done.changed


def test_a_function_that_calls_itself_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = tiny.fc(user=USER, item=ITEM, hidden=HIDDEN)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    inner = [helper.make_node("Again", ["p"], ["r"], "inner", domain="local")]
    source.functions.append(helper.make_function("local", "Again", ["p"], ["r"], inner, imports))
    source.graph.node[1].output[0] = "before"
    source.graph.node.append(helper.make_node("Again", ["before"], ["score"], "call", domain="local"))
    source.opset_import.append(helper.make_opsetid("local", 1))
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    path.write_bytes(source.SerializeToString())
    assert run(["optimize", str(path), str(out), "--user", "user_x", "--item", "item_x"]) == 3
    said = capsys.readouterr().err
    assert "local.Again" in said
    assert not out.exists()
