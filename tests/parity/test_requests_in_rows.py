"""The candidates of several requests as the rows of one run: `--batched index`, `--batched offsets`, and sources that
have an index of user rows themselves (`--index`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

from mari_onnx.api import inspect, optimize
from mari_onnx.cli.main import cli
from mari_onnx.errors import CannotBatch, UsageError
from mari_onnx.model.signature import signature
from mari_onnx.parity import check
from mari_onnx.parity.candidates import with_axes
from mari_onnx.parity.requests.recorded import load
from mari_onnx.sides.resolve import Sides, resolve
from mari_onnx.timing.several import verdict
from tests.parity.test_several import MIXING, SIDES, run, score, spoilt
from tests.test_row_index import picked
from tests.test_signatures import FLOAT, INT64, Shape, model, node, tensor

INT32 = onnx.TensorProto.INT32
FORMS = ("index", "offsets")
COUNTS = ([], [5], [0], [1, 0], [3, 0, 1, 4, 0, 2, 7], [k % 4 for k in range(64)])
"""The candidates of each request of a run."""


def feed_of(form: str, counts: list[int], seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The inputs of a run, and the request of each candidate."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(len(counts)), counts)
    if form == "index":
        owner = rng.permutation(owner)
    feed = {"u": rng.standard_normal((len(counts), 6)), "x": rng.standard_normal((len(owner), 4))}
    found = {name: value.astype(np.float32) for name, value in feed.items()}
    rows = owner if form == "index" else np.cumsum([0, *counts])
    return {**found, f"request_{form}": rows.astype(np.int32)}, owner


@pytest.mark.parametrize("form", FORMS)
def test_candidates_of_all_requests_are_scored_with_their_users(form: str) -> None:
    source = score()
    made = optimize(source, SIDES, batched=form).model
    for counts in COUNTS:
        feed, owner = feed_of(form, counts)
        (have,) = run(made, feed)
        assert have.shape == (sum(counts), 1)
        if counts:
            (want,) = run(source, {"u": feed["u"][owner], "x": feed["x"]})
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


def test_what_is_taken_is_declared() -> None:
    made = signature(optimize(score(), SIDES, batched="index").model)
    assert [i.shape for i in made.inputs] == [("R", 6), ("N", 4), ("N",)]
    assert (made.inputs[-1].name, made.inputs[-1].dtype) == ("request_index", np.int32)
    made = signature(optimize(score(), SIDES, batched="offsets", index_name="ends").model)
    assert [i.shape for i in made.inputs] == [("R", 6), ("N", 4), (None,)]
    assert (made.inputs[-1].name, made.inputs[-1].dtype) == ("ends", np.int32)


@pytest.mark.parametrize("form", FORMS)
def test_products_of_the_user_are_computed_for_each_request(form: str) -> None:
    """`Gather(u, i) W = Gather(u W, i)`: no product reads rows that were gathered."""
    made = optimize(score(), SIDES, batched=form)
    reads = {o: node for node in made.model.graph.node for o in node.output}
    products = [node for node in made.model.graph.node if node.op_type == "MatMul"]
    assert any("u" in node.input for node in products)
    assert not any(reads[i].op_type == "Gather" for node in products for i in node.input if i in reads)


def history() -> onnx.ModelProto:
    """A history `[T, 6]` without rows, pooled by the candidate's attention to it: `softmax(x W h') h V`."""
    nodes = [node("MatMul", "x W", "q"), node("Transpose", "h", "k", perm=[1, 0]), node("MatMul", "q k", "s")]
    nodes += [node("Softmax", "s", "p", axis=1), node("MatMul", "p h", "m"), node("MatMul", "m V", "y")]
    return model(nodes, [("h", FLOAT, ("T", 6)), ("x", FLOAT, ("N", 4))], [tensor("W", 4, 6), tensor("V", 6, 1)])


@pytest.mark.parametrize("form", FORMS)
def test_a_history_is_read_by_its_own_candidates(form: str) -> None:
    source = history()
    made = optimize(source, {"h": "user", "x": "item"}, batched=form).model
    assert signature(made).inputs[0].shape == ("R", "T", 6)
    rng = np.random.default_rng(2)
    counts = [2, 0, 3]
    h, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4, 6), (5, 4)))
    rows = np.repeat(np.arange(3), counts) if form == "index" else np.cumsum([0, *counts])
    (have,) = run(made, {"h": h, "x": x, f"request_{form}": rows.astype(np.int32)})
    for k, places in ((0, slice(0, 2)), (2, slice(2, 5))):
        (want,) = run(source, {"h": h[k], "x": x[places]})
        np.testing.assert_allclose(have[places], want, rtol=1e-5, atol=1e-5)


def test_candidates_that_mix_are_refused() -> None:
    after, last = MIXING["Softmax"]
    source = score(*after, last=last)
    for name, array in (("zero", np.array(0)), ("one", np.array(1)), ("two", np.array([2])), ("ones", np.array([1]))):
        source.graph.initializer.append(numpy_helper.from_array(array, name))
    with pytest.raises(CannotBatch, match="depends on other candidates"):
        optimize(source, SIDES, batched="index")


def test_a_name_that_is_taken_is_refused() -> None:
    source = score(user=("N", 6))
    source.graph.node[2].output[0] = source.graph.node[3].input[0] = "request_index"
    with pytest.raises(UsageError, match="request_index") as error:
        optimize(source, SIDES, batched="index")
    assert "--index-name" in str(error.value)
    assert optimize(source, SIDES, batched="index", index_name="rows").changed


WRONG = {
    "index": {
        "the first user for all": [node("Sub", "request_index request_index", "_i")],
        "the next user": [node("Add", "request_index _one", "_a"), node("ReduceMax", "request_index", "_m"),
                          node("Min", "_a _m", "_i")],
        "the users of the candidates in another order": [
            node("Slice", "request_index _-1 _least _0 _-1", "_i")
        ],
    },
    "offsets": {
        "one further": [node("Add", "request_offsets _one", "_a"), node("ReduceMax", "request_offsets", "_m"),
                        node("Mul", "request_offsets _zero", "_z"), node("Min", "_a _m", "_n"),
                        node("Equal", "request_offsets _z", "_e"), node("Where", "_e request_offsets _n", "_i")],
        "the first request has all": [
            node("Greater", "request_offsets _zero", "_g"), node("ReduceMax", "request_offsets", "_m"),
            node("Where", "_g _m request_offsets", "_i"),
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize(("form", "kind"), [(form, kind) for form, kinds in WRONG.items() for kind in kinds])
def test_a_wrong_user_is_found(form: str, kind: str) -> None:
    source = score()
    done = optimize(source, SIDES, batched=form)
    assert check(source, done.model, done.sides).ok
    wrong = spoilt(done.model, *WRONG[form][kind], instead="_i", of=f"request_{form}")
    wrong.graph.initializer.append(numpy_helper.from_array(np.array([-(1 << 62)]), "_least"))
    for name, value in (("_zero", 0), ("_one", 1)):
        wrong.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int32), name))
    result = check(source, wrong, done.sides)
    assert not result.ok
    assert "several requests in one run" in result.reasons[0]


def test_users_in_another_order_are_found() -> None:
    source = score()
    done = optimize(source, SIDES, batched="index")
    wrong = spoilt(done.model, node("Slice", "u _-1 _least _0 _-1", "_u"), instead="_u", of="u")
    wrong.graph.initializer.append(numpy_helper.from_array(np.array([-(1 << 62)]), "_least"))
    assert not check(source, wrong, done.sides).ok


# A source with an index


def indexed(kind: str, shape: Shape, dtype: int = INT64) -> tuple[onnx.ModelProto, dict[str, str]]:
    """`[relu(user U)[index] | item] W V`, with the rows picked in one of several ways."""
    nodes = [node("MatMul", "user U", "v0"), node("Relu", "v0", "v")]
    index = "row"
    if len(shape) == 2 and kind != "GatherND":
        nodes.append(node("Reshape", "row flat", "i"))
        index = "i"
    if kind == "Gather":
        nodes.append(node("Gather", f"v {index}", "g"))
    elif kind == "GatherND":
        if len(shape) == 1:
            nodes.append(node("Unsqueeze", "row ones", "i"))
            index = "i"
        nodes.append(node("GatherND", f"v {index}", "g"))
    elif kind == "GatherElements":
        nodes += [node("Unsqueeze", f"{index} ones", "c1"), node("Shape", "c1", "s1"), node("Mul", "s1 wide", "to")]
        nodes += [node("Expand", "c1 to", "e"), node("GatherElements", "v e", "g", axis=0)]
    elif kind == "column":
        nodes += [node("Unsqueeze", f"{index} ones", "c1"), node("Gather", "v c1", "g3"), node("Flatten", "g3", "g")]
    nodes += [node("Concat", "g item", "c", axis=1), node("MatMul", "c W", "h"), node("Relu", "h", "r")]
    nodes += [node("MatMul", "r V", "y")]
    weights = [tensor("U", 8, 256), tensor("W", 260, 32), tensor("V", 32, 1)]
    for name, value in (("flat", [-1]), ("ones", [1]), ("wide", [1, 256])):
        weights.append(numpy_helper.from_array(np.array(value), name))
    made = model(nodes, [("user", FLOAT, ("R", 8)), ("item", FLOAT, ("N", 4)), ("row", dtype, shape)], weights)
    return made, {"user": "user", "item": "item"}


KINDS = [("Gather", ("N",), INT64), ("Gather", ("N", 1), INT32), ("GatherND", ("N",), INT64),
         ("GatherND", ("N", 1), INT64), ("GatherElements", ("N",), INT64), ("column", ("N",), INT32)]  # fmt: skip


@pytest.mark.parametrize(("kind", "shape", "dtype"), KINDS)
def test_a_source_with_an_index_computes_the_users_part_once_per_user(kind: str, shape: Shape, dtype: int) -> None:
    source, tags = indexed(kind, shape, dtype)
    done = optimize(source, tags, index="row")
    assert done.changed, done.report.reason
    assert done.report.after.flops < 0.6 * done.report.before.flops
    assert [i.shape for i in signature(done.model).inputs] == [i.shape for i in signature(source).inputs]
    rng = np.random.default_rng(1)
    for users, n in ((1, 1), (3, 8), (7, 2), (64, 100), (3, 0)):
        row = rng.integers(0, users, n).reshape([n, 1][: len(shape)]).astype(np.int64 if dtype == INT64 else np.int32)
        feed = {"user": rng.standard_normal((users, 8)).astype(np.float32),
                "item": rng.standard_normal((n, 4)).astype(np.float32), "row": row}  # fmt: skip
        np.testing.assert_allclose(run(done.model, feed)[0], run(source, feed)[0], rtol=1e-5, atol=1e-5)


def test_histories_of_several_users_beside_an_index() -> None:
    """Two tensors of the users are picked: a pooled one, and a history `[R, T]` of ids that candidates attend to."""
    nodes = [node("Gather", "E hist", "k"), node("Gather", "k row", "kn"), node("Unsqueeze", "item one", "q")]
    nodes += [node("Mul", "kn q", "kq"), node("ReduceSum", "kq two", "s", keepdims=1)]
    nodes += [node("Softmax", "s", "p", axis=1), node("Mul", "p kn", "pk")]
    nodes += [node("ReduceSum", "pk one", "m", keepdims=0)]
    nodes += [node("MatMul", "user U", "v"), node("Gather", "v row", "g")]
    nodes += [node("Concat", "m g item", "c", axis=1), node("MatMul", "c W", "h"), node("Relu", "h", "r")]
    nodes += [node("MatMul", "r V", "y")]
    weights = [tensor("E", 20, 4), tensor("U", 8, 16), tensor("W", 24, 32), tensor("V", 32, 1)]
    weights += [numpy_helper.from_array(np.array([k]), name) for name, k in (("one", 1), ("two", 2))]
    inputs = [("user", FLOAT, ("R", 8)), ("hist", INT64, ("R", "T")), ("item", FLOAT, ("N", 4)), ("row", INT64, ("N",))]
    source = model(nodes, inputs, weights)
    done = optimize(source, {"user": "user", "hist": "user", "item": "item"}, index="row")
    assert done.changed
    rng = np.random.default_rng(3)
    feed = {"user": rng.standard_normal((5, 8)).astype(np.float32), "hist": rng.integers(0, 20, (5, 7)),
            "item": rng.standard_normal((9, 4)).astype(np.float32), "row": rng.integers(0, 5, 9)}  # fmt: skip
    np.testing.assert_allclose(run(done.model, feed)[0], run(source, feed)[0], rtol=1e-5, atol=1e-5)


def test_what_is_no_index_is_refused() -> None:
    tags = {"user": "user", "item": "item"}
    with pytest.raises(UsageError, match="no index of user rows"):
        optimize(picked(also=True), tags, index="user_row")
    with pytest.raises(UsageError, match="no index of user rows"):
        optimize(picked(table=True), tags, index="user_row")
    with pytest.raises(UsageError, match="cannot be an index"):
        optimize(picked(), {"user_row": "cross", "user": "user"}, index="item")
    with pytest.raises(UsageError, match="needs the check"):
        optimize(picked(), tags, index="user_row", check=False)
    with pytest.raises(UsageError, match="both say"):
        optimize(picked(), tags, index="user_row", batched="index")


def test_users_that_mix_are_found() -> None:
    """The sum over all users of a run is none of one request."""
    nodes = [node("ReduceSum", "user zero", "m", keepdims=1), node("Mul", "user m", "d")]
    nodes += [node("Gather", "d row", "g"), node("Concat", "g item", "c", axis=1), node("MatMul", "c W", "y")]
    inputs = [("user", FLOAT, ("R", 64)), ("item", FLOAT, ("N", 4)), ("row", INT64, ("N",))]
    zero = numpy_helper.from_array(np.array([0]), "zero")
    source = model(nodes, inputs, [tensor("W", 68, 32), zero])
    result = check(source, source, Sides({"user": "user", "item": "item"}, indices=("row",)))
    assert not result.ok
    assert "several requests in one run" in result.reasons[0]


def test_no_flag_is_needed_afterwards(tmp_path: Path) -> None:
    source, output = tmp_path / "source.onnx", tmp_path / "output.onnx"
    onnx.save(indexed("Gather", ("N",))[0], source)
    how = ["--user", "user", "--item", "item", "--index", "row"]
    answer = CliRunner().invoke(cli, ["optimize", str(source), str(output), *how])
    assert answer.exit_code == 0, answer.output
    result = check(source, output)
    assert result.ok, result.reasons
    assert any("requests of different users in one run" in note for note in result.notes)
    assert inspect(output).sides.indices == ("row",)
    answer = CliRunner().invoke(cli, ["check", str(source), str(output)])
    assert answer.exit_code == 0, answer.output
    (tmp_path / "source.sides.toml").write_text('user = "user"\nitem = "item"\nindex = "row"\n')
    assert CliRunner().invoke(cli, ["optimize", str(source), str(output)]).exit_code == 0


@pytest.mark.parametrize("form", FORMS)
def test_the_form_is_kept(form: str, tmp_path: Path) -> None:
    source, output = tmp_path / "source.onnx", tmp_path / "output.onnx"
    onnx.save(score(), source)
    done = optimize(source, SIDES, batched=form, index_name="whose")
    done.save(output)
    assert check(source, output).ok
    sides = inspect(output).sides
    assert (sides.batched, sides.added) == (form, "whose")
    assert not inspect(output).changed
    again = resolve(signature(score()), metadata=replace(done.sides).to_json())
    assert again.to_json() == done.sides.to_json()


def test_an_index_is_suggested() -> None:
    source, tags = indexed("Gather", ("N",))
    sides = with_axes(source, Sides({**tags}, indices=("row",)), source)
    assert sides.axes == {"user": 0}
    assert sides.several == "index"
    assert sides.added is None


def test_other_opsets() -> None:
    """Before opset 13 axes are attributes, and before 15 Shape has no bounds."""
    for opset in (12, 14, 21):
        made = score()
        made.opset_import[0].version = opset
        for form in FORMS:
            assert optimize(made, SIDES, batched=form).changed
        old = helper.make_opsetid("", opset)
        assert made.opset_import[0] == old


def test_the_summary_says_from_when_on_it_stops_paying(tmp_path: Path) -> None:
    source = tmp_path / "source.onnx"
    onnx.save(score(), source)
    how = ["--user", "u", "--item", "x", "--batched", "index", "--candidates", "4"]
    answer = CliRunner().invoke(cli, ["optimize", str(source), str(tmp_path / "output.onnx"), *how])
    assert answer.exit_code == 0, answer.output
    assert "16 requests in one run, against one request per run:" in " ".join(answer.output.split())


# Products with a matrix of the user's


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_candidates_are_multiplied_by_request_with_a_matrix_of_the_users(form: str, heads: int) -> None:
    """`x M[r] + c[r]` gathers rows of products, and no matrices `[16, 24]`; right for any number of candidates."""
    nodes = [node("Unsqueeze", "x axes", "x3"), node("MatMul", "x3 m", "p"), node("Add", "p c", "s")]
    nodes += [node("Relu", "s", "r"), node("Reshape", "r flat", "f"), node("MatMul", "f V", "y")]
    lead: Shape = () if heads == 1 else (heads,)
    weights = [tensor("V", 24 * heads, 1), numpy_helper.from_array(np.array([-1, 24 * heads]), "flat")]
    weights.append(numpy_helper.from_array(np.array([1 + len(lead)]), "axes"))
    inputs = [("m", FLOAT, ("N", *lead, 16, 24)), ("c", FLOAT, ("N", *lead, 1, 24)), ("x", FLOAT, ("N", *lead, 16))]
    source = model(nodes, inputs, weights)
    done = optimize(source, {"m": "user", "c": "user", "x": "item"}, batched=form, candidates=500)
    gathered = [n for n in done.model.graph.node if n.op_type == "Gather" and n.input[0] == "m"]
    assert not gathered
    rng = np.random.default_rng(0)
    for counts in COUNTS:
        feed, owner = feed_of(form, counts)
        rows = {f"request_{form}": feed[f"request_{form}"]}
        many, shape = len(counts), [size for size in lead if isinstance(size, int)]
        m, c = (rng.standard_normal((many, *shape, k, 24)).astype(np.float32) for k in (16, 1))
        x = rng.standard_normal((len(owner), *shape, 16)).astype(np.float32)
        (have,) = run(done.model, {"m": m, "c": c, "x": x, **rows})
        assert have.shape == (len(owner), 1)
        if len(owner):
            (want,) = run(source, {"m": m[owner], "c": c[owner], "x": x})
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_the_users_is_added_before_rows_are_gathered(form: str) -> None:
    """As in attention: `x M[r]` of 24 columns is 4 positions of 6, to which `c[r]` is added."""
    nodes = [node("Unsqueeze", "x one", "x3"), node("MatMul", "x3 m", "p"), node("Reshape", "p apart", "q")]
    nodes += [node("Add", "q c", "s"), node("Relu", "s", "r"), node("Reshape", "r flat", "f")]
    nodes.append(node("MatMul", "f V", "y"))
    weights = [tensor("V", 24, 1)]
    for name, value in (("one", [1]), ("apart", [-1, 4, 6]), ("flat", [-1, 24])):
        weights.append(numpy_helper.from_array(np.array(value), name))
    source = model(nodes, [("m", FLOAT, ("N", 16, 24)), ("c", FLOAT, ("N", 4, 6)), ("x", FLOAT, ("N", 16))], weights)
    done = optimize(source, {"m": "user", "c": "user", "x": "item"}, batched=form, candidates=500)
    users = {"m", "c"}  # and what is computed of them alone
    for each in done.model.graph.node:
        if each.input and each.input[0] in users:
            assert each.op_type != "Gather"
            users.update(each.output if each.op_type in ("Reshape", "Unsqueeze") else ())
    rng = np.random.default_rng(0)
    for counts in COUNTS:
        feed, owner = feed_of(form, counts)
        m, c = (rng.standard_normal((len(counts), *shape)).astype(np.float32) for shape in ((16, 24), (4, 6)))
        x = rng.standard_normal((len(owner), 16)).astype(np.float32)
        (have,) = run(done.model, {"m": m, "c": c, "x": x, f"request_{form}": feed[f"request_{form}"]})
        if len(owner):
            (want,) = run(source, {"m": m[owner], "c": c[owner], "x": x})
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)


def test_an_index_may_count_from_the_last_user() -> None:
    nodes = [node("Unsqueeze", "x one", "x3"), node("Gather", "m row", "mr"), node("MatMul", "x3 mr", "p")]
    nodes += [node("Flatten", "p", "f"), node("MatMul", "f V", "y")]
    weights = [tensor("V", 64, 1), numpy_helper.from_array(np.array([1]), "one")]
    inputs = [("m", FLOAT, ("R", 32, 64)), ("x", FLOAT, ("N", 32)), ("row", INT64, ("N",))]
    source = model(nodes, inputs, weights)
    done = optimize(source, {"m": "user", "x": "item"}, index="row", candidates=500)
    rng = np.random.default_rng(0)
    m, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 32, 64), (5, 32)))
    feed = {"m": m, "x": x, "row": np.array([-1, 0, 2, -3, 1])}
    np.testing.assert_allclose(run(done.model, feed)[0], run(source, feed)[0], rtol=1e-4, atol=1e-4)


# Recorded runs of several users


def test_recorded_runs_of_several_users_are_compared(tmp_path: Path) -> None:
    source, tags = indexed("Gather", ("N",))
    rng = np.random.default_rng(0)
    feed = {"user": rng.standard_normal((3, 8)).astype(np.float32), "row": np.array([2, 0, 2, -1, 0])}
    feed["item"] = rng.standard_normal((5, 4)).astype(np.float32)
    np.savez(tmp_path / "run.npz", **feed)  # type: ignore[arg-type]
    done = optimize(source, tags, index="row", requests=tmp_path / "run.npz")
    assert done.report.check["recorded"] == 2  # type: ignore[index]
    assert check(source, done.model, requests=tmp_path / "run.npz").ok
    one = {"user": feed["user"][:1].repeat(2, 0), "item": feed["item"][:2]}
    np.savez(tmp_path / "one.npz", **one)  # type: ignore[arg-type]
    assert check(source, done.model, requests=tmp_path / "one.npz").ok


def test_recorded_runs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source, _ = indexed("Gather", ("N",))
    sides = with_axes(source, resolve(signature(source), user=["user"], item=["item"], index=["row"]))
    user, item = np.ones((3, 8), np.float32), np.ones((2, 4), np.float32)
    for row, why in (([0, 3], "from 0 to 2"), ([0.0, 1.0], "integers"), ([0, 1, 2], "number of candidates")):
        np.savez(tmp_path / "run.npz", user=user, item=item, row=np.array(row))
        with pytest.raises(UsageError, match=why):
            load(tmp_path / "run.npz", signature(source), sides)


def test_a_source_with_an_index_is_timed_with_several_users() -> None:
    source, tags = indexed("Gather", ("N",))
    done = optimize(source, tags, index="row", if_slower="warn")
    assert done.report.speed is not None
    assert "candidates of 16 users" in done.report.speed["text"]


def test_the_summary_says_where_one_request_per_run_is_faster() -> None:
    faster = verdict({4: 0.5, 16: 0.4})
    assert faster.endswith("one request per run is faster for this model, so --batched does not pay")
    assert "as fast for this model" in verdict({4: 1.0, 16: 1.01})
    later = verdict({4: 2.0, 16: 1.1, 64: 0.8})
    assert later.endswith("from 64 candidates of each request on, one request per run is faster")
    assert verdict({4: 2.0, 16: 1.2}).endswith("it pays up to 16 candidates and more")


@pytest.mark.parametrize("fields", [1, 3])
def test_rows_of_one_request_are_repeated_by_what_reads_them(fields: int) -> None:
    """`relu([u | x] W) V` for each field: `u W` is one row of fields if there is one request, which a Gemm of all
    candidates' fields must not take for one row each."""
    nodes = [node("Concat", "u x", "c", axis=2), node("MatMul", "c W", "h"), node("Relu", "h", "r")]
    nodes += [node("MatMul", "r V", "z"), node("Reshape", "z flat", "y")]
    weights = [tensor("W", 12, 64), tensor("V", 64, 1), numpy_helper.from_array(np.array([-1, fields]), "flat")]
    source = model(nodes, [("u", FLOAT, ("N", fields, 8)), ("x", FLOAT, ("N", fields, 4))], weights)
    done = optimize(source, SIDES, batched="index", candidates=500)
    assert not done.report.incidents
    assert any(n.op_type == "Slice" and n.input[0] == "request_index" for n in done.model.graph.node)
    rng = np.random.default_rng(0)
    for counts in COUNTS:
        feed, owner = feed_of("index", counts)
        u = rng.standard_normal((len(counts), fields, 8)).astype(np.float32)
        x = rng.standard_normal((len(owner), fields, 4)).astype(np.float32)
        (have,) = run(done.model, {"u": u, "x": x, "request_index": feed["request_index"]})
        if len(owner):
            np.testing.assert_allclose(have, run(source, {"u": u[owner], "x": x})[0], rtol=1e-4, atol=1e-4)
