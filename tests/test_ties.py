"""Free dimensions that have to be of one length get one symbol; others stay as they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mari_onnx.api import optimize
from mari_onnx.model.signature import signature
from mari_onnx.parity.candidates import with_axes
from mari_onnx.parity.check import check
from mari_onnx.sides.resolve import Sides
from tests.test_candidates import WIDE, dims, same
from tests.test_signatures import DIM, EMB, FLOAT, INT64, Shape, model, node, tensor


def histories(*shapes: Shape, tied: int = 2) -> onnx.ModelProto:
    """Histories ta, tb, .. of the user beside items [N]: the first `tied` of them are added up entry by entry, each of
    the others has a mean of its own."""
    names = ["ta", "tb", "tc", "td"][: len(shapes)]
    nodes = [node("Gather", f"E {k}", f"e{k}") for k in names]
    nodes += [node("Identity", "eta", "s0")]
    nodes += [node("Add", f"s{i} e{k}", f"s{i + 1}") for i, k in enumerate(names[1:tied])]
    nodes += [node("ReduceMean", f"s{tied - 1}", "m0", axes=[0], keepdims=1)]
    nodes += [node("ReduceMean", f"e{k}", f"m{k}", axes=[0], keepdims=1) for k in names[tied:]]
    users = ["m0", *(f"m{k}" for k in names[tied:])]
    nodes += [node("Concat", " ".join(users), "m", axis=1), node("Shape", "item", "n")]
    nodes += [node("Concat", "n d", "to", axis=0), node("Expand", "m to", "u"), node("Gather", "E item", "i")]
    nodes += [node("Concat", "u i", "c", axis=1), node("MatMul", "c W", "h"), node("Relu", "h", "r")]
    nodes += [node("MatMul", "r V", "y")]
    width = len(users) * DIM
    weights = [tensor("E", EMB, DIM), tensor("W", width + DIM, WIDE), tensor("V", WIDE, 1)]
    weights.append(onnx.numpy_helper.from_array(np.array([width]), "d"))
    inputs = [(k, INT64, shape) for k, shape in zip(names, shapes, strict=True)]
    return model(nodes, [*inputs, ("item", INT64, ["N"])], weights)


def sides(source: onnx.ModelProto) -> dict[str, str]:
    return {i.name: "item" if i.name == "item" else "user" for i in signature(source).inputs}


@pytest.mark.parametrize("shapes", [([None], [None]), (["s1"], ["s2"]), ([None], ["T"]), (["T"], ["T"])], ids=str)
def test_two_histories_of_one_length_get_one_symbol(shapes: tuple[Shape, Shape]) -> None:
    source = histories(*shapes)
    done = optimize(source, sides(source))
    assert done.changed
    assert dims(done.model, "ta") == dims(done.model, "tb")
    assert isinstance(dims(done.model, "ta")[0], str)
    rng = np.random.default_rng(0)
    for length in (1, 9):
        same(source, done.model, {k: rng.integers(0, EMB, size) for k, size in (("ta", length), ("tb", length),
                                                                                ("item", 6))})  # fmt: skip
    assert check(source, done.model).ok
    assert not optimize(done.model).changed


@pytest.mark.parametrize("shapes", [([None], [None]), (["s1"], ["s2"])], ids=str)
def test_two_histories_of_their_own_keep_their_dimensions(shapes: tuple[Shape, Shape]) -> None:
    source = histories(*shapes, tied=1)
    done = optimize(source, sides(source))
    assert (done.changed, done.sides.shapes) == (True, {})
    assert [dims(done.model, k) for k in ("ta", "tb")] == [tuple(s or ()) for s in shapes]
    rng = np.random.default_rng(0)
    same(source, done.model, {"ta": rng.integers(0, EMB, 3), "tb": rng.integers(0, EMB, 8), "item": np.arange(6)})


def test_of_four_histories_only_those_that_have_to_be_are_of_one_length() -> None:
    source = histories([None], [None], [None], [None], tied=2)
    found = with_axes(source, Sides(sides(source)), source)
    assert found.shapes == {"ta": ("T",), "tb": ("T",)}
    three = histories(["T"], [None], [None], [None], tied=3)
    assert with_axes(three, Sides(sides(three)), three).shapes == {"tb": ("T",), "tc": ("T",)}
    assert with_axes(source, Sides(sides(source))).shapes == {}


def test_a_source_that_runs_at_no_length_leaves_it() -> None:
    source = histories([None], [None])
    source.graph.node[0].domain = "nobody.has.this"
    source.opset_import.append(onnx.helper.make_opsetid("nobody.has.this", 1))
    assert with_axes(source, Sides(sides(source)), source).shapes == {}


def test_histories_of_items_are_tied_too() -> None:
    """[N, A] and [N, B], added up, are of one length."""
    nodes = [node("Add", "p q", "s"), node("ReduceMean", "s", "m", axes=[1]), node("Concat", "u m", "c", axis=1)]
    nodes += [node("MatMul", "c W", "h"), node("Relu", "h", "r"), node("MatMul", "r V", "y")]
    inputs = [("u", FLOAT, ["N", 64]), ("p", FLOAT, ["N", None]), ("q", FLOAT, ["N", "B"])]
    source = model(nodes, inputs, [tensor("W", 65, WIDE), tensor("V", WIDE, 1)])
    done = optimize(source, {"u": "user", "p": "item", "q": "cross"})
    assert (done.changed, dims(done.model, "p"), dims(done.model, "q")) == (True, ("N", "B"), ("N", "B"))
