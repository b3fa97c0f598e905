"""What the CPU's kernels are slow at, written another way: the same numbers, and where it is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mari_onnx.choices import options_for
from mari_onnx.engine import Options, rewrite
from mari_onnx.engine.output import cpu
from mari_onnx.engine.session import TARGETS
from mari_onnx.model.load import read
from mari_onnx.model.nodes import all_nodes
from mari_onnx.model.signature import signature
from mari_onnx.sides.resolve import resolve, side_file_beside
from tests.engine.checks import check
from tests.engine.drawing import shapes, starts, tensor
from tests.engine.graphs import Draw, Graph
from tests.engine.test_norm import attentions

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """No tensor is too small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "MIN_ELEMENTS", 0)
        yield


@st.composite
def layers(draw: Draw) -> Graph:
    g = draw(starts())
    shape = shapes(draw, low=3)
    width = draw(st.integers(2, 5))
    x = g.MatMul(tensor(draw, g, (*shape, 3), depth=2), g.weight(3, width))
    x = g.Add(x, g.weight(width))
    x = getattr(g, draw(st.sampled_from(("Relu", "Tanh", "Identity", "Neg"))))(x)
    if draw(st.booleans()):
        x = g.Transpose(x, perm=draw(st.permutations(range(len(shape) + 1))))
    if draw(st.booleans()):
        x = g.Softmax(x, axis=len(shape))
    return g.output(x, *([g.Relu(x)] if draw(st.booleans()) else []))


@given(layers())
def test_layers_are_the_same(g: Graph) -> None:
    check(g)


@given(attentions())
def test_attention_is_the_same(g: Graph) -> None:
    check(g, tolerance=1e-8)


def _ops(g: Graph, **options: str) -> list[str]:
    check(g)
    return [node.op_type for node in rewrite(g.model(), g.sides, Options(**options)).model.graph.node]  # type: ignore[arg-type]


def _mixed(g: Graph, *shape: int) -> str:
    """Rows that differ, beside a lifted product that makes the rewrite worth it."""
    return g.Add(g.MatMul(g.user(*shape), g.weight(shape[-1], shape[-1])), g.item(*shape))


@pytest.mark.parametrize("width", [5, 16])
def test_softmax_is_not_in_place_where_rows_are_no_vectors(width: int) -> None:
    g = Graph(18)
    assert _ops(g.output(g.Softmax(_mixed(g, 3, width), axis=-1))).count("Reshape") == (2 if width == 5 else 0)


@pytest.mark.parametrize(("perm", "reshapes"), [((0, 2, 1, 3), 2), ((0, 1, 3, 2), 0), ((0, 2, 3, 1), 0)])
def test_neighbours_change_places_inwards(perm: tuple[int, ...], reshapes: int) -> None:
    g = Graph(18)
    ops = _ops(g.output(g.Transpose(_mixed(g, 4, 2, 3), perm=list(perm))))
    assert ops.count("Reshape") == reshapes
    assert ops.count("Transpose") + ops.count("Einsum") == 1


@pytest.mark.parametrize(
    ("opset", "shape", "perm", "op"),
    [
        (18, (4, 3), (0, 2, 1), "Einsum"),
        (18, (2, 4, 3), (0, 3, 1, 2), "Einsum"),
        (18, (2, 4, 3), (0, 2, 3, 1), "Einsum"),
        (18, (4, 1, 3), (0, 3, 2, 1), "Einsum"),  # a dimension of 1 is moved for nothing
        (11, (4, 3), (0, 2, 1), "Transpose"),  # there is no Einsum
        (18, (64, 64), (0, 2, 1), "Transpose"),  # a parallel loop pays
        (18, (2, 4, 3), (0, 2, 1, 3), "Transpose"),  # rows are copied, not single elements
        (18, (4, 3), (1, 0, 2), "Transpose"),
    ],
)
def test_many_small_matrices_are_turned_by_one_thread(
    opset: int, shape: tuple[int, ...], perm: tuple[int, ...], op: str
) -> None:
    g = Graph(opset)
    ops = _ops(g.output(g.Transpose(_mixed(g, *shape), perm=list(perm))))
    assert {"Einsum": 0, "Transpose": 0, op: 1}.items() <= {k: ops.count(k) for k in ("Einsum", "Transpose")}.items()


