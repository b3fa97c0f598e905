"""What a caller says of inputs beside their sides: dimensions (`--shape`) and the number of candidates (`--count`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from mari_onnx.api import inspect, optimize
from mari_onnx.cli.main import cli
from mari_onnx.errors import CannotCompare, NoSuchInput, SideFileError, UsageError
from mari_onnx.model.signature import signature
from mari_onnx.parity.check import check
from mari_onnx.sides.resolve import Sides, resolve
from mari_onnx.sides.shapes import read, reshaped
from tests.test_candidates import WIDE, dims, joined, same
from tests.test_signatures import FLOAT, INT64, Shape, model, node, tensor

SIDES = {"u": "user", "x": "item"}
GIVEN = {"u": ["N", 8], "x": ["N", 4]}
FLAGS = ["--user", "u", "--item", "x", "--shape", "u=N,8", "--shape", "x=N,4"]


def tiled(shape: Shape, kind: int = INT64) -> onnx.ModelProto:
    """A user's row [1, 8] repeated by a number that the caller passes, beside items [N, 4]."""
    nodes = [node("Reshape", "n one", "flat"), node("Cast", "flat", "whole", to=INT64)]
    nodes += [node("Concat", "whole one", "times", axis=0), node("Tile", "u times", "rows")]
    nodes += [node("Concat", "rows x", "c", axis=1), node("MatMul", "c W", "h"), node("Relu", "h", "r")]
    nodes += [node("MatMul", "r V", "y")]
    weights = [tensor("W", 12, WIDE), tensor("V", WIDE, 1), numpy_helper.from_array(np.array([1]), "one")]
    return model(nodes, [("n", kind, shape), ("u", FLOAT, [1, 8]), ("x", FLOAT, ["N", 4])], weights)


@pytest.mark.parametrize("shapes", [([1, 8], [1, 4]), (None, None), ([None, None], [None, 4])], ids=str)
def test_given_dimensions_are_those_of_the_output(shapes: tuple[Shape, Shape]) -> None:
    source = joined(*shapes, [1, 1] if shapes[0] == [1, 8] else None)
    done = optimize(source, SIDES, shapes=GIVEN)
    assert done.changed
    assert (dims(done.model, "u"), dims(done.model, "x")) == ((1, 8), ("N", 4))
    assert done.report.check is not None
    assert max(done.report.check["candidates"]) > 1
    row, x = np.ones((1, 8), np.float32), np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    same(reshaped(source, done.sides.shapes), done.model, {"u": np.repeat(row, 5, 0), "x": x}, u=row)


def test_a_batch_fixed_at_1_is_refused_with_the_flags_to_type() -> None:
    source = joined([1, 8], [1, 4], [1, 1])
    for checked in (True, False):
        with pytest.raises(UsageError, match=r"one candidate per run: u is \[1, 8\]") as error:
            optimize(source, SIDES, check=checked)
        assert "--shape u=N,8 --shape x=N,4" in str(error.value)
    assert optimize(joined([1, 8], ["N", 4]), SIDES).sides.axes == {}


def test_a_graph_that_holds_on_to_1_is_not_written() -> None:
    nodes = [node("Reshape", "u to", "r"), node("Concat", "r x", "c", axis=1), node("MatMul", "c W", "y")]
    weights = [tensor("W", 12, WIDE), numpy_helper.from_array(np.array([1, 8]), "to")]
    source = model(nodes, [("u", FLOAT, [1, 8]), ("x", FLOAT, [1, 4])], weights)
    with pytest.raises(CannotCompare, match="N = 1"):
        optimize(source, SIDES, shapes=GIVEN, candidates=500)


@pytest.mark.parametrize(
    ("text", "says"), [("u", "NAME=DIMS"), ("=N", "NAME=DIMS"), ("u=N,a b", "'a b'"), ("u=N,,8", "''")]
)
def test_a_shape_that_cannot_be_read_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read(text)


def test_shapes_are_read_from_flags() -> None:
    assert read("item:0=N, 32") == ("item:0", ("N", 32))
    assert read("a=b=N,?,-1") == ("a=b", ("N", None, None))
    assert read("hour=") == ("hour", ())


@pytest.mark.parametrize(
    ("shapes", "says"),
    [({"v": ("N",)}, "no input 'v'"), ({"u": ("N",)}, "has 1 dimensions"), ({"u": ("N", 9)}, "the file fixes 8")],
    ids=["no input", "rank", "size"],
)
def test_a_shape_that_does_not_fit_is_refused(shapes: dict[str, tuple[str | int, ...]], says: str) -> None:
    source = joined(["N", 8], ["N", 4])
    for refused in (lambda: reshaped(source, shapes), lambda: resolve(signature(source), shapes=shapes)):
        with pytest.raises((UsageError, NoSuchInput), match=says):
            refused()


