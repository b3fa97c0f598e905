"""The committed sample models: small, runnable, with side files and recorded requests that fit."""

from __future__ import annotations

import fnmatch
import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

MODELS = Path(__file__).resolve().parent.parent / "models"
NAMES = sorted(path.name.removesuffix(".sides.toml") for path in MODELS.glob("*.sides.toml"))
FILES = sorted(MODELS.glob("*.onnx"))
SIDES = ("user", "item", "cross")
DTYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32}


def name_of(path: Path) -> str:
    return path.name.split(".")[0]


def sides_of(name: str) -> dict:
    return tomllib.loads((MODELS / f"{name}.sides.toml").read_text(encoding="utf-8"))


def requests_of(name: str) -> list[dict[str, np.ndarray]]:
    requests: dict[str, dict[str, np.ndarray]] = {}
    with np.load(MODELS / f"{name}.npz") as arrays:
        for key, array in arrays.items():
            index, _, each = key.partition("/")
            requests.setdefault(index, {})[each] = array
    return list(requests.values())


def session_of(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds_of(
    request: dict[str, np.ndarray], session: onnxruntime.InferenceSession, axis: int
) -> dict[str, np.ndarray]:
    """User rows repeated, where the candidate axis is the first and the model takes N of them."""
    if axis:
        return request
    rows = max(map(len, request.values()))
    single = {i.name for i in session.get_inputs() if i.shape[0] == 1}
    return {
        name: np.repeat(a, rows, 0) if len(a) == 1 and name not in single else a
        for name, a in request.items()
    }


def columns(entries: list[int | str]) -> list[int]:
    found = []
    for entry in entries:
        first, _, last = str(entry).partition(":")
        found += range(int(first), int(last)) if last else [int(first)]
    return found


def test_every_model_comes_from_both_exporters():
    assert len(NAMES) >= 19
    expected = {f"{name}{suffix}" for name in NAMES for suffix in (".onnx", ".torchscript.onnx")}
    assert {path.name for path in FILES} == expected


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_small_valid_and_without_paths_of_the_building_machine(path):
    assert path.stat().st_size < 300_000
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert b".py" not in model.SerializeToString()


@pytest.mark.parametrize("name", NAMES)
def test_every_input_has_exactly_one_side(name):
    sides = sides_of(name)
    inputs = {i.name: i.shape for i in session_of(MODELS / f"{name}.onnx").get_inputs()}
    packed = sides.get("columns", {})
    for each, parts in packed.items():
        covered = [c for side in SIDES for c in columns(parts.get(side, []))]
        assert sorted(covered) == list(range(inputs[each][1]))
    if sides.get("candidate_axis", 0):
        assert {shape[0] for shape in inputs.values()} == {"R"}
        return
    patterns = [pattern for side in SIDES for pattern in sides.get(side, [])]
    for each in inputs.keys() - packed.keys():
        assert sum(fnmatch.fnmatchcase(each, p) for p in patterns) == 1, each
    for pattern in patterns:
        assert fnmatch.filter(inputs, pattern), pattern


@pytest.mark.parametrize("name", NAMES)
def test_recorded_user_rows_are_one_and_candidates_differ(name):
    sides = sides_of(name)
    requests = requests_of(name)
    assert len({max(map(len, r.values())) for r in requests}) >= 3
    for request in requests:
        for each, array in request.items():
            if any(fnmatch.fnmatchcase(each, p) for p in sides.get("user", [])):
                assert len(array) == 1, each
            elif each == "item_id":
                rows = array if sides.get("candidate_axis", 0) else array[None]
                assert all(len(set(row)) == len(row) > 1 for row in rows)
        for each, parts in sides.get("columns", {}).items():
            user = request[each][:, columns(parts["user"])]
            assert (user == user[:1]).all()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_runs_on_its_recorded_requests(path):
    name = name_of(path)
    axis = sides_of(name).get("candidate_axis", 0)
    session = session_of(path)
    inputs = session.get_inputs()
    for request in requests_of(name):
        feeds = feeds_of(request, session, axis)
        assert set(feeds) == {i.name for i in inputs}
        for each in inputs:
            assert feeds[each.name].dtype == DTYPES[each.type]
        rows = feeds["item_id" if "item_id" in feeds else "X"].shape[axis]
        for scores in session.run(None, feeds):
            assert scores.shape[axis] == rows
            assert np.isfinite(scores).all()
            assert scores.min() > 0
            assert scores.max() < 1
            assert np.ptp(scores) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_both_exporters_agree(name):
    axis = sides_of(name).get("candidate_axis", 0)
    first, second = (session_of(MODELS / f"{name}{s}") for s in (".onnx", ".torchscript.onnx"))
    for request in requests_of(name):
        feeds = feeds_of(request, first, axis)
        for a, b in zip(first.run(None, feeds), second.run(None, feeds), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