@st.composite
def orders(draw: st.DrawFn) -> Graph:
    """Axes in any order, some of size 1."""
    g = Graph(draw(st.sampled_from((11, 13, 18))))
    shape = draw(st.lists(st.sampled_from((1, 2, 3, 5)), min_size=1, max_size=4))
    return g.output(g.Transpose(_mixed(g, *shape), perm=draw(st.permutations(range(len(shape) + 1)))))


@given(orders())
def test_axes_in_any_order_are_the_same(g: Graph) -> None:
    check(g)


def test_what_a_product_reads_turned_stays_a_transpose() -> None:
    g = Graph(18)
    x = _mixed(g, 4, 3)
    ops = _ops(g.output(g.MatMul(x, g.Transpose(g.Relu(x), perm=[0, 2, 1]))))
    assert ops.count("Einsum") == 0


def test_a_bias_of_many_rows_is_a_gemms() -> None:
    g = Graph(18)
    hidden = g.Relu(g.Add(g.MatMul(_mixed(g, 4, 3), g.weight(3, 5)), g.weight(5)))
    ops = _ops(g.output(hidden))
    assert ops[ops.index("Gemm") + 1] == "Relu"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("width", [4, 8])
def test_a_normalized_sum_is_a_sum_where_rows_are_not_short(width: int, dtype: type) -> None:
    g = Graph(18, dtype)
    x = g.Relu(_mixed(g, 4, width))
    g.output(g.LayerNormalization(g.Add(x, g.Tanh(x)), g.weight(width), g.weight(width)))
    assert ("Sum" in _ops(g)) == (width == 8)
    assert "Sum" not in _ops(g, target="cuda")


def test_heads_that_a_product_takes_as_they_are_stay() -> None:
    """onnxruntime computes a product on rows that are not the first axis without a Transpose."""
    g = Graph(18)
    heads = g.Transpose(_mixed(g, 2, 3), perm=[1, 0, 2])
    assert "Reshape" not in _ops(g.output(g.MatMul(heads, g.const(np.ones((2, 3, 4))))))


def _every_form() -> Graph:
    """What the CPU's kernels have forms for: a bias of rows, a Softmax, a swap of axes, a sum that is normalized."""
    g = Graph(18)
    x = _mixed(g, 3, 40)
    layer = g.Relu(g.Add(g.MatMul(x, g.weight(40, 40)), g.weight(40)))
    swapped = g.Transpose(g.Softmax(layer, axis=-1), perm=[0, 2, 1])
    fields = g.Transpose(g.Reshape(swapped, g.const(np.array([0, 8, 5, 3]))), perm=[0, 2, 1, 3])
    normed = g.Reshape(fields, g.const(np.array([0, 3, 40])))
    return g.output(g.LayerNormalization(g.Add(normed, x), g.weight(40), g.weight(40)))


def test_a_portable_graph_has_none_of_the_forms_of_cpu_kernels() -> None:
    special, portable = _ops(_every_form()), _ops(_every_form(), target="portable")
    assert "Sum" in special
    assert special.count("Reshape") > 2
    assert "Sum" not in portable
    assert portable.count("Reshape") == 2
    assert portable == _ops(_every_form(), target="cuda")


@pytest.mark.parametrize("name", ["bst", "din", "onetrans", "rankmixer"])
def test_outputs_have_no_operators_of_other_domains_than_their_source(name: str) -> None:
    path = MODELS / f"{name}.onnx"
    source = read(path).model
    sides = resolve(signature(source), file=side_file_beside(path))
    before = {node.domain for node in all_nodes(source.graph.node)}
    for target in TARGETS:
        done = rewrite(source, sides, options_for(target=target))
        assert done.changed
        assert {node.domain for node in all_nodes(done.model.graph.node)} <= before
