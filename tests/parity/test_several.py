"""Outputs for several requests in one run: equal to separate runs of the source, or refused; wrong ones are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

from mari_onnx.api import inspect, optimize
from mari_onnx.cli.main import cli
from mari_onnx.errors import CannotBatch, UsageError
from mari_onnx.model.load import read
from mari_onnx.model.signature import signature
from mari_onnx.parity import check
from mari_onnx.parity.check import check as check_one
from mari_onnx.parity.layout import Layout
from mari_onnx.parity.several.form import Form, for_one
from mari_onnx.parity.several.mixing import together
from mari_onnx.sides.resolve import Sides, resolve
from mari_onnx.timing.several import measure_together
from tests.test_signatures import FLOAT, INT64, Shape, model, node, tensor

SIDES = {"u": "user", "x": "item"}


def score(*after: onnx.NodeProto, last: str = "y", user: Shape = ("N", 6), before: str = "u") -> onnx.ModelProto:
    """`y = relu([u | x] W) V`, with nodes that come after it."""
    nodes = [node("Concat", f"{before} x", "c", axis=1), node("MatMul", "c W", "h"), node("Relu", "h", "r")]
    nodes += [node("MatMul", "r V", "y"), *after]
    weights = [tensor("W", 10, 32), tensor("V", 32, 1)]
    made = model(nodes, [("u", FLOAT, user), ("x", FLOAT, ("N", 4))], weights)
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info(last, FLOAT, None))
    return made


def run(made: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def several(requests: int, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"u": (requests, 6), "x": (requests, n, 4)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(("requests", "n"), [(0, 3), (1, 5), (2, 1), (7, 4), (64, 3), (3, 0)])
def test_a_grid_is_as_many_runs_of_the_source(requests: int, n: int) -> None:
    source = score()
    made = optimize(source, SIDES, batched="grid").model
    feed = several(requests, n)
    (have,) = run(made, feed)
    assert have.shape == (requests, n, 1)
    for k in range(requests):
        (want,) = run(source, {"u": np.repeat(feed["u"][k : k + 1], n, 0), "x": feed["x"][k]})
        np.testing.assert_allclose(have[k], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["grid", "index", "offsets"])
@pytest.mark.parametrize("user_first", [True, False])
def test_a_user_without_rows_beside_values_that_were_joined(form: str, user_first: bool) -> None:
    """Joining makes new axes, and the requests have to stay the same ones."""
    nodes = [node("Concat", "x z", "c", axis=1), node("MatMul", "c W", "h"), node("Relu", "h", "r")]
    nodes += [node("Add", "u r" if user_first else "r u", "s"), node("Concat", "s x", "d", axis=1)]
    nodes += [node("MatMul", "d V", "y")]
    inputs: list[tuple[str, int, Shape]] = [("u", FLOAT, (6,)), ("x", FLOAT, ("N", 4)), ("z", FLOAT, ("N", 3))]
    source = model(nodes, inputs, [tensor("W", 7, 6), tensor("V", 10, 5)])
    source.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, None))
    made = optimize(source, {"u": "user", "x": "item", "z": "item"}, batched=form)
    assert made.changed
    assert not made.report.incidents


def test_what_a_grid_takes_is_declared() -> None:
    made = signature(optimize(score(), SIDES, batched="grid").model)
    assert [i.shape for i in made.inputs] == [("R", 6), ("R", "N", 4)]


def test_a_symbol_r_of_the_source_is_another_one() -> None:
    made = model([node("Add", "u x", "y")], [("u", FLOAT, ("N", "R")), ("x", FLOAT, ("N", "R"))], [])
    shapes = [i.shape for i in signature(optimize(made, SIDES, batched="grid").model).inputs]
    assert shapes == [("requests", "R"), ("requests", "N", "R")]


@pytest.mark.parametrize("shape", [(1, 6), (6,)])
def test_a_user_without_rows_gets_the_requests_in_front(shape: Shape) -> None:
    size = [node("Shape", "x", "all"), node("Gather", "all zero", "n", axis=0), node("Unsqueeze", "n zeros", "n1"),
            node("Concat", "n1 six", "to", axis=0), node("Expand", "u to", "wide")]  # fmt: skip
    source = score(before="wide", user=shape)
    nodes = [*size, *source.graph.node]
    del source.graph.node[:]
    source.graph.node.extend(nodes)
    for name, array in (("zero", np.array(0)), ("zeros", np.array([0])), ("six", np.array([6]))):
        source.graph.initializer.append(numpy_helper.from_array(array, name))
    made = optimize(source, SIDES, batched="grid").model
    assert signature(made).inputs[0].shape == ("R", 6)
    feed = several(3, 4)
    (have,) = run(made, feed)
    for k in range(3):
        (want,) = run(source, {"u": feed["u"][k].reshape(shape), "x": feed["x"][k]})
        np.testing.assert_allclose(have[k], want, rtol=1e-5, atol=1e-5)


MIXING = {
    "Softmax": ([node("Softmax", "y", "s", axis=0)], "s"),
    "CumSum": ([node("CumSum", "y zero", "s")], "s"),
    "ReduceMean": ([node("ReduceMean", "y", "m", axes=[0], keepdims=1), node("Sub", "y m", "s")], "s"),
    "TopK": ([helper.make_node("TopK", ["y", "two"], ["s", "i"], axis=0)], "s"),
    "Range": (
        [node("Shape", "x", "all"), node("Gather", "all zero", "n", axis=0), node("Range", "zero n one", "r0"),
         node("Cast", "r0", "rank", to=FLOAT), node("Unsqueeze", "rank ones", "column"), node("Add", "y column", "s")],
        "s",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MIXING)
def test_candidates_that_mix_are_refused(kind: str) -> None:
    after, last = MIXING[kind]
    source = score(*after, last=last)
    for name, array in (("zero", np.array(0)), ("one", np.array(1)), ("two", np.array([2])), ("ones", np.array([1]))):
        source.graph.initializer.append(numpy_helper.from_array(array, name))
    with pytest.raises(CannotBatch, match="depends on other candidates"):
        optimize(source, SIDES, batched="grid")


def test_a_user_that_is_read_off_its_first_row_is_refused() -> None:
    source = score(before="wide")
    first = [node("Gather", "u zero", "row", axis=0), node("Shape", "x", "all")]
    first += [node("Gather", "all zero", "n", axis=0), node("Concat", "n six", "to", axis=0)]
    first += [node("Expand", "row to", "wide")]
    nodes = [*first, *source.graph.node]
    del source.graph.node[:]
    source.graph.node.extend(nodes)
    source.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    source.graph.initializer.append(numpy_helper.from_array(np.array([6]), "six"))
    assert optimize(source, SIDES).changed
    with pytest.raises(CannotBatch, match="of another user"):
        optimize(source, SIDES, batched="grid")


def test_what_cannot_be_batched_says_why() -> None:
    with pytest.raises(UsageError, match="needs the check"):
        optimize(score(), SIDES, batched="grid", check=False)
    with pytest.raises(CannotBatch, match="no input is tagged"):
        optimize(score(), Sides(), batched="grid")
    fixed = model([node("Add", "u x", "y")], [("u", FLOAT, (8, 3)), ("x", FLOAT, (8, 3))], [])
    with pytest.raises(CannotBatch, match="fixes the number of candidates at 8"):
        optimize(fixed, SIDES, batched="grid")
    done = optimize(score(), SIDES, batched="grid").model
    with pytest.raises(CannotBatch, match="already"):
        optimize(done, batched="grid")


def test_an_output_needs_no_flag(tmp_path: Path) -> None:
    source, output = tmp_path / "source.onnx", tmp_path / "output.onnx"
    onnx.save(score(), source)
    done = optimize(source, SIDES, batched="grid")
    done.save(output)
    result = check(source, output)
    assert result.ok, result.reasons
    assert any("64 requests of different users in one run (grid)" in note for note in result.notes)
    assert inspect(output).sides.batched == "grid"
    assert not inspect(output).changed


def spoilt(made: onnx.ModelProto, *nodes: onnx.NodeProto, instead: str, of: str) -> onnx.ModelProto:
    """The model with nodes in front, whose result other nodes read in place of an input."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(made)
    for each in wrong.graph.node:
        each.input[:] = [instead if name == of else name for name in each.input]
    rest = [*nodes, *wrong.graph.node]
    del wrong.graph.node[:]
    wrong.graph.node.extend(rest)
    for name, value in (("_0", 0), ("_1", 1), ("_-1", -1), ("_big", 1 << 62)):
        wrong.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    return wrong


