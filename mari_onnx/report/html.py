"""The report as one HTML page that needs nothing but itself: no network, no files beside it."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import TYPE_CHECKING, Any

from mari_onnx.report.report import Report
from mari_onnx.report.terminal import change, quantity, summary_line
from mari_onnx.report.view import views

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Rewrite


def page(source: onnx.ModelProto, rewrite: Rewrite, report: Report) -> str:
    """The page for one rewrite of `source`; figures are those of `report`."""
    told = report.to_dict()
    data: dict[str, Any] = {
        **views(source, rewrite, report),
        "title": report.source.get("path") or "model",
        "totals": _totals(told),
        "summary": summary_line(report),
        "reason": report.reason,
        "candidates": report.candidates,
        "residual": report.residual,
        "incidents": report.incidents,
    }
    parts = {
        "css": _asset("page.css"),
        "layout": _asset("dagre.min.js"),
        "licence": _asset("dagre.LICENSE"),
        "data": _script_safe(json.dumps(data, ensure_ascii=False, default=str)),
        "script": _asset("page.js"),
    }
    # In one go: a part may hold what looks like the place of another.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def _totals(told: dict[str, Any]) -> list[list[str]]:
    """The rows of the terminal's summary from the figures of the JSON."""
    before, after = told["before"], told["after"]
    rows = []
    for name, key in (
        ("nodes", "nodes"),
        ("products", "products"),
        ("FLOPs a candidate", "flops_per_candidate"),
        ("bytes a candidate", "bytes_per_candidate"),
    ):
        old, new = before[key], after[key]
        plain = key in ("nodes", "products")
        shown = (str(old), str(new)) if plain else (quantity(old), quantity(new))
        rows.append([name, *shown, "" if key == "products" else change(old, new)])
    return rows


def _asset(name: str) -> str:
    return resources.files("mari_onnx.report").joinpath("page", name).read_text("utf-8")


def _script_safe(text: str) -> str:
    """JSON that cannot end the script element it is in."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
