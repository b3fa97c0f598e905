"""The report as one HTML page that needs nothing but itself: no network, no files beside it."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import TYPE_CHECKING, Any

from mari_onnx.report.report import Report
from mari_onnx.report.terminal import summary_line, total_rows
from mari_onnx.report.view import views

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Rewrite


def page(source: onnx.ModelProto, rewrite: Rewrite, report: Report) -> str:
    """The page for one rewrite of `source`; figures are those of `report`."""
    data: dict[str, Any] = {
        **views(source, rewrite, report),
        "title": report.source.get("path") or "model",
        "totals": total_rows(report),
        "summary": summary_line(report),
        "candidates": report.candidates,
        "residual": report.residual,
        "incidents": report.incidents,
        "assumed": report.assumed,
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


def _asset(name: str) -> str:
    return resources.files("mari_onnx.report").joinpath("page", name).read_text("utf-8")


def _script_safe(text: str) -> str:
    """JSON that cannot end the script element it is in."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
