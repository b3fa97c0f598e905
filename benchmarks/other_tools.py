"""Runs Polygraphy, onnxsim and onnxslim, in an environment of their own, and mari-onnx beside them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build/environments/comparison"
PACKAGES = ("polygraphy", "onnxsim", "onnxslim", "onnxruntime", "onnx", "numpy")
OURS, OTHERS = "mari-onnx", ("polygraphy", "onnxsim", "onnxslim")


@dataclass(frozen=True)
class Ran:
    """A command that ended."""

    code: int
    text: str

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.text


def environment() -> Path:
    """The folder of the other tools' commands; made on first use."""
    done = FOLDER / "ready"
    if not done.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
        subprocess.run([str(FOLDER / "bin/python"), "-m", "pip", "install", "-q", *PACKAGES], check=True)
        done.touch()
    return FOLDER / "bin"


def ran(tool: str, *words: object, folder: Path) -> Ran:
    """A command of `tool`, with what it wrote to both outputs."""
    mine = [sys.executable, "-m", "mari_onnx"]
    start = mine if tool == OURS else [str(environment() / tool)]
    path = {"PYTHONPATH": str(ROOT)} if tool == OURS else {"PYTHONPATH": ""}
    done = subprocess.run(
        [*start, *map(str, words)],
        cwd=folder,
        env={**os.environ, **path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return Ran(done.returncode, done.stdout + done.stderr)


@cache
def help_of(tool: str, *command: str) -> str:
    return ran(tool, *command, "--help", folder=ROOT).text


def asked(tool: str) -> dict[str, str]:
    """The help texts of a tool's commands that are compared here."""
    commands = {OURS: [["optimize"], ["check"], ["inspect"]], "polygraphy": [["run"], ["inspect", "model"]]}
    return {" ".join([tool, *each]): help_of(tool, *each) for each in commands.get(tool, [[]])}


def flags(tool: str, pattern: str) -> list[str]:
    """Flags of a tool whose name or text matches."""
    found = []
    for text in asked(tool).values():
        for match in re.finditer(r"^\s{2,}(-[^\n]*(?:\n(?!\s{2,4}-)[^\n]*)*)", text, re.MULTILINE):
            if re.search(pattern, match[1], re.IGNORECASE):
                found += re.findall(r"(?<![\w-])--[a-z][\w-]*", match[1].split("\n")[0])[:1]
    return list(dict.fromkeys(found))


def on_a_terminal(words: list[str], folder: Path) -> str:
    """What a command writes to a terminal."""
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        parts = []
        try:
            while chunk := os.read(ours, 65536):
                parts.append(chunk)
        except OSError:  # the other end is closed
            pass
        process.wait(600)
    os.close(ours)
    return b"".join(parts).decode(errors="replace")
