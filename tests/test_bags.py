"""Bags of the user's ids: N equal bags become one, whatever way the graph sums them up; what may be something else is
told by running the source, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mari_onnx.api import inspect, optimize
from mari_onnx.errors import UsageError
from mari_onnx.model.signature import signature
from mari_onnx.parity.check import check
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.requests import bags
from mari_onnx.sides.resolve import Sides, resolve
from tests.test_candidates import dims, history
from tests.test_signatures import DIM, EMB, FLOAT, INT64, model, node, tensor

SIDES = {"ids": "user", "offsets": "user", "x": "item"}
WIDE = 64


def number(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def body(nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str]) -> onnx.GraphProto:
    values = {name: onnx.ValueInfoProto(name=name) for name in [*inputs, *outputs]}
    for name, value in values.items():
        kind = {"i": INT64, "s": INT64, "e": INT64, "going": TensorProto.BOOL, "on": TensorProto.BOOL}.get(name, FLOAT)
        value.type.tensor_type.elem_type = kind
        if kind != FLOAT:
            value.type.tensor_type.shape.SetInParent()
        elif name == "row":
            value.type.tensor_type.shape.dim.add(dim_value=DIM)
    return helper.make_graph(nodes, "body", [values[k] for k in inputs], [values[k] for k in outputs])


def one_bag(mean: bool = True) -> list[onnx.NodeProto]:
    """The bag between the numbers s and e."""
    nodes = [node("Reshape", "s one", "s1"), node("Reshape", "e one", "e1"), node("Slice", "ids s1 e1 zero", "mine")]
    return [*nodes, node("Gather", "E mine", "em"), node("ReduceMean" if mean else "ReduceSum", "em zero", "row",
                                                         keepdims=0)]  # fmt: skip


def ends() -> list[onnx.NodeProto]:
    return [node("Shape", "ids", "many"), node("Concat", "offsets many", "cuts", axis=0), node("Shape", "offsets", "n")]


def looped(carried: bool = False) -> list[onnx.NodeProto]:
    """A Loop over the bags, whose rows are collected or put behind each other."""
    inner = [node("Gather", "cuts i", "s"), node("Add", "i uno", "j"), node("Gather", "cuts j", "e"), *one_bag(False)]
    inner += [node("Identity", "going", "on")]
    if carried:
        inner += [node("Unsqueeze", "row zero", "up"), node("Concat", "so up", "more", axis=0)]
        graph = body(inner, ["i", "going", "so"], ["on", "more"])
        whole = [node("Squeeze", "n zero", "times"), node("Loop", "times yes none", "bag", body=graph)]
    else:
        graph = body(inner, ["i", "going"], ["on", "row"])
        whole = [node("Squeeze", "n zero", "times"), node("Loop", "times yes", "bag", body=graph)]
    return [*ends(), *whole]


def scanned() -> list[onnx.NodeProto]:
    graph = body(one_bag(False), ["s", "e"], ["row"])
    cut = node("Slice", "cuts one far zero", "behind")
    return [*ends(), cut, node("Scan", "offsets behind", "bag", body=graph, num_scan_inputs=2)]


def scattered() -> list[onnx.NodeProto]:
    """The number of each id's bag, by a running sum; rows are added up where they belong."""
    nodes = [node("Shape", "ids", "many"), node("ConstantOfShape", "many", "none_yet", value=number("", [0]))]
    nodes += [node("Shape", "offsets", "n"), node("ConstantOfShape", "n", "ones", value=number("", [1]))]
    nodes += [node("ScatterElements", "none_yet offsets ones", "begins", axis=0, reduction="add")]
    nodes += [node("CumSum", "begins null", "upto"), node("Sub", "upto uno", "bag_of"), node("Gather", "E ids", "em")]
    nodes += [node("Concat", "n d", "all", axis=0), node("ConstantOfShape", "all", "empty")]
    nodes += [node("Unsqueeze", "bag_of last", "place")]
    return [*nodes, node("ScatterND", "empty place em", "bag", reduction="add")]


def masked() -> list[onnx.NodeProto]:
    """A row of ones and zeros per bag, times the embeddings."""
    nodes = [*ends(), node("Squeeze", "many zero", "stop"), node("Range", "null stop uno", "at")]
    nodes += [node("Slice", "cuts one far zero", "behind"), node("Unsqueeze", "offsets last", "low")]
    nodes += [node("Unsqueeze", "behind last", "high"), node("Less", "at high", "before")]
    nodes += [node("GreaterOrEqual", "at low", "after"), node("And", "before after", "within")]
    nodes += [node("Cast", "within", "weights", to=FLOAT), node("Gather", "E ids", "em")]
    return [*nodes, node("MatMul", "weights em", "bag")]


IDIOMS = {
    "Loop": looped(),
    "Loop with a state": looped(True),
    "Scan": scanned(),
    "Scatter": scattered(),
    "mask": masked(),
}


