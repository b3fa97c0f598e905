"""The text of docs/interop.md."""

from __future__ import annotations

from typing import Any

from benchmarks.interop.table import render


def result(name: str, left: float, **more: Any) -> dict[str, Any]:
    return {
        "graph": name,
        "residual": [0.35, left],
        "flops": [2000.0, 1000.0],
        "nodes": [100, 90],
        "check": {"ok": True, "error": 1e-7, "reasons": []},
        "ratio": {"64": 1.5, "500": 2.0},
        "left": [
            ["Softmax", "s", 10.0, "40% of the result is equal for all candidates", "Softmax runs over the candidates"]
        ],
        **more,
    }


def test_summary_counts_and_rows():
    page = render([result("a", 0.0), result("b", 0.05, ratio={"64": 0.9, "500": 1.0})], {})
    assert "2 graphs, 2 optimized, 2 of these equal" in page
    assert "Residual at most 1% in 1 of 2." in page
    assert "N = 64: 1.50x in the median, 0.90x to 1.50x; below 0.98x: 1." in page
    assert "| a | 35.0% -> 0.0% | 2.00x | 100 -> 90 | 1.0e-07 | 1.50 | 2.00 |" in page


def test_what_is_left_comes_with_its_reason():
    page = render([result("b", 0.05)], {})
    assert "- `b` (5.0%): Softmax, 40% of the result" in page
    assert "Softmax runs over the candidates." in page


def test_failures_are_named():
    why = "RuntimeError: shapes of | differ\n\nTraceback\n"
    failed = {"c": why, "e": why}
    page = render([{"graph": "d", "error": "ModelError: no"}, result("a", 0.0)], failed)
    assert "- `d`: ModelError: no" in page
    assert "- `c`, `e`: RuntimeError: shapes of / differ" in page


def test_outputs_that_differ_stand_out():
    page = render([result("a", 0.0, check={"ok": False, "error": 0.5, "reasons": ["x"]})], {})
    assert "5.0e-01 **differs**" in page
    assert "0 of these equal" in page


def test_results_of_several_versions_of_the_engine_are_told():
    assert "versions" not in render([result("a", 0.0, code="1"), result("b", 0.0, code="1")], {})
    page = render([result("a", 0.0, code="1"), result("b", 0.0, code="2")], {})
    assert "2 versions" in page
