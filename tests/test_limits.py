"""Large, wide and deep graphs in their thin form: right, and by no recursion on depth. `make limits` measures them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import mari_onnx
import mari_onnx.api
from benchmarks import limits
from benchmarks.graphs import Graph
from mari_onnx.cli.main import run
from mari_onnx.engine import Options
from mari_onnx.errors import InvalidModel, NotAModel
from mari_onnx.model import load, protobuf_wire
from mari_onnx.model.functions import DEEPEST, depths, inlined
from mari_onnx.model.validate import check_structure
from mari_onnx.sides.resolve import Sides
from tests import tiny

WIDTH = 8
DEPTH = 500
ROOM = 250
"""Frames that are left to Python in the tests of depth: more than any rule takes, less than the depth."""


def sides(model: onnx.ModelProto) -> Sides:
    return Sides({i.name: i.name.split("_")[0] for i in model.graph.input})


@contextmanager
def shallow(frames: int = ROOM) -> Iterator[None]:
    """Python refuses to recurse `frames` deeper than here."""
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + frames)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def rewritten(source: onnx.ModelProto) -> mari_onnx.api.Optimized:
    """By work alone: whether the rewrite of a chain of narrow tensors saves time is another question."""
    return mari_onnx.api.rewritten(mari_onnx.api.as_source(source), sides(source), Options(assume=True))


def outputs(model: onnx.ModelProto, rows: int, once: bool) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(rows)
    feeds = {}
    for each in model.graph.input:
        own = [d.dim_value for d in each.type.tensor_type.shape.dim][1:]
        user = each.name.startswith("user")
        values = rng.standard_normal((1 if user else rows, *own)).astype(np.float32)
        feeds[each.name] = np.repeat(values, rows, axis=0) if user and not once else values
    return session.run(None, feeds)


def right(source: onnx.ModelProto, done: mari_onnx.api.Optimized, tolerance: float = 1e-4) -> None:
    want, have = outputs(source, 3, False), outputs(done.model, 3, done.changed)
    for a, b in zip(want, have, strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)


# Large and wide


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (limits.towers, 1000),
        (limits.consumers, 2000),
        (limits.inputs, 400),
        (limits.concat, 600),
        (limits.nested_concats, 200),
        (limits.nested_ifs, 30),
        (limits.nested_functions, 300),
    ],
)
def test_each_of_the_measured_graphs(make: Callable[[int], onnx.ModelProto], size: int) -> None:
    source = make(size)
    done = rewritten(source)
    assert done.changed
    right(source, done)


def test_names_of_many_parts_are_all_different() -> None:
    source = limits.concat(600)
    done = rewritten(source).model.graph
    names = [node.name for node in done.node]
    tensors = [name for node in done.node for name in node.output] + [each.name for each in done.initializer]
    assert len(set(names)) == len(names)
    assert len(set(tensors)) == len(tensors)


def test_the_command_measures_what_it_says() -> None:
    case = limits.Case("consumers", (5, 10), limits._graph(limits.consumers))
    found = limits.section([case], check=False)
    assert [row[0] for row in found.rows] == ["5 consumers", "10 consumers"]
    assert all(each for row in found.rows for each in row[:3])
    assert len(found.targets) == 2


# Deep

STEPS: dict[str, Callable[[Graph, str, str, int], str]] = {
    "sum": lambda g, t, s, k: g.op("Add", t, s) if k % 3 else g.op("Add", s, t),
    "difference": lambda g, t, s, k: g.op("Sub", t, s) if k % 3 else g.op("Sub", s, t),
    "gate": lambda g, t, s, _: g.op("Mul", t, g.op("Sigmoid", s)),
    "small terms": lambda g, t, s, _: g.op("Add", t, g.op("Mul", s, g.bias(WIDTH))),
    "layer": lambda g, t, s, _: g.op("Tanh", g.op("MatMul", t, g.weight(WIDTH, WIDTH))),
    "layer of both": lambda g, t, s, _: g.op(
        "Gemm", g.op("Concat", t, s, axis=1), g.weight(2 * WIDTH, WIDTH), g.bias(WIDTH)
    ),
    "norm": lambda g, t, s, _: g.op("LayerNormalization", g.op("Add", t, s), g.bias(WIDTH), g.bias(WIDTH)),
    "scale and shift": lambda g, t, s, _: g.op("Add", g.op("Mul", t, g.bias(WIDTH)), g.bias(WIDTH)),
    "reshapes": lambda g, t, s, _: g.op("Reshape", g.op("Reshape", t, g.ints(-1, 2, WIDTH // 2)), g.ints(-1, WIDTH)),
    "transposes": lambda g, t, s, _: g.op("Transpose", g.op("Transpose", g.op("Neg", t), perm=[1, 0]), perm=[1, 0]),
    "mean of both": lambda g, t, s, _: g.op(
        "Add", g.op("ReduceMean", g.op("Concat", t, s, axis=1), g.ints(1), keepdims=1), t
    ),
    "choice": lambda g, t, s, _: g.op("Where", g.op("Greater", s, g.const(np.float32(0.1))), t, s),
    "concat and cut": lambda g, t, s, _: g.op(
        "Slice", g.op("Concat", s, t, axis=1), g.ints(WIDTH - 1), g.ints(2 * WIDTH - 1), g.ints(1)
    ),
}


def chain(step: Callable[[Graph, str, str, int], str], length: int) -> onnx.ModelProto:
    g = Graph()
    u, x = g.input("user", ["N", WIDTH]), g.input("item", ["N", WIDTH])
    total = g.dense(g.op("Concat", u, x, axis=1), 2 * WIDTH, WIDTH)
    for k in range(length):
        total = step(g, total, u if k % 2 else x, k)
    g.op("MatMul", total, g.weight(WIDTH, WIDTH))
    return g.model("score", ["N", WIDTH])


@pytest.mark.parametrize("name", STEPS)
def test_chains_are_deeper_than_python_recurses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewritten, reported and drawn; a rule that recursed would raise."""
    monkeypatch.setattr("mari_onnx.engine.interpreter.STRICT", True)
    mari_onnx.optimize(chain(STEPS[name], 3), {"user": "user", "item": "item"}, check=False).html()  # imports
    source = chain(STEPS[name], DEPTH)
    with shallow():
        done = rewritten(source)
        done.html()
        done.report.to_json()
    assert done.changed
    check_structure(done.model)


