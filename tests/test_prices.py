"""Prices of kernels: what a node asks for, what onnxruntime joins, how prices are fitted and read; nothing is timed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.cli.main import run
from mari_onnx.errors import UsageError
from mari_onnx.model.ops import TABLE
from mari_onnx.parity.work import shapes_of
from mari_onnx.prices.fusions import Loaded
from mari_onnx.prices.kernels import runs, uses
from mari_onnx.prices.table import OTHER, OWN, Prices, graph_seconds, load, node_seconds
from mari_onnx.prices.use import KERNELS, Call, Use
from mari_onnx.timing.calibrate import LEAST, Timed, calibrate, fit, nonnegative
from mari_onnx.timing.kernel_samples import samples
from mari_onnx.timing.sample import Sample

SHAPES: list[tuple[tuple[int, ...], tuple[int, ...], float]] = [
    ((500, 64), (500, 64), 1),
    ((500, 64), (64,), 500),
    ((500, 64), (), 1),
    ((500, 50, 32), (500, 50, 1), 25_000),
    ((500, 50, 32), (500, 1, 32), 25_000),
    ((500, 1, 64), (1, 64), 500),
    ((500, 1), (1,), 500),
    ((500, 1), (), 500),
    ((500, 1), (1, 1), 1),
    ((500, 368, 1), (368, 1), 500),
    ((500, 1), (500, 1), 1),
]


@pytest.mark.parametrize(("left", "right", "stretches"), SHAPES)
def test_stretches_in_which_operands_broadcast(
    left: tuple[int, ...], right: tuple[int, ...], stretches: float
) -> None:
    assert runs(left, right) == runs(right, left) == stretches


def asked(op: str, *ins: tuple[int, ...], out: tuple[int, ...], fixed: int = 0, **attributes: Any) -> list[Use]:
    """What a node of these shapes asks for; the last `fixed` inputs are constant."""
    names = [f"x{k}" for k in range(len(ins))]
    node = helper.make_node(op, names, ["y"], **attributes)
    return uses(Call(node, ins, [out], [k >= len(ins) - fixed for k in range(len(ins))]))


def test_a_product_is_of_the_class_of_its_rows() -> None:
    assert asked("MatMul", (1, 64), (64, 32), out=(1, 32), fixed=1)[0].kernel == "gemm of 1 row"
    assert asked("MatMul", (4, 64), (64, 32), out=(4, 32), fixed=1)[0].kernel == "gemm of few rows"
    (large,) = asked("MatMul", (500, 50, 64), (64, 32), out=(500, 50, 32), fixed=1)
    assert large.kernel == "gemm"
    assert large.amounts["mults"] == 25_000 * 64 * 32
    assert not large.amounts["packed"]
    (moving,) = asked("MatMul", (500, 64), (64, 20), out=(500, 20))
    assert moving.amounts["packed"] == 64 * 32
    assert moving.amounts["mults"] == 500 * 64 * 32
    (many,) = asked("MatMul", (500, 10, 16), (500, 16, 10), out=(500, 10, 10))
    assert many.kernel == "batched gemm"
    assert many.amounts["calls"] == 500


@pytest.mark.parametrize("op", sorted({*TABLE, *KERNELS}))
def test_every_operator_has_amounts_whatever_is_known_of_its_shapes(op: str) -> None:
    """A node whose shapes are not known, or known of one side alone, must not end the pricing of its graph."""
    known: list[tuple[int, ...] | None] = [(4, 3, 2), (4, 3, 2), (4,)]
    for ins, out in itertools.product(([None] * 3, known, [()] * 3), (None, (), (4, 3, 2), (2,))):
        node = helper.make_node(op, ["a", "b", "c"], ["y"])
        for use in uses(Call(node, ins, [out])):
            assert all(np.isfinite(amount) and amount >= 0 for amount in use.amounts.values())


def test_a_transpose_is_of_the_class_of_what_it_moves() -> None:
    def kernel(shape: tuple[int, ...], *perm: int) -> str:
        return asked("Transpose", shape, out=tuple(shape[p] for p in perm), perm=perm)[0].kernel

    assert kernel((500, 20, 1, 16), 0, 2, 1, 3) == "Transpose of nothing"
    assert kernel((500, 64), 1, 0) == "Transpose of one axis"
    assert kernel((500, 10, 2, 16), 0, 2, 1, 3) == "Transpose of blocks"
    assert kernel((500, 10, 2), 2, 1, 0) == "Transpose in any order"
    assert kernel((500, 8, 2, 16), 2, 1, 0, 3) == "Transpose of blocks"


def test_a_reduction_of_inner_axes_reads_rows_and_of_outer_ones_blocks() -> None:
    (rows,) = asked("ReduceMax", (500, 6, 4), out=(500, 6, 1), axes=[2])
    (blocks,) = asked("ReduceMax", (500, 6, 4), out=(500, 1, 4), axes=[1])
    (dropped,) = asked("ReduceMax", (500, 6, 4), out=(500, 4), axes=[1], keepdims=0)
    assert rows.kernel == "ReduceMax of rows"
    assert rows.amounts["rows"] == 3000
    assert blocks.kernel == dropped.kernel == "ReduceMax over outer axes"
    assert blocks.amounts["calls"] == dropped.amounts["calls"] == 500


def test_a_reduction_whose_result_may_be_of_two_axes_is_of_the_one_that_is_written() -> None:
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    for axis, kernel in ((1, "over outer axes"), (-2, "over outer axes"), (2, "of rows"), (-1, "of rows")):
        (use,) = uses(Call(node, [(500, 16, 16), (1,)], [(500, 16)], [False, True], second=float(axis)))
        assert use.kernel == f"ReduceSum {kernel}"


def test_a_tile_copies_rows_and_what_does_not_stay_in_the_cache_is_counted() -> None:
    (inner,) = asked("Tile", (500, 10, 1), (3,), out=(500, 10, 64), fixed=1)
    (outer,) = asked("Tile", (1, 10, 64), (3,), out=(20, 10, 64), fixed=1)
    assert inner.amounts["runs"] == 500 * 10 * 64
    assert outer.amounts["runs"] == 10 + 19
    assert inner.amounts["large"] == inner.amounts["elements"] == 320_000
    assert "large" not in outer.amounts


def test_what_is_looked_up_is_text_or_a_number() -> None:
    whole = asked("LabelEncoder", (500, 2), out=(500, 2), keys_int64s=[1, 2], values_int64s=[3, 4])
    text = asked("LabelEncoder", (500, 2), out=(500, 2), keys_strings=["a", "b"], values_int64s=[3, 4])
    assert [use.kernel for use in whole + text] == ["LabelEncoder", "LabelEncoder of text"]
    (hot,) = asked("OneHotEncoder", (500, 1), out=(500, 1, 20), cats_int64s=list(range(20)))
    assert hot.amounts == {"node": 1, "rows": 500, "elements": 10_000}
    (linear,) = asked("LinearRegressor", (500, 8), out=(500, 2), coefficients=[0.5] * 16)
    assert linear.amounts["mults"] == 500 * 8 * 2
    (support,) = asked("SVMRegressor", (500, 8), out=(500, 1), support_vectors=[0.5] * 24)
    assert support.amounts["elements"] == 500 * 3


def test_every_sample_of_the_table_is_one_kernel_and_every_amount_of_it_has_a_price_or_is_free() -> None:
    asked_for: dict[str, set[str]] = {}
    for sample in samples():
        use = sample.use()
        if use is not None:
            asked_for.setdefault(use.kernel, set()).update(use.amounts)
    prices = load()
    assert len(asked_for) > 60
    assert not set(asked_for) - set(prices.kernels)
    for kernel, amounts in asked_for.items():
        assert not set(prices.kernels[kernel]) - amounts, kernel
        assert prices.kernels[kernel]["node"] > 0


def test_prices_are_found_again_from_times_made_of_them() -> None:
    rng, true = np.random.default_rng(0), {"node": 2e-7, "elements": 1e-10, "runs": 0.0}
    timed = []
    for _ in range(20):
        amounts = {"node": 1.0, "elements": float(rng.integers(1, 10**6)), "runs": float(rng.integers(1, 1000))}
        timed.append(Timed(Use("k", amounts), sum(true[name] * amount for name, amount in amounts.items())))
    prices, error = fit(timed)
    assert prices["node"] == pytest.approx(2e-7, rel=0.02)
    assert prices["elements"] == pytest.approx(1e-10, rel=0.02)
    assert prices.get("runs", 0.0) < 1e-12
    assert error < 0.01


def test_samples_that_are_lost_in_noise_do_not_make_all_others_free() -> None:
    timed = [Timed(Use("k", {"node": 1.0, "elements": n}), 2e-7 + 1e-10 * n) for n in (1e3, 1e4, 1e5, 1e6)]
    prices, _ = fit([*timed, Timed(Use("k", {"node": 1.0, "elements": 1e7}), LEAST)])
    assert prices["elements"] == pytest.approx(1e-10, rel=0.02)
    assert fit([Timed(Use("k", {"node": 1.0}), LEAST)])[0]["node"] > 0


def test_the_least_squares_are_nonnegative() -> None:
    rng = np.random.default_rng(1)
    matrix, wanted = rng.uniform(0, 1, (30, 4)), rng.uniform(-1, 1, 30)
    found = nonnegative(matrix, wanted)
    gradient = matrix.T @ (matrix @ found - wanted)
    assert (found >= 0).all()
    assert np.abs(gradient[found > 0]).max(initial=0) < 1e-6
    assert gradient.min() > -1e-6


def graph(*nodes: onnx.NodeProto, out: str, **weights: np.ndarray) -> onnx.GraphProto:
    """`x [500, 64]` -> out."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [500, 64])
    return helper.make_graph(nodes, "g", [x], [onnx.ValueInfoProto(name=out)],
                             [numpy_helper.from_array(array, name) for name, array in weights.items()])  # fmt: skip


