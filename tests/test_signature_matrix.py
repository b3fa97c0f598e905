"""Every form of a user's input beside every form of an item's: the output takes the shapes that a caller sends, gives
the source's outputs on them, and is otherwise refused in words; through the commands, as a caller types them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from mari_onnx.cli.main import cli, run
from mari_onnx.model.signature import signature
from tests.test_signatures import FLOAT, Shape, model, node, tensor

WIDTH, ITEM, HIDDEN = 32, 4, 64
N, K, R = 5, 3, 2
# How a user's rows may be declared, and what shape a caller of the output sends.
ROWS: dict[str, Shape] = {
    "the same symbol": ["N", WIDTH],
    "a symbol of its own": ["B", WIDTH],
    "unknown": [None, WIDTH],
    "-1": [-1, WIDTH],
    "one row": [1, WIDTH],
    "all unknown": [None, None],
    "unknown rank": None,
}
ITEMS: dict[str, Shape] = {
    "N": ["N", ITEM],
    "a symbol of its own": ["M", ITEM],
    "unknown": [None, ITEM],
    "-1": [-1, ITEM],
    "all unknown": [None, None],
    "unknown rank": None,
}


def head(nodes: Sequence[onnx.NodeProto], user: Shape, item: Shape, wide: int, output: Shape = None) -> onnx.ModelProto:
    """Two layers behind `c`."""
    nodes = [*nodes, node("MatMul", "c W", "h"), node("Relu", "h", "r"), node("MatMul", "r V", "y")]
    made = model(nodes, [("u", FLOAT, user), ("x", FLOAT, item)], [tensor("W", wide, HIDDEN), tensor("V", HIDDEN, 1)])
    for name, shape in (("u", user), ("x", item)):
        for dim, size in zip(_dims(made, name), shape or (), strict=True):
            if size == -1:
                dim.dim_value = -1
    if output is not None:
        made.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", FLOAT, output))
    return made


def _dims(made: onnx.ModelProto, name: str) -> Sequence[onnx.TensorShapeProto.Dimension]:
    return next(i for i in made.graph.input if i.name == name).type.tensor_type.shape.dim


def outputs(path: Path, **feed: np.ndarray) -> np.ndarray:
    found: np.ndarray = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    return found


class Case:
    """A model in a folder, optimized with flags and looked at again without any."""

    def __init__(self, folder: Path, made: onnx.ModelProto, flags: Sequence[str] = ()):
        self.source, self.out = folder / "in.onnx", folder / "out.onnx"
        onnx.save(made, self.source)
        self.code = run(["optimize", str(self.source), str(self.out), "--user", "u", "--item", "x", *flags])

    def agrees(self, given: dict[str, np.ndarray], sent: dict[str, np.ndarray]) -> None:
        """The output on what a caller sends equals the source on what callers sent it before; no flag is needed."""
        assert self.code == 0
        np.testing.assert_allclose(outputs(self.out, **sent), outputs(self.source, **given), rtol=1e-4, atol=1e-5)
        if not any(p.key == "mari_onnx.sides" for p in onnx.load(self.out).metadata_props):
            return  # the source, as it was
        for command in (["check", str(self.source), str(self.out)], ["inspect", str(self.out)]):
            done = CliRunner().invoke(cli, command)
            assert done.exit_code == 0, done.output

    def shape(self, name: str) -> tuple[int | str | None, ...]:
        return signature(onnx.load(self.out)).input(name).shape


RNG = np.random.default_rng(0)
ROW, X = RNG.standard_normal((1, WIDTH)).astype(np.float32), RNG.standard_normal((N, ITEM)).astype(np.float32)
SHAPES = ["--shape", f"u=N,{WIDTH}", "--shape", f"x=N,{ITEM}"]


@pytest.mark.parametrize("flags", [(), SHAPES], ids=["no flags", "--shape"])
@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize("user", ROWS)
def test_rows_of_a_user_become_one(user: str, item: str, flags: Sequence[str], tmp_path: Path) -> None:
    nodes = [node("Concat", "u x", "c", axis=1)]
    if user == "one row":
        nodes = [node("MatMul", "u A", "ua"), node("MatMul", "x B", "xb"), node("Add", "ua xb", "c")]
    made = head(nodes, ROWS[user], ITEMS[item], HIDDEN if user == "one row" else WIDTH + ITEM)
    if user == "one row":
        made.graph.initializer.extend([tensor("A", WIDTH, HIDDEN), tensor("B", ITEM, HIDDEN)])
    case = Case(tmp_path, made, flags)
    rows = ROW if user == "one row" else np.repeat(ROW, N, axis=0)
    if (flags and user != "one row") or case.shape("u")[:1] == (1,):
        assert case.shape("u")[0] == 1
        case.agrees({"u": rows, "x": X}, {"u": ROW, "x": X})
    else:  # what nothing can be said of stays as it was
        assert {user, item} & {"all unknown", "unknown rank"}
        case.agrees({"u": rows, "x": X}, {"u": rows, "x": X})


OWN: dict[str, tuple[Shape, tuple[int, ...], Sequence[int]]] = {
    "a history [T, d]": (["T", WIDTH], (7, WIDTH), [0]),
    "an unknown length": ([None, WIDTH], (7, WIDTH), [0]),
    "interests [K, d]": (["K", WIDTH], (K, WIDTH), [0]),
    "[50, 32]": ([50, WIDTH], (50, WIDTH), [0]),
    "a vector": ([WIDTH], (WIDTH,), []),
    "one vector": ([1, WIDTH], (1, WIDTH), [0]),
    "a history [1, T, d]": ([1, "T", WIDTH], (1, 7, WIDTH), [0, 1]),
}


@pytest.mark.parametrize("item", ["N", "a symbol of its own", "unknown", "-1"])
@pytest.mark.parametrize("user", OWN)
def test_what_a_user_has_of_his_own_keeps_its_dimensions(user: str, item: str, tmp_path: Path) -> None:
    """The mean over the user's entries stands beside each candidate."""
    declared, sent, axes = OWN[user]
    nodes = [node("ReduceMean", "u", "m", axes=axes, keepdims=0) if axes else node("Identity", "u", "m")]
    nodes += [node("Shape", "x", "s", end=1), node("Concat", "s d", "to", axis=0), node("Expand", "m to", "all")]
    made = head([*nodes, node("Concat", "all x", "c", axis=1)], declared, ITEMS[item], WIDTH + ITEM)
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array([WIDTH]), "d"))
    case = Case(tmp_path, made)
    assert any(p.key == "mari_onnx.sides" for p in onnx.load(case.out).metadata_props)
    feed = {"u": RNG.standard_normal(sent).astype(np.float32), "x": X}
    case.agrees(feed, feed)
    assert case.shape("u") == tuple(declared or ())


