"""What must come out as it went in: randomness, subgraphs, odd inputs and outputs, types."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mari_onnx.engine import rewrite
from mari_onnx.sides.resolve import Sides
from tests.engine.checks import actions, check, lifted, macs_each, same
from tests.engine.graphs import Graph, N, run


def both(g: Graph) -> str:
    """[relu(u) | x], six columns of which the user has four."""
    return g.Concat(g.Relu(g.user(4)), g.item(2), axis=1)


# ---- randomness --------------------


def random_graph(op: str) -> Graph:
    g = Graph(18)
    u, x = g.user(4), g.item(2)
    noise = {
        "RandomNormal": lambda: g.RandomNormal(shape=[1, 4], dtype=11),
        "RandomUniformLike": lambda: g.RandomUniformLike(u),
        "Bernoulli": lambda: g.Bernoulli(g.Sigmoid(u)),
        "RandomNormalLike": lambda: g.RandomNormalLike(u),
        "Dropout": lambda: g.Dropout(u, g.const(np.array(0.5)), g.const(np.array(True))),
    }[op]()
    hidden = g.Relu(g.MatMul(u, g.weight(4, 4)))
    return g.output(g.Add(g.Add(hidden, noise), g.reduce("Sum", x, [1])))


@pytest.mark.parametrize(
    "op", ["RandomNormal", "RandomUniformLike", "Bernoulli", "RandomNormalLike", "Dropout"]
)
def test_random_operators_are_never_lifted(op: str) -> None:
    """Each candidate draws for itself: the operator still sees N rows."""
    g = random_graph(op)
    result = rewrite(g.model(), g.sides)
    assert actions(result)[op] in (["kept"], ["barrier"])
    (node,) = [n for n in result.model.graph.node if n.op_type == op]
    if result.changed and node.input:
        assert node.input[0] not in g.inputs, "the user's one row went in"


def test_two_random_nodes_stay_two() -> None:
    g = Graph(18)
    hidden = g.Relu(g.MatMul(both(g), g.weight(6, 4)))
    noise = [g.RandomNormal(shape=[1, 4], dtype=11) for _ in range(2)]
    g.output(g.Add(g.Add(hidden, noise[0]), noise[1]))
    result = rewrite(g.model(), g.sides)
    assert [n.op_type for n in result.model.graph.node].count("RandomNormal") == 2


@pytest.mark.parametrize("inputs", [(), (0.5,), (0.5, False)])
def test_dropout_outside_training_is_the_identity(inputs: tuple) -> None:
    g = Graph(18)
    ratio = [g.const(np.array(v)) for v in inputs]
    y, mask = g.nodes_of("Dropout", [both(g), *ratio], 2)
    g.output(g.MatMul(y, g.weight(6, 3)), mask)
    lifted(g, per_candidate=2 * 3)


# ---- subgraphs that read lifted tensors --------------------


def branch(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=output)])


def condition(g: Graph) -> str:
    """True for what is drawn, known only at run time."""
    return g.Greater(g.reduce("Sum", g.Abs(g.item(1)), None, keepdims=0), g.const(np.array(0.0)))


def test_if_over_lifted_tensors() -> None:
    g = Graph(18)
    hidden = g.MatMul(both(g), g.weight(6, 3))
    row = g.Relu(g.user(3))
    then = branch("then", [helper.make_node("Add", [hidden, row], ["a"])], "a")
    other = branch("else", [helper.make_node("Mul", [hidden, row], ["b"])], "b")
    g.output(g.If(condition(g), then_branch=then, else_branch=other), g.Sin(hidden), g.Sin(row))
    check(g)


def test_if_inside_an_if_and_a_name_that_is_hidden() -> None:
    """An inner tensor of the same name as an outer one hides it."""
    g = Graph(18)
    hidden = g.MatMul(both(g), g.weight(6, 3))
    row, flag = g.Relu(g.user(3)), condition(g)
    inner = branch("inner", [helper.make_node("Sub", [hidden, row], ["c"])], "c")
    shadow = branch(
        "shadow",
        [
            helper.make_node("Sin", [hidden], [f"{row}_own"]),
            helper.make_node("Add", [f"{row}_own", row], ["d"]),
        ],
        "d",
    )
    outer = branch(
        "outer", [helper.make_node("If", [flag], ["e"], then_branch=inner, else_branch=shadow)], "e"
    )
    g.output(
        g.If(
            flag,
            then_branch=outer,
            else_branch=branch("flat", [helper.make_node("Identity", [hidden], ["f"])], "f"),
        )
    )
    check(g)


def test_an_if_that_passes_a_lifted_tensor_straight_through() -> None:
    """A branch without nodes: its output is the captured tensor itself."""
    g = Graph(18)
    hidden = g.MatMul(both(g), g.weight(6, 3))
    then = branch("then", [helper.make_node("Identity", [hidden], ["a"])], "a")
    other = branch("else", [helper.make_node("Neg", [hidden], ["b"])], "b")
    g.output(g.If(condition(g), then_branch=then, else_branch=other))
    check(g)


@pytest.mark.parametrize("taken", [True, False])
def test_an_if_of_a_known_condition_is_its_branch(taken: bool) -> None:
    """What the older exporter writes for squeeze."""
    g = Graph(18)
    tall = g.reduce("Sum", g.user(4, 1), [2])
    x = g.item(2)
    flag = g.const(np.array(taken))
    squeezed = branch("then", [helper.make_node("Squeeze", [tall, g.const([2])], ["s"])], "s")
    kept = branch("else", [helper.make_node("Flatten", [tall], ["k"])], "k")
    u = g.If(flag, then_branch=squeezed, else_branch=kept)
    g.output(g.MatMul(g.Concat(u, x, axis=1), g.weight(6, 3)))
    lifted(g, per_candidate=2 * 3)


def test_loop_over_lifted_tensors() -> None:
    g = Graph(18)
    hidden = g.MatMul(both(g), g.weight(6, 3))
    row = g.Relu(g.user(3))
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", row], ["more"]),
            helper.make_node("Mul", ["more", hidden], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.DOUBLE, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.DOUBLE, None),
        ],
    )
    g.output(g.Loop(g.const(np.array(2)), g.const(np.array(True)), g.Sin(row), body=body))
    check(g)


def test_scan_along_the_candidates() -> None:
    """A running sum over candidates, with a row of the user's from outside."""
    g = Graph(18)
    hidden = g.MatMul(both(g), g.weight(6, 3))
    scale = g.Relu(g.weight(3))
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "row"], ["next"]),
            helper.make_node("Mul", ["next", scale], ["out"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, TensorProto.DOUBLE, [3]) for n in ("state", "row")],
        [helper.make_tensor_value_info(n, TensorProto.DOUBLE, [3]) for n in ("next", "out")],
    )
    g.output(*g.nodes_of("Scan", [g.const(np.zeros(3)), hidden], 2, body=body, num_scan_inputs=1))
    check(g)


