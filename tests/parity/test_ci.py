"""The step in docs/ci.md, run as far as a shell can."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from tests.parity.pairs import coarse

DOCS = Path(__file__).parents[2] / "docs" / "ci.md"
SIDES = 'user = ["user_*"]\nitem = ["item_*"]\n'

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="there is no shell")


def step(tmp_path: Path, **files: np.ndarray) -> subprocess.CompletedProcess[str]:
    """Runs the step on a small model; `mari-onnx` is this checkout's."""
    script = re.findall(r"```sh\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(script) == 1
    onnx.save(coarse().source, tmp_path / "in.onnx")
    (tmp_path / "in.sides.toml").write_text(SIDES)
    np.savez(tmp_path / "requests.npz", **files)
    command = tmp_path / "bin" / "mari-onnx"
    command.parent.mkdir()
    start = "import sys; from mari_onnx.cli.main import main; main(sys.argv[1:])"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{start}" "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(DOCS.parents[1]),
        "MODEL": str(tmp_path / "in.onnx"),
        "REQUESTS": str(tmp_path / "requests.npz"),
        "OUT": str(tmp_path / "out"),
    }
    return subprocess.run(
        ["sh", "-c", script[0]], env=environment, capture_output=True, text=True, check=False
    )


REQUEST = {
    "user_id": np.array([7]),
    "user_dense": np.ones((1, 3), np.float32),
    "item_id": np.arange(5),
    "item_dense": np.zeros((5, 2), np.float32),
}


def test_the_step_passes_and_leaves_its_artefacts(tmp_path: Path) -> None:
    done = step(tmp_path, **REQUEST)
    assert done.returncode == 0, done.stderr
    assert onnx.load(tmp_path / "out" / "model.onnx").graph.node
    for name in ("parity-recorded.xml", "parity-drawn.xml"):
        suite = ElementTree.parse(tmp_path / "out" / name).getroot()
        assert suite.attrib["failures"] == "0"
    assert (tmp_path / "out" / "report.json").is_file()
    assert not (tmp_path / "out" / "failed").exists()


def test_a_wrongly_tagged_input_ends_the_step(tmp_path: Path) -> None:
    done = step(tmp_path, **REQUEST | {"user_id": np.array([7, 7, 8, 7, 7])})
    assert done.returncode == 2
    assert "user_id is tagged user" in done.stderr
