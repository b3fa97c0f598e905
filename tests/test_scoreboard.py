"""The scoreboard and the matrix of providers: what is counted, compared and said; times are not asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import environments, providers, scoreboard, worker
from benchmarks.demo.model import sides_of, widened
from benchmarks.environments import NotThere, Remote
from benchmarks.ikbo import NotForThisModel, ikbo
from benchmarks.tables import block, replaced
from mari_onnx import runtime
from mari_onnx.model.load import read
from mari_onnx.parity.work import work
from mari_onnx.sides.resolve import Sides
from mari_onnx.timing.clock import Timing
from mari_onnx.timing.measure import OURS, draw
from tests import tiny

MODELS = Path(__file__).parents[1] / "models"
INTEROP = Path(__file__).parent / "data" / "interop"


@pytest.mark.parametrize(
    "path",
    [
        MODELS / "coarse_mlp.onnx",  # one product over interleaved fields
        MODELS / "two_tower.onnx",  # a batch size read from a tensor of the user
        MODELS / "din.onnx",  # products of three dimensions
        MODELS / "dynamic_history.torchscript.onnx",  # rows of a GRU on another axis
        INTEROP / "mmoe.split.script.onnx",  # fields joined, then flattened
    ],
    ids=lambda path: path.stem,
)
def test_ikbo_gives_the_scores_of_the_source_with_less_work(path: Path):
    source, sides = read(path), sides_of(path)
    request = draw(source, sides, 40, 1)[0]
    inputs = runtime.session(path).get_inputs()
    made = ikbo(source.model, sides, *(widened(request, n).feed(inputs) for n in (3, 5)))
    session = runtime.session(made)
    feed = request.feed(session.get_inputs())
    assert all(feed[name].shape[0] == 1 for name, side in sides.inputs.items() if side == "user")
    want = runtime.session(path).run(None, request.feed(inputs))
    for got, expected in zip(session.run(None, feed), want, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert work(made, feed).flops < work(source.model, request.feed(inputs)).flops


def test_ikbo_splits_a_product_and_gathers_the_users_row():
    model = tiny.fc(user=64, item=8, hidden=16)
    feeds = [
        {"user_x": np.ones((n, 64), np.float32), "item_x": np.ones((n, 8), np.float32)} for n in (3, 5)
    ]
    made = ikbo(model, Sides({"user_x": "user", "item_x": "item"}), *feeds)
    ops = [node.op_type for node in made.graph.node]
    assert sorted(ops) == ["ConstantOfShape", "Gather", "Gemm", "Gemm", "Shape"]
    with pytest.raises(NotForThisModel, match="no separate user inputs"):
        ikbo(model, Sides({"item_x": "item"}), *feeds)


def test_an_account_adds_up_what_runs_say():
    account = scoreboard.Account()

    class There:
        def run(self) -> float:
            return 2.0

    account.there(There())(0)  # type: ignore[arg-type]
    account.there(There())(1)  # type: ignore[arg-type]
    assert account() == 4
    path = MODELS / "coarse_mlp.onnx"
    session = runtime.session(path)
    feed = draw(read(path), sides_of(path), 3, 1)[0].feed(session.get_inputs())
    account.here(session, feed)(0)
    assert 4 < account() < 5


def test_the_best_other_is_right_and_not_ours():
    seconds = np.array([[8.0, 2.0, 4.0, 1.0]])
    timing = Timing(("source", "wrong", "IKBO", OURS), seconds)
    right = [np.ones(3)]
    outputs = {"source": right, "wrong": [np.full(3, 1.5)], "IKBO": right, OURS: right}
    found = scoreboard._figures(timing, outputs, ["a note"])
    found["memory"] = {"source": 3_000_000, OURS: 2_000_000}
    assert scoreboard.best_other(found) == "IKBO"
    assert found["faster"]["IKBO"] == 4
    table = scoreboard.section({"ranker": found}, 0.5).markdown()
    row = next(line for line in table.splitlines() if line.startswith("| ranker |"))
    assert "| 8000 |" in row
    assert "| 8.00 | 4.00 | 3 -> 2 |" in row
    assert "ranker: a note" in table


def test_wrong_outputs_are_marked():
    timing = Timing(("source", "onnxsim", OURS), np.ones((1, 3)))
    outputs = {"source": [np.ones(2)], "onnxsim": [np.zeros(2)], OURS: [np.ones(2)]}
    found = scoreboard._figures(timing, outputs, []) | {"memory": {}}
    assert "| 1000 | 1000* |" in scoreboard.section({"m": found}, 0.0).markdown()


def test_tables_of_other_commands_stay_on_the_page():
    page = replaced("# Title\n", "scoreboard", "one")
    page = replaced(page, "providers", "two")
    page = replaced(page, "scoreboard", "three")
    assert "one" not in page
    assert block(page, "scoreboard") == "<!-- scoreboard -->\nthree\n<!-- end of scoreboard -->"
    assert block(page, "providers") in page
    assert block(page, "nothing") == ""


def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(environments, "FOLDER", tmp_path)

    def refused(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, "pip" in command, "", "ERROR: no such package")

    monkeypatch.setattr(subprocess, "run", refused)
    with pytest.raises(NotThere, match="openvino cannot be installed here: ERROR: no such package"):
        environments.environment("openvino")


def test_a_model_that_does_not_load_elsewhere_says_why(tmp_path: Path, monkeypatch):
    """The worker answers in this environment, where there is no OpenVINO."""
    onnx.save(tiny.fc(), tmp_path / "fc.onnx")
    monkeypatch.setattr(environments, "environment", lambda package: (Path(sys.executable), "1"))
    with pytest.raises(NotThere, match=r"ModuleNotFoundError|ImportError"):
        Remote("openvino", tmp_path / "fc.onnx", {"x": np.ones(1, np.float32)}, ["score"])


def test_a_worker_runs_what_it_is_told(tmp_path: Path, monkeypatch):
    """The same protocol with a backend that needs nothing installed."""
    script = tmp_path / "worker.py"
    backend = "lambda path, feed, outputs: ((lambda: [feed['x'] + 1]), {'there': 3})"
    text = Path(worker.__file__).read_text().replace('"openvino": openvino', f'"openvino": {backend}')
    script.write_text(text)
    monkeypatch.setattr(environments, "environment", lambda package: (Path(sys.executable), "1"))
    monkeypatch.setattr(environments, "__file__", str(tmp_path / "environments.py"))
    remote = Remote("openvino", tmp_path / "none.onnx", {"x": np.arange(3.0)}, ["y"])
    try:
        assert remote.nodes == {"there": 3}
        np.testing.assert_array_equal(remote.outputs[0], [1, 2, 3])
        assert 0 <= remote.run() < 1
    finally:
        remote.close()


def test_a_tally_counts_what_loads_and_agrees(tmp_path: Path):
    given = providers.Given(tmp_path / "m.onnx", {}, {"y": np.ones(2)})
    tally = providers.Tally()
    tally.add("right", "P", lambda *_: ([np.ones(2)], {"P": 3, "CPU": 1}), given)
    tally.add("wrong", "P", lambda *_: ([np.zeros(2)], {"P": 4}), given)

    def fails(*_: object):
        raise NotThere("no kernel")

    tally.add("none", "P", fails, given)
    assert tally.cells() == ["2 of 3", "1", "1e+00", "88%"]
    assert tally.notes == ["wrong differs by 1.0e+00", "none is not loaded: ..no kernel"]


def test_files_of_a_model_agree_and_have_no_other_domains(tmp_path: Path):
    found = providers._files(MODELS / "coarse_mlp.onnx", tmp_path)
    assert list(found) == list(providers.KINDS)
    for given, more in found.values():
        assert more == 0
        assert given.expected.keys() == {"score"}
    source = found["source"][0].expected["score"]
    np.testing.assert_allclose(found["portable"][0].expected["score"], source, atol=1e-5)
