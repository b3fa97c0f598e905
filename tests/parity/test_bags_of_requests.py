"""Bags of ids where several requests run together: the ids of all of them behind each other, and offsets that say where
each bag begins."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from mari_onnx.api import inspect, optimize
from mari_onnx.engine import rewrite
from mari_onnx.errors import CannotBatch
from mari_onnx.model.signature import signature
from mari_onnx.parity import check
from mari_onnx.sides.resolve import BATCHED, Sides
from tests.parity.test_several import run
from tests.test_bags import IDIOMS, SIDES, WIDE, node, pruned, scored
from tests.test_signatures import DIM, EMB, FLOAT, tensor

LENGTHS = ((), (3,), (0,), (0, 2), (2, 1), (1, 0, 4, 2, 2, 0, 5), (1, 3, 4, 2, 2, 6, 5))
"""The ids of each request's bag."""
FILLED = ("Scan", "Scatter")
"""Ways that onnxruntime does not run on no bag, or an empty one, in the source either."""


def bags(lengths: tuple[int, ...], seed: int = 0) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The bag of each request, and how a run takes all of them."""
    rng = np.random.default_rng(seed)
    each = [rng.integers(0, EMB, k) for k in lengths]
    starts = np.cumsum([0, *lengths])[:-1]
    return each, {"ids": np.concatenate([np.zeros(0, np.int64), *each]), "offsets": starts.astype(np.int64)}


def counted(form: str, counts: list[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The request of each candidate, and what says it."""
    owner = np.repeat(np.arange(len(counts)), counts)
    if form == "index":
        owner = np.random.default_rng(1).permutation(owner)
        return owner, {"request_index": owner.astype(np.int32)}
    return owner, {"request_offsets": np.cumsum([0, *counts]).astype(np.int32)} if form == "offsets" else {}


@pytest.mark.parametrize(("idiom", "form"), [*((k, "grid") for k in IDIOMS), ("Loop", "index"), ("Scatter", "offsets")])
def test_every_request_has_its_own_bag(idiom: str, form: str) -> None:
    source = pruned(scored(IDIOMS[idiom]))
    done = optimize(source, SIDES, batched=form)
    shapes = {i.name: i.shape for i in signature(done.model).inputs}
    assert (shapes["ids"], shapes["offsets"]) == (("L",), ("R",))
    for lengths in LENGTHS if idiom not in FILLED else [filled for filled in LENGTHS if filled and 0 not in filled]:
        mine, feed = bags(lengths)
        counts = [4] * len(lengths) if form == "grid" else [k % 3 for k in range(2, len(lengths) + 2)]
        owner, more = counted(form, counts)
        x = np.random.default_rng(2).standard_normal((len(owner), 4)).astype(np.float32)
        given = x.reshape(len(lengths), 4, 4) if form == "grid" else x
        (have,) = run(done.model, {**feed, **more, "x": given})
        assert have.shape == ((len(lengths), 4, 1) if form == "grid" else (len(owner), 1))
        for k, bag in enumerate(mine):
            n = counts[k]
            if n:
                one = {"ids": np.tile(bag, n), "offsets": np.arange(n) * len(bag), "x": x[owner == k]}
                got = have[k] if form == "grid" else have[owner == k]
                np.testing.assert_allclose(got, run(source, one)[0], rtol=1e-4, atol=1e-4)
    assert done.report.check["verdict"] == "equal"  # type: ignore[index]


def test_an_output_with_bags_needs_no_flag() -> None:
    source = pruned(scored(IDIOMS["Scatter"]))
    done = optimize(source, SIDES, batched="offsets")
    assert check(source, done.model).ok
    assert inspect(done.model).sides.bags == {"offsets": ("ids",)}


