"""The command as a process: pipes that close, disks that are full, an onnxruntime that is broken, what is on stderr."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from mari_onnx import runtime
from mari_onnx.cli.main import run
from mari_onnx.errors import BrokenRuntime, WriteError
from mari_onnx.model import save
from mari_onnx.parity import check
from tests import tiny
from tests.parity.pairs import coarse

TAGS = ["--user", "user_*", "--item", "item_*"]
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
PAIR = coarse()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    save.save(tiny.fc(user=256, item=64, hidden=128), path)
    return path


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.onnx"
    save.save(tiny.fc(user=256, item=64, hidden=128, seed=1), path)
    return path


def command(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "mari_onnx", *map(str, arguments)]
    return subprocess.run(line, **{"capture_output": True, "text": True, "check": False, **more})


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@contextlib.contextmanager
def streams(kind: str):  # type: ignore[no-untyped-def]
    writing = closed_pipe()
    try:
        if kind == "output":
            yield {"stdout": writing, "stderr": subprocess.PIPE, "capture_output": False}
        else:
            yield {"stdout": writing, "stderr": writing, "capture_output": False}
    finally:
        os.close(writing)


@posix
@pytest.mark.parametrize("kind", ["output", "both"])
def test_a_reader_that_goes_changes_neither_the_model_nor_the_exit_code(
    source: Path, wrong: Path, tmp_path: Path, kind: str
) -> None:
    out, plain = tmp_path / "out.onnx", tmp_path / "plain.onnx"
    assert command("optimize", source, plain, *TAGS).returncode == 0
    lines: list[tuple[Sequence[object], int]] = [
        (["optimize", source, out, *TAGS], 0),
        (["check", source, source, *TAGS], 0),
        (["check", source, wrong, *TAGS], 1),
        (["check", source, wrong, *TAGS, "--json", "-"], 1),
        (["check", source, wrong, *TAGS, "--json", "/dev/stdout"], 1),
        (["inspect", source, *TAGS, "--json"], 0),
        (["optimize", source, out], 2),
        (["--help"], 0),
    ]
    for line, code in lines:
        with streams(kind) as where:
            done = command(*line, **where)
        assert done.returncode == code, line
        if done.stderr is not None:
            assert "Broken" not in done.stderr
            assert "Exception" not in done.stderr
    assert out.read_bytes() == plain.read_bytes()


@posix
def test_no_standard_output_at_all(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    shell = f'"{sys.executable}" -m mari_onnx optimize "{source}" "{out}" --user "user_*" --item "item_*" >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell], check=False).returncode == 0
    assert onnx.load(out).graph.node


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_standard_output_on_a_full_disk(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    with open("/dev/full", "w") as full:
        done = command("optimize", source, out, *TAGS, stdout=full, stderr=subprocess.PIPE, capture_output=False)
        assert done.returncode == 6
        assert "No space left" in done.stderr
        assert onnx.load(out).graph.node
        failing = command("optimize", source, out, stdout=full, stderr=subprocess.PIPE, capture_output=False)
        assert failing.returncode == 2


@posix
def test_a_limit_on_the_size_of_files(source: Path, tmp_path: Path) -> None:
    """The output, and temporary files of the check, that do not fit."""
    import resource

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    out = tmp_path / "out.onnx"
    before = sorted(tmp_path.iterdir())
    for line in (["optimize", source, out, *TAGS], ["check", source, source, *TAGS]):
        done = command(*line, preexec_fn=small)
        assert done.returncode == 6, done.stderr
        assert "File too large" in done.stderr
        assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_for_temporary_files(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Path, _: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run(["check", str(source), str(source), *TAGS]) == 6
    said = capsys.readouterr().err
    assert "No space left" in said
    assert "TMPDIR" in said
    with pytest.raises(WriteError):
        check(PAIR.source, PAIR.optimized, PAIR.sides)


@posix
def test_nowhere_to_put_temporary_files(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def none(*_: object, **__: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "mkdtemp", none)
    assert run(["check", str(source), str(source), *TAGS]) == 6


def test_the_worst_request_cannot_be_written(source: Path, wrong: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    assert run(["check", str(source), str(wrong), *TAGS, "--dump", str(tmp_path / "taken/in")]) == 6


# ---- onnxruntime ------------------------------------------------------------------------------------------------
def packages(folder: Path, *names: str) -> None:
    """What pip leaves of these packages beside their modules."""
    for name in names:
        info = folder / f"{name.replace('-', '_')}-9.9.9.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9.9\n")


def beside(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{Path(__file__).parents[1]}"}


def test_two_packages_of_onnxruntime_are_told_with_what_mends_it(source: Path, tmp_path: Path) -> None:
    packages(tmp_path / "site", "onnxruntime", "onnxruntime-gpu")
    done = command("check", source, source, *TAGS, env=beside(tmp_path / "site"))
    assert done.returncode == 0
    assert "onnxruntime-gpu and onnxruntime are both installed" in done.stdout
    command_line = "pip uninstall -y onnxruntime-gpu onnxruntime && pip install onnxruntime-gpu"
    assert command_line in done.stdout
    done = command("check", source, source, *TAGS, "--provider", "dml", env=beside(tmp_path / "site"))
    assert done.returncode == 5
    assert command_line in done.stderr


@pytest.mark.parametrize("left", ["nothing but the folder", "a module that needs another"])
def test_a_half_removed_onnxruntime_is_told_with_what_mends_it(source: Path, tmp_path: Path, left: str) -> None:
    site, out = tmp_path / "site", tmp_path / "out.onnx"
    packages(site, "onnxruntime-gpu")
    module = site / "onnxruntime"
    module.mkdir()
    text = "" if left == "nothing but the folder" else "from onnxruntime.capi import _pybind_state\n"
    (module / "__init__.py").write_text(text)
    for line in (["optimize", source, out, *TAGS], ["check", source, source, *TAGS]):
        done = command(*line, env=beside(site))
        assert done.returncode == 5, done.stderr
        assert "onnxruntime-gpu cannot be imported" in done.stderr
        assert "pip uninstall -y" in done.stderr
        assert "Traceback" not in done.stderr
    assert not out.exists()
    # What runs no model needs none.
    assert command("optimize", source, out, *TAGS, "--no-check", env=beside(site)).returncode == 0


def test_no_onnxruntime_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("mari_onnx.runtime.packages.installed", list)
    with pytest.raises(BrokenRuntime, match="not installed") as caught:
        runtime.load()
    assert str(caught.value.hint).startswith("pip install onnxruntime")


def test_one_package_is_nothing_to_tell() -> None:
    assert len(runtime.installed()) == 1
    assert runtime.conflict() is None


def noisy(path: Path) -> Path:
    """A model on which onnxruntime warns: an output of another shape than declared, an unused initializer."""
    model = tiny.fc(user=256, item=64, hidden=128)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    unused = onnx.numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer.append(onnx.numpy_helper.from_array(unused, "unused"))
    onnx.save(model, path)
    return path


def test_standard_error_is_for_errors_of_our_own(tmp_path: Path) -> None:
    source, out = noisy(tmp_path / "in.onnx"), tmp_path / "out.onnx"
    import onnxruntime

    # It is noisy where nobody sees to it.
    alone = "import sys, onnxruntime as o; o.set_default_logger_severity(0); o.InferenceSession(sys.argv[1])"
    assert onnxruntime.__version__
    heard = subprocess.run([sys.executable, "-c", alone, str(source)], capture_output=True, text=True, check=False)
    assert heard.stderr
    for line in (["optimize", source, out], ["check", source, source], ["inspect", source, "--measure"]):
        done = command(*line, *TAGS)
        assert (done.returncode, done.stderr) == (0, ""), line
