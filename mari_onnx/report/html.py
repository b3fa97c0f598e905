"""The report as one HTML page that needs nothing but itself: no network, no files beside it."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import TYPE_CHECKING, Any

from mari_onnx.report.report import Report
from mari_onnx.report.summary import of_equal
from mari_onnx.report.terminal import for_the_caller, summary_line, total_rows
from mari_onnx.report.view import view
from mari_onnx.report.why import to_dict as left_dict

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Rewrite

# In the order in which they are read: each uses what stands in those before it.
SCRIPTS = ("tools", "model", "layout", "shape", "draw", "panes", "details", "overview", "search", "main")


def page(source: onnx.ModelProto, rewrite: Rewrite, report: Report) -> str:
    """The page for one rewrite of `source`; figures are those of `report`."""
    shown = view(source, rewrite, report)
    data: dict[str, Any] = {**shown.data, **_story(report, shown.seconds)}
    script = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    parts = {
        "css": _asset("page.css"),
        "layout": _asset("dagre.min.js"),
        "licence": _asset("dagre.LICENSE"),
        "data": _script_safe(json.dumps(data, ensure_ascii=False, default=str, separators=(",", ":"))),
        "script": f'"use strict";\n(() => {{\n{script}}})();',
    }
    # In one go: a part may hold what looks like the place of another.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def _story(report: Report, seconds: tuple[float, float] | None) -> dict[str, Any]:
    """What the page says beside the graphs."""
    check, speed = report.check, report.speed
    return {
        "title": report.source.get("path") or "model",
        "changed": report.changed,
        "reason": report.reason,
        "candidates": report.candidates,
        "summary": summary_line(report),
        "totals": total_rows(report),
        "flops": [report.before.flops, report.after.flops],
        "bytes": [report.before.bytes, report.after.bytes],
        "nodes": [report.before.nodes, report.after.nodes],
        "once": [report.before.once_nodes, report.after.once_nodes],
        "seconds": seconds,
        "speed": speed and {"ratios": speed["speedup"], "text": speed["text"], "threads": speed.get("threads")},
        "left": [left_dict(each) for each in report.left],
        "caller": for_the_caller(report),
        "check": None if check is None else [str(line) for line in of_equal(check, "cuda")],
        "undone": report.incidents,
        "notes": report.notes,
        "assumed": report.assumed,
        "residual": report.residual,
    }


def _asset(name: str) -> str:
    return resources.files("mari_onnx.report").joinpath("page", name).read_text("utf-8")


def _script_safe(text: str) -> str:
    """JSON that cannot end the script element it is in."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
