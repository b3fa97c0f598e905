"""Operators of libraries: what the file declares of their results is believed, and string operators are lifted."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.api import optimize
from mari_onnx.engine.inputs import declared
from mari_onnx.model.dims import Dim
from mari_onnx.sides.resolve import Sides
from tests.test_candidates import WIDE
from tests.test_signatures import FLOAT, INT64, node, tensor

SIDES = {"city": "user", "u": "user", "cat": "item"}
STRING = TensorProto.STRING


def categories(domain: str, op: str, told: bool = True, computed: bool = False) -> onnx.ModelProto:
    """Embeddings of two strings, by an operator of a library, beside a user's numbers u [N, 8]."""
    nodes = [node("Identity", "b", "c")] if not computed else [node("Size", "u", "c0"), node("Reshape", "c0 one", "c")]
    for name in ("city", "cat"):
        nodes += [helper.make_node(op, [name, "c"], [f"{name}_h"], f"{name}_h", domain=domain)]
        nodes += [node("Gather", f"E {name}_h", f"{name}_e"), node("Reshape", f"{name}_e to", f"{name}_r")]
    nodes += [node("Concat", "city_r cat_r u", "j", axis=1), node("MatMul", "j W", "h"), node("Relu", "h", "r")]
    nodes += [node("MatMul", "r V", "y")]
    of = helper.make_tensor_value_info
    inputs = [of("city", STRING, ["N", 1]), of("cat", STRING, ["N", 1]), of("u", FLOAT, ["N", 8])]
    weights = [tensor("E", 50, 16), tensor("W", 40, WIDE), tensor("V", WIDE, 1)]
    weights += [numpy_helper.from_array(np.array(v), k) for k, v in (("b", [50]), ("to", [-1, 16]), ("one", [1]))]
    infos = [of(f"{name}_h", INT64, ["N", 1]) for name in ("city", "cat")] if told else []
    graph = helper.make_graph(nodes, "g", inputs, [of("y", FLOAT, ["N", 1])], weights, value_info=infos)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)])


def actions(source: onnx.ModelProto) -> dict[str, str]:
    done = optimize(source, SIDES, check=False)
    return {n.name: n.action for n in done.report.nodes}


def test_declared_types_let_what_follows_be_split() -> None:
    """Nothing is known of the operator itself, so it keeps its N rows; the user's numbers are lifted all the same."""
    told = actions(categories("a.library", "Hash"))
    assert (told["city_h"], told["h"]) == ("barrier", "split")
    assert actions(categories("a.library", "Hash", told=False))["h"] != "split"


def test_only_symbols_that_inputs_have_are_believed() -> None:
    source = categories("a.library", "Hash")
    source.graph.value_info.append(helper.make_tensor_value_info("other", FLOAT, ["N", "S", 3]))
    source.graph.value_info.append(onnx.ValueInfoProto(name="untyped"))
    found = declared(source.graph, Sides(SIDES))
    assert found["city_h"] == (INT64, (Dim.symbol("N"), 1))
    assert found["other"] == (FLOAT, (Dim.symbol("N"), None, 3))
    assert "untyped" not in found


@pytest.mark.parametrize("op", ["StringToHashBucketFast", "StringToHashBucket"])
@pytest.mark.parametrize("told", [True, False])
def test_strings_one_by_one_are_lifted(op: str, told: bool) -> None:
    found = actions(categories("ai.onnx.contrib", op, told))
    assert (found["city_h"], found["city_e"], found["h"]) == ("lifted", "lifted", "split")


def test_a_number_of_buckets_that_is_computed_is_refused() -> None:
    assert actions(categories("ai.onnx.contrib", "StringToHashBucket", computed=True))["city_h"] != "lifted"