def test_a_scalar_of_the_user_stays_one(tmp_path: Path) -> None:
    nodes = [node("Mul", "u A", "ua"), node("MatMul", "x B", "xb"), node("Add", "ua xb", "c")]
    made = head(nodes, [], ["N", ITEM], HIDDEN)
    made.graph.initializer.extend([tensor("A", HIDDEN), tensor("B", ITEM, HIDDEN)])
    case = Case(tmp_path, made)
    feed = {"u": np.array(3, np.float32), "x": X}
    case.agrees(feed, feed)
    assert case.shape("u") == ()


@pytest.mark.parametrize("requests", [1, "R", None], ids=str)
@pytest.mark.parametrize(
    "user", [["R", WIDTH], [1, WIDTH], ["R", 1, WIDTH], ["R", "N", WIDTH], [None, None, WIDTH]], ids=str
)
def test_candidates_behind_requests(
    user: list[int | str | None], requests: int | str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """[1, N, ..] and [R, N, ..] with --candidate-axis 1: a user has one row per request."""
    rank = len(user)
    user = [requests if d == "R" else d for d in user]
    nodes = [] if rank == 3 else [node("Unsqueeze", "u one", "up")]
    first = "u" if rank == 3 else "up"
    nodes += [node("Shape", "x", "s"), node("Slice", "s zero two", "rn"), node("Concat", "rn d", "to", axis=0)]
    nodes += [node("Expand", f"{first} to", "all"), node("Concat", "all x", "c", axis=2)]
    made = head(nodes, user, [requests, "N", ITEM], WIDTH + ITEM, [requests, "N", 1])
    constants = {"one": [1], "zero": [0], "two": [2], "d": [WIDTH]}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), k) for k, v in constants.items())
    case = Case(tmp_path, made, ["--candidate-axis", "1"])
    if user[0] is None and requests == 1:  # that it is 1 there too, only the caller knows
        assert (case.code, "--shape" in capsys.readouterr().err) == (8, True)
        case = Case(tmp_path, made, ["--candidate-axis", "1", "--shape", f"u=1,N,{WIDTH}"])
    r = 1 if 1 in (requests, user[0]) else R
    x = RNG.standard_normal((r, N, ITEM)).astype(np.float32)
    one = RNG.standard_normal((r, WIDTH) if rank == 2 else (r, 1, WIDTH)).astype(np.float32)
    lifted = rank == 3 and case.shape("u")[1] == 1
    given = np.repeat(one, N, axis=1) if rank == 3 and user[1] != 1 else one
    case.agrees({"u": given, "x": x}, {"u": one if lifted or rank == 2 else given, "x": x})
    assert lifted or user[1:2] != ["N"]


