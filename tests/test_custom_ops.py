"""`--custom-ops LIBRARY`: a library is loaded only when it is named, into every session and every further process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from mari_onnx import runtime
from mari_onnx.cli.main import cli, run
from mari_onnx.errors import UsageError
from tests.test_candidates import joined

FLAGS = ["--user", "u", "--item", "x"]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The libraries that sessions were given, of which none is really loaded."""
    found: list[str] = []

    class Options(onnxruntime.SessionOptions):
        def register_custom_ops_library(self, library: str) -> None:
            found.append(library)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    return found


def files(folder: Path) -> tuple[str, str, str]:
    """A model, a path for an output, and a file that stands for a library."""
    (folder / "ops.so").write_bytes(b"")
    onnx.save(joined(["N", 8], ["N", 4]), folder / "in.onnx")
    return str(folder / "in.onnx"), str(folder / "out.onnx"), str((folder / "ops.so").resolve())


def test_a_library_is_loaded_into_every_session_of_a_command(tmp_path: Path, registered: list[str]) -> None:
    source, output, library = files(tmp_path)
    commands = {
        "optimize": [source, output, *FLAGS],
        "check": [source, output],
        "bench": [source, output, "--candidates", "2", "--seconds", "0.05", "--no-memory"],
        "inspect": [source, *FLAGS, "--measure"],
    }
    for name, arguments in commands.items():
        for given in ([], ["--custom-ops", library]):
            registered.clear()
            done = CliRunner().invoke(cli, [name, *arguments, *given])
            assert done.exit_code == 0, done.output
            assert set(registered) == ({library} if given else set()), name
            assert not given or len(registered) > 2, name  # once to see that it loads, then for each session
        assert runtime.custom_ops_in_use() == ()


def test_further_processes_are_given_the_library(
    tmp_path: Path, registered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mari_onnx.timing import memory

    _, _, library = files(tmp_path)
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        raise ValueError

    monkeypatch.setattr(memory.subprocess, "run", run)
    with runtime.custom_ops([library]):
        memory.peak_bytes("m.onnx", {})
    memory.peak_bytes("m.onnx", {})
    assert [library in command for command in commands] == [True, False]


def test_a_library_that_cannot_be_loaded_is_a_usage_error(tmp_path: Path) -> None:
    _, _, library = files(tmp_path)
    for path, says in ((library, "cannot load the custom operators"), (library + "x", "there is no library")):
        with pytest.raises(UsageError, match=says), runtime.custom_ops([path]):
            pass
        assert runtime.custom_ops_in_use() == ()


def test_a_model_with_an_operator_that_nobody_loaded_names_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _, _ = files(tmp_path)
    model = onnx.load(source)
    model.graph.node[0].domain = "nobody.has.this"
    model.opset_import.append(onnx.helper.make_opsetid("nobody.has.this", 1))
    onnx.save(model, source)
    assert run(["check", source, source, *FLAGS]) == 3
    assert "--custom-ops" in capsys.readouterr().err