def weights() -> list[onnx.TensorProto]:
    found = [tensor("E", EMB, DIM), tensor("W", DIM + 4, WIDE), tensor("V", WIDE, 1)]
    found += [number("one", [1]), number("zero", [0]), number("uno", 1), number("null", 0), number("yes", True)]
    found += [number("last", [-1]), number("far", [2**31]), number("d", [DIM])]
    return [*found, numpy_helper.from_array(np.zeros((0, DIM), np.float32), "none")]


def scored(nodes: list[onnx.NodeProto], names: tuple[str, str] = ("L", "N")) -> onnx.ModelProto:
    """A row per bag beside items [N, 4], in front of two layers."""
    nodes = [*nodes, node("Concat", "bag x", "c", axis=1), node("MatMul", "c W", "h"), node("Relu", "h", "r")]
    nodes += [node("MatMul", "r V", "y")]
    inputs = [("ids", INT64, [names[0]]), ("offsets", INT64, [names[1]]), ("x", FLOAT, ["N", 4])]
    made = model(nodes, inputs, weights())
    made.opset_import[0].version = 18
    for each in made.graph.node:
        for attribute in each.attribute:
            if attribute.name == "value" and attribute.t.name == "":
                attribute.t.name = "filled"
    return made


def run(of: onnx.ModelProto, **feed: np.ndarray) -> np.ndarray:
    found: np.ndarray = onnxruntime.InferenceSession(of.SerializeToString()).run(None, feed)[0]
    return found


def pruned(made: onnx.ModelProto) -> onnx.ModelProto:
    """Without weights that no node reads."""
    text = " ".join(str(each) for each in made.graph.node)
    kept = [p for p in made.graph.initializer if f'"{p.name}"' in text]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return made


@pytest.mark.parametrize("names", [("L", "N"), ("s1", "s2")], ids=str)
@pytest.mark.parametrize("idiom", IDIOMS)
def test_equal_bags_become_one(idiom: str, names: tuple[str, str]) -> None:
    source = pruned(scored(IDIOMS[idiom], names))
    done = optimize(source, SIDES)
    assert done.changed
    assert done.sides.bags == {"offsets": ("ids",)}
    assert (dims(done.model, "offsets"), dims(done.model, "ids")) == ((1,), (names[0],))
    assert max(done.report.check["candidates"]) > 1  # type: ignore[index]
    rng = np.random.default_rng(0)
    for size in (1, 5):
        bag, x = rng.integers(0, EMB, size), rng.standard_normal((6, 4)).astype(np.float32)
        wanted = run(source, ids=np.tile(bag, 6), offsets=np.arange(6) * size, x=x)
        got = run(done.model, ids=bag, offsets=np.zeros(1, np.int64), x=x)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert check(source, done.model).ok  # from the output's metadata
    assert inspect(done.model).sides.bags == {"offsets": ("ids",)}
    assert not optimize(done.model).changed


def test_a_model_that_takes_another_bag_is_found_wrong() -> None:
    source = pruned(scored(IDIOMS["Loop"]))
    wrong = optimize(source, SIDES).model
    cut = next(each for each in wrong.graph.node if each.op_type == "Gather" and each.input[0] == "E")
    wrong.graph.node.insert(0, node("Slice", "ids one far zero", "fewer"))
    wrong.graph.initializer.extend([number("one", [1]), number("far", [2**31])])
    cut.input[1] = "fewer"
    assert not check(source, wrong).ok


@pytest.mark.parametrize("idiom", ["Loop", "Scan", "Scatter"])
def test_without_a_run_bags_are_refused_unless_the_side_file_says_so(idiom: str, tmp_path: Path) -> None:
    source = pruned(scored(IDIOMS[idiom]))
    with pytest.raises(UsageError, match=r"where bags of ids begin") as error:
        optimize(source, SIDES, check=False)
    assert "[bags]" in str(error.value)
    (tmp_path / "m.sides.toml").write_text('user = ["ids", "offsets"]\nitem = "x"\n[bags]\noffsets = "ids"\n')
    found = resolve(signature(source), file=tmp_path / "m.sides.toml")
    assert resolve(signature(source), metadata=found.to_json()) == found
    assert dims(optimize(source, found, check=False).model, "offsets") == (1,)


def test_a_length_beside_a_history_is_no_bag() -> None:
    """The first entries of a history count, as many as a length [N] says: its rows are equal, as the tag promises."""
    nodes = [node("Shape", "ids", "many"), node("Squeeze", "many zero", "stop"), node("Range", "null stop uno", "at")]
    nodes += [node("Unsqueeze", "offsets last", "high"), node("Less", "at high", "before")]
    nodes += [node("Cast", "before", "weights", to=FLOAT), node("Gather", "E ids", "em")]
    source = pruned(scored([*nodes, node("MatMul", "weights em", "bag")]))
    done = optimize(source, SIDES)
    assert (done.changed, done.sides.bags) == (True, {})
    ids, x = np.array([3, 1, 4, 1, 5]), np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    wanted = run(source, ids=ids, offsets=np.full(6, 3), x=x)
    np.testing.assert_allclose(run(done.model, ids=ids, offsets=np.array([3]), x=x), wanted, rtol=1e-4, atol=1e-4)