def test_what_onnxruntime_does_at_load_costs_nothing() -> None:
    w, b = np.zeros((64, 32), np.float32), np.zeros(32, np.float32)
    g = graph(
        helper.make_node("Neg", ["w"], ["v"], "constant"),
        helper.make_node("MatMul", ["x", "v"], ["p"], "product"),
        helper.make_node("Add", ["p", "b"], ["q"], "bias"),
        helper.make_node("Relu", ["q"], ["y"], "activation"),
        out="y", w=w, b=b,
    )  # fmt: skip
    shapes = {"x": (500, 64), "v": (64, 32), "p": (500, 32), "q": (500, 32), "y": (500, 32)}
    took = {node.name: seconds for node, seconds in node_seconds(g, shapes, load())}
    assert took["constant"] == took["bias"] == 0 < took["activation"] < took["product"]
    alone = Loaded(graph(helper.make_node("Relu", ["x"], ["y"], "activation"), out="y"), shapes)
    assert not alone.joined
    assert not alone.gone


def test_a_layer_norm_of_many_nodes_is_one_kernel() -> None:
    half, two = np.full((), 1e-5, np.float32), np.full((), 2, np.float32)
    g = graph(
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[-1]),
        helper.make_node("Sub", ["x", "m"], ["d"], "difference"),
        helper.make_node("Pow", ["d", "two"], ["s"]),
        helper.make_node("ReduceMean", ["s"], ["v"], axes=[-1]),
        helper.make_node("Add", ["v", "eps"], ["e"]),
        helper.make_node("Sqrt", ["e"], ["r"]),
        helper.make_node("Div", ["d", "r"], ["y"]),
        out="y", two=two, eps=half,
    )  # fmt: skip
    loaded = Loaded(g, {})
    assert [node.op_type for node in loaded.stands_for.values()] == ["LayerNormalization"]
    assert len(loaded.gone) == len(g.node) - 1