# ---- inputs and outputs --------------------


def with_output(kind: str) -> Graph:
    g = Graph()
    u, x = g.user(4), g.item(2)
    w = g.weight(6, 3)
    hidden = g.Relu(g.MatMul(g.Concat(u, x, axis=1), w))
    y = g.MatMul(hidden, g.weight(3, 2))
    lift = g.Relu(u)
    extra = {
        "consumed": hidden, "input": x, "user": u, "initializer": w, "twice": y, "lifted": lift,
        "identity": g.Identity(u), "constant": g.Relu(w), "same": g.Identity(y),
        "concat": g.Concat(u, x, axis=1),
    }[kind]  # fmt: skip
    return g.output(y, extra, *([g.Add(lift, lift)] if kind == "lifted" else []))


@pytest.mark.parametrize(
    "kind",
    [
        "consumed",
        "input",
        "user",
        "initializer",
        "twice",
        "lifted",
        "identity",
        "constant",
        "same",
        "concat",
    ],
)
def test_outputs_that_are_something_else_too(kind: str) -> None:
    check(with_output(kind))


def test_an_initializer_that_is_also_an_input_is_not_a_constant() -> None:
    g = Graph()
    g.output(g.MatMul(both(g), g.weight(6, 3)))
    model = g.model()
    weight = model.graph.initializer[0]
    model.graph.input.append(
        helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
    )
    result = rewrite(model, g.sides)
    other = {weight.name: np.ones((6, 3))}
    for extra in ({}, other):
        (want,) = run(model, g.feeds(5) | extra)
        (have,) = run(result.model, g.feeds(5, once=result.changed) | extra)
        same(want, have, 1e-9, "score")
    assert [i.name for i in result.model.graph.input] == [i.name for i in model.graph.input]