def test_offsets_that_count_for_more_than_their_bags_are_refused() -> None:
    """Each row also has the offset itself, so equal bags have different rows, and so have equal offsets."""
    nodes = [*looped()[:-1], helper.make_node("Loop", ["times", "yes"], ["bag_of"], "bag_of",
                                              body=looped()[-1].attribute[0].g)]  # fmt: skip
    nodes += [node("Unsqueeze", "offsets last", "up"), node("Cast", "up", "number", to=FLOAT)]
    source = pruned(scored([*nodes, node("Add", "bag_of number", "bag")]))
    with pytest.raises(UsageError, match="nothing tells whether 'offsets'"):
        optimize(source, SIDES)


def test_bags_of_items_are_drawn_as_bags() -> None:
    source = pruned(scored(IDIOMS["Loop"]))
    source.graph.node[-4].input.append("u")
    source.graph.input.append(helper.make_tensor_value_info("u", FLOAT, ["N", 8]))
    next(p for p in source.graph.initializer if p.name == "W").CopyFrom(tensor("W", DIM + 12, WIDE))
    done = optimize(source, {"u": "user", "ids": "item", "offsets": "item", "x": "item"}, candidates=500)
    assert (done.changed, dims(done.model, "u")) == (True, (1, 8))
    assert done.sides.bags == {"offsets": ("ids",)}
    assert dims(done.model, "offsets") == ("N",)
    assert not Layout(signature(source), done.sides).bags(user=True)


def test_recorded_bags_are_reduced_to_one_and_have_to_be_equal(tmp_path: Path) -> None:
    source, x = pruned(scored(IDIOMS["Loop"])), np.ones((3, 4), np.float32)
    bag = np.array([7, 8])
    for name, ids, offsets in (
        ("all", np.tile(bag, 3), np.arange(3) * 2),
        ("one", bag, np.zeros(1, np.int64)),
    ):
        np.savez(tmp_path / f"{name}.npz", ids=ids, offsets=offsets, x=x)
        done = optimize(source, SIDES, requests=tmp_path / f"{name}.npz")
        assert done.report.check["recorded"] == 1  # type: ignore[index]
    for ids, offsets in ((np.arange(6), np.arange(3) * 2), (np.tile(bag, 3), np.array([0, 1, 4]))):
        np.savez(tmp_path / "differ.npz", ids=ids, offsets=offsets, x=x)
        with pytest.raises(UsageError, match="differ between candidates"):
            optimize(source, SIDES, requests=tmp_path / "differ.npz")


@pytest.mark.parametrize(("total", "n"), [(0, 0), (0, 3), (2, 3), (3, 3), (20, 3), (5, 1), (4, 0)])
def test_drawn_offsets_cut_all_ids(total: int, n: int) -> None:
    found = bags.drawn(total, n, np.random.default_rng(0))
    assert len(found) == n
    assert (np.diff(found) >= (total >= n)).all()
    assert n == 0 or (found[0] == 0 and found[-1] <= total - (total >= n))


def test_bags_are_repeated_and_picked() -> None:
    arrays, cuts = {"o": np.array([0, 2, 2]), "i": np.arange(5)}, {"o": ("i",)}
    found = bags.picked(arrays, cuts, [2, 0, 1])
    assert (found["o"].tolist(), found["i"].tolist()) == ([0, 3, 5], [2, 3, 4, 0, 1])
    found = bags.repeated({"o": np.zeros(1, np.int64), "i": np.arange(2)}, cuts, 3)
    assert (found["o"].tolist(), found["i"].tolist()) == ([0, 2, 4], [0, 1, 0, 1, 0, 1])
    assert bags.repeated({"o": np.zeros(1, np.int64), "i": np.arange(2)}, cuts, 0)["i"].size == 0


def test_a_history_alone_is_no_bag() -> None:
    assert optimize(history(["T"], ["N"]), {"hist": "user", "item": "item"}).sides.bags == {}
    assert Sides().bags == {}


def test_the_largest_of_a_bag_tells_bags_apart() -> None:
    source = pruned(scored(IDIOMS["Loop"]))
    for inner in next(n for n in source.graph.node if n.op_type == "Loop").attribute[0].g.node:
        if inner.op_type == "ReduceSum":
            inner.op_type = "ReduceMax"
    assert optimize(source, SIDES).sides.bags == {"offsets": ("ids",)}


def test_a_result_of_unknown_rank_has_the_shape_that_the_file_declares() -> None:
    source = pruned(scored(IDIOMS["Scan"]))
    graph = next(n for n in source.graph.node if n.op_type == "Scan").attribute[0].g
    graph.output[0].type.tensor_type.ClearField("shape")
    found = resolve(signature(source), user=["ids", "offsets"], item=["x"], metadata='{"bags": {"offsets": "ids"}}')
    assert not optimize(source, found, check=False).changed
    source.graph.value_info.append(helper.make_tensor_value_info("bag", FLOAT, ["N", DIM]))
    done = optimize(source, found)
    assert (done.changed, dims(done.model, "offsets")) == (True, (1,))