def test_what_says_the_same_changes_nothing() -> None:
    source = joined(["N", 8], ["N", 4])
    assert reshaped(source, {"u": ("N", 8)}) is source
    assert signature(source).input("u").shape == ("N", 8)


def test_the_output_of_given_shapes_needs_no_flag(tmp_path: Path) -> None:
    """check finds them in the output's metadata; the output itself has its own dimensions already."""
    before, after = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(joined([1, 8], [1, 4], [1, 1]), before)
    run = CliRunner().invoke
    assert run(cli, ["optimize", str(before), str(after), *FLAGS]).exit_code == 0
    found = run(cli, ["check", str(before), str(after)])
    assert (found.exit_code, "N = 1 alone" in found.output) == (0, False)
    assert run(cli, ["inspect", str(after)]).exit_code == 0
    assert not optimize(after).changed
    assert dims(onnx.load(after), "u") == (1, 8)
    assert inspect(after).sides.shapes == {"u": ("N", 8), "x": ("N", 4)}
    result = run(cli, ["bench", str(before), str(after), "--candidates", "2", "--seconds", "0.05", "--no-memory"])
    assert result.exit_code == 0, result.output


def test_a_side_file_has_the_same_words(tmp_path: Path) -> None:
    file = tmp_path / "m.sides.toml"
    file.write_text('user = "u"\nitem = "x"\ncount = "n"\n[shapes]\nu = ["N", 8]\nn = [1]\n')
    found = resolve(signature(tiled([1])), file=file, shapes={"u": (1, 8)})
    assert (found.counts, found.shapes) == (("n",), {"u": (1, 8), "n": (1,)})
    assert resolve(signature(tiled([1])), metadata=found.to_json()) == found
    file.write_text("shapes = 3\n")
    with pytest.raises(SideFileError, match="not a table"):
        resolve(signature(tiled([1])), file=file)


@pytest.mark.parametrize("shape", [[], [1]], ids=str)
@pytest.mark.parametrize("kind", [INT64, onnx.TensorProto.INT32])
def test_a_count_is_the_number_of_candidates(shape: Shape, kind: int, tmp_path: Path) -> None:
    source = tiled(shape, kind)
    done = optimize(source, SIDES, count=["n"])
    assert done.changed
    onnx.save(source, tmp_path / "in.onnx")
    done.save(tmp_path / "out.onnx")
    paths = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx")]
    bench = ["bench", *paths, "--candidates", "2", "--seconds", "0.05", "--no-memory"]
    for command in (["check", *paths], ["inspect", paths[1]], bench):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0, result.output
    assert (done.sides.counts, dims(done.model, "n")) == (("n",), tuple(shape))
    x, row = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32), np.ones((1, 8), np.float32)
    count = np.full(shape, 5, onnx.helper.tensor_dtype_to_np_dtype(kind))
    same(source, done.model, {"n": count, "u": row, "x": x})
    assert check(source, done.model).ok
    assert not optimize(done.model).changed
    saved = 1 - done.report.after.flops / done.report.before.flops
    assert saved > 0.5


def test_without_a_count_the_graph_is_right_all_the_same() -> None:
    """A number that is not said to be N may be any; here every other one fails, so N = 1 is all that could be run."""
    done = optimize(tiled([]), Sides(SIDES), check=False)
    assert not done.changed


@pytest.mark.parametrize(("shape", "kind"), [([2], INT64), (["K"], INT64), ([1, 1], INT64), ([], FLOAT)], ids=str)
def test_what_cannot_be_a_count_is_refused(shape: Shape, kind: int) -> None:
    with pytest.raises(UsageError, match="cannot be the number of candidates"):
        optimize(tiled(shape, kind), SIDES, count=["n"])


def test_recorded_counts_have_to_be_n(tmp_path: Path) -> None:
    u, x = np.ones((1, 8), np.float32), np.ones((3, 4), np.float32)
    np.savez(tmp_path / "wrong.npz", n=np.array(4), u=u, x=x)
    np.savez(tmp_path / "right.npz", n=np.array(3), u=u, x=x)
    assert optimize(tiled([]), SIDES, count=["n"], requests=tmp_path / "right.npz").changed
    with pytest.raises(UsageError, match="n 4, x 3"):
        optimize(tiled([]), SIDES, count=["n"], requests=tmp_path / "wrong.npz")