MUTANTS = {
    "the first user for all": [
        node("Slice", "u _0 _1 _0", "_first"), node("Shape", "u", "_shape"), node("Expand", "_first _shape", "_u")
    ],
    "users in the opposite order": [node("Slice", "u _-1 _least _0 _-1", "_u")],
    "users shifted by one": [
        node("Slice", "u _1 _big _0", "_rest"), node("Slice", "u _0 _1 _0", "_first"),
        node("Concat", "_rest _first", "_u", axis=0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", MUTANTS)
def test_a_wrong_user_is_found(kind: str) -> None:
    source = score()
    done = optimize(source, SIDES, batched="grid")
    wrong = spoilt(done.model, *MUTANTS[kind], instead="_u", of="u")
    wrong.graph.initializer.append(numpy_helper.from_array(np.array([-(1 << 62)]), "_least"))
    form = Form(Layout(signature(source), done.sides))
    # for one request it is right
    assert check_one(source, for_one(wrong, form), resolve(signature(source), user=["u"], item=["x"])).ok
    result = check(source, wrong, done.sides)
    assert not result.ok
    assert "several requests in one run" in result.reasons[0]


def test_an_output_of_two_requests_is_that_of_one_behind_the_other() -> None:
    a, b = np.arange(6.0).reshape(3, 2), np.arange(4.0).reshape(2, 2)
    assert together(np.concatenate([a, b]), a, b)
    assert not together(np.concatenate([b, a]), a, b)
    assert together(a, a, a)
    assert not together(a, a, a + 1)
    assert not together(np.concatenate([a, b]) * 1.01, a, b)


@pytest.mark.parametrize("name", ["mmoe", "packed_pnn"])
def test_sample_models_as_a_grid(name: str) -> None:
    path = Path(__file__).parents[2] / "models" / f"{name}.onnx"
    done = optimize(path, batched="grid")
    assert done.changed
    assert all(i.shape[0] == "R" for i in signature(done.model).inputs)
    assert read(path).model.graph.output[0].name == done.model.graph.output[0].name


def test_ids_of_a_user_look_up_a_row_for_each_request() -> None:
    nodes = [node("Gather", "E u", "e"), node("Concat", "e x", "c", axis=1), node("MatMul", "c W", "y")]
    source = model(nodes, [("u", INT64, ("N",)), ("x", FLOAT, ("N", 4))], [tensor("E", 9, 8), tensor("W", 12, 5)])
    made = optimize(source, SIDES, batched="grid").model
    ids, x = np.array([3, 8, 3]), several(3, 2)["x"]
    (have,) = run(made, {"u": ids, "x": x})
    for k in range(3):
        (want,) = run(source, {"u": np.repeat(ids[k], 2), "x": x[k]})
        np.testing.assert_allclose(have[k], want, rtol=1e-5, atol=1e-5)


def test_runs_of_several_requests_are_timed_on_the_same_values(tmp_path: Path) -> None:
    done, one = optimize(score(), SIDES, batched="grid"), optimize(score(), SIDES)
    done.save(tmp_path / "several.onnx")
    one.save(tmp_path / "single.onnx")
    single, several = {"apart": tmp_path / "single.onnx"}, {"together": tmp_path / "several.onnx"}
    sizes = [(1, 3), (4, 2)]
    found = list(measure_together(score(), done.sides, single, several, sizes, seconds=0, least=1))
    assert [(each.requests, each.n) for each in found] == sizes
    assert all(each.apart["together"] < 1e-5 for each in found)
    assert found[0].to_dict()["variants"]["together"]["max_difference"] < 1e-5


def test_bench_of_several_requests(tmp_path: Path) -> None:
    source, output = tmp_path / "source.onnx", tmp_path / "output.onnx"
    onnx.save(score(), source)
    optimize(source, SIDES, batched="grid").save(output)
    how = ["--user", "u", "--item", "x", "--candidates", "3", "--seconds", "0.001"]
    answer = CliRunner().invoke(cli, ["bench", str(source), str(output), "--users-per-run", "1,2", *how])
    assert answer.exit_code == 0, answer.output
    assert "all requests in one run (grid)" in answer.output
    wrong = CliRunner().invoke(cli, ["bench", str(source), str(source), "--users-per-run", "2", *how])
    assert isinstance(wrong.exception, UsageError)
    assert "one request per run" in str(wrong.exception)


def test_a_dynamic_quantization_of_few_values_mixes_candidates() -> None:
    """Many candidates nearly always have the smallest and the largest row of a small table among them."""
    nodes = [node("Gather", "E x", "e"), helper.make_node("DynamicQuantizeLinear", ["e"], ["q", "s", "z"])]
    nodes += [node("DequantizeLinear", "q s z", "d"), node("Flatten", "d", "rows"), node("Add", "rows u", "y")]
    inputs = [("u", FLOAT, ("N", 12)), ("x", INT64, ("N", 3))]
    source = model(nodes, inputs, [tensor("E", 6, 4)])
    with pytest.raises(CannotBatch, match="depends on other candidates"):
        optimize(source, SIDES, batched="grid")


def test_an_output_with_two_dimensions_of_candidates_is_refused() -> None:
    nodes = [node("Transpose", "x", "t", perm=[1, 0]), node("MatMul", "u t", "y")]
    source = model(nodes, [("u", FLOAT, ("N", 4)), ("x", FLOAT, ("N", 4))], [])
    with pytest.raises(CannotBatch):
        optimize(source, SIDES, batched="index")


def test_a_branch_that_all_candidates_decide_is_refused() -> None:
    """No drawn request may come near the number at which the branch changes."""
    branches = {}
    for name, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
        out = helper.make_tensor_value_info(f"{op}_y", FLOAT, None)
        branches[name] = helper.make_graph([helper.make_node(op, ["u"], [f"{op}_y"])], name, [], [out])
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0), node("Greater", "m far", "c")]
    nodes += [helper.make_node("If", ["c"], ["b"], **branches), node("Add", "b x", "y")]
    far = numpy_helper.from_array(np.array(1e6, np.float32), "far")
    source = model(nodes, [("u", FLOAT, ("N", 4)), ("x", FLOAT, ("N", 4))], [far])
    with pytest.raises(CannotBatch, match="computed from all rows"):
        optimize(source, SIDES, batched="grid")
