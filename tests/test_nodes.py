"""The view through which nodes of a file are read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.model import nodes


def branch(*inner: onnx.NodeProto, output: str) -> onnx.GraphProto:
    info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(inner, "branch", [], [info])


def nested() -> onnx.NodeProto:
    """An If in a branch of an If: the inner one reads `b` and `c`, and `own` of the branch around it."""
    one = branch(helper.make_node("Relu", ["c"], ["t"]), output="t")
    two = branch(helper.make_node("Neg", ["own"], ["e"]), output="e")
    deep = helper.make_node("If", ["b"], ["d"], then_branch=one, else_branch=two)
    first = branch(helper.make_node("Abs", ["x"], ["own"]), deep, output="d")
    return helper.make_node("If", ["a"], ["y"], then_branch=first, else_branch=branch(output="z"))


def test_what_graphs_within_a_node_read_from_outside() -> None:
    assert sorted(nodes.captures(nested())) == ["b", "c", "x", "z"]
    assert sorted(nodes.reads(nested())) == ["a", "b", "c", "x", "z"]


def test_every_node_however_deep_in_order() -> None:
    found = [n.op_type for n in nodes.all_nodes([nested()])]
    assert found[:3] == ["If", "Abs", "If"]
    assert sorted(found[3:]) == ["Neg", "Relu"]


def test_a_name_that_a_graph_defines_is_not_renamed() -> None:
    node = nested()
    nodes.rename_captures(node, {"c": "C", "own": "OWN", "z": "Z"})
    assert sorted(nodes.captures(node)) == ["C", "Z", "b", "x"]
    (first,) = (g for g in nodes.graphs(node) if g.node)
    assert first.node[0].output[0] == "own"


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({"value_int": 3}, np.int64(3)),
        ({"value_ints": [1, 2]}, np.array([1, 2])),
        ({"value_float": 0.5}, np.float32(0.5)),
        ({"value_floats": [0.5]}, np.array([0.5], np.float32)),
        ({"value_string": "a"}, np.asarray("a", object)),
        ({"value": numpy_helper.from_array(np.eye(2))}, np.eye(2)),
    ],
)
def test_a_constant_in_any_of_its_attributes(attributes: dict[str, object], found: np.ndarray) -> None:
    seen = nodes.constant(helper.make_node("Constant", [], ["c"], **attributes))
    assert seen is not None
    np.testing.assert_array_equal(seen, found)
    assert np.asarray(seen).dtype == np.asarray(found).dtype
    assert nodes.constant(helper.make_node("Constant", [], ["c"], domain="other", **attributes)) is None


def test_the_standard_s_domain_has_two_spellings() -> None:
    plain, named, other = (helper.make_node("Gelu", ["x"], ["y"], domain=d) for d in ("", "ai.onnx", "com.microsoft"))
    assert [nodes.operator(n) for n in (plain, named, other)] == ["Gelu", "Gelu", "com.microsoft.Gelu"]
    assert [nodes.is_standard(n) for n in (plain, named, other)] == [True, True, False]


def test_attributes_are_python_s() -> None:
    node = helper.make_node("Einsum", ["a"], ["b"], equation="ij->ji", sizes=[1, 2], names=["p", "q"])
    assert nodes.attributes(node) == {"equation": "ij->ji", "sizes": [1, 2], "names": ["p", "q"]}
    assert nodes.attribute(node, "missing", 7) == 7