def test_of_equal_nodes_one_is_computed_and_a_cast_to_the_type_that_is_there_is_none() -> None:
    two, also = np.full((), 2, np.float32), np.full((), 2, np.float32)
    g = graph(
        helper.make_node("Cast", ["x"], ["c"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "two"], ["p"], "first"),
        helper.make_node("Mul", ["x", "also"], ["q"], "equal"),
        helper.make_node("Relu", ["q"], ["r"], "after"),
        helper.make_node("Relu", ["p"], ["s"], "after too"),
        helper.make_node("Elu", ["p"], ["t"], "other"),
        helper.make_node("RandomUniformLike", ["x"], ["u"], "random"),
        helper.make_node("RandomUniformLike", ["x"], ["v"], "random too"),
        helper.make_node("Sum", ["r", "s", "t", "u", "v"], ["y"], "sum"),
        out="y", two=two, also=also,
    )  # fmt: skip
    loaded = Loaded(g, {})
    assert {node.name for node in g.node if id(node) in loaded.gone} == {"cast", "equal", "after too"}
    (node,) = (node for node in g.node if node.name == "first")
    assert loaded.only_reader(node) is None
    to_int = graph(helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64), out="y")
    assert not Loaded(to_int, {}).gone


def test_a_norm_of_a_sum_is_another_kernel_where_onnxruntime_knows_both_shapes() -> None:
    one = np.ones(64, np.float32)
    g = graph(
        helper.make_node("Add", ["a", "b"], ["s"], "sum"),
        helper.make_node("LayerNormalization", ["s", "one", "one"], ["y"], "norm"),
        out="y", one=one,
    )  # fmt: skip
    shapes = dict.fromkeys("absy", (500, 10, 64))
    assert not Loaded(g, shapes).stands_for
    g.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 10, 64]) for name in "ab")
    assert [node.op_type for node in Loaded(g, shapes).stands_for.values()] == ["SkipLayerNormalization"]
    assert not Loaded(g, {**shapes, "b": (500, 1, 64)}).stands_for


