"""Which axis of an input counts the candidates: found by declared shapes and by running the source, never assumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto

from mari_onnx.api import as_source, inspect, optimize
from mari_onnx.cli.main import cli
from mari_onnx.errors import SideFileError, UsageError
from mari_onnx.model.signature import signature
from mari_onnx.parity.candidates import with_axes
from mari_onnx.parity.check import check
from mari_onnx.sides.candidates import by_shape
from mari_onnx.sides.resolve import Sides, resolve
from tests.test_signatures import DIM, EMB, FLOAT, INT64, Shape, model, node, tensor

WIDE = 64


def history(hist: Shape, item: Shape, profile: Shape = None) -> onnx.ModelProto:
    """The mean of a user's history [T], beside items [N] and, if given, a profile [N, 4]."""
    nodes = [node("Gather", "E hist", "e"), node("ReduceMean", "e", "m", axes=[0], keepdims=1)]
    nodes += [node("Gather", "E item", "i"), node("Shape", "item", "n"), node("Concat", "n d", "to", axis=0)]
    nodes += [node("Expand", "m to", "u"), node("Concat", "u i" + (" p" if profile else ""), "c", axis=1)]
    nodes += [node("MatMul", "c W", "h"), node("Relu", "h", "r"), node("MatMul", "r V", "y")]
    inputs = [("hist", INT64, hist), ("item", INT64, item)] + ([("p", FLOAT, profile)] if profile else [])
    width = 2 * DIM + (4 if profile else 0)
    weights = [tensor("E", EMB, DIM), tensor("W", width, WIDE), tensor("V", WIDE, 1)]
    weights.append(onnx.numpy_helper.from_array(np.array([DIM]), "d"))
    return model(nodes, inputs, weights)


def joined(user: Shape, item: Shape, output: Shape = None) -> onnx.ModelProto:
    """Two inputs side by side in front of two layers: both have N rows, whatever their dimensions are called."""
    nodes = [node("Concat", "u x", "c", axis=1), node("MatMul", "c W", "h"), node("Relu", "h", "r")]
    nodes += [node("MatMul", "r V", "y")]
    made = model(nodes, [("u", FLOAT, user), ("x", FLOAT, item)], [tensor("W", 12, WIDE), tensor("V", WIDE, 1)])
    if output is not None:
        made.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", FLOAT, output))
    return made


def dims(of: onnx.ModelProto, name: str) -> tuple[int | str | None, ...]:
    return signature(of).input(name).shape


def same(source: onnx.ModelProto, output: onnx.ModelProto, feed: dict[str, np.ndarray], **one: np.ndarray) -> None:
    a, b = (onnxruntime.InferenceSession(m.SerializeToString()) for m in (source, output))
    np.testing.assert_allclose(b.run(None, {**feed, **one})[0], a.run(None, feed)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [("T", "N"), (None, "N"), (None, None), (-1, -1), ("s25", "s94")], ids=str)
@pytest.mark.parametrize("profile", [False, True], ids=["alone", "beside [N, 4]"])
def test_a_history_keeps_its_length(names: tuple[str | int | None, ...], profile: bool) -> None:
    source = history([names[0]], [names[1]], [names[1], 4] if profile else None)
    sides = {"hist": "user", "item": "item"} | ({"p": "user"} if profile else {})
    done = optimize(source, sides)
    assert done.changed
    assert dims(done.model, "hist") == dims(source, "hist")
    rng = np.random.default_rng(0)
    for length in (1, 9):
        feed = {"hist": rng.integers(0, EMB, length), "item": rng.integers(0, EMB, 6)}
        row = rng.standard_normal((1, 4)).astype(np.float32)
        if profile:
            assert dims(done.model, "p") == (1, 4)
            same(source, done.model, feed | {"p": np.repeat(row, 6, 0)}, p=row)
        else:
            same(source, done.model, feed)


def test_a_history_of_fixed_length_keeps_it() -> None:
    done = optimize(history([7], ["N"]), {"hist": "user", "item": "item"})
    assert done.changed
    assert dims(done.model, "hist") == (7,)


@pytest.mark.parametrize(
    "names", [("N", "N"), (None, "N"), ("N", None), (None, None), (-1, -1), ("s25", "s94"), (None, "s1")], ids=str
)
def test_what_the_source_demands_to_be_n_is_n(names: tuple[str | int | None, ...]) -> None:
    """Symbols for each input, unknown dimensions: the Concat tells that both are the batch."""
    source = joined([names[0], 8], [names[1], 4])
    done = optimize(source, {"u": "user", "x": "item"})
    assert done.changed
    assert dims(done.model, "u") == (1, 8)
    row, x = np.ones((1, 8), np.float32), np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    same(source, done.model, {"u": np.repeat(row, 5, 0), "x": x}, u=row)