def test_empty_optional_inputs_and_outputs() -> None:
    g = Graph()
    x = both(g)
    y = g.Clip(x, "", g.const(np.array(0.3)))
    z = g.Clip(x, g.const(np.array(-0.3)), "")
    _, last = g.nodes_of(
        "GRU",
        [g.unsqueeze(y, 0), g.weight(1, 6, 6), g.weight(1, 6, 2)],
        ["", g.name()],
        hidden_size=2,
    )
    g.output(g.Add(g.MatMul(y, g.weight(6, 3)), g.MatMul(z, g.weight(6, 3))), last)
    check(g)


def test_an_unused_input_stays() -> None:
    g = Graph()
    unused = g.user(7)
    g.output(g.MatMul(both(g), g.weight(6, 3)))
    assert unused in [i.name for i in check(g).model.graph.input]


def test_the_users_dimension_under_a_name_of_its_own() -> None:
    """`user_batch` and `item_batch` are both the candidates."""
    g = Graph()
    g.output(g.MatMul(both(g), g.weight(6, 3)))
    model = g.model()
    for k, info in enumerate(model.graph.input):
        info.type.tensor_type.shape.dim[0].dim_param = f"batch_{k}"
    result = rewrite(model, g.sides)
    assert result.changed
    assert [i.type.tensor_type.shape.dim[0].dim_value for i in result.model.graph.input] == [1, 0]


def test_without_candidates_nothing_is_changed() -> None:
    g = Graph()
    g.output(g.MatMul(g.user(4), g.weight(4, 2)))
    result = check(g)
    assert not result.changed
    assert result.reason


def test_without_users_nothing_is_changed() -> None:
    g = Graph()
    g.output(g.MatMul(g.item(4), g.weight(4, 2)))
    result = check(g, weighed=True)
    assert not result.changed
    assert result.model == g.model()


def test_nodes_left_alone_on_request() -> None:
    g = Graph()
    g.output(g.Relu(g.MatMul(both(g), g.weight(6, 3))))
    name = next(n.name for n in g.nodes if n.op_type == "MatMul")
    result = check(g, skip=frozenset({name}))
    (report,) = (r for r in result.nodes if r.op == "MatMul")
    assert report.reason == "skipped: the check found that this rewrite changes the outputs"


def test_an_opset_of_old_is_left_with_a_reason() -> None:
    g = Graph(9)
    g.output(g.MatMul(both(g), g.weight(6, 3)))
    result = rewrite(g.model(), g.sides)
    assert not result.changed
    assert "9" in (result.reason or "")


def test_an_operator_that_no_rule_knows_sees_all_rows() -> None:
    g = Graph(20)
    wide = g.unsqueeze(both(g), 1, 2)
    theta = g.const(np.tile(np.array([[1.0, 0, 0], [0, 1.0, 0]]), (1, 1, 1)))
    grid = g.AffineGrid(
        g.Expand(theta, g.Concat(g.size(wide, 0), g.const([2]), g.const([3]), axis=0)),
        g.Shape(wide),
        align_corners=1,
    )
    g.output(g.GridSample(wide, grid, mode="linear", padding_mode="border", align_corners=1))
    check(g)


