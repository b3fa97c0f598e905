"""`make serve-demo`: what it prints, and that it fails where scores differ."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray")
pytest.importorskip("httpx")

from benchmarks.serve.__main__ import CLOSE, write

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own modules
ROOT = Path(__file__).resolve().parents[2]


def figures(scores, rate=10.0):
    return {"p50": 1.0, "p99": 2.0, "rate": rate, "alone": 1.0, "scores": np.asarray(scores, np.float32)}


def test_it_fails_where_a_score_differs(capsys):
    right = figures([[0.5, 0.25]])
    found = {"source": right, "split": figures([[0.5, 0.25 + CLOSE / 2]], 40.0), "nothing": figures([[0.0, 0.0]], 80.0)}
    assert write(found) == 0
    assert "4.00x" in capsys.readouterr().out
    assert write({**found, "merged": figures([[0.5, 0.25 + 2 * CLOSE]], 40.0)}) == 1
    said = capsys.readouterr()
    assert "(d) is at 50% of that" in said.out
    assert "differ from the source's by more than 1e-05: (d) split, requests merged" in said.err
    assert write({**found, "merged": figures([[0.5, np.nan]])}) == 1


@pytest.mark.slow
def test_a_short_one(tmp_path):
    numbers = ["--requests", "40", "--items", "500", "--candidates", "20", "--clients", "4", "--users", "5"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.serve",
        "--folder",
        str(tmp_path),
        "--ways",
        "source",
        "merged",
        *numbers,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "All scores agree with the source's" in done.stdout