def test_items_may_have_a_batch_symbol_each() -> None:
    source = joined(["s25", 8], ["s94", 4], ["s25", 1])
    assert dims(optimize(source, {"u": "user", "x": "cross"}).model, "u") == (1, 8)
    nodes = [node("Concat", "u x z", "c", axis=1), node("MatMul", "c W", "h"), node("MatMul", "h V", "y")]
    inputs = [("u", FLOAT, ["s1", 8]), ("x", FLOAT, ["s2", 2]), ("z", FLOAT, ["s3", 2])]
    three = model(nodes, inputs, [tensor("W", 12, WIDE), tensor("V", WIDE, 1)])
    three.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", FLOAT, ["s2", 1]))
    done = optimize(three, {"u": "user", "x": "item", "z": "item"}, candidates=500)
    assert done.changed
    assert (dims(done.model, "u"), dims(done.model, "z")) == ((1, 8), ("s3", 2))
    assert done.sides.axis_of("z") == 0


def test_without_a_run_only_shapes_tell() -> None:
    """Another symbol is believed to be another dimension; nothing is promised, so nothing can be wrong."""
    source, sides = joined(["s25", 8], ["s94", 4]), Sides({"u": "user", "x": "item"})
    assert with_axes(source, sides).axis_of("u") is None
    assert with_axes(source, sides, source).axis_of("u") == 0
    done = optimize(source, sides, check=False)
    assert dims(done.model, "u") == ("s25", 8)
    assert with_axes(joined(["N", 8], ["N", 4]), sides).axis_of("u") == 0


def test_a_source_that_does_not_run_leaves_it_to_shapes() -> None:
    source = joined(["s25", 8], ["s94", 4])
    source.graph.node[0].domain = "nobody.has.this"
    source.opset_import.append(onnx.helper.make_opsetid("nobody.has.this", 1))
    assert with_axes(source, Sides({"u": "user", "x": "item"}), source).axis_of("u") is None


def test_what_was_decided_is_not_asked_again() -> None:
    source = joined(["s25", 8], ["s94", 4])
    found = with_axes(source, Sides({"u": "user", "x": "item"}), source)
    assert by_shape(signature(source), found).doubtful == ()
    assert with_axes(source, found) == found


def test_a_plain_candidate_axis_is_for_items() -> None:
    """The user's own [R, 8] has another dimension there; only the items' symbol makes it N."""
    found = by_shape(signature(joined(["R", 8], ["R", "N", 4])), Sides({"u": "user", "x": "item"}, {}, 1))
    assert (found.sides.axis_of("u"), found.sides.axis_of("x"), found.doubtful) == (None, 1, ())
    assert by_shape(signature(joined([5, "N"], [3, "N"])), Sides({"u": "user", "x": "item"}, {}, 1)).sides.axes == {}


def test_fields_in_front_are_refused_and_the_flag_is_named() -> None:
    source = joined([5, "N"], [3, "N"], ["N", 1])
    for checked in (True, False):
        with pytest.raises(UsageError, match=r"x \[3, N\]") as error:
            optimize(source, {"u": "user", "x": "item"}, check=checked)
        assert "--candidate-axis 1" in str(error.value)
    by_shape(signature(source), Sides({"u": "user", "x": "item"}, {}, 1))
    # a fixed batch with a history of any length is no such thing
    by_shape(signature(joined([5, "T"], [5, 3], [5, 1])), Sides({"u": "user", "x": "item"}))
    by_shape(signature(joined([5, "T"], [5, "T"], [5, 1])), Sides({"u": "user", "x": "item"}))


def test_the_output_says_which_inputs_keep_their_dimensions(tmp_path: Path) -> None:
    source = history(["T"], ["N"])
    done = optimize(source, {"hist": "user", "item": "item"})
    metadata = next(p.value for p in done.model.metadata_props if p.key == "mari_onnx.sides")
    assert '"own_dimensions": ["hist"]' in metadata
    assert resolve(signature(source), metadata=metadata).axes == {"hist": None}
    assert check(source, done.model).ok
    assert inspect(done.model).sides.axes == {"hist": None}
    assert not optimize(done.model).changed
    (tmp_path / "m.sides.toml").write_text('user = ["hist"]\nitem = ["item"]\nown_dimensions = "hi*"\n')
    assert resolve(signature(source), file=tmp_path / "m.sides.toml").axis_of("hist") is None


