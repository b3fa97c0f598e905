"""What is released: the package and nothing else, the same bytes each time; what CI installs is pinned with hashes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def built(folder: Path, stamp: int) -> Path:
    """A wheel from a copy of the sources, whose files were last changed at another time."""
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder.mkdir(exist_ok=True) or folder / name)
    for name in ("mari_onnx", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "data", "cases"))
    for path in folder.rglob("*"):
        os.utime(path, (stamp, stamp))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check", str(folder)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, umask=0o022)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def test_the_wheel_has_the_package_alone_and_is_reproducible(tmp_path: Path) -> None:
    first, second = built(tmp_path / "a", 1_600_000_000), built(tmp_path / "b", 1_650_000_000)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = set(archive.namelist())
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mari_onnx").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == sources


def test_what_ci_installs_is_pinned_with_hashes() -> None:
    text = (ROOT / "requirements-ci.txt").read_text()
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if entry.strip() and not entry.startswith("#")]
    assert len(entries) > 20
    for entry in entries:
        assert re.match(r"[A-Za-z0-9_.\[\]-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
    pinned = {re.match(r"[A-Za-z0-9_.-]+", entry)[0].lower() for entry in entries}
    assert {"onnx", "numpy", "click", "rich", "onnxscript", "pytest", "hypothesis"} <= pinned
