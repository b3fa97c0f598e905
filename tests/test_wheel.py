"""What is released: the package and nothing else, the same bytes each time; what CI installs is pinned with hashes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import mari_onnx

ROOT = Path(__file__).parents[1]


def built(folder: Path, stamp: int, form: str = "wheel") -> Path:
    """A wheel or an sdist from a copy of the sources, whose files were last changed at another time."""
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder.mkdir(exist_ok=True) or folder / name)
    for name in ("mari_onnx", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "data", "cases"))
    for path in folder.rglob("*"):
        os.utime(path, (stamp, stamp))
    command = [sys.executable, "-m", "build", f"--{form}", "--no-isolation", "--skip-dependency-check", str(folder)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, umask=0o022)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (folder / "dist").iterdir()
    return made


def package() -> set[str]:
    """Files of the package."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mari_onnx").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_the_package_alone_and_is_reproducible(tmp_path: Path) -> None:
    first, second = built(tmp_path / "a", 1_600_000_000), built(tmp_path / "b", 1_650_000_000)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == package()
    assert {"mari_onnx/schemas/report.json", "mari_onnx/py.typed", "mari_onnx/report/page/page.css"} <= names


def test_an_index_takes_the_wheel_and_the_sdist(tmp_path: Path) -> None:
    wheel, sdist = built(tmp_path / "a", 1_600_000_000), built(tmp_path / "b", 1_600_000_000, "sdist")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert package() <= inside
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_the_wheel_alone_runs_in_a_new_environment(tmp_path: Path) -> None:
    """Without its dependencies, which are those of this environment: what it needs beside them would be missing."""
    wheel = built(tmp_path / "a", 1_600_000_000)
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (home,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(home)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    (home / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    python = str(tmp_path / "venv/bin/python")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def said(*args: str) -> str:
        command = [python, *args]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert Path(said("-c", "import mari_onnx; print(mari_onnx.__file__)")).is_relative_to(home)
    assert said("-m", "mari_onnx", "--version") == f"mari-onnx, version {mari_onnx.__version__}"
    said("-m", "mari_onnx", "inspect", str(ROOT / "models/coarse_mlp.onnx"), "--html", "page.html")
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_what_ci_installs_is_pinned_with_hashes() -> None:
    text = (ROOT / "requirements-ci.txt").read_text()
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if entry.strip() and not entry.startswith("#")]
    assert len(entries) > 20
    for entry in entries:
        assert re.match(r"[A-Za-z0-9_.\[\]-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
    pinned = {re.match(r"[A-Za-z0-9_.-]+", entry)[0].lower() for entry in entries}
    assert {"onnx", "numpy", "click", "rich", "onnxscript", "pytest", "hypothesis"} <= pinned
