"""Packed inputs `[P, F]` of several requests (`--batched index`, `offsets`), and candidates of several tokens."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from mari_onnx.api import optimize
from mari_onnx.sides.resolve import Sides
from tests.parity.test_requests_in_rows import COUNTS, FORMS, feed_of
from tests.parity.test_several import run
from tests.test_signatures import FLOAT, Shape, model, node, tensor

USER, ITEM = [0, 2, 3, 5], [1, 4]


def packed(*more: str) -> tuple[onnx.ModelProto, Sides]:
    """`relu([X | more] W) V`; of X four columns are the user's, and more are inputs of the user."""
    width = 6 + 5 * len(more)
    nodes = [node("Concat", " ".join(("X", *more)), "c", axis=1), node("MatMul", "c W", "h"), node("Relu", "h", "r")]
    nodes.append(node("MatMul", "r V", "y"))
    inputs: list[tuple[str, int, Shape]] = [("X", FLOAT, ("N", 6)), *((name, FLOAT, ("N", 5)) for name in more)]
    made = model(nodes, inputs, [tensor("W", width, 32), tensor("V", 32, 1)])
    return made, Sides(dict.fromkeys(more, "user"), columns={"X": {"user": USER, "item": ITEM}})


def feeds(form: str, counts: list[int], more: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs of a run of requests with so many candidates, and the request of each candidate."""
    given, owner = feed_of(form, counts)
    rng = np.random.default_rng(len(counts))
    rows = rng.standard_normal((len(owner), 6)).astype(np.float32)
    rows[:, USER] = rng.standard_normal((len(counts), 4)).astype(np.float32)[owner]
    feed = {"X": rows} | {name: rng.standard_normal((len(counts), 5)).astype(np.float32) for name in more}
    return {**feed, f"request_{form}": given[f"request_{form}"]}, owner


@pytest.mark.parametrize("more", [(), ("u",)])
@pytest.mark.parametrize("form", FORMS)
def test_the_users_columns_are_computed_once_per_request(form: str, more: tuple[str, ...]) -> None:
    source, sides = packed(*more)
    made = optimize(source, sides, batched=form).model
    for counts in COUNTS:
        feed, owner = feeds(form, counts, more)
        (have,) = run(made, feed)
        assert have.shape == (len(owner), 1)
        if len(owner):
            (want,) = run(source, {"X": feed["X"], **{name: feed[name][owner] for name in more}})
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)
    reads = {o: n for n in made.graph.node for o in n.output}
    products = [n for n in made.graph.node if n.op_type in ("MatMul", "Gemm")]
    assert sum(_reaches(reads, n.input[0], "ScatterND") for n in products) == 1


def _reaches(reads: dict[str, onnx.NodeProto], name: str, op: str) -> bool:
    """Whether a tensor is that of an operator, but for its dimensions and what stands beside it in a Concat."""
    found = reads.get(name)
    if found is None or found.op_type not in (op, "Squeeze", "Reshape", "Concat", "Slice", "Gather"):
        return False
    return found.op_type == op or any(_reaches(reads, x, op) for x in found.input)


@pytest.mark.parametrize("form", FORMS)
def test_a_packed_users_result_has_a_row_for_each_request(form: str) -> None:
    """Offsets say how many requests there are, and so do inputs of the user; an index alone does not."""
    source, sides = packed()
    user = numpy_helper.from_array(np.array(USER), "columns")
    source.graph.initializer.append(user)
    first = [node("Gather", "X columns", "mine", axis=1), node("MatMul", "mine U", "z")]
    source.graph.node.extend(first)
    source.graph.initializer.append(tensor("U", 4, 3))
    source.graph.output.append(helper.make_tensor_value_info("z", FLOAT, ["N", 3]))
    made = optimize(source, sides, batched=form).model
    for counts in ([3, 1], [2, 0, 4]):
        feed, owner = feeds(form, counts, ())
        have, mine = run(made, feed)
        want, theirs = run(source, {"X": feed["X"]})
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
        assert len(mine) == len(owner)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_tokens_of_a_candidate_are_rows_of_its_request(form: str, heads: int) -> None:
    """`x M[r]` of 3 tokens per candidate gathers no matrices `[64, 96]`."""
    lead: tuple[int, ...] = () if heads == 1 else (heads,)
    nodes = [node("MatMul", "x m", "p"), node("Relu", "p", "r"), node("Reshape", "r flat", "f")]
    for k in range(4):  # a graph is not to grow to more than twice its nodes
        nodes += [node("MatMul", f"{'f' if k == 0 else f'a{k}'} {'V' if k == 0 else 'S'}", f"h{k}")]
        nodes += [node("Relu", f"h{k}", f"a{k + 1}" if k < 3 else "y")]
    wide = heads * 3 * 96
    weights = [tensor("V", wide, 8), tensor("S", 8, 8), numpy_helper.from_array(np.array([-1, wide]), "flat")]
    source = model(nodes, [("m", FLOAT, ("N", *lead, 64, 96)), ("x", FLOAT, ("N", *lead, 3, 64))], weights)
    made = optimize(source, {"m": "user", "x": "item"}, batched=form, candidates=500).model
    assert not [n for n in made.graph.node if n.op_type == "Gather" and n.input[0] == "m"]
    rng = np.random.default_rng(0)
    for counts in COUNTS:
        given, owner = feed_of(form, counts)
        m = rng.standard_normal((len(counts), *lead, 64, 96)).astype(np.float32)
        x = rng.standard_normal((len(owner), *lead, 3, 64)).astype(np.float32)
        (have,) = run(made, {"m": m, "x": x, f"request_{form}": given[f"request_{form}"]})
        assert have.shape == (len(owner), 8)
        if len(owner):
            (want,) = run(source, {"m": m[owner], "x": x})
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(want).max())))
