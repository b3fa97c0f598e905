"""A report in a few lines, for who prints it in Python: what was gained, what was checked, what is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mari_onnx.report.figures import change, dims, quantity
from mari_onnx.shown import Rows

MOST = 3
"""Lines of one kind."""


def rows(told: Mapping[str, Any]) -> Rows:
    """What a report says first, line by line.

    Args:
        told: its JSON form (`Report.to_dict`).
    """
    before, after = (told[name]["flops_per_candidate"] for name in ("before", "after"))
    said = []
    if not told["changed"]:
        said.append(("unchanged", told["reason"] or "nothing could be computed once per request"))
    else:
        work = f"{quantity(before)} -> {quantity(after)} FLOPs per candidate ({change(before, after)})"
        said.append(("work", f"{work} at {told['candidates']} candidates"))
        nodes = f"{told['after']['once_nodes']} of {told['after']['nodes']} nodes"
        said.append(("once per request", f"{nodes}; the source has {told['before']['nodes']}"))
    if told["speed"] is not None:
        said.append(("measured", told["speed"]["text"]))
    elif told["estimated_speedup"]:
        at = ", ".join(f"{ratio:.2g}x at {n}" for n, ratio in told["estimated_speedup"].items())
        said.append(("estimated", f"{at} candidates, by prices of kernels"))
    said.append(("checked", _checked(told["check"])))
    shapes = told["reshaped_inputs"]
    said += [("input", f"{name} {dims(s['before'])} -> {dims(s['after'])}") for name, s in [*shapes.items()][:MOST]]
    said += [("", f"and {len(shapes) - MOST} more inputs")] if len(shapes) > MOST else []
    left = told["per_candidate"][:MOST]
    said += [("still per candidate", f"{e['share']:.0%} {e['op']} {e['node']}: {e['why']}") for e in left]
    said += [("undone", incident) for incident in told["incidents"][:MOST]]
    return said + [("note", note) for note in told["notes"][:MOST]]


def _checked(check: Mapping[str, Any] | None) -> str:
    if check is None:
        return "no: the two were not run"
    worst = max((o["max_abs"] for o in check["outputs"] if isinstance(o["max_abs"], float)), default=0.0)
    sizes = ", ".join(map(str, check["candidates"]))
    return f"{check['verdict']} for N = {sizes} on {' and '.join(check['providers'])}; largest difference {worst:.1e}"
