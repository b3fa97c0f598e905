"""What is undone where outputs differ: the rewrites to blame, and no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from mari_onnx import engine
from mari_onnx.parity.blame import guilty
from mari_onnx.parity.guard import optimize_checked
from mari_onnx.sides.resolve import Sides
from tests.parity.pairs import Graph

NODES = [f"n{i}" for i in range(214)]


@settings(max_examples=200, deadline=None)
@given(st.sets(st.integers(0, 213), min_size=1, max_size=4), st.none() | st.integers(0, 213))
def test_it_finds_those_that_are_and_no_other(at: set[int], suspect: int | None) -> None:
    faulty = {NODES[i] for i in at}
    asked = []

    def equal(left_alone: frozenset[str]) -> bool:
        asked.append(left_alone)
        return faulty <= left_alone

    found = guilty(NODES, equal, 80, None if suspect is None else NODES[suspect])
    assert found == faulty
    assert len(asked) <= 2 * len(faulty) * 9 + 2


def test_one_of_several_is_enough_where_they_are_wrong_together() -> None:
    """Two rewrites that are wrong only together: one of them stays."""
    found = guilty(NODES, lambda left: bool({"n3", "n200"} & left), 80)
    assert len(found) == 1
    assert found < {"n3", "n200"}


def test_runs_are_bounded_and_what_is_left_is_enough() -> None:
    faulty, asked = {NODES[i] for i in range(0, 214, 7)}, []

    def equal(left_alone: frozenset[str]) -> bool:
        asked.append(left_alone)
        return faulty <= left_alone

    found = guilty(NODES, equal, 20)
    assert faulty <= found
    assert len(asked) <= 20
    assert guilty(NODES, equal, 20) == found
    assert guilty([], equal, 20) == frozenset()


def tower(layers: int = 12) -> onnx.ModelProto:
    """Experts over both sides: many products, each split."""
    g = Graph()
    both = g.op("Concat", [g.input("user_x", 1, ["N", 256]), g.input("item_x", 1, ["N", 32])], "both", axis=1)
    rng = np.random.default_rng(0)
    parts = []
    for i in range(layers):
        weight = (rng.standard_normal((288, 64)) / 17).astype(np.float32)
        product = g.op("MatMul", [both, g.weight(f"w{i}", weight)], f"product{i}")
        parts.append(g.op("Relu", [product], f"relu{i}"))
    g.op("Concat", parts, "experts", axis=1)
    head = (rng.standard_normal((64 * layers, 1)) / 28).astype(np.float32)
    g.op("MatMul", ["experts", g.weight("head", head)], "score")
    g.output("score", ["N", 1])
    return g.model()


SIDES = Sides({"user_x": "user", "item_x": "item"})


class Faulty:
    """The engine, but wrong in the rewrites of some nodes until it leaves them alone."""

    def __init__(self, *faulty: str):
        self.faulty, self.made = faulty, 0

    def __call__(self, model: onnx.ModelProto, sides: Sides, options: Any) -> Any:
        self.made += 1
        found = engine.rewrite(model, sides, options)
        if not found.changed:
            return found
        wrong = onnx.ModelProto()
        wrong.CopyFrom(found.model)
        for name in self.faulty:
            if name in options.skip:
                continue
            index = next(i for i, n in enumerate(wrong.graph.node) if name in n.output)
            last = wrong.graph.node[index]
            offset = f"{name}/fault"
            wrong.graph.initializer.append(numpy_helper.from_array(np.float32(1e-3), offset))
            after = onnx.helper.make_node("Add", [f"{name}/right", offset], [name], f"{name}/wrong")
            last.output[list(last.output).index(name)] = f"{name}/right"
            wrong.graph.node.insert(index + 1, after)
        return replace(found, model=wrong)


@pytest.mark.parametrize("faulty", [("product5",), ("product2", "product9"), ("relu0", "product0", "product11")])
def test_a_model_loses_the_rewrites_to_blame_alone(faulty: tuple[str, ...]) -> None:
    source = tower()
    right = engine.rewrite(source, SIDES)
    rewritten = [n.name for n in right.nodes if n.action in ("lifted", "split", "folded")]
    to_find = {n for n in faulty if n in rewritten}
    stand_in = Faulty(*to_find)
    done = optimize_checked(source, SIDES, engine=stand_in, candidates=(1, 2, 7), coverage=0)
    assert done.ok
    assert done.options.skip == to_find
    assert done.rewrite.changed
    assert len(done.incidents) == 1
    assert all(name in done.incidents[0] for name in to_find)
    assert stand_in.made <= 60


def test_a_fault_that_no_rewrite_explains_ends_soon() -> None:
    class Always(Faulty):
        def __call__(self, model: onnx.ModelProto, sides: Sides, options: Any) -> Any:
            return super().__call__(model, sides, replace(options, skip=frozenset()))

    stand_in = Always("product5")
    done = optimize_checked(tower(), SIDES, engine=stand_in, candidates=(2,), coverage=0)
    assert done.result is not None
    assert done.result.verdict == "different"
    assert stand_in.made < 12


def logarithmic() -> onnx.ModelProto:
    """A logarithmic network (AFN): BatchNormalization behind an Exp, before a product over both sides."""
    g = Graph()
    rng = np.random.default_rng(1)
    g.op("Concat", [g.input("user_x", 1, ["N", 64]), g.input("item_x", 1, ["N", 16])], "both", axis=1)
    g.op("Abs", ["both"], "size")
    g.op("Add", ["size", g.weight("tiny", np.float32(1e-4))], "positive")
    g.op("Log", ["positive"], "log")
    g.op("MatMul", ["log", g.weight("exponents", (rng.standard_normal((80, 48)) * 0.3).astype(np.float32))], "sum")
    g.op("Exp", ["sum"], "powers")
    scale = np.abs(rng.standard_normal(48)) + 0.5
    mean, variance = rng.standard_normal(48) * 50, np.abs(rng.standard_normal(48)) * 1e-3 + 1e-4
    names = [
        g.weight(f"n{i}", each.astype(np.float32))
        for i, each in enumerate((scale, rng.standard_normal(48), mean, variance))
    ]
    g.op("BatchNormalization", ["powers", *names], "normal")
    g.op("MatMul", ["normal", g.weight("w", (rng.standard_normal((48, 1)) / 7).astype(np.float32))], "score")
    g.outputs.append(onnx.helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1]))
    return g.model()


def test_a_logarithmic_network_keeps_its_split(tmp_path: Path) -> None:
    import mari_onnx

    done = mari_onnx.optimize(logarithmic(), SIDES)
    assert done.changed
    assert next(n for n in done.report.nodes if n.name == "sum").action == "split"
    assert done.report.check is not None
    assert done.report.check["verdict"] == "equal"