def test_a_check_finds_the_same_axes_as_the_rewrite() -> None:
    """Sides that do not say it yet are looked into by the check itself, in the same way."""
    source = history([None], [None])
    done = optimize(source, {"hist": "user", "item": "item"})
    assert check(source, done.model, Sides({"hist": "user", "item": "item"})).ok
    wrong = onnx.ModelProto()
    wrong.CopyFrom(done.model)
    for each in wrong.graph.initializer:
        if each.data_type == TensorProto.FLOAT and list(each.dims) == [EMB, DIM]:
            each.CopyFrom(tensor(each.name, EMB, DIM))
            each.raw_data = (np.frombuffer(each.raw_data, np.float32) * 1.01).astype(np.float32).tobytes()
    assert not check(source, wrong, Sides({"hist": "user", "item": "item"})).ok


def test_recorded_histories_are_fed_as_they_are(tmp_path: Path) -> None:
    source = history(["T"], ["N"])
    np.savez(tmp_path / "r.npz", hist=np.array([3, 1, 4, 1, 5]), item=np.array([9, 2, 6]))
    done = optimize(source, {"hist": "user", "item": "item"}, requests=tmp_path / "r.npz")
    assert done.changed
    assert done.report.check is not None
    assert done.report.check["recorded"] == 1


def test_sides_of_a_model_without_a_user_need_no_axes() -> None:
    source = as_source(joined(["N", 8], ["N", 4])).model
    assert with_axes(source, Sides(), source) == Sides()


def turned(user: Shape, item: Shape, turn: str) -> onnx.ModelProto:
    """As `joined`, of which one input has its candidates on axis 1."""
    source = joined(user, item)
    source.graph.node.insert(0, node("Transpose", turn, "turned", perm=[1, 0]))
    source.graph.node[1].input[:] = ["turned" if name == turn else name for name in source.graph.node[1].input]
    return source


@pytest.mark.parametrize(
    ("user", "item", "turn", "kept"),
    [
        (["N", 8], [4, "N"], "x", (1, 8)),
        (["N", 8], [4, "M"], "x", (1, 8)),
        ([8, "N"], ["N", 4], "u", (8, 1)),
        ([8, "B"], ["N", 4], "u", (8, 1)),
        ([8, None], [None, 4], "u", (8, 1)),
    ],
    ids=str,
)
def test_one_input_may_have_its_candidates_on_another_axis(
    user: Shape, item: Shape, turn: str, kept: tuple[int | None, ...], tmp_path: Path
) -> None:
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(turned(user, item, turn), source)
    flags = ["--user", "u", "--item", "x", "--candidate-axis", f"{turn}=1"]
    run = CliRunner().invoke
    written = run(cli, ["optimize", str(source), str(out), *flags, "--report", str(tmp_path / "r.json")])
    assert written.exit_code == 0, written.output
    assert json.loads((tmp_path / "r.json").read_text())["changed"], written.output
    made = onnx.load(out)
    assert tuple(d if isinstance(d, int) or d is None else None for d in dims(made, "u")) == kept
    row, x = np.ones((1, 8), np.float32), np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    rows, row = (np.repeat(row, 5, 0).T, row.T) if turn == "u" else (np.repeat(row, 5, 0), row)
    same(onnx.load(source), made, {"u": rows, "x": x.T if turn == "x" else x}, u=row)
    for command in (["check", str(source), str(out)], ["inspect", str(out)]):
        again = run(cli, command)
        assert again.exit_code == 0, again.output
    assert not optimize(out).changed
    timed = run(cli, ["bench", str(source), str(out), "--candidates", "2", "--seconds", "0.05", "--no-memory"])
    assert timed.exit_code == 0, timed.output


def test_a_side_file_has_axes_of_single_inputs(tmp_path: Path) -> None:
    file, sig = tmp_path / "m.sides.toml", signature(joined([8, "N"], ["N", 4]))
    file.write_text('user = "u"\nitem = "x"\n[candidate_axes]\nu = 1\n')
    found = resolve(sig, file=file)
    assert (found.axis_of("u"), found.axis_of("x")) == (1, 0)
    assert resolve(sig, metadata=found.to_json()) == found
    assert resolve(sig, file=file, candidate_axes={"u": 0}).axis_of("u") == 0
    with pytest.raises(UsageError, match="no axis 2"):
        resolve(sig, file=file, candidate_axes={"x": 2})
    for wrong in ("u = -1", "u = 'x'"):
        file.write_text(f"[candidate_axes]\n{wrong}\n")
        with pytest.raises(SideFileError, match="which is no axis"):
            resolve(sig, file=file)
    file.write_text("candidate_axes = 1\n")
    with pytest.raises(SideFileError, match="not a table"):
        resolve(sig, file=file)


@pytest.mark.parametrize("given", ["-1", "x=", "=1", "x=one", "one"])
def test_an_axis_that_cannot_be_read_is_refused(given: str) -> None:
    found = CliRunner().invoke(cli, ["inspect", "m.onnx", "--candidate-axis", given])
    assert (found.exit_code, "not an axis such as 1" in found.output) == (2, True)
