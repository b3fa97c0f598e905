"""Runs that end early: interrupted, out of time, ended or killed. They leave the old file or the new one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import onnx
import pytest

from mari_onnx.cli.limits import end_on_signals
from mari_onnx.cli.main import run
from mari_onnx.model import save
from tests import tiny

TAGS = ["--user", "user_*", "--item", "item_*"]
KILLS = int(os.environ.get("MARI_ONNX_KILLS", "6"))
"""Runs that are ended or killed; `make kills` does it 200 times."""
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


@pytest.fixture
def source(tmp_path) -> Path:
    # Wide enough that a split pays for its nodes.
    path = tmp_path / "in.onnx"
    save.save(tiny.fc(user=256, item=64, hidden=128), path)
    return path


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out.onnx"


def test_ctrl_c_leaves_nothing(source, out, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mari_onnx.parity.guard.check", interrupted)
    assert run(["optimize", str(source), str(out), *TAGS]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == [source]


@posix
def test_timeout_leaves_nothing(source, out, monkeypatch, capsys):
    monkeypatch.setattr("mari_onnx.parity.guard.check", lambda *_, **__: time.sleep(30))
    assert run(["optimize", str(source), str(out), *TAGS, "--timeout", "0.2"]) == 7
    assert "--timeout" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == [source]


@posix
def test_the_time_limit_is_no_error_that_the_engine_goes_on_after(source, out, monkeypatch, capsys):
    """Folding a constant may fail for any reason; the end of the time is none of them."""
    model = tiny.fc(user=256, item=64, hidden=128)
    model.graph.node.insert(0, onnx.helper.make_node("Neg", ["w"], ["v"], "folded"))
    model.graph.node[2].input[1] = "v"
    save.save(model, source)
    monkeypatch.setattr("mari_onnx.engine.ir.builder.evaluate", lambda *_: time.sleep(30))
    assert run(["optimize", str(source), str(out), *TAGS, "--timeout", "0.5", "--no-check"]) == 7
    assert "--timeout" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == [source]


def run_and_stop(source: Path, out: Path, scratch: Path, signals: list[int], rounds: int) -> Counter[str]:
    """Runs of the command, each ended by a signal at a random moment; what they left, and how they ended."""
    rng = random.Random(0)
    scratch.mkdir()
    command = [sys.executable, "-m", "mari_onnx", "optimize", str(source), str(out), *TAGS]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    old = save.save(tiny.fc(user=8, item=8, hidden=8), out) or out.read_bytes()
    begin = time.monotonic()
    subprocess.run(command, env=environment, capture_output=True, check=True)
    usual, new = time.monotonic() - begin, out.read_bytes()
    found: Counter[str] = Counter()
    for each in range(rounds):
        out.write_bytes(old)
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            time.sleep(rng.uniform(0, 1.1 * usual))
            process.send_signal(signals[each % len(signals)])
            _, said = process.communicate()
        found[f"exit code {process.returncode}"] += 1
        # 1 and the signal itself: before a line of ours has run
        assert process.returncode in (0, 1, 130, 143, *(-each for each in signals)), said.decode()
        assert b"a defect" not in said
        content = out.read_bytes()
        assert content in (old, new)
        found["old" if content == old else "new"] += 1
        left = [path for path in scratch.iterdir() if path.name != ".ses"]  # which is onnxruntime's
        left += [path for path in out.parent.iterdir() if path not in (source, out, scratch)]
        found["with something left behind"] += bool(left)
        if signals != [signal.SIGKILL]:
            assert not left
        for path in left:
            shutil.rmtree(path)
    print(f"{rounds} runs: {dict(found)}")
    return found


@posix
def test_a_run_that_is_ended_leaves_nothing(source, out, tmp_path):
    """Ctrl-C and SIGTERM at any moment, the start and the end of the process among them."""
    found = run_and_stop(source, out, tmp_path / "tmp", [signal.SIGINT, signal.SIGTERM], KILLS)
    assert found["old"]


@posix
def test_a_run_that_is_killed_leaves_the_old_file_or_the_new_one(source, out, tmp_path):
    found = run_and_stop(source, out, tmp_path / "tmp", [signal.SIGKILL], KILLS)
    assert found["old"]


def test_an_interrupt_is_one_whatever_a_library_makes_of_it(source, out, monkeypatch, capsys):
    def importing(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr("mari_onnx.cli.limits._asked", [])
    monkeypatch.setattr("mari_onnx.parity.guard.check", importing)
    end_on_signals()
    try:
        assert run(["optimize", str(source), str(out), *TAGS]) == 130
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == [source]