@pytest.mark.parametrize("requests", [1, "R"], ids=str)
def test_candidates_behind_requests_without_a_flag(requests: int | str, tmp_path: Path, capsys) -> None:
    """They would be on axis 0: either the message names the flag, or the outputs are right all the same."""
    nodes = [node("Concat", "u x", "c", axis=2)]
    made = head(nodes, [requests, "N", WIDTH], [requests, "N", ITEM], WIDTH + ITEM, [requests, "N", 1])
    case = Case(tmp_path, made)
    if case.code:
        assert "--candidate-axis" in capsys.readouterr().err
        return
    r = 1 if requests == 1 else R
    rows, x = (RNG.standard_normal((r, N, d)).astype(np.float32) for d in (WIDTH, ITEM))
    rows[1:] = rows[:1]
    case.agrees({"u": rows, "x": x}, {"u": rows[:1], "x": x})


@pytest.mark.parametrize("batch", ["N", "B", None], ids=str)
def test_fields_in_front_need_the_flag(batch: str | None, tmp_path: Path, capsys) -> None:
    nodes = [node("Concat", "u x", "f", axis=0), node("Transpose", "f", "c", perm=[1, 0])]
    made = head(nodes, [WIDTH, batch], [ITEM, batch], WIDTH + ITEM, [batch, 1])
    case = Case(tmp_path, made)
    said = capsys.readouterr().err
    assert (case.code, "--candidate-axis 1" in said) == (2, True)
    assert not case.out.exists()
    case = Case(tmp_path, made, ["--candidate-axis", "1", *([] if batch else ["--candidate-axis", "u=1"])])
    case.agrees({"u": np.repeat(ROW, N, axis=0).T, "x": X.T}, {"u": ROW.T, "x": X.T})


def test_a_batch_fixed_at_1_is_refused_with_the_flag(tmp_path: Path, capsys) -> None:
    nodes = [node("Concat", "u x", "c", axis=1)]
    made = head(nodes, [1, WIDTH], [1, ITEM], WIDTH + ITEM, [1, 1])
    case = Case(tmp_path, made)
    flags = re.findall(r"--shape [ux]=[\w,]+", capsys.readouterr().err)
    assert (case.code, len(flags)) == (2, 2)
    case = Case(tmp_path, made, " ".join(flags).split())
    assert case.shape("u") == (1, WIDTH)
    free = head(nodes, ["N", WIDTH], ["N", ITEM], WIDTH + ITEM, ["N", 1])
    onnx.save(free, case.source)
    case.agrees({"u": np.repeat(ROW, N, axis=0), "x": X}, {"u": ROW, "x": X})