def test_a_deep_chain_is_checked_and_measured(tmp_path: Path) -> None:
    def all_of(source: onnx.ModelProto) -> mari_onnx.api.Optimized:
        origin, tagged = mari_onnx.api.as_source(source), sides(source)
        with mari_onnx.api.checked(origin, tagged, tmp_path / "out.onnx", Options()) as (done, _):
            done.measure()
        return done

    all_of(chain(STEPS["gate"], 3))  # imports
    with shallow():
        done = all_of(chain(STEPS["gate"], DEPTH))
    assert done.report.check["ok"]


def test_names_of_many_levels_are_drawn() -> None:
    source = tiny.fc(user=256, item=64, hidden=128)
    for k, node in enumerate(source.graph.node):
        node.name = "/".join(f"m{i}" for i in range(DEPTH)) + f"/{k}"
    with shallow():
        page = mari_onnx.optimize(source, {"user_x": "user", "item_x": "item"}, check=False).html()
    assert "m0" in page


def nested_file(depth: int) -> bytes:
    """An If in an If, ..; protobuf itself cannot build what it cannot read."""

    def info(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 128])

    def body(node: bytes, name: str) -> bytes:
        return protobuf_wire.tagged(1, node) + onnx.GraphProto(name=name, output=[info(name)]).SerializeToString()

    node = helper.make_node("Relu", ["before"], ["t0"]).SerializeToString()
    for level in range(1, depth + 1):
        inner = body(node, f"t{level - 1}")
        node = helper.make_node("If", ["flag"], [f"t{level}"], f"if{level}").SerializeToString()
        for branch in ("then_branch", "else_branch"):
            kind = onnx.AttributeProto(name=branch, type=onnx.AttributeProto.GRAPH).SerializeToString()
            other = helper.make_node("Neg", ["before"], [f"e{level}"]).SerializeToString()
            graph = inner if branch == "then_branch" else body(other, f"e{level}")
            node += protobuf_wire.tagged(5, kind + protobuf_wire.tagged(6, graph))
    model = tiny.fc(user=256, item=64, hidden=128)
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    model.graph.node[1].output[0] = "before"
    first, second = (each.SerializeToString() for each in model.graph.node)
    last = helper.make_node("Identity", [f"t{depth}"], ["score"], "end").SerializeToString()
    del model.graph.node[:]
    nodes = b"".join(protobuf_wire.tagged(1, each) for each in (first, second, node, last))
    graph = nodes + model.graph.SerializeToString()
    model.ClearField("graph")
    return model.SerializeToString() + protobuf_wire.tagged(7, graph)


def test_bodies_nest_as_deep_as_protobuf_reads(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    path.write_bytes(nested_file(30))
    assert run(["optimize", str(path), str(out), "--user", "user_x", "--item", "item_x"]) == 0
    assert [each.op_type for each in load.load(out).graph.node].count("If") == 1
    path.write_bytes(nested_file(200))
    with pytest.raises(NotAModel, match="nests graphs deeper than protobuf can read"):
        load.load(path)
    assert run(["inspect", str(path)]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_functions_within_each_other() -> None:
    """Deeper than onnx inlines at once, and than Python recurses."""
    source = limits.nested_functions(DEPTH)
    with shallow():
        assert max(depths(source).values()) == DEPTH > 2 * DEEPEST
        assert "Tanh" in {node.op_type for node in inlined(source).graph.node}
    done = mari_onnx.optimize(source, {"user": "user", "item": "item"})
    assert done.changed
    done.html()


def test_functions_that_call_each_other_in_a_circle() -> None:
    source = limits.nested_functions(DEPTH)
    source.functions[0].node[0].op_type = f"f{DEPTH - 1}"
    source.functions[0].node[0].domain = "deep"
    with shallow(), pytest.raises(InvalidModel, match=r"deep\.f\d+ calls itself"):
        depths(source)


def test_a_body_may_not_read_what_the_branch_beside_it_defines() -> None:
    source = limits.nested_ifs(1)
    node = source.graph.node[-1]
    first, second = (a.g for a in node.attribute)
    first.initializer.add(name="mine", data_type=1, dims=[1], float_data=[1])
    second.node[0].input[0] = "mine"
    with pytest.raises(InvalidModel, match="reads 'mine'"):
        check_structure(source)