@pytest.mark.parametrize(
    "packed", [{"user": (0, 1), "item": (2,)}, {"cross": (0, 2), "user": (1,)}, {"item": (0, 1, 2)}]
)
def test_packed_inputs_stay_whole(packed: dict) -> None:
    g = Graph()
    x = g.packed(**packed)
    g.output(g.MatMul(g.Relu(x), g.weight(3, 2)), g.reduce("Sum", x, [0]), g.Sin(x))
    result = check(g)
    (info,) = result.model.graph.input
    assert [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim] == [N, 3]


# ---- types --------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float16, 2e-2)])
@pytest.mark.parametrize("root", ["product", "layer norm", "machine", "negated"])
def test_other_floats(dtype: type, tolerance: float, root: str) -> None:
    g = Graph(18, dtype)
    x = both(g)
    square = g.Mul(g.reduce("Sum", x, [1]), g.reduce("Sum", x, [1]))
    g.output({
        "product": lambda: g.Gemm(x, g.weight(6, 3), g.weight(3)),
        "layer norm": lambda: g.MatMul(
            g.LayerNormalization(x, g.weight(6), g.weight(6)), g.weight(6, 3)
        ),
        "machine": lambda: g.Sub(square, g.reduce("Sum", g.Mul(x, x), [1])),
        "negated": lambda: g.MatMul(g.Sub(g.Neg(x), g.Relu(x)), g.weight(6, 3)),
    }[root]())  # fmt: skip
    check(g, tolerance=tolerance)


def test_integers_of_an_element_wise_kind() -> None:
    g = Graph()
    ids = g.Concat(g.user(3, high=9), g.item(2, high=9), axis=1)
    g.output(
        *(
            getattr(g, op)(ids, g.const(np.array([3, 4, 5, 6, 7])))
            for op in ("Add", "Sub", "Mul", "Div", "Mod", "Equal")
        )
    )
    check(g)


def test_booleans_and_casts() -> None:
    g = Graph()
    mask = g.Greater(both(g), g.const(np.array(0.2)))
    g.output(
        g.Not(mask),
        g.And(mask, g.Not(mask)),
        g.Cast(mask, to=11),
        g.Where(mask, g.weight(1), g.weight(1)),
    )
    check(g)


@pytest.mark.parametrize("scale", [0.1, [0.1, 0.2, 0.1, 0.3, 0.1, 0.2]])
def test_quantization(scale: object) -> None:
    """Per tensor it is element-wise; per channel it stays."""
    g = Graph(21, np.float32)
    parameters = [
        g.const(np.array(scale, np.float32)),
        g.const(np.zeros_like(np.array(scale), dtype=np.uint8) + 3),
    ]
    y = g.DequantizeLinear(g.QuantizeLinear(both(g), *parameters, axis=1), *parameters, axis=1)
    g.output(g.MatMul(y, g.weight(6, 3)))
    check(g, tolerance=1e-5)


def test_model_local_functions_are_looked_into() -> None:
    g = Graph()
    u, x = g.user(4), g.item(2)
    g.nodes.append(
        helper.make_node("Both", [u, x, g.weight(6, 3)], ["score"], domain="local", name="call")
    )
    g.outputs = ["score"]
    function = helper.make_function(
        "local", "Both", ["a", "b", "w"], ["y"],
        [
            helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
            helper.make_node("MatMul", ["c", "w"], ["y"]),
        ],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    infos = [
        helper.make_tensor_value_info(n, TensorProto.DOUBLE, [N, i.shape[1]])
        for n, i in g.inputs.items()
    ]
    outs = [helper.make_tensor_value_info("score", TensorProto.DOUBLE, [N, 3])]
    graph = helper.make_graph(g.nodes, "g", infos, outs, g.initializers)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    result = rewrite(model, Sides({u: "user", x: "item"}))
    assert result.changed
    (want,) = run(model, g.feeds(5))
    (have,) = run(result.model, g.feeds(5, once=True))
    same(want, have, 1e-9, "score")
    assert macs_each(g, result) == 2 * 3