@pytest.mark.parametrize(
    ("bounds", "split"),
    [
        ([(0, 2), (2, 4)], True),
        ([(2, 2**63 - 1), (0, 2)], True),
        ([(0, 2), (2, 3)], False),
        ([(0, 2), (3, 4)], False),
        ([(0, 2), (1, 4)], False),
        ([(0, 4)], False),
    ],
)
def test_pieces_that_are_all_of_an_axis_are_one_split(bounds: list[tuple[int, int]], split: bool) -> None:
    weights = {"axis": np.array([1], np.int64)}
    nodes = []
    for k, (begin, end) in enumerate(bounds):
        weights |= {f"b{k}": np.array([begin], np.int64), f"e{k}": np.array([end], np.int64)}
        nodes.append(helper.make_node("Slice", ["a", f"b{k}", f"e{k}", "axis"], [f"y{k}"]))
    loaded = Loaded(graph(*nodes, out="y0", **weights), {"a": (500, 4), **{f"y{k}": (500, 2) for k in range(3)}})
    assert [node.op_type for node in loaded.stands_for.values()] == ["Split"] * split
    assert len(loaded.gone) == split


def test_columns_that_are_taken_one_by_one_are_one_split_and_views() -> None:
    weights = {f"k{k}": np.array(k - 2, np.int64) for k in range(4)}
    nodes = [helper.make_node("Gather", ["x", f"k{k}"], [f"y{k}"], axis=1) for k in range(4)]
    loaded = Loaded(graph(*nodes, out="y0", **weights), {"x": (500, 4), **{f"y{k}": (500,) for k in range(4)}})
    assert [node.op_type for node in loaded.stands_for.values()] == ["Split", "Squeeze", "Squeeze", "Squeeze"]


def test_a_first_operand_that_is_turned_is_multiplied_matrix_by_matrix() -> None:
    w = np.ones((64, 8), np.float32)
    turn = helper.make_node("Transpose", ["a"], ["t"], "turn", perm=[0, 2, 1])
    g = graph(turn, helper.make_node("MatMul", ["t", "w"], ["y"], "product"), out="y", w=w)
    shapes = {"a": (500, 64, 1), "t": (500, 1, 64), "y": (500, 1, 8)}
    took = {node.name: seconds for node, seconds in node_seconds(g, shapes, load())}
    rows = graph(helper.make_node("MatMul", ["t", "w"], ["y"], "product"), out="y", w=w)
    (once,) = (seconds for _, seconds in node_seconds(rows, shapes, load()))
    assert took["turn"] == 0
    assert took["product"] > 5 * once


@pytest.mark.parametrize(("perm", "moved"), [([1, 0, 2], (10, 500, 16)), ([1, 2, 0], (10, 16, 500))])
def test_a_transpose_of_the_first_axis_is_done_by_the_product_that_reads_it(
    perm: list[int], moved: tuple[int, ...]
) -> None:
    w = np.ones((10, moved[-1], 8), np.float32)
    shapes = {"a": (500, 10, 16), "t": moved, "z": moved, "y": (*moved[:2], 8)}

    def seconds(*nodes: onnx.NodeProto) -> dict[str, float]:
        g = graph(*nodes, out="y", w=w)
        return {node.op_type: each for node, each in node_seconds(g, shapes, load())}

    turn = helper.make_node("Transpose", ["a"], ["t"], perm=perm)
    alone = seconds(turn, helper.make_node("MatMul", ["t", "w"], ["y"]))
    apart = seconds(turn, helper.make_node("Abs", ["t"], ["z"]), helper.make_node("MatMul", ["z", "w"], ["y"]))
    assert alone["Transpose"] == 0 < apart["Transpose"]
    assert alone["MatMul"] == apart["MatMul"]


