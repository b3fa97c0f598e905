"""A handful of a public framework's models, exported small: optimized, equal, and nothing left.

`python -m benchmarks.interop.export tests/data/interop --small --only GRAPH ...` makes the graphs;
`make interop` goes through the whole corpus at full size.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from benchmarks.interop.run import drawer
from benchmarks.interop.zoo import SMALL
from mari_onnx.engine import Options, rewrite
from mari_onnx.model.signature import signature
from mari_onnx.parity import check
from mari_onnx.report.residual import measure
from mari_onnx.sides.resolve import resolve

GRAPHS = sorted((Path(__file__).parent / "data" / "interop").glob("*.onnx"))


@pytest.mark.parametrize("path", GRAPHS, ids=[p.stem for p in GRAPHS])
def test_export_is_optimized_equal_and_without_residual(path):
    source = onnx.load(path)
    sides = resolve(signature(source), file=path.with_suffix(".sides.toml"))
    draw = drawer(source, sides, path.stem, SMALL)
    before = measure(source, sides, draw=draw)
    assert before.share > 0.1

    # Widths are cut, so that splits which pay at full size would not pay here for few candidates.
    done = rewrite(source, sides, Options(candidates=100_000))
    assert done.changed
    requests = [draw(k, n) for k, n in enumerate((1, 7, 64, 64))]
    result = check(source, done.model, sides, requests=requests)
    assert result.ok, result.reasons

    after = measure(done.model, sides, draw=draw)
    assert after.share <= 0.01, [(x.op, x.name, x.text) for x in after.worst()]


def test_the_handful_is_there():
    assert len(GRAPHS) == 4