@pytest.mark.parametrize(
    ("kind", "form"), [("the last bag begins earlier", "grid"), ("ids in the opposite order", "index")]
)
def test_a_wrong_bag_is_found(kind: str, form: str) -> None:
    source = pruned(scored(IDIOMS["Loop"]))
    done = optimize(source, SIDES, batched=form)
    wrong = onnx.ModelProto()
    wrong.CopyFrom(done.model)
    if kind == "ids in the opposite order":
        nodes, old = [node("Slice", "ids _last _least _first _last", "_new")], "ids"
    else:  # one id of the bag before is the last one's
        nodes, old = [node("Sub", "offsets _1", "_b"), node("Max", "_b _0", "_new")], "offsets"
    for each in wrong.graph.node:
        each.input[:] = ["_new" if name == old else name for name in each.input]
        for attribute in each.attribute:
            for inner in attribute.g.node:
                inner.input[:] = ["_new" if name == old else name for name in inner.input]
    rest = [*nodes, *wrong.graph.node]
    del wrong.graph.node[:]
    wrong.graph.node.extend(rest)
    for name, value in (("_last", [-1]), ("_least", [-(1 << 62)]), ("_first", [0]), ("_1", [1]), ("_0", [0])):
        wrong.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    result = check(source, wrong, done.sides)
    assert not result.ok


@pytest.mark.parametrize("form", BATCHED)
def test_bags_of_candidates_are_those_of_all_requests(form: str) -> None:
    source = pruned(scored(IDIOMS["Scatter"]))
    source.graph.node[-4].input.append("u")
    source.graph.input.append(helper.make_tensor_value_info("u", FLOAT, ["N", 8]))
    next(p for p in source.graph.initializer if p.name == "W").CopyFrom(tensor("W", DIM + 12, WIDE))
    sides = {"u": "user", "ids": "item", "offsets": "item", "x": "item"}
    done = optimize(source, sides, batched=form)
    counts = [3, 3] if form == "grid" else [1, 4]
    owner, more = counted(form, counts)
    rng = np.random.default_rng(3)
    _, feed = bags((2, 0, 1, 3, 1, 2)[: len(owner)])
    u, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 8), (len(owner), 4)))
    given = {"offsets": feed["offsets"].reshape(2, 3), "x": x.reshape(2, 3, 4)} if form == "grid" else {"x": x}
    (have,) = run(done.model, {**feed, **given, **more, "u": u})
    (want,) = run(source, {**feed, "x": x, "u": u[owner]})
    np.testing.assert_allclose(have.reshape(-1, 1), want, rtol=1e-4, atol=1e-4)
    assert check(source, done.model).ok


def test_a_number_of_ids_that_the_file_fixes_is_refused() -> None:
    source = pruned(scored(IDIOMS["Scatter"], ("L", "N")))
    source.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 6
    sides = Sides(SIDES, axes={"ids": None}, bags={"offsets": ("ids",)}, batched="grid")
    made = rewrite(source, sides)
    assert (made.changed, "fixes the number of ids in ids at 6" in made.reason) == (False, True)


@pytest.mark.parametrize("form", ["grid", "index"])
def test_an_output_of_unknown_rank_has_the_shape_that_the_file_declares(form: str) -> None:
    source = pruned(scored(IDIOMS["Loop with a state"]))
    sides = {"ids": "item", "offsets": "item", "x": "user"}
    del source.graph.output[:]
    source.graph.output.add(name="y").type.tensor_type.elem_type = FLOAT
    with pytest.raises(CannotBatch, match="number of dimensions of the output y"):
        optimize(source, sides, batched=form)
    source.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, ["N", "one"]))
    done = optimize(source, sides, batched=form)
    counts = [2, 2] if form == "grid" else [1, 3]
    owner, more = counted(form, counts)
    _, feed = bags((2, 0, 1, 3))
    x = np.random.default_rng(4).standard_normal((2, 4)).astype(np.float32)
    offsets = feed["offsets"].reshape(2, 2) if form == "grid" else feed["offsets"]
    (have,) = run(done.model, {**feed, **more, "offsets": offsets, "x": x})
    (want,) = run(source, {**feed, "x": x[owner]})
    np.testing.assert_allclose(have.reshape(-1, 1), want, rtol=1e-4, atol=1e-4)