def test_an_einsum_that_orders_axes_takes_longer_than_the_transpose() -> None:
    shape = (500, 4, 5)
    transpose = asked("Transpose", shape, out=(500, 5, 4), perm=[0, 2, 1])
    assert asked("Einsum", shape, out=(500, 5, 4), equation="abc->acb")[:-1] == transpose
    plain = asked("Einsum", shape, out=(4, 5), equation="abc->bc")
    assert [use.kernel for use in plain] == ["Transpose of one axis"]


def test_a_body_counts_as_often_as_it_runs() -> None:
    name, number = onnx.ValueInfoProto, helper.make_tensor_value_info
    inner = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Identity", ["go"], ["going"])]
    scalars = [number("k", TensorProto.INT64, []), number("go", TensorProto.BOOL, [])]
    body = helper.make_graph(inner, "b", scalars, [name(name="going"), name(name="r")])
    g = graph(helper.make_node("Loop", ["m", ""], ["y"], body=body), out="y", m=np.array(9, np.int64))
    prices = Prices({OTHER: {"node": 1.0}})

    def seconds(**shapes: tuple[int, ...]) -> float:
        return sum(each for _, each in node_seconds(g, shapes, prices))

    assert seconds(y=(9, 500, 64)) - seconds(y=(8, 500, 64)) == seconds(y=(1, 500, 64)) - 1 == 2


def test_a_kernel_without_a_price_has_the_typical_one_and_a_run_costs_by_its_inputs() -> None:
    prices = Prices({OTHER: {"node": 1.0, "elements": 0.5}, "run": {"node": 10.0, "inputs": 2.0}})
    g = graph(helper.make_node("Relu", ["x"], ["y"]), out="y")
    assert graph_seconds(g, {"x": (2, 3), "y": (2, 3)}, prices) == 12 + 1 + 0.5 * 6


@pytest.mark.parametrize("text", ["", "[]", '{"threads": {}}', '{"threads": {"1": {}}, "provenance": {}}'])
def test_a_file_that_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="not a table of prices"):
        load(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the prices"):
        load(tmp_path / "none.json")


def test_the_table_of_the_nearest_number_of_threads_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    tables = {str(k): {OTHER: {"node": float(k)}} for k in (1, 8)}
    path.write_text(json.dumps({"provenance": {}, "threads": tables}))
    assert [load(path, k).kernels[OTHER]["node"] for k in (1, 2, 6, 64)] == [1, 1, 8, 8]
    assert load(path).foreign
    assert not load().foreign


def test_the_own_table_says_what_it_was_measured_on() -> None:
    provenance = json.loads(OWN.read_text())["provenance"]
    assert provenance["processor"]
    assert provenance["libraries"]["onnx"]
    assert provenance["samples"] > 500
    assert load(threads=1).kernels.keys() == load(threads=2).kernels.keys()
    assert load(threads=1).kernels != load(threads=2).kernels


def test_calibrate_measures_what_it_is_given(tmp_path: Path) -> None:
    table = calibrate(seconds=0.001, which=[Sample("Relu", ((n, 8),)) for n in (1, 50, 500)])
    assert set(table["threads"]["1"]) == {"Relu", "run", OTHER}
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(table))
    assert load(path).seconds(Use("Relu", {"node": 1, "elements": 4000})) > 0


def test_calibrate_refuses_threads_that_are_no_numbers(tmp_path: Path) -> None:
    assert run(["calibrate", str(tmp_path / "p.json"), "--threads", "0"]) == 2


def test_shapes_that_inference_does_not_know_are_met_by_running() -> None:
    g = graph(
        helper.make_node("NonZero", ["x"], ["i"]),
        helper.make_node("Transpose", ["i"], ["y"], perm=[1, 0]),
        out="y",
    )
    model = helper.make_model(g, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feed = np.zeros((500, 64), np.float32)
    feed[3, :5] = 1
    assert shapes_of(model, {"x": feed})["y"] == (5, 2)
